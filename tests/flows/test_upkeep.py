"""A datastore kept in order by the real commands: beside runs, after resumes, by the rules of a project."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    import os
    import time

    from flowkit import FlowSpec, Parameter, step

    class Train(FlowSpec):
        seed = Parameter("seed", default=0)
        wait = Parameter("wait", default="")

        @step
        def start(self):
            self.items = [1, 2]
            self.table = bytes(20_000)
            self.weights = bytes([self.seed]) * 30_000
            if self.wait:
                open("begun", "w").close()
                while not os.path.exists(self.wait):
                    time.sleep(0.02)
            self.next(self.fit, foreach="items")

        @step
        def fit(self):
            self.model = bytes([self.seed, self.input]) * 10_000
            self.next(self.join)

        @step
        def join(self, inputs):
            self.merge_artifacts(inputs, exclude=["model"])
            if os.path.exists("broken"):
                raise ValueError("broken")
            self.next(self.end)

        @step
        def end(self):
            print(len(self.table), self.weights[0])

    if __name__ == "__main__":
        Train()
"""


def blobs(workspace: Workspace) -> set[str]:
    return {file.name for file in (workspace.path / ".flowkit" / "blobs").rglob("*") if file.is_file()}


def age(workspace: Workspace, days: float = 3) -> None:
    """Have all blobs be written so many days earlier."""
    when = time.time() - days * 86400
    for file in (workspace.path / ".flowkit" / "blobs").rglob("*"):
        os.utime(file, (when, when))


def told(workspace: Workspace, *command: object, check: int | bool = True) -> Any:
    return json.loads(workspace.flowkit(*command, "--json", check=check).stdout)


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    workspace.write("flow.py", FLOW)
    return workspace


def test_old_runs_go_and_the_rest_is_whole(flow: Workspace) -> None:
    for seed in (1, 2, 3):
        flow.run("run", "--seed", seed, check=True)
    age(flow)
    before = blobs(flow)
    preview = flow.flowkit("gc", "--keep", 1, check=True)
    assert "would go: 2 runs with 12 tasks" in preview.stdout
    assert "Nothing was removed yet" in preview.stderr
    assert blobs(flow) == before
    done = flow.flowkit("gc", "--keep", 1, "--yes", check=True)
    assert "removed: 2 runs with 12 tasks" in done.stdout
    # All of it but the table and the items, which the third run has, too.
    assert len(before - blobs(flow)) == 6
    status = json.loads(flow.run("status", "--json", check=True).stdout)
    assert [run["run"] for run in status] == ["3"]
    run = flow.client().Flow("Train").latest_run
    assert run is not None
    assert run["end"].task["weights"].data == bytes([3]) * 30_000
    assert flow.flowkit("fsck", "--deep", check=True).stdout.count("\n") == 1
    assert flow.run("run", check=True)
    assert json.loads(flow.run("status", "--json", check=True).stdout)[0]["run"] == "4"
    refused = flow.run("resume", "--origin-run-id", 1, check=4)
    assert "there is no run Train/1" in refused.stderr


def test_a_run_that_goes_on_loses_nothing(flow: Workspace) -> None:
    """Blobs that a running task needs are old and named by its own run; another's are asked for again."""
    flow.run("run", "--seed", 1, check=True)
    running = flow.start("run", "--seed", 1, "--wait", "go")
    deadline = time.time() + 60
    while not (flow.path / "begun").exists():
        assert running.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    age(flow)
    found = told(flow, "gc", "--keep", 0, "--yes")
    assert [each["run"] for each in found["runs"]] == ["1"]
    assert found["kept"] == [{"flow": "Train", "run": "2", "why": "it is running"}]
    assert found["blobs"]["count"] > 0
    flow.write("go", "")
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert told(flow, "fsck", "--deep")["findings"] == []


def test_what_a_resumed_run_took_over_stays(flow: Workspace) -> None:
    broken = flow.write("broken", "")
    flow.run("run", "--seed", 5, check=1)
    broken.unlink()
    flow.run("resume", check=True)
    flow.run("run", check=True)
    age(flow)
    found = told(flow, "gc", "--status", "failed", "--yes")
    assert found["runs"] == []
    assert [(each["run"], each["why"]) for each in found["kept"]] == [("1", "Train/2 has tasks of it")]
    assert "5" in flow.run("dump", "2/start/0", check=True).output
    found = told(flow, "gc", "--keep", 1, "--yes")
    assert sorted(each["run"] for each in found["runs"]) == ["1", "2"]
    assert told(flow, "fsck", "--deep")["findings"] == []


