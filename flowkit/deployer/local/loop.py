"""The scheduler's loop: looks at what is deployed and what has happened, decides, writes that down, starts runs.

Of several schedulers of one datastore one is active: it has the lease. The others wait, and one of them takes over when
it is gone. The lease saves work; that nothing is lost or doubled does not depend on it: what is remembered is written
by version, and a run's id is claimed once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flowkit.client.cancel import request_cancel
from flowkit.datastore.event_log import EventLog
from flowkit.datastore.layout import scheduler_lease
from flowkit.datastore.lease import Lease, LeaseLost
from flowkit.datastore.storage import Storage
from flowkit.deployer.local import starts
from flowkit.deployer.local.cron import CronTimes
from flowkit.deployer.local.ends import look, put_back
from flowkit.deployer.local.firings import (
    Decision,
    Firing,
    Happened,
    Memory,
    Plan,
    begin,
    decide,
    plan_of,
    take,
)
from flowkit.deployer.local.memories import read_memory, write_memory
from flowkit.deployer.local.sources import DATASTORE, Source, Sources, happened
from flowkit.deployer.local.work import REFUSED, TAKEN, Work, code_name
from flowkit.deployer.records import read_records
from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import Conflict, DataError, FlowkitError
from flowkit.metadata.liveness import owner_is_gone, this_process
from flowkit.settings import user_name

POLL = 1.0
"""Seconds between two looks at a folder."""
POLL_REMOTE = 10.0
"""Seconds between two looks at a datastore behind a network: each look costs calls."""
EXPIRES_AFTER = 15.0
"""Seconds without a sign of life after which another scheduler takes over; at once where its process is known to have
ended."""
TIDY_EVERY = 3_600.0

Told = Callable[[str], object]


class SchedulerLease(Lease):
    """The lease of a datastore's scheduler."""

    def place(self) -> str:
        """Return where it is."""
        return scheduler_lease()

    @property
    def what(self) -> str:
        """What is owned, in messages."""
        return "the scheduler's work"

    @classmethod
    def take(cls, storage: Storage, *, wait: bool, expires_after: float = EXPIRES_AFTER) -> SchedulerLease:
        """Become the active scheduler.

        Raises
        ------
        Conflict
            If another one is.
        """
        facts = {**this_process()._asdict(), "user": user_name()}
        lease = cls.acquire(storage, "", "", facts, take_over=wait, gone=owner_is_gone, expires_after=expires_after)
        assert isinstance(lease, cls)
        lease.renewed = time.monotonic()
        return lease

    renewed = 0.0

    def keep(self) -> None:
        """Go on being the active one; to be called at every look. It costs nothing most of the time.

        Raises
        ------
        LeaseLost
            If another one is.
        """
        if time.monotonic() - self.renewed > self.expires_after / 5:
            self.renew()
            self.renewed = time.monotonic()
        else:
            self.check()


