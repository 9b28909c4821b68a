"""Cleaning, measuring and checking a datastore to which flows are deployed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from flowkit.datastore import layout
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import write_manifest
from flowkit.datastore.runs import claim_named_run, read_run, write_end
from flowkit.deployer.records import delete_record, read_record, write_record
from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import Conflict, InvalidPathspec, StoreError
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata.records import RunRecord, deployment_tags
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition
from flowkit.upkeep.census import ELSEWHERE, QUIET
from flowkit.upkeep.deletion import plan_one
from flowkit.upkeep.du import DEPLOYED, measure
from flowkit.upkeep.fsck import Check
from flowkit.upkeep.gc import clean, preview
from flowkit.upkeep.retention import Rule, Rules

FLOW = "Night"
TARGET = "argo-workflows"
DAY = 86400.0


class World:
    """A datastore with what is deployed to it."""

    def __init__(self, folder: Path) -> None:
        self.storage = LocalStorage(str(folder), durable=False)
        self.store = MemoryMetadata()
        self.blobs = Blobs(self.storage)

    def deploy(self, text: str, name: str = "night.prod", created: float = 1.0) -> dict[str, str]:
        """Deploy a flow; return the keys of what its runs need."""
        package = self.blobs.put([text.encode() * 900], 900 * len(text))
        value = ArtifactWriter(self.blobs).save("table", text * 5000, step="_parameters")
        parameters = Manifest(FLOW, "template", "_parameters", "0", 0, {"table": value}, Transition("linear", ("end",)))
        body = {"format": 1, "claim": {}, "parameters": parameters.to_json(), "required": []}
        content = json.dumps(body).encode()
        template = self.blobs.put([content], len(content))
        record = DeploymentRecord(
            TARGET, name, FLOW, "ada", created, template=template, package={"key": package, "size": 1}
        )
        write_record(self.storage, record)
        return {"package": package, "template": template, "value": value.key}

    def run(self, run: str, text: str, state: str | None = None, **claim: Any) -> None:
        when = time.time() - 3 * DAY
        deployment = f"{TARGET}/night.prod"
        tags = deployment_tags(deployment)
        claim_named_run(
            self.storage,
            FLOW,
            run,
            {"user": "ada", "created": when, "system_tags": tags, "deployment": deployment, **claim},
        )
        value = ArtifactWriter(self.blobs).save("made", text * 5000, step="start")
        write_manifest(self.storage, Manifest(FLOW, run, "start", "0", 0, {"made": value}, Transition("end")))
        self.storage.create(layout.index_file(FLOW, run, "start", "0"), [b'["0"]'])
        if state is not None:
            write_end(self.storage, FLOW, run, {"state": state, "reason": None, "finished": when})
        owner = {name: claim.get(name) for name in ("pid", "host")}
        record = RunRecord(FLOW, run, "ada", "running", when, system_tags=tuple(tags), **owner)
        self.store.write([record._replace(state=state or "running")])  # type: ignore[arg-type]

    def age(self, seconds: float, below: str = "") -> None:
        """Have everything be written so much earlier."""
        when = time.time() - seconds
        for entry in self.storage.walk(below):
            os.utime(str(self.storage.local_path(entry.path)), (when, when))

    def has(self, keys: dict[str, str]) -> set[str]:
        return {name for name, key in keys.items() if self.storage.info(layout.blob_file(key)) is not None}

    def findings(self) -> list[str]:
        return [f"{found.where}: {found.what}" for found in Check(self.storage, self.store).run()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_is_deployed_keeps_its_code_and_its_values(world: World) -> None:
    night, other = world.deploy("night"), world.deploy("other", "other")
    unused = {"blob": world.blobs.put([b"unused" * 1000], 6000)}
    world.age(2 * DAY)
    assert preview(world.storage, world.store, Rules()).unused.blobs == 1
    assert clean(world.storage, world.store, Rules()).unused.blobs == 1
    assert world.has(unused) == set()
    assert world.has(night) == world.has(other) == {"package", "template", "value"}
    # What was deployed before is spared for a day: a run of it may be about to begin.
    new = world.deploy("newer", created=2.0)
    delete_record(world.storage, TARGET, "other")
    assert clean(world.storage, world.store, Rules()).unused.blobs == 0
    world.age(2 * DAY)
    assert clean(world.storage, world.store, Rules()).unused.blobs == 6
    assert world.has(night) == world.has(other) == set()
    assert world.has(new) == {"package", "template", "value"}
    # A record that cannot be read any more keeps what it names.
    world.storage.replace(layout.deployment_file(TARGET, "night.prod"), [b"torn " + json.dumps(new).encode()])
    del new["value"]
    world.age(2 * DAY)
    assert clean(world.storage, world.store, Rules()).unused.blobs == 0
    assert world.findings() == ["deployments/argo-workflows/night.prod.json: it is damaged: its checksum does not fit"]


def test_a_record_that_is_written_during_a_sweep_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowkit.upkeep import sweep

    night = world.deploy("night")
    body = world.storage.read(layout.deployment_file(TARGET, "night.prod"))
    world.storage.delete(layout.deployment_file(TARGET, "night.prod"))
    world.age(2 * DAY)
    marked = []

    def mark(*args: Any, **options: Any) -> int:
        count = original(*args, **options)
        if not marked:
            world.storage.create(layout.deployment_file(TARGET, "night.prod"), [body])
        marked.append(count)
        return count

    original = sweep.mark
    monkeypatch.setattr(sweep, "mark", mark)
    assert clean(world.storage, world.store, Rules()).unused.blobs == 0
    assert len(marked) == 2
    assert world.has(night) == {"package", "template", "value"}


def test_room_and_order_of_what_is_deployed(world: World) -> None:
    night = world.deploy("night")
    world.run("argo-1", "night", "succeeded")  # made the very value that is deployed
    world.storage.create(layout.cancel_file(FLOW, "argo-1"), [b'{"by":"ada"}'])  # without a seal, as it is written
    usage = measure(world.storage)
    room = usage.deployments[FLOW, f"{TARGET}/night.prod"]
    size = {name: world.storage.info(layout.blob_file(key)).size for name, key in night.items()}  # type: ignore[union-attr]
    assert (room.own, room.shared, room.blobs) == (size["package"] + size["template"], size["value"], 3)
    assert usage.runs[FLOW, "argo-1"].shared == size["value"]
    assert (usage.flows[FLOW].own, usage.flows[FLOW].runs, usage.unused) == (sum(size.values()), 1, 0)
    assert usage.artifacts[FLOW, DEPLOYED].blobs == 3
    assert usage.records == sum(room.records for room in usage.flows.values())
    assert list(measure(world.storage, "Other").deployments) == []
    assert world.findings() == []
    world.storage.create("deployments/strange/deep/er.json", [b"{}"])
    world.storage.create("deployments/argo-workflows/notes.txt", [b"x"])
    world.storage.delete(layout.blob_file(night["value"]))
    world.storage.delete(layout.blob_file(night["package"]))
    assert sorted(world.findings()) == sorted(
        [
            "deployments/argo-workflows/notes.txt: it belongs to no deployment",
            "deployments/strange/deep/er.json: it belongs to no deployment",
            f"blobs/{night['package'][:2]}/{night['package']}: the code package of the deployment "
            "argo-workflows/night.prod is missing",
            f"blobs/{night['value'][:2]}/{night['value']}: the content of the artifact 'made' of Night/argo-1/start/0 "
            "is missing",
            f"blobs/{night['value'][:2]}/{night['value']}: the value 'table' of its runs of the deployment "
            "argo-workflows/night.prod is missing",
        ]
    )


def test_a_schedulers_runs_go_as_others_do(world: World) -> None:
    rules = Rules(Rule(keep=0))
    world.run("argo-1", "a", "succeeded")
    world.run("argo-2", "b", "failed")
    world.run("argo-3", "c")
    world.run("7", "d", pid=7, host="elsewhere")  # its client is a runtime, and gone
    kept = {each.facts.run: each.why for each in preview(world.storage, world.store, rules).kept}
    assert sorted(kept) == ["7", "argo-2", "argo-3"]
    assert kept["argo-2"].startswith("something of it was written")
    world.age(QUIET + 60)
    kept = {each.facts.run: each.why for each in preview(world.storage, world.store, rules).kept}
    assert kept == {"argo-3": "its scheduler may go on with it"}
    with pytest.raises(Conflict, match="its scheduler may go on with it"):
        plan_one(world.storage, world.store, FLOW, "argo-3", time.time())
    world.age(ELSEWHERE + 60)
    # One of its tasks is alive, as a service knows.
    record = world.store.run(FLOW, "argo-3")
    assert record is not None
    world.store.write([record._replace(heartbeat=time.time())])
    assert [each.why for each in preview(world.storage, world.store, rules).kept] == ["it is running"]
    world.store.write([record._replace(heartbeat=time.time() - DAY)])
    done = clean(world.storage, world.store, Rules(Rule(states=("lost",))))
    assert [each.facts.run for each in done.runs] == ["7", "argo-3"]
    done = clean(world.storage, world.store, rules)
    assert [each.facts.run for each in done.runs] == ["argo-2", "argo-1"]
    assert read_run(world.storage, FLOW, "argo-1") is None
    assert not claim_named_run(world.storage, FLOW, "argo-1", {})  # nor will there ever be another one


def test_a_template_that_cannot_be_read_stops_a_sweep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    night = world.deploy("night")
    world.age(2 * DAY)
    read = LocalStorage.read

    def refuse(self: LocalStorage, path: str) -> bytes:
        if path == layout.blob_file(night["template"]):
            raise StoreError("the network is away")
        return read(self, path)

    monkeypatch.setattr(LocalStorage, "read", refuse)
    with pytest.raises(StoreError, match="the network is away"):
        clean(world.storage, world.store, Rules())
    assert world.has(night) == {"package", "template", "value"}


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "x" * 251, "ä"])
def test_names_that_leave_the_folder(world: World, name: str) -> None:
    with pytest.raises(InvalidPathspec):
        layout.deployment_file(TARGET, name)
    with pytest.raises(InvalidPathspec):
        layout.deployment_file(name * 2, "x")
    assert layout.deployment_file(TARGET, "train.user.ann") == "deployments/argo-workflows/train.user.ann.json"
    assert read_record(world.storage, TARGET, "none") is None
