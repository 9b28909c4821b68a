"""A task: how it stands, its artifacts, its logs, where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from flowkit.client.artifact import Artifacts, DataArtifact, FlowData
from flowkit.client.facts import Known, Metadata, TaskException, environment, facts, tagged_value
from flowkit.client.lineage import Shape, child_ids, likely_parent_ids, parent_ids
from flowkit.client.object import ClientObject
from flowkit.client.output import Output
from flowkit.datastore.manifests import read_failure
from flowkit.exceptions import NotFound, UsageError, did_you_mean
from flowkit.metadata.records import FINAL, RunRecord, TaskRecord
from flowkit.model.manifest import Artifact, Failure, Manifest
from flowkit.model.usage import Usage

if TYPE_CHECKING:
    from datetime import datetime

    from flowkit.client.code import Code
    from flowkit.datastore.many import ReadAhead


class Task(ClientObject):
    """A task: its artifacts.

    Parameters
    ----------
    pathspec : str
        For example ``TrainFlow/12/train/3``.
    attempt : int, optional
        Look at this attempt, counted from 0; default: the one that succeeded, or else the newest.
    """

    _kind: ClassVar[str] = "task"
    _depth: ClassVar[int] = 4
    _seen: TaskRecord | None = None
    _commit: Manifest | None = None
    _ahead: tuple[ReadAhead[TaskRecord, Manifest | None], int] | None = None

    def __init__(self, pathspec: str, attempt: int | None = None, *, _namespace_check: bool = True) -> None:
        self._begin(pathspec, attempt, _namespace_check)

    # -- how it stands ------------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """``pending``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``lost``, as it is now."""
        if self._manifest is not None:
            return "succeeded"
        if self._failure is not None and self._attempt is not None:
            return "failed"
        record = self._now()
        return "pending" if record is None else record.state

    @property
    def status_reason(self) -> str | None:
        """Why the task stands or ended as it did, in one line; None where there is nothing to say."""
        if self._manifest is not None:
            return None
        failure = self._failure
        if failure is not None:
            return failure.message
        record = self._now()
        return None if record is None else record.reason

    @property
    def finished(self) -> bool:
        """Whether the task was completed, also by ``@catch``; False for one that failed (see `status`)."""
        return self._manifest is not None or self._is_done_elsewhere()

    @property
    def successful(self) -> bool:
        """Whether the step's own code was completed; False where ``@catch`` stepped in."""
        manifest = self._manifest
        return self._is_done_elsewhere() if manifest is None else not manifest.extra.get("catch")

    @property
    def finished_at(self) -> datetime | None:
        """When the task was completed, in local time; None where it was not (see `ended_at`)."""
        return self.ended_at if self.finished else None

    @property
    def ended_at(self) -> datetime | None:
        """When the attempt was over, however it ended, in local time; None while it is not."""
        return _local(self._ended())

    @property
    def exception(self) -> TaskException | None:
        """How the attempt failed, as it was recorded; None where it did not. For a task that ``@catch`` completed:
        what it caught.
        """
        manifest = self._manifest
        if manifest is not None:
            return TaskException.caught(manifest.extra.get("catch"))
        failure = self._failure
        return None if failure is None else TaskException.of(failure)

    @property
    def usage(self) -> Usage | None:
        """What the attempt used: ``seconds``, ``cpu_seconds``, ``memory`` and ``gpu_memory`` at their peaks in bytes.

        None while it has not ended, and where nothing was recorded (a run of an older flowkit).
        """
        manifest = self._manifest
        if manifest is not None:
            return Usage.read(manifest.extra.get("usage"), manifest.started, manifest.ended)
        failure = self._failure
        if failure is None:
            return None
        return Usage.read(failure.usage, failure.started or self._created(), failure.ended)

    @property
    def current_attempt(self) -> int:
        """The attempt that this object looks at, counted from 0."""
        if self._attempt is not None:
            return self._attempt
        manifest = self._manifest
        if manifest is not None:
            return manifest.attempt
        record = self._now()
        return 0 if record is None else record.attempt

    @property
    def index(self) -> int | None:
        """The index of the innermost foreach that the task is in; None outside a foreach."""
        manifest = self._manifest
        if manifest is not None:
            return manifest.frames[-1].index if manifest.frames else None
        body = self.id.partition("-")[0]
        if body == "0" and not self._graph().depth(cast(str, self._path.step)):
            return None
        return int(body.rpartition(".")[2])

    @property
    def metadata(self) -> list[Metadata]:
        """What is recorded of the task beside its artifacts."""
        root = self._connection.storage_name
        known = Known(self._tagged(), self._manifest, self.current_attempt, self.status, self.origin_pathspec, root)
        when = self.created_at
        return [Metadata(name, value, when, name, self) for name, value in facts(known)]

    @property
    def metadata_dict(self) -> dict[str, str]:
        """The same as a dictionary from name to value."""
        return {item.name: item.value for item in self.metadata}

    @property
    def runtime_name(self) -> str | None:
        """What ran the task: ``dev`` for a run from the command line."""
        return tagged_value(self._tagged(), "runtime")

    @property
    def environment_info(self) -> Mapping[str, Any]:
        """What is known of where the task ran: user, versions."""
        return environment(self._tagged())

    @property
    def code(self) -> Code | None:
        """The code that the run took along to where its steps ran; None where all of them ran on its machine."""
        from flowkit.client.code import Code

        storage = self._connection.storage_of(self._tagged)
        manifest = self._connection.manifest(self._path.flow, str(self._path.run), "_parameters", "0")
        return None if manifest is None else Code.of(storage, manifest.extra)

    # -- artifacts ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> FlowData:
        """The values of the artifacts, as attributes; nothing is loaded before it is asked for."""
        return FlowData({artifact.id: artifact for artifact in self})

    @property
    def artifacts(self) -> Artifacts:
        """The artifacts as a tuple, each also an attribute by its name."""
        return Artifacts(iter(self))

    def _stored(self, name: str) -> Artifact | None:
        manifest = self._with_artifacts()
        return None if manifest is None else manifest.artifacts.get(name)

    def _names(self) -> list[str]:
        manifest = self._with_artifacts()
        return [] if manifest is None else list(manifest.artifacts)

    def _children(self) -> Iterator[DataArtifact]:
        for name in self._names():
            if not name.startswith("_"):
                yield self._child(DataArtifact, name)

    def _find(self, name: str) -> DataArtifact | None:
        return None if self._stored(name) is None else self._child(DataArtifact, name)

    # -- logs ---------------------------------------------------------------------------------------------------------

    @property
    def stdout(self) -> str:
        """What the task wrote to its standard output, so far."""
        return self._output.text("out")

    @property
    def stderr(self) -> str:
        """What the task wrote to its standard error, so far."""
        return self._output.text("err")

    @property
    def stdout_size(self) -> int:
        """Bytes written to the standard output, so far."""
        return self._output.size("out")

    @property
    def stderr_size(self) -> int:
        """Bytes written to the standard error, so far."""
        return self._output.size("err")

    def loglines(self, stream: str, as_unicode: bool = True) -> Iterator[tuple[datetime, Any]]:
        """Yield (time, text) of every line of a stream, read as the loop goes on.

        Parameters
        ----------
        stream : "stdout" or "stderr"
            Which.
        as_unicode : bool, default True
            Text as str, what is not UTF-8 replaced; else bytes, as they were written.
        """
        return self._output.lines(stream, as_unicode)

    def tail(self, n: int = 10, stream: str | None = None) -> list[str]:
        """Return the last lines of the log, however long it is, of both streams or of one.

        Parameters
        ----------
        n : int, default 10
            How many lines, at most.
        stream : "stdout" or "stderr", optional
            Only that one.
        """
        return self._output.tail(n, stream)

    @property
    def _output(self) -> Output:
        storage = self._connection.storage_of(self._tagged)
        manifest = self._manifest
        if manifest is not None:  # of a task that was taken over: where it ran
            return Output(storage, manifest.flow, manifest.run, manifest.step, manifest.task, manifest.attempt)
        flow, run, step, task = cast("tuple[str, str, str, str]", self._path[:4])
        return Output(storage, flow, run, step, task, self.current_attempt)

    # -- neighbours ---------------------------------------------------------------------------------------------------

    @property
    def parent_task_pathspecs(self) -> Iterator[str]:
        """The paths of the tasks whose artifacts this one sees."""
        for step, task in self._parents():
            yield str(self._path._replace(step=step, task=task))

    @property
    def parent_tasks(self) -> Iterator[Task]:
        """The tasks whose artifacts this one sees, in the order of a join's inputs."""
        for step, task in self._parents():
            yield self._beside(step, task)

    @property
    def child_task_pathspecs(self) -> Iterator[str]:
        """The paths of the tasks that follow this one and have begun."""
        for step, task in self._followers():
            yield str(self._path._replace(step=step, task=task))

    @property
    def child_tasks(self) -> Iterator[Task]:
        """The tasks that follow this one and have begun."""
        for step, task in self._followers():
            yield self._beside(step, task)

    def _parents(self) -> Iterator[tuple[str, str]]:
        manifest = self._committed()
        if manifest is not None:
            return parent_ids(manifest)
        where = cast("tuple[str, str, str, str]", self._path[:4])
        return likely_parent_ids(self._connection, self._graph(), where)

    def _graph(self) -> Shape:
        return cast(Shape, self._up()._up()._graph())

    def _followers(self) -> Iterator[tuple[str, str]]:
        manifest = self._manifest
        if manifest is None:
            return iter(())
        return child_ids(self._connection, cast(str, self._path.run), manifest, self.id)

    def _beside(self, step: str, task: str) -> Task:
        own = self._up()
        path = self._path._replace(step=step, task=None)
        made: Task = type(own)._of(own._up(), self._connection, path, self._namespace)._child(Task, task)
        return made

    # -- as every object ----------------------------------------------------------------------------------------------

    @property
    def origin_pathspec(self) -> str | None:
        """The task of the run from which this one was resumed, if it was taken over from there."""
        manifest = self._manifest
        if manifest is not None:
            if manifest.run == self._path.run:
                return None
            return f"{manifest.flow}/{manifest.run}/{manifest.step}/{manifest.task}"
        record = self._now()
        return None if record is None else record.origin

    def _check(self) -> None:
        super()._check()
        attempt = self._attempt
        if attempt is None:
            return
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 0:
            raise UsageError(f"attempt={attempt!r} is not the number of an attempt", "attempts are counted from 0")
        newest = self._newest()
        if attempt > newest:
            raise NotFound(
                f"the task '{self.pathspec}' has no attempt {attempt}",
                f"its newest attempt is {newest}, counted from 0",
            )

    def _newest(self) -> int:
        whole = self._committed()
        record = self._now()
        return max(0 if whole is None else whole.attempt, 0 if record is None else record.attempt)

    def _exists(self) -> bool:
        return self._now() is not None or self._committed() is not None

    def _near(self) -> str | None:
        step = self._up()
        if not step._exists():
            return cast("str | None", step._near())
        names = [record.task for record in step._records(limit=1000)]
        return did_you_mean(self.id, names) or f"tasks of this step: {', '.join(names[:10])}" + (
            ", …" if len(names) > 10 else ""
        )

    def _tagged(self) -> RunRecord:
        return cast(RunRecord, self._up()._tagged())

    def _now(self) -> TaskRecord | None:
        """Return the record as it is now: one that was final stays so."""
        if self._seen is None or self._seen.state not in FINAL:
            flow, run, step, task = cast("tuple[str, str, str, str]", self._path[:4])
            self._seen = self._connection.metadata.task(flow, run, step, task)
        return self._seen

    def _committed(self) -> Manifest | None:
        """Return the manifest, whatever its attempt."""
        if self._ahead is not None:
            (ahead, place), self._ahead = self._ahead, None
            self._commit = ahead[place]
        elif self._commit is None:
            flow, run, step, task = cast("tuple[str, str, str, str]", self._path[:4])
            if self._connection.holds(self._tagged):
                self._commit = self._connection.manifest(flow, run, step, task)
        return self._commit

    def _is_done_elsewhere(self) -> bool:
        """Whether the task was completed, and only the index knows: what it made is in another datastore."""
        record = None if self._connection.holds(self._tagged) else self._now()
        return record is not None and record.state == "succeeded" and self._attempt in (None, record.attempt)

    def _with_artifacts(self) -> Manifest | None:
        """Return the manifest; an error where there is one in another datastore."""
        manifest = self._manifest
        if manifest is None and self._is_done_elsewhere():
            self._connection.storage_of(self._tagged)
        return manifest

    @property
    def _manifest(self) -> Manifest | None:
        """What the attempt that this object looks at committed."""
        manifest = self._committed()
        return None if manifest is None or self._attempt not in (None, manifest.attempt) else manifest

    @property
    def _failure(self) -> Failure | None:
        """How the attempt that this object looks at failed."""
        flow, run, step, task = cast("tuple[str, str, str, str]", self._path[:4])
        if not self._connection.holds(self._tagged):
            return None
        return read_failure(self._connection.storage, flow, run, step, task, self.current_attempt)

    def _ended(self) -> float | None:
        manifest = self._manifest
        if manifest is not None:
            return manifest.ended
        failure = self._failure
        if failure is not None and failure.ended:
            return failure.ended
        record = self._now()
        return record.finished if record is not None and record.state in FINAL else None

    def _created(self) -> float | None:
        manifest = self._manifest
        if manifest is not None:
            return manifest.started
        record = self._now()
        return None if record is None else record.started


def _local(when: float | None) -> datetime | None:
    if when is None:
        return None
    from datetime import datetime

    return datetime.fromtimestamp(when)
