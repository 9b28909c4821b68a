"""The routes of Metaflow's metadata service, so that its clients run, resume, tag and read here as they are.

Paths, payloads, status codes and headers are those of its REST language. This module has the flows and the runs;
`metaflow_tasks` has what is below them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from flowkit.exceptions import Conflict, NotFound, UsageError
from flowkit.metadata.records import RunRecord
from flowkit.metadata.store import RunFilter
from flowkit.metadata_service import metaflow_filters as filters
from flowkit.metadata_service import metaflow_records as records
from flowkit.metadata_service import metaflow_wire as bodies
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import PROJECT_TAG, Caller
from flowkit.metadata_service.audit import touched
from flowkit.metadata_service.metaflow_tasks import (
    NEXT_CURSOR,
    add_artifacts,
    add_fields,
    add_steps,
    add_tasks,
    pages_of,
    streamed,
    visible_run,
)
from flowkit.metadata_service.problems import Unprocessable, answers
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.store import Beat, ServiceStore
from flowkit.metadata_service.v1_access import check_writable
from flowkit.metadata_service.v1_pages import cursor_place, filled_page
from flowkit.metadata_service.v1_runs import visible_flows

FlowName = Annotated[str, Path(pattern=wire.NAME)]
RunName = Annotated[str, Path(pattern=wire.NAME)]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["metaflow"])
    _add_flows(routes, service)
    _add_runs(routes, service)
    _add_living(routes, service)
    add_steps(routes, service)
    add_tasks(routes, service)
    add_fields(routes, service)
    add_artifacts(routes, service)
    return routes


def _add_flows(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/flows", responses=answers())
    def list_flows(caller: Caller = Depends(guard.reader)) -> Response:
        """List the flows that have runs."""
        flows = visible_flows(store, caller, None)
        return wire.reply([records.flow_json(flow.flow, flow.created, {}) for flow in flows])

    @routes.get("/flows/{flow}", responses=answers(404))
    def show_flow(flow: FlowName, caller: Caller = Depends(guard.reader)) -> Response:
        """Show a flow."""
        facts, first = _flow(store, caller, flow)
        if first is None and not facts:
            raise NotFound(f"there is no flow {flow}")
        return wire.reply(records.flow_json(flow, first.created if first else 0.0, facts))

    @routes.post("/flows/{flow}", responses=answers(409), openapi_extra=wire.expects(bodies.NewFlow))
    def create_flow(
        flow: FlowName, caller: Caller = Depends(guard.writer), raw: bytes = Depends(wire.raw_body)
    ) -> Response:
        """Create a flow; 409 if it is there."""
        body = wire.parsed(bodies.NewFlow, raw)
        facts, first = _flow(store, caller, flow)
        if facts or first is not None:
            raise Conflict(f"the flow {flow} is there already")
        facts = {**body.model_dump(mode="json"), "created": time.time()}
        if not store.facts(flow, None):  # whoever may not see that it is there makes it in their own eyes only
            store.put_facts(flow, None, facts)
        return wire.reply(records.flow_json(flow, 0.0, facts))


def _add_runs(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get("/flows/{flow}/runs", responses=answers(404), openapi_extra=filters.described(filters.RUN_FIELDS))
    def list_runs(flow: FlowName, request: Request, caller: Caller = Depends(guard.reader)) -> Response:
        """List runs, newest first: all of them, or a page (`_limit`) with its cursor in the header `X-Next-Cursor`.

        A page with filters may be short, or empty, and not the last one: the header tells.
        """
        query = filters.parse(request.query_params.multi_items(), filters.RUN_FIELDS)
        return _runs(store, caller, flow, query)

    @routes.get("/flows/{flow}/runs/{run}", responses=answers(404))
    def show_run(flow: FlowName, run: RunName, caller: Caller = Depends(guard.reader)) -> Response:
        """Show a run, by its number or its name."""
        return wire.reply(records.run_json(visible_run(store, caller, flow, run)))

    @routes.post("/flows/{flow}/run", responses=answers(409), openapi_extra=wire.expects(bodies.NewRun))
    def create_run(
        flow: FlowName, caller: Caller = Depends(guard.writer), raw: bytes = Depends(wire.raw_body)
    ) -> Response:
        """Create a run: with the flow's next number, or with the name that is given (409 if there is one)."""
        body = wire.parsed(bodies.NewRun, raw)
        name = body.run_number
        if name is not None and records.is_number(name):
            raise UsageError("numbers of runs are handed out by the service", "leave run_number out, or give a name")
        record = RunRecord(
            flow,
            name or "0",
            body.user_name,
            "running",
            time.time(),
            tags=tuple(sorted(set(body.tags))),
            system_tags=tuple(sorted(set(body.system_tags))),
        )
        if name is None:
            check_writable(store, caller, [record])
            record = record._replace(run=str(store.reserve_run(flow)))
        elif store.run(flow, name) is not None:
            raise Conflict(f"there is a run {flow}/{name} already")
        check_writable(store, caller, [record])
        # of several that want the same name, one gets it: a resume by many machines elects its leader so
        if not store.register([record], f"claim {flow}/{record.run}"):
            raise Conflict(f"there is a run {flow}/{record.run} already")
        touched(flow, record.run)
        return wire.reply(records.run_json(record))


