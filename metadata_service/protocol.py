"""HTTP on one connection, with an end to everybody's patience.

uvicorn waits for the head of a request, and for a reader of an answer, as long as it takes: a few thousand connections
that say next to nothing would keep all others out. Here a head must come within seconds, a reader must read, and where
there are too many connections, those on which nothing happens make room.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 15.0
"""Seconds in which the head of a request must have come, from the connection or its first byte on."""
STALL = 60.0
"""Seconds in which somebody whom something is sent to must take at least a part of it."""
SPARE = 128
"""Descriptors that are left for files and databases."""


class PatientProtocol(H11Protocol):
    """One connection.

    Attributes
    ----------
    head, stall : float
        As `HEAD` and `STALL`.
    most : int
        Connections at once.
    """

    head = HEAD
    stall = STALL
    most = 1_000
    idle: OrderedDict[PatientProtocol, None]
    """Connections without a request, the one that is so for longest first."""

    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin; where there are too many connections, end the one on which nothing happens for longest."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            (next(iter(self.idle)) if self.idle else self)._give_up()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_came()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.idle[self] = None

    def pause_writing(self) -> None:
        """Note that something waits to be taken."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Note that it was taken."""
        super().resume_writing()
        self._reader_took()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._head_came()
        self._reader_took()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self.idle[self] = None
        self._head_timer = self.loop.call_later(self.head, self._give_up)

    def _head_came(self) -> None:
        self.idle.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < waiting:
                self._watch_reader()
            else:
                self.transport.abort()

        self._reader_took()
        self._stall_timer = self.loop.call_later(self.stall, look)

    def _reader_took(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _give_up(self) -> None:
        self._head_came()
        self.connections.discard(self)
        self.transport.abort()


def patient_protocol(**options: Any) -> type[PatientProtocol]:
    """Return the protocol for one server, which counts its own connections.

    Parameters
    ----------
    **options
        `head`, `stall` and `most`, where the usual ones do not do.
    """
    return type("PatientProtocol", (PatientProtocol,), {"most": _files() - SPARE, "idle": OrderedDict(), **options})


def _files() -> int:
    """Return how many files the process may have open."""
    try:
        import resource
    except ImportError:  # Windows, which has its own bounds
        return 4_096
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else max(soft, 2 * SPARE)
