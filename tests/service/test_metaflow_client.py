"""An unmodified Metaflow client against the service: it runs, retries, resumes, tags and reads.

The client lives in a virtual environment of its own (``make test`` makes it and names its Python in
``FLOWKIT_TEST_METAFLOW``). The service asks for a token, which the client sends as its key.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

METAFLOW = os.environ.get("FLOWKIT_TEST_METAFLOW")
pytestmark = pytest.mark.skipif(
    not METAFLOW, reason="needs Metaflow: make test, or FLOWKIT_TEST_METAFLOW=<a Python that has metaflow 2.19>"
)

STORY = '''
from metaflow import FlowSpec, Parameter, current, project, retry, step


@project(name="stories")
class StoryFlow(FlowSpec):
    """Squares numbers; one task fails at first, and the join fails if told to."""

    size = Parameter("size", default=2)
    broken = Parameter("broken", default=False)

    @step
    def start(self):
        self.items = list(range(self.size))
        self.next(self.work, foreach="items")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        self.square = self.input**2
        if self.input == 1 and current.retry_count == 0:
            raise ValueError("not the first time")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.squares = sorted(each.square for each in inputs)
        if self.broken and current.origin_run_id is None:
            raise RuntimeError("as told")
        self.next(self.end)

    @step
    def end(self):
        self.total = sum(self.squares)


if __name__ == "__main__":
    StoryFlow()
'''


class Answer(NamedTuple):
    """What a program of the client's did."""

    code: int
    stdout: str
    stderr: str


