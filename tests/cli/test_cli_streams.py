"""What goes where: data to stdout, talk to stderr; quiet, closed pipes, colours, options of the language."""

from __future__ import annotations

import json
import sys

import pytest

FLOW = '''
from flowkit import FlowSpec, Parameter, project, step


class StreamFlow(FlowSpec):
    """Says where things go."""

    n = Parameter("n", default=3)

    @step
    def start(self):
        print("a line of a task")
        self.items = list(range(self.n))
        self.next(self.end)

    @step
    def end(self):
        for i in range(2000):
            print("line", i)


if __name__ == "__main__":
    StreamFlow()
'''


@pytest.fixture
def flow(workspace):
    workspace.write("flow.py", FLOW)
    return workspace


GREETING = "executing StreamFlow for user:tester"


def test_data_goes_to_stdout_and_talk_to_stderr(flow):
    run = flow.run("run", check=True)
    assert GREETING in run.stderr
    assert "a line of a task" in run.stdout
    for command, data in (
        (["check"], ""),
        (["show"], "Says where things go.\n\nStep start\n    => end\n\nStep end\n"),
        (["logs", "1/start"], "a line of a task\n"),
        (["dump", "1/start", "--include", "n"], "StreamFlow/1/start/0:\n    n = 3\n"),
        (["tag", "list", "--hide-system-tags"], ""),
        (["tag", "add", "x"], ""),
    ):
        result = flow.run(*command, check=True)
        assert result.stdout == data
        assert GREETING not in result.stderr, "only a run says who runs it"
    assert "StreamFlow looks good: 2 steps." in flow.run(check=True).stderr, "no command: check"
    assert flow.run("output-dot").stdout.startswith("digraph")
    assert set(json.loads(flow.run("output-raw", "--json").stdout)["steps"]) == {"start", "end"}
    assert json.loads(flow.run("check", "--json").stdout) == {"valid": True, "problems": [], "warnings": []}
    assert [row["action"] for row in json.loads(flow.run("resume", "--plan", "--json").stdout)["plan"]] == ["clone"] * 2
    version = flow.run("version", check=True)
    assert version.stdout.count("\n") == 1
    assert version.stderr == ""
    assert "output-raw" in flow.run("help", check=True).stdout


def test_quiet_says_only_what_was_asked_for(flow):
    quiet = flow.run("--quiet", "run", check=True)
    assert quiet.stderr == ""
    assert [line.partition("] ")[2] for line in quiet.stdout.splitlines()[:2]] == ["a line of a task", "line 0"]
    assert flow.run("-q", "check", check=True).output == ""
    assert flow.run("-q", "tag", "add", "x", check=True).output == ""
    assert flow.run("-q", "logs", "1/start").output == "a line of a task\n"
    assert flow.run("-q", "status", "9", check=4).stderr.startswith("there is no run")


@pytest.mark.parametrize("command", ["run", "logs 1", "logs 1 -f", "dump 1/start"])
def test_a_closed_pipe_ends_the_printing_and_nothing_else(flow, command):
    flow.run("run", "--n", "3000", check=True)
    script = f"{sys.executable} flow.py {command} 2>err; echo $? > code"
    piped = flow.command("bash", "-c", f"( {script} ) | head -n 1", check=True)
    assert piped.stdout.count("\n") == 1
    assert (flow.path / "code").read_text() == "0\n"
    assert "Traceback" not in (flow.path / "err").read_text()
    assert "Broken" not in (flow.path / "err").read_text()
    if command == "run":
        assert flow.run("status", "2", check=True).stdout.startswith("StreamFlow/2: succeeded")


def test_no_escape_sequences_where_nobody_can_see_colours(flow):
    for env in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}):
        for command in (["run"], ["status"], ["show"], ["--help"], ["rnu"]):
            assert "\x1b" not in flow.run(*command, env=env).output


def test_output_that_the_terminal_cannot_encode_is_escaped(flow):
    flow.run("run", "--tag", "größe→", check=True)
    listed = flow.run("tag", "list", env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}, check=True)
    assert "gr\\xf6\\xdfe\\u2192\n" in listed.stdout


def test_options_of_the_language_are_taken(flow):
    flow.run(
        *("--quiet", "--metadata", "local", "--environment", "local", "--force-rebuild-environments"),
        *("--datastore", "local", "--datastore-root", "here", "--package-suffixes", ".py,.R", "--no-pylint"),
        *("--with", "retry", "--event-logger", "nullSidecarLogger", "--monitor", "nullSidecarMonitor"),
        *("--local-config-file", "x.json", "--not-quiet"),
        *("run", "--with", "timeout:minutes=5", "--tag", "a", "--tag", "b", "--max-workers", "2"),
        *("--max-num-splits", "5", "--max-log-size", "1", "--run-id-file", "id", "--namespace", "user:x", "--n", "2"),
        *("--runner-attribute-file", "attributes.json"),
        check=True,
    )
    assert (flow.path / "id").read_text() == "1"
    assert json.loads((flow.path / "attributes.json").read_text())["run_id"] == "1"
    assert (flow.path / "here" / "flows" / "StreamFlow" / "1" / "run.json").is_file()
    flow.run("--pylint", "--datastore-root", "here", "check", "--warnings", check=True)
    told = json.loads(flow.run("--datastore-root", "here", "status", "1", "--json").stdout)
    assert told["tags"] == ["a", "b"]


def test_options_can_come_from_the_environment(flow):
    env = {"FLOWKIT_RUN_N": "7", "FLOWKIT_RUN_RUN_ID_FILE": "id", "FLOWKIT_DATASTORE_ROOT": "there"}
    flow.run("run", env=env, check=True)
    assert (flow.path / "id").read_text() == "1"
    assert "n = 7\n" in flow.run("--datastore-root", "there", "dump", "1/start").stdout
    assert "n = 7\n" in flow.run("dump", "1/start", env={"FLOWKIT_DATASTORE": "there"}).stdout


def test_variables_of_metaflow_are_pointed_at(flow):
    told = flow.run("check", env={"METAFLOW_USER": "x", "METAFLOW_RUN_N": "3", "METAFLOW_UNRELATED": "1"}).stderr
    assert "METAFLOW_USER (here: FLOWKIT_USER)" in told
    assert "METAFLOW_RUN_N (here: FLOWKIT_RUN_N)" in told
    assert "UNRELATED" not in told
    assert "METAFLOW" not in flow.run("check").stderr
