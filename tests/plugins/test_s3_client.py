"""`flowkit.S3` over HTTP: a moto server, and in front of it one that fails as services and networks do."""

from __future__ import annotations

import http.client
import http.server
import io
import os
import pickle
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import flowkit
from flowkit import S3, S3GetObject, S3PutObject

Fault = Callable[[str, str, int], str | None]


class Proxy:
    """A server in front of another one that answers some requests badly.

    Attributes
    ----------
    fault : callable
        Is given method, path and how often this request came before, and returns None, a status to answer with
        (``503``, ``403``), ``reset`` (no answer), ``lost`` (carried out, and no answer) or ``cut`` (half of the body).
    asked : list of (str, str)
        Method and path of every request.
    """

    def __init__(self, target: str) -> None:
        self.fault: Fault = lambda method, path, before: None
        self.asked: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        proxy, place = self, target.removeprefix("http://")

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def forward(self) -> None:
                with proxy._lock:
                    before = proxy.asked.count((self.command, self.path))
                    proxy.asked.append((self.command, self.path))
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Expect"):
                    self.close_connection = True
                fault = proxy.fault(self.command, self.path, before)
                if fault == "reset":
                    self.close_connection = True
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    return
                if fault and fault.isdigit():
                    code = {"503": "SlowDown", "403": "AccessDenied"}[fault]
                    self.answer(int(fault), {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
                    return
                upstream = http.client.HTTPConnection(place)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                upstream.request(self.command, self.path, content, headers)
                answer = upstream.getresponse()
                body = answer.read()
                upstream.close()
                if fault == "lost":
                    self.close_connection = True
                    return
                self.answer(answer.status, dict(answer.getheaders()), body, cut=fault == "cut")

            def answer(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("x-amz-request-id", "REQUEST7")
                length = headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = self.close_connection or cut

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

            def log_message(self, *_: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def root(aws) -> str:
    return f"s3://{aws.bucket()}/place"


@pytest.fixture
def s3(root, tmp_path) -> Iterator[S3]:
    with S3(s3root=root, tmproot=str(tmp_path)) as made:
        yield made


@pytest.fixture
def proxy(aws) -> Iterator[Proxy]:
    made = Proxy(aws.endpoint)
    yield made
    made.close()


@pytest.fixture
def behind(proxy, aws, tmp_path) -> Iterator[S3]:
    """A client whose service fails as the proxy is told to."""
    bucket = aws.bucket()
    aws.set(AWS_ENDPOINT_URL=proxy.url)
    with S3(s3root=f"s3://{bucket}/place", tmproot=str(tmp_path)) as made:
        yield made


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- one object -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("grün", "grün".encode()),
        (b"\0\xff", b"\0\xff"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::1], b"abcdef"),
        (io.BytesIO(b"from a file"), b"from a file"),
        ("", b""),
    ],
)
def test_what_is_stored_comes_back(s3, root, value, stored) -> None:
    assert s3.put("a/key", value) == f"{root}/a/key"
    found = s3.get("a/key")
    assert found.blob == stored
    assert (found.exists, found.downloaded, found.size) == (True, True, len(stored))
    assert (found.key, found.prefix, found.url) == ("a/key", root, f"{root}/a/key")
    assert found.range_info == (len(stored), 0, len(stored))
    assert found.last_modified is not None
    assert found.last_modified > 1_600_000_000


def test_a_file_is_read_from_its_beginning_and_left_open(s3) -> None:
    file = io.BytesIO(b"0123456789")
    file.seek(7)
    s3.put("k", file)
    assert s3.get("k").blob == b"0123456789"
    assert not file.closed


@pytest.mark.parametrize("value", [3, None, [b"x"], io.StringIO("text")])
def test_a_value_that_cannot_be_stored_is_refused(s3, value) -> None:
    with pytest.raises(flowkit.FlowkitS3InvalidObject, match="place/k"):
        s3.put("k", value)
    assert s3.list_recursive() == []


def test_metadata_and_type_are_kept_whatever_they_hold(s3, aws) -> None:
    metadata = {"name": "Żółć\n", "n": 3, "list": [1, {"x": None}]}
    s3.put("k", "x", content_type="text/x-test", metadata=metadata)
    for found in (s3.get("k"), s3.info("k"), *s3.get_many(["k"]), *s3.info_many(["k"])):
        assert found.has_info
        assert found.metadata == metadata
        assert found.content_type == "text/x-test"
    assert not s3.get("k", return_info=False).has_info
    s3.put("plain", "x")
    assert s3.get("plain").metadata is None
    with pytest.raises(flowkit.FlowkitS3InvalidObject, match="JSON"):
        s3.put("k", "x", metadata={"x": object()})


def test_what_metaflow_and_others_stored_with_an_object_is_read(s3, aws, root) -> None:
    bucket = root.split("/")[2]
    plain = aws.client("s3")
    plain.put_object(
        Bucket=bucket, Key="place/theirs", Body=b"", Metadata={"metaflow-user-attributes": '{"a": "\\u00e9"}'}
    )
    plain.put_object(Bucket=bucket, Key="place/other", Body=b"", Metadata={"owner": "x"})
    assert s3.get("theirs").metadata == {"a": "é"}
    assert s3.info("other").metadata == {"owner": "x"}


def test_encryption_is_asked_for_by_client_and_by_object(root, aws) -> None:
    with S3(s3root=root, encryption="AES256") as s3:
        s3.put("one", "x")
        s3.put_many([S3PutObject("two", "x", encryption="aws:kms"), ("three", "x")])
        found = s3.get_many(["one", "two", "three"])
    assert [item.encryption for item in found] == ["AES256", "aws:kms", "AES256"]


PARTS = [
    (S3GetObject("k", 1, 2), "12", (10, 1, 2)),
    (S3GetObject("k", 8, 100), "89", (10, 8, 2)),
    (S3GetObject("k", 7, None), "789", (10, 7, 3)),
    (S3GetObject("k", None, 4), "0123", (10, 0, 4)),
    (S3GetObject("k", 0, -3), "789", (10, 7, 3)),
    (S3GetObject("k", 0, -30), "0123456789", (10, 0, 10)),
    (S3GetObject("k"), "0123456789", (10, 0, 10)),
]


def test_parts_of_an_object(s3) -> None:
    s3.put("k", "0123456789")
    for found, (_, text, span) in zip(s3.get_many([part for part, _, _ in PARTS]), PARTS, strict=True):
        assert (found.text, found.range_info, found.size) == (text, span, len(text))
    assert s3.get(PARTS[0][0]).text == "12"
    for bad in (S3GetObject("k", 10, 1), S3GetObject("k", 0, 0), S3GetObject("k", -1, 2)):
        with pytest.raises(flowkit.FlowkitS3InvalidRange, match="place/k"):
            s3.get(bad)


def test_large_objects_go_in_parts(s3, tmp_path) -> None:
    content = os.urandom(1 << 20) * 20 + b"end"
    file = tmp_path / "large"
    file.write_bytes(content)
    s3.put_files([("file", file), ("file2", str(file))])
    s3.put("value", content)
    for found in s3.get_many(["file", "file2", "value"]):
        assert found.size == len(content)
        assert found.blob == content
    tail = s3.get(S3GetObject("value", 1 << 20, None))
    assert tail.blob == content[1 << 20 :]
    assert tail.range_info == (len(content), 1 << 20, len(content) - (1 << 20))
    assert s3.get(S3GetObject("value", 0, -(18 << 20))).blob == content[-(18 << 20) :]


# -- keys -------------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../outside", "/absolute", "a//b", "..", "./.", "q?x=1&y#f", "100%2F%41", "ü ö+*'\"", "x" * 300,
    "c:\\windows", "-rf", "a/../../../../../../tmp/owned",
]  # fmt: skip


