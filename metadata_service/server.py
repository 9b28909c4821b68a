"""The server: puts a service together, serves it, and ends it in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import uvicorn

from flowkit.exceptions import UsageError
from flowkit.metadata_service.app import make_app
from flowkit.metadata_service.broadcast import Broadcaster
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.guard import Guard
from flowkit.metadata_service.listening import BACKLOG, check_tls, listen, raise_file_limit, url_of
from flowkit.metadata_service.log_lines import LineWriter, access_log, log_to
from flowkit.metadata_service.metaflow_settling import Settling
from flowkit.metadata_service.metrics import Application, Message, Metrics
from flowkit.metadata_service.migrations import Migration, migrate
from flowkit.metadata_service.protocol import patient_protocol
from flowkit.metadata_service.service import Service

logger = logging.getLogger(__name__)

GRACE = 10
"""Seconds that open requests have to finish when the service is asked to stop."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: more than the usual 60 of proxies and clients, who should close first."""


class Server:
    """One metadata service.

    Parameters
    ----------
    configuration : Configuration
        How it was asked to run.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._nobody_may = False

    @classmethod
    def configured(cls, **options: Any) -> Server:
        """Return a server with the given options of `Configuration`."""
        return cls(Configuration(**options))

    def serve(self, ready: Callable[[str], object] | None = None, stopping: Callable[[], object] | None = None) -> None:
        """Serve until SIGTERM or SIGINT (a second one does not wait for open requests).

        Parameters
        ----------
        ready : callable, optional
            Is given the URL once requests are answered.
        stopping : callable, optional
            Is called when it begins to stop, which takes `GRACE` seconds and whatever a database call still waits for.

        Raises
        ------
        UsageError
            If it may not or cannot be served like that.
        Conflict
            If the port is taken.
        StoreError
            If the database cannot be used.
        """
        settings = self.configuration
        check_exposure(settings)
        check_tls(settings.tls_certificate, settings.tls_key)
        with ExitStack() as stack:
            listener = listen(settings.host, settings.port)
            stack.callback(listener.close)
            writer = LineWriter()
            stack.callback(writer.close)
            log_to(writer, settings.log_level)
            service = stack.enter_context(self.running())
            app = make_app(service)
            logged = access_log(writer)(app) if settings.access_log else app
            raise_file_limit()
            url = url_of(listener, settings.host, settings.tls_certificate is not None)
            self._nobody_may = settings.guarded and settings.oidc_issuer is None and not service.store.tokens()

            def stop() -> None:
                if stopping is not None:
                    stopping()
                service.broadcaster.stop()

            server = _Uvicorn(
                _uvicorn_config(logged, settings),
                warm=lambda: first_request(app),
                ready=lambda: ready(url) if ready is not None else None,
                stopping=stop,
            )
            server.run(sockets=[listener])

    def migrate(self, *, check: bool = False) -> Migration:
        """Bring the database up to date, or only tell (`check`) what that would take.

        Raises
        ------
        StoreError
            If it cannot be opened, or is newer than this program.
        """
        return migrate(self.configuration.database, check=check)

    @property
    def shown_database(self) -> str:
        """The database as it may be shown: without a password."""
        database = self.configuration.database
        scheme, separator, rest = database.partition("://")
        if scheme == "sqlite":
            return f"SQLite in {rest[1:]}"
        place = rest.rpartition("@")[2].partition("?")[0]
        return f"PostgreSQL at {place}" if separator else "SQLite"

    def variables(self, url: str) -> dict[str, str]:
        """Return the environment variables with which flows record their runs here."""
        found = {"FLOWKIT_METADATA": "service", "FLOWKIT_SERVICE_URL": url}
        if self.configuration.guarded:
            found["FLOWKIT_SERVICE_TOKEN"] = "…"
        return found

    def remarks(self) -> list[str]:
        """Return what whoever started it should know, line by line."""
        settings = self.configuration
        found = []
        if self._nobody_may:
            found.append("Nobody may call it yet: make a token on this database, flowkit service token create NAME.")
        if settings.insecure and not settings.loopback:
            found.append("It serves everybody who can reach it (--insecure): who calls is not asked.")
        if settings.host in ("0.0.0.0", "::") and not settings.allowed_hosts:
            found.append("It answers to the addresses of this machine; for its names give --allow-host NAME.")
        if settings.guarded and not settings.loopback and settings.tls_certificate is None:
            found.append("Tokens travel unencrypted: give --tls-certificate, or put a proxy with TLS in front of it.")
        return found

    @contextmanager
    def running(self) -> Iterator[Service]:
        """Open the database (and migrate it) and give the service on it; everything is closed at the end."""
        settings = self.configuration
        with ExitStack() as stack:
            store = open_store(settings.database, heartbeat_interval=settings.heartbeat_interval, pool=settings.pool)
            stack.callback(store.close)
            metrics = Metrics()
            guard = Guard(settings, store)
            stack.callback(guard.close)
            broadcaster = Broadcaster(store, settings, metrics)
            stack.callback(broadcaster.stop)
            broadcaster.start()
            settling = Settling(store, settings.heartbeat_interval)
            stack.callback(settling.stop)
            settling.start()
            yield Service(settings, store, guard, broadcaster, metrics, settling)


class _Uvicorn(uvicorn.Server):
    """Tells when it answers; ends streams first when it stops; a stop that was asked for is no failure."""

    def __init__(
        self,
        config: uvicorn.Config,
        warm: Callable[[], Awaitable[None]],
        ready: Callable[[], object],
        stopping: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._warm = warm
        self._ready = ready
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self._warm()
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.to_thread(self._stopping)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in signals}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


async def first_request(app: Application) -> None:
    """Ask an application for something, so that nobody else's request waits for what the first one has to set up.

    Raises
    ------
    RuntimeError
        If it does not answer as it should: better now than when somebody needs it.
    """
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    where = {"method": "GET", "path": "/ping", "raw_path": b"/ping", "query_string": b"", "root_path": ""}
    who = {"scheme": "http", "http_version": "1.1", "headers": [(b"host", b"localhost")], "client": None}
    await app({"type": "http", "asgi": {"version": "3.0"}, **where, **who, "server": None, "state": {}}, receive, send)
    if status != 200:
        raise RuntimeError(f"the service answers {status} to /ping")


def check_exposure(settings: Configuration) -> None:
    """Refuse to serve everybody who can reach this machine, unless that was asked for in so many words.

    Raises
    ------
    UsageError
        With both ways out.
    """
    if settings.loopback or settings.insecure or settings.authentication or settings.oidc_issuer is not None:
        return
    raise UsageError(
        f"on {settings.host} others than this machine can reach the service, and nothing asks them who they are",
        "--authentication asks for a token (make one: flowkit service token create), --oidc-issuer for one of your"
        " identity provider; --insecure serves everybody",
    )


def _uvicorn_config(app: Any, settings: Configuration) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=patient_protocol(),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        proxy_headers=False,  # whoever calls could claim any address
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
