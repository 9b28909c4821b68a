"""``GET /v1/events``: what changes, as server-sent events.

A stream begins with ``ready`` (or with ``reset``, see below), whose id is where it begins: whoever lists the runs after
that has seen everything. Then come the changes, each with its id. A listener that was cut off, by whomever, comes back
with the last id that it has (``Last-Event-ID``, or ``after=``) and goes on there: first from the database, then live.
"""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from flowkit.exceptions import StoreError, UsageError
from flowkit.metadata_service import wire
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.broadcast import CHUNK, PAST, Broadcaster, Listener, Wanted, encode, message
from flowkit.metadata_service.metrics import Message, Receive, Scope, Send
from flowkit.metadata_service.problems import answers, problem
from flowkit.metadata_service.service import Service

MAX_EVENT = 2**63 - 1
"""The largest id that the databases hold."""
MIN_PAGE, MAX_PAGE = 25, 2000
"""Events that are read from the database at once for one listener."""
HELD = 512 * 1024
"""Bytes of events that are held for a listener that came back, where the page can be made to fit."""
RETRY_AFTER = "5"
"""Seconds after which whoever found the service full may try again."""
FAREWELLS = {
    "slow": "events came faster than they were read: connect again with the last id",
    "stopping": "the service stops: connect again with the last id",
    "expired": "the token is not good any more: connect again with another one",
}
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    # nginx would hold events back until it has a buffer full of them
    "X-Accel-Buffering": "no",
}

Part = Annotated[str | None, Query(pattern=wire.NAME)]
Kinds = Annotated[
    list[Literal["run", "task", "tags", "deleted"]] | None,
    Query(max_length=4, description="Only changes of these kinds; may be given several times."),
]
After = Annotated[int | None, Query(ge=0, le=MAX_EVENT, description="Go on after this event.")]
LastEvent = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=40, description="The same; it wins over `after`.")
]


def router(service: Service) -> APIRouter:
    """Return the route."""
    routes = APIRouter(prefix="/v1", tags=["live"])
    broadcaster, guard = service.broadcaster, service.guard
    told: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "events, until it ends"},
        **answers(),
    }

    @routes.get("/events", response_class=Response, responses=told)
    async def listen(
        request: Request,
        flow: Part = None,
        run: Part = None,
        step: Part = None,
        task: Part = None,
        kind: Kinds = None,
        after: After = None,
        last_event: LastEvent = None,
        caller: Caller = Depends(guard.reader),
    ) -> Response:
        """Stream changes of all runs, of a flow, a run, a step or a task, from now on or after a given event.

        Each event has an `id`, its kind as `event` (`run`, `task`, `tags`, `deleted`) and one line of JSON as `data`:
        `{"id", "kind", "flow", "run", "step", "task", "created", "data"}`, where the inner `data` is the new record.
        `ready` comes first. `reset` comes instead where events after the given one are not kept any more: list
        again. `end` comes last, where it is the service that ends the stream, and says why.
        """
        begin = _beginning(last_event, after)
        if broadcaster.full or broadcaster.stopping:
            what = "is stopping" if broadcaster.stopping else "has as many listeners as it may have"
            headers = {"Retry-After": RETRY_AFTER}
            return problem(503, f"the service {what}", "try again in a moment", headers)
        wanted = Wanted(flow, run, step, task, frozenset(kind) if kind else None)
        _check_order(wanted)
        valid = guard.still(request) if service.configuration.guarded else None
        return EventStream(broadcaster, Listener(wanted, caller, valid), begin)

    return routes


def _beginning(header: str | None, after: int | None) -> int | None:
    """Return the id after which a stream begins; None for now."""
    if header is None or not header.strip():
        return after
    text = header.strip()
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_EVENT):
        raise UsageError("Last-Event-ID is not the id of an event", "leave the header out to begin now")
    return int(text)


def _check_order(wanted: Wanted) -> None:
    places = ("flow", "run", "step", "task")
    for outer, inner in pairwise(places):
        if getattr(wanted, inner) is not None and getattr(wanted, outer) is None:
            raise UsageError(f"'{inner}' without '{outer}'", f"say which {outer} it is of")


