"""The jobs of one run on one service: submitted, watched, started again, ended.

No thread of its own: `flowkit.runtime.remote` calls `Jobs.turn` from its one thread. What the service does not answer
is asked again after a pause; nothing here gives a job up because the service is silent.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, FlowkitError, StoreError
from flowkit.model.coordinates import TaskRef
from flowkit.model.launch import Launch
from flowkit.runtime import launch_list
from flowkit.runtime.backend import Backend, BackendError, RowState, Submission
from flowkit.runtime.executor import Ended, Event, Started
from flowkit.runtime.pacing import Backoff, Bucket
from flowkit.runtime.remote_ends import Ends, Over
from flowkit.runtime.remote_work import Group, Job, Work
from flowkit.runtime.submissions import SubmittedJob, job_name, record_intent, record_job

LINGER = 0.05
"""Seconds that a launch waits for others of its step, to be submitted together."""
SUBMISSION_RATE = 1.0
"""Jobs a second in the long run, where a job may have many rows: what comes faster goes together, in larger jobs."""
SINGLE_RATE = 20.0
"""The same where every row is a job."""
SUBMISSION_BURST = 10
SLOWEST_POLL = 30.0
"""Seconds between two looks at jobs of which nothing has been heard for long."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries of a call that does not work."""
UNREACHABLE_AFTER = 120.0
"""Seconds without an answer after which the user is told."""
START_GRACE = 600.0
"""Seconds beyond a step's timeout until the service itself ends a row: the container has to be set up first."""
_FINDS = 2
"""How often a job whose submission was not answered is looked for before it counts as never made."""


