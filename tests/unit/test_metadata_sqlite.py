"""The SQLite store under attack: many writers, kills, locks, damaged, deleted and foreign databases, read-only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.exceptions import StoreError
from flowkit.metadata.places import lock_holder, network_file_system
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.sqlite import FILE, SqliteMetadata, set_aside
from flowkit.metadata.store import RunFilter

Start = Callable[..., "subprocess.Popen[str]"]
NOW = time.time()


@pytest.fixture
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A root that does not exist yet; with the parameter "open", one that strangers can see (pytest's are closed)."""
    if getattr(request, "param", None) != "open":
        yield tmp_path / "root"
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "root"


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    """Starts Python code that knows `root`, and kills what is left at the end."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        head = """
            import os, sqlite3, sys, time
            from flowkit.metadata.records import RunRecord, TaskRecord
            from flowkit.metadata.sqlite import SqliteMetadata
            from flowkit.metadata.store import RunFilter
            root = sys.argv[1]
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), str(root), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def run(name: str, **values: Any) -> RunRecord:
    return RunRecord("Train", name, "ada", values.pop("state", "succeeded"), NOW, heartbeat=NOW, **values)


def task(name: str, of: str = "1", step: str = "a") -> TaskRecord:
    return TaskRecord("Train", of, step, name, "succeeded", 0, NOW, NOW)


def read_all(root: Path) -> None:
    with contextlib.closing(SqliteMetadata(str(root))) as store:
        names(store)


def names(store: SqliteMetadata) -> list[str]:
    return [record.run for record in store.runs("Train", RunFilter())]


# -- many at once -------------------------------------------------------------------------------------------------

WRITER = """
    store = SqliteMetadata(root)
    name = sys.argv[2]
    print("ready", flush=True); sys.stdin.readline()
    store.write([RunRecord("Train", name, "ada", "succeeded", 1.0 * int(name))])
    for turn in range(20):
        store.write([TaskRecord("Train", name, "a", str(turn * 10 + i), "succeeded", 0, 1.0, 2.0) for i in range(10)])
        store.heartbeat("Train", name, time.time())
    store.close()
"""


