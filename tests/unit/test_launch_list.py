"""Launch lists and records of submissions: the same for the same launches, read row by row, never trusted."""

from __future__ import annotations

import json

import pytest

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layout import blob_file, launches_folder
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.sealed import seal
from flowkit.exceptions import DataError
from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.launch import Launch
from flowkit.runtime import launch_list
from flowkit.runtime.launch_list import read_row, read_rows, save
from flowkit.runtime.submissions import (
    NAME_LENGTH,
    SubmittedJob,
    job_name,
    read_submissions,
    record_intent,
    record_job,
)

START = (Span("start", Coordinates()),)
LAUNCHES = [
    Launch("train", Coordinates((0, 3), 2), START, attempt=1),
    Launch("join", Coordinates((0,)), (Span("a", Coordinates((0, 0)), 9),), TaskRef("split", Coordinates((0,)))),
    Launch("nodes", Coordinates((0,)), START, gang=4),
    Launch("train", Coordinates(), START, kind="fallback"),
]


class Counting(MemoryStorage):
    """Counts the bytes that are read."""

    loaded = 0
    calls = 0

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        found = super().read_range(path, offset, length)
        self.loaded += len(found)
        self.calls += 1
        return found


def test_what_was_saved_is_read_row_by_row() -> None:
    storage = MemoryStorage()
    key = save(storage, LAUNCHES)
    assert [read_row(storage, key, row) for row in range(4)] == LAUNCHES
    assert read_rows(storage, key, 4) == LAUNCHES
    assert save(MemoryStorage(), list(LAUNCHES)) == key
    assert save(storage, LAUNCHES[:3]) != key


def test_a_row_of_a_long_list_costs_two_small_reads() -> None:
    storage = Counting()
    key = save(storage, [Launch("train", Coordinates((index,)), START) for index in range(10_000)])
    storage.loaded = storage.calls = 0
    assert read_row(storage, key, 9_999).coordinates == Coordinates((9_999,))
    assert storage.calls == 2
    assert storage.loaded < 400


@pytest.mark.parametrize("row", [4, 5, 1000, 1 << 40, -1])
def test_there_is_no_row_beyond_the_last(row) -> None:
    storage = MemoryStorage()
    key = save(storage, LAUNCHES)
    with pytest.raises(DataError):
        read_row(storage, key, row)


def test_a_list_that_is_missing_or_of_another_length_is_told() -> None:
    storage = MemoryStorage()
    key = save(storage, LAUNCHES)
    for rows in (3, 5, 100_000):
        with pytest.raises(DataError):
            read_rows(storage, key, rows)
    with pytest.raises(DataError):
        read_row(storage, "0" * 64, 0)
    with pytest.raises(DataError):
        read_row(storage, "../../etc/passwd", 0)


def test_every_byte_that_is_changed_is_noticed() -> None:
    storage = MemoryStorage()
    key = save(storage, LAUNCHES[:1])
    whole = storage.read(blob_file(key))
    for place in range(len(whole)):
        storage.replace(blob_file(key), [whole[:place], bytes([whole[place] ^ 1]), whole[place + 1 :]])
        with pytest.raises(DataError):
            read_row(storage, key, 0)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        '"train"',
        "[" * 5000,
        '["../../x",[0],null,[],null,0,"user",0]',
        '["train",[-1],null,[],null,0,"user",0]',
        '["train",[true],null,[],null,0,"user",0]',
        '["train",["0"],null,[],null,0,"user",0]',
        '["train",[0],0.5,[],null,0,"user",0]',
        '["train",[0],null,[["a",[],null,99]],null,0,"user",0]',
        '["train",[0],null,[["a",[0],null,1000000000000]],null,0,"user",0]',
        '["train",[0],null,[["a",[0],null,0]],null,0,"user",0]',
        '["train",[0],null,[["a"]],null,0,"user",0]',
        '["train",[0],null,[],["a"],0,"user",0]',
        '["train",[0],null,[],null,-1,"user",0]',
        '["train",[0],null,[],null,0,"root",0]',
        '["train",[0],null,[],null,0,"user",99999999999]',
        '["train",[0],null,[],null,0,"user",0,1]',
    ],
)
def test_a_hostile_row_is_refused_though_its_checksum_fits(text, monkeypatch) -> None:
    storage = MemoryStorage()

    class Text(str):
        def encode(self, *_) -> bytes:
            return text.encode()

    monkeypatch.setattr(launch_list.json, "dumps", lambda *_, **__: Text())
    key = save(storage, LAUNCHES[:1])
    monkeypatch.undo()
    with pytest.raises(DataError, match="damaged"):
        read_row(storage, key, 0)


