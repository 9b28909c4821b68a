"""Events on their way from the database to everybody who listens.

One thread for each process reads the outbox, however many listen. What it reads is handed to the event loop of the
server in pages, the next one when the last one was dealt with, so that nothing piles up between the two. There each
event is encoded once and put into the queue of every listener that wants it and may see it. A queue is bounded: who
does not read is cut off, and comes back for the rest with the id of the last event that it has.

Listeners have no thread and no timer of their own. One timer for all of them goes round: each second it looks at a
share of the listeners, sends those a sign of life that were not sent anything, and asks whether they still may listen.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from flowkit.exceptions import StoreError
from flowkit.metadata_service.access import Caller
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.metrics import Metrics
from flowkit.metadata_service.store import Event, ServiceStore

logger = logging.getLogger(__name__)

PAGE = 500
"""Events that are read and handed on at once."""
QUEUE = 4 * PAGE
"""Events that may wait for one listener: bursts of a few pages are nobody's fault."""
QUEUE_BYTES = 4 * 1024 * 1024
"""The same in bytes; they are shared by all who wait for the same event."""
CHUNK = 64 * 1024
"""Bytes that are joined to be sent at once: what is on its way to a listener is not shared with the others."""
PAST = 100
"""Events that a listener that came back reads from the database at once, to begin with."""
TICK = 1.0
"""Seconds between two looks of the timer at a share of the listeners."""
ROUND = 15
"""Looks after which it has seen all of them."""
STALLED = 30.0
"""Seconds in which a listener must take the next piece of what is past, or the news that it was cut off."""
SLICE = 20_000
"""Pairs of an event and a listener that the event loop deals with before it turns to other work."""
SLICE_BYTES = 256 * 1024
"""The same in bytes of events; then the listeners have a moment to take them."""
MOMENT = 0.01
"""Seconds."""
REST = 0.05
"""Seconds between two looks at the outbox while events come in fast."""
TRIM = 300.0
"""Seconds between two times that old events are dropped, at most."""
PATIENCE = 10.0
"""Seconds that a new listener waits for a database that does not answer."""


class Wanted(NamedTuple):
    """Which events a listener asked for; None stands for any.

    Parameters
    ----------
    flow, run, step, task : str or None
        Each one narrows those before it.
    kinds : frozenset of str or None
        Of `Event.kind`.
    """

    flow: str | None = None
    run: str | None = None
    step: str | None = None
    task: str | None = None
    kinds: frozenset[str] | None = None

    def takes(self, event: Event) -> bool:
        """Whether an event is among them."""
        return (
            (self.flow is None or self.flow == event.flow)
            and (self.run is None or self.run == event.run)
            and (self.step is None or self.step == event.step)
            and (self.task is None or self.task == event.task)
            and (self.kinds is None or event.kind in self.kinds)
        )


