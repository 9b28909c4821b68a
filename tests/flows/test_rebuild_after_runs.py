"""What the runtime writes to the metadata store is what can be read back from the datastore."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flowkit.client.rebuild import rebuild
from flowkit.datastore.root import open_storage
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.metadata.store import RunFilter

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    import os

    from flowkit import FlowSpec, catch, retry, step

    class Mixed(FlowSpec):
        @step
        def start(self):
            self.items = ["a", "b", "c"]
            self.next(self.work, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @step
        def work(self):
            if os.path.exists("broken") and self.input == "b":
                raise ValueError("not b")
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @catch(var="problem")
        @step
        def end(self):
            raise ValueError("caught")

    if __name__ == "__main__":
        Mixed()
"""


def test_a_rebuilt_index_equals_what_the_runtime_wrote(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", "--tag", "mine", check=True)
    broken = workspace.write("broken", "")
    workspace.run("run", check=1)
    broken.unlink()
    workspace.run("resume", check=True)
    root = workspace.path / ".flowkit"
    with contextlib.closing(SqliteMetadata(str(root))) as store:
        assert not store.fresh
        written = list(contents(store))
    (root / "metadata.db").unlink()
    with contextlib.closing(SqliteMetadata(str(root))) as store:
        assert store.fresh
        summary = rebuild(open_storage(str(root)), store)
        assert summary.problems == []
        assert (summary.flows, summary.runs) == (1, 3)
        rebuilt = list(contents(store))
    assert rebuilt == written
    assert {task.origin for task in rebuilt if isinstance(task, TaskRecord)} > {"Mixed/2/start/0", "Mixed/2/work/2"}


def contents(store: SqliteMetadata) -> Iterator[RunRecord | TaskRecord]:
    """Every record, without the times that are noted a moment later than they are stored: clones and parameters."""
    for run in sorted(store.runs("Mixed", RunFilter()), key=lambda run: run.run):
        yield run
        for task in sorted(store.tasks("Mixed", run.run), key=lambda task: (task.step, task.task)):
            later = task.origin is not None or task.step == "_parameters"
            yield task._replace(started=None, finished=None) if later else task


def test_a_deleted_database_comes_back_by_itself(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    root = Path(workspace.path) / ".flowkit"
    (root / "metadata.db").unlink()
    workspace.run("run", check=True)
    with contextlib.closing(SqliteMetadata(str(root))) as store:
        assert [run.run for run in store.runs("Mixed", RunFilter(status="succeeded"))] == ["2", "1"]
