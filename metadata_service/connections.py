"""Connections to PostgreSQL: a few are kept, and one that the server has closed is not handed out again.

A pool of our own and not psycopg_pool's, for what happens while the server is away: a call fails at once with what the
server (or the network) said, and the first call after it is back works, without waiting for a background attempt.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import conninfo

from flowkit.exceptions import StoreError, UsageError

Connection = psycopg.Connection[tuple[Any, ...]]

OLDEST = 130_000
"""PostgreSQL 13: numbers of transactions that do not wrap around."""
BUSY = 15.0
"""Seconds that a call waits for a connection while all are in use."""
_GIVEN = {
    "client_encoding": "UTF8",
    "application_name": "flowkit-service",
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_SESSION = "SET lock_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'"
_log = logging.getLogger("flowkit.metadata_service")


class Address:
    """Where a database is; its text never shows a password.

    Parameters
    ----------
    url : str
        ``postgresql://user:password@host:port/name?options``.

    Raises
    ------
    UsageError
        If it is not one; the text is not repeated.
    """

    def __init__(self, url: str) -> None:
        try:
            given: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
        except (psycopg.Error, ValueError):
            raise UsageError(
                "the URL of the database is not understood", "postgresql://user:password@host:5432/name"
            ) from None
        self._secrets = [str(given[name]) for name in ("password", "sslpassword") if given.get(name)]
        self._given = {**_GIVEN, **given}
        self._parts = given

    def __str__(self) -> str:
        user, host = self._parts.get("user"), self._parts.get("host", "")
        port, name = self._parts.get("port"), self._parts.get("dbname", "")
        return f"postgresql://{f'{user}@' if user else ''}{host}{f':{port}' if port else ''}/{name}"

    def connect(self) -> Connection:
        """Connect, in autocommit.

        Raises
        ------
        StoreError
            If the server cannot be reached or refuses.
        """
        try:
            connection = psycopg.connect(**self._given, autocommit=True)
        except psycopg.Error as error:
            raise self.explained(error) from None
        try:
            connection.execute(_SESSION)
        except psycopg.Error as error:
            connection.close()
            raise self.explained(error) from None
        return connection

    def explained(self, error: BaseException) -> StoreError:
        """Return what is wrong with the database in plain words."""
        text = " ".join(str(error).split()) or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return StoreError(
            f"the database {self} does not answer as it should: {text}", "is PostgreSQL up there, and the URL right?"
        )


class Connections:
    """Connections for any thread.

    Parameters
    ----------
    address : Address
        Where to.
    size : int
        At most so many at once.
    """

    def __init__(self, address: Address, size: int) -> None:
        self.address = address
        self._size = size
        self._free = threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def begun(self, statement: str) -> Iterator[Connection]:
        """Give a connection in which a statement was carried out, and take it back, whatever state it is in.

        One that turns out to be dead is left, and so are all others that lay about: the server was away.

        Raises
        ------
        StoreError
            If there is none.
        """
        if not self._free.acquire(timeout=BUSY):
            raise StoreError(
                f"all {self._size} connections to {self.address} have been in use for {BUSY:.0f} s", "allow for more"
            )
        try:
            connection = self._begun(statement)
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        """Close what is idle, and what is in use when it comes back."""
        self._closed = True
        self._forget_idle()

    def _begun(self, statement: str) -> Connection:
        connection = self._take()
        if connection is not None:
            try:
                connection.execute(statement)
                return connection
            except psycopg.OperationalError:
                _log.info("a connection to %s was lost", self.address)
                connection.close()
                self._forget_idle()
        connection = self.address.connect()
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            connection.close()
            raise self.address.explained(error) from None
        return connection

    def _take(self) -> Connection | None:
        with self._lock:
            if self._closed:
                raise StoreError("the metadata store was closed already")
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: Connection) -> None:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.close()  # lost, or left in the middle of something
            return
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _forget_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