class Jobs:
    """The jobs of one run on one service.

    Parameters
    ----------
    backend : Backend
        The service.
    storage : Storage
        The datastore.
    work : Work
        What jobs are made of.
    tell : callable
        Called with each event.
    notice : callable
        Called with each line for the user.
    ends : Ends
        Decides what follows a row that has ended.
    """

    def __init__(
        self,
        backend: Backend,
        storage: Storage,
        work: Work,
        tell: Callable[[Event], None],
        notice: Callable[[str], None],
        ends: Ends,
    ) -> None:
        self._backend = backend
        self._storage = storage
        self._work = work
        self._tell = tell
        self._notice = notice
        self._ends = ends
        self._first_pause = min(1.0, backend.poll_interval)
        self._bucket = Bucket(SUBMISSION_RATE if backend.max_rows > 1 else SINGLE_RATE, SUBMISSION_BURST)
        self._groups: dict[tuple[str, int], Group] = {}
        self._drafts: list[Job] = []
        self._jobs: dict[str, Job] = {}
        self._adopting: deque[SubmittedJob] = deque()
        self._wanted: dict[tuple[TaskRef, int], Launch] = {}
        self._adopt_at = 0.0
        self._polls = Backoff(self._first_pause, LONGEST_PAUSE)
        self._poll_at = 0.0
        self._changed = 0.0
        self._ending: dict[str, bool] = {}
        self._end_at = 0.0
        self._ends_backoff = Backoff(self._first_pause, LONGEST_PAUSE)
        self._silent_since: float | None = None
        self._told_silent: str | None = None
        self._stopped = False
        self._waits: set[tuple[str, str]] = set()
        """What was told of jobs that wait, by step: each thing once."""

    # -- orders -----------------------------------------------------------------------------------------------------

    def add(self, launches: Iterable[Launch], now: float, tries: int = 0, delay: float = LINGER) -> None:
        """Have launches submitted soon, those of one step together."""
        for launch in launches:
            if launch.gang:
                job = Job(launch.step, tries, [launch], self._backoff())
                job.due = now + delay
                self._drafts.append(job)
                continue
            group = self._groups.setdefault((launch.step, tries), Group(now + delay))
            group.launches.append(launch)

    def adopt(self, submissions: Iterable[SubmittedJob], launches: Sequence[Launch], now: float) -> None:
        """Take over the jobs of a runtime that is gone; launches that are in none of them are submitted."""
        mine = [job for job in submissions if job.backend == self._backend.name]
        if not mine:
            self.add(launches, now)
            return
        self._wanted.update({(launch.ref, launch.attempt): launch for launch in launches})
        self._adopting.extend(sorted(mine, key=lambda job: job.created, reverse=True))  # the last one counts

    def withdraw(self) -> None:
        """Submit nothing any more, and cancel what waits for a machine."""
        self._stop()
        for job in self._jobs.values():
            if any(row.phase in ("queued", "starting") for row in job.rows.values()):
                self._ending.setdefault(str(job.id), False)

    def cancel(self) -> None:
        """Submit nothing any more, and end everything."""
        self._ends.cancelled = True
        self._stop()
        self._ending = dict.fromkeys(self._jobs, True)

    def abandon(self) -> None:
        """Tell that everything has ended, without waiting for the service to say so; after `cancel`."""
        when = time.time()
        for job in [*self._jobs.values(), *self._drafts]:
            for row in job.rows.values():
                self._tell(Ended(row.launch, None, when, "cancelled", started=row.told))
        self._jobs.clear()
        self._drafts.clear()

    @property
    def all_submitted(self) -> bool:
        """Whether every launch is in a job whose id is on record; may be asked by another thread."""
        return not (self._groups or self._drafts or self._adopting or self._wanted)

    @property
    def _live(self) -> int:
        return sum(len(job.rows) for job in self._jobs.values())

    def _stop(self) -> None:
        self._stopped = self._ends.stopped = True
        when = time.time()
        launches = [launch for group in self._groups.values() for launch in group.launches]
        for job in [job for job in self._drafts if job.stage in ("list", "intent", "submit")]:
            self._drafts.remove(job)
            launches += [row.launch for row in job.rows.values()]
        self._groups.clear()
        for launch in launches:
            self._tell(Ended(launch, None, when, "cancelled", started=False))
        self._end_at = 0.0

    # -- a turn -----------------------------------------------------------------------------------------------------

    def turn(self, now: float, *, news: bool = False) -> float | None:
        """Do what is due, and return when the next thing is; None where nothing is to be done.

        Parameters
        ----------
        now : float
            The time of a clock that nobody sets.
        news : bool
            The service has said that something has changed.
        """
        if self._adopting and self._adopt_at <= now:
            self._adopt_all(now)
        if self._ending and self._end_at <= now:
            self._end_jobs(now)
        self._draw_up(now)
        for job in [job for job in self._drafts if job.due <= now]:
            self._advance(job, now)
        if self._jobs and (news or self._poll_at <= now):
            self._poll(now)
        self._ends.logs.look(now)
        return self._next(now)

    def _next(self, now: float) -> float | None:
        due = [group.due for group in self._groups.values()]
        due += [job.due for job in self._drafts]
        if self._adopting:
            due.append(self._adopt_at)
        if self._ending:
            due.append(self._end_at)
        if self._jobs:
            due.append(self._poll_at)
        look = self._ends.logs.next_look(now)
        if look is not None:
            due.append(look)
        return min(due, default=None)

    # -- submitting -------------------------------------------------------------------------------------------------

    def _draw_up(self, now: float) -> None:
        """Make jobs of the launches that have waited for others long enough."""
        for key in [key for key, group in self._groups.items() if group.due <= now]:
            group = self._groups[key]
            while group.launches and self._bucket.take(now):
                rows = min(len(group.launches), self._backend.max_rows)
                launches = [group.launches.popleft() for _ in range(rows)]
                self._drafts.append(Job(*key, launches, self._backoff()))
            if group.launches:
                group.due = self._bucket.next_at(now)
            else:
                del self._groups[key]

    def _advance(self, job: Job, now: float) -> None:
        """Bring a job one or more stages further: its list, its intent, its submission, its id."""
        try:
            self._go_on(job, now)
        except BackendError as error:
            if not error.answered:
                job.stage, job.finds = "find", 0
            if error.transient or not error.answered:
                self._no_answer(error, now)
                job.due = now + job.backoff.pause()
            else:
                self._reject(job, error)
        except StoreError as error:
            self._no_answer(error, now)
            job.due = now + job.backoff.pause()
        except DataError as error:
            self._reject(job, error)

    def _go_on(self, job: Job, now: float) -> None:
        work = self._work
        flow, run = work.run.flow, work.run.run
        if job.stage == "list":
            job.key = launch_list.save(self._storage, [row.launch for row in job.rows.values()])
            job.name = job_name(flow, run, job.step, job.key, job.tries, work.salt)
            job.created = time.time()
            job.stage = "intent"
        if job.stage == "intent":
            work.check()
            # Where there is one, who had this run before may have submitted the job.
            new = record_intent(self._storage, flow, run, self._recorded(job))
            job.stage = "submit" if new else "find"
        if job.stage == "find" and not self._find(job, now):
            return
        if job.stage == "submit":
            work.check()
            job.id = self._backend.submit(self._submission(job))
            job.stage = "record"
        self._answered()
        job.backoff.reset()
        if job.stage == "record" and job.id is not None:
            if job.rows:
                self._track(job, job.id, now)
            record_job(self._storage, flow, run, job.name, job.id)
        self._drafts.remove(job)

    def _find(self, job: Job, now: float) -> bool:
        """Look for a job that may have been made; return whether its next stage can begin."""
        job.id = self._backend.find(job.name)
        if job.id is not None:
            job.stage = "record"
            return True
        job.finds += 1
        if job.finds < _FINDS:
            job.due = now + job.backoff.pause()
            return False
        launches = [row.launch for row in job.rows.values()]
        if self._stopped or job.adopted:
            if self._stopped:
                when = time.time()
                for launch in launches:
                    self._tell(Ended(launch, None, when, "cancelled", started=False))
            else:
                self.add(launches, now, job.tries)
            self._drafts.remove(job)
            return False
        job.stage = "submit"
        return True

    def _track(self, job: Job, identity: str, now: float) -> None:
        if identity in self._jobs:
            return
        self._jobs[identity] = job
        self._changed = now
        first = now if job.adopted else now + self._backend.poll_interval
        self._poll_at = first if len(self._jobs) == 1 else min(self._poll_at, first)
        if self._stopped:
            self._ending.setdefault(identity, self._ends.cancelled)

    def _submission(self, job: Job) -> Submission:
        step = self._work.steps[job.step]
        return Submission(
            name=job.name,
            step=job.step,
            rows=job.size,
            gang=job.gang,
            request=step.request,
            command=self._work.command(job.step, job.key),
            environment={**self._work.environment, **step.request.environment},
            timeout=None if step.timeout is None else step.timeout + START_GRACE,
        )

    def _recorded(self, job: Job) -> SubmittedJob:
        resources = self._work.steps[job.step].request.resources
        backend = self._backend.name
        return SubmittedJob(job.name, backend, job.step, job.key, job.size, job.gang, job.tries, job.created, resources)

    def _reject(self, job: Job, error: FlowkitError) -> None:
        self._drafts.remove(job)
        told = f"{error.headline}; {error.hint}" if error.hint else error.headline
        when = time.time()
        for row in job.rows.values():
            self._tell(Ended(row.launch, None, when, "rejected", None, told))

    def _backoff(self) -> Backoff:
        return Backoff(self._first_pause, LONGEST_PAUSE)

    # -- taking over ------------------------------------------------------------------------------------------------

    def _adopt_all(self, now: float) -> None:
        while self._adopting:
            try:
                self._adopt(self._adopting[0], now)
            except StoreError as error:
                self._no_answer(error, now)
                self._adopt_at = now + self._polls.pause()
                return
            self._adopting.popleft()
        self._polls.reset()
        if self._stopped:
            when = time.time()
            for launch in self._wanted.values():
                self._tell(Ended(launch, None, when, "cancelled", started=False))
        else:
            self.add(self._wanted.values(), now)
        self._wanted = {}

    def _adopt(self, submitted: SubmittedJob, now: float) -> None:
        if not self._wanted:
            return
        try:
            launches = launch_list.read_rows(self._storage, submitted.key, submitted.rows)
        except StoreError:
            raise
        except DataError as error:
            self._notice(f"The job {submitted.name} cannot be taken over, its tasks start again: {error.headline}")
            return
        job = Job(submitted.step, submitted.tries, launches, self._backoff())
        for index, launch in enumerate(launches):
            wanted = self._wanted.pop((launch.ref, launch.attempt), None)
            if wanted is None:
                del job.rows[index]
            else:
                job.rows[index].launch = wanted
        if not job.rows:
            return
        job.name, job.key, job.id = submitted.name, submitted.key, submitted.job
        job.gang, job.created, job.adopted = submitted.gang, submitted.created, True
        if job.id is not None:
            self._track(job, job.id, now)
        else:
            job.stage = "find"
            self._drafts.append(job)

    # -- watching ---------------------------------------------------------------------------------------------------

    def _poll(self, now: float) -> None:
        live = {name: job.size for name, job in self._jobs.items()}
        over: list[Over] = []
        try:
            for state in self._backend.states(live):
                self._take(state, over, now)
        except BackendError as error:
            self._no_answer(error, now)
            self._poll_at = now + self._polls.pause()
        else:
            self._answered()
            self._polls.reset()
            quiet = now - self._changed
            pause = max(self._backend.poll_interval, min(SLOWEST_POLL, quiet / 10 + self._live / 1000))
            self._poll_at = now + pause
        for tries, launches, delay in self._ends.settle(over, now):
            self.add(launches, now, tries, delay)

    def _take(self, state: RowState, over: list[Over], now: float) -> None:
        job = self._jobs.get(state.job)
        row = None if job is None else job.rows.get(state.row)
        if job is None or row is None:
            return
        if row.phase != state.phase:
            row.phase = state.phase
            self._changed = now
        if state.phase == "queued" and state.message and (job.step, state.message) not in self._waits:
            self._waits.add((job.step, state.message))
            self._notice(f"{row.launch.ref} waits for a machine: {state.message}")
        ran = state.phase == "succeeded" or state.cause in ("exit", "oom", "timeout")
        if (state.phase == "running" or ran) and not row.told:
            row.told = True
            self._tell(Started(row.launch, None, min(state.when, time.time())))
            if state.phase == "running":
                self._ends.logs.started(row.launch, now)
        if state.phase in ("succeeded", "failed"):
            del job.rows[state.row]
            if not job.rows:
                del self._jobs[state.job]
                self._ending.pop(state.job, None)
            over.append(Over(job.tries, row.launch, state, row.told))

    # -- ending -----------------------------------------------------------------------------------------------------

    def _end_jobs(self, now: float) -> None:
        try:
            for running in (True, False):
                names = [name for name, also in self._ending.items() if also is running]
                if names:
                    self._work.check()
                    self._backend.cancel(names, "the run is being stopped", running=running)
        except (BackendError, StoreError) as error:
            self._no_answer(error, now)
            if not isinstance(error, BackendError) or error.transient:
                self._end_at = now + self._ends_backoff.pause()
                return
            self._notice(f"Jobs could not be cancelled: {error.headline}")
        self._ending.clear()
        self._poll_at = min(self._poll_at, now + self._backend.poll_interval)
        self._changed = now

    # -- a service that does not answer -----------------------------------------------------------------------------

    def _no_answer(self, error: FlowkitError, now: float) -> None:
        """Note that a call has not worked; the user is told once, when it lasts or will not mend by itself."""
        if self._silent_since is None:
            self._silent_since = now
        lasting = isinstance(error, BackendError) and not error.transient and error.answered
        if self._told_silent is None and (lasting or now - self._silent_since >= UNREACHABLE_AFTER):
            self._told_silent = error.headline
            hint = f" ({error.hint})" if error.hint else ""
            self._notice(f"{self._backend.name} does not answer, trying on: {error.headline}{hint}")

    def _answered(self) -> None:
        if self._told_silent is not None:
            self._notice(f"{self._backend.name} answers again.")
        self._silent_since = self._told_silent = None