def test_a_table_that_points_anywhere_is_refused() -> None:
    for offset, length in ((0, 10), (1 << 60, 10), (56, 0), (56, (1 << 32) - 1)):
        storage = MemoryStorage()
        entry = launch_list._ENTRY.pack(b"FKL1", 0, 1, offset, length, b"0" * 32)
        key = Blobs(storage).put([entry], len(entry))
        with pytest.raises(DataError):
            read_row(storage, key, 0)


def test_names_of_jobs_are_the_same_for_the_same_and_fit_everywhere() -> None:
    name = job_name("MyFlow_2", "12", "train_it", "k" * 64, 0, "s3://b 1.0")
    assert name.startswith("fk-myflow-2-12-train-it-")
    assert name == job_name("MyFlow_2", "12", "train_it", "k" * 64, 0, "s3://b 1.0")
    others = {
        job_name("MyFlow_2", "12", "train_it", "k" * 64, 1, "s3://b 1.0"),
        job_name("MyFlow_2", "12", "train_it", "k" * 64, 0, "s3://b 2.0"),
        job_name("MyFlow-2", "12", "train_it", "k" * 64, 0, "s3://b 1.0"),
        name,
    }
    assert len(others) == 4
    for flow in ("F" * 200, "Größe", "_", "ÄÖ"):
        made = job_name(flow, "argo-" + "x" * 100, "Å", "k" * 64, 0, "")
        assert len(made) <= NAME_LENGTH
        assert made.isascii()
        assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert not made.endswith("-")


JOB = SubmittedJob("fk-flow-1-train-abc", "batch", "train", "k" * 64, 3, 0, 1, 5.0, {"cpu": 2, "odd": object})


def test_an_intent_is_written_once_and_an_id_is_found_with_it() -> None:
    storage = MemoryStorage()
    assert record_intent(storage, "Flow", "1", JOB)
    assert not record_intent(storage, "Flow", "1", JOB._replace(rows=9))
    (found,) = read_submissions(storage, "Flow", "1")
    assert (found.rows, found.tries, found.job) == (3, 1, None)
    assert record_job(storage, "Flow", "1", JOB.name, "id-1")
    assert not record_job(storage, "Flow", "1", JOB.name, "id-2")
    assert record_intent(storage, "Flow", "1", JOB._replace(name="fk-early", created=1.0))
    found = read_submissions(storage, "Flow", "1")
    assert [(job.name, job.job) for job in found] == [("fk-early", None), (JOB.name, "id-1")]
    assert read_submissions(storage, "Flow", "2") == []


def test_a_name_that_leads_elsewhere_is_refused() -> None:
    for name in ("../up", "UPPER", "a/b", "", "-a", "a" * 64):
        with pytest.raises(DataError):
            record_intent(MemoryStorage(), "Flow", "1", JOB._replace(name=name))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "another"},
        {"rows": 0},
        {"rows": "3"},
        {"rows": 10**9},
        {"gang": -1},
        {"tries": None},
        {"key": 7},
        {"created": "now"},
        {"resources": []},
        None,
    ],
)
def test_what_is_damaged_never_happened(change) -> None:
    storage = MemoryStorage()
    record_intent(storage, "Flow", "1", JOB)
    path = f"{launches_folder('Flow', '1')}/{JOB.name}.json"
    body = json.loads(storage.read(path))["body"]
    content = b"torn" if change is None else seal({**body, **change})
    storage.replace(path, [content])
    storage.replace(f"{launches_folder('Flow', '1')}/not a name.json", [b"junk"])
    assert read_submissions(storage, "Flow", "1") == []
