"""Schedulers are killed at random, while events come and a schedule is due: nothing is lost, nothing is doubled.

For longer than the others: ``make test-deploying``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowkit.datastore.event_log import EventLog
from flowkit.datastore.local import LocalStorage
from flowkit.deployer.local.cron import CronTimes
from flowkit.deployer.local.firings import scheduled_run
from flowkit.deployer.local.memories import edit_memory

pytestmark = pytest.mark.deploying

EVENTS = 25
MISSED = 12
FLOW = """
    from flowkit import FlowSpec, Parameter, current, schedule, step, trigger


    @schedule(cron="*/10 * * * *")
    @trigger(event={"name": "go", "parameters": ["number"]})
    class Often(FlowSpec):
        number = Parameter("number", default=-1)

        @step
        def start(self):
            with open("started.txt", "a") as out:
                out.write(f"{current.run_id} {self.number}\\n")
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Often()
"""


def test_killed_again_and_again_schedulers_lose_nothing_and_double_nothing(workspace: Any) -> None:
    workspace.write("timed.py", FLOW.replace('    @trigger(event={"name": "go", "parameters": ["number"]})\n', ""))
    workspace.write("flow.py", FLOW.replace('    @schedule(cron="*/10 * * * *")\n', ""))
    workspace.run("local", "create", "--name", "timed", "--catch-up", "all", flow="timed.py", check=True)
    workspace.run("local", "create", "--name", "asked", check=True)
    storage = LocalStorage(str(workspace.path / ".flowkit"))
    past = time.time() - MISSED * 600
    edit_memory(storage, "timed", lambda found: replace(found, looked=past))
    log, dice = EventLog(storage), random.Random(7)
    schedulers = [_start(workspace) for _ in range(2)]
    try:
        for number in range(EVENTS):
            log.emit("go", {"number": number}, id=f"event-{number}")
            if dice.random() < 0.5:
                time.sleep(dice.uniform(0, 0.6))
                victim = dice.randrange(2)
                schedulers[victim].send_signal(signal.SIGKILL)
                schedulers[victim].wait()
                schedulers[victim] = _start(workspace)
    finally:
        for each in schedulers:
            each.kill()
            each.wait()
    workspace.flowkit("scheduler", "--until-idle", "--poll", "0.2", timeout=240, check=True)
    now = time.time()
    lines = (workspace.path / "started.txt").read_text().split("\n")[:-1]
    runs = [line.split() for line in lines]
    assert sorted(int(number) for _, number in runs if number != "-1") == list(range(EVENTS))
    scheduled = [run for run, number in runs if number == "-1"]
    assert len(scheduled) == len(set(scheduled))
    due = {scheduled_run("timed", when) for when in CronTimes("*/10 * * * *").between(past, now)}
    assert due - set(scheduled) <= {max(due)}  # one may have become due this moment
    assert set(scheduled) <= due


def _start(workspace: Any, name: str | None = None) -> subprocess.Popen[bytes]:
    words = Path(workspace.path / f"{name or os.urandom(3).hex()}.log")
    with open(words, "wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "flowkit", "scheduler", "--poll", "0.05", "--max-runs", "4"],
            cwd=workspace.path,
            env=workspace.env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def test_a_scheduler_that_was_stopped_for_long_comes_back_as_the_second_one(workspace: Any) -> None:
    workspace.write("flow.py", FLOW.replace('    @schedule(cron="*/10 * * * *")\n', ""))
    workspace.run("local", "create", check=True)
    log = EventLog(LocalStorage(str(workspace.path / ".flowkit")))
    first = _start(workspace, "first")
    try:
        _wait_for(workspace, "first", "is at work")
        second = _start(workspace, "second")
        try:
            _wait_for(workspace, "second", "this one waits")
            first.send_signal(signal.SIGSTOP)
            log.emit("go", {"number": 1})
            _wait_for(workspace, "second", "succeeded")
            first.send_signal(signal.SIGCONT)
            _wait_for(workspace, "first", "another scheduler is at work, this one waits")
            log.emit("go", {"number": 2})
            second.terminate()
            assert second.wait(60) == 0
            # Whichever of the two has started the second run: the one that is left sees its end.
            _wait_for_runs(workspace, 2)
        finally:
            second.kill()
            second.wait()
    finally:
        first.kill()
        first.wait()
    numbers = [line.split()[1] for line in (workspace.path / "started.txt").read_text().split("\n")[:-1]]
    assert sorted(numbers) == ["1", "2"]


def _wait_for(workspace: Any, name: str, words: str, times: int = 1) -> None:
    deadline = time.monotonic() + 120
    while (said := (workspace.path / f"{name}.log").read_text()).count(words) < times:
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def _wait_for_runs(workspace: Any, count: int) -> None:
    deadline = time.monotonic() + 120
    while len((workspace.path / "started.txt").read_text().split("\n")) - 1 < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
