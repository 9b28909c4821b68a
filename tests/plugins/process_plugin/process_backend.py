"""A backend whose containers are local processes, and the decorator that asks for it: an installable plugin.

Everything else is real: the code package, the bootstrap, the wrapper, launch lists and intents. The service is
`process_service`; its folder is told by the environment variable ``PROCESS_SERVICE``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.contract import ExecutorRequest, StepDecorator
from flowkit.exceptions import Problem
from flowkit.runtime.backend import Backend, BackendError, FoundJob, RemoteRun, RowState, Submission

from process_service import knobs, spend  # isort: skip


class Process(StepDecorator):
    """Have a step carried out by the service of processes."""

    name = "process"
    defaults = {"image": None, "cpu": None, "memory": None}

    def executor(self) -> ExecutorRequest:
        """Return what is asked for."""
        asked = {name: self.attributes[name] for name in self.defaults if self.attributes[name] is not None}
        return ExecutorRequest("process", {**asked, "executable": sys.executable})


process = step_decorator(Process)


class ProcessBackend(Backend):
    """The service of processes."""

    name = "process"
    max_rows = 10_000
    poll_interval = 0.1
    on_this_machine = True

    def __init__(self, run: RemoteRun | None) -> None:
        self.run = run
        self.service = Path(os.environ["PROCESS_SERVICE"])
        self.max_rows = knobs(self.service).get("max_rows", self.max_rows)
        self._read: dict[str, int] = {}

    def preflight(self, requests: Mapping[str, ExecutorRequest]) -> list[Problem]:
        """Return what is wrong."""
        self._call("preflight")
        no = knobs(self.service).get("refuse", {})
        return [Problem(f"step '{step}': {no[step]}") for step in requests if step in no]

    def submit(self, submission: Submission) -> str:
        """Make a folder, and start a runner for it."""
        self._call("submit", submission.step, submission.rows)
        asked = knobs(self.service)
        if spend(self.service, "transient", asked.get("transient", 0)):
            raise BackendError("too many requests", transient=True)
        if submission.step in asked.get("reject", ()):
            raise BackendError("the queue does not exist", "make it")
        if spend(self.service, "dropped", asked.get("drop_submit", 0)):
            raise BackendError("connection reset", transient=True, answered=False)
        folder = self.service / submission.name
        job = {
            **submission._asdict(),
            "request": None,
            "image": submission.request.resources.get("image"),
            "environment": dict(submission.environment),
            "command": list(submission.command),
            "run": self.run,
            "created": time.time(),
        }
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(job))
        (folder / "states").touch()
        if not asked.get("no_runner"):
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("process_service.py")), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=open(folder / "runner-errors", "w"),  # noqa: SIM115
                start_new_session=True,
            )
        if spend(self.service, "lost", asked.get("lose_submit", 0)):
            raise BackendError("read timeout", transient=True, answered=False)
        return f"job-{submission.name}"

    def find(self, name: str) -> str | None:
        """Return the id of a job."""
        self._call("find")
        return f"job-{name}" if (self.service / name).is_dir() else None

    def states(self, jobs: Mapping[str, int]) -> Iterator[RowState]:
        """Read what the runners have appended since the last call."""
        self._call("states", len(jobs))
        if spend(self.service, "states", knobs(self.service).get("fail_states", 0)):
            raise BackendError("service unavailable", transient=True)
        for job in jobs:
            folder = self._folder(job)
            try:
                with open(folder / "states", "rb") as file:
                    file.seek(self._read.get(job, 0))
                    data = file.read()
            except FileNotFoundError:
                for row in range(jobs[job]):
                    yield RowState(job, row, "failed", time.time(), "lost", "no such job")
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._read[job] = self._read.get(job, 0) + len(whole)
            for line in whole.splitlines():
                row, phase, when, cause, message, status = json.loads(line)
                yield RowState(job, row, phase, when, cause, message, status)

    def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
        """Tell the runners."""
        names = list(jobs)
        self._call("cancel", len(names), running)
        for job in names:
            (self._folder(job) / ("cancel-all" if running else "cancel-queued")).touch()

    def last_lines(self, job: str, row: int) -> list[str]:
        """Read the end of a container's output."""
        self._call("last_lines")
        path = self._folder(job) / f"log-{row}"
        return path.read_text(errors="replace").splitlines()[-20:] if path.exists() else []

    def jobs(self, *, flow: str | None = None, run: str | None = None, user: str | None = None) -> list[FoundJob]:
        """List the folders of jobs whose rows have not all ended."""
        found = []
        for path in sorted(self.service.glob("*/job.json")):
            job = json.loads(path.read_text())
            of = RemoteRun(*job["run"])
            lines = [json.loads(line) for line in (path.parent / "states").read_text().splitlines()]
            ended = sum(phase in ("succeeded", "failed") for _, phase, *_ in lines)
            wanted = (flow in (None, of.flow)) and (run in (None, of.run)) and (user in (None, of.user))
            if wanted and ended < job["rows"]:
                phase = "running" if any(line[1] == "running" for line in lines) else "queued"
                found.append(
                    FoundJob(
                        f"job-{job['name']}",
                        job["name"],
                        of.flow,
                        of.run,
                        job["step"],
                        of.user,
                        phase,
                        job["rows"],
                        job["created"],
                    )
                )
        return found

    def _folder(self, job: str) -> Path:
        return self.service / job.removeprefix("job-")

    def _call(self, *what: object) -> None:
        with open(self.service / "calls", "a", encoding="utf-8") as file:
            file.write(" ".join(map(str, what)) + "\n")
