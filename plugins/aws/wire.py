"""Requests for the objects of one bucket on connections of our own: content goes from the socket to where it is wanted.

A call of botocore's client costs a millisecond of the processor, nearly all of it for rules and models that come to the
same for every object, and copies what it reads; libraries in other languages are fast, but bring threads of their own,
which a task that forks would lose. So what is asked most often (read, look at, write, delete) is a request of a few
lines, signed here (AWS Signature Version 4). Only what is plain is believed: after any other answer the caller asks the
client, which follows redirects and says what is wrong. Proxies and special endpoints are left to the client altogether.
"""

from __future__ import annotations

import hashlib
import hmac
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from flowkit.plugins.aws.errors import Interrupted
from flowkit.plugins.aws.parts import Buffer

IDLE = 15.0
"""Seconds after which a connection is not used again: services close them without a word."""
_MOST_IDLE = 32
_LONGEST_ERROR = 1 << 20
_LONGEST_HEAD = 1 << 16
_JOINED = 1 << 16


class Reply(NamedTuple):
    """An answer, read to its end.

    Parameters
    ----------
    status : int
        Of HTTP.
    headers : dict of str to str
        By lower-case name.
    body : bytes
        Empty where it went into the caller's memory.
    length : int
        Bytes of the body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    length: int


class Wire:
    """The way to one bucket.

    Parameters
    ----------
    base : str
        URL of the bucket, e.g. ``https://name.s3.eu-west-1.amazonaws.com`` or ``http://127.0.0.1:9000/name``.
    region : str
        What requests are signed for.
    credentials : callable
        Returns the access key, the secret key and the session token (or None) to use now.
    certificates : str, optional
        File of the certificates that are trusted.
    connect_timeout, read_timeout : float
        Seconds.
    """

    def __init__(
        self,
        base: str,
        region: str,
        credentials: Callable[[], tuple[str, str, str | None]],
        *,
        certificates: str | None = None,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
    ) -> None:
        parts = urlsplit(base)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._place = parts.netloc.rpartition("@")[2]
        self._prefix = f"{parts.path.rstrip('/')}/"
        self._region = region
        self._credentials = credentials
        self._timeouts = connect_timeout, read_timeout
        self._tls = ssl.create_default_context(cafile=certificates) if parts.scheme == "https" else None
        self._idle: deque[_Link] = deque()
        self._key = ("", "", b"")

    def request(
        self,
        method: str,
        key: str,
        headers: Mapping[str, str],
        *,
        query: str = "",
        body: Buffer = b"",
        into: memoryview | None = None,
        most: int = 1 << 62,
    ) -> Reply:
        """Make a request.

        Parameters
        ----------
        method, key : str
            What is asked of which object.
        headers : mapping of str to str
            Lower-case names; values of ASCII.
        query : str
            Sorted and encoded, as ``a=1&b=2``.
        body : buffer
            Contiguous bytes to send.
        into : memoryview, optional
            Where a successful answer's body goes.
        most : int
            Bytes of a successful answer's body that are read; a longer one, or one that does not fit `into`, is not
            read at all, and only its headers and length are returned.

        Raises
        ------
        Interrupted
            If there is no whole answer. The service may have carried the request out.
        """
        path = self._prefix + quote(key, safe="/~")
        head = self._signed(method, path, query, headers, len(body))
        link = self._taken()
        fresh = link is None
        while True:
            try:
                if link is None:
                    link = _Link(self._host, self._port, self._tls, *self._timeouts)
                reply, again = link.exchange(method, head, body, into, most)
                break
            except (OSError, ValueError, EOFError) as error:
                stale = link is not None and not link.answered and not fresh and method in ("GET", "HEAD")
                if link is not None:
                    link.close()
                if not stale:
                    raise Interrupted(f"no whole answer from {self._place}: {error or type(error).__name__}") from error
                link, fresh = None, True  # the service had closed the connection while it was idle
            except BaseException:
                if link is not None:
                    link.close()
                raise
        if again and len(self._idle) < _MOST_IDLE:
            link.since = time.monotonic()
            self._idle.append(link)
        else:
            link.close()
        return reply

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def _taken(self) -> _Link | None:
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - link.since < IDLE and not link.closed_by_peer():
                return link
            link.close()

    def _signed(self, method: str, path: str, query: str, headers: Mapping[str, str], length: int) -> bytes:
        access, secret, token = self._credentials()
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        signed = {name: value for name, value in headers.items() if name.startswith("x-amz-")}
        signed |= {"host": self._place, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": now}
        if token:
            signed["x-amz-security-token"] = token
        names = sorted(signed)
        lines = [f"{name}:{' '.join(signed[name].split())}\n" for name in names]
        shown = ";".join(names)
        request = f"{method}\n{path}\n{query}\n{''.join(lines)}\n{shown}\nUNSIGNED-PAYLOAD"
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._signing_key(secret, now[:8]), text.encode(), "sha256").hex()
        sent = {**headers, **signed, "user-agent": "flowkit"}
        sent["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={shown}, Signature={signature}"
        )
        if method == "PUT":
            sent["content-length"] = str(length)
        target = f"{path}?{query}" if query else path
        whole = "".join([f"{method} {target} HTTP/1.1\r\n", *(f"{n}: {v}\r\n" for n, v in sent.items()), "\r\n"])
        if whole.count("\n") != len(sent) + 2:
            raise ValueError("a header may not contain a line break")
        return whole.encode("ascii")

    def _signing_key(self, secret: str, date: str) -> bytes:
        known = self._key
        if known[:2] != (secret, date):
            key = f"AWS4{secret}".encode()
            for part in (date, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            known = self._key = (secret, date, key)
        return known[2]


class _Link:
    """One connection: one request after another."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, connect_timeout: float, read_timeout: float
    ) -> None:
        self.since = 0.0
        self.answered = False
        self._socket: socket.socket = socket.create_connection((host, port), connect_timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
            self._socket.settimeout(read_timeout)
            self._file: Any = self._socket.makefile("rb", 1 << 16)
        except BaseException:
            self._socket.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        for part in ("_file", "_socket"):
            opened = getattr(self, part, None)
            if opened is not None:
                opened.close()

    def closed_by_peer(self) -> bool:
        """Whether something came although nothing was asked: the end, or an error before it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def exchange(
        self, method: str, head: bytes, body: Buffer, into: memoryview | None, most: int
    ) -> tuple[Reply, bool]:
        """Send a request and return the answer, and whether the connection can be used again."""
        self.answered = False
        if len(body) <= _JOINED:
            self._socket.sendall(head + body)
        else:
            self._socket.sendall(head)
            self._socket.sendall(body)
        status, headers, version = self._head()
        while status == 100:
            status, headers, version = self._head()
        again = version == b"HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if method == "HEAD" or status in (204, 304):
            return Reply(status, headers, b"", 0), again
        if "chunked" in headers.get("transfer-encoding", "").lower():
            content = self._chunked()
            return Reply(status, headers, content, len(content)), again
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise ValueError("an answer without a length")
        size = int(length)
        if status not in (200, 206):
            if size > _LONGEST_ERROR:
                raise ValueError("an endless error")
        elif size > (most if into is None else len(into)):
            return Reply(status, headers, b"", size), False
        elif into is not None:
            self._fill(into[:size])
            return Reply(status, headers, b"", size), again
        content = self._file.read(size)
        if len(content) != size:
            raise EOFError(f"the answer broke off after {len(content)} of {size} bytes")
        return Reply(status, headers, content, size), again

    def _fill(self, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            count = self._file.readinto(memory[done:])
            if not count:
                raise EOFError(f"the answer broke off after {done} of {len(memory)} bytes")
            done += count

    def _head(self) -> tuple[int, dict[str, str], bytes]:
        line = self._file.readline(_LONGEST_HEAD)
        if not line.endswith(b"\n"):
            raise EOFError("the connection was closed")
        self.answered = True
        version, _, rest = line.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError("an answer that is not HTTP")
        headers: dict[str, str] = {}
        left = _LONGEST_HEAD
        while (line := self._file.readline(left)) not in (b"\r\n", b"\n"):
            left -= len(line)
            if left <= 0 or not line.endswith(b"\n"):
                raise EOFError("the answer broke off in its head")
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(rest[:3]), headers, version

    def _chunked(self) -> bytes:
        parts: list[bytes] = []
        left = _LONGEST_ERROR
        while size := int(self._file.readline(100).split(b";")[0], 16):
            left -= size
            part = self._file.read(size) if left > 0 else b""
            if len(part) != size:
                raise EOFError("the answer broke off")
            parts.append(part)
            self._file.readline(100)
        while self._file.readline(_LONGEST_HEAD).strip():
            continue
        return b"".join(parts)


def plain_credentials(found: Any) -> Callable[[], tuple[str, str, str | None]]:
    """Return a function that gives the keys of botocore's credentials as they are now, renewed where they can be."""

    def now() -> tuple[str, str, str | None]:
        frozen = found.get_frozen_credentials()
        return frozen.access_key, frozen.secret_key, frozen.token

    return now
