"""What comes out of a task's two pipes, as lines: for who reads one task, as the wrapper in a container does.

The marks are those of `flowkit.runtime.streams`; the log process does the same for many tasks at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flowkit.runtime import streams

LONGEST_PIECE = 1 << 16
"""Bytes after which a line without a newline is given in pieces."""
MASK = b"***"
"""What stands for a secret."""


class Piece(NamedTuple):
    """A line, or part of one where `partial` is set; `stream` is ``out`` or ``err``."""

    stream: str
    text: bytes
    partial: bool


class MarkedLines:
    """Takes apart what one task writes.

    Parameters
    ----------
    token : bytes
        What the task's marks begin with.

    Attributes
    ----------
    marks : list of bytes
        `streams.BEGAN` and `streams.FINISHED`, as they came; whoever acts on them empties the list.
    """

    def __init__(self, token: bytes) -> None:
        self.marks: list[bytes] = []
        self._token = token
        self._held = b""
        self._begun = {"out": bytearray(), "err": bytearray()}
        self._secrets: list[bytes] = []

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun whose end has not come."""
        return any(self._begun.values())

    def feed(self, data: bytes, *, err: bool) -> list[Piece]:
        """Return the lines that end with what came out of a pipe: that of stdout, or of descriptor 2."""
        out: list[Piece] = []
        for stream, text in (("err", data),) if err else self._segments(data):
            self._split(stream, text, out)
        return out

    def rest(self, *, ended: bool = False) -> list[Piece]:
        """Return the beginnings of lines whose ends have not come.

        Parameters
        ----------
        ended : bool, default False
            Nothing more will come: what looked like the beginning of a mark is text.
        """
        out: list[Piece] = []
        if ended and self._held:
            held, self._held = self._held, b""
            self._split("out", held, out)
        for stream, begun in self._begun.items():
            if begun:
                out.append(Piece(stream, self._masked(bytes(begun)), partial=True))
                begun.clear()
        return out

    def _segments(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        data, self._held = self._held + data, b""
        start = 0
        while True:
            found = data.find(self._token, start)
            if found < 0:
                stop = len(data) - _overlap(data, start, self._token)
                if stop > start:
                    yield "out", data[start:stop]
                self._held = data[stop:]
                return
            if found > start:
                yield "out", data[start:found]
            text = found + streams.HEAD_SIZE
            kind, length = streams.parse_head(data, found) if len(data) >= text else (b"", 0)
            if len(data) < text + length:
                self._held = data[found:]
                return
            if kind == streams.ERR:
                yield "err", data[text : text + length]
            elif kind == streams.SECRET:
                # The longest first: a secret may hold another one.
                self._secrets = sorted({*self._secrets, data[text : text + length]}, key=len, reverse=True)
            else:
                self.marks.append(kind)
            start = text + length

    def _split(self, stream: str, data: bytes, out: list[Piece]) -> None:
        begun = self._begun[stream]
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = bytes(begun) + whole[0]
            begun.clear()
            for line in whole:
                text = self._masked(line)
                while len(text) > LONGEST_PIECE:
                    out.append(Piece(stream, text[:LONGEST_PIECE], partial=True))
                    text = text[LONGEST_PIECE:]
                out.append(Piece(stream, text, partial=False))
        begun += rest
        if len(begun) > LONGEST_PIECE:
            begun[:] = self._masked(bytes(begun))
            # What may be the beginning of a secret waits for its end.
            kept = len(self._secrets[0]) if self._secrets else 0
            while len(begun) > LONGEST_PIECE + kept:
                out.append(Piece(stream, bytes(begun[:LONGEST_PIECE]), partial=True))
                del begun[:LONGEST_PIECE]

    def _masked(self, text: bytes) -> bytes:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text


def _overlap(data: bytes, start: int, token: bytes) -> int:
    """How many of the last bytes may be the beginning of a token."""
    at = data.find(token[:1], max(start, len(data) - len(token) + 1))
    while at >= 0:
        if token.startswith(data[at:]):
            return len(data) - at
        at = data.find(token[:1], at + 1)
    return 0
