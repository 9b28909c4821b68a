"""Tasks that record themselves: under a scheduler there is no runtime that watches a run and writes its records.

The task that comes first makes the run's record (from ``run.json``), every task writes its own state and what it made,
a thread gives signs of life while the step runs, and the task that ends the run says so, in the datastore and in the
store. A task that dies without a word stays ``running`` until somebody speaks for it: the process that started it
(`OwnRecords.tell`), a later attempt, or the end command (`end_run`).

How a run ended is in ``end.json``. The first task that fails for good writes it, and what fails after it adds nothing.
The commit of the last step takes its place, whatever it says. The end command, which comes when nothing of the run
goes on, says what no task could, and settles it. An attempt that begins after one that had failed for good was asked
for at the scheduler: it takes the ending back, and the run goes on (`flowkit.runtime.own_rounds`).

Where the datastore is remote and no service keeps the records, tasks write the datastore only: an index made in a
container would be gone with it, and those who look on make their own (`flowkit.client.remote_index`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flowkit.datastore.layout import run_folder
from flowkit.datastore.manifests import read_failure, read_manifest, write_failure
from flowkit.datastore.many import mapped_over
from flowkit.datastore.runs import change_end, read_run
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import Attempts
from flowkit.exceptions import DataError, FlowkitError, StoreError
from flowkit.metadata.opening import is_shared
from flowkit.metadata.outputs import output_of
from flowkit.metadata.records import FINAL, Record, RunRecord, State, TaskRecord, deployment_tags
from flowkit.metadata.store import MetadataStore
from flowkit.model.coordinates import TaskRef
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure, Manifest
from flowkit.runtime.gang import OTHER_FAILED, has_staged, nodes_of, publish
from flowkit.runtime.own_attempts import kind_of
from flowkit.runtime.own_rounds import begin_round
from flowkit.runtime.start import PARAMETERS

DELIVERY_SECONDS = 20.0
"""How long a task that is over waits for its records to arrive: its machine, and what waits on it, may be gone then."""
_PAGE = 1_000
_LONGEST_REASON = 500
"""Characters of what a scheduler says: some of them list all tasks that failed."""


def has_store(storage: Storage, metadata: str) -> bool:
    """Whether tasks that record themselves write to a metadata store of that name: not to a remote root's index."""
    return is_shared(metadata) or not storage.remote


