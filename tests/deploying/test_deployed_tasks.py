"""What every scheduler relies on: containers that know their coordinates carry out a whole flow, parents and all."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from plain_scheduler import PlainScheduler
from plain_target import deploy_here

from flowkit.deployer import target as port

RICH = """
    import os, signal
    from flowkit import FlowSpec, Parameter, catch, current, exit_hook, parallel, retry, step


    def tell(run):
        with open(os.environ["HOOKS"], "a") as file:
            file.write(f"{run.pathspec} {run.successful}\\n")


    @exit_hook(on_success=[tell], on_error=[tell])
    class RichFlow(FlowSpec):
        alpha = Parameter("alpha", default=0.5)
        word = Parameter("word", default="x")
        many = Parameter("many", default=[2, 0, 1])
        fate = Parameter("fate", default="well")

        @step
        def start(self):
            self.next(self.left, self.right)

        @step
        def left(self):
            self.next(self.outer, foreach="many")

        @step
        def outer(self):
            self.inner_items = list(range(self.input))
            self.mine = self.input
            self.next(self.inner, foreach="inner_items")

        @step
        def inner(self):
            self.kind = "odd" if self.input % 2 else "even"
            self.next({"odd": self.odd, "even": self.even}, condition="kind")

        @step
        def odd(self):
            self.value = f"odd {self.index} {self.mine}"
            self.next(self.inner_join)

        @step
        def even(self):
            self.next(self.even_more)

        @step
        def even_more(self):
            self.value = f"even {self.index} {self.mine}"
            self.next(self.inner_join)

        @step
        def inner_join(self, inputs):
            self.values = [each.value for each in inputs]
            self.next(self.outer_join)

        @step
        def outer_join(self, inputs):
            self.values = [each.values for each in inputs]
            self.next(self.both)

        @catch(var="broken")
        @step
        def right(self):
            os.kill(os.getpid(), signal.SIGKILL)
            self.next(self.turn)

        @step
        def turn(self):
            self.turns = getattr(self, "turns", 0) + 1
            self.go = "on" if self.turns < 3 else "out"
            self.next({"on": self.turn, "out": self.gang}, condition="go")

        @step
        def gang(self):
            self.next(self.node, num_parallel=3)

        @parallel
        @step
        def node(self):
            self.place = current.parallel.node_index
            self.next(self.gang_join)

        @step
        def gang_join(self, inputs):
            self.places = [each.place for each in inputs]
            self.merge_artifacts(inputs, include=["turns", "broken"])
            self.next(self.both)

        @step
        def both(self, inputs):
            self.values = inputs.outer_join.values
            self.places = inputs.gang_join.places
            self.turns = inputs.gang_join.turns
            self.broken = type(inputs.gang_join.broken).__name__
            self.next(self.end)

        @retry(times=1)
        @step
        def end(self):
            self.tries = current.retry_count
            if self.fate == "badly" or self.tries == 0:
                raise ValueError("once more")
            self.told = [self.alpha, self.word, current.namespace]


    if __name__ == "__main__":
        RichFlow()
