"""The loop between scheduler and executors: it carries decisions out and takes note of what happens.

One thread. A turn of the loop waits until an executor has something to tell or something is due, reads the manifest
of every task that ended (the manifest is the commit, not the exit status), tells the scheduler, writes the records
of the turn in one transaction, and hands new launches to the executors.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flowkit.datastore.layout import cancel_file
from flowkit.datastore.manifests import read_failure, read_manifest, write_failure
from flowkit.datastore.runs import write_end
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import Conflict, FlowkitError, StoreError
from flowkit.metadata.records import Record, RunRecord, TaskRecord
from flowkit.metadata.store import MetadataStore
from flowkit.model.coordinates import TaskRef
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure, Manifest
from flowkit.runtime.decisions import Decision, Notice
from flowkit.runtime.executor import Ended, Executor, Output, Started
from flowkit.runtime.failures import silent_failure as silent_failure
from flowkit.runtime.gang import nodes_of, publish
from flowkit.runtime.reporter import Reporter, RunFailure
from flowkit.runtime.run_index import RunIndex
from flowkit.runtime.scheduler import Scheduler

if TYPE_CHECKING:
    from flowkit.runtime.ownership import Ownership
    from flowkit.runtime.reattach import CatchUp

LOOP_PATIENCE = 0.2
"""Seconds that one turn waits for an index that somebody else holds locked; its records are written later."""
CANCEL_CHECK = 1.0
"""Seconds between two looks for a request to cancel."""
REMOTE_CANCEL_CHECK = 5.0
"""The same where each look is a call over a network."""
DETACHED = "left with --detach"
"""Why a run was left that its user asked to leave."""
_HANGUP = getattr(signal, "SIGHUP", None)
"""What a process gets when its terminal is closed; not on Windows."""


class Runtime:
    """Runs one run to its end.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore
        The index of runs; where it does not work for a while, its records are kept and written later.
    record : RunRecord
        The run.
    scheduler : Scheduler
        Decides; not started yet.
    executors : mapping of str to Executor
        By name, every one that the scheduler asks for.
    reporter : Reporter
        Told what happens.
    ownership : Ownership, optional
        Of a run that has work elsewhere: nothing is done while nobody knows that the run is ours.
    catch_up : CatchUp, optional
        What an earlier runtime of this run left, which is gone.
    detach : bool, default False
        Leave the run as soon as all that is under way goes on elsewhere.
    answers : int, optional
        The descriptor of a terminal: Ctrl-C asks there, once, what is to become of the work elsewhere.
    """

    def __init__(
        self,
        storage: Storage,
        store: MetadataStore,
        record: RunRecord,
        scheduler: Scheduler,
        executors: Mapping[str, Executor],
        reporter: Reporter,
        *,
        ownership: Ownership | None = None,
        catch_up: CatchUp | None = None,
        detach: bool = False,
        answers: int | None = None,
    ) -> None:
        self.storage = storage
        self.store = store
        self.record = record
        self.scheduler = scheduler
        self.executors = dict(executors)
        self.reporter = reporter
        self.outcome = RunFailure()
        self._index = RunIndex(store, reporter.notice)
        self._results: dict[TaskRef, Manifest | None] = {}
        self._signals: list[int] = []
        self._stopping: str | None = None
        self._withdrawn = False
        self._hung_up = False
        self._ownership = ownership
        self._catch_up = catch_up
        self._detach = detach
        self._answers = answers
        self._asking = False
        self.begun: Callable[[], None] | None = None
        """Called when the index knows the run and signals stop it, before anything starts."""
        self.left: str | None = None
        """Why this runtime has let go of the run while it goes on elsewhere."""
        # What is waited for, a retry's pause included, goes by a clock that nobody sets.
        self._ahead = time.time() - time.monotonic()
        self._beat_at = self._now() + store.heartbeat_interval
        self._look_every = REMOTE_CANCEL_CHECK if storage.remote else CANCEL_CHECK
        self._look_at = self._now() + self._look_every

    def run(self) -> str:
        """Run everything and return the run's final state; ``detached`` where it was left while it goes on elsewhere.

        Raises
        ------
        Conflict
            If somebody else has taken the run over. Nothing of it is written then, and its jobs are left alone.
        """
        self._index.begin(self.record)
        # Another process may hold the index locked for a while: the loop does not wait for it, the last flush does.
        patience, self.store.patience = self.store.patience, LOOP_PATIENCE
        wakeup = self._catch_signals()
        try:
            self._loop(wakeup)
        except Conflict:
            self._give_up()
            raise
        finally:
            self._release_signals(wakeup)
            self.store.patience = patience
        try:
            return self._end() if self.left is None else self._leave(self.left)
        except Conflict:
            self._give_up()
            raise

    def _loop(self, wakeup: int) -> None:
        self._notices(self.scheduler.start())
        self._index.flush()  # before anything starts: a run that has results is one that the index knows
        if self.begun is not None:
            self.begun()
        if self._catch_up is not None:
            self._catch_up.report = self._report_failure
            self._catch_up.begin(self.executors, now=self._now())
        while self.scheduler.state == "running" and self.left is None:
            if not self._is_ours(wakeup):
                continue
            self._launch()
            self._index.flush()
            if self._detach and self._can_leave():
                self.left = DETACHED
                break
            self._wait(wakeup)
            self._act_on_signals()
            if not self._is_ours(wakeup):
                continue
            for executor in self.executors.values():
                events = executor.poll()
                self._read_ahead(events)
                for event in events:
                    self._take_event(event)
                while executor.notices:
                    self.reporter.notice(executor.notices.pop(0))
            if self.scheduler.should_cancel and self._stopping is None:
                self._stop("another task failed", now=False)
            elif self.scheduler.stopped and not self._withdrawn:
                self._withdraw()
            self._look_around()

    # -- one turn ---------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def _launch(self) -> None:
        now = self._now()
        for name, executor in self.executors.items():
            if not self.scheduler.waiting(name) and self.scheduler.next_wakeup(now) is None:
                continue
            room = executor.capacity()
            if room is not None and room <= 0:
                continue
            launches = self.scheduler.take(name, room, now)
            if self._catch_up is not None:
                launches = self._catch_up.take(executor, launches, now)
            if launches:
                executor.submit(launches)

    def _wait(self, wakeup: int) -> None:
        now = self._now()
        due = [self._beat_at, self._look_at]
        patience = self.reporter.turn(self.scheduler.counts)
        if patience is not None:
            due.append(now + patience)
        wake = self.scheduler.next_wakeup(now)
        if wake is not None:
            due.append(wake)
        ready: list[int] = [wakeup]
        if self._ownership is not None and self._ownership.due is not None:
            due.append(self._ownership.due)
        if self._asking and self._answers is not None:
            ready.append(self._answers)
        for executor in self.executors.values():
            deadline = executor.next_deadline()
            if deadline is not None:
                due.append(deadline - time.time() + now)
            ready += executor.file_descriptors()
        poller = select.poll()
        for descriptor in ready:
            poller.register(descriptor, select.POLLIN)
        # Rounded up: a deadline that is half a millisecond away must not make the loop spin.
        for descriptor, _ in poller.poll(max(0, int((min(due) - now) * 1000) + 1)):
            if descriptor == wakeup:
                os.read(wakeup, 512)
            elif self._asking and descriptor == self._answers:
                self._hear_answer(descriptor)

    def _take_event(self, event: Any) -> None:
        if self._ownership is not None:
            self._ownership.keep(self._now())  # there may be thousands of them, each with a result to read
        if isinstance(event, Output):
            self.reporter.line(event.launch.ref, event.stream, event.text, event.when)
        elif isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Ended):
            self._ended(event)

    def _look_around(self) -> None:
        now = self._now()
        if now >= self._beat_at:
            self._beat_at = now + self.store.heartbeat_interval
            self._index.heartbeat(self.record.flow, self.record.run, time.time())
        if now >= self._look_at:
            self._look_at = now + self._look_every
            if self._stopping is None:
                request = self._cancel_request()
                if request is not None:
                    self._stop(request, now=False)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _started(self, event: Started) -> None:
        launch = event.launch
        self.reporter.task_started(launch.ref, launch.attempt, launch.kind == "fallback", event.pid, event.when)
        for ref in nodes_of(launch):
            self._record(ref, "running", launch.attempt, started=event.when, pid=event.pid)

    def _ended(self, event: Ended) -> None:
        launch = event.launch
        manifest = self._read_result(launch)
        if manifest is not None:
            for ref in nodes_of(launch):
                self._record(ref, "succeeded", manifest.attempt, manifest.started, manifest.ended)
            self._add_outputs(manifest, launch)
            self.reporter.task_succeeded(launch.ref, manifest)
            self._notices(self.scheduler.finished(launch.ref, launch.attempt, manifest.transition, self._now()))
            return
        failure = self._failure(event)
        now = self._now()
        decision = self.scheduler.failed(launch.ref, launch.attempt, failure, now)
        self._report_failure(launch, failure, decision, now)

    def _read_ahead(self, events: Sequence[Any]) -> None:
        """Read the results of many tasks at once, where each read is a call over a network."""
        refs = [event.launch.ref for event in events if isinstance(event, Ended)] if self.storage.remote else []
        if len(refs) > 1:
            from flowkit.datastore.many import mapped_over

            for ref, found in zip(refs, mapped_over(self.storage, self._try_to_read, refs), strict=True):
                self._results.update({} if isinstance(found, FlowkitError) else {ref: found})

    def _try_to_read(self, ref: TaskRef) -> Manifest | FlowkitError | None:
        try:
            return read_manifest(self.storage, self.record.flow, self.record.run, ref.step, str(ref.coordinates))
        except FlowkitError as error:
            return error  # it comes up again where the result is used

    def _read_result(self, launch: Launch) -> Manifest | None:
        flow, run = self.record.flow, self.record.run
        if launch.ref in self._results:
            manifest = self._results.pop(launch.ref)
        else:
            manifest = read_manifest(self.storage, flow, run, launch.step, str(launch.coordinates))
        if manifest is not None and manifest.gang:
            # The control node may have died after its commit and before it gave the others theirs.
            publish(self.storage, manifest)
        return manifest

    def _failure(self, event: Ended) -> Failure:
        """What the attempt recorded of its end, or what its process tells, which is recorded then."""
        launch = event.launch
        flow, run = self.record.flow, self.record.run
        if event.reason == "cancelled" and not event.started:
            return silent_failure(event, stopping=self._stopping)  # thousands may end so, and none has left a trace
        found = event.failure or self._recorded_failure(launch)
        if found is not None and event.reason != "timeout":
            return replace(found, kind="cancelled") if self._stopping and found.kind != "error" else found
        failure = silent_failure(event, stopping=self._stopping)
        try:
            write_failure(self.storage, flow, run, launch.step, str(launch.coordinates), failure)
        except StoreError as error:
            # A full disk, say, of which the attempt itself may have died: this run still knows how it ended.
            return replace(failure, message=f"{failure.message}; and {error.headline}")
        return failure

    def _recorded_failure(self, launch: Launch) -> Failure | None:
        flow, run = self.record.flow, self.record.run
        for ref in nodes_of(launch):
            found = read_failure(self.storage, flow, run, ref.step, str(ref.coordinates), launch.attempt)
            if found is not None:
                return found
        return None

    def _report_failure(self, launch: Launch, failure: Failure, decision: Decision, now: float) -> None:
        if decision.action == "ignored":
            return
        again = decision.action if decision.action in ("retry", "fallback") else None
        wait = max(0.0, decision.at - now) if decision.at is not None else None
        state = "pending" if again else "cancelled" if decision.action == "cancelled" else "failed"
        for ref in nodes_of(launch):
            self._record(ref, state, launch.attempt, failure.started or None, failure.ended or now, failure.message)
        if decision.action == "failed":
            self.outcome.failures.append((launch.ref, failure))
        self.reporter.task_failed(launch.ref, failure, wait, again)

    def _notices(self, notices: list[Notice]) -> None:
        for notice in notices:
            self.reporter.notice(notice.text)
            if notice.failure is not None:
                self.outcome.failures.append((notice.ref, notice.failure))
                self._record(notice.ref, "failed", 0, None, time.time(), notice.failure.message)

    def _record(
        self,
        ref: TaskRef,
        state: Any,
        attempt: int,
        started: float | None = None,
        finished: float | None = None,
        reason: str | None = None,
        pid: int | None = None,
    ) -> None:
        self._index.add(
            TaskRecord(
                self.record.flow,
                self.record.run,
                ref.step,
                str(ref.coordinates),
                state,
                attempt,
                started,
                finished,
                reason,
                None,
                pid,
            )
        )

    # -- stopping ---------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> int:
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._wakeup = (read, write)
        numbers = [signal.SIGINT, signal.SIGTERM]
        if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:  # nohup: go on
            numbers.append(_HANGUP)
        self._previous = {
            number: signal.signal(number, lambda number, _frame: self._signals.append(number)) for number in numbers
        }
        self._previous_wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        return read

    def _release_signals(self, wakeup: int) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            # A terminal that closes says so twice, its shell and the system: the second time may come only now.
            signal.signal(number, signal.SIG_IGN if number == _HANGUP and self._hung_up else handler)
        for descriptor in self._wakeup:
            os.close(descriptor)

    def _act_on_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._hung_up = self._hung_up or number == _HANGUP
            if number == signal.SIGINT and any(each.in_foreground for each in self.executors.values()):
                continue
            elsewhere = self._elsewhere() if self._stopping is None else 0
            if number == _HANGUP and elsewhere:
                self.left = "left as its terminal was closed"
                return
            if number == signal.SIGINT and elsewhere and self._answers is not None and not self._asking:
                self._asking = True
                self.reporter.notice(
                    f"Cancel the {elsewhere:,} remote {'task' if elsewhere == 1 else 'tasks'}? [y/N] "
                    "(N leaves them running; Ctrl-C again cancels them)"
                )
                continue
            self._asking = False
            # A terminal that closes may say so twice: its shell does, and the system.
            again = self._stopping is not None and number != _HANGUP
            if number == signal.SIGINT:
                why = "stopped by Ctrl-C"
            elif number == _HANGUP:
                why = "stopped by SIGHUP: the terminal was closed"
            else:
                why = self._cancel_request() or "stopped by SIGTERM"
            self._stop(why, now=again)

    def _hear_answer(self, descriptor: int) -> None:
        self._asking = False
        try:
            answer = os.read(descriptor, 512)
        except OSError:  # the terminal is not ours any more
            answer = b""
        if answer.strip().lower() in (b"y", b"yes"):
            self._stop("stopped by Ctrl-C", now=False)
        else:
            self.left = "left by Ctrl-C"

    def _cancel_request(self) -> str | None:
        """Who asked the run to stop, if somebody did."""
        try:
            note = json.loads(self.storage.read(cancel_file(self.record.flow, self.record.run)))
        except (Missing, StoreError):  # what cannot be read at the moment is looked at again
            return None
        except (ValueError, RecursionError):
            note = {}
        by = note.get("by") if isinstance(note, dict) else None
        return f"cancelled by {by}" if isinstance(by, str) else "cancelled"

    def _withdraw(self) -> None:
        """Nothing new starts any more: take back what waits for a machine elsewhere."""
        self._withdrawn = True
        for executor in self.executors.values():
            executor.withdraw()

    def _stop(self, why: str, *, now: bool) -> None:
        if self._stopping is None:
            self._stopping = why
            if not self.scheduler.should_cancel:
                self.scheduler.cancel()
            self.reporter.notice(
                f"Stopping: {why}." + (" Press Ctrl-C again to kill the tasks at once." if "Ctrl-C" in why else "")
            )
        for executor in self.executors.values():
            executor.cancel(now=now)

    # -- whose run it is ----------------------------------------------------------------------------------------------

    def _is_ours(self, wakeup: int) -> bool:
        """Whether the run is certainly ours; waits a little where nobody knows at the moment."""
        if self._ownership is None or self._ownership.keep(self._now()):
            return True
        self._ownership.wait(wakeup)
        self._act_on_signals()
        return False

    def _elsewhere(self) -> int:
        """How many tasks are under way that go on without this process."""
        return sum(self.scheduler.busy(name) for name, each in self.executors.items() if each.elsewhere)

    def _can_leave(self) -> bool:
        """Whether all that is under way goes on without this process, and nothing else can be started now."""
        if not self._elsewhere() or any(map(self.scheduler.waiting, self.executors)):
            return False
        return all(
            each.submitted() if each.elsewhere else not self.scheduler.busy(name)
            for name, each in self.executors.items()
        )

    def _leave(self, why: str) -> str:
        """Let go of a run that goes on elsewhere; who reattaches to it goes on from what it has done by then."""
        if self._ownership is not None:
            self._ownership.confirm()
        for name, each in self.executors.items():
            if not each.elsewhere and not self.scheduler.busy(name):
                each.settle()
        left = sum(executor.detach() for executor in self.executors.values())
        reason = f"{why}, while {left:,} {'task goes' if left == 1 else 'tasks go'} on elsewhere"
        self.record = self.record._replace(state="lost", reason=reason, heartbeat=time.time())
        self._index.add(self.record)
        self._index.flush(last=True)
        if self._ownership is not None:
            self._ownership.release()
        return "detached"

    def _give_up(self) -> None:
        """Somebody else has the run: what goes on elsewhere is theirs, and nothing is written any more."""
        for executor in self.executors.values():
            executor.detach()
        self._index.drop()

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self) -> str:
        for executor in self.executors.values():
            executor.settle()
            while executor.notices:
                self.reporter.notice(executor.notices.pop(0))
        state = self.scheduler.state
        now = time.time()
        reason = None
        if state == "failed":
            self.outcome.awaited = [str(item) for item in self.scheduler.awaiting()]
            first = self.outcome.failures[0] if self.outcome.failures else None
            reason = f"{first[0]}: {first[1].message}" if first else "the flow did not reach its end"
        elif state == "cancelled":
            reason = self._stopping
        self.record = self.record._replace(state=state, reason=reason, finished=now, heartbeat=now)
        end = {"state": state, "reason": reason, "finished": now}
        if self._ownership is not None:
            self._ownership.confirm()
        try:
            write_end(self.storage, self.record.flow, self.record.run, end)
        except StoreError as error:  # what the tasks committed is there all the same
            self.reporter.notice(f"How the run ended could not be recorded: {error.headline}")
        self._index.add(self.record)
        self._index.flush(last=True)
        if self._ownership is not None:
            self._ownership.release()
        return state

    # -- the index ----------------------------------------------------------------------------------------------------

    def _add_outputs(self, manifest: Manifest, launch: Launch) -> None:
        """Have the index know what a task made, and the other nodes of a gang with it."""
        self._index.add_output(manifest)
        if not self._index.outputs or not manifest.gang:
            return
        for ref in nodes_of(launch):
            found = None if ref == launch.ref else self._try_to_read(ref)
            if isinstance(found, Manifest):
                self._index.add_output(found)

    def add_records(self, records: Sequence[Record]) -> None:
        """Have records written with the next turn (clones, the parameters' task)."""
        self._index.extend(records)
