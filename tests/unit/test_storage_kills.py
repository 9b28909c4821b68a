"""Writers killed at any moment: what is there is whole, and what was told to be there is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import read_manifest
from flowkit.datastore.runs import list_runs, list_tasks, read_run

WRITER = """
import sys
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import write_manifest
from flowkit.datastore.runs import claim_run
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition
storage = LocalStorage(sys.argv[1], durable=False)
writer = ArtifactWriter(Blobs(storage))
while True:
    run = claim_run(storage, "F", {})
    for task in range(30):
        value = f"{run}.{task}." * 1000
        entry = writer.save("x", value, step="a")
        if write_manifest(storage, Manifest("F", run, "a", str(task), 0, {"x": entry}, Transition("end"))):
            print(run, task, flush=True)
"""


def test_killed_writers_leave_nothing_half_done(tmp_path: Path) -> None:
    chance = random.Random(7)
    told: list[tuple[str, str]] = []
    for _ in range(8):
        children = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout
            told.append(tuple(child.stdout.readline().split()))  # type: ignore[arg-type]
        time.sleep(chance.uniform(0, 0.05))
        for child in children:
            child.send_signal(signal.SIGKILL)
        for child in children:
            lines = child.communicate(timeout=30)[0].splitlines(keepends=True)
            told += [tuple(line.split()) for line in lines if line.endswith("\n")]  # type: ignore[misc]
    storage = LocalStorage(str(tmp_path), durable=False)
    blobs = Blobs(storage, "always")
    found = set()
    for run in list_runs(storage, "F"):
        assert read_run(storage, "F", run) is not None
        for task in list_tasks(storage, "F", run, "a"):
            manifest = read_manifest(storage, "F", run, "a", task)
            if manifest is None:
                continue  # its folder was made, its manifest not yet linked
            found.add((run, task))
            entry = manifest.artifacts["x"]
            assert bytes(blobs.get(entry.key, entry.size)) == (f"{run}.{task}." * 1000).encode()
    assert set(told) <= found
    assert len(set(told)) == len(told)
