"""One sweep of a datastore at a time: a lease on the datastore as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from flowkit.datastore.layout import upkeep_lease
from flowkit.datastore.lease import Lease, LeaseLost
from flowkit.datastore.storage import Storage
from flowkit.exceptions import Conflict
from flowkit.metadata.liveness import owner_is_gone, this_process
from flowkit.settings import user_name

_RENEW_EVERY = 10.0


class Turn(Lease):
    """The right to remove things from a datastore, held by one process; made by `take_turn`.

    It ends by itself when its process ends, or has not renewed it for a minute.
    """

    def __init__(
        self, storage: Storage, flow: str, run: str, owner: Mapping[str, Any], epoch: int, expires_after: float
    ) -> None:
        super().__init__(storage, flow, run, owner, epoch, expires_after)
        self._path = upkeep_lease()
        self._next = time.monotonic() + _RENEW_EVERY

    def keep(self) -> None:
        """Go on holding it; to be called often, and before anything is removed. It costs nothing most of the time.

        Raises
        ------
        Conflict
            If somebody else holds it by now, since this process did nothing for a minute.
        """
        try:
            if time.monotonic() >= self._next:
                self.renew()
                self._next = time.monotonic() + _RENEW_EVERY
            else:
                self.check()
        except LeaseLost as error:
            raise Conflict(
                "another process cleans this datastore by now: this one was silent for too long",
                "nothing is lost: run the command again when the other one is done",
            ) from error


def take_turn(storage: Storage, told: Callable[[str], None] | None = None) -> Turn:
    """Become the one process that removes things from a datastore.

    Parameters
    ----------
    storage : Storage
        The datastore.
    told : callable, optional
        Is given a line before there is something to wait for: up to a minute, where another one died elsewhere.

    Raises
    ------
    Conflict
        If another process is at it.
    """
    owner = {"user": user_name(), **this_process()._asdict()}

    def waiting(_: str) -> None:
        if told is not None:
            told("Another process cleaned this datastore last: looking for up to a minute if it still does.")

    try:
        turn = Turn.acquire(
            storage, "flowkit", "gc", owner, take_over=True, gone=owner_is_gone, expires_after=60.0, told=waiting
        )
    except Conflict as error:
        holder = error.headline.partition(" belongs to ")[2] or "somebody else"
        raise Conflict(f"another process cleans this datastore: {holder}", "wait until it is done") from error
    assert isinstance(turn, Turn)
    return turn