class EventStream(Response):
    """The answer to whoever listens.

    Parameters
    ----------
    broadcaster : Broadcaster
    listener : Listener
    begin : int or None
        The event after which it begins; None for now.
    """

    def __init__(self, broadcaster: Broadcaster, listener: Listener, begin: int | None) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._broadcaster = broadcaster
        self._listener = listener
        self._begin = begin
        self._page = PAST

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until one side has enough."""
        listener = self._listener
        self._broadcaster.enter(listener)
        watcher = None
        kind = "ready"
        try:
            # Before the first byte: a database that does not answer is a 503.
            if await self._lost(await self._broadcaster.position()):
                self._begin, kind = None, "reset"
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            listener.sending = asyncio.current_task()
            watcher = asyncio.create_task(_watch(receive, listener))
            await self._stream(kind, send)
            if listener.ended != "gone":
                await send(_chunk(self._farewell(), more=False))
        except asyncio.CancelledError:
            if listener.ended is None:
                raise
            # It did not even take the news of its end. The server closes the connection.
        finally:
            if watcher is not None:
                watcher.cancel()
            self._broadcaster.leave(listener)

    async def _stream(self, kind: str, send: Send) -> None:
        listener, begin = self._listener, self._begin
        listener.after = self._broadcaster.join(listener) if begin is None else begin
        # Clients come back after two to six seconds, not all of them at once.
        retry = b"retry: %d\n\n" % random.randint(2000, 6000)
        await send(_chunk(retry + message(kind, {"after": str(listener.after)}, listener.after)))
        if begin is not None:
            await self._catch_up(send)
        listener.live = True
        while text := await listener.take():
            await send(_chunk(text))

    async def _lost(self, position: int) -> bool:
        """Whether events after the given one may be missing from the database, or it is from another database."""
        if self._begin is None or self._begin == position:
            return False
        first, last = await self._broadcaster.bounds()
        return not first <= self._begin <= last

    async def _catch_up(self, send: Send) -> None:
        """Send what is in the database, and then join those who get the rest."""
        listener, broadcaster = self._listener, self._broadcaster
        if listener.after != await broadcaster.position():
            while await self._send_past(send):
                pass
        # From here on everything after `joined` goes to the queue. What is before it and was not sent yet is a page
        # or two, since the database was read to its end a moment ago.
        joined = broadcaster.join(listener)
        while listener.after < joined and await self._send_past(send, joined):
            pass
        if listener.ended is None:
            listener.after = max(listener.after, joined)

    async def _send_past(self, send: Send, until: int = MAX_EVENT) -> bool:
        """Send a page of events from the database, up to an id; False if there are no more."""
        listener = self._listener
        if listener.ended is not None:
            return False
        try:
            page = await self._broadcaster.past(listener.after, self._page)
        except StoreError:
            # The answer has begun: all that is left is to send the listener away.
            self._broadcaster.end(listener, "stopping")
            return False
        more = len(page) == self._page and page[-1].id < until
        waiting = [(event.id, encode(event)) for event in page if event.id <= until and listener.sees(event)]
        last = max((event.id for event in page if event.id <= until), default=listener.after)
        self._fit_page(sum(len(text) for _, text in waiting))
        del page
        while waiting and listener.ended is None:
            count = size = 0
            while count < len(waiting) and (count == 0 or size + len(waiting[count][1]) <= CHUNK):
                size += len(waiting[count][1])
                count += 1
            await send(_chunk(b"".join(text for _, text in waiting[:count])))
            listener.after = waiting[count - 1][0]
            listener.moved = time.monotonic()
            self._broadcaster.count_past(count)
            del waiting[:count]
        if listener.ended is None:
            listener.after = last
            listener.moved = time.monotonic()
        return more and listener.ended is None

    def _fit_page(self, size: int) -> None:
        """Read more at once where little of it is sent, less where much of it would have to be held."""
        if size < HELD // 4:
            self._page = min(MAX_PAGE, self._page * 2)
        elif size > HELD:
            self._page = max(MIN_PAGE, self._page // 4)

    def _farewell(self) -> bytes:
        listener = self._listener
        reason = listener.ended or "stopping"
        said = {"reason": reason, "text": FAREWELLS[reason], "after": str(listener.after)}
        return message("end", said, listener.after)


def _chunk(text: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": text, "more_body": more}


async def _watch(receive: Receive, listener: Listener) -> None:
    """Notice that a listener is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.end("gone")
