"""The log of an attempt: one file for both streams, one line for each line that the task wrote.

A line is ``<seconds since the epoch, 17 characters> <stream><mark> <text>``, where the stream is ``o`` (out), ``e``
(err) or ``n`` (a note of flowkit itself, such as the one that says that the log was cut), and the mark ``|`` for a
whole line or ``+`` for a piece without its newline: the next line of the same stream goes on where it stops. The
text is whatever the task wrote, byte for byte, but for newlines, which end a line: nothing a task prints can forge
another line's time or stream. A log is appended to while its task runs, so its last line may be torn.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from flowkit.datastore.layout import log_file
from flowkit.datastore.storage import Missing, Storage

HEADER = 21
"""Bytes before the text of a line."""
_CODES = {"out": b"o", "err": b"e", "note": b"n"}
_STREAMS = {ord("o"): "out", ord("e"): "err", ord("n"): "note"}
_WHOLE, _PIECE = ord("|"), ord("+")
_BLOCK = 4 << 20


class LogLine(NamedTuple):
    """One line of a log.

    Parameters
    ----------
    when : float
        Seconds since the epoch.
    stream : str
        ``out``, ``err``, or ``note`` for what flowkit itself has to say.
    text : bytes
        What was written, without the newline.
    partial : bool
        There was no newline (yet): the stream's next line goes on with this one.
    """

    when: float
    stream: str
    text: bytes
    partial: bool = False


def format_line(when: float, stream: str, text: bytes, partial: bool = False) -> bytes:
    """Return the form of one line, newline included; inner newlines make several lines.

    Parameters
    ----------
    when : float
        Seconds since the epoch.
    stream : "out", "err" or "note"
        Who wrote it.
    text : bytes
        Without its last newline.
    partial : bool, default False
        The text had no newline: what follows in the stream belongs to the same line.
    """
    head = b"%017.6f %b" % (max(when, 0.0), _CODES[stream])
    if b"\n" in text:
        *lines, text = text.split(b"\n")
        whole = b"".join(b"%b| %b\n" % (head, line) for line in lines)
    else:
        whole = b""
    return b"%b%b%b %b\n" % (whole, head, b"+" if partial else b"|", text)


def truncation_line(when: float, limit: int) -> bytes:
    """Return the line that ends a log which has reached its limit of so many bytes."""
    return format_line(when, "note", b"[the log was cut here, at %d bytes: see --max-log-size]" % limit)


def parse_lines(data: bytes) -> Iterator[LogLine]:
    """Read lines; what has another form (a torn line, junk) comes as a line of ``out`` with the time before it."""
    when, start, end = 0.0, 0, len(data)
    while start < end:
        stop = data.find(b"\n", start)
        torn = stop < 0
        if torn:
            stop = end
        line = _parse(data[start:stop], torn)
        if line is None:
            line = LogLine(when, "out", data[start:stop], torn)
        when = line.when
        yield line
        start = stop + 1


def read_log(
    storage: Storage, flow: str, run: str, step: str, task: str, attempt: int, stream: str | None = None
) -> Iterator[LogLine]:
    """Yield the lines of a log, holding a few megabytes of it at a time; nothing where there is no log.

    Parameters
    ----------
    stream : "out" or "err", optional
        Only that stream, and flowkit's own notes.
    """
    path = log_file(flow, run, step, task, attempt)
    offset, rest = 0, b""
    while True:
        block = _range(storage, path, offset, _BLOCK)
        offset += len(block)
        lines, newline, rest = (rest + block).rpartition(b"\n")
        yield from _of(parse_lines(lines + newline), stream)
        if len(block) < _BLOCK:
            yield from _of(parse_lines(rest), stream)
            return


def follow_log(
    storage: Storage, flow: str, run: str, step: str, task: str, attempt: int, offset: int = 0
) -> tuple[list[LogLine], int]:
    """Return the whole lines written since `offset`, and the offset to ask with the next time.

    At most some megabytes come at once: call again while there are lines. A line that is still being written waits.
    """
    path = log_file(flow, run, step, task, attempt)
    block = _range(storage, path, offset, _BLOCK)
    used = block.rfind(b"\n") + 1
    if not used and len(block) == _BLOCK:
        used = len(block)  # one line longer than a block: hand it out in pieces, do not wait for ever
    return list(parse_lines(block[:used])), offset + used


def tail_log(
    storage: Storage, flow: str, run: str, step: str, task: str, attempt: int, count: int, stream: str | None = None
) -> list[LogLine]:
    """Return the last `count` lines, reading only as much of the log's end as holds them."""
    path = log_file(flow, run, step, task, attempt)
    info = storage.info(path)
    if info is None or count <= 0:
        return []
    size, window = info.size, max(64 << 10, count * 256)
    while True:
        start = max(0, size - window)
        data = _range(storage, path, start, size - start)
        if start:
            data = data[data.find(b"\n") + 1 :]
        lines = list(_of(parse_lines(data), stream))
        if len(lines) >= count or start == 0:
            return lines[-count:]
        window *= 4


