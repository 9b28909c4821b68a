"""A datastore that is damaged in every way: each is told with what to do, and what can be repaired is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowkit.datastore import layout
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import read_manifest, write_clones, write_manifest
from flowkit.datastore.packs import save_pack
from flowkit.datastore.runs import bury_run, claim_run, write_end
from flowkit.datastore.storage import Storage
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata.records import RunRecord
from flowkit.metadata.store import RunFilter
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition
from flowkit.upkeep.fsck import Check, Finding

FLOW = "Train"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(str(tmp_path), durable=False)


@pytest.fixture
def store() -> Iterator[MemoryMetadata]:
    return MemoryMetadata()


def run_of(storage: Storage, store: MemoryMetadata | None, text: bytes = b"a", state: str = "succeeded") -> str:
    """A run with an artifact, a foreach and its end."""
    created = time.time() - 7200
    run = claim_run(storage, FLOW, {"user": "ada", "created": created})
    pack, _ = save_pack(Blobs(storage), [text * 3000, text * 4000])
    model = ArtifactWriter(Blobs(storage)).save("model", text * 5000, step="start")
    write_manifest(storage, Manifest(FLOW, run, "_parameters", "0", 0, {}, Transition("linear", ("start",))))
    foreach = Transition("foreach", ("train",), 2, "xs", None, pack)
    write_manifest(storage, Manifest(FLOW, run, "start", "0", 0, {"model": model}, foreach))
    write_end(storage, FLOW, run, {"state": state, "reason": None, "finished": created + 5})
    if store is not None:
        store.write([RunRecord(FLOW, run, "ada", state, created, finished=created + 5)])  # type: ignore[arg-type]
    return run


def found(storage: Storage, store: MemoryMetadata | None, *, deep: bool = False, repair: bool = False) -> list[Finding]:
    findings = list(Check(storage, store, deep=deep, repair=repair).run())
    assert all(finding.what and finding.todo for finding in findings)
    return findings


def model_of(storage: Storage, run: str = "1") -> str:
    manifest = read_manifest(storage, FLOW, run, "start", "0")
    assert manifest is not None
    return manifest.artifacts["model"].key


def overwrite(storage: Storage, path: str, content: bytes) -> None:
    file = storage.local_path(path)
    assert file is not None
    Path(file).write_bytes(content)


def test_all_is_well(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    run_of(storage, store, b"b", "failed")
    bury_run(storage, FLOW, claim_run(storage, FLOW, {}))
    check = Check(storage, store, deep=True)
    assert list(check.run()) == []
    assert (check.checked.runs, check.checked.blobs) == (2, 4)
    assert check.checked.records == 9


def test_a_blob_that_is_missing(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    run_of(storage, store)
    storage.delete(layout.blob_file(model_of(storage)))
    findings = found(storage, store, repair=True)
    assert [finding.what for finding in findings] == [
        f"the content of the artifact 'model' of {FLOW}/{run}/start/0 is missing" for run in ("1", "2")
    ]
    assert {finding.severity for finding in findings} == {"error"}


def test_the_items_of_a_foreach_that_are_missing(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    manifest = read_manifest(storage, FLOW, "1", "start", "0")
    assert manifest is not None
    assert manifest.transition.pack is not None
    storage.delete(layout.blob_file(manifest.transition.pack.partition("-")[0]))
    assert [finding.what for finding in found(storage, store)] == [
        f"the content of the items of a foreach of {FLOW}/1/start/0 is missing"
    ]


@pytest.mark.parametrize("content", [b"b" * 5000, b"a" * 4999, b""])
def test_a_damaged_blob_is_put_aside_so_that_it_can_be_made_anew(
    storage: Storage, store: MemoryMetadata, content: bytes
) -> None:
    run_of(storage, store)
    key = model_of(storage)
    path = layout.blob_file(key)
    overwrite(storage, path, content)
    same_size = len(content) == 5000
    assert bool(found(storage, store)) is not same_size  # content is read by a deep check only
    findings = found(storage, store, deep=True)
    assert [finding.where for finding in findings] == [path]
    assert "is damaged" in findings[0].what
    findings = found(storage, store, deep=True, repair=True)
    assert "put aside" in findings[0].what
    assert storage.info(path) is None
    assert storage.read(layout.aside_file(path)) == content
    assert "is missing" in found(storage, store)[0].what
    run_of(storage, store)
    assert found(storage, store, deep=True) == []


def test_a_size_that_was_recorded_wrongly(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    manifest = read_manifest(storage, FLOW, "1", "start", "0")
    assert manifest is not None
    wrong = manifest.artifacts["model"]._replace(size=17)
    write_manifest(storage, manifest._replace(step="train", artifacts={"model": wrong}))
    findings = found(storage, store, repair=True)
    assert len(findings) == 1  # told once for a run, since an artifact is passed on from task to task
    assert "has 5000 bytes, and not as many as was recorded" in findings[0].what
    assert storage.info(layout.blob_file(model_of(storage))) is not None  # it is what its name says


def test_records_that_are_damaged(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    start = layout.manifest_file(FLOW, "1", "start", "0")
    whole = storage.read(start)
    overwrite(storage, start, whole[:-20])
    overwrite(storage, layout.end_file(FLOW, "1"), b"")
    storage.create(layout.manifest_file(FLOW, "1", "other", "0"), [whole])
    storage.create(layout.clones_file(FLOW, "1", "end"), [b"{}"])
    findings = {finding.where: finding for finding in found(storage, None, repair=True)}
    assert set(findings) == {
        start,
        layout.end_file(FLOW, "1"),
        layout.manifest_file(FLOW, "1", "other", "0"),
        layout.clones_file(FLOW, "1", "end"),
    }
    assert "resume the run from the step 'start'" in findings[start].todo
    assert "another task" in findings[layout.manifest_file(FLOW, "1", "other", "0")].what
    assert storage.read(start) == whole[:-20]


def test_a_run_without_its_record(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, None)
    overwrite(storage, layout.run_file(FLOW, "1"), b"torn")
    storage.create(layout.manifest_file(FLOW, "9", "start", "0"), [b"{}"])
    where = [finding.where for finding in found(storage, None)]
    assert where == [
        f"flows/{FLOW}/1/run.json",
        f"flows/{FLOW}/9/run.json",
        layout.manifest_file(FLOW, "9", "start", "0"),
    ]


def test_runs_that_were_begun_or_removed_by_half(storage: Storage, store: MemoryMetadata) -> None:
    claim_run(storage, FLOW, {"user": "ada", "created": 1.0})
    record = {"user": "ada", "created": 1.0}
    bury_run(storage, FLOW, claim_run(storage, FLOW, record), record)
    alive = claim_run(storage, FLOW, {"user": "ada", "created": time.time()})
    file = storage.local_path(layout.run_file(FLOW, "1"))
    os.utime(str(file), (1, 1))
    for run in ("1", alive):
        store.write([RunRecord(FLOW, run, "ada", "running", 1.0)])
    findings = [(finding.severity, finding.where) for finding in found(storage, store)]
    assert findings == [("warning", f"flows/{FLOW}/1"), ("warning", f"flows/{FLOW}/2")]


def test_tasks_that_were_taken_over_from_a_run_that_is_gone(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    second = run_of(storage, store, b"b")
    storage.delete(layout.manifest_file(FLOW, second, "start", "0"))
    write_clones(storage, FLOW, second, "start", f"{FLOW}/1", {"0": "0", "1": "1"})
    findings = found(storage, store)
    assert [finding.where for finding in findings] == [layout.clones_file(FLOW, second, "start")]
    assert "1 tasks" in findings[0].what
    storage.delete(layout.manifest_file(FLOW, "1", "start", "0"))
    assert "2 tasks" in found(LocalStorage(storage.root), store)[0].what


def test_the_index_is_brought_to_what_the_datastore_says(storage: Storage, store: MemoryMetadata) -> None:
    for state in ("succeeded", "failed"):
        run_of(storage, store, state=state)
    run_of(storage, None)
    known = store.run(FLOW, "2")
    assert known is not None
    store.write([known._replace(state="succeeded")])
    store.write([RunRecord(FLOW, "8", "ada", "succeeded", 1.0)])
    findings = found(storage, store)
    assert {finding.where: finding.what for finding in findings} == {
        f"{FLOW}/2": "the index says that it is succeeded, the datastore that it failed",
        f"{FLOW}/3": "the index does not have it",
        f"{FLOW}/8": "the index has a run that the datastore has not",
    }
    assert all(finding.repaired for finding in found(storage, store, repair=True))
    assert {record.run: record.state for record in store.runs(FLOW, RunFilter())} == {
        "1": "succeeded",
        "2": "failed",
        "3": "succeeded",
    }
    assert found(storage, store) == []


def test_what_is_left_over(storage: Storage, store: MemoryMetadata) -> None:
    run_of(storage, store)
    half = Path(storage.root, ".tmp", "dead")
    half.write_bytes(b"half")
    os.utime(half, (1, 1))
    hint = layout.last_run_file(FLOW)
    overwrite(storage, hint, b"77")
    storage.create(f"{layout.BLOBS}/ab/notes", [b"mine"])
    storage.create(f"{layout.FLOWS}/notes", [b"mine"])
    findings = {finding.where: finding.severity for finding in found(storage, store)}
    assert findings == dict.fromkeys(
        (".tmp/dead", hint, f"{layout.BLOBS}/ab/notes", f"{layout.FLOWS}/notes"), "warning"
    )
    repaired = [finding.where for finding in found(storage, store, repair=True) if finding.repaired]
    assert sorted(repaired) == sorted([".tmp/dead", hint])
    assert not half.exists()
    assert claim_run(storage, FLOW, {}) == "2"


def test_a_damaged_blob_that_nothing_names_is_a_warning(storage: Storage, store: MemoryMetadata) -> None:
    key = Blobs(storage).put([b"a" * 4000], 4000)
    overwrite(storage, layout.blob_file(key), b"b" * 4000)
    assert [finding.severity for finding in found(storage, store, deep=True)] == ["warning"]
    assert [finding.repaired for finding in found(storage, store, deep=True, repair=True)] == [True]
    assert storage.info(layout.blob_file(key)) is None
