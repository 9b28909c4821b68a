"""Where a deployment's events come from, and what is known of runs: its metadata store, or the datastore."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flowkit.client.stores import open_index
from flowkit.datastore.event_log import EventLog
from flowkit.datastore.runs import read_end, read_run
from flowkit.datastore.storage import Storage
from flowkit.deployer.local.ends import MOST_OPEN, Ended, horizon
from flowkit.deployer.local.firings import FlowWatch, Happened
from flowkit.deployer.target import EventPlan, Execution
from flowkit.metadata.records import FINAL, RunRecord
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.model.event import EmittedEvent

DATASTORE = "datastore"
"""What the source of events is called where the datastore keeps them."""
UNKNOWN_FOR = 600.0
"""Seconds after which a run counts as over that has begun and that nobody knows any more."""
MOST_EVENTS = 1_000
"""Events that are looked at in one go."""


class Events(Protocol):
    """Something that keeps events: `flowkit.datastore.event_log.EventLog`, or a metadata store with `keeps_events`."""

    def emitted(self, after: int, limit: int = 1_000) -> list[EmittedEvent]:
        """Return events after a number, the oldest first."""

    def last_emitted(self) -> int:
        """Return the number of the newest event; 0 where there is none."""


class Source:
    """What one metadata store, and the datastore, tell the scheduler.

    Parameters
    ----------
    storage : Storage
        The datastore.
    metadata : str
        The store's name in the registry.
    notice : callable, optional
        Is given a line for the user where something about the store is unusual.
    """

    def __init__(self, storage: Storage, metadata: str, notice: Callable[[str], None] | None = None) -> None:
        self._storage = storage
        self.store: MetadataStore = open_index(metadata, storage, notice=notice)
        self.events: Events = self.store if self.store.keeps_events else EventLog(storage)
        self.name = f"{metadata}:{self.store.place_of_events}" if self.store.keeps_events else DATASTORE

    def close(self) -> None:
        """Release connections."""
        self.store.close()

    # -- events ----------------------------------------------------------------------------------------------------

    def newest(self) -> int:
        """Return the number of the newest event."""
        return self.events.last_emitted()

    def after(self, number: int) -> list[EmittedEvent]:
        """Return the next events."""
        return self.events.emitted(number, MOST_EVENTS)

    # -- runs ------------------------------------------------------------------------------------------------------

    def has_begun(self, flow: str, run: str) -> bool:
        """Whether a run's id is claimed."""
        from flowkit.datastore.layout import run_file

        return self._storage.info(run_file(flow, run)) is not None

    def ended(self, flow: str, run: str, started: float) -> tuple[str, str | None] | None:
        """Return the state and the reason of a run that is over; None for one that goes on."""
        end = read_end(self._storage, flow, run)
        if end is not None and end.get("state") in FINAL:
            reason = end.get("reason")
            return str(end["state"]), reason if isinstance(reason, str) else None
        record = self.store.run(flow, run)
        if record is not None:
            return (record.state, record.reason) if record.state in FINAL or record.state == "lost" else None
        if read_run(self._storage, flow, run) is None:
            return "deleted", None
        return ("lost", "no store knows it") if time.time() - started > UNKNOWN_FOR else None

    def record(self, flow: str, run: str) -> RunRecord | None:
        """Return a run as its store has it."""
        return self.store.run(flow, run)

    def runs_since(self, event: EventPlan, watch: FlowWatch) -> list[Ended]:
        """Return the runs that `flowkit.deployer.local.firings.look` wants to see."""
        flow = str(event.flow)
        found = {each.run: each for each in self.store.runs(flow, RunFilter(since=max(0.0, horizon(watch))))}
        if not watch.seen and not watch.open:  # the first look: some began long before
            for each in self.store.runs(flow, RunFilter(status="running", limit=MOST_OPEN)):
                found.setdefault(each.run, each)
        for run in watch.open:  # a listing may tell of a colleague's run what it was a moment ago
            record = self.store.run(flow, run)
            if record is not None:
                found[run] = record
        return [
            Ended(each.run, each.created, each.state, each.finished, (*each.system_tags, *each.tags))
            for each in found.values()
        ]

    def executions(self, flow: str, tag: str, limit: int) -> list[Execution]:
        """Return the newest runs of a deployment."""
        return [_execution(each) for each in self.store.runs(flow, RunFilter(tags=(tag,), limit=limit))]

    def execution(self, flow: str, run: str) -> Execution | None:
        """Return how a run stands; None where it has not begun."""
        record = self.store.run(flow, run)
        return None if record is None else _execution(record)


class Sources:
    """The sources of a datastore's deployments, opened when they are needed.

    Parameters
    ----------
    storage : Storage
    notice : callable, optional
    """

    def __init__(self, storage: Storage, notice: Callable[[str], None] | None = None) -> None:
        self._storage = storage
        self._notice = notice
        self._open: dict[str, Source] = {}

    def of(self, metadata: str) -> Source:
        """Return the source of a metadata store's name.

        Raises
        ------
        FlowkitError
            If it does not work.
        """
        if metadata not in self._open:
            self._open[metadata] = Source(self._storage, metadata, self._notice)
        return self._open[metadata]

    def close(self) -> None:
        """Close all."""
        for source in self._open.values():
            source.close()
        self._open.clear()


def happened(events: Sequence[EmittedEvent]) -> list[Happened]:
    """Return events as the rules take them."""
    return [Happened(each.name, each.id, each.created, "event", each.data) for each in events]


def _execution(record: RunRecord) -> Execution:
    return Execution(record.run, record.state, record.reason, record.created, record.finished)
