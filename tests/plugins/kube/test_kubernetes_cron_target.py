"""The target `kubernetes` itself: its document, and what it asks of a cluster, without a process in any pod."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "deploying"))

from deployments import deployment_of

from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import Conflict, NotFound, UsageError
from flowkit.plugins.kubernetes.cron_documents import cron_name, execution_of
from flowkit.plugins.kubernetes.cron_target import KubernetesCron

FLOW = """
@schedule(cron="{cron}", timezone="Europe/Oslo")
class NightlyFlow(FlowSpec):
    size = Parameter("size", default=3)

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
CLIENT = {"top": ["--production"], "run": ["--tag", "$(HOME)"]}


def deployed(cron: str = "0 6 ? * MON-FRI *", source: str = FLOW, **options: Any) -> Any:
    """Return a deployment of the flow."""
    return deployment_of(source.format(cron=cron), "kubernetes", client=CLIENT, **options)


@pytest.fixture
def target(kubernetes_api: Any, kubeconfig: Any) -> KubernetesCron:
    """The target, with a cluster whose pods only seem to run."""
    kubernetes_api.set(execute=False, simulated=3600.0)
    return KubernetesCron({})


def test_the_document_says_all_that_was_asked_for() -> None:
    made = deployed(concurrency="replace", workflow_timeout=90.5, image="a/b:1", secrets=("bucket",), starts=3)
    document = KubernetesCron({}).compile(made)
    assert document == KubernetesCron({}).compile(deployed(
        concurrency="replace", workflow_timeout=90.5, image="a/b:1", secrets=("bucket",), starts=3
    )) | {"metadata": document["metadata"]}  # fmt: skip
    spec = document["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["suspend"]) == ("0 6 * * 1-5", "Europe/Oslo", False)
    assert spec["concurrencyPolicy"] == "Replace"
    job = spec["jobTemplate"]["spec"]
    assert (job["activeDeadlineSeconds"], job["backoffLimit"]) == (91, 2)
    container = job["template"]["spec"]["containers"][0]
    assert container["image"] == "a/b:1"
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    # Kubernetes replaces $(HOME): what people write is to stay as it is.
    assert json.loads(container["command"][-1]) == ["--tag", "$$(HOME)", "--with", "kubernetes"]
    assert container["env"][-1] == {"name": "FLOWKIT_DEPLOYED_RUN", "value": "kubernetes-$(KUBERNETES_JOB_NAME)"}
    assert DeploymentRecord.from_json(json.loads(document["metadata"]["annotations"]["flowkit/record"])) is not None


def test_names_are_valid_and_differ_where_flows_do() -> None:
    names = {
        cron_name("NightlyFlow", None, None): "nightlyflow",
        cron_name("Nightly_Flow", None, None): "nightly-flow-",
        cron_name("F", "fraud", "user.ann"): "fraud-user-ann-f-",
        cron_name("F", "fraud-user", "ann"): "fraud-user-ann-f-",
        cron_name("F" * 80, None, None): "f" * 43 + "-",
        cron_name("_1", None, None): "f-1-",
    }
    assert len(names) == 6
    assert all(name.startswith(head) and len(name) <= 52 for name, head in names.items())


def test_what_a_cronjob_cannot_be_is_told_at_once() -> None:
    made = deployed(
        "0 0 L * ? 2030", name="Not A Name", image="no image", starts=0, memory=0, kubernetes_namespace="UP"
    )
    told = [str(problem) for problem in KubernetesCron({}).problems(made)]
    for words in ("'Not A Name'", "'L' as a day of month", "2030", "no image", "--starts 0", "--memory 0", "'UP'"):
        assert sum(words in line for line in told) >= 1, (words, told)
    assert len(told) == 7


def test_a_deployment_is_made_found_replaced_and_deleted(target: KubernetesCron, kubernetes_api: Any) -> None:
    assert target.find("nightlyflow") is None
    first = deployed()
    assert target.preflight(first) == []
    lines = target.apply(first, target.compile(first))
    assert "0 6 * * 1-5 (Europe/Oslo)" in lines[1]
    unscheduled = deployed(source=FLOW.partition("\n")[2].partition("\n")[2], cron="")
    assert "trigger" in target.apply(unscheduled, target.compile(unscheduled))[1]
    assert kubernetes_api.store.get("cronjobs", "default", "nightlyflow")["spec"]["suspend"] is True
    record = target.find("nightlyflow")
    assert record is not None
    assert (record.flow, record.schedule) == ("NightlyFlow", None)
    assert target.deployed() == target.deployed("NightlyFlow") == [record]
    assert target.deployed("Other") == []
    target.delete(record)
    target.delete(record)
    assert target.find("nightlyflow") is None
    with pytest.raises(NotFound):
        target.trigger(record, {})
    kubernetes_api.put("cronjobs", {"metadata": {"name": "nightlyflow", "namespace": "default"}, "spec": {}})
    with pytest.raises(Conflict, match="that flowkit has not made"):
        target.find("nightlyflow")


def test_runs_are_started_looked_at_and_ended(target: KubernetesCron, kubernetes_api: Any) -> None:
    made = deployed()
    target.apply(made, target.compile(made))
    record = target.find("nightlyflow")
    assert record is not None
    kubernetes_api.fault("POST jobs", after=True)  # the answer is lost: there is one Job all the same
    run = target.trigger(record, {"size": '"$(HOME)"'})
    [job] = kubernetes_api.store.items("jobs")
    assert run == f"kubernetes-{job['metadata']['name']}"
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert env[-1] == {"name": "FLOWKIT_PARAMETER_size", "value": '"$$(HOME)"'}
    fired = f"kubernetes-{kubernetes_api.fire('default', 'nightlyflow', at=1_800_000_000)}"
    assert {item.run for item in target.executions(record)} == {run, fired}
    assert len(target.executions(record, 1)) == 1
    target.terminate(record, run)
    state = target.execution(record, run)
    assert state is not None
    assert state.state == "cancelled"
    assert "terminated by" in str(state.reason)
    target.terminate(record, run)  # once more is nothing
    with pytest.raises(NotFound):
        target.terminate(record, "kubernetes-other-1")
    with pytest.raises(UsageError, match="kubernetes-"):
        target.execution(record, "argo-x")
    assert target.execution(record, "kubernetes-other-1") is None


def test_what_stands_in_the_way_is_told_before_anything_is_made(target: KubernetesCron, kubernetes_api: Any) -> None:
    made = deployed(service_account="nightly", kubernetes_namespace="default")
    assert any("service account 'nightly'" in str(problem) for problem in target.preflight(made))
    kubernetes_api.denied = {"create cronjobs", "update cronjobs"}
    [problem] = target.preflight(deployed())
    assert "create cronjobs, update cronjobs" in problem.headline
    kubernetes_api.denied = set()
    kubernetes_api.denied_to = {"system:serviceaccount:default:default": {"create jobs"}}
    [problem] = target.preflight(deployed())
    assert "'default' of the client's pod may not create jobs" in problem.headline


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, ("pending", None)),
        ({"active": 1, "ready": 1}, ("running", None)),
        ({"failed": 2}, ("running", "its client was started again (2 times)")),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, ("succeeded", None)),
        ({"conditions": [{"type": "Suspended", "status": "False"}]}, ("pending", None)),
        (
            {"conditions": [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]},
            ("failed", "it took longer than --workflow-timeout"),
        ),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]},
            ("failed", "the run failed (its log and its tasks tell why)"),
        ),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "Odd", "message": "a\nb"}]},
            ("failed", "Odd: a b"),
        ),
    ],
)
def test_what_a_job_says_about_its_run(status: dict[str, Any], said: tuple[str, str | None]) -> None:
    found = execution_of({"metadata": {"name": "x-1", "creationTimestamp": "2026-11-21T10:00:00Z"}, "status": status})
    assert (found.run, found.state, found.reason) == ("kubernetes-x-1", *said)
