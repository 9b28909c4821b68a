"""Records as the JSON that Metaflow's clients read, and the ids by which they name runs and tasks.

A run's number and a named run's name are its id. A task that Metaflow made has the number that it was given, or the
name that its scheduler chose. flowkit's own ids of tasks (``3.1``) mean something within a step only, so its tasks
go by numbers that the store hands out, one count over each run. Steps, tasks and artifacts show their run's tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowkit.metadata.records import FINAL, RunRecord, TaskRecord
from flowkit.metadata_service import metaflow_states as states
from flowkit.metadata_service.store import Field, ForeignArtifact, ServiceStore
from flowkit.model.coordinates import valid_task_id

Json = dict[str, Any]
ARTIFACT_TYPE = "metaflow.artifact"
_WORDS = ("location", "ds_type", "type", "content_type", "user_name", "ts_epoch")
"""What a client says of an artifact and reads again."""


def milliseconds(seconds: float) -> int:
    """Return a time as Metaflow writes it."""
    return int(seconds * 1000)


def run_named(store: ServiceStore, flow: str, name: str) -> RunRecord | None:
    """Return a run by its id, or a named one by the number that it goes by."""
    found = store.run(flow, name)
    if found is not None or not is_number(name):
        return found
    named = store.run_name(flow, int(name))
    return None if named is None else store.run(flow, named)


def task_named(store: ServiceStore, run: RunRecord, step: str, name: str) -> TaskRecord | None:
    """Return a task by the id that clients know."""
    if is_number(name):
        known = store.task_name(run.flow, run.run, int(name))
        if known is not None:
            return store.task(run.flow, run.run, *known) if known[0] == step else None
    return store.task(run.flow, run.run, step, name)


def shown_ids(store: ServiceStore, run: RunRecord, tasks: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the ids by which clients know tasks, given as step and task."""
    shown = {place: place[1] for place in tasks}
    counted = [place for place in shown if valid_task_id(place[1])]
    if counted:
        numbers = store.task_numbers(run.flow, run.run, counted)
        shown.update({place: str(number) for place, number in zip(counted, numbers, strict=True)})
    return shown


def is_number(name: str) -> bool:
    """Whether an id is one that the service hands out."""
    return name.isascii() and name.isdigit() and len(name) <= 17 and (name == "0" or name[0] != "0")


def flow_json(flow: str, created: float, facts: Mapping[str, Any]) -> Json:
    """Return a flow."""
    return {
        "flow_id": flow,
        "user_name": facts.get("user_name", ""),
        "ts_epoch": milliseconds(facts.get("created", created)),
        "tags": list(facts.get("tags", ())),
        "system_tags": list(facts.get("system_tags", ())),
    }


def run_json(run: RunRecord) -> Json:
    """Return a run, with how it stands besides what Metaflow's own service tells."""
    return {
        **_run_part(run),
        "user_name": run.user,
        "ts_epoch": milliseconds(run.created),
        "last_heartbeat_ts": None if run.heartbeat is None else int(run.heartbeat),
        "status": run.state,
        "finished_at": None if run.finished is None else milliseconds(run.finished),
        **_tags(run),
    }


def step_json(run: RunRecord, step: str, created: float, facts: Mapping[str, Any]) -> Json:
    """Return a step."""
    return {
        **_run_part(run),
        "step_name": step,
        "user_name": facts.get("user_name", run.user),
        "ts_epoch": milliseconds(created),
        **_tags(run),
    }


def task_json(run: RunRecord, task: TaskRecord, shown: str) -> Json:
    """Return a task."""
    began = run.created if task.started is None else task.started
    return {
        **_run_part(run),
        "step_name": task.step,
        "task_id": shown,
        "task_name": None if is_number(shown) else shown,
        "user_name": run.user,
        "ts_epoch": milliseconds(began),
        "last_heartbeat_ts": None if run.heartbeat is None else int(run.heartbeat),
        "status": task.state,
        "attempt_id": task.attempt,
        **_tags(run),
    }


def field_json(run: RunRecord, field: Field, shown: str) -> Json:
    """Return a metadata field."""
    return {
        **_run_part(run),
        "id": field.id,
        "step_name": field.step,
        "task_id": shown,
        "task_name": None if is_number(shown) else shown,
        "field_name": field.name,
        "value": field.value,
        "type": field.type,
        "user_name": field.user,
        "ts_epoch": milliseconds(field.created),
        "tags": list(field.tags),
        "system_tags": [],
    }


def artifact_json(run: RunRecord, found: ForeignArtifact, shown: str, when: float) -> Json:
    """Return an artifact; `when` is its time where the client that registered it told none."""
    words = {name: found.words[name] for name in _WORDS if name in found.words}
    return {
        **_run_part(run),
        "step_name": found.step,
        "task_id": shown,
        "task_name": None if is_number(shown) else shown,
        "name": found.artifact.name,
        "sha": found.artifact.key,
        "attempt_id": found.attempt,
        "location": "",
        "ds_type": "flowkit",
        "type": ARTIFACT_TYPE,
        "content_type": found.artifact.codec or "",
        "user_name": run.user,
        "ts_epoch": milliseconds(when),
        **words,
        **_tags(run),
    }


def fields_of(run: RunRecord, task: TaskRecord) -> list[Field]:
    """Return what Metaflow would have written of a task of flowkit's: where it came from, and how it went."""
    if task.state == "pending":
        return []
    tags = (f"attempt_id:{task.attempt}",)
    began = run.created if task.started is None else task.started
    ended = began if task.finished is None else task.finished
    told: list[tuple[str, str, str, float]] = [("attempt", str(task.attempt), "attempt", began)]
    if task.origin is not None and task.origin.count("/") == 3:
        _, origin_run, _, origin_task = task.origin.split("/")
        told.append((states.ORIGIN_RUN, origin_run, states.ORIGIN_RUN, began))
        told.append((states.ORIGIN_TASK, origin_task, states.ORIGIN_TASK, began))
    if task.state in FINAL:
        told.append((states.ATTEMPT_OK, str(task.state == "succeeded"), "internal_attempt_status", ended))
        told.append((states.ATTEMPT_DONE, str(task.attempt), states.ATTEMPT_DONE, ended))
    return [
        Field(number, task.step, task.task, name, value, kind, run.user, tags, when)
        for number, (name, value, kind, when) in enumerate(told)
    ]


def newest_attempts(artifacts: Sequence[ForeignArtifact]) -> list[ForeignArtifact]:
    """Return the artifacts of each task's newest attempt that has any."""
    newest: dict[tuple[str, str], int] = {}
    for each in artifacts:
        place = (each.step, each.task)
        newest[place] = max(each.attempt, newest.get(place, 0))
    return [each for each in artifacts if each.attempt == newest[each.step, each.task]]


def _run_part(run: RunRecord) -> Json:
    named = not is_number(run.run)
    return {"flow_id": run.flow, "run_number": run.run if named else int(run.run), "run_id": run.run if named else None}


def _tags(run: RunRecord) -> Json:
    return {"tags": list(run.tags), "system_tags": list(run.system_tags)}
