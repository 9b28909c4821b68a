"""A metadata store in memory: the plainest reading of the port, and gone with the process.

It shares no query with the databases, so that the contract suite compares two independent readings of the port.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowkit.exceptions import NotFound, StoreError
from flowkit.metadata.liveness import observed_run, observed_task, why_lost
from flowkit.metadata.records import FINAL, FlowRecord, Record, RunRecord, StepRecord, TaskRecord
from flowkit.metadata.relational import REBUILD, check_status, task_cursor
from flowkit.metadata.sql import run_number, task_place
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.metadata.tags import changed_tags
from flowkit.model.event import EmittedEvent, check_event

_LAST = float("inf")


class MemoryMetadata(MetadataStore):
    """Runs and tasks in dictionaries, for one process."""

    name = "memory"
    keeps_events = True

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, RunRecord]] = {}
        self._tasks: dict[tuple[str, str], dict[tuple[str, str], TaskRecord]] = {}
        self._emitted: list[EmittedEvent] = []
        self._lock = threading.RLock()

    def write(self, records: Sequence[Record]) -> None:
        """Insert or update records; see `MetadataStore.write`."""
        runs = [record for record in records if isinstance(record, RunRecord)]
        tasks = [record for record in records if isinstance(record, TaskRecord)]
        with self._lock:
            known = {*self._tasks, *((run.flow, run.run) for run in runs)}
            for task in tasks:
                if (task.flow, task.run) not in known:
                    raise StoreError(
                        f"the run {task.flow}/{task.run} is not in the metadata store, so its tasks cannot be", REBUILD
                    )
            for run in runs:
                self._put_run(run)
            for task in tasks:
                of_run = self._tasks[task.flow, task.run]
                if _counts(of_run.get((task.step, task.task)), task):
                    of_run[task.step, task.task] = task

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive; a run that is not in the index is left alone."""
        with self._lock:
            if run in self._runs.get(flow, {}):
                self._runs[flow][run] = self._runs[flow][run]._replace(heartbeat=when)

    def flows(self, namespace: str | None = None) -> list[FlowRecord]:
        """Return the flows that have runs (with that tag), newest first."""
        with self._lock:
            found = [
                FlowRecord(flow, min(run.created for run in runs.values()))
                for flow, runs in self._runs.items()
                if namespace is None or any(namespace in run.tags + run.system_tags for run in runs.values())
            ]
        return sorted(found, key=lambda flow: (flow.created, flow.flow), reverse=True)

    def runs(self, flow: str, which: RunFilter) -> list[RunRecord]:
        """Return runs of a flow, newest first."""
        check_status(which.status)
        with self._lock:
            found = self._newest_first(flow)
        if which.before is not None:
            names = [run.run for run in found]
            if which.before not in names:
                raise NotFound(f"there is no {flow}/{which.before} to list on from", "begin again with the first page")
            found = found[names.index(which.before) + 1 :]
        now = time.time()
        kept = [run for run in (observed_run(run, now) for run in found) if _fits(run, which)]
        return kept if which.limit is None else kept[: max(0, which.limit)]

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run."""
        with self._lock:
            found = self._runs.get(flow, {}).get(run)
        return None if found is None else observed_run(found, time.time())

    def steps(self, flow: str, run: str) -> list[StepRecord]:
        """Return the steps of a run that have tasks, in the order in which they began."""
        with self._lock:
            record = self._runs.get(flow, {}).get(run)
            found: dict[str, list[TaskRecord]] = {}
            for task in self.tasks(flow, run):
                found.setdefault(task.step, []).append(task)
        return [_step(record, name, tasks) for name, tasks in found.items()] if record is not None else []

    def tasks(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        *,
        status: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[TaskRecord]:
        """Return tasks, in the order in which they began."""
        check_status(status)
        cursor = task_cursor(step, after)
        with self._lock:
            record = self._runs.get(flow, {}).get(run)
            if record is None:
                return []
            lost = why_lost(record, time.time())
            tasks = self._tasks[flow, run]
            if cursor is not None and cursor not in tasks:
                raise NotFound(f"there is no {flow}/{run}/{'/'.join(cursor)} to list on from")
            last = _order(tasks[cursor]) if cursor is not None else None
            found = sorted(
                (t for t in tasks.values() if (not step or t.step == step) and (last is None or _order(t) > last)),
                key=_order,
            )
        shown = [task for task in (observed_task(task, lost) for task in found) if status in (None, task.state)]
        return shown if limit is None else shown[: max(0, limit)]

    def task(self, flow: str, run: str, step: str, task: str) -> TaskRecord | None:
        """Return one task."""
        with self._lock:
            record = self._runs.get(flow, {}).get(run)
            found = self._tasks.get((flow, run), {}).get((step, task))
        return observed_task(found, why_lost(record, time.time())) if found and record else None

    def change_tags(self, flow: str, run: str, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
        """Remove, then add user tags at once, and return the new ones, sorted."""
        with self._lock:
            record = self._runs.get(flow, {}).get(run)
            if record is None:
                raise NotFound(f"there is no run {flow}/{run}")
            tags = changed_tags(record.tags, record.system_tags, add, remove)
            self._runs[flow][run] = record._replace(tags=tags)
        return tags

    def forget(self, flow: str, run: str | None = None) -> None:
        """Drop the index of a run, or of a whole flow."""
        with self._lock:
            for name in [run] if run is not None else [*self._runs.get(flow, {})]:
                self._runs.get(flow, {}).pop(name, None)
                self._tasks.pop((flow, name), None)
            if not self._runs.get(flow):
                self._runs.pop(flow, None)

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, *, id: str | None = None, user: str = ""
    ) -> EmittedEvent:
        """Add an event and return it; see `MetadataStore.emit`."""
        fields = check_event(name, data, id)
        with self._lock:
            for event in self._emitted:
                if (event.name, event.id) == (name, id):
                    return event
            number = len(self._emitted) + 1
            self._emitted.append(EmittedEvent(number, name, id or f"memory-{number}", time.time(), fields, user))
            return self._emitted[-1]

    def emitted(self, after: int, limit: int = 1_000) -> list[EmittedEvent]:
        """Return events after a number, the oldest first."""
        with self._lock:
            return self._emitted[max(0, after) :][: max(0, limit)]

    def last_emitted(self) -> int:
        """Return the number of the newest event; 0 where there is none."""
        with self._lock:
            return len(self._emitted)

    def about(self) -> Mapping[str, Any]:
        """Return how many flows, runs and tasks there are."""
        with self._lock:
            runs, tasks = sum(map(len, self._runs.values())), sum(map(len, self._tasks.values()))
            return {"kind": "memory", "version": 0, "flows": len(self._runs), "runs": runs, "tasks": tasks}

    def close(self) -> None:
        """Nothing is held."""

    def _put_run(self, run: RunRecord) -> None:
        runs = self._runs.setdefault(run.flow, {})
        old = runs.get(run.run)
        if old is None:
            system = tuple(sorted(set(run.system_tags)))
            user = tuple(sorted(set(run.tags) - set(system)))
            runs[run.run] = run._replace(tags=user, system_tags=system)
            self._tasks[run.flow, run.run] = {}
        else:
            heartbeat = old.heartbeat if run.heartbeat is None else run.heartbeat
            kept = {"created": old.created, "tags": old.tags, "system_tags": old.system_tags}
            runs[run.run] = run._replace(heartbeat=heartbeat, **kept)  # type: ignore[arg-type]

    def _newest_first(self, flow: str) -> list[RunRecord]:
        """Numbered runs by number, whatever their clocks said; named ones among them by time."""
        latest = 0.0
        placed = []
        for run in sorted(self._runs.get(flow, {}).values(), key=lambda run: run_number(run.run)):
            number = run_number(run.run)
            latest = max(latest, run.created) if number >= 0 else latest
            placed.append((latest if number >= 0 else run.created, number, run.run, run))
        return [run for *_, run in sorted(placed, key=lambda item: item[:3], reverse=True)]


def _counts(old: TaskRecord | None, new: TaskRecord) -> bool:
    """Whether a record says more than the one that is there."""
    if old is None or new.attempt > old.attempt:
        return True
    if new.state == "succeeded" or new.attempt < old.attempt:
        return new.state == "succeeded" and (old.state != "succeeded" or new.attempt == old.attempt)
    return old.state not in FINAL or (old.state != "succeeded" and new.state in FINAL)


def _fits(run: RunRecord, which: RunFilter) -> bool:
    return (
        which.status in (None, run.state)
        and (which.since is None or run.created >= which.since)
        and (which.until is None or run.created < which.until)
        and which.user in (None, run.user)
        and set(which.tags) <= {*run.tags, *run.system_tags}
    )


def _order(task: TaskRecord) -> tuple[float, str, str]:
    return (_LAST if task.started is None else task.started, task.step, task_place(task.task))


def _step(run: RunRecord, name: str, tasks: Sequence[TaskRecord]) -> StepRecord:
    counts: dict[str, int] = {}
    for task in tasks:
        counts[task.state] = counts.get(task.state, 0) + 1
    began = [task.started for task in tasks if task.started is not None]
    ended = [task.finished for task in tasks if task.finished is not None]
    finished = max(ended) if ended and counts.keys() <= FINAL else None
    return StepRecord(run.flow, run.run, name, min(began) if began else run.created, finished, counts)
