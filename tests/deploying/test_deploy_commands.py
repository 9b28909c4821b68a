"""The commands that every scheduler has, with one that a package brings: a folder of files."""

from __future__ import annotations

import json
import queue
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent / "folder_target"

FLOW = """
    from flowkit import *

    @schedule(cron="0 6 * * *")
    class Train(FlowSpec):
        rate = Parameter("rate", default=0.5)
        the_names = Parameter("the-names", default="a,b", separator=",")
        name = Parameter("name", default="n")

        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Train()
"""


@pytest.fixture
def scheduler(workspace):
    """The folder that plays a scheduler; the package that brings it is installed."""
    folder = workspace.path.parent / "scheduler"
    folder.mkdir()
    workspace.env.update(PYTHONPATH=str(HERE), FOLDER_TARGET=str(folder))
    return folder


def _json(result):
    return json.loads(result.stdout)


def test_a_flow_is_deployed_started_looked_after_and_removed(workspace, scheduler):
    workspace.write("flow.py", FLOW)
    first = workspace.run(
        *("folder", "create", "--colour", "red", "--drawer", "a", "--drawer", "b", "--copies", 3, "--tag", "nightly"),
        check=True,
    )
    document = json.loads((scheduler / "train.json").read_text())
    token = document["record"]["token"]
    assert (document["colour"], document["drawers"], document["copies"]) == ("red", ["a", "b"], 3)
    assert document["namespace"] == f"production:{token}"
    assert first.stdout == ""
    assert first.stderr.splitlines() == [
        "Deployed: Train to the folder as train.",
        f"It lies in {scheduler}.",
        "Start a run now:",
        "    python flow.py folder trigger",
        f"Its production token is {token}: you have it now; who else deploys, stops or deletes it gives "
        f"--authorize {token}",
    ]
    kept = workspace.home / ".local/state/flowkit/tokens/folder/train.json"
    assert json.loads(kept.read_text())["token"] == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    stored = json.loads((workspace.path / ".flowkit/deployments/folder/train.json").read_text())["body"]
    assert stored == document["record"]
    blobs = {path.name for path in (workspace.path / ".flowkit/blobs").rglob("*") if path.is_file()}
    assert {stored["template"], stored["package"]["key"]} <= blobs

    again = workspace.run("deploy", "--to", "folder", "--concurrency", "forbid", check=True)
    assert token not in again.output
    assert again.stderr.startswith("Deployed again: Train to the folder as train.\n")
    record = json.loads((scheduler / "train.json").read_text())["record"]
    assert (record["concurrency"], record["token"]) == ("forbid", token)

    # A parameter may have the name of an option of ours.
    ran = workspace.run("folder", "trigger", "--rate", 2, "--the-names", "x,y", "--name", "z", "--run-id-file", "id")
    assert ran.returncode == 0, str(ran)
    run = (workspace.path / "id").read_text()
    assert run == "folder-train-0"
    assert f"folder status {run}" in ran.stderr
    said = json.loads((scheduler / "train" / f"{run}.json").read_text())
    assert said["parameters"] == {"rate": "2.0", "the_names": '["x", "y"]', "name": '"z"'}
    workspace.write("more.py", "new = 1\n")
    second = workspace.run("folder", "trigger", check=True)
    assert "Note: the flow's files are not those that were deployed" in second.stderr
    workspace.run("folder", "suspend", f"Train/{run}", check=True)
    (waiting,) = _json(workspace.run("folder", "list-runs", "--pending", "--json", check=True))
    assert waiting["run"] == run
    workspace.run("folder", "resume", run, check=True)
    workspace.run("folder", "terminate", run, check=True)
    told = workspace.run("folder", "status", run, check=True).stdout
    assert told.startswith(f"Train/{run}: cancelled\n    terminated\n    started 2")
    shown = workspace.run("folder", "list-runs", "--running", "--aborted", check=True).stdout.splitlines()
    assert [line.split()[:2] for line in shown] == [["run", "state"], ["folder-train-1", "running"], [run, "cancelled"]]
    (only,) = _json(workspace.run("folder", "list", "--json", check=True))
    assert (only["name"], only["flow"]) == ("train", "Train")
    assert token not in json.dumps(only)

    workspace.run("folder", "delete", check=True)
    assert not (scheduler / "train.json").exists()
    assert not list((workspace.path / ".flowkit/deployments/folder").iterdir())
    gone = workspace.run("folder", "trigger", check=4)
    assert gone.stderr == "nothing is deployed as 'train' at the folder\n    deploy it first: create\n"


