"""Runs of a scheduler as everybody sees them: states, logs, where they came from; and a failed one resumed here."""

from __future__ import annotations

import json
import time

import pytest
from plain_scheduler import PlainScheduler
from plain_target import deploy_here

from flowkit.deployer import target as port
from flowkit.exceptions import Conflict

NIGHT = """
    import os
    import time
    from flowkit import FlowSpec, current, exit_hook, step


    def tell(run):
        print("sorry:", run.status, run.deployment)


    @exit_hook(on_error=[tell])
    class NightFlow(FlowSpec):
        @step
        def start(self):
            self.items = [0, 1]
            self.told = [current.trigger.event.name, [event.id for event in current.trigger]]
            self.next(self.work, foreach="items")

        @step
        def work(self):
            print("item", self.input, "attempt", current.retry_count, flush=True)
            if self.input == 1 and not os.path.exists(os.path.join(os.environ["HERE"], "mended")):
                raise ValueError("not yet")
            while self.input == 0 and not os.path.exists(os.path.join(os.environ["HERE"], "go")):
                time.sleep(0.02)
            self.result = self.input
            self.next(self.join)

        @step
        def join(self, inputs):
            self.total = sum(each.result for each in inputs)
            self.by = current.trigger.run.pathspec
            self.merge_artifacts(inputs, include=["told"])
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        NightFlow()
"""
DEADLINE = 60.0
RUN = "plain-night-x7"


def until(look, wanted):
    """Look until something is so."""
    deadline = time.monotonic() + DEADLINE
    while not wanted(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    return seen


@pytest.fixture
def night(workspace, aws):
    """A flow that is deployed, with the datastore in a bucket; its containers have a home of their own."""
    workspace.write("flow.py", NIGHT)
    flowkit = workspace.client()
    root = f"s3://{aws.bucket()}/data"
    workspace.env.update(aws.env, FLOWKIT_DATASTORE=root, HERE=str(workspace.path))
    flowkit.metadata(f"local@{root}")
    flowkit.namespace(None)
    machine = workspace.home.parent / "container"
    machine.mkdir()
    home = {"HOME": str(machine), "FLOWKIT_HOME": str(machine / "flowkit"), "FLOWKIT_SKIP_INSTALL": "true"}
    deployment = deploy_here(workspace.path / "flow.py", root)
    return PlainScheduler(deployment, RUN, {**workspace.env, **home})


def test_a_failed_night_is_seen_from_a_laptop_and_resumed_there(workspace, night):
    deployment = night.deployment
    machine = workspace.home.parent / "container"

    def container(step, task, **more):
        plan = deployment.steps[step]
        told = {**plan.environment, port.TASK: task, **{getattr(port, name): value for name, value in more.items()}}
        return night.container(step, task, plan.command, told)

    def look():
        run = workspace.client().Run(f"NightFlow/{RUN}")
        return run.status, run.status_reason

    def states(step):
        return {task.id: task.status for task in workspace.client().Step(f"NightFlow/{RUN}/{step}")}

    events = [["data_arrived", "e1", 1.5, "event"], ["flowkit.NightFlow.end", f"NightFlow/{RUN}", 2.5, "run"]]
    assert container("start", "0", TRIGGER=json.dumps(events)) == 0, night.output
    plan = deployment.steps["work"]
    long = night._start(plan.command, {**plan.environment, port.TASK: "0"})
    try:
        until(look, lambda seen: seen == ("running", None))
        # It belongs to its scheduler.
        with pytest.raises(Conflict, match="belongs to a scheduler"):
            workspace.client().Run(f"NightFlow/{RUN}").cancel()
        assert "has not ended" in workspace.run("resume", "--origin-run-id", RUN).output
        # One task fails for good, and another one goes on: its log is there while it works.
        assert container("work", "1") == port.FINAL, night.output
        until(look, lambda seen: seen == ("failed", "work/1: ValueError: not yet"))
        until(lambda: states("work"), lambda seen: seen == {"0": "running", "1": "failed"})
        until(
            lambda: workspace.client().Task(f"NightFlow/{RUN}/work/0").stdout, lambda text: "item 0 attempt 0" in text
        )
        (workspace.path / "go").touch()
        assert long.wait(DEADLINE) == 0
    finally:
        long.kill()
        long.communicate()
    # The scheduler has the run ended.
    told = {port.STATE: "Failed", port.REASON: "child 'work(1:1)' failed"}
    assert night.container("_end", "", deployment.end_command, told) == 0, night.output
    until(lambda: states("work"), lambda seen: seen == {"0": "succeeded", "1": "failed"})
    assert look() == ("failed", "work/1: ValueError: not yet")
    assert workspace.run("logs", f"{RUN}/_ended", check=True).stdout == "sorry: failed plain/nightflow\n"
    # No container has made an index of its own.
    assert [str(path) for path in machine.rglob("*") if path.suffix in (".db", ".sqlite", ".sqlite3")] == []

    flowkit = workspace.client()
    run = flowkit.Run(f"NightFlow/{RUN}")
    assert run.deployment == "plain/nightflow"
    assert {"deployment:plain/nightflow", "runtime:plain", "user:tester"} <= run.system_tags
    assert run["start"].task.data.told == ["flowkit.NightFlow.end", ["e1", f"NightFlow/{RUN}"]]
    assert [event.id for event in run.trigger] == ["e1", f"NightFlow/{RUN}"]
    assert run.trigger.run.deployment == run.trigger["NightFlow"].deployment == "plain/nightflow"
    run.add_tag("looked-at")
    assert flowkit.Run(f"NightFlow/{RUN}").user_tags == {"looked-at"}
    assert "class NightFlow" in run.code.flowspec

    # It goes on here, where the mistake is mended: as a run of this user's, that is no deployment's.
    (workspace.path / "mended").touch()
    workspace.run("resume", "--origin-run-id", RUN, check=True)
    resumed = flowkit.Flow("NightFlow").latest_run
    assert (resumed.id, resumed.origin_pathspec, resumed.deployment) == ("1", f"NightFlow/{RUN}", None)
    assert (resumed.status, resumed.data.total) == ("succeeded", 1)
    assert resumed["join"].task.data.by == f"NightFlow/{RUN}"  # what had started it is known here, too
    # And so it would at its scheduler, where somebody has the failed task tried once more.
    assert container("work", "1") == 0, night.output
    until(look, lambda seen: seen == ("running", None))
    until(lambda: states("work"), lambda seen: seen == {"0": "succeeded", "1": "succeeded"})
    assert {task.id: task.origin_pathspec for task in resumed["work"]} == {"0": f"NightFlow/{RUN}/work/0", "1": None}