class OwnRecords:
    """The records that one attempt of a task writes of itself.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore or None
        Where the records go (`has_store`). Where it does not work, the task goes on all the same.
    parameters : Manifest
        The run's ``_parameters`` manifest.
    launch : Launch
        The attempt.
    policy : Attempts
        How often the step is tried.
    notice : callable
        Is given a line for the log.
    """

    def __init__(
        self,
        storage: Storage,
        store: MetadataStore | None,
        parameters: Manifest,
        launch: Launch,
        policy: Attempts,
        notice: Callable[[str], None],
    ) -> None:
        self._storage = storage
        self._store = store
        self._parameters = parameters
        self._launch = launch
        self._policy = policy
        self._notice = notice
        self._over = threading.Event()
        self._told = False
        self._run = _run_record(storage, parameters.flow, parameters.run, parameters)

    def carry_out(self, work: Callable[[], int]) -> int:
        """Do the work of the attempt, with records before, meanwhile and after; return what it returns."""
        began = time.time()
        reopened = self._reopen()
        if self._store is not None:
            self._store.attend(self._run)
            self._write([*(reopened or self._first()), *self._tasks("running", began)])
        beating = None
        if self._store is not None and self._store.shared:  # others are told by the process, which is on this machine
            beating = threading.Thread(target=self._beat, name="flowkit-own-heartbeats", daemon=True)
            beating.start()
        try:
            return work()
        finally:
            self._over.set()
            if beating is not None:
                beating.join()
            self._finish(began)

    def tell(self, began: float | None = None) -> None:
        """Write how the attempt ended, where its own process could not: what it left in the datastore tells.

        Parameters
        ----------
        began : float, optional
            When it began, in seconds since the epoch.
        """
        if self._store is not None:
            self._store.attend(self._run)
            self._write(self._first())
        self._finish(time.time() if began is None else began)

    def _finish(self, began: float) -> None:
        self._write(self._last(began))
        if self._store is None:
            return
        left = self._store.deliver(DELIVERY_SECONDS)
        for text in [*self._store.news(), *([left] if left is not None else [])]:
            self._notice(text)

    def _first(self) -> list[Record]:
        """Return the records of the run that nobody has written yet."""
        try:
            if self._store is None or self._store.run(self._run.flow, self._run.run) is not None:
                return []
        except StoreError as error:
            self._broken(error)
        return [self._run, *_parameter_records(self._parameters, self._store)]

    def _reopen(self) -> list[Record]:
        """Take the run's end back, where the scheduler tries a task again that had failed for good."""
        try:
            where = (self._storage, self._run.flow, self._run.run)
            again = kind_of(*where, self._launch, self._launch.attempt, self._policy) is None
            reopened = again and begin_round(*where)
        except FlowkitError as error:
            self._broken(error)
            return []
        return [self._run] if reopened else []

    def _tasks(
        self,
        state: State,
        began: float,
        finished: float | None = None,
        reason: str | None = None,
        attempt: int | None = None,
    ) -> list[TaskRecord]:
        """Return the records of the task, or of all nodes of its gang."""
        flow, run = self._run.flow, self._run.run
        attempt = self._launch.attempt if attempt is None else attempt
        pid = os.getpid() if state == "running" else None
        return [
            TaskRecord(flow, run, ref.step, str(ref.coordinates), state, attempt, began, finished, reason, None, pid)
            for ref in nodes_of(self._launch)
        ]

    def _last(self, began: float) -> list[Record]:
        """Return the records of how the attempt ended, and with it perhaps the run."""
        try:
            manifest = self._read(self._launch.ref)
        except FlowkitError as error:
            self._broken(error)
            return []
        if manifest is None:
            return self._failed(began)
        times = manifest.started or began, manifest.ended or time.time()
        records: list[Record] = [*self._tasks("succeeded", *times, attempt=manifest.attempt)]
        if manifest.gang:
            publish(self._storage, manifest)
        if self._store is not None and self._store.outputs:
            made = [manifest, *(self._read(ref) for ref in nodes_of(self._launch) if ref != self._launch.ref)]
            records += [output_of(each) for each in made if each is not None]
        if manifest.transition.kind == "end":
            records += self._ended("succeeded", None)
        return records

    def _failed(self, began: float) -> list[Record]:
        attempt = self._launch.attempt
        failure: Failure | None = None
        again = None
        try:
            failure = self._failure(attempt)
            where = (self._storage, self._run.flow, self._run.run)
            again = kind_of(*where, self._launch, attempt + 1, self._policy) if failure is not None else None
        except FlowkitError as error:
            self._broken(error)
        reason = failure.message if failure is not None else "it ended without a result"
        now = time.time()
        cancelled = failure is not None and failure.kind == "cancelled"
        state: State = "pending" if again is not None else "cancelled" if cancelled else "failed"
        tasks = self._tasks(state, began, now, reason)
        if self._launch.gang:
            tasks = [self._node(task, failure) for task in tasks]
        if again is not None:
            return [*tasks]
        told = next((task for task in tasks if not (task.reason or "").endswith(OTHER_FAILED)), tasks[0])
        return [*tasks, *self._ended(state, f"{told.step}/{told.task}: {told.reason}")]

    def _node(self, task: TaskRecord, control: Failure | None) -> TaskRecord:
        """Return the record of a node of a gang that failed: with what it said itself, where it did.

        One whose own part went well is told to have failed with the gang, which nobody else would.
        """
        place = (self._storage, self._run.flow, self._run.run, task.step, task.task)
        try:
            failure = read_failure(*place, task.attempt)
            if failure is None and control is not None and has_staged(*place, task.attempt):
                message = control.message if control.message.endswith(OTHER_FAILED) else f"node 0 {OTHER_FAILED}"
                failure = replace(control, message=message, traceback=None, usage=None)
                write_failure(*place, failure)
        except FlowkitError as error:
            self._broken(error)
            return task
        return task if failure is None else task._replace(reason=failure.message)

    def _ended(self, state: State, reason: str | None) -> list[Record]:
        """Note that the run has ended, unless somebody has; return its record as it stands."""

        def change(stands: dict[str, Any] | None) -> dict[str, Any] | None:
            if stands is not None and (state != "succeeded" or stands.get("state") == "succeeded"):
                return None
            return {"state": state, "reason": reason, "finished": time.time()}

        try:
            end = change_end(self._storage, self._run.flow, self._run.run, change)
        except StoreError as error:
            self._broken(error)
            end = {"state": state, "reason": reason, "finished": time.time()}
        return [_ended_record(self._run, end)] if end is not None else []

    def _failure(self, attempt: int) -> Failure | None:
        step, task = self._launch.step, str(self._launch.coordinates)
        return read_failure(self._storage, self._run.flow, self._run.run, step, task, attempt)

    def _read(self, ref: TaskRef) -> Manifest | None:
        return read_manifest(self._storage, self._run.flow, self._run.run, ref.step, str(ref.coordinates))

    def _write(self, records: list[Record]) -> None:
        if self._store is None:
            return
        try:
            self._store.write(records)
        except StoreError as error:
            self._broken(error)

    def _beat(self) -> None:
        assert self._store is not None
        while not self._over.wait(self._store.heartbeat_interval):
            try:
                self._store.heartbeat(self._run.flow, self._run.run, time.time())
            except StoreError as error:
                self._broken(error)

    def _broken(self, error: FlowkitError) -> None:
        if not self._told:
            self._notice(f"The task's records are not complete; the task goes on: {error.headline}")
        self._told = True


