"""True states from what Metaflow's clients tell."""

from __future__ import annotations

import pytest

from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata_service.metaflow_states import (
    attempt_of,
    end_step,
    run_after,
    run_after_silence,
    run_origin,
    task_after_end,
    task_records,
)
from flowkit.metadata_service.store import Field

RUN = RunRecord("Flow", "7", "ann", "running", 100.0)
TASK = TaskRecord("Flow", "7", "train", "3", "pending", started=101.0)


def field(name: str, value: object, attempt: int | None = 0, when: float = 110.0) -> Field:
    tags = () if attempt is None else (f"attempt_id:{attempt}",)
    return Field(1, "train", "3", name, str(value), name, "ann", tags, when)


def told(*fields: Field) -> list[tuple[int, str, float | None, float | None]]:
    return [(each.attempt, each.state, each.started, each.finished) for each in task_records(TASK, fields)]


def test_a_task_that_nothing_is_told_of_stays_as_it_is():
    assert told() == []
    assert told(field("runtime", "dev"), field("origin-run-id", "None")) == []


def test_an_attempt_begins_and_ends():
    begun = field("attempt", 0, when=110)
    assert told(begun) == [(0, "running", 110, None)]
    assert told(begun, field("attempt_ok", True, when=120)) == [(0, "succeeded", 110, 120)]
    assert told(begun, field("attempt_ok", False, when=120)) == [(0, "failed", 110, 120)]
    assert told(begun, field("attempt_ok", "true", when=120), field("attempt-done", 0, when=130)) == [
        (0, "succeeded", 110, 120)
    ]


def test_each_attempt_is_told_and_one_without_a_word_is_lost():
    fields = [
        *(field("attempt", 0), field("attempt_ok", False, when=120)),
        field("attempt", 1, 1, 130),
        field("attempt", 2, 2, 140),
        field("attempt_ok", True, 2, 150),
    ]
    assert told(*fields) == [(0, "failed", 110, 120), (1, "lost", 130, None), (2, "succeeded", 140, 150)]
    assert [each.reason for each in task_records(TASK, fields)][:2] == [
        "attempt 0 failed",
        "the next attempt began before it told how it went",
    ]


def test_an_end_without_a_word_of_success_is_none_but_for_the_parameters():
    assert told(field("attempt", 0), field("attempt-done", 0)) == [(0, "lost", 110, None)]
    parameters = TASK._replace(step="_parameters")
    (only,) = task_records(parameters, [field("attempt-done", 0, when=115)])
    assert (only.state, only.finished) == ("succeeded", 115)


@pytest.mark.parametrize(
    ("name", "value", "tags", "attempt"),
    [
        ("attempt", "2", (), 2),
        ("attempt", "2", ("attempt_id:1",), 1),
        ("attempt_ok", "True", ("other", "attempt_id:4"), 4),
        ("attempt_ok", "True", (), None),
        ("attempt", "-1", (), None),
        ("attempt", "99999999999999999999", (), None),
        ("attempt", "\u0663", (), None),
        ("attempt", "0", ("attempt_id:many",), None),
    ],
)
def test_an_attempt_is_named_by_a_tag_or_its_own_value(name, value, tags, attempt):
    assert attempt_of(Field(1, "s", "t", name, value, "", "", tags, 0.0)) == attempt


def test_where_a_task_came_from():
    fields = [field("origin-run-id", 4), field("origin-task-id", 12), field("attempt_ok", True)]
    (only,) = task_records(TASK, fields)
    assert only.origin == "Flow/4/train/12"
    assert run_origin("Flow", fields) == "Flow/4"
    assert run_origin("Flow", [field("origin-run-id", None)]) is None
    assert run_origin("Flow", [field("origin-run-id", "../../etc")]) is None


def test_a_run_has_succeeded_when_its_end_step_has_whatever_its_name():
    done = TASK._replace(state="succeeded", finished=150.0)
    assert run_after(RUN, done, "end") is None
    after = run_after(RUN, done, "train")
    assert (after.state, after.finished) == ("succeeded", 150.0)
    assert end_step([]) == "end"
    assert end_step([field("end_step", "train", None)]) == "train"
    assert run_after(RUN, done._replace(state="failed"), "train") is None


def test_a_run_that_looked_lost_has_succeeded_when_its_end_step_has():
    done = TASK._replace(step="end", state="succeeded", finished=150.0)
    after = run_after(RUN._replace(state="lost", reason="silent"), done, "end")
    assert (after.state, after.reason) == ("succeeded", None)


def test_silence_after_a_failed_attempt_is_failure_and_without_one_it_is_not():
    failed = TASK._replace(state="failed", attempt=1, finished=140.0)
    lost = RUN._replace(state="lost", reason="silent")
    after = run_after_silence(lost, [failed._replace(task="2", finished=120.0), failed])
    assert (after.state, after.finished) == ("failed", 140.0)
    assert after.reason == "the step train failed (task 3, attempt 1)"
    assert run_after_silence(lost, []) is None
    assert run_after_silence(RUN, [failed]) is None


def test_a_failed_run_goes_on_with_a_new_attempt_and_a_finished_one_does_not():
    again = TASK._replace(state="running", attempt=1)
    failed = RUN._replace(state="failed", finished=140.0, reason="…")
    after = run_after(failed, again, "end")
    assert (after.state, after.finished, after.reason) == ("running", None, None)
    assert run_after(failed, again._replace(state="failed"), "end") is None
    assert run_after(RUN._replace(state="succeeded"), again, "end") is None


def test_a_resumed_run_names_its_origin_and_is_alive_then():
    after = run_after(RUN._replace(state="lost"), TASK._replace(state="running"), "end", "Flow/4")
    assert (after.state, after.origin) == ("running", "Flow/4")


@pytest.mark.parametrize(
    ("state", "after"), [("pending", "cancelled"), ("running", "lost"), ("succeeded", None), ("failed", None)]
)
def test_tasks_that_their_run_left_behind(state, after):
    left = task_after_end(TASK._replace(state=state))
    assert (left and left.state) == after