class Joiner:
    """Puts the pieces of lines together, for lines that come one by one."""

    def __init__(self) -> None:
        self._begun: dict[str, list[LogLine]] = {}

    def add(self, line: LogLine) -> LogLine | None:
        """Return the whole line that this one ends, with the time of its first piece; None where it goes on."""
        if line.partial:
            self._begun.setdefault(line.stream, []).append(line)
            return None
        pieces = self._begun.pop(line.stream, None)
        return _join([*pieces, line]) if pieces else line

    def rest(self) -> list[LogLine]:
        """Return the lines that never came to their ends."""
        begun, self._begun = self._begun, {}
        return [_join(pieces) for pieces in begun.values()]


def joined(lines: Iterable[LogLine]) -> Iterator[LogLine]:
    """Yield whole lines: the pieces of one joined, with the time of the first."""
    joiner = Joiner()
    for line in lines:
        whole = joiner.add(line)
        if whole is not None:
            yield whole
    yield from joiner.rest()


def text_of(lines: Iterable[LogLine]) -> str:
    """Return the text of lines, pieces joined, ready to show; bytes that are not UTF-8 are replaced by a mark."""
    whole: list[bytes] = []
    begun: dict[str, list[bytes]] = {}
    for line in lines:
        if line.partial:
            begun.setdefault(line.stream, []).append(line.text)
        else:
            pieces = begun.pop(line.stream, None)
            whole.append(b"".join([*pieces, line.text]) if pieces else line.text)
    ended = b"".join(text + b"\n" for text in whole)
    return (ended + b"\n".join(b"".join(pieces) for pieces in begun.values())).decode("utf-8", "replace")


def shown_time(when: float) -> str:
    """Return a line's time as people read it, in local time: ``2024-05-31 14:03:59.120``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) + f".{int(when % 1 * 1000):03d}"


def _join(pieces: list[LogLine]) -> LogLine:
    return LogLine(pieces[0].when, pieces[0].stream, b"".join(piece.text for piece in pieces))


def _parse(line: bytes, torn: bool) -> LogLine | None:
    if len(line) < HEADER or line[17] != 32 or line[20] != 32 or line[10] != 46:
        return None
    stream = _STREAMS.get(line[18])
    if stream is None or line[19] not in (_WHOLE, _PIECE) or not (line[:10] + line[11:17]).isdigit():
        return None
    return LogLine(float(line[:17]), stream, line[HEADER:], torn or line[19] == _PIECE)


def _of(lines: Iterator[LogLine], stream: str | None) -> Iterator[LogLine]:
    if stream is None:
        return lines
    return (line for line in lines if line.stream in (stream, "note"))


def _range(storage: Storage, path: str, offset: int, length: int) -> bytes:
    try:
        return storage.read_range(path, offset, length)
    except Missing:
        return b""
