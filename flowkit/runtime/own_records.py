"""Tasks that record themselves: under a scheduler there is no runtime that watches a run and writes its records.

The task that comes first makes the run's record (from ``run.json``), every task writes its own state and what it made,
a thread gives signs of life while the step runs, and the task that ends the run says so, in the datastore and in the
store. A task that dies without a word stays ``running`` in the store until its run's heartbeats are missed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from flowkit.datastore.manifests import read_failure, read_manifest
from flowkit.datastore.runs import read_run, write_end
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import Attempts
from flowkit.exceptions import FlowkitError, StoreError
from flowkit.metadata.outputs import output_of
from flowkit.metadata.records import Record, RunRecord, State, TaskRecord
from flowkit.metadata.store import MetadataStore
from flowkit.model.coordinates import TaskRef
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure, Manifest
from flowkit.runtime.gang import nodes_of, publish
from flowkit.runtime.retries import decide

DELIVERY_SECONDS = 20.0
"""How long a task that is over waits for its records to arrive: its machine, and what waits on it, may be gone then."""


class OwnRecords:
    """The records that one attempt of a task writes of itself.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore
        Where the records go. Where it does not work, the task goes on all the same.
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
        store: MetadataStore,
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
        self._run = _run_record(storage, parameters)

    def carry_out(self, work: Callable[[], int]) -> int:
        """Do the work of the attempt, with records before, meanwhile and after; return what it returns."""
        began = time.time()
        self._store.attend(self._run)
        self._write([*self._first(), *self._tasks("running", began)])
        beating = None
        if self._store.shared:  # others are told by the process, which is on this machine
            beating = threading.Thread(target=self._beat, name="flowkit-own-heartbeats", daemon=True)
            beating.start()
        try:
            return work()
        finally:
            self._over.set()
            if beating is not None:
                beating.join()
            self._write(self._last(began))
            left = self._store.deliver(DELIVERY_SECONDS)
            for text in [*self._store.news(), *([left] if left is not None else [])]:
                self._notice(text)

    def _first(self) -> list[Record]:
        """Return the records of the run that nobody has written yet."""
        try:
            if self._store.run(self._run.flow, self._run.run) is not None:
                return []
        except StoreError as error:
            self._broken(error)
        made = self._parameters
        task = TaskRecord(made.flow, made.run, made.step, made.task, "succeeded", 0, made.started, made.ended)
        return [self._run, task, *([output_of(made)] if self._store.outputs else [])]

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
        if self._store.outputs:
            made = [manifest, *(self._read(ref) for ref in nodes_of(self._launch) if ref != self._launch.ref)]
            records += [output_of(each) for each in made if each is not None]
        if manifest.transition.kind == "end":
            records.append(self._ended("succeeded", None))
        return records

    def _failed(self, began: float) -> list[Record]:
        ref, attempt = self._launch.ref, self._launch.attempt
        failure: Failure | None = None
        try:
            failure = read_failure(
                self._storage, self._run.flow, self._run.run, ref.step, str(ref.coordinates), attempt
            )
        except FlowkitError as error:
            self._broken(error)
        reason = failure.message if failure is not None else "it ended without a result"
        if failure is not None and decide(self._policy, self._launch, failure).kind is not None:
            return [*self._tasks("pending", began, time.time(), reason)]
        return [*self._tasks("failed", began, time.time(), reason), self._ended("failed", f"{ref}: {reason}")]

    def _ended(self, state: State, reason: str | None) -> RunRecord:
        now = time.time()
        try:
            end = {"state": state, "reason": reason, "finished": now}
            write_end(self._storage, self._run.flow, self._run.run, end)
        except StoreError as error:
            self._broken(error)
        return self._run._replace(state=state, reason=reason, finished=now, heartbeat=now)

    def _read(self, ref: TaskRef) -> Manifest | None:
        return read_manifest(self._storage, self._run.flow, self._run.run, ref.step, str(ref.coordinates))

    def _write(self, records: list[Record]) -> None:
        try:
            self._store.write(records)
        except StoreError as error:
            self._broken(error)

    def _beat(self) -> None:
        while not self._over.wait(self._store.heartbeat_interval):
            try:
                self._store.heartbeat(self._run.flow, self._run.run, time.time())
            except StoreError as error:
                self._broken(error)

    def _broken(self, error: FlowkitError) -> None:
        if not self._told:
            self._notice(f"The task's records are not complete; the task goes on: {error.headline}")
        self._told = True


def _run_record(storage: Storage, parameters: Manifest) -> RunRecord:
    """Return a run's first record, from what was recorded when it began; no process of this machine owns it."""
    claim = read_run(storage, parameters.flow, parameters.run) or {}
    known: dict[str, Any] = {
        name: claim[name] for name in ("user", "created", "tags", "system_tags", "origin") if name in claim
    }
    default: dict[str, Any] = {"user": str(parameters.extra.get("user") or ""), "created": parameters.started}
    where: dict[str, Any] = {"flow": parameters.flow, "run": parameters.run}
    return RunRecord.from_json({**default, **known, **where, "state": "running", "heartbeat": time.time()})
