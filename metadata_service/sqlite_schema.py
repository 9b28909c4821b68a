"""The schema of a service's SQLite database: looked at, and migrated, in one exclusive transaction."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from flowkit.exceptions import StoreError
from flowkit.metadata_service import sql
from flowkit.metadata_service.schemas import Opened, nothing_there
from flowkit.metadata_service.sqlite import APPLICATION_ID, FILE, PATIENCE, connect, explained, patiently, prepare
from flowkit.metadata_service.turns import Turns

_LONG = 60.0
"""Seconds that another process may take to migrate."""


@contextmanager
def opened(folder: str, check: bool) -> Iterator[Opened]:
    """Give the database of a folder in one transaction; where there is none, it is made unless it is only looked at."""
    path = os.path.join(os.path.abspath(folder), FILE)
    if check and not (os.path.exists(path) and os.path.getsize(path)):
        with nothing_there(sql.SQLITE, path) as nothing:
            yield nothing
        return
    if not check:
        prepare(folder)
    with explained(path), _turn(path, check), closing(connect(path)) as db:
        if not check:
            patiently(lambda: db.execute("PRAGMA journal_mode=WAL").fetchone(), path, PATIENCE)
        patiently(lambda: db.execute("BEGIN" if check else "BEGIN EXCLUSIVE"), path, _LONG)
        try:
            yield _Schema(db, path)
            db.execute("ROLLBACK" if check else "COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


@contextmanager
def _turn(path: str, check: bool) -> Iterator[None]:
    """Wait for those who write, and keep them waiting, unless the database is only looked at."""
    if check:
        yield
        return
    with closing(Turns(path)) as turns:
        turns.take(_LONG)  # in vain: whoever has it is told of by the lock of the database itself
        yield


class _Schema:
    words = sql.SQLITE

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self.shown = path

    def run(self, statement: str) -> None:
        self._db.execute(statement)

    def numbers(self) -> dict[str, int] | None:
        if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return None
        if self._db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(
                f"{self.shown} is a database, but not one of flowkit's service", "name another folder by --database"
            )
        rows = self._db.execute(
            "SELECT name, value FROM facts WHERE name IN (?, ?)", (sql.METADATA_VERSION, sql.SERVICE_VERSION)
        )
        return {name: int(value) for name, value in rows}

    def finish(self) -> None:
        self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
