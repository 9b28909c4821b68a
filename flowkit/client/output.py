"""What one attempt wrote: its log, as text, as lines, its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flowkit.datastore.logs import LogLine, read_log, tail_log, text_of
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
        asked = count
        while True:
            found = tail_log(self._storage, *self._where, asked, name)
            lines = [line.decode("utf-8", "replace") for _, line in _joined(iter(found))]
            # Pieces of a line count one by one in the log: ask for more until there are whole lines enough.
            if len(lines) >= count or len(found) < asked:
                return lines[-count:] if count else []
            asked *= 4

    def _lines(self, stream: str, as_unicode: bool) -> Iterator[tuple[datetime, Any]]:
        from datetime import datetime, timezone

        for when, text in _joined(self._read(stream)):
            time = datetime.fromtimestamp(when, timezone.utc).astimezone()
            yield time, text.decode("utf-8", "replace") if as_unicode else text

    def _read(self, stream: str) -> Iterator[LogLine]:
        return read_log(self._storage, *self._where, stream)


def _stream(name: str) -> str:
    found = _STREAMS.get(name)
    if found is None:
        raise UsageError(f"{name!r} is not a stream of a task", "say 'stdout' or 'stderr'")
    return found


def _joined(lines: Iterator[LogLine]) -> Iterator[tuple[float, bytes]]:
    """Yield (time, text) of whole lines: the pieces of one joined, with the time of the first."""
    begun: dict[str, tuple[float, list[bytes]]] = {}
    for line in lines:
        if line.partial:
            begun.setdefault(line.stream, (line.when, []))[1].append(line.text)
            continue
        when, pieces = begun.pop(line.stream, (line.when, []))
        yield when, b"".join([*pieces, line.text]) if pieces else line.text
    for when, pieces in begun.values():
        yield when, b"".join(pieces)
