"""One step tried out on the inputs that it had in a past run."""

from __future__ import annotations

import json

import pytest

FLOW = """
import os
from flowkit import FlowSpec, Parameter, current, environment, retry, step

class SpinFlow(FlowSpec):
    alpha = Parameter("alpha", default=2)
    fail = Parameter("fail", default="")

    @step
    def start(self):
        self.items = [1, 2, 3]
        self.next(self.body, foreach="items")

    @retry(times=1)
    @step
    def body(self):
        if self.fail == "body" and self.input == 2 and not os.path.exists("mended"):
            raise ValueError("two")
        self.x = self.input * self.alpha
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.x for each in inputs)
        self.next(self.choose)

    @step
    def choose(self):
        self.kind = "big" if self.total > 10 else "small"
        self.next({"big": self.big, "small": self.small}, condition="kind")

    @environment(vars={"COLOUR": "green"})
    @step
    def big(self):
        self.colour = os.environ.get("COLOUR")
        self.next(self.end)

    @step
    def small(self):
        self.next(self.end)

    @step
    def end(self):
        print("the total is", self.total, "in", current.run_id)

if __name__ == "__main__":
    SpinFlow()
"""


@pytest.fixture(scope="module")
def spun(module_workspace):
    module_workspace.write("flow.py", FLOW)
    module_workspace.run("run", check=True)
    module_workspace.run("run", "--fail", "body", check=1)
    return module_workspace


def everything(workspace):
    return {path: path.stat().st_mtime_ns for path in (workspace.path / ".flowkit" / "flows").rglob("*")}


def test_every_kind_of_step_runs_on_its_inputs_and_the_run_is_left_alone(spun):
    before = everything(spun)
    assert "    x = 2" in spun.run("spin", "1/body", check=True).stderr
    assert "    x = 6" in spun.run("spin", "1/body/2", check=True).stderr
    joined = spun.run("spin", "1/join", check=True).stderr
    assert "    total = 12" in joined
    assert "next: choose" in joined
    assert "next: big" in spun.run("spin", "1/choose", check=True).stderr
    assert "colour = 'green'" in spun.run("spin", "SpinFlow/1/big/0", check=True).stderr
    done = spun.run("spin", "1/end", check=True)
    assert done.stdout == "the total is 12 in spin-1\n"
    assert everything(spun) == before
    assert not (spun.path / ".flowkit" / "spins").exists()


def test_values_can_be_given(spun):
    assert "total = 108" in spun.run("spin", "1/join", "--set", "body/1:x=100", check=True).stderr
    assert "x = 50" in spun.run("spin", "1/body", "--set", "alpha=5 * 10", check=True).stderr
    spun.write("given.py", "ARTIFACTS = {'total': -1, 'SpinFlow/1/body/0': {'x': 1000}}")
    assert "total = 1010" in spun.run("spin", "1/join", "--artifacts-module", "given.py", check=True).stderr
    spun.write("given.py", "ARTIFACTS = {'total': -1}")
    assert "is -1 in" in spun.run("spin", "1/end", "--artifacts-module", "given.py", check=True).stdout


def test_the_newest_run_that_has_the_inputs_is_taken_and_a_failed_task_can_be_mended(spun):
    assert "on the inputs of run 1" in spun.run("spin", "join", check=True).stderr
    failed = spun.run("spin", "body/1", check=1)
    assert "ValueError: two" in failed.stderr
    assert "/flowkit/" not in failed.stderr, "no lines of ours"
    (spun.path / "mended").touch()
    assert "on the inputs of run 2" in spun.run("spin", "body/1", check=True).stderr
    (spun.path / "mended").unlink()


def test_what_is_kept_is_a_spin_and_no_run(spun):
    told = spun.run("spin", "1/join", "--persist", "--runner-attribute-file", "attributes.json", check=True).stderr
    facts = json.loads((spun.path / "attributes.json").read_text())
    assert facts == {
        "run_id": facts["run_id"],
        "flow_name": "SpinFlow",
        "metadata": "spin",
        "root": str(spun.path / ".flowkit"),
        "task": f"SpinFlow/{facts['run_id']}/join/0",
    }
    assert f"kept as {facts['task']}" in told
    looked = spun.python(
        f"""
        from flowkit import Flow, Run, Task, inspect_spin, namespace
        namespace(None)
        assert [run.id for run in Flow("SpinFlow")] == ["2", "1"]
        inspect_spin()
        assert [run.id for run in Flow("SpinFlow")][0] == {facts["run_id"]!r}
        task = Task({facts["task"]!r})
        print(task.data.total, task.successful, sorted(Run("SpinFlow/{facts["run_id"]}").system_tags)[-2:])
        """
    )
    assert looked.stdout == "12 True ['spin_of:1', 'user:tester']\n", str(looked)
    assert "spin" not in spun.run("status", check=True).output


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nope"], 4, "has no step 'nope'"),
        (["bodi"], 4, "did you mean 'body'?"),
        (["7/join"], 4, "there is no run SpinFlow/7"),
        (["2/join"], 4, "run SpinFlow/2 has no inputs for join: it got no further than body"),
        (["1/small"], 4, "has no inputs for small: the flow did not take that way"),
        (["1/body/7"], 4, "no inputs for body/7"),
        (["1/body/x"], 2, "'x' is not a task id"),
        (["1/body/1.2"], 2, "such a task id looks like 3;"),
        (["1/end/2"], 2, "that has one task (or one for each turn of a loop)"),
        (["1/2/3/4"], 2, "does not name a step"),
        (["1/join", "--set", "x"], 2, "not of the form NAME=EXPRESSION"),
        (["1/join", "--set", "x=1/0"], 2, "cannot be evaluated: ZeroDivisionError"),
        (["1/join", "--set", "body/7:x=1"], 2, "join/0 has no input 'body/7'"),
        (["1/end", "--set", "join/0:x=1"], 2, "it is no join"),
        (["1/end", "--set", "total=__import__('threading').Lock()"], 5, "the artifact 'total' cannot be stored"),
        (["1/end", "--artifacts-module", "missing.py"], 2, "cannot be read"),
        (["1/end", "--artifacts-module", "flow.py"], 2, "has no dictionary ARTIFACTS"),
    ],
)
def test_what_cannot_be_spun_is_told_in_one_message(spun, arguments, code, told):
    result = spun.run("spin", *arguments, check=code)
    assert told in result.stderr, str(result)
    assert "Traceback" not in result.stderr, str(result)
