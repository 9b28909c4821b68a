"""A run: how it stands, what it made, its tags, and how to stop it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, cast

from flowkit.client.artifact import FlowData
from flowkit.client.cancel import request_cancel
from flowkit.client.lineage import Shape
from flowkit.client.object import ClientObject
from flowkit.client.step import Step
from flowkit.client.task import Task
from flowkit.datastore.layout import run_file
from flowkit.datastore.runs import write_tags
from flowkit.exceptions import NotFound, UsageError, did_you_mean
from flowkit.metadata.records import FINAL, RunRecord
from flowkit.metadata.store import RunFilter
from flowkit.model.pathspec import Pathspec

if TYPE_CHECKING:
    from datetime import datetime

    from flowkit.client.code import Code
    from flowkit.decorators.events import Trigger

_FIRST = 1000
"""How many names are looked at to find one that was meant."""


class Run(ClientObject):
    """A run: its steps, newest first.

    Parameters
    ----------
    pathspec : str
        For example ``TrainFlow/12``.

    Examples
    --------
    >>> run = Run("TrainFlow/12")
    >>> run.status, run.data.accuracy
    ('succeeded', 0.93)
    """

    _kind: ClassVar[str] = "run"
    _depth: ClassVar[int] = 2
    _seen: RunRecord | None = None
    _shape: Shape | None = None

    # -- how it stands ------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """``pending``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``lost``, as it is now."""
        return self._now().state

    @property
    def status_reason(self) -> str | None:
        """Why the run stands or ended as it did, in one line; None where there is nothing to say."""
        return self._now().reason

    @property
    def successful(self) -> bool:
        """Whether the run went through to its end."""
        return self.status == "succeeded"

    @property
    def finished(self) -> bool:
        """Whether the run's last step has been completed; False too for a run that failed (see `status`)."""
        return self.successful or self.end_task is not None

    @property
    def finished_at(self) -> datetime | None:
        """When the run's last step was completed, in local time; None where it was not (see `ended_at`)."""
        task = self.end_task
        return None if task is None else task.finished_at

    @property
    def ended_at(self) -> datetime | None:
        """When the run was over, however it ended, in local time; None while it is not."""
        record = self._now()
        if record.finished is None or record.state not in FINAL:
            return None
        from datetime import datetime

        return datetime.fromtimestamp(record.finished)

    @property
    def failed_tasks(self) -> list[Task]:
        """The tasks that failed, in the order in which they began."""
        records = self._connection.metadata.tasks(self._path.flow, self.id, status="failed")
        return [self._child(Step, record.step)._known(record) for record in records]

    def cancel(self) -> None:
        """Stop the run: running steps are ended, nothing new starts, the run can be resumed later.

        Returns at once; `status` tells when it is over.

        Raises
        ------
        Conflict
            If the run is over already.
        """
        request_cancel(self._connection.storage_of(self._now), self._now())

    # -- what it made -------------------------------------------------------------------------------------------------

    @property
    def data(self) -> FlowData | None:
        """The artifacts of the last step, as attributes; None where the run did not get there."""
        task = self.end_task
        return None if task is None else task.data

    def _repr_html_(self) -> str:
        """Show the run in a notebook; nothing that a step made is loaded."""
        from flowkit.client.page import run_page

        metadata = self._connection.metadata
        end = self.end_task
        manifest = None if end is None else end._manifest
        artifacts = {} if manifest is None else {**manifest.artifacts}
        shown = {name: each for name, each in artifacts.items() if not name.startswith("_")}
        return run_page(self.pathspec, self._now(), metadata.steps(self._path.flow, self.id), shown)

    @property
    def end_task(self) -> Task | None:
        """The task of the last step; None where the run did not get there."""
        # The usual name first: it saves reading the graph.
        task = self._child(Step, "end")._child(Task, "0")
        if task._manifest is None or task._manifest.transition.kind != "end":
            last = self._graph_endpoints[1]
            if last == "end":
                return task if task._is_done_elsewhere() else None
            task = self._child(Step, last)._child(Task, "0")
        return None if task._manifest is None else task

    @property
    def code(self) -> Code | None:
        """The code that the run took along to where its steps ran; None where all of them ran on its machine."""
        from flowkit.client.code import Code

        storage = self._connection.storage_of(self._tagged)
        manifest = self._connection.manifest(self._path.flow, self.id, "_parameters", "0")
        return None if manifest is None else Code.of(storage, manifest.extra)

    @property
    def trigger(self) -> Trigger | None:
        """The events that started the run; None for a run that a schedule, or somebody by hand, has started."""
        from flowkit.decorators.events import started_by

        manifest = self._connection.manifest(self._path.flow, self.id, "_parameters", "0")
        return None if manifest is None else started_by(manifest.extra, self._other)

    @property
    def deployment(self) -> str | None:
        """The deployment that the run came from, as in ``argo-workflows/train.prod``; None for one started by hand."""
        return self._tagged().deployment

    @property
    def _graph_endpoints(self) -> tuple[str, str]:
        """The names of the first and the last step."""
        shape = self._graph()
        return shape.start, shape.end

    def _graph(self) -> Shape:
        """Return the graph that the run was started with."""
        if self._shape is None:
            here = self._connection.holds(self._tagged)
            manifest = self._connection.manifest(self._path.flow, self.id, "_parameters", "0") if here else None
            graph = manifest.extra.get("graph") if manifest is not None else None
            self._shape = Shape(graph if isinstance(graph, Mapping) else {})
        return self._shape

    # -- steps --------------------------------------------------------------------------------------------------------

    def steps(self, *tags: str) -> Iterator[Step]:
        """Yield the steps that have begun, newest first; none where the run has not all of the tags."""
        if self.tags.issuperset(tags):
            for record in reversed(self._connection.metadata.steps(self._path.flow, self.id)):
                if not record.step.startswith("_"):
                    step = self._child(Step, record.step)
                    step._seen = record
                    yield step

    def _children(self) -> Iterator[Step]:
        return self.steps()

    def _find(self, name: str) -> Step | None:
        step = self._child(Step, name)
        return step if step._exists() else None

    # -- tags ---------------------------------------------------------------------------------------------------------

    def add_tag(self, tag: str | Iterable[str]) -> None:
        """Add a tag (or several) to the run; one that it has already changes nothing."""
        self.replace_tags((), _several(tag))

    def add_tags(self, tags: Iterable[str]) -> None:
        """Add tags to the run."""
        self.replace_tags((), tags)

    def remove_tag(self, tag: str | Iterable[str]) -> None:
        """Remove a tag (or several) from the run; one that it has not changes nothing."""
        self.replace_tags(_several(tag), ())

    def remove_tags(self, tags: Iterable[str]) -> None:
        """Remove tags from the run."""
        self.replace_tags(tags, ())

    def replace_tag(self, tag_to_remove: str | Iterable[str], tag_to_add: str | Iterable[str]) -> None:
        """Put a tag in the place of another, at once."""
        self.replace_tags(_several(tag_to_remove), _several(tag_to_add))

    def replace_tags(self, tags_to_remove: Iterable[str], tags_to_add: Iterable[str]) -> None:
        """Remove some tags and add others, at once.

        Parameters
        ----------
        tags_to_remove, tags_to_add : iterable of str
            User tags: at most 50 on a run, each of 1 to 500 characters. Adding one that the run has already, also
            as a system tag, changes nothing.

        Raises
        ------
        UsageError
            If a tag is not one, there would be too many, or one to remove is a system tag.
        """
        remove, add = _list(tags_to_remove), _list(tags_to_add)
        if not remove and not add:
            raise UsageError("there is no tag to add or to remove", "give at least one")
        flow, run = self._path.flow, self.id
        metadata = self._connection.metadata
        tags = metadata.change_tags(flow, run, add, remove)
        if metadata.writes_tags:
            self._seen = None
            return
        # The index is changed first, in one transaction; the datastore's copy follows, again if somebody else
        # changed tags in between, so that the copy of the last one to write is the newest.
        if not self._connection.holds(self._tagged):  # the copy is out of reach; a service keeps tags itself
            self._seen = None
            return
        while True:
            write_tags(self._connection.storage, flow, run, tags)
            record = metadata.run(flow, run)
            self._seen = record
            if record is None or record.tags == tags:
                return
            tags = record.tags

    # -- as every object ----------------------------------------------------------------------------------------------

    @property
    def origin_pathspec(self) -> str | None:
        """The run that this one was resumed from; None where it began afresh."""
        return self._tagged().origin

    def _other(self, pathspec: str) -> Run:
        """Return another run of the same place, whatever the namespace."""
        return Run._of(None, self._connection, Pathspec.parse(pathspec, 2), None)

    def _exists(self) -> bool:
        if self._seen is None:
            self._seen = self._connection.metadata.run(self._path.flow, self.id)
        return self._seen is not None

    def _near(self) -> str | None:
        flow = self._path.flow
        if self._connection.may_hold(run_file(flow, self.id)):
            return "the datastore has it, the index does not: flowkit metadata rebuild"
        records = self._connection.metadata.runs(flow, RunFilter(limit=_FIRST))
        if not records:
            names = [record.flow for record in self._connection.metadata.flows()]
            return did_you_mean(flow, names) or f"no flow '{flow}' has run here"
        return did_you_mean(self.id, [r.run for r in records]) or f"its newest run is '{flow}/{records[0].run}'"

    def _tagged(self) -> RunRecord:
        if not self._exists():
            raise NotFound(f"there is no run '{self.pathspec}' in {self._connection.where}", self._near())
        return cast(RunRecord, self._seen)

    def _now(self) -> RunRecord:
        """Return the record as it is now: one that was final stays so."""
        if self._seen is None or self._seen.state not in FINAL:
            self._seen = None
        return self._tagged()

    def _created(self) -> float | None:
        return self._tagged().created


def _several(tag: str | Iterable[str]) -> Iterable[str]:
    return [tag] if isinstance(tag, str) else tag


def _list(tags: Iterable[str]) -> list[str]:
    if isinstance(tags, str):
        raise UsageError(f"{tags!r} is one tag, where a list of tags is wanted", f"write [{tags!r}]")
    return list(tags)
