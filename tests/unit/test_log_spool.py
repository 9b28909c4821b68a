"""Logs on their way to a storage that cannot append: while they grow, at the end, after failures and kills."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from flowkit.datastore.logs import format_line, log_parts, parse_lines, read_log
from flowkit.datastore.memory import MemoryStorage
from flowkit.exceptions import StoreError
from flowkit.runtime import log_spool
from flowkit.runtime.log_spool import LogSpool


class Switched(MemoryStorage):
    """Can be told to take nothing, or not to answer."""

    def __init__(self) -> None:
        super().__init__("memory:switched")
        self.works = True
        self.answers = threading.Event()
        self.answers.set()

    def create(self, path, content):
        self.answers.wait(30)
        if not self.works:
            raise StoreError("the service is down")
        return super().create(path, content)


@pytest.fixture
def storage(tmp_path, monkeypatch):
    monkeypatch.setattr(log_spool, "machine_folder", lambda storage: str(tmp_path / "machine"))
    monkeypatch.setattr(log_spool, "LATE_LINES", 0.05)
    monkeypatch.setattr(log_spool, "FIRST_INTERVAL", 0.02)
    return Switched()


@pytest.fixture
def opened():
    spools = []

    def make(storage, run="1"):
        spools.append(LogSpool(storage, "F", run))
        return spools[-1]

    yield make
    for spool in spools:
        spool.close()


def write(spool: LogSpool, task: str, *texts: str) -> None:
    path = Path(spool.folder, "a", task, "0", "log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for text in texts:
            file.write(format_line(time.time(), "out", text.encode()))


def stored(storage, task: str, run: str = "1") -> list[str]:
    return [line.text.decode() for line in read_log(storage, "F", run, "a", task, 0)]


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_log_comes_while_it_grows_and_whole_at_its_end(storage, opened) -> None:
    spool = opened(storage)
    spool.began("a", "0", 0)
    write(spool, "0", "one")
    until(lambda: stored(storage, "0") == ["one"])
    write(spool, "0", "two")
    until(lambda: stored(storage, "0") == ["one", "two"])
    write(spool, "0", "three")
    spool.ended("a", "0", 0)
    until(lambda: stored(storage, "0") == ["one", "two", "three"])
    write(spool, "0", "late")
    spool.settle()
    assert stored(storage, "0")[:3] == ["one", "two", "three"]
    assert not list(Path(spool.folder).glob("**/log")) or stored(storage, "0")[-1] == "late"


def test_settling_brings_everything(storage, opened) -> None:
    spool = opened(storage)
    for task in range(300):
        spool.began("a", str(task), 0)
        if task % 3:
            write(spool, str(task), f"line of {task}", "more")
        if task % 2:
            spool.ended("a", str(task), 0)
    spool.settle()
    for task in range(300):
        assert stored(storage, str(task)) == ([f"line of {task}", "more"] if task % 3 else [])
    folder = spool.folder
    spool.close()
    assert not os.path.exists(folder)
    assert spool.troubles == []


def test_nobody_waits_for_a_storage_that_does_not_answer(storage, opened) -> None:
    spool = opened(storage)
    storage.answers.clear()
    for task in range(100):
        spool.began("a", str(task), 0)
        write(spool, str(task), "x")
        spool.ended("a", str(task), 0)
    assert stored(storage, "0") == []
    storage.answers.set()
    spool.settle()
    assert all(stored(storage, str(task)) == ["x"] for task in range(100))


def test_what_cannot_be_brought_is_told_and_brought_by_the_next_run(storage, opened, monkeypatch) -> None:
    monkeypatch.setattr(log_spool, "PATIENCE", 0.3)
    spool = opened(storage)
    spool.began("a", "0", 0)
    write(spool, "0", "one")
    until(lambda: stored(storage, "0") == ["one"])
    storage.works = False
    write(spool, "0", "two")
    spool.ended("a", "0", 0)
    spool.settle()
    spool.settle()  # gives up once
    assert [text for text in spool.troubles if "service is down" in text] == spool.troubles[:1]
    assert len(spool.troubles) == 2
    assert "could not be brought" in spool.troubles[1]
    spool.close()
    storage.works = True
    later = opened(storage, "2")
    later.began("a", "0", 0)
    until(lambda: stored(storage, "0") == ["one", "two"])
    assert log_parts(storage, "F", "1", "a", "0", 0)[1] == [1, 2]
    later.settle()
    later.close()
    machine = Path(later.folder).parents[2]
    assert list(machine.iterdir()) == []


def test_the_folder_of_a_run_that_is_at_work_is_left_alone(storage, opened) -> None:
    first, second = opened(storage, "1"), opened(storage, "2")
    first.began("a", "0", 0)
    write(first, "0", "one")
    second.began("a", "9", 0)
    write(second, "9", "other")
    second.settle()
    second.close()
    assert os.path.isdir(first.folder)
    first.settle()
    assert stored(storage, "0") == ["one"]


def test_no_home_is_no_reason_to_fail(storage, opened, tmp_path) -> None:
    (tmp_path / "machine").write_text("a file")
    spool = opened(storage)
    spool.began("a", "0", 0)
    write(spool, "0", "one")
    spool.settle()
    assert stored(storage, "0") == ["one"]
    assert not spool.folder.startswith(str(tmp_path / "machine"))
    spool.close()
    assert not os.path.exists(spool.folder)


def test_the_form_of_lines_is_kept(storage, opened) -> None:
    spool = opened(storage)
    spool.began("a", "0", 0)
    path = Path(spool.folder, "a", "0", "0", "log")
    path.parent.mkdir(parents=True)
    content = b"".join(format_line(i, "err" if i % 2 else "out", b"\xff" * i, partial=i % 3 == 0) for i in range(50))
    path.write_bytes(content)
    spool.settle()
    assert list(read_log(storage, "F", "1", "a", "0", 0)) == list(parse_lines(content))
