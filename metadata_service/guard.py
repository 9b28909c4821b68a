"""The guard: looks at every request before anything else does, and says who calls.

It is closed by default: with `Configuration.guarded`, whoever does not say who they are gets nothing but `OPEN`, and an
application in which a route does not ask the guard (`reader`, `writer`, `admin`) is not served at all. Without it
everybody is `EVERYBODY`, and still a page on the web may not call (`flowkit.metadata_service.origins`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import Request, routing

from flowkit.exceptions import FlowkitError
from flowkit.metadata_service.access import EVERYBODY, Caller, Scope
from flowkit.metadata_service.audit import Audit, about, begin
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.limits import Bodies, Gone, Rates, check_head, too_many
from flowkit.metadata_service.metrics import Application, Message, Receive, Send
from flowkit.metadata_service.origins import Origins
from flowkit.metadata_service.problems import status_of, told_of
from flowkit.metadata_service.refused import Refused, forbidden, unknown
from flowkit.metadata_service.store import ServiceStore
from flowkit.metadata_service.tokens import PREFIX, Tokens

if TYPE_CHECKING:
    from flowkit.metadata_service.oidc import Oidc

logger = logging.getLogger(__name__)

OPEN = frozenset({"/ping", "/healthcheck", "/version"})
"""Paths that answer everybody: they tell that the service is there, and nothing of what it keeps."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing and carry nothing."""
FAILURES, FAILURES_PER_SECOND = 50.0, 1.0
"""Credentials that are not good, from one address: at once, and in the long run. Good ones that are known pass."""
UNAUDITED = ("heartbeat", "heartbeats")
"""Last parts of paths that are not audited: they change nothing but a time, all the time."""
_THREADS = 8
"""For the database and the identity provider: apart from those of the routes, which may all be busy."""


class Guard:
    """Says who calls, and keeps out who may not.

    Parameters
    ----------
    configuration : Configuration
    store : ServiceStore
        Has the tokens, and gets the log of writes.

    Raises
    ------
    UsageError
        If what was configured cannot be checked.
    """

    def __init__(self, configuration: Configuration, store: ServiceStore) -> None:
        self._guarded = configuration.guarded
        self._origins = Origins(configuration)
        self._tokens = Tokens(store)
        self._oidc: Oidc | None = None
        if configuration.oidc_issuer or configuration.oidc_audience:
            from flowkit.metadata_service.oidc import Oidc  # a tenth of what a start imports

            self._oidc = Oidc(configuration)
        self._rates = Rates(configuration.requests_per_second, 2 * configuration.requests_per_second)
        self._failures = Rates(FAILURES_PER_SECOND, FAILURES)
        self._bodies = Bodies(configuration.max_body)
        self._audit = Audit(store, self._tokens.note_used)
        self._threads = ThreadPoolExecutor(_THREADS, "guard")
        self._checked: set[int] = set()

    # -- for routes ------------------------------------------------------------------------------------------------

    async def reader(self, request: Request) -> Caller:
        """Return who calls, if they may read: ``Depends(guard.reader)``."""
        return _caller_with("read", request)

    async def writer(self, request: Request) -> Caller:
        """Return who calls, if they may write."""
        return _caller_with("write", request)

    async def admin(self, request: Request) -> Caller:
        """Return who calls, if they may do everything."""
        return _caller_with("admin", request)

    def still(self, request: Request) -> Callable[[], bool]:
        """Return what tells, later and in a thread, whether the caller of a request is still let in: for streams."""
        credential = request.scope["state"].get("credential")

        def valid() -> bool:
            if credential is None:
                return not self._guarded
            try:
                self._check(credential)
            except Refused as refused:
                return refused.status == 503
            return True

        return valid

    # -- for the server --------------------------------------------------------------------------------------------

    def middleware(self, app: Application) -> Application:
        """Wrap an application, innermost but for the routes: ``app.add_middleware(guard.middleware)``."""
        return partial(self._serve, app)

    def close(self) -> None:
        """Write down what waits to be, and end."""
        self._threads.shutdown()
        self._audit.close()

    # -- one request -----------------------------------------------------------------------------------------------

    async def _serve(self, app: Application, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        self._check_routes(scope.get("app"))
        answer = _Answer(send)
        body: bytes | None = None
        names: list[str] = []
        try:
            try:
                caller = await self._admit(scope, answer)
                if caller is None:
                    await answer.empty(204)
                    return
                if scope["method"] not in READING:
                    body = await self._bodies.read(scope["headers"], receive)
                    _unpacked(scope, len(body))
                    receive = _replay(body, receive)
                    names = begin()
                    self._audit.start()
            except FlowkitError as error:
                await answer.error(error)
                return
            except Gone:
                return
            await app(scope, receive, answer.send)
        finally:
            if body is not None:
                self._bodies.release(body)
                self._note(scope, names, answer.status)

    async def _admit(self, scope: Any, answer: _Answer) -> Caller | None:
        """Return who calls; None for a browser's question whether a page may call at all."""
        check_head(scope)
        headers = scope["headers"]
        if scope["path"] in OPEN and scope["method"] in READING:
            caller, credential = Caller("anonymous", "read", ()), None
            self._count(scope, f"address:{_address(scope)}")
        else:
            host = self._origins.check_host(_values(headers, b"host"))
            answer.origin = self._origins.check_origin(_values(headers, b"origin"), host)
            if answer.origin and scope["method"] == "OPTIONS" and _values(headers, b"access-control-request-method"):
                answer.preflight = True
                return None
            caller, credential = await self._who(scope)
            self._count(scope, caller.name if credential else f"address:{_address(scope)}")
        scope.setdefault("state", {}).update(caller=caller, credential=credential)
        return caller

    async def _who(self, scope: Any) -> tuple[Caller, str | None]:
        if not self._guarded:
            return EVERYBODY, None
        credential = _credential(scope["headers"])
        source = self._source(credential)
        known = source.remembered(credential)
        if known is not None:
            return known, credential
        address = _address(scope)
        pause = self._failures.wait(address)
        # Behind a proxy all have one address: what one of them tries keeps out nobody who was in before.
        if pause and not source.familiar(credential):
            raise too_many(pause, "too many requests from your address with tokens that are not good")
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._check, credential), credential
        except Refused as refused:
            if refused.status == 401:
                self._failures.take(address)
            raise

    def _count(self, scope: Any, name: str) -> None:
        pause = self._rates.take(name)
        if pause:
            raise too_many(pause, "too many requests")

    def _source(self, credential: str) -> Tokens | Oidc:
        if self._oidc is None or credential.startswith(PREFIX):
            return self._tokens
        return self._oidc

    def _check(self, credential: str) -> Caller:
        return self._source(credential).check(credential)

    def _note(self, scope: Any, names: list[str], status: int) -> None:
        route = getattr(scope.get("route"), "path", None)
        if route is None or route.rstrip("/").rpartition("/")[2] in UNAUDITED:
            return  # there is no such route, and nothing was written
        what = about(scope.get("path_params") or {}, names)
        self._audit.add(scope["state"]["caller"].name, f"{scope['method']} {route}", what, status, _address(scope))

    # -- the application -------------------------------------------------------------------------------------------

    def _check_routes(self, app: Any) -> None:
        if app is None or id(app) in self._checked:
            return
        check_doors(app)
        self._checked.add(id(app))