def test_keys_are_never_trusted_as_file_names(s3, tmp_path) -> None:
    before = set(files_below(tmp_path))
    stored = s3.put_many([(key, key) for key in HOSTILE])
    assert [key for key, _ in stored] == HOSTILE
    for key, found in zip(HOSTILE, s3.get_many(HOSTILE), strict=True):
        assert found.text == key
        assert found.path is not None
        folder = Path(found.path).parent
        assert folder.parent == tmp_path
        assert folder.name.startswith("flowkit.s3.")
    assert len(set(files_below(tmp_path)) - before) == len(HOSTILE)
    s3.close()
    assert set(files_below(tmp_path)) == before


def test_a_file_keeps_the_suffix_of_its_key(s3) -> None:
    s3.put("folder/table.csv.gz", "x")
    assert s3.get("folder/table.csv.gz").path.endswith("table.csv.gz")


def test_what_was_downloaded_is_gone_with_its_client(root, tmp_path) -> None:
    with S3(s3root=root, tmproot=str(tmp_path)) as s3:
        s3.put("k", "x")
        assert files_below(tmp_path) == []
        found = s3.get("k")
    assert files_below(tmp_path) == []
    with pytest.raises(flowkit.FlowkitS3Exception, match="closed"):
        found.blob  # noqa: B018
    with pytest.raises(flowkit.FlowkitS3Exception, match="closed"):
        s3.get("k")


