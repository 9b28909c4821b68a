"""Content by hash: stored once, verified, mapped copy-on-write; every kind of damage is an error, never a value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from flowkit.datastore.blobs import MAPPED, Blobs
from flowkit.datastore.layout import blob_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.storage import Storage
from flowkit.exceptions import ArtifactError, DataError

SMALL = b"small content" * 300
LARGE = bytes(range(256)) * (MAPPED // 256 + 17)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return LocalStorage(str(tmp_path), durable=False) if request.param == "local" else MemoryStorage()


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_round_trip(storage: Storage, content: bytes) -> None:
    blobs = Blobs(storage, "always")
    key = blobs.put([content[:10], content[10:]], len(content))
    assert key == blake3(content).hexdigest()
    view = blobs.get(key, len(content))
    assert view == content
    assert not view.readonly


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_what_is_loaded_can_be_changed_and_the_store_cannot(storage: Storage, content: bytes) -> None:
    blobs = Blobs(storage, "always")
    key = blobs.put([content], len(content))
    blobs.get(key, len(content))[0:5] = b"XXXXX"
    assert blobs.get(key, len(content)) == content


def test_ranges(storage: Storage) -> None:
    blobs = Blobs(storage, "always")
    key = blobs.put([LARGE], len(LARGE))
    assert blobs.get_range(key, 1000, 50) == LARGE[1000:1050]
    with pytest.raises(ArtifactError, match="damaged"):
        blobs.get_range(key, len(LARGE) - 5, 10)


def damages(content: bytes) -> dict[str, bytes]:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {
        "flipped": bytes(flipped),
        "truncated": content[:-1],
        "emptied": b"",
        "longer": content + b"\0",
        "swapped": bytes(reversed(content)),
    }


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "longer", "swapped"])
def test_damage_is_an_error_and_putting_again_heals(storage: Storage, content: bytes, damage: str) -> None:
    blobs = Blobs(storage, "always")
    key = blobs.put([content], len(content))
    storage.replace(blob_file(key), [damages(content)[damage]])
    with pytest.raises(ArtifactError, match=r"the artifact 'x' is damaged.*") as caught:
        blobs.get(key, len(content), "the artifact 'x'")
    assert key in str(caught.value)
    assert "delete" in (caught.value.hint or "")
    if storage.name == "local" or damage in ("truncated", "emptied", "longer"):
        blobs.put([content], len(content))
        assert blobs.get(key, len(content)) == content


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_missing_blob_says_so(storage: Storage, content: bytes) -> None:
    blobs = Blobs(storage, "always")
    key = blobs.put([content], len(content))
    storage.delete(blob_file(key))
    with pytest.raises(ArtifactError, match="missing"):
        blobs.get(key, len(content))


def test_verify_off_trusts_but_not_the_length(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path), durable=False)
    blobs = Blobs(storage, "off")
    key = blobs.put([LARGE], len(LARGE))
    wrong = damages(LARGE)
    storage.replace(blob_file(key), [wrong["flipped"]])
    assert blobs.get(key, len(LARGE)) == wrong["flipped"]
    storage.replace(blob_file(key), [wrong["truncated"]])
    with pytest.raises(ArtifactError):
        blobs.get(key, len(LARGE))


def test_verify_stat_looks_again_when_the_file_changed(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path), durable=False)
    blobs = Blobs(storage, "stat")
    key = blobs.put([LARGE], len(LARGE))
    assert blobs.get(key, len(LARGE)) == LARGE
    note = next(tmp_path.glob(".verified/*/*"))
    before = note.read_bytes()
    assert blobs.get(key, len(LARGE)) == LARGE
    assert note.read_bytes() == before
    storage.replace(blob_file(key), [damages(LARGE)["flipped"]])
    with pytest.raises(ArtifactError):
        blobs.get(key, len(LARGE))


def test_the_same_content_is_written_once_and_its_time_refreshed(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path), durable=False)
    blobs = Blobs(storage, "always")
    key = blobs.put([SMALL], len(SMALL))
    path = tmp_path / blob_file(key)
    os.utime(path, (1000, 1000))
    inode = path.stat().st_ino
    blobs.put([SMALL], len(SMALL))
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1e9


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, None])
def test_forged_keys_are_refused(storage: Storage, key: str) -> None:
    with pytest.raises(DataError, match="not the key"):
        Blobs(storage, "always").get(key, 10)
