"""The queue of records on their way to a metadata service: what is on disk, whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowkit.metadata import service_queue
from flowkit.metadata.records import ArtifactRecord, OutputRecord, Record, RunRecord, TaskRecord
from flowkit.metadata.service_queue import Queue, body_of, line_of, newest, of_run, queues

URL = "http://127.0.0.1:8080"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def run(state: Any = "running") -> RunRecord:
    return RunRecord("Train", "7", "ada", state, 1.0)


def task(place: int, state: Any = "succeeded", attempt: int = 0, **values: Any) -> TaskRecord:
    return TaskRecord("Train", "7", "work", str(place), state, attempt, **values)


def add(queue: Queue, *records: Record) -> None:
    queue.append([line_of(record) for record in records])


def sent(queue: Queue) -> list[tuple[str, list[dict[str, Any]]]]:
    """Deliver everything: the key and the records of each batch."""
    found = []
    while (head := queue.head()) is not None:
        key, lines, batch = head
        found.append((key, json.loads(body_of(lines))["records"]))
        queue.done(batch)
    return found


def test_records_are_sent_in_order_the_newest_of_each_attempt() -> None:
    queue = Queue.make(URL, "Train", "7")
    add(queue, run(), task(1, "running"), task(1, "failed"), task(1, "running", 1), task(2, "running"))
    add(queue, task(1, "succeeded", 1))
    assert queue.count == 4
    [(_, records)] = sent(queue)
    assert [(each["kind"], each.get("task"), each.get("attempt"), each["state"]) for each in records] == [
        ("run", None, None, "running"),
        ("task", "1", 0, "failed"),
        ("task", "1", 1, "succeeded"),
        ("task", "2", 0, "running"),
    ]
    queue.close()
    assert queues() == []


def test_what_was_sent_without_an_answer_is_sent_again_under_the_same_key() -> None:
    queue = Queue.make(URL, "Train", "7")
    add(queue, run(), task(1))
    head = queue.head()
    assert head is not None
    add(queue, task(2))  # comes too late for the request that is under way
    [folder] = queues()
    assert Queue.load(folder) is None  # it is held
    queue.close()
    loaded = Queue.load(folder)
    assert loaded is not None
    assert loaded.count == 3
    (key, first), (other, second) = sent(loaded)
    assert key == head[0] != other
    assert len(first) == 2
    assert [each["task"] for each in second] == ["2"]
    loaded.close()
    assert not os.path.exists(folder)


def test_a_killed_process_leaves_what_it_wrote_and_half_a_line_is_passed_over(tmp_path: Path) -> None:
    code = """
import os, signal
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.service_queue import Queue, line_of
queue = Queue.make("http://127.0.0.1:8080", "Train", "7")
queue.append([line_of(RunRecord("Train", "7", "ada", "running", 1.0))])
queue.append([line_of(TaskRecord("Train", "7", "work", "0", "running"))])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "XDG_STATE_HOME": str(tmp_path)}, timeout=60)
    [folder] = of_run(URL, "Train", "7")
    assert of_run(URL, "Train", "70") == of_run("http://other:8080", "Train", "7") == []
    [file] = Path(folder).glob("*.jsonl")
    with file.open("a") as half:
        half.write('{"kind":"task","flow":"Tr')
    loaded = Queue.load(folder)
    assert loaded is not None
    [(_, records)] = sent(loaded)
    assert [each["kind"] for each in records] == ["run", "task"]
    loaded.close()


def test_a_queue_is_bounded_and_keeps_the_newest_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_queue, "MOST_BYTES", 200_000)
    monkeypatch.setattr(service_queue, "BATCH_BYTES", 20_000)
    queue = Queue.make(URL, "Train", "7")
    add(queue, run())
    assert queue.head() is not None  # under way: it must not change any more
    [folder] = queues()
    for attempt in range(30):
        add(queue, *(task(place, "failed", attempt) for place in range(100)))
        assert sum(file.stat().st_size for file in Path(folder).glob("*.jsonl")) < 250_000
    assert queue.dropped == 0
    batches = sent(queue)
    assert [each["kind"] for each in batches[0][1]] == ["run"]
    last = {each["task"]: each["attempt"] for _, records in batches[1:] for each in records}
    assert last == {str(place): 29 for place in range(100)}
    queue.close()


def test_outputs_make_room_first_and_what_has_none_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_queue, "MOST_BYTES", 100_000)
    queue = Queue.make(URL, "Train", "7")
    artifacts = (ArtifactRecord("x", "k" * 64, 1, "int", "pickle"),)
    add(queue, run())
    for place in range(300):
        add(queue, task(place), OutputRecord("Train", "7", "work", str(place), 0, artifacts))
    records = [record for _, records in sent(queue) for record in records]
    assert len(records) + queue.dropped == 601
    assert queue.dropped > 0
    kinds = [record["kind"] for record in records]
    assert kinds.count("run") == 1
    assert kinds.count("task") == 300
    queue.close()


def test_without_a_disk_records_are_kept_in_memory(state: Path) -> None:
    state.joinpath("flowkit").write_text("a file where the folder should be")
    queue = Queue.make(URL, "Train", "7")
    assert not queue.on_disk
    add(queue, run(), task(1))
    assert [len(records) for _, records in sent(queue)] == [2]
    queue.close()


def test_texts_and_lists_are_cut_to_what_a_service_takes() -> None:
    line = json.loads(line_of(task(1, "failed", reason="x" * 100_000 + "\udcff")).text)
    assert len(line["reason"]) < 65_536
    line = json.loads(line_of(task(1, "failed", reason="a\0b\udcff")).text)
    assert line["reason"] == "a\ufffdb?"
    reads = tuple(f"a{place}=k" for place in range(20_000))
    assert len(json.loads(line_of(OutputRecord("T", "7", "s", "0", 0, (), reads)).text)["reads"]) == 10_000


def test_what_is_no_queue_is_left_alone(state: Path) -> None:
    folder = state / "flowkit/service/host-0123/Train-7-0000"
    folder.mkdir(parents=True)
    assert queues() == []
    (folder / "queue.json").write_text("{")
    assert queues() == [str(folder)]
    with pytest.raises(ValueError, match="Expecting"):
        Queue.load(str(folder))


def test_appending_costs_the_same_however_much_waits() -> None:
    queue = Queue.make(URL, "Train", "7")
    lines = [line_of(task(place)) for place in range(20_000)]
    for start in range(0, len(lines), 10):
        queue.append(lines[start : start + 10])
    assert queue.count == 20_000
    assert len(newest(lines)) == 20_000
    queue.close(discard=True)
