"""Ctrl-C on a terminal, in a run that has work elsewhere: one question, and what follows each answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_reattach import RUN, SMALL, Effects, check_everything_ran_once
from test_remote_runs import Service, task_states

sys.path.append(str(Path(__file__).parent.parent / "cli"))
from pseudo_terminal import PseudoTerminal

QUESTION = "Cancel the 3 remote tasks? [y/N]"


@pytest.fixture
def screen(workspace) -> Iterator[PseudoTerminal]:
    """A terminal on which the three tasks of a run are under way, and its user has pressed Ctrl-C."""
    service = Service(workspace)
    service.set(slots=3)
    effects = Effects(workspace)
    workspace.write("flow.py", SMALL)
    env = {name: value for name, value in workspace.env.items() if name not in ("CI", "NO_COLOR")}
    made = PseudoTerminal([sys.executable, "flow.py", *RUN], workspace.path, {**env, "TERM": "xterm"}, 120, 30)
    made.service, made.effects = service, effects
    try:
        made.until(lambda _: sum(service.started("train").values()) == 3)
        made.type(b"\x03")
        made.until(lambda lines: any(QUESTION in line for line in lines))
        yield made
    finally:
        made.close()
        effects.let_end()


@pytest.mark.parametrize("keys", [b"y\n", b"\x03"])
def test_the_jobs_are_cancelled(workspace, screen, keys) -> None:
    screen.type(keys)
    assert screen.wait() == 130, screen.text
    assert "stopped by Ctrl-C" in screen.text
    assert any(call.startswith("cancel") and call.endswith("True") for call in screen.service.calls)
    assert {row["state"] for row in task_states(workspace, "train")} == {"cancelled"}
    assert workspace.run("resume", "--reattach", "1").returncode == 2  # it has ended


def test_the_jobs_are_left(workspace, screen) -> None:
    screen.type(b"\n")
    assert screen.wait() == 130, screen.text
    assert "Run 1 was left by Ctrl-C, while 3 tasks go on elsewhere." in screen.text
    assert "resume --reattach 1" in screen.text
    screen.effects.let_end()
    workspace.run("resume", "--reattach", check=True)
    check_everything_ran_once(workspace, screen.service, screen.effects)


def test_without_an_answer_the_run_goes_on(workspace, screen) -> None:
    screen.effects.let_end()
    assert screen.wait() == 0, screen.text
    check_everything_ran_once(workspace, screen.service, screen.effects)