def test_files_live_as_long_as_somebody_has_an_object(root, tmp_path) -> None:
    found = S3(s3root=root, tmproot=str(tmp_path))
    found.put("k", "x")
    kept = found.get("k")
    del found
    assert kept.text == "x"
    del kept
    assert files_below(tmp_path) == []


def test_whole_urls_without_a_prefix(root, aws, tmp_path) -> None:
    with S3(tmproot=str(tmp_path)) as s3:
        assert s3.put(f"{root}/k?a#b", "x") == f"{root}/k?a#b"
        found = s3.get(f"{root}/k?a#b")
        assert (found.text, found.key, found.prefix) == ("x", f"{root}/k?a#b", None)
        for call in (lambda: s3.get("k"), s3.get, s3.get_all, s3.list_paths, lambda: s3.get("s3://bucket")):
            with pytest.raises(flowkit.FlowkitS3URLException):
                call()


def test_places_that_cannot_be_one(s3, aws) -> None:
    with pytest.raises(flowkit.FlowkitS3URLException, match="whole URL"):
        s3.get("s3://other/key")
    for wrong in ("/tmp/x", "bucket/key", "s3://", "https://bucket/key"):
        with pytest.raises(flowkit.FlowkitS3URLException, match="not a URL of S3"):
            S3(s3root=wrong)
    with pytest.raises(flowkit.FlowkitS3URLException, match="running"):
        S3(run=object.__new__(flowkit.FlowSpec))
    with pytest.raises(flowkit.FlowkitS3URLException, match="takes self"):
        S3(run=7)


# -- many -------------------------------------------------------------------------------------------------------------


def test_listing(s3, root) -> None:
    keys = ["a/0.txt", "a/b/1.txt", "a/c/2.txt", "a/empty", "ab", "f/4.txt"]
    s3.put_many([(key, "" if key == "a/empty" else key) for key in keys])
    shown = [(item.key, item.exists, item.size) for item in s3.list_paths(["a", "f"])]
    assert shown == [
        ("0.txt", True, 7), ("empty", True, 0), ("b", False, None), ("c", False, None), ("4.txt", True, 7)
    ]  # fmt: skip
    assert [item.url for item in s3.list_paths()] == [f"{root}/ab", f"{root}/a/", f"{root}/f/"]
    assert [item.key for item in s3.list_recursive()] == keys
    assert [item.key for item in s3.list_recursive(["a/b", "f"])] == ["1.txt", "4.txt"]
    assert s3.list_recursive(["a/b/1"]) == s3.list_paths(["zzz"]) == s3.list_paths([]) == []
    got = s3.get_recursive(["a"])
    assert [(item.key, item.text) for item in got] == [
        ("0.txt", "a/0.txt"), ("b/1.txt", "a/b/1.txt"), ("c/2.txt", "a/c/2.txt"), ("empty", "")
    ]  # fmt: skip
    assert [item.prefix for item in got] == [f"{root}/a"] * 4
    assert [item.key for item in s3.get_all(return_info=True) if item.has_info] == keys


