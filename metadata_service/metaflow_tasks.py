"""Metaflow's routes below a run: steps, tasks, metadata fields, artifacts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from flowkit.exceptions import Conflict, NotFound, UsageError
from flowkit.metadata.records import ArtifactRecord, RunRecord, TaskRecord
from flowkit.metadata_service import metaflow_filters as filters
from flowkit.metadata_service import metaflow_records as records
from flowkit.metadata_service import metaflow_states as states
from flowkit.metadata_service import metaflow_wire as bodies
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.metaflow_patterns import compiled
from flowkit.metadata_service.problems import answers
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.store import Field, ForeignArtifact, ServiceStore
from flowkit.metadata_service.v1_pages import cursor_place, filled_page

NEXT_CURSOR = "X-Next-Cursor"
_PAGE = 1000

FlowName = Annotated[str, Path(pattern=wire.NAME)]
RunName = Annotated[str, Path(pattern=wire.NAME)]
StepName = Annotated[str, Path(pattern=wire.NAME)]
TaskName = Annotated[str, Path(pattern=wire.NAME)]
ArtifactName = Annotated[str, Path(min_length=1, max_length=500, pattern=wire.TEXT)]
AttemptNumber = Annotated[int, Path(ge=0, le=states.MAX_ATTEMPT)]

_RUN = "/flows/{flow}/runs/{run}"
_STEP = _RUN + "/steps/{step}"
_TASK = _STEP + "/tasks/{task}"


def visible_run(store: ServiceStore, caller: Caller, flow: str, run: str) -> RunRecord:
    """Return a run by its number or its name.

    Raises
    ------
    NotFound
        If there is none for this caller.
    """
    record = records.run_named(store, flow, run)
    if record is None or not caller.sees(record):
        raise NotFound(f"there is no run {flow}/{run}")
    return record


def visible_task(store: ServiceStore, run: RunRecord, step: str, task: str) -> TaskRecord:
    """Return a task of a run that the caller sees, by the id that clients know.

    Raises
    ------
    NotFound
        If there is none.
    """
    found = records.task_named(store, run, step, task)
    if found is None:
        raise NotFound(f"there is no task {run.flow}/{run.run}/{step}/{task}")
    return found


def streamed(pages: Iterable[list[dict[str, Any]]]) -> Response:
    """Return a list as an answer; one of several pages is sent page by page, so that none has to fit into memory."""
    rest = iter(pages)
    first, second = next(rest, []), next(rest, None)
    if second is None:
        return wire.reply(first)
    return StreamingResponse(_pieces(chain((first, second), rest)), media_type="application/json")


def _pieces(pages: Iterable[list[dict[str, Any]]]) -> Iterator[str]:
    separator = "["
    for page in pages:
        if page:
            yield separator + json.dumps(page, separators=(",", ":"), allow_nan=False)[1:-1]
            separator = ","
    yield "]" if separator == "," else "[]"


def add_steps(routes: APIRouter, service: Service) -> None:
    """Add the routes of steps."""
    store, guard = service.store, service.guard

    @routes.get(_RUN + "/steps", responses=answers(404))
    def list_steps(flow: FlowName, run: RunName, caller: Caller = Depends(guard.reader)) -> Response:
        """List the steps of a run."""
        record = visible_run(store, caller, flow, run)
        facts = store.step_facts(flow, record.run)
        found = {step: records.step_json(record, step, facts[step]["created"], facts[step]) for step in facts}
        for step in store.steps(flow, record.run):
            found.setdefault(step.step, records.step_json(record, step.step, step.created, {}))
        return wire.reply(list(found.values()))

    @routes.get(_STEP, responses=answers(404))
    def show_step(flow: FlowName, run: RunName, step: StepName, caller: Caller = Depends(guard.reader)) -> Response:
        """Show a step."""
        record = visible_run(store, caller, flow, run)
        created, facts = _step(store, record, step)
        return wire.reply(records.step_json(record, step, created, facts))

    @routes.post(_STEP + "/step", responses=answers(404, 409), openapi_extra=wire.expects(bodies.NewStep))
    def create_step(
        flow: FlowName,
        run: RunName,
        step: StepName,
        caller: Caller = Depends(guard.writer),
        raw: bytes = Depends(wire.raw_body),
    ) -> Response:
        """Create a step; 409 if it is there."""
        record = visible_run(store, caller, flow, run)
        now = time.time()
        facts = {**wire.parsed(bodies.NewStep, raw).model_dump(mode="json"), "created": now}
        if not store.add_step(flow, record.run, step, facts):
            raise Conflict(f"there is a step {flow}/{record.run}/{step} already")
        return wire.reply(records.step_json(record, step, now, facts))


def add_tasks(routes: APIRouter, service: Service) -> None:
    """Add the routes of tasks."""
    store, guard = service.store, service.guard

    @routes.get(_STEP + "/tasks", responses=answers(404), openapi_extra=filters.described(filters.TASK_FIELDS))
    def list_tasks(
        flow: FlowName, run: RunName, step: StepName, request: Request, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List the tasks of a step: all, or a page (`_limit`) with its cursor in the header `X-Next-Cursor`."""
        record = visible_run(store, caller, flow, run)
        _step(store, record, step)
        query = filters.parse(request.query_params.multi_items(), filters.TASK_FIELDS)
        return _tasks(store, record, step, query)

    @routes.get(_TASK, responses=answers(404))
    def show_task(
        flow: FlowName, run: RunName, step: StepName, task: TaskName, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """Show a task."""
        record = visible_run(store, caller, flow, run)
        found = visible_task(store, record, step, task)
        return wire.reply(records.task_json(record, found, _shown(store, record, found)))

    @routes.post(_STEP + "/task", responses=answers(404, 409), openapi_extra=wire.expects(bodies.NewTask))
    def create_task(
        flow: FlowName,
        run: RunName,
        step: StepName,
        caller: Caller = Depends(guard.writer),
        raw: bytes = Depends(wire.raw_body),
    ) -> Response:
        """Create a task: with the run's next number, or with the name that is given (409 if there is one)."""
        record = visible_run(store, caller, flow, run)
        name = wire.parsed(bodies.NewTask, raw).task_id
        if name is not None and records.is_number(name):
            raise UsageError("numbers of tasks are handed out by the service", "leave task_id out, or give a name")
        if name is not None and store.task(flow, record.run, step, name) is not None:
            raise Conflict(f"there is a task {flow}/{record.run}/{step}/{name} already")
        task = name or store.new_task(flow, record.run, step)
        new = TaskRecord(flow, record.run, step, task, "pending", started=time.time())
        if not store.register([new], f"claim {flow}/{record.run}/{step}/{task}"):
            raise Conflict(f"there is a task {flow}/{record.run}/{step}/{task} already")
        return wire.reply(records.task_json(record, new, task))

    @routes.get(_STEP + "/filtered_tasks", responses=answers(404))
    def filter_tasks(
        flow: FlowName,
        run: RunName,
        step: StepName,
        metadata_field_name: Annotated[str | None, Query(max_length=500, pattern=wire.TEXT)] = None,
        pattern: Annotated[str | None, Query(max_length=4_000, pattern=wire.TEXT)] = None,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List the paths of the tasks that have a metadata field with a value in which a regular expression is found.

        Expressions are matched in time that grows with the text only: no references back, and no looking around.
        """
        record = visible_run(store, caller, flow, run)
        _step(store, record, step)
        matches = compiled(pattern) if pattern else None
        if matches is None and not metadata_field_name:
            wanted = [task.task for task in store.tasks(flow, record.run, step)]
        else:
            fields = _fields(store, record, step=step, name=metadata_field_name or None)
            wanted = list(dict.fromkeys(f.task for f in fields if matches is None or matches(f.value)))
        shown = records.shown_ids(store, record, [(step, task) for task in wanted])
        return wire.reply([f"{flow}/{record.run}/{step}/{shown[step, task]}" for task in wanted])


def add_fields(routes: APIRouter, service: Service) -> None:
    """Add the routes of metadata."""
    store, guard = service.store, service.guard

    @routes.get(_RUN + "/metadata", responses=answers(404))
    def list_run_fields(flow: FlowName, run: RunName, caller: Caller = Depends(guard.reader)) -> Response:
        """List the metadata of all tasks of a run."""
        record = visible_run(store, caller, flow, run)
        return wire.reply(_fields_json(store, record, _fields(store, record)))

    @routes.get(_TASK + "/metadata", responses=answers(404))
    def list_task_fields(
        flow: FlowName, run: RunName, step: StepName, task: TaskName, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List the metadata of a task."""
        record = visible_run(store, caller, flow, run)
        found = visible_task(store, record, step, task)
        return wire.reply(_fields_json(store, record, _fields(store, record, task=found)))

    @routes.post(_TASK + "/metadata", responses=answers(404), openapi_extra=bodies.expects_list(bodies.MetadataField))
    def write_fields(
        flow: FlowName,
        run: RunName,
        step: StepName,
        task: TaskName,
        caller: Caller = Depends(guard.writer),
        raw: bytes = Depends(wire.raw_body),
    ) -> Response:
        """Write metadata of a task; what it tells of the states of the task and its run is written with it."""
        record = visible_run(store, caller, flow, run)
        found = visible_task(store, record, step, task)
        told = [
            Field(0, found.step, found.task, each.field_name, each.value, each.type, each.user_name, each.tags, 0.0)
            for each in bodies.parsed(bodies.FIELDS, raw)
        ]
        written = store.add_fields(flow, record.run, told) if told else []
        if any(field.name in states.TELLING for field in written):
            _register(service, record, found)
        return wire.reply(_fields_json(store, record, written))


def add_artifacts(routes: APIRouter, service: Service) -> None:
    """Add the routes of artifacts."""
    _add_lists_of_artifacts(routes, service)
    _add_single_artifacts(routes, service)


def _add_lists_of_artifacts(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get(_RUN + "/artifacts", responses=answers(404))
    def list_run_artifacts(flow: FlowName, run: RunName, caller: Caller = Depends(guard.reader)) -> Response:
        """List the artifacts of the newest attempts of a run's tasks."""
        record = visible_run(store, caller, flow, run)
        return _artifacts_reply(store, record, store.foreign_artifacts(flow, record.run))

    @routes.get(_STEP + "/artifacts", responses=answers(404))
    def list_step_artifacts(
        flow: FlowName, run: RunName, step: StepName, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List the artifacts of the newest attempts of a step's tasks."""
        record = visible_run(store, caller, flow, run)
        _step(store, record, step)
        return _artifacts_reply(store, record, store.foreign_artifacts(flow, record.run, step))

    @routes.get(_TASK + "/artifacts", responses=answers(404))
    def list_task_artifacts(
        flow: FlowName, run: RunName, step: StepName, task: TaskName, caller: Caller = Depends(guard.reader)
    ) -> Response:
        """List the artifacts of a task's newest attempt."""
        record = visible_run(store, caller, flow, run)
        return _artifacts_reply(store, record, _artifacts(store, record, step, task))

    @routes.get(_TASK + "/attempt/{attempt}/artifacts", responses=answers(404))
    def list_attempt_artifacts(
        flow: FlowName,
        run: RunName,
        step: StepName,
        task: TaskName,
        attempt: AttemptNumber,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """List the artifacts of one attempt."""
        record = visible_run(store, caller, flow, run)
        return _artifacts_reply(store, record, _artifacts(store, record, step, task, attempt))


def _add_single_artifacts(routes: APIRouter, service: Service) -> None:
    store, guard = service.store, service.guard

    @routes.get(_TASK + "/artifacts/{name}", responses=answers(404))
    def show_artifact(
        flow: FlowName,
        run: RunName,
        step: StepName,
        task: TaskName,
        name: ArtifactName,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """Show an artifact of a task's newest attempt."""
        record = visible_run(store, caller, flow, run)
        return wire.reply(_one(store, record, records.newest_attempts(_artifacts(store, record, step, task)), name))

    @routes.get(_TASK + "/artifacts/{name}/attempt/{attempt}", responses=answers(404))
    def show_attempt_artifact(
        flow: FlowName,
        run: RunName,
        step: StepName,
        task: TaskName,
        name: ArtifactName,
        attempt: AttemptNumber,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """Show an artifact of one attempt."""
        record = visible_run(store, caller, flow, run)
        return wire.reply(_one(store, record, _artifacts(store, record, step, task, attempt), name))

    @routes.post(_TASK + "/artifact", responses=answers(404), openapi_extra=bodies.expects_list(bodies.NewArtifact))
    def write_artifacts(
        flow: FlowName,
        run: RunName,
        step: StepName,
        task: TaskName,
        caller: Caller = Depends(guard.writer),
        raw: bytes = Depends(wire.raw_body),
    ) -> Response:
        """Register artifacts of a task; what is registered already stays as it is."""
        record = visible_run(store, caller, flow, run)
        found = visible_task(store, record, step, task)
        now = time.time()
        told = [_foreign(found, each, now) for each in bodies.parsed(bodies.ARTIFACTS, raw)]
        store.add_artifacts(flow, record.run, told)
        return _artifacts_reply(store, record, told, every=True)


def _register(service: Service, run: RunRecord, task: TaskRecord) -> None:
    """Write the states that follow from the fields of a task: its own, and its run's."""
    store = service.store
    fields = store.fields(run.flow, run.run, task.step, task.task)
    attempts = states.task_records(task, fields)
    if not attempts:
        return
    newest = attempts[-1]
    origin = states.run_origin(run.flow, fields)
    changed: RunRecord | None = None
    if newest.state == "succeeded" or run.state == "failed" or origin != run.origin:
        known = store.fields(run.flow, run.run, states.PARAMETERS, None, states.END_STEP)
        changed = states.run_after(run, newest, states.end_step(known), origin)
    # the attempt before the newest may have ended without a word
    store.register([*attempts[-2:], *([changed] if changed else [])])
    if newest.state == "failed" and service.settling is not None:
        service.settling.watch(run.flow, run.run)


def _step(store: ServiceStore, run: RunRecord, step: str) -> tuple[float, Any]:
    """Return when a step began, and what was said of it when it was created."""
    facts = store.step_facts(run.flow, run.run).get(step)
    if facts is not None:
        return facts["created"], facts
    tasks = store.tasks(run.flow, run.run, step, limit=1)
    if not tasks:
        raise NotFound(f"there is no step {run.flow}/{run.run}/{step}")
    return run.created if tasks[0].started is None else tasks[0].started, {}


def _shown(store: ServiceStore, run: RunRecord, task: TaskRecord) -> str:
    place = (task.step, task.task)
    return records.shown_ids(store, run, [place])[place]


def _tasks(store: ServiceStore, run: RunRecord, step: str, query: filters.Query) -> Response:
    """Return the tasks that are asked for."""

    def fetch(after: tuple[str] | None, size: int) -> list[tuple[str, dict[str, Any]]]:
        page = store.tasks(run.flow, run.run, step, limit=size, after=after[0] if after else None)
        shown = records.shown_ids(store, run, [(step, task.task) for task in page])
        return [(task.task, records.task_json(run, task, shown[step, task.task])) for task in page]

    after = cursor_place(query.cursor, str)
    if query.limit is None:
        return streamed(pages_of(fetch, after, query.keeps))
    found, cursor = filled_page(fetch, lambda item: (item[0],), after, query.limit, lambda item: query.keeps(item[1]))
    return wire.reply([told for _, told in found], headers={} if cursor is None else {NEXT_CURSOR: cursor})


def pages_of(
    fetch: Callable[[Any, int], list[tuple[str, dict[str, Any]]]], after: Any, keep: Callable[[dict[str, Any]], bool]
) -> Iterator[list[dict[str, Any]]]:
    """Give a whole list, page by page: `fetch` gives ids and records after an id."""
    while True:
        page = fetch(after, _PAGE)
        yield [told for _, told in page if keep(told)]
        if len(page) < _PAGE:
            return
        after = (page[-1][0],)


def _fields(
    store: ServiceStore,
    run: RunRecord,
    *,
    step: str | None = None,
    task: TaskRecord | None = None,
    name: str | None = None,
) -> list[Field]:
    """Return what Metaflow wrote of tasks; of flowkit's, what it would have written."""
    if task is not None:
        return store.fields(run.flow, run.run, task.step, task.task, name) or records.fields_of(run, task)
    found = store.fields(run.flow, run.run, step, None, name)
    if found or store.step_facts(run.flow, run.run):
        return found
    tasks = store.tasks(run.flow, run.run, step)
    return [each for task in tasks for each in records.fields_of(run, task) if name in (None, each.name)]


def _fields_json(store: ServiceStore, run: RunRecord, fields: Iterable[Field]) -> list[dict[str, Any]]:
    fields = list(fields)
    shown = records.shown_ids(store, run, ((field.step, field.task) for field in fields))
    return [records.field_json(run, field, shown[field.step, field.task]) for field in fields]


def _foreign(task: TaskRecord, body: bodies.NewArtifact, now: float) -> ForeignArtifact:
    words = {
        "location": body.location,
        "ds_type": body.ds_type,
        "type": body.type,
        "content_type": body.content_type,
        "user_name": body.user_name,
        "ts_epoch": records.milliseconds(now),
    }
    record = ArtifactRecord(body.name, body.sha, codec=body.content_type or None)
    return ForeignArtifact(task.step, task.task, body.attempt_id, record, words)


def _artifacts(
    store: ServiceStore, run: RunRecord, step: str, task: str, attempt: int | None = None
) -> list[ForeignArtifact]:
    found = visible_task(store, run, step, task)
    return store.foreign_artifacts(run.flow, run.run, found.step, found.task, attempt)


def _one(store: ServiceStore, run: RunRecord, artifacts: Iterable[ForeignArtifact], name: str) -> dict[str, Any]:
    for each in artifacts:
        if each.artifact.name == name:
            return _artifacts_json(store, run, [each])[0]
    raise NotFound(f"there is no artifact {name[:255]!r}")


def _artifacts_reply(
    store: ServiceStore, run: RunRecord, artifacts: Sequence[ForeignArtifact], every: bool = False
) -> Response:
    return wire.reply(_artifacts_json(store, run, artifacts if every else records.newest_attempts(artifacts)))


def _artifacts_json(store: ServiceStore, run: RunRecord, artifacts: Sequence[ForeignArtifact]) -> list[dict[str, Any]]:
    shown = records.shown_ids(store, run, ((each.step, each.task) for each in artifacts))
    when = run.created if run.finished is None else run.finished
    return [records.artifact_json(run, each, shown[each.step, each.task], when) for each in artifacts]
