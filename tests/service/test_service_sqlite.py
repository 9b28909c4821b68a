"""What only SQLite does to the service: one writer and many readers, groups of commits, other processes, the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowkit.exceptions import DataError, StoreError, UsageError
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata_service import sql
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.migrations import migrate
from flowkit.metadata_service.sqlite import SqliteStore

NOW = time.time()
RUN = RunRecord("F", "1", "ada", "running", NOW)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = open_store(str(tmp_path))
    assert isinstance(made, SqliteStore)
    yield made
    made.close()


def task(name: str) -> TaskRecord:
    return TaskRecord("F", "1", "a", name, "succeeded", started=NOW)


def test_readers_do_not_wait_for_a_writer(store: SqliteStore) -> None:
    store.register([RUN])
    with store._transaction() as db:
        db.execute("UPDATE runs SET state = 'failed'")
        with ThreadPoolExecutor(4) as threads:
            found = [*threads.map(lambda _: store.run("F", "1"), range(8))]
        assert {run.state for run in found if run is not None} == {"running"}
        assert store.events_after(0)
    assert store.run("F", "1").state == "failed"  # type: ignore[union-attr]


def test_those_that_wait_are_committed_together_and_a_failed_one_is_undone_alone(store: SqliteStore) -> None:
    store.register([RUN])
    done: list[str] = []

    def write(name: str) -> None:
        with store._transaction() as db:
            db.execute("INSERT INTO facts VALUES (?, 'x')", (name,))
            if name == "bad":
                raise UsageError("no")
        done.append(name)

    def fail() -> None:
        with pytest.raises(UsageError):
            write("bad")

    threads = [threading.Thread(target=write, args=(f"n{n}",)) for n in range(5)] + [threading.Thread(target=fail)]
    with store._transaction() as db:
        for thread in threads:
            thread.start()
        while store._waiting < len(threads):
            time.sleep(0.001)
        db.execute("INSERT INTO facts VALUES ('first', 'x')")
        assert done == []
    for thread in threads:
        thread.join()
    with store._snapshot() as db:
        names = {name for (name,) in db.select("SELECT name FROM facts WHERE value = 'x'")}
    assert names == {"first", "n0", "n1", "n2", "n3", "n4"}


def test_a_group_that_cannot_be_committed_is_told_to_all_of_it(store: SqliteStore) -> None:
    """A page limit plays the full disk: SQLite then undoes the whole transaction, also what others did in it."""
    store.register([RUN])
    failed: list[str] = []

    def write(size: int) -> None:
        try:
            with store._transaction() as db:
                db.execute("INSERT INTO facts VALUES (?, ?)", (f"{size}", "x" * size))
        except StoreError as error:
            failed.append(error.headline)

    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count={pages + 10}")
    threads = [threading.Thread(target=write, args=(size,)) for size in (1, 2_000_000)]
    with store._turn:
        for thread in threads:
            thread.start()
        while store._waiting < len(threads):
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    with store._snapshot() as db:
        there = db.select("SELECT name FROM facts WHERE name IN ('1', '2000000')")
    assert len(failed) + len(there) == 2
    assert any("full" in text for text in failed)
    store._writer.execute("PRAGMA max_page_count=1000000")
    assert store.register([task("0")])


WRITER = """
import sys
from flowkit.metadata.records import TaskRecord
from flowkit.metadata_service.databases import open_store
from concurrent.futures import ThreadPoolExecutor
import threading
store, me = open_store(sys.argv[1]), sys.argv[2]
lock = threading.Lock()
def write(n):
    store.register([TaskRecord("F", "1", "a", f"{me}-{n}", "succeeded", started=1.0)], f"{me}-{n}")
    with lock:
        print(f"{me}-{n}", flush=True)
with ThreadPoolExecutor(4) as threads:
    list(threads.map(write, range(100000)))
