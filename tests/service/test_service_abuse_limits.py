"""Requests that are too much: of everything, from anywhere, in every way that a connection allows."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata_service import limits
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.limits import Bodies, Gone, Rates, json_value
from flowkit.metadata_service.origins import Origins
from flowkit.metadata_service.protocol import patient_protocol
from flowkit.metadata_service.refused import Refused

MAX_BODY = 200_000
URLS = ("/v1/records", "/flows/Abuse/run")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that lets everybody in, and takes small bodies only."""
    folder: Path = tmp_path_factory.mktemp("open")
    options = ("--max-body", MAX_BODY, "--allow-host", "named.example.org", "--allow-origin", "https://ui.example.org")
    with ServiceProcess(folder, *options) as running:
        yield running


def post(service: ServiceProcess, body: bytes, path: str = "/v1/records", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.post(service.url + path, data=body, headers=named, timeout=DEADLINE)


def sent_raw(service: ServiceProcess, *parts: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back until the connection ends."""
    host, _, port = service.url.rpartition("//")[2].partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as line:
        for part in parts:
            line.sendall(part)
        while data := line.recv(65536):
            answer += data
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# -- names and origins ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example.org", "127.0.0.1.evil.example.org", "localhost.evil.example.org", "evil.example.org:80"]
)
def test_a_name_that_is_not_ours_is_refused_and_the_setting_named(service, host):
    reply = requests.get(f"{service.url}/v1/flows", headers={"Host": host}, timeout=DEADLINE)
    assert reply.status_code == 403
    assert "--allow-host" in reply.json()["hint"]
    assert "FLOWKIT_SERVICE_ALLOW_HOST" in reply.json()["hint"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1234", "127.0.0.1", "[::1]:8080", "named.example.org", "named.example.org:443"]
)
def test_our_own_names_are_taken(service, host):
    assert requests.get(f"{service.url}/v1/flows", headers={"Host": host}, timeout=DEADLINE).status_code == 200


@pytest.mark.parametrize("host", ["", "a b", "a/b", "a@b", "[::1", "a:b", "a:123456", "é", "a\tb", "x" * 300])
def test_what_is_no_name_is_refused(host):
    with pytest.raises(Refused):
        Origins(Configuration("x")).check_host([host.encode()])


@pytest.mark.parametrize("hosts", [[], [b"localhost", b"localhost"], [b"localhost", b"evil.example.org"]])
def test_there_is_one_name(hosts):
    with pytest.raises(Refused):
        Origins(Configuration("x")).check_host(hosts)


def test_domains_can_be_allowed():
    origins = Origins(Configuration("x", allowed_hosts=("*.example.org", "other.net:8443")))
    assert origins.check_host([b"a.b.example.org:80"]) == "a.b.example.org:80"
    assert origins.check_host([b"other.net:8443"])
    for host in (b"example.org", b"badexample.org", b"example.org.evil.net", b"other.net", b"other.net:80"):
        with pytest.raises(Refused):
            origins.check_host([host])
    assert Origins(Configuration("x", allowed_hosts=("*",))).check_host([b"anything.at.all"])


def test_a_page_from_elsewhere_may_not_call(service):
    for origin in (
        "https://evil.example.org",
        "null",
        "http://localhost:1",
        "file://",
        "https://ui.example.org.evil.net",
    ):
        for method in ("GET", "POST", "OPTIONS"):
            reply = requests.request(method, f"{service.url}/v1/flows", headers={"Origin": origin}, timeout=DEADLINE)
            assert reply.status_code == 403, (origin, method)
            assert "--allow-origin" in reply.json()["hint"]
            assert "Access-Control-Allow-Origin" not in reply.headers


def test_our_own_pages_and_allowed_ones_may_call(service):
    reply = requests.get(f"{service.url}/v1/flows", headers={"Origin": service.url}, timeout=DEADLINE)
    assert reply.status_code == 200
    assert "Access-Control-Allow-Origin" not in reply.headers
    allowed = {"Origin": "https://ui.example.org"}
    reply = requests.get(f"{service.url}/v1/flows", headers=allowed, timeout=DEADLINE)
    assert reply.headers["Access-Control-Allow-Origin"] == "https://ui.example.org"
    assert reply.headers["Vary"] == "Origin"
    asked = {**allowed, "Access-Control-Request-Method": "POST"}
    reply = requests.options(f"{service.url}/v1/records", headers=asked, timeout=DEADLINE)
    assert reply.status_code == 204
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert "Access-Control-Allow-Credentials" not in reply.headers


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"]
)
def test_what_a_form_of_a_page_can_send_is_refused(service, kind):
    for path in URLS:
        assert post(service, b"{}", path, Content_Type=kind).status_code == 415
    assert post(service, b'{"records": []}', Content_Type="application/json; charset=utf-8").status_code == 200


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", URLS)
def test_bodies_that_are_too_large(service, path):
    large = b'{"records": [' + b" " * (MAX_BODY + 1)
    assert post(service, large, path).status_code == 413
    chunks = (large[begin : begin + 10_000] for begin in range(0, len(large), 10_000))
    assert requests.post(service.url + path, data=chunks, timeout=DEADLINE).status_code == 413
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999\r\n\r\n".encode()
    assert status_of(sent_raw(service, head)) == 413


def bomb(size: int) -> bytes:
    """So many zeros in a thousandth of the room."""
    pack = zlib.compressobj(9, wbits=31)
    part = bytes(1_000_000)
    return b"".join([*(pack.compress(part) for _ in range(size // len(part))), pack.flush()])


def test_packed_bodies(service):
    body = json.dumps({"records": []}).encode()
    assert post(service, gzip.compress(body), Content_Encoding="gzip").status_code == 200
    assert post(service, body, Content_Encoding="identity").status_code == 200
    for wrong in (b"no gzip", gzip.compress(body)[:-4], gzip.compress(body) + b"more", gzip.compress(body) * 2):
        assert post(service, wrong, Content_Encoding="gzip").status_code == 400
    assert post(service, bomb(100_000_000), Content_Encoding="gzip").status_code == 413
    assert post(service, gzip.compress(bomb(50_000_000)), Content_Encoding="gzip, gzip").status_code == 415
    for coding in ("br", "deflate", "zstd", "compress"):
        assert post(service, body, Content_Encoding=coding).status_code == 415


DEEP = b"[" * 50_000 + b"]" * 50_000


@pytest.mark.parametrize("path", [*URLS, "/v1/heartbeats", "/v1/flows/Abuse/reserve", "/flows/Abuse"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        b"{",
        b'{"records": [}',
        b"null",
        b"7",
        b"[]",
        b'"' + b"\xed\xa0\x80" + b'"',
        b'{"records": NaN}',
        b'{"records": [' + DEEP + b"]}",
        b'{"a": ' * 20_000 + b"1" + b"}" * 20_000,
        DEEP,
        b'{"at_least": ' + b"9" * 5_000 + b"}",
        b'{"tags": ["\\ud800"], "system_tags": ["\\u0000"], "user_name": "\\ud800"}',
    ],
    ids=range(15),
)
def test_bodies_that_make_no_sense(service, path, body):
    reply = post(service, body, path)
    # Of a field that nobody knows, it does not matter what is in it.
    assert 400 <= reply.status_code < 500 or (reply.status_code == 200 and b"records" in body and path != "/v1/records")
    if reply.status_code != 200:
        assert reply.json()["error"]


def test_a_body_that_does_not_come():
    async def silent() -> Any:
        await asyncio.sleep(60)

    async def dripping() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    bodies = Bodies(1_000_000, idle=0.05, whole=0.2)
    for slow in (silent, dripping):
        with pytest.raises(Refused) as caught:
            asyncio.run(bodies.read([], slow))
        assert caught.value.status == 408
    with pytest.raises(Gone):
        asyncio.run(bodies.read([], gone))


def test_all_bodies_together_are_bounded(monkeypatch):
    monkeypatch.setattr(limits, "WAITING", 0)
    bodies = Bodies(1_000)

    async def one() -> Any:
        return {"type": "http.request", "body": bytes(1_000), "more_body": False}

    held = [asyncio.run(bodies.read([], one)) for _ in range(2)]
    with pytest.raises(Refused) as caught:
        asyncio.run(bodies.read([], one))
    assert caught.value.status == 503
    bodies.release(held.pop())
    held.append(asyncio.run(bodies.read([], one)))
    for body in held:
        bodies.release(body)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5_000,
        b"[" * 100_000,
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b'"\\ud800"',
        b'"\\u0000"',
        b'{"\\u0000": 1}',
        b"\xff",
        b"\xfe\xff\x00{\x00}",
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_values_that_no_database_should_see(raw):
    with pytest.raises(Refused) as caught:
        json_value(raw)
    assert caught.value.status == 400


def test_sensible_values_pass():
    value = {"a": [1, 2.5, None, True, "é😀"], "b": {"c": []}}
    assert json_value(json.dumps(value).encode()) == value
    assert json_value(b"[" * 60 + b"]" * 60)


# -- heads ------------------------------------------------------------------------------------------------------------


def test_addresses_and_headers_that_are_too_long(service):
    assert requests.get(f"{service.url}/v1/flows/{'x' * 9_000}/runs", timeout=DEADLINE).status_code == 414
    assert requests.get(f"{service.url}/v1/flows?namespace={'x' * 9_000}", timeout=DEADLINE).status_code == 414
    headers = {"X-Long": "x" * 40_000}
    assert requests.get(f"{service.url}/v1/flows", headers=headers, timeout=DEADLINE).status_code == 431
    request = b"GET /v1/flows HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + b"x" * 100_000
    assert status_of(sent_raw(service, request)) in (400, 431)


@pytest.mark.parametrize(
    "path",
    ["/v1/flows/%00/runs", "/v1/flows/a%0Ab/runs", "/v1/flows/a%1b[31m/runs", "/v1/flows/a%E2%80%A8b/runs"],
)
def test_control_characters_in_a_path(service, path):
    answer = sent_raw(service, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) == 400
    assert b"\x1b" not in answer
    assert "\x1b" not in service.stderr


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /v1/flows HTTP/1.1\r\n\r\n",
        b"GET /v1/flows HTTP/1.1\r\nHost: localhost\r\nHost: evil.example.org\r\n\r\n",
        b"GET /v1/flows HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\x00\r\n\r\n",
        b"GET /v1/flows HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET http://evil.example.org/v1/flows HTTP/1.1\r\nHost: evil.example.org\r\nConnection: close\r\n\r\n",
        b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v1/records HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 50_000,
    ],
    ids=range(11),
)
def test_what_is_no_http(service, request_text):
    answer = sent_raw(service, request_text)
    assert 400 <= status_of(answer) < 502
    assert status_of(answer) != 500
    assert "Traceback" not in service.stderr


def test_an_address_with_a_length_and_chunks_is_not_two_requests(service):
    smuggled = (
        b"POST /v1/heartbeats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nDELETE /v1/flows/F/runs/1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    answer = sent_raw(service, smuggled)
    assert b"204" not in answer.split(b"\r\n", 1)[0]


# -- rates ------------------------------------------------------------------------------------------------------------


def test_a_caller_that_is_too_fast_is_told_when_to_come_back(tmp_path):
    with ServiceProcess(tmp_path, "--requests-per-second", "0.5") as slow:
        codes = []
        while 429 not in codes:
            reply = requests.get(f"{slow.url}/v1/flows", timeout=DEADLINE)
            codes.append(reply.status_code)
            assert len(codes) < 100
        assert set(codes[:-1]) <= {200}
        assert int(reply.headers["Retry-After"]) >= 1
        assert reply.json()["error"]


def test_rates_in_the_long_run_and_at_once():
    rates = Rates(1e-9, 5)
    assert [rates.take("a") for _ in range(5)] == [0.0] * 5
    assert rates.take("a") > 1e6
    assert rates.wait("a") > 1e6
    assert rates.take("b") == 0.0
    fast = Rates(1e9, 1)
    assert all(fast.take("a") == 0.0 for _ in range(100))


def test_rates_are_kept_for_so_many_only(monkeypatch):
    monkeypatch.setattr(limits, "CALLERS", 10)
    rates = Rates(1e-9, 1)
    for number in range(1_000):
        assert rates.take(f"caller {number}") == 0.0
    assert rates.take("caller 999") > 0
    assert rates.take("caller 0") == 0.0, "forgotten long ago"


# -- connections ------------------------------------------------------------------------------------------------------


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[tuple[str, int]]:
    """Serve an application in a thread, with the service's protocol."""
    config = uvicorn.Config(
        app, http=patient_protocol(**options), lifespan="off", log_config=None, access_log=False, ws="none"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


async def small(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ask(line: socket.socket) -> None:
    line.sendall(GET)
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        part = line.recv(65536)
        assert part, answer
        answer += part


def ended(line: socket.socket) -> bool:
    """Wait until the other side ends a connection."""
    line.settimeout(DEADLINE)
    try:
        while line.recv(65536):
            continue
    except ConnectionResetError:
        pass
    return True


def test_a_head_must_come():
    with serving(small, head=0.2) as place:
        with socket.create_connection(place) as silent:
            assert ended(silent)
        with socket.create_connection(place) as dripping:
            stop = time.monotonic() + DEADLINE
            try:
                while time.monotonic() < stop:
                    dripping.sendall(b"G")
                    time.sleep(0.02)
                pytest.fail("it was taken byte by byte")
            except (BrokenPipeError, ConnectionResetError):
                pass
    with serving(small, head=2.0) as place, socket.create_connection(place) as good:
        good.settimeout(DEADLINE)
        ask(good)
        time.sleep(2.2)  # nobody has to hurry between two requests
        ask(good)
        good.sendall(GET[:5])
        assert ended(good)


def test_too_many_connections_make_room():
    with serving(small, most=10) as place:
        idle = [socket.create_connection(place) for _ in range(50)]
        try:
            assert requests.get(f"http://127.0.0.1:{place[1]}/", timeout=DEADLINE).status_code == 200
            assert all(ended(line) for line in idle[:30])
        finally:
            for line in idle:
                line.close()


def test_a_reader_must_read():
    left = threading.Event()

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while (await asyncio.wait_for(receive(), 0.001))["type"] != "http.disconnect":
                pass
        except asyncio.TimeoutError:
            pass
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(1_000_000), "more_body": True})
        message = await receive()
        if message["type"] == "http.disconnect":
            left.set()

    with serving(large, stall=0.2) as place, socket.create_connection(place) as line:
        line.sendall(GET)
        assert left.wait(DEADLINE), "it waits for ever"
