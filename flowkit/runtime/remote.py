"""The remote executor: launches carried out as jobs of a service, many of them as one.

One thread makes all calls (`flowkit.runtime.remote_jobs`): it takes orders from the runtime's loop, and hands events
back through a queue and a pipe that wakes the loop. However many tasks run elsewhere, this is all that they cost here.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from flowkit.datastore.storage import Storage
from flowkit.model.launch import Launch
from flowkit.runtime.backend import Backend
from flowkit.runtime.executor import Ended, Event, Executor
from flowkit.runtime.remote_ends import Ends
from flowkit.runtime.remote_jobs import Jobs
from flowkit.runtime.remote_logs import LogReader
from flowkit.runtime.remote_work import Work
from flowkit.runtime.submissions import SubmittedJob

CLOSE_SECONDS = 30.0
"""How long `RemoteExecutor.close` waits for a call that is on its way."""
_SHORTEST_WAIT = 0.01
_LONGEST_WAIT = 60.0
_MOST_EVENTS = 1000
"""Events of one turn of the loop: it reads the results of all of them before it goes on."""


class RemoteExecutor(Executor):
    """Carries launches out as jobs of a service.

    Parameters
    ----------
    backend : Backend
        The service; from now on called from this executor's thread only.
    storage : Storage
        The datastore, which can be used from several threads.
    work : Work
        What jobs are made of.
    limit : int, optional
        How many tasks at once, for a service on this machine; any number by default.
    follow : bool, default True
        Whether what tasks write is shown while they run.
    """

    elsewhere = True

    def __init__(
        self, backend: Backend, storage: Storage, work: Work, *, limit: int | None = None, follow: bool = True
    ) -> None:
        self.name = backend.name
        self.notices: list[str] = []
        self._backend = backend
        self._limit = limit
        self._in_flight = 0
        self._events: deque[Event] = deque()
        self._told: deque[str] = deque()
        flow, run = work.run.flow, work.run.run
        logs = LogReader(storage, flow, run, self._events.append, quiet=not follow)
        ends = Ends(backend, storage, flow, run, work.retries, logs, self._events.append, self._told.append)
        self._logs = logs
        self._jobs = Jobs(backend, storage, work, self._events.append, self._told.append, ends)
        self._orders: deque[Callable[[float], None]] = deque()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._stop = False
        self._detached = False
        self._wake_loop = os.pipe()
        self._wake_thread = os.pipe()
        for descriptor in (*self._wake_loop, *self._wake_thread):
            os.set_blocking(descriptor, False)
        self._closed = False

    # -- the port -------------------------------------------------------------------------------------------------

    def capacity(self) -> int | None:
        """Return None: the service has a queue of its own. On this machine, how many more it may have."""
        return None if self._limit is None else max(0, self._limit - self._in_flight)

    def submit(self, launches: Sequence[Launch]) -> None:
        """Have launches submitted: those of one step as one job, as far as the service has arrays."""
        self._in_flight += sum(max(1, launch.gang) for launch in launches)
        self._order(lambda now: self._jobs.add(launches, now))

    def adopt(self, submissions: Sequence[SubmittedJob], launches: Sequence[Launch]) -> None:
        """Take over the jobs that a runtime which is gone has submitted.

        Parameters
        ----------
        submissions : sequence of SubmittedJob
            What it recorded (`flowkit.runtime.submissions.read_submissions`); those of other services are left alone.
        launches : sequence of Launch
            What is to be carried out, as for `submit`. Where a recorded job has the attempt of a task, the job is
            watched from now on, and if it has ended, its end is told; an intent without an id is looked for by its
            name; what is left is submitted.
        """
        self._in_flight += sum(max(1, launch.gang) for launch in launches)
        self._order(lambda now: self._jobs.adopt(submissions, launches, now))

    def submitted(self) -> bool:
        """Whether the service has everything that this was given, and that is on record."""
        return not self._orders and self._jobs.all_submitted

    def file_descriptors(self) -> Sequence[int]:
        """Return the pipe that the thread writes to when it has something to tell."""
        return () if self._closed else (self._wake_loop[0],)

    def poll(self) -> list[Event]:
        """Return what the thread has told.

        Raises
        ------
        FlowkitError
            If the run has another owner by now: its jobs are left alone.
        """
        _drain(self._wake_loop[0])
        while self._told:
            self.notices.append(self._told.popleft())
        events: list[Event] = []
        while self._events and len(events) < _MOST_EVENTS:
            event = self._events.popleft()
            if isinstance(event, Ended):
                self._in_flight -= max(1, event.launch.gang)
            events.append(event)
        if self._events:
            _wake(self._wake_loop[1])
        if not events and self._error is not None:
            raise self._error
        return events

    def next_deadline(self) -> float | None:
        """Return None: the thread wakes the loop."""
        return None

    def cancel(self, *, now: bool) -> None:
        """End every launch: what waits is taken back, what runs is ended by the service.

        With `now` everything counts as ended once the service has been asked, whether it has answered or not.
        """

        def order(moment: float) -> None:
            self._jobs.cancel()
            if now:
                self._jobs.turn(moment)
                self._jobs.abandon()

        self._order(order)

    def withdraw(self) -> None:
        """Cancel what waits for a machine; what runs goes on."""
        self._order(lambda _: self._jobs.withdraw())

    def detach(self) -> int:
        """Make no call any more: jobs go on, and `adopt` takes them over in another process."""
        self._detached = self._stop = True
        _wake(self._wake_thread[1])
        return self._in_flight

    def close(self) -> None:
        """End the thread; jobs that are left go on if `detach` was called, and are cancelled otherwise."""
        if self._closed:
            return
        if self._in_flight and not self._detached and self._error is None and self._thread is not None:
            self.cancel(now=True)
        self._stop = True
        _wake(self._wake_thread[1])
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                return  # a call that does not return: the descriptors are still its own
        self._closed = True
        self._backend.close()
        for descriptor in (*self._wake_loop, *self._wake_thread):
            os.close(descriptor)

    def _order(self, order: Callable[[float], None]) -> None:
        self._orders.append(order)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"flowkit-{self.name}", daemon=True)
            self._thread.start()
        _wake(self._wake_thread[1])

    # -- the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._stop or (self._orders and not self._detached):
                self._wait(self._turn())
        except BaseException as error:  # the border of the thread: the loop raises it where it can be told
            self._error = error
            _wake(self._wake_loop[1])

    def _turn(self) -> float | None:
        now = time.monotonic()
        news = self._news
        self._news = False
        waiting = not self.submitted()
        while self._orders:
            self._orders[0](now)
            self._orders.popleft()  # only now: what is in it is not submitted before
        due = self._jobs.turn(now, news=news)
        if self._events or self._told or (waiting and self.submitted()):
            _wake(self._wake_loop[1])
        return due

    _news = False

    def _wait(self, due: float | None) -> None:
        if self._stop or self._orders:
            return
        now = time.monotonic()
        # What is overdue may stay so, with nobody there to answer: that must not keep a processor busy.
        seconds = _LONGEST_WAIT if due is None else min(_LONGEST_WAIT, max(_SHORTEST_WAIT, due - now))
        poller = select.poll()
        poller.register(self._wake_thread[0], select.POLLIN)
        told = self._backend.wait_descriptor() if due is not None else None
        if told is not None:
            poller.register(told, select.POLLIN)
        ready = poller.poll(int(seconds * 1000) + 1)
        self._news = any(descriptor == told for descriptor, _ in ready)
        _drain(self._wake_thread[0])


def _wake(descriptor: int) -> None:
    try:
        os.write(descriptor, b".")
    except BlockingIOError:
        pass  # it is full of such news already


def _drain(descriptor: int) -> None:
    try:
        while len(os.read(descriptor, 4096)) == 4096:
            pass
    except BlockingIOError:
        pass