BROKEN = """
    from flowkit import *

    @project(name="p")
    @schedule(daily=True)
    class BrokenFlowOfAVeryLongName(FlowSpec):
        number = Parameter("number", required=True, type=int)
        wrong = Parameter("wrong", default=lambda context: "x", type=int)

        @step
        def start(self):
            self.next(self.middle, self.missing)

        @timeout(seconds=4)
        @step
        def middle(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        BrokenFlowOfAVeryLongName()
"""


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_touched(workspace, scheduler):
    workspace.write("flow.py", BROKEN)
    (scheduler / "closed").touch()
    refused = workspace.run("folder", "create", "--name", "n" * 41, check=3)
    heads = [line for line in refused.stderr.splitlines() if not line.startswith("    ")]
    file = workspace.path / "flow.py"
    assert sorted(heads) == sorted(
        [
            f"{file}:11: step 'start' goes to 'missing', which is not a step",
            f"{file}:3: --name: a flow of a @project is called after its project and branch",
            f"{file}:7: parameter 'wrong' takes a whole number; its default is 'x'",
            f"{file}:6: the parameter 'number' is required, and @schedule cannot give it a value",
            f"'{'n' * 41}' is too long for a file",
            f"{file}:15: step 'middle': a folder has no clock",
            "the folder is closed today",
        ]
    )
    assert not (workspace.path / ".flowkit").exists()
    assert not (workspace.home / ".local").exists()
    assert [path.name for path in scheduler.iterdir()] == ["closed"]
    # What stands alone keeps its exit code.
    workspace.write("flow.py", FLOW)
    assert "the folder is closed today" in workspace.run("folder", "create", check=5).stderr
    unknown = workspace.run("deploy", "--to", "foldr", check=4)
    assert "did you mean 'folder'?" in unknown.stderr
    wrong = workspace.run("deploy", "--to=folder", "--colour", "blue", "--tag", "a b", check=2)
    assert "--colour" in wrong.stderr


def test_only_json_shows_what_would_be_deployed_and_asks_nobody(workspace, scheduler):
    workspace.write("flow.py", FLOW)
    env = {"FOLDER_TARGET": "/nowhere", "FLOWKIT_DATASTORE": "s3://no-such-bucket/prefix/"}
    words = ("--with", "retry", "folder", "create", "--only-json", "--namespace", "mine")
    document = _json(workspace.run(*words, env=env, check=True))
    assert document["namespace"] == "mine"
    assert document["record"]["token"] == "train-0-unassigned"
    assert document["record"]["root"] == "s3://no-such-bucket/prefix"
    assert not (workspace.path / ".flowkit").exists()
    assert not (workspace.home / ".local").exists()
    real = workspace.run("folder", "create", "--new-token", "train-0-unassigned", check=True)
    assert "train-0-unassigned" in real.stderr
    planned = workspace.run("folder", "create", "--only-json", check=True).stdout
    assert _without_keys(json.loads(planned)) == _without_keys(json.loads((scheduler / "train.json").read_text()))


def _without_keys(document):
    """The document without when it was made, and of which files: those of a checkout may be edited meanwhile."""
    package = document["record"]["package"]
    text = json.dumps({**document, "record": {**document["record"], "created": 0.0, "package": {**package, "size": 0}}})
    return json.loads(text.replace(package["key"], "CODE").replace(document["record"]["template"], "TEMPLATE"))


