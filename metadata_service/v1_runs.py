"""``/v1/`` for readers: flows, runs, steps, tasks, attempts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from flowkit.exceptions import NotFound, UsageError
from flowkit.metadata.records import FlowRecord, RunRecord, State, TaskRecord
from flowkit.metadata.store import RunFilter
from flowkit.metadata_service import v1_answers as answer
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import PROJECT_TAG, Caller
from flowkit.metadata_service.problems import answers
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.store import ServiceStore
from flowkit.metadata_service.v1_access import visible_run
from flowkit.metadata_service.v1_pages import LIMIT, SCAN, SCAN_QUERIES, Cursor, Limit, cursor_place, filled_page
from flowkit.version import __version__

_TAGGED = 50
"""Runs of a flow that are looked at to tell whether a caller sees the flow."""

FlowName = Annotated[str, Path(pattern=wire.NAME)]
RunName = Annotated[str, Path(pattern=wire.NAME)]
StepName = Annotated[str, Path(pattern=wire.NAME)]
TaskName = Annotated[str, Path(pattern=wire.NAME)]
Status = Annotated[State | None, Query(description="Only those in this state.")]
User = Annotated[str | None, Query(min_length=1, max_length=500, pattern=wire.TEXT, description="Who started it.")]
TagFilter = Annotated[
    list[wire.Tag] | None, Query(max_length=20, description="All of which a run has, as user or system tags.")
]
Since = Annotated[
    float | None, Query(ge=0, le=wire.MAX_TIME, allow_inf_nan=False, description="Created at or after that time.")
]
Until = Annotated[
    float | None, Query(ge=0, le=wire.MAX_TIME, allow_inf_nan=False, description="Created before that time.")
]
HasStep = Annotated[str | None, Query(pattern=wire.NAME, description="Only runs with tasks of this step.")]
StepFilter = Annotated[str | None, Query(pattern=wire.NAME, description="Only tasks of this step.")]
Namespace = Annotated[
    str | None, Query(min_length=1, max_length=500, pattern=wire.TEXT, description="Only flows with runs so tagged.")
]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["reading"])
    _add_about(routes, service)
    _add_flows(routes, service)
    _add_lists_of_runs(routes, service)
    _add_parts_of_runs(routes, service)
    return routes


class _Database:
    """What a store says of itself. Counting a large one takes seconds: at most a twentieth of the time goes into it."""

    def __init__(self, store: ServiceStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._told: dict[str, Any] = {}
        self._until = 0.0

    def about(self) -> dict[str, Any]:
        """Return where it is, its version, how much it holds."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._until:
                self._told = dict(self._store.about())
                now = time.monotonic()
                self._until = now + 20 * (now - begun)
            return self._told


