"""Tells runs of Metaflow's that failed from those that are lost.

A client never says that a run has failed: an attempt fails, and then nothing comes any more. Whoever reads the run
sees it lost as soon as its heartbeats have stopped for long enough; a thread then writes that it has failed, and why
(`flowkit.metadata_service.metaflow_states.run_after_silence`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from itertools import product

from flowkit.exceptions import FlowkitError
from flowkit.metadata.records import FINAL, TaskRecord
from flowkit.metadata.store import RunFilter
from flowkit.metadata_service.metaflow_states import ATTEMPT_OK, run_after_silence, task_after_end
from flowkit.metadata_service.store import ServiceStore

_LOG = logging.getLogger(__name__)
_PAGE = 500
_MISSED = 3
"""Heartbeats after which a run counts as lost."""
_MOST = 100_000
"""Runs that are watched at once; others are found when the service starts again."""


class Settling:
    """Watches the runs that had a failed attempt until they have ended or have fallen silent.

    Parameters
    ----------
    store : ServiceStore
    interval : float
        Seconds between two looks.
    """

    def __init__(self, store: ServiceStore, interval: float) -> None:
        self._store = store
        self._interval = interval
        self._watched: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, flow: str, run: str) -> None:
        """Look at a run from now on: one of its attempts has failed."""
        with self._lock:
            if len(self._watched) < _MOST:
                self._watched.add((flow, run))

    def start(self) -> None:
        """Watch from now on, in a thread of its own."""
        self._thread = threading.Thread(target=self._work, name="metaflow-settling", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a look that has begun is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def settle(self) -> None:
        """Look at every watched run once."""
        with self._lock:
            watched = sorted(self._watched)
        for flow, run in watched:
            if self._stop.is_set():
                return
            if self._is_over(flow, run):
                with self._lock:
                    self._watched.discard((flow, run))

    def find(self) -> None:
        """Watch the runs that had not ended when this service began, and have a failed attempt."""
        for flow, run in self._open():
            if self._stop.is_set():
                return
            failed = self._failed(flow, run, 1)
            if failed and self._store.fields(flow, run, failed[0].step, failed[0].task, ATTEMPT_OK):
                self.watch(flow, run)

    def _work(self) -> None:
        # clients that could not reach a service that was away need time to say that they are alive
        found = self._stop.wait(_MISSED * self._interval)
        while not self._stop.wait(self._interval if found else 0):
            try:
                if not found:
                    self.find()
                    found = True
                self.settle()
            except FlowkitError as error:  # the database may be away for a while
                _LOG.warning("runs of Metaflow's are not looked after: %s", error.headline)
                found = found or self._stop.wait(self._interval)
            except Exception:
                _LOG.exception("a defect in looking after runs of Metaflow's")
                found = found or self._stop.wait(self._interval)

    def _open(self) -> Iterator[tuple[str, str]]:
        for flow, status in product(self._store.flows(), ("lost", "running")):
            before = None
            while True:
                page = self._store.runs(flow.flow, RunFilter(status=status, before=before, limit=_PAGE))
                yield from ((run.flow, run.run) for run in page)
                if len(page) < _PAGE:
                    break
                before = page[-1].run

    def _is_over(self, flow: str, run: str) -> bool:
        """Write down what a run has come to, if it has ended; whether there is nothing left to watch."""
        record = self._store.run(flow, run)
        if record is None or record.state in FINAL:
            return True
        failed = self._failed(flow, run, _PAGE)
        ended = run_after_silence(record, failed)
        if ended is None:
            return not failed
        left = [each for state in ("lost", "running", "pending") for each in self._tasks(flow, run, state)]
        over = [task for task in map(task_after_end, left) if task is not None]
        self._store.register([ended, *over])
        return True

    def _failed(self, flow: str, run: str, most: int) -> list[TaskRecord]:
        return self._store.tasks(flow, run, status="failed", limit=most)

    def _tasks(self, flow: str, run: str, state: str) -> list[TaskRecord]:
        return self._store.tasks(flow, run, status=state)
