"""Several at once, late, or told that what worked did not: one result for each task, and the right one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from attack_tools import Journal, artifact, committed, manifest, no_defect, root_of, runs, wait_gone, wait_until

from flowkit.exceptions import NotFound

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    import os
    import time

    import journal
    from flowkit import FlowSpec, current, retry, step

    if os.environ.get("TEAR"):
        import tear  # noqa: F401

    class Rivals(FlowSpec):
        @step
        def start(self):
            journal.note(current)
            self.items = list(range(5))
            self.next(self.work, foreach="items")

        @retry(times=3, minutes_between_retries=0)
        @step
        def work(self):
            journal.note(current)
            open(f"began-{self.input}-{current.retry_count}", "w").close()
            while os.path.exists(f"hold-{self.input}-{current.retry_count}"):
                time.sleep(0.005)
            if os.path.exists("fail") and self.input == 3:
                raise ValueError("asked for")
            self.writer = (os.getpid(), current.retry_count)
            self.proof = [os.getpid()] * 5_000
            self.value = self.input * 10
            self.large = bytes([self.input]) * 1_500_000
            self.next(self.join)

        @step
        def join(self, inputs):
            journal.note(current)
            self.values = [each.value for each in inputs]
            self.sizes = [(len(each.large), each.large[:1], each.large[-1:]) for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            journal.note(current)

    if __name__ == "__main__":
        Rivals()
"""

TEAR = '''
"""The storage does what it is asked for and then says, now and then, that it did not."""
import os
import random

from flowkit.datastore.local import LocalStorage
from flowkit.exceptions import StoreError

SEED, CHANCE = os.environ["TEAR"].split(":")
calls = 0

def wrap(name):
    original = getattr(LocalStorage, name)
    def wrapped(self, path, *args):
        global calls
        result = original(self, path, *args)
        calls += 1
        if random.Random(f"{SEED} {path} {os.getpid()} {calls}").random() < float(CHANCE):
            raise StoreError(f"cannot write {path}: the reply was lost")
        return result
    setattr(LocalStorage, name, wrapped)

for name in ("create", "replace", "touch"):
    wrap(name)
'''

VALUES = [0, 10, 20, 30, 40]
SIZES = [(1_500_000, bytes([index]), bytes([index])) for index in range(5)]


def step_command(task: int, attempt: int) -> list[str]:
    """Return the arguments that carry out an attempt of ``work`` beside the run."""
    parents = ["--parents", "start/0"]
    return ["--quiet", "step", "work", str(task), "--run-id", "1", "--attempt", str(attempt), *parents]


def test_several_writers_of_one_attempt(workspace: Workspace) -> None:
    Journal(workspace)
    workspace.write("flow.py", FLOW)
    hold = workspace.write("hold-2-0", "")
    run = workspace.start("run", "--max-workers", "5")
    wait_until((workspace.path / "began-2-0").exists)
    rivals = [workspace.start(*step_command(2, 0)) for _ in range(3)]
    wait_until(lambda: (workspace.path / "journal.txt").read_text().count(" work 2 ") == 4)
    hold.unlink()
    ends = [process.communicate(timeout=60) for process in (*rivals, run)]
    assert [process.returncode for process in (*rivals, run)] == [0, 0, 0, 0], ends
    dropped = sum("this one is dropped" in out + err for out, err in ends)
    assert dropped == 3, ends
    root = root_of(workspace)
    # One of them, whole: not some of one and some of another.
    pid, _ = artifact(root, "Rivals", "1", "work", "writer", "2")
    assert artifact(root, "Rivals", "1", "work", "proof", "2") == [pid] * 5_000
    assert artifact(root, "Rivals", "1", "join", "values") == VALUES


def test_a_late_attempt_drops_its_own(workspace: Workspace) -> None:
    Journal(workspace)
    workspace.write("flow.py", FLOW)
    fail = workspace.write("fail", "")
    workspace.run("run", check=1)
    fail.unlink()
    hold = workspace.write("hold-3-7", "")
    late = workspace.start(*step_command(3, 7))
    wait_until((workspace.path / "began-3-7").exists)
    workspace.run(*step_command(3, 8), check=True)
    root = root_of(workspace)
    before = (root / "flows/Rivals/1/work/3/manifest.json").read_bytes()
    hold.unlink()
    out, err = late.communicate(timeout=60)
    assert late.returncode == 0, err
    assert "this one is dropped" in out + err
    assert (root / "flows/Rivals/1/work/3/manifest.json").read_bytes() == before
    assert manifest(root, "Rivals", "1", "work", "3").attempt == 8
    # Its successors go on from the one that was first.
    workspace.run("resume", check=True)
    assert artifact(root, "Rivals", "2", "join", "values") == VALUES
    assert not [line for line in (workspace.path / "journal.txt").read_text().splitlines() if line.startswith("2 work")]


