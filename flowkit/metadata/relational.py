"""The metadata port over a relational database, whichever it is: what to ask (`flowkit.metadata.sql`) and when.

A subclass connects: it gives transactions to write in and snapshots to read from.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from flowkit.exceptions import NotFound, StoreError, UsageError, did_you_mean
from flowkit.metadata import sql
from flowkit.metadata.liveness import HEARTBEAT_LIMIT, observed_run, observed_task, why_lost
from flowkit.metadata.records import FINAL, STATES, FlowRecord, Record, RunRecord, StepRecord, TaskRecord
from flowkit.metadata.sql import Dialect, Value
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.metadata.tags import changed_tags

REBUILD = "flowkit metadata rebuild makes the index anew from the datastore"
_STATES = frozenset(STATES)
_PAGE = 500
_CHUNK = 10_000
_RARE = 1_000

_Result = TypeVar("_Result")


class Connection(Protocol):
    """One transaction's view of the database."""

    def select(self, query: str, parameters: Sequence[Value] = ()) -> list[Any]:
        """Return the rows of a query."""

    def execute(self, query: str, parameters: Sequence[Value] = ()) -> int:
        """Carry out a statement and return how many rows it changed."""

    def execute_many(self, query: str, rows: Iterable[Sequence[Value]]) -> None:
        """Carry out a statement for each row of parameters."""


class DamagedDatabase(StoreError):
    """What is in the database makes no sense; everything that matters can be read from the datastore again."""


class UnknownRun(StoreError):
    """Tasks of a run that was never written, or was dropped: the run's record has to come first."""


