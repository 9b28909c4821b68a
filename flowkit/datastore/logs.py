"""The log of an attempt: one text for both streams, one line for each line that the task wrote.

A line is ``<seconds since the epoch, 17 characters> <stream><mark> <text>``, where the stream is ``o`` (out), ``e``
(err) or ``n`` (a note of flowkit itself, such as the one that says that the log was cut), and the mark ``|`` for a
whole line or ``+`` for a piece without its newline: the next line of the same stream goes on where it stops. The
text is whatever the task wrote, byte for byte, but for newlines, which end a line: nothing a task prints can forge
another line's time or stream. A log is appended to while its task runs, so its last line may be torn.

Where a storage can append, the log is one file; where it cannot, it is pieces (see `PieceWriter`), each
written once and each of whole lines. A log that has both is the file and then the pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from flowkit.datastore.layout import attempt_folder, log_file, log_piece
from flowkit.datastore.storage import Missing, Storage

HEADER = 21
"""Bytes before the text of a line."""
_CODES = {"out": b"o", "err": b"e", "note": b"n"}
_STREAMS = {ord("o"): "out", ord("e"): "err", ord("n"): "note"}
_WHOLE, _PIECE = ord("|"), ord("+")
_BLOCK = 4 << 20
_PIECES_AHEAD = 4
PIECE = 4 << 20
"""Bytes of the largest piece: a reader holds a few of them."""
KEPT = 16 << 20
"""Bytes that wait in memory at most, for a storage that does not take them."""


class Position(NamedTuple):
    """How far a log has been read.

    Parameters
    ----------
    piece : int
        The piece that comes next or is being read; 0 for the file, which comes before them.
    offset : int
        Bytes of it that have been read.
    """

    piece: int = 0
    offset: int = 0


START = Position()
"""Nothing has been read yet."""


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
    rest = b""
    for block in _blocks(storage, _paths(storage, (flow, run, step, task, attempt))):
        lines, newline, rest = (rest + block).rpartition(b"\n")
        yield from _of(parse_lines(lines + newline), stream)
    yield from _of(parse_lines(rest), stream)


def read_log_from(
    storage: Storage, flow: str, run: str, step: str, task: str, attempt: int, position: Position = START
) -> tuple[list[LogLine], Position]:
    """Return the whole lines written since `position`, and the position to ask with the next time.

    At most some megabytes come at once: call again while there are lines. A line that is still being written waits.
    A look at a remote log that has nothing new costs one call.
    """
    where = (flow, run, step, task, attempt)
    if position == START and storage.remote:
        whole, numbers = log_parts(storage, *where)
        if not whole:
            if not numbers:
                return [], position
            position = Position(numbers[0])
    if position.piece == 0:
        block = _range(storage, log_file(*where), position.offset, _BLOCK) or b""
        used = _whole_lines(block)
        if used:
            return list(parse_lines(block[:used])), Position(0, position.offset + used)
        # What was scrubbed or cut short is no reason to wait for ever: the pieces go on.
    number, offset = (position.piece, position.offset) if position.piece else (1, 0)
    while True:
        found = _range(storage, log_piece(*where, number), offset, _BLOCK)
        if found is None:
            return [], position
        if len(found) < _BLOCK:  # the piece ends here, and with it a line
            after = Position(number + 1)
        else:
            found = found[: _whole_lines(found)]
            after = Position(number, offset + len(found))
        if found:
            return list(parse_lines(found)), after
        position, number, offset = after, number + 1, 0


def tail_log(
    storage: Storage, flow: str, run: str, step: str, task: str, attempt: int, count: int, stream: str | None = None
) -> list[LogLine]:
    """Return the last `count` lines, reading only as much of the log's end as holds them."""
    if count <= 0:
        return []
    found: list[list[LogLine]] = []
    missing, later = count, b""
    for block, first in _blocks_from_the_end(storage, (flow, run, step, task, attempt), max(64 << 10, count * 256)):
        block += later
        # A line that the block begins with may have begun before it.
        begin = 0 if first else block.find(b"\n") + 1 or len(block)
        later = block[:begin]
        lines = list(_of(parse_lines(block[begin:]), stream))
        found.append(lines)
        missing -= len(lines)
        if missing <= 0:
            break
    return [line for lines in reversed(found) for line in lines][-count:]


def rewrite_log(
    storage: Storage,
    flow: str,
    run: str,
    step: str,
    task: str,
    attempt: int,
    keep: Callable[[LogLine], bool],
    note: bytes,
) -> bool:
    """Write a log again with some of its lines only, part by part, so that its end may be written to meanwhile.

    Parameters
    ----------
    keep : callable
        Whether a line stays.
    note : bytes
        What flowkit has to say about it, put at the end.

    Returns
    -------
    bool
        Whether there was a log.
    """
    paths = _paths(storage, (flow, run, step, task, attempt))
    for path in paths:
        end = format_line(time.time(), "note", note) if path == paths[-1] else b""
        storage.replace(path, _kept(storage, path, keep, end))
    return bool(paths)


def _kept(storage: Storage, path: str, keep: Callable[[LogLine], bool], end: bytes) -> Iterator[bytes]:
    rest = b""
    for block in _blocks(storage, [path]):
        lines, newline, rest = (rest + block).rpartition(b"\n")
        yield b"".join(format_line(*line) for line in parse_lines(lines + newline) if keep(line))
    yield b"".join(format_line(*line) for line in parse_lines(rest) if keep(line)) + end


def log_parts(storage: Storage, flow: str, run: str, step: str, task: str, attempt: int) -> tuple[bool, list[int]]:
    """Return whether a log has a file, and the numbers of its pieces, in order."""
    names = list(storage.children(attempt_folder(flow, run, step, task, attempt)))
    pieces = (name[4:] for name in names if name.startswith("log."))
    return "log" in names, sorted(int(piece) for piece in pieces if piece.isascii() and piece.isdigit())


