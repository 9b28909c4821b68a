"""Flows deployed to AWS Step Functions by the real command, carried out there, and compared with ``run``."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from batch_account import QUEUE
from machine_service import ROLE, execution_of, run_through_step_functions, story, trigger, wait_for

SMALL = """
    from flowkit import FlowSpec, Parameter, exit_hook, schedule, step

    def told(run):
        print("hook", run.pathspec, run.successful)

    @exit_hook(on_success=[told])
    @schedule(cron="30 6 ? * MON-FRI *", timezone="Europe/Oslo")
    class SmallFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)
        word = Parameter("word", default=None)

        @step
        def start(self):
            self.items = [self.alpha]
            self.next(self.each, foreach="items")

        @step
        def each(self):
            self.value = self.input * 2
            self.next(self.end_of_each)

        @step
        def end_of_each(self, inputs):
            self.value = [one.value for one in inputs]
            self.next(self.end)

        @step
        def end(self):
            self.text = f"{self.word} {self.value}"

    if __name__ == "__main__":
        SmallFlow()
"""

RICH = """
    from flowkit import FlowSpec, Parameter, catch, exit_hook, parallel, retry, step, current

    def told(run):
        print("hook", run.pathspec, run.successful)

    @exit_hook(on_success=[told])
    class RichFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)
        word = Parameter("word", default=None)

        @step
        def start(self):
            self.next(self.left, self.right)

        @step
        def left(self):
            self.widths = [2, 0]
            self.next(self.outer, foreach="widths")

        @step
        def outer(self):
            self.items = [self.alpha * 10 + index for index in range(self.input)]
            self.next(self.inner, foreach="items")

        @step
        def inner(self):
            self.way = "odd" if self.input % 2 else "even"
            self.next({"odd": self.odd, "even": self.even}, condition="way")

        @step
        def odd(self):
            self.seen = f"odd {self.input}"
            self.next(self.inner_join)

        @step
        def even(self):
            self.seen = f"even {self.input}"
            self.next(self.inner_join)

        @step
        def inner_join(self, inputs):
            self.seen = [one.seen for one in inputs]
            self.next(self.outer_join)

        @step
        def outer_join(self, inputs):
            self.seen = [one.seen for one in inputs]
            self.next(self.join)

        @retry(times=1, minutes_between_retries=0)
        @step
        def right(self):
            if current.retry_count == 0:
                raise ValueError("the first attempt")
            self.turns = 0
            self.next(self.loop)

        @step
        def loop(self):
            self.turns += 1
            self.go = "again" if self.turns < 2 else "done"
            self.next({"again": self.loop, "done": self.after}, condition="go")

        @catch(var="caught")
        @step
        def after(self):
            if self.turns:
                raise KeyError("nothing")
            self.next(self.join)

        @step
        def join(self, inputs):
            self.seen, self.turns, self.text = inputs.outer_join.seen, inputs.after.turns, self.word
            self.caught = type(inputs.after.caught).__name__
            self.next(self.crowd)

        @step
        def crowd(self):
            self.next(self.gang, num_parallel=2)

        @retry(times=1, minutes_between_retries=0)
        @parallel
        @step
        def gang(self):
            if current.retry_count == 0:
                raise ValueError("the first attempt of the gang")
            self.node = current.parallel.node_index
            self.next(self.gang_join)

        @step
        def gang_join(self, inputs):
            self.merge_artifacts(inputs, include=["seen", "turns", "text"])
            self.nodes = [one.node for one in inputs]
            self.next(self.end)

        @step
        def end(self):
            print("the end")

    if __name__ == "__main__":
        RichFlow()
"""


FAILING = """
    from flowkit import FlowSpec, exit_hook, step

    def told(run):
        print("hook", run.pathspec, run.successful)

    @exit_hook(on_error=[told])
    class FailingFlow(FlowSpec):
        @step
        def start(self):
            self.kept = 1
            self.next(self.broken)

        @step
        def broken(self):
            raise ValueError("for good")
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        FailingFlow()
"""

LOOK = """
    import json, sys
    from flowkit import Run, namespace

    namespace(None)
    run = Run(sys.argv[1])
    skip = {"caught", "ds_root"}
    found = {}
    for step in run:
        for task in step:
            for artifact in task:
                if artifact.id not in skip:
                    found[f"{step.id}/{task.id}/{artifact.id}"] = repr(artifact.data)
    print(json.dumps({"artifacts": found, "status": run.status, "deployment": run.deployment,
                      "trigger": [[e.name, e.id, e.type] for e in run.trigger.events] if run.trigger else None}))
