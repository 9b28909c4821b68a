"""The items of a foreach in one blob, so that each child reads its own item and nothing else.

What ``foreach`` iterates over is whatever ``for item in value`` gives: the keys of a dictionary, the rows of an array,
the column names of a frame, the characters of a string. A set is sorted where its items can be, since the order of a
set of strings differs from process to process. An iterator is used up, so its artifact must become a list first.

The blob is a table of rows (offset, length, hash and seal of each entry), then the entries. An entry is one item, or,
for plain numbers and short strings, a list of `GROUP` of them, which saves most of the hashing. A *pack* is the text
``<key>-<identity>-<items in an entry>``: the identity is a hash of the whole table, and every row's seal is made with
it, so that a row read alone from another pack's blob is found out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from blake3 import blake3

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.codecs import Encoded, NotEncodable, decode, encode
from flowkit.datastore.pickling import refusal
from flowkit.exceptions import ArtifactError

GROUP = 64
"""How many plain items stand in one entry."""
_MAX_ENTRY = 64 << 10
_PLACE = struct.Struct("<QQ32s")
_ROW = struct.Struct("<QQ32s16s")
_NUMBERED = struct.Struct("<16sQ")
_SCALARS = frozenset({int, float, bool, str, bytes, type(None), complex})
_NUMPY = ("bool bool_ float16 float32 float64 int8 int16 int32 int64 str_ uint8 uint16 uint32 uint64")  # fmt: skip


class _Pack(NamedTuple):
    key: str
    identity: bytes
    group: int


def save_pack(blobs: Blobs, items: Iterable[Any], *, step: str = "", name: str = "") -> tuple[str, int]:
    """Store the items of a foreach, one by one, in linear time.

    Parameters
    ----------
    blobs : Blobs
        Where to.
    items : iterable
        What is iterated over.
    step, name : str
        The step and the artifact, for errors.

    Returns
    -------
    tuple of str and int
        The pack, as `read_item` takes it, and how many items it has.

    Raises
    ------
    ArtifactError
        If an item cannot be stored; the error names it.
    """
    ordered: Any = items if _plain_array(items) else in_order(items)
    entries, group = _grouped(ordered), GROUP
    if entries is None:
        entries, group = [_entry(item, index, step, name) for index, item in enumerate(ordered)], 1
    places = []
    offset = len(entries) * _ROW.size
    for entry in entries:
        places.append(_PLACE.pack(offset, entry.size, bytes.fromhex(_hash(entry.chunks))))
        offset += entry.size
    identity = blake3(b"".join(places)).digest(16)
    rows = b"".join([place + _seal(identity, index, place) for index, place in enumerate(places)])
    chunks: list[bytes | bytearray | memoryview] = [rows]
    for entry in entries:
        chunks += entry.chunks
    if len(chunks) > 10_000:
        chunks = _gathered(chunks)
    key = blobs.put(chunks, offset)
    return f"{key}-{identity.hex()}-{group}", len(ordered)


def read_item(blobs: Blobs, pack: str, width: int, index: int) -> Any:
    """Return one item: two ranged reads, and the item verified by its own hash.

    Parameters
    ----------
    pack : str
        What `save_pack` returned.
    width : int
        How many items there are.
    index : int
        Which one, from 0.

    Raises
    ------
    ArtifactError
        If the pack is missing or damaged.
    """
    parts = _parse(pack)
    what = f"item {index} of a foreach of {width}"
    if not 0 <= index < width:
        raise ArtifactError(f"there is no {what}", "the manifest that names it is damaged")
    place, within = divmod(index, parts.group)
    row = blobs.get_range(parts.key, place * _ROW.size, _ROW.size, what)
    offset, length, hashed, seal = _ROW.unpack(row)
    if blobs.verify != "off" and _seal(parts.identity, place, bytes(row[: _PLACE.size])) != seal:
        raise ArtifactError(f"{what} is damaged: the table of blob {parts.key} does not belong to it", _WAY_OUT)
    content = blobs.get_range(parts.key, offset, length, what)
    if blobs.verify != "off":
        found = blake3(content).digest()
        if found != hashed:
            raise ArtifactError(
                f"{what} is damaged: its content has the hash {found.hex()}, not {hashed.hex()}", _WAY_OUT
            )
    codec, meta, body = _opened(content)
    value = decode(codec, body, meta)
    return value[within] if parts.group > 1 else value


_WAY_OUT = "delete the damaged blob and resume the run from the step that made the foreach"


def pack_key(pack: str) -> str:
    """Return the key of the blob that holds a pack."""
    return _parse(pack).key


def in_order(items: Iterable[Any]) -> list[Any]:
    """Return the items of a foreach in the order of their indices."""
    if type(items) is list:
        return items
    if type(items) in (set, frozenset):
        try:
            return sorted(items)
        except TypeError:  # items that cannot be compared: any order is as good
            return list(items)
    return list(items)


def _grouped(items: Any) -> list[Encoded] | None:
    """Put plain items into entries of several; None where an item is not plain, or an entry grows large."""
    if not len(items) or not (_plain_array(items) or all(map(_plain, set(map(type, items))))):
        return None
    entries = []
    for start in range(0, len(items), GROUP):
        entry = _wrapped(encode(items[start : start + GROUP]))
        if entry.size > _MAX_ENTRY:
            return None
        entries.append(entry)
    return entries


def _plain_array(items: Any) -> bool:
    """Whether it is an array of numbers or text, a slice of which gives the same items as going through it."""
    kind = type(items)
    plain = kind.__module__ == "numpy" and kind.__name__ == "ndarray"
    return plain and items.ndim == 1 and items.dtype.kind in "biufcSUMm"


def _plain(kind: type) -> bool:
    # Exact types without code of their own: unpickling the neighbours of an item does nothing but make them.
    return kind in _SCALARS or (kind.__module__ == "numpy" and kind.__name__ in _NUMPY.split())


def _entry(item: Any, index: int, step: str, name: str) -> Encoded:
    try:
        return _wrapped(encode(item))
    except NotEncodable as error:
        raise refusal(f"{name or 'foreach'}[{index}]", item, step, error.__cause__) from error.__cause__


def _wrapped(encoded: Encoded) -> Encoded:
    """Add what decoding needs: nothing but a zero for a plain pickle, else codec and meta."""
    if encoded.codec == "pickle" and not encoded.meta:
        return Encoded([b"\0", *encoded.chunks], encoded.size + 1, {}, encoded.codec)
    head = json.dumps([encoded.codec, encoded.meta]).encode()
    # Padded to a multiple of 64, so that what is aligned within the content stays aligned in memory.
    gap = -(5 + len(head)) % 64
    start = b"\1" + struct.pack("<I", len(head) + gap) + head + b" " * gap
    return Encoded([start, *encoded.chunks], encoded.size + len(start), {}, encoded.codec)


def _opened(content: memoryview) -> tuple[str, dict[str, Any], memoryview]:
    if not len(content) or content[0] > 1:
        raise ArtifactError("an item of a foreach has an unknown form", "a newer flowkit wrote it")
    if content[0] == 0:
        return "pickle", {}, content[1:]
    (length,) = struct.unpack_from("<I", content, 1)
    codec, meta = json.loads(bytes(content[5 : 5 + length]))
    return codec, meta, content[5 + length :]


def _hash(chunks: list[bytes | bytearray | memoryview]) -> str:
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def _seal(identity: bytes, index: int, place: bytes) -> bytes:
    return blake3(_NUMBERED.pack(identity, index) + place).digest(16)


def _gathered(chunks: list[bytes | bytearray | memoryview]) -> list[bytes | bytearray | memoryview]:
    """Join runs of small chunks, so that a million of them are not gone through one by one."""
    out: list[bytes | bytearray | memoryview] = []
    small: list[bytes | bytearray | memoryview] = []
    for chunk in chunks:
        if len(chunk) < 65536:
            small.append(chunk)
        else:
            out += [b"".join(small), chunk]
            small = []
    return [*out, b"".join(small)]


def _parse(pack: str) -> _Pack:
    try:
        key, identity, group = pack.split("-")
        parts = _Pack(key, bytes.fromhex(identity), int(group))
    except ValueError:
        raise ArtifactError(f"{pack!r} does not name the items of a foreach", "its manifest is damaged") from None
    if len(parts.identity) != 16 or not 1 <= parts.group <= 1 << 16:
        raise ArtifactError(f"{pack!r} does not name the items of a foreach", "its manifest is damaged")
    return parts
