"""Which database a service keeps its records in, from one line: a folder for SQLite, or the URL of a PostgreSQL."""

from __future__ import annotations

from flowkit.metadata_service.migrations import migrate
from flowkit.metadata_service.schemas import sqlite_folder
from flowkit.metadata_service.store import ServiceStore


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
