"""Which database a service keeps its records in, from one line: a folder for SQLite, or the URL of a PostgreSQL."""

from __future__ import annotations

import os

from flowkit.exceptions import UsageError
from flowkit.metadata_service.migrations import Opener, migrate
from flowkit.metadata_service.store import ServiceStore

_POSTGRESQL = ("postgresql://", "postgres://")
_SQLITE = "sqlite:///"


def open_store(database: str, *, heartbeat_interval: float = 10.0, pool: int = 10) -> ServiceStore:
    """Bring a database up to date and open it.

    Parameters
    ----------
    database : str
        ``sqlite:///<folder>`` (``sqlite:////…`` for an absolute one) or a folder, or ``postgresql://…``.
    heartbeat_interval : float, default 10
        Seconds between two heartbeats; after three missed ones a run is lost.
    pool : int, default 10
        Connections that are kept at most.

    Returns
    -------
    ServiceStore
        For any thread; `close` it.

    Raises
    ------
    StoreError
        If it cannot be opened, or is newer than this program.
    UsageError
        If the text names no database.
    """
    folder = sqlite_folder(database)
    migrate(database)
    if folder is not None:
        from flowkit.metadata_service.sqlite import SqliteStore

        return SqliteStore(folder, heartbeat_interval=heartbeat_interval, readers=pool)
    from flowkit.metadata_service.postgresql import PostgresqlStore

    return PostgresqlStore(database, heartbeat_interval=heartbeat_interval, pool=pool)


def opener(database: str) -> Opener:
    """Return what opens a database to be migrated."""
    folder = sqlite_folder(database)
    if folder is not None:
        from flowkit.metadata_service.sqlite_schema import opened

        return lambda check: opened(folder, check)
    from flowkit.metadata_service.postgresql_schema import opened as opened_postgresql

    return lambda check: opened_postgresql(database, check)


def sqlite_folder(database: str) -> str | None:
    """Return the folder of an SQLite database; None for PostgreSQL.

    Raises
    ------
    UsageError
        If it is neither; the text is not repeated, since it may hold a password.
    """
    if database.startswith(_POSTGRESQL):
        return None
    if database.startswith(_SQLITE) and len(database) > len(_SQLITE):
        return os.path.expanduser(database[len(_SQLITE) :])
    if not database or "://" in database or database.startswith("sqlite:"):
        kind = database.partition(":")[0]
        raise UsageError(
            f"the database of kind '{kind}' is not known", "sqlite:///<folder>, or postgresql://user@host/name"
        )
    return os.path.expanduser(database)
