"""The lease of a run: one runtime owns it, and whoever wants to take it over can tell whether that one is gone.

The lease is one small object of the run. It is made by the first owner and from then on only ever replaced by version,
so that of several who want it exactly one gets it, and an owner that has lost it finds out by its next renewal. Each
taking counts its epoch up; each write carries the owner's nonce, by which a write whose reply was lost is told from a
rival's.

No clock of another machine is trusted. An owner may do what it likes for `Lease.expires_after` seconds from the moment
*before* its last successful renewal was sent; it counts by a clock that goes on while the machine sleeps, and looks at
the wall clock too. Who wants to take the lease over watches the object: if its version stays the same for that long by
the watcher's own clock, while it could be read, the owner has not renewed it. Where its process can be looked at
(same machine) and is gone, nobody has to wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flowkit.datastore.layout import lease_file
from flowkit.datastore.sealed import Damaged, seal, unseal
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import Conflict, StoreError

EXPIRES_AFTER = 60.0
"""Seconds without a renewal after which somebody else may take a run over."""
_LONGEST = 3600.0
_LOOK_EVERY = 2.0
_TRIES = 5
_TRUSTED = 0.9
"""The part of the lease's time that its owner relies on: clocks of two machines do not go equally fast."""

Gone = Callable[[Mapping[str, Any]], "bool | None"]
"""``gone(owner)`` tells whether the process that an owner's facts name has ended; None where nobody can tell."""


class LeaseLost(Conflict):
    """Somebody else owns the run by now: whoever held it writes nothing of it any more."""


