"""What takes the room: everything counted once, and what is shared told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flowkit.datastore import layout
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import write_manifest
from flowkit.datastore.packs import save_pack
from flowkit.datastore.runs import bury_run, claim_run
from flowkit.datastore.storage import Storage
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition
from flowkit.upkeep import spill
from flowkit.upkeep.du import CODE, ITEMS, LAUNCHES, Room, measure


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(str(tmp_path), durable=False)


def commit(storage: Storage, flow: str, run: str, step: str, values: dict[str, bytes], **fields: object) -> None:
    writer = ArtifactWriter(Blobs(storage))
    artifacts = {name: writer.save(name, value, step=step) for name, value in values.items()}
    manifest = Manifest(flow, run, step, "0", 0, artifacts, Transition("end"))
    write_manifest(storage, manifest._replace(**fields))


def test_an_empty_datastore(storage: Storage) -> None:
    usage = measure(storage)
    assert (usage.total, usage.flows, usage.runs) == (0, {}, {})


def test_bytes_are_told_by_flow_run_and_artifact(storage: Storage) -> None:
    one, two = bytes(10_000), bytes(20_000)
    for flow in ("A", "B"):
        for _ in range(2):
            run = claim_run(storage, flow, {})
            commit(storage, flow, run, "start", {"common": one, f"of_{flow}": two + flow.encode(), "small": b"1"})
    commit(storage, "A", "1", "train", {"model": bytes(40_000), "again": one})
    storage.create(f"{layout.data_folder('A', '2')}/table.csv", [b"1,2,3"])
    key = Blobs(storage).put([b"unused" * 1000], 6000)
    usage = measure(storage)
    assert (usage.blobs, usage.blob_bytes) == (5, 10_000 + 2 * 20_001 + 40_000 + 6000)
    assert (usage.unused, usage.unused_bytes) == (1, 6000)
    assert usage.data == 5
    assert (usage.flows["A"].own, usage.flows["A"].shared) == (60_001, 10_000)
    assert (usage.flows["A"].runs, usage.flows["A"].tasks, usage.flows["A"].data) == (2, 3, 5)
    assert (usage.flows["B"].own, usage.flows["B"].shared) == (20_001, 10_000)
    assert (usage.runs["A", "1"].own, usage.runs["A", "1"].shared, usage.runs["A", "1"].blobs) == (40_000, 30_001, 3)
    assert (usage.runs["A", "2"].own, usage.runs["A", "2"].shared, usage.runs["A", "2"].data) == (0, 30_001, 5)
    assert usage.artifacts["A", "model"] == Room(own=40_000, blobs=1)
    assert usage.artifacts["A", "common"] == Room(shared=10_000, blobs=1)
    assert usage.artifacts["B", "of_B"] == Room(own=20_001, blobs=1)
    assert ("A", "small") not in usage.artifacts
    records = sum(entry.size for entry in storage.walk(layout.FLOWS))
    assert (
        usage.records
        == records
        == sum(room.records for room in usage.flows.values())
        + sum(entry.size for entry in storage.walk(layout.FLOWS) if entry.path.endswith(".last"))
    )
    assert usage.total == usage.blob_bytes + records + 5
    only = measure(storage, "B")
    assert set(only.flows) == {"B"}
    assert {flow for flow, _ in only.runs} == {flow for flow, _ in only.artifacts} == {"B"}
    assert only.flows["B"] == usage.flows["B"]
    Path(str(storage.local_path(layout.blob_file(key)))).unlink()
    assert measure(storage).unused == 0


def test_what_is_no_artifact_has_a_name(storage: Storage) -> None:
    blobs = Blobs(storage)
    run = claim_run(storage, "A", {})
    pack, _ = save_pack(blobs, [os.urandom(3000), os.urandom(3000)])
    package = blobs.put([b"code" * 1000], 4000)
    launches = blobs.put([b"list" * 1000], 4000)
    commit(storage, "A", run, "_parameters", {}, extra={"package": {"key": package, "size": 4000}})
    commit(
        storage, "A", run, "start", {"xs": bytes(5000)}, transition=Transition("foreach", ("t",), 2, "xs", None, pack)
    )
    storage.create(f"{layout.launches_folder('A', run)}/fk-x.json", [b'{"key":"%s"}' % launches.encode()])
    usage = measure(storage)
    assert {name: room.blobs for (_, name), room in usage.artifacts.items()} == {
        "xs": 1,
        ITEMS: 1,
        CODE: 1,
        LAUNCHES: 1,
    }
    assert usage.unused == 0


def test_a_tombstone_is_no_run_and_a_torn_manifest_stops_nothing(storage: Storage) -> None:
    bury_run(storage, "A", claim_run(storage, "A", {}))
    run = claim_run(storage, "A", {})
    storage.create(layout.manifest_file("A", run, "start", "0"), [b'{"torn'])
    usage = measure(storage)
    assert list(usage.runs) == [("A", "2")]
    assert usage.flows["A"].runs == 1


def test_with_more_than_fits_into_memory(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_HELD", 7)
    for number in range(20):
        run = claim_run(storage, "A", {})
        commit(storage, "A", run, "start", {"x": bytes(3000) + bytes([number % 5]), "y": bytes(4000)})
    usage = measure(storage)
    assert usage.flows["A"].own == 5 * 3001 + 4000 == usage.blob_bytes
    assert sum(room.own for room in usage.runs.values()) == 0
    assert {room.shared for room in usage.runs.values()} == {7001}
