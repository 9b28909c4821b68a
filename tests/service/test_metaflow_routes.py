"""The routes of Metaflow's metadata service over HTTP: payloads, status codes, headers, states, hostile input."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

_NAMES = (f"Flow{number}" for number in itertools.count())
_SYSTEM = ["user:ann", "runtime:dev"]


class Api:
    """The service, as a client of Metaflow's speaks to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()

    def close(self) -> None:
        self._session.close()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        answer = self._session.request(method, self.url + path, timeout=DEADLINE, **options)
        assert answer.status_code < 500, answer.text
        return answer

    def get(self, path: str, **params: Any) -> Any:
        answer = self.ask("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.ask("POST", path, json={} if body is None else body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def raw_status(self, method: str, path: str, body: str) -> int:
        """Send a path as it is: other clients would make something else of dots."""
        connection = HTTPConnection(self.url.partition("//")[2], timeout=DEADLINE)
        try:
            connection.request(method, quote(path, safe="/%'"), body)
            return connection.getresponse().status
        finally:
            connection.close()

    def status(self, method: str, path: str, **options: Any) -> int:
        return self.ask(method, path, **options).status_code

    # -- what a run of a client does --------------------------------------------------------------------------------

    def run(self, flow: str, **body: Any) -> str:
        """Create a run and return its path."""
        body = {"user_name": "ann", "tags": ["blue"], "system_tags": _SYSTEM, **body}
        return f"/flows/{flow}/runs/{self.post(f'/flows/{flow}/run', body)['run_number']}"

    def task(self, run: str, step: str, **body: Any) -> str:
        """Create a task and return its path."""
        return f"{run}/steps/{step}/tasks/{self.post(f'{run}/steps/{step}/task', body)['task_id']}"

    def tell(self, task: str, number: int, /, **fields: Any) -> None:
        """Write metadata of a task."""
        told = [
            {
                "field_name": name.replace("__", "-"),
                "value": str(value),
                "type": name,
                "user_name": "ann",
                "tags": [f"attempt_id:{number}"],
                "system_tags": [],
            }
            for name, value in fields.items()
        ]
        self.post(f"{task}/metadata", told)

    def attempt(self, task: str, attempt: int, worked: bool) -> None:
        self.tell(task, attempt, attempt=attempt)
        self.tell(task, attempt, attempt_ok=worked)
        self.tell(task, attempt, attempt__done=attempt)

    def own(self, path: str) -> Any:
        """Ask what flowkit shows of it."""
        return self.get(f"/v1{path}")

    def wait(self, run: str, state: str, beat: str | None = None) -> Any:
        """Wait until a run is in a state; with a path for a heartbeat before each look."""
        deadline = time.monotonic() + DEADLINE
        while True:
            if beat is not None:
                self.post(f"{beat}/heartbeat")
            if (found := self.own(run))["state"] == state:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service to which no run is lost while a test looks at it."""
    with ServiceProcess(tmp_path_factory.mktemp("service"), "--heartbeat-interval", "600") as service:
        api = Api(service.url)
        yield api
        api.close()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service to which a run is lost after three seconds."""
    with ServiceProcess(tmp_path_factory.mktemp("service"), "--heartbeat-interval", "1") as service:
        api = Api(service.url)
        yield api
        api.close()


@pytest.fixture
def flow(api: Api) -> str:
    """The name of a flow that is there, and that no other test has."""
    name = next(_NAMES)
    api.post(f"/flows/{name}", {"user_name": "ann", "tags": [], "system_tags": []})
    return name


# -- getting and creating --------------------------------------------------------------------------------------------


def test_the_version_is_one_that_clients_do_everything_with(api):
    answer = api.ask("GET", "/ping")
    assert (answer.text, answer.headers["METADATA_SERVICE_VERSION"]) == ("pong", "2.5.0")


def test_a_flow_is_created_once(api):
    name = next(_NAMES)
    assert api.status("GET", f"/flows/{name}") == 404
    made = api.post(f"/flows/{name}", {"flow_id": name, "user_name": "ann", "tags": ["a"], "system_tags": ["b"]})
    assert made == {
        "flow_id": name,
        "user_name": "ann",
        "ts_epoch": made["ts_epoch"],
        "tags": ["a"],
        "system_tags": ["b"],
    }
    assert api.status("POST", f"/flows/{name}", json={}) == 409
    assert api.get(f"/flows/{name}") == made
    assert api.get(f"/flows/{name}/runs") == []
    api.run(name)
    assert name in [each["flow_id"] for each in api.get("/flows")]


def test_runs_get_the_flows_next_numbers_however_many_ask_at_once(api, flow):
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda _: api.run(flow), range(24)))
    assert sorted(int(run.rpartition("/")[2]) for run in runs) == list(range(1, 25))
    shown = api.get(f"/flows/{flow}/runs/3")
    assert {name: shown[name] for name in ("flow_id", "run_number", "run_id", "user_name", "tags")} == {
        "flow_id": flow,
        "run_number": 3,
        "run_id": None,
        "user_name": "ann",
        "tags": ["blue"],
    }
    assert sorted(shown["system_tags"]) == sorted(_SYSTEM)
    assert abs(shown["ts_epoch"] / 1000 - time.time()) < DEADLINE


