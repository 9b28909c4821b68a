"""How much of everything one caller gets: requests, bytes, time, depth."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from flowkit.metadata_service.metrics import Message, Receive
from flowkit.metadata_service.refused import Refused

CALLERS = 10_000
"""Callers whose rates are kept; the one that was quiet for longest is forgotten first."""
IDLE = 15.0
"""Seconds in which something more of a body must arrive."""
WHOLE = 120.0
"""Seconds in which all of a body must have arrived."""
WAITING = 64 * 1024 * 1024
"""Bytes of all bodies together that may be in memory, in units of the largest allowed body at least two: as values
they can take thirty times that room."""
MAX_URL = 8 * 1024
MAX_HEADERS = 32 * 1024
MAX_DEPTH = 64
"""Objects and lists inside each other in a body."""
MAX_DIGITS = 400
"""Of a number in a body: Python's own limit for integers is higher, and its conversion is quadratic."""

_PIECE = 1024 * 1024
_DRAIN = 2.0
"""Seconds for which the rest of a body that was refused is read, so that its sender gets to see the answer."""


class Rates:
    """Token buckets, one for each name.

    Parameters
    ----------
    rate : float
        Requests in a second, in the long run.
    burst : float
        Requests at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Count something; return 0 if it may be, else after how many seconds it may."""
        with self._lock:
            left, now = self._now(name)
            if left < 1.0:
                return (1.0 - left) / self._rate
            self._put(name, left - 1.0, now)
            return 0.0

    def wait(self, name: str) -> float:
        """Return after how many seconds something may be, without counting it."""
        with self._lock:
            left, _ = self._now(name)
            return 0.0 if left >= 1.0 else (1.0 - left) / self._rate

    def _now(self, name: str) -> tuple[float, float]:
        now = time.monotonic()
        left, when = self._left.get(name, (self._burst, now))
        return min(self._burst, left + (now - when) * self._rate), now

    def _put(self, name: str, left: float, now: float) -> None:
        self._left[name] = (left, now)
        self._left.move_to_end(name)
        while len(self._left) > CALLERS:
            self._left.popitem(last=False)


def too_many(seconds: float, what: str) -> Refused:
    """Return the refusal of one who calls too often (429)."""
    return Refused(429, what, "wait as long as Retry-After says", {"Retry-After": str(max(1, math.ceil(seconds)))})


def check_head(scope: Any) -> None:
    """Refuse a request whose address or headers are too long, or hold what no database takes.

    Raises
    ------
    Refused
        400, 414 or 431.
    """
    raw, query = scope.get("raw_path") or scope["path"].encode(), scope.get("query_string") or b""
    if len(raw) + len(query) > MAX_URL:
        raise Refused(414, f"the address is longer than {MAX_URL:,} bytes")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
        raise Refused(431, f"the headers are longer than {MAX_HEADERS:,} bytes")
    if not scope["path"].isprintable() or b"%00" in query:
        raise Refused(400, "the address has control characters in it")