class Lease:
    """The ownership of one run; made by `acquire`.

    Its methods may be called from several threads.

    Attributes
    ----------
    epoch : int
        How often the run has been taken, this time included.
    expires_after : float
        Seconds.
    """

    def __init__(
        self, storage: Storage, flow: str, run: str, owner: Mapping[str, Any], epoch: int, expires_after: float
    ) -> None:
        self.storage = storage
        self.flow, self.run = flow, run
        self.epoch = epoch
        self.expires_after = expires_after
        self._path = self.place()
        self._owner = dict(owner)
        self._nonce = os.urandom(16).hex()
        self._since = time.time()
        self._version = ""
        self._renewed = _Moment()
        self._lost: LeaseLost | None = None
        self._released = False
        self._lock = threading.Lock()

    def place(self) -> str:
        """Return where the lease is: another kind of work than a run's has another place."""
        return lease_file(self.flow, self.run)

    @property
    def what(self) -> str:
        """What is owned, in messages."""
        return f"run {self.run}"

    @classmethod
    def acquire(
        cls,
        storage: Storage,
        flow: str,
        run: str,
        owner: Mapping[str, Any],
        *,
        take_over: bool = False,
        gone: Gone | None = None,
        expires_after: float = EXPIRES_AFTER,
        told: Callable[[str], None] | None = None,
    ) -> Lease:
        """Become the owner of a run.

        Parameters
        ----------
        storage : Storage
            The datastore.
        flow, run : str
            The run.
        owner : mapping
            Who takes it, as plain JSON values: ``user``, ``host``, ``pid`` and what else `gone` needs.
        take_over : bool, default False
            Take it from an owner that is gone: its process has ended, or it has not renewed its lease for as long as
            that says, which is waited for. Without it, only a run that nobody owns is taken.
        gone : callable, optional
            See `Gone`.
        expires_after : float, default 60
            Seconds without a renewal after which this owner counts as gone.
        told : callable, optional
            Is given a line before there is something to wait for.

        Raises
        ------
        Conflict
            If somebody else owns it, with who that is.
        StoreError
            If the storage does not work.
        """
        lease = cls(storage, flow, run, owner, 1, expires_after)
        for _ in range(_TRIES):
            if lease._make():
                return lease
            found = _read(storage, lease._path)
            if found is None:
                continue  # it was removed this moment
            if not found.free:
                if found.nonce == lease._nonce:  # the storage tried again what had worked already
                    lease._version = found.version
                    return lease
                if not take_over:
                    raise Conflict(f"{lease.what} belongs to {found}", "it is alive, or was a moment ago")
                found = lease._wait_until_gone(found, gone, told)
            lease.epoch = found.epoch + 1
            if lease._replace(found.version):
                return lease
        holder = _read(storage, lease._path)
        raise Conflict(
            f"{lease.what} was taken at this moment by {holder or 'somebody else'}", "look again in a minute"
        )

    @property
    def lost(self) -> LeaseLost | None:
        """What to tell where this owner knows that it has lost the run; costs nothing."""
        return self._lost

    def check(self) -> None:
        """Make sure that the run is still ours, before something is done that only its owner may do.

        It costs nothing as long as the lease was renewed lately. Where it was not (the process was stopped, the
        machine slept, a clock was set), the storage is asked by a renewal.

        Raises
        ------
        LeaseLost
            If it is not.
        StoreError
            If nobody knows, since the storage does not answer.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self._renewed.within(self.expires_after * _TRUSTED):
                return
            self._renew()

    def renew(self) -> None:
        """Hold the run for another `expires_after` seconds; to be called several times in that time.

        Raises
        ------
        LeaseLost
            If somebody else has taken it.
        StoreError
            If it could not be written; the lease holds for the rest of its time.
        """
        with self._lock:
            if self._lost is not None:
                raise self._lost
            self._renew()

    def release(self) -> None:
        """Let go of the run, so that the next one need not wait; nothing happens where it is lost or released.

        Raises
        ------
        StoreError
            If it could not be written; then it ends by itself.
        """
        with self._lock:
            if self._lost is not None or self._released:
                return
            self._released = True
            try:
                self._renew()
            except LeaseLost:  # the next one has it already
                return

    def _renew(self) -> None:
        for _ in range(_TRIES):
            if self._replace(self._version):
                return
            found = _read(self.storage, self._path)
            if found is None or found.nonce != self._nonce:
                whom = "its lease was removed" if found is None else f"it was taken over by {found}"
                self._lost = LeaseLost(
                    f"{self.what} is not ours any more: {whom}",
                    "this process stops here and leaves the jobs of the run alone",
                )
                raise self._lost
            self._version = found.version  # a write of ours whose reply was lost
        raise StoreError(f"{self.storage.root}/{self._path} changes with every look", "the datastore is not consistent")

    def _body(self) -> bytes:
        return seal(
            {
                "epoch": self.epoch,
                "nonce": self._nonce,
                "write": os.urandom(8).hex(),  # no two writes are the same: each makes another version
                "owner": self._owner,
                "since": self._since,
                "renewed": time.time(),
                "expires_after": self.expires_after,
                "released": self._released,
            }
        )

    def _make(self) -> bool:
        """Make the object, if there is none."""
        moment, content = _Moment(), self._body()
        try:
            if not self.storage.create(self._path, [content]):
                return False
        except StoreError:
            if not self._is_there(content):
                raise
        else:
            if not self._is_there(content):
                return False
        self._renewed = moment
        return True

    def _replace(self, version: str) -> bool:
        """Write the object in the place of one of a version; False if it has another one by now."""
        moment, content = _Moment(), self._body()
        try:
            self.storage.replace_version(self._path, content, version)
        except StoreError:
            if not self._is_there(content):
                raise
        else:
            # Looked at also where it was refused: the storage may have tried again what had worked already.
            if not self._is_there(content):
                return False
        self._renewed = moment
        return True

    def _is_there(self, content: bytes) -> bool:
        """Whether this very content was written; then its version is ours."""
        try:
            found = self.storage.read_version(self._path)
        except Missing:
            return False
        if found.content != content:
            return False
        self._version = found.version
        return True

    def _wait_until_gone(self, found: _Found, gone: Gone | None, told: Callable[[str], None] | None) -> _Found:
        """Return once the owner has not renewed the lease for as long as it holds; at once where it has ended."""
        dead = gone(found.owner) if gone is not None else None
        if dead is True:
            return found
        hint = "it is alive: wait until it has ended the run, or stop it"
        if dead is False and 0 <= time.time() - found.renewed < found.expires_after:  # the same clock wrote that
            raise Conflict(f"{self.what} belongs to {found}", hint)
        if told is not None:
            what = self.what[:1].upper() + self.what[1:]
            told(f"{what} belonged to {found}: looking for up to {found.expires_after:.0f} s if it still does.")
        # By a clock that stands still while this machine sleeps: an owner on the same machine slept, too.
        since = time.monotonic()
        while True:
            time.sleep(min(_LOOK_EVERY, found.expires_after / 8))
            looked = time.monotonic()
            try:
                now = _read(self.storage, self._path)
            except StoreError:
                since = time.monotonic()  # nobody could renew anything meanwhile
                continue
            if now is None or now.free:
                return now or found
            if now.version != found.version:
                raise Conflict(f"{self.what} belongs to {now}", hint)
            if looked - since >= found.expires_after:
                return found


class _Moment:
    """A point in time, by every clock there is; a machine that slept is noticed by one of them."""

    __slots__ = ("_elapsed", "_wall")

    def __init__(self) -> None:
        self._elapsed = _steady()
        self._wall = time.time()

    def within(self, seconds: float) -> bool:
        """Whether less than so many seconds have passed since, by all clocks; False also where one was set back."""
        return 0 <= _steady() - self._elapsed < seconds and -1 < time.time() - self._wall < seconds


def _steady() -> float:
    """A clock that nobody sets and that goes on while the machine sleeps, where there is one."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class _Found:
    """What the object says; everything in it may be wrong."""

    def __init__(self, body: Mapping[str, Any], version: str) -> None:
        self.version = version
        owner, nonce, epoch = body.get("owner"), body.get("nonce"), body.get("epoch")
        self.owner: Mapping[str, Any] = owner if isinstance(owner, dict) else {}
        self.nonce = nonce if isinstance(nonce, str) else ""
        self.epoch = epoch if isinstance(epoch, int) and 0 <= epoch < 2**53 else 0
        self.renewed = _number(body.get("renewed"), 0.0)
        self.since = _number(body.get("since"), 0.0)
        self.expires_after = min(max(_number(body.get("expires_after"), EXPIRES_AFTER), 0.1), _LONGEST)
        self.free = body.get("released") is True

    def __str__(self) -> str:
        user, host = _word(self.owner.get("user")), _word(self.owner.get("host"))
        text = f"{user}@{host} (process {_word(self.owner.get('pid'))})"
        return f"{text}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}" if self.since else text


