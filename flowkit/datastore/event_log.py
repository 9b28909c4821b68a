"""Events in a datastore: where no metadata service keeps them.

Each event is one small object, named by its number. Who emits one claims the next number by creating its object, so
numbers have no gaps and none is ever added before one that was read: a reader remembers one number, and misses nothing.
A hint tells the newest number, give or take.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from flowkit.datastore import layout
from flowkit.datastore.sealed import Damaged, create_sealed, read_sealed
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import InvalidPathspec
from flowkit.model.event import EmittedEvent, check_event

KEEP = 30 * 86_400.0
"""Seconds for which events are kept that everybody has read."""
_REPEATED = 100
"""Of so many of the newest events, an id is looked for before another one of it is added."""
_CHECK_EVERY = 5


class EventLog:
    """The events of one datastore.

    Parameters
    ----------
    storage : Storage
        The datastore.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, *, id: str | None = None, user: str = ""
    ) -> EmittedEvent:
        """Add an event and return it; one whose id was given and is known already is returned as it was.

        Raises
        ------
        UsageError
            If it cannot be one.
        StoreError
            If it could not be written.
        """
        fields = check_event(name, data, id)
        number = self.last_emitted()
        if id is not None:
            for known in self.emitted(number - _REPEATED, _REPEATED):
                if known.id == id and known.name == name:
                    return known
        event_id = id or os.urandom(12).hex()
        taken = 0
        while True:
            number += 1
            event = EmittedEvent(number, name, event_id, time.time(), fields, user)
            if create_sealed(self._storage, layout.event_file(number), event.to_json()):
                self._leave_hint(number)
                return event
            taken += 1
            if taken % _CHECK_EVERY == 0:  # the hint was behind
                number = max(number, self._highest())

    def emitted(self, after: int, limit: int = 1_000) -> list[EmittedEvent]:
        """Return events after a number, the oldest first; what is damaged is left out."""
        found: list[EmittedEvent] = []
        number = max(after, 0)
        while len(found) < limit:
            number += 1
            event, there = self._read(number)
            if not there:
                later = self._next_kept(number)
                if later is None:
                    break
                number = later - 1
                continue
            if event is not None:
                found.append(event)
        return found

    def last_emitted(self) -> int:
        """Return the number of the newest event; 0 where there never was one."""
        number = self._hint()
        if number is None:
            number = self._highest()
        while self._storage.info(layout.event_file(number + 1)) is not None:
            number += 1
        return number

    def trim_emitted(self, until: int, keep: float = KEEP) -> int:
        """Remove events up to a number that are older than `keep` seconds; return how many. The newest one stays."""
        before, last = time.time() - keep, self.last_emitted()
        removed = 0
        for number in sorted(self._numbers()):
            if number > until or number >= last:
                break
            if not self._storage.delete_older(layout.event_file(number), before):
                break
            removed += 1
        return removed

    def _read(self, number: int) -> tuple[EmittedEvent | None, bool]:
        try:
            body = read_sealed(self._storage, layout.event_file(number))
        except Damaged:
            return None, True
        event = EmittedEvent.from_json(body) if body is not None else None
        return (event._replace(number=number) if event is not None else None), body is not None

    def _next_kept(self, number: int) -> int | None:
        """Return the next number that there is, where older ones were removed; None where there is no later one."""
        hint = self._hint()
        if hint is None or hint <= number:
            return None
        later = min((kept for kept in self._numbers() if kept > number), default=None)
        # A listing may miss what is written meanwhile. A later event proves that this one was written: it is gone for
        # good only if it still is not there.
        if later is not None and self._storage.info(layout.event_file(number)) is not None:
            return number
        return later

    def _numbers(self) -> Iterator[int]:
        for name in self._storage.children(layout.EVENTS):
            try:
                number = int(name.removesuffix(".json"))
                if layout.event_file(number).endswith(f"/{name}"):
                    yield number
            except (ValueError, InvalidPathspec):
                continue  # the hint, or a stranger's file

    def _highest(self) -> int:
        return max(self._numbers(), default=0)

    def _hint(self) -> int | None:
        try:
            text = self._storage.read(layout.last_event_file()).decode("ascii", "replace")
        except Missing:
            return None
        known = text.isascii() and text.isdigit() and len(text) <= 15
        return int(text) if known and self._storage.info(layout.event_file(int(text))) is not None else None

    def _leave_hint(self, number: int) -> None:
        self._storage.replace(layout.last_event_file(), [str(number).encode()])
