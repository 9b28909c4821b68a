"""``/v1/`` for readers: artifacts, who has a content and who read it, lineage."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from flowkit.exceptions import UsageError
from flowkit.metadata_service import v1_answers as answer
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.problems import answers
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.store import ArtifactPlace, Read
from flowkit.metadata_service.v1_access import visible_run, visible_runs
from flowkit.metadata_service.v1_pages import LIMIT, SCAN_QUERIES, Cursor, Limit, cursor_place, filled_page

FlowName = Annotated[str, Path(pattern=wire.NAME)]
RunName = Annotated[str, Path(pattern=wire.NAME)]
ContentKey = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:+=\-]{1,255}$")]
StepFilter = Annotated[str | None, Query(pattern=wire.NAME, description="Only of this step.")]
TaskFilter = Annotated[str | None, Query(pattern=wire.NAME, description="Only of this task; `step` is given too.")]
NameFilter = Annotated[str | None, Query(min_length=1, max_length=500, pattern=wire.TEXT, description="Its name.")]
AttemptFilter = Annotated[
    int | None, Query(ge=0, le=2**31 - 1, description="Of this attempt; none for the newest one that has any.")
]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["artifacts"])
    _add_of_runs(routes, service)
    _add_of_contents(routes, service)
    return routes


def _add_of_runs(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/flows/{flow}/runs/{run}/artifacts", response_model=answer.Artifacts, responses=answers(404))
    def list_artifacts(
        flow: FlowName,
        run: RunName,
        step: StepFilter = None,
        task: TaskFilter = None,
        attempt: AttemptFilter = None,
        name: NameFilter = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List what the tasks of a run made, by step, task, attempt and name."""
        _check_task(step, task)
        visible_run(store, caller, flow, run)

        def fetch(after: tuple[str, str, int, str] | None, size: int) -> list[ArtifactPlace]:
            return store.artifacts(flow, run, step, task, attempt=attempt, name=name, after=after, limit=size)

        after = cursor_place(cursor, str, str, int, str)
        items, more = filled_page(fetch, lambda each: _place(each)[2:], after, limit)
        return wire.page(map(_shown, items), more)

    @routes.get("/flows/{flow}/runs/{run}/lineage", response_model=answer.Edges, responses=answers(404))
    def list_lineage(
        flow: FlowName,
        run: RunName,
        step: StepFilter = None,
        task: TaskFilter = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List what the tasks of a run read, by step, task and name: ``/v1/artifacts/{key}`` tells who made it."""
        _check_task(step, task)
        visible_run(store, caller, flow, run)

        def fetch(after: tuple[str, str, str, str] | None, size: int) -> list[Read]:
            return store.reads(flow, run, step, task, after=after, limit=size)

        after = cursor_place(cursor, str, str, str, str)
        items, more = filled_page(fetch, lambda read: (read.step, read.task, read.name, read.key), after, limit)
        return wire.page((read._asdict() for read in items), more)


def _add_of_contents(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/artifacts/{key}", response_model=answer.Artifacts, responses=answers())
    def list_makers(
        key: ContentKey, cursor: Cursor = None, limit: Limit = LIMIT, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List who has an artifact with the given content."""
        seen = visible_runs(store, caller)

        def fetch(after: tuple[str, str, str, str, int, str] | None, size: int) -> list[ArtifactPlace]:
            return store.artifacts_by_key(key, after=after, limit=size)

        keep = None if caller.projects is None else lambda each: seen(each.flow, each.run)
        after = cursor_place(cursor, str, str, str, str, int, str)
        items, more = filled_page(fetch, _place, after, limit, keep, SCAN_QUERIES)
        return wire.page(map(_shown, items), more)

    @routes.get("/artifacts/{key}/readers", response_model=answer.Edges, responses=answers())
    def list_readers(
        key: ContentKey, cursor: Cursor = None, limit: Limit = LIMIT, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List who read the given content."""
        seen = visible_runs(store, caller)

        def fetch(after: tuple[str, str, str, str, str] | None, size: int) -> list[Read]:
            return store.readers(key, after=after, limit=size)

        keep = None if caller.projects is None else lambda each: seen(each.flow, each.run)
        after = cursor_place(cursor, str, str, str, str, str)
        items, more = filled_page(fetch, lambda read: read[:5], after, limit, keep, SCAN_QUERIES)
        return wire.page((read._asdict() for read in items), more)


def _check_task(step: str | None, task: str | None) -> None:
    if task is not None and step is None:
        raise UsageError(f"which step's task {task}?", "give `step` too")


def _place(each: ArtifactPlace) -> tuple[str, str, str, str, int, str]:
    return each.flow, each.run, each.step, each.task, each.attempt, each.artifact.name


def _shown(each: ArtifactPlace) -> dict[str, Any]:
    place = each._asdict()
    del place["artifact"]
    return {**place, **each.artifact.to_json()}