def test_several_processes_make_the_database_and_write_at_once(root: Path, start: Start) -> None:
    writers = [start(WRITER, name) for name in range(1, 9)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        finish(writer)
    store = SqliteMetadata(str(root))
    assert names(store) == [str(name) for name in range(8, 0, -1)]
    assert all(len(store.tasks("Train", str(name))) == 200 for name in range(1, 9))
    store.close()
    assert sorted(os.listdir(root)) == [FILE]


def test_a_writer_that_is_killed_leaves_whole_batches_only(root: Path, start: Start) -> None:
    SqliteMetadata(str(root)).close()
    for round_ in range(4):
        name = str(round_ + 1)
        writer = start(
            """
            store = SqliteMetadata(root)
            store.write([RunRecord("Train", sys.argv[2], "ada", "running", 1.0)])
            for turn in range(100_000):
                store.write([TaskRecord("Train", sys.argv[2], "a", str(turn * 50 + i), "succeeded") for i in range(50)])
                if turn == 5 + 7 * int(sys.argv[2]):
                    print("going", flush=True)
            """,
            name,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "going\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        store = SqliteMetadata(str(root))
        tasks = {int(t.task) for t in store.tasks("Train", name)}
        assert tasks == set(range(len(tasks)))
        assert len(tasks) % 50 == 0
        assert len(tasks) >= 50 * (5 + 7 * int(name))
        store.write([run(f"after-{name}")])
        store.close()


def test_a_forked_child_does_not_share_the_connection(root: Path) -> None:
    store = SqliteMetadata(str(root))
    store.write([run("1")])
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store.write([run("2")])
            status = 0 if names(store) == ["2", "1"] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    store.write([run("3")])
    assert names(store) == ["3", "2", "1"]
    store.close()


# -- locks --------------------------------------------------------------------------------------------------------

HOLDER = """
    connection = sqlite3.connect(f"{root}/metadata.db", isolation_level=None)
    connection.execute(f"PRAGMA locking_mode={'EXCLUSIVE' if sys.argv[2:] else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    print("locked", flush=True)
    sys.stdin.readline()
    connection.execute("ROLLBACK")
"""


def test_a_lock_is_waited_for_and_nothing_is_lost(root: Path, start: Start) -> None:
    notices: list[str] = []
    store = SqliteMetadata(str(root), notice=notices.append)
    holder = start(HOLDER)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    freer = start("time.sleep(2.5)")
    import threading

    def free() -> None:
        freer.wait()
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()

    thread = threading.Thread(target=free)
    thread.start()
    store.write([run("1")])
    thread.join()
    assert names(store) == ["1"]
    assert len(notices) == 1
    assert str(holder.pid) in notices[0]
    store.close()


def test_a_lock_that_is_held_for_too_long_is_an_error_that_names_its_holder(root: Path, start: Start) -> None:
    store = SqliteMetadata(str(root), patience=0.3)
    store.write([run("1", state="running")])
    holder = start(HOLDER)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(StoreError, match=rf"locked by process {holder.pid} \(.*python") as raised:
        store.write([run("2")])
    assert str(root) in str(raised.value)
    store.heartbeat("Train", "1", time.time())
    assert names(store) == ["1"], "reading goes on beside a writer"
    other = SqliteMetadata(str(root))
    assert names(other) == ["1"], "opening does not need the lock"
    other.close()
    holder.communicate("\n")
    store.write([run("2")])
    assert names(store) == ["2", "1"]
    assert lock_holder(store.path) is None
    store.close()


def test_a_database_that_is_held_by_one_alone_cannot_be_opened_by_another(root: Path, start: Start) -> None:
    SqliteMetadata(str(root)).close()
    holder = start(HOLDER, "EXCLUSIVE")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    for read_only in (False, True):
        with pytest.raises(StoreError, match=rf"locked by process {holder.pid} "):
            SqliteMetadata(str(root), patience=0.3, read_only=read_only)
    holder.communicate("\n")
    SqliteMetadata(str(root)).close()


# -- a database that is not as it should be -----------------------------------------------------------------------


def made(root: Path, tasks: int = 3000) -> None:
    store = SqliteMetadata(str(root))
    store.write([run("1", tags=("x",)), *(task(str(number)) for number in range(tasks))])
    store.settle()
    store.close()


def test_a_new_database_says_so_until_it_is_settled(root: Path) -> None:
    store = SqliteMetadata(str(root))
    assert store.fresh
    store.close()
    store = SqliteMetadata(str(root))
    assert store.fresh, "whoever made it may have died before filling it"
    store.settle()
    assert not store.fresh
    store.close()
    store = SqliteMetadata(str(root))
    assert not store.fresh
    store.close()


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_database_is_made_anew(root: Path, content: bytes | None) -> None:
    made(root)
    (root / FILE).unlink()
    (root / f"{FILE}-wal").write_bytes(b"left behind")
    (root / f"{FILE}-shm").write_bytes(b"left behind")
    if content is not None:
        (root / FILE).write_bytes(content)
    store = SqliteMetadata(str(root))
    assert store.fresh
    assert names(store) == []
    store.write([run("2")])
    assert names(store) == ["2"]
    store.close()


@pytest.mark.parametrize("keep", [50, 100, 4096, 5000, 20000, 100000])
def test_a_truncated_database_is_refused_with_the_way_out(root: Path, keep: int) -> None:
    made(root)
    assert (root / FILE).stat().st_size > 200_000
    os.truncate(root / FILE, keep)
    with pytest.raises(StoreError, match="damaged") as raised:
        SqliteMetadata(str(root))
    assert "flowkit metadata rebuild" in str(raised.value)
    aside = set_aside(str(root))
    assert aside is not None
    assert os.path.getsize(aside) == keep
    store = SqliteMetadata(str(root))
    assert store.fresh
    store.close()
    assert set_aside(str(root / "nowhere")) is None


def test_a_page_of_rubbish_is_an_error_not_a_value(root: Path) -> None:
    made(root)
    with open(root / FILE, "r+b") as file:
        file.seek(4096)
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(StoreError, match="damaged"):
        read_all(root)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET tags = '{'",
        "UPDATE runs SET tags = '[1]'",
        "UPDATE runs SET state = 'won'",
        "UPDATE runs SET heartbeat = 'now'",
        "DROP TABLE runs",
        "ALTER TABLE runs DROP COLUMN origin",
    ],
)
def test_records_that_make_no_sense_are_an_error(root: Path, statement: str) -> None:
    made(root)
    connection = sqlite3.connect(root / FILE)
    connection.execute(statement)
    connection.commit()
    connection.close()
    store = SqliteMetadata(str(root))
    with pytest.raises(StoreError, match="damaged") as raised:
        names(store)
    assert "flowkit metadata rebuild" in str(raised.value)
    store.close()