class Bodies:
    """Reads what requests carry, within limits.

    Parameters
    ----------
    largest : int
        Bytes of one body, after unpacking.
    idle, whole : float
        Seconds in which a part, and all of it, must arrive.
    """

    def __init__(self, largest: int, idle: float = IDLE, whole: float = WHOLE) -> None:
        self._largest = largest
        self._idle = idle
        self._whole = whole
        self._most = max(WAITING, 2 * largest)
        self._held = 0

    async def read(self, headers: Sequence[tuple[bytes, bytes]], receive: Receive) -> bytes:
        """Return a body, unpacked; give its bytes back with `release`.

        Raises
        ------
        Refused
            400 for one that does not unpack, 408 for one that does not arrive, 413 for one that is too large, 415 for
            one of another kind, 503 where too many arrive at once.
        Gone
            If its sender has gone.
        """
        packed, announced = _kind(headers)
        if announced > self._largest:
            # Whoever asks first whether to send it is told no, and does not.
            await self._drain(receive, not any(name == b"expect" for name, _ in headers))
            raise self._too_large()
        inflater = _Inflater() if packed else None
        parts: list[bytes] = []
        taken = arrived = 0
        kept = False
        deadline = time.monotonic() + self._whole
        try:
            more = True
            while more:
                message = await self._next(receive, deadline)
                data, more = message.get("body", b""), message.get("more_body", False)
                arrived += len(data)
                if arrived > self._largest:
                    await self._drain(receive, more)
                    raise self._too_large()
                for piece in (data,) if inflater is None else inflater.pieces(data):
                    taken += len(piece)
                    self._held += len(piece)
                    if taken > self._largest:
                        await self._drain(receive, more)
                        raise self._too_large()
                    if self._held > self._most:
                        raise Refused(503, "the service has its hands full", "try again", {"Retry-After": "1"})
                    parts.append(piece)
                    if inflater is not None:
                        await asyncio.sleep(0)  # what unpacks to much does not keep others waiting
            if inflater is not None:
                inflater.finish(arrived)
            kept = True
        finally:
            if not kept:
                self._held -= taken
        return b"".join(parts)

    def release(self, body: bytes) -> None:
        """Note that a body that was read is not needed any more."""
        self._held -= len(body)

    async def _next(self, receive: Receive, deadline: float) -> Message:
        seconds = min(self._idle, deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(receive(), max(seconds, 0.001))
        except asyncio.TimeoutError:
            raise Refused(408, "the body did not arrive in time", "send it faster, or in smaller parts") from None
        if message["type"] != "http.request":
            raise Gone
        return message

    async def _drain(self, receive: Receive, more: bool) -> None:
        """Read what is still on its way, for a moment: a connection closed on it would take the answer along."""
        deadline = time.monotonic() + _DRAIN
        try:
            while more and time.monotonic() < deadline:
                more = (await self._next(receive, deadline)).get("more_body", False)
        except (Refused, Gone):
            return

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"the body is larger than {self._largest:,} bytes",
            "send less at once, or let the service take more: flowkit service --max-body BYTES",
        )


class Gone(Exception):
    """Whoever sent a request has gone; nobody is there to be answered."""


def _kind(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bool, int]:
    """Return whether a body is packed, and how long it is said to be; refuse what is no JSON.

    A page can make a browser send text or a form anywhere without asking; it cannot do that with JSON. Without a type
    (as Metaflow's heartbeats come) there is still the check of the page's origin.
    """
    packed, announced = False, 0
    for name, value in headers:
        if name == b"content-encoding":
            encoding = value.strip().lower()
            if encoding not in (b"gzip", b"x-gzip", b"identity", b""):
                raise Refused(415, "a body can be packed with gzip only", "or not at all")
            packed = packed or b"gzip" in encoding
        elif name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise Refused(400, "Content-Length is no number")
            announced = int(value)
        elif name == b"content-type":
            kind = value.split(b";")[0].strip().lower()
            if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
                raise Refused(415, "a body is JSON", "Content-Type: application/json")
    return packed, announced


class _Inflater:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    def pieces(self, data: bytes) -> Iterable[bytes]:
        try:
            while data:
                if self._inflate.eof:
                    raise Refused(400, "there is more in the body than one gzip stream")
                piece = self._inflate.decompress(data, _PIECE)
                data = self._inflate.unconsumed_tail or self._inflate.unused_data
                if piece:
                    yield piece
                elif self._inflate.eof and data:
                    continue
                else:
                    return
        except zlib.error:
            raise Refused(400, "the body does not unpack as gzip") from None

    def finish(self, arrived: int) -> None:
        if arrived and not self._inflate.eof:
            raise Refused(400, "the body does not unpack as gzip: its end is missing")


def json_value(raw: bytes) -> Any:
    """Return a body that no model describes as plain values.

    Raises
    ------
    Refused
        400 for what is no JSON, or not sensible: too deep, numbers too long, not finite, lone surrogates, NULs.
    """
    try:
        # bytes.decode refuses UTF-16, which json.loads would take, and lone surrogates
        value = json.loads(raw.decode("utf-8"), parse_constant=_not_finite, parse_int=_number)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON", "UTF-8, not too deep, numbers that are finite") from None
    _check_sensible(value)
    return value


def _not_finite(name: str) -> None:
    raise ValueError(name)


def _number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    return int(text)


def _check_sensible(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                _check_text(each)
            elif isinstance(each, float):
                if not math.isfinite(each):
                    raise Refused(400, "there is a number in the body that is not finite")
            elif isinstance(each, dict):
                below += each.keys()
                below += each.values()
            elif isinstance(each, list):
                below += each
        if not below:
            return
        level = below
    raise Refused(400, f"the body is deeper than {MAX_DEPTH} levels")


def _check_text(text: str) -> None:
    if "\x00" in text or not _encodable(text):
        raise Refused(400, "there is a text in the body with a NUL or half a character in it")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
