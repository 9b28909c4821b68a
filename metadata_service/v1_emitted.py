"""``/v1/emitted``: events that start deployed flows (``@trigger``), for whoever emits them and for schedulers.

They are of no project: a token that is limited to some projects neither emits nor reads them, since an event starts the
flows of all.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.problems import answers
from flowkit.metadata_service.refused import forbidden
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.v1_pages import LIMIT, Limit


class Emitted(BaseModel):
    """An event: `number` is its place among all of them."""

    number: int
    name: str
    id: str
    created: float
    data: dict[str, Any]
    user: str


class EmittedEvents(BaseModel):
    """Events, the oldest first, and the number that the newest one had before they were looked for."""

    items: list[Emitted]
    last: int


After = Annotated[int, Query(ge=0, le=2**53, description="Only events with a larger number.")]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["events"])
    store, guard = service.store, service.guard

    @routes.post("/emitted", response_model=Emitted, responses=answers(), openapi_extra=wire.expects(wire.Emission))
    def emit(caller: Caller = Depends(guard.writer), raw: bytes = Depends(wire.raw_body)) -> Response:
        """Emit an event: deployed flows that wait for it are started. One whose `id` is known is answered as it was."""
        _check(caller)
        wanted = wire.parsed(wire.Emission, raw)
        event = store.emit(wanted.name, wanted.data, id=wanted.id, user=wanted.user or caller.name)
        return wire.reply(event.to_json())

    @routes.get("/emitted", response_model=EmittedEvents, responses=answers())
    def emitted(after: After = 0, limit: Limit = LIMIT, caller: Caller = Depends(guard.reader)) -> Response:
        """Return events after a number, the oldest first."""
        _check(caller)
        last = store.last_emitted()
        return wire.reply({"items": [event.to_json() for event in store.emitted(after, limit)], "last": last})

    return routes


def _check(caller: Caller) -> None:
    if caller.projects is not None:
        raise forbidden("events start flows of all projects, and this token is for some")