def repeat_failure(storage: Storage, flow: str, run: str, launch: Launch, node: int | None) -> None:
    """Record of an attempt that is not made, since those before it have decided it, that it failed as the last one."""
    ref = nodes_of(launch)[node or 0]
    for attempt in reversed(range(launch.attempt)):
        failure = read_failure(storage, flow, run, ref.step, str(ref.coordinates), attempt)
        if failure is not None:
            again = replace(failure, attempt=launch.attempt)
            write_failure(storage, flow, run, ref.step, str(ref.coordinates), again)
            return


def end_run(
    storage: Storage, flow: str, run: str, state: State, reason: str | None = None, store: MetadataStore | None = None
) -> RunRecord | None:
    """Say that a run of a scheduler is over, when nothing of it goes on; return it as it stands then.

    A run whose last step has committed has succeeded, whatever is said, and none else has. What a task said of why it
    failed is kept, where it did; a run that failed because it was stopped is cancelled. Said again, it changes nothing.

    Parameters
    ----------
    storage : Storage
        The datastore.
    flow, run : str
        The run.
    state : str
        ``succeeded``, ``failed`` or ``cancelled``, as the scheduler has it.
    reason : str, optional
        Why, one line, where the scheduler knows.
    store : MetadataStore, optional
        Where its record is (`has_store`); tasks that it shows as begun are over, too. What is written may be on its way
        until `MetadataStore.deliver`.

    Returns
    -------
    RunRecord or None
        None where there is no such run: it never began.

    Raises
    ------
    DataError
        If what was recorded of the run is damaged.
    StoreError
        If the datastore, or after it the store, cannot be written; to be done again.
    """
    if state not in FINAL:
        raise ValueError(f"no run ends {state}")
    if read_run(storage, flow, run) is None:
        return None
    reason = " ".join(reason.split())[:_LONGEST_REASON] if reason else None
    parameters = read_manifest(storage, flow, run, *PARAMETERS)
    last = None if parameters is None else _last_step(storage, parameters)
    if last is None and state == "succeeded":
        state, reason = "failed", reason or "its last step has no result, though the scheduler says that it succeeded"

    def change(stands: dict[str, Any] | None) -> dict[str, Any] | None:
        if stands is not None and (stands.get("state") == "succeeded" or (last is None and stands.get("settled"))):
            return None
        if last is not None:
            return {"state": "succeeded", "reason": None, "finished": last.ended or time.time(), "settled": True}
        known = stands or {}
        ended = "cancelled" if "cancelled" in (state, known.get("state")) else state
        told = known.get("reason") if known.get("state") == ended else None
        if told is None and ended == "failed":
            told = _first_failure(storage, flow, run)
        why = told or reason or known.get("reason")
        return {"state": ended, "reason": why, "finished": time.time(), "settled": True}

    end = change_end(storage, flow, run, change)
    record = _ended_record(_run_record(storage, flow, run, parameters), end or {"state": state, "reason": reason})
    if store is not None:
        _settle_records(storage, store, record, parameters)
    return record


def _first_failure(storage: Storage, flow: str, run: str) -> str | None:
    """Return how the first task failed that did, of those whose processes could not end the run; from one listing."""
    failed: dict[tuple[str, str], tuple[float, int]] = {}
    done: set[tuple[str, str]] = set()
    found: list[str] = []
    for entry in storage.walk(run_folder(flow, run)):
        parts = entry.path.split("/")[3:]
        if len(parts) == 3 and parts[2] == "manifest.json":
            done.add((parts[0], parts[1]))
        elif len(parts) == 4 and parts[3] == "failed.json" and parts[2].isdigit() and not parts[0].startswith("_"):
            place = (parts[0], parts[1])
            failed[place] = max(failed.get(place, (0.0, 0)), (entry.modified, int(parts[2])))
    for place in sorted(failed.keys() - done, key=lambda place: (failed[place][0], place)):
        failure = read_failure(storage, flow, run, *place, failed[place][1])
        if failure is not None:
            found.append(f"{'/'.join(place)}: {failure.message}")
            if not failure.message.endswith(OTHER_FAILED):
                return found[-1]
    return found[0] if found else None


