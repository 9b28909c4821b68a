"""A server in front of another one that does to requests what networks and busy services do."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("slow down", "failed after", "reset before", "lost", "cut", "delay", "silence")
"""Refused with 503; carried out but answered by 500; connection reset before; carried out and the answer lost; the
answer cut short; late; carried out and the connection closed."""

Answer = tuple[int, Mapping[str, str], bytes]


class Trouble:
    """The server.

    Parameters
    ----------
    upstream : str
        URL of the server that is asked.
    rate : float
        The share of requests that a fault happens to.
    seed : int
        Of the faults.
    faults : sequence of str
        Which ones; `FAULTS`.
    answer : callable, optional
        Called with method, path and headers: an answer to give instead of asking, or None.
    without : sequence of str
        Headers of requests that are not passed on.
    tls : ssl.SSLContext, optional
        To be spoken to by TLS.

    Attributes
    ----------
    seen : Counter
        How often each fault happened, and each method was asked.
    """

    def __init__(
        self,
        upstream: str,
        *,
        rate: float = 0.0,
        seed: int = 1,
        faults: tuple[str, ...] = FAULTS,
        answer: Callable[[str, str, Mapping[str, str]], Answer | None] | None = None,
        without: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.rate = rate
        self.faults = faults
        self.answer = answer
        self.without = without
        self.seen: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        trouble = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def _serve(self) -> None:
                trouble._serve(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

            def log_message(self, format: str, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, address: object) -> None:
                return

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Trouble:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _fault(self) -> str:
        with self._lock:
            fault = self._random.choice(self.faults) if self._random.random() < self.rate else ""
            self.seen[fault or "none"] += 1
            return fault

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.seen[handler.command] += 1
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in self.without}
        given = self.answer(handler.command, handler.path, headers) if self.answer else None
        fault = self._fault()
        if fault == "delay":
            time.sleep(0.05)
        if fault == "reset before":
            return _reset(handler)
        if fault == "slow down":
            given = 503, {}, b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
        if given is None:
            given = self._ask(handler.command, handler.path, headers, body)
        if fault == "lost":
            return _reset(handler)
        if fault == "silence":
            handler.close_connection = True
            return None
        if fault == "failed after":
            given = 500, {}, b"<Error><Code>InternalError</Code><Message>We failed.</Message></Error>"
        return _reply(handler, *given, cut=fault == "cut")

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.upstream.hostname or "", self.upstream.port, timeout=30)
        try:
            connection.request(method, path, body, {**headers, "Connection": "close"})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def _reply(
    handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: bytes, *, cut: bool = False
) -> None:
    handler.send_response_only(status)
    known = {name.lower(): value for name, value in headers.items()}
    for name, value in known.items():
        if name not in ("connection", "transfer-encoding", "content-length"):
            handler.send_header(name, value)
    handler.send_header("x-amz-request-id", known.get("x-amz-request-id", "TROUBLE1"))
    length = known.get("content-length", "0") if handler.command == "HEAD" else str(len(body))
    handler.send_header("content-length", length)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[: len(body) // 2] if cut else body)
    if cut:
        handler.close_connection = True