class RelationalMetadata(MetadataStore):
    """Runs and tasks in tables.

    Parameters
    ----------
    dialect : Dialect
        Which database it is.

    Attributes
    ----------
    heartbeat_limit : float
        Seconds of silence after which a run that has not ended is lost.
    """

    heartbeat_limit: float = HEARTBEAT_LIMIT

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._written: dict[tuple[str, str], RunRecord] = {}
        self._put_task = dialect.write(sql.PUT_TASK)

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[Connection]:
        """Give a transaction that no other writer interleaves with; it is committed, or undone by an exception."""

    @abstractmethod
    def _snapshot(self) -> AbstractContextManager[Connection]:
        """Give a view in which several queries see the same state."""

    def _carry_out(self, work: Callable[[Any], _Result]) -> _Result:
        """Do something in a transaction; a database on which writers can get in each other's way does it again."""
        with self._transaction() as db:
            return work(db)

    def _tags_changed(self, db: Any, flow: str, run: str) -> None:
        """Called within the transaction that changed a run's user tags."""

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, records: Sequence[Record]) -> None:
        """Insert or update records in one transaction; see `MetadataStore.write`.

        Raises
        ------
        StoreError
            If the database cannot be written, or a task's run was never written.
        """
        if not records:
            return
        runs = [record for record in records if isinstance(record, RunRecord)]
        tasks = [record for record in records if isinstance(record, TaskRecord)]
        with self._transaction() as db:
            keys: dict[tuple[str, str], int] = {}
            for run in runs:
                keys[run.flow, run.run] = self._put_run(db, run)
            for task in tasks:
                owner = (task.flow, task.run)
                if owner not in keys:
                    keys[owner] = self._owner_key(db, *owner)
            if tasks:
                db.execute_many(self._put_task, [sql.task_row(keys[task.flow, task.run], task) for task in tasks])
        for run in runs:
            self._remember(run)

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive; a run that is not in the index (any more) is left alone."""
        with self._transaction() as db:
            if not db.execute(self._sql(sql.HEARTBEAT), (when, flow, run)) and (flow, run) in self._written:
                self._put_run(db, self._written[flow, run]._replace(heartbeat=when))

    def change_tags(self, flow: str, run: str, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
        """Remove, then add user tags at once, and return the new ones, sorted.

        Raises
        ------
        NotFound
            If there is no such run.
        UsageError
            If the rules of tags (`flowkit.metadata.tags`) forbid it; nothing is changed then.
        """
        added, removed = (each if isinstance(each, str) else tuple(each) for each in (add, remove))
        return self._carry_out(lambda db: self._change_tags(db, flow, run, added, removed))

    def _change_tags(
        self, db: Connection, flow: str, run: str, add: Iterable[str], remove: Iterable[str]
    ) -> tuple[str, ...]:
        found = db.select(self._sql(sql.RUN_TAGS) + self._dialect.row_lock, (flow, run))
        if not found:
            raise NotFound(f"there is no run {flow}/{run}")
        key, user, system, position, number, created = found[0]
        before = read_tags(user)
        after = changed_tags(before, read_tags(system), add, remove)
        if after != before:
            db.execute(self._sql(sql.SET_TAGS), (json.dumps(after), key))
            db.execute_many(self._sql(sql.DROP_TAG), [(key, tag) for tag in set(before) - set(after)])
            place = (flow, position, number, run, created)
            db.execute_many(self._sql(sql.ADD_TAG), [(key, tag, *place) for tag in sorted(set(after) - set(before))])
            self._tags_changed(db, flow, run)
        return after

    def forget(self, flow: str, run: str | None = None) -> None:
        """Drop the index of a run, or of a whole flow; big runs in several transactions, their tasks first."""
        for key_of in [run] if run is not None else self._run_names(flow):
            self._forget_run(flow, key_of)

    def settle(self) -> None:
        """Note that the index holds everything that the datastore holds: it is not `fresh` any more."""
        with self._transaction() as db:
            db.execute(self._sql(sql.SET_FACT), ("complete", "1"))
        self.fresh = False

    def _run_names(self, flow: str) -> list[str]:
        with self._snapshot() as db:
            return [name for (name,) in db.select(self._sql(sql.FLOW_RUNS), (flow,))]

    def _forget_run(self, flow: str, run: str) -> None:
        self._written.pop((flow, run), None)
        while True:
            with self._transaction() as db:
                found = db.select(self._sql(sql.RUN_KEY), (flow, run))
                if not found:
                    return
                key = found[0][0]
                if db.execute(self._sql(sql.DROP_SOME_TASKS), (key, key, _CHUNK)) < _CHUNK:
                    for query in (sql.DROP_TASKS, sql.DROP_TAGS, sql.DROP_RUN):
                        db.execute(self._sql(query), (key,))
                    first = db.select(self._sql(sql.FIRST_CREATED), (flow,))[0][0]
                    if first is None:
                        db.execute(self._sql(sql.DROP_FLOW), (flow,))
                    else:
                        db.execute(self._sql(sql.SET_FLOW_CREATED), (first, flow))
                    return

    def _owner_key(self, db: Connection, flow: str, run: str) -> int:
        """Return the key of a task's run; write the run again where the database was made anew meanwhile."""
        found = db.select(self._sql(sql.RUN_KEY), (flow, run))
        if found:
            return int(found[0][0])
        if (flow, run) in self._written:
            return self._put_run(db, self._written[flow, run])
        raise UnknownRun(f"the run {flow}/{run} is not in the metadata store, so its tasks cannot be", REBUILD)

    def _remember(self, run: RunRecord) -> None:
        """Keep the runs that are being written, so that they survive a database that is lost on the way."""
        if run.state in FINAL:
            self._written.pop((run.flow, run.run), None)
        else:
            self._written[run.flow, run.run] = run

    def _put_run(self, db: Connection, run: RunRecord) -> int:
        found = db.select(self._sql(sql.RUN_KEY), (run.flow, run.run))
        if not found:
            return self._add_run(db, run)
        key = int(found[0][0])
        mutable = (sql.plain_text(run.user), run.state, sql.plain_text(run.reason), run.finished, run.heartbeat)
        db.execute(self._sql(sql.UPDATE_RUN), (*mutable, run.origin, *_owner(run), int(run.state not in FINAL), key))
        return key

    def _add_run(self, db: Connection, run: RunRecord) -> int:
        db.execute(self._sql(sql.ADD_FLOW), (run.flow, run.created))
        number = sql.run_number(run.run)
        position = run.created
        if number >= 0:
            for (earlier,) in db.select(self._sql(sql.POSITION_BEFORE), (run.flow, number)):
                position = max(position, earlier)
        system = sorted({sql.plain_text(tag) or "" for tag in run.system_tags})
        user = sorted({sql.plain_text(tag) or "" for tag in run.tags} - set(system))
        identity = (run.flow, run.run, sql.plain_text(run.user), run.state, run.created, sql.plain_text(run.reason))
        row = (*identity, run.finished, run.heartbeat, json.dumps(user), json.dumps(system), run.origin, *_owner(run))
        db.execute(self._sql(sql.ADD_RUN), (*row, int(run.state not in FINAL), number, position))
        key = int(db.select(self._sql(sql.RUN_KEY), (run.flow, run.run))[0][0])
        place = (run.flow, position, number, run.run, run.created)
        db.execute_many(self._sql(sql.ADD_TAG), [(key, tag, *place) for tag in (*user, *system)])
        if number >= 0:
            self._raise_later(db, run.flow, number, position)
        return key

    def _raise_later(self, db: Connection, flow: str, number: int, position: float) -> None:
        """Keep positions growing with numbers; the next number tells whether any later one is behind."""
        following = db.select(self._sql(sql.POSITION_AFTER), (flow, number))
        if following and following[0][0] < position:
            db.execute(self._sql(sql.RAISE_LATER), (position, flow, number, position))
            db.execute(self._sql(sql.RAISE_LATER_TAGS), (position, flow, number, position))

    # -- reading ---------------------------------------------------------------------------------------------------

    def flows(self, namespace: str | None = None) -> list[FlowRecord]:
        """Return the flows that have runs (with that tag), newest first."""
        with self._snapshot() as db:
            if namespace is None:
                rows = db.select(sql.FLOWS)
            else:
                rows = db.select(self._sql(sql.TAGGED_FLOWS), (namespace,))
        return [FlowRecord(*row) for row in rows]

    def runs(self, flow: str, which: RunFilter) -> list[RunRecord]:
        """Return runs of a flow, newest first.

        Raises
        ------
        UsageError
            If the status is not one that runs have.
        NotFound
            If there is no run `which.before`.
        """
        check_status(which.status)
        if which.limit is not None and which.limit <= 0:
            return []
        now = time.time()
        with self._snapshot() as db:
            which = which._replace(tags=self._rarest_first(db, flow, which.tags))
            place: Sequence[Value] | None = None
            if which.before is not None:
                place = self._place(db, sql.RUN_PLACE, (flow, which.before), f"{flow}/{which.before}")
            if which.status is None or which.status in FINAL:
                query, parameters = sql.list_runs(flow, which, place, which.limit)
                return [
                    observed_run(read_run(row), now, self.heartbeat_limit)
                    for row in db.select(self._sql(query), parameters)
                ]
            return self._open_runs(db, flow, which, place, now)

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run."""
        with self._snapshot() as db:
            rows = db.select(self._sql(sql.RUN), (flow, run))
        return observed_run(read_run(rows[0]), time.time(), self.heartbeat_limit) if rows else None

    def steps(self, flow: str, run: str) -> list[StepRecord]:
        """Return the steps of a run that have tasks, in the order in which they began."""
        with self._snapshot() as db:
            key, record, lost = self._look_at(db, flow, run)
            if record is None:
                return []
            rows = db.select(self._sql(sql.STEPS), (key,))
            others = db.select(self._sql(sql.NOT_SUCCEEDED), (key,))
        counts: dict[str, dict[str, int]] = {step: {} for step, *_ in rows}
        for step, state, count in others:
            shown = "lost" if lost and state == "running" else state
            counts[step][shown] = counts[step].get(shown, 0) + count
        steps = []
        for step, count, began, ended in sorted(rows, key=lambda row: (row[2], row[0])):
            succeeded = count - sum(counts[step].values())
            if succeeded:
                counts[step]["succeeded"] = succeeded
            created = began if began < sql.NOT_BEGUN else record.created
            finished = ended if counts[step].keys() <= FINAL else None
            steps.append(StepRecord(flow, run, step, created, finished, counts[step]))
        return steps

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
        """Return tasks, in the order in which they began.

        Raises
        ------
        UsageError
            If the status is not one that tasks have, or `after` does not name a step where `step` is not given.
        NotFound
            If there is no task `after`.
        """
        check_status(status)
        cursor = task_cursor(step, after)
        if limit is not None and limit <= 0:
            return []
        with self._snapshot() as db:
            key, record, lost = self._look_at(db, flow, run)
            if record is None:
                return []
            states = stored_states(status, lost)
            if states == ():
                return []
            place: Sequence[Value] | None = None
            if cursor is not None:
                place = self._place(db, sql.TASK_PLACE, (key, *cursor), f"{flow}/{run}/{'/'.join(cursor)}")
            query, parameters = sql.list_tasks(key, step, states, place, limit)
            rows = db.select(self._sql(query), parameters)
        return [observed_task(read_task(flow, run, row), lost) for row in rows]

    def task(self, flow: str, run: str, step: str, task: str) -> TaskRecord | None:
        """Return one task."""
        with self._snapshot() as db:
            key, record, lost = self._look_at(db, flow, run)
            rows = db.select(self._sql(sql.TASK), (key, step, task)) if record else []
        return observed_task(read_task(flow, run, rows[0]), lost) if rows else None

    def about(self) -> Mapping[str, Any]:
        """Return the schema's version and how many flows, runs and tasks there are."""
        with self._snapshot() as db:
            flows, runs, tasks = db.select(sql.COUNTS)[0]
        return {
            "kind": self._dialect.name,
            "version": len(sql.MIGRATIONS),
            "flows": flows,
            "runs": runs,
            "tasks": tasks,
        }

    def _sql(self, query: str) -> str:
        return self._dialect.write(query)

    def _look_at(self, db: Connection, flow: str, run: str) -> tuple[int, RunRecord | None, str | None]:
        """Return a run's key, the run, and why it is lost."""
        keys = db.select(self._sql(sql.RUN_KEY), (flow, run))
        if not keys:
            return 0, None, None
        record = read_run(db.select(self._sql(sql.RUN), (flow, run))[0])
        return keys[0][0], record, why_lost(record, time.time(), self.heartbeat_limit)

    def _place(self, db: Connection, query: str, parameters: Sequence[Value], shown: str) -> Sequence[Value]:
        found = db.select(self._sql(query), parameters)
        if not found:
            raise NotFound(f"there is no {shown} to list on from", "begin again with the first page")
        place: Sequence[Value] = found[0]
        return place

    def _rarest_first(self, db: Connection, flow: str, tags: Sequence[str]) -> tuple[str, ...]:
        """Put the rarest tag first; counting ends where a tag is known to be common."""
        if len(tags) < 2:
            return tuple(tags)
        count = self._sql(sql.COUNT_TAG)
        return tuple(sorted(tags, key=lambda tag: int(db.select(count, (tag, flow, _RARE))[0][0])))

    def _open_runs(
        self, db: Connection, flow: str, which: RunFilter, place: Sequence[Value] | None, now: float
    ) -> list[RunRecord]:
        """Go through the runs that have not ended, and keep those that turn out to have the status."""
        kept: list[RunRecord] = []
        while True:
            query, parameters = sql.list_runs(flow, which, place, _PAGE)
            rows = db.select(self._sql(query), parameters)
            for row in rows:
                record = observed_run(read_run(row), now, self.heartbeat_limit)
                if record.state == which.status:
                    kept.append(record)
                    if len(kept) == which.limit:
                        return kept
            if len(rows) < _PAGE:
                return kept
            place = self._place(db, sql.RUN_PLACE, (flow, rows[-1][1]), f"{flow}/{rows[-1][1]}")


