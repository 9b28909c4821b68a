"""Who wrote what: each request that changes something, in the database and in the log.

Entries are collected and written together, once a second. What is the same within that second is one entry with a
count: a run that registers a hundred tasks in it says so once. Heartbeats change nothing but a time and are left out.
A service that is killed loses what it collected in its last second from the database; the log has it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

from flowkit.exceptions import FlowkitError
from flowkit.metadata_service.store import ServiceStore

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two writes."""
WAITING = 10_000
"""Entries that wait at most, while the database does not take them."""
TOUCHED = 10
"""Runs that one entry names."""

_touched: ContextVar[list[str] | None] = ContextVar("touched", default=None)


def touched(flow: str, run: str | None = None) -> None:
    """Note what the request at hand changes, where its path does not say it: bulk routes call this."""
    names = _touched.get()
    if names is not None and len(names) <= TOUCHED:
        name = flow if run is None else f"{flow}/{run}"
        if name not in names:
            names.append(name)


def begin() -> list[str]:
    """Start noting for a request; returns where it is noted."""
    names: list[str] = []
    # A list, since routes run in threads, which have a copy of the context.
    _touched.set(names)
    return names


class Audit:
    """The log of writes of one service.

    Parameters
    ----------
    store : ServiceStore
        Keeps it.
    also : callable
        Called in the same rhythm, in the same thread: other things that are written down now and then.
    """

    def __init__(self, store: ServiceStore, also: Callable[[], None]) -> None:
        self._store = store
        self._also = also
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        self._lost = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, who: str, action: str, what: str, status: int, address: str) -> None:
        """Note a request.

        Parameters
        ----------
        who : str
            `Caller.name`.
        action : str
            Method and route.
        what : str
            Flow and run, as far as they are known.
        status : int
            What was answered.
        address : str
            From where it came.
        """
        entry = {"when": time.time(), "who": who, "action": action, "what": what, "status": status, "from": address}
        # As fields, which become JSON in ASCII: nothing that somebody sent can end a line, or look like another one.
        logger.info("audit", extra={"fields": entry})
        key = (who, action, what, status)
        with self._lock:
            same = self._waiting.get(key)
            if same is not None:
                same["count"] = same.get("count", 1) + 1
            elif len(self._waiting) < WAITING:
                self._waiting[key] = entry
            else:
                self._lost += 1

    def start(self) -> None:
        """Begin to write; called again it does nothing."""
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write what waits, and end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        else:
            self.flush()

    def flush(self) -> None:
        """Write what waits; what the database does not take waits on."""
        with self._lock:
            entries, lost = list(self._waiting.items()), self._lost
            self._waiting, self._lost = {}, 0
        try:
            if lost:
                logger.error("%d entries of the audit log were not stored: the log above has them", lost)
            if entries:
                self._store.audit([entry for _, entry in entries])
        except FlowkitError as error:
            logger.warning("the audit log waits: %s", error.headline)
            self._keep(entries)
        try:
            self._also()
        except FlowkitError as error:
            logger.warning("the uses of tokens were not noted: %s", error.headline)

    def _keep(self, entries: list[tuple[tuple[str, str, str, int], dict[str, Any]]]) -> None:
        with self._lock:
            newer, self._waiting = self._waiting, dict(entries)
            for key, entry in newer.items():
                if key in self._waiting:
                    self._waiting[key]["count"] = self._waiting[key].get("count", 1) + entry.get("count", 1)
                elif len(self._waiting) < WAITING:
                    self._waiting[key] = entry
                else:
                    self._lost += 1

    def _write(self) -> None:
        while not self._stop.wait(EVERY):
            self._flush_whatever_happens()
        self._flush_whatever_happens()

    def _flush_whatever_happens(self) -> None:
        try:
            self.flush()
        except Exception:  # a border: the thread must go on
            logger.exception("the audit log could not be written")


def about(path_params: Mapping[str, Any], names: list[str]) -> str:
    """Return what a request was about, as one line."""
    path = "/".join(str(value) for value in path_params.values())
    shown = names[:TOUCHED] + (["…"] if len(names) > TOUCHED else [])
    return ", ".join([*([path] if path else []), *shown])[:2_000]
