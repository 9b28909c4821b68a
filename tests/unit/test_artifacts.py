"""Artifacts of one attempt: loaded lazily, recorded, and kept by key where they did not really change."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit.datastore.artifacts import INLINE, ArtifactReader, ArtifactSet, ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layout import blob_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.memory import MemoryStorage
from flowkit.exceptions import ArtifactError
from flowkit.model.manifest import Artifact


class Store:
    """A datastore with what reads and writes it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.storage = MemoryStorage() if folder is None else LocalStorage(str(folder), durable=False)
        self.blobs = Blobs(self.storage, "always")
        self.reader = ArtifactReader(self.blobs)
        self.writer = ArtifactWriter(self.blobs)

    def saved(self, **values: Any) -> ArtifactSet:
        entries = {name: self.writer.save(name, value, step="before") for name, value in values.items()}
        return ArtifactSet(self.reader, self.writer, entries, "now")


@given(st.one_of(st.integers(), st.text(), st.binary(), st.lists(st.floats(allow_nan=False)), st.none()))
def test_entries_survive_json(value: Any) -> None:
    store = Store()
    artifact = store.writer.save("x", value, step="s")
    again = Artifact.from_json(json.loads(json.dumps(artifact.to_json())))
    assert again == artifact
    assert store.reader.load("x", again) == value


def test_small_values_live_in_the_manifest() -> None:
    store = Store()
    assert store.writer.save("x", b"a" * INLINE, step="s").inline
    assert list(store.storage.children("")) == []
    large = store.writer.save("x", b"a" * (INLINE + 1), step="s")
    assert large.inline is None
    assert store.storage.info(blob_file(large.key))


def test_equal_values_have_equal_keys() -> None:
    store = Store()
    assert store.writer.save("x", {"a": 1}, step="s").key == store.writer.save("y", {"a": 1}, step="t").key


@pytest.mark.parametrize("inline", ["AAAA", "not base64!", "", base64.b64encode(b"x" * 4).decode()])
def test_damaged_inline_values_are_errors(inline: str) -> None:
    store = Store()
    artifact = store.writer.save("x", 5, step="s")
    broken = Artifact.from_json({**artifact.to_json(), "inline": inline})
    with pytest.raises(ArtifactError, match="the artifact 'x' is damaged"):
        store.reader.load("x", broken)


def test_reads_are_recorded_once() -> None:
    artifacts = Store().saved(a=[1], b="x", c=3)
    first = artifacts.load("a")
    assert artifacts.load("a") is first
    artifacts.load("b")
    assert artifacts.reads == [f"a={artifacts.inherited['a'].key}", f"b={artifacts.inherited['b'].key}"]
    assert artifacts.names() == ["a", "b", "c"]
    with pytest.raises(KeyError):
        artifacts.load("nothing")


def test_what_is_untouched_new_replaced_and_deleted() -> None:
    artifacts = Store().saved(kept=[1], replaced=[2], gone=[3], back=[4])
    before = dict(artifacts.inherited)
    after = artifacts.finish({"replaced": [20], "new": 5, "back": [4]}, {"gone", "back"})
    assert set(after) == {"kept", "replaced", "new", "back"}
    assert after["kept"] is before["kept"]
    assert after["replaced"].key != before["replaced"].key
    assert after["back"].key == before["back"].key


UNCHANGED: dict[str, Any] = {
    "int": 5,
    "text": "x" * 5000,
    "tuple": (1, "a"),
    "list": [1, [2]],
    "set of text": {f"word{i}" for i in range(300)},
    "names": {f"name{i}": {"inner": f"name{i}"} for i in range(100)},
    "array": numpy.arange(300_000.0),
    "read-only": numpy.broadcast_to(numpy.arange(10.0), (3, 10)),
    "arrays": {"a": numpy.arange(300_000), "b": [numpy.zeros((500, 600), order="F")], "c": {"x", "y"}},
}


@pytest.mark.parametrize("name", sorted(UNCHANGED))
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_what_was_only_read_keeps_its_entry(name: str, where: str, tmp_path: Path) -> None:
    artifacts = Store(tmp_path if where == "folder" else None).saved(x=UNCHANGED[name])
    before = artifacts.inherited["x"]
    value = artifacts.load("x")
    assert artifacts.finish({"x": value})["x"] is before


def change_list(value: Any) -> None:
    value["list"].append(1)


def change_array(value: Any) -> None:
    value["array"][123_456] = -1