def check_status(status: str | None) -> None:
    """Refuse what is not a state.

    Raises
    ------
    UsageError
        With the nearest state as a hint.
    """
    if status is not None and status not in _STATES:
        hint = did_you_mean(str(status), STATES) or f"one of {', '.join(STATES)}"
        raise UsageError(f"'{status}' is not a status", hint)


def task_cursor(step: str | None, after: str | None) -> tuple[str, str] | None:
    """Return step and task of the cursor of a page of tasks: an id where the step is known, else ``step/task``.

    Raises
    ------
    UsageError
        If the step is missing.
    """
    if after is None:
        return None
    named, slash, task = after.rpartition("/")
    if slash:
        return named, task
    if step is None:
        raise UsageError(f"'{after}' does not say of which step", "write step/task")
    return step, task


def stored_states(status: str | None, lost: str | None) -> tuple[str, ...] | None:
    """Return the states in the database of the tasks that are to be shown with a status (None for all of them)."""
    if status is None:
        return None
    if lost is None or status not in ("running", "lost"):
        return (status,)
    return ("running", "lost") if status == "lost" else ()


def _owner(run: RunRecord) -> tuple[Value, ...]:
    return sql.plain_text(run.host), run.boot_id, run.pid, run.process_start


@lru_cache(maxsize=1024)
def read_tags(text: Any) -> tuple[str, ...]:
    try:
        found = json.loads(text)
        if isinstance(found, list) and all(isinstance(tag, str) for tag in found):
            return tuple(found)
    except (TypeError, ValueError):
        pass
    raise DamagedDatabase(f"the metadata store is damaged: {text!r} where tags should be", REBUILD)


def read_run(row: Sequence[Any]) -> RunRecord:
    """Return the run of a row of `flowkit.metadata.sql.RUN_COLUMNS`."""
    values = [*row]
    values[8:10] = read_tags(row[8]), read_tags(row[9])
    record = RunRecord(*values)
    numbers = (record.created, record.finished or 0.0, record.heartbeat or 0.0)
    if record.state not in _STATES or not all(isinstance(number, (int, float)) for number in numbers):
        raise DamagedDatabase(
            f"the metadata store is damaged: its record of the run {record.flow}/{record.run}", REBUILD
        )
    return record


def read_task(flow: str, run: str, row: Sequence[Any]) -> TaskRecord:
    """Return the task of a row of `flowkit.metadata.sql.TASK_COLUMNS`."""
    record = TaskRecord(flow, run, *row)
    if record.state not in _STATES or not isinstance(record.attempt, int):
        raise DamagedDatabase(f"the metadata store is damaged: its record of {flow}/{run}/{record.step}", REBUILD)
    return record
