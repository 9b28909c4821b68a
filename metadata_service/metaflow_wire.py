"""What Metaflow's clients send: every value is checked and bounded before it reaches a database.

Unknown fields are left out. A value of a field or an artifact that is no text is kept as its JSON.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, StringConstraints, TypeAdapter, ValidationError
from pydantic import Field as Bounds

from flowkit.metadata.tags import MAX_TAGS
from flowkit.metadata_service.metaflow_states import MAX_ATTEMPT
from flowkit.metadata_service.problems import unprocessable
from flowkit.metadata_service.wire import MAX_SYSTEM_TAGS, NAME, TEXT, Key, Tag, Word, by_turns

MAX_FIELDS = 1_000
"""Metadata fields in one request; a client sends about twenty."""
MAX_ARTIFACTS = 10_000
"""Artifacts in one request."""
MAX_VALUE = 1_048_576
"""Characters of a field's value; the longest of a client's own describe a foreach or a code package."""


def _as_text(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)


def _or_empty(value: Any) -> Any:
    return "" if value is None else value


def _or_none(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _or_no_tags(value: Any) -> Any:
    return () if value is None else value


User = Annotated[str, BeforeValidator(_or_empty), StringConstraints(max_length=500, pattern=TEXT)]
Words = Annotated[str, BeforeValidator(_or_empty), StringConstraints(max_length=4_096, pattern=TEXT)]
Value = Annotated[str, BeforeValidator(_as_text), StringConstraints(max_length=MAX_VALUE)]
Given = Annotated[Annotated[str, StringConstraints(pattern=NAME)] | None, BeforeValidator(_or_none)]
"""An id that the client chose; a number is one that it was told before."""
Tags = Annotated[tuple[Tag, ...], FailFast(), Bounds(max_length=MAX_TAGS), BeforeValidator(_or_no_tags)]
SystemTags = Annotated[tuple[Tag, ...], FailFast(), Bounds(max_length=MAX_SYSTEM_TAGS), BeforeValidator(_or_no_tags)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class NewFlow(_Body):
    """A new flow."""

    user_name: User = ""
    tags: Tags = ()
    system_tags: SystemTags = ()


class NewStep(NewFlow):
    """A new step of a run."""


class NewRun(NewFlow):
    """A new run; with `run_number` one that has a name already."""

    run_number: Given = None


class NewTask(NewFlow):
    """A new task; with `task_id` one that has a name already."""

    task_id: Given = None


class MetadataField(_Body):
    """A metadata field of a task."""

    field_name: Word
    value: Value = ""
    type: Words = ""
    user_name: User = ""
    tags: Tags = ()
    system_tags: SystemTags = ()


class NewArtifact(_Body):
    """An artifact of an attempt."""

    name: Word
    sha: Key
    location: Words = ""
    ds_type: Words = ""
    type: Words = ""
    content_type: Words = ""
    attempt_id: Annotated[int, Bounds(ge=0, le=MAX_ATTEMPT)] = 0
    user_name: User = ""
    tags: Tags = ()
    system_tags: SystemTags = ()


class TagMutation(_Body):
    """User tags of a run to be added and removed at once."""

    tags_to_add: Annotated[tuple[Tag, ...], FailFast(), Bounds(max_length=1_000)] = ()
    tags_to_remove: Annotated[tuple[Tag, ...], FailFast(), Bounds(max_length=1_000)] = ()


FIELDS: TypeAdapter[list[MetadataField]] = TypeAdapter(
    Annotated[list[MetadataField], FailFast(), Bounds(max_length=MAX_FIELDS)]
)
ARTIFACTS: TypeAdapter[list[NewArtifact]] = TypeAdapter(
    Annotated[list[NewArtifact], FailFast(), Bounds(max_length=MAX_ARTIFACTS)]
)

_Some = TypeVar("_Some")


def parsed(adapter: TypeAdapter[_Some], raw: bytes) -> _Some:
    """Return a body that is a list.

    Raises
    ------
    Unprocessable
        With the place of everything that is wrong in it.
    """
    with by_turns(raw):
        try:
            return adapter.validate_json(raw)
        except ValidationError as error:
            found = unprocessable(error.errors(include_url=False, include_context=False, include_input=False))
    raise found


BODIES: tuple[type[BaseModel], ...] = (NewFlow, NewRun, NewStep, NewTask, MetadataField, NewArtifact, TagMutation)
"""What requests carry, for OpenAPI."""


def expects_list(model: type[BaseModel]) -> dict[str, Any]:
    """Return what OpenAPI says of the body of a route that takes a list."""
    schema = {"type": "array", "items": {"$ref": f"#/components/schemas/{model.__name__}"}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
