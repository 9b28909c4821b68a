"""Runs, tasks, artifacts and what was read, as the service keeps them: written in a few statements a batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from flowkit.exceptions import UsageError
from flowkit.metadata import sql as shared
from flowkit.metadata.liveness import observed_run
from flowkit.metadata.records import FINAL, ArtifactRecord, OutputRecord, Record, RunRecord, TaskRecord
from flowkit.metadata.relational import read_run
from flowkit.metadata.sql import plain_text
from flowkit.metadata_service import sql
from flowkit.metadata_service.access import PROJECT_TAG, projects_of
from flowkit.metadata_service.store import ArtifactPlace, Attempt, Beat, Read
from flowkit.metadata_service.tables import Outbox, Owner, ServiceTables, Session, check_numbers

Owners = dict[tuple[str, str], Owner]
_Row = TypeVar("_Row")
_CHUNK = 5_000
"""Rows that are dropped in one transaction."""
_PAGE = 500


class RecordTables(ServiceTables):
    """The part of the port that is about runs and what they made."""

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, records: Sequence[Record]) -> None:
        """Insert or update records as they are, heartbeats too; see `MetadataStore.write`."""
        self._write(records, None, own_clock=False)

    def register(self, records: Sequence[Record], key: str | None = None) -> bool:
        """Write what a client sent; see `ServiceStore.register`. Its clock counts for no heartbeat."""
        return self._write(records, key, own_clock=True)

    def _write(self, records: Sequence[Record], key: str | None, *, own_clock: bool) -> bool:
        check_numbers(records)
        runs = sorted((r for r in records if isinstance(r, RunRecord)), key=lambda run: run[:2])
        tasks = [record for record in records if isinstance(record, TaskRecord)]
        outputs = [record for record in records if isinstance(record, OutputRecord)]
        reads = [_reads(output) for output in outputs]

        def work(db: Session) -> bool:
            now = time.time()
            if key is not None and not db.execute(self._sql(sql.ADD_REQUEST_KEY), (key, now)):
                return False
            outbox = Outbox(now)
            owners: Owners = {}
            for run in runs:
                owners[run.flow, run.run] = self._write_run(db, _by_our_clock(run, now) if own_clock else run, outbox)
            named = {(task.flow, task.run) for task in tasks} | {(output.flow, output.run) for output in outputs}
            for owner in sorted(named - owners.keys()):
                owners[owner] = self._owner(db, *owner)
            if tasks:
                self._write_tasks(db, tasks, owners, outbox)
            if outputs:
                self._write_outputs(db, outputs, reads, owners)
            self._send(db, outbox)
            return True

        return self._carry_out(work) if records or key is not None else True

    def _write_run(self, db: Session, run: RunRecord, outbox: Outbox) -> Owner:
        before = self._stored_run(db, run.flow, run.run, lock=True)
        key = self._put_run(db, run)
        after = self._stored_run(db, run.flow, run.run)
        assert after is not None
        if before is None or after._replace(heartbeat=None) != before._replace(heartbeat=None):
            outbox.add_run(after)
        return Owner(key, projects_of(after))

    def _write_tasks(self, db: Session, tasks: Sequence[TaskRecord], owners: Owners, outbox: Outbox) -> None:
        for turn in _turns(tasks, lambda task: (owners[task.flow, task.run].key, task.step, task.task)):
            rows = {identity: shared.task_row(identity[0], task) for identity, task in turn}
            put = {tuple(row) for row in db.given(sql.PUT_TASKS, sql.PUT_TASKS_SHAPE, rows.values())}
            for identity, task in turn:
                if identity in put:
                    outbox.add_task(task, owners[task.flow, task.run].projects)
        for attempts in _turns(tasks, lambda t: (owners[t.flow, t.run].key, t.step, t.task, t.attempt)):
            put_attempts = [
                (*identity, task.state, task.started, task.finished, plain_text(task.reason))
                for identity, task in attempts
            ]
            db.given(sql.PUT_ATTEMPTS, sql.ATTEMPT_SHAPE, put_attempts)

    def _write_outputs(
        self, db: Session, outputs: Sequence[OutputRecord], reads: Sequence[list[tuple[str, str]]], owners: Owners
    ) -> None:
        """Write what attempts made; what a task read follows its newest output."""
        read_by = {id(output): read for output, read in zip(outputs, reads, strict=True)}
        for turn in _turns(outputs, lambda o: (owners[o.flow, o.run].key, o.step, o.task)):
            rows = [(*identity, output.attempt) for identity, output in turn]
            put = {tuple(row[:3]) for row in db.given(sql.PUT_OUTPUTS, sql.OUTPUT_SHAPE, rows)}
            newest = [(identity, output) for identity, output in turn if identity in put]
            db.given(sql.DROP_READS, sql.READS_OF_SHAPE, [identity for identity, _ in newest])
            found = {(*identity, *read) for identity, output in newest for read in read_by[id(output)]}
            db.given(sql.ADD_READS, sql.READ_SHAPE, sorted(found))
            artifacts = {
                (*identity, output.attempt, artifact.name): (artifact.key, *artifact[2:], None)
                for identity, output in turn
                for artifact in output.artifacts
            }
            given = sorted((*identity, *rest) for identity, rest in artifacts.items())
            db.given(sql.PUT_ARTIFACTS, sql.ARTIFACT_SHAPE, given)

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive; a run that is not known is left alone."""
        self.heartbeats([Beat(flow, run)], when)

    def heartbeats(self, beats: Sequence[Beat], when: float) -> list[Beat]:
        """Note signs of life in one transaction; that of a task is one of its run. Return those of what is unknown."""
        runs = sorted({(beat.flow, beat.run, when) for beat in beats})
        tasks = sorted({(b.flow, b.run, b.step or "", b.task or "") for b in beats if b.task is not None})

        def work(db: Session) -> list[Beat]:
            there = {tuple(row) for row in db.given(sql.TASKS_THERE, sql.TASK_SHAPE, tasks)} if tasks else set()
            known = {tuple(row) for row in db.given(sql.BEAT_LOCKS + self._beat_lock, sql.BEAT_SHAPE, runs)}
            unknown = [
                beat
                for beat in beats
                if (beat.flow, beat.run) not in known or (beat.task is not None and tuple(beat) not in there)
            ]
            missing = set(unknown)
            alive = {(beat.flow, beat.run) for beat in beats if beat not in missing}
            db.given(sql.BEAT, sql.BEAT_SHAPE, [row for row in runs if row[:2] in alive])
            return unknown

        return self._carry_out(work) if beats else []

    _beat_lock = ""

    def delete_run(self, flow: str, run: str) -> bool:
        """Drop everything about a run, with an event; its number is never used again."""
        return self._drop_run(flow, run)

    def _forget_run(self, flow: str, run: str) -> None:
        self._drop_run(flow, run)

    def _drop_run(self, flow: str, run: str) -> bool:
        """Take a run away at once, then its rows by and by: whoever is killed in between leaves a note of it."""

        def work(db: Session) -> int | None:
            db.select(self._sql(sql.FLOW_ROW) + self._dialect.row_lock, (flow,))  # nobody adds a run to it meanwhile
            record = self._stored_run(db, flow, run, lock=True)
            if record is None:
                return None
            key = self._known(db, flow, run)
            db.execute(self._sql(sql.ADD_DROPPED), (key,))
            self._never_again(db, flow, run)
            db.execute(self._sql(sql.DROP_FACTS), (flow, run))
            db.execute(self._sql(shared.DROP_TAGS), (key,))
            db.execute(self._sql(shared.DROP_RUN), (key,))
            first = db.select(self._sql(shared.FIRST_CREATED), (flow,))[0][0]
            if first is None:
                db.execute(self._sql(shared.DROP_FLOW), (flow,))
            else:
                db.execute(self._sql(shared.SET_FLOW_CREATED), (first, flow))
            outbox = Outbox(time.time())
            outbox.add("deleted", (flow, run, None, None), {}, projects_of(record))
            self._send(db, outbox)
            return key

        key = self._carry_out(work)
        if key is None:
            return False
        self._sweep(key)
        return True

    def _sweep(self, key: int) -> None:
        """Remove the rows of a run that was dropped."""
        for query in map(self._sql, sql.DROP_SOME.values()):
            while self._drop_some(query, key) >= _CHUNK:
                pass
        self._carry_out(lambda db: db.execute(self._sql(sql.END_DROPPED), (key,)))

    def _drop_some(self, query: str, key: int) -> int:
        return self._carry_out(lambda db: int(db.execute(query, (key, key, _CHUNK))))

    def _sweep_left(self) -> None:
        """Remove what somebody who was killed left of dropped runs."""
        with self._snapshot() as db:
            left = [key for (key,) in db.select(self._sql(sql.DROPPED))]
        for key in left:
            self._sweep(key)

    # -- numbers of runs -------------------------------------------------------------------------------------------

    def reserve_run(self, flow: str, at_least: int = 1) -> int:
        """Return the next number of a flow; see `ServiceStore.reserve_run`."""
        if not 0 <= at_least < 10**17:
            raise UsageError(f"{at_least} is no number of a run")
        return self._carry_out(lambda db: self._next_number(db, flow, at_least))

    def run_id(self, flow: str, run: str) -> int:
        """Return the number by which a run goes; see `ServiceStore.run_id`."""
        number = shared.run_number(run)
        if number >= 0:
            return number
        with self._snapshot() as db:
            self._known(db, flow, run)
            found = db.select(self._sql(sql.RUN_NUMBER), (flow, run))
        return int(found[0][0]) if found else self._carry_out(lambda db: self._give_number(db, flow, run))

    def run_name(self, flow: str, number: int) -> str | None:
        """Return the named run that goes by a number; see `ServiceStore.run_name`."""
        with self._snapshot() as db:
            found = db.select(self._sql(sql.RUN_OF_NUMBER), (flow, number))
        return str(found[0][0]) if found else None

    def _next_number(self, db: Session, flow: str, at_least: int) -> int:
        last = max(self._last_number(db, flow), at_least - 1)
        db.execute(self._sql(sql.SET_RUN_COUNTER), (last + 1, flow))
        return last + 1

    def _last_number(self, db: Session, flow: str) -> int:
        """Return the largest number of a flow that was ever used, and let nobody else take one meanwhile."""
        db.execute(self._sql(sql.LOCK_RUN_COUNTER), (flow,))
        counted = int(db.select(self._sql(sql.RUN_COUNTER), (flow,))[0][0])
        largest = db.select(self._sql(sql.LAST_RUN_NUMBER), (flow,))
        return max(counted, int(largest[0][0]) if largest else 0)

    def _give_number(self, db: Session, flow: str, run: str) -> int:
        following = self._next_number(db, flow, 1)  # first of all: it makes others wait
        found = db.select(self._sql(sql.RUN_NUMBER), (flow, run))
        if found:
            return int(found[0][0])
        self._known(db, flow, run)
        db.execute(self._sql(sql.ADD_RUN_NUMBER), (flow, run, following))
        return following

    def _never_again(self, db: Session, flow: str, run: str) -> None:
        """Let the number of a run that is dropped not be given out any more."""
        db.execute(self._sql(sql.SET_RUN_COUNTER), (self._last_number(db, flow), flow))
        db.execute(self._sql(sql.DROP_RUN_NUMBER), (flow, run))

    # -- reading ---------------------------------------------------------------------------------------------------

    def recent_runs(
        self, *, limit: int, before: tuple[float, str, str] | None = None, project: str | None = None
    ) -> list[RunRecord]:
        """Return runs of all flows, the newest by creation first; see `ServiceStore.recent_runs`."""
        found: list[RunRecord] = []
        now = time.time()
        tag = None if project is None else f"{PROJECT_TAG}{project}"
        size = limit if tag is None else max(limit, _PAGE)
        with self._snapshot() as db:
            while len(found) < limit:
                query, parameters = sql.recent_runs(before, tag, size)
                rows = [read_run(row) for row in db.select(self._sql(query), parameters)]
                # a user tag that looks like a project's makes no run a project's
                found += [run for run in rows if tag is None or tag in run.system_tags]
                if len(rows) < size:
                    break
                before = (rows[-1].created, rows[-1].flow, rows[-1].run)
        return [observed_run(run, now, self.heartbeat_limit) for run in found[: max(0, limit)]]

    def attempts(self, flow: str, run: str, step: str, task: str) -> list[Attempt]:
        """Return every attempt of a task that was reported, the first one first."""
        with self._snapshot() as db:
            key, record, lost = self._look_at(db, flow, run)
            rows = db.select(self._sql(sql.ATTEMPTS), (key, step, task)) if record else []
        found = [Attempt(*row) for row in rows]
        if lost is not None and found and found[-1].state == "running":
            found[-1] = found[-1]._replace(state="lost", reason=lost)
        return found

    def artifacts(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        task: str | None = None,
        *,
        attempt: int | None = None,
        name: str | None = None,
        after: tuple[str, str, int, str] | None = None,
        limit: int | None = None,
    ) -> list[ArtifactPlace]:
        """Return artifacts of a run, a step or a task; see `ServiceStore.artifacts`."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            if key is None:
                return []
            query, parameters = sql.list_artifacts(
                key, step, task, attempt=attempt, name=name, after=after, limit=limit
            )
            rows = db.select(self._sql(query), parameters)
        return [_place((flow, run, *row)) for row in rows]

    def artifacts_by_key(
        self, key: str, *, after: tuple[str, str, str, str, int, str] | None = None, limit: int = 100
    ) -> list[ArtifactPlace]:
        """Return who has an artifact with the given content, run by run as they were first registered."""
        with self._snapshot() as db:
            place = None if after is None else (self._known(db, *after[:2]), *after[2:])
            query, parameters = sql.artifacts_by_content(key, place, limit)
            rows = db.select(self._sql(query), parameters)
        return [_place(row) for row in rows]

    def reads(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        task: str | None = None,
        *,
        after: tuple[str, str, str, str] | None = None,
        limit: int | None = None,
    ) -> list[Read]:
        """Return what the tasks of a run, a step, or one task read; see `ServiceStore.reads`."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            if key is None:
                return []
            query, parameters = sql.list_reads(key, step, task, after, limit)
            rows = db.select(self._sql(query), parameters)
        return [Read(flow, run, *row) for row in rows]

    def readers(self, key: str, *, after: tuple[str, str, str, str, str] | None = None, limit: int = 100) -> list[Read]:
        """Return who read the given content, run by run as they were first registered."""
        with self._snapshot() as db:
            place = None if after is None else (self._known(db, *after[:2]), *after[2:])
            query, parameters = sql.readers_of(key, place, limit)
            rows = db.select(self._sql(query), parameters)
        return [Read(*row) for row in rows]

    def output(self, flow: str, run: str, step: str, task: str) -> OutputRecord | None:
        """Return what the newest attempt with an output made and read."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            if key is None:
                return None
            query, parameters = sql.list_artifacts(key, step, task, attempt=None, name=None, after=None, limit=None)
            rows = db.select(self._sql(query), parameters)
            noted = [attempt for (attempt,) in db.select(self._sql(sql.OUTPUT), (key, step, task))]
            attempts = [*noted, *(row[2] for row in rows[:1])]
            if not attempts:
                return None
            query, parameters = sql.list_reads(key, step, task)
            reads = tuple(f"{name}={content}" for *_, name, content in db.select(self._sql(query), parameters))
        newest = max(attempts)
        artifacts = tuple(ArtifactRecord(*row[3:]) for row in rows if row[2] == newest)
        return OutputRecord(flow, run, step, task, newest, artifacts, reads if newest in noted else ())


def _by_our_clock(run: RunRecord, now: float) -> RunRecord:
    """Return a client's record with the heartbeat that it is: somebody works on it now, or nobody does any more.

    A run of a client whose clock is ahead begins now, so that it does not stay at the head of all lists.
    """
    ended = run.state in FINAL or run.state == "lost"
    return run._replace(heartbeat=None if ended else now, created=min(run.created, now))


def _place(row: Sequence[Any]) -> ArtifactPlace:
    flow, run, step, task, attempt, *artifact = row
    return ArtifactPlace(flow, run, step, task, attempt, ArtifactRecord(*artifact))


def _turns(records: Sequence[_Row], identity: Any) -> Iterator[list[tuple[Any, _Row]]]:
    """Give records sorted by identity, each one once a turn: no statement writes a row twice or waits crosswise."""
    rest: Iterable[tuple[Any, _Row]] = [(identity(record), record) for record in records]
    while rest:
        turn: dict[Any, _Row] = {}
        again = []
        for key, record in rest:
            if key in turn:
                again.append((key, record))
            else:
                turn[key] = record
        yield sorted(turn.items(), key=lambda item: item[0])
        rest = again


def _reads(output: OutputRecord) -> list[tuple[str, str]]:
    """Return names and keys of what an attempt read.

    Raises
    ------
    UsageError
        If one of them is not ``name=key``.
    """
    pairs = []
    for read in output.reads:
        name, equals, key = read.partition("=")
        if not (name and equals and key):
            raise UsageError(f"{read!r} in the reads of {'/'.join(output[:4])} is not name=key")
        pairs.append((name, key))
    return pairs