def _add_living(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.post("/flows/{flow}/runs/{run}/heartbeat", responses=answers(404))
    def beat(flow: FlowName, run: RunName, caller: Caller = Depends(guard.writer)) -> Response:
        """Note that a run is alive; tells when to say so again, as JSON in a JSON text."""
        record = visible_run(store, caller, flow, run)
        store.heartbeats([Beat(flow, record.run)], time.time())
        return beaten(service)

    @routes.post("/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}/heartbeat", responses=answers(404))
    def beat_task(
        flow: FlowName,
        run: RunName,
        step: Annotated[str, Path(pattern=wire.NAME)],
        task: Annotated[str, Path(pattern=wire.NAME)],
        caller: Caller = Depends(guard.writer),
    ) -> Response:
        """Note that a task, and so its run, is alive."""
        record = visible_run(store, caller, flow, run)
        found = records.task_named(store, record, step, task)
        if found is None:
            raise NotFound(f"there is no task {flow}/{run}/{step}/{task}")
        store.heartbeats([Beat(flow, record.run, found.step, found.task)], time.time())
        return beaten(service)

    @routes.patch(
        "/flows/{flow}/runs/{run}/tag/mutate",
        responses=answers(404, 409),
        openapi_extra=wire.expects(bodies.TagMutation),
    )
    def change_tags(
        flow: FlowName,
        run: RunName,
        caller: Caller = Depends(guard.writer),
        raw: bytes = Depends(wire.raw_body),
    ) -> Response:
        """Add and remove user tags; 400 for what is no such change, 422 for one that the rules of tags forbid."""
        record = visible_run(store, caller, flow, run)
        try:
            body = wire.parsed(bodies.TagMutation, raw)
        except Unprocessable as error:
            raise UsageError(error.headline, error.hint) from None
        try:
            tags = store.change_tags(flow, record.run, body.tags_to_add, body.tags_to_remove)
        except UsageError as error:
            raise Unprocessable(error.headline, error.hint) from None
        return wire.reply({"tags": list(tags)})


def beaten(service: Service) -> Response:
    """Return the answer to a heartbeat."""
    interval = max(1, round(service.configuration.heartbeat_interval))
    return wire.reply(json.dumps({"wait_time_in_seconds": interval}))


def _runs(store: ServiceStore, caller: Caller, flow: str, query: filters.Query) -> Response:
    """Return the runs that are asked for.

    Raises
    ------
    NotFound
        If there is no such flow for this caller.
    """
    which = query.which
    if caller.projects is not None and len(caller.projects) == 1:
        which = which._replace(tags=(*which.tags, PROJECT_TAG + caller.projects[0]))

    def fetch(after: tuple[str] | None, size: int) -> list[RunRecord]:
        return store.runs(flow, which._replace(before=after[0] if after else None, limit=size))

    def fetch_told(after: tuple[str] | None, size: int) -> list[tuple[str, dict[str, Any]]]:
        return [(run.run, records.run_json(run) if caller.sees(run) else {}) for run in fetch(after, size)]

    def keep(run: RunRecord) -> bool:
        return caller.sees(run) and query.keeps(records.run_json(run))

    after = cursor_place(query.cursor, str)
    if not any(_flow(store, caller, flow)):
        raise NotFound(f"there is no flow {flow}")
    if query.limit is None:
        return streamed(pages_of(fetch_told, after, lambda told: bool(told) and query.keeps(told)))
    found, cursor = filled_page(fetch, lambda run: (run.run,), after, query.limit, keep)
    return wire.reply([records.run_json(run) for run in found], headers={} if cursor is None else {NEXT_CURSOR: cursor})


def _some_run(store: ServiceStore, caller: Caller, flow: str) -> RunRecord | None:
    """Return a run of a flow that exists for a caller."""
    tags: list[tuple[str, ...]] = [()] if caller.projects is None else [(PROJECT_TAG + p,) for p in caller.projects]
    for wanted in tags:
        for run in store.runs(flow, RunFilter(tags=wanted, limit=50)):
            if caller.sees(run):
                return run
    return None


def _flow(store: ServiceStore, caller: Caller, flow: str) -> tuple[Mapping[str, Any], RunRecord | None]:
    """Return what was said of a flow, and a run of it: nothing where it does not exist for a caller."""
    run = _some_run(store, caller, flow)
    if caller.projects is None:
        return store.facts(flow, None), run
    return {}, run
