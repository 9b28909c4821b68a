"""Going through what runs left in a datastore, as a stream.

Every blob that a run needs is named, by its key, in a small JSON object below ``flows/``: artifacts, the items of
foreaches and the code package in manifests (staged ones of gangs too), launch lists in ``.launches``. What is deployed
names the blobs from which its runs are to begin (`flowkit.upkeep.deployed`). `named_keys`
looks for anything in such an object that could be a key, so that it also finds what a newer flowkit names in its own
way, and what a damaged manifest named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from flowkit.datastore.layout import BLOBS, FLOWS, blob_file
from flowkit.datastore.many import mapped_over
from flowkit.datastore.spins import FOLDER as SPINS
from flowkit.datastore.storage import Entry, Missing, Storage
from flowkit.exceptions import DataError, InvalidPathspec
from flowkit.model.pathspec import check_part
from flowkit.upkeep.spill import PREFIXES

_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Place(NamedTuple):
    """An object of a run: whose it is, what it is (the path's parts below the run), and its entry in the listing."""

    flow: str
    run: str
    parts: tuple[str, ...]
    entry: Entry

    @property
    def is_record(self) -> bool:
        """Whether it is one of the small JSON objects, and no log."""
        return self.parts[-1].endswith(".json")


def objects(storage: Storage, strange: Callable[[Entry], None] | None = None) -> Iterator[Place]:
    """Yield every object of every run; those of one run come in one piece.

    Parameters
    ----------
    storage : Storage
        The datastore.
    strange : callable, optional
        Is given what is below ``flows/`` and belongs to no run.

    Raises
    ------
    StoreError
        If anything cannot be listed.
    """
    known: set[str] = set()
    for entry in storage.walk(FLOWS):
        parts = entry.path.split("/")
        if len(parts) > 3 and _is_name(parts[1], known) and _is_name(parts[2], known):
            yield Place(parts[1], parts[2], tuple(parts[3:]), entry)
        elif strange is not None:
            strange(entry)


def spun(storage: Storage) -> Iterator[Place]:
    """Yield every object of the spins that were kept on runs of a local root: they name blobs of the runs, too."""
    for entry in storage.walk(f"{SPINS}/{FLOWS}"):
        parts = entry.path.split("/")
        if len(parts) > 4:
            yield Place(parts[2], parts[3], tuple(parts[4:]), entry)


def contents(storage: Storage, places: Iterable[Place]) -> Iterator[tuple[Place, bytes | None]]:
    """Yield places with their content, several read at once where each call travels; None for what is gone by now.

    Raises
    ------
    StoreError
        If one cannot be read.
    """

    def read(place: Place) -> tuple[Place, bytes | None]:
        try:
            return place, storage.read(place.entry.path)
        except Missing:
            return place, None

    return mapped_over(storage, read, places)


def blob_folders(
    storage: Storage, strange: Callable[[Entry], None] | None = None
) -> Iterator[tuple[str, dict[str, Entry]]]:
    """Yield every prefix of keys with the blobs of that prefix, by key: the folders of blobs, from one listing.

    Those that have none come last.

    Parameters
    ----------
    storage : Storage
        The datastore.
    strange : callable, optional
        Is given what is among the blobs and is none.

    Raises
    ------
    StoreError
        If anything cannot be listed.
    """
    seen = set()
    for folder, entries in groupby(storage.walk(BLOBS), lambda entry: entry.path.rpartition("/")[0]):
        found = {}
        for entry in entries:
            key = entry.path.rpartition("/")[2]
            if is_key(key) and blob_file(key) == entry.path:
                found[key] = entry
            elif strange is not None:
                strange(entry)
        if found:
            seen.add(folder[-2:])
            yield folder[-2:], found
    for prefix in PREFIXES:
        if prefix not in seen:
            yield prefix, {}


def is_key(key: object) -> bool:
    """Whether something is the key of a blob."""
    try:
        blob_file(key)  # type: ignore[arg-type]
    except DataError:
        return False
    return True


def named_keys(content: bytes) -> set[bytes]:
    """Return the keys, as 32 bytes each, that an object names, and whatever else looks like one (its own seal, too)."""
    return {bytes.fromhex(found.decode()) for found in _KEY.findall(content)}


def _is_name(name: str, known: set[str]) -> bool:
    if name in known:
        return True
    try:
        check_part(name)
    except InvalidPathspec:
        return False
    if len(known) > 100_000:
        known.clear()
    known.add(name)
    return True