def test_a_colleague_needs_the_token_and_another_flow_another_name(workspace, scheduler):
    workspace.write("flow.py", FLOW)
    workspace.write("other.py", FLOW.replace("Train", "Other"))
    workspace.run("folder", "create", check=True)
    token = json.loads((scheduler / "train.json").read_text())["record"]["token"]
    bob = {"HOME": str(workspace.path / "bob"), "USER": "bob", "LOGNAME": "bob"}
    for verb in ("create", "delete"):
        refused = workspace.run("folder", verb, env=bob, check=6)
        assert "deployed by tester, with a production token that you do not have" in refused.stderr
        assert token not in refused.output
    taken = workspace.run("folder", "--name", "train", "create", flow="other.py", check=6)
    assert "'train' at the folder is another flow, Train, deployed by tester" in taken.stderr
    changed = workspace.run("folder", "create", "--authorize", token, "--generate-new-token", env=bob, check=True)
    new = json.loads((scheduler / "train.json").read_text())["record"]["token"]
    assert new.startswith("train-1-")
    assert new in changed.stderr
    workspace.run("folder", "terminate", "folder-train-0", check=6)
    (scheduler / "mine.json").write_text('{"made": "by hand"}')
    foreign = workspace.run("folder", "create", "--name", "mine", check=6)
    assert "is something else" in foreign.stderr


def test_branches_of_a_project_stand_beside_each_other(workspace, scheduler):
    flow = FLOW.replace("@schedule", '@project(name="fraud")\n    @schedule')
    workspace.write("flow.py", flow)
    workspace.write("other.py", flow.replace("Train", "Other"))
    workspace.run("folder", "create", check=True)
    workspace.run("--branch", "b", "folder", "create", check=True)
    produced = workspace.run("--production", "folder", "create", check=True)
    assert "python flow.py --production folder trigger" in produced.stderr
    shared = workspace.run("--production", "folder", "create", flow="other.py", check=True)
    assert "token" not in shared.stderr
    found = {file.stem: json.loads(file.read_text())["record"] for file in scheduler.glob("*.json")}
    assert sorted(found) == [
        *("fraud.prod.other", "fraud.prod.train", "fraud.test.b.train", "fraud.user.tester.train"),
    ]
    assert found["fraud.prod.other"]["token"] == found["fraud.prod.train"]["token"]
    assert len({record["token"] for record in found.values()}) == 3
    workspace.run("--branch", "b", "folder", "delete", check=True)
    assert not (scheduler / "fraud.test.b.train.json").exists()


