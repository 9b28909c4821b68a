"""What the service counts, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from flowkit.metadata_service.log_lines import CLIENT_GONE
from flowkit.version import __version__

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are counted as ``other``: whoever calls must not be able to make new series."""
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""
UNMATCHED = "(no such route)"


class Metrics:
    """The counts of one service, in a registry of their own (a process may have several services, as tests do).

    Names of routes are templates (``/v1/flows/{flow}``), so that the number of series does not grow with the data.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "flowkit_requests", "Requests that were answered.", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "flowkit_request_seconds",
            "Seconds until an answer was complete; of a stream, until it began.",
            ("route", "method"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._records = Counter("flowkit_records", "Records that were written.", ("kind",), registry=self.registry)
        self._events = Counter("flowkit_events_sent", "Events that were handed to listeners.", registry=self.registry)
        self._listeners = Gauge("flowkit_listeners", "Listeners to events, now.", registry=self.registry)
        self._ended = Counter(
            "flowkit_listeners_ended", "Streams that the service ended, by why.", ("reason",), registry=self.registry
        )
        self._database = Counter(
            "flowkit_database_errors", "Calls of the database that failed.", registry=self.registry
        )
        build = Gauge("flowkit_build", "The version, as a label.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)
        ProcessCollector(registry=self.registry)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request.

        Parameters
        ----------
        route : str
            Its template; `UNMATCHED` where there is none.
        method : str
        status : int
        seconds : float
            How long it took.
        """
        verb = method if method in METHODS else "other"
        self._requests.labels(route, verb, str(status)).inc()
        self._seconds.labels(route, verb).observe(seconds)

    def written(self, kind: str, count: int = 1) -> None:
        """Count records that were written: ``run``, ``task``, ``output``, ``heartbeat``."""
        self._records.labels(kind).inc(count)

    def sent(self, count: int) -> None:
        """Count events that were handed to listeners."""
        self._events.inc(count)

    def listening(self, count: int) -> None:
        """Note how many listeners there are."""
        self._listeners.set(count)

    def ended(self, reason: str) -> None:
        """Count a stream that the service ended: ``slow``, ``stopping``, ``expired``."""
        self._ended.labels(reason).inc()

    def database_failed(self) -> None:
        """Count a call of the database that failed."""
        self._database.inc()

    def text(self) -> tuple[bytes, str]:
        """Return all counts as Prometheus's text, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def middleware(self, app: Application) -> Application:
        """Wrap an ASGI application so that its requests are counted: ``app.add_middleware(metrics.middleware)``."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            begun = time.perf_counter()
            status = 0
            stream = False

            def count() -> None:
                # The router puts the route that it found into the scope.
                route = getattr(scope.get("route"), "path", UNMATCHED)
                self.answered(route, scope["method"], status or CLIENT_GONE, time.perf_counter() - begun)

            async def watch(message: Message) -> None:
                nonlocal status, stream
                if message["type"] == "http.response.start":
                    status = message["status"]
                    stream = any(
                        name == b"content-type" and value.startswith(b"text/event-stream")
                        for name, value in message.get("headers", ())
                    )
                    if stream:
                        count()
                await send(message)

            try:
                await app(scope, receive, watch)
            except BaseException:
                status = status or 500
                raise
            finally:
                if not stream:
                    count()

        return counted
