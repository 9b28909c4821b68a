"""Bringing a service's database up to date: the shared tables first, then the service's own, under a lock.

Two numbers in ``facts`` tell how far each list of migrations was carried out. A database with larger numbers is of a
newer program, and refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from flowkit.exceptions import StoreError
from flowkit.metadata import sql as shared
from flowkit.metadata_service import sql
from flowkit.metadata_service.schemas import Opened, sqlite_folder
from flowkit.metadata_service.sql import Words


class Migration(NamedTuple):
    """What a database has, and what it needs.

    Parameters
    ----------
    database : str
        Which one, without a password.
    metadata, service : int
        The numbers that it has, 0 for an empty one.
    statements : tuple of str
        What would be carried out to bring it up to date.
    """

    database: str
    metadata: int
    service: int
    statements: tuple[str, ...]

    @property
    def pending(self) -> bool:
        """Whether the database is not up to date."""
        return bool(self.statements)


def migrate(database: str, *, check: bool = False) -> Migration:
    """Bring a database up to date.

    Parameters
    ----------
    database : str
        ``sqlite:///<folder>``, a folder, or ``postgresql://…``.
    check : bool, default False
        Change nothing, only tell.

    Returns
    -------
    Migration
        What it had before, and the statements that were (or would be) carried out.

    Raises
    ------
    StoreError
        If it cannot be opened, or is newer than this program.
    """
    with _opened(database, check) as opened:
        plan = _plan(opened)
        if not check:
            _carry_out(opened, plan)
    return plan


def sql_of(database: str) -> list[str]:
    """Return the statements that `migrate` would carry out."""
    return list(migrate(database, check=True).statements)


def _opened(database: str, check: bool) -> AbstractContextManager[Opened]:
    folder = sqlite_folder(database)
    if folder is not None:
        from flowkit.metadata_service import sqlite_schema

        return sqlite_schema.opened(folder, check)
    from flowkit.metadata_service import postgresql_schema

    return postgresql_schema.opened(database, check)


def _plan(opened: Opened) -> Migration:
    numbers = opened.numbers() or {}
    have = numbers.get(sql.METADATA_VERSION, 0), numbers.get(sql.SERVICE_VERSION, 0)
    known = len(shared.MIGRATIONS), len(sql.MIGRATIONS)
    if have[0] > known[0] or have[1] > known[1]:
        raise StoreError(
            f"{opened.shown} has version {have[0]}.{have[1]}, this flowkit knows up to {known[0]}.{known[1]}",
            "a newer flowkit wrote it: pip install -U 'flowkit[service]'",
        )
    return Migration(opened.shown, *have, tuple(_statements(opened.words, *have)))


def _statements(words: Words, metadata: int, service: int) -> Iterator[str]:
    for migration in shared.MIGRATIONS[metadata:]:
        yield from words.dialect.statements(migration)
    for migration in sql.MIGRATIONS[service:]:
        yield from words.statements(migration)
    for name, have, known in (
        (sql.METADATA_VERSION, metadata, len(shared.MIGRATIONS)),
        (sql.SERVICE_VERSION, service, len(sql.MIGRATIONS)),
    ):
        if have < known:
            yield (
                f"INSERT INTO facts (name, value) VALUES ('{name}', '{known}')"
                " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            )


def _carry_out(opened: Opened, plan: Migration) -> None:
    for statement in plan.statements:
        opened.run(statement)
    opened.finish()
