"""What the attacks share: who is who among a run's processes, what was committed, what was executed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkit.datastore.artifacts import ArtifactReader
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import read_manifest
from flowkit.datastore.runs import list_runs
from flowkit.model.manifest import Manifest
from flowkit.runtime.origin import read_origin
from flowkit.runtime.processes import children_of

if TYPE_CHECKING:
    from conftest import Workspace

SOAK = os.environ.get("FLOWKIT_SOAK") == "1"
"""Whether this is the long form."""
GONE = 3.0
"""Seconds after which no process of a killed run may be left (on a machine that has time for them)."""

JOURNAL = """
import os
def note(current):
    line = f"{current.run_id} {current.step_name} {current.task_id} {current.retry_count}\\n"
    journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, line.encode())
    os.close(journal)
"""
"""A module for flows: each execution of a step adds a line to one file, whatever becomes of the step."""


class Journal:
    """Which steps were executed, as they tell it themselves; see `JOURNAL`."""

    def __init__(self, workspace: Workspace) -> None:
        self.path = workspace.path / "journal.txt"
        workspace.env["JOURNAL"] = str(self.path)
        workspace.write("journal.py", JOURNAL)

    def executed(self) -> list[tuple[str, str, str]]:
        """Return run, step and task of every execution."""
        if not self.path.exists():
            return []
        lines = [line.split() for line in self.path.read_text().splitlines()]
        return [(run, step, task) for run, step, task, _ in lines]

    def check_nothing_twice(self, committed: dict[str, set[tuple[str, str]]], origins: dict[str, str]) -> None:
        """Check that no run executed what the run that it resumed had committed."""
        for run, step, task in self.executed():
            assert (step, task) not in committed.get(origins.get(run, ""), ()), (
                f"{step}/{task} was executed again in run {run}, although run {origins[run]} had committed it"
            )


def root_of(workspace: Workspace) -> Path:
    """Return the datastore's folder of a workspace."""
    return workspace.path / ".flowkit"


def committed(root: Path, flow: str, run: str) -> set[tuple[str, str]]:
    """Return step and task of what a run has committed, clones included."""
    return set(read_origin(LocalStorage(str(root), durable=False), flow, run).tasks)


def runs(root: Path, flow: str) -> list[str]:
    """Return the runs that the datastore has of a flow."""
    return list_runs(LocalStorage(str(root), durable=False), flow)


def manifest(root: Path, flow: str, run: str, step: str, task: str = "0") -> Manifest:
    """Return what a task has committed."""
    found = read_manifest(LocalStorage(str(root), durable=False), flow, run, step, task)
    assert found is not None, f"{flow}/{run}/{step}/{task} has no result"
    return found


def artifact(root: Path, flow: str, run: str, step: str, name: str, task: str = "0") -> Any:
    """Return a value that a task has committed, read past the index."""
    reader = ArtifactReader(Blobs(LocalStorage(str(root), durable=False), "always"))
    return reader.load(name, manifest(root, flow, run, step, task).artifacts[name])


def blob_path(root: Path, key: str) -> Path:
    """Return the file of a blob."""
    return root / "blobs" / key[:2] / key


def roles(runtime: int) -> dict[str, list[int]]:
    """Return the processes of a run by what they are: ``runtime``, ``server``, ``log``, ``task``."""
    found: dict[str, list[int]] = {"runtime": [runtime], "server": [], "log": [], "task": []}
    for server in children_of(runtime):
        found["server"].append(server)
        for child in children_of(server):
            try:
                kind = "task" if os.getpgid(child) == child else "log"
            except ProcessLookupError:
                continue
            found[kind].append(child)
    return found


def kill(pids: Iterable[int], signum: int = 9) -> None:
    """Send a signal to processes that may have ended."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for something and return it; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.005)
    return found


def wait_gone(workspace: Workspace) -> None:
    """Check that every process of a workspace is gone within the promised time."""
    patience = GONE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    deadline = time.monotonic() + patience
    while left := workspace.processes():
        assert time.monotonic() < deadline, f"still there after {patience:.1f} s: {left}"
        time.sleep(0.01)


def no_defect(result: Any) -> None:
    """Check that what a command said is meant for its user: no traceback through flowkit, no exit code 70."""
    assert result.returncode != 70, str(result)
    assert "defect in flowkit" not in result.output, str(result)
    # The dump of a crash ("line 7 in f") may show how it came there; what Python raised ("line 7, in f") may not.
    assert not re.search(r'File "[^"]*/flowkit/[^"]*", line \d+, in', result.output), str(result)
