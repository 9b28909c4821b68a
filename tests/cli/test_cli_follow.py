"""A second terminal: following the logs of a run, and cancelling it."""

from __future__ import annotations

import json
import time

import pytest

FLOW = """
import os, sys, time
from flowkit import FlowSpec, Parameter, retry, step


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)


class WaitFlow(FlowSpec):
    @step
    def start(self):
        print("first")
        wait_for("one")
        print("second", flush=True)
        self.items = [0, 1]
        self.next(self.body, foreach="items")

    @retry(times=1)
    @step
    def body(self):
        print("body", self.input)
        if self.input and not os.path.exists("tried"):
            open("tried", "w").close()
            raise ValueError("once")
        wait_for("two")
        sys.stdout.write("no newline")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        print("last")


if __name__ == "__main__":
    WaitFlow()
"""


@pytest.fixture
def running(workspace):
    workspace.write("flow.py", FLOW)
    workspace.process = workspace.start("run", "--run-id-file", "id")
    _until(lambda: "first\n" in workspace.run("logs", "1").stdout)
    return workspace


def _until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _ended(process):
    # Not communicate(), which does not know what readline() has read ahead.
    out, err = process.stdout.read(), process.stderr.read()
    return process.wait(60), out, err


def test_follow_shows_lines_as_they_are_written_and_ends_with_the_run(running):
    follower = running.start("logs", "1", "-f")
    late = running.start("logs", "1/join", "--follow")
    assert follower.stdout.readline() == "[start/0] first\n"
    assert json.loads(running.run("status", "1", "--json").stdout)["state"] == "running"
    (running.path / "one").touch()
    assert follower.stdout.readline() == "[start/0] second\n"
    (running.path / "two").touch()
    assert _ended(running.process)[0] == 0
    code, out, err = _ended(follower)
    assert code == 0
    assert "Run 1 has succeeded." in err
    lines = out.splitlines()
    assert lines.count("[body/0] no newline") == lines.count("[body/1] no newline") == 1
    assert lines.count("[body/0] body 0") == 1
    assert lines.count("[body/1] body 1") == 2, "both attempts"
    assert lines.count("[body/1] ValueError: once") == 1
    assert lines[-1] == "[end/0] last"
    assert _ended(late)[:2] == (0, "")


def test_follow_begins_with_the_tail(running):
    follower = running.start("logs", "1/start/0", "-f", "--tail", "1")
    assert follower.stdout.readline() == "first\n"
    (running.path / "one").touch()
    assert follower.stdout.readline() == "second\n"
    running.run("cancel", "1", check=True)
    assert _ended(follower)[:2] == (0, "")


def test_cancel_stops_a_run(running):
    assert "no run WaitFlow/7" in running.run("cancel", "7", check=4).stderr
    assert "is still alive" in running.run("resume", check=6).stderr
    cancelled = running.run("cancel", "WaitFlow/1", check=True)
    assert "resume --origin-run-id 1" in cancelled.stderr
    code, out, err = _ended(running.process)
    assert code == 130
    assert "cancelled by tester" in out + err
    assert "cancelled by tester" in running.run("status").stdout
    assert "is over already" in running.run("cancel", "1", check=6).stderr
    for name in ("one", "two"):
        (running.path / name).touch()
    running.run("resume", check=True)
    assert json.loads(running.run("status", "2", "--json").stdout)["state"] == "succeeded"


def test_cancel_need_not_wait(running):
    assert "has been asked to stop" in running.run("cancel", "1", "--wait", "0", check=True).stderr
    assert _ended(running.process)[0] == 130
