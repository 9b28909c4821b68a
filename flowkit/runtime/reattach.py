"""Going on with a run whose runtime is gone: what it had begun is told to a new scheduler as if it happened now.

What was committed is finished at once (as clones are, `flowkit.runtime.resume`). Of everything else that was begun
the datastore tells how each attempt ended; the scheduler is told so when it launches that attempt, and decides what
follows by the same rules as ever. An attempt that was submitted to a service and has no end is picked up there. One
that ran on the machine of the runtime ended with it: ``interrupted``, which is always followed by another attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flowkit.datastore.layout import launches_folder
from flowkit.datastore.manifests import attempts, read_failure, write_failure
from flowkit.datastore.many import mapped_over
from flowkit.datastore.runs import list_steps, list_tasks
from flowkit.datastore.sealed import Damaged
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import Attempts
from flowkit.exceptions import DataError, StoreError
from flowkit.metadata.records import TaskRecord
from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import AttemptKind, Launch
from flowkit.model.manifest import Failure
from flowkit.runtime import retries
from flowkit.runtime.decisions import Decision
from flowkit.runtime.executor import Executor
from flowkit.runtime.gang import nodes_of
from flowkit.runtime.retries import INTERRUPTED
from flowkit.runtime.scheduler import Scheduler
from flowkit.runtime.start import PARAMETERS
from flowkit.runtime.submissions import SubmittedJob

_MOST_ATTEMPTS = 10_000
"""A folder with a higher number is none of an attempt."""

Report = Callable[[Launch, Failure, Decision, float], None]


class Past:
    """What a runtime that is gone left of the tasks that it had begun and not finished.

    Parameters
    ----------
    failures : mapping of (step, task id) to sequence of Failure
        How the attempts ended, by their numbers.
    jobs : sequence of SubmittedJob
        What it had submitted to services.
    rows : mapping of (step, task id, attempt) to int
        Which attempts were submitted, with the place of the last such job in `jobs`.
    """

    def __init__(
        self,
        failures: Mapping[tuple[str, str], Sequence[Failure]],
        jobs: Sequence[SubmittedJob] = (),
        rows: Mapping[tuple[str, str, int], int] | None = None,
    ) -> None:
        self._failures = failures
        self._jobs = jobs
        self._rows = rows or {}

    def failure(self, launch: Launch) -> Failure | None:
        """Return how an attempt ended; None for one that has not, or never began."""
        found = None
        for ref in nodes_of(launch):
            told = self._failures.get((ref.step, str(ref.coordinates)), ())
            if launch.attempt < len(told):
                found = told[launch.attempt]
                if found.kind != INTERRUPTED:  # of a gang: what one of its nodes said counts
                    return found
        return found

    def submitted(self, launch: Launch) -> bool:
        """Whether an attempt was submitted to a service."""
        return (launch.step, str(launch.coordinates), launch.attempt) in self._rows

    def jobs_of(self, launches: Iterable[Launch]) -> list[SubmittedJob]:
        """Return the jobs that have one of the launches."""
        places = {self._rows[launch.step, str(launch.coordinates), launch.attempt] for launch in launches}
        return [self._jobs[place] for place in sorted(places)]

    def __str__(self) -> str:
        known = {(step, task) for step, task, _ in self._rows}
        return f"{len(known | self._failures.keys()):,}"

    def records(self, flow: str, run: str) -> list[TaskRecord]:
        """Return how the tasks stand whose last attempt was interrupted, which an index may show as running."""
        return [
            TaskRecord(flow, run, step, task, "pending", len(failures) - 1, reason=failures[-1].message)
            for (step, task), failures in self._failures.items()
            if failures[-1].kind == INTERRUPTED
        ]

    def failed(self, policies: Mapping[str, Attempts]) -> bool:
        """Whether a task had failed for good, so that the run had failed already."""
        return any(
            _is_final(policies.get(step, retries.ONCE), step, failures)
            for (step, _), failures in self._failures.items()
        )


def read_past(
    storage: Storage,
    flow: str,
    run: str,
    done: Callable[[str, str], bool],
    problem: Callable[[str], None],
    started: Mapping[tuple[str, str], int] | None = None,
) -> Past:
    """Read what a run has begun and not finished, and record the end of the attempts that died with its runtime.

    To be called by the owner of the run only.

    Parameters
    ----------
    storage : Storage
        The datastore.
    flow, run : str
        The run.
    done : callable
        ``done(step, task)`` tells which tasks have committed.
    problem : callable
        Is given a line for each thing that cannot be read.
    started : mapping of (step, task id) to int, optional
        Attempts that an index knows to have started: one that has written nothing has left no trace in the datastore.
    """
    jobs, rows = _submitted(storage, flow, run, done, problem)
    newest = {place: attempt for place, attempt in (started or {}).items() if not done(*place)}
    for step, task, attempt in rows:
        newest[step, task] = max(attempt, newest.get((step, task), -1))
    reader = _Attempts(storage, flow, run, newest, rows)
    begun = (place for place in dict.fromkeys((*newest, *_begun(storage, flow, run))) if not done(*place))
    failures = {place: told for place, told in mapped_over(storage, reader.read, begun) if told}
    return Past(failures, jobs, rows)


class _Attempts:
    """Reads how the attempts of tasks ended."""

    def __init__(
        self,
        storage: Storage,
        flow: str,
        run: str,
        newest: Mapping[tuple[str, str], int],
        rows: Container[tuple[str, str, int]],
    ) -> None:
        self._storage = storage
        self._run = (flow, run)
        self._newest = newest
        self._rows = rows

    def read(self, place: tuple[str, str]) -> tuple[tuple[str, str], list[Failure]]:
        """Return a task and how its attempts ended, but for one that may be running elsewhere."""
        told: list[Failure] = []
        last: int | None = None
        for attempt in range(_MOST_ATTEMPTS):
            found = self._failure(place, attempt)
            if found is None:
                if last is None:  # only now: of most tasks it is known without listing their folders
                    last = self._last(place)
                if attempt > last or (attempt == last and (*place, attempt) in self._rows):
                    break
                found = self._interrupt(place, attempt)
            told.append(found)
        return place, told

    def _last(self, place: tuple[str, str]) -> int:
        newest = self._newest.get(place, -1)
        if (*place, newest) in self._rows:
            return newest
        tried = attempts(self._storage, *self._run, *place)
        return max((attempt for attempt in tried if attempt < _MOST_ATTEMPTS), default=newest)

    def _failure(self, place: tuple[str, str], attempt: int) -> Failure | None:
        try:
            found = read_failure(self._storage, *self._run, *place, attempt)
        except Damaged:  # it has ended, and nobody knows how
            return Failure(INTERRUPTED, "how it ended cannot be read", attempt=attempt)
        # What was ended because the run was is to be done after all.
        return replace(found, kind=INTERRUPTED) if found is not None and found.kind == "cancelled" else found

    def _interrupt(self, place: tuple[str, str], attempt: int) -> Failure:
        failure = Failure(INTERRUPTED, "its runtime ended while it ran", attempt=attempt, ended=time.time())
        write_failure(self._storage, *self._run, *place, failure)
        return failure


def _begun(storage: Storage, flow: str, run: str) -> Iterator[tuple[str, str]]:
    for step in list_steps(storage, flow, run):
        if step != PARAMETERS[0]:
            for task in list_tasks(storage, flow, run, step):
                yield step, task


def _submitted(
    storage: Storage, flow: str, run: str, done: Callable[[str, str], bool], problem: Callable[[str], None]
) -> tuple[list[SubmittedJob], dict[tuple[str, str, int], int]]:
    """Return what was submitted; little is loaded where nothing was."""
    rows: dict[tuple[str, str, int], int] = {}
    if next(iter(storage.children(launches_folder(flow, run))), None) is None:
        return [], rows
    from flowkit.runtime.launch_list import read_rows
    from flowkit.runtime.submissions import read_submissions

    def read(job: SubmittedJob) -> list[Launch]:
        try:
            return read_rows(storage, job.key, job.rows)
        except StoreError:
            raise
        except DataError as error:
            problem(f"The launches of the job {job.name} cannot be read, it is left alone: {error.headline}")
            return []

    # Of jobs that have the same launch the one counts that came last.
    jobs = sorted(read_submissions(storage, flow, run), key=lambda job: (job.tries, job.created))
    for place, launches in enumerate(mapped_over(storage, read, jobs)):
        for launch in launches:
            for ref in nodes_of(launch):
                task = str(ref.coordinates)
                if not done(ref.step, task):
                    rows[ref.step, task, launch.attempt] = place
    return jobs, rows


class CatchUp:
    """Tells a scheduler of the past, whenever it launches what happened then.

    Parameters
    ----------
    past : Past
        What a runtime that is gone left.
    scheduler : Scheduler
        The new one.
    policies : mapping of str to Attempts
        As the scheduler has them.
    stops : bool, default True
        Whether a task that failed for good keeps others from starting (not so with ``--keep-going``).
    """

    def __init__(
        self, past: Past, scheduler: Scheduler, policies: Mapping[str, Attempts], *, stops: bool = True
    ) -> None:
        self._past = past
        self._scheduler = scheduler
        self._policies = policies
        self._stops = stops
        self.report: Report | None = None
        """``report(launch, failure, decision, now)`` is told of tasks that had failed for good."""

    def begin(self, executors: Mapping[str, Executor], *, now: float) -> None:
        """Where the run had failed already, pick up what runs elsewhere and start nothing; to be called once.

        Parameters
        ----------
        executors : mapping of str to Executor
            By name.
        now : float
            The time.
        """
        if not self._stops or not self._past.failed(self._policies):
            return
        scheduler, unwanted, final = self._scheduler, list[Launch](), list[tuple[Launch, Failure]]()
        while taken := {name: launches for name in executors if (launches := scheduler.take(name, None, now))}:
            for name, launches in taken.items():
                fresh = []
                for launch in launches:
                    failure = self._past.failure(launch)
                    if failure is None:
                        fresh.append(launch)
                    elif self._is_final(launch, failure):
                        final.append((launch, failure))
                    else:
                        scheduler.failed(launch.ref, launch.attempt, failure, failure.ended or now)
                known = [launch for launch in fresh if self._past.submitted(launch)]
                unwanted += [launch for launch in fresh if not self._past.submitted(launch)]
                self._adopt(executors[name], known)
        for launch, failure in final:
            self._tell(launch, failure, now)
        for launch in unwanted:
            cancelled = Failure("cancelled", "the run had failed already", attempt=launch.attempt)
            scheduler.failed(launch.ref, launch.attempt, cancelled, now)

    def take(self, executor: Executor, launches: Sequence[Launch], now: float) -> list[Launch]:
        """Return those launches that are new; of the others the scheduler or the executor has been told."""
        fresh, known = [], []
        for launch in launches:
            failure = self._past.failure(launch)
            if failure is not None:
                self._tell(launch, failure, now)
            elif self._past.submitted(launch):
                known.append(launch)
            else:
                fresh.append(launch)
        self._adopt(executor, known)
        return fresh

    def _adopt(self, executor: Executor, launches: Sequence[Launch]) -> None:
        if launches:
            executor.adopt(self._past.jobs_of(launches), launches)

    def _tell(self, launch: Launch, failure: Failure, now: float) -> None:
        decision = self._scheduler.failed(launch.ref, launch.attempt, failure, failure.ended or now)
        if decision.action not in ("retry", "fallback") and self.report is not None:
            self.report(launch, failure, decision, now)

    def _is_final(self, launch: Launch, failure: Failure) -> bool:
        policy = self._policies.get(launch.step, retries.ONCE)
        return retries.decide(policy, launch, failure).kind is None


def _is_final(policy: Attempts, step: str, failures: Sequence[Failure]) -> bool:
    kind: AttemptKind = "user"
    for attempt, failure in enumerate(failures):
        launch = Launch(step, Coordinates(()), attempt=attempt, kind=kind)
        follows = retries.decide(policy, launch, failure).kind
        if follows is None:
            return True
        kind = follows
    return False
