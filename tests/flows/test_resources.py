"""``@resources`` in real runs: GPUs are handed out, processors and memory bound what runs, usage is recorded.

Each task that matters writes a line when it begins and when it ends; who ran beside whom is read from those.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HEAD = """
import os, signal, sys, time
from flowkit import FlowSpec, catch, current, environment, parallel, resources, retry, step

def mark(what):
    line = f"{what} {current.step_name}/{current.task_id} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n"
    with open("marks", "a") as file:
        file.write(line)

def work():
    mark("begin")
    time.sleep(0.05)
    mark("end")

def work_until(path):
    mark("begin")
    deadline = time.time() + 30
    while not os.path.exists(path) and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    mark("end")

class Story(FlowSpec):
"""
TAIL = """
    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Story()
"""


class Mark(NamedTuple):
    """One line of the marks."""

    what: str
    task: str
    devices: str


def write(workspace: Any, body: str, tail: str = TAIL) -> None:
    workspace.write("flow.py", HEAD + textwrap.indent(textwrap.dedent(body), "    ") + tail)


def marks(workspace: Any) -> list[Mark]:
    path: Path = workspace.path / "marks"
    return [Mark(*line.split()) for line in path.read_text().splitlines()]


def most_at_once(found: list[Mark]) -> int:
    """How many tasks ran side by side at most."""
    running = most = 0
    for mark in found:
        running += 1 if mark.what == "begin" else -1
        most = max(most, running)
    return most


def check_no_slot_is_shared(found: list[Mark]) -> None:
    busy: set[str] = set()
    for mark in found:
        devices = set(mark.devices.split(","))
        if mark.what == "begin":
            assert not busy & devices, found
            busy |= devices
        else:
            busy -= devices


def last(workspace: Any) -> Any:
    return workspace.client().Flow("Story").latest_run


FOREACH = """
    @step
    def start(self):
        self.items = list(range(6))
        self.next(self.train, foreach="items")

    @resources({what})
    @step
    def train(self):
        work()
        self.next(self.join)
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_each_task_has_gpus_of_its_own(workspace: Any, start: str) -> None:
    write(workspace, FOREACH.format(what="gpu=1"))
    workspace.run("run", "--max-workers", 6, "--task-start", start, env={"FLOWKIT_LOCAL_GPUS": "2"}, check=True)
    found = marks(workspace)
    assert len(found) == 12
    assert {mark.devices for mark in found} == {"0", "1"}
    check_no_slot_is_shared(found)


def test_gpus_by_name_several_for_a_task(workspace: Any) -> None:
    write(workspace, FOREACH.format(what="gpu=2"))
    env = {"FLOWKIT_LOCAL_GPUS": "0,GPU-aa-1,3,7,9", "CUDA_VISIBLE_DEVICES": "5"}
    workspace.run("run", "--max-workers", 6, env=env, check=True)
    found = marks(workspace)
    check_no_slot_is_shared(found)
    assert all(len(mark.devices.split(",")) == 2 for mark in found)
    assert most_at_once(found) <= 2


def test_the_gpus_that_the_command_was_given(workspace: Any) -> None:
    write(workspace, FOREACH.format(what="gpu=1"))
    workspace.run("run", env={"CUDA_VISIBLE_DEVICES": "4,6,-1,8"}, check=True)
    assert {mark.devices for mark in marks(workspace)} <= {"4", "6"}


def test_steps_that_ask_for_none_are_left_alone_and_do_not_wait(workspace: Any) -> None:
    write(
        workspace,
        """
        @step
        def start(self):
            self.next(self.one, self.two, self.plain)

        @resources(gpu=1)
        @step
        def one(self):
            work_until("plain-was-here")
            self.next(self.join)

        @resources(gpu=1)
        @step
        def two(self):
            work_until("plain-was-here")
            self.next(self.join)

        @step
        def plain(self):
            mark("begin")
            mark("end")
            open("plain-was-here", "w").close()
            self.next(self.join)
        """,
    )
    env = {"FLOWKIT_LOCAL_GPUS": "1,", "CUDA_VISIBLE_DEVICES": "0,1"}
    workspace.run("run", "--max-workers", 2, env=env, check=True)
    found = marks(workspace)
    # One worker is left beside the task that has the only GPU: the other one that wants it must not hold it.
    using = [mark for mark in found if mark.task != "plain/0"]
    check_no_slot_is_shared(using)
    assert found.index(Mark("end", "plain/0", "0,1")) < found.index(using[1])
    assert {mark.devices for mark in using} == {"1"}


