"""Going through what runs left in a datastore, as a stream.

Every blob that anything needs is named, by its key, in a small JSON object below ``flows/``: artifacts, the items of
foreaches and the code package in manifests (staged ones of gangs too), launch lists in ``.launches``. `named_keys`
looks for anything in such an object that could be a key, so that it also finds what a newer flowkit names in its own
way, and what a damaged manifest named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from flowkit.datastore.layout import FLOWS
from flowkit.datastore.many import mapped_over
from flowkit.datastore.storage import Entry, Missing, Storage
from flowkit.exceptions import InvalidPathspec
from flowkit.model.pathspec import check_part

_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_SEAL = len(b'{"blake3":"') + 64


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


def named_keys(content: bytes) -> set[bytes]:
    """Return the keys, as 32 bytes each, that an object names, and whatever else looks like one."""
    # The seal of the object itself is left out: it is a hash of the object, not a name in it.
    start = _SEAL if content.startswith(b'{"blake3":"') else 0
    return {bytes.fromhex(found.decode()) for found in _KEY.findall(content, start)}


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
