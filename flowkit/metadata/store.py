"""The metadata port: runs and tasks, written in batches and listed with filters.

The datastore is the truth and this is an index of it. Writers hand over whole batches, which become one short
transaction. Readers never see ``running`` for a run whose owner is known to be gone: `runs` and `run` derive
``lost`` (see `flowkit.metadata.liveness`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.metadata.liveness import HEARTBEAT_INTERVAL
from flowkit.metadata.records import FlowRecord, Record, RunRecord, StepRecord, TaskRecord

if TYPE_CHECKING:
    from flowkit.model.event import EmittedEvent


class RunFilter(NamedTuple):
    """Which runs to list; what is None does not filter.

    Parameters
    ----------
    status : str
        One of `flowkit.metadata.records.STATES`.
    since, until : float
        Bounds of the time of creation, in seconds since the epoch: ``since <= created < until``.
    user : str
        Who started the run.
    tags : tuple of str
        All of which the run must have, as user or system tags.
    before : str
        Only runs older than this run id: the cursor of the next page.
    limit : int
        At most so many, newest first.
    """

    status: str | None = None
    since: float | None = None
    until: float | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    before: str | None = None
    limit: int | None = None


class MetadataStore(ABC):
    """An index of the runs below one datastore root."""

    name: str
    """The name in the registry: ``local``, ``service``."""
    patience: float = 75.0
    """Seconds that a write waits where somebody else holds the store up; a loop with other things to do sets less."""
    fresh: bool = False
    """The index was made anew and may lack what the datastore has: `flowkit.client.rebuild.rebuild` fills it."""

    outputs: bool = False
    """`OutputRecord`s are indexed; where it is False nobody needs to make any, and `write` leaves them out."""

    writes_tags: bool = False
    """`change_tags` changes the datastore's copy too (else whoever calls it does)."""

    shared: bool = False
    """Runs of other datastores are in it, too: what is not in one datastore is no reason to forget it."""

    keeps_events: bool = False
    """Events that start deployed flows are kept here (`emit`); else in a datastore (`flowkit.datastore.event_log`)."""

    heartbeat_interval: float = HEARTBEAT_INTERVAL
    """Seconds between two heartbeats of a run's owner."""

    @staticmethod  # noqa: B027
    def warm() -> None:
        """Begin, in a thread, what takes long before the store is first used."""

    def attend(self, record: RunRecord) -> None:  # noqa: B027
        """Note that this process works on a run from now on: what it writes may then be on its way until `deliver`."""

    def deliver(self, seconds: float) -> str | None:
        """Wait until all that was written is there, but not longer; return what the user should know if it is not."""
        return None

    def abandon(self) -> None:  # noqa: B027
        """Note that somebody else has the run: what is on its way is not to arrive any more."""

    def withdraw(self, flow: str, run: str, ours: Callable[[RunRecord], bool]) -> None:  # noqa: B027
        """Drop what waits on this machine to be written of a run that goes; `ours` tells it from another one's."""

    def news(self) -> list[str]:
        """Return what the user should be told of what is on its way, a line each, once."""
        return []

    def reserve(self, flow: str, at_least: int = 1) -> str | None:
        """Return the number of a flow's next run, which nobody else gets; None where the datastore numbers runs."""
        return None

    @abstractmethod
    def write(self, records: Sequence[Record]) -> None:
        """Insert or update records in one transaction.

        A record replaces the one with the same identity. A task that has reached a final state is not taken back
        by an older attempt's record, nor by one of the same attempt that comes late; a commit counts whatever its
        attempt. Tags and the time of creation in a run's record count only when it is new: `change_tags` owns the
        tags. A heartbeat of None leaves the one that is there. Outputs count where the store indexes them (`outputs`).

        Raises
        ------
        StoreError
            If nothing could be written (then none of the records was), or a task's run was never written.
        """

    @abstractmethod
    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive; a run that is not in the index is left alone."""

    @abstractmethod
    def flows(self, namespace: str | None = None) -> list[FlowRecord]:
        """Return the flows that have runs (with that tag), newest first."""

    @abstractmethod
    def runs(self, flow: str, which: RunFilter) -> list[RunRecord]:
        """Return runs of a flow, newest first: numbered ones by their number, named ones by their time among them."""

    @abstractmethod
    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run."""

    @abstractmethod
    def steps(self, flow: str, run: str) -> list[StepRecord]:
        """Return the steps of a run that have tasks, in the order in which they began."""

    @abstractmethod
    def tasks(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        *,
        status: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[TaskRecord]:
        """Return tasks, in the order in which they began, those that have not begun last.

        `after` is the last task of the page before: its id, or ``step/task`` where no step is given. A task that was
        retried between two pages has moved to where its newest attempt began.
        """

    @abstractmethod
    def task(self, flow: str, run: str, step: str, task: str) -> TaskRecord | None:
        """Return one task."""

    @abstractmethod
    def change_tags(self, flow: str, run: str, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
        """Remove, then add user tags at once, and return the new ones, sorted."""

    @abstractmethod
    def forget(self, flow: str, run: str | None = None) -> None:
        """Drop the index of a run, or of a whole flow (the datastore is not touched)."""

    def settle(self) -> None:  # noqa: B027 (a store that is never fresh has nothing to do)
        """Note that the index holds everything that the datastore holds: it is not `fresh` any more."""

    # -- events, where `keeps_events` ----------------------------------------------------------------------------------

    @property
    def place_of_events(self) -> str:
        """What tells one place of events from another: their numbers mean nothing elsewhere."""
        return self.name

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, *, id: str | None = None, user: str = ""
    ) -> EmittedEvent:
        """Add an event and return it; one whose id was given and is known already is returned as it was.

        Parameters
        ----------
        name : str
        data : mapping, optional
            Its fields: plain JSON.
        id : str, optional
            Which one; default: one that nobody else has.
        user : str
            Who emits it.

        Raises
        ------
        UsageError
            If it cannot be one (`flowkit.model.event.check_event`).
        StoreError
            If it could not be written.
        """
        raise NotImplementedError

    def emitted(self, after: int, limit: int = 1_000) -> list[EmittedEvent]:
        """Return events after a number, the oldest first: none that another could still come before."""
        raise NotImplementedError

    def last_emitted(self) -> int:
        """Return the number of the newest event that `emitted` would return; 0 where there is none."""
        raise NotImplementedError

    @abstractmethod
    def about(self) -> Mapping[str, Any]:
        """Return what a user may want to know of the store: where it is, its version, how many runs."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; the store is not used afterwards."""
