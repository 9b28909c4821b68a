"""A metadata service that is the scheduler, too: an event that comes over HTTP starts a deployed flow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from service_process import DEADLINE, ServiceProcess

from flowkit.metadata_service.token_desk import TokenDesk

FLOW = """
    from flowkit import FlowSpec, Parameter, current, step, trigger


    @trigger(event={"name": "data_arrived", "parameters": ["table"]})
    class Prepare(FlowSpec):
        table = Parameter("table", default="none")

        @step
        def start(self):
            self.event = current.trigger.event.id
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Prepare()
"""


def test_an_event_over_http_starts_a_flow_whose_run_the_service_records(workspace: Any, tmp_path: Path) -> None:
    workspace.write("flow.py", FLOW)
    root = workspace.path / ".flowkit"
    with TokenDesk(f"sqlite:///{tmp_path / 'database'}") as desk:
        token, other = desk.create("team", ["write"])[1], desk.create("ours", ["admin"], ["ours"])[1]
    options = ("--authentication", "--database", tmp_path / "database", "--scheduler", "--datastore-root", root)
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"FLOWKIT_METADATA": "service", "FLOWKIT_SERVICE_URL": url, "FLOWKIT_SERVICE_TOKEN": token}
    with ServiceProcess(workspace.path, *options, "--port", port, env={**workspace.env, **env}) as service:
        created = workspace.run("local", "create", env=env, check=True)
        assert "No scheduler is at work" not in created.output
        with requests.Session() as caller:
            caller.headers["Authorization"] = f"Bearer {token}"

            def emit(body: Any, **headers: str) -> requests.Response:
                return caller.post(f"{url}/v1/emitted", data=json.dumps(body), headers=headers, timeout=DEADLINE)

            wanted = {"name": "data_arrived", "data": {"table": "sales"}, "id": "req-1", "user": "ada"}
            answer = emit(wanted).json()
            assert (answer["number"], answer["id"], answer["user"]) == (1, "req-1", "ada")
            assert emit(wanted).json() == answer  # the answer was lost: sent again
            assert emit({"name": "flowkit.Prepare.end"}).status_code == 400
            assert emit({"name": "x", "data": [1]}).status_code == 422
            assert emit(wanted, Authorization=f"Bearer {other}").status_code == 403
            listed = caller.get(f"{url}/v1/emitted", params={"after": 0}, timeout=DEADLINE).json()
            assert listed == {"items": [answer], "last": 1}
            run = _run(caller, url)
        assert run["system_tags"].count("deployment:local/Prepare") == 1
        told = workspace.flowkit("event", "list", "--json", env=env, check=True)
        assert json.loads(told.stdout) == [answer]
        dumped = workspace.run("dump", f"{run['run']}/start", "--include", "table,event", env=env, check=True).output
        assert "sales" in dumped
        assert "req-1" in dumped
        assert service.stop() == 0


def _run(caller: requests.Session, url: str) -> dict[str, Any]:
    """Wait for the only run of the flow to succeed."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        found = caller.get(f"{url}/v1/flows/Prepare/runs", timeout=DEADLINE)
        items = found.json().get("items", []) if found.status_code == 200 else []
        if items and items[0]["state"] == "succeeded":
            assert len(items) == 1
            return dict(items[0])
        time.sleep(0.1)
    pytest.fail("the run has not succeeded")


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
