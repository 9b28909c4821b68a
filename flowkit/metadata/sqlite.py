"""The metadata store of a local root: one SQLite database that several runs write at once.

Every write is a short immediate transaction. A lock that somebody else holds is waited for, then named. Whatever
happens to the database, nothing is lost that the datastore does not hold: a missing or empty one is made anew (and
says so: `fresh`), a damaged one is refused with the way out.

The files of a database that was deleted or replaced under an open connection are dangerous (SQLite finds the log
beside the database by its name), so every use checks that the file is still the one that was opened.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from flowkit.exceptions import StoreError, UsageError
from flowkit.metadata import sql
from flowkit.metadata.places import lock_holder, network_file_system, only_one
from flowkit.metadata.relational import REBUILD, DamagedDatabase, RelationalMetadata
from flowkit.metadata.sql import Value

FILE = "metadata.db"
APPLICATION_ID = 0x464C4F57  # "FLOW": marks the database as flowkit's
PATIENCE = 75.0
"""Seconds that a write waits for a lock that somebody else holds."""
_TELL_AFTER = 2.0
_SLICE = 0.2
"""Seconds that SQLite itself waits for a lock; `SqliteMetadata.patience` is made of these."""
_HEARTBEAT_PATIENCE = 1.0
_SUFFIXES = ("-wal", "-shm", "-journal")

_Result = TypeVar("_Result")


class SqliteMetadata(RelationalMetadata):
    """The index of one root, in ``<root>/metadata.db``.

    Parameters
    ----------
    root : str
        The folder of the datastore.
    read_only : bool, default False
        Only read. Where nothing can be written there, the database is read as it lies (and where there is none, an
        empty one in memory stands in, which `flowkit.client.rebuild` can fill).
    notice : callable, optional
        Is given one line of text when something is worth telling: a network file system, a long wait.
    patience : float, default 75
        Seconds that a write waits for a lock that somebody else holds.
    mounts : str
        The file in which the system lists what is mounted where.

    Attributes
    ----------
    fresh : bool
        The database was made anew and may lack runs that the datastore has: `flowkit.client.rebuild.rebuild` fills it.

    Raises
    ------
    StoreError
        If the database cannot be opened: damaged, of a newer flowkit, not ours, locked, no permission.
    """

    name = "local"

    def __init__(
        self,
        root: str,
        *,
        read_only: bool = False,
        notice: Callable[[str], None] | None = None,
        patience: float = PATIENCE,
        mounts: str = "/proc/mounts",
    ) -> None:
        super().__init__(sql.SQLITE)
        self.root = os.path.abspath(root)
        self.path = os.path.join(self.root, FILE)
        self._read_only = read_only
        self._notice = notice or (lambda text: None)
        self.patience = patience
        self._mounts = mounts
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._pid = os.getpid()
        self._open()

    # -- the port --------------------------------------------------------------------------------------------------

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive.

        Under a lock of somebody else a heartbeat is left out rather than waited for: the next one follows, and on
        one machine the process itself tells that it is alive.
        """
        patience, self.patience = self.patience, min(self.patience, _HEARTBEAT_PATIENCE)
        try:
            super().heartbeat(flow, run, when)
        except _Locked:
            pass
        finally:
            self.patience = patience

    def about(self) -> Mapping[str, Any]:
        """Return where the database is, how it is kept, how big it is, and how many flows, runs and tasks it has."""
        found = dict(super().about())
        with self._snapshot() as db:
            journal = db.select("PRAGMA journal_mode")[0][0]
        size = sum(os.path.getsize(p) for p in (self.path, f"{self.path}-wal") if os.path.exists(p))
        return {**found, "path": self.path, "journal": journal, "bytes": size, "sqlite": sqlite3.sqlite_version}

    def close(self) -> None:
        """Release the connection; the store is not used afterwards."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                self._release(connection)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter modules are emptied, and SQLite closes its files by itself.
        if getattr(self, "_connection", None) is not None and not ending():
            self.close()

    # -- transactions ----------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[_Session]:
        with self._lock, self._explained():
            db = self._current()
            self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            with _undone_on_error(db):
                yield _Session(db)
                self._patiently(lambda: db.execute("COMMIT"))

    @contextmanager
    def _snapshot(self) -> Iterator[_Session]:
        with self._lock, self._explained():
            db = self._current()
            db.execute("BEGIN")
            with _undone_on_error(db):
                self._patiently(lambda: db.execute("SELECT 1 FROM facts LIMIT 1").fetchall())
                yield _Session(db)
                db.execute("COMMIT")

    def _patiently(self, action: Callable[[], _Result]) -> _Result:
        """Do something that a lock may hold up, again and again for as long as `patience` says."""
        began = time.monotonic()
        told = False
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not _is_locked(error):
                    raise
                waited = time.monotonic() - began
                if waited >= self.patience:
                    raise self._locked(waited) from error
                if not told and waited >= _TELL_AFTER:
                    self._notice(f"waiting for the metadata store: {self._locked(waited).headline}")
                    told = True
                time.sleep(0.02)

    def _locked(self, waited: float) -> StoreError:
        holder = lock_holder(self.path)
        who = f" by {holder}" if holder else " by another process"
        return _Locked(
            f"{self.path} has been locked{who} for {waited:.0f} s",
            f"end what holds the lock; the results of tasks are safe in the datastore, and {REBUILD}",
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in plain words what is wrong with the database."""
        try:
            yield
        except (UnicodeEncodeError, OverflowError) as error:
            raise UsageError(f"the metadata store cannot hold a value: {error}") from error
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.DatabaseError) -> StoreError:
        text = str(error)
        if _is_locked(error):
            return self._locked(0.0)
        if not isinstance(error, sqlite3.OperationalError) or "malformed" in text or "no such" in text:
            return DamagedDatabase(f"the metadata store {self.path} is damaged: {text}", REBUILD)
        if "full" in text:
            return StoreError(f"no room to write {self.path}: {text}", f"free some space; {REBUILD}")
        if "readonly" in text or "unable to open" in text:
            return StoreError(
                f"the metadata store {self.path} cannot be written or opened: {text}",
                f"check who owns {self.root} and what it is mounted as",
            )
        return StoreError(f"the metadata store {self.path} does not work: {text}", REBUILD)

    # -- opening ---------------------------------------------------------------------------------------------------

    def _current(self) -> sqlite3.Connection:
        """Return the connection, made anew where the file was replaced or the process was forked."""
        connection = self._connection
        if connection is None:
            raise StoreError("the metadata store was closed already")
        if os.getpid() == self._pid and self._opened == self._identity():
            return connection
        if os.getpid() == self._pid:
            self._notice(f"{self.path} was removed or replaced; what it held comes back by: flowkit metadata rebuild")
        _keep_for_ever(connection)
        self._connection = None
        self._open()
        assert self._connection is not None
        return self._connection

    def _identity(self) -> tuple[int, int] | None:
        """Return which file the database is; None where there is none, or an empty one."""
        if self._opened is None and self._connection is not None:
            return None  # in memory
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if found.st_size else None

    def _open(self) -> None:
        with self._explained():
            connection = self._open_read_only() if self._read_only else self._open_to_write()
            self._connection = connection
            self._pid = os.getpid()
            try:
                complete = self._patiently(lambda: connection.execute(sql.FACT, ("complete",)).fetchone())
            except BaseException:
                self.close()
                raise
            self.fresh = complete is None

    def _open_to_write(self) -> sqlite3.Connection:
        network = network_file_system(self.root, self._mounts)
        if self._identity() is None:
            self._create(network)
        self._opened = self._identity()
        db = self._connect(self.path)
        try:
            version = self._patiently(lambda: self._version(db))
            mode = self._patiently(lambda: db.execute("PRAGMA journal_mode").fetchone())[0]
            if network:
                self._notice(f"{self.root} is on a network file system ({network}): the index is kept without WAL")
            if network and mode == "wal":
                self._patiently(lambda: db.execute("PRAGMA journal_mode=DELETE").fetchall())
            elif mode == "wal":
                db.execute("PRAGMA synchronous=NORMAL")
            if version < len(sql.MIGRATIONS):
                self._migrate(db)
        except BaseException:
            self._release(db)
            raise
        return db

    def _open_read_only(self) -> sqlite3.Connection:
        from urllib.parse import quote

        self._opened = self._identity()
        if self._opened is None:
            return self._migrate(self._connect(":memory:"))
        wal = os.path.exists(f"{self.path}-wal") and os.path.getsize(f"{self.path}-wal") > 0
        options = ["mode=ro"] if wal or os.access(self.root, os.W_OK) else ["mode=ro&immutable=1"]
        if options == ["mode=ro"]:
            options.append("mode=ro&immutable=1")
        for option in options:
            db = self._connect(f"file:{quote(self.path)}?{option}", uri=True)
            try:
                version = self._patiently(lambda db=db: self._version(db))  # type: ignore[misc]
                if version < len(sql.MIGRATIONS):
                    self._too_old(version)
                if wal and "immutable" in option:
                    self._notice(f"{self.path}-wal cannot be read: the last records are missing in what is shown")
                return db
            except sqlite3.OperationalError as error:
                self._release(db)
                if option is options[-1] or _is_locked(error):
                    raise
            except BaseException:
                self._release(db)
                raise
        raise AssertionError("one of the ways to open it has returned or raised")

    def _too_old(self, version: int) -> None:
        raise StoreError(
            f"{self.path} has the old version {version}, and is read only: it cannot be brought up to date",
            "run a flow there, or copy the folder to where it can be written",
        )

    def _connect(self, path: str, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_SLICE, isolation_level=None, check_same_thread=False, uri=uri)

    def _version(self, db: sqlite3.Connection) -> int:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]  # a truncated file fails here
        if not tables:
            raise DamagedDatabase(f"the metadata store {self.path} is damaged: there is nothing in it", REBUILD)
        if int(db.execute("PRAGMA application_id").fetchone()[0]) != APPLICATION_ID:
            raise StoreError(
                f"{self.path} is a database, but not one of flowkit", "move it away, or choose another datastore"
            )
        if version > len(sql.MIGRATIONS):
            raise StoreError(
                f"{self.path} has version {version}, this flowkit knows up to {len(sql.MIGRATIONS)}",
                "a newer flowkit wrote it: pip install -U flowkit",
            )
        return version

    def _migrate(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """Bring the schema to the newest version, in one transaction under the lock."""
        self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
        with _undone_on_error(db):
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            for migration in sql.MIGRATIONS[version:]:
                for statement in sql.SQLITE.statements(migration):
                    db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={len(sql.MIGRATIONS)}")
            self._patiently(lambda: db.execute("COMMIT"))
        return db

    def _create(self, network: str | None) -> None:
        """Make the database, whole, under another name, and link it to its own.

        Only one process does so at a time. It removes what a deleted database left behind: SQLite would take an old
        log for the new database's.
        """
        try:
            os.makedirs(self.root, exist_ok=True)
            with only_one(self.root) as alone:
                if self._identity() is not None:
                    return
                draft = f"{self.path}.new" if alone else f"{self.path}.new-{os.getpid()}"
                _remove(draft, *(draft + suffix for suffix in _SUFFIXES))
                db = self._connect(draft)
                try:
                    # what a power cut leaves of it is empty, and made again; waiting for the disk takes 40 ms
                    db.execute("PRAGMA synchronous=OFF")
                    if not network:
                        db.execute("PRAGMA journal_mode=WAL")
                    self._migrate(db)
                finally:
                    db.close()
                _remove(self.path, *(self.path + suffix for suffix in _SUFFIXES))
                os.replace(draft, self.path)
        except OSError as error:
            raise StoreError(
                f"the metadata store {self.path} cannot be made: {error.strerror or error}",
                f"check who owns {self.root} and what it is mounted as",
            ) from error

    def _release(self, connection: sqlite3.Connection) -> None:
        """Close a connection, unless its file is not the one of that name any more.

        SQLite's last connection removes the log beside the database by its name: it would be another database's.
        """
        if os.getpid() == self._pid and self._opened == self._identity():
            connection.close()
        else:
            _keep_for_ever(connection)


class _Session:
    """The statements of one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def select(self, query: str, parameters: Sequence[Value] = ()) -> list[Any]:
        return self._db.execute(query, parameters).fetchall()

    def execute(self, query: str, parameters: Sequence[Value] = ()) -> int:
        return self._db.execute(query, parameters).rowcount

    def execute_many(self, query: str, rows: Iterable[Sequence[Value]]) -> None:
        self._db.executemany(query, rows)


class _Locked(StoreError):
    """Somebody else has held the lock for longer than we wait."""


def set_aside(root: str) -> str | None:
    """Rename the database of a root, so that a new one is made at the next use.

    Returns
    -------
    str or None
        Its new path; None where there was none.

    Raises
    ------
    StoreError
        If it cannot be renamed.
    """
    path = os.path.join(os.path.abspath(root), FILE)
    if not os.path.lexists(path):
        return None
    target = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        with only_one(os.path.dirname(path)):
            os.replace(path, target)
            for suffix in _SUFFIXES:
                if os.path.lexists(path + suffix):
                    os.replace(path + suffix, target + suffix)
    except OSError as error:
        raise StoreError(f"{path} cannot be renamed: {error.strerror}", "check who owns it") from error
    return target


@contextmanager
def _undone_on_error(db: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # it was undone already, or the file is gone: what went wrong first is what is raised
        raise


def _is_locked(error: sqlite3.Error) -> bool:
    text = str(error)
    return "locked" in text or "busy" in text


def _remove(*paths: str) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _keep_for_ever(connection: sqlite3.Connection) -> None:
    """Never close a connection, not even when the interpreter ends (the system closes its files)."""
    try:
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    except ImportError:
        _kept.append(connection)


_kept: list[sqlite3.Connection] = []