"""


def look(cloud: Any, run: str, **options: Any) -> dict[str, Any]:
    """Return what a run left, as the client tells."""
    cloud.write("look.py", LOOK)
    found: dict[str, Any] = json.loads(cloud.run(run, flow="look.py", check=0, **options).stdout)
    return found


def locally(cloud: Any, *parameters: object) -> dict[str, str]:
    """Run the flow here, and return its artifacts."""
    here = {"FLOWKIT_DATASTORE": str(cloud.path / "here")}
    done = cloud.run("run", *parameters, env=here, check=0, timeout=120)
    name = next(line for line in done.output.splitlines() if "Flow/1" in line).split("/")[0].split()[-1]
    return look(cloud, f"{name}/1", env=here)["artifacts"]


def told(machines: Any, run: str) -> str:
    return story(machines, execution_of(machines, run)["executionArn"])


def logs_of(machines: Any, name: str) -> str:
    """Return what the jobs of a name wrote to CloudWatch."""
    client = machines.client("logs")
    try:
        events = [
            event["message"]
            for job in machines.jobs()
            if job.job_name == name
            for event in client.get_log_events(logGroupName="/aws/batch/job", logStreamName=job.log_stream_name)[
                "events"
            ]
        ]
    finally:
        client.close()
    return "\n".join(events)


def test_a_flow_is_deployed_runs_and_is_removed(machines, cloud) -> None:
    cloud.write("flow.py", SMALL)
    run, state = run_through_step_functions(machines, cloud, parameters={"alpha": 5, "word": "hello"})
    assert state == "succeeded", told(machines, run)
    found = look(cloud, run)
    assert found["artifacts"]["each/0/value"] == "10"
    assert found["artifacts"]["end/0/text"] == "'hello [10]'"
    assert (found["status"], found["deployment"]) == ("succeeded", "step-functions/SmallFlow")
    assert f"hook {run} True" in logs_of(machines, "fk-SmallFlow-end-of-run")

    scheduler, client = machines.client("scheduler"), machines.client("stepfunctions")
    try:
        schedule = scheduler.get_schedule(Name="SmallFlow")
        assert schedule["ScheduleExpression"] == "cron(30 6 ? * MON-FRI *)"
        assert schedule["ScheduleExpressionTimezone"] == "Europe/Oslo"
        assert schedule["Target"]["RoleArn"] == ROLE
        assert schedule["Target"]["Arn"].endswith(":stateMachine:SmallFlow")
        listed = cloud.run("step-functions", "list-runs", check=0).output
        assert run.partition("/")[2] in listed
        assert "succeeded" in listed
        cloud.run("step-functions", "delete", check=0)
        assert scheduler.list_schedules()["Schedules"] == []
        assert client.list_state_machines()["stateMachines"] == []
    finally:
        scheduler.close()
        client.close()
    assert machines.backend._job_definitions == {} or all(
        definition.status == "INACTIVE" for definition in machines.backend._job_definitions.values()
    )


@pytest.mark.deploying
def test_the_whole_language(machines, cloud) -> None:
    cloud.write("flow.py", RICH)
    run, state = run_through_step_functions(machines, cloud, parameters={"alpha": 5, "word": "hello"})
    assert state == "succeeded", told(machines, run)
    found = look(cloud, run)
    assert found["artifacts"] == locally(cloud, "--alpha", 5, "--word", "hello")
    assert found["status"] == "succeeded"


@pytest.mark.deploying
def test_every_map_distributed_within_a_time(machines, cloud) -> None:
    cloud.write("flow.py", SMALL)
    options = ("--use-distributed-map", "--workflow-timeout", 36000, "--max-workers", 2)
    run, state = run_through_step_functions(machines, cloud, "flow.py", *options)
    assert state == "succeeded", told(machines, run)
    assert "MapRunSucceeded" in told(machines, run)
    assert look(cloud, run)["artifacts"] == locally(cloud)
    cloud.run("step-functions", "delete", check=0)


@pytest.mark.deploying
def test_a_run_that_fails(machines, cloud) -> None:
    cloud.write("flow.py", FAILING)
    run, state = run_through_step_functions(machines, cloud)
    assert state == "failed"
    found = look(cloud, run)
    assert found["status"] == "failed"
    assert found["artifacts"]["start/0/kept"] == "1"
    assert f"hook {run} False" in logs_of(machines, "fk-FailingFlow-end-of-run")
    shown = cloud.run("status", run.partition("/")[2]).output
    assert "for good" in shown
    status = cloud.run("step-functions", "status", run.partition("/")[2]).output
    assert "failed" in status
    assert "fk-FailingFlow-broken" in status


@pytest.mark.deploying
def test_a_run_that_takes_too_long(machines, cloud) -> None:
    machines.hold = True
    try:
        cloud.write("flow.py", FAILING)
        cloud.run("step-functions", "create", "--workflow-timeout", 60, check=0)
        run = trigger(cloud)
        deadline = time.monotonic() + 60
        while not any(job.job_name == "fk-FailingFlow-end-of-run" for job in machines.jobs()[-1:]):
            assert time.monotonic() < deadline, told(machines, run)
            time.sleep(0.05)
        for job in machines.jobs()[-2:-1]:  # what Step Functions itself would have ended
            machines._cancel(job.job_id, "the execution goes on without it")
    finally:
        machines.hold = False
    assert wait_for(machines, run) == "failed"
    found = look(cloud, run)
    assert found["status"] == "failed"
    assert "longer than 60 s" in cloud.run("step-functions", "status", run.partition("/")[2]).output
    assert "longer than 60 s" in cloud.run("status", run.partition("/")[2]).output


@pytest.mark.deploying
def test_a_run_is_terminated(machines, cloud) -> None:
    cloud.write("flow.py", FAILING)
    cloud.run("step-functions", "create", check=0)
    machines.hold = True
    try:
        run = trigger(cloud)
        deadline = time.monotonic() + 60
        while not any(job.sent["tags"]["flowkit.run"] == run.partition("/")[2] for job in machines.jobs()):
            assert time.monotonic() < deadline, told(machines, run)
            time.sleep(0.05)
        refused = cloud.run("step-functions", "delete")
        assert refused.returncode != 0
        assert run.partition("/")[2] in refused.output
        cloud.run("step-functions", "terminate", run.partition("/")[2], check=0)
    finally:
        machines.hold = False
    assert wait_for(machines, run) == "cancelled"
    ours = [job for job in machines.jobs() if job.sent["tags"]["flowkit.run"] == run.partition("/")[2]]
    assert [(job.job_name, job.job_queue.name) for job in ours] == [
        ("fk-FailingFlow-start", QUEUE),
        ("fk-FailingFlow-end-of-run", QUEUE),
    ]
    deadline = time.monotonic() + 60
    while ours[1].status not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [str(job.status).rpartition(".")[2] for job in ours] == ["FAILED", "SUCCEEDED"]
    assert look(cloud, run)["status"] == "cancelled"
    cloud.run("step-functions", "delete", check=0)


LISTENING = """
    from flowkit import FlowSpec, Parameter, current, step, trigger, trigger_on_finish

    @trigger(event={"name": "data.arrived", "parameters": {"alpha": "size", "word": "table"}})
    @trigger_on_finish(flow="Before")
    class ListeningFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)
        word = Parameter("word", default="nothing")

        @step
        def start(self):
            self.seen = (self.alpha, self.word, current.trigger.event.name if current.trigger else None)
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        ListeningFlow()
"""


@pytest.mark.deploying
def test_events_start_a_flow(machines, cloud) -> None:
    """A rule hands a machine the event as it is; nothing here stands for EventBridge, which delivers it."""
    cloud.write("flow.py", LISTENING)
    cloud.run("step-functions", "create", check=0)
    events, client = machines.client("events"), machines.client("stepfunctions")
    try:
        rules = {rule["Name"]: json.loads(rule["EventPattern"]) for rule in events.list_rules()["Rules"]}
        assert rules["ListeningFlow.data.arrived"] == {"source": ["flowkit"], "detail-type": ["data.arrived"]}
        finish = rules["ListeningFlow.flowkit.Before.end"]
        (machine,) = client.list_state_machines()["stateMachines"]
        arn = machine["stateMachineArn"]
        (target,) = events.list_targets_by_rule(Rule="ListeningFlow.data.arrived")["Targets"]
        assert (target["Arn"], target["RoleArn"]) == (arn, ROLE)
        event = {
            "id": "e-1",
            "source": "flowkit",
            "detail-type": "data.arrived",
            "time": "2026-01-01T00:00:00Z",
            "detail": {"size": 7, "timestamp": 1767225600.5, "more": {"a": [1]}},
        }
        ended = {
            "id": "e-2",
            "source": "aws.states",
            "detail-type": finish["detail-type"][0],
            "detail": {
                "status": "SUCCEEDED",
                "name": "one",
                "stateMachineArn": arn.replace("ListeningFlow", "Before"),
                "stopDate": 1767225600123,
            },
        }
        for name, given in (("by-event", event), ("by-run", ended)):
            client.start_execution(stateMachineArn=arn, name=name, input=json.dumps(given))
        assert wait_for(machines, "ListeningFlow/sfn-by-event") == "succeeded"
        assert wait_for(machines, "ListeningFlow/sfn-by-run") == "succeeded"
    finally:
        events.close()
        client.close()
    found = look(cloud, "ListeningFlow/sfn-by-event")
    assert found["artifacts"]["start/0/seen"] == "(7, 'nothing', 'data.arrived')"
    assert found["trigger"] == [["data.arrived", "e-1", "event"]]
    found = look(cloud, "ListeningFlow/sfn-by-run")
    assert found["artifacts"]["start/0/seen"] == "(3, 'nothing', 'flowkit.Before.end')"
    assert found["trigger"] == [["flowkit.Before.end", "Before/sfn-one", "run"]]

    # Deployed again without one of the two, its rule is gone.
    cloud.write("flow.py", LISTENING.replace('@trigger_on_finish(flow="Before")', ""))
    cloud.run("step-functions", "create", check=0)
    events = machines.client("events")
    try:
        assert [rule["Name"] for rule in events.list_rules()["Rules"]] == ["ListeningFlow.data.arrived"]
        cloud.run("step-functions", "delete", check=0)
        assert events.list_rules()["Rules"] == []
    finally:
        events.close()


@pytest.mark.deploying
@pytest.mark.parametrize("rule", ["forbid", "replace"])
def test_one_run_at_a_time(machines, cloud, rule) -> None:
    cloud.write("flow.py", FAILING.replace('raise ValueError("for good")', "pass"))
    cloud.run("step-functions", "create", "--concurrency", rule, check=0)
    machines.hold = True
    try:
        first = trigger(cloud)
        job_of(machines, first)
        second = trigger(cloud)
        given_up = first if rule == "replace" else second
        assert wait_for(machines, given_up) == "cancelled"
        if rule == "replace":
            job_of(machines, second)
    finally:
        machines.hold = False
    assert wait_for(machines, second if rule == "replace" else first) == "succeeded"
    status = cloud.run("step-functions", "status", given_up.partition("/")[2], check=0).output
    assert "cancelled" in status
    # Why, moto does not keep of an execution that was stopped.
    if rule == "forbid":
        assert cloud.run("status", second.partition("/")[2]).returncode != 0, "it has never begun"
        return
    ended = job_of(machines, first, "fk-FailingFlow-end-of-run")
    deadline = time.monotonic() + 60
    while ended.status not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert look(cloud, first)["status"] == "cancelled"


def job_of(machines: Any, run: str, name: str = "") -> Any:
    """Wait for a job of a run, and return it."""
    deadline = time.monotonic() + 60
    while True:
        for job in machines.jobs():
            if job.sent["tags"]["flowkit.run"] == run.partition("/")[2] and name in job.job_name:
                return job
        assert time.monotonic() < deadline, told(machines, run)
        time.sleep(0.05)
