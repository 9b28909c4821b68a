"""What takes the room in a datastore: flows, runs and artifacts, with what they share counted once."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flowkit.datastore.layout import DATA
from flowkit.datastore.sealed import Damaged, unseal
from flowkit.datastore.storage import Entry, Storage
from flowkit.upkeep.deployed import Deployed, deployments
from flowkit.upkeep.scan import Place, blob_folders, contents, named_keys, objects
from flowkit.upkeep.spill import Spill

ITEMS = "(items of a foreach)"
CODE = "(code package)"
LAUNCHES = "(launch lists)"
DEPLOYED = "(deployments)"
OTHER = "(other)"
_FACT = struct.Struct("<II")


@dataclass(slots=True)
class Room:
    """Bytes of a flow, a run or an artifact.

    Attributes
    ----------
    own : int
        Of blobs that nothing else of its kind names: what removing it would set free.
    shared : int
        Of blobs that others of its kind name, too.
    records : int
        Of manifests, logs and other small objects.
    data : int
        Of what steps kept with ``flowkit.S3(run=self)``.
    runs, tasks, blobs, objects : int
        How many there are of each.
    """

    own: int = 0
    shared: int = 0
    records: int = 0
    data: int = 0
    runs: int = 0
    tasks: int = 0
    blobs: int = 0
    objects: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.own + self.shared + self.records + self.data


@dataclass(slots=True)
class Usage:
    """What takes the room.

    Attributes
    ----------
    flows : dict of str to Room
        By name.
    runs : dict of (flow, run) to Room
        Tombstones are left out.
    deployments : dict of (flow, target/name) to Room
        What they hold for the runs that are to come.
    artifacts : dict of (flow, artifact) to Room
        `own` are bytes that no other artifact's name has in that flow or another one.
    blobs, blob_bytes : int
        All blobs, each counted once.
    unused, unused_bytes : int
        Those that nothing names.
    records, data : int
        Bytes of small objects, and of what steps kept with ``flowkit.S3(run=self)``.
    """

    flows: dict[str, Room] = field(default_factory=dict)
    runs: dict[tuple[str, str], Room] = field(default_factory=dict)
    deployments: dict[tuple[str, str], Room] = field(default_factory=dict)
    artifacts: dict[tuple[str, str], Room] = field(default_factory=dict)
    blobs: int = 0
    blob_bytes: int = 0
    unused: int = 0
    unused_bytes: int = 0
    records: int = 0
    data: int = 0

    @property
    def total(self) -> int:
        """All bytes below the root, but for those of the index."""
        return self.blob_bytes + self.records + self.data


def measure(storage: Storage, flow: str | None = None) -> Usage:
    """Go through a datastore once and count.

    Parameters
    ----------
    storage : Storage
        The datastore.
    flow : str, optional
        Tell of this flow only; what others share with it counts as shared all the same.

    Raises
    ------
    StoreError
        If anything cannot be listed or read.
    """
    usage = Usage()
    with Spill(_FACT.size) as names:
        runs: dict[tuple[str, str], int] = {}
        artifacts: dict[tuple[str, str], int] = {}
        for place, content in contents(storage, _counted(storage, usage)):
            run = runs.setdefault((place.flow, place.run), len(runs))
            for key, name in _named(place, content or b""):
                artifact = artifacts.setdefault((place.flow, name), len(artifacts))
                names.add(key, _FACT.pack(run, artifact))
        for found in deployments(storage):
            owner = (found.flow or DEPLOYED, found.path)
            _count_deployment(usage, owner, found)
            run = runs.setdefault(owner, len(runs))
            artifact = artifacts.setdefault((owner[0], DEPLOYED), len(artifacts))
            for key in found.keys:
                names.add(key, _FACT.pack(run, artifact))
        _count_blobs(storage, names, usage, list(runs), list(artifacts))
    _leave_out_tombstones(usage)
    _count_data(storage, usage)
    if flow is not None:
        usage.flows = {name: room for name, room in usage.flows.items() if name == flow}
        usage.runs = {name: room for name, room in usage.runs.items() if name[0] == flow}
        usage.deployments = {name: room for name, room in usage.deployments.items() if name[0] == flow}
        usage.artifacts = {name: room for name, room in usage.artifacts.items() if name[0] == flow}
    return usage


def _counted(storage: Storage, usage: Usage) -> Iterator[Place]:
    """Yield the objects that name blobs, having counted all of them."""

    def strange(entry: Entry) -> None:
        usage.records += entry.size  # hints; belongs to no run

    for place in objects(storage, strange):
        usage.records += place.entry.size
        rooms = (
            usage.flows.setdefault(place.flow, Room()),
            usage.runs.setdefault((place.flow, place.run), Room(runs=1)),
        )
        for room in rooms:
            room.objects += 1
            room.records += place.entry.size
            room.tasks += len(place.parts) == 3 and place.parts[2] == "manifest.json"
        if place.is_record:
            yield place


def _count_deployment(usage: Usage, owner: tuple[str, str], found: Deployed) -> None:
    usage.records += found.entry.size
    for room in (usage.flows.setdefault(owner[0], Room()), usage.deployments.setdefault(owner, Room())):
        room.objects += 1
        room.records += found.entry.size


def _leave_out_tombstones(usage: Usage) -> None:
    """Take out what has nothing but its ``run.json``, and count the runs of each flow."""
    for name in [name for name, room in usage.runs.items() if room.objects == 1]:
        del usage.runs[name]
    for flow, _ in usage.runs:
        usage.flows[flow].runs += 1


def _named(place: Place, content: bytes) -> Iterator[tuple[bytes, str]]:
    """Yield the keys that an object names, each with what it is the content of."""
    rest = named_keys(content)
    if place.parts[0] == ".launches":
        yield from ((key, LAUNCHES) for key in rest)
        return
    if place.parts[-1] == "manifest.json":
        body = _body(content)
        artifacts = body.get("artifacts")
        for name, entry in artifacts.items() if isinstance(artifacts, dict) else ():
            key = _key(entry.get("key") if isinstance(entry, dict) else None)
            if key is not None:
                rest.discard(key)
                if "inline" not in entry:
                    yield key, name
        package = (body.get("extra") or {}).get("package") if isinstance(body.get("extra"), dict) else None
        key = _key(package.get("key") if isinstance(package, dict) else None)
        if key is not None:
            rest.discard(key)
            yield key, CODE
        for key in _packs(body):
            rest.discard(key)
            yield key, ITEMS
        for key in _reads(body):  # names of what is told elsewhere
            rest.discard(key)
    yield from ((key, OTHER) for key in rest)


def _packs(body: dict[str, Any]) -> Iterator[bytes]:
    frames, transition = body.get("frames"), body.get("transition")
    texts = [transition] if isinstance(transition, list) else []
    texts += frames if isinstance(frames, list) else []
    for fields in texts:
        for text in fields if isinstance(fields, list) else ():
            key = _key(text.partition("-")[0]) if isinstance(text, str) else None
            if key is not None:
                yield key


def _reads(body: dict[str, Any]) -> Iterator[bytes]:
    reads = body.get("reads")
    for entries in reads.values() if isinstance(reads, dict) else ():
        for entry in entries if isinstance(entries, list) else ():
            key = _key(entry.rpartition("=")[2]) if isinstance(entry, str) else None
            if key is not None:
                yield key


def _count_blobs(
    storage: Storage, names: Spill, usage: Usage, runs: list[tuple[str, str]], artifacts: list[tuple[str, str]]
) -> None:
    for prefix, blobs in blob_folders(storage):
        sizes = {key: entry.size for key, entry in blobs.items()}
        usage.blobs += len(sizes)
        usage.blob_bytes += sum(sizes.values())
        of: dict[str, set[tuple[int, int]]] = {}
        for key, extra in names.facts(prefix):
            if key in sizes:
                of.setdefault(key, set()).add(_FACT.unpack(extra))
        for key, size in sizes.items():
            pairs = of.get(key)
            if pairs is None:
                usage.unused += 1
                usage.unused_bytes += size
                continue
            by_run = {runs[run] for run, _ in pairs}
            _share([_owner(usage, name) for name in by_run], size)
            _share([usage.flows.setdefault(name, Room()) for name in {flow for flow, _ in by_run}], size)
            by_name = {artifacts[artifact] for _, artifact in pairs}
            _share([usage.artifacts.setdefault(name, Room()) for name in by_name], size)


def _owner(usage: Usage, name: tuple[str, str]) -> Room:
    # No run's id has a slash in it.
    return (usage.deployments if "/" in name[1] else usage.runs).setdefault(name, Room())


def _share(rooms: list[Room], size: int) -> None:
    for room in rooms:
        room.blobs += 1
        if len(rooms) == 1:
            room.own += size
        else:
            room.shared += size


def _count_data(storage: Storage, usage: Usage) -> None:
    for entry in storage.walk(DATA):
        parts = entry.path.split("/")
        usage.data += entry.size
        if len(parts) > 3:
            for room in (usage.runs.get((parts[1], parts[2])), usage.flows.get(parts[1])):
                if room is not None:
                    room.data += entry.size


def _body(content: bytes) -> dict[str, Any]:
    try:
        return unseal(content, "a manifest")
    except Damaged:
        return {}


def _key(text: Any) -> bytes | None:
    if not isinstance(text, str) or len(text) != 64:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None