def test_of_many_that_claim_a_name_one_gets_it(api, flow):
    body = {"run_number": "argo-x.1", "user_name": "ann"}
    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(lambda _: api.status("POST", f"/flows/{flow}/run", json=body), range(16)))
    assert sorted(statuses) == [200] + [409] * 15
    run = f"/flows/{flow}/runs/argo-x.1"
    assert api.get(run)["run_number"] == api.get(run)["run_id"] == "argo-x.1"
    body = {"task_id": "t-1"}
    with ThreadPoolExecutor(8) as threads:
        tasks = list(threads.map(lambda _: api.status("POST", f"{run}/steps/train/task", json=body), range(16)))
    assert sorted(tasks) == [200] + [409] * 15
    task = api.get(f"{run}/steps/train/tasks/t-1")
    assert (task["task_id"], task["task_name"], task["run_number"]) == ("t-1", "t-1", "argo-x.1")


def test_numbers_cannot_be_chosen(api, flow):
    assert api.status("POST", f"/flows/{flow}/run", json={"run_number": "12"}) == 400
    assert api.status("POST", f"/flows/{flow}/run", json={"run_number": 12}) == 400
    run = api.run(flow)
    assert api.status("POST", f"{run}/steps/s/task", json={"task_id": "9"}) == 400


def test_steps_and_tasks(api, flow):
    run = api.run(flow)
    assert api.get(f"{run}/steps") == []
    assert api.status("GET", f"{run}/steps/start") == 404
    step = api.post(f"{run}/steps/start/step", {"user_name": "ann"})
    assert (step["step_name"], step["run_number"], step["tags"]) == ("start", 1, ["blue"])
    assert api.status("POST", f"{run}/steps/start/step", json={}) == 409
    assert api.get(f"{run}/steps/start") == step
    assert api.get(f"{run}/steps/start/tasks") == []
    first, second, other = api.task(run, "start"), api.task(run, "start"), api.task(run, "train")
    assert [each.rpartition("/")[2] for each in (first, second, other)] == ["1", "2", "3"]
    assert api.get(first)["task_id"] == "1"
    assert {each["task_id"] for each in api.get(f"{run}/steps/start/tasks")} == {"1", "2"}
    assert [each["step_name"] for each in api.get(f"{run}/steps")] == ["start", "train"]
    assert api.status("GET", f"{run}/steps/train/tasks/1") == 404  # the number is of another step
    assert api.own(f"{run}/steps/start/tasks/1")["state"] == "pending"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", ""), ("POST", "/heartbeat"), ("PATCH", "/tag/mutate"), ("GET", "/steps"), ("GET", "/metadata")),
        *(("GET", "/artifacts"), ("POST", "/steps/s/step"), ("POST", "/steps/s/task"), ("GET", "/steps/s/tasks")),
        *(("GET", "/steps/s/tasks/1/metadata"), ("POST", "/steps/s/tasks/1/heartbeat")),
        *(("GET", "/steps/s/tasks/1/artifacts/x"), ("GET", "/steps/s/filtered_tasks"), ("GET", "/steps/s/artifacts")),
    ],
)
def test_what_is_below_a_run_that_is_not_there(api, flow, method, path):
    assert api.status(method, f"/flows/{flow}/runs/99{path}", json={}) == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/steps/s"), ("GET", "/steps/s/tasks"), ("GET", "/steps/s/tasks/1"), ("GET", "/steps/s/artifacts")),
        *(("POST", "/steps/s/tasks/1/heartbeat"), ("POST", "/steps/s/tasks/1/metadata")),
        *(("POST", "/steps/s/tasks/1/artifact"), ("GET", "/steps/s/tasks/1/attempt/0/artifacts")),
        *(("GET", "/steps/s/tasks/1/artifacts/x/attempt/0"), ("GET", "/steps/s/filtered_tasks")),
    ],
)
def test_what_is_not_in_a_run(api, flow, method, path):
    assert api.status(method, api.run(flow) + path, json=[]) == 404


