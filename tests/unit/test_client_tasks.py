"""The client over runs that are written by hand: logs, neighbours, metadata, clones, and cancelling a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime

import pytest
from run_author import T0, Author, author, root

from flowkit.client import (
    Run,
    Step,
    Task,
)
from flowkit.datastore.logs import format_line
from flowkit.datastore.manifests import write_clones
from flowkit.exceptions import (
    Conflict,
    UsageError,
)
from flowkit.metadata.liveness import process_start, this_process
from flowkit.metadata.records import TaskRecord
from flowkit.model.transition import Frame, Transition

__all__ = ["author", "root"]


# -- the task ---------------------------------------------------------------------------------------------------------


def test_logs(author: Author) -> None:
    task = Task(f"TrainFlow/{author.trained()}/start/0")
    assert task.stdout == "hällo\nsecond\n"
    assert task.stderr == "\ufffd junk\n"
    assert (task.stdout_size, task.stderr_size) == (len(task.stdout.encode()), 7)
    lines = list(task.loglines("stdout"))
    assert [text for _, text in lines] == ["hällo", "second"]
    assert lines[0][0].timestamp() == T0
    assert [text for _, text in task.loglines("stderr", as_unicode=False)] == [b"\xff junk"]
    assert task.tail(2) == ["second", "\ufffd junk"]
    assert task.tail(1, "stdout") == ["second"]
    assert task.tail(0) == []
    for wrong in (lambda: task.loglines("stdin"), lambda: task.tail(-1)):
        with pytest.raises(UsageError):
            wrong()


def test_pieces_of_a_line_are_joined(author: Author) -> None:
    run = author.run()
    log = b"".join(format_line(T0 + n, "out", b".", partial=n < 9) for n in range(10)) + format_line(T0, "out", b"end")
    author.task(run, "start", log=log)
    task = Task(f"TrainFlow/{run}/start/0")
    assert task.tail(2) == ["..........", "end"]
    assert [text for _, text in task.loglines("stdout")] == ["." * 10, "end"]


def test_a_task_without_a_log_has_an_empty_one(author: Author) -> None:
    task = Task(f"TrainFlow/{author.trained()}/end/0")
    assert (task.stdout, task.stderr, task.stdout_size, task.tail(), list(task.loglines("stdout"))) == (
        "",
        "",
        0,
        [],
        [],
    )


def test_parents_and_children(author: Author) -> None:
    path = f"TrainFlow/{author.trained(width=3)}"
    specs = lambda tasks: [task.pathspec.removeprefix(f"{path}/") for task in tasks]  # noqa: E731
    start, train, join = Task(f"{path}/start/0"), Task(f"{path}/train/1"), Task(f"{path}/join/0")
    assert specs(start.parent_tasks) == []
    assert specs(start.child_tasks) == ["train/0", "train/1", "train/2"]
    assert specs(train.parent_tasks) == ["start/0"]
    assert specs(train.child_tasks) == ["join/0"]
    assert specs(join.parent_tasks) == ["train/0", "train/1", "train/2"]
    assert specs(join.child_tasks) == ["end/0"]
    assert list(Task(f"{path}/end/0").child_task_pathspecs) == []
    assert list(train.parent_task_pathspecs) == [f"{path}/start/0"]
    assert list(join.child_task_pathspecs) == [f"{path}/end/0"]
    step = Step(f"{path}/train")
    assert [s.id for s in step.parent_steps] == ["start"]
    assert [s.id for s in step.child_steps] == ["join"]
    assert (start.index, train.index, join.index) == (None, 1, None)


def test_children_in_nested_foreaches_and_loops(author: Author) -> None:
    run = author.run()
    outer, inner = Frame("start", "xs", 1, 2, "0" * 64), Frame("mid", "ys", 3, 4, "0" * 64)
    author.task(run, "mid", "1", transition=Transition("foreach", ("leaf",), 40, "ys", None, "0" * 64), frames=(outer,))
    for index in range(40):
        author.task(run, "leaf", f"1.{index}", transition=Transition("linear", ("gather",)), frames=(outer, inner))
    author.task(run, "gather", "1", transition=Transition("linear", ("spin",)), frames=(outer,), parents="leaf/1.0+40")
    author.task(run, "spin", "1-0", transition=Transition("switch", ("spin",), None, "again", "True"), frames=(outer,))
    author.task(
        run, "spin", "1-1", transition=Transition("switch", ("after",), None, "again", "False"), frames=(outer,)
    )
    author.task(run, "after", "1", transition=Transition("linear", ("all",)), frames=(outer,), parents="spin/1-1")
    author.task(run, "all", "0", parents="after/0+2")
    children = lambda task: [p.split("/", 2)[2] for p in Task(f"TrainFlow/{run}/{task}").child_task_pathspecs]  # noqa: E731
    assert children("mid/1") == [f"leaf/1.{index}" for index in range(40)]
    assert children("leaf/1.3") == ["gather/1"]
    assert children("gather/1") == ["spin/1-0"]
    assert children("spin/1-0") == ["spin/1-1"]
    assert children("spin/1-1") == ["after/1"]
    assert children("after/1") == ["all/0"]
    gather = Task(f"TrainFlow/{run}/gather/1")
    assert [t.id for t in gather.parent_tasks] == [f"1.{index}" for index in range(40)]
    assert Task(f"TrainFlow/{run}/leaf/1.3").index == 3
    assert [t.pathspec.split("/", 2)[2] for t in Task(f"TrainFlow/{run}/after/1").parent_tasks] == ["spin/1-1"]


LOOPING = {
    "start_step": "start",
    "end_step": "last",
    "steps": {
        "start": {"type": "split-foreach", "next": ["mid"], "matching_join": "all"},
        "mid": {"type": "split-foreach", "next": ["leaf", "other"], "matching_join": "gather"},
        "leaf": {"type": "linear", "next": ["gather"]},
        "other": {"type": "linear", "next": ["gather"]},
        "gather": {"type": "join", "next": ["spin"]},
        "spin": {"type": "split-switch", "next": ["spin", "after"]},
        "after": {"type": "linear", "next": ["all"]},
        "all": {"type": "join", "next": ["last"]},
        "last": {"type": "end", "next": []},
    },
}


RAN = (
    *("start/0", "mid/0", "mid/1", "leaf/0.0", "leaf/0.10", "leaf/0.2", "leaf/1.0", "gather/0", "gather/1"),
    *("spin/1-0", "spin/1-1", "after/0", "after/1"),
)


@pytest.mark.parametrize(
    ("failed", "parents", "index"),
    [
        ("start/0", [], None),
        ("mid/0", ["start/0"], 0),
        ("leaf/0.0", ["mid/0"], 0),
        ("leaf/1.7", ["mid/1"], 7),
        ("gather/0", ["leaf/0.0", "leaf/0.2", "leaf/0.10"], 0),
        ("spin/1-0", ["gather/1"], 1),
        ("spin/1-2", ["spin/1-1"], 1),
        ("after/1", ["spin/1-1"], 1),
        ("all/0", ["after/0", "after/1"], None),
        ("last/0", [], None),
    ],
)
def test_parents_and_index_of_a_failed_task_follow_from_the_graph(
    author: Author, failed: str, parents: list[str], index: int | None
) -> None:
    run = author.run()
    author.task(run, "_parameters", extra={"graph": LOOPING})
    for name in RAN:
        if name != failed:
            author.task(run, *name.split("/"))
    author.failed(run, *failed.split("/"))
    task = Task(f"TrainFlow/{run}/{failed}")
    assert [path.split("/", 2)[2] for path in task.parent_task_pathspecs] == parents
    assert task.index == index
    assert list(task.child_tasks) == []


def test_the_control_task_of_a_gang(author: Author) -> None:
    run = author.run()
    author.task(run, "start", transition=Transition("parallel", ("train",), 2))
    for node in range(2):
        frame = Frame("start", None, node, 2, None)
        author.task(
            run,
            "train",
            str(node),
            transition=Transition("linear", ("join",)),
            frames=(frame,),
            gang=2 if not node else 0,
        )
    step = Step(f"TrainFlow/{run}/train")
    assert step.control_task == Task(f"TrainFlow/{run}/train/0")
    assert len(list(step.control_tasks())) == 1
    assert step.control_task.metadata_dict["parallel-world-size"] == "2"
    assert Step(f"TrainFlow/{run}/start").control_task is None


def test_metadata(author: Author) -> None:
    run = author.trained()
    task = Task(f"TrainFlow/{run}/train/2")
    found = task.metadata_dict
    wanted = {"attempt": "0", "attempt_ok": "True", "user": "ada", "runtime": "local", "python_version": "3.11.9"}
    assert wanted.items() <= found.items()
    assert found["ds-type"] == "local"
    assert found["foreach-indices"] == "2"
    assert found["ds-root"] == author.storage.root
    assert "origin-run-id" not in found
    assert all(isinstance(value, str) for value in found.values())
    first = task.metadata[0]
    assert (first.name, first.value, first.type, first.task) == ("attempt", "0", "attempt", task)
    assert isinstance(first.created_at, datetime)
    parameters = Task(f"TrainFlow/{run}/_parameters/0").metadata_dict
    assert (parameters["start_step"], parameters["end_step"]) == ("start", "end")
    assert task.runtime_name == "local"
    assert task.environment_info["python_version"] == "3.11.9"
    assert task.code is None
    assert Step(f"TrainFlow/{run}/train").environment_info == task.environment_info
    step = Step(f"TrainFlow/{run}/train")
    assert step.finished_at == task.finished_at
    assert step.task == Task(f"TrainFlow/{run}/train/0")
    assert step.created_at is not None
    assert task.created_at is not None
    assert step.created_at < task.created_at


def test_a_cloned_task_shows_what_its_origin_made(author: Author) -> None:
    origin = author.trained()
    run = author.run(origin=f"TrainFlow/{origin}")
    write_clones(author.storage, "TrainFlow", run, "start", f"TrainFlow/{origin}", {"0": "0"})
    author.index.write(
        [TaskRecord("TrainFlow", run, "start", "0", "succeeded", 0, T0, T0 + 1, origin=f"TrainFlow/{origin}/start/0")]
    )
    author.task(run, "train", "1", parents="start/0")
    task = Task(f"TrainFlow/{run}/start/0")
    assert task.origin_pathspec == f"TrainFlow/{origin}/start/0"
    assert task.data.items == [0, 1, 2]
    assert task.stdout == "hällo\nsecond\n"
    assert task.pathspec == f"TrainFlow/{run}/start/0"
    assert task["items"].origin_pathspec == f"TrainFlow/{origin}/start/0/items"
    assert (task.metadata_dict["origin-run-id"], task.metadata_dict["origin-task-id"]) == (origin, "0")
    assert Run(f"TrainFlow/{run}").origin_pathspec == f"TrainFlow/{origin}"
    assert Step(f"TrainFlow/{run}/start").origin_pathspec == f"TrainFlow/{origin}/start"
    assert list(task.child_task_pathspecs) == [f"TrainFlow/{run}/train/1"], "in this run, where only one has begun"
    assert Task(f"TrainFlow/{run}/train/1").origin_pathspec is None


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_leaves_a_note_and_tells_a_runtime_on_this_machine_once(author: Author) -> None:
    script = """
