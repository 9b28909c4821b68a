"""What Metaflow's clients tell of a run, as true states: the one place where they are derived.

A Metaflow client writes fields about its tasks and never says how a run ended. An attempt begins with the field
``attempt`` and ends with ``attempt_ok``. A run has succeeded when its end step has, whatever the name of that step
(the field ``end_step``, of type ``graph_structure``, of a task of ``_parameters``). It has failed when an attempt
failed and nothing came after it: as long as heartbeats arrive a retry may follow, so that is only known when they
stop. Without a failed attempt, a run that has fallen silent is lost, as `flowkit.metadata.liveness` tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flowkit.metadata.records import FINAL, RunRecord, State, TaskRecord
from flowkit.metadata_service.store import Field

PARAMETERS = "_parameters"
"""The step whose one task holds a run's parameters, and what is known of its graph."""
END_STEP = "end_step"
DEFAULT_END_STEP = "end"
MAX_ATTEMPT = 1000
"""Metaflow stops at 6 attempts; what is far above is no attempt."""

ATTEMPT = "attempt"
ATTEMPT_OK = "attempt_ok"
ATTEMPT_DONE = "attempt-done"
ORIGIN_RUN = "origin-run-id"
ORIGIN_TASK = "origin-task-id"
TELLING = frozenset({ATTEMPT, ATTEMPT_OK, ATTEMPT_DONE, ORIGIN_RUN, ORIGIN_TASK})
"""Fields that change a task's record."""

_TAG = "attempt_id:"
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+@:]{0,254}")


class _Told(NamedTuple):
    """What was told of one attempt."""

    started: float | None = None
    ended: float | None = None
    worked: bool | None = None


def attempt_of(field: Field) -> int | None:
    """Return the attempt that a field is about; None where it does not tell."""
    for tag in field.tags:
        if tag.startswith(_TAG):
            return _number(tag[len(_TAG) :])
    return _number(field.value) if field.name in (ATTEMPT, ATTEMPT_DONE) else None


def task_records(task: TaskRecord, fields: Iterable[Field]) -> list[TaskRecord]:
    """Return the attempts of a task as its fields tell them, the first one first.

    Parameters
    ----------
    task : TaskRecord
        The task as it is stored.
    fields : iterable of Field
        All fields of the task, oldest first.

    Returns
    -------
    list of TaskRecord
        Empty where the fields tell nothing of any attempt. An attempt without an end that a later one followed is
        lost.
    """
    told: dict[int, _Told] = {}
    run = step_task = None
    for field in fields:
        if field.name == ORIGIN_RUN:
            run = field.value if _is_id(field.value) else None
        elif field.name == ORIGIN_TASK:
            step_task = field.value if _is_id(field.value) else None
        elif field.name in (ATTEMPT, ATTEMPT_OK, ATTEMPT_DONE):
            attempt = attempt_of(field)
            if attempt is not None:
                told[attempt] = _heard(told.get(attempt, _Told()), field)
    origin = f"{task.flow}/{run}/{task.step}/{step_task}" if run and step_task else task.origin
    newest = max(told, default=0)
    records = []
    for attempt in sorted(told):
        state, reason = _state(told[attempt], attempt == newest, attempt)
        if task.step == PARAMETERS and told[attempt].ended is not None:
            state, reason = "succeeded", None  # it is over as soon as it is written, and never says that it went well
        started, ended, _ = told[attempt]
        started = started if started is not None else ended if task.started is None else task.started
        finished = ended if state in FINAL else None
        records.append(
            task._replace(
                state=state, attempt=attempt, started=started, finished=finished, reason=reason, origin=origin, pid=None
            )
        )
    return records


def end_step(fields: Iterable[Field]) -> str:
    """Return the name of a run's last step, by the fields of its parameters."""
    names = [field.value for field in fields if field.name == END_STEP and field.value]
    return names[-1] if names else DEFAULT_END_STEP


def run_after(run: RunRecord, task: TaskRecord, last_step: str, origin: str | None = None) -> RunRecord | None:
    """Return what a task's new record makes of its run; None where that stays as it is.

    Parameters
    ----------
    run : RunRecord
        The run as it was read: it may look lost.
    task : TaskRecord
        The newest attempt of one of its tasks.
    last_step : str
        The name of its end step.
    origin : str, optional
        ``Flow/run`` that the task says its run resumed from.
    """
    origin = run.origin or origin
    if run.state == "succeeded":
        return None
    if task.step == last_step and task.state == "succeeded":
        return run._replace(state="succeeded", reason=None, finished=task.finished, heartbeat=None, origin=origin)
    if run.state == "failed" and task.state in ("running", "succeeded"):
        # it had been silent for long, and has gone on with a retry or another task
        return run._replace(state="running", reason=None, finished=None, heartbeat=None, origin=origin)
    if origin != run.origin and run.state not in FINAL:
        return run._replace(state="running", reason=None, finished=None, heartbeat=None, origin=origin)
    return None


def run_origin(flow: str, fields: Iterable[Field]) -> str | None:
    """Return the run that a task's run resumed from, by the task's fields."""
    names = [field.value for field in fields if field.name == ORIGIN_RUN and _is_id(field.value)]
    return f"{flow}/{names[-1]}" if names else None


def run_after_silence(run: RunRecord, failed: Sequence[TaskRecord]) -> RunRecord | None:
    """Return what a run that is not heard of any more has come to: failed, if one of its tasks had.

    Parameters
    ----------
    run : RunRecord
        The run as it was read: only if it looks lost is anything to be said.
    failed : sequence of TaskRecord
        Tasks whose newest attempt failed.
    """
    if run.state != "lost" or not failed:
        return None
    task = max(failed, key=lambda task: task.finished or 0.0)
    reason = f"the step {task.step} failed (task {task.task}, attempt {task.attempt})"
    return run._replace(state="failed", reason=reason, finished=task.finished, heartbeat=None)


def task_after_end(task: TaskRecord) -> TaskRecord | None:
    """Return what becomes of a task whose run has ended without it; None where it has ended too."""
    if task.state in FINAL:
        return None
    if task.state == "pending":
        return task._replace(state="cancelled", reason="its run ended before it began")
    return task._replace(state="lost", reason="its run ended before it told how it went")


def _heard(before: _Told, field: Field) -> _Told:
    if field.name == ATTEMPT:
        return before if before.started is not None else before._replace(started=field.created)
    if field.name == ATTEMPT_OK:
        return before._replace(ended=field.created, worked=field.value.strip().lower() == "true")
    return before if before.ended is not None else before._replace(ended=field.created)


def _state(told: _Told, newest: bool, attempt: int) -> tuple[State, str | None]:
    if told.worked:
        return "succeeded", None
    if told.worked is False:
        return "failed", f"attempt {attempt} failed"
    if told.ended is not None:
        return "lost", "it ended without telling how it went"
    if not newest:
        return "lost", "the next attempt began before it told how it went"
    return "running", None


def _is_id(text: str) -> bool:
    """Whether a field names something: clients write Python's None where there is no origin."""
    return _ID.fullmatch(text) is not None and text != "None"


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        return None
    number = int(text)
    return number if number <= MAX_ATTEMPT else None
