"""The codec port: what a codec is given, and what it makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable


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
