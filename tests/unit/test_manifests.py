"""Commits: the first one wins, what is torn or another task's never happened, clones are followed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.datastore.layout import clones_file, failed_file, manifest_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import (
    DamagedManifest,
    attempts,
    clone_origin,
    read_clones,
    read_failure,
    read_manifest,
    write_clones,
    write_failure,
    write_manifest,
)
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.sealed import Damaged, seal, unseal
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, StoreError
from flowkit.model.manifest import Artifact, Failure, Manifest
from flowkit.model.transition import Frame, Transition


def manifest(run: str = "1", task: str = "0", attempt: int = 0, **more) -> Manifest:
    return Manifest(
        flow="F",
        run=run,
        step="a",
        task=task,
        attempt=attempt,
        artifacts={"x": Artifact("0" * 64, 3, "pickle", "int", "gAUu", {"repr": "1"})},
        transition=Transition("foreach", ("b",), 3, "items", None, "pack"),
        frames=(Frame("s", "v", 1, 2, None),),
        **more,
    )


def test_round_trip_and_the_first_wins() -> None:
    storage = MemoryStorage()
    assert read_manifest(storage, "F", "1", "a", "0") is None
    mine = manifest(reads={"artifacts": ["x=1"]}, extra={"ü": [1, None]})
    assert write_manifest(storage, mine)
    assert not write_manifest(storage, manifest(attempt=1))
    assert read_manifest(storage, "F", "1", "a", "0") == mine


def test_the_file_is_json_for_everybody(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path), durable=False)
    write_manifest(storage, manifest())
    assert json.loads((tmp_path / manifest_file("F", "1", "a", "0")).read_text())["body"]["artifacts"]["x"]["size"] == 3


@given(st.integers(0, 2000), st.integers(0, 255), st.booleans())
def test_no_damage_goes_unnoticed(place: int, byte: int, cut: bool) -> None:
    whole = seal({"a": [1, 2, 3] * 20, "ü": "x"})
    broken = bytearray(whole)
    place %= len(whole)
    if cut:
        broken = broken[:place]
    else:
        broken[place] = byte
    if bytes(broken) == whole:
        assert unseal(bytes(broken), "it") == {"a": [1, 2, 3] * 20, "ü": "x"}
        return
    with pytest.raises(Damaged):
        unseal(bytes(broken), "it")


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\0" * 500, seal({"format": 1})[:-1]])
def test_a_torn_manifest_never_happened(content: bytes) -> None:
    storage = MemoryStorage()
    storage.replace(manifest_file("F", "1", "a", "0"), [content])
    seen: list[DamagedManifest] = []
    assert read_manifest(storage, "F", "1", "a", "0", on_damage=seen.append) is None
    assert "manifest.json" in str(seen[0])
    with pytest.raises(DamagedManifest, match="resume"):
        read_manifest(storage, "F", "1", "a", "0")
    with pytest.raises(DamagedManifest, match="delete"):
        write_manifest(storage, manifest())


def test_a_manifest_with_fields_missing_never_happened() -> None:
    storage = MemoryStorage()
    body = {"format": 1, "flow": "F", "run": "1", "step": "a", "task": "0"}
    storage.replace(manifest_file("F", "1", "a", "0"), [seal(body)])
    with pytest.raises(DamagedManifest, match="malformed"):
        read_manifest(storage, "F", "1", "a", "0")


def test_swapped_manifests_are_found_out() -> None:
    storage = MemoryStorage()
    write_manifest(storage, manifest(task="0"))
    storage.replace(manifest_file("F", "1", "a", "1"), [storage.read(manifest_file("F", "1", "a", "0"))])
    with pytest.raises(DamagedManifest, match="another task: F/1/a/0"):
        read_manifest(storage, "F", "1", "a", "1")


def test_a_newer_manifest_is_an_error_of_its_own() -> None:
    storage = MemoryStorage()
    storage.replace(manifest_file("F", "1", "a", "0"), [seal({"format": 99, "new": True})])
    with pytest.raises(DataError, match="format 99") as caught:
        read_manifest(storage, "F", "1", "a", "0", on_damage=lambda error: None)
    assert not isinstance(caught.value, DamagedManifest)
    assert "pip install" in (caught.value.hint or "")


class LosesReplies(MemoryStorage):
    """Writes, and then says that it could not."""

    def create(self, path, content):
        super().create(path, content)
        raise StoreError("the reply was lost")


def test_a_lost_reply_is_told_from_a_rival() -> None:
    storage = LosesReplies()
    assert write_manifest(storage, manifest())
    with pytest.raises(StoreError):
        write_manifest(storage, manifest())


def test_failures_and_attempts() -> None:
    storage = MemoryStorage()
    assert read_failure(storage, "F", "1", "a", "0", 0) is None
    first = Failure("error", "boom", "m.E", ("Exception",), "tb", "f.py:3", attempt=2)
    assert write_failure(storage, "F", "1", "a", "0", first)
    assert not write_failure(storage, "F", "1", "a", "0", Failure("vanished", "gone", attempt=2))
    assert read_failure(storage, "F", "1", "a", "0", 2) == first
    write_failure(storage, "F", "1", "a", "0", Failure("oom", "memory", attempt=10))
    assert attempts(storage, "F", "1", "a", "0") == [2, 10]
    storage.replace(failed_file("F", "1", "a", "0", 2), [b"torn"])
    assert read_failure(storage, "F", "1", "a", "0", 2) is None


def chain(storage: Storage) -> None:
    write_manifest(storage, manifest(run="1", task="7"))
    write_clones(storage, "F", "2", "a", "F/1", {"7": "7"})
    write_clones(storage, "F", "3", "a", "F/2", {"5": "7"})


def test_clones_are_followed_to_the_run_that_made_them() -> None:
    storage = MemoryStorage()
    chain(storage)
    found = read_manifest(storage, "F", "3", "a", "5")
    assert found is not None
    assert (found.run, found.task) == ("1", "7")
    assert read_manifest(storage, "F", "3", "a", "6") is None
    assert read_clones(storage, "F", "4", "a") is None


def test_clones_that_lead_in_a_circle_are_an_error() -> None:
    storage = MemoryStorage()
    write_clones(storage, "F", "1", "a", "F/2", {"0": "0"})
    write_clones(storage, "F", "2", "a", "F/1", {"0": "0"})
    with pytest.raises(DataError, match="lead nowhere"):
        read_manifest(storage, "F", "1", "a", "0")


def test_damaged_clones_are_an_error() -> None:
    storage = MemoryStorage()
    storage.replace(clones_file("F", "1", "a"), [b"torn"])
    with pytest.raises(DataError, match=r"clones\.json is damaged"):
        read_manifest(storage, "F", "1", "a", "0")


def test_clones_that_come_after_a_look_are_seen() -> None:
    storage = MemoryStorage()
    write_manifest(storage, manifest())
    assert read_manifest(storage, "F", "2", "a", "0") is None
    assert write_clones(storage, "F", "2", "a", "F/1", {"0": "0"})
    assert not write_clones(storage, "F", "2", "a", "F/9", {"0": "0"})
    assert read_manifest(storage, "F", "2", "a", "0") is not None


tasks = st.from_regex(r"(0|[1-9][0-9]?)(\.(0|[1-9][0-9]?)){0,2}(-[0-3])?", fullmatch=True)


@given(st.dictionaries(tasks, st.none() | tasks, max_size=30))
def test_any_clones_round_trip(chosen: dict[str, str | None]) -> None:
    storage = MemoryStorage()
    wanted = {task: origin or task for task, origin in chosen.items()}
    write_clones(storage, "F", "2", "a", "F/1", wanted)
    assert read_clones(storage, "F", "2", "a") == ("F/1", wanted)
    for task, origin in wanted.items():
        assert clone_origin(storage, "F", "2", "a", task) == ("F", "1", origin)
    assert clone_origin(storage, "F", "2", "a", "100") is None


def test_clones_of_a_wide_foreach_are_small() -> None:
    storage = MemoryStorage()
    write_clones(storage, "F", "2", "a", "F/1", {str(i): str(i) for i in range(100_000) if i != 500})
    info = storage.info(clones_file("F", "2", "a"))
    assert info is not None
    assert info.size < 300
    assert clone_origin(storage, "F", "2", "a", "99999") == ("F", "1", "99999")
    assert clone_origin(storage, "F", "2", "a", "500") is None