# -- states ----------------------------------------------------------------------------------------------------------


def test_a_heartbeat_is_answered_by_json_in_a_json_text(api, flow):
    run = api.run(flow)
    for path in (run, api.task(run, "start")):
        assert json.loads(api.post(f"{path}/heartbeat")) == {"wait_time_in_seconds": 600}
    assert api.get(run)["last_heartbeat_ts"] >= api.get(run)["ts_epoch"] // 1000


def test_a_run_with_a_retry_succeeds_with_its_end_step(api, flow):
    run = api.run(flow)
    train, end = api.task(run, "train"), api.task(run, "end")
    api.attempt(train, 0, False)
    api.tell(train, 1, attempt=1)
    assert api.own(f"{run}/steps/train/tasks/1")["state"] == "running"
    api.attempt(train, 1, True)
    assert api.own(run)["state"] == "running"
    api.attempt(end, 0, True)
    ended = api.own(run)
    assert (ended["state"], ended["reason"]) == ("succeeded", None)
    assert ended["finished"] >= ended["created"]
    attempts = api.own(f"{run}/steps/train/tasks/1/attempts")["items"]
    assert [(each["attempt"], each["state"]) for each in attempts] == [(0, "failed"), (1, "succeeded")]
    api.post(f"{run}/heartbeat")  # one that comes late takes nothing back
    assert api.own(run)["state"] == "succeeded"
    assert api.get(run)["status"] == "succeeded"


def test_an_end_step_of_any_name(api, flow):
    run = api.run(flow)
    parameters = api.task(run, "_parameters")
    api.tell(parameters, 0, attempt__done=0)
    api.tell(parameters, 0, start_step="begin", end_step="finish")
    api.attempt(api.task(run, "end"), 0, True)
    assert api.own(run)["state"] == "running"
    api.attempt(api.task(run, "finish"), 0, True)
    assert api.own(run)["state"] == "succeeded"
    assert api.own(f"{run}/steps/_parameters/tasks/1")["state"] == "succeeded"


def test_silence_after_a_failed_attempt_is_a_failed_run_and_silence_alone_a_lost_one(hasty):
    flow = next(_NAMES)
    run, other = hasty.run(flow), hasty.run(flow)
    train, waits, works = hasty.task(run, "train"), hasty.task(run, "other"), hasty.task(run, "other")
    started = hasty.task(other, "start")
    for task in (works, started):
        hasty.tell(task, 0, attempt=0)
    hasty.attempt(train, 0, False)
    ended = hasty.wait(run, "failed")
    assert ended["reason"] == "the step train failed (task 1, attempt 0)"
    assert hasty.own(f"/flows/{flow}/runs?status=failed")["items"] == [ended]
    assert hasty.own(waits)["state"] == "cancelled"
    assert hasty.own(works)["state"] == "lost"
    hasty.wait(other, "lost")
    assert hasty.get(other)["status"] == "lost"
    assert hasty.own(started)["state"] == "lost"
    hasty.wait(other, "running", beat=started)  # it was there all the time
    hasty.wait(run, "failed", beat=run)  # a heartbeat opens nothing
    hasty.tell(train, 1, attempt=1)  # a retry does
    hasty.wait(run, "running", beat=run)
    hasty.tell(train, 1, attempt_ok=True)
    hasty.attempt(hasty.task(run, "end"), 0, True)
    assert hasty.own(run)["state"] == "succeeded"