import signal, time
for number in (signal.SIGTERM, signal.SIGURG):
    signal.signal(number, lambda number, _: print(number, flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        owner = this_process()._replace(pid=process.pid, process_start=process_start(process.pid))
        number = author.run(**owner._asdict())
        run = Run(f"TrainFlow/{number}")
        run.cancel()
        assert process.stdout.readline() == f"{int(signal.SIGTERM)}\n"
        assert author.storage.info(f"flows/TrainFlow/{number}/cancel.json") is not None
        run.cancel()
        process.send_signal(signal.SIGURG)  # of two signals that wait, the lower number is handled first
        assert process.stdout.readline() == f"{int(signal.SIGURG)}\n"
    finally:
        process.kill()
        process.communicate()


def test_cancel_never_signals_another_process_of_that_number(author: Author) -> None:
    other = this_process()
    number = author.run(**{**other._asdict(), "host": "elsewhere"})
    author.index.heartbeat("TrainFlow", number, __import__("time").time())
    Run(f"TrainFlow/{number}").cancel()  # this very process has the number: a signal would end the tests
    assert author.storage.info(f"flows/TrainFlow/{number}/cancel.json") is not None
    assert os.getpid() == other.pid


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_run_that_is_over_cannot_be_cancelled(author: Author, state: str) -> None:
    number = author.run(state=state)
    with pytest.raises(Conflict, match="over already"):
        Run(f"TrainFlow/{number}").cancel()
    assert author.storage.info(f"flows/TrainFlow/{number}/cancel.json") is None


def test_a_lost_run_cannot_be_cancelled(author: Author) -> None:
    number = author.run()
    with pytest.raises(Conflict, match="nobody works on"):
        Run(f"TrainFlow/{number}").cancel()
