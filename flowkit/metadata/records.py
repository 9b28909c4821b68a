"""What the metadata store keeps: an index of runs and tasks that can be rebuilt from the datastore.

The records are the wire format too: `to_json` and `from_json` are plain dictionaries of plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

State = Literal["pending", "running", "succeeded", "failed", "cancelled", "lost"]
STATES: tuple[State, ...] = ("pending", "running", "succeeded", "failed", "cancelled", "lost")
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
"""States that do not change any more; ``lost`` is not among them, since a run can be taken over."""
DEPLOYMENT_TAG = "deployment:"
"""What the system tag begins with that names the deployment a run came from: ``deployment:<target>/<name>``."""


def deployment_tags(deployment: str) -> list[str]:
    """Return the system tags of a run that came from a deployment, ``<target>/<name>``."""
    return [f"{DEPLOYMENT_TAG}{deployment}", f"runtime:{deployment.partition('/')[0]}"]


class RunRecord(NamedTuple):
    """One run.

    Parameters
    ----------
    flow, run : str
        The flow's name and the run's id (a number as text, or ``<target>-<execution>``).
    user : str
        Who started it.
    state : str
        One of `STATES`, as last written by the run's owner; readers derive ``lost`` (see `MetadataStore`).
    reason : str or None
        Why it ended as it did, one line.
    created, finished, heartbeat : float
        Seconds since the epoch; `finished` is None while it runs.
    tags, system_tags : tuple of str
        Sorted.
    origin : str or None
        ``Flow/run`` that it resumed from.
    host, boot_id, pid, process_start
        The runtime's process: on the same host and boot, a process that is gone tells more than a heartbeat.
        `process_start` is the start time in clock ticks since boot (field 22 of ``/proc/<pid>/stat``).
    """

    flow: str
    run: str
    user: str
    state: State
    created: float
    reason: str | None = None
    finished: float | None = None
    heartbeat: float | None = None
    tags: tuple[str, ...] = ()
    system_tags: tuple[str, ...] = ()
    origin: str | None = None
    host: str | None = None
    boot_id: str | None = None
    pid: int | None = None
    process_start: int | None = None

    @property
    def deployment(self) -> str | None:
        """The deployment that it came from, ``<target>/<name>``; None for a run that somebody started by hand."""
        for tag in self.system_tags:
            if tag.startswith(DEPLOYMENT_TAG):
                return tag[len(DEPLOYMENT_TAG) :]
        return None

    @property
    def unattended(self) -> bool:
        """Whether no runtime watches it: a scheduler starts its tasks one by one, and only they tell how it stands."""
        return self.pid is None and self.host is None and self.deployment is not None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return _plain(self._asdict())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Read what `to_json` wrote; unknown fields are left out."""
        return cls(**_known(cls._fields, data))


class TaskRecord(NamedTuple):
    """One task: where its newest attempt stands.

    Parameters
    ----------
    flow, run, step, task : str
        The task; ``_parameters/0`` is the pseudo task with the run's parameters.
    state, reason
        As for a run.
    attempt : int
        The newest attempt, or the committed one.
    started, finished : float or None
        Of that attempt, in seconds since the epoch.
    origin : str or None
        ``Flow/run/step/task`` that it was cloned from.
    """

    flow: str
    run: str
    step: str
    task: str
    state: State
    attempt: int = 0
    started: float | None = None
    finished: float | None = None
    reason: str | None = None
    origin: str | None = None
    pid: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return _plain(self._asdict())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskRecord:
        """Read what `to_json` wrote; unknown fields are left out."""
        return cls(**_known(cls._fields, data))


class ArtifactRecord(NamedTuple):
    """One artifact that an attempt left, as an index knows it: everything but the value.

    Parameters
    ----------
    name : str
        The attribute's name.
    key : str
        The content's key in the datastore: equal content, equal key.
    size : int or None
        Bytes of the stored content.
    type : str or None
        The value's type, as ``module.qualname``.
    codec : str or None
        What wrote it.
    """

    name: str
    key: str
    size: int | None = None
    type: str | None = None
    codec: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return _plain(self._asdict())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArtifactRecord:
        """Read what `to_json` wrote; unknown fields are left out."""
        return cls(**_known(cls._fields, data))


class OutputRecord(NamedTuple):
    """What the committed attempt of a task made and read: for stores that index artifacts (`MetadataStore.outputs`).

    Parameters
    ----------
    flow, run, step, task, attempt
        The attempt.
    artifacts : tuple of ArtifactRecord
        Every artifact that the task has at its end.
    reads : tuple of str
        ``name=key`` of each artifact that it read, as its manifest's `reads` has them (its own view and its inputs
        alike; without the names of the input tasks).
    """

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    artifacts: tuple[ArtifactRecord, ...] = ()
    reads: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return {**_plain(self._asdict()), "artifacts": [artifact.to_json() for artifact in self.artifacts]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OutputRecord:
        """Read what `to_json` wrote; unknown fields are left out."""
        found = _known(cls._fields, data)
        found["artifacts"] = tuple(ArtifactRecord.from_json(each) for each in data.get("artifacts", ()))
        return cls(**found)


Record = RunRecord | TaskRecord | OutputRecord
"""What can be written to a store."""


class StepRecord(NamedTuple):
    """One step of a run, with its tasks counted by state."""

    flow: str
    run: str
    step: str
    created: float
    finished: float | None
    counts: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return _plain(self._asdict())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepRecord:
        """Read what `to_json` wrote; unknown fields are left out."""
        return cls(**_known(cls._fields, data))


class FlowRecord(NamedTuple):
    """One flow: its name and the time of its first run."""

    flow: str
    created: float

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return _plain(self._asdict())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FlowRecord:
        """Read what `to_json` wrote; unknown fields are left out."""
        return cls(**_known(cls._fields, data))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _known(names: tuple[str, ...], data: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: data[name] for name in names if name in data}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