def _paths(storage: Storage, where: tuple[str, str, str, str, int]) -> list[str]:
    """Return the objects that make a log, in order."""
    whole, numbers = log_parts(storage, *where)
    return [*([log_file(*where)] if whole else ()), *(log_piece(*where, number) for number in numbers)]


def _blocks(storage: Storage, paths: list[str]) -> Iterator[bytes]:
    """Yield the content of objects, in order, a few megabytes at a time."""
    from flowkit.datastore.many import mapped_over

    firsts = mapped_over(storage, lambda path: _range(storage, path, 0, _BLOCK), paths, _PIECES_AHEAD)
    for path, first in zip(paths, firsts, strict=True):
        offset, block = 0, first
        while block:
            yield block
            if len(block) < _BLOCK:
                break
            offset += len(block)
            block = _range(storage, path, offset, _BLOCK)


def _blocks_from_the_end(
    storage: Storage, where: tuple[str, str, str, str, int], window: int
) -> Iterator[tuple[bytes, bool]]:
    """Yield blocks of a log from its end to its beginning, and whether one is the first of the log."""
    parts = _paths(storage, where)
    for left, path in zip(range(len(parts) - 1, -1, -1), reversed(parts), strict=True):
        info = storage.info(path)
        end = info.size if info is not None else 0
        while end > 0:
            start = max(0, end - window)
            yield _range(storage, path, start, end - start) or b"", start == 0 and left == 0
            end, window = start, min(window * 4, _BLOCK)


class PieceWriter:
    """Writes the log of one attempt where the storage cannot append, piece by piece; for one thread.

    The caller decides when a piece is written, and with it how many there are.

    It goes on behind the pieces that are there: those of a writer of the same attempt that was killed, or of one that
    still works (two containers for one row), whose pieces come in between.

    Parameters
    ----------
    storage : Storage
        Where.
    flow, run, step, task : str
        Whose log.
    attempt : int
        Which attempt.
    limit : int, optional
        Bytes after which the log is cut, with a mark; default: none.
    """

    def __init__(
        self, storage: Storage, flow: str, run: str, step: str, task: str, attempt: int, limit: int | None = None
    ) -> None:
        self.cut = False
        self.size = 0
        self._storage = storage
        self._where = (flow, run, step, task, attempt)
        self._limit = limit
        self._number = 0
        self._waiting = bytearray()
        self._lost = 0

    def append(self, data: bytes) -> None:
        """Write lines in the form of a log as the next piece (several, where they are many).

        A last line without its end waits for the next call, or for `close`.

        Raises
        ------
        StoreError
            If the storage does not take it. Then it is kept and goes first at the next call (``append(b"")`` tries
            again), up to 16 MB; what is more is lost, which a note in the log says.
        """
        if self.cut:
            return
        room = KEPT - len(self._waiting)
        if self._lost or (len(data) > room and self._waiting):
            self._lost += len(data)
        else:
            self._waiting += data
        self._write(self._waiting.rfind(b"\n") + 1)

    def close(self) -> None:
        """Write what waits, also a line without its end; the writer can be used on.

        Raises
        ------
        StoreError
            As `append`.
        """
        if self._waiting and not self._waiting.endswith(b"\n"):
            self._waiting += b"\n"
        self._write(len(self._waiting))

    def _write(self, ready: int) -> None:
        while ready > 0 and not self.cut:
            room = ready if self._limit is None else max(0, self._limit - self.size)
            most = min(PIECE, room)
            size = ready if ready <= most else self._waiting.rfind(b"\n", 0, most) + 1
            if not size:
                size = self._waiting.find(b"\n") + 1  # one line longer than a piece
                if size > room:
                    self._end()
                    return
            if not self._create(bytes(self._waiting[:size])):
                continue  # by what others have written there may be less room
            del self._waiting[:size]
            ready -= size
            self.size += size
        if self._lost and not self.cut:
            note = format_line(time.time(), "note", b"[%d bytes were lost here]" % self._lost)
            self._waiting[:0] = note
            self._lost = 0
            self._write(len(note))

    def _end(self) -> None:
        mark = truncation_line(time.time(), self._limit or 0)
        while not self._create(mark):
            pass
        self._waiting.clear()
        self.cut = True

    def _create(self, piece: bytes) -> bool:
        """Write a piece under the next number; False where that turned out to be another writer's."""
        path = log_piece(*self._where, self._number + 1)
        if not self._storage.create(path, [piece]):
            try:
                ours = self._storage.read(path) == piece  # only the answer was lost
            except Missing:
                ours = False
            if not ours:
                self._go_on()
                return False
        self._number += 1
        return True

    def _go_on(self) -> None:
        """Another writer was here: its pieces come first, and count for the limit."""
        numbers = log_parts(self._storage, *self._where)[1]
        self._number = max(self._number + 1, *numbers)
        if self._limit is not None:
            from flowkit.datastore.many import mapped_over

            found = mapped_over(self._storage, lambda n: self._storage.info(log_piece(*self._where, n)), numbers)
            self.size = sum(info.size for info in found if info is not None)


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


def _whole_lines(block: bytes) -> int:
    """Return how many bytes of a block are whole lines."""
    used = block.rfind(b"\n") + 1
    # One line longer than a block is handed out in parts: it must not be waited for for ever.
    return len(block) if not used and len(block) == _BLOCK else used


def _range(storage: Storage, path: str, offset: int, length: int) -> bytes | None:
    try:
        return storage.read_range(path, offset, length)
    except Missing:
        return None
