"""The log of a task in a container: kept in the datastore every few seconds, by a thread of its own.

The thread is there so that a datastore that is slow never makes the task wait to write a line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from flowkit.datastore.logs import KEPT, PieceWriter, format_line
from flowkit.exceptions import FlowkitError
from flowkit.runtime.marked import Piece

SHORTEST, LONGEST = 1.0, 30.0
"""Seconds between two pieces of the log: at the beginning, and of a task that has run for ten minutes and longer."""
SOON = 1 << 20
"""Bytes after which the next piece does not wait for its time."""
_LAST_PAUSES = (1.0, 4.0, 10.0)


class LogSender:
    """Sends lines to the datastore.

    Parameters
    ----------
    writer : PieceWriter
        Where to.
    """

    def __init__(self, writer: PieceWriter) -> None:
        self.trouble: str | None = None
        """Why lines could not be written, where that was so."""
        self._writer = writer
        self._began = time.monotonic()
        self._waiting = bytearray()
        self._lost = 0
        self._news = threading.Condition()
        self._hurry = self._ending = False
        self._thread = threading.Thread(target=self._work, name="flowkit-log", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def add(self, pieces: Iterable[Piece]) -> None:
        """Take lines in; never waits."""
        when = time.time()
        self._add(b"".join(format_line(when, piece.stream, piece.text, piece.partial) for piece in pieces))

    def note(self, text: str) -> None:
        """Add a line of flowkit's own."""
        self._add(format_line(time.time(), "note", f"[{text}]".encode("utf-8", "replace")))

    def close(self, *, patient: bool) -> None:
        """Send what is left.

        Parameters
        ----------
        patient : bool
            Whether it is tried again where the datastore does not take it at once.
        """
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join()
        for pause in (*(_LAST_PAUSES if patient else ()), None):
            if self._send(last=True) or pause is None:
                return
            time.sleep(pause)

    def _add(self, data: bytes) -> None:
        if not data:
            return
        with self._news:
            if len(self._waiting) + len(data) > KEPT:
                self._lost += len(data)
                return
            if self._lost:
                note = b"[%d bytes were lost here]" % self._lost
                self._waiting += format_line(time.time(), "note", note)
                self._lost = 0
            self._waiting += data
            if len(self._waiting) >= SOON and not self._hurry:
                self._hurry = True
                self._news.notify()

    def _work(self) -> None:
        while True:
            with self._news:
                interval = min(LONGEST, max(SHORTEST, (time.monotonic() - self._began) / 20))
                self._news.wait_for(lambda: self._hurry or self._ending, interval)
                if self._ending:
                    return
            self._send()

    def _send(self, *, last: bool = False) -> bool:
        with self._news:
            data, self._waiting = bytes(self._waiting), bytearray()
            self._hurry = False
        try:
            self._writer.append(data)  # nothing new sends what could not be sent before
            if last:
                self._writer.close()
        except FlowkitError as error:  # the writer keeps it for the next time
            self.trouble = error.headline
            return False
        return True