def test_the_rules_of_a_project(flow: Workspace) -> None:
    flow.run("run", "--tag", "paper", check=True)
    for _ in range(3):
        flow.run("run", check=True)
    flow.write(
        "pyproject.toml",
        """
        [tool.flowkit.retention]
        keep = 1
        keep_tags = ["paper"]

        [tool.flowkit.retention.flows.Other]
        keep = 0
        """,
    )
    assert [each["run"] for each in told(flow, "gc")["runs"]] == ["3", "2"]
    assert [each["run"] for each in told(flow, "gc", "--keep-tag", "nightly")["runs"]] == ["3", "2"]
    assert [each["run"] for each in told(flow, "gc", "--older-than", "1h")["runs"]] == []
    assert [each["run"] for each in told(flow, "gc", "--older-than", "0s", "--flow", "Train", "--delete")["runs"]] == [
        "4",
        "3",
        "2",
        "1",
    ]
    flow.write("pyproject.toml", "[tool.flowkit.retention]\nkepp = 1\n")
    refused = flow.flowkit("gc", check=2)
    assert "retention has no 'kepp'" in refused.stderr
    assert "keep" in refused.stderr
    assert "--older-than must be a time" in flow.flowkit("gc", "--older-than", "soon", check=2).stderr
    assert "'running' is not one of" in flow.flowkit("gc", "--status", "running", check=2).stderr
    flow.write("pyproject.toml", "")
    assert "too short" in flow.flowkit("gc", "--grace", "1m", "--yes", check=2).stderr


def test_what_takes_the_room(flow: Workspace) -> None:
    flow.run("run", "--seed", 1, check=True)
    flow.run("run", "--seed", 2, check=True)
    found = told(flow, "du")
    (train,) = found["flows"]
    assert train["own"] == found["blobs"]["bytes"] == sum(file.stat().st_size for file in files(flow, "blobs"))
    assert train["shared"] == 0
    assert train["tasks"] == 12
    sizes = {each["artifact"]: each["own"] for each in found["artifacts"]}
    assert sizes["weights"] == 60_000
    assert sizes["table"] == 20_000
    by_run = flow.flowkit("du", "--by", "run", check=True).stdout
    assert "Train/1" in by_run
    assert "Train/2" in by_run
    by_artifact = flow.flowkit("du", "--by", "artifact", "--limit", 1, check=True).stdout
    assert "Train/model" in by_artifact
    assert "and 3 more" in by_artifact
    assert "there is no flow Nope" in flow.flowkit("du", "--flow", "Nope", check=4).stderr
    assert "named by nothing" not in flow.flowkit("du", check=True).stdout


def test_what_is_damaged_is_told_and_repaired(flow: Workspace) -> None:
    flow.run("run", "--seed", 7, check=True)
    assert flow.flowkit("fsck", check=True).stdout.endswith("no errors, no warnings, 0 repaired\n")
    weights = max(files(flow, "blobs"), key=lambda file: file.stat().st_size)
    weights.write_bytes(b"x" * 30_000)
    (flow.path / ".flowkit" / "metadata.db").write_bytes(b"no database at all" * 1000)
    first = flow.flowkit("fsck", "--deep", check=5)
    assert f"error: blobs/{weights.parent.name}/{weights.name}" in first.stdout
    assert "the artifact 'weights' of Train/1/" in first.stdout
    assert "error: the index" in first.stdout
    again = flow.flowkit("fsck", "--deep", "--repair", check=5)
    assert "repaired: the index" in again.stdout
    assert not weights.exists()
    flow.run("run", "--seed", 7, check=True)  # makes the same content anew
    assert flow.flowkit("fsck", "--deep", check=True)
    assert weights.exists()


def test_where_there_is_nothing(workspace: Workspace) -> None:
    for command in ("gc", "du", "fsck"):
        assert "there is no datastore" in workspace.flowkit(command, check=4).stderr


def files(workspace: Workspace, folder: str) -> list[Path]:
    return [file for file in (workspace.path / ".flowkit" / folder).rglob("*") if file.is_file()]