def check_doors(app: Any) -> None:
    """Refuse an application with a route that does not ask who calls.

    Raises
    ------
    RuntimeError
        With every such route.
    """
    unguarded = [door.path for door in doors(app) if door.asks is None and door.path not in OPEN]
    if unguarded:
        raise RuntimeError(f"these routes do not ask the guard who calls: {', '.join(unguarded)}")


class Door(NamedTuple):
    """One route: where it is, and what it asks of its caller (None: nothing)."""

    methods: tuple[str, ...]
    path: str
    asks: Scope | None


def doors(app: Any) -> Iterator[Door]:
    """Go over all routes of an application."""
    scopes: dict[Any, Scope] = {Guard.reader: "read", Guard.writer: "write", Guard.admin: "admin"}

    def asked(dependant: Any) -> Scope | None:
        for each in getattr(dependant, "dependencies", ()):
            found = scopes.get(getattr(each.call, "__func__", None)) or asked(each)
            if found:
                return found
        return None

    # A FastAPI that includes routers when a request comes has this to look into them; an older one copies the routes.
    # With one that had neither nothing would be recognised, and nothing served.
    walk = getattr(routing, "iter_route_contexts", iter)
    for route in walk(app.routes):
        methods = tuple(sorted(getattr(route, "methods", None) or ()))
        yield Door(methods, str(getattr(route, "path", route)), asked(getattr(route, "dependant", None)))


def _caller_with(scope: Scope, request: Request) -> Caller:
    caller = request.scope.get("state", {}).get("caller")
    if not isinstance(caller, Caller):
        raise unknown("nobody asked who calls", error=None)
    if not caller.may(scope):
        raise forbidden(f"this needs the scope '{scope}', and yours is '{caller.scope}'")
    return caller


def _credential(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = [value for name, value in headers if name in (b"authorization", b"x-api-key")]
    if not given:
        raise unknown(
            "this service asks who calls",
            "send a token: Authorization: Bearer fk_… (flowkit: FLOWKIT_SERVICE_TOKEN; Metaflow:"
            " METAFLOW_SERVICE_AUTH_KEY). flowkit service token create NAME makes one",
            error=None,
        )
    found = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            scheme, _, text = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                raise unknown(
                    "the service takes bearer tokens only", "Authorization: Bearer …", error="invalid_request"
                )
            found.add(text.strip())
    if len(found) != 1:
        raise unknown("the request brings several tokens", "send one", error="invalid_request")
    return found.pop().decode("latin-1")


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _address(scope: Any) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "local"


def _unpacked(scope: Any, length: int) -> None:
    """Let the headers say of a body what it is now."""
    changed = (b"content-encoding", b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in scope["headers"] if name not in changed]
    scope["headers"] = [*kept, (b"content-length", b"%d" % length)]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, and after that whatever comes."""
    first = True

    async def replayed() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


class _Answer:
    """What goes back: remembers the status and adds the guard's own headers; streams pass as they come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500
        self.origin: str | None = None
        """Of a page from elsewhere that may read the answer."""
        self.preflight = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers()]}
        await self._send(message)

    async def empty(self, status: int) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": []})
        await self.send({"type": "http.response.body", "body": b""})

    async def error(self, error: FlowkitError) -> None:
        """Answer a request that was not let in. The connection ends: something may still be on its way in it."""
        headline, hint = told_of(error)
        body = json.dumps({"error": headline, "hint": hint}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *((name.lower().encode(), value.encode()) for name, value in getattr(error, "headers", {}).items()),
        ]
        status = status_of(error)
        if status >= 500:
            logger.warning("%s", error)
        if status in (400, 408, 413, 415):
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _headers(self) -> Iterator[tuple[bytes, bytes]]:
        yield b"x-content-type-options", b"nosniff"
        if self.origin is None:
            return
        yield b"access-control-allow-origin", self.origin.encode()
        yield b"vary", b"Origin"
        yield b"access-control-expose-headers", b"X-Next-Cursor, Retry-After"
        if self.preflight:
            yield b"access-control-allow-methods", b"GET, POST, PATCH, DELETE"
            yield b"access-control-allow-headers", b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
            yield b"access-control-max-age", b"600"