def test_many_keep_their_order_and_are_fetched_once(s3) -> None:
    keys = [f"{number:03d}" for number in range(60)]
    assert [key for key, _ in s3.put_many((key, key) for key in keys)] == keys
    wanted = [*reversed(keys), "007", "007"]
    found = s3.get_many(wanted)
    assert [item.text for item in found] == wanted
    assert found[-1].path == found[-2].path
    assert [item.size for item in s3.info_many(keys)] == [3] * 60
    assert s3.get_many([]) == s3.put_many([]) == s3.info_many([]) == s3.put_files([]) == []


def test_a_generator_is_taken_from_as_objects_are_stored(behind, proxy) -> None:
    ahead = []

    def values() -> Iterator[tuple[str, bytes]]:
        for number in range(300):
            ahead.append(number - len(proxy.asked))
            yield f"{number}", b"x"

    assert len(behind.put_many(values())) == 300
    assert max(ahead) <= 100


def test_of_one_key_twice_the_last_value_stays(s3) -> None:
    stored = s3.put_many([("k", "first"), *((f"{n}", "x") for n in range(40)), ("k", "second"), ("k", "last")])
    assert [key for key, _ in stored].count("k") == 3
    assert s3.get("k").text == "last"


def test_what_is_there_is_left_without_overwrite(s3, root, tmp_path) -> None:
    s3.put("old", "old")
    assert s3.put("old", "new", overwrite=False) == f"{root}/old"
    assert s3.put_many([("old", "new"), ("new", "new")], overwrite=False) == [("new", f"{root}/new")]
    file = tmp_path / "file"
    file.write_text("new")
    assert s3.put_files([("old", file), S3PutObject("third", path=file)], overwrite=False) == [
        ("third", f"{root}/third")
    ]
    assert [item.text for item in s3.get_many(["old", "new", "third"])] == ["old", "new", "new"]


def test_every_key_that_is_missing_is_told_and_nothing_is_kept(s3, tmp_path) -> None:
    s3.put_many([(f"{n}", "x") for n in range(5)])
    with pytest.raises(flowkit.FlowkitS3NotFound) as caught:
        s3.get_many(["0", "nope", "1", "neither", "2"])
    assert [failure.url[-7:] for failure in caught.value.failures] == ["ce/nope", "neither"]
    assert files_below(tmp_path) == []
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.failures == caught.value.failures
    for call in (s3.get, s3.info):
        with pytest.raises(flowkit.FlowkitS3NotFound, match="place/nope"):
            call("nope")
    with pytest.raises(flowkit.FlowkitS3NotFound, match="2 S3 objects"):
        s3.info_many(["0", "nope", "neither"])
    for found in (s3.get_many(["0", "nope"], return_missing=True), s3.info_many(["0", "nope"], return_missing=True)):
        assert [item.exists for item in found] == [True, False]
    missing = s3.get("nope", return_missing=True)
    assert (missing.size, missing.path, missing.blob, missing.key) == (None, None, None, "nope")


def test_nothing_is_stored_if_one_of_them_cannot_be(s3, tmp_path) -> None:
    with pytest.raises(flowkit.FlowkitS3InvalidObject):
        s3.put_many([("a", "x"), ("b", 7)])
    with pytest.raises(flowkit.FlowkitS3NotFound, match="2 local files"):
        s3.put_files([("a", __file__), ("b", tmp_path / "no"), ("c", tmp_path / "neither")])
    assert s3.list_recursive() == []


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_bad_service_makes_it_slower_and_not_wrong(behind, proxy) -> None:
    faults = ["503", "reset", "cut", "lost", None, "503", None]

    def fault(method: str, path: str, before: int) -> str | None:
        return faults[(zlib.crc32(path.encode()) + before) % len(faults)] if before < 3 else None

    proxy.fault = fault
    keys = [f"key{number}" for number in range(30)]
    assert len(behind.put_many([(key, key * 100) for key in keys])) == 30
    assert [item.text for item in behind.get_many(keys)] == [key * 100 for key in keys]
    assert len(behind.list_recursive()) == 30
    assert [item.size for item in behind.info_many(keys)] == [len(key) * 100 for key in keys]


