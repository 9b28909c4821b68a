"""What those who run the service ask it: is it well, which version is it, what does it count."""

from __future__ import annotations

import threading
import time
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel

from flowkit.exceptions import FlowkitError
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.problems import Problem, answers, problem
from flowkit.metadata_service.service import Service
from flowkit.version import __version__

METAFLOW_SERVICE = "2.5.0"
"""The version of Metaflow's metadata service whose routes are answered, as its clients ask for it: they need 2.0.4 for
heartbeats, 2.0.6 for attempts and 2.3.0 for changing tags."""
VERSION_HEADER = "METADATA_SERVICE_VERSION"
FRESH = 1.0
"""Seconds for which the answer of the database counts: probes cost it next to nothing, however many there are."""


class Health(BaseModel):
    """The service can do its work."""

    status: str


class Version(BaseModel):
    """Which version it is."""

    service: str
    version: str
    metaflow_service: str


class _Pulse:
    """Whether the database answers, asked once in `FRESH` seconds by one thread at a time."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._asked: float | None = None
        self._error: FlowkitError | None = None

    def error(self) -> FlowkitError | None:
        with self._lock:
            now = time.monotonic()
            if self._asked is None or now - self._asked >= FRESH:
                try:
                    self._service.store.ping()
                    self._error = None
                except FlowkitError as error:
                    self._service.metrics.database_failed()
                    self._error = error
                self._asked = time.monotonic()
            return self._error


def router(service: Service) -> APIRouter:
    """Return the routes. All but ``/metrics`` are open to anybody: they tell nothing that a caller did not know."""
    routes = APIRouter(tags=["operations"])
    pulse = _Pulse(service)
    ill: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "the database does not answer"}}

    @routes.get("/healthcheck", response_model=Health, responses=ill)
    def health() -> Response:
        """Tell whether the service can do its work: 200 if its database answers, else 503."""
        if pulse.error() is not None:
            # Anybody may ask, so the answer does not say which database it is, or what it said; the log does.
            return problem(503, "the database does not answer", "the service's log says more", {"Retry-After": "2"})
        return wire.reply({"status": "ok"})

    @routes.get("/ping", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def ping() -> Response:
        """Tell that the service is there, and which of Metaflow's services it is like."""
        return Response("pong", headers={VERSION_HEADER: METAFLOW_SERVICE}, media_type="text/plain")

    @routes.get("/version", response_model=Version)
    async def version() -> Response:
        """Tell which version the service is."""
        return wire.reply({"service": "flowkit", "version": __version__, "metaflow_service": METAFLOW_SERVICE})

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **answers()},
    )
    def metrics(caller: Caller = Depends(service.guard.reader)) -> Response:
        """Return what the service counts, for Prometheus."""
        text, kind = service.metrics.text()
        return Response(text, headers={"Content-Type": kind})

    return routes