def test_a_file_that_is_no_database_is_refused(root: Path) -> None:
    root.mkdir()
    (root / FILE).write_text("not a database, only a note\n" * 100)
    with pytest.raises(StoreError, match=r"damaged.*not a database"):
        SqliteMetadata(str(root))


def test_a_database_of_something_else_is_refused_and_left_alone(root: Path) -> None:
    root.mkdir()
    connection = sqlite3.connect(root / FILE)
    connection.execute("CREATE TABLE precious (x)")
    connection.close()
    before = (root / FILE).read_bytes()
    with pytest.raises(StoreError, match="not one of flowkit"):
        SqliteMetadata(str(root))
    assert (root / FILE).read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_database_is_refused(root: Path, read_only: bool) -> None:
    made(root)
    connection = sqlite3.connect(root / FILE)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StoreError, match="version 99") as raised:
        SqliteMetadata(str(root), read_only=read_only)
    assert "pip install -U flowkit" in str(raised.value)


# -- deleted or replaced while it is open -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deleted", "emptied", "folder"])
def test_a_database_that_goes_away_under_a_run_is_made_anew(root: Path, how: str) -> None:
    notices: list[str] = []
    store = SqliteMetadata(str(root), notice=notices.append)
    store.write([run("1"), run("2", state="running"), task("0", "2")])
    store.settle()
    if how == "deleted":
        (root / FILE).unlink()
    elif how == "emptied":
        os.truncate(root / FILE, 0)
    else:
        shutil.rmtree(root)
    store.write([task("1", "2")])
    assert store.fresh
    assert len(notices) == 1
    assert names(store) == ["2"]
    assert [t.task for t in store.tasks("Train", "2")] == ["1"]
    store.close()


def test_ending_with_a_deleted_database_open_does_not_harm_the_new_one(root: Path, start: Start) -> None:
    old = start(
        """
        store = SqliteMetadata(root)
        store.write([RunRecord("Train", "1", "ada", "running", 1.0)])
        print("open", flush=True)
        sys.stdin.readline()
        if sys.argv[2] == "close": store.close()
        """,
        "close",
    )
    other = start(
        """
        store = SqliteMetadata(root)
        store.write([RunRecord("Train", "1", "ada", "running", 1.0)])
        print("open", flush=True)
        sys.stdin.readline()
        store.write([RunRecord("Train", "5", "ada", "succeeded", 5.0)])
        """
    )
    for process in (old, other):
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    (root / FILE).unlink()
    store = SqliteMetadata(str(root))
    store.write([run("2")])
    for process in (old, other):
        process.communicate("\n", timeout=30)
        assert process.returncode == 0
    store.write([run("3")])
    assert (root / f"{FILE}-wal").exists()
    reader = SqliteMetadata(str(root))
    assert names(reader) == ["5", "3", "2"]
    reader.close()
    store.close()
    store = SqliteMetadata(str(root))
    assert names(store) == ["5", "3", "2"]
    store.close()


# -- where it lies ------------------------------------------------------------------------------------------------


def as_stranger(start: Start, code: str) -> str:
    """Run code as a user who may only read (root may do anything)."""
    become = """
        import ctypes, fcntl, urllib.parse  # from a folder that a stranger may not see
        if os.getuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
    """
    return finish(start(textwrap.dedent(become) + textwrap.dedent(code)))


