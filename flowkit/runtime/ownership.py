"""A runtime's hold on its run: the lease is renewed in time, and nothing is done while nobody knows whose run it is.

Only a run that has work elsewhere needs it: what runs on this machine ends with the runtime.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowkit.datastore.lease import Lease
from flowkit.exceptions import Conflict, StoreError
from flowkit.metadata.liveness import HEARTBEAT_INTERVAL

_RENEWALS = 4
"""How often a lease is renewed in the time that it holds, at the least."""
_PAUSE = 1.0


class Ownership:
    """Keeps a lease.

    Parameters
    ----------
    lease : Lease
        Acquired.
    notice : callable
        Is given a line for the user.
    """

    def __init__(self, lease: Lease, notice: Callable[[str], None]) -> None:
        self._lease = lease
        self._notice = notice
        self._every = min(HEARTBEAT_INTERVAL, lease.expires_after / _RENEWALS)
        self._works = True
        self.due: float | None = None
        """When the lease is to be renewed next, on the clock of `keep`; None: at once."""

    def keep(self, now: float) -> bool:
        """Renew the lease where it is time, and return whether the run is certainly ours.

        To be called before anything is done that only the owner of the run may do; mostly it costs nothing.

        Parameters
        ----------
        now : float
            The time, on a clock that nobody sets.

        Raises
        ------
        LeaseLost
            If somebody else owns the run.
        """
        try:
            if self.due is None or now >= self.due:
                self.due = now + (self._every if self._works else _PAUSE)
                self._lease.renew()
                self._say(True)
            else:
                self._lease.check()
            return True
        except StoreError as error:
            self._say(False, error.headline)
        try:
            self._lease.check()
            return True
        except StoreError:
            return False

    def wait(self, wakeup: int) -> None:
        """Wait for a moment before the next try, or until a signal has come.

        Parameters
        ----------
        wakeup : int
            The descriptor that turns readable then.
        """
        poller = select.poll()
        poller.register(wakeup, select.POLLIN)
        if poller.poll(int(_PAUSE * 1000)):
            os.read(wakeup, 512)

    def confirm(self) -> bool:
        """Ask the storage whether the run is ours; False where it does not answer.

        Raises
        ------
        LeaseLost
            If somebody else owns the run.
        """
        try:
            self._lease.renew()
        except StoreError as error:
            self._say(False, error.headline)
            return False
        return True

    def release(self) -> None:
        """Let go of the run."""
        try:
            self._lease.release()
        except StoreError as error:
            self._notice(f"The lease of the run could not be released, it ends by itself: {error.headline}")

    def _say(self, works: bool, why: str = "") -> None:
        if works != self._works:
            self._works = works
            self._notice(
                "The datastore answers again."
                if works
                else f"The run's lease cannot be renewed, trying on (nothing new starts once it has run out): {why}"
            )


@contextmanager
def held(lease: Lease) -> Iterator[None]:
    """Keep a lease in a thread meanwhile, while there is no loop yet that does; whether it was lost is told after.

    Raises
    ------
    LeaseLost
        At the end, if somebody else has taken the run.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(min(HEARTBEAT_INTERVAL, lease.expires_after / _RENEWALS)):
            try:
                lease.renew()
            except StoreError:  # tried again in a moment; the check tells when it has lasted too long
                continue
            except Conflict:
                return

    thread = threading.Thread(target=keep, name="flowkit-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    lease.check()
