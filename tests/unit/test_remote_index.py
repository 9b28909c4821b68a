"""The index of a remote root: runs of others are found, followed and told from dead ones, with few calls."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from flowkit.client import remote_index
from flowkit.client.remote_index import RemoteIndex
from flowkit.datastore.lease import Lease
from flowkit.datastore.manifests import write_failure, write_manifest
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.runs import (
    bury_run,
    claim_run,
    read_heartbeat,
    read_tags,
    write_end,
    write_heartbeat,
    write_tags,
)
from flowkit.exceptions import NotFound, UsageError
from flowkit.metadata.liveness import this_process
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.store import RunFilter
from flowkit.model.manifest import Failure, Manifest
from flowkit.model.transition import Transition

ALL = RunFilter()


class Counting(MemoryStorage):
    """Counts the objects that are read."""

    def __init__(self) -> None:
        super().__init__("memory:shared")
        self.reads: list[str] = []

    def read(self, path):
        self.reads.append(path)
        return super().read(path)


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_index, "LOOK_EVERY", 0.0)
    return Counting()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Open the index of a machine of that name."""
    opened = []

    def open_index(storage, name="mine"):
        folder = str(tmp_path / name)
        monkeypatch.setattr(remote_index, "machine_folder", lambda storage: folder)
        opened.append(RemoteIndex(storage))
        return opened[-1]

    yield open_index
    for index in opened:
        index.close()


def begin(storage, created: float = 1000.0, **fields) -> str:
    claim = {"user": "ada", "created": created, "tags": [], "system_tags": ["user:ada"], "host": "elsewhere", **fields}
    run = claim_run(storage, "F", claim)
    commit(storage, run, "_parameters", "0")
    return run


def commit(storage, run: str, step: str, task: str) -> None:
    write_manifest(storage, Manifest("F", run, step, task, 0, {}, Transition("end"), started=1001.0, ended=1002.0))


def end(storage, run: str, state: str = "succeeded") -> None:
    write_end(storage, "F", run, {"state": state, "reason": None, "finished": 1010.0})


def names(index, **which) -> list[tuple[str, str]]:
    return [(record.run, record.state) for record in index.runs("F", RunFilter(**which))]


def test_runs_of_others_are_found(storage, machine) -> None:
    index = machine(storage)
    assert index.flows() == []
    first = begin(storage)
    end(storage, first)
    assert [flow.flow for flow in index.flows()] == ["F"]
    assert names(index) == [("1", "succeeded")]
    assert index.run("F", "2") is None
    second = begin(storage, created=time.time())
    end(storage, second, "failed")
    assert names(index) == [("2", "failed"), ("1", "succeeded")]
    assert index.run("F", "2").user == "ada"
    bury_run(storage, "F", begin(storage))
    assert len(names(index)) == 2
    assert names(machine(storage, "another")) == names(index)


def test_only_what_is_new_is_read(storage, machine) -> None:
    index = machine(storage)
    runs = [begin(storage, created=1000.0 + number) for number in range(20)]
    for run in runs:
        end(storage, run)
    index.runs("F", ALL)
    storage.reads.clear()
    index.runs("F", ALL)
    assert storage.reads == []
    run = begin(storage, created=2000.0)
    for task in range(10):
        commit(storage, run, "each", str(task))
    assert len(index.tasks("F", run)) == 10
    storage.reads.clear()
    commit(storage, run, "each", "10")
    assert len(index.tasks("F", run)) == 11
    assert [path for path in storage.reads if "/each/" in path and "manifest" in path] == [
        f"flows/F/{run}/each/10/manifest.json"
    ]
    end(storage, run)
    assert len(index.tasks("F", run)) == 12  # with the parameters, whose record comes last
    storage.reads.clear()
    index.tasks("F", run)
    index.steps("F", run)
    assert [path for path in storage.reads if "manifest" in path] == []


def test_whether_a_run_of_another_machine_is_alive(storage, machine) -> None:
    index = machine(storage)
    run = begin(storage)
    assert index.run("F", run).state == "lost"
    write_heartbeat(storage, "F", run, {"when": time.time(), "host": "elsewhere", "pid": 7})
    assert index.run("F", run).state == "running"
    assert names(index, status="running") == [(run, "running")]
    write_heartbeat(storage, "F", run, {"when": time.time() - 100, "host": "elsewhere", "pid": 7})
    assert index.run("F", run).state == "lost"
    lease = Lease.acquire(storage, "F", run, {"user": "bob", "host": "a third", "pid": 8})
    assert names(index) == [(run, "running")]
    assert index.run("F", run).host == "a third"
    lease.release()
    end(storage, run)
    assert names(index) == [(run, "succeeded")]


