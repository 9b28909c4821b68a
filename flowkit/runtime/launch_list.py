"""Launch lists: many launches of one step as one blob, of which each row of a job reads its own.

The blob is a table of fixed-width entries (which row, of how many, where its text is and the hash of it), then the
texts. A row is read with two small ranged reads, so that ten thousand rows do not load ten thousand lists. The same
launches make the same blob, and so the same key.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from flowkit.datastore.blobs import Blobs, key_of
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError
from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.launch import Launch
from flowkit.runtime.messages import launch_to_json

_ENTRY = struct.Struct("<4sIIQI32s")
_MAGIC = b"FKL1"
_LONGEST = 64 << 20
"""Bytes of one row: a join whose parents alternate between steps a million times needs 20 MB."""
_WIDEST = 100_000_000
_LARGEST = 10**18
_WAY_OUT = "the list that names it is damaged: resume the run"


def save(storage: Storage, launches: Sequence[Launch]) -> str:
    """Store a launch list and return its key.

    Parameters
    ----------
    storage : Storage
        The datastore.
    launches : sequence of Launch
        Row i is launch i.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    texts = [json.dumps(launch_to_json(launch), separators=(",", ":")).encode() for launch in launches]
    entries = []
    offset = len(texts) * _ENTRY.size
    for index, text in enumerate(texts):
        if len(text) > _LONGEST:
            raise DataError(f"{launches[index].ref} has too many parents to be started elsewhere")
        entries.append(_ENTRY.pack(_MAGIC, index, len(texts), offset, len(text), bytes.fromhex(key_of([text]))))
        offset += len(text)
    return Blobs(storage).put([b"".join((*entries, *texts))], offset)


def read_row(storage: Storage, key: str, index: int) -> Launch:
    """Return one launch of a list.

    Parameters
    ----------
    storage : Storage
        The datastore.
    key : str
        What `save` returned.
    index : int
        Which row, from 0.

    Raises
    ------
    DataError
        If there is no such row, or the list is missing or damaged.
    """
    what = f"row {index} of the launch list {key}"
    if not 0 <= index < 1 << 32:
        raise DataError(f"there is no {what}")
    blobs = Blobs(storage)
    offset, length, hashed = _entry(bytes(blobs.get_range(key, index * _ENTRY.size, _ENTRY.size, what)), index, what)
    return _launch(bytes(blobs.get_range(key, offset, length, what)), hashed, what)


def read_rows(storage: Storage, key: str, rows: int) -> list[Launch]:
    """Return all launches of a list at once, for who takes over a job.

    Parameters
    ----------
    storage : Storage
        The datastore.
    key : str
        What `save` returned.
    rows : int
        How many there are.

    Raises
    ------
    DataError
        If the list is missing or damaged, or has another number of rows.
    """
    what = f"the launch list {key}"
    blobs = Blobs(storage)
    table = bytes(blobs.get_range(key, 0, rows * _ENTRY.size, what))
    places = []
    for index in range(rows):
        entry = table[index * _ENTRY.size : (index + 1) * _ENTRY.size]
        places.append(_entry(entry, index, what, rows))
    if not places:
        return []
    start = places[0][0]
    end = max(offset + length for offset, length, _ in places)
    if end - start > max(_LONGEST, rows * 4096):
        raise DataError(f"{what} is damaged: it claims to have {end - start:,} bytes", _WAY_OUT)
    texts = bytes(blobs.get_range(key, start, end - start, what))
    return [
        _launch(texts[offset - start : offset - start + length], hashed, f"row {index} of {what}")
        for index, (offset, length, hashed) in enumerate(places)
    ]


def _entry(entry: bytes, index: int, what: str, rows: int | None = None) -> tuple[int, int, bytes]:
    magic, found, count, offset, length, hashed = _ENTRY.unpack(entry)
    if magic != _MAGIC or found != index or index >= count or (rows is not None and rows != count):
        raise DataError(f"{what} is damaged, or not there", _WAY_OUT)
    if offset < count * _ENTRY.size or offset > 1 << 40 or not 0 < length <= _LONGEST:
        raise DataError(f"{what} is damaged: its place makes no sense", _WAY_OUT)
    return offset, length, hashed


def _launch(text: bytes, hashed: bytes, what: str) -> Launch:
    if bytes.fromhex(key_of([text])) != hashed:
        raise DataError(f"{what} is damaged: its checksum does not fit", _WAY_OUT)
    try:
        step, indices, turn, parents, split, attempt, kind, gang = json.loads(text)
        if kind not in ("user", "fallback"):
            raise ValueError(f"there are no attempts of the kind {kind!r}")
        return Launch(
            _step(step),
            _coordinates(indices, turn),
            tuple(_span(parent) for parent in parents),
            None if split is None else TaskRef(_step(split[0]), _coordinates(split[1], split[2])),
            _number(attempt, 1_000_000),
            kind,
            _number(gang, 1_000_000),
        )
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        raise DataError(f"{what} is damaged: {error}", _WAY_OUT) from error


def _span(parent: Any) -> Span:
    step, indices, turn, length = parent
    first = _coordinates(indices, turn)
    if _number(length, _WIDEST) < 1 or (length > 1 and not first.indices):
        raise ValueError(f"{length!r} parents of {step!r}")
    return Span(_step(step), first, length)


def _step(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{name!r} is no step")
    return name


def _coordinates(indices: Any, turn: Any) -> Coordinates:
    if not isinstance(indices, list):
        raise ValueError(f"{indices!r} are no coordinates")
    numbers = tuple(_number(index, _LARGEST) for index in indices)
    return Coordinates(numbers, None if turn is None else _number(turn, _LARGEST))


def _number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} is not a number from 0 to {most}")
    return value
