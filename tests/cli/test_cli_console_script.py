"""The ``flowkit`` command."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import flowkit.tutorials

FLOW = """
from flowkit import FlowSpec, step


class OneFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OneFlow()
"""


def test_status_shows_every_flow_with_its_latest_run(workspace):
    nothing = workspace.flowkit("status", check=True)
    assert nothing.stdout == "user: tester\nnamespace: user:tester\nroot: none\n"
    assert "run a flow first" in nothing.stderr
    assert json.loads(workspace.flowkit("status", "--json").stdout)["flows"] == []
    workspace.write("one.py", FLOW)
    workspace.write("two.py", FLOW.replace("OneFlow", "TwoFlow"))
    for flow in ("one.py", "one.py", "two.py"):
        workspace.run("run", flow=flow, check=True)
    shown = workspace.flowkit("status", check=True).stdout.splitlines()
    assert shown[2] == f"root: {workspace.path / '.flowkit'}"
    assert [line.split()[:4] for line in shown[5:]] == [
        ["TwoFlow", "1", "succeeded", "tester"],
        ["OneFlow", "2", "succeeded", "tester"],
    ]
    told = json.loads(workspace.flowkit("status", "--json", check=True).stdout)
    assert {flow["flow"]: flow["latest_run"]["run"] for flow in told["flows"]} == {"OneFlow": "2", "TwoFlow": "1"}
    workspace.flowkit("status", "--datastore-root", "nowhere", check=4)


def test_configure_changes_the_settings_of_a_profile(workspace):
    home = workspace.home / "flowkit"
    assert "sets nothing" in workspace.flowkit("configure", "show", check=True).stderr
    workspace.flowkit("configure", "set", "max_workers", "3", check=True)
    workspace.flowkit("configure", "set", "user", 'Zoë "Z" \\ 😀', check=True)
    workspace.flowkit("configure", "set", "durable", "yes", check=True)
    workspace.flowkit("configure", "set", "datastore", "s3://me:hush@bucket/x", "--profile", "far", check=True)
    shown = workspace.flowkit("configure", "show", check=True)
    assert shown.stdout == 'durable = true\nmax_workers = 3\nuser = "Zoë \\"Z\\" \\\\ 😀"\n'
    assert str(home / "config.toml") in shown.stderr
    assert stat.S_IMODE((home / "config.toml").stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["config-far.toml", "config.toml"]
    assert 'user: Zoë "Z" \\ 😀\n' in workspace.flowkit("status").stdout
    far = workspace.flowkit("configure", "show", "-p", "far", check=True)
    assert far.stdout == 'datastore = "s3://********@bucket/x"\n'
    assert "hush" in (home / "config-far.toml").read_text()
    assert workspace.flowkit("configure", "show", env={"FLOWKIT_PROFILE": "far"}).stdout == far.stdout
    assert workspace.flowkit("configure", "profiles", check=True).stdout == "far\n"

    assert "is not set any more" in workspace.flowkit("configure", "unset", "user", check=True).stderr
    workspace.flowkit("configure", "unset", "user", check=4)
    for arguments, told in (
        (["set", "max_wokers", "3"], "did you mean 'max_workers'?"),
        (["set", "max_workers", "0"], "must be a whole number above 0"),
        (["set", "verify", "sometimes"], "always, stat, off"),
        (["set", "profile", "x"], "no setting 'profile'"),
        (["show", "--profile", "../x"], "is not a profile's name"),
        (["shwo"], "did you mean 'show'?"),
    ):
        assert told in workspace.flowkit("configure", *arguments, check=2).stderr
    (home / "config.toml").write_text("max_workers = \n")
    assert "config.toml cannot be read" in workspace.flowkit("configure", "show", check=2).stderr
    assert "was removed" in workspace.flowkit("configure", "reset", check=True).stderr
    assert workspace.flowkit("configure", "show", check=True).stdout == ""
    workspace.flowkit("configure", "reset", check=True)


def test_tutorials_are_listed_and_copied(workspace):
    listed = workspace.flowkit("tutorials", "list", check=True).stdout.splitlines()
    assert listed[0].split()[0] == "00-hello"
    assert "did you mean '00-hello'?" in workspace.flowkit("tutorials", "pull", "--episode", "00-helo", check=4).stderr
    workspace.flowkit("tutorials", "pull", "--episode", "00-hello", check=True)
    folder = workspace.path / "flowkit-tutorials" / "00-hello"
    installed = Path(flowkit.tutorials.__file__).parent / "00-hello"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in installed.iterdir() if path.is_file()
    }
    assert "is there already" in workspace.flowkit("tutorials", "pull", check=6).stderr


def test_help_version_and_unknown_commands(workspace):
    assert workspace.flowkit("help", check=True).stdout == workspace.flowkit("--help", check=True).stdout
    version = workspace.flowkit("version", check=True).stdout
    assert workspace.command(sys.executable, "-m", "flowkit", "version", check=True).stdout == version
    assert "did you mean 'status'?" in workspace.flowkit("stauts", check=2).stderr
    assert "there is no option --josn" in workspace.flowkit("status", "--josn", check=2).stderr
    assert "there is no datastore" in workspace.flowkit("metadata", "rebuild", check=4).stderr
