"""What is seen on a terminal: runs while they go on, summaries, past runs, pagers; and what is not seen elsewhere."""

from __future__ import annotations

import json
import re
import sys
import time

import pytest
from pseudo_terminal import PseudoTerminal

FLOW = r'''
import os, sys, time
from flowkit import FlowSpec, Parameter, current, retry, step


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)


class ScreenFlow(FlowSpec):
    """Waits for files."""

    bad = Parameter("bad", default=-1)

    @step
    def start(self):
        self.items = list(range(30))
        print("plain [bold]text[/bold] \x1b[2J\x1b[31mred\x1b]0;title\x07 end")
        sys.stdout.write("\r 10%\r 90%\n")
        print("to stderr", file=sys.stderr)
        self.next(self.work, foreach="items")

    @step
    def work(self):
        if self.input >= 10:
            wait_for("go")
        if self.input == self.bad:
            raise ValueError("it\x1b[5m broke")
        self.twice = 2 * self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(task.twice for task in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("the last line")


if __name__ == "__main__":
    ScreenFlow()
'''


@pytest.fixture
def terminal(workspace):
    """Start ``python flow.py ARGS`` in a pseudo-terminal."""
    started = []
    workspace.write("flow.py", FLOW)

    def start(*args, columns=100, rows=24, nohup=False, **env):
        variables = {**workspace.env, "TERM": "xterm-256color", **env}
        for name in ("NO_COLOR", "CI", "PAGER", "LESS"):
            if name not in env:
                variables.pop(name, None)
        command = [sys.executable, "flow.py", *args]
        made = PseudoTerminal(command, workspace.path, variables, columns, rows, nohup)
        started.append(made)
        return made

    start.folder = workspace.path
    yield start
    for made in started:
        made.close()


def _halfway(lines):
    return any("10/30" in line and "4 running" in line for line in lines)


def _frame(lines):
    """The lines of the display: from its head to the end of the screen."""
    heads = [number for number, line in enumerate(lines) if re.match(r"[●*] ScreenFlow/\d+", line)]
    assert len(heads) == 1, lines
    return [line for line in lines[heads[0] :] if line]


def test_a_run_is_shown_while_it_goes_on_and_summed_up(terminal):
    run = terminal("run", "--max-workers", "4")
    lines = run.until(_halfway)
    frame = _frame(lines)
    assert re.match(r"● ScreenFlow/1 running  \S+ s · 11 tasks done", frame[0])
    assert [line.split()[1] for line in frame[1:5]] == ["start", "work", "join", "end"]
    assert re.search(r"● work +━━━+─+  10/30 · 4 running .*16 pending", frame[2])
    above = "\n".join(lines[: lines.index(frame[0])])
    assert "│ plain [bold]text[/bold] red end" in above, "no sequence of a task's, and no markup"
    assert "│  90%" in above
    assert "10%" not in above
    assert "to stderr" in above
    (terminal.folder / "go").touch()
    assert run.wait() == 0
    text = run.text
    assert "● " not in text, "the display is gone"
    for line in ("the last line", "✓ ScreenFlow/1 succeeded in", "written: 32 artifacts", "dump 1/end"):
        assert line in text
    assert re.search(r"✓ work +30 ", text)
    assert text.count("plain [bold]text") == 1
    assert run.colours


def test_a_window_may_change_its_size(terminal):
    run = terminal("run", "--max-workers", "4")
    run.until(_halfway)
    run.resize(40, 10)
    frame = _frame(run.until(lambda lines: any(re.search(r"work .*10/30", line) for line in lines) and _one(lines)))
    assert all(len(line) < 40 for line in frame)
    assert len(frame) == 5
    run.resize(120, 30)
    frame = _frame(run.until(lambda lines: any("16 pending" in line for line in lines) and _one(lines)))
    assert "━" in frame[2]
    run.resize(20, 3)
    time.sleep(0.3)  # no room for a display: it goes on without
    run.resize(100, 24)
    _frame(run.until(lambda lines: any("16 pending" in line for line in lines) and _one(lines)))
    (terminal.folder / "go").touch()
    assert run.wait() == 0
    assert "succeeded in" in run.text


def _one(lines):
    return sum(line.startswith("● ScreenFlow/1") for line in lines) == 1


def test_a_failure_is_told_above_and_at_the_end(terminal):
    (terminal.folder / "go").touch()
    run = terminal("run", "--bad", "7", rows=60, columns=60)
    assert run.wait() == 1
    text = run.text
    assert re.search(r"work/7 .*✗ failed: ValueError: it broke", text)
    assert "✗ ScreenFlow/1 failed in" in text
    assert "ScreenFlow/1/work/7 failed" in text
    assert "resume --origin-run-id 1" in text
    assert b"\x1b[5m" not in run.raw
    again = terminal("resume", "--bad", "-1")
    assert again.wait() == 0
    assert re.search(r"ScreenFlow/2 started, resumed from ScreenFlow/1", again.text)
    assert re.search(r"cloned: \d+ of \d+ tasks", again.text)
    assert re.search(r"work +30, \d+ cloned", again.text)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}, {"TERM": ""}])
