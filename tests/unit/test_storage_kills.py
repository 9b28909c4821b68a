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
    root = tmp_path / "root"
    root.mkdir()
    for turn in range(8):
        # What they told is read from files: a pipe's reader that had buffered a line would keep half of it to itself.
        files = [tmp_path / f"told-{turn}-{number}" for number in range(2)]
        children = []
        for path in files:
            with open(path, "wb") as output:
                children.append(subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=output))
        for path, child in zip(files, children, strict=True):
            while b"\n" not in path.read_bytes():
                assert child.poll() is None
                time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        for child in children:
            child.send_signal(signal.SIGKILL)
        for path, child in zip(files, children, strict=True):
            child.wait(30)
            lines = path.read_text().splitlines(keepends=True)
            told += [tuple(line.split()) for line in lines if line.endswith("\n")]  # type: ignore[misc]
    storage = LocalStorage(str(root), durable=False)
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
