"""What every part of a relational service store stands on: sessions with many rows a statement, owners, the outbox."""

from __future__ import annotations

import json
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from flowkit.exceptions import NotFound, UsageError
from flowkit.metadata import sql as shared
from flowkit.metadata.records import Record, RunRecord, TaskRecord
from flowkit.metadata.relational import Connection, RelationalMetadata, UnknownRun, read_run, read_tags
from flowkit.metadata_service import sql
from flowkit.metadata_service.access import PROJECT_TAG, projects_of
from flowkit.metadata_service.sql import Shape, Words
from flowkit.metadata_service.store import ServiceStore

MISSED_HEARTBEATS = 3
"""After so many a run that has not ended is lost."""
_LARGEST = {"attempt": 2**31}


class Session(Connection, Protocol):
    """The statements of one transaction of the service."""

    def given(self, query: str, shape: Shape, rows: Iterable[Sequence[Any]]) -> list[Any]:
        """Carry out a statement over given rows (see `flowkit.metadata_service.sql`) and return what it returns."""


class Owner(NamedTuple):
    """The run that tasks belong to: its key, and the projects whose members may know of it."""

    key: int
    projects: tuple[str, ...]


class Outbox:
    """The events of one transaction, in order.

    Parameters
    ----------
    when : float
        The service's time.
    """

    def __init__(self, when: float) -> None:
        self.when = when
        self.rows: list[tuple[Any, ...]] = []

    def add(self, kind: str, place: Sequence[str | None], data: dict[str, Any], projects: tuple[str, ...]) -> None:
        """Add what happened to a place: ``(flow, run, step, task)``."""
        self.rows.append((kind, *place, json.dumps(data), json.dumps(projects), self.when))

    def add_run(self, run: RunRecord) -> None:
        """Add that a run is new or changed."""
        self.add("run", (run.flow, run.run, None, None), run.to_json(), projects_of(run))

    def add_task(self, task: TaskRecord, projects: tuple[str, ...]) -> None:
        """Add that a task is new or changed."""
        self.add("task", (task.flow, task.run, task.step, task.task), task.to_json(), projects)


class ServiceTables(RelationalMetadata, ServiceStore):
    """The port over two databases; a subclass connects.

    Parameters
    ----------
    words : Words
        Which database it is.
    heartbeat_interval : float
        Seconds between two heartbeats, as clients are told.
    """

    outputs = True
    keeps_events = True

    def __init__(self, words: Words, heartbeat_interval: float) -> None:
        super().__init__(words.dialect)
        self.heartbeat_limit = MISSED_HEARTBEATS * heartbeat_interval
        self._words = words

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Session]: ...

    @abstractmethod
    def _snapshot(self) -> AbstractContextManager[Session]: ...

    @abstractmethod
    def _send(self, db: Session, outbox: Outbox) -> None:
        """Write the events of a transaction, as the last thing in it."""

    def _owner(self, db: Session, flow: str, run: str) -> Owner:
        """Return the run of tasks that are written; it stays until the end of the transaction."""
        found = db.select(self._sql(sql.RUN_OWNER) + self._words.share_lock, (flow, run))
        if not found:
            raise UnknownRun(
                f"the run {flow}/{run} is not known to the metadata service", "send the run's record before its tasks"
            )
        key, tags = found[0]
        return Owner(key, projects_of_tags(read_tags(tags)))

    def _owner_if_any(self, db: Session, flow: str, run: str) -> int | None:
        found = db.select(self._sql(shared.RUN_KEY), (flow, run))
        return int(found[0][0]) if found else None

    def _known(self, db: Session, flow: str, run: str) -> int:
        """Return a run's key.

        Raises
        ------
        NotFound
            If there is no such run.
        """
        key = self._owner_if_any(db, flow, run)
        if key is None:
            raise NotFound(f"there is no run {flow}/{run}")
        return key

    def _stored_run(self, db: Session, flow: str, run: str, lock: bool = False) -> RunRecord | None:
        rows = db.select(self._sql(shared.RUN) + (self._dialect.row_lock if lock else ""), (flow, run))
        return read_run(rows[0]) if rows else None

    def _remember(self, run: RunRecord) -> None:
        """Nothing: this database is no index that could be lost and made anew."""

    def _tags_changed(self, db: Session, flow: str, run: str) -> None:
        """Tell listeners."""
        record = self._stored_run(db, flow, run)
        if record is not None:
            outbox = Outbox(time.time())
            tags = {"tags": list(record.tags), "system_tags": list(record.system_tags)}
            outbox.add("tags", (flow, run, None, None), tags, projects_of(record))
            self._send(db, outbox)

    def settle(self) -> None:
        """Nothing: the service's database is never filled from a datastore."""


def projects_of_tags(system_tags: Sequence[str]) -> tuple[str, ...]:
    """Return the projects that system tags name."""
    return tuple(tag[len(PROJECT_TAG) :] for tag in system_tags if tag.startswith(PROJECT_TAG))


def check_numbers(records: Sequence[Record]) -> None:
    """Refuse times that are no times, and numbers that no database takes.

    Raises
    ------
    UsageError
        With all of them.
    """
    problems = []
    for record in records:
        for name, value in zip(record._fields, record, strict=True):
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{name} of {'/'.join(record[:2])} is {value}")
            elif isinstance(value, int) and not -_LARGEST.get(name, 2**63) <= value < _LARGEST.get(name, 2**63):
                problems.append(f"{name} of {'/'.join(record[:2])} is too large")
    if problems:
        raise UsageError("; ".join(problems[:10]), "times are seconds since the epoch")
