"""Which runs there are, and what has to be known of each to decide whether it stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flowkit.client.connection import is_claim_of
from flowkit.client.rebuild import run_from_datastore
from flowkit.datastore.layout import clones_file, run_file
from flowkit.datastore.lease import read_holder
from flowkit.datastore.many import mapped_over
from flowkit.datastore.runs import read_end, read_tags
from flowkit.datastore.sealed import Damaged, read_sealed
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError
from flowkit.metadata.liveness import HEARTBEAT_LIMIT, is_alive, owner_is_gone
from flowkit.metadata.records import FINAL, RunRecord
from flowkit.metadata.store import MetadataStore
from flowkit.upkeep.scan import objects

QUIET = 3600.0
"""Seconds since anything of a run was written during which it counts as alive unless it has ended."""
ELSEWHERE = 7 * 86400.0
"""The same for a run that has submitted jobs to a service, where they go on without their client, or of a scheduler."""


@dataclass(slots=True)
class RunFacts:
    """One run.

    Attributes
    ----------
    flow, run : str
        Which.
    state : str
        How it ended; ``unended``; ``deleted`` (a tombstone is in its place); ``broken`` (its ``run.json`` is damaged
        or not there).
    created, ended : float or None
        Seconds since the epoch.
    touched : float
        When anything of it was last written.
    objects, tasks, size : int
        How many objects it has, how many tasks committed in it, and bytes of its objects (blobs are not among them).
    tags : tuple of str
        User tags and system tags.
    origin : str or None
        ``Flow/run`` that it resumed.
    clones : list of str
        Steps of which it took tasks over.
    launches : bool
        Whether it submitted anything to a service.
    deployed : bool
        Whether a scheduler carries it out, and no runtime watches it.
    unfinished : bool
        Whether its deletion began and did not come to its end.
    """

    flow: str
    run: str
    state: str = "broken"
    created: float | None = None
    ended: float | None = None
    touched: float = 0.0
    objects: int = 0
    tasks: int = 0
    size: int = 0
    tags: tuple[str, ...] = ()
    origin: str | None = None
    clones: list[str] = field(default_factory=list)
    launches: bool = False
    deployed: bool = False
    unfinished: bool = False
    _has: int = 0

    @property
    def name(self) -> str:
        """``Flow/run``."""
        return f"{self.flow}/{self.run}"

    @property
    def since(self) -> float:
        """From when its age counts: its end, else the last sign of life."""
        return self.touched if self.ended is None else self.ended


_END, _TAGS = 1, 2


def census(storage: Storage) -> Iterator[RunFacts]:
    """Yield every run, tombstones included, from one listing and two or three small reads for each.

    Raises
    ------
    StoreError
        If anything cannot be listed or read.
    """
    return mapped_over(storage, lambda facts: _completed(storage, facts), _counted(storage))


def _counted(storage: Storage) -> Iterator[RunFacts]:
    facts: RunFacts | None = None
    for place in objects(storage):
        if facts is None or (facts.flow, facts.run) != (place.flow, place.run):
            if facts is not None:
                yield facts
            facts = RunFacts(place.flow, place.run)
        facts.objects += 1
        facts.size += place.entry.size
        facts.touched = max(facts.touched, place.entry.modified)
        parts = place.parts
        if parts[0] == ".launches":
            facts.launches = True
        elif len(parts) == 1:
            facts._has |= {"end.json": _END, "tags.json": _TAGS}.get(parts[0], 0)
        elif len(parts) == 2 and parts[1] == "clones.json":
            facts.clones.append(parts[0])
        elif len(parts) == 3 and parts[2] == "manifest.json":
            facts.tasks += 1
    if facts is not None:
        yield facts


def _completed(storage: Storage, facts: RunFacts) -> RunFacts:
    try:
        claim = read_sealed(storage, run_file(facts.flow, facts.run))
    except Damaged:
        claim = None
    if claim is None:
        return facts
    record = claim.get("record")
    if "deleted" in claim:
        facts.state = "deleted"
        facts.unfinished = isinstance(record, dict) or facts.objects > 1
        claim = record if isinstance(record, dict) else {}
    else:
        end = (read_end(storage, facts.flow, facts.run) if facts._has & _END else None) or {}
        facts.state = end["state"] if end.get("state") in FINAL else "unended"
        facts.ended = _time(end.get("finished")) if facts.state in FINAL else None
    facts.deployed = claim.get("pid") is None and isinstance(claim.get("deployment"), str)
    facts.created = _time(claim.get("created"))
    facts.origin = claim.get("origin") if isinstance(claim.get("origin"), str) else None
    tags = read_tags(storage, facts.flow, facts.run) if facts._has & _TAGS else None
    facts.tags = tuple({*_texts(claim.get("tags") if tags is None else tags), *_texts(claim.get("system_tags"))})
    return facts


def why_alive(storage: Storage, store: MetadataStore, facts: RunFacts, now: float | None = None) -> str | None:
    """Return in a few words why a run may still be worked on; None where nobody does.

    Asked are its lease, its process where it can be seen, the heartbeats in the datastore and in the index; of a run
    that did not end, also when anything of it was last written. Where one of a scheduler's tasks has failed, others may
    be at work.

    Raises
    ------
    StoreError
        If the datastore or the index does not answer.
    """
    now = time.time() if now is None else now
    held = why_held(storage, store, facts, now)
    may_go_on = facts.state not in FINAL or (facts.deployed and facts.state != "succeeded")
    if held is not None or not may_go_on:
        return held
    silence = now - facts.touched
    if silence < QUIET:
        return f"something of it was written {max(silence, 0):.0f} s ago"
    if facts.state not in FINAL and silence < ELSEWHERE:
        if facts.launches:
            return "it has jobs at a service, which may go on without its client"
        if facts.deployed:
            return "its scheduler may go on with it"
    return None


def why_held(storage: Storage, store: MetadataStore, facts: RunFacts, now: float | None = None) -> str | None:
    """Return in a few words who works on a run, by its lease, process and heartbeats; None where nobody does."""
    now = time.time() if now is None else now
    holder = read_holder(storage, facts.flow, facts.run)
    if holder is not None and now < holder.until and owner_is_gone(holder.owner) is not True:
        return "it belongs to a client that is alive"
    if facts.state in FINAL:
        return None
    try:
        record = run_from_datastore(storage, facts.flow, facts.run)
    except DataError:
        record = None
    known = indexed(storage, store, facts)
    if facts.deployed:  # nobody's silence makes it lost, so that its state tells nothing
        seen = known.heartbeat if known is not None else None
        return "it is running" if seen is not None and now - seen < HEARTBEAT_LIMIT else None
    if record is not None and is_alive(record, now):
        return "it is running"
    if known is not None and known.state in ("running", "pending"):
        return "it is running"
    return None


def indexed(storage: Storage, store: MetadataStore, facts: RunFacts) -> RunRecord | None:
    """Return what the index knows of a run; None for nothing, or another datastore's run of that id."""
    known = store.run(facts.flow, facts.run)
    if known is None or not store.shared:
        return known
    return known if is_of(storage, facts)(known) else None


def is_of(storage: Storage, facts: RunFacts) -> Callable[[RunRecord], bool]:
    """Return what tells whether a record is of this datastore's run, and of no other's of that id."""
    claim = read_sealed(storage, run_file(facts.flow, facts.run)) or {}
    return lambda record: is_claim_of(claim.get("record", claim), record)


def needed_runs(storage: Storage, facts: RunFacts) -> set[str]:
    """Return the runs (``Flow/run``) whose manifests a run reads as its own, or is about to."""
    needed = set()
    for step in facts.clones:
        try:
            found = read_sealed(storage, clones_file(facts.flow, facts.run, step)) or {}
        except Damaged:  # then all that it can have taken over is its origin's, or what that had taken over
            found = {"origin": facts.origin}
        needed.add(str(found.get("origin")))
    # A resume writes its clones before anything of it starts. Until then only run.json names the origin; and one that
    # was killed before leads whoever resumes it to that origin.
    began = facts.tasks > 1 or facts.clones
    if facts.origin and (facts.state not in FINAL or not began):
        needed.add(facts.origin)
    return needed


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else None


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