def test_simple_terminals_and_build_servers_get_plain_lines(terminal, env):
    (terminal.folder / "go").touch()
    run = terminal("run", **env)
    assert run.wait() == 0
    assert b"\x1b" not in run.raw
    lines = run.raw.decode().split("\r\n")
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", line) for line in lines[1:] if line)
    assert any(line.endswith("[work/29] Task finished successfully.") for line in lines)
    assert "Done!" in lines[-2]


def test_no_color_takes_the_colours_only(terminal):
    run = terminal("run", "--max-workers", "4", NO_COLOR="1")
    _frame(run.until(_halfway))
    (terminal.folder / "go").touch()
    assert run.wait() == 0
    assert run.colours == []
    assert terminal("status", "1", NO_COLOR="1").wait() == 0


def test_a_terminal_without_utf8_gets_ascii(terminal):
    run = terminal("run", "--max-workers", "4", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    lines = run.until(_halfway)
    assert re.search(r"\* work +###+-+  10/30 - 4 running", _frame(lines)[2])
    (terminal.folder / "go").touch()
    assert run.wait() == 0
    assert run.raw.isascii()


def test_a_run_outlives_its_terminal(terminal, workspace):
    run = terminal("run", "--max-workers", "4", nohup=True)
    run.until(_halfway)
    run.hang_up()
    (terminal.folder / "go").touch()
    assert run.process.wait(60) == 0
    assert json.loads(workspace.run("status", "1", "--json").stdout)["state"] == "succeeded"


def test_a_stopped_terminal_stops_no_run(terminal):
    run = terminal("run", "--max-workers", "4")
    run.until(_halfway)
    run.type(b"\x13")  # Ctrl-S
    (terminal.folder / "go").touch()
    end = terminal.folder / ".flowkit" / "flows" / "ScreenFlow" / "1" / "end.json"
    deadline = time.monotonic() + 60
    while not end.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run.type(b"\x11")  # Ctrl-Q
    assert run.wait() == 0
    assert "succeeded in" in run.text


def test_ctrl_c_ends_the_display_and_the_run(terminal):
    run = terminal("run", "--max-workers", "4")
    run.until(_halfway)
    run.type(b"\x03")
    assert run.wait() == 130
    text = run.text
    assert "✗ ScreenFlow/1 cancelled" in text
    assert "stopped by Ctrl-C" in text
    assert "● " not in text


def test_past_and_present_runs_are_shown_alike(terminal, workspace):
    run = terminal("run", "--max-workers", "4")
    run.until(_halfway)
    status = terminal("status", "1")
    assert status.wait() == 0
    assert re.search(r"● work +━+─+  10/30 · 4 running · 16 pending", status.text)
    assert re.search(r"● ScreenFlow/1 running .*· 11 tasks done", status.text)
    (terminal.folder / "go").touch()
    assert run.wait() == 0
    status = terminal("status", columns=70)
    assert status.wait() == 0
    assert b"\x1b[32msucceeded" in status.raw
    assert "\x1b" not in workspace.run("status").output


def test_long_output_goes_to_the_pager(terminal, workspace):
    (terminal.folder / "go").touch()
    workspace.run("run", check=True)
    pager = workspace.write("pager.sh", "#!/bin/sh\necho PAGED $1 $LESS\nhead -n 2\n")
    pager.chmod(0o755)
    paged = terminal("dump", "1/work", rows=8, PAGER=f"{pager} -x")
    assert paged.wait() == 0, "the pager may be left early"
    assert "PAGED -x FRX" in paged.text
    assert re.search(rb"\x1b\[1mScreenFlow/1/work/\d+:\x1b\[0m", paged.raw), "in the order in which they began"
    short = terminal("dump", "1/end", rows=24, PAGER=str(pager))
    assert short.wait() == 0
    assert "PAGED" not in short.text
    assert "total = 870" in short.text
    logs = terminal("logs", "1", rows=4, PAGER="no-such-program")
    assert logs.wait() == 0
    assert "the last line" in logs.text
    assert "[bold]" in logs.text
    assert b"\x1b[2J" not in logs.raw
    assert "PAGED" not in workspace.run("dump", "1/work", env={"PAGER": str(pager)}, check=True).output


def test_the_graph_is_drawn_where_it_fits(terminal, workspace):
    shown = terminal("show", rows=40)
    assert shown.wait() == 0
    for line in ("Waits for files.", "│ work │", "each of items", "Step work"):
        assert line in shown.text
    narrow = terminal("show", columns=20, rows=60)
    assert narrow.wait() == 0
    assert "│" not in narrow.text
    assert "Step work" in narrow.text
    workspace.run("show", "--svg", "graph.svg", check=True)
    picture = (terminal.folder / "graph.svg").read_text(encoding="utf-8")
    assert picture == workspace.run("show", "--svg", "-", check=True).stdout
    assert picture.startswith("<svg ")
    assert "cannot be written" in workspace.run("show", "--svg", "none/graph.svg", check=2).stderr
