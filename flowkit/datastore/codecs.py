"""Codecs: how values become bytes and come back. The only place that pickles.

A codec is chosen by the value's type. Built in are raw codecs for ``bytes``, ``bytearray`` and ``str``, Arrow for
tables (`flowkit.datastore.arrow`), and for everything else pickle protocol 5 with the memory of large arrays beside
the pickle: it is written without a copy and read by mapping the file. What pickle refuses, cloudpickle takes.
`register_codec` adds one for types of your own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from flowkit.datastore.encoding import Codec, Encoded, NotEncodable
from flowkit.datastore.pickling import PickleCodec
from flowkit.exceptions import ArtifactError, NotFound

__all__ = ["Codec", "Encoded", "NotEncodable", "codec_for", "decode", "encode", "register_codec"]


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
