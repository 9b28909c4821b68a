"""From a deployment to the objects of Argo Workflows, as plain dicts: pure, so that each can be looked at.

A `List` of a WorkflowTemplate and, where the flow has a schedule or waits for events, a CronWorkflow and a Sensor.
Each carries the deployment's record, by which it is found again.
"""

from __future__ import annotations

import json
from typing import Any

from flowkit.deployer.target import Deployment
from flowkit.model.cron import to_five_fields
from flowkit.plugins.argo.dags import TRIGGER_ARGUMENT, dag_templates
from flowkit.plugins.argo.events import Hearing, finish_template, sensor_document
from flowkit.plugins.argo.names import Names
from flowkit.plugins.argo.pods import PROGRAM, Pods, untemplated
from flowkit.plugins.kubernetes.manifests import Defaults, literal
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, label_value

API = "argoproj.io/v1alpha1"
DEPLOYMENT = f"{OWN_PREFIX}deployment"
"""The label of what belongs to a deployment: its name."""
FLOW = f"{OWN_PREFIX}flow"
RECORD = f"{OWN_PREFIX}record"
"""The annotation with the deployment's record, as JSON."""
SIZE_LIMIT = 1024 * 1024
"""Bytes of an object that the API server takes as Argo Workflows is usually set up
(https://argo-workflows.readthedocs.io/en/latest/offloading-large-workflows/)."""
_POLICIES = {"allow": "Allow", "forbid": "Forbid", "replace": "Replace"}
_LATE = 600
"""Seconds after which a firing that the controller has missed is not made up for."""


def documents(deployment: Deployment, defaults: Defaults, hearing: Hearing) -> dict[str, Any]:
    """Return the objects of a deployment, as one `List`."""
    items = [workflow_template(deployment, defaults, hearing)]
    if deployment.schedule is not None:
        items.append(cron_workflow(deployment))
    if deployment.events or deployment.finishes:
        items.append(sensor_document(deployment, _metadata(deployment), run_document(deployment), hearing))
    return {"apiVersion": "v1", "kind": "List", "items": items}


def workflow_template(deployment: Deployment, defaults: Defaults, hearing: Hearing) -> dict[str, Any]:
    """Return the WorkflowTemplate: the flow's templates, its arguments, what holds for a run as a whole."""
    names = Names()
    pods = Pods(deployment, defaults)
    dags = dag_templates(deployment, names, pods)
    ended, templates = _ended(deployment, names, pods, hearing)
    spec: dict[str, Any] = {
        "entrypoint": dags.entry,
        "onExit": ended,
        "arguments": {"parameters": _arguments(deployment, pods)},
        "parallelism": max(1, deployment.max_workers),
        "workflowMetadata": {"labels": run_labels(deployment)},
        "podMetadata": {
            "labels": {"app.kubernetes.io/name": "flowkit", FLOW: label_value(deployment.flow)},
            # Removing a node to save money must not cost the task that runs on it.
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        },
        "templates": [*dags.templates, *templates],
    }
    pulled = [plan.request.resources.get("image_pull_secrets") or () for plan in deployment.steps.values()]
    secrets = dict.fromkeys(name for each in pulled for name in each)
    optional = {
        "serviceAccountName": defaults.service_account,
        "imagePullSecrets": [{"name": name} for name in secrets],
        "priority": deployment.priority,
        "activeDeadlineSeconds": None if deployment.workflow_timeout is None else int(deployment.workflow_timeout),
    }
    spec.update({key: value for key, value in optional.items() if value not in (None, [])})
    metadata = _metadata(deployment)
    metadata["annotations"].update(_texts(deployment))
    return {"apiVersion": API, "kind": "WorkflowTemplate", "metadata": metadata, "spec": spec}


def cron_workflow(deployment: Deployment) -> dict[str, Any]:
    """Return the CronWorkflow of a flow with a schedule."""
    assert deployment.schedule is not None
    spec: dict[str, Any] = {
        "schedules": [to_five_fields(deployment.schedule.cron)],
        "concurrencyPolicy": _POLICIES[deployment.concurrency],
        "startingDeadlineSeconds": _LATE,
        "workflowMetadata": {"labels": run_labels(deployment)},
        "workflowSpec": {"workflowTemplateRef": {"name": deployment.name}},
    }
    # Always told: without one, Argo takes the time zone of its controller.
    spec["timezone"] = deployment.schedule.timezone or "UTC"
    return {"apiVersion": API, "kind": "CronWorkflow", "metadata": _metadata(deployment), "spec": spec}


def run_document(deployment: Deployment) -> dict[str, Any]:
    """Return the Workflow by which a sensor starts a run."""
    return run_of(deployment.name, run_labels(deployment), {})


def run_of(name: str, labels: dict[str, str], arguments: dict[str, str]) -> dict[str, Any]:
    """Return the Workflow of a run of a deployment."""
    spec: dict[str, Any] = {"workflowTemplateRef": {"name": name}}
    if arguments:
        given = [{"name": each, "value": untemplated(value)} for each, value in arguments.items()]
        spec["arguments"] = {"parameters": given}
    metadata = {"generateName": f"{name}-", "labels": labels}
    return {"apiVersion": API, "kind": "Workflow", "metadata": metadata, "spec": spec}


def run_labels(deployment: Deployment) -> dict[str, str]:
    """Return the labels of a deployment's runs."""
    return labels_of(deployment.name, deployment.flow)


def labels_of(name: str, flow: str) -> dict[str, str]:
    """Return the labels of what belongs to a deployment."""
    return {"app.kubernetes.io/name": "flowkit", DEPLOYMENT: label_value(name), FLOW: label_value(flow)}


def _metadata(deployment: Deployment) -> dict[str, Any]:
    record = json.dumps(dict(deployment.record), sort_keys=True, separators=(",", ":"))
    return {"name": deployment.name, "labels": run_labels(deployment), "annotations": {RECORD: record}}


def _texts(deployment: Deployment) -> dict[str, str]:
    """Return what Argo's page shows of a template."""
    given = {"title": deployment.title, "description": deployment.description}
    return {f"workflows.argoproj.io/{key}": text for key, text in given.items() if text}


def _arguments(deployment: Deployment, pods: Pods) -> list[dict[str, Any]]:
    given = []
    for plan in deployment.parameters:
        argument: dict[str, Any] = {"name": plan.attribute}
        if not plan.required or plan.default is not None:
            argument["value"] = "null" if plan.default is None else untemplated(plan.default)
        if plan.help:
            argument["description"] = plan.help
        given.append(argument)
    given.append({"name": TRIGGER_ARGUMENT, "value": "[]", "description": "what started the run: leave it as it is"})
    if pods.program is not None:
        told = "what every container runs first: leave it as it is"
        given.append({"name": PROGRAM, "value": literal(pods.program), "description": told})
    return given


def _ended(deployment: Deployment, names: Names, pods: Pods, hearing: Hearing) -> tuple[str, list[dict[str, Any]]]:
    """Return what runs when a workflow has ended: the run's end where it did not get to its own, and the news of it."""
    name, end = names.give("exit"), names.give("end-of-run")
    task: dict[str, Any] = {"name": end, "template": end}
    if not deployment.on_success:
        task["when"] = "'{{workflow.status}}' != 'Succeeded'"
    tasks, templates = [task], [pods.end(end)]
    if hearing.url is not None:
        tell = names.give("tell-finished")
        tasks.append({"name": tell, "template": tell, "when": "'{{workflow.status}}' == 'Succeeded'"})
        templates.append(finish_template(deployment, pods, tell, hearing.url))
    return name, [{"name": name, "dag": {"tasks": tasks}}, *templates]
