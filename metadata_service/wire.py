"""What clients send to ``/v1/`` and get from it: every value is checked before it reaches a database.

The models have the fields of the records (`flowkit.metadata.records`), which are the wire format, with bounds. Unknown
fields are left out, so that a newer client can talk to an older service.

Every list ends at the first of its items that is wrong (`FailFast`), of which all is told: a body of millions of wrong
items would make as many errors, in a hundred times its room.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError

from flowkit.metadata.records import ArtifactRecord, OutputRecord, Record, RunRecord, State, TaskRecord
from flowkit.metadata.tags import MAX_LENGTH, MAX_TAGS
from flowkit.metadata_service.problems import Unprocessable, unprocessable
from flowkit.metadata_service.store import Beat

MAX_RECORDS = 10_000
"""Records in one request: with their artifacts they stay below the limit of a body."""
MAX_BEATS = 10_000
"""Heartbeats in one request."""
MAX_ARTIFACTS = 10_000
"""Artifacts of one task, and as many reads."""
MAX_SYSTEM_TAGS = 200
"""System tags of one run: each parameter of a deployment can bring some."""
MAX_TIME = 253_402_300_799.0
"""The last second of the year 9999."""
MAX_NUMBER = 10**17 - 1
"""The largest number of a run; Metaflow's local ones (microseconds since the epoch) have 16 digits."""

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-+@:]{0,254}$"
"""One part of a path, as `flowkit.model.pathspec.check_part` wants it."""
TEXT = r"^[^\x00]*$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:+=\-]{1,255}$")]
Word = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=TEXT)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LENGTH, pattern=TEXT)]
Text = Annotated[str, StringConstraints(max_length=65_536)]
"""Free text, for people; the stores replace what they cannot keep."""
Path = Annotated[str, StringConstraints(max_length=1_300, pattern=TEXT)]
Read = Annotated[str, StringConstraints(min_length=3, max_length=800, pattern=r"^[^\x00=]+=[^\x00]+$")]
Time = Annotated[float, Field(ge=0, le=MAX_TIME, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Attempt = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class RunBody(_Body):
    """A run, as `RunRecord` has it. A heartbeat in it does not count: the service's own clock does."""

    flow: Name
    run: Name
    user: Text
    state: State
    created: Time
    reason: Text | None = None
    finished: Time | None = None
    tags: Annotated[tuple[Tag, ...], FailFast(), Field(max_length=MAX_TAGS)] = ()
    system_tags: Annotated[tuple[Tag, ...], FailFast(), Field(max_length=MAX_SYSTEM_TAGS)] = ()
    origin: Path | None = None
    host: Text | None = None
    boot_id: Path | None = None
    pid: Count | None = None
    process_start: Count | None = None
    kind: Literal["run"]


class TaskBody(_Body):
    """A task, as `TaskRecord` has it."""

    flow: Name
    run: Name
    step: Name
    task: Name
    state: State
    attempt: Attempt = 0
    started: Time | None = None
    finished: Time | None = None
    reason: Text | None = None
    origin: Path | None = None
    pid: Count | None = None
    kind: Literal["task"]


class ArtifactBody(_Body):
    """An artifact, as `ArtifactRecord` has it."""

    name: Word
    key: Key
    size: Count | None = None
    type: Path | None = None
    codec: Path | None = None


class OutputBody(_Body):
    """What an attempt made and read, as `OutputRecord` has it."""

    flow: Name
    run: Name
    step: Name
    task: Name
    attempt: Attempt
    artifacts: Annotated[tuple[ArtifactBody, ...], FailFast(), Field(max_length=MAX_ARTIFACTS)] = ()
    reads: Annotated[tuple[Read, ...], FailFast(), Field(max_length=MAX_ARTIFACTS)] = ()
    kind: Literal["output"]


class Records(_Body):
    """A batch of records, written in one transaction."""

    records: Annotated[
        tuple[Annotated[RunBody | TaskBody | OutputBody, Field(discriminator="kind")], ...],
        FailFast(),
        Field(max_length=MAX_RECORDS),
    ]


class BeatBody(_Body):
    """A sign of life of a run, or of one of its tasks."""

    flow: Name
    run: Name
    step: Name | None = None
    task: Name | None = None


class Beats(_Body):
    """Signs of life of many."""

    heartbeats: Annotated[tuple[BeatBody, ...], FailFast(), Field(max_length=MAX_BEATS)]


class Reservation(_Body):
    """How large the number of a new run must be at least."""

    at_least: Annotated[int, Field(ge=1, le=MAX_NUMBER)] = 1


class Emission(_Body):
    """An event that starts deployed flows: its name, its fields, which one it is, who emits it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=250, pattern=TEXT)]
    data: dict[str, Any] = Field(default_factory=dict)
    id: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=TEXT)] | None = None
    user: Annotated[str, StringConstraints(max_length=200)] = ""


class TagChange(_Body):
    """User tags to be added and removed at once: what is in both is added."""

    add: Annotated[tuple[Tag, ...], FailFast(), Field(max_length=1_000)] = ()
    remove: Annotated[tuple[Tag, ...], FailFast(), Field(max_length=1_000)] = ()


LARGE = 1024 * 1024
"""Bytes of a body from which on it is looked at more closely, and while no other large one is."""
_SPARSE = 24
"""Bytes of a large body for each list or object in it, at least: a record has hundreds, an artifact eighty."""
_one_large = threading.Lock()

BODIES: tuple[type[BaseModel], ...] = (Records, Beats, Reservation, TagChange, Emission)
"""What requests carry, for OpenAPI."""

_Some = TypeVar("_Some", bound=BaseModel)


async def raw_body(request: Request) -> bytes:
    """Return a request's body as it came; it is parsed in the thread of the route, not in the loop of all requests."""
    return await request.body()


def expects(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of the body of a route that parses it itself (`parsed`)."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@contextmanager
def by_turns(raw: bytes) -> Iterator[None]:
    """Let large bodies be parsed one at a time, since they take many times their room meanwhile, and none of brackets.

    Parsing holds Python's lock, so that several at once would not be quicker.

    Raises
    ------
    Unprocessable
        If a large body has next to nothing in its lists and objects: those take the most room, above all in errors.
    """
    if len(raw) < LARGE:
        yield
        return
    if (raw.count(b"[") + raw.count(b"{")) * _SPARSE > len(raw):
        raise Unprocessable("there are too many lists and objects in the body for its size", "send less at once")
    with _one_large:
        yield


def parsed(model: type[_Some], raw: bytes) -> _Some:
    """Return a body as its model.

    Raises
    ------
    Unprocessable
        With the place of everything that is wrong in it.
    """
    with by_turns(raw):
        try:
            return model.model_validate_json(raw)
        except ValidationError as error:  # it holds what it is about: let go of before the next one's turn
            found = unprocessable(error.errors(include_url=False, include_context=False, include_input=False))
    raise found


def records_of(raw: bytes) -> list[Record]:
    """Return the records of a body of `Records`.

    Raises
    ------
    Unprocessable
        With the place of everything that is wrong in it.
    """
    return [_record(body) for body in parsed(Records, raw).records]


def beats_of(raw: bytes) -> list[Beat]:
    """Return the signs of life of a body of `Beats`.

    Raises
    ------
    Unprocessable
        With the place of everything that is wrong in it.
    """
    return [Beat(body.flow, body.run, body.step, body.task) for body in parsed(Beats, raw).heartbeats]


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer: a value as JSON, in ASCII, which no text in a database can break."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Response(body, status, dict(headers or {}), "application/json")


def page(items: Iterable[Any], cursor: str | None) -> Response:
    """Return a page of a list: records as JSON, and where the next one begins."""
    return reply({"items": [item.to_json() if hasattr(item, "to_json") else item for item in items], "next": cursor})


def _record(body: RunBody | TaskBody | OutputBody) -> Record:
    values = body.__dict__  # the body is used for this only; a model_dump of each would cost more than all the rest
    kind = values.pop("kind")
    if kind == "task":
        return TaskRecord(**values)
    if kind == "run":
        return RunRecord(**values)
    values["artifacts"] = tuple(ArtifactRecord(**each.__dict__) for each in values["artifacts"])
    return OutputRecord(**values)
