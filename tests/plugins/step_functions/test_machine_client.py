"""The client of AWS Step Functions: what it asks before, what it makes, finds and removes. Nothing is executed here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from batch_account import BUCKET, FARGATE_QUEUE
from deployments import deployment_of, target_of
from machine_service import user_environment

from flowkit.exceptions import Conflict, FlowkitError, NotFound, UsageError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.step_functions import StepFunctions
from flowkit.settings import settings

PLAIN = """
    @schedule(cron="0 6 * * MON-FRI", timezone="Europe/Oslo")
    @trigger(event="data")
    class PlainFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)

        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
"""
QUIET = PLAIN.replace('@schedule(cron="0 6 * * MON-FRI", timezone="Europe/Oslo")', "").replace(
    '@trigger(event="data")', ""
)
GANG = """
    class GangFlow(FlowSpec):
        @step
        def start(self):
            self.next(self.gang, num_parallel=2)

        @parallel
        @step
        def gang(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.fixture
def aws(machines, monkeypatch, tmp_path) -> Iterator[Any]:
    """This process as a client of the service."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FLOWKIT_")):
            monkeypatch.delenv(name)
    for name, value in {**user_environment(machines), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    settings(reload=True)
    session.forget()
    yield monkeypatch
    session.forget()
    monkeypatch.undo()
    settings(reload=True)
    for job in machines.jobs():
        machines._cancel(job.job_id, "the test is over")
    machines.hold = False


@pytest.fixture
def client(machines) -> Iterator[Callable[[str], Any]]:
    """Returns boto3's own clients, which are closed in the end."""
    clients: dict[str, Any] = {}

    def client_of(name: str) -> Any:
        if name not in clients:
            clients[name] = machines.client(name)
        return clients[name]

    yield client_of
    for each in clients.values():
        each.close()


def made(source: str, options: dict[str, Any] | None = None, **more: Any) -> tuple[StepFunctions, Any]:
    target = target_of(StepFunctions, options or {})
    assert isinstance(target, StepFunctions)
    return target, deployment_of(source, target, root=f"s3://{BUCKET}/here", **more)


def told(target: StepFunctions, deployment: Any) -> str:
    return "\n".join(str(problem) for problem in target.preflight(deployment))


def test_what_is_asked_before(aws) -> None:
    target, deployment = made(PLAIN)
    assert told(target, deployment) == ""
    aws.delenv("FLOWKIT_STEP_FUNCTIONS_ROLE")
    aws.setenv("FLOWKIT_EVENTBRIDGE_ROLE", "mine")
    aws.setenv("FLOWKIT_BATCH_QUEUE", "nowhere")
    settings(reload=True)
    problems = told(target, made(PLAIN)[1])
    assert "FLOWKIT_STEP_FUNCTIONS_ROLE" in problems
    assert "'mine' is not the ARN of a role" in problems
    assert "there is no queue 'nowhere'" in problems
    aws.delenv("FLOWKIT_EVENTBRIDGE_ROLE")
    aws.setenv("FLOWKIT_BATCH_QUEUE", FARGATE_QUEUE)
    settings(reload=True)
    problems = told(*made(GANG))
    assert "gangs need EC2 instances" in problems
    assert "execution_role" in problems
    assert "FLOWKIT_EVENTBRIDGE_ROLE" not in problems, "nothing starts it"
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    session.forget()
    assert "cannot be reached" in told(target, deployment)


def test_what_is_made_found_and_removed(aws, machines, client) -> None:
    target, deployment = made(PLAIN, name="plain")
    lines = target.apply(deployment, target.compile(deployment))
    assert any("stateMachine:plain" in line for line in lines)
    assert any("Europe/Oslo" in line for line in lines)
    record = target.find("plain")
    assert record is not None
    assert (record.flow, record.token, record.schedule) == ("PlainFlow", "flow-0-abcdefgh", "0 6 * * MON-FRI")
    assert [one.name for one in target.deployed()] == ["plain"]
    assert target.deployed("OtherFlow") == []
    definitions = client("batch").describe_job_definitions(status="ACTIVE")["jobDefinitions"]
    mine = [one for one in definitions if "--datastore-root" in json.dumps(one)]
    assert {one["containerProperties"]["resourceRequirements"][0]["type"] for one in mine} == {"VCPU"}

    # Deployed again as it is, nothing is registered twice; without a schedule and an event, these are gone.
    before = len(definitions)
    target.apply(deployment, target.compile(deployment))
    batch, scheduler, events = (client(name) for name in ("batch", "scheduler", "events"))
    assert len(batch.describe_job_definitions(status="ACTIVE")["jobDefinitions"]) == before
    assert len(scheduler.list_schedules()["Schedules"]) == len(events.list_rules()["Rules"]) == 1
    _, quiet = made(QUIET, name="plain")
    target.apply(quiet, target.compile(quiet))
    assert scheduler.list_schedules()["Schedules"] == events.list_rules()["Rules"] == []

    machines.hold = True
    run = target.trigger(record, {"alpha": "5"})
    assert run.startswith("sfn-")
    found = target.execution(record, run)
    assert found is not None
    assert (found.run, found.state, found.finished) == (run, "running", None)
    assert [one.run for one in target.executions(record)] == [run]
    with pytest.raises(FlowkitError, match="runs go on"):
        target.delete(record)
    target.terminate(record, run)
    target.terminate(record, run)
    assert target.execution(record, run)[1] == "cancelled"
    target.delete(record)
    assert target.find("plain") is None
    assert target.deployed() == []
    target.delete(record)
    assert target.executions(record) == []
    assert target.execution(record, "sfn-none") is None
    assert target.execution(record, "argo-none") is None
    with pytest.raises(NotFound):
        target.trigger(record, {})
    with pytest.raises(NotFound):
        target.terminate(record, run)
    with pytest.raises(UsageError, match="8,192"):
        target.trigger(record, {"alpha": "x" * 9000})


def test_what_others_have_made_is_left_alone(aws, client) -> None:
    target, deployment = made(PLAIN, name="plain")
    states, scheduler = client("stepfunctions"), client("scheduler")
    plain = json.dumps({"Comment": "mine", "StartAt": "a", "States": {"a": {"Type": "Succeed"}}})
    role = "arn:aws:iam::123456789012:role/mine"
    states.create_state_machine(name="other", definition=plain, roleArn=role)
    assert target.deployed() == []
    with pytest.raises(UsageError, match="not made by flowkit"):
        target.find("other")
    assert target.find("no such name") is None
    theirs = {"Arn": "arn:aws:sqs:us-east-1:123456789012:queue", "RoleArn": role, "Input": "{}"}
    scheduler.create_schedule(
        Name="plain", ScheduleExpression="rate(1 day)", FlexibleTimeWindow={"Mode": "OFF"}, Target=theirs
    )
    with pytest.raises(Conflict, match="has not made"):
        target.apply(deployment, target.compile(deployment))
    record = target.find("plain")
    assert record is not None
    target.delete(record)
    assert [one["Name"] for one in scheduler.list_schedules()["Schedules"]] == ["plain"]
