"""What the service says while it runs: one JSON object a line on stderr.

Lines are written by a thread of their own, so that a terminal that was stopped, or a full pipe, holds up no request.
What waits is bounded: lines beyond that are dropped, and their number is told.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
WAITING = 10_000
"""Lines that may wait to be written."""
_LONGEST = 2_000
"""Characters of a path that are shown."""
_LOGGERS = ("flowkit", "uvicorn")
_QUIET = {"uvicorn.error": logging.WARNING}
"""What tells too much at its usual level: uvicorn notes each start and stop as information."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class LineWriter:
    """Writes lines to stderr, in a thread.

    Parameters
    ----------
    write : callable, optional
        Takes a text of whole lines; default: to stderr.
    """

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or _to_stderr
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._dropped = 0
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="flowkit-log", daemon=True)
        self._thread.start()

    def put(self, line: Mapping[str, Any]) -> None:
        """Let a line wait to be written; never blocks."""
        with self._news:
            if len(self._waiting) >= WAITING:
                self._dropped += 1
            else:
                self._waiting.append(line)
                if len(self._waiting) == 1:
                    self._news.notify()

    def close(self, patience: float = 2.0) -> None:
        """Write what waits, and end; a stderr that takes nothing is waited for only so long (in seconds)."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join(patience)

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._closed:
                    self._news.wait()
                if not self._waiting:
                    return
                lines = list(self._waiting)
                self._waiting.clear()
                dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append({**_head("warning"), "message": f"{dropped:,} lines of the log were dropped"})
            try:
                self._write("".join(json.dumps(line, default=str) + "\n" for line in lines))
            except (OSError, ValueError):  # nobody reads it any more
                continue


class JsonLines(logging.Handler):
    """Hands log records to a `LineWriter` as ``time, level, message``, and ``traceback`` where there is one.

    A record's `fields` (``extra={"fields": {…}}``) are told under their names.
    """

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Let a record wait to be written."""
        try:
            line = {**_head(record.levelname.lower(), record.created), "message": record.getMessage()}
            line = {**getattr(record, "fields", {}), **line}
            if record.exc_info and record.exc_info[1] is not None:
                line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        except Exception:  # the border of logging: a broken message must not break what it tells of
            line = {**_head("error", record.created), "message": f"(a message that cannot be had: {record.msg!r})"}
        self._writer.put(line)


def log_to(writer: LineWriter, level: str) -> None:
    """Send what flowkit and uvicorn log to a writer, from a level on."""
    handler = JsonLines(writer)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(
            level.upper() if level == "debug" else max(least, logging.getLevelName(level.upper()))
        )


CLIENT_GONE = 499
"""What is noted for a request whose sender went away before it was answered (nginx's number for it)."""


def access_log(writer: LineWriter) -> Callable[[Application], Application]:
    """Return a middleware that writes a line for each request.

    It tells who asked for what and what came of it: nothing of the query, the headers or the bodies.
    """

    def wrap(app: Application) -> Application:
        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            begun = time.perf_counter()
            status = size = 0

            async def watch(message: Message) -> None:
                nonlocal status, size
                if message["type"] == "http.response.start":
                    status = message["status"]
                elif message["type"] == "http.response.body":
                    size += len(message.get("body", b""))
                await send(message)

            try:
                await app(scope, receive, watch)
            except BaseException:
                status = status or 500
                raise
            finally:
                caller = scope.get("state", {}).get("caller")
                writer.put(
                    {
                        **_head("info"),
                        "method": scope["method"],
                        "path": scope["path"][:_LONGEST],
                        "status": status or CLIENT_GONE,
                        "milliseconds": round((time.perf_counter() - begun) * 1000, 2),
                        "bytes": size,
                        "caller": getattr(caller, "name", None),
                        "address": (scope.get("client") or (None,))[0],
                    }
                )

        return logged

    return wrap


def _head(level: str, when: float | None = None) -> dict[str, Any]:
    now = time.time() if when is None else when
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z",
        "level": level,
    }


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
