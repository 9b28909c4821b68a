"""Addresses of metadata services, and what is said of answers that are none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from flowkit.exceptions import NotFound, StoreError, UsageError
from flowkit.metadata.service import ServiceMetadata, service_place
from flowkit.metadata.service_calls import Away, Calls, Place, Refused, Rejected, Stranger, checked_url
from flowkit.settings import settings


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "https://flows.example.org/team/", "http://[::1]:8080/"])
def test_addresses_of_services(url: str) -> None:
    assert checked_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "host:8080", "http://", "http://ada:pass1234@host", "http://h:x", "http://h/?a=b", "http://h/ x"],
)
def test_what_is_no_address_is_refused_and_shows_no_password(url: str) -> None:
    with pytest.raises(UsageError, match="address") as caught:
        checked_url(url)
    assert "pass1234" not in str(caught.value)


def test_the_setting_is_checked_and_the_token_is_for_its_service_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_SERVICE_URL", "localhost:8080")
    with pytest.raises(UsageError, match="FLOWKIT_SERVICE_URL must begin with http"):
        settings(reload=True)
    monkeypatch.setenv("FLOWKIT_SERVICE_URL", "http://ours:8080/")
    monkeypatch.setenv("FLOWKIT_SERVICE_TOKEN", "secret")
    settings(reload=True)
    try:
        assert service_place() == Place("http://ours:8080", "secret")
        assert service_place("http://ours:8080") == Place("http://ours:8080", "secret")
        assert service_place("http://theirs:8080") == Place("http://theirs:8080", None)
    finally:
        monkeypatch.undo()
        settings(reload=True)


@contextmanager
def answering(answer: Callable[[int], bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers each connection with some bytes, and keeps what it was sent."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65_536))
                    connection.sendall(answer(len(asked)))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def http(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (http("200 OK", "<html>"), Stranger),
        (http("200 OK", "[" * 100_000), Stranger),
        (http("404 Not Found", "nothing here"), Stranger),
        (http("404 Not Found", '{"detail": "Not Found"}'), Stranger),
        (http("302 Found", "", "Location: http://elsewhere/"), Stranger),
        (http("404 Not Found", '{"error": "there is no run X/1", "hint": null}'), NotFound),
        (http("422 Unprocessable", '{"error": "records[0]: wrong", "hint": "see"}'), Rejected),
        (http("401 Unauthorized", '{"error": "the token tok-123 is wrong\\n\\u001b[31m", "hint": null}'), Refused),
        (http("503 Unavailable", '{"error": "the database is away", "hint": null}', "Retry-After: 7"), Away),
        (http("502 Bad Gateway", "<html>a proxy</html>"), Away),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Away),
        (b"", Away),
    ],
)
def test_each_answer_is_an_error_of_its_kind_without_the_token(answer: bytes, kind: type[Exception]) -> None:
    with answering(lambda _: answer) as (url, asked):
        calls = Calls(Place(url, "tok-123"))
        with pytest.raises(kind) as caught:
            calls.call("GET", "/v1/about", tries=1)
        calls.close()
    assert b"Authorization: Bearer tok-123" in asked[0]
    assert "tok-123" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    if kind in (Stranger, Away, Refused):
        assert isinstance(caught.value, StoreError)
        assert url in str(caught.value)
    if isinstance(caught.value, Away) and b"Retry-After" in answer:
        assert caught.value.after == 7.0


def test_what_fails_for_a_moment_is_tried_again_under_the_same_key() -> None:
    good = http("200 OK", '{"written": 1, "repeated": false}')
    with answering(lambda count: good if count == 3 else b"") as (url, asked):
        calls = Calls(Place(url))
        assert calls.call("POST", "/v1/records", b"{}", key="k-1") == {"written": 1, "repeated": False}
        calls.close()
    assert len(asked) == 3
    assert all(b"Idempotency-Key: k-1" in each for each in asked)


def test_a_page_that_is_none_is_a_stranger() -> None:
    with answering(lambda _: http("200 OK", '{"items": 3, "next": null}')) as (url, _):
        store = ServiceMetadata(url)
        with pytest.raises(Stranger):
            store.flows()
        store.close()
