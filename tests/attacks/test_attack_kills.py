"""Processes killed at any moment and at the worst ones: nothing committed is lost, changed or executed again."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from attack_tools import (
    SOAK,
    Journal,
    artifact,
    committed,
    kill,
    no_defect,
    roles,
    root_of,
    runs,
    wait_gone,
    wait_until,
)

from flowkit.exceptions import NotFound

if TYPE_CHECKING:
    from conftest import Result, Workspace

WIDTH = 6

FLOW = """
    import os
    import time

    import journal
    from flowkit import FlowSpec, current, step

    if os.environ.get("KILL_AT"):
        import kill_points  # noqa: F401

    class Killed(FlowSpec):
        @step
        def start(self):
            journal.note(current)
            self.items = list(range(6))
            self.base = 100
            self.next(self.work, foreach="items")

        @step
        def work(self):
            journal.note(current)
            time.sleep(float(os.environ.get("PAUSE", "0.02")))
            self.made = [self.base + self.input] * 500
            self.large = bytes([self.input]) * 200_000
            self.next(self.join)

        @step
        def join(self, inputs):
            journal.note(current)
            self.total = sum(each.made[0] for each in inputs)
            self.next(self.fork)

        @step
        def fork(self):
            journal.note(current)
            self.next(self.left, self.right)

        @step
        def left(self):
            journal.note(current)
            self.side = self.total + 1
            self.next(self.merge)

        @step
        def right(self):
            journal.note(current)
            self.side = self.total + 2
            self.next(self.merge)

        @step
        def merge(self, inputs):
            journal.note(current)
            self.sides = [each.side for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            journal.note(current)
            self.done = (self.sides, "end")

    if __name__ == "__main__":
        Killed()
"""

POINTS = '''
"""Kills a process at the n-th time that a function comes to a place: NAME:WHEN:FRAGMENT:COUNT:WHOM."""
import os
import signal

import flowkit.datastore.local
from flowkit.metadata.sqlite import SqliteMetadata

NAME, WHEN, FRAGMENT, COUNT, WHOM = os.environ["KILL_AT"].split(":")
RUNTIME = os.getpid()
left = int(COUNT)

def strike():
    with open("struck.txt", "a") as file:
        file.write(os.environ["KILL_AT"] + "\\n")
    if WHOM in ("runtime", "both"):
        os.kill(RUNTIME, signal.SIGKILL)
    if WHOM == "server":
        os.kill(os.getppid(), signal.SIGKILL)
    if WHOM in ("self", "both"):
        os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name):
    original = getattr(owner, name)
    def wrapped(*args, **kwargs):
        global left
        here = name == NAME and any(FRAGMENT in str(arg) for arg in args[:3])
        if here and WHEN == "before":
            left -= 1
            if left == 0:
                strike()
        result = original(*args, **kwargs)  # a link whose folder is not there yet fails the first time
        if here and WHEN == "after":
            left -= 1
            if left == 0:
                strike()
        return result
    setattr(owner, name, wrapped)

wrap(flowkit.datastore.local.LocalStorage, "create")
wrap(flowkit.datastore.local.LocalStorage, "replace")
wrap(flowkit.datastore.local.LocalStorage, "delete")
wrap(flowkit.datastore.local, "_link")
wrap(SqliteMetadata, "write")
'''

TOTAL = sum(100 + index for index in range(WIDTH))
SIDES = [TOTAL + 1, TOTAL + 2]
EXPECTED = {(step, "0") for step in ("start", "join", "fork", "left", "right", "merge", "end")} | {
    ("work", str(index)) for index in range(WIDTH)
}


class Story:
    """A run, what killed it, and its resumes, up to the end."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        workspace.write("flow.py", FLOW)
        workspace.write("kill_points.py", POINTS)
        self.journal = Journal(workspace)
        self.root = root_of(workspace)
        self.committed: dict[str, set[tuple[str, str]]] = {}

    def looked_at(self) -> None:
        """Remember what every run has committed by now: it may never be executed again, nor get lost."""
        wait_gone(self.workspace)
        for run in runs(self.root, "Killed") if self.root.exists() else ():
            try:
                now = committed(self.root, "Killed", run)
            except NotFound:  # it never started
                continue
            assert now >= self.committed.get(run, set()), f"run {run} lost results"
            self.committed[run] = now

    def go_on(self, env: dict[str, str] | None = None) -> Result:
        """Resume what there is, as a user would: without naming the run; start anew where nothing ever began."""
        self.looked_at()
        result = self.workspace.run("resume", env=env)
        no_defect(result)
        if result.returncode == 4:
            assert not self.committed or not max(self.committed.values(), key=len), str(result)
            return self.workspace.run("run", env=env)
        return result

    def struck(self) -> list[str]:
        """Return the points at which a process was killed."""
        path = self.workspace.path / "struck.txt"
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def check(self) -> None:
        """Bring it to its end, and look at everything."""
        for _ in range(3):
            result = self.go_on()
            if result.returncode == 0:
                break
        assert result.returncode == 0, str(result)
        self.looked_at()
        last = max(runs(self.root, "Killed"), key=int)
        assert self.committed[last] == EXPECTED
        self.check_values(last)
        # Each run takes over all that the ones before it had committed, also past one that was killed early.
        for run, step, task in self.journal.executed():
            before = {each for other, tasks in self.committed.items() if int(other) < int(run) for each in tasks}
            assert (step, task) not in before, f"{step}/{task} was executed again in run {run}"
        # The index tells the same, and nothing is locked.
        client = self.workspace.client()
        assert client.Flow("Killed")[last].successful
        assert client.Flow("Killed")[last]["end"].task.data.done == (SIDES, "end")
        for run in client.Flow("Killed"):
            assert run.finished or run.id != last

    def check_values(self, run: str) -> None:
        """Every artifact is right."""
        for index in range(WIDTH):
            assert artifact(self.root, "Killed", run, "work", "made", str(index)) == [100 + index] * 500
            assert artifact(self.root, "Killed", run, "work", "large", str(index)) == bytes([index]) * 200_000
        assert artifact(self.root, "Killed", run, "join", "total") == TOTAL
        assert artifact(self.root, "Killed", run, "merge", "sides") == SIDES
        assert artifact(self.root, "Killed", run, "end", "done") == (SIDES, "end")


VICTIMS = [
    ("runtime",),
    ("server",),
    ("log",),
    ("task",),
    ("runtime", "server"),
    ("runtime", "log"),
    ("server", "log"),
    ("runtime", "server", "log"),
    ("runtime", "server", "log", "task"),
]


@pytest.mark.rounds(9, 300)
def test_kills_at_random_moments(workspace: Workspace, seed: int) -> None:
    chance = random.Random(seed)
    story = Story(workspace)
    victims = VICTIMS[seed % len(VICTIMS)]
    command = "run"
    for _ in range(chance.randint(1, 3)):
        process = workspace.start(command, "--max-workers", "3", env={"PAUSE": "0.05"})
        # After the helpers are there; sometimes long before the first task, sometimes after the last one.
        wait_until(lambda process=process: process.poll() is not None or roles(process.pid)["server"])
        time.sleep(chance.uniform(0.0, 0.5))
        found = roles(process.pid)
        pids = [pid for role in victims for pid in (found[role] if role != "task" else found[role][:2])]
        chance.shuffle(pids)
        kill(pids)
        process.communicate(timeout=60)
        story.looked_at()
        command = "resume" if any(story.committed.values()) else "run"
        if process.returncode == 0:
            break
    story.check()


RUN_POINTS = [
    "create:before:run.json:1:runtime",
    "create:after:run.json:1:runtime",
    "delete:after:.last:1:runtime",
    "create:before:_parameters/0/manifest.json:1:runtime",
    "create:after:_parameters/0/manifest.json:1:runtime",
    "write:before:Killed:1:runtime",
    "write:after:Killed:1:runtime",
    "write:before:succeeded:1:runtime",
    "write:before:work:2:runtime",
    "_link:after:work/2/manifest.json:1:self",
    "_link:after:work/2/manifest.json:1:runtime",
    "_link:after:work/2/manifest.json:1:server",
    "_link:after:work/2/manifest.json:1:both",
    "_link:before:work/2/manifest.json:1:self",
    "_link:before:blobs/:1:self",
    "_link:after:join/0/manifest.json:1:both",
    "create:after:start/0/manifest.json:1:runtime",
    "_link:after:end/0/manifest.json:1:both",
    "replace:before:end.json:1:runtime",
    "replace:after:end.json:1:runtime",
]

SELDOM = {
    "create:before:run.json:1:runtime",
    "create:before:_parameters/0/manifest.json:1:runtime",
    "write:after:Killed:1:runtime",
    "_link:after:work/2/manifest.json:1:runtime",
    "_link:before:work/2/manifest.json:1:self",
    "create:after:start/0/manifest.json:1:runtime",
    "_link:after:join/0/manifest.json:1:both",
}
"""Left to the long form."""


@pytest.mark.parametrize("point", RUN_POINTS if SOAK else [each for each in RUN_POINTS if each not in SELDOM])
def test_kills_at_the_worst_moments_of_a_run(workspace: Workspace, point: str) -> None:
    story = Story(workspace)
    result = workspace.run("run", env={"KILL_AT": point})
    assert story.struck() == [point], str(result)
    story.check()


RESUME_POINTS = [
    "create:after:run.json:1:runtime",
    "create:before:_parameters/0/manifest.json:1:runtime",
    "create:after:_parameters/0/manifest.json:1:runtime",
    "create:before:clones.json:1:runtime",
    "create:after:clones.json:1:runtime",
    "create:after:clones.json:2:runtime",
    "write:before:Killed:1:runtime",
    "write:after:Killed:1:runtime",
    "_link:after:work/3/manifest.json:1:both",
]


@pytest.mark.parametrize("index", ["index kept", "index lost"] if SOAK else ["index lost"])
@pytest.mark.parametrize("point", RESUME_POINTS)
def test_kills_at_the_worst_moments_of_a_resume(workspace: Workspace, point: str, index: str) -> None:
    story = Story(workspace)
    workspace.run("run", "--max-workers", "1", env={"KILL_AT": "_link:after:work/2/manifest.json:1:both"})
    story.looked_at()
    assert len(story.committed["1"]) >= 3
    result = story.go_on(env={"KILL_AT": point})
    assert story.struck()[1:] == [point], str(result)
    if index == "index lost":  # rebuilt from the datastore it knows of runs that were killed before it heard of them
        wait_gone(workspace)
        for file in story.root.glob("metadata.db*"):
            file.unlink()
    story.check()


def test_a_resume_from_a_step_that_was_killed_before_it_began_is_still_one_from_that_step(workspace: Workspace) -> None:
    story = Story(workspace)
    workspace.run("run", check=True)
    workspace.run("resume", "join", env={"KILL_AT": "create:after:clones.json:1:runtime"})
    assert story.struck()
    result = workspace.run("resume", "--origin-run-id", "2", check=True)
    assert "Run 2 was stopped before it began: going on from run 1" in result.output
    executed = {(step, task) for run, step, task in story.journal.executed() if run == "3"}
    assert executed == {(step, "0") for step in ("join", "fork", "left", "right", "merge", "end")}
    workspace.run("resume", "left", "--origin-run-id", "2", check=True)
    executed = {(step, task) for run, step, task in story.journal.executed() if run == "4"}
    assert executed == {(step, "0") for step in ("join", "fork", "left", "right", "merge", "end")}


def test_a_killed_runtime_does_not_stand_in_the_way(workspace: Workspace) -> None:
    """Its locks, its claim and its pid: neither a resume nor a new run nor the client waits for the dead."""
    story = Story(workspace)
    process = workspace.start("run", env={"PAUSE": "30"})
    wait_until(lambda: len(roles(process.pid)["task"]) >= 2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    wait_gone(workspace)
    status = workspace.run("status", "1", check=True)
    assert "lost" in status.stdout
    workspace.run("run", check=True)
    assert workspace.run("resume", "--origin-run-id", "1").returncode == 0
    story.looked_at()
    story.check_values("2")
    story.check_values("3")
