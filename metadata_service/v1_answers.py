"""What ``/v1/`` answers, for OpenAPI: the records of `flowkit.metadata.records` and pages of them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from flowkit.metadata.records import State


class RecordsWritten(BaseModel):
    """How many records were written; none where the same request came before."""

    written: int
    repeated: bool


class Silent(BaseModel):
    """A run or a task that is not known."""

    flow: str
    run: str
    step: str | None = None
    task: str | None = None


class BeatsTaken(BaseModel):
    """When to beat again, in seconds, and what is not known."""

    interval: float
    unknown: list[Silent]


class Reserved(BaseModel):
    """The number of a new run."""

    run: str


class Tags(BaseModel):
    """The user tags of a run, sorted."""

    tags: list[str]


class Flow(BaseModel):
    """A flow and the time of its first run."""

    flow: str
    created: float


class Run(BaseModel):
    """A run; `state` is true: `lost` where nobody works on an open run any more."""

    flow: str
    run: str
    user: str
    state: State
    created: float
    reason: str | None
    finished: float | None
    heartbeat: float | None
    tags: list[str]
    system_tags: list[str]
    origin: str | None
    host: str | None
    boot_id: str | None
    pid: int | None
    process_start: int | None


class Step(BaseModel):
    """A step of a run, with its tasks counted by state."""

    flow: str
    run: str
    step: str
    created: float
    finished: float | None
    counts: dict[str, int]


class Task(BaseModel):
    """A task: where its newest attempt stands."""

    flow: str
    run: str
    step: str
    task: str
    state: State
    attempt: int
    started: float | None
    finished: float | None
    reason: str | None
    origin: str | None
    pid: int | None


class OneAttempt(BaseModel):
    """An attempt of a task, as it was last reported."""

    attempt: int
    state: State
    started: float | None
    finished: float | None
    reason: str | None


class Artifact(BaseModel):
    """An artifact, and the attempt that has it."""

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    name: str
    key: str
    size: int | None
    type: str | None
    codec: str | None


class Edge(BaseModel):
    """A task that read an artifact: under which name, and which content."""

    flow: str
    run: str
    step: str
    task: str
    name: str
    key: str


class Flows(BaseModel):
    """A page of flows."""

    items: list[Flow]
    next: str | None


class Runs(BaseModel):
    """A page of runs, newest first."""

    items: list[Run]
    next: str | None


class Steps(BaseModel):
    """The steps of a run, in the order in which they began."""

    items: list[Step]
    next: str | None


class Tasks(BaseModel):
    """A page of tasks, in the order in which they began."""

    items: list[Task]
    next: str | None


class Attempts(BaseModel):
    """The attempts of a task, the first one first."""

    items: list[OneAttempt]
    next: str | None


class Artifacts(BaseModel):
    """A page of artifacts."""

    items: list[Artifact]
    next: str | None


class Edges(BaseModel):
    """A page of edges."""

    items: list[Edge]
    next: str | None


class Limits(BaseModel):
    """What one request may hold."""

    records: int
    heartbeats: int
    body: int


class About(BaseModel):
    """What the service is, and what it expects of its clients."""

    service: str
    version: str
    heartbeat_interval: float
    limits: Limits
    database: dict[str, Any]
