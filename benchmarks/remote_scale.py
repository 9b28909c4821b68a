"""What a wide foreach on a service costs the laptop: one process, its calls, its memory, its processor time.

python remote_scale.py [--tasks 10000] [--rate 1000] [--json]

The service is simulated at the port that AWS Batch and Kubernetes implement (`flowkit.runtime.backend`): nothing is
executed. A process of its own reads each launch list, writes the manifest that each task would have committed, and
tells the states; so the process that is measured does what it does with a real service, and only that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowkit.runtime.backend import FoundJob, RowState, Submission

FLOW = """
import atexit, json, os, resource, time
from flowkit import FlowSpec, step
from flowkit.decorators.attach import step_decorator
from remote_scale import simulated_decorator

simulated = step_decorator(simulated_decorator())
PID, BEGAN = os.getpid(), time.time()


class Wide(FlowSpec):
    @step
    def start(self):
        self.items = list(range(int(os.environ["SIMULATED_TASKS"])))
        self.next(self.train, foreach="items")

    @simulated
    @step
    def train(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.count = len(inputs)
        self.next(self.end)

    @step
    def end(self):
        print("joined", self.count)


def report():
    if os.getpid() == PID:
        used = resource.getrusage(resource.RUSAGE_SELF)
        found = {"cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024, "seconds": time.time() - BEGAN}
        with open(os.path.join(os.environ["SIMULATED_SERVICE"], "used.json"), "w") as file:
            json.dump(found, file)


if __name__ == "__main__":
    atexit.register(report)
    Wide()
"""
_ENTRY_POINTS = "[flowkit.backends]\nsimulated = remote_scale:simulated_backend\n"


def simulated_decorator() -> Any:
    """Return the class of the decorator that has a step carried out by the simulated service."""
    from flowkit.decorators.contract import ExecutorRequest, StepDecorator

    class Simulated(StepDecorator):
        name = "simulated"

        def executor(self) -> ExecutorRequest:
            return ExecutorRequest("simulated")

    return Simulated


def simulated_backend(run: Any) -> Any:
    """Make the backend."""
    from flowkit.runtime.backend import Backend, RowState

    class Simulated(Backend):
        name = "simulated"
        max_rows = 10_000
        poll_interval = 2.0
        on_this_machine = True

        def __init__(self, run: Any) -> None:
            self.run = run
            self.service = Path(os.environ["SIMULATED_SERVICE"])
            self._read: dict[str, int] = {}
            self._processes: list[subprocess.Popen[bytes]] = []

        def preflight(self, requests: Mapping[str, Any]) -> list[Any]:
            return []

        def submit(self, submission: Submission) -> str:
            self._call("submit")
            key = submission.command[submission.command.index("--list") + 1]
            folder = self.service / submission.name
            folder.mkdir()
            where = (str(folder), self.run.root, self.run.flow, self.run.run)
            what = (key, str(submission.rows), os.environ["SIMULATED_RATE"])
            self._processes.append(subprocess.Popen([sys.executable, __file__, "--serve", *where, *what]))
            return submission.name

        def find(self, name: str) -> str | None:
            self._call("find")
            return name if (self.service / name).is_dir() else None

        def states(self, jobs: Mapping[str, int]) -> Iterator[RowState]:
            self._call("states")
            for job in jobs:
                path = self.service / job / "states"
                data = path.read_bytes()[self._read.get(job, 0) :] if path.exists() else b""
                whole = data[: data.rfind(b"\n") + 1]
                self._read[job] = self._read.get(job, 0) + len(whole)
                for line in whole.splitlines():
                    row, phase, when = json.loads(line)
                    yield RowState(job, row, phase, when, exit_status=0 if phase == "succeeded" else None)

        def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
            self._call("cancel")

        def last_lines(self, job: str, row: int) -> list[str]:
            return []

        def jobs(self, **_: Any) -> list[FoundJob]:
            return []

        def close(self) -> None:
            for process in self._processes:
                process.wait()

        def _call(self, what: str) -> None:
            with open(self.service / "calls", "a", encoding="ascii") as file:
                file.write(f"{what}\n")

    return Simulated(run)


simulated_backend.on_this_machine = True  # type: ignore[attr-defined]


def serve(folder: str, root: str, flow: str, run: str, key: str, rows: int, rate: float) -> None:
    """Be the service for one job: commit every task, so many a second."""
    from flowkit.datastore.local import LocalStorage
    from flowkit.datastore.manifests import read_manifest, write_manifest
    from flowkit.model.manifest import Manifest
    from flowkit.model.transition import Frame, Transition
    from flowkit.runtime.launch_list import read_rows

    storage = LocalStorage(root)
    parent = read_manifest(storage, flow, run, "start", "0")
    assert parent is not None
    made = parent.transition
    began = time.time()
    with open(os.path.join(folder, "states"), "a", encoding="ascii") as states:
        for row, launch in enumerate(read_rows(storage, key, rows)):
            time.sleep(max(0.0, began + row / rate - time.time()))
            now = time.time()
            index = launch.coordinates.indices[-1]
            frames = (Frame("start", made.variable, index, made.width or 0, made.pack),)
            transition = Transition("linear", ("join",))
            task = str(launch.coordinates)
            write_manifest(
                storage,
                Manifest(flow, run, launch.step, task, 0, parent.artifacts, transition, frames, started=now, ended=now),
            )
            for phase in ("running", "succeeded"):
                states.write(json.dumps([row, phase, now]) + "\n")
            states.flush()


def measure(tasks: int, rate: float) -> dict[str, Any]:
    """Run the flow once; return calls by kind, seconds, processor seconds and bytes of memory of its process."""
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "remote_scale-1.0.dist-info"
        plugin.mkdir()
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: remote-scale\nVersion: 1.0\n")
        (plugin / "entry_points.txt").write_text(_ENTRY_POINTS)
        service = Path(folder) / "service"
        service.mkdir()
        (Path(folder) / "flow.py").write_text(FLOW)
        here = os.path.dirname(os.path.abspath(__file__))
        done = subprocess.run(
            [sys.executable, "flow.py", "run", "--max-workers", str(2 * tasks), "--max-num-splits", str(tasks)],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((folder, here)),
                "SIMULATED_SERVICE": str(service),
                "SIMULATED_TASKS": str(tasks),
                "SIMULATED_RATE": str(rate),
            },
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or f"joined {tasks}" not in done.stdout:
            raise SystemExit(f"the run failed ({done.returncode}):\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        used = json.loads((service / "used.json").read_text())
        calls = Counter((service / "calls").read_text().split())
    return {"tasks": tasks, "calls": dict(calls), **used}


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=1_000, help="tasks that end in a second, at the most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.tasks, options.rate)
    if options.json:
        print(json.dumps(found))
        return
    minutes = found["seconds"] / 60
    print(f"{found['tasks']:,} tasks in {found['seconds']:.1f} s")
    print(f"submissions             {found['calls']['submit']}")
    print(f"looks at the jobs       {found['calls']['states']} ({found['calls']['states'] / minutes:.1f} a minute)")
    print(f"processor time          {found['cpu']:.1f} s")
    print(f"memory at the most      {found['memory'] / 1e6:.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:7], int(sys.argv[7]), float(sys.argv[8]))  # type: ignore[arg-type]
    else:
        main()