def test_tasks_of_a_run_that_was_taken_over_are_whole_at_its_end(storage, machine) -> None:
    index = machine(storage)
    run = begin(storage)
    commit(storage, run, "each", "0")
    record = RunRecord("F", run, "ada", "running", 1000.0, host="elsewhere", heartbeat=1000.0)
    # As this machine's own runtime left it when it was killed.
    index.write(
        [record, TaskRecord("F", run, "_parameters", "0", "succeeded"), TaskRecord("F", run, "each", "0", "running")]
    )
    commit(storage, run, "each", "1")
    write_failure(storage, "F", run, "each", "2", Failure("error", "no luck", attempt=0, ended=1005.0))
    end(storage, run, "failed")
    assert names(index) == [(run, "failed")]
    states = {(task.step, task.task): task.state for task in index.tasks("F", run)}
    assert states == {
        ("_parameters", "0"): "succeeded",
        ("each", "0"): "succeeded",
        ("each", "1"): "succeeded",
        ("each", "2"): "failed",
    }


def test_own_runs_are_not_read_from_the_datastore(storage, machine) -> None:
    index = machine(storage)
    owner = this_process()._asdict()
    run = begin(storage, created=time.time(), **owner)
    record = RunRecord("F", run, "ada", "running", time.time(), **owner)
    index.write([record, TaskRecord("F", run, "each", "0", "running", started=time.time())])
    commit(storage, run, "each", "1")
    storage.reads.clear()
    assert names(index) == [(run, "running")]
    assert [task.task for task in index.tasks("F", run)] == ["0"]
    assert [path for path in storage.reads if f"/{run}/" in path] == []
    # Another user of this machine has an index of their own, and reads.
    other = machine(storage, "another user")
    assert [task.task for task in other.tasks("F", run, "each")] == ["1"]
    index.heartbeat("F", run, time.time())
    deadline = time.monotonic() + 20
    while read_heartbeat(storage, "F", run) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read_heartbeat(storage, "F", run)["pid"] == os.getpid()
    index.write([record._replace(state="succeeded", finished=time.time())])
    assert list(Path(index.root, remote_index.WRITERS).iterdir()) == []


def test_tags_of_many_at_once_all_stay(storage, machine) -> None:
    run = begin(storage)
    end(storage, run)
    indexes = [machine(storage, f"machine {number}") for number in range(4)]
    for index in indexes:
        index.run("F", run)

    def add(index, number: int) -> None:
        for turn in range(5):
            index.change_tags("F", run, [f"{number}-{turn}"], [f"{number}-{turn - 1}"])

    threads = [threading.Thread(target=add, args=pair) for pair in zip(indexes, range(4), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = ("0-4", "1-4", "2-4", "3-4")
    assert tuple(read_tags(storage, "F", run)) == wanted
    assert all(index.run("F", run).tags == wanted for index in indexes)
    with pytest.raises(UsageError, match="system tags"):
        indexes[0].change_tags("F", run, [], ["user:ada"])
    with pytest.raises(NotFound):
        indexes[0].change_tags("F", "9", ["x"], [])
    write_tags(storage, "F", run, ["by hand", "x" * 9999])
    assert indexes[1].run("F", run).tags == wanted  # what is no tag is left out


def test_runs_that_are_gone_are_forgotten(storage, machine) -> None:
    index = machine(storage)
    for _ in range(2):
        end(storage, begin(storage))
    assert len(names(index)) == 2
    for path in [path for path in storage._objects if path.startswith("flows/F/1/")]:
        storage.delete(path)
    assert names(index) == [("2", "succeeded")]


def test_damage_hides_nothing_else(storage, machine) -> None:
    for _ in range(3):
        end(storage, begin(storage))
    storage.replace("flows/F/2/run.json", [b"torn"])
    storage.replace("flows/F/3/_parameters/0/manifest.json", [b"torn"])
    index = machine(storage)
    assert names(index) == [("3", "succeeded"), ("1", "succeeded")]
    assert index.run("F", "2") is None
    assert index.tasks("F", "3") == []


def test_no_folder_to_write_to(storage, machine, tmp_path) -> None:
    (tmp_path / "mine").write_text("a file")
    end(storage, begin(storage))
    assert names(machine(storage)) == [("1", "succeeded")]