def read_owner(storage: Storage, flow: str, run: str) -> Mapping[str, Any] | None:
    """Return the facts of the process that owns a run, or owned it last; None where none ever had to.

    Raises
    ------
    StoreError
        If the storage does not work.
    """
    found = _read(storage, lease_file(flow, run))
    return None if found is None else found.owner


class Holder(NamedTuple):
    """Who has a run: the facts of its process, and until when without another renewal (by its own clock)."""

    owner: Mapping[str, Any]
    until: float


def read_holder(storage: Storage, flow: str, run: str) -> Holder | None:
    """Return who has a run, or had it last and never let go of it; None where nobody has.

    Raises
    ------
    StoreError
        If the storage does not work.
    """
    return holder_at(storage, lease_file(flow, run))


def holder_at(storage: Storage, path: str) -> Holder | None:
    """Return who has the lease at a path (see `Lease.place`), or had it last and never let go of it."""
    found = _read(storage, path)
    return None if found is None or found.free else Holder(found.owner, found.renewed + found.expires_after)


def _read(storage: Storage, path: str) -> _Found | None:
    try:
        content, version = storage.read_version(path)
    except Missing:
        return None
    try:
        return _Found(unseal(content, f"{storage.root}/{path}"), version)
    except Damaged:
        return _Found({}, version)  # nobody's: it is taken over like that of somebody who cannot be looked at


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e11 else otherwise


def _word(value: Any) -> str:
    text = str(value)[:80] if isinstance(value, str | int) else "?"
    return "".join(char if char.isprintable() else "?" for char in text) or "?"
