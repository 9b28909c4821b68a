"""The service's records in PostgreSQL: several services may stand on one database.

Writers do not wait for each other but where they write the same rows; those that would wait crosswise are told so by
the server, and do their work again. Rows are sent as arrays, so that a batch is a handful of statements.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from flowkit.exceptions import StoreError, UsageError
from flowkit.metadata.sql import Value
from flowkit.metadata_service import sql
from flowkit.metadata_service.connections import Address, Connection, Connections
from flowkit.metadata_service.foreign_store import ForeignTables
from flowkit.metadata_service.ledgers import LedgerTables
from flowkit.metadata_service.records_store import RecordTables
from flowkit.metadata_service.sql import Shape
from flowkit.metadata_service.tables import Outbox, Session
from flowkit.metadata_service.wakers import Wakers

CHANNEL = "flowkit_events"
POLL = 0.5
"""Seconds between two looks for events of which nobody told."""
_SOON = 0.05
_SLICE = 0.1
_COALESCE = 0.02
"""Seconds between two NOTIFYs: one tells of all events before it."""
_TRIES = 8
_TYPES = {"text": "text", "float": "float8", "int": "bigint"}
_AGAIN = (errors.DeadlockDetected, errors.SerializationFailure, errors.UniqueViolation)
"""Two did the same at once: the second one does it again, and then sees what the first one did."""
_BAD_VALUES = (UnicodeEncodeError, OverflowError, errors.DataError, errors.IntegrityError)
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_LOOK = f"""SELECT coalesce((SELECT max(event_id) FROM events), 0),
    coalesce((SELECT max(event_id) FROM events WHERE 1 = 1{sql.EVENT_BOUND_POSTGRESQL}), 0)"""

_NOTIFY = f"SELECT set_config('synchronous_commit', 'off', true), pg_notify('{CHANNEL}', '')"
"""Nothing that is worth waiting for the disk."""

_Result = TypeVar("_Result")


class PostgresqlStore(RecordTables, ForeignTables, LedgerTables):
    """A service store in a PostgreSQL database.

    Parameters
    ----------
    url : str
        ``postgresql://user:password@host:port/name``.
    heartbeat_interval : float
        Seconds between two heartbeats.
    pool : int
        Connections at most; one more listens, while somebody wants to hear of events.

    Raises
    ------
    StoreError
        If the server cannot be reached.
    """

    name = "postgresql"
    _event_bound = sql.EVENT_BOUND_POSTGRESQL
    _beat_lock = " FOR NO KEY UPDATE OF r"

    def __init__(self, url: str, *, heartbeat_interval: float, pool: int = 10) -> None:
        super().__init__(sql.POSTGRESQL, heartbeat_interval)
        self._address = Address(url)
        self._connections = Connections(self._address, pool)
        self._wakers = Wakers(self._watch)
        self._news = threading.Event()
        self._telling: threading.Thread | None = None
        self._telling_lock = threading.Lock()
        self._closed = False

    def about(self) -> dict[str, Any]:
        """Return where the database is, how big it is, and how many flows, runs and tasks it has."""
        with self._snapshot() as db:
            size, server = db.select("SELECT pg_database_size(current_database()), current_setting('server_version')")[
                0
            ]
        version = len(sql.MIGRATIONS)
        more = {"service_version": version, "path": str(self._address), "bytes": size, "server": server}
        return {**super().about(), **more}

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever there may be new events; see `ServiceStore.listen`."""
        return self._wakers.add(wake)

    def close(self) -> None:
        """Release all connections; the store is not used afterwards."""
        self._closed = True
        self._wakers.close()
        self._news.set()
        if self._telling is not None:
            self._telling.join()
        self._connections.close()

    # -- transactions ----------------------------------------------------------------------------------------------

    def _carry_out(self, work: Callable[[Any], _Result]) -> _Result:
        """Do something in a transaction, again where another writer was in the way or the connection was lost."""
        for turn in range(_TRIES):
            try:
                return super()._carry_out(work)
            except _Again:
                if turn == _TRIES - 1:
                    raise
                time.sleep(random.uniform(0, 0.01 * 2**turn))
        raise AssertionError("the last turn returned or raised")

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with self._connections.begun(_WRITE) as connection:
            session = _Session(connection)
            with self._explained(connection):
                yield session
            with self._explained(connection, final=True):
                connection.execute("COMMIT")
        if session.sent:
            self._tell()

    @contextmanager
    def _snapshot(self) -> Iterator[Session]:
        with self._connections.begun(_READ) as connection, self._explained(connection):
            yield _Session(connection)
            connection.execute("COMMIT")

    @contextmanager
    def _explained(self, connection: Connection, final: bool = False) -> Iterator[None]:
        """Undo what failed, and say in plain words why; after `final` nobody knows whether it was done."""
        try:
            yield
        except BaseException as error:
            _undo(connection)
            if isinstance(error, _AGAIN):
                raise _Again("two writers were in each other's way too often", "try again") from error
            if isinstance(error, _BAD_VALUES):
                raise UsageError(f"the database cannot hold a value: {_line(error)}") from error
            if isinstance(error, psycopg.Error):
                explained = self._address.explained(error)
                lost = connection.closed and not final
                raise (_Again(explained.headline, explained.hint) if lost else explained) from error
            raise

    # -- events ----------------------------------------------------------------------------------------------------

    def _send(self, db: Session, outbox: Outbox) -> None:
        if not outbox.rows:
            return
        if len(outbox.rows) > sql.EVENTS_OF_ONE_TRANSACTION:
            raise UsageError(f"{len(outbox.rows)} records are too many for one request")
        db.given(sql.ADD_EVENTS_POSTGRESQL, sql.NUMBERED_EVENT_SHAPE, [(n, *row) for n, row in enumerate(outbox.rows)])
        assert isinstance(db, _Session)
        db.sent = True

    def _tell(self) -> None:
        """Let all services on this database know that there are events.

        Not within the transactions that write them: PostgreSQL lets only one transaction with a NOTIFY commit at a
        time. Should this process be killed in between, the others look every now and then.
        """
        self._news.set()
        if self._telling is None:
            with self._telling_lock:
                if self._telling is None and not self._closed:
                    self._telling = threading.Thread(target=self._tell_on, name="flowkit-notify", daemon=True)
                    self._telling.start()

    def _tell_on(self) -> None:
        while not self._closed:
            self._news.wait()
            self._news.clear()
            try:
                with self._connections.begun(_NOTIFY):
                    pass
            except StoreError:
                pass  # the server is away: listeners look for themselves when it is back
            time.sleep(_COALESCE)

    def _watch(self, news: threading.Event, ended: Callable[[], bool]) -> Iterator[None]:
        """Say when there is something new: at a NOTIFY at once, and else when a look finds it."""
        connection = self._address.connect()
        try:
            connection.execute(f"LISTEN {CHANNEL}")
            yield
            seen: tuple[Any, ...] | None = None
            look_at = 0.0
            while not ended():
                told = any(True for _ in connection.notifies(timeout=_SLICE, stop_after=1))
                if told or time.monotonic() >= look_at:
                    found = connection.execute(_LOOK).fetchone()
                    # events beyond what can be seen: an older transaction is open, and may tell nobody how it ends
                    unseen = found is not None and found[0] != found[1]
                    look_at = time.monotonic() + (_SOON if unseen else POLL)
                    if told or found != seen:
                        yield
                    seen = found
        finally:
            connection.close()


class _Again(StoreError):
    """What went wrong may go right when it is done again; nothing was written."""


class _Session:
    """The statements of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.sent = False

    def select(self, query: str, parameters: Sequence[Value] = ()) -> list[Any]:
        return self._connection.execute(query, parameters or None).fetchall()

    def execute(self, query: str, parameters: Sequence[Value] = ()) -> int:
        return self._connection.execute(query, parameters or None).rowcount

    def execute_many(self, query: str, rows: Iterable[Sequence[Value]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(query, list(rows))

    def given(self, query: str, shape: Shape, rows: Iterable[Sequence[Any]]) -> list[Any]:
        columns = sql.in_columns(shape, rows)
        if not columns[0]:
            return []
        arrays = ", ".join(f"%s::{_TYPES[kind]}[]" for _, kind in shape)
        cursor = self._connection.execute(query.replace("{given}", f"SELECT * FROM unnest({arrays})"), columns)
        return cursor.fetchall() if cursor.description is not None else []


def _undo(connection: Connection) -> None:
    try:
        if not connection.closed:
            connection.execute("ROLLBACK")
    except psycopg.Error:
        connection.close()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