@pytest.mark.rounds(4, 60)
def test_replies_that_are_lost_after_the_effect(workspace: Workspace, seed: int) -> None:
    journal = Journal(workspace)
    workspace.write("flow.py", FLOW)
    workspace.write("tear.py", TEAR)
    root = root_of(workspace)
    results: dict[str, set[tuple[str, str]]] = {}
    origins: dict[str, str] = {}
    chance = (0.02, 0.1, 0.3)[seed % 3]
    for attempt in range(12):
        torn = {"TEAR": f"{seed}-{attempt}:{chance if attempt < 8 else 0}"}
        before = runs(root, "Rivals") if root.exists() else []
        result = workspace.run("resume" if any(results.values()) else "run", env=torn)
        no_defect(result)
        wait_gone(workspace)
        for run in runs(root, "Rivals"):
            try:
                results[run] = committed(root, "Rivals", run)
            except NotFound:  # it never started
                continue
            if run not in before and results and len(results) > 1:
                origins[run] = max((each for each in results if each != run), key=int)
        if result.returncode == 0:
            break
    assert result.returncode == 0, str(result)
    last = max(results, key=int)
    assert artifact(root, "Rivals", last, "join", "values") == VALUES
    assert artifact(root, "Rivals", last, "join", "sizes") == SIZES
    journal.check_nothing_twice(results, origins)


def test_twenty_runs_at_once(workspace: Workspace) -> None:
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowSpec, Parameter, step

        class Crowd(FlowSpec):
            number = Parameter("number", type=int)

            @step
            def start(self):
                self.twice = self.number * 2
                self.shared = "the same in all of them" * 1000
                self.next(self.end)

            @step
            def end(self):
                self.result = self.twice + 1

        if __name__ == "__main__":
            Crowd()
        """,
    )
    crowd = [
        workspace.start("run", "--number", number, "--run-id-file", f"id-{number}", "--tag", f"n:{number}")
        for number in range(20)
    ]
    ends = [process.communicate(timeout=120) for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 20, [err for _, err in ends]
    ids = [(workspace.path / f"id-{number}").read_text() for number in range(20)]
    assert sorted(map(int, ids)) == list(range(1, 21))
    flow = workspace.client().Flow("Crowd")
    assert len(list(flow)) == 20
    for number, run in enumerate(ids):
        assert flow[run].successful
        assert flow[run].data.result == number * 2 + 1
        assert f"n:{number}" in flow[run].tags


def test_two_resumes_of_one_run_at_once(workspace: Workspace) -> None:
    journal = Journal(workspace)
    workspace.write("flow.py", FLOW)
    fail = workspace.write("fail", "")
    workspace.run("run", check=1)
    fail.unlink()
    root = root_of(workspace)
    before = committed(root, "Rivals", "1")
    assert ("work", "3") not in before
    assert len(before) == 5
    pair = [workspace.start("resume", "--origin-run-id", "1") for _ in range(2)]
    ends = [process.communicate(timeout=60) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    assert runs(root, "Rivals") == ["1", "2", "3"]
    journal.check_nothing_twice({"1": before}, {"2": "1", "3": "1"})
    for run in ("2", "3"):
        assert artifact(root, "Rivals", run, "join", "values") == VALUES
        assert artifact(root, "Rivals", run, "join", "sizes") == SIZES
    status = json.loads(workspace.run("status", "--json", check=True).stdout)
    assert [run["state"] for run in status] == ["succeeded", "succeeded", "failed"]


def test_a_run_that_lives_is_not_resumed(workspace: Workspace) -> None:
    Journal(workspace)
    workspace.write("flow.py", FLOW)
    hold = workspace.write("hold-1-0", "")
    run = workspace.start("run")
    wait_until((workspace.path / "began-1-0").exists)
    result = workspace.run("resume", check=6)
    assert "still alive" in result.stderr
    hold.unlink()
    run.communicate(timeout=60)
    assert run.returncode == 0