def _add_about(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard
    database = _Database(store)

    @routes.get("/about", response_model=answer.About, responses=answers())
    def about(caller: Caller = Depends(guard.reader)) -> Response:
        """Tell what the service is, and what it expects of its clients; to administrators also of the database."""
        settings = service.configuration
        limits = {"records": wire.MAX_RECORDS, "heartbeats": wire.MAX_BEATS, "body": settings.max_body}
        return wire.reply(
            {
                "service": "flowkit",
                "version": __version__,
                "heartbeat_interval": settings.heartbeat_interval,
                "limits": limits,
                "database": database.about() if caller.projects is None and caller.may("admin") else {},
            }
        )


def _add_flows(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/flows", response_model=answer.Flows, responses=answers())
    def list_flows(
        namespace: Namespace = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List the flows that have runs, the newest first run first."""
        flows = visible_flows(store, caller, namespace)
        after = cursor_place(cursor, float, str)
        flows.sort(key=lambda flow: (flow.created, flow.flow), reverse=True)
        begin = 0 if after is None else sum(1 for flow in flows if (flow.created, flow.flow) >= after)
        rest = flows[begin:]
        return wire.page(
            *filled_page(lambda _, size: rest[:size], lambda flow: (flow.created, flow.flow), after, limit)
        )


def _add_lists_of_runs(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/runs", response_model=answer.Runs, responses=answers())
    def list_all_runs(
        status: Status = None,
        user: User = None,
        tag: TagFilter = None,
        since: Since = None,
        until: Until = None,
        step: HasStep = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List the runs of all flows, newest first. A page with filters may be short, or empty, and not the last."""
        which = RunFilter(status, since, until, user, tuple(tag or ()))
        after = cursor_place(cursor, float, str, str)
        if after is None and until is not None:
            after = (until, "", "")
        project = caller.projects[0] if caller.projects is not None and len(caller.projects) == 1 else None

        def fetch(before: tuple[float, str, str] | None, size: int) -> list[RunRecord]:
            found = store.recent_runs(limit=size, before=before, project=project)
            # it goes back in time: what is older than asked for ends the list
            return found if since is None else [run for run in found if run.created >= since]

        keep = _kept(store, caller, which, step)
        scan = SCAN if step is None else SCAN_QUERIES
        return wire.page(*filled_page(fetch, lambda run: (run.created, run.flow, run.run), after, limit, keep, scan))

    @routes.get("/flows/{flow}/runs", response_model=answer.Runs, responses=answers(404))
    def list_runs(
        flow: FlowName,
        status: Status = None,
        user: User = None,
        tag: TagFilter = None,
        since: Since = None,
        until: Until = None,
        step: HasStep = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List the runs of a flow, newest first. A page with `step` may be short, or empty, and not the last."""
        tags = tuple(tag or ())
        if caller.projects is not None and len(caller.projects) == 1:
            tags = (*tags, PROJECT_TAG + caller.projects[0])
        which = RunFilter(status, since, until, user, tags)

        def fetch(after: tuple[str] | None, size: int) -> list[RunRecord]:
            return store.runs(flow, which._replace(before=after[0] if after else None, limit=size))

        keep = _kept(store, caller, RunFilter(), step)
        scan = SCAN if step is None else SCAN_QUERIES
        return wire.page(*filled_page(fetch, lambda run: (run.run,), cursor_place(cursor, str), limit, keep, scan))


def _add_parts_of_runs(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/flows/{flow}/runs/{run}", response_model=answer.Run, responses=answers(404))
    def show_run(flow: FlowName, run: RunName, caller: Caller = Depends(guard.reader)) -> Response:
        """Show one run."""
        return wire.reply(visible_run(store, caller, flow, run).to_json())

    @routes.get("/flows/{flow}/runs/{run}/steps", response_model=answer.Steps, responses=answers(404))
    def list_steps(flow: FlowName, run: RunName, caller: Caller = Depends(guard.reader)) -> Response:
        """List the steps of a run that have tasks, in the order in which they began."""
        visible_run(store, caller, flow, run)
        return wire.page(store.steps(flow, run), None)

    @routes.get("/flows/{flow}/runs/{run}/tasks", response_model=answer.Tasks, responses=answers(404))
    def list_tasks(
        flow: FlowName,
        run: RunName,
        step: StepFilter = None,
        status: Status = None,
        cursor: Cursor = None,
        limit: Limit = LIMIT,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List the tasks of a run, in the order in which they began, those that have not begun last."""
        visible_run(store, caller, flow, run)

        def fetch(place: tuple[str, str] | None, size: int) -> list[TaskRecord]:
            if place is not None and step is not None and place[0] != step:
                raise UsageError("that is no cursor of this list", "leave `cursor` out for the first page")
            after = None if place is None else place[1] if step is not None else "/".join(place)
            return store.tasks(flow, run, step, status=status, limit=size, after=after)

        after = cursor_place(cursor, str, str)
        return wire.page(*filled_page(fetch, lambda task: (task.step, task.task), after, limit))

    @routes.get(
        "/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}", response_model=answer.Task, responses=answers(404)
    )
    def show_task(
        flow: FlowName, run: RunName, step: StepName, task: TaskName, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """Show one task."""
        return wire.reply(_visible_task(store, caller, flow, run, step, task).to_json())

    @routes.get(
        "/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}/attempts",
        response_model=answer.Attempts,
        responses=answers(404),
    )
    def list_attempts(
        flow: FlowName, run: RunName, step: StepName, task: TaskName, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List the attempts of a task that were reported, the first one first."""
        _visible_task(store, caller, flow, run, step, task)
        return wire.page((each._asdict() for each in store.attempts(flow, run, step, task)), None)


def visible_flows(store: ServiceStore, caller: Caller, namespace: str | None) -> list[FlowRecord]:
    """Return the flows that have runs (with a tag) that exist for a caller."""
    if caller.projects is None:
        return store.flows(namespace)
    found: dict[str, FlowRecord] = {}
    for project in caller.projects:
        tag = PROJECT_TAG + project
        tags = (tag,) if namespace is None else (namespace, tag)
        for flow in store.flows(tag):
            # that there is a run so tagged is not enough: its user may have tagged it
            if flow.flow not in found and any(
                caller.sees(run) for run in store.runs(flow.flow, RunFilter(tags=tags, limit=_TAGGED))
            ):
                found[flow.flow] = flow
    return list(found.values())


def _visible_task(store: ServiceStore, caller: Caller, flow: str, run: str, step: str, task: str) -> TaskRecord:
    visible_run(store, caller, flow, run)
    record = store.task(flow, run, step, task)
    if record is None:
        raise NotFound(f"there is no task {flow}/{run}/{step}/{task}")
    return record


def _kept(
    store: ServiceStore, caller: Caller, which: RunFilter, step: str | None
) -> Callable[[RunRecord], bool] | None:
    """Return what tells whether a run belongs to a list; None where all do."""
    if caller.projects is None and step is None and which == RunFilter():
        return None

    def keep(run: RunRecord) -> bool:
        return (
            caller.sees(run)
            and (which.status is None or run.state == which.status)
            and (which.user is None or run.user == which.user)
            and (which.since is None or run.created >= which.since)
            and (which.until is None or run.created < which.until)
            and (not which.tags or set(which.tags) <= {*run.tags, *run.system_tags})
            and (step is None or bool(store.tasks(run.flow, run.run, step, limit=1)))
        )

    return keep