class Client:
    """A user of Metaflow's with an empty home, whose only setting is the service.

    Parameters
    ----------
    folder : Path
        Home, working directory and datastore.
    url, key : str
        Of the service.
    """

    def __init__(self, folder: Path, url: str, key: str) -> None:
        self._folder = folder
        self.url = url
        self.key = key
        (folder / "flow.py").write_text(STORY)
        foreign = ("METAFLOW_", "FLOWKIT_", "PYTHON", "AWS_", "COVERAGE_")
        self._env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "HOME": str(folder),
            "USER": "tester",
            "METAFLOW_USER": "tester",
            "METAFLOW_DEFAULT_METADATA": "service",
            "METAFLOW_SERVICE_URL": url,
            "METAFLOW_SERVICE_AUTH_KEY": key,
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "data"),
        }

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> Answer:
        """Run the client's Python in the folder."""
        assert METAFLOW
        done = subprocess.run(
            [METAFLOW, *arguments],
            cwd=self._folder,
            env=self._env | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def flow(self, *arguments: str, code: int = 0) -> str:
        """Run the flow's command and return what it said."""
        done = self.python("flow.py", "--no-pylint", *arguments)
        assert done.code == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def read(self, source: str, **env: str) -> Any:
        """Run a program that leaves its findings in ``found``, with everything of the client's imported."""
        program = f"import json\nfrom metaflow import *\n{textwrap.dedent(source)}\nprint(json.dumps(found))"
        done = self.python("-c", program, env=env)
        assert done.code == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def own(self, path: str) -> Any:
        """Ask what flowkit shows."""
        answer = requests.get(self.url + path, headers={"Authorization": f"Bearer {self.key}"}, timeout=DEADLINE)
        assert answer.status_code == 200, answer.text
        return answer.json()


def token(folder: Path, project: str) -> str:
    """Make a token for the runs of a project."""
    command = ["service", "token", "create", project, "--project", project, "--database", str(folder / "database")]
    made = subprocess.run(
        [sys.executable, "-m", "flowkit", *command],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return made.stdout.split()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the service."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(folder, "--authentication", "--heartbeat-interval", "1") as service:
        yield service


@pytest.fixture(scope="module")
def client(folder: Path, service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client in whose flow the runs 1 (it worked), 2 (it failed) and 3 (it resumed 2) have ended."""
    client = Client(tmp_path_factory.mktemp("client"), service.url, token(folder, "stories"))
    client.flow("run", "--tag", "blue", "--tag", "first")
    client.flow("run", "--broken", "True", code=1)
    client.flow("resume", "--origin-run-id", "2")
    return client


def test_a_run_with_a_foreach_and_a_retry_is_read_by_the_client(client):
    found = client.read(
        """
        run = Run("StoryFlow/1")
        again = [task for task in run["work"] if task.current_attempt == 1]
        task = again[0]
        found = {
            "ended": [run.successful, run.finished, run.finished_at > run.created_at],
            "end": [run.end_task.pathspec, run.data.total, run.data.squares],
            "steps": sorted(step.id for step in run),
            "tasks": sorted((task.id, task.index, task["square"].data, task.successful) for task in run["work"]),
            "again": [len(again), task.index, task.metadata_dict["attempt"], task.runtime_name, task.exception],
            "first": [Task(task.pathspec, attempt=0).successful, str(Task(task.pathspec, attempt=0).exception)[-19:]],
            "attempts": [DataArtifact(f"{task.pathspec}/square", attempt=n).data for n in (0, 1)],
            "names": sorted(artifact.id for artifact in task),
            "parents": [[each.pathspec for each in task.parent_tasks], [each.pathspec for each in task.child_tasks]],
            "around": [[each.id for each in run["join"].parent_steps], [each.id for each in run["start"].child_steps]],
            "origin": task.origin_pathspec,
        }
        """
    )
    task = next(number for number, index, *_ in found["tasks"] if index == 1)
    assert found == {
        "ended": [True, True, True],
        "end": ["StoryFlow/1/end/6", 1, [0, 1]],
        "steps": ["end", "join", "start", "work"],
        "tasks": found["tasks"],
        "again": [1, 1, "1", "dev", None],
        "first": [False, found["first"][1]],
        "attempts": [1, 1],
        "names": sorted(["broken", "items", "name", "size", "square"]),
        "parents": [["StoryFlow/1/start/2"], ["StoryFlow/1/join/5"]],
        "around": [["work"], ["work"]],
        "origin": None,
    }
    assert "not the first time" in found["first"][1]
    assert sorted(each[1:] for each in found["tasks"]) == [[0, 0, True], [1, 1, True]]
    attempts = client.own(f"/v1/flows/StoryFlow/runs/1/steps/work/tasks/{task}/attempts")["items"]
    assert [each["state"] for each in attempts] == ["failed", "succeeded"]


def test_flowkits_own_lists_have_the_true_states_of_the_clients_runs(client, service):
    deadline = time.monotonic() + DEADLINE
    while (failed := client.own("/v1/flows/StoryFlow/runs/2"))["state"] != "failed":
        assert time.monotonic() < deadline, failed
        time.sleep(0.05)
    assert failed["reason"].startswith("the step join failed (task ")
    runs = client.own("/v1/flows/StoryFlow/runs")["items"]
    assert [(each["run"], each["state"], each["user"]) for each in runs] == [
        ("3", "succeeded", "tester"),
        ("2", "failed", "tester"),
        ("1", "succeeded", "tester"),
    ]
    assert "project:stories" in runs[0]["system_tags"]
    tasks = client.own("/v1/flows/StoryFlow/runs/1/tasks")["items"]
    assert len(tasks) == 6
    assert {each["state"] for each in tasks} == {"succeeded"}
    beats = [line for line in service.log if str(line.get("path")).endswith("/heartbeat")]
    assert beats
    # 499: the client's process ended while its heartbeat was on the way.
    assert {200} <= {line["status"] for line in beats} <= {200, 499}
    assert not [line for line in service.log if line.get("status", 200) >= 500]


def test_a_failed_run_is_resumed_and_names_its_origin(client):
    found = client.read(
        """
        failed, run = Run("StoryFlow/2"), Run("StoryFlow/3")
        found = {
            "failed": [failed.successful, failed.finished, failed["join"].task.exception is not None],
            "ended": [run.successful, run.data.total],
            "origins": sorted(str(task.origin_pathspec) for step in ("start", "join") for task in run[step]),
        }
        """
    )
    assert found == {
        "failed": [False, False, True],
        "ended": [True, 1],
        "origins": ["None", "StoryFlow/2/start/2"],
    }
    tasks = client.own("/v1/flows/StoryFlow/runs/3/tasks")["items"]
    cloned = {each["step"]: each["origin"] for each in tasks if each["origin"]}
    assert cloned["start"] == "StoryFlow/2/start/2"
    assert cloned.keys() == {"start", "work"}
    assert client.own("/v1/flows/StoryFlow/runs/3")["origin"] == "StoryFlow/2"


def test_tags_and_namespaces(client):
    found = client.read(
        """
        from metaflow.exception import MetaflowNamespaceMismatch, MetaflowNotFound, MetaflowTaggingError

        def refused(what, *arguments):
            try:
                what(*arguments)
            except (MetaflowNamespaceMismatch, MetaflowNotFound, MetaflowTaggingError) as error:
                return type(error).__name__
            return None

        flow, run = Flow("StoryFlow"), Run("StoryFlow/1")
        seen = [sorted(run.user_tags)]
        run.add_tags(["red", "green"])
        seen.append(sorted(run.user_tags))
        run.remove_tag("green")
        run.replace_tags(["red"], ["good"])
        seen.append(sorted(run.user_tags))
        found = {
            "tags": seen,
            "task": sorted(Task("StoryFlow/1/start/2").user_tags),
            "system": "user:tester" in run.system_tags,
            "runs": [[each.id for each in flow.runs(*tags)] for tags in ([], ["good"], ["good", "blue"], ["odd"])],
            "latest": [flow.latest_run.id, flow.latest_successful_run.id],
            "flows": [each.id for each in Metaflow()],
            "fixed": refused(run.remove_tag, "user:tester"),
            "missing": [refused(each, path) for each, path in ((Flow, "NoFlow"), (Run, "StoryFlow/99"))],
        }
        namespace("user:nobody")
        found["elsewhere"] = refused(Run, "StoryFlow/1")
        """
    )
    assert found == {
        "tags": [["blue", "first"], ["blue", "first", "green", "red"], ["blue", "first", "good"]],
        "task": ["blue", "first", "good"],
        "system": True,
        "runs": [["3", "2", "1"], ["1"], ["1"], []],
        "latest": ["3", "3"],
        "flows": ["StoryFlow"],
        "fixed": "MetaflowTaggingError",
        "missing": ["MetaflowNotFound", "MetaflowNotFound"],
        "elsewhere": "MetaflowNamespaceMismatch",
    }
    assert client.own("/v1/flows/StoryFlow/runs?tag=good")["items"][0]["tags"] == ["blue", "first", "good"]


def test_runs_of_flowkits_own_are_read_by_the_client(client):
    run = {"kind": "run", "flow": "OwnFlow", "run": "5", "user": "ann", "state": "succeeded", "created": 1000.0}
    run |= {"finished": 1009.0, "tags": ["nice"], "system_tags": ["user:ann", "project:stories"]}
    place = {"flow": "OwnFlow", "run": "5", "step": "train", "task": "3.1", "attempt": 1}
    task = {"kind": "task", **place, "state": "succeeded", "started": 1001.0, "finished": 1002.0}
    output = {"kind": "output", **place, "artifacts": [{"name": "model", "key": "ab12"}]}
    answer = requests.post(
        f"{client.url}/v1/records",
        json={"records": [run, task, output]},
        headers={"x-api-key": client.key},
        timeout=DEADLINE,
    )
    assert answer.status_code == 200, answer.text
    found = client.read(
        """
        namespace("user:ann")
        run = Flow("OwnFlow").latest_run
        task = run["train"].task
        fields = task.metadata_dict
        found = [run.id, sorted(run.tags), task.id, task.current_attempt, fields["attempt_ok"], task["model"].sha]
        """
    )
    assert found == ["5", ["nice", "project:stories", "user:ann"], "1", 1, "True", "ab12"]


def test_a_client_without_a_key_gets_nothing(client):
    source = """
        try:
            found = str(Flow("StoryFlow"))
        except Exception as error:
            found = str(error)
        """
    assert "code 401" in client.read(source, METAFLOW_SERVICE_AUTH_KEY="")


def test_to_the_token_of_another_project_the_flow_is_not_there(client, folder):
    key = token(folder, "other")

    def status(method: str, path: str, **body: Any) -> int:
        options: dict[str, Any] = {"json": body} if method == "POST" else {}
        answer = requests.request(method, client.url + path, headers={"x-api-key": key}, timeout=DEADLINE, **options)
        assert answer.status_code < 500, answer.text
        return answer.status_code

    for path in ("", "/runs", "/runs/1", "/runs/1/steps", "/runs/1/steps/start/tasks/2/artifacts", "/runs/1/metadata"):
        assert status("GET", f"/flows/StoryFlow{path}") == 404, path
    for path in ("heartbeat", "steps/x/step", "steps/x/task", "steps/start/tasks/2/metadata"):
        assert status("POST", f"/flows/StoryFlow/runs/1/{path}") == 404, path
    # a flow of the same name may be theirs all the same
    assert status("POST", "/flows/StoryFlow", user_name="bob") == 200
    assert status("POST", "/flows/StoryFlow/run", user_name="bob") == 403
    assert status("POST", "/flows/StoryFlow/run", tags=["project:other"]) == 403
    assert status("POST", "/flows/StoryFlow/run", system_tags=["project:other"]) == 200
    assert status("GET", "/flows/StoryFlow") == 200
    assert status("POST", "/flows/StoryFlow", user_name="bob") == 409
    runs = requests.get(f"{client.url}/flows/StoryFlow/runs", headers={"x-api-key": key}, timeout=DEADLINE).json()
    assert [run["run_number"] for run in runs] == [4]
    assert "4" not in [run["run"] for run in client.own("/v1/flows/StoryFlow/runs")["items"]]
