"""Codecs: how values become bytes and come back. The only place that pickles.

A codec is chosen by the value's type. Built in are raw codecs for ``bytes``, ``bytearray`` and ``str``, Arrow for
tables (`flowkit.datastore.arrow`), and for everything else pickle protocol 5 with the memory of large arrays beside
the pickle: it is written without a copy and read by mapping the file. What pickle refuses, cloudpickle takes.
`register_codec` adds one for types of your own.

The content written by ``pickle`` and ``cloudpickle`` is a plain pickle, or, where there are buffers (``meta`` says how
many), a header (magic, length of the pickle, then offset and length of every buffer), the pickle, and the buffers at
multiples of 64 bytes.
"""

from __future__ import annotations

import pickle
import struct
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flowkit.exceptions import ArtifactError, NotFound

ALIGNMENT = 64
"""Buffers begin at multiples of so many bytes: a cache line, and enough for any vector instruction."""
IN_BAND = 4096
"""Buffers below so many bytes stay inside the pickle."""
MAGIC = b"flowkit\x01"
_HEADER = struct.Struct("<8sQQ")
_PLACE = struct.Struct("<QQ")


class Encoded(NamedTuple):
    """A value as bytes.

    Parameters
    ----------
    chunks : list of buffers
        The content in pieces; they may be the value's own memory, so that nothing is copied.
    size : int
        Bytes in all.
    meta : mapping
        What `Codec.decode` needs beside the content: plain JSON values.
    codec : str
        Which codec decodes it.
    """

    chunks: list[bytes | bytearray | memoryview]
    size: int
    meta: Mapping[str, Any]
    codec: str


class NotEncodable(Exception):
    """A codec does not take this value; the general one is asked instead."""


@runtime_checkable
class Codec(Protocol):
    """How values of some types are stored.

    `name` is written into manifests and found again in what was registered, or among the entry points
    ``flowkit.codecs``; it never changes its meaning.
    """

    name: str

    def encode(self, value: Any) -> Encoded:
        """Return the value as bytes, or raise `NotEncodable` where something of it would be lost."""

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> Any:
        """Return the value. The memory belongs to the value from now on, and may be written to."""


class _Bytes:
    name = "bytes"

    def encode(self, value: bytes) -> Encoded:
        return Encoded([value], len(value), {}, self.name)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> bytes:
        return bytes(view)


class _Bytearray:
    name = "bytearray"

    def encode(self, value: bytearray) -> Encoded:
        return Encoded([value], len(value), {}, self.name)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> bytearray:
        return bytearray(view)


class _Str:
    name = "str"

    def encode(self, value: str) -> Encoded:
        content = value.encode("utf-8", "surrogatepass")
        return Encoded([content], len(content), {}, self.name)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> str:
        return str(view, "utf-8", "surrogatepass")


class PickleCodec:
    """Everything else: pickle, or cloudpickle where pickle refuses."""

    name = "pickle"

    def encode(self, value: Any) -> Encoded:
        """Return the value's pickle, followed by the memory of its large arrays."""
        from flowkit.datastore import pickling

        return pickling.encode(value)

    def decode(self, view: memoryview, meta: Mapping[str, Any]) -> Any:
        """Return the value, its arrays standing on the memory given."""
        buffers = meta.get("buffers", 0)
        stream: memoryview = view
        parts: list[memoryview] = []
        if buffers:
            magic, length, count = _HEADER.unpack_from(view)
            start = _HEADER.size + count * _PLACE.size
            if magic != MAGIC or count != buffers or start + length > len(view):
                raise ArtifactError("the content is not what its manifest says")
            stream = view[start : start + length]
            for index in range(count):
                offset, size = _PLACE.unpack_from(view, _HEADER.size + index * _PLACE.size)
                parts.append(view[offset : offset + size])
        try:
            return pickle.loads(stream, buffers=parts)
        except AttributeError as error:
            if "__main__" not in str(error) or "main" not in meta:
                raise
            from flowkit.datastore import pickling

            return pickling.loads_main(stream, parts, str(meta["main"]))


