"""What every storage promises. Another backend joins in conftest.py (one test suite, any backend)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.datastore.storage import Missing, Storage, check_path
from flowkit.exceptions import StoreError


def test_what_was_created_is_read(storage: Storage) -> None:
    assert storage.create("a/b/c", [b"one", bytearray(b"two"), memoryview(b"three")])
    assert storage.read("a/b/c") == b"onetwothree"
    info = storage.info("a/b/c")
    assert info is not None
    assert info.size == 11


def test_the_first_creator_wins(storage: Storage) -> None:
    assert storage.create("a", [b"first"])
    assert not storage.create("a", [b"second"])
    assert storage.read("a") == b"first"


def test_a_version_is_replaced_once(storage: Storage) -> None:
    storage.create("lease", [b"one"])
    content, version = storage.read_version("lease")
    assert content == b"one"
    assert storage.replace_version("lease", b"two", version)
    assert not storage.replace_version("lease", b"three", version)
    again = storage.read_version("lease")
    assert again.content == b"two"
    assert storage.replace_version("lease", b"four", again.version)
    assert storage.read("lease") == b"four"


def test_nothing_is_replaced_where_nothing_is(storage: Storage) -> None:
    with pytest.raises(Missing):
        storage.read_version("lease")
    assert not storage.replace_version("lease", b"two", "1")
    storage.create("lease", [b"one"])
    _, version = storage.read_version("lease")
    storage.delete("lease")
    assert not storage.replace_version("lease", b"two", version)
    assert storage.info("lease") is None


def test_of_many_who_replace_a_version_exactly_one_does(storage: Storage) -> None:
    storage.create("lease", [b"0"])
    for round_ in range(10):
        _, version = storage.read_version("lease")
        start = threading.Barrier(6)
        won: list[int] = []

        def take(
            me: int,
            round_: int = round_,
            version: str = version,
            won: list[int] = won,
            start: threading.Barrier = start,
        ) -> None:
            start.wait()
            if storage.replace_version("lease", b"%d %d" % (round_, me), version):
                won.append(me)

        threads = [threading.Thread(target=take, args=(me,)) for me in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read("lease") == b"%d %d" % (round_, won[0])


def test_of_many_creators_exactly_one_wins(storage: Storage) -> None:
    for round_ in range(10):
        start = threading.Barrier(8)
        won: list[int] = []

        def claim(me: int, path: str = f"deep/{round_}/x", start: threading.Barrier = start, won: list = won) -> None:
            start.wait()
            if storage.create(path, [str(me).encode()]):
                won.append(me)

        threads = [threading.Thread(target=claim, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read(f"deep/{round_}/x") == str(won[0]).encode()


def test_replace_makes_or_replaces(storage: Storage) -> None:
    storage.replace("x/y", [b"one"])
    storage.replace("x/y", [b"", b"two"])
    assert storage.read("x/y") == b"two"


def test_empty_objects_exist(storage: Storage) -> None:
    assert storage.create("empty", [])
    assert storage.read("empty") == b""
    assert storage.read_range("empty", 0, 10) == b""
    assert not storage.create("empty", [b"x"])


def test_ranges(storage: Storage) -> None:
    storage.replace("r", [bytes(range(200))])
    assert storage.read_range("r", 10, 5) == bytes(range(10, 15))
    assert storage.read_range("r", 195, 50) == bytes(range(195, 200))
    assert storage.read_range("r", 500, 5) == b""
    assert storage.read_range("r", 0, 0) == b""


def test_reading_into_memory(storage: Storage) -> None:
    content = bytes(range(256)) * 150_000
    storage.replace("r", [content])
    memory = bytearray(len(content))
    assert storage.read_into("r", 0, memoryview(memory)) == len(content)
    assert memory == content
    few = bytearray(100)
    assert storage.read_into("r", len(content) - 30, memoryview(few)) == 30
    assert few == content[-30:] + bytes(70)
    assert storage.read_into("r", len(content), memoryview(few)) == 0
    assert storage.read_into("r", 0, memoryview(bytearray())) == 0
    long = bytearray(len(content) + 1000)
    assert storage.read_into("r", 0, memoryview(long)) == len(content)
    assert long[: len(content)] == content
    with pytest.raises(Missing):
        storage.read_into("nothing", 0, memoryview(few))
    with pytest.raises(Missing):
        storage.read_into("nothing", 0, memoryview(few)[:0])


def test_what_is_not_there(storage: Storage) -> None:
    storage.create("folder/object", [b"x"])
    for path in ("nothing", "folder", "folder/object/below", "no/such/folder"):
        with pytest.raises(Missing):
            storage.read(path)
        with pytest.raises(Missing):
            storage.read_range(path, 0, 1)
        assert storage.info(path) is None
        assert not storage.touch(path) or path == "folder"
    storage.delete("nothing")
    storage.delete("no/such/thing")
    assert list(storage.children("nothing")) == []


def test_children_are_the_names_directly_below(storage: Storage) -> None:
    for path in ("top", "a/1", "a/2/deep", "a/2/deeper/x", "ab/3"):
        storage.create(path, [b""])
    assert sorted(storage.children("")) == ["a", "ab", "top"]
    assert sorted(storage.children("a")) == ["1", "2"]
    assert sorted(storage.children("a/2")) == ["deep", "deeper"]


def test_delete(storage: Storage) -> None:
    storage.create("a/b", [b"x"])
    storage.delete("a/b")
    assert storage.info("a/b") is None
    assert storage.create("a/b", [b"y"])


def test_touch_refreshes_the_time(storage: Storage) -> None:
    storage.create("a", [b"x"])
    before = storage.info("a")
    time.sleep(1.1 if storage.name == "s3" else 0.02)  # S3's times are whole seconds
    assert storage.touch("a")
    after = storage.info("a")
    assert before is not None
    assert after is not None
    assert after.modified > before.modified
    assert storage.read("a") == b"x"


def test_a_failing_writer_leaves_nothing(storage: Storage) -> None:
    def broken():
        yield b"x" * 2_000_000
        raise KeyboardInterrupt

    for write in (storage.create, storage.replace):
        with pytest.raises(KeyboardInterrupt):
            write("half", broken())
    assert storage.info("half") is None
    assert list(storage.children("")) == []


def test_large_and_many_chunks(storage: Storage) -> None:
    chunks = [b"%07d" % i for i in range(200_000)] + [b"L" * 3_000_000, b"tail", memoryview(b"M" * 1_500_000)]
    storage.replace("big", chunks)
    assert storage.read("big") == b"".join(chunks)
    typed = memoryview(bytearray(8 * 300_000)).cast("d")
    storage.replace("typed", [typed, typed[:10]])
    info = storage.info("typed")
    assert info is not None
    assert info.size == 8 * 300_010


def test_local_path_holds_the_content(storage: Storage) -> None:
    storage.create("a/b", [b"content"])
    path = storage.local_path("a/b")
    assert path is None or Path(path).read_bytes() == b"content"


ESCAPES = ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a//b", "./a", "a/.", "a/", "x\0y", "a\\..\\b"]
ESCAPES += ["C:/x", "a\n", "\udcff", "a/\x7f"]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leaves_the_root(storage: Storage, path: str) -> None:
    actions: list[Callable[[], object]] = [
        lambda: storage.read(path),
        lambda: storage.read_range(path, 0, 1),
        lambda: storage.info(path),
        lambda: storage.create(path, [b"x"]),
        lambda: storage.replace(path, [b"x"]),
        lambda: storage.delete(path),
        lambda: storage.touch(path),
    ]
    for action in actions:
        with pytest.raises(StoreError):
            action()


@given(st.text(max_size=30))
def test_whatever_passes_the_check_stays_inside(path: str) -> None:
    import os.path

    try:
        check_path(path)
    except StoreError:
        return
    assert os.path.normpath("/root/" + path) == "/root/" + path


def test_a_walk_finds_everything_below(storage: Storage) -> None:
    paths = {"a/b/c": 1, "a/b/d": 2, "a/e": 3, "a-/f": 4, "a/b-/g": 5, "h": 6}
    for path, size in paths.items():
        storage.create(path, [b"x" * size])
    before = time.time() + 2
    found = {entry.path: entry.size for entry in storage.walk("")}
    assert found == paths
    assert {entry.path for entry in storage.walk("a")} == {"a/b/c", "a/b/d", "a/e", "a/b-/g"}
    assert {entry.path for entry in storage.walk("a/b")} == {"a/b/c", "a/b/d"}
    assert list(storage.walk("nothing")) == list(storage.walk("h")) == []
    for entry in storage.walk(""):
        info = storage.info(entry.path)
        assert info is not None
        assert int(entry.modified) == int(info.modified) <= before


def test_a_walk_keeps_what_is_in_one_folder_together(storage: Storage) -> None:
    for path in ("r/1/x", "r/1-/x", "r/1.a/x", "r/1/y/z", "r/10/x", "r/1/a", "r/1-/y"):
        storage.create(path, [b""])
    folders = [entry.path.split("/")[1] for entry in storage.walk("r")]
    assert len([pair for pair in pairwise(folders) if pair[0] != pair[1]]) == 3


def test_what_is_older_than_a_time_is_removed(storage: Storage) -> None:
    storage.create("a/b", [b"x"])
    info = storage.info("a/b")
    assert info is not None
    assert not storage.delete_older("a/b", info.modified)
    assert storage.info("a/b") is not None
    assert storage.delete_older("a/b", info.modified + 1)
    assert storage.info("a/b") is None
    assert not storage.delete_older("a/b", info.modified + 1)


def test_many_are_removed_at_once(storage: Storage) -> None:
    for number in range(30):
        storage.create(f"run/{number % 3}/{number}", [b"x"])
    storage.create("runs", [b"x"])
    storage.delete_all(f"run/{number % 3}/{number}" for number in range(31))
    storage.prune("run")
    storage.prune("not/there")
    assert [entry.path for entry in storage.walk("")] == ["runs"]
    assert sorted(storage.children("")) == ["runs"]
    storage.delete_all([])


def test_nothing_is_half_written_where_all_writers_came_to_their_end(storage: Storage) -> None:
    storage.create("a", [b"x" * 100])
    assert storage.unfinished(time.time() + 60) == []