def test_a_service_that_starts_again_finds_the_runs_that_failed_meanwhile(tmp_path):
    flow = next(_NAMES)
    with ServiceProcess(tmp_path, "--heartbeat-interval", "1") as service:
        api = Api(service.url)
        run = api.run(flow)
        api.attempt(api.task(run, "train"), 0, False)
        api.close()
        assert service.stop() == 0
    with ServiceProcess(tmp_path, "--heartbeat-interval", "1") as service:
        api = Api(service.url)
        api.wait(run, "failed")
        api.close()
        assert service.stop() == 0


def test_a_resumed_run_and_its_cloned_tasks_name_their_origin(api, flow):
    run = api.run(flow)
    task = api.task(run, "train")
    api.tell(task, 0, attempt=0, attempt_ok=True, **{"origin-run-id": "4", "origin-task-id": "12"})
    assert api.own(f"{run}/steps/train/tasks/1")["origin"] == f"{flow}/4/train/12"
    assert api.own(run)["origin"] == f"{flow}/4"


# -- tags, metadata, artifacts ---------------------------------------------------------------------------------------


def test_tags_are_changed_at_once_and_by_the_rules(api, flow):
    run = api.run(flow)
    path = f"{run}/tag/mutate"

    def change(add: Any, remove: Any) -> requests.Response:
        return api.ask("PATCH", path, json={"tags_to_add": add, "tags_to_remove": remove})

    assert change(["red", "user:ann"], ["blue"]).json() == {"tags": ["red"]}
    assert api.get(run)["tags"] == ["red"]
    assert api.get(f"{run}/steps/start/tasks/1" if api.task(run, "start") else "")["tags"] == ["red"]
    refused = change([], ["runtime:dev"])
    assert refused.status_code == 422
    assert refused.json()["error"] == "system tags cannot be removed: runtime:dev"
    assert change([f"t{number}" for number in range(60)], []).status_code == 422
    for wrong in (["x" * 501], [""], "red", [1], [None], ["a\0b"], None):
        assert change(wrong, []).status_code == 400, wrong
    assert api.status("PATCH", path, data=b"{") == 400
    assert api.get(run)["tags"] == ["red"]


def test_metadata_is_kept_as_it_was_written(api, flow):
    run = api.run(flow)
    task = api.task(run, "start")
    written = api.post(
        f"{task}/metadata",
        [
            {"field_name": "origin", "value": "ä\n\u2028", "type": "t", "user_name": None, "tags": ["attempt_id:0"]},
            {"field_name": "number", "value": 5, "type": None, "tags": None, "system_tags": ["s"]},
            {"field_name": "nothing", "value": None},
        ],
    )
    assert api.get(f"{task}/metadata") == api.get(f"{run}/metadata") == written
    assert [(each["field_name"], each["value"]) for each in written] == [
        ("origin", "ä\n\u2028"),
        ("number", "5"),
        ("nothing", "null"),
    ]
    assert (written[0]["task_id"], written[0]["step_name"], written[0]["tags"]) == ("1", "start", ["attempt_id:0"])
    assert len({each["id"] for each in written}) == 3


def artifact(name: str, attempt: int, sha: str) -> dict[str, Any]:
    return {
        "name": name,
        "location": ":root:s3://bucket/x",
        "ds_type": "s3",
        "sha": sha,
        "type": "metaflow.artifact",
        "content_type": "gzip+pickle-v4",
        "attempt_id": attempt,
        "user_name": "ann",
    }


