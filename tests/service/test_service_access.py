"""Who may what: every route of the service, asked by everybody who could ask.

The routes are those of the application itself, so one that is added is tried too: it fails here until `BODIES` says
what a right request of it carries, if it takes something.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from fastapi import APIRouter, Depends, FastAPI
from requests.adapters import HTTPAdapter
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import ArtifactRecord, OutputRecord, RunRecord, TaskRecord
from flowkit.metadata_service.app import make_app
from flowkit.metadata_service.broadcast import Broadcaster
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.guard import OPEN, Door, Guard, check_doors, doors
from flowkit.metadata_service.metrics import Metrics
from flowkit.metadata_service.service import Service
from flowkit.metadata_service.token_desk import TokenDesk
from flowkit.metadata_service.tokens import KEPT, new_token

FLOW = "Guarded"
SECRET = "kryptonite"
"""A word in everything that the guarded run has: nobody else may be told it."""
KEY = "b3" + "0" * 40
PLACE = {"flow": FLOW, "run": "1", "step": "train", "task": "7", "key": KEY, "name": "weights", "attempt": "0"}
_FIELD = {"field_name": "note", "value": "x", "type": "note", "user_name": "ann", "tags": ["attempt_id:0"]}
_ARTIFACT = {"name": "made", "sha": KEY, "location": "s3://b/k", "ds_type": "s3", "type": "t", "attempt_id": 0}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/records"): {
        "records": [{"kind": "task", "flow": FLOW, "run": "1", "step": "train", "task": "8", "state": "running"}]
    },
    ("POST", "/v1/heartbeats"): {"heartbeats": [{"flow": FLOW, "run": "1"}]},
    ("POST", "/v1/flows/{flow}/reserve"): {"at_least": 1},
    ("POST", "/v1/emitted"): {"name": "data_arrived", "data": {"table": "sales"}},
    ("PATCH", "/v1/flows/{flow}/runs/{run}/tags"): {"add": ["good"]},
    ("DELETE", "/v1/flows/{flow}/runs/{run}"): None,
    ("POST", "/flows/{flow}"): {"user_name": "ann"},
    ("POST", "/flows/{flow}/run"): {"user_name": "ann", "system_tags": ["project:alpha"]},
    ("POST", "/flows/{flow}/runs/{run}/heartbeat"): {},
    ("PATCH", "/flows/{flow}/runs/{run}/tag/mutate"): {"tags_to_add": ["better"]},
    ("POST", "/flows/{flow}/runs/{run}/steps/{step}/step"): {"user_name": "ann"},
    ("POST", "/flows/{flow}/runs/{run}/steps/{step}/task"): {"user_name": "ann"},
    ("POST", "/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}/heartbeat"): {},
    ("POST", "/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}/metadata"): [_FIELD],
    ("POST", "/flows/{flow}/runs/{run}/steps/{step}/tasks/{task}/artifact"): [_ARTIFACT],
}
OF_NO_RUN = {
    ("POST", "/v1/flows/{flow}/reserve"),
    ("POST", "/flows/{flow}"),
    ("GET", "/flows/{flow}"),
    ("POST", "/flows/{flow}/run"),
    ("POST", "/v1/heartbeats"),
    ("POST", "/v1/emitted"),
    ("GET", "/v1/emitted"),
}
"""What is not about a run that is there, or tells in its answer which ones it does not know."""


def application() -> FastAPI:
    """The application as it is served; nothing is asked of its database."""
    configuration = Configuration("sqlite:///unused", authentication=True)
    store: Any = None
    metrics = Metrics()
    broadcaster = Broadcaster(store, configuration, metrics)
    return make_app(Service(configuration, store, Guard(configuration, store), broadcaster, metrics))


DOORS = [door for door in doors(application()) if door.path not in OPEN]


def named(door: Door) -> str:
    return f"{door.methods[0]} {door.path}"


class _From(HTTPAdapter):
    def __init__(self, address: str) -> None:
        self._address = address
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, source_address=(self._address, 0))


def from_elsewhere(door: Door) -> requests.Session:
    """Call from an address of its own for each route: many wrong tokens from one are refused before they are read."""
    session = requests.Session()
    session.mount("http://", _From(f"127.0.1.{1 + DOORS.index(door)}"))
    return session


class Tokens(NamedTuple):
    """One token of each kind, as text."""

    admin: str
    writer: str
    reader: str
    ours: str
    foreign: str
    both: str
    expired: str
    revoked: str


class Guarded(NamedTuple):
    """A service that asks, with one run of project alpha."""

    url: str
    database: str
    tokens: Tokens

    def ask(self, door: Door, token: str | None, **place: str) -> requests.Response:
        verb = door.methods[0]
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        known = (verb, door.path) in BODIES
        assert known or verb == "GET", f"say in BODIES what {verb} {door.path} takes"
        body = BODIES.get((verb, door.path))
        path = door.path.format(**{**PLACE, **place})
        stream = door.path == "/v1/events"
        with from_elsewhere(door) as session:
            reply = session.request(
                verb,
                self.url + path,
                json=body,
                headers=headers,
                timeout=DEADLINE,
                stream=stream,
                allow_redirects=False,
            )
        return reply


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    database = f"sqlite:///{folder / 'database'}"
    tokens = _tokens(database)
    _fill(database)
    with ServiceProcess(folder, "--authentication", "--database", database) as service:
        yield Guarded(service.url, database, tokens)


def _tokens(database: str) -> Tokens:
    store = open_store(database)
    past, text, digest = new_token("past", ["admin"])
    store.add_token(past._replace(created=1.0, expires=2.0), digest)
    store.close()
    with TokenDesk(database) as desk:
        gone, gone_text = desk.create("gone", ["admin"])
        desk.revoke(gone.id)
        return Tokens(
            admin=desk.create("admin", ["admin"])[1],
            writer=desk.create("writer", ["write"])[1],
            reader=desk.create("reader", ["read"])[1],
            ours=desk.create("ours", ["admin"], ["alpha"])[1],
            foreign=desk.create("foreign", ["admin"], ["beta"])[1],
            both=desk.create("both", ["read"], ["beta", "alpha"])[1],
            expired=text,
            revoked=gone_text,
        )


def _fill(database: str) -> None:
    store = open_store(database)
    now = time.time()
    store.register(
        [
            # A user tag says that it is beta's: user tags never count.
            RunRecord(FLOW, "1", SECRET, "running", now, tags=("project:beta", SECRET), system_tags=("project:alpha",)),
            TaskRecord(FLOW, "1", "_parameters", "0", "succeeded", started=now),
            TaskRecord(FLOW, "1", "train", "7", "running", started=now, reason=SECRET),
            OutputRecord(
                FLOW, "1", "train", "7", 0, (ArtifactRecord("weights", KEY, 5, SECRET),), (f"{SECRET}={KEY}",)
            ),
        ]
    )
    store.close()


# -- who is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS, ids=named)
def test_nobody_gets_in_without_a_good_token(guarded: Guarded, door: Door) -> None:
    good = guarded.tokens.admin
    other = new_token("other", ["admin"])[1]
    wrong = [None, "", "fk_", good[:-1], good + "0", good[:-1] + ("x" if good[-1] != "x" else "y"), other]
    for token in [*wrong, guarded.tokens.expired, guarded.tokens.revoked]:
        reply = guarded.ask(door, token)
        assert reply.status_code == 401, token
        assert reply.headers["WWW-Authenticate"].startswith("Bearer ")
        if door.path != "/v1/events":
            assert reply.json()["error"]
            assert SECRET not in reply.text


@pytest.mark.parametrize("door", [door for door in DOORS if door.asks != "read"], ids=named)
def test_a_reader_changes_nothing(guarded: Guarded, door: Door) -> None:
    reply = guarded.ask(door, guarded.tokens.reader)
    assert reply.status_code == 403
    assert "scope" in reply.json()["error"]


@pytest.mark.parametrize("door", [door for door in DOORS if door.asks == "admin"], ids=named)
def test_a_writer_does_not_administer(guarded: Guarded, door: Door) -> None:
    assert guarded.ask(door, guarded.tokens.writer).status_code == 403


@pytest.mark.parametrize("door", [door for door in DOORS if door.asks == "read"], ids=named)
def test_a_reader_reads(guarded: Guarded, door: Door) -> None:
    # 404 where nothing has such a name; never that it may not.
    assert guarded.ask(door, guarded.tokens.reader).status_code in (200, 404)


@pytest.mark.parametrize("door", DOORS, ids=named)
def test_every_method_of_a_path_asks_who_calls(guarded: Guarded, door: Door) -> None:
    path = door.path.format(**PLACE)
    with from_elsewhere(door) as session:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
            assert session.request(method, guarded.url + path, timeout=DEADLINE).status_code == 401, method


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS, ids=named)
def test_a_run_of_another_project_does_not_exist(guarded: Guarded, door: Door) -> None:
    reply = guarded.ask(door, guarded.tokens.foreign)
    assert reply.status_code != 401
    if door.path == "/v1/events":
        return
    assert SECRET not in reply.text
    if "{run}" in door.path:
        assert reply.status_code == 404
        # Nothing tells it from a run that never was.
        never = guarded.ask(door, guarded.tokens.foreign, run="999")
        assert never.status_code == 404
        assert never.text.replace(f"{FLOW}/999", f"{FLOW}/1") == reply.text
    elif door.methods == ("GET",) and "{flow}" not in door.path:
        assert FLOW not in reply.text


@pytest.mark.parametrize("door", DOORS, ids=named)
def test_a_run_of_the_own_project_is_there(guarded: Guarded, door: Door) -> None:
    if door.methods == ("DELETE",) or (door.methods[0], door.path) in OF_NO_RUN or door.path == "/v1/audit":
        return
    reply = guarded.ask(door, guarded.tokens.ours)
    assert reply.status_code in (200, 201, 204, 409), reply.text


def test_of_several_projects_each_counts(guarded: Guarded) -> None:
    headers = {"x-api-key": guarded.tokens.both}
    found = requests.get(f"{guarded.url}/v1/runs", headers=headers, timeout=DEADLINE).json()["items"]
    assert "1" in [run["run"] for run in found]


def test_nobody_writes_into_a_project_that_is_not_theirs(guarded: Guarded) -> None:
    def write(token: str, run: str, *projects: str) -> int:
        record = RunRecord(
            "Written", run, "ann", "running", 1.0, system_tags=tuple(f"project:{project}" for project in projects)
        )
        body = {"records": [{"kind": "run", **record.to_json()}]}
        headers = {"Authorization": f"Bearer {token}"}
        reply = requests.post(f"{guarded.url}/v1/records", json=body, headers=headers, timeout=DEADLINE)
        return reply.status_code

    tokens = guarded.tokens
    assert write(tokens.foreign, "10") == 403
    assert write(tokens.foreign, "10", "alpha") == 403
    assert write(tokens.foreign, "10", "alpha", "beta") == 403, "a run of two projects, by a token for one of them"
    assert write(tokens.foreign, "10", "beta") == 200
    assert write(tokens.foreign, "10", "beta", "alpha") in (200, 403)
    headers = {"Authorization": f"Bearer {tokens.ours}"}
    moved = requests.get(f"{guarded.url}/v1/flows/Written/runs/10", headers=headers, timeout=DEADLINE)
    assert moved.status_code == 404, "nobody moves a run into a project that is not theirs"
    assert write(tokens.ours, "10", "alpha") == 403, "nor takes it out of one"
    for body in ({"system_tags": []}, {"system_tags": ["project:alpha"]}, {"tags": ["project:beta"]}):
        reply = requests.post(
            f"{guarded.url}/flows/Written/run",
            json={"user_name": "eve", **body},
            headers={"x-api-key": tokens.foreign},
            timeout=DEADLINE,
        )
        assert reply.status_code == 403, body


def test_a_stream_has_the_events_of_the_own_projects_only(guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.tokens.foreign}"}
    with requests.get(f"{guarded.url}/v1/events", headers=headers, stream=True, timeout=DEADLINE) as stream:
        lines = stream.iter_lines(chunk_size=1, decode_unicode=True)
        assert next(line for line in lines if line.startswith("event:")) == "event: ready"
        for run, project in (("20", "alpha"), ("21", "beta")):
            record = RunRecord("Streamed", run, project, "running", 1.0, system_tags=(f"project:{project}",))
            reply = requests.post(
                f"{guarded.url}/v1/records",
                json={"records": [{"kind": "run", **record.to_json()}]},
                headers={"Authorization": f"Bearer {guarded.tokens.admin}"},
                timeout=DEADLINE,
            )
            assert reply.status_code == 200
        next(line for line in lines if line == "event: run")
        told = json.loads(next(line for line in lines if line.startswith("data:")).removeprefix("data:"))
        assert (told["run"], told["data"]["user"]) == ("21", "beta")


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_revoked_is_refused_within_seconds(guarded: Guarded) -> None:
    url = f"{guarded.url}/v1/flows"
    with TokenDesk(guarded.database) as desk:
        token, text = desk.create("soon gone", ["read"])
        ways = [{"Authorization": f"Bearer {text}"}, {"x-api-key": text}]
        for headers in ways:
            assert requests.get(url, headers=headers, timeout=DEADLINE).status_code == 200
        desk.revoke(token.id)
        revoked = time.monotonic()
        while requests.get(url, headers=ways[0], timeout=DEADLINE).status_code == 200:
            assert time.monotonic() - revoked < KEPT + DEADLINE
            time.sleep(0.05)
        for headers in ways:
            reply = requests.get(url, headers=headers, timeout=DEADLINE)
            assert reply.status_code == 401
            assert "revoked" in reply.json()["error"]
        while (used := next(each for each in desk.tokens() if each.id == token.id).used) is None:
            assert time.monotonic() - revoked < 2 * DEADLINE
            time.sleep(0.05)
        assert used >= token.created


def test_two_different_credentials_are_refused(guarded: Guarded) -> None:
    tokens = guarded.tokens
    headers = {"Authorization": f"Bearer {tokens.reader}", "x-api-key": tokens.admin}
    assert requests.get(f"{guarded.url}/v1/flows", headers=headers, timeout=DEADLINE).status_code == 401
    headers["x-api-key"] = tokens.reader
    assert requests.get(f"{guarded.url}/v1/flows", headers=headers, timeout=DEADLINE).status_code == 200
    headers = {"Authorization": f"Basic {tokens.reader}"}
    assert requests.get(f"{guarded.url}/v1/flows", headers=headers, timeout=DEADLINE).status_code == 401


def test_writes_are_in_the_audit_log_and_nothing_secret_is(guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.tokens.admin}"}
    record = RunRecord("Audited", "30", "ann", "running", 1.0)
    body = {"records": [{"kind": "run", **record.to_json()}]}
    requests.post(f"{guarded.url}/v1/records", json=body, headers=headers, timeout=DEADLINE)
    url = f"{guarded.url}/v1/flows/Audited/runs/30"
    assert requests.delete(url, headers={"x-api-key": guarded.tokens.reader}, timeout=DEADLINE).status_code == 403
    assert requests.delete(url, headers=headers, timeout=DEADLINE).status_code == 204
    requests.post(f"{guarded.url}/v1/heartbeats", json={"heartbeats": []}, headers=headers, timeout=DEADLINE)
    written: list[Any] = []
    stop = time.monotonic() + DEADLINE
    while len(written) < 3 and time.monotonic() < stop:
        reply = requests.get(f"{guarded.url}/v1/audit?limit=1000", headers=headers, timeout=DEADLINE)
        written = [entry for entry in reply.json()["items"] if "Audited/30" in entry["what"]]
    told = {(entry["action"], entry["status"]) for entry in written}
    assert told == {
        ("POST /v1/records", 200),
        ("DELETE /v1/flows/{flow}/runs/{run}", 403),
        ("DELETE /v1/flows/{flow}/runs/{run}", 204),
    }
    assert all(entry["who"].startswith("token:") and entry["from"] == "127.0.0.1" for entry in written)
    assert "heartbeats" not in reply.text
    for token in guarded.tokens:
        assert token.rpartition("_")[2] not in reply.text
    pages, cursor = [], None
    while True:
        page = requests.get(
            f"{guarded.url}/v1/audit", params={"limit": 2, "cursor": cursor}, headers=headers, timeout=DEADLINE
        ).json()
        pages += page["items"]
        cursor = page["next"]
        if cursor is None or len(pages) > 20:
            break
    ids = [entry["id"] for entry in pages]
    assert ids == sorted(set(ids), reverse=True)
    limited = requests.get(f"{guarded.url}/v1/audit", headers={"x-api-key": guarded.tokens.ours}, timeout=DEADLINE)
    assert limited.status_code == 403


# -- the application ---------------------------------------------------------------------------------------------------


def test_every_route_asks_who_calls() -> None:
    check_doors(application())
    assert {door.path for door in doors(application())} >= {"/v1/records", "/v1/events", "/flows/{flow}/runs/{run}"}


def test_an_application_with_a_route_that_does_not_ask_is_not_served() -> None:
    app = application()
    more = APIRouter(prefix="/v1")

    @more.get("/asks", dependencies=[Depends(lambda: None)])
    def asks_something_else() -> None: ...

    app.include_router(more)
    with pytest.raises(RuntimeError, match="/v1/asks"):
        check_doors(app)
    app = application()
    app.mount("/mounted", FastAPI())
    with pytest.raises(RuntimeError, match="/mounted"):
        check_doors(app)


@pytest.mark.parametrize("path", sorted(OPEN))
def test_probes_need_no_token(guarded: Guarded, path: str) -> None:
    reply = requests.get(guarded.url + path, timeout=DEADLINE)
    assert reply.status_code == 200
    assert requests.post(guarded.url + path, timeout=DEADLINE).status_code == 401
