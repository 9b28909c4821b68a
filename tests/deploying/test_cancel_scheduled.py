"""``cancel`` of a run that a scheduler carries out: it is asked, and what it has forgotten is written down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flowkit.client.rebuild import rebuild
from flowkit.datastore.manifests import write_manifest
from flowkit.datastore.root import open_storage
from flowkit.datastore.runs import claim_named_run, read_end
from flowkit.deployer.records import write_record
from flowkit.deployer.target import DeploymentRecord
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition

FLOW = """
    from flowkit import FlowSpec, step


    class Night(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Night()
"""
NAME = "night"


class Folder:
    """What is deployed to the folder target, and its runs."""

    def __init__(self, workspace) -> None:
        self.workspace = workspace
        self.path = workspace.path / "scheduler"
        (self.path / NAME).mkdir(parents=True)
        self.storage = open_storage(str(workspace.path / ".flowkit"), create=True)
        self.record = DeploymentRecord("folder", NAME, "Night", "tester", 1.0, token="night-0")

    def deploy(self) -> None:
        document = {"made": "made by flowkit", "record": self.record.to_json()}
        (self.path / f"{NAME}.json").write_text(json.dumps(document))
        write_record(self.storage, self.record)

    def begin(self, run: str, state: str | None = "running", **more: object) -> None:
        claim = {"user": "tester", "created": 5.0, "deployment": f"folder/{NAME}", "system_tags": ["user:tester"]}
        assert claim_named_run(self.storage, "Night", run, claim)
        extra = {"graph": {"end_step": "end"}}
        made = Manifest("Night", run, "_parameters", "0", 0, {}, Transition("linear", ("start",)), extra=extra)
        write_manifest(self.storage, made)
        if state is not None:
            (self.path / NAME / f"{run}.json").write_text(json.dumps({"state": state, **more}))
        index = SqliteMetadata(self.storage.root)
        rebuild(self.storage, index)
        index.close()

    def cancel(self, run: str, *options: str) -> str:
        """Return what the command says."""
        self.said = self.workspace.run("cancel", run, *options)
        return self.said.output

    def told(self, run: str) -> str:
        return json.loads((self.path / NAME / f"{run}.json").read_text())["state"]

    def end(self, run: str) -> tuple[str, str | None] | None:
        end = read_end(self.storage, "Night", run)
        return None if end is None else (end["state"], end["reason"])


@pytest.fixture
def folder(workspace):
    workspace.write("flow.py", FLOW)
    made = Folder(workspace)
    package = Path(__file__).with_name("folder_target")
    workspace.env.update(FOLDER_TARGET=str(made.path), PYTHONPATH=str(package))
    return made


def test_a_scheduler_is_asked_to_stop_its_run(folder):
    folder.deploy()
    folder.begin("folder-1")
    assert "production token that you do not have" in folder.cancel("folder-1")
    assert "--gone" not in folder.said.output
    assert folder.said.returncode == 6
    assert "the folder says that the run is running" in folder.cancel("folder-1", "--gone")
    assert folder.told("folder-1") == "running"
    assert "has been asked to stop" in folder.cancel("folder-1", "--authorize", "night-0", "--wait", "0")
    assert folder.told("folder-1") == "cancelled"
    assert folder.end("folder-1") is None  # that is its end command's business
    assert "it is cancelled" in folder.cancel("folder-1")  # which never came: what the scheduler says is written down
    assert folder.end("folder-1") == ("cancelled", "terminated")
    assert "over already" in folder.cancel("folder-1")


def test_what_a_scheduler_says_of_a_run_that_is_over_is_written_down(folder):
    folder.deploy()
    folder.begin("folder-4")
    folder.begin("folder-5", "failed", reason="it took too long")
    user = folder.workspace
    assert "folder status folder-4" in user.run("status", "folder-4", check=True).output
    assert "running" in user.run("folder", "status", "folder-4", "--name", NAME, check=True).stdout
    assert folder.end("folder-4") is None
    told = user.run("folder", "status", "folder-5", "--name", NAME, check=True)
    assert "now it is" in told.stderr
    assert folder.end("folder-5") == ("failed", "it took too long")
    assert json.loads(user.run("folder", "status", "folder-5", "--json", check=True).stdout)["state"] == "failed"
    assert "failed (it took too long)" in user.run("status", "folder-5", check=True).stdout


def test_a_run_that_its_scheduler_has_forgotten(folder):
    folder.deploy()
    folder.begin("folder-2", None)
    assert "cancel folder-2 --gone" in folder.cancel("folder-2")
    assert folder.end("folder-2") is None
    assert "it is cancelled" in folder.cancel("folder-2", "--gone")
    assert folder.end("folder-2") == ("cancelled", "its scheduler does not know it any more")
    os.unlink(folder.path / f"{NAME}.json")
    folder.begin("folder-3")
    assert "is not there any more" in folder.cancel("folder-3")
    assert "it is cancelled" in folder.cancel("folder-3", "--gone")
    assert "cancelled" in folder.workspace.run("status", "folder-3", check=True).output