class Listener:
    """One stream: what it wants, and what waits to be sent on it. Belongs to the event loop's thread.

    Parameters
    ----------
    wanted : Wanted
    caller : Caller
        Who listens; sees the events of its projects only.
    valid : callable, optional
        Whether the caller may still listen; asked now and then, in a thread.
    """

    def __init__(self, wanted: Wanted, caller: Caller, valid: Callable[[], bool] | None = None) -> None:
        self.wanted = wanted
        self.caller = caller
        self.valid = valid
        self.after = 0
        """Events up to this id are not for this listener, or were sent to it."""
        self.ended: str | None = None
        """Why the stream is over: ``slow``, ``stopping``, ``expired``, ``gone``."""
        self.ended_at = 0.0
        self.live = False
        """Whether everything up to the broadcaster's position was put into the queue."""
        self.moved = time.monotonic()
        """When it last took something of what is past; for those that are not live."""
        self.sending: asyncio.Task[object] | None = None
        """What is to be cancelled when it does not take even the news of its end."""
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._news = asyncio.Event()

    def sees(self, event: Event) -> bool:
        """Whether an event is for this listener."""
        return self.wanted.takes(event) and self.caller.sees_any(event.projects)

    def put(self, event_id: int, text: bytes) -> bool:
        """Let something wait to be sent; False if too much waits already."""
        if self._waiting and (len(self._waiting) >= QUEUE or self._bytes + len(text) > QUEUE_BYTES):
            return False
        if self.ended is None:
            self._waiting.append((event_id, text))
            self._bytes += len(text)
            self._news.set()
        return True

    def end(self, reason: str) -> None:
        """End the stream; what waits is forgotten."""
        if self.ended is None:
            self.ended = reason
            self.ended_at = time.monotonic()
            self._waiting.clear()
            self._bytes = 0
            self._news.set()

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    async def take(self) -> bytes:
        """Wait for something to send and return it, `CHUNK` bytes or one event; empty when the stream is over."""
        while not self._waiting:
            if self.ended is not None:
                return b""
            self._news.clear()
            await self._news.wait()
        texts: list[bytes] = []
        size = 0
        while self._waiting and (not texts or size + len(self._waiting[0][1]) <= CHUNK):
            event_id, text = self._waiting.popleft()
            texts.append(text)
            size += len(text)
            self.after = max(self.after, event_id)
        self._bytes -= size
        return b"".join(texts)


