"""What is SQL, a path, a header or a line elsewhere is a text here: in every place of every route."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import closing
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import ArtifactRecord, OutputRecord, RunRecord, TaskRecord

FLOW, KEY = "Victim", "b3" + "1" * 40
ROWS = [
    RunRecord(FLOW, "1", "ann", "succeeded", 10.0, finished=12.0, tags=("blue",), system_tags=("user:ann",)),
    RunRecord(FLOW, "2", "bob", "failed", 20.0, finished=22.0, tags=("red",), system_tags=("user:bob",)),
    TaskRecord(FLOW, "1", "start", "0", "succeeded", started=11.0, finished=12.0),
    OutputRecord(FLOW, "1", "start", "0", 0, (ArtifactRecord("x", KEY, 5, "int", "pickle"),), (f"y={KEY}",)),
]
TEXTS = [
    "'",
    '"',
    "' OR '1'='1",
    "1 OR 1=1",
    "'; DROP TABLE runs; --",
    "') UNION SELECT name, secret FROM tokens --",
    "1; SELECT pg_sleep(30)",
    "%",
    "_",
    "\\",
    "%s",
    "?",
    "{0.__class__}",
    "${jndi:ldap://x}",
    "blue' /*",
    "a\r\nSet-Cookie: stolen=1",
    "\x1b[31m",
    "\u202egnp.exe",
    "İi̇ſß",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "ａｎｎ",
    "..",
    "../../../etc/passwd",
    " ",
    "null",
    "NaN",
    "1e309",
    "-1",
    "9" * 40,
    "٣",
    "x" * 3_000,
]
PATHS = ["%00", "%ff", "%c0%ae%c0%ae", "%ed%a0%80", "%2e%2e", "..;", "a%0d%0aSet-Cookie:%20b=1", "%F0%9F%98%80", "%"]
CURSORS: list[Any] = [
    None,
    {},
    [],
    "x",
    7,
    [[]],
    [None] * 3,
    [10**400, FLOW, "1"],
    [-(10**400), FLOW],
    [1e300, "' OR 1=1 --", "'"],
    [True, FLOW, "1"],
    ["1"],
    ["' OR '1'='1"],
    ["\x00"],
    ["\ud800"],
    ["x" * 2_000],
    ["a", "b", 2**63, "c"],
    ["a", "b", 10**30, "c"],
    [10**30],
    [2**63],
    [-1],
    ["a", "b"],
    ["'", "'", "'", "'"],
    ["'", "'", "'", "'", 1, "'"],
    ["'", "'", "'", "'", "'"],
]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Message
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Victim(NamedTuple):
    """A service, what it answers to a question that is right, and where it can be asked."""

    service: ServiceProcess
    line: HTTPConnection
    places: list[tuple[str, str]]

    def get(self, path: str) -> Answer:
        self.line.request("GET", path)  # as it is: others would tidy it up
        reply = self.line.getresponse()
        return Answer(reply.status, reply.headers, reply.read().decode())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("victim")
    if request.param == "sqlite":
        yield from serve(folder, f"sqlite:///{folder / 'database'}")
        return
    server = request.getfixturevalue("postgresql_server")
    url = server.create()
    yield from serve(folder, url)
    server.drop(url)


def serve(folder: Path, database: str) -> Iterator[Victim]:
    """Serve a few records from an empty database."""
    options = ("--heartbeat-interval", "10", "--requests-per-second", "100000", "--no-access-log")
    with ServiceProcess(folder, *options, "--database", database) as service:
        kinds = {RunRecord: "run", TaskRecord: "task", OutputRecord: "output"}
        body = {"records": [{"kind": kinds[type(row)], **row.to_json()} for row in ROWS]}
        assert requests.post(f"{service.url}/v1/records", json=body, timeout=DEADLINE).status_code == 200
        told = requests.get(f"{service.url}/openapi.json", timeout=DEADLINE).json()
        places = []
        for path, methods in told["paths"].items():
            if "get" not in methods or path == "/v1/events":
                continue
            right = path.format(flow=FLOW, run="1", step="start", task="0", name="x", attempt="0", key=KEY)
            for parameter in methods["get"].get("parameters", ()):
                if parameter["in"] == "query":
                    places.append((right, parameter["name"]))
        with closing(HTTPConnection(service.url.rpartition("/")[2], timeout=DEADLINE)) as line:
            yield Victim(service, line, places)
        assert "Traceback" not in service.stderr


def all_runs(victim: Victim) -> Any:
    return victim.get("/v1/runs").json()["items"]


def packed(value: Any) -> str:
    text = json.dumps(value, allow_nan=True).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def found_in(reply: Answer) -> int:
    """How many things a list has that was answered."""
    told = reply.json()
    return len(told["items"] if isinstance(told, dict) and "items" in told else told if isinstance(told, list) else ())


def test_texts_are_texts_everywhere(victim):
    """Two requests for each text: it finds nothing, or what stands there; and nothing breaks."""
    before = all_runs(victim)
    assert len(before) == 2
    assert {name for _, name in victim.places} >= {"tag", "user", "status", "cursor", "user_name:eq", "_tags:all"}
    narrow = {"user", "tag", "namespace", "user_name:eq", "_tags:all", "step", "name", "pattern", "metadata_field_name"}
    for path, name in victim.places:
        for text in TEXTS:
            reply = victim.get(f"{path}?{quote(name, safe='')}={quote(text, safe='')}")
            assert reply.status < 500, (path, name, text, reply.text)
            assert "Set-Cookie" not in reply.headers
            if reply.status == 200 and name in narrow and path != "/v1/about":
                literal = name == "pattern" or found_in(reply) == 0
                assert literal, (path, name, text, reply.text)
            elif reply.status >= 400:
                assert reply.json()["error"]
    assert all_runs(victim) == before


def test_cursors_are_looked_at(victim):
    lists = [path for path, name in victim.places if name in ("cursor", "_cursor")]
    assert len(lists) >= 8
    for path in lists:
        name = "cursor" if path.startswith("/v1/") else "_limit=1&_cursor"
        for value in CURSORS:
            reply = victim.get(f"{path}?{name}={packed(value)}")
            assert reply.status in (200, 400, 404, 422), (path, value, reply.text)
        for text in ("%00", "=", "====", "e30", "x" * 4_001, "%F0%9F%98%80", "-_-_", packed([1])[:-1]):
            reply = victim.get(f"{path}?{name}={text}")
            assert reply.status in (200, 400, 404, 422), (path, text, reply.text)


def test_names_in_paths_are_names(victim):
    before = all_runs(victim)
    frames = [
        "/v1/flows/{}/runs",
        f"/v1/flows/{FLOW}/runs/{{}}",
        f"/v1/flows/{FLOW}/runs/{{}}/tasks",
        f"/v1/flows/{FLOW}/runs/1/steps/{{}}/tasks/0",
        f"/v1/flows/{FLOW}/runs/1/steps/start/tasks/{{}}/attempts",
        "/v1/artifacts/{}",
        "/flows/{}/runs",
        f"/flows/{FLOW}/runs/{{}}",
        f"/flows/{FLOW}/runs/1/steps/{{}}/tasks",
        f"/flows/{FLOW}/runs/1/steps/start/tasks/{{}}/metadata",
        f"/flows/{FLOW}/runs/1/steps/start/tasks/0/artifacts/{{}}",
        f"/flows/{FLOW}/runs/1/steps/start/tasks/0/attempt/{{}}/artifacts",
    ]
    for frame in frames:
        for text in [*(quote(text, safe="") for text in TEXTS), *PATHS]:
            reply = victim.get(frame.format(text))
            assert reply.status < 500, (frame, text, reply.text)
            assert "Set-Cookie" not in reply.headers
            assert "Location" not in reply.headers
            if reply.status == 200:
                told = reply.json()
                assert told in ([], {"items": [], "next": None}), (frame, text, told)
    assert all_runs(victim) == before


def test_what_is_written_comes_back_as_it_is_and_does_nothing(victim):
    url = victim.service.url
    tags = sorted({text for text in TEXTS if text.strip() and len(text) <= 500 and text.isprintable()})
    reply = requests.patch(f"{url}/v1/flows/{FLOW}/runs/1/tags", json={"add": tags}, timeout=DEADLINE)
    if reply.status_code == 200:
        assert set(tags) <= set(reply.json()["tags"])
    else:  # the rules of tags forbid some
        assert reply.status_code in (400, 422)
    for text in TEXTS:
        record = RunRecord("Written", "7", text, "failed", 1.0, reason=text, host=text)
        body = {"records": [{"kind": "run", **record.to_json()}]}
        reply = requests.post(
            f"{url}/v1/records", json=body, headers={"Idempotency-Key": quote(text)[:200]}, timeout=DEADLINE
        )
        assert reply.status_code in (200, 400, 422), (text, reply.text)
        if reply.status_code == 200:
            told = requests.get(f"{url}/v1/flows/Written/runs/7", timeout=DEADLINE).json()
            assert told["reason"] == text
        field = {"field_name": text[:500], "value": text, "type": text, "user_name": "eve"}
        where = f"{url}/flows/{FLOW}/runs/1/steps/start/tasks/0"
        reply = requests.post(f"{where}/metadata", json=[field], timeout=DEADLINE)
        assert reply.status_code in (200, 400, 422), (text, reply.text)
        artifact = {"name": text[:500], "sha": KEY, "location": text, "ds_type": text, "type": text}
        reply = requests.post(f"{where}/artifact", json=[artifact], timeout=DEADLINE)
        assert reply.status_code in (200, 400, 422), (text, reply.text)
        reply = requests.get(f"{where}/metadata", timeout=DEADLINE)
        assert reply.status_code == 200
    assert {run["run"] for run in all_runs(victim) if run["flow"] == FLOW} == {"1", "2"}