def test_artifacts_of_attempts(api, flow):
    run = api.run(flow)
    task, other = api.task(run, "train"), api.task(run, "train")
    api.post(f"{task}/artifact", [artifact("x", 0, "aa"), artifact("only", 0, "bb")])
    api.post(f"{task}/artifact", [artifact("x", 1, "cc")])
    api.post(f"{task}/artifact", [artifact("x", 1, "dd")])  # what is there stays
    api.post(f"{other}/artifact", [artifact("x", 0, "ee")])

    def told(path: str) -> list[tuple[str, str, int, str]]:
        return sorted((each["task_id"], each["name"], each["attempt_id"], each["sha"]) for each in api.get(path))

    newest = [("1", "x", 1, "cc"), ("2", "x", 0, "ee")]
    assert told(f"{run}/artifacts") == told(f"{run}/steps/train/artifacts") == newest
    assert told(f"{task}/artifacts") == told(f"{task}/attempt/1/artifacts") == newest[:1]
    assert told(f"{task}/attempt/0/artifacts") == [("1", "only", 0, "bb"), ("1", "x", 0, "aa")]
    assert told(f"{task}/attempt/7/artifacts") == []
    shown = api.get(f"{task}/artifacts/x")
    assert {**shown, **artifact("x", 1, "cc")} == shown
    assert (shown["flow_id"], shown["tags"], shown["step_name"]) == (flow, ["blue"], "train")
    assert api.get(f"{task}/artifacts/x/attempt/0")["sha"] == "aa"
    assert api.status("GET", f"{task}/artifacts/only") == 404
    assert api.get("/v1/artifacts/cc")["items"][0]["task"] == "1"


def test_tasks_by_their_metadata(api, flow):
    run = api.run(flow)
    tasks = [api.task(run, "train") for _ in range(3)]
    for number, task in enumerate(tasks):
        api.tell(task, 0, **{"foreach-execution-path": f"train:{number}"})
    api.tell(tasks[2], 0, extra="x")
    paths = [f"{flow}/1/train/{number}" for number in (1, 2, 3)]
    path = f"{run}/steps/train/filtered_tasks"
    assert sorted(api.get(path)) == paths
    assert api.get(path, metadata_field_name="extra") == paths[2:]
    assert api.get(path, pattern="^(?:train:1)$") == paths[1:2]
    assert api.get(path, metadata_field_name="foreach-execution-path", pattern="^(?:train:[01])$") == paths[:2]
    assert api.get(path, metadata_field_name="extra", pattern="train") == []
    assert api.status("GET", path, params={"pattern": "(a"}) == 400
    assert api.get(path, pattern="(x+x+)+y") == []


# -- lists -----------------------------------------------------------------------------------------------------------


def test_lists_of_runs_are_filtered_and_come_in_pages(api, flow):
    for number in range(7):
        api.run(flow, user_name="ann" if number % 2 else "bob", tags=["odd" if number % 2 else "even", "blue"])
    path = f"/flows/{flow}/runs"

    def numbers(**params: Any) -> list[int]:
        return [run["run_number"] for run in api.get(path, **params)]

    assert numbers() == [7, 6, 5, 4, 3, 2, 1]
    assert numbers(user_name="ann") == numbers(**{"_tags:all": "odd,blue"}) == [6, 4, 2]
    assert numbers(**{"run_number:lt": "4", "user_name:ne": "ann"}) == [3, 1]
    assert numbers(**{"_tags:any": "odd,even", "_limit": "2"}) == [7, 6]
    assert numbers(status="running,failed") == numbers(**{"user:eq": "ann"}) == [7, 6, 5, 4, 3, 2, 1]
    assert numbers(status="completed") == []
    pages, cursor = [], None
    for _ in range(9):
        answer = api.ask("GET", path, params={"_limit": "3", **({"_cursor": cursor} if cursor else {})})
        pages.append([run["run_number"] for run in answer.json()])
        cursor = answer.headers.get("X-Next-Cursor")
        if cursor is None:
            break
    assert pages == [[7, 6, 5], [4, 3, 2], [1]]
    for wrong in ({"odd": "1"}, {"user_name:xx": "1"}, {"_limit": "0"}, {"_cursor": "odd"}, {"run_number:lt": "x"}):
        assert api.status("GET", path, params=wrong) == 400, wrong
    for injected in ("' OR 1=1 --", '"; DROP TABLE runs; --', "%", "{given}", "?"):
        assert numbers(user_name=injected) == numbers(**{"_tags": injected}) == []
        assert api.status("GET", path, params={f"user_name:{injected}": "x"}) == 400
        assert api.status("GET", path, params={injected: "x"}) == 400
    assert len(numbers()) == 7
    assert api.status("GET", f"/flows/{next(_NAMES)}/runs") == 404