class Broadcaster:
    """Hands the events of a store to listeners.

    Parameters
    ----------
    store : ServiceStore
    configuration : Configuration
        Of it `events_kept` and `max_streams`.
    metrics : Metrics
    """

    def __init__(self, store: ServiceStore, configuration: Configuration, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._kept = configuration.events_kept
        self._most = configuration.max_streams
        # Of the threads.
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._end_listening: Callable[[], None] | None = None
        self._past = ThreadPoolExecutor(2, "flowkit-events-past")
        # Of the event loop; `_loop` is set while somebody listens.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._position: int | None = None
        self._expecting: list[asyncio.Future[int]] = []
        self._listeners: set[Listener] = set()
        self._by_run: dict[tuple[str | None, str | None], set[Listener]] = {}
        self._shares: list[set[Listener]] = [set() for _ in range(ROUND)]
        self._places: dict[Listener, int] = {}
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None

    # -- its life, from any thread -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read."""
        for name, run in (("events", self._read), ("events-trim", self._trim)):
            thread = threading.Thread(target=run, name=f"flowkit-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._end_listening = self._store.listen(self._news.set)

    def stop(self) -> None:
        """End all streams at once and then the threads. May be called twice, and from the event loop as well."""
        self._stopping.set()
        self._news.set()
        loop = self._loop
        if loop is not None and loop is _running_loop():
            self._end_all()
        elif loop is not None:
            try:
                loop.call_soon_threadsafe(self._end_all)
            except RuntimeError:  # the loop is closed: so are the streams
                pass
        if self._end_listening is not None:
            self._end_listening()
            self._end_listening = None
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()
        self._past.shutdown(wait=False, cancel_futures=True)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    # -- listeners, in the event loop --------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether there are as many listeners as are allowed."""
        return len(self._listeners) >= self._most

    def enter(self, listener: Listener) -> None:
        """Count a listener in and look after it, before it is given anything (see `join`)."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # A server has one loop. What is left of another one (closed without a word) is of no use.
            self._forget()
            self._loop = loop
        self._listeners.add(listener)
        place = min(range(ROUND), key=lambda share: len(self._shares[share]))
        self._places[listener] = place
        self._shares[place].add(listener)
        self._metrics.listening(len(self._listeners))
        if self._timer is None:
            self._timer = loop.call_later(TICK, self.tick)
        if self.stopping:
            self.end(listener, "stopping")

    def leave(self, listener: Listener) -> None:
        """Forget a listener."""
        listener.end("gone")
        self._listeners.discard(listener)
        place = self._places.pop(listener, None)
        if place is not None:
            self._shares[place].discard(listener)
        self._pass_over(listener)
        self._metrics.listening(len(self._listeners))
        if not self._listeners:
            self._forget()

    def end(self, listener: Listener, reason: str) -> None:
        """End a stream: ``slow``, ``stopping`` or ``expired``. Its listener leaves by itself once it was told."""
        if listener.ended is None:
            listener.end(reason)
            self._pass_over(listener)
            self._metrics.ended(reason)

    def _pass_over(self, listener: Listener) -> None:
        """Give a listener no more events."""
        key = (listener.wanted.flow, listener.wanted.run)
        mates = self._by_run.get(key)
        if mates is not None:
            mates.discard(listener)
            if not mates:
                del self._by_run[key]

    def _forget(self) -> None:
        self._loop = None
        self._position = None
        self._expecting.clear()
        self._listeners.clear()
        self._by_run.clear()
        self._places.clear()
        for share in self._shares:
            share.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def position(self) -> int:
        """Return the id of the event that was handed out last.

        Raises
        ------
        StoreError
            If the database does not answer.
        """
        if self._position is not None:
            return self._position
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._expecting.append(future)
        self._news.set()
        try:
            return await asyncio.wait_for(future, PATIENCE)
        except asyncio.TimeoutError:
            raise StoreError("the database does not answer", "try again in a moment") from None

    def join(self, listener: Listener) -> int:
        """Give a listener all events from now on; returns the id of the last one that it is not given.

        Call it after `position`, without waiting for anything in between.
        """
        assert self._position is not None
        self._by_run.setdefault((listener.wanted.flow, listener.wanted.run), set()).add(listener)
        return self._position

    async def past(self, after: int, limit: int) -> list[Event]:
        """Return events after an id, from the database; fewer than the limit if there are no more."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._past, self._store.events_after, after, limit)

    async def bounds(self) -> tuple[int, int]:
        """Return the ids of the oldest and the newest event that are kept."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._past, lambda: (self._store.first_event(), self._store.last_event()))

    def count_past(self, sent: int) -> None:
        """Count events that a listener got from the database."""
        self._metrics.sent(sent)

    # -- the reader --------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        last: int | None = None
        pause = REST
        while not self.stopping:
            self._news.wait()
            self._news.clear()
            if self._loop is None:
                last = None  # nobody listens: whoever comes begins at what is newest then
                continue
            try:
                if last is None:
                    last = self._store.last_event()
                last = self._read_on(last)
                pause = REST + min(0.35, len(self._listeners) / 10_000)
            except StoreError as error:
                self._metrics.database_failed()
                logger.warning("events cannot be read, trying again: %s", error.headline)
                pause = min(5.0, pause * 2)
                self._news.set()
            except Exception:  # the border of the thread, without which nobody would hear anything any more
                logger.exception("events cannot be read, trying again")
                pause = min(5.0, pause * 2)
                self._news.set()
            self._stopping.wait(pause)

    def _read_on(self, last: int) -> int:
        """Hand on all there is after an id, at least an empty page; returns the id of the newest."""
        while not self.stopping:
            page = self._store.events_after(last, PAGE)
            if page:
                last = page[-1].id
            if not self._hand_over(page, last) or len(page) < PAGE:
                break
        return last

    def _hand_over(self, page: Sequence[Event], last: int) -> bool:
        """Give a page to the event loop and wait until it is dealt with; False if there is nobody any more."""
        loop = self._loop
        if loop is None:
            return False
        done = threading.Event()
        try:
            loop.call_soon_threadsafe(self._deal, deque(page), last, done)
        except RuntimeError:  # the loop is closed
            return False
        while not done.wait(0.1):
            if self.stopping or loop.is_closed():
                return False
        return True

    def _deal(self, page: deque[Event], last: int, done: threading.Event) -> None:
        """Put events into queues, in slices; in the event loop."""
        if self._loop is None:  # everybody left
            done.set()
            return
        work = sent = size = 0
        while page and work < SLICE and size < SLICE_BYTES:
            event = page.popleft()
            text: bytes | None = None
            for listener in self._candidates(event):
                work += 1
                if event.id > listener.after and listener.sees(event):
                    text = text or encode(event)
                    if listener.put(event.id, text):
                        sent += 1
                    else:
                        self.end(listener, "slow")
            self._position = event.id
            work += 1
            size += len(text or b"")
        self._metrics.sent(sent)
        if page:
            pause = MOMENT if size >= SLICE_BYTES else 0
            asyncio.get_running_loop().call_later(pause, self._deal, page, last, done)
            return
        self._position = last
        for future in self._expecting:
            if not future.done():
                future.set_result(last)
        self._expecting.clear()
        done.set()

    def _candidates(self, event: Event) -> Iterable[Listener]:
        for key in ((event.flow, event.run), (event.flow, None), (None, None)):
            yield from tuple(self._by_run.get(key, ()))

    # -- the timer ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look after a share of the listeners, and come again."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(TICK, self.tick)
        self._turn = (self._turn + 1) % ROUND
        now = time.monotonic()
        asked = []
        for listener in tuple(self._shares[self._turn]):
            if listener.ended is not None:
                if now - listener.ended_at > STALLED and listener.sending is not None:
                    listener.sending.cancel()
                continue
            if not listener.live and now - listener.moved > STALLED:
                self.end(listener, "slow")
                continue
            if listener.idle:
                self._sign_of_life(listener)
            if listener.valid is not None:
                asked.append(listener)
        if asked:
            loop.run_in_executor(self._past, self._ask, loop, asked)

    def _sign_of_life(self, listener: Listener) -> None:
        """Say how far the listener has come, which makes no event, but keeps the id fresh by which it comes back."""
        if listener.live and self._position is not None:
            at = max(self._position, listener.after)
            listener.put(at, b"id: %d\n\n" % at)
        else:
            listener.put(listener.after, b": \n\n")

    def _ask(self, loop: asyncio.AbstractEventLoop, listeners: Sequence[Listener]) -> None:
        """Ask whether some may still listen; in a thread."""
        for listener in listeners:
            try:
                good = listener.valid is None or listener.valid()
            except StoreError:  # a database that does not answer ends no stream
                self._metrics.database_failed()
                continue
            except Exception:  # the border of the thread
                logger.exception("cannot tell whether a listener may still listen")
                continue
            if not good:
                try:
                    loop.call_soon_threadsafe(self.end, listener, "expired")
                except RuntimeError:  # the loop is closed
                    return

    def _end_all(self) -> None:
        for listener in tuple(self._listeners):
            self.end(listener, "stopping")
        for future in self._expecting:
            if not future.done():
                future.set_exception(StoreError("the service stops", "try again in a moment"))
        self._expecting.clear()

    # -- old events --------------------------------------------------------------------------------------------------

    def _trim(self) -> None:
        while not self._stopping.wait(min(TRIM, max(1.0, self._kept / 10))):
            try:
                self._store.trim_events(self._kept)
            except StoreError as error:
                self._metrics.database_failed()
                logger.warning("old events cannot be dropped, trying again later: %s", error.headline)
            except Exception:  # the border of the thread
                logger.exception("old events cannot be dropped, trying again later")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def encode(event: Event) -> bytes:
    """Return an event as it is sent: ``id``, ``event`` (its kind) and ``data`` (one line of JSON)."""
    data = {
        "id": str(event.id),  # readers whose numbers are floats keep all of it
        "kind": event.kind,
        "flow": event.flow,
        "run": event.run,
        "step": event.step,
        "task": event.task,
        "created": event.created,
        "data": event.data,
    }
    return message(event.kind, data, event.id)


def message(kind: str, data: object, event_id: int | None = None) -> bytes:
    """Return one server-sent event."""
    head = "" if event_id is None else f"id: {event_id}\n"
    # json escapes every control character, so the text is one line.
    return f"{head}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
