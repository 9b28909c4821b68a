"""flowkit's own endpoints under ``/v1/``, over real HTTP to the real command."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.tokens import new_token

START = 1_700_000_000.0


class Caller:
    """Calls a service, as whoever has a token."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self._session = requests.Session()
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        return self._session.request(method, f"{self.url}/v1{path}", timeout=DEADLINE, **options)

    def get(self, path: str, **params: Any) -> Any:
        answer = self.ask("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def write(self, *records: dict[str, Any], key: str | None = None, status: int = 200) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = self.ask("POST", "/records", json={"records": list(records)}, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json()

    def beat(self, *beats: dict[str, str]) -> Any:
        answer = self.ask("POST", "/heartbeats", json={"heartbeats": list(beats)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def all(self, path: str, **params: Any) -> list[Any]:
        """Every item of a list, page by page."""
        found: list[Any] = []
        page = self.get(path, **params)
        while True:
            found += page["items"]
            if page["next"] is None:
                return found
            page = self.get(path, cursor=page["next"], **params)

    def refused(self, method: str, path: str, **options: Any) -> int:
        """The status of what is not carried out: an error in the shape that every error has."""
        answer = self.ask(method, path, **options)
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
        assert answer.json().keys() == {"error", "hint"}, answer.text
        assert answer.json()["error"]
        return answer.status_code

    def close(self) -> None:
        self._session.close()


def a_run(flow: str, run: object, **changed: Any) -> dict[str, Any]:
    return {
        "kind": "run",
        "flow": flow,
        "run": str(run),
        "user": "ann",
        "state": "running",
        "created": START,
        **changed,
    }


def a_task(flow: str, run: object, step: str, task: object = 0, **changed: Any) -> dict[str, Any]:
    where = {"kind": "task", "flow": flow, "run": str(run), "step": step, "task": str(task)}
    return {**where, "state": "succeeded", "started": START, "finished": START + 1, **changed}


def an_output(flow: str, run: object, step: str, task: object = 0, **changed: Any) -> dict[str, Any]:
    where = {"kind": "output", "flow": flow, "run": str(run), "step": step, "task": str(task), "attempt": 0}
    return {**where, "artifacts": [], "reads": [], **changed}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path_factory.mktemp("database"))
        return
    server = request.getfixturevalue("postgresql_server")
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture(scope="module")
def service(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = ("--heartbeat-interval", "1", "--no-access-log")
    env = {"FLOWKIT_SERVICE_DATABASE": database}
    with ServiceProcess(tmp_path_factory.mktemp("service"), *options, env=env) as process:
        yield process
        assert process.stop() == 0
        assert '"level": "error"' not in process.stderr


@pytest.fixture
def api(service: ServiceProcess) -> Iterator[Caller]:
    made = Caller(service.url)
    yield made
    made.close()


def test_a_run_is_written_and_read(api):
    key, other = "a" * 64, "b" * 64
    api.write(
        a_run("Whole", 1, tags=["trial"], system_tags=["project:none", "flowkit"], origin="Whole/0", host="far"),
        a_task("Whole", 1, "begin", attempt=0, state="failed", reason="no luck"),
        a_task("Whole", 1, "begin", attempt=1, started=START + 2, finished=START + 3),
        an_output("Whole", 1, "begin", attempt=1, artifacts=[{"name": "größe", "key": key, "size": 5, "type": "int"}]),
        a_task("Whole", 1, "finish", state="running", finished=None, started=START + 4),
    )
    api.write(
        a_task("Whole", 1, "finish", started=START + 4, finished=START + 5),
        an_output("Whole", 1, "finish", artifacts=[{"name": "y", "key": other}], reads=[f"größe={key}"]),
        a_run("Whole", 1, state="succeeded", finished=START + 6, origin="Whole/0"),
    )
    run = api.get("/flows/Whole/runs/1")
    assert (run["state"], run["user"], run["tags"], run["origin"]) == ("succeeded", "ann", ["trial"], "Whole/0")
    assert run["system_tags"] == ["flowkit", "project:none"]
    assert (run["created"], run["finished"]) == (START, START + 6)
    assert [(s["step"], s["counts"]) for s in api.get("/flows/Whole/runs/1/steps")["items"]] == [
        ("begin", {"succeeded": 1}),
        ("finish", {"succeeded": 1}),
    ]
    task = api.get("/flows/Whole/runs/1/steps/begin/tasks/0")
    assert (task["state"], task["attempt"], task["reason"]) == ("succeeded", 1, None)
    attempts = api.get("/flows/Whole/runs/1/steps/begin/tasks/0/attempts")["items"]
    assert [(each["attempt"], each["state"], each["reason"]) for each in attempts] == [
        (0, "failed", "no luck"),
        (1, "succeeded", None),
    ]
    where = {"flow": "Whole", "run": "1"}
    made = {**where, "step": "begin", "task": "0", "attempt": 1, "name": "größe", "key": key}
    made |= {"size": 5, "type": "int", "codec": None}
    assert api.get("/flows/Whole/runs/1/artifacts", step="begin")["items"] == [made]
    assert len(api.get("/flows/Whole/runs/1/artifacts")["items"]) == 2
    assert api.get("/flows/Whole/runs/1/artifacts", name="y")["items"][0]["key"] == other
    assert api.get(f"/artifacts/{key}")["items"] == [made]
    edge = {**where, "step": "finish", "task": "0", "name": "größe", "key": key}
    assert api.get(f"/artifacts/{key}/readers")["items"] == [edge]
    assert api.get("/flows/Whole/runs/1/lineage")["items"] == [edge]
    assert api.get("/flows/Whole/runs/1/lineage", step="begin", task="0") == {"items": [], "next": None}
    assert "Whole" in {flow["flow"] for flow in api.get("/flows")["items"]}
    assert "Whole" in {flow["flow"] for flow in api.get("/flows", namespace="trial")["items"]}
    assert "Whole" not in {flow["flow"] for flow in api.get("/flows", namespace="nobody's")["items"]}


def test_the_same_request_is_written_once(api):
    assert api.write(a_run("Once", 1), key="first") == {"written": 1, "repeated": False}
    api.write(a_run("Once", 1, state="succeeded"), key="second")
    assert api.write(a_run("Once", 1), key="first") == {"written": 0, "repeated": True}
    assert api.get("/flows/Once/runs/1")["state"] == "succeeded"


def test_a_batch_is_written_whole_or_not_at_all(api):
    assert api.refused("POST", "/records", json={"records": [a_run("Half", 1), a_task("Half", 1, "a/b")]}) == 422
    assert api.refused("POST", "/records", json={"records": [a_run("Half", 1), a_task("Half", 2, "a")]}) == 404
    assert api.refused("GET", "/flows/Half/runs/1") == 404
    assert api.write() == {"written": 0, "repeated": False}


def test_numbers_are_given_out_once(api):
    def reserve(_: int) -> int:
        answer = requests.post(f"{api.url}/v1/flows/Many/reserve", json={}, timeout=DEADLINE)
        return int(answer.json()["run"])

    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(reserve, range(64)))
    assert sorted(given) == list(range(1, 65))
    reserved = [api.ask("POST", "/flows/Many/reserve", json={"at_least": n}).json()["run"] for n in (100, 1)]
    assert reserved == ["100", "101"]
    api.write(a_run("Many", 102))
    assert api.ask("DELETE", "/flows/Many/runs/102").status_code == 204
    assert api.ask("POST", "/flows/Many/reserve", json={}).json()["run"] == "103"


def test_a_run_is_lost_after_three_missed_heartbeats_and_found_again(api):
    future = time.time() + 10_000_000
    beats = [{"flow": "Beating", "run": "1"}, {"flow": "Beating", "run": "1", "step": "go", "task": "0"}]
    records = [
        *(a_run("Beating", 1), a_task("Beating", 1, "go", state="running", finished=None)),
        # clocks of clients count for nothing
        *(a_run("Beating", 2, created=future, heartbeat=future), a_run("Beating", 3, created=0, heartbeat=0)),
    ]
    look = "/flows/Beating/runs"

    def written() -> list[str]:
        api.write(*records)
        return [run["state"] for run in api.get(look)["items"]]

    _until(written, lambda states: states == ["running"] * 3)
    assert api.get(f"{look}/2")["created"] < future - 1_000_000
    _until(lambda: api.get(look, status="lost")["items"], lambda runs: len(runs) == 3)
    assert "heard of" in api.get(f"{look}/1")["reason"]
    assert api.get(f"{look}/1/tasks")["items"][0]["state"] == "lost"
    assert [run["run"] for run in api.get("/runs", status="lost")["items"] if run["flow"] == "Beating"] == [
        "2",
        "1",
        "3",
    ]
    unknown = {"flow": "Beating", "run": "4"}
    assert api.beat(*beats, unknown) == {"interval": 1, "unknown": [unknown]}
    _until(lambda: (api.beat(*beats), api.get(f"{look}/1"))[1], lambda run: run["state"] == "running")
    api.write(a_run("Beating", 1, state="failed", reason="no luck", finished=START + 9))
    api.beat(*beats)  # late: it has ended
    run = api.get(f"{look}/1")
    assert (run["state"], run["reason"], run["finished"]) == ("failed", "no luck", START + 9)


def test_runs_are_filtered(api):
    for number in range(1, 21):
        api.write(
            a_run(
                "Picked",
                number,
                user="bob" if number % 2 else "eve",
                state="failed" if number % 5 == 0 else "succeeded",
                created=START + number,
                tags=["third"] * (number % 3 == 0) + ["é/ü"] * (number == 7),
            ),
            a_task("Picked", number, "rare" if number in (4, 15) else "usual"),
        )

    def listed(path: str, **params: Any) -> list[int]:
        return [int(run["run"]) for run in api.all(path, **params) if run["flow"] == "Picked"]

    for path in ("/flows/Picked/runs", "/runs"):
        assert listed(path) == list(range(20, 0, -1))
        assert listed(path, status="failed") == [20, 15, 10, 5]
        assert listed(path, user="eve", status="failed") == [20, 10]
        assert listed(path, tag="third") == [18, 15, 12, 9, 6, 3]
        assert listed(path, tag=["third", "none"]) == []
        assert listed(path, tag="é/ü") == [7]
        assert listed(path, since=START + 3, until=START + 6) == [5, 4, 3]
        assert listed(path, step="rare") == [15, 4]
        assert listed(path, step="rare", tag="third", limit=1) == [15]
        assert listed(path, status="running") == []
        assert listed(path, user="' OR 1=1 --") == []
        assert listed(path, tag="%") == []


def test_long_lists_come_in_pages(api):
    runs = [a_run("Long", number, created=START + number, state="succeeded") for number in range(2300)]
    api.write(*runs)
    assert [int(run["run"]) for run in api.all("/flows/Long/runs", limit=1000)] == list(range(2299, -1, -1))
    first = api.get("/flows/Long/runs")
    assert len(first["items"]) == 100
    assert first["next"]
    # a page with a filter that no index carries looks at some runs only, says so, and goes on
    page = api.get("/flows/Long/runs", step="none")
    assert page["items"] == []
    assert page["next"] is not None
    tasks = [a_task("Long", 1, "wide", number, started=START + number // 7) for number in range(2300)]
    api.write(*tasks, *(an_output("Long", 1, "wide", n, artifacts=[{"name": "x", "key": "k"}]) for n in range(2300)))
    found = api.all("/flows/Long/runs/1/tasks", step="wide", limit=999)
    assert [int(task["task"]) for task in found] == list(range(2300))
    assert api.all("/flows/Long/runs/1/tasks", limit=1000) == found
    assert len(api.all("/flows/Long/runs/1/artifacts", limit=1000)) == 2300
    assert len({each["task"] for each in api.all("/artifacts/k", limit=700)}) == 2300
    assert len(api.all("/flows", limit=1)) == len(api.all("/flows"))


def test_tags_are_changed_at_once(api):
    api.write(a_run("Tagged", 1, tags=["a", "b"], system_tags=["fixed"]))
    answer = api.ask("PATCH", "/flows/Tagged/runs/1/tags", json={"add": ["c", "a"], "remove": ["a", "b", "z"]})
    assert answer.json() == {"tags": ["a", "c"]}
    for change in ({"remove": ["fixed"]}, {"add": ["x" * 501]}, {"add": [""]}, {"add": [f"{n}" for n in range(60)]}):
        api.refused("PATCH", "/flows/Tagged/runs/1/tags", json=change)
    api.write(a_run("Tagged", 1, tags=["other"]))  # tags count only where a run is new
    assert api.get("/flows/Tagged/runs/1")["tags"] == ["a", "c"]
    assert api.refused("PATCH", "/flows/Tagged/runs/2/tags", json={"add": ["x"]}) == 404


def test_a_deleted_run_is_gone(api):
    key = "d" * 64
    api.write(
        a_run("Gone", 1), a_task("Gone", 1, "a"), an_output("Gone", 1, "a", artifacts=[{"name": "x", "key": key}])
    )
    assert api.ask("DELETE", "/flows/Gone/runs/1").status_code == 204
    for path in ("", "/steps", "/tasks", "/artifacts", "/lineage", "/steps/a/tasks/0", "/steps/a/tasks/0/attempts"):
        assert api.refused("GET", f"/flows/Gone/runs/1{path}") == 404
    assert api.refused("DELETE", "/flows/Gone/runs/1") == 404
    assert api.get(f"/artifacts/{key}")["items"] == []
    assert api.get("/flows/Gone/runs")["items"] == []


BAD_RECORDS: list[Any] = [
    b"",
    b"nonsense",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"{}",
    b'{"records": null}',
    b'{"records": [null]}',
    b'{"records": [{"kind": "run"}]}',
    b'{"records": [{"kind": "other"}]}',
    b'{"records": ' + b"[" * 100_000,
    b'{"records": [{"kind": "task", "reason": "\\ud800"}]}',
    *(
        a_run("Bad", 1) | {name: value}
        for name, values in {
            "flow": ["", "a/b", "..", ".", "é", "x" * 256, "a\n", 5, None, ["a"], "a\0", "a b", "%2e"],
            "run": ["", "../1", 1],
            "user": [None, 1, "x" * 70_000],
            "state": ["", "done", None, 1],
            "created": ["now", None, -1, 1e300, "1", True, [1]],
            "finished": [1e12, "x"],
            "tags": ["a", [""], ["x" * 501], ["a\0"], [1], [None], {"a": 1}, [str(n) for n in range(51)]],
            "system_tags": [[""], ["s"] * 1000],
            "origin": ["a\0b", 5],
            "pid": [-1, 1.5, 2**63, "1"],
        }.items()
        for value in values
    ),
    *(
        a_task("Bad", 1, "a") | {name: value}
        for name, values in {
            "step": ["", "a/b"],
            "task": ["", "0/1", 0],
            "attempt": [-1, 2**31, 0.5, None],
            "started": [1e300, "1"],
        }.items()
        for value in values
    ),
    an_output("Bad", 1, "a", artifacts=[{"name": "x"}]),
    an_output("Bad", 1, "a", artifacts=[{"name": "", "key": "k"}]),
    an_output("Bad", 1, "a", artifacts=[{"name": "x", "key": "a b"}]),
    an_output("Bad", 1, "a", artifacts=[{"name": "x", "key": "k", "size": -1}]),
    an_output("Bad", 1, "a", reads=["no key"]),
    an_output("Bad", 1, "a", attempt=None),
]


def test_bad_records_are_refused_with_their_place(api):
    for bad in BAD_RECORDS:
        body = bad if isinstance(bad, bytes) else json.dumps({"records": [bad]})
        assert api.refused("POST", "/records", data=body) == 422, bad
    told = api.ask("POST", "/records", json={"records": [a_run("Bad", 1), a_task("Bad", 1, "a/b", None)]}).json()
    assert "records[1]" in told["error"]
    assert "step" in told["error"]
    assert "a/b" not in told["error"]
    for spelled in ("NaN", "Infinity", "-Infinity", "1e999"):
        text = json.dumps({"records": [a_run("Bad", 1, created=1234.5)]}).replace("1234.5", spelled)
        assert api.refused("POST", "/records", data=text) == 422
    many = {"records": [a_task("Bad", 1, "a", n) for n in range(10_001)]}
    assert api.refused("POST", "/records", json=many) == 422
    assert api.refused("POST", "/records", json={"records": []}, headers={"Idempotency-Key": "x" * 201}) == 422
    assert api.get("/flows/Bad/runs")["items"] == []


def test_bad_questions_are_refused(api):
    api.write(a_run("Asked", 1), a_task("Asked", 1, "a"), a_run("Asked", 2))
    cursor = api.get("/flows/Asked/runs", limit=1)["next"]
    for path in (
        "/runs?status=done",
        "/runs?limit=0",
        "/runs?limit=1001",
        "/runs?limit=x",
        "/runs?since=NaN",
        "/runs?since=-1",
        "/runs?until=inf",
        "/runs?user=%00",
        "/runs?user=",
        "/runs?tag=",
        "/runs?step=a/b",
        "/runs?cursor=",
        "/runs?cursor=nonsense!",
        "/runs?cursor=WzFd",
        f"/runs?cursor={cursor}",
        "/flows/Asked/runs?cursor=WyIxMjM0Il0",  # a run that there is not
        "/flows/Asked/runs?cursor=WyJcdWQ4MDAiXQ",  # half of a character
        "/flows/Asked/runs?cursor=W1tbW1tbW1tbW1tb",
        f"/flows/Asked/runs?cursor={'A' * 5000}",
        "/flows/Asked/runs/1/tasks?cursor=WyJhIiwibm9uZSJd",
        "/flows/Asked/runs/1/tasks?step=b&cursor=WyJhIiwiMCJd",
        "/flows/Asked/runs/1/artifacts?task=0",
        "/flows/Asked/runs/1/artifacts?attempt=-1",
        "/flows/a%20b/runs",
        "/flows/%2e%2e/runs",
        "/flows/a%2fb/runs",
        "/flows/%ff/runs",
        "/flows/Asked/runs/1%00",
        "/flows/Asked/runs/3",
        "/flows/Asked/runs/1/steps/a/tasks/1",
        "/flows/Asked/runs/1/steps/b/tasks/0/attempts",
        "/artifacts/a%20b",
        "/nothing",
        "/runs/",
    ):
        assert api.refused("GET", path) in (400, 404, 422), path
    assert api.refused("PUT", "/runs") == 405
    assert api.ask("PUT", "/flows/Asked/runs/1").headers["Allow"] == "DELETE, GET"
    assert api.refused("POST", "/flows/a b/reserve", json={}) in (400, 422)
    for at_least in (0, -1, 10**17, "1", None, 1.5):
        assert api.refused("POST", "/flows/Asked/reserve", json={"at_least": at_least}) == 422
    for beats in ({}, {"heartbeats": None}, {"heartbeats": [{"flow": "a"}]}, {"heartbeats": [{"flow": 1, "run": "1"}]}):
        assert api.refused("POST", "/heartbeats", json=beats) == 422


def test_the_description_names_every_route(api):
    told = requests.get(f"{api.url}/openapi.json", timeout=DEADLINE).json()
    ours = {path for path in told["paths"] if path.startswith("/v1/")}
    assert {"/v1/records", "/v1/heartbeats", "/v1/runs", "/v1/flows/{flow}/runs", "/v1/artifacts/{key}"} <= ours
    body = told["paths"]["/v1/records"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Records"}
    assert told["components"]["schemas"]["Records"]["properties"]["records"]["items"]["discriminator"]
    assert told["components"]["securitySchemes"]
    text = json.dumps(told)
    for reference in set(_references(told)):
        assert reference.removeprefix("#/components/schemas/") in told["components"]["schemas"], reference
    assert "HTTPValidationError" not in text
    for path in ("/docs", "/redoc"):
        assert requests.get(f"{api.url}{path}", timeout=DEADLINE).status_code == 404


@pytest.fixture(scope="module")
def guarded(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Caller]]:
    """Callers of another service on the same database that asks who calls."""
    made = {}
    store = open_store(database)
    secrets = {}
    for name, scope, projects in (
        ("red", "write", ("red",)),
        ("blue", "write", ("blue",)),
        ("both", "admin", ("red", "blue")),
        ("all", "write", ()),
        ("look", "read", ()),
    ):
        token, secret, digest = new_token(name, (scope,), projects)
        store.add_token(token, digest)
        secrets[name] = secret
    store.close()
    env = {"FLOWKIT_SERVICE_DATABASE": database, "FLOWKIT_SERVICE_AUTHENTICATION": "1"}
    with ServiceProcess(tmp_path_factory.mktemp("guarded"), env=env) as process:
        made = {name: Caller(process.url, secret) for name, secret in secrets.items()}
        yield made
        for caller in made.values():
            caller.close()
        assert process.stop() == 0


def test_a_token_of_a_project_sees_and_writes_its_runs_only(guarded):
    red, blue, both, everybody = (guarded[name] for name in ("red", "blue", "both", "all"))
    key = "c" * 64
    for color, caller in (("red", red), ("blue", blue)):
        caller.write(
            a_run("Shared", f"{color}-1", system_tags=[f"project:{color}"], created=START),
            a_task("Shared", f"{color}-1", "a"),
            an_output("Shared", f"{color}-1", "a", artifacts=[{"name": "x", "key": key}], reads=[f"x={key}"]),
        )
    everybody.write(a_run("Shared", "free", tags=["project:red"]), a_run("Other", 1, tags=["project:red"]))

    for path in ("/flows/Shared/runs", "/runs"):
        names = {name: [run["run"] for run in guarded[name].all(path) if run["flow"] == "Shared"] for name in guarded}
        assert names["red"] == ["red-1"]
        assert names["blue"] == ["blue-1"]
        assert sorted(names["both"]) == ["blue-1", "red-1"]
        assert sorted(names["all"]) == ["blue-1", "free", "red-1"]
    assert [flow["flow"] for flow in red.get("/flows")["items"]] == ["Shared"]
    assert red.get("/flows", namespace="nobody's")["items"] == []
    assert [each["run"] for each in red.get(f"/artifacts/{key}")["items"]] == ["red-1"]
    assert [each["run"] for each in red.get(f"/artifacts/{key}/readers")["items"]] == ["red-1"]
    assert len(both.get(f"/artifacts/{key}")["items"]) == 2
    assert red.get("/about")["database"] == {}

    for path in ("", "/steps", "/tasks", "/artifacts", "/lineage", "/steps/a/tasks/0", "/steps/a/tasks/0/attempts"):
        assert red.refused("GET", f"/flows/Shared/runs/blue-1{path}") == 404
        assert red.refused("GET", f"/flows/Shared/runs/free{path}") == 404
        assert red.refused("GET", f"/flows/Shared/runs/none{path}") == 404
    assert red.refused("PATCH", "/flows/Shared/runs/blue-1/tags", json={"add": ["mine"]}) == 404
    red.write(a_task("Shared", "blue-1", "a"), status=404)
    red.write(an_output("Shared", "blue-1", "a"), status=404)
    red.write(a_run("Shared", "blue-1", state="failed"), status=403)
    red.write(a_run("Shared", "blue-1", system_tags=["project:red"]), status=403)
    red.write(a_run("Shared", "red-2", tags=["project:red"]), status=403)
    red.write(a_run("Shared", "red-2", system_tags=["project:blue"]), status=403)
    beats = [{"flow": "Shared", "run": "red-1"}, {"flow": "Shared", "run": "blue-1"}]
    assert red.beat(*beats)["unknown"] == beats[1:]
    assert both.beat(*beats)["unknown"] == []

    assert red.refused("DELETE", "/flows/Shared/runs/red-1") == 403
    assert both.refused("DELETE", "/flows/Shared/runs/free") == 404
    assert both.ask("DELETE", "/flows/Shared/runs/blue-1").status_code == 204
    assert guarded["look"].refused("POST", "/records", json={"records": []}) == 403
    assert guarded["look"].get("/flows/Shared/runs/red-1")["state"] == "running"


def test_nobody_is_answered_without_a_token(guarded):
    url = guarded["all"].url
    told = requests.get(
        f"{url}/openapi.json",
        timeout=DEADLINE,
        headers={"Authorization": guarded["look"]._session.headers["Authorization"]},
    ).json()
    caller = Caller(url)
    for path, methods in told["paths"].items():
        for method in methods:
            if path in ("/ping", "/healthcheck", "/version"):
                continue
            answer = requests.request(method, url + path.replace("{", "").replace("}", ""), timeout=DEADLINE)
            assert answer.status_code == 401, (method, path)
            assert answer.json().keys() == {"error", "hint"}
    assert requests.get(f"{url}/openapi.json", timeout=DEADLINE).status_code == 401
    caller.close()


def _until(look: Any, enough: Any) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not enough(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