def test_a_large_object_that_breaks_off_is_fetched_on(behind, proxy) -> None:
    content = os.urandom(1 << 20) * 30
    behind.put("k", content)
    proxy.fault = lambda method, path, before: "cut" if method == "GET" and before in (0, 1, 3) else None
    assert behind.get("k").blob == content


def test_an_object_whose_answer_was_lost_counts_as_stored(behind, proxy) -> None:
    proxy.fault = lambda method, path, before: "lost" if method == "PUT" and not before else None
    assert [key for key, _ in behind.put_many([("a", "x"), ("b", "y")], overwrite=False)] == ["a", "b"]
    assert behind.get("a").metadata is None


def test_what_is_denied_is_told_by_key_and_request(behind, proxy) -> None:
    behind.put_many([(key, "x") for key in "abcd"])
    proxy.fault = lambda method, path, before: "403" if path.endswith(("/b", "/d")) else None
    with pytest.raises(flowkit.FlowkitS3AccessDenied) as caught:
        behind.get_many("abcd")
    assert [failure.url[-7:] for failure in caught.value.failures] == ["place/b", "place/d"]
    assert "REQUEST7" in str(caught.value)
    with pytest.raises(flowkit.FlowkitS3AccessDenied, match="permission denied"):
        behind.put("d", "x")
    with pytest.raises(flowkit.FlowkitS3Exception, match="place/b"):
        behind.get_many(["b", "d", "nope"])


def test_a_bucket_that_is_not_there_is_told_once(aws, tmp_path) -> None:
    with S3(s3root="s3://no-such-bucket/x", tmproot=str(tmp_path)) as s3:
        for call in (
            lambda: s3.get("k"),
            lambda: s3.get("k", return_missing=True),
            lambda: s3.put("k", "x"),
            lambda: s3.info("k"),
            s3.list_paths,
        ):
            with pytest.raises(flowkit.FlowkitS3NotFound, match="there is no bucket 'no-such-bucket'"):
                call()
        with pytest.raises(flowkit.FlowkitS3NotFound) as caught:
            s3.get_many([f"{n}" for n in range(500)])
        assert len(caught.value.failures) < 100
        assert "nothing further was tried" in str(caught.value)


