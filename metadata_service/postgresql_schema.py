"""The schema of a service's PostgreSQL database: looked at, and migrated, in one transaction under a lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from flowkit.exceptions import StoreError
from flowkit.metadata_service import sql
from flowkit.metadata_service.connections import OLDEST, Address, Connection
from flowkit.metadata_service.schemas import Opened

_LOCK = 0x464C4B53
"""The advisory lock of whoever migrates."""


@contextmanager
def opened(url: str, check: bool) -> Iterator[Opened]:
    """Give a database in one transaction; nobody else migrates it meanwhile."""
    address = Address(url)
    connection = address.connect()
    try:
        if connection.info.server_version < OLDEST:
            raise StoreError(f"{address} is PostgreSQL {connection.info.server_version // 10_000}, 13 is needed")
        connection.execute("BEGIN READ ONLY" if check else "BEGIN")
        if not check:
            connection.execute("SET LOCAL lock_timeout = '10min'")  # another service may have a lot to migrate
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute("SET LOCAL lock_timeout = '30s'")
        yield _Schema(connection, address)
        connection.execute("COMMIT")
    except psycopg.Error as error:
        raise address.explained(error) from error
    finally:
        connection.close()


class _Schema:
    words = sql.POSTGRESQL

    def __init__(self, connection: Connection, address: Address) -> None:
        self._connection = connection
        self.shown = str(address)

    def run(self, statement: str) -> None:
        self._connection.execute(statement)

    def numbers(self) -> dict[str, int] | None:
        encoding = self._connection.execute("SHOW server_encoding").fetchone()
        if encoding != ("UTF8",):
            raise StoreError(f"{self.shown} does not keep text as UTF-8", "CREATE DATABASE … ENCODING 'UTF8'")
        there = self._connection.execute("SELECT to_regclass('facts'), to_regclass('runs')").fetchone()
        if there == (None, None):
            return None
        ours = "SELECT name, value FROM facts WHERE name IN (%s, %s)"
        try:
            rows = self._connection.execute(ours, (sql.METADATA_VERSION, sql.SERVICE_VERSION)).fetchall()
        except psycopg.errors.ProgrammingError as error:
            raise self._strange() from error
        if not rows:
            raise self._strange()
        return {name: int(value) for name, value in rows}

    def finish(self) -> None:
        self._connection.execute(sql.SET_EVENT_BASE)

    def _strange(self) -> StoreError:
        return StoreError(
            f"{self.shown} has tables that are not flowkit's", "make a database of its own: CREATE DATABASE flowkit"
        )
