"""The copies of remote blobs on this machine: checked, bounded, and shared by processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowkit.datastore.blobs import MAPPED, Blobs, key_of
from flowkit.datastore.cache import STALE, Cache, open_cache, parse_size
from flowkit.datastore.layout import blob_file
from flowkit.datastore.memory import MemoryStorage
from flowkit.exceptions import ArtifactError, StoreError, UsageError
from flowkit.settings import settings


class FarStorage(MemoryStorage):
    """A storage whose reads are counted, and may fail."""

    cached = True

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.failure: Callable[[], None] | None = None

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        if self.failure:
            self.failure()
        self.reads += 1
        return super().read_range(path, offset, length)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWKIT_CACHE", str(tmp_path))
    settings(reload=True)
    yield tmp_path / "blobs"
    monkeypatch.undo()
    settings(reload=True)


def copies(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("??/*")}


SMALL, LARGE = b"s" * 5000, b"large" + os.urandom(1 << 10) * 3000


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("verify", ["always", "stat", "off"])
def test_a_blob_is_fetched_once(folder: Path, content: bytes, verify: str) -> None:
    storage = FarStorage()
    key = Blobs(storage).put([content], len(content))
    assert not copies(folder)
    for _ in range(3):
        view = Blobs(storage, verify).get(key, len(content))
        assert view == content
        view[:4] = b"mine"  # in memory of the caller's own
    assert storage.reads == 1
    assert copies(folder) == {key}
    assert list(storage.children("")) == ["blobs"]


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("damage", [b"", b"short", None], ids=["empty", "short", "altered"])
def test_a_damaged_copy_is_fetched_again(folder: Path, content: bytes, damage: bytes | None) -> None:
    storage = FarStorage()
    blobs = Blobs(storage, "always")
    key = blobs.put([content], len(content))
    blobs.get(key, len(content))
    (copy,) = folder.glob("??/*")
    copy.write_bytes(damage if damage is not None else b"X" + content[1:])
    assert blobs.get(key, len(content)) == content
    assert copy.read_bytes() == content
    assert storage.reads == 2


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_what_is_damaged_in_the_datastore_is_an_error_and_no_copy(folder: Path, content: bytes) -> None:
    storage = FarStorage()
    blobs = Blobs(storage, "always")
    key = key_of([content])
    storage.replace(blob_file(key), [b"X" + content[1:]])
    with pytest.raises(ArtifactError, match="damaged"):
        blobs.get(key, len(content))
    storage.replace(blob_file(key), [content[:-1]])
    with pytest.raises(ArtifactError, match="damaged"):
        blobs.get(key, len(content))
    storage.delete(blob_file(key))
    with pytest.raises(ArtifactError, match="missing"):
        blobs.get(key, len(content))
    assert not copies(folder)
    assert not list(folder.glob("parts/*"))


def test_a_fetch_that_fails_leaves_nothing_and_can_be_made_again(folder: Path) -> None:
    storage = FarStorage()
    blobs = Blobs(storage, "always")
    key = blobs.put([LARGE], len(LARGE))

    def fail() -> None:
        raise StoreError("no answer")

    storage.failure = fail
    with pytest.raises(StoreError, match="no answer"):
        blobs.get(key, len(LARGE))
    assert not list(folder.glob("parts/*"))
    storage.failure = None
    assert blobs.get(key, len(LARGE)) == LARGE


def test_many_who_want_a_blob_wait_for_one_copy(folder: Path) -> None:
    storage = FarStorage()
    storage.failure = lambda: time.sleep(0.2)
    key = Blobs(storage).put([LARGE], len(LARGE))
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(Blobs(storage).get(key, len(LARGE)) == LARGE)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
    assert storage.reads == 1


def test_the_copy_of_a_killed_process_is_taken_over(folder: Path) -> None:
    storage = FarStorage()
    key = Blobs(storage).put([LARGE], len(LARGE))
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / key).write_bytes(b"half")
    assert Blobs(storage).get(key, len(LARGE)) == LARGE
    assert copies(folder) == {key}


def test_the_oldest_copies_make_room(folder: Path) -> None:
    cache = Cache(str(folder), 1_000_000)
    for number in range(30):
        content = bytes([number]) * 100_000
        cache.keep(key_of([content]), memoryview(content))
        os.utime(folder / key_of([content])[:2] / key_of([content]), (number, number))
    kept = {key_of([bytes([number]) * 100_000]) for number in range(30 - 9, 30)}
    assert copies(folder) == kept


def test_a_copy_in_use_is_young_again(folder: Path) -> None:
    cache = Cache(str(folder), 10**9)
    key = key_of([SMALL])
    cache.keep(key, memoryview(SMALL))
    (copy,) = folder.glob("??/*")
    os.utime(copy, (1, 1))
    assert cache.find(key, len(SMALL))
    assert copy.stat().st_mtime > 1000


def test_a_copy_that_is_removed_while_it_is_mapped_stays_readable(folder: Path) -> None:
    storage = FarStorage()
    blobs = Blobs(storage)
    key = blobs.put([LARGE], len(LARGE))
    view = blobs.get(key, len(LARGE))
    Cache(str(folder), 1).sweep()
    assert not copies(folder)
    assert view == LARGE


def test_what_killed_processes_left_is_swept(folder: Path) -> None:
    (folder / "parts").mkdir(parents=True)
    for name, age in (("old", STALE + 10), ("new", 0)):
        (folder / "parts" / name).write_bytes(b"x")
        os.utime(folder / "parts" / name, (time.time() - age,) * 2)
    Cache(str(folder), 100).sweep()
    assert [file.name for file in folder.glob("parts/*")] == ["new"]


def test_nothing_is_kept_where_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CACHE", "off"), ("CACHE_SIZE", "0"), ("CACHE_SIZE", "3KB")):
        with monkeypatch.context() as patch:
            patch.setenv(f"FLOWKIT_{name}", value)
            settings(reload=True)
            for content in (SMALL, LARGE):
                storage = FarStorage()
                blobs = Blobs(storage)
                key = blobs.put([content], len(content))
                assert blobs.get(key, len(content)) == content
                assert blobs.get(key, len(content)) == content
            assert not copies(folder)


def test_a_folder_that_cannot_be_written_is_no_hindrance(folder: Path) -> None:
    folder.write_bytes(b"a file")
    storage = FarStorage()
    for content in (SMALL, LARGE):
        key = Blobs(storage).put([content], len(content))
        assert Blobs(storage).get(key, len(content)) == content


def test_other_users_cannot_look_into_it(folder: Path) -> None:
    Cache(str(folder), 10**9).keep(key_of([SMALL]), memoryview(SMALL))
    assert folder.stat().st_mode & 0o077 == 0
    (copy,) = folder.glob("??/*")
    assert copy.stat().st_mode & 0o077 == 0


def test_sizes() -> None:
    texts = {"10GB": 10**10, "500 MiB": 500 << 20, "0": 0, "7": 7, "1.5k": 1500, "2tb": 2 * 10**12, "1g": 10**9}
    assert {text: parse_size(text) for text in texts} == texts
    for text in ("", "much", "-1GB", "10XB", "GB", "1e9"):
        with pytest.raises(UsageError, match="cache_size"):
            parse_size(text)


def test_the_usual_cache(folder: Path) -> None:
    cache = open_cache()
    assert cache is not None
    assert cache.folder == str(folder)
    assert cache.limit == 10**10
    assert cache.limit > MAPPED
