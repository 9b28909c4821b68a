"""The metadata store made anew from what runs left in the datastore."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.client.rebuild import Summary, rebuild, remake
from flowkit.datastore import layout
from flowkit.datastore.manifests import write_clones, write_failure, write_manifest
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.runs import bury_run, claim_named_run, claim_run, write_end, write_tags
from flowkit.datastore.storage import Storage
from flowkit.metadata.liveness import this_process
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.sqlite import SqliteMetadata, set_aside
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.model.manifest import Failure, Manifest
from flowkit.model.transition import Transition

NOW = time.time()
FLOW = "Train"


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    made = SqliteMetadata(str(tmp_path)) if request.param == "sqlite" else MemoryMetadata()
    with contextlib.closing(made):
        yield made


def claim(storage: Storage, created: float = NOW - 50, **values: Any) -> str:
    record = {"user": "ada", "created": created, "tags": ["t"], "system_tags": ["user:ada"], **values}
    return claim_run(storage, FLOW, record)


def commit(storage: Storage, run: str, step: str, task: str, attempt: int = 0) -> TaskRecord:
    times = NOW - 40 + attempt, NOW - 30
    write_manifest(
        storage,
        Manifest(FLOW, run, step, task, attempt, {}, Transition("linear", ("end",)), started=times[0], ended=times[1]),
    )
    return TaskRecord(FLOW, run, step, task, "succeeded", attempt, *times)


def fail(storage: Storage, run: str, step: str, task: str, attempt: int, kind: str = "error") -> TaskRecord:
    failure = Failure(kind, f"{kind}!", attempt=attempt, started=NOW - 20, ended=NOW - 10)
    write_failure(storage, FLOW, run, step, task, failure)
    state = "cancelled" if kind == "cancelled" else "failed"
    return TaskRecord(FLOW, run, step, task, state, attempt, NOW - 20, NOW - 10, failure.message)  # type: ignore[arg-type]


def runs(store: MetadataStore) -> list[RunRecord]:
    return store.runs(FLOW, RunFilter())


def tasks(store: MetadataStore, run: str) -> set[TaskRecord]:
    return set(store.tasks(FLOW, run))


def test_everything_comes_back(storage: Storage, store: MetadataStore) -> None:
    one, two = claim(storage), claim(storage, origin=f"{FLOW}/1", rerun="b")
    claim_named_run(storage, FLOW, "argo-x7", {"user": "bob", "created": NOW - 60})
    expected = {
        commit(storage, one, "_parameters", "0"),
        commit(storage, one, "a", "0", 2),
        fail(storage, one, "b", "3.1", 0),
        fail(storage, one, "b", "3.2", 1, "cancelled"),
    }
    fail(storage, one, "a", "0", 0)
    fail(storage, one, "a", "0", 1)
    storage.create(layout.log_file(FLOW, one, "c", "0-2", 1), [b"it ran\n"])
    write_end(storage, FLOW, one, {"state": "failed", "reason": "b/3.1: error!", "finished": NOW - 5})
    write_clones(storage, FLOW, two, "a", f"{FLOW}/{one}", {"0": "0"})
    write_tags(storage, FLOW, two, ["new", "tags"])

    told: list[int] = []
    summary = rebuild(storage, store, lambda so_far: told.append(so_far.tasks))

    assert (summary.flows, summary.runs, summary.tasks, summary.problems) == (1, 3, 6, [])
    assert told == [6]
    failed = store.run(FLOW, one)
    assert failed == RunRecord(
        FLOW, one, "ada", "failed", NOW - 50, "b/3.1: error!", NOW - 5, NOW - 5, ("t",), ("user:ada",)
    )
    assert {r.run: (r.state, r.tags, r.origin) for r in runs(store)} == {
        "1": ("failed", ("t",), None),
        "2": ("lost", ("new", "tags"), "Train/1"),
        "argo-x7": ("lost", (), None),
    }
    assert tasks(store, one) == expected | {TaskRecord(FLOW, one, "c", "0-2", "running", 1)}
    (cloned,) = tasks(store, two)
    assert (cloned.state, cloned.origin) == ("succeeded", "Train/1/a/0")
    assert not store.fresh


def test_again_changes_nothing(storage: Storage, store: MetadataStore) -> None:
    run = claim(storage)
    commit(storage, run, "a", "0")
    write_end(storage, FLOW, run, {"state": "succeeded", "reason": None, "finished": NOW})
    rebuild(storage, store)
    before = runs(store), tasks(store, run)
    assert rebuild(storage, store).runs == 1
    assert (runs(store), tasks(store, run)) == before


def test_what_the_datastore_does_not_have_is_forgotten(storage: Storage, store: MetadataStore) -> None:
    kept, deleted = claim(storage), claim(storage)
    bury_run(storage, FLOW, deleted)
    for flow, run in ((FLOW, kept), (FLOW, deleted), (FLOW, "99"), ("Gone", "1")):
        store.write([RunRecord(flow, run, "ada", "failed", NOW - 500), TaskRecord(flow, run, "wrong", "0", "failed")])
    summary = rebuild(storage, store)
    assert summary.forgotten == 3
    assert [run.run for run in runs(store)] == [kept]
    assert [flow.flow for flow in store.flows()] == [FLOW]
    assert tasks(store, kept) == set(), "what the index knew of a run that is over does not count"
    assert runs(store)[0].created == NOW - 50


def test_a_living_run_keeps_its_records(storage: Storage, store: MetadataStore) -> None:
    owner = this_process()._asdict()
    run = claim(storage, **owner)
    committed = commit(storage, run, "a", "0")
    write_tags(storage, FLOW, run, ["newer"])
    living = RunRecord(FLOW, run, "ada", "running", NOW - 50, tags=("t",), system_tags=("user:ada",), **owner)
    running = TaskRecord(FLOW, run, "b", "0", "running", 0, NOW, pid=5)
    store.write([living, TaskRecord(FLOW, run, "a", "0", "running", 0, NOW), running])
    store.heartbeat(FLOW, run, NOW)
    rebuild(storage, store)
    found = store.run(FLOW, run)
    assert found is not None
    assert (found.state, found.heartbeat, found.tags) == ("running", NOW, ("newer",))
    assert tasks(store, run) == {committed, running}


def test_what_is_damaged_is_told_and_the_rest_is_there(storage: Storage, store: MetadataStore) -> None:
    good, no_record, no_task, odd = (claim(storage) for _ in range(4))
    commit(storage, good, "a", "0")
    commit(storage, no_task, "a", "0")
    commit(storage, no_task, "a", "1")
    write_clones(storage, FLOW, no_task, "b", f"{FLOW}/{good}", {"0": "0"})
    storage.replace(layout.run_file(FLOW, no_record), [b"{}"])
    storage.replace(layout.manifest_file(FLOW, no_task, "a", "0"), [b""])
    storage.replace(layout.clones_file(FLOW, no_task, "b"), [b"torn"])
    storage.replace(layout.end_file(FLOW, odd), [b"torn"])
    storage.create(f"flows/{FLOW}/.stray", [b"x"])
    storage.create("flows/no flow/1/run.json", [b"x"])
    claim_named_run(storage, FLOW, "odd-created", {"user": "ada", "created": "yesterday"})
    claim_named_run(storage, FLOW, "odd-fields", {"user": "ada", "created": NOW, "tags": 7, "pid": 2**99, "host": {}})
    store.write([RunRecord(FLOW, no_record, "ada", "failed", NOW - 50)])
    summary = rebuild(storage, store)
    text = "\n".join(summary.problems)
    assert f"{FLOW}/{no_record}: " in text
    assert f"{FLOW}/{no_task}/a/0: " in text
    assert f"{FLOW}/{no_task}/b: " in text
    assert f"{FLOW}/odd-created: " in text
    assert len(summary.problems) == 4
    assert {run.run for run in runs(store)} == {good, no_record, no_task, odd, "odd-fields"}
    assert {task.task for task in tasks(store, no_task)} == {"1"}


def test_clones_of_clones_lead_to_the_task_that_ran(storage: Storage, store: MetadataStore) -> None:
    first, second, third = (claim(storage) for _ in range(3))
    commit(storage, first, "a", "0")
    write_clones(storage, FLOW, second, "a", f"{FLOW}/{first}", {"0": "0"})
    write_clones(storage, FLOW, third, "a", f"{FLOW}/{second}", {"0": "0"})
    rebuild(storage, store)
    assert [task.origin for run in (second, third) for task in tasks(store, run)] == ["Train/1/a/0"] * 2


def test_many_tasks_come_in_batches(storage: Storage, store: MetadataStore) -> None:
    for _ in range(3):
        run = claim(storage)
        write_clones(storage, FLOW, run, "a", f"{FLOW}/0", {str(index): str(index) for index in range(900)})
    seen: list[Summary] = []
    assert rebuild(storage, store, seen.append).tasks == 2700
    assert len(seen) == 3
    assert all(len(store.tasks(FLOW, run.run)) == 900 for run in runs(store))


def test_an_empty_datastore(storage: Storage, store: MetadataStore) -> None:
    assert rebuild(storage, store) == Summary()
    assert not store.fresh


def test_a_damaged_database_is_set_aside_and_made_anew(storage: Storage, tmp_path: Path) -> None:
    run = claim(storage)
    commit(storage, run, "a", "0")
    root = str(tmp_path)
    for damage in (b"rubbish" * 1000, None):
        database = tmp_path / "metadata.db"
        if damage is not None:
            database.write_bytes(damage)
        else:  # the schema is whole, what it describes is not
            with contextlib.closing(SqliteMetadata(root)) as store:
                store.write([TaskRecord(FLOW, run, "b", str(index), "succeeded") for index in range(2000)])
            content = database.read_bytes()
            database.write_bytes(content[:4096] + content[4096:].replace(FLOW.encode(), b"\0\0\0\0\0")[::-1])
        summary, aside = remake(storage, lambda: SqliteMetadata(root), lambda: set_aside(root))
        assert (summary.runs, summary.problems) == (1, [])
        assert aside is not None
        assert Path(aside).exists()
        with contextlib.closing(SqliteMetadata(root)) as store:
            assert not store.fresh
            assert [found.run for found in runs(store)] == [run]
            assert {task.step for task in tasks(store, run)} == {"a"}
    assert remake(storage, lambda: SqliteMetadata(root), lambda: set_aside(root))[1] is None
