"""A step of a run: its tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from flowkit.client.object import ClientObject
from flowkit.client.task import Task
from flowkit.exceptions import did_you_mean
from flowkit.metadata.records import FINAL, RunRecord, StepRecord, TaskRecord

if TYPE_CHECKING:
    from datetime import datetime

    from flowkit.datastore.many import ReadAhead
    from flowkit.model.manifest import Manifest


class Step(ClientObject):
    """A step of a run: its tasks, newest first.

    Parameters
    ----------
    pathspec : str
        For example ``TrainFlow/12/train``.
    """

    _kind: ClassVar[str] = "step"
    _depth: ClassVar[int] = 3
    _seen: StepRecord | None = None

    # -- tasks --------------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task | None:
        """Any one of the step's tasks: the one that began first; None where there is none."""
        records = self._records(limit=1)
        return self._known(records[0]) if records else None

    def tasks(self, *tags: str) -> Iterator[Task]:
        """Yield the tasks, newest first; none where the run has not all of the tags."""
        if not tags or self.tags.issuperset(tags):
            records = self._records()[::-1]
            ahead = self._read_ahead(records) if self._connection.is_far(self._tagged) else None
            for place, record in enumerate(records):
                task = self._known(record)
                task._ahead = None if ahead is None else (ahead, place)
                yield task

    def _read_ahead(self, records: list[TaskRecord]) -> ReadAhead[TaskRecord, Manifest | None]:
        """Return what reads the results of tasks, those of the next ones too where a loop looks at one by one."""
        from flowkit.datastore.many import ReadAhead

        def read(record: TaskRecord) -> Manifest | None:
            return self._connection.manifest(record.flow, record.run, record.step, record.task)

        return ReadAhead(self._connection.storage, read, records)

    @property
    def control_task(self) -> Task | None:
        """The control task of a ``num_parallel`` gang; None where the step is none."""
        return next(self.control_tasks(), None)

    def control_tasks(self, *tags: str) -> Iterator[Task]:
        """Yield the control tasks of ``num_parallel`` gangs: one for each gang, node 0."""
        for task in self.tasks(*tags):
            # Node 0 of a gang; only such a task is looked at.
            if task.id.partition("-")[0].rpartition(".")[2] == "0":
                manifest = task._manifest
                if manifest is not None and manifest.gang:
                    yield task

    @property
    def status_counts(self) -> Mapping[str, int]:
        """How many tasks stand where: for example ``{"succeeded": 98, "failed": 2}``."""
        record = self._record()
        return {} if record is None else dict(record.counts)

    @property
    def finished_at(self) -> datetime | None:
        """When the last of its tasks ended, in local time; None while one of them has not."""
        record = self._record()
        if record is None or record.finished is None:
            return None
        from datetime import datetime

        return datetime.fromtimestamp(record.finished)

    @property
    def environment_info(self) -> Mapping[str, Any] | None:
        """What is known of where the step ran: user, versions; None before it has a task."""
        task = self.task
        return None if task is None else task.environment_info

    # -- neighbours ---------------------------------------------------------------------------------------------------

    @property
    def parent_steps(self) -> Iterator[Step]:
        """The steps that lead here in the flow's graph, as far as they ran."""
        for name in self._up()._graph().parents(self.id):
            yield from self._ran(name)

    @property
    def child_steps(self) -> Iterator[Step]:
        """The steps that follow in the flow's graph, as far as they ran."""
        for name in self._up()._graph().children(self.id):
            yield from self._ran(name)

    def _ran(self, name: str) -> Iterator[Step]:
        step = Step._of(self._up(), self._connection, self._path._replace(step=name), self._namespace)
        if step._exists():
            yield step

    # -- as every object ----------------------------------------------------------------------------------------------

    @property
    def origin_pathspec(self) -> str | None:
        """The same step of the run from which this one was resumed, if its tasks were taken over from there."""
        task = self.task
        origin = None if task is None else task.origin_pathspec
        return None if origin is None else origin.rpartition("/")[0]

    def _children(self) -> Iterator[Task]:
        return self.tasks()

    def _find(self, name: str) -> Task | None:
        task = self._child(Task, name)
        return task if task._exists() else None

    def _exists(self) -> bool:
        if self._seen is not None or self._records(limit=1):
            return True
        return self._child(Task, "0")._manifest is not None

    def _near(self) -> str | None:
        flow, run, step = self._path.flow, cast(str, self._path.run), self.id
        if not self._up()._exists():
            return cast("str | None", self._up()._near())
        names = [record.step for record in self._connection.metadata.steps(flow, run)]
        return did_you_mean(step, names) or f"steps of this run so far: {', '.join(names) or 'none'}"

    def _record(self) -> StepRecord | None:
        """Return the record as it is now."""
        seen = self._seen
        if seen is None or any(count for state, count in seen.counts.items() if state not in FINAL):
            flow, run = self._path.flow, cast(str, self._path.run)
            records = self._connection.metadata.steps(flow, run)
            self._seen = next((record for record in records if record.step == self.id), None)
        return self._seen

    def _records(self, limit: int | None = None) -> list[TaskRecord]:
        return self._connection.metadata.tasks(self._path.flow, cast(str, self._path.run), self.id, limit=limit)

    def _known(self, record: TaskRecord) -> Task:
        task = self._child(Task, record.task)
        task._seen = record
        return task

    def _tagged(self) -> RunRecord:
        return cast(RunRecord, self._up()._tagged())

    def _created(self) -> float | None:
        record = self._seen or self._record()
        if record is not None:
            return record.created
        task = self._child(Task, "0")
        return task._created()
