"""What comes out of a task's two pipes, as lines: for who reads one task, as the wrapper in a container does.

The marks are those of `flowkit.runtime.streams`. The log process does the same for many tasks at a time, with `Marks`.
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


class Marks:
    """Takes what came through stdout's pipe apart, at the marks in it, and masks the secrets that marks have told.

    Parameters
    ----------
    token : bytes
        What the task's marks begin with.
    """

    __slots__ = ("held", "secrets", "token")

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.held = b""
        """What may be the beginning of a mark, whose end has not come."""
        self.secrets: list[bytes] = []

    def segments(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield stream (0 for out, 1 for err, -1 for a mark without text, such as `streams.BEGAN`) and bytes."""
        data = self.held + data
        self.held = b""
        start = 0
        while True:
            found = data.find(self.token, start)
            if found < 0:
                stop = len(data) - _overlap(data, start, self.token)
                if stop > start:
                    yield 0, data[start:stop]
                self.held = data[stop:]
                return
            if found > start:
                yield 0, data[start:found]
            if len(data) - found < streams.HEAD_SIZE:
                self.held = data[found:]
                return
            kind, length = streams.parse_head(data, found)
            text = found + streams.HEAD_SIZE
            if len(data) - text < length:
                self.held = data[found:]
                return
            if kind == streams.ERR:
                yield 1, data[text : text + length]
            elif kind == streams.SECRET:
                # The longest first: a secret may hold another one.
                self.secrets = sorted({*self.secrets, data[text : text + length]}, key=len, reverse=True)
            else:
                yield -1, kind
            start = text + length

    def masked(self, text: bytes) -> bytes:
        """Return the text without the task's secrets."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        return text


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
        self._text = Marks(token)
        self._begun = {"out": bytearray(), "err": bytearray()}

    @property
    def unfinished(self) -> bool:
        """Whether a line has begun whose end has not come."""
        return any(self._begun.values())

    def feed(self, data: bytes, *, err: bool) -> list[Piece]:
        """Return the lines that end with what came out of a pipe: that of stdout, or of descriptor 2."""
        out: list[Piece] = []
        for which, text in ((1, data),) if err else self._text.segments(data):
            if which < 0:
                self.marks.append(text)
            else:
                self._split("err" if which else "out", text, out)
        return out

    def rest(self, *, ended: bool = False) -> list[Piece]:
        """Return the beginnings of lines whose ends have not come.

        Parameters
        ----------
        ended : bool, default False
            Nothing more will come: what looked like the beginning of a mark is text.
        """
        out: list[Piece] = []
        if ended and self._text.held:
            held, self._text.held = self._text.held, b""
            self._split("out", held, out)
        for stream, begun in self._begun.items():
            if begun:
                out.append(Piece(stream, self._text.masked(bytes(begun)), partial=True))
                begun.clear()
        return out

    def _split(self, stream: str, data: bytes, out: list[Piece]) -> None:
        begun = self._begun[stream]
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = bytes(begun) + whole[0]
            begun.clear()
            for line in whole:
                text = self._text.masked(line)
                while len(text) > LONGEST_PIECE:
                    out.append(Piece(stream, text[:LONGEST_PIECE], partial=True))
                    text = text[LONGEST_PIECE:]
                out.append(Piece(stream, text, partial=False))
        begun += rest
        if len(begun) > LONGEST_PIECE:
            begun[:] = self._text.masked(bytes(begun))
            # What may be the beginning of a secret waits for its end.
            kept = len(self._text.secrets[0]) if self._text.secrets else 0
            while len(begun) > LONGEST_PIECE + kept:
                out.append(Piece(stream, bytes(begun[:LONGEST_PIECE]), partial=True))
                del begun[:LONGEST_PIECE]


def _overlap(data: bytes, start: int, token: bytes) -> int:
    """How many of the last bytes may be the beginning of a token."""
    first = token[:1]
    at = data.find(first, max(start, len(data) - len(token) + 1))
    while at >= 0:
        if token.startswith(data[at:]):
            return len(data) - at
        at = data.find(first, at + 1)
    return 0
