"""A whole Airflow 3, with its scheduler and its web server: runs are started, found and stopped by flowkit's commands;
flows start each other, and events start flows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow_runs import PYTHONS, AirflowMachine, artifacts, deploy

pytestmark = pytest.mark.xdist_group("service")
SECRET = "a-secret-of-this-test-alone-that-is-long-enough-for-airflow-to-sign-its-tokens-with-it"
NEWEST = PYTHONS[-1] if PYTHONS else ""
FLOWS = {
    "producer": """
from flowkit import FlowSpec, Parameter, step


class Producer(FlowSpec):
    word = Parameter("word", required=True)

    @step
    def start(self):
        self.said = self.word
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Producer()
""",
    "consumer": """
from flowkit import FlowSpec, current, step, trigger_on_finish


@trigger_on_finish(flow="Producer")
class Consumer(FlowSpec):
    @step
    def start(self):
        self.source = current.trigger.run.pathspec
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Consumer()
""",
    "heard": """
import os, time
from flowkit import FlowSpec, Parameter, current, schedule, step, trigger


@schedule(cron="0 6 ? * MON-FRI *", timezone="Europe/Oslo")
@trigger(event={"name": "data arrived", "parameters": {"table": "table_name"}})
class Heard(FlowSpec):
    table = Parameter("table", default="none")

    @step
    def start(self):
        self.event = current.trigger.event.name
        while os.path.exists(self.table):
            time.sleep(0.1)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Heard()
""",
}


class Service:
    """Airflow's processes, and a user of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = AirflowMachine(NEWEST, folder)
        self.root = folder / "store"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        passwords = folder / "passwords.json"
        passwords.write_text(json.dumps({"ann": "secret"}))
        self.url = f"http://127.0.0.1:{self.port}"
        self.machine.env.update(
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS="ann:admin",
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=str(passwords),
            AIRFLOW__CORE__EXECUTION_API_SERVER_URL=f"{self.url}/execution/",
            AIRFLOW__CORE__PARALLELISM="2",
            AIRFLOW__API_AUTH__JWT_SECRET=SECRET,
            AIRFLOW__API__SECRET_KEY=SECRET,
            AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT="0",
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name, source in FLOWS.items():
            flow = self.folder / name / f"{name}.py"
            flow.parent.mkdir()
            flow.write_text(source.lstrip("\n"), encoding="utf-8")
            deploy(self.machine, flow, self.root)
        self.machine.migrate()
        server = ["api-server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        for words in (server, ["scheduler"], ["dag-processor"]):
            with open(self.folder / f"{words[0]}.log", "wb") as log:
                process = subprocess.Popen(
                    [str(Path(NEWEST).with_name("airflow")), *words],
                    env=self.machine.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            self.processes.append(process)

    def stop(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        for process in self.processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def flowkit(self, flow: str, *words: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in self.machine.env.items() if not name.startswith("AIRFLOW")}
        env.update(FLOWKIT_AIRFLOW_URL=self.url, FLOWKIT_AIRFLOW_USERNAME="ann", FLOWKIT_AIRFLOW_PASSWORD="secret")
        command = [sys.executable, f"{flow}.py", "--datastore-root", str(self.root), "airflow", *words]
        folder = self.folder / flow
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)

    def runs(self, flow: str) -> list[dict[str, Any]]:
        told = self.flowkit(flow, "list-runs", "--json")
        assert told.returncode == 0, told.stderr
        found: list[dict[str, Any]] = json.loads(told.stdout)
        return found

    def until(self, what: str, seen: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := seen()):
            assert time.monotonic() < deadline, f"{what} did not come: {self.logs()}"
            time.sleep(0.5)
        return found

    def logs(self) -> str:
        return "\n".join((self.folder / name).read_text()[-3000:] for name in ("scheduler.log", "api-server.log"))

    def api(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method)
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    try:
        service.start()
        yield service
    finally:
        service.stop()


def test_runs_are_started_found_and_start_others(service: Service) -> None:
    def started() -> str:
        told = service.flowkit("producer", "trigger", "--word", "h\"é'l{{ 1 / 0 }}")
        return told.stdout + told.stderr if told.returncode == 0 else ""

    said = service.until("a run", started)
    (run,) = service.runs("producer")
    assert f"Producer/{run['run']}" in said

    def ended(flow: str, state: str) -> dict[str, Any] | None:
        return next((each for each in service.runs(flow) if each["state"] == state), None)

    assert service.until("its end", lambda: ended("producer", "succeeded"))["run"] == run["run"]
    assert artifacts(service.root, f"Producer/{run['run']}")["tasks"]["end/0"]["said"] == repr("h\"é'l{{ 1 / 0 }}")
    follower = service.until("the run after it", lambda: ended("consumer", "succeeded"))
    left = artifacts(service.root, f"Consumer/{follower['run']}")
    assert left["tasks"]["end/0"]["source"] == repr(f"Producer/{run['run']}")


def test_an_event_starts_a_flow_whose_run_is_stopped(service: Service) -> None:
    """Airflow is told of events as of any asset; what it knows of a run that is stopped is true, and so is flowkit."""
    holds = service.folder / "holds"
    holds.touch()

    def asset() -> tuple[str, int] | None:
        try:
            token = service.api("POST", "/auth/token", {"username": "ann", "password": "secret"})["access_token"]
            known = service.api("GET", "/api/v2/assets?limit=100", token=token)["assets"]
        except OSError:  # it is not up yet
            return None
        return next(((token, each["id"]) for each in known if each["uri"] == "flowkit://event/data%20arrived"), None)

    token, number = service.until("the asset", asset)
    body = {"asset_id": number, "extra": {"table_name": str(holds)}}
    service.api("POST", "/api/v2/assets/events", body, token)
    run = service.until("the run", lambda: [each for each in service.runs("heard") if each["state"] == "running"])[0]

    def seen() -> dict[str, Any] | None:
        try:
            return artifacts(service.root, f"Heard/{run['run']}")
        except AssertionError:
            return None

    service.until("its first task", lambda: (left := seen()) and left["state"] == "running")
    told = service.flowkit("heard", "terminate", run["run"])
    assert told.returncode == 0, told.stderr
    service.until("its end", lambda: (left := seen()) and left["state"] == "cancelled")

    def stopped() -> bool:
        shown = json.loads(service.flowkit("heard", "status", run["run"], "--json").stdout)
        return bool(shown["state"] == "cancelled" and shown["finished"])

    service.until("Airflow's word for it", stopped)


def test_a_deployment_is_removed_with_its_file(service: Service) -> None:
    assert [path.name for path in service.machine.dags.iterdir() if path.suffix == ".py"].count("Heard.py") == 1
    told = service.flowkit("heard", "delete")
    assert told.returncode == 0, told.stderr
    assert not (service.machine.dags / "Heard.py").exists()
    assert "not on Airflow" in told.stdout + told.stderr or "nothing" in (told.stdout + told.stderr).lower()