def _settle_records(storage: Storage, store: MetadataStore, record: RunRecord, parameters: Manifest | None) -> None:
    """Write to the store that a run is over, and every task of it."""
    store.attend(record)
    open_tasks: list[Record] = []
    try:
        known = store.run(record.flow, record.run)
        if known is not None:
            open_tasks = _open_tasks(storage, store, record)
    except StoreError:  # the store is away: what is written now is delivered later, or is said not to be
        known = None
    first = [] if known is not None or parameters is None else _parameter_records(parameters, store)
    store.write([record, *first])
    for start in range(0, len(open_tasks), _PAGE):
        store.write(open_tasks[start : start + _PAGE])


def _open_tasks(storage: Storage, store: MetadataStore, record: RunRecord) -> list[Record]:
    """Return the records, closed, of tasks that never told how they ended."""
    found: list[Record] = []
    for state in ("running", "pending"):
        after: str | None = None
        while True:
            page = store.tasks(record.flow, record.run, status=state, limit=_PAGE, after=after)
            found += mapped_over(storage, lambda task: _closed(storage, task, record), page)
            if len(page) < _PAGE:
                break
            after = f"{page[-1].step}/{page[-1].task}"
    return found


def _closed(storage: Storage, task: TaskRecord, run: RunRecord) -> TaskRecord:
    if task.state == "pending":  # it failed, and no other attempt has followed
        return task._replace(state="cancelled" if run.state == "cancelled" else "failed")
    failure = read_failure(storage, task.flow, task.run, task.step, task.task, task.attempt)
    if failure is None and run.state == "cancelled":
        return task._replace(state="cancelled", reason="its run was stopped", pid=None)
    if failure is None:
        return task._replace(state="lost", reason="its run ended before it told how it went", pid=None)
    state: State = "cancelled" if failure.kind == "cancelled" else "failed"
    return task._replace(state=state, reason=failure.message, finished=failure.ended or None, pid=None)


def _last_step(storage: Storage, parameters: Manifest) -> Manifest | None:
    """Return what the run's last step committed; None where it has not."""
    graph = parameters.extra.get("graph")
    name = graph.get("end_step") if isinstance(graph, dict) else None
    if not isinstance(name, str):
        raise DataError(f"the graph of {parameters.flow}/{parameters.run} is missing", "its _parameters are damaged")
    found = read_manifest(storage, parameters.flow, parameters.run, name, "0")
    return found if found is not None and found.transition.kind == "end" else None


def _parameter_records(parameters: Manifest, store: MetadataStore | None) -> list[Record]:
    made = parameters
    task = TaskRecord(made.flow, made.run, made.step, made.task, "succeeded", 0, made.started, made.ended)
    return [task, *([output_of(made)] if store is not None and store.outputs else [])]


def _ended_record(run: RunRecord, end: dict[str, Any]) -> RunRecord:
    """Return a run's record with what its ``end.json`` says."""
    state: State = end["state"] if end.get("state") in FINAL else "failed"
    finished = end.get("finished")
    finished = finished if isinstance(finished, (int, float)) else time.time()
    reason = end.get("reason") if isinstance(end.get("reason"), str) else None
    return run._replace(state=state, reason=reason, finished=finished, heartbeat=finished)


def _run_record(storage: Storage, flow: str, run: str, parameters: Manifest | None) -> RunRecord:
    """Return a run's first record, from what was recorded when it began; no process of this machine owns it."""
    claim = read_run(storage, flow, run) or {}
    known: dict[str, Any] = {
        name: claim[name] for name in ("user", "created", "tags", "system_tags", "origin") if name in claim
    }
    if isinstance(claim.get("deployment"), str):
        tags = {*known.get("system_tags", ()), *deployment_tags(claim["deployment"])[:1]}
        known["system_tags"] = sorted(tags)
    default: dict[str, Any] = {"user": "", "created": time.time()}
    if parameters is not None:
        default = {"user": str(parameters.extra.get("user") or ""), "created": parameters.started}
    more: dict[str, Any] = {"flow": flow, "run": run, "state": "running", "heartbeat": time.time()}
    return RunRecord.from_json({**default, **known, **more})
