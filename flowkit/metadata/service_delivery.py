"""Bringing the records of one run to a metadata service without anybody waiting for it.

Two threads of the process that writes them. The *keeper* takes what the runtime's loop hands over and puts it on disk
(`flowkit.metadata.service_queue`); the *sender* sends what is there, a few times a second at most, so that a burst of
finished tasks is one request. Heartbeats go the same way. Where the service is away the sender tries again, later and
later, and everything waits on disk; the loop never waits for either of them.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from flowkit.exceptions import FlowkitError
from flowkit.metadata.records import FINAL, Record, RunRecord, TaskRecord
from flowkit.metadata.service_calls import Away, Calls, Place, told
from flowkit.metadata.service_push import push_older, send
from flowkit.metadata.service_queue import Queue, line_of, of_run

PACE = 0.25
"""Seconds between two requests with records, at least: what ends in between goes together."""
GATHER = 0.01
"""Seconds for which the keeper lets records gather, and which a killed process may lose (the datastore has them)."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between two tries while the service is away; each pause is drawn from the upper half of its length."""
BEATS = 5_000
"""Heartbeats in one request."""


class Delivery:
    """The way of one run's records to a service.

    Parameters
    ----------
    place : Place
        The service.
    record : RunRecord
        The run.
    claimed : bool, default False
        The service gave the run its number, so that it cannot be taken for another one.
    interval : float, default 10
        Seconds between two heartbeats, until the service has said how often it wants them.
    away : FlowkitError, optional
        Why the service did not answer before; the user was told of it.

    Attributes
    ----------
    interval : float
        Seconds between two heartbeats, as the service last said.
    news : list of str
        Lines for the user; whoever shows them takes them out.
    """

    def __init__(
        self,
        place: Place,
        record: RunRecord,
        *,
        claimed: bool = False,
        interval: float = 10.0,
        away: FlowkitError | None = None,
    ) -> None:
        self.interval = interval
        self.news: list[str] = []
        self._place = place
        self._calls = Calls(place)
        self._run = record
        self._claimed = claimed
        self._queue: Queue | None = None
        self._given: deque[Record] = deque()
        self._running: dict[tuple[str, str], float] = {}
        self._new = threading.Event()
        self._changed = threading.Condition()
        self._beat_due = False
        self._known = False
        self._last = False
        self._all_kept = False
        self._over = False
        self._pause = 0.0
        self._told: str | None = None if away is None else away.headline
        for work in (self._keep, self._send):
            threading.Thread(target=work, name=f"flowkit-service{work.__name__}", daemon=True).start()

    # -- for the loop: nothing here waits -----------------------------------------------------------------------------

    def add(self, records: Sequence[Record]) -> None:
        """Have records delivered, after those that were added before."""
        self._given.extend(records)
        self._new.set()

    def beat(self) -> None:
        """Tell the service that the run is alive, and its long tasks with it."""
        self._beat_due = True
        self._new.set()

    # -- the end ------------------------------------------------------------------------------------------------------

    def finish(self, seconds: float) -> str | None:
        """Deliver what is left, and wait for that, but not longer.

        Returns
        -------
        str or None
            What the user should know where something is left.
        """
        with self._changed:
            self._last = True
            self._new.set()
            self._changed.wait_for(lambda: self._over, seconds)
            self._over = True
        queue = self._queue
        count = len(self._given) + (queue.count if queue is not None else 0)
        dropped = queue.dropped if queue is not None else 0
        if count + dropped == 0:
            return None
        if queue is None or not queue.on_disk or dropped:
            lost = f"{count + dropped:,} records of this run are not at the metadata service"
            return f"{lost}; add them when it is back with: flowkit metadata rebuild"
        return (
            f"{count:,} {'record' if count == 1 else 'records'} of this run could not be delivered to the metadata "
            f"service at {self._place.url} yet. When it is back, send them with: flowkit metadata push"
        )

    def abandon(self) -> None:
        """Deliver nothing any more: somebody else has the run."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._given.clear()
        self._new.set()
        if self._queue is not None:
            self._queue.close(discard=True)

    # -- the keeper ---------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        queue = Queue.make(self._place.url, self._run.flow, self._run.run, claimed=self._claimed)
        self._queue = queue
        while not self._over:
            self._new.wait()
            if not self._last:
                time.sleep(GATHER)
            self._new.clear()
            last = self._last
            records: list[Record] = []
            while self._given:
                records.append(self._given.popleft())
            for record in records:
                self._note(record)
            queue.append([line_of(record) for record in records])
            with self._changed:
                self._all_kept = last
                self._changed.notify_all()

    def _note(self, record: Record) -> None:
        if isinstance(record, RunRecord):
            self._run = record
        elif isinstance(record, TaskRecord):
            if record.state == "running":
                self._running[record.step, record.task] = record.started or time.time()
            else:
                self._running.pop((record.step, record.task), None)

    # -- the sender ---------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        next_at = 0.0
        while not self._over:
            with self._changed:
                while not self._over and not self._all_kept:
                    now = time.monotonic()
                    if not self._has_work():
                        self._changed.wait()
                    elif now < next_at:
                        self._changed.wait(next_at - now)
                    else:
                        break
            if self._over:
                break
            worked = self._turn()
            if self._all_kept and not (worked and self._waiting()):
                break
            next_at = time.monotonic() + (PACE if worked else self._pause)
        if self._queue is not None and not self._waiting() and not self._given:
            self._queue.close()
        self._calls.close()
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._new.set()

    def _has_work(self) -> bool:
        return self._waiting() or (self._beat_due and self._known)

    def _waiting(self) -> bool:
        return self._queue is not None and self._queue.waits

    def _turn(self) -> bool:
        """Send what is next; False where the service is away."""
        try:
            if not self._known:
                # What an earlier process left of the same run is older.
                push_older(of_run(self._place.url, self._run.flow, self._run.run), self._calls)
            if self._queue is not None and (found := self._queue.head()) is not None:
                key, lines, batch = found
                refused = send(self._calls, self._queue, key, lines, line_of(self._run))
                if refused:
                    self.news.append(f"The metadata service does not take {len(refused):,} records: {refused[0][1]}")
                    self._queue.set_aside(batch, [line for line, _ in refused])
                else:
                    self._queue.done(batch)
                self._known = True
            elif self._beat_due and self._known and not self._last:
                self._beat_due = False
                self._beat()
        except FlowkitError as error:
            self._is_away(error)
            return False
        except Exception as error:  # the border to a thread: it lives as long as its run
            self._is_away(Away(f"records cannot be sent: {type(error).__name__}: {error}"))
            return False
        if self._told is not None:
            self.news.append("The metadata service works again; what waited for it is being delivered.")
            self._told = None
        self._pause = 0.0
        return True

    def _is_away(self, error: FlowkitError) -> None:
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        self._pause = max(self._pause * random.uniform(0.5, 1.0), getattr(error, "after", None) or 0.0)
        if self._told is None or (self._told != error.headline and not isinstance(error, Away)):
            self.news.append(f"{told(error)}. The run goes on, and its records are kept.")
        self._told = error.headline

    def _beat(self) -> None:
        """Tell that the run is alive, and those tasks that began before the last heartbeat."""
        run = {"flow": self._run.flow, "run": self._run.run}
        beats = [run] if self._run.state not in FINAL else []
        since = time.time() - self.interval
        beats += [{**run, "step": s, "task": t} for (s, t), began in [*self._running.items()] if began <= since]
        for start in range(0, len(beats), BEATS):
            answer = beat(self._calls, beats[start : start + BEATS])
            told = answer.get("interval")
            if isinstance(told, (int, float)) and 0 < told < 1e6:
                self.interval = min(max(float(told), 0.2), 300.0)
            unknown = answer.get("unknown")
            if isinstance(unknown, list) and run in unknown:
                self.add([self._run])  # somebody dropped it there: it lives


def beat(calls: Calls, beats: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Send signs of life; return what the service answers."""
    body = json.dumps({"heartbeats": list(beats)}, separators=(",", ":")).encode()
    answer = calls.call("POST", "/v1/heartbeats", body, tries=1)
    return answer if isinstance(answer, dict) else {}