"""


@pytest.fixture
def here(workspace):
    """A user with a flow, whose containers find no network and need none."""
    workspace.write("flow.py", RICH)
    workspace.client()
    return workspace


def scheduler(workspace, run: str) -> PlainScheduler:
    root = str(workspace.path / ".flowkit")
    deployment = deploy_here(workspace.path / "flow.py", root)
    hooks = str(workspace.path / "hooks")
    return PlainScheduler(deployment, run, {**workspace.env, "FLOWKIT_SKIP_INSTALL": "true", "HOOKS": hooks})


def artifacts_of(run) -> dict[str, object]:
    skipped = {"told"}
    return {
        f"{step.id}/{task.id}/{each.id}": each.data if each.id != "broken" else str(type(each.data))
        for step in run
        for task in step
        for each in task
        if each.id not in skipped
    }


def test_a_whole_flow_by_coordinates_alone(here):
    started = scheduler(here, "plain-one")
    trigger = json.dumps([["data_arrived", "e1", 1.5, "event"]])
    state = started.run({"alpha": "0.75", "word": "7"}, trigger)
    assert state == "succeeded", started.output
    here.run("run", "--alpha", "0.75", "--word", "7", env={"HOOKS": str(here.path / "hooks")}, check=True)

    flow = here.client().namespace(None) or here.client().Flow("RichFlow")
    deployed, local = flow["plain-one"], flow["1"]
    assert artifacts_of(deployed) == artifacts_of(local)
    assert deployed.data.values == [["even 0 2", "odd 1 2"], [], ["even 0 1"]]
    assert deployed.data.told == [0.75, "7", "production:token"]
    assert deployed.data.tries == 1
    assert (deployed.successful, deployed.status) == (True, "succeeded")
    assert deployed.deployment == "plain/richflow"
    assert [event.name for event in deployed.trigger.events] == ["data_arrived"]
    assert (here.path / "hooks").read_text().splitlines() == ["RichFlow/plain-one True", "RichFlow/1 True"]
    shown = here.run("status", "plain-one", check=True).stdout
    assert "succeeded" in shown
    assert "plain/richflow" in shown
    ended = [(step, status) for step, _, status in started.started if status]
    assert ended == [("right", 137), ("end", 1)]

    # A scheduler that starts a task twice changes nothing, and is told again what follows.
    before = sorted(path for path in (here.path / ".flowkit").rglob("*") if "plain-one" in str(path))
    follows = started._task("outer", {port.TASK: "0"}, {})
    assert follows == {"step": "inner", "width": 2}
    assert sorted(path for path in (here.path / ".flowkit").rglob("*") if "plain-one" in str(path)) == before


def test_a_run_that_fails_for_good(here):
    started = scheduler(here, "plain-two")
    assert started.run({"fate": '"badly"', "many": "[]"}) == "failed"
    assert [status for step, _, status in started.started if step == "end"] == [1, port.FINAL]
    assert (here.path / "hooks").read_text() == "RichFlow/plain-two False\n"
    here.client().namespace(None)
    run = here.client().Run("RichFlow/plain-two")
    assert run.status == "failed"
    assert "once more" in here.run("status", "plain-two").stdout
    # The run goes on where it failed, on a laptop.
    result = here.run("resume", "--origin-run-id", "plain-two", env={"HOOKS": str(here.path / "hooks")})
    assert result.returncode == 1
    assert "cloned" in result.output
    assert "once more" in result.output


def test_parameters_that_are_wrong(here):
    started = scheduler(here, "plain-three")
    plan = started.deployment.steps["start"]
    wrong = {f"{port.PARAMETER}alpha": '"red"', f"{port.PARAMETER}alhpa": "1"}
    told = {**plan.environment, port.TASK: "0", **wrong}
    assert started.container("start", "0", plan.command, told) != 0
    assert "parameter 'alpha' takes a number" in started.output
    assert "did you mean 'alpha'" in started.output
    # It is seen that there was to be a run, and why it is none.
    assert started.container("_end", "", started.deployment.end_command, {port.STATE: "Failed"}) == 0
    here.client().namespace(None)
    assert here.client().Run("RichFlow/plain-three").status == "failed"
    assert "takes a number" in here.run("logs", "plain-three/start").output


WAITING = """
    import os, time
    from flowkit import FlowSpec, current, step


    class WaitFlow(FlowSpec):
        @step
        def start(self):
            open(os.environ["BEGUN"], "w").close()
            while current.retry_count == 0:
                time.sleep(0.05)
            self.turns = 0
            self.next(self.turn)

        @step
        def turn(self):
            self.turns += 1
            self.go = "on" if self.turns < 3 else "out"
            self.next({"on": self.turn, "out": self.end}, condition="go")

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        WaitFlow()
"""


def test_a_container_that_is_taken_away_and_turns_in_one_container(workspace):
    workspace.write("flow.py", WAITING)
    workspace.client()
    started = scheduler(workspace, "plain-five")
    begun = workspace.path / "begun"
    plan = started.deployment.steps["start"]
    told = {**plan.environment, port.TASK: "0", "BEGUN": str(begun)}
    process = started._start(plan.command, told)
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # No retry is left for the step's own failures; but this was none.
    assert started.container("start", "0", plan.command, {**told, port.ATTEMPT: "1"}) == 0, started.output
    failed = workspace.path / ".flowkit/flows/WaitFlow/plain-five/start/0/0/failed.json"
    assert json.loads(failed.read_text())["body"]["kind"] == "interrupted"
    plan = started.deployment.steps["turn"]
    told = {**plan.environment, port.TASK: "0", port.TURNS: "all", port.NEXT: "-"}
    started.output = ""
    assert started.container("turn", "0", plan.command, told) == 0
    assert json.loads(started.output.splitlines()[-1]) == {"step": "end", "width": 0}
    plan = started.deployment.steps["end"]
    assert started.container("end", "0", plan.command, {**plan.environment, port.TASK: "0"}) == 0
    run = workspace.client().Run("WaitFlow/plain-five")
    assert (run.status, run.data.turns) == ("succeeded", 3)


def test_children_by_the_index_of_a_job(here):
    started = scheduler(here, "plain-four")
    run = {"start": "0", "left": "0"}
    folder = here.path / "next"
    for step, task in run.items():
        plan = started.deployment.steps[step]
        told = {**plan.environment, port.TASK: task, port.INDEX: "1", port.NEXT: str(folder)}
        assert started.container(step, task, plan.command, told) == 0, started.output
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"step": "outer", "width": "3"}
    index = Path(here.path, ".flowkit/flows/RichFlow/plain-four/left/0/index.json")
    assert json.loads(index.read_text()) == ["0", "1", "2"]
    plan = started.deployment.steps["outer"]
    told = {**plan.environment, port.PREFIX: "", "AWS_BATCH_JOB_ARRAY_INDEX": "2", port.NEXT: "-", port.INDEX: "1"}
    assert started.container("outer", "2", plan.command, told) == 0
    index = Path(here.path, ".flowkit/flows/RichFlow/plain-four/outer/2/index.json")
    assert json.loads(index.read_text()) == ["2.0"]
    assert os.path.isfile(here.path / ".flowkit/flows/RichFlow/plain-four/outer/2/manifest.json")