def test_nobody_answers_and_nobody_is_known(aws, root, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    aws.set(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    with S3(s3root=root, tmproot=str(tmp_path)) as s3, pytest.raises(flowkit.FlowkitS3Exception, match="reached"):
        s3.get_many([f"{n}" for n in range(100)])
    aws.set(AWS_ENDPOINT_URL=aws.endpoint, AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None)
    with S3(s3root=root, tmproot=str(tmp_path)) as s3, pytest.raises(flowkit.FlowkitS3Exception, match="credentials"):
        s3.put("k", "x")


def test_own_credentials_and_parameters(aws, root, tmp_path) -> None:
    aws.set(AWS_ACCESS_KEY_ID=None, AWS_SECRET_ACCESS_KEY=None, AWS_ENDPOINT_URL=None)
    with S3(
        s3root=root,
        tmproot=str(tmp_path),
        session_vars={"aws_access_key_id": "other", "aws_secret_access_key": "x", "region_name": "us-east-1"},
        client_params={"endpoint_url": aws.endpoint, "config": {"s3": {"addressing_style": "path"}}},
    ) as s3:
        s3.put("k", "x")
        assert s3.get("k").text == "x"
    wrong = pytest.raises(flowkit.FlowkitS3Exception, match="no_such_parameter")
    with S3(s3root=root, client_params={"no_such_parameter": 1}) as s3, wrong:
        s3.put("k", "x")


def test_a_folder_for_files_that_cannot_be_made(root, tmp_path) -> None:
    with S3(s3root=root, tmproot=str(tmp_path / "no" / "folder")) as s3:
        s3.put("k", "x")
        with pytest.raises(flowkit.FlowkitS3Exception, match="tmproot"):
            s3.get("k")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told(s3, monkeypatch) -> None:
    s3.put("k", "x")
    made = os.open

    def full(path: Any, flags: int, *args: Any, **options: Any) -> int:
        return made("/dev/full", os.O_WRONLY) if "flowkit.s3." in str(path) else made(path, flags, *args, **options)

    monkeypatch.setattr(os, "pwrite", lambda file, view, position: os.write(file, view))
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(flowkit.FlowkitS3InsufficientDiskSpace, match="tmproot"):
        s3.get("k")


# -- in flows ---------------------------------------------------------------------------------------------------------

FLOW = """
    from flowkit import FlowSpec, S3, step

    class Keep(FlowSpec):
        @step
        def start(self):
            with S3(run=self) as s3:
                self.url = s3.put("result", "42")
                self.text = s3.get("result").text
            self.next(self.end)

        @step
        def end(self):
            with S3(run=self) as s3:
                self.keys = [item.key for item in s3.list_recursive()]

    if __name__ == "__main__":
        Keep()
"""


def test_objects_of_a_run(workspace, aws) -> None:
    bucket = aws.bucket()
    workspace.env.update(aws.env, FLOWKIT_DATA_TOOLS_ROOT=f"s3://{bucket}/tools")
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    client = workspace.client()
    run = client.Flow("Keep").latest_run
    assert run.data.keys == ["result"]
    assert run["start"].task.data.url == f"s3://{bucket}/tools/Keep/1/result"
    aws.set(FLOWKIT_DATA_TOOLS_ROOT=f"s3://{bucket}/tools")
    with client.S3(run=run) as s3:
        assert s3.get("result").text == "42"
    with client.S3(run=run, bucket=bucket, prefix="elsewhere") as s3:
        assert s3.put("k", "x") == f"s3://{bucket}/elsewhere/Keep/1/k"


def test_objects_of_a_run_lie_beside_a_datastore_on_s3(workspace, aws) -> None:
    bucket = aws.bucket()
    workspace.env.update(aws.env)
    workspace.write("flow.py", FLOW)
    workspace.run("--datastore-root", f"s3://{bucket}/root", "run", check=True)
    with S3(s3root=f"s3://{bucket}/root/data/Keep/1", tmproot=str(workspace.path)) as s3:
        assert s3.get("result").text == "42"


def test_a_local_datastore_has_no_place_for_objects(workspace, aws) -> None:
    workspace.env.update(aws.env)
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", check=1)
    assert "FLOWKIT_DATA_TOOLS_ROOT" in result.stdout + result.stderr


def test_a_forked_process_has_a_client_of_its_own(workspace, aws) -> None:
    bucket = aws.bucket()
    workspace.env.update(aws.env)
    result = workspace.python(
        f"""
        import multiprocessing, os, sys
        from flowkit import S3
        assert "boto3" not in sys.modules
        s3 = S3(s3root="s3://{bucket}/x")
        s3.put_many([(str(n), str(n)) for n in range(10)])
        kept = s3.get("0")

        def child(number):
            return s3.get(str(number)).text + kept.text

        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(child, range(10)) == [f"{{n}}0" for n in range(10)]
        assert kept.text == "0" and s3.get("9").text == "9"
        s3.close()
        print(os.listdir("."))
        """,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_the_front_page_names_it_without_boto3(workspace) -> None:
    workspace.python(
        """
        import sys, flowkit
        flowkit.S3, flowkit.S3GetObject, flowkit.FlowkitS3NotFound
        assert "boto3" not in sys.modules and "botocore" not in sys.modules
        """,
        check=True,
    )