def test_whatever_way_a_task_ends_its_gpu_is_free_again(workspace: Any) -> None:
    write(
        workspace,
        """
        @step
        def start(self):
            self.items = ["kill", "raise", "exit", "abort", "fine"]
            self.next(self.train, foreach="items")

        @catch(var="caught")
        @retry(times=1, minutes_between_retries=0)
        @resources(gpu=1)
        @step
        def train(self):
            mark("begin")
            mark("end")
            if self.input == "kill" and current.retry_count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.input == "raise":
                raise ValueError
            if self.input == "exit":
                os._exit(0)
            if self.input == "abort":
                os.abort()
            self.next(self.join)
        """,
    )
    workspace.run("run", env={"FLOWKIT_LOCAL_GPUS": "1"}, check=True)
    found = marks(workspace)
    check_no_slot_is_shared(found)
    assert len(found) == 2 * 9  # all but "fine" were tried twice


def test_a_machine_without_gpus_runs_the_step_and_says_so_once(workspace: Any) -> None:
    write(workspace, FOREACH.format(what="gpu=3"))
    out = workspace.run("run", env={"FLOWKIT_LOCAL_GPUS": "0"}, check=True).output
    assert out.count("asks for 3 GPUs; there is none here") == 1
    assert {mark.devices for mark in marks(workspace)} == {"-"}
    (workspace.path / "marks").unlink()
    out = workspace.run("run", env={"FLOWKIT_LOCAL_GPUS": "2"}, check=True).output
    assert out.count("asks for 3 GPUs; there are 2 here") == 1
    found = marks(workspace)
    assert {mark.devices for mark in found} == {"0,1"}
    check_no_slot_is_shared(found)


def test_a_setting_that_says_nothing_is_refused_before_there_is_a_run(workspace: Any) -> None:
    write(workspace, FOREACH.format(what="gpu=1"))
    done = workspace.run("run", env={"FLOWKIT_LOCAL_GPUS": "many,,"})
    assert done.returncode == 2
    assert "FLOWKIT_LOCAL_GPUS must be a number of GPUs or a list of their ids" in done.stderr
    assert not list((workspace.path / ".flowkit").glob("flows/Story/*"))


def test_what_the_step_says_itself_counts(workspace: Any) -> None:
    write(
        workspace,
        FOREACH.format(what="gpu=1").replace(
            "@resources", '@environment(vars={"CUDA_VISIBLE_DEVICES": "mine"})\n    @resources'
        ),
    )
    workspace.run("run", env={"FLOWKIT_LOCAL_GPUS": "2"}, check=True)
    assert {mark.devices for mark in marks(workspace)} == {"mine"}


def test_nodes_of_a_gang_share_what_there_is(workspace: Any) -> None:
    write(
        workspace,
        """
        @step
        def start(self):
            self.next(self.train, num_parallel=4)

        @parallel
        @resources(gpu=1)
        @step
        def train(self):
            mark("begin")
            mark("end")
            self.next(self.join)
        """,
    )
    out = workspace.run("run", env={"FLOWKIT_LOCAL_GPUS": "2"}, check=True).output
    assert "its 4 nodes need more than there is" in out
    assert sorted(mark.devices for mark in marks(workspace) if mark.what == "begin") == ["0", "0", "1", "1"]


def test_a_gang_larger_than_the_machine_waits_until_nothing_else_runs(workspace: Any) -> None:
    write(
        workspace,
        """
        @step
        def start(self):
            self.next(self.other, self.before)

        @step
        def other(self):
            work_until("before-was-here")
            self.next(self.together)

        @step
        def before(self):
            open("before-was-here", "w").close()
            self.next(self.train, num_parallel=3)

        @parallel
        @resources(gpu=1)
        @step
        def train(self):
            mark("begin")
            self.next(self.gather)

        @step
        def gather(self, inputs):
            self.next(self.together)

        @step
        def together(self, inputs):
            self.next(self.join)
        """,
        tail=TAIL.replace("join(self, inputs)", "join(self)"),
    )
    workspace.run("run", "--max-workers", 8, env={"FLOWKIT_LOCAL_GPUS": "2"}, check=True)
    assert [mark.task.split("/")[0] for mark in marks(workspace)] == ["other", "other", "train", "train", "train"]


