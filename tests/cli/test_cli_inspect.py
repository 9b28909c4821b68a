"""Looking at runs by the command line: status, logs, dump and tag, of a run that failed and was resumed."""

from __future__ import annotations

import json
import pickle

import pytest

FLOW = '''
import os, sys
from flowkit import FlowSpec, Parameter, retry, step


class Odd:
    def __repr__(self):
        raise RuntimeError("no repr")


class LookFlow(FlowSpec):
    """A flow to look at."""

    bad = Parameter("bad", default=1)

    @step
    def start(self):
        self.items = ["a", "b", "c"]
        self.big = list(range(2000))
        self.odd = Odd()
        self._hidden = 1
        print("to out")
        print("to err", file=sys.stderr)
        os.write(1, b"junk \\xff \\x1b[2J\\x07\\n")
        self.next(self.body, foreach="items")

    @retry(times=1)
    @step
    def body(self):
        print("item", self.input)
        print("second", self.input)
        if self.index == self.bad:
            raise ValueError(f"bad {self.input}")
        self.value = self.input.upper()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.all = [item.value for item in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LookFlow()
'''


def test_status_before_anything_has_run(workspace):
    workspace.write("flow.py", FLOW)
    nothing = workspace.run("status", check=True)
    assert nothing.stdout == ""
    assert "LookFlow has no runs here" in nothing.stderr
    assert json.loads(workspace.run("status", "--json", check=True).stdout) == []
    workspace.run("status", "1", check=4)


@pytest.fixture
def failed(workspace):
    workspace.write("flow.py", FLOW)
    workspace.run("run", "--tag", "first", check=1)
    return workspace


def test_status_tells_how_runs_stand(failed):
    failed.run("resume", "--bad", "-1", check=True)
    listed = failed.run("status", check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        ["run", "state", "user"],
        ["2", "succeeded", "tester"],
        ["1", "failed", "tester"],
    ]
    assert "first" in rows[2]
    assert "body/1: ValueError: bad b" in listed.stdout
    assert failed.run("status", "--limit", "1").stdout.count("\n") == 2

    first = failed.run("status", "LookFlow/1", check=True).stdout
    assert first.startswith("LookFlow/1: failed (body/1: ValueError: bad b)\n")
    steps = {line.split()[0]: line.split()[1:] for line in first.splitlines() if line[:6].strip()}
    assert steps["step"] == ["pending", "running", "succeeded", "failed", "cloned"]
    assert steps["body"] == ["-", "-", "2", "1", "-"]
    assert steps["end"] == ["-"] * 5

    told = json.loads(failed.run("status", "2", "--json", check=True).stdout)
    assert (told["state"], told["origin"], told["user"]) == ("succeeded", "LookFlow/1", "tester")
    counts = {step["step"]: (step["succeeded"], step["cloned"]) for step in told["steps"]}
    assert counts == {"start": (0, 1), "body": (1, 2), "join": (1, 0), "end": (1, 0)}
    told = json.loads(failed.run("status", "--json", check=True).stdout)
    assert [run["run"] for run in told] == ["2", "1"]
    told = json.loads(failed.run("status", "1", "--json", check=True).stdout)
    assert [(task["task"], task["attempt"], task["reason"]) for task in told["failed"]] == [
        ("body/1", 1, "ValueError: bad b")
    ]


def test_logs_show_what_tasks_wrote(failed):
    assert failed.run("logs", "1/start", check=True).stdout == "to out\nto err\njunk \ufffd \ufffd\n"
    assert failed.run("logs", "show", "1/start/0", "--stderr").stdout == "to err\n"
    assert failed.run("logs", "LookFlow/1/start/0", "--stdout", "--tail", "1").stdout == "junk \ufffd \ufffd\n"
    body = failed.run("logs", "1/body", "--stdout").stdout.splitlines()
    assert sorted(body) == sorted(f"[body/{i}] {word} {'abc'[i]}" for i in range(3) for word in ("item", "second"))
    assert failed.run("logs", "1/body/1", "--attempt", "0", "--tail", "1").stdout == "ValueError: bad b\n"
    stamped = failed.run("logs", "1/body/0", "--timestamps", "--tail", "1").stdout
    assert stamped[4] == stamped[7] == "-"
    assert stamped[23:] == " second a\n"
    newest = failed.run("logs", check=True)
    assert "[start/0] to out\n" in newest.stdout
    assert "The logs of run 1:" in newest.stderr
    assert failed.run("logs", "1/join", check=True).stdout == ""
    assert failed.run("logs", "1/body/1", "--attempt", "7", check=4).stderr.endswith("its attempts: 0, 1\n")

    failed.run("resume", "--bad", "-1", check=True)
    assert failed.run("logs", "2/body/0").stdout == "item a\nsecond a\n", "a clone's log is its original's"
    assert failed.run("logs", "2", "--follow", check=True).stdout.splitlines() == [
        "[body/1] item b",
        "[body/1] second b",
    ]

    failed.run("logs", "scrub", "1/start", "--stderr", check=True)
    kept = failed.run("logs", "1/start").stdout.splitlines()
    assert kept[:2] == ["to out", "junk \ufffd \ufffd"]
    assert kept[2].startswith("[the standard error was scrubbed by tester at 2")
    failed.run("logs", "scrub", "1/body", "--all", check=True)
    assert "bad b" not in failed.run("logs", "1/body/1", "--attempt", "0").stdout
    assert "it there" in failed.run("logs", "scrub", "2/start", check=True).stderr


