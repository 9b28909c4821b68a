"""What is recorded about a task beside its artifacts: metadata, and how an attempt failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.exceptions import FlowkitExceptionWrapper
from flowkit.model.manifest import Failure, Manifest

if TYPE_CHECKING:
    from datetime import datetime

    from flowkit.client.object import ClientObject
    from flowkit.metadata.records import RunRecord


class Metadata(NamedTuple):
    """One fact about a task.

    Parameters
    ----------
    name, value : str
        What, and its value as text.
    created_at : datetime or None
        When it was recorded.
    type : str
        The kind of fact; mostly the name again.
    task : Task
        The task.
    """

    name: str
    value: str
    created_at: datetime | None
    type: str
    task: ClientObject


class TaskException(FlowkitExceptionWrapper):
    """How an attempt failed, as it was recorded: nothing is unpickled to tell it.

    Attributes
    ----------
    exception : str
        What went wrong, in one line.
    type : str or None
        The exception's class as ``module.name``, where one was raised.
    stacktrace : str or None
        The traceback through the user's code.
    kind : str
        ``error`` (the step raised), ``timeout``, ``killed``, ``oom``, ``crash``, ``vanished``, ``lost``, ``cancelled``,
        ``internal``.
    location : str or None
        ``file:line`` of the innermost frame in the flow's file.
    exit_status : int or None
        What the process returned; negative for a signal.
    """

    kind: str = "error"
    location: str | None = None
    exit_status: int | None = None

    @classmethod
    def of(cls, failure: Failure) -> TaskException:
        """Return what is told of a failure."""
        made = cls()
        name = (failure.exception or "").rpartition(".")[2]
        made.exception = failure.message.removeprefix(f"{name}: ") if name else failure.message
        made.type = failure.exception
        made.stacktrace = failure.traceback
        made.kind = failure.kind
        made.location = failure.location
        made.exit_status = failure.exit_status
        return made

    @classmethod
    def caught(cls, told: object) -> TaskException | None:
        """Return what ``@catch`` told of the exception that it kept; None where it kept none."""
        if not isinstance(told, Mapping):
            return None
        made = cls()
        made.exception = told.get("exception")
        made.type = told.get("type")
        made.stacktrace = told.get("stacktrace")
        ended = told.get("failure")
        if isinstance(ended, Mapping):
            made.kind = str(ended.get("kind"))
            made.exit_status = ended.get("exit_status")
        return made

    def __repr__(self) -> str:
        return f"<{self.type or self.kind}: {self.exception}>"

    def __str__(self) -> str:
        return self.stacktrace or f"{self.type or self.kind}: {self.exception}"


def tagged_value(record: RunRecord, name: str) -> str | None:
    """Return the value of a system tag ``name:value``."""
    head = f"{name}:"
    return next((tag[len(head) :] for tag in record.system_tags if tag.startswith(head)), None)


def environment(record: RunRecord) -> dict[str, Any]:
    """Return what a run's system tags tell about where it ran."""
    pairs = [tag.partition(":") for tag in record.system_tags]
    found: dict[str, Any] = {name: value for name, colon, value in pairs if colon}
    return {"type": "local", "flow_name": record.flow, **found}


class Known(NamedTuple):
    """What facts are told from.

    Parameters
    ----------
    run : RunRecord
        The task's run.
    manifest : Manifest or None
        What the attempt committed.
    attempt : int
        Which attempt.
    status : str
        How it stands.
    origin : str or None
        The path of the task that it was taken over from.
    root : tuple of str
        The datastore's kind and where it is.
    """

    run: RunRecord
    manifest: Manifest | None
    attempt: int
    status: str
    origin: str | None
    root: tuple[str, str]


def facts(known: Known) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of everything that is recorded of an attempt."""
    yield "attempt", str(known.attempt)
    if known.manifest is not None:
        yield "attempt_ok", "True"
        yield "attempt-done", str(known.attempt)
    elif known.status == "failed":
        yield "attempt_ok", "False"
    yield "status", known.status
    if known.origin is not None:
        _, run, _, name = known.origin.split("/")
        yield "origin-run-id", run
        yield "origin-task-id", name
    yield "ds-type", known.root[0]
    yield "ds-root", known.root[1]
    for name, value in environment(known.run).items():
        if name not in ("type", "flow_name"):
            yield name, str(value)
    if known.manifest is not None:
        yield from _of_manifest(known.manifest)


def _of_manifest(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.frames:
        yield "foreach-indices", ",".join(str(frame.index) for frame in manifest.frames)
        yield "foreach-execution-path", ",".join(f"{frame.step}:{frame.index}" for frame in manifest.frames)
    if manifest.gang:
        yield "internal_task_type", "control"
        yield "parallel-world-size", str(manifest.gang)
    graph = manifest.extra.get("graph")
    if isinstance(graph, dict):
        yield "start_step", str(graph.get("start_step"))
        yield "end_step", str(graph.get("end_step"))
