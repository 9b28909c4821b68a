"""Removing blobs that nothing names: mark, look again, sweep.

*Mark*: every small object below ``flows/`` is read, and the keys that it names are kept, in files where they are many;
so are those of what is deployed (`flowkit.upkeep.deployed`).
Blobs that are not among them and were last written or refreshed before the grace period are candidates, which are
written down in the datastore.

*Look again*: what was written since the mark began is read, too, and takes its blobs off the list.

*Sweep*: blob by blob, right before it is removed, its time is looked at again. A run that starts at any moment of this
either writes a blob, or refreshes the time of one that is there, or takes over a task of a run whose manifest names it;
each of which spares it. What is left of the race between a look and a removal is settled by announcements
(`flowkit.datastore.sweeping`).

Killed at any point, nothing is lost: the next sweep begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from itertools import chain
from typing import NamedTuple

from flowkit.datastore.layout import FLOWS, blob_file, candidates_file
from flowkit.datastore.many import mapped_over
from flowkit.datastore.sealed import Damaged, read_sealed, seal
from flowkit.datastore.storage import Entry, Storage
from flowkit.datastore.sweeping import Announcement
from flowkit.upkeep.deployed import deployments
from flowkit.upkeep.scan import Place, blob_folders, contents, named_keys, objects, spun
from flowkit.upkeep.spill import Spill

GRACE = 24 * 3600.0
"""Seconds for which a blob that nothing names is spared: the time that a task has from storing the first of its
artifacts to its commit."""
_BATCH = 256
_MARGIN = 3600.0


class Unused(NamedTuple):
    """Blobs that nothing names: how many, and their bytes."""

    blobs: int = 0
    size: int = 0


def mark(
    storage: Storage,
    marks: Spill,
    keep_turn: Callable[[], None],
    since: float | None = None,
    without: Container[str] = (),
) -> int:
    """Collect every key that a run or a deployment names; return how many objects were read.

    Parameters
    ----------
    storage : Storage
        The datastore.
    marks : Spill
        Where to.
    keep_turn : callable
        Called now and then.
    since : float, optional
        Only what was written since then, by the storage's clock (seconds since the epoch).
    without : container of str
        Runs (``Flow/run``) that are left out, to see what would be unused without them.

    Raises
    ------
    StoreError
        If anything cannot be listed or read: then nothing may be swept.
    """

    def wanted() -> Iterator[Place]:
        for place in chain(objects(storage), spun(storage)):
            old = since is not None and place.entry.modified < since
            left_out = place.entry.path.startswith(f"{FLOWS}/") and f"{place.flow}/{place.run}" in without
            if place.is_record and not old and not left_out:
                yield place

    count = 0
    for _, content in contents(storage, wanted()):
        count += 1
        if not count % 100:
            keep_turn()
        if content is not None:
            for key in named_keys(content):
                marks.add(key)
    for deployed in deployments(storage, since):
        count += 1
        keep_turn()
        for key in deployed.keys:
            marks.add(key)
    return count


def unused(storage: Storage, marks: Spill, before: float) -> Iterator[tuple[str, list[Entry]]]:
    """Yield, for each prefix of keys, the blobs that are not marked and were last written before a time."""
    for prefix, blobs in blob_folders(storage):
        old = [entry for entry in blobs.values() if entry.modified < before]
        known = marks.keys(prefix) if old else set()
        found = [entry for entry in old if entry.path.rpartition("/")[2] not in known]
        if found:
            yield prefix, found


def count_unused(storage: Storage, before: float, without: Container[str] = ()) -> Unused:
    """Return what a sweep would remove once some runs are gone; nothing is changed."""
    with Spill() as marks:
        mark(storage, marks, lambda: None, without=without)
        blobs = size = 0
        for _, found in unused(storage, marks, before):
            blobs += len(found)
            size += sum(entry.size for entry in found)
        return Unused(blobs, size)


def sweep(
    storage: Storage, before: float, started: float, keep_turn: Callable[[], None], told: Callable[[str], None]
) -> Unused:
    """Remove the blobs that nothing names; to be called by who holds the turn.

    Parameters
    ----------
    storage : Storage
        The datastore.
    before : float
        Blobs that were written or refreshed since then are spared: at least `SHORTEST_GRACE` before now.
    started : float
        Now. Both by the storage's clock, in seconds since the epoch.
    keep_turn : callable
        Raises where this process may not go on.
    told : callable
        Is given a line of progress now and then.

    Returns
    -------
    Unused
        What was removed.

    Raises
    ------
    StoreError
        If anything cannot be listed, read or removed.
    """
    prefixes = []
    with Spill() as marks:
        count = mark(storage, marks, keep_turn)
        told(f"{count:,} manifests and other records read")
        for prefix, found in unused(storage, marks, before):
            keep_turn()
            body = {"found": started, "blobs": [[entry.path.rpartition("/")[2], entry.size] for entry in found]}
            storage.replace(candidates_file(prefix), [seal(body)])
            prefixes.append(prefix)
    blobs = size = 0
    announcement = Announcement(storage)
    try:
        with Spill() as marks:
            if prefixes:
                mark(storage, marks, keep_turn, since=started - _MARGIN)
            for prefix in prefixes:
                removed = _sweep_prefix(storage, prefix, marks.keys(prefix), before, announcement, keep_turn)
                blobs, size = blobs + removed.blobs, size + removed.size
    finally:
        announcement.withdraw()
    return Unused(blobs, size)


def _sweep_prefix(
    storage: Storage,
    prefix: str,
    marked: set[str],
    before: float,
    announcement: Announcement,
    keep_turn: Callable[[], None],
) -> Unused:
    try:
        listed = read_sealed(storage, candidates_file(prefix)) or {}
    except Damaged:
        listed = {}  # the next sweep finds them again
    waiting = [(key, size) for key, size in listed.get("blobs", ()) if key not in marked]

    def remove(key: str) -> bool:
        # Where this process was stopped for long, writers do not wait for it any more.
        return announcement.holds and storage.delete_older(blob_file(key), before)

    blobs = size = 0
    for start in range(0, len(waiting), _BATCH):
        keep_turn()
        announcement.make(prefix)
        batch = waiting[start : start + _BATCH]
        for (key, length), gone in zip(batch, mapped_over(storage, remove, [key for key, _ in batch]), strict=True):
            if gone:
                blobs, size = blobs + 1, size + length
                if not storage.remote:
                    storage.delete(f".verified/{prefix}/{key}")
    storage.delete(candidates_file(prefix))
    return Unused(blobs, size)