def test_what_waits_for_a_gpu_does_not_start_after_a_failure(workspace: Any) -> None:
    write(
        workspace,
        FOREACH.format(what="gpu=1").replace("work()", "mark('begin'); time.sleep(0.2); raise ValueError"),
    )
    done = workspace.run("run", "--max-workers", 6, env={"FLOWKIT_LOCAL_GPUS": "1"})
    assert done.returncode == 1
    assert len(marks(workspace)) == 1
    run = last(workspace)
    assert len(list(run["train"])) == 1  # the others never began


def test_processors_bound_what_runs_where_that_is_asked_for(workspace: Any) -> None:
    write(workspace, FOREACH.format(what="cpu=100000"))
    workspace.run("run", "--max-workers", 6, "--respect-resources", check=True)
    assert most_at_once(marks(workspace)) == 1


def test_memory_bounds_what_runs_where_that_is_asked_for(workspace: Any) -> None:
    write(
        workspace,
        """
        @step
        def start(self):
            self.items = list(range(4))
            self.next(self.train, foreach="items")

        @resources(memory=100_000_000, cpu=0.01)
        @step
        def train(self):
            work()
            self.next(self.join)
        """,
    )
    workspace.run("run", "--max-workers", 4, "--respect-resources", check=True)
    assert most_at_once(marks(workspace)) == 1
    workspace.run("resume", "train", "--max-workers", 4, "--respect-resources", check=True)
    assert most_at_once(marks(workspace)) == 1


def test_usage_is_recorded(workspace: Any) -> None:
    write(
        workspace,
        """
        @step
        def start(self):
            self.next(self.large, self.busy, self.killed, self.fresh)

        @step
        def large(self):
            block = bytearray(200 << 20)
            self.size = len(block)
            self.next(self.join)

        @step
        def busy(self):
            while time.process_time() < 0.3:
                pass
            self.next(self.join)

        @catch
        @step
        def killed(self):
            block = bytearray(100 << 20)
            os.kill(os.getpid(), signal.SIGKILL)
            self.next(self.join)

        @environment(vars={"ANY": "1"})
        @step
        def fresh(self):
            self.next(self.join)
        """,
    )
    workspace.run("run", check=True)
    run = last(workspace)
    client = workspace.client()
    usage = {name: run[name].task.usage for name in ("large", "busy", "killed", "fresh", "end")}
    assert usage["large"].memory > 200 << 20 > usage["busy"].memory > 1 << 20
    assert usage["fresh"].memory < 200 << 20
    assert usage["busy"].cpu_seconds > 0.2 > usage["end"].cpu_seconds >= 0
    assert usage["busy"].seconds > 0
    assert usage["large"].gpu_memory is None
    silent = client.Task(f"Story/{run.id}/killed/0", attempt=0).usage
    assert silent.memory > 100 << 20 > usage["killed"].memory
    assert client.Task(f"Story/{run.id}/_parameters/0").usage is None
    shown = workspace.run("status", 1, "--usage", check=True).stdout
    assert sum(line.count(" large/0") for line in shown.splitlines()) == 2  # the slowest of its step, and the largest
    used = {row["step"]: row for row in json.loads(workspace.run("status", 1, "--usage", "--json").stdout)["usage"]}
    assert used["large"]["largest"] == ["0", usage["large"].memory]
    assert used["start"]["gpu"] is None


def test_gpu_memory_is_what_the_library_tells(workspace: Any) -> None:
    workspace.write(
        "torch.py",
        """
        class cuda:
            broken = False
            is_initialized = device_count = lambda: 1

            def max_memory_reserved(device):
                if cuda.broken:
                    raise RuntimeError("CUDA error: device-side assert triggered")
                return 12345
        """,
    )
    write(
        workspace,
        """
        @step
        def start(self):
            self.items = [False, True]
            self.next(self.train, foreach="items")

        @step
        def train(self):
            import torch
            torch.cuda.broken = self.input
            self.next(self.join)
        """,
    )
    workspace.run("run", check=True)
    found = {task.index: task.usage for task in last(workspace)["train"]}
    assert (found[0].gpu_memory, found[1].gpu_memory) == (12345, None)


def test_usage_of_a_step_that_failed(workspace: Any) -> None:
    write(workspace, FOREACH.format(what="cpu=1").replace("work()", "x = bytearray(100 << 20); raise ValueError"))
    workspace.run("run", "--max-workers", 1, check=1)
    task = next(iter(last(workspace)["train"]))
    assert task.usage.memory > 100 << 20
    assert task.usage.seconds >= 0
