"""``GET /v1/audit``: who wrote what, for those who look after the service."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.problems import answers
from flowkit.metadata_service.refused import forbidden
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.v1_pages import LIMIT, Cursor, Limit, cursor_place, cursor_text


class AuditEntry(BaseModel):
    """One write; `count` where the same was asked for several times within a second."""

    id: int
    when: float
    who: str
    action: str
    what: str
    status: int
    address: str = Field(alias="from")
    count: int = 1


class AuditEntries(BaseModel):
    """A page of the log of writes, newest first."""

    items: list[AuditEntry]
    next: str | None


Since = Annotated[float | None, Query(ge=0, le=wire.MAX_TIME, description="Only entries from this time on.")]


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(prefix="/v1", tags=["operations"])
    store, guard = service.store, service.guard

    @routes.get("/audit", response_model=AuditEntries, responses=answers())
    def audit(
        since: Since = None, cursor: Cursor = None, limit: Limit = LIMIT, caller: Caller = Depends(guard.admin)
    ) -> Response:
        """Return who wrote what, newest first: an entry for each request that was not only reading, but heartbeats."""
        if caller.projects is not None:
            raise forbidden("the log of writes is of all projects, and this token is for some")
        place = cursor_place(cursor, int)
        found = store.audited(limit=limit + 1, before=place[0] if place else None)
        items: list[dict[str, Any]] = [{"id": entry_id, **entry} for entry_id, entry in found[:limit]]
        kept = [item for item in items if since is None or item["when"] >= since]
        more = len(found) > limit and len(kept) == len(items)
        return wire.page(kept, cursor_text([items[-1]["id"]]) if more else None)

    return routes