def change_set(value: Any) -> None:
    value["set"].add("other")


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("change", [change_list, change_array, change_set])
def test_changes_in_place_are_seen_and_the_store_is_not_touched(change: Any, where: str, tmp_path: Path) -> None:
    store = Store(tmp_path if where == "folder" else None)
    artifacts = store.saved(x={"list": [], "array": numpy.zeros(300_000), "set": {"a", "b"}})
    before = artifacts.inherited["x"]
    value = artifacts.load("x")
    change(value)
    after = artifacts.finish({"x": value})["x"]
    assert after.key != before.key
    change(fresh := store.reader.load("x", before))
    found = store.reader.load("x", after)
    assert found["list"] == fresh["list"]
    assert found["set"] == fresh["set"]
    assert (found["array"] == fresh["array"]).all()


def test_a_change_that_is_taken_back_is_none(tmp_path: Path) -> None:
    artifacts = Store(tmp_path).saved(x=numpy.zeros(300_000))
    value = artifacts.load("x")
    value[5] = 1
    value[5] = 0
    assert artifacts.finish({"x": value})["x"] is artifacts.inherited["x"]


def test_one_value_under_two_names_is_stored_once() -> None:
    artifacts = Store().saved()
    value = [numpy.arange(1000)]
    after = artifacts.finish({"a": value, "b": value})
    assert after["a"] is after["b"]


def test_swapped_names_are_seen() -> None:
    artifacts = Store().saved(a=[1], b=[2])
    before = dict(artifacts.inherited)
    after = artifacts.finish({"a": artifacts.load("b"), "b": artifacts.load("a")})
    assert after["a"].key == before["b"].key
    assert after["b"].key == before["a"].key


def test_an_adopted_entry_replaces_what_was_loaded() -> None:
    store = Store()
    artifacts = store.saved(a=[1])
    old = artifacts.load("a")
    artifacts.inherited["a"] = store.writer.save("a", [9], step="other")
    assert artifacts.load("a") == [9]
    assert artifacts.finish({"a": old})["a"].key == store.writer.save("a", [1], step="x").key


ELSEWHERE = """
import json, sys
from flowkit.datastore.artifacts import *
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.model.manifest import Artifact
blobs = Blobs(LocalStorage(sys.argv[1]))
entries = {n: Artifact.from_json(e) for n, e in json.loads(sys.argv[2]).items()}
found = ArtifactSet(ArtifactReader(blobs), ArtifactWriter(blobs), entries)
values = {n: found.load(n) for n in entries}
values["changed"].add("one more")
after = found.finish(values)
print(sorted(n for n in entries if after[n] is entries[n]))
"""


def test_sets_and_names_are_unchanged_in_any_process(tmp_path: Path) -> None:
    words = {f"word{i}" for i in range(500)}
    artifacts = Store(tmp_path).saved(words=words, mixed=[words, {"k": "word1"}, "word1"], changed={"a", "b", "c"})
    entries = json.dumps({name: entry.to_json() for name, entry in artifacts.inherited.items()})
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, str(tmp_path), entries],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == "['mixed', 'words']"


def test_the_kernel_tells_which_mappings_are_untouched(tmp_path: Path) -> None:
    from flowkit.datastore.mapped import untouched

    store = Store(tmp_path)
    artifact = store.writer.save("x", [numpy.arange(400_000.0), {"small": [1]}], step="s")
    view = store.reader.view("x", artifact)
    value = store.reader.decode("x", artifact, view)
    value[0].sum()
    if sys.platform == "linux":
        assert untouched(view, store.writer.encode("x", value, step="s"))
    value[1]["small"][0] = 2
    assert not untouched(view, store.writer.encode("x", value, step="s"))
    value[1]["small"][0] = 1
    value[0][1000] = 7
    assert not untouched(view, store.writer.encode("x", value, step="s"))


def test_missing_content_names_the_artifact() -> None:
    store = Store()
    artifacts = store.saved(model=b"x" * 5000)
    store.storage.delete(blob_file(artifacts.inherited["model"].key))
    with pytest.raises(ArtifactError, match="the artifact 'model' is missing"):
        artifacts.load("model")


class Refuses:
    def __setstate__(self, state: Any) -> None:
        raise RuntimeError("cannot come back")

    def __getstate__(self) -> Any:
        return {"a": 1}


def test_a_value_that_does_not_load_is_an_error_about_the_artifact() -> None:
    with pytest.raises(ArtifactError, match=r"the artifact 'x' .*Refuses.* RuntimeError: cannot come back"):
        Store().saved(x=Refuses()).load("x")


def test_a_thousand_artifacts() -> None:
    artifacts = Store().saved(**{f"a{i}": [i] for i in range(1000)})
    values = {name: artifacts.load(name) for name in artifacts.names()}
    values["a7"].append(1)
    after = artifacts.finish(values)
    assert [name for name in after if after[name] is not artifacts.inherited[name]] == ["a7"]