class Scheduler:
    """One scheduler of one datastore.

    Parameters
    ----------
    storage : Storage
        The datastore.
    told : callable
        Is given a line for each firing, each end, and what goes wrong.
    poll : float, optional
        Seconds between two looks.
    most_runs : int, optional
        Runs at once, of all deployments; further ones wait. Default: 4 for each processor, at least 16.
    clock : callable
        Returns the time.
    """

    def __init__(
        self,
        storage: Storage,
        told: Told,
        *,
        poll: float | None = None,
        most_runs: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._told = told
        self.poll = poll or (POLL_REMOTE if storage.remote else POLL)
        self._clock = clock
        self._expires_after = max(EXPIRES_AFTER, 3 * self.poll)
        self._sources = Sources(storage, lambda line: self._say(line))
        self._work = Work(storage)
        self._lease: SchedulerLease | None = None
        self._troubles: dict[str, str] = {}
        self._asked: set[str] = set()
        self._failed: dict[str, starts.Failure] = {}
        self._next: dict[str, tuple[Any, float | None]] = {}
        self._most_runs = most_runs or max(16, 4 * (os.cpu_count() or 1))
        self._going: dict[str, int] = {}
        self._tidied = 0.0
        self._idle = False

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(
        self, stop: threading.Event, ready: Callable[[bool], object] | None = None, *, until_idle: bool = False
    ) -> None:
        """Look again and again until told to stop; runs that go on are left to themselves.

        Parameters
        ----------
        stop : threading.Event
        ready : callable, optional
            Is told once whether this one is active: False while another one is.
        until_idle : bool, default False
            Stop by itself when nothing is due and no run goes on.
        """
        waited, idle = False, 0
        try:
            while not stop.is_set():
                if self._lease is None and not self._become_active(stop):
                    if not waited and ready is not None and "lease" not in self._troubles:
                        ready(False)
                        waited = True
                    stop.wait(min(self.poll, self._expires_after / 5))
                    continue
                if ready is not None:
                    ready(True)
                    ready = None
                self._guarded_tick()
                # What the last run's end starts may have been looked at before that end was.
                idle = idle + 1 if self._idle else 0
                if until_idle and idle >= 2:
                    return
                stop.wait(self.poll)
        finally:
            self.close()

    def once(self) -> None:
        """Look once: what is due is started.

        Raises
        ------
        Conflict
            If another scheduler is at work.
        """
        try:
            try:
                self._lease = SchedulerLease.take(self._storage, wait=True, expires_after=self._expires_after)
            except Conflict as error:
                raise Conflict(
                    f"another scheduler is at work: {error.headline}", "it starts what is due: there is nothing to do"
                ) from error
            self.tick()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of everything; runs that go on are left to themselves."""
        self._work.let_go()
        self._sources.close()
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                lease.release()
            except FlowkitError as error:
                self._say(f"The next scheduler has to wait: {error.headline}")

    def _become_active(self, stop: threading.Event) -> bool:
        try:
            wait = not stop.is_set()
            self._lease = SchedulerLease.take(self._storage, wait=wait, expires_after=self._expires_after)
        except Conflict:
            return False
        except FlowkitError as error:
            self._trouble("lease", error)
            return False
        self._well("lease")
        return True

    def _guarded_tick(self) -> None:
        try:
            self.tick()
            self._well("")
        except LeaseLost as error:
            self._say(f"{error.headline}: another scheduler is at work, this one waits.")
            self._lease = None
        except (FlowkitError, OSError) as error:
            self._trouble("", error)

    # -- one look --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look at everything once.

        Raises
        ------
        LeaseLost
            If another scheduler has taken over.
        FlowkitError
            If the datastore does not answer.
        """
        if self._lease is not None:
            self._lease.keep()
        self._reap()
        self._idle = True
        undecided: set[str] = set()
        damaged: list[str] = []
        records = list(read_records(self._storage, "local", damaged.append))
        for name in damaged:
            self._trouble(name, DataError("the record of this deployment is damaged", "deploy the flow again"))
        for record in records:
            try:
                undecided.update(self._look_after(record))
                self._well(record.name)
            except LeaseLost:
                raise
            except Exception as error:  # the border to one deployment, whose record may hold anything
                self._idle = False
                self._trouble(record.name, error)
        names = {record.name for record in records}
        self._going = {name: count for name, count in self._going.items() if name in names}
        self._failed = {run: failure for run, failure in self._failed.items() if run in undecided}
        if self._clock() - self._tidied > TIDY_EVERY:
            self._tidied = self._clock()
            self._work.tidy_code({code_name(record) for record in records})
            self._trim_events(records)

    def _trim_events(self, records: list[DeploymentRecord]) -> None:
        """Remove old events from the datastore that everybody who waits for some has read."""
        log = EventLog(self._storage)
        read = [log.last_emitted()]
        for record in records:
            memory, _ = read_memory(self._storage, record.name)
            if memory is not None and memory.source == DATASTORE and any(each.flow is None for each in record.events):
                read.append(memory.read or 0)
        log.trim_emitted(min(read))

    def _look_after(self, record: DeploymentRecord) -> list[str]:
        """Do what is to be done for one deployment, and return the runs that are to begin."""
        if self._lease is not None:
            self._lease.check()
        source = self._sources.of(record.metadata)
        plan, now = plan_of(record), self._clock()
        before, version = read_memory(self._storage, record.name)
        memory = begin(plan, before, source.name, source.newest, now)
        memory, notes = self._look_at_runs(plan, source, memory, now)
        for rule in (self._given_up, self._scheduled):
            decision = rule(plan, memory, now)
            memory, notes = decision.memory, [*notes, *decision.notes]
        memory, more = self._take_events(plan, source, memory, now)
        notes += more
        room = self._most_runs - sum(count for name, count in self._going.items() if name != record.name)
        memory, chosen = starts.ready(memory, now, self._work.alive, max(0, room - _going(memory)))
        self._going[record.name] = _going(memory)
        if memory != before and not write_memory(self._storage, record.name, memory, version):
            self._idle = False
            return [each.run for each in memory.decided]  # somebody else has written meanwhile: looked at again
        self._idle = self._idle and not (memory.active or memory.decided or notes)
        for note in notes:
            self._say(note)
        for firing in chosen:
            self._start(record, firing)
        for run in (before.active if before is not None else {}).keys() - memory.active.keys():
            self._asked.discard(run)
            self._work.tidy(record.name, run)
        self._stop_others(plan, source, memory, now)
        return [each.run for each in memory.decided]

    def _given_up(self, plan: Plan, memory: Memory, now: float) -> Decision:
        return starts.given_up(memory, self._failed, now, self._work.alive)

    def _scheduled(self, plan: Plan, memory: Memory, now: float) -> Decision:
        """Look at the schedule, but only when something is due by it."""
        if plan.schedule is None:
            return Decision(memory)
        known = (plan.schedule, plan.timezone, memory.looked)
        if self._next.get(plan.name, (None, 0.0))[0] != known:
            due = CronTimes(plan.schedule, plan.timezone).next(memory.looked)
            self._next[plan.name] = (known, due)
        due = self._next[plan.name][1]
        return decide(plan, memory, now) if due is not None and due <= now else Decision(memory)

    def _look_at_runs(self, plan: Plan, source: Source, memory: Memory, now: float) -> tuple[Memory, list[str]]:
        """Find out which runs have begun, and which are over."""
        begun = {each.run for each in memory.decided if each.tries and source.has_begun(plan.flow, each.run)}
        for run in begun:
            self._failed.pop(run, None)
        memory = starts.began(memory, begun, now)
        notes = []
        over = set()
        for run, started in memory.active.items():
            end = source.ended(plan.flow, run, started)
            if end is not None:
                state, reason = end
                notes.append(f"{plan.flow}/{run} {_ended(state)}" + (f": {reason}" if reason else ""))
                over.add(run)
        return starts.over(memory, over), notes

    def _take_events(self, plan: Plan, source: Source, memory: Memory, now: float) -> tuple[Memory, list[str]]:
        """Look at what has happened: first the events, then the ends of runs."""
        if not plan.events:
            return memory, []
        emitted = source.after(memory.read or 0) if any(each.flow is None for each in plan.events) else []
        ends: list[Happened] = []
        flows = dict(memory.flows)
        for event in plan.events:
            if event.flow is not None:
                flows[event.name], found = look(
                    plan, event, flows[event.name], source.runs_since(event, flows[event.name]), now
                )
                ends += found
        memory = replace(memory, flows=flows)
        together = [*happened(emitted), *ends]
        decision, count = take(plan, memory, together, now)
        memory = decision.memory
        if emitted and count:
            memory = replace(memory, read=emitted[min(count, len(emitted)) - 1].number)
        left: dict[str, list[str]] = {}
        for end in together[max(count, len(emitted)) :]:
            left.setdefault(end.name, []).append(end.id.partition("/")[2])
        for name, runs in left.items():
            memory = replace(memory, flows={**memory.flows, name: put_back(memory.flows[name], runs)})
        return memory, list(decision.notes)

    # -- processes -------------------------------------------------------------------------------------------------

    def _start(self, record: DeploymentRecord, firing: Firing) -> None:
        try:
            self._work.start(record, firing)
        except (FlowkitError, OSError, ValueError, TypeError) as error:
            words = error.headline if isinstance(error, FlowkitError) else f"{type(error).__name__}: {error}"
            self._note_failure(firing.run, words, refused=False)
            self._say(f"{record.flow}/{firing.run} cannot be started: {words}")
            return
        again = f", for the {firing.tries}. time" if firing.tries > 1 else ""
        self._say(f"{record.flow}/{firing.run} started ({_why(firing)}){again}")

    def _reap(self) -> None:
        """Take note of processes that have ended; what became of their runs is in the datastore."""
        for run, (name, code) in self._work.ended().items():
            if code == 0 or code == TAKEN:
                continue
            words = self._work.last_words(name, run) or f"exit code {code}"
            self._note_failure(run, words, refused=code in REFUSED)

    def _note_failure(self, run: str, words: str, *, refused: bool) -> None:
        """Note that a run did not begin; of one that has, nothing comes of it."""
        before = self._failed.get(run)
        self._failed[run] = starts.Failure(before.times + 1 if before else 1, words, refused)

    def _stop_others(self, plan: Plan, source: Source, memory: Memory, now: float) -> None:
        """Ask runs to stop that are to be replaced, or have taken too long."""
        replaced = {run for each in memory.decided for run in each.after if run in memory.active}
        late = set()
        if plan.timeout is not None:
            for run, noticed in memory.active.items():
                known = source.record(plan.flow, run)
                began = min(noticed, known.created) if known is not None else noticed
                if now - began > plan.timeout:
                    late.add(run)
        for run in sorted((replaced | late) - self._asked):
            known = source.record(plan.flow, run)
            if known is None:
                continue
            self._asked.add(run)
            try:
                request_cancel(self._storage, known)
            except Conflict:
                continue  # it is over by now
            why = "another one replaces it" if run in replaced else f"it has taken more than {plan.timeout:g} s"
            self._say(f"{plan.flow}/{run} is being stopped: {why}")

    # -- words -----------------------------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        # Names of events and what processes said may be anybody's text.
        self._told("".join(char if char.isprintable() else "?" for char in line))

    def _trouble(self, what: str, error: Exception) -> None:
        """Say what does not work, once until it does again or something else does not."""
        if isinstance(error, FlowkitError):
            text = error.headline + (f" ({error.hint})" if error.hint else "")
        else:
            text = f"{type(error).__name__}: {error}"
        if self._troubles.get(what) != text:
            self._troubles[what] = text
            self._say(f"{what}: {text}" if what and what != "lease" else text)

    def _well(self, what: str) -> None:
        if self._troubles.pop(what, None) is not None:
            self._say(f"{what or 'the datastore'}: works again")


def active_scheduler(storage: Storage) -> Mapping[str, Any] | None:
    """Return the facts of the scheduler that is at work; None where none is, as far as anybody can tell."""
    from flowkit.datastore.lease import holder_at

    holder = holder_at(storage, scheduler_lease())
    if holder is None:
        return None
    gone = owner_is_gone(holder.owner)
    if gone is None:
        gone = time.time() > holder.until
    return None if gone else holder.owner


def _going(memory: Memory) -> int:
    """Return how many runs go on, or may."""
    return len(memory.active) + sum(1 for each in memory.decided if each.tries)


def _ended(state: str) -> str:
    return {"cancelled": "was cancelled", "lost": "is lost", "deleted": "was deleted"}.get(state, state)


def _why(firing: Firing) -> str:
    if firing.why == "schedule":
        return f"due {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(firing.when))}"
    if firing.events:
        return ", ".join(f"{kind} {name}" if kind == "event" else run for name, run, _, kind in firing.events)
    return "by hand"
