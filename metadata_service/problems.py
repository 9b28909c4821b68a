"""What the service answers where something is wrong: ``{"error": headline, "hint": …}``, with a fitting status.

Every error of the routes goes through here, so that no input makes a traceback or a text in another shape.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response, routing
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from flowkit.exceptions import Conflict, DataError, FlowkitError, NotFound, StoreError, UsageError
from flowkit.metadata.relational import UnknownRun

logger = logging.getLogger(__name__)

_SHOWN = 5
"""Problems of one request that are told."""
_STATUS: tuple[tuple[type[FlowkitError], int], ...] = (
    (NotFound, 404),
    (UsageError, 400),
    (Conflict, 409),
    (UnknownRun, 404),
    (StoreError, 503),
    (DataError, 422),
)
_HINTS = {
    404: "the paths are listed in /openapi.json",
    405: "the methods of each path are listed in /openapi.json",
}


class Problem(BaseModel):
    """What was wrong, and what to do about it."""

    error: str
    hint: str | None = None


class Unprocessable(UsageError):
    """A body or a parameter that is not as it should be (422)."""

    status = 422


class Forbidden(UsageError):
    """Something that the caller may not do (403)."""

    status = 403


def status_of(error: FlowkitError) -> int:
    """Return the HTTP status of an error: its own (`status`) where it has one, else that of its kind."""
    own = getattr(error, "status", None)
    if isinstance(own, int):
        return own
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 400)


def told_of(error: FlowkitError) -> tuple[str, str | None]:
    """Return what callers are told of an error: headline and hint.

    Where the database is and what it says is for the log: whoever gets the answer may be anybody.
    """
    if isinstance(error, StoreError) and status_of(error) >= 500:
        return "the database does not answer as it should", "try again in a moment; the service's log says more"
    return error.headline, error.hint


def problem(status: int, headline: str, hint: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer to a request that could not be carried out."""
    body = json.dumps({"error": headline, "hint": hint})
    return Response(body, status, dict(headers or {}), "application/json")


def unprocessable(errors: Iterable[Mapping[str, Any]]) -> Unprocessable:
    """Return pydantic's findings as one error that names every place, and shows nothing of what was sent."""
    found = [f"{_place(each['loc'])}: {_plain(each)}" for each in errors]
    more = len(found) - _SHOWN
    shown = [*found[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
    return Unprocessable("; ".join(shown) or "the request is not as it should be", "see /openapi.json")


def tell_problems(app: FastAPI, failed: Callable[[], object]) -> None:
    """Let an application answer every error in this shape; `failed` is called where it was the database's."""

    async def flowkit_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, FlowkitError)
        status = status_of(error)
        if status >= 500:
            failed()
            # a database that is away is told at every request: a line says it, the way there is for debugging only
            logger.warning("%s", error, exc_info=error if logger.isEnabledFor(logging.DEBUG) else None)
        return problem(status, *told_of(error), getattr(error, "headers", None))

    app.add_exception_handler(FlowkitError, flowkit_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of the errors of a route, besides those that every route can give."""
    told = {
        400: "something in the request makes no sense",
        401: "nobody, or a token that is not good (any more)",
        403: "the caller may not do that",
        404: "there is no such thing (for this caller)",
        405: "the path has no such method",
        408: "the body came too slowly",
        409: "somebody was faster",
        413: "the body is too large",
        414: "the address is too long",
        415: "the body is in a form that is not read here",
        422: "the request is not as it should be",
        429: "too many requests",
        431: "the headers are too large",
        503: "the database does not answer",
    }
    given = sorted({*(told.keys() - {404, 409}), *statuses})
    return {status: {"model": Problem, "description": told[status]} for status in given}


def _place(location: Iterable[Any]) -> str:
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).lstrip(".")[:200] or "the body"


def _plain(found: Mapping[str, Any]) -> str:
    if found["type"] == "string_pattern_mismatch":
        return "these characters are not allowed here, or it is too long"
    message = str(found["msg"])
    return message[:1].lower() + message[1:300]


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = unprocessable(error.errors())
    return problem(422, found.headline, found.hint)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == 405:
        headers = {"Allow": ", ".join(sorted(_methods(request)))}
    headline = {404: "there is nothing at this path", 405: "this path has no such method"}.get(error.status_code)
    return problem(error.status_code, headline or str(error.detail), _HINTS.get(error.status_code), headers)


def _methods(request: Request) -> set[str]:
    """Return the methods that a path has, whichever of its routes takes it."""
    # FastAPI looks into included routers when a request comes; an older one copies their routes
    walk = getattr(routing, "iter_route_contexts", iter)
    found: set[str] = set()
    for route in walk(request.app.routes):
        form = getattr(route, "path_regex", None)
        if form is not None and form.match(request.scope["path"]):
            found |= getattr(route, "methods", None) or set()
    return found


async def _defect(_request: Request, _error: Exception) -> Response:
    return problem(500, "a defect in the service itself", "its log has the details: please report it")