READER = """
    notices = []
    store = SqliteMetadata(root, read_only=True, notice=notices.append)
    print([r.run for r in store.runs("Train", RunFilter())], store.fresh, len(notices))
    store.close()
"""


@pytest.mark.parametrize("root", ["open"], indirect=True)
def test_a_read_only_root_is_read_as_it_lies(root: Path, start: Start) -> None:
    made(root)
    root.chmod(0o555)
    try:
        assert as_stranger(start, READER) == "['1'] False 0\n"
        failed = as_stranger(
            start,
            """
            from flowkit.exceptions import StoreError
            try:
                SqliteMetadata(root).write([RunRecord("Train", "2", "ada", "running", 1.0)])
            except StoreError as error:
                print(error)
            """,
        )
        assert "cannot be written" in failed
        assert str(root) in failed
    finally:
        root.chmod(0o755)
    assert os.listdir(root) == [FILE]


@pytest.mark.parametrize("root", ["open"], indirect=True)
def test_a_read_only_root_that_is_being_written_by_its_owner_shows_the_newest(root: Path, start: Start) -> None:
    store = SqliteMetadata(str(root))
    store.write([run("1")])
    store.settle()
    root.chmod(0o755)
    assert as_stranger(start, READER) == "['1'] False 0\n"
    store.write([run("2")])
    assert as_stranger(start, READER) == "['2', '1'] False 0\n"
    store.close()


def test_reading_only_where_one_could_write(root: Path) -> None:
    made(root)
    store = SqliteMetadata(str(root), read_only=True)
    assert names(store) == ["1"]
    with pytest.raises(StoreError, match="cannot be written"):
        store.write([run("2")])
    writer = SqliteMetadata(str(root))
    writer.write([run("2")])
    assert names(store) == ["2", "1"]
    writer.close()
    store.close()


def test_reading_only_without_a_database_is_an_empty_one_in_memory(root: Path) -> None:
    root.mkdir()
    store = SqliteMetadata(str(root), read_only=True)
    assert store.fresh
    store.write([run("1")])
    assert names(store) == ["1"]
    store.close()
    assert os.listdir(root) == []


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        SqliteMetadata(str(tmp_path / "file" / "root"))


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    root = tmp_path / "a b?c#d%20ü'\""
    made(root)
    for read_only in (False, True):
        store = SqliteMetadata(str(root), read_only=read_only)
        assert names(store) == ["1"]
        store.close()


def test_network_file_systems_are_told_by_their_mount(tmp_path: Path) -> None:
    folder = tmp_path / "share me"
    folder.mkdir()
    mounts = tmp_path / "mounts"
    escaped = str(folder).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/vdb {escaped} xfs rw 0 0\n")
    assert network_file_system(str(tmp_path), str(mounts)) == "nfs4"
    assert network_file_system(str(tmp_path / "later"), str(mounts)) == "nfs4"
    assert network_file_system(str(folder), str(mounts)) is None
    assert network_file_system(str(folder / "sub"), str(mounts)) is None
    assert network_file_system("/", str(mounts)) is None
    assert network_file_system("/", str(tmp_path / "none")) is None


def test_without_wal_on_a_network_file_system(root: Path, tmp_path: Path) -> None:
    made(root)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"server:/x {tmp_path} nfs4 rw 0 0\n")
    for folder in (root, root.parent / "other"):
        notices: list[str] = []
        store = SqliteMetadata(str(folder), notice=notices.append, mounts=str(mounts))
        assert store.about()["journal"] == "delete"
        assert "nfs4" in notices[0]
        store.write([run("7")])
        assert "7" in names(store)
        store.close()


def test_what_a_user_may_want_to_know(root: Path) -> None:
    made(root, 10)
    store = SqliteMetadata(str(root))
    about = store.about()
    assert (about["runs"], about["tasks"], about["journal"], about["version"]) == (1, 10, "wal", 1)
    assert about["path"] == str(root / FILE)
    assert about["bytes"] > 0
    store.close()
    with pytest.raises(StoreError, match="closed"):
        names(store)