"""


def test_what_was_acknowledged_is_there_after_a_kill_also_with_two_processes(
    store: SqliteStore, tmp_path: Path
) -> None:
    store.register([RUN])
    told = [tmp_path / f"told{n}" for n in range(2)]
    processes = []
    try:
        for n, path in enumerate(told):
            with path.open("wb") as file:
                command = [sys.executable, "-c", WRITER, str(tmp_path), str(n)]
                processes.append(subprocess.Popen(command, stdout=file, cwd=tmp_path))
        deadline = time.monotonic() + 60
        while min(path.stat().st_size for path in told) < 400:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in processes)
            store.register([task(str(time.time_ns()))])
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    acknowledged = {line for path in told for line in path.read_text().split("\n")[:-1]}
    assert len(acknowledged) > 100
    found = store.tasks("F", "1")
    assert acknowledged <= {each.task for each in found}
    assert {event.task for event in store.events_after(0, 10**6)} == {None, *(each.task for each in found)}
    with sqlite3.connect(store.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_a_database_that_somebody_holds_locked_is_named_after_a_while(store: SqliteStore) -> None:
    store.register([RUN])
    store.patience = 0.3
    other = sqlite3.connect(store.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by"):
            store.register([task("0")])
        assert store.run("F", "1") is not None
        other.execute("ROLLBACK")
        assert store.register([task("0")])
    finally:
        other.close()


# -- migrations and the file ----------------------------------------------------------------------------------------


def test_looking_makes_nothing_and_many_may_start_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    plan = migrate(f"sqlite:///{folder}", check=True)
    assert plan.pending
    assert not folder.parent.exists()
    with ThreadPoolExecutor(4) as threads:
        stores = [*threads.map(open_store, [str(folder)] * 4)]
    for number, store in enumerate(stores):
        store.register([RUN._replace(run=str(number))])
        store.close()
    assert not migrate(str(folder), check=True).pending
    assert (folder / "service.db").stat().st_mode & 0o077 == 0
    shown = sqlite3.connect(folder / "service.db")
    by_hand = sqlite3.connect(":memory:")
    try:
        for statement in plan.statements:
            by_hand.execute(statement)
        tables = "SELECT name, sql FROM sqlite_master ORDER BY name"
        assert by_hand.execute(tables).fetchall() == shown.execute(tables).fetchall()
    finally:
        shown.close()
        by_hand.close()


@pytest.mark.parametrize("name", [sql.METADATA_VERSION, sql.SERVICE_VERSION])
def test_a_database_of_a_newer_program_is_refused(store: SqliteStore, tmp_path: Path, name: str) -> None:
    with store._transaction() as db:
        db.execute("UPDATE facts SET value = CAST(value AS INTEGER) + 1 WHERE name = ?", (name,))
    for check in (True, False):
        with pytest.raises(StoreError, match="a newer flowkit"):
            migrate(str(tmp_path), check=check)


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "service.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE facts (name, value)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not one of flowkit's service"):
        open_store(str(tmp_path))
    path.write_bytes(b"no database at all, but long enough to be looked at\n" * 100)
    with pytest.raises(DataError, match="damaged"):
        open_store(str(tmp_path))
    assert before
    assert path.read_bytes().startswith(b"no database")


@pytest.mark.parametrize("text", ["", "mysql://x", "sqlite://x", "sqlite:x", "sqlite:///", "http://a:hush@b"])
def test_what_names_no_database_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(text)
    assert "hush" not in str(caught.value)


def test_a_file_that_was_replaced_is_not_written_to_any_more(store: SqliteStore) -> None:
    store.register([RUN])
    os.rename(store.path, f"{store.path}.away")
    for action in (store.ping, lambda: store.register([task("0")])):
        with pytest.raises(StoreError, match="removed or replaced"):
            action()
    os.rename(f"{store.path}.away", store.path)
    assert store.register([task("0")])


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(str(tmp_path / "file" / "below"))


def test_a_relative_and_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for text, folder in (("sqlite:///here", "here"), ("there", "there"), ("~/mine", "home/mine")):
        open_store(text).close()
        assert os.path.exists(tmp_path / folder / "service.db")
    open_store(f"sqlite:///{tmp_path}/absolute").close()
    assert (tmp_path / "absolute" / "service.db").exists()


def test_every_page_of_the_service_is_a_walk_along_an_index(store: SqliteStore) -> None:
    pages = [
        sql.recent_runs((1.0, "F", "1"), None, 10),
        sql.recent_runs((1.0, "F", "1"), "project:p", 10),
        sql.list_artifacts(1, None, None, attempt=None, name=None, after=("a", "0", 0, "x"), limit=10),
        sql.list_artifacts(1, "a", "0", attempt=1, name="x", after=None, limit=10),
        sql.artifacts_by_content("k", (1, "a", "0", 0, "x"), 10),
        sql.readers_of("k", (1, "a", "0", "x"), 10),
        sql.list_reads(1, None, None, ("a", "0", "x", "k"), 10),
        (f"{sql.EVENTS_AFTER} ORDER BY event_id LIMIT ?", [0, 10]),
    ]
    with store._snapshot() as db:
        for query, parameters in pages:
            plan = "\n".join(row[3] for row in db.select(f"EXPLAIN QUERY PLAN {query}", parameters))
            assert "SCAN" not in plan, plan
            assert "TEMP B-TREE" not in plan, plan
