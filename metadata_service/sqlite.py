"""The service's records in one SQLite file: one writer whose transactions are committed in groups, and many readers.

A reader has a connection of its own and never waits for writers (the write-ahead log keeps what it sees). Writers take
turns on one connection, each within a savepoint; whoever is last of those that wait commits for all of them, so that
the disk is waited for once. What was acknowledged is on the disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flowkit.exceptions import StoreError, UsageError
from flowkit.metadata.places import lock_holder, network_file_system
from flowkit.metadata.relational import DamagedDatabase
from flowkit.metadata.sql import Value
from flowkit.metadata_service import sql
from flowkit.metadata_service.foreign_store import ForeignTables
from flowkit.metadata_service.ledgers import LedgerTables
from flowkit.metadata_service.records_store import RecordTables
from flowkit.metadata_service.sql import Shape
from flowkit.metadata_service.tables import Outbox, Session
from flowkit.metadata_service.turns import Turns
from flowkit.metadata_service.wakers import Wakers

FILE = "service.db"
APPLICATION_ID = 0x464C4B53  # "FLKS": a service's database, not a local root's index
PATIENCE = 15.0
"""Seconds that a write waits for a lock that another process holds."""
POLL = 0.2
"""Seconds between two looks for what other processes wrote."""
OLDEST = (3, 35, 0)
"""RETURNING."""
_SLICE = 0.2
_GROUP = 64
"""Transactions that are committed at once, at most."""
_BATCHES = (100, 10, 1)
"""Numbers of rows in one statement: few different ones, so that statements are compiled once."""


class SqliteStore(RecordTables, ForeignTables, LedgerTables):
    """A service store in ``<folder>/service.db``.

    Parameters
    ----------
    folder : str
        Where the file is; on a local disk.
    heartbeat_interval : float
        Seconds between two heartbeats.
    readers : int
        Connections that are kept for reading.

    Raises
    ------
    StoreError
        If the database cannot be opened, is damaged, is somebody else's, or has not this program's version.
    """

    name = "sqlite"

    def __init__(self, folder: str, *, heartbeat_interval: float, readers: int = 10) -> None:
        super().__init__(sql.SQLITE, heartbeat_interval)
        self.patience = PATIENCE
        self.path = os.path.join(os.path.abspath(folder), FILE)
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._waiting = 0
        self._group: _Group | None = None
        self._readers: list[sqlite3.Connection] = []
        self._kept = readers
        self._closed = False
        with explained(self.path):
            self._opened = _identity(self.path)
            self._writer = connect(self.path)
        try:
            self._turns = Turns(self.path)
        except OSError as error:
            self._writer.close()
            raise StoreError(f"{self.path} cannot be locked: {error.strerror}", "check who owns the folder") from error
        self._wakers = Wakers(self._watch)

    def about(self) -> dict[str, Any]:
        """Return where the database is, how big it is, and how many flows, runs and tasks it has."""
        size = sum(os.path.getsize(p) for p in (self.path, f"{self.path}-wal") if os.path.exists(p))
        version = len(sql.MIGRATIONS)
        return {**super().about(), "service_version": version, "path": self.path, "bytes": size}

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` whenever there may be new events; see `ServiceStore.listen`."""
        return self._wakers.add(wake)

    def close(self) -> None:
        """Release all connections; the store is not used afterwards."""
        self._wakers.close()
        with self._turn, self._count:
            if self._closed:
                return
            self._closed = True
            for reader in self._readers:
                reader.close()
            self._readers.clear()
            self._writer.close()
            self._turns.close()

    # -- transactions ----------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[Session]:
        with explained(self.path):
            with self._count:
                self._waiting += 1
            with self._turn:
                with self._count:
                    self._waiting -= 1
                group = self._begin()
                try:
                    with self._one_of(group) as session:
                        yield session
                finally:
                    self._end(group)
            group.wait()
            if session.sent:
                self._wakers.wake()

    def _begin(self) -> _Group:
        if self._closed:
            raise StoreError("the metadata store was closed already")
        self._check_file()
        if self._group is None:
            if not self._turns.take(self.patience):
                raise _locked(self.path, self.patience)
            try:
                patiently(lambda: self._writer.execute("BEGIN IMMEDIATE"), self.path, self.patience)
            except BaseException:
                self._turns.end()
                raise
            self._group = _Group()
        return self._group

    @contextmanager
    def _one_of(self, group: _Group) -> Iterator[_Session]:
        """Give one transaction of a group: undone by itself, unless the whole group is."""
        db = self._writer
        db.execute("SAVEPOINT one")
        try:
            yield _Session(db)
            db.execute("RELEASE one")
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK TO one")
                db.execute("RELEASE one")
            else:  # a full disk undoes everything
                self._group = None
                self._turns.end()
                group.finish(error)
            raise
        group.size += 1

    def _end(self, group: _Group) -> None:
        """Commit, unless somebody waits who will."""
        if self._group is None:
            return
        with self._count:
            last = not self._waiting or group.size >= _GROUP
        if not last:
            return
        self._group = None
        failure: BaseException | None = None
        try:
            if group.size:
                patiently(lambda: self._writer.execute("COMMIT"), self.path, self.patience)
            else:
                self._writer.execute("ROLLBACK")
        except BaseException as error:  # told to everyone of the group
            failure = error
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        finally:
            self._turns.end()
            group.finish(failure)

    @contextmanager
    def _snapshot(self) -> Iterator[Session]:
        with explained(self.path):
            db = self._take_reader()
            try:
                db.execute("BEGIN")
                try:
                    yield _Session(db)
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            finally:
                self._give_back(db)

    def _check_file(self) -> None:
        """Refuse to go on with a file that has not its name any more: what is written to it would be lost."""
        if _identity(self.path) != self._opened:
            raise StoreError(
                f"{self.path} was removed or replaced while the service runs", "stop the service, then begin it again"
            )

    def _take_reader(self) -> sqlite3.Connection:
        self._check_file()
        with self._count:
            if self._closed:
                raise StoreError("the metadata store was closed already")
            if self._readers:
                return self._readers.pop()
        db = connect(self.path)
        db.execute("PRAGMA query_only=ON")
        return db

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._count:
            if not self._closed and len(self._readers) < self._kept:
                self._readers.append(db)
                return
        db.close()

    # -- events ----------------------------------------------------------------------------------------------------

    def _send(self, db: Session, outbox: Outbox) -> None:
        if outbox.rows:
            db.given(sql.ADD_EVENTS_SQLITE, sql.EVENT_SHAPE, outbox.rows)
            assert isinstance(db, _Session)
            db.sent = True

    def _watch(self, news: threading.Event, ended: Callable[[], bool]) -> Iterator[None]:
        """Say when there is something new: what this process wrote at once, what others did a little later."""
        db = connect(self.path)
        try:
            seen = None
            while not ended():
                own = news.wait(POLL)
                news.clear()
                version = db.execute("PRAGMA data_version").fetchone()[0]
                if own or (seen is not None and version != seen):
                    yield
                seen = version
        finally:
            db.close()


