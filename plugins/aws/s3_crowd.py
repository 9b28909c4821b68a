"""Jobs carried out by threads, and all that fails told together."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

from flowkit.plugins.aws.s3_exceptions import FlowkitS3Exception, together

Job = Callable[[], "Iterable[Job] | None"]
"""Something to be done in a thread; it may return further jobs, which go before new ones."""


class Hopeless(Exception):
    """A failure after which no other job can work either: no credentials, no bucket, no service, no disk."""

    def __init__(self, error: FlowkitS3Exception) -> None:
        super().__init__(error)
        self.error = error


def carry_out(jobs: Iterable[Job], threads: int) -> None:
    """Carry out jobs, a few at a time, and wait for all.

    The iterable is taken from as threads come free, so that what waits is bounded. A failure does not keep the
    others from being carried out, unless it is hopeless.

    Raises
    ------
    FlowkitS3Exception
        If jobs failed; it tells of each.
    """
    waiting = iter(jobs)
    first = next(waiting, None)
    if first is None:
        return
    second = next(waiting, None)
    if second is not None:
        _Crowd(threads).run(_chain(first, second, waiting))
        return
    further = _alone(first)
    if further:
        _Crowd(min(threads, len(further))).run(iter(further))


def _alone(job: Job) -> list[Job]:
    try:
        return list(job() or ())
    except Hopeless as hopeless:
        raise hopeless.error from hopeless.error.__cause__


def _chain(first: Job, second: Job, rest: Iterator[Job]) -> Iterator[Job]:
    yield first
    yield second
    yield from rest


class _Crowd:
    def __init__(self, threads: int) -> None:
        self._count = threads
        self._tasks: SimpleQueue[tuple[int, Job] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, list[Job], BaseException | None]] = SimpleQueue()
        self._stop = False
        self._errors: list[tuple[int, FlowkitS3Exception]] = []
        self._threads: list[threading.Thread] = []

    def run(self, jobs: Iterator[Job]) -> None:
        """Carry out all jobs, and the ones that they return."""
        complete = False
        try:
            self._feed(jobs)
            complete = True
        finally:
            self._stop = self._stop or not complete
            for _ in self._threads:
                self._tasks.put(None)
            if complete:  # an interrupt, or the step's timeout, does not wait for answers
                for thread in self._threads:
                    thread.join()
        if self._errors:
            errors = [error for _, error in sorted(self._errors, key=lambda pair: pair[0])]
            raise together(errors, rest_untried=self._stop)

    def _feed(self, jobs: Iterator[Job]) -> None:
        numbered = enumerate(self._until_error(jobs))
        further: deque[tuple[int, Job]] = deque()
        active = 0
        exhausted = False
        while True:
            while active < 2 * self._count and not self._stop:
                job = further.popleft() if further else None if exhausted else next(numbered, None)
                if job is None:
                    exhausted = True
                    break
                self._start(job, active)
                active += 1
            if not active:
                return
            number, more, error = self._done.get()
            active -= 1
            further.extend((number, job) for job in more)
            self._take(number, error)
            if self._stop:
                further.clear()

    def _until_error(self, jobs: Iterator[Job]) -> Iterator[Job]:
        try:
            yield from jobs
        except FlowkitS3Exception as error:  # what was to be the next job cannot be one
            self._errors.append((sys.maxsize, error))

    def _start(self, job: tuple[int, Job], active: int) -> None:
        self._tasks.put(job)
        if len(self._threads) < self._count and active >= len(self._threads):
            thread = threading.Thread(target=self._work, name="flowkit-s3", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _take(self, number: int, error: BaseException | None) -> None:
        if error is None:
            return
        if isinstance(error, Hopeless):
            self._stop = True
            error = error.error
        if not isinstance(error, FlowkitS3Exception):
            raise error
        self._errors.append((number, error))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            number, job = task
            more: list[Job] = []
            error: BaseException | None = None
            try:
                more = [] if self._stop else list(job() or ())
            except BaseException as caught:
                error = caught
            self._done.put((number, more, error))