API = """
    import json, sys
    from flowkit import DeployedFlow, Deployer, exceptions

    def refused(kind, act):
        try:
            act()
        except kind as error:
            return str(error)
        raise AssertionError("it was not refused")

    deployer = Deployer("flow.py", show_output=False, decospecs=["retry"])
    made = deployer.target("folder", name="mine").create(tags=["t"], colour="red", drawer=["x"], sealed=True)
    assert (made.name, made.flow_name, made.id, made.metadata) == ("mine", "Train", "folder/mine", "local")
    run = made.trigger(rate=2, the_names=["q"])
    assert (run.name, run.pathspec, run.status, run.is_running, run.run) == (
        "folder-mine-0", "Train/folder-mine-0", "running", True, None)
    same = DeployedFlow.get_triggered_run("mine", "Train/folder-mine-0")
    assert same.suspend() and run.status == "pending" and same.unsuspend()
    assert "has not begun after" in refused(TimeoutError, lambda: run.wait_for_run(0.01, 0.05))
    assert "is not over after" in refused(TimeoutError, lambda: run.wait_for_completion(0.01, 0.05))
    assert same.terminate()
    run.wait_for_completion(timeout=30)
    assert (run.status, run.reason, run.is_running) == ("cancelled", "terminated", False)
    assert [each.name for each in made.list_runs(["cancelled"])] == ["folder-mine-0"]
    assert [each.id for each in DeployedFlow.list_deployed_flows("Train")] == ["folder/mine"]
    assert [each.id for each in DeployedFlow.list_deployed_flows(impl="folder")] == ["folder/mine"]
    assert list(DeployedFlow.list_deployed_flows("Other", impl="folder")) == []
    found = DeployedFlow.from_deployment("mine", impl="folder")
    assert found.production_token == made.production_token
    usage = exceptions.UsageError
    wrong = refused(usage, lambda: found.trigger(rat=1, rate="x"))
    assert wrong.splitlines() == [
        "mine has no parameter 'rat' (did you mean 'rate'?)", "the parameter 'rate': it takes a number, not 'x'"]
    assert "no option 'color'" in refused(usage, lambda: deployer.target("folder").create(color="red"))
    assert "--colour" in refused(usage, lambda: deployer.target("folder").create(colour="blue"))
    assert "no option 'branc'" in refused(usage, lambda: Deployer("flow.py", branc="x"))
    assert "no flow file" in refused(usage, lambda: Deployer("none.py"))
    taken = lambda: Deployer("flow.py", False, env={"HOME": "/nonexistent"}).target("folder", "mine").create()
    assert "production token that you do not have" in refused(exceptions.Conflict, taken)
    assert "no scheduler called 'foldr' to deploy to" in refused(exceptions.NotFound, lambda: deployer.target("foldr"))
    assert found.delete()
    assert "no deployment 'mine'" in refused(exceptions.NotFound, lambda: DeployedFlow.from_deployment("mine"))
    gone = refused(exceptions.NotFound, lambda: DeployedFlow.from_deployment("folder/mine"))
    assert gone.startswith("nothing is deployed as 'mine' at the folder")
"""


def test_deploying_from_python(workspace, scheduler):
    workspace.write("flow.py", FLOW)
    workspace.python(API, check=True)
    assert [path.name for path in workspace.path.iterdir() if path.suffix == ".py"] == ["flow.py"]


class _Chat(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.put((self.path, json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def chat():
    """A chat's webhook; ``told`` has the messages."""
    with HTTPServer(("127.0.0.1", 0), _Chat) as server:
        server.told = queue.Queue()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_run_has_the_values_of_when_it_was_deployed_and_people_are_told_how_it_ended(workspace, chat):
    flow = FLOW.replace("self.next(self.end)", "assert self.rate < float(self.limits['most']); self.next(self.end)")
    parsed = 'limits = Config("limits", default="limits.txt", parser=lambda text: dict([text.split()]))\n        name ='
    page = 'page = IncludeFile("page", default="page.txt")\n        name ='
    flow = flow.replace("name =", parsed, 1).replace("name =", page, 1)
    workspace.write("flow.py", flow.replace("pass", "print(self.page, self.limits['most'])"))
    workspace.write("limits.txt", "most 1")
    workspace.write("page.txt", "old page")
    made = workspace.run("deploy", "--notify-on-error", "--notify-on-success", "--name", "told", check=True)
    workspace.write("limits.txt", "most 0")
    (workspace.path / "page.txt").unlink()
    env = {"FLOWKIT_NOTIFY_URL": f"http://127.0.0.1:{chat.server_port}/hook-secret"}
    runs = []
    for rate in (0.5, 2):
        workspace.run("local", "--name", "told", "trigger", "--rate", rate, "--run-id-file", "id", env=env, check=True)
        runs.append((workspace.path / "id").read_text())
    messages = [chat.told.get(timeout=60) for _ in runs]
    assert {path for path, _ in messages} == {"/hook-secret"}
    told = dict(message["text"].split(" ", 1) for _, message in messages)
    assert told[f"Train/{runs[0]}"] == "succeeded"
    assert told[f"Train/{runs[1]}"].startswith("failed: ")
    assert workspace.run("logs", f"{runs[0]}/end", check=True).stdout == "old page 1\n"
    assert "hook-secret" not in made.output + (workspace.path / ".flowkit/deployments/local/told.json").read_text()
