"""What Metaflow's clients send and ask for: numbers of tasks, steps before their tasks, fields, their artifacts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.metadata.records import ArtifactRecord
from flowkit.metadata.sql import plain_text
from flowkit.metadata_service import sql
from flowkit.metadata_service.store import Field, ForeignArtifact
from flowkit.metadata_service.tables import ServiceTables, Session


class ForeignTables(ServiceTables):
    """The part of the port for the routes of Metaflow's metadata service."""

    # -- numbers of tasks ------------------------------------------------------------------------------------------

    def new_task(self, flow: str, run: str, step: str) -> str:
        """Return an id for a new task: the run's next number."""

        def work(db: Session) -> str:
            key = self._owner(db, flow, run).key
            number = self._count_tasks(db, key, 1)
            db.given(sql.ADD_NUMBERS, sql.NUMBER_SHAPE, [(key, number, step, str(number))])
            return str(number)

        return self._carry_out(work)

    def task_number(self, flow: str, run: str, step: str, task: str) -> int:
        """Return the number of a task within its run; see `task_numbers`."""
        return self.task_numbers(flow, run, [(step, task)])[0]

    def task_numbers(self, flow: str, run: str, tasks: Sequence[tuple[str, str]]) -> list[int]:
        """Return the numbers of tasks within their run; see `ServiceStore.task_numbers`."""
        with self._snapshot() as db:
            numbers = self._numbers(db, self._known(db, flow, run), tasks)
        if any(task not in numbers for task in tasks):
            numbers = self._carry_out(lambda db: self._number_tasks(db, flow, run, tasks))
        return [numbers[task] for task in tasks]

    def task_name(self, flow: str, run: str, number: int) -> tuple[str, str] | None:
        """Return step and task of a number that was given out; None for others."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            rows = [] if key is None else db.select(self._sql(sql.TASK_OF_NUMBER), (key, number))
        return (rows[0][0], rows[0][1]) if rows else None

    def _numbers(self, db: Session, key: int, tasks: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
        rows = db.given(sql.TASK_NUMBERS, sql.TASK_NUMBERS_SHAPE, [(key, *task) for task in sorted(set(tasks))])
        return {(step, task): number for step, task, number in rows}

    def _number_tasks(
        self, db: Session, flow: str, run: str, tasks: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], int]:
        key = self._owner(db, flow, run).key
        self._count_tasks(db, key, 0)  # makes others wait
        numbers = self._numbers(db, key, tasks)
        new = [task for task in dict.fromkeys(tasks) if task not in numbers]
        last = self._count_tasks(db, key, len(new))
        given = dict(zip(new, range(last - len(new) + 1, last + 1), strict=True))
        db.given(sql.ADD_NUMBERS, sql.NUMBER_SHAPE, [(key, number, *task) for task, number in given.items()])
        return numbers | given

    def _count_tasks(self, db: Session, key: int, more: int) -> int:
        """Count a run's numbers on and return the last one."""
        db.execute(self._sql(sql.LOCK_TASK_COUNTER), (key,))
        last = int(db.select(self._sql(sql.TASK_COUNTER), (key,))[0][0]) + more
        if more:
            db.execute(self._sql(sql.SET_TASK_COUNTER), (last, key))
        return last

    # -- steps and fields ------------------------------------------------------------------------------------------

    def add_step(self, flow: str, run: str, step: str, facts: Mapping[str, Any]) -> bool:
        """Register a step before it has tasks; False if it is there already."""
        text = json.dumps({**facts, "created": facts.get("created", time.time())})

        def work(db: Session) -> bool:
            return bool(db.execute(self._sql(sql.ADD_STEP), (self._owner(db, flow, run).key, step, text)))

        return self._carry_out(work)

    def step_facts(self, flow: str, run: str) -> dict[str, Mapping[str, Any]]:
        """Return the registered steps of a run, in the order of registration."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            rows = [] if key is None else db.select(self._sql(sql.STEP_FACTS), (key,))
        return {step: json.loads(facts) for step, facts in rows}

    def add_fields(self, flow: str, run: str, fields: Sequence[Field]) -> list[Field]:
        """Write metadata fields; returned with ids and times."""
        if not fields:
            return []
        now = time.time()
        given = [field._replace(created=now) for field in fields]

        def work(db: Session) -> list[int]:
            key = self._owner(db, flow, run).key
            rows = [
                (key, f.step, f.task, f.name, plain_text(f.value), f.type, f.user, json.dumps(f.tags), f.created)
                for f in given
            ]
            return sorted(row[0] for row in db.given(sql.ADD_FIELDS, sql.FIELD_SHAPE, rows))

        ids = self._carry_out(work)
        return [field._replace(id=number) for field, number in zip(given, ids, strict=True)]

    def fields(
        self, flow: str, run: str, step: str | None = None, task: str | None = None, name: str | None = None
    ) -> list[Field]:
        """Return metadata fields of a run, a step or a task, oldest first."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            if key is None:
                return []
            query, parameters = sql.list_fields(key, step, task, name)
            rows = db.select(self._sql(query), parameters)
        return [
            Field(number, of_step, of_task, field, value, kind, user, tuple(json.loads(tags)), created)
            for number, of_step, of_task, field, value, kind, user, tags, created in rows
        ]

    # -- artifacts and facts ---------------------------------------------------------------------------------------

    def add_artifacts(self, flow: str, run: str, artifacts: Sequence[ForeignArtifact]) -> None:
        """Register artifacts; one that is there (same task, attempt, name) stays as it is."""
        if not artifacts:
            return

        def work(db: Session) -> None:
            key = self._owner(db, flow, run).key
            rows = {
                (key, a.step, a.task, a.attempt, a.artifact.name): (
                    *(a.artifact.key, *a.artifact[2:]),
                    json.dumps(dict(a.words)) if a.words else None,
                )
                for a in reversed(artifacts)
            }
            given = sorted((*place, *rest) for place, rest in rows.items())
            db.given(sql.ADD_ARTIFACTS, sql.ARTIFACT_SHAPE, given)

        self._carry_out(work)

    def foreign_artifacts(
        self, flow: str, run: str, step: str | None = None, task: str | None = None, attempt: int | None = None
    ) -> list[ForeignArtifact]:
        """Return every artifact of every attempt (or one), flowkit's own with empty `words`."""
        with self._snapshot() as db:
            key = self._owner_if_any(db, flow, run)
            if key is None:
                return []
            query, parameters = sql.list_artifacts(
                key, step, task, attempt=attempt, name=None, after=None, limit=None, words=True, every=True
            )
            rows = db.select(self._sql(query), parameters)
        return [
            ForeignArtifact(of_step, of_task, turn, ArtifactRecord(*artifact), json.loads(words) if words else {})
            for of_step, of_task, turn, *artifact, words in rows
        ]

    def put_facts(self, flow: str, run: str | None, facts: Mapping[str, Any]) -> None:
        """Keep what a client said of a flow or a run; replaces what was kept."""
        text = json.dumps(dict(facts))
        self._carry_out(lambda db: db.execute(self._sql(sql.PUT_FACTS), (flow, run or "", text)))

    def facts(self, flow: str, run: str | None) -> Mapping[str, Any]:
        """Return what `put_facts` kept."""
        with self._snapshot() as db:
            rows = db.select(self._sql(sql.FACTS), (flow, run or ""))
        found: Mapping[str, Any] = json.loads(rows[0][0]) if rows else {}
        return found
