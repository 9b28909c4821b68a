"""What one attempt wrote: its log, as text, as lines, its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flowkit.datastore.logs import LogLine, joined, read_log, tail_log, text_of
from flowkit.datastore.storage import Storage
from flowkit.exceptions import UsageError

if TYPE_CHECKING:
    from datetime import datetime

_STREAMS = {"stdout": "out", "stderr": "err", "out": "out", "err": "err"}


class Output:
    """The log of one attempt.

    Parameters
    ----------
    storage : Storage
        Where it is.
    flow, run, step, task : str
        The task that wrote it; for one taken over by a resumed run, the original.
    attempt : int
        Which attempt.
    """

    def __init__(self, storage: Storage, flow: str, run: str, step: str, task: str, attempt: int) -> None:
        self._storage = storage
        self._where = (flow, run, step, task, attempt)

    def text(self, stream: str) -> str:
        """Return a whole stream, pieces joined; bytes that are not UTF-8 are replaced by a mark."""
        return text_of(self._read(stream))

    def size(self, stream: str) -> int:
        """Return the number of bytes that were written to a stream."""
        return sum(len(line.text) + (not line.partial) for line in self._read(stream))

    def lines(self, stream: str, as_unicode: bool) -> Iterator[tuple[datetime, Any]]:
        """Return an iterator over (time of its beginning, text) of the lines of a stream."""
        return self._lines(_stream(stream), as_unicode)

    def tail(self, count: int, stream: str | None) -> list[str]:
        """Return the last lines, of one stream or of both."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise UsageError(f"{count!r} is not a number of lines")
        name = None if stream is None else _stream(stream)
        lines: list[LogLine] = []
        # Pieces of a line count one by one in the log: ask for more where lines are too few or one may be cut. A line
        # in very many pieces comes without its beginning, rather than reading all of the log for it.
        for asked in (count + 1, 4 * count + 16, 16 * count + 256):
            found = tail_log(self._storage, *self._where, asked, name)
            lines = list(joined(iter(found)))
            if len(found) < asked or not _may_be_cut(lines, count):
                break
        return [line.text.decode("utf-8", "replace") for line in lines[max(0, len(lines) - count) :]]

    def _lines(self, stream: str, as_unicode: bool) -> Iterator[tuple[datetime, Any]]:
        from datetime import datetime, timezone

        for line in joined(self._read(stream)):
            time = datetime.fromtimestamp(line.when, timezone.utc).astimezone()
            yield time, line.text.decode("utf-8", "replace") if as_unicode else line.text

    def _read(self, stream: str) -> Iterator[LogLine]:
        return read_log(self._storage, *self._where, stream)


def _stream(name: str) -> str:
    found = _STREAMS.get(name)
    if found is None:
        raise UsageError(f"{name!r} is not a stream of a task", "say 'stdout' or 'stderr'")
    return found


def _may_be_cut(lines: list[LogLine], count: int) -> bool:
    """Whether one of the last `count` lines may have begun before the first one: it is the first of its stream."""
    before = lines[: max(0, len(lines) - count)]
    sure = {"note", *(line.stream for line in before)}
    return any(line.stream not in sure for line in lines[len(before) :])
