"""What starts runs on AWS Step Functions, carried out: its schedule, an event, the end of another flow.

Nothing fires by itself on this machine: what EventBridge and its scheduler would send is sent as it stands in the
schedule and in the rules.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

pytestmark = pytest.mark.deploying

FLOW = """
    from flowkit import *


    @schedule(cron="30 6 ? * MON-FRI *", timezone="Europe/Oslo")
    @trigger(event={"name": "data", "parameters": {"alpha": "rows", "word": "who is it"}})
    @trigger_on_finish(flow="Prepare")
    class Starts(FlowSpec):
        alpha = Parameter("alpha", default=1)
        word = Parameter("word", default="plain")

        @step
        def start(self):
            trigger = current.get("trigger")
            self.why = [(event.name, event.id, event.type) for event in trigger] if trigger else None
            self.next(self.end)

        @step
        def end(self):
            self.given = (self.alpha, self.word)


    if __name__ == "__main__":
        Starts()
"""
LOOK = """
    import sys
    from flowkit import Run, namespace
    namespace(None)
    run = Run(sys.argv[1])
    print(run.status, run["end"].task.data.given, run["start"].task.data.why)
"""


class Cloud:
    """The flow's machine, and what EventBridge would do to it."""

    def __init__(self, service: Any, workspace: Any) -> None:
        self.service, self.workspace = service, workspace
        workspace.write("flow.py", FLOW)
        workspace.write("look.py", LOOK)
        self.machines = service.client("stepfunctions")
        self.count = 0

    def create(self, *words: str) -> None:
        """Deploy the flow."""
        self.workspace.run("step-functions", "create", *words, check=0)
        listed = self.machines.list_state_machines()["stateMachines"]
        self.arn = next(item["stateMachineArn"] for item in listed if item["name"] == "Starts")

    def send(self, given: Any) -> str:
        """Start an execution as EventBridge would, and return the run's pathspec."""
        self.count += 1
        name = f"sent-{self.count}-{time.time_ns()}"
        self.machines.start_execution(stateMachineArn=self.arn, name=name, input=json.dumps(given))
        return f"Starts/sfn-{name}"

    def left(self, run: str) -> str:
        """Wait for a run's end, and return what it left."""
        from machine_service import execution_of, story, wait_for

        state = wait_for(self.service, run)
        assert state == "succeeded", story(self.service, execution_of(self.service, run)["executionArn"])
        return str(self.workspace.run(run, flow="look.py", check=True).stdout.strip())


@pytest.fixture
def starts(machines: Any, cloud: Any) -> Any:
    """The flow, written and not deployed."""
    made = Cloud(machines, cloud)
    yield made
    made.machines.close()


def test_a_schedule_an_event_and_the_end_of_another_flow(starts: Cloud) -> None:
    starts.create()
    scheduler, bridge = starts.service.client("scheduler"), starts.service.client("events")
    try:
        schedule = scheduler.get_schedule(Name="Starts")
        rules = [json.loads(rule["EventPattern"]) for rule in bridge.list_rules(NamePrefix="Starts")["Rules"]]
    finally:
        scheduler.close()
        bridge.close()
    assert (schedule["ScheduleExpression"], schedule["ScheduleExpressionTimezone"], schedule["Target"]["Arn"]) == (
        "cron(30 6 ? * MON-FRI *)", "Europe/Oslo", starts.arn
    )  # fmt: skip
    due = starts.send(json.loads(schedule["Target"]["Input"]))
    when = 1_800_000_000
    event = {"source": "flowkit", "detail-type": "data", "id": "event-1"}
    assert any(rule == {"source": [event["source"]], "detail-type": [event["detail-type"]]} for rule in rules)
    detail = {"name": "data", "timestamp": when, "rows": 12, "who is it": "a \"$(HOME)\" 'b'"}
    came = starts.send({**event, "detail": detail})
    assert any("aws.states" in rule["source"] for rule in rules)
    ended = {"name": "night-7", "status": "SUCCEEDED", "stopDate": when * 1000}
    source = {"source": "aws.states", "detail-type": "Step Functions Execution Status Change", "id": "event-2"}
    over = starts.send({**source, "detail": ended})
    assert starts.left(due) == "succeeded (1, 'plain') None"
    assert starts.left(came).startswith(f"succeeded {(12, detail['who is it'])} [('data', 'event-1', 'event')]")
    assert starts.left(over) == "succeeded (1, 'plain') [('flowkit.Prepare.end', 'Prepare/sfn-night-7', 'run')]"
