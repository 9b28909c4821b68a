"""Processes that write to one SQLite database take turns.

SQLite itself lets whoever asks at the right moment have the lock: a process that writes all the time would have it for
ever, since it asks again at once, and the others only look every now and then.
"""

from __future__ import annotations

import fcntl
import os
import time

_PAUSE = 0.001


class Turns:
    """Two locks: whoever is next waits for the turn with the first one, and so keeps out who just had it.

    Parameters
    ----------
    path : str
        The database; the locks are on empty files beside it. They end with their process.
    """

    def __init__(self, path: str) -> None:
        self._next = os.open(f"{path}-next", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._turn = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            os.close(self._next)
            raise

    def take(self, patience: float) -> bool:
        """Wait for the turn, for so many seconds at most; False where another process has not ended its own."""
        deadline = time.monotonic() + patience
        if not _locked(self._next, deadline):
            return False
        try:
            return _locked(self._turn, deadline)
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def end(self) -> None:
        """Let the next one have the turn."""
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the files; the turn ends."""
        os.close(self._next)
        os.close(self._turn)


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE)
