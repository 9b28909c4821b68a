"""Steps in the terminal's foreground: breakpoint(), the debugger after a failure, Ctrl-C for the task."""

from __future__ import annotations

import os
import re
import sys

import pytest
from pseudo_terminal import PseudoTerminal

FLOW = """
import json
from flowkit import FlowSpec, retry, step, timeout

class DebugFlow(FlowSpec):
    @step
    def start(self):
        self.parts = [1, 2]
        self.next(self.work, foreach="parts")

    @retry(times=3)
    @timeout(seconds=1)
    @step
    def work(self):
        secret = 40 + self.input
        {body}
        self.found = secret
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.found for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("the total is", self.total)

if __name__ == "__main__":
    DebugFlow()
"""


@pytest.fixture
def debug(workspace):
    opened = []

    def begin(body, *arguments):
        workspace.write("flow.py", FLOW.replace("{body}", body))
        command = [sys.executable, "flow.py", "run", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        terminal = PseudoTerminal(command, workspace.path, {**environment, "TERM": "xterm"}, 150, 50)
        opened.append(terminal)
        return terminal

    yield begin
    for terminal in opened:
        terminal.close()


def asks(terminal, text=""):
    """Wait for the debugger's prompt below a text."""
    terminal.until(lambda lines: [line for line in lines if line][-1:] == ["(Pdb)"] and text in "\n".join(lines))


def test_breakpoint_stops_each_task_in_turn_at_the_users_line(debug):
    terminal = debug("breakpoint()", "--debug")
    asks(terminal, "work()")
    terminal.type(b"p secret * 1000\n")
    asks(terminal, "41000")
    terminal.type(b"secret = 100\n")
    asks(terminal)
    terminal.type(b"c\n")
    asks(terminal, "[work/1 (pid")
    terminal.type(b"p secret * 1000\n")
    asks(terminal, "42000")
    terminal.type(b"c\n")
    assert terminal.wait() == 0
    assert "the total is 142" in terminal.text


def test_one_step_is_debugged_and_the_others_run_as_ever(debug):
    terminal = debug("breakpoint() if self.input == 2 else None", "--debug", "work")
    asks(terminal, "work()")
    terminal.type(b"c\n")
    assert terminal.wait() == 0
    assert "the total is 83" in terminal.text


def test_a_failure_opens_the_debugger_at_the_users_frame(debug):
    terminal = debug("self.found = json.loads('x' * secret)", "--pdb")
    asks(terminal, "JSONDecodeError")
    terminal.type(b"p secret * 1000\n")
    asks(terminal, "41000")
    terminal.type(b"down\n")
    asks(terminal, "json/__init__.py")
    terminal.type(b"q\n")
    assert terminal.wait() == 1
    assert "/flowkit/" not in terminal.text, "no lines of ours"
    assert "resume --origin-run-id 1" in terminal.text
    assert terminal.text.count("JSONDecodeError: ") <= 4, "it is not tried again"


def test_ctrl_c_is_for_the_task_in_the_foreground(debug):
    terminal = debug("print('asleep', flush=True) or __import__('time').sleep(600)", "--debug")
    terminal.until(lambda lines: "asleep" in "\n".join(lines))
    terminal.type(b"\x03")
    assert terminal.wait() == 1
    assert "KeyboardInterrupt" in terminal.text
    assert re.search(r"resume --origin-run-id 1 --debug\s*$", terminal.text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--debug", "wrok"], "did you mean 'work'?"),
        (["--debug"], "--debug needs a terminal"),
        (["--pdb"], "--debug needs a terminal"),
    ],
)
def test_what_cannot_be_debugged_is_told(workspace, arguments, told):
    workspace.write("flow.py", FLOW.replace("{body}", "pass"))
    assert told in workspace.run("run", *arguments, check=2).stderr
