"""The target and its cluster: making, replacing, finding, starting, stopping, removing; what a cluster refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from argo_sensors import Sensors
from deployments import deployment_of

from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import Conflict, FlowkitError, NotFound
from flowkit.plugins.argo.target import ArgoWorkflows

PLAIN = """
    class Plain(FlowSpec):
        alpha = Parameter("alpha", default=2)

        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
"""
SCHEDULED = PLAIN.replace("    class", '    @schedule(daily=True)\n    @trigger(event="data")\n    class', 1)


@pytest.fixture
def target(kubernetes_api: Any, kubeconfig: Any) -> Iterator[ArgoWorkflows]:
    """The target, in a cluster that has Argo."""
    kubernetes_api.set(unknown=set())
    made = ArgoWorkflows({})
    yield made
    made.close()


def made(target: ArgoWorkflows, source: str = PLAIN, **options: Any) -> DeploymentRecord:
    """Deploy a flow and return its record."""
    deployment = deployment_of(source, "argo-workflows", **options)
    assert target.preflight(deployment) == []
    target.apply(deployment, target.compile(deployment))
    found = target.find(deployment.name)
    assert found is not None
    return found


def objects(api: Any) -> dict[str, list[str]]:
    """What is there, by kind."""
    return {
        kind: [item["metadata"]["name"] for item in api.store.items(kind)]
        for kind in ("workflowtemplates", "cronworkflows", "sensors")
    }


def test_what_an_earlier_version_had_is_removed(target, kubernetes_api) -> None:
    record = made(target, SCHEDULED)
    assert objects(kubernetes_api) == {key: ["plain"] for key in ("workflowtemplates", "cronworkflows", "sensors")}
    assert record.schedule == "0 0 * * ? *"
    assert [event.name for event in record.events] == ["data"]
    again = deployment_of(PLAIN, "argo-workflows")
    lines = target.apply(again, target.compile(again))
    assert objects(kubernetes_api) == {"workflowtemplates": ["plain"], "cronworkflows": [], "sensors": []}
    assert lines[:3] == [
        "WorkflowTemplate plain replaced",
        "CronWorkflow plain removed: this version of the flow has none",
        "Sensor plain removed: this version of the flow has none",
    ]
    target.delete(record)
    assert not any(objects(kubernetes_api).values())
    target.delete(record)
    assert target.find("plain") is None


def test_names_with_dots_and_what_is_listed(target, kubernetes_api) -> None:
    source = SCHEDULED.replace("    @schedule", '    @project(name="digits")\n    @schedule', 1)
    record = made(target, source)
    assert record.name == "digits.user.ann.plain" or record.name.startswith("digits.user.")
    (sensor,) = objects(kubernetes_api)["sensors"]
    assert "." not in sensor
    made(target, PLAIN)
    made(target, PLAIN.replace("Plain", "Other"))
    assert [each.name for each in target.deployed("Plain")] == [record.name, "plain"]
    assert len(target.deployed()) == 3
    target.delete(record)
    assert objects(kubernetes_api)["sensors"] == []


def test_what_flowkit_has_not_made_is_left_alone(target, kubernetes_api) -> None:
    record = made(target)
    kubernetes_api.store.update(
        "workflowtemplates", "default", "plain", lambda item: item["metadata"].update(annotations={})
    )
    with pytest.raises(Conflict, match="was not made by flowkit"):
        target.find("plain")
    deployment = deployment_of(PLAIN, "argo-workflows")
    with pytest.raises(Conflict, match="was not made by flowkit"):
        target.apply(deployment, target.compile(deployment))
    assert target.deployed() == []
    assert record.name == "plain"


def test_somebody_else_changes_it_meanwhile(target, kubernetes_api) -> None:
    made(target)
    kubernetes_api.fault("PUT workflowtemplates", status=409)
    made(target)
    assert kubernetes_api.requests["PUT workflowtemplates"] == 2


def test_a_run_is_started_told_suspended_and_stopped(target, kubernetes_api) -> None:
    record = made(target)
    run = target.trigger(record, {"alpha": "7"})
    name = run.removeprefix("argo-")
    workflow = kubernetes_api.store.get("workflows", "default", name)
    assert workflow["spec"]["arguments"]["parameters"] == [{"name": "alpha", "value": "7"}]
    assert target.execution(record, run).state == "pending"
    later = target.trigger(record, {"alpha": json.dumps("{{{{workflow.name}}}} {{=1+1}} \\{{")})
    (given,) = kubernetes_api.store.get("workflows", "default", later.removeprefix("argo-"))["spec"]["arguments"][
        "parameters"
    ]
    assert "{{" not in given["value"]
    assert json.loads(given["value"]) == "{{{{workflow.name}}}} {{=1+1}} \\{{"
    assert {each.run for each in target.executions(record)} == {run, later}
    assert len(target.executions(record, limit=1)) == 1

    def now(**status: Any) -> None:
        kubernetes_api.store.update("workflows", "default", name, lambda item: item.update(status=status))

    now(phase="Running", startedAt="2026-01-02T03:04:05Z")
    target.suspend(record, run)
    found = target.execution(record, run)
    assert (found.state, found.reason, found.started) == ("running", "suspended", 1767323045.0)
    target.unsuspend(record, run)
    assert target.execution(record, run).reason is None
    target.terminate(record, run)
    workflow = kubernetes_api.store.get("workflows", "default", name)
    assert workflow["spec"]["shutdown"] == "Stop"
    assert workflow["metadata"]["annotations"]["flowkit/cancelled"] == "yes"
    now(phase="Failed", message="Stopped with strategy 'Stop'", finishedAt="2026-01-02T03:04:06Z")
    assert target.execution(record, run).state == "cancelled"
    for phase, state in (("Error", "cancelled"), ("Succeeded", "succeeded")):
        now(phase=phase)
        assert target.execution(record, run).state == state
    assert target.execution(record, "argo-nothing") is None
    assert target.execution(record, "other") is None
    other = made(target, PLAIN.replace("Plain", "Other"))
    assert target.execution(other, run) is None, "of another deployment"
    with pytest.raises(NotFound, match="has no run"):
        target.terminate(other, run)


def test_events_start_runs_when_all_have_come(target, kubernetes_api) -> None:
    source = PLAIN.replace(
        "    class",
        '    @trigger(events=["first", {"name": "data.ready", "parameters": {"alpha": "rows.count"}}])\n'
        '    @trigger_on_finish(flow="Up")\n    class',
        1,
    )
    made(target, source)
    sensors = Sensors(kubernetes_api)
    assert sensors.emit("first", {"id": "a", "timestamp": 5}) == []
    assert sensors.emit("the first", {}) == [], "another event"
    assert sensors.emit("dataXready", {}) == []
    assert sensors.emit("data.ready", {"rows.count": 12}) == []
    finished = {"id": "b", "timestamp": 7, "pathspec": "Up/argo-up-x"}
    (name,) = sensors.emit("flowkit.Up.end", finished)
    given = kubernetes_api.store.get("workflows", "default", name)["spec"]["arguments"]["parameters"]
    assert [each["name"] for each in given] == ["alpha", "flowkit-trigger"]
    assert given[0]["value"] == "12"
    assert json.loads(given[1]["value"]) == [
        ["first", "a", 5, "event"],
        ["data.ready", "", 0, "event"],
        ["flowkit.Up.end", "Up/argo-up-x", 7, "run"],
    ]
    assert sensors.emit("flowkit.Up.end", finished) == []
    sensors.emit("first", {})
    (name,) = sensors.emit("data.ready", {})
    given = kubernetes_api.store.get("workflows", "default", name)["spec"]["arguments"]["parameters"]
    assert given[0]["value"] == "2", "the parameter's default"


def test_a_schedule_does_as_its_policy_says(target, kubernetes_api) -> None:
    made(target, SCHEDULED, concurrency="forbid")
    sensors = Sensors(kubernetes_api)
    assert sensors.fire("plain") is not None
    assert sensors.fire("plain") is None
    spec = kubernetes_api.store.get("cronworkflows", "default", "plain")["spec"]
    assert (spec["schedules"], spec["timezone"]) == (["0 0 * * *"], "UTC")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ({"unknown": {"workflowtemplates", "cronworkflows", "sensors"}}, "the cluster has no Argo Workflows"),
        ({"unknown": {"sensors"}}, "the cluster has no Argo Events"),
        ({"denied": {"create workflowtemplates", "update sensors"}}, "create workflowtemplates, update sensors"),
        ({"denied": {"list workflowtemplates"}}, "not allowed in the Kubernetes cluster"),
        ({"token": "renewed"}, "does not accept the credentials"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_told(target, kubernetes_api, trouble, words) -> None:
    deployment = deployment_of(SCHEDULED, "argo-workflows")
    kubernetes_api.set(**trouble)
    problems = target.preflight(deployment)
    assert [problem for problem in problems if words in problem.headline], problems
    kubernetes_api.set(token=None)


def test_a_template_that_argo_would_refuse_is_refused(target, kubernetes_api) -> None:
    deployment = deployment_of(PLAIN, "argo-workflows")
    document = target.compile(deployment)
    document["items"][0]["spec"]["templates"][0]["dag"]["tasks"][0]["template"] = "nothing"
    with pytest.raises(FlowkitError, match="there is no template nothing"):
        target.apply(deployment, document)
