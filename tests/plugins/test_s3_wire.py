"""Our own connections to S3: signed as botocore signs, to the places that botocore finds, and nothing odd believed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timezone

import boto3
import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import Interrupted
from flowkit.plugins.aws.wire import Wire

BASES = [
    "https://bucket.s3.eu-west-1.amazonaws.com",
    "https://bucket.s3.cn-north-1.amazonaws.com.cn",
    "http://127.0.0.1:9000/bucket",
    "https://storage.example/some/place/bucket",
]
KEYS = ["plain", "a/b/c.json", "a b+c&d=e?f#g", "ü/€/日本", "~tilde-_.", "%41%2F", "a//b", "(1)!*'$@,;:"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("token", [None, "a/token+=="])
def test_signatures_are_those_of_botocore(base: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(base, "eu-west-1", lambda: ("AKIAX", "se/cret+", token))
    cases = [("GET", key, "", {"range": "bytes=0-9"}) for key in KEYS]
    cases += [("PUT", "x", "", {"x-amz-meta-a": "one  two", "if-none-match": "*", "content-type": "text/plain"})]
    cases += [("PUT", "x y", "partNumber=3&uploadId=a%2Bb~c", {}), ("DELETE", "x", "", {}), ("HEAD", "x", "", {})]
    for method, key, query, headers in cases:
        lines = wire._signed(method, wire._prefix + _quoted(key), query, headers, 5).decode("ascii").split("\r\n")
        sent = dict(line.split(": ", 1) for line in lines[1:-2])
        target = lines[0].split(" ")[1]
        origin = base[: base.index("/", 8)] if "/" in base[8:] else base
        signed = {name: value for name, value in headers.items() if name.startswith("x-amz-")}
        request = AWSRequest(method=method, url=origin + target, headers=signed)
        request.context["client_config"] = Config(s3={"payload_signing_enabled": False})
        now = datetime.strptime(sent["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda now=now: now.replace(tzinfo=None))
        S3SigV4Auth(Credentials("AKIAX", "se/cret+", token), "s3", "eu-west-1").add_auth(request)
        assert sent["authorization"] == request.headers["Authorization"], (method, key)
        assert sent.get("x-amz-security-token") == token
        assert all(sent[name] == value for name, value in headers.items())


def _quoted(key: str) -> str:
    from urllib.parse import quote

    return quote(key, safe="/~")


def test_a_header_cannot_smuggle_another() -> None:
    wire = Wire(BASES[0], "eu-west-1", lambda: ("A", "B", None))
    for value in ("a\r\nhost: other", "a\nb"):
        with pytest.raises(ValueError, match="line break"):
            wire._signed("GET", "/x", "", {"range": value}, 0)


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1", "ap-southeast-3", None])
def test_places_are_those_that_botocore_finds(aws, region: str | None) -> None:
    aws.set(AWS_ENDPOINT_URL=None, AWS_DEFAULT_REGION=region)
    wire = session.wire("my-bucket")
    assert wire is not None
    assert _place(wire) == _found("my-bucket", region)


def _place(wire: Wire) -> str:
    return f"{'http' if wire._tls is None else 'https'}://{wire._place}{wire._prefix}"


def _found(bucket: str, region: str | None) -> str:
    class Sent(Exception):
        pass

    def stop(request, **_) -> None:
        raise Sent(request.url)

    client = boto3.client("s3", region_name=region or "us-east-1")
    client.meta.events.register("before-send.s3", stop)
    with pytest.raises(Sent) as sent:
        client.get_object(Bucket=bucket, Key="k")
    place = str(sent.value).removesuffix("k")
    # Botocore still calls this region by the name that S3 had when there was no other.
    return place.replace(f"{bucket}.s3.amazonaws.com", f"{bucket}.s3.us-east-1.amazonaws.com")


def test_what_is_special_is_left_to_botocore(aws, tmp_path) -> None:
    aws.set(AWS_ENDPOINT_URL=None)
    for bucket in ("with.dots", "Upper_Case", "x--eun1-az1--x-s3", "arn:aws:s3:::thing"):
        assert session.wire(bucket) is None
    assert session.wire("my-bucket") is not None
    for name, value in (
        ("AWS_USE_FIPS_ENDPOINT", "true"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "true"),
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", None),
        ("AWS_DEFAULT_REGION", "us-iso-east-1"),
    ):
        before = aws.env.get(name)
        aws.set(**{name: value})
        assert session.wire("my-bucket") is None, name
        aws.set(**{name: before})
    (tmp_path / "config").write_text("[default]\ns3 =\n  use_accelerate_endpoint = true\n")
    aws.set(AWS_CONFIG_FILE=str(tmp_path / "config"))
    assert session.wire("my-bucket") is None


# -- answers -----------------------------------------------------------------------------------------------------------


class Script:
    """A server that gives each connection its next answers, whatever is asked."""

    def __init__(self, *connections: list[bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/bucket"
        self.asked: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=(connections,), daemon=True)
        self._thread.start()

    def _serve(self, connections: tuple[list[bytes], ...]) -> None:
        for answers in connections:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(10)
                for answer in answers:
                    asked = b""
                    while b"\r\n\r\n" not in asked:
                        more = connection.recv(65536)
                        if not more:
                            break
                        asked += more
                    self.asked.append(asked)
                    connection.sendall(answer)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def scripted() -> Iterator:
    made: list[Script] = []

    def make(*connections: list[bytes]) -> tuple[Script, Wire]:
        made.append(Script(*connections))
        return made[-1], Wire(made[-1].url, "us-east-1", lambda: ("A", "B", None), read_timeout=5)

    yield make
    for script in made:
        script.close()


OK = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 5\r\n\r\nhello'


def test_a_connection_is_used_again(scripted) -> None:
    script, wire = scripted([OK, b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno", OK])
    memory = bytearray(5)
    assert wire.request("GET", "k", {}).body == b"hello"
    assert wire.request("GET", "k", {}).status == 404
    assert wire.request("GET", "k", {}, into=memoryview(memory)).length == 5
    assert memory == b"hello"
    assert len(script.asked) == 3
    wire.close()


def test_a_connection_that_the_service_has_closed_is_made_again(scripted) -> None:
    script, wire = scripted([OK], [OK], [OK + b""])
    for _ in range(3):
        assert wire.request("GET", "k", {}).body == b"hello"
    assert len(script.asked) == 3
    wire.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("into", [False, True])
def test_half_and_odd_answers_are_none(scripted, answer: bytes, into: bool) -> None:
    _, wire = scripted([answer])
    memory = memoryview(bytearray(5)) if into else None
    with pytest.raises(Interrupted, match=r"127\.0\.0\.1"):
        wire.request("PUT", "k", {}, body=b"12", into=memory)


def test_a_chunked_answer_is_read(scripted) -> None:
    chunked = b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nt: 1\r\n\r\n"
    _, wire = scripted([b"HTTP/1.1 100 Continue\r\n\r\n" + chunked, OK])
    assert wire.request("GET", "k", {}).body == b"hello!"
    assert wire.request("GET", "k", {}).body == b"hello"
    wire.close()


def test_more_than_was_asked_for_is_not_read(scripted) -> None:
    _, wire = scripted([OK], [OK], [OK])
    assert wire.request("GET", "k", {}, most=4) == (200, {"etag": '"e"', "content-length": "5"}, b"", 5)
    memory = bytearray(4)
    assert wire.request("GET", "k", {}, into=memoryview(memory)).length == 5
    assert memory == bytes(4)
    assert wire.request("HEAD", "k", {}).length == 0
    wire.close()
