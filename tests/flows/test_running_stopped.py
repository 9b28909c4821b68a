"""Stopping a run: Ctrl-C once and twice, SIGTERM, and a runtime that is killed. Real signals, real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

BODY = """
    @step
    def start(self):
        self.xs = [0, 1, 2, 3, 4, 5]
        self.next(self.child, foreach="xs")

    @step
    def child(self):
        self.pid = os.getpid()
        if self.input > 0 and not os.path.exists("go"):
            child = subprocess.Popen(["sleep", "300"])
            if stubborn:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open(f"running-{self.input}", "w") as file:
                file.write(f"{os.getpid()} {child.pid}")
            while True:
                time.sleep(0.05)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.pids = [each.pid for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def write(workspace: Any, *, stubborn: bool = False) -> None:
    """Write a flow whose first child ends at once and whose others, with a process of their own each, wait."""
    workspace.write(
        "flow.py",
        f"import os, signal, subprocess, time\nfrom flowkit import *\n\nstubborn = {stubborn}\n\n\n"
        f"class Story(FlowSpec):\n{BODY}\n\nif __name__ == '__main__':\n    Story()\n",
    )


def started(workspace: Any, *options: object) -> Any:
    """Start a run and wait until three of its children are at work and the first one is done."""
    process = workspace.start("run", "--max-workers", 4, *options)
    wanted = [workspace.path / f"running-{n}" for n in (1, 2, 3)]
    done = workspace.path / ".flowkit/flows/Story"
    while not (
        all(path.exists() and path.read_text() for path in wanted) and list(done.glob("*/child/0/manifest.json"))
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def nothing_left(workspace: Any) -> None:
    """Wait until no process of the folder is alive."""
    while workspace.processes():
        time.sleep(0.02)


def finish(workspace: Any, command: str) -> Any:
    """Let the waiting children through, carry the printed command out, and return the resumed run."""
    workspace.write("go", "")
    workspace.command(sys.executable, *command.split()[1:], check=True)
    run = workspace.client().Flow("Story").latest_run
    assert len(set(run.data.pids)) == 6
    return run


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(workspace: Any) -> None:
    write(workspace)
    process = started(workspace)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Stopping: stopped by Ctrl-C." in out
    assert "Traceback" not in out + err
    assert "KeyboardInterrupt" not in out + err
    command = re.search(r"python \S+ resume --origin-run-id 1", err)
    assert command, err
    nothing_left(workspace)
    run = workspace.client().Run("Story/1")
    assert not run.successful
    status = workspace.run("status", "1", check=True)
    assert "cancelled" in status.stdout
    assert not (workspace.path / "running-5").exists()
    first = run["child"]["0"].data.pid
    # What was done is kept, what was not is run again.
    assert finish(workspace, command[0]).data.pids[0] == first


def test_ctrl_c_twice_kills_what_does_not_want_to_end(workspace: Any) -> None:
    write(workspace, stubborn=True)
    process = started(workspace)
    os.killpg(process.pid, signal.SIGINT)
    said: list[str] = []
    while not said or "Stopping" not in said[-1]:
        said.append(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Press Ctrl-C again" in said[-1]
    nothing_left(workspace)
    assert "resume --origin-run-id 1" in err


def test_sigterm_stops_a_run_too(workspace: Any) -> None:
    write(workspace)
    process = started(workspace)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "stopped by SIGTERM" in out
    nothing_left(workspace)


def started_with_sighup(workspace: Any, action: Any) -> Any:
    """Start a run, whatever the tests themselves do about SIGHUP (they may run under nohup)."""
    before = signal.signal(signal.SIGHUP, action)
    try:
        return started(workspace)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_stops_a_run_cleanly(workspace: Any) -> None:
    write(workspace)
    process = started_with_sighup(workspace, signal.SIG_DFL)
    for _ in range(2):  # as the system and the shell do
        process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "the terminal was closed" in out
    nothing_left(workspace)
    assert workspace.client().Run("Story/1").status == "cancelled"


def test_a_run_under_nohup_outlives_its_terminal(workspace: Any) -> None:
    write(workspace)
    process = started_with_sighup(workspace, signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    workspace.write("go", "")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert "stopped by SIGTERM" in out, out + err
    nothing_left(workspace)


def test_a_killed_runtime_leaves_nothing_and_its_run_goes_on(workspace: Any) -> None:
    write(workspace, stubborn=True)
    process = started(workspace)
    mine = [int(pid) for n in (1, 2, 3) for pid in (workspace.path / f"running-{n}").read_text().split()]
    assert set(mine) <= set(workspace.processes())
    process.kill()
    process.communicate(timeout=30)
    nothing_left(workspace)
    assert not any(Path(f"/proc/{pid}").exists() and _lives(pid) for pid in mine)
    assert "lost" in workspace.run("status", "1", check=True).stdout
    resumed = finish(workspace, "python flow.py resume")
    assert resumed.data.pids[0] == workspace.client().Run("Story/1")["child"]["0"].data.pid


def test_a_run_that_is_alive_is_not_resumed(workspace: Any) -> None:
    write(workspace)
    process = started(workspace)
    refused = workspace.run("resume", "--origin-run-id", 1, check=6)
    assert f"run 1 is still alive: tester runs it on {socket.gethostname()} (pid {process.pid})" in refused.stderr
    workspace.run("cancel", 1, check=True)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "cancelled by tester" in out + err
    nothing_left(workspace)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