def test_a_long_list_is_whole(api, flow):
    runs = [
        {"kind": "run", "flow": flow, "run": str(number), "user": "ann", "state": "failed", "created": 1000.0 + number}
        for number in range(1, 2101)
    ]
    tasks = [
        {"kind": "task", "flow": flow, "run": "1", "step": "s", "task": str(number), "state": "succeeded"}
        for number in range(2000)
    ]
    api.post("/v1/records", {"records": [*runs, *tasks]})
    path = f"/flows/{flow}/runs"
    assert [run["run_number"] for run in api.get(path)] == list(range(2100, 0, -1))
    assert [run["run_number"] for run in api.get(path, **{"run_number:lt": "3"})] == [2, 1]
    assert api.get(path, **{"run_number:gt": "3000"}) == []
    assert [run["run_number"] for run in api.get(path, **{"run_number:gt": "2098"})] == [2100, 2099]
    found = [task["task_id"] for task in api.get(f"{path}/1/steps/s/tasks")]
    assert sorted(map(int, found)) == list(range(1, 2001))


def test_lists_of_tasks_are_filtered_and_come_in_pages(api, flow):
    run = api.run(flow)
    for _ in range(5):
        api.task(run, "train")
    path = f"{run}/steps/train/tasks"
    assert [task["task_id"] for task in api.get(path, **{"task_id": "2,4"})] == ["2", "4"]
    answer = api.ask("GET", path, params={"_limit": "3"})
    rest = api.get(path, _limit="3", _cursor=answer.headers["X-Next-Cursor"])
    assert [task["task_id"] for task in (*answer.json(), *rest)] == ["1", "2", "3", "4", "5"]


# -- flowkit's own runs ----------------------------------------------------------------------------------------------


def test_runs_of_flowkits_own_are_there_with_numbers_for_tasks(api):
    flow = next(_NAMES)
    run = {"kind": "run", "flow": flow, "run": "3", "user": "ann", "state": "running", "created": 1000.0}
    run["system_tags"] = ["user:ann"]
    places = [("_parameters", "0"), ("start", "0"), ("train", "0"), ("train", "3.1"), ("train", "5")]
    tasks = [
        {
            **{"kind": "task", "flow": flow, "run": "3", "step": step, "task": task, "state": "succeeded"},
            **{"attempt": number % 2, "started": 1000.0 + number, "finished": 1001.0 + number},
        }
        for number, (step, task) in enumerate(places)
    ]
    tasks[-1] |= {"state": "failed", "origin": f"{flow}/2/train/5"}
    output = {"kind": "output", "flow": flow, "run": "3", "step": "train", "task": "3.1", "attempt": 1}
    output["artifacts"] = [{"name": "model", "key": "ab12", "size": 3, "type": "M", "codec": "pickle"}]
    api.post("/v1/records", {"records": [run, *tasks, output]})
    path = f"/flows/{flow}/runs/3"
    assert [step["step_name"] for step in api.get(f"{path}/steps")] == ["_parameters", "start", "train"]
    shown = api.get(f"{path}/steps/train/tasks")
    numbers = [task["task_id"] for task in shown]
    assert all(number.isdigit() for number in numbers)
    assert len(set(numbers)) == 3
    assert numbers == [task["task_id"] for task in api.get(f"{path}/steps/train/tasks")]
    for number, (_, task) in zip(numbers, places[2:], strict=True):
        at = f"{path}/steps/train/tasks/{number}"
        told = {each["field_name"]: each["value"] for each in api.get(f"{at}/metadata")}
        assert told["attempt_ok"] == ("False" if task == "5" else "True")
        assert told["attempt"] == told["attempt-done"] == ("1" if task == "3.1" else "0")
        assert told.get("origin-task-id") == ("5" if task == "5" else None)
        assert api.get(at)["task_id"] == number
    own = f"{path}/steps/train/tasks/{numbers[1]}"
    (found,) = api.get(f"{own}/artifacts")
    assert (found["name"], found["sha"], found["attempt_id"], found["task_id"]) == ("model", "ab12", 1, numbers[1])
    assert api.get(f"{path}/steps/train/tasks/3.1") == api.get(own)
    failed = api.get(f"{path}/steps/train/filtered_tasks", metadata_field_name="attempt_ok", pattern="False")
    assert failed == [f"{flow}/3/train/{numbers[2]}"]
    assert len(api.get(f"{path}/metadata")) == 3 * len(places) + 2


