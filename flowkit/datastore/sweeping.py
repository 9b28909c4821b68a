"""How those who write blobs and the one who sweeps them stay out of each other's way.

A sweep removes blobs that nothing names and that nobody has written or refreshed for a long time (a day, by default).
Who wants to write content that is there already refreshes its time instead. One race is left: the sweep has looked at
the time of an old blob, then it is refreshed, then it is removed. So the sweep *announces* which blobs it is about to
remove (those whose keys begin with two given digits) before it looks at them, and takes that back when they are done. A
writer that has refreshed an *old* blob looks for the announcement afterwards. Is there none, any later sweep
sees the new time. Is there one for these digits, the writer waits until it is taken back, and then looks whether the
blob is still there.

A sweep that was killed leaves its announcement behind. One that has not changed for `PATIENCE` seconds, by the
watcher's own clock, means nothing any more: the sweep itself removes nothing on the strength of an announcement that
old, and renews it long before.
"""

from __future__ import annotations

import os
import time
from typing import Any

from flowkit.datastore.layout import sweep_file
from flowkit.datastore.sealed import Damaged, read_sealed, seal
from flowkit.datastore.storage import OLD, Storage

SHORTEST_GRACE = 2 * OLD
"""Seconds: the least that a sweep spares a blob, so that the clocks of a writer and of the storage may differ by an
hour."""
PATIENCE = 60.0
"""Seconds after which an announcement that does not change is one of a dead sweep."""
_TRUSTED = 40.0
_LOOK_EVERY = 0.2


class Announcement:
    """What a sweep is about to remove, for all who write.

    Parameters
    ----------
    storage : Storage
        The datastore.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._made = -PATIENCE

    @property
    def holds(self) -> bool:
        """Whether writers surely still heed it: nothing is removed where they may not."""
        return 0 <= _steady() - self._made < _TRUSTED

    def make(self, prefix: str) -> None:
        """Announce, or renew it: what is looked at from now on, and found old, may be removed."""
        moment = _steady()
        body = {"prefix": prefix, "nonce": os.urandom(8).hex()}
        self._storage.replace(sweep_file(), [seal(body)])
        self._made = moment

    def withdraw(self) -> None:
        """Take it back: nothing that was looked at before is going to be removed."""
        self._made = -PATIENCE
        self._storage.delete(sweep_file())


def outwait(storage: Storage, key: str) -> None:
    """Return when no sweep can remove a blob any more on the strength of a look before this call.

    Parameters
    ----------
    storage : Storage
        The datastore.
    key : str
        The blob's.
    """
    first: dict[str, Any] | None = None
    since = time.monotonic()
    while True:
        found = _announced(storage)
        if found is None or found.get("prefix") != key[:2]:
            return
        if first is None or found != first:
            first, since = found, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            storage.delete(sweep_file())  # of a dead sweep: the next writer need not wait for it
            return
        time.sleep(_LOOK_EVERY)


def _announced(storage: Storage) -> dict[str, Any] | None:
    try:
        return read_sealed(storage, sweep_file())
    except Damaged:
        return None


def _steady() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)