def test_dump_shows_artifacts(failed):
    start = failed.run("dump", "1/start", check=True)
    assert start.stdout.startswith("LookFlow/1/start/0:\n")
    assert "    items = ['a', 'b', 'c']\n" in start.stdout
    assert "    odd = <__main__.Odd, " in start.stdout
    assert "its repr fails: RuntimeError: no repr>" in start.stdout
    assert "    big = <list, length 2000, " in start.stdout
    assert "_hidden" not in start.stdout
    assert "    _hidden = 1\n" in failed.run("dump", "1/start", "--private").stdout
    assert "1998, 1999]" in failed.run("dump", "1/start", "--max-value-size", "100000").stdout

    body = failed.run("dump", "1/body", "--include", "value", check=True)
    assert sorted(line for line in body.stdout.splitlines() if "=" in line) == ["    value = 'A'", "    value = 'C'"]
    assert "LookFlow/1/body/1 has no artifacts: it has not succeeded (failed: ValueError: bad b)" in body.stderr
    failed.run("dump", "1/body", "--include", "value,items", "--file", "out.pkl", check=True)
    found = pickle.loads((failed.path / "out.pkl").read_bytes())
    assert found == {f"LookFlow/1/body/{i}": {"value": "AC"[i // 2], "items": ["a", "b", "c"]} for i in (0, 2)}

    assert "no task of 1/body/1 has succeeded" in failed.run("dump", "1/body/1", check=4).stderr
    assert "did you mean 'value'?" in failed.run("dump", "1/body", "--include", "valeu", check=4).stderr
    assert "RUN/STEP[/TASK]" in failed.run("dump", "1", check=2).stderr


def test_dump_shows_what_cannot_be_loaded_here(failed):
    damaged = [path for path in (failed.path / ".flowkit" / "blobs").rglob("*") if path.is_file()]
    for path in damaged:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert damaged
    dumped = failed.run("dump", "1/start", "--max-value-size", "100000", check=5)
    assert "the artifact 'big' is damaged" in dumped.stderr
    shown = dumped.stdout
    assert "    big = <list, length 2000, " in shown
    assert "damaged" in shown
    assert "    items = ['a', 'b', 'c']\n" in shown
    assert "damaged" in failed.run("dump", "1/start", "--file", "out.pkl", check=5).stderr
    assert not (failed.path / "out.pkl").exists()


def test_tags_are_changed_and_listed(failed):
    assert "Tags of run 1: best, first, two words" in failed.run("tag", "add", "best", "two words", check=True).stderr
    failed.run("tag", "replace", "--add", "good", "--remove", "best", "--run-id", "1", check=True)
    failed.run("tag", "remove", "first", "--run-id", "LookFlow/1", check=True)
    assert failed.run("tag", "list", "--hide-system-tags", check=True).stdout == "good\ntwo words\n"
    assert "user:tester\n" in failed.run("tag", "list", "1").stdout
    assert failed.run("tag", "list", "--group-by-run", "--hide-system-tags").stdout == "1: good, two words\n"
    assert "good: 1\n" in failed.run("tag", "list", "--group-by-tag", "--my-runs").stdout
    told = json.loads(failed.run("tag", "list", "--json", "--all", check=True).stdout)
    assert [run["tags"] for run in told] == [["good", "two words"]]
    assert "user:tester" in told[0]["system_tags"]

    assert "namespace user:nobody" in failed.run("tag", "add", "x", "--namespace", "user:nobody", check=4).stderr
    assert "no tag to add" in failed.run("tag", "replace", check=2).stderr
    assert "system tags" in failed.run("tag", "remove", "user:tester", check=2).stderr
    assert "did you mean 'list'?" in failed.run("tag", "lst", check=2).stderr
    assert "exclude each other" in failed.run("tag", "list", "1", "--all", check=2).stderr
    client = failed.client()
    assert client.Run("LookFlow/1").user_tags == {"good", "two words"}
