"""Who is alive: real processes, and what is left where they cannot be seen."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from flowkit.metadata.liveness import (
    HEARTBEAT_INTERVAL,
    HEARTBEAT_LIMIT,
    boot_id,
    is_alive,
    observed_run,
    observed_task,
    process_start,
    this_process,
    why_lost,
)
from flowkit.metadata.records import FINAL, RunRecord, TaskRecord

NOW = 1_000_000.0
LONG_AGO = NOW - 100 * HEARTBEAT_LIMIT


def run(state: Any = "running", heartbeat: float | None = LONG_AGO, **values: Any) -> RunRecord:
    return RunRecord("F", "1", "ada", state, LONG_AGO, heartbeat=heartbeat, **values)


def owned_by(pid: int) -> dict[str, Any]:
    return {**this_process()._asdict(), "pid": pid, "process_start": process_start(pid)}


def test_a_process_knows_itself() -> None:
    owner = this_process()
    assert owner.pid == os.getpid()
    assert is_alive(run(**owner._asdict()), NOW)
    if os.path.isdir("/proc"):
        assert owner.boot_id == boot_id()
        assert isinstance(owner.process_start, int)


def test_a_process_that_ended_is_gone_even_before_anybody_collects_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = run(heartbeat=NOW, **owned_by(process.pid))
    assert is_alive(record, NOW)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    if os.path.isdir("/proc"):
        assert not is_alive(record, NOW)
    process.communicate()
    assert not is_alive(record, NOW)
    shown = observed_run(record, NOW)
    assert shown.state == "lost"
    assert str(process.pid) in str(shown.reason)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="a process's start is read from /proc")
def test_a_pid_that_was_given_out_again_is_not_taken_for_the_owner() -> None:
    owner = this_process()
    assert owner.process_start is not None
    assert not is_alive(run(heartbeat=NOW, **owner._replace(process_start=owner.process_start - 1)._asdict()), NOW)


@pytest.mark.parametrize("field", ["host", "boot_id"])
def test_elsewhere_only_the_heartbeat_counts(field: str) -> None:
    owner = {**this_process()._asdict(), field: "another"}
    assert is_alive(run(heartbeat=NOW - HEARTBEAT_LIMIT, **owner), NOW)
    assert not is_alive(run(heartbeat=NOW - HEARTBEAT_LIMIT - 1, **owner), NOW)


@pytest.mark.parametrize("pid", [None, 0, -1, 2**40, "7"])
def test_a_pid_that_is_none_tells_nothing(pid: Any) -> None:
    assert is_alive(run(heartbeat=NOW, **{**this_process()._asdict(), "pid": pid}), NOW)
    assert not is_alive(run(**{**this_process()._asdict(), "pid": pid}), NOW)


def test_without_a_start_time_a_living_process_needs_a_heartbeat() -> None:
    owner = {**this_process()._asdict(), "process_start": None}
    assert is_alive(run(heartbeat=NOW, **owner), NOW)
    assert not is_alive(run(**owner), NOW)


def test_without_a_heartbeat_the_beginning_counts() -> None:
    record = RunRecord("F", "1", "ada", "running", NOW - 1)
    assert is_alive(record, NOW)
    assert not is_alive(record, NOW + HEARTBEAT_LIMIT)


def test_a_clock_that_was_set_back_harms_nobody() -> None:
    assert is_alive(run(heartbeat=NOW + 3600), NOW)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_an_end_is_an_end(state: str) -> None:
    record = run(state=state)
    assert not is_alive(record, NOW)
    assert why_lost(record, NOW) is None
    assert observed_run(record, NOW) is record


def test_a_lost_run_keeps_its_reason() -> None:
    assert observed_run(run(state="lost", reason="given up"), NOW).reason == "given up"
    assert observed_run(run(state="lost"), NOW).reason


def test_the_tasks_of_a_lost_run() -> None:
    task = TaskRecord("F", "1", "a", "0", "running")
    assert observed_task(task, None) is task
    assert observed_task(task, "gone") == task._replace(state="lost", reason="gone")
    for state in ("pending", *FINAL):
        assert observed_task(task._replace(state=state), "gone").state == state  # type: ignore[arg-type]


def test_a_limit_leaves_room_for_two_late_heartbeats() -> None:
    assert HEARTBEAT_LIMIT >= 3 * HEARTBEAT_INTERVAL


def test_processes_that_are_not_there() -> None:
    assert process_start(2**22 + 1) is None