# -- hostile input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["..", ".", "%2e%2e", "a%2fb", "%00", "a%00b", "%ff", "a b", "ä", "a\u202eb", "-a", "x" * 300, "a'b", "a;b"]
)
def test_names_that_no_path_has_are_refused(api, flow, name):
    run = api.run(flow)
    for path in (f"/flows/{name}", f"/flows/{flow}/runs/{name}", f"{run}/steps/{name}", f"{run}/steps/s/tasks/{name}"):
        assert api.raw_status("GET", path, "") in (400, 404, 422), path
    for path in (f"/flows/{name}", f"/flows/{name}/run", f"{run}/steps/{name}/step", f"{run}/steps/{name}/task"):
        assert api.raw_status("POST", path, "{}") in (400, 404, 405, 422), path
    for body in ({"run_number": name}, {"run_number": "../x"}):
        assert api.status("POST", f"/flows/{flow}/run", json=body) in (400, 422)
    assert api.status("POST", f"{run}/steps/s/task", json={"task_id": name}) in (400, 422)


_DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b'"x"', b"5", b"\xff\xfe", b'{"tags": "x"}', b'{"tags": [[]]}', b'{"tags": [""]}'),
        *(b'{"tags": ["\\u0000"]}', b'{"tags": ["\\ud800"]}', b'{"user_name": "\\u0000"}', b'{"user_name": {}}'),
        *(b'{"system_tags": [1]}', b'{"run_number": "a/b", "task_id": "a/b"}', b'{"run_number": [], "task_id": []}'),
        *(_DEEP, b'{"tags": ["' + b"x" * 600 + b'"]}', b'{"user_name": "' + b"x" * 600 + b'"}'),
        json.dumps({"tags": [f"t{number}" for number in range(60)]}).encode(),
    ],
)
def test_bodies_that_are_no_new_thing(api, flow, body):
    run = api.run(flow)
    paths = (f"/flows/{next(_NAMES)}", f"/flows/{flow}/run", f"{run}/steps/s/step", f"{run}/steps/s/task")
    for path in paths:
        # what has no run_number or task_id is judged by what it has
        given = body.startswith(b'{"run_number"') and not path.endswith(("/run", "/task"))
        assert api.status("POST", path, data=body) in ((200,) if given else (400, 422)), path


def test_lists_that_are_no_metadata_and_no_artifacts(api, flow):
    task = api.task(api.run(flow), "start")
    good = {"field_name": "a", "value": "b"}
    for wrong in (
        *({}, 5, [5], [{}], [{"field_name": ""}], [{"field_name": 3}], [{"field_name": "a\0"}], [good] * 1001),
        *([{**good, "tags": [3]}], [{**good, "type": {}}], [good, {}], [{**good, "value": "x" * 1_048_577}]),
    ):
        assert api.status("POST", f"{task}/metadata", json=wrong) == 422, str(wrong)[:80]
    for wrong in (
        *({}, [{}], [{"name": "a"}], [{"sha": "a"}], [{"name": "a", "sha": ""}], [{"name": "a", "sha": "x/y"}]),
        *([artifact("a", -1, "b")], [artifact("a", 10**30, "b")], [{**artifact("a", 0, "b"), "location": 5}]),
        *([artifact("", 0, "b")], [artifact("a", 0, "b" * 300)], [{**artifact("a", 0, "b"), "location": "\0"}]),
    ):
        assert api.status("POST", f"{task}/artifact", json=wrong) == 422, str(wrong)[:80]
    for raw in (_DEEP, b'[{"field_name": "a", "value": ' + _DEEP + b"}]", b"[1e999]", b"[" + b"9" * 100_000 + b"]"):
        assert api.status("POST", f"{task}/metadata", data=raw) in (400, 422)
        assert api.status("POST", f"{task}/artifact", data=raw) in (400, 422)
    assert api.get(f"{task}/metadata") == api.get(f"{task}/artifacts") == []
    for odd in (
        [{"field_name": "attempt", "value": "9" * 500}],
        [{"field_name": "attempt_ok", "value": {"a": []}}],
        [],
    ):
        assert api.status("POST", f"{task}/metadata", json=odd) == 200
    assert api.own(task)["state"] == "pending"