class _Group:
    """Transactions that are committed together."""

    def __init__(self) -> None:
        self.size = 0
        self._done = threading.Event()
        self._error: BaseException | None = None

    def finish(self, error: BaseException | None) -> None:
        self._error = error
        self._done.set()

    def wait(self) -> None:
        self._done.wait()
        if isinstance(self._error, StoreError):
            raise StoreError(self._error.headline, self._error.hint) from self._error
        if self._error is not None:
            raise StoreError(f"the metadata service could not write: {self._error}") from self._error


class _Session:
    """The statements of one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.sent = False

    def select(self, query: str, parameters: Sequence[Value] = ()) -> list[Any]:
        return self._db.execute(query, parameters).fetchall()

    def execute(self, query: str, parameters: Sequence[Value] = ()) -> int:
        return self._db.execute(query, parameters).rowcount

    def execute_many(self, query: str, rows: Iterable[Sequence[Value]]) -> None:
        self._db.executemany(query, rows)

    def given(self, query: str, shape: Shape, rows: Iterable[Sequence[Any]]) -> list[Any]:
        values = list(rows)
        one = f"({', '.join('?' * len(shape))})"
        found: list[Any] = []
        begin = 0
        while begin < len(values):
            size = next(size for size in _BATCHES if size <= len(values) - begin)
            text = query.replace("{given}", f"VALUES {', '.join([one] * size)}")
            flat = [value for row in values[begin : begin + size] for value in row]
            found += self._db.execute(text, flat).fetchall()
            begin += size
        return found


def connect(path: str) -> sqlite3.Connection:
    """Open a connection for any thread, in autocommit."""
    db = sqlite3.connect(
        f"file:{_quoted(path)}?mode=rw",
        uri=True,
        timeout=_SLICE,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA journal_size_limit=67108864")
        db.execute("PRAGMA cache_size=-16384")
    except BaseException:
        db.close()
        raise
    return db


def prepare(folder: str) -> str:
    """Make the folder and an empty database in it, where there is none; return the file's path.

    Raises
    ------
    StoreError
        If that cannot be, or the folder is on a network file system.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise StoreError(
            f"this Python's SQLite is {sqlite3.sqlite_version}, the metadata service needs 3.35",
            "use a newer Python, or --database postgresql://…",
        )
    path = os.path.join(os.path.abspath(folder), FILE)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        network = network_file_system(os.path.dirname(path))
        if network:
            raise StoreError(
                f"{os.path.dirname(path)} is on a network file system ({network}): SQLite cannot serve from there",
                "keep it on a local disk, or use --database postgresql://…",
            )
        # hashes of tokens are in it: nobody else reads it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreError(
            f"the service's database {path} cannot be made: {error.strerror or error}",
            "--database names a folder that you may write to, or postgresql://…",
        ) from error
    return path


def patiently(action: Callable[[], Any], path: str, patience: float) -> Any:
    """Do something that another process's lock may hold up, again and again.

    Raises
    ------
    StoreError
        If the lock is held for longer than `patience` seconds.
    """
    began = time.monotonic()
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                raise
            waited = time.monotonic() - began
            if waited >= patience:
                raise _locked(path, waited) from error
            time.sleep(0.01)


def _locked(path: str, waited: float) -> StoreError:
    who = lock_holder(path) or "another process"
    return StoreError(f"{path} has been locked by {who} for {waited:.0f} s", "end what holds the lock")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Say in plain words what is wrong with the database, or with a value that it cannot hold."""
    try:
        yield
    except (UnicodeEncodeError, OverflowError) as error:
        raise UsageError(f"the database cannot hold a value: {error}") from error
    except sqlite3.IntegrityError as error:
        raise UsageError(f"the database refuses a value: {error}") from error
    except (sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
        if "bind" in str(error):
            raise UsageError(f"the database cannot hold a value: {error}") from error
        if "closed" in str(error):
            raise StoreError("the metadata store was closed already") from error
        raise
    except sqlite3.DatabaseError as error:
        text = str(error)
        if not isinstance(error, sqlite3.OperationalError) or "malformed" in text or "no such" in text:
            raise DamagedDatabase(f"the service's database {path} is damaged: {text}", "restore a backup") from error
        raise StoreError(f"the service's database {path} does not work: {text}") from error


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(path)
