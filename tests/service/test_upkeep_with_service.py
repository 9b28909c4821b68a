"""Old runs removed where the index is a metadata service: it forgets them, and they stay forgotten."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from service_process import ServiceProcess

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    from flowkit import FlowSpec, step

    class Small(FlowSpec):
        @step
        def start(self):
            self.table = bytes(10_000)
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Small()
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    folder = tmp_path / "service-home"
    folder.mkdir()
    with ServiceProcess(folder) as process:
        yield process.wait_ready()


def told(workspace: Workspace, *command: object, check: int | bool = True) -> Any:
    return json.loads(workspace.flowkit(*command, "--json", check=check).stdout)


def test_a_run_of_another_datastore_is_left_alone(workspace: Workspace, service: ServiceProcess) -> None:
    """A service knows runs of several datastores, which may have numbers in common."""
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    elsewhere = {"FLOWKIT_DATASTORE": str(workspace.path / "elsewhere")}
    served = {"FLOWKIT_METADATA": "service", "FLOWKIT_SERVICE_URL": service.url}
    workspace.run("run", env={**elsewhere, **served}, check=True)
    run = f"{service.url}/v1/flows/Small/runs/1"
    assert requests.get(run, timeout=30).status_code == 200
    found = json.loads(workspace.flowkit("gc", "--keep", 0, "--yes", "--json", env=served, check=True).stdout)
    assert [each["run"] for each in found["runs"]] == ["1"]
    assert requests.get(run, timeout=30).status_code == 200
    found = json.loads(
        workspace.flowkit("gc", "--keep", 0, "--yes", "--json", env={**elsewhere, **served}, check=True).stdout
    )
    assert [each["run"] for each in found["runs"]] == ["1"]
    assert requests.get(run, timeout=30).status_code == 404


def test_the_service_forgets_what_went(workspace: Workspace, service: ServiceProcess) -> None:
    workspace.env |= {"FLOWKIT_METADATA": "service", "FLOWKIT_SERVICE_URL": service.url}
    workspace.write("flow.py", FLOW)
    for _ in range(3):
        workspace.run("run", check=True)
    runs = f"{service.url}/v1/flows/Small/runs"
    assert [run["run"] for run in requests.get(runs, timeout=30).json()["items"]] == ["3", "2", "1"]
    # A tag that only the service knows of keeps its run.
    answer = requests.patch(f"{runs}/1/tags", json={"add": ["paper"], "remove": []}, timeout=30)
    assert answer.status_code == 200, answer.text
    when = time.time() - 3 * 86400
    for file in (workspace.path / ".flowkit" / "blobs").rglob("*"):
        os.utime(file, (when, when))
    found = told(workspace, "gc", "--keep", 1, "--keep-tag", "paper", "--yes")
    assert [run["run"] for run in found["runs"]] == ["2"]
    assert [run["run"] for run in requests.get(runs, timeout=30).json()["items"]] == ["3", "1"]
    assert requests.get(f"{runs}/2", timeout=30).status_code == 404
    checked = told(workspace, "fsck", "--deep")
    assert checked["findings"] == []
    assert checked["runs"] == 2
    # What the service forgets by itself goes all the same.
    assert requests.delete(f"{runs}/1", timeout=30).status_code < 300
    told(workspace, "gc", "--older-than", "0s", "--yes")
    assert requests.get(runs, timeout=30).json()["items"] == []
    assert told(workspace, "du")["blobs"]["count"] == 0
    workspace.run("run", check=True)
    assert [run["run"] for run in requests.get(runs, timeout=30).json()["items"]] == ["4"]