def frame(stream: bytes | memoryview, buffers: list[memoryview], meta: Mapping[str, Any], codec: str) -> Encoded:
    """Return the content of a pickle and its out-of-band buffers."""
    if not buffers:
        return Encoded([stream], len(stream), meta, codec)
    start = _HEADER.size + len(buffers) * _PLACE.size
    offset = start + len(stream)
    chunks: list[bytes | bytearray | memoryview] = [stream]
    places = []
    for buffer in buffers:
        gap = -offset % ALIGNMENT
        if gap:
            chunks.append(bytes(gap))
        offset += gap
        places.append(_PLACE.pack(offset, buffer.nbytes))
        chunks.append(buffer)
        offset += buffer.nbytes
    header = _HEADER.pack(MAGIC, len(stream), len(buffers)) + b"".join(places)
    return Encoded([header, *chunks], offset, {**meta, "buffers": len(buffers)}, codec)


_PICKLE = PickleCodec()
_EXACT: dict[type, Codec] = {bytes: _Bytes(), bytearray: _Bytearray(), str: _Str()}
"""Built-in choices, for these very types: what is derived from one of them is something else."""
_BY_TYPE: dict[type, Codec] = {}
_BY_NAME: dict[str, Codec] = {codec.name: codec for codec in (*_EXACT.values(), _PICKLE)}
_BY_NAME["cloudpickle"] = _PICKLE
_BY_TYPE_NAME: dict[str, Codec] = {}
_PICKLED = frozenset({int, float, bool, type(None), complex, list, tuple, dict, set, frozenset})


def register_codec(codec: Codec, *types: type | str) -> None:
    """Use a codec for values of some types and of the classes derived from them.

    Call it where the flow's file is imported: every process that reads the values must know the codec.

    Parameters
    ----------
    codec : Codec
        An object with `name`, `encode` and `decode`.
    *types : type or str
        Classes, or their names as ``module.qualname`` where importing the module should wait.
    """
    _BY_NAME[codec.name] = codec
    for entry in types:
        if isinstance(entry, str):
            _BY_TYPE_NAME[entry] = codec
        else:
            _BY_TYPE[entry] = codec


def encode(value: Any) -> Encoded:
    """Return any value as bytes, by the codec for its type.

    Raises
    ------
    NotEncodable
        If nothing takes it; the reason is its ``__cause__``.
    """
    codec = codec_for(type(value))
    if codec is not _PICKLE:
        try:
            return codec.encode(value)
        except NotEncodable:
            pass
    return _PICKLE.encode(value)


def decode(name: str, view: memoryview, meta: Mapping[str, Any]) -> Any:
    """Return the value that the codec of a name encoded.

    Raises
    ------
    ArtifactError
        If there is no codec of that name here.
    """
    codec = _BY_NAME.get(name)
    if codec is None:
        from flowkit.registry import load

        try:
            made = load("codecs", name)
        except NotFound as error:
            raise ArtifactError(
                f"there is no codec '{name}' in this process",
                "import the module that calls register_codec (or install the package that brings it)",
            ) from error
        found: Codec = made() if isinstance(made, type) else made
        codec = _BY_NAME[name] = found
    return codec.decode(view, meta)


def codec_for(kind: type) -> Codec:
    """Return the codec for values of a type."""
    if _BY_TYPE or _BY_TYPE_NAME:
        for ancestor in kind.__mro__:
            found = _BY_TYPE.get(ancestor) or _BY_TYPE_NAME.get(f"{ancestor.__module__}.{ancestor.__qualname__}")
            if found is not None:
                return found
    if kind in _PICKLED:
        return _PICKLE
    if kind in _EXACT:
        return _EXACT[kind]
    root = str(kind.__module__).partition(".")[0]
    if root in ("pyarrow", "pandas") and "pyarrow" in sys.modules:
        from flowkit.datastore.arrow import ArrowCodec

        arrow = ArrowCodec()
        if arrow.takes(kind):
            _BY_NAME[arrow.name] = arrow
            _EXACT[kind] = arrow
            return arrow
    return _PICKLE
