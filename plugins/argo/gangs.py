"""Gangs (``num_parallel``): an Indexed Job whose nodes start together, made by a ``resource`` template.

The nodes find each other by names that a headless service gives: one service for all gangs of a workflow, made first
where the flow has any. Job and service belong to the workflow and go when it goes.
"""

from __future__ import annotations

import json
from typing import Any

from flowkit.deployer.target import ATTEMPT, GANG, PREFIX, RUN, StepPlan
from flowkit.plugins.argo.pods import RUN_ID, SLACK, again
from flowkit.plugins.kubernetes.manifests import Defaults, pod_spec
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, label_value

PLACE, LABEL, NODES = "place", "label", "nodes"
"""Parameters: the coordinates of a foreach's child; the same as a name can hold them; how many nodes a gang has."""
_HOSTS = "h-{{workflow.uid}}"
"""The headless service; a workflow's name may be too long for one, and may have dots."""
_MEMBER = f"{OWN_PREFIX}gang-of"
"""The label of a gang's pods by which the service finds them: the workflow's uid."""


def gang_template(plan: StepPlan, name: str, defaults: Defaults, *, number: int, inside: bool) -> dict[str, Any]:
    """Return the template of a gang's step.

    Parameters
    ----------
    plan : StepPlan
        The step.
    name : str
        The template's.
    defaults : Defaults
        What the step leaves open.
    number : int
        Which of the flow's gangs it is.
    inside : bool
        Whether it is in a foreach.
    """
    retried = plan.tries > 1
    attempt = "{{retries}}" if retried else "0"
    # At most 63 characters with the index of a node behind it, for it names hosts.
    label = f"{{{{inputs.parameters.{LABEL}}}}}" if inside else "0"
    job = f"g{number}-{{{{workflow.uid}}}}-{label}-{attempt}"
    told = {
        **plan.environment,
        RUN: RUN_ID,
        PREFIX: f"{{{{inputs.parameters.{PLACE}}}}}." if inside else "",
        GANG: f"{{{{inputs.parameters.{NODES}}}}}",
        ATTEMPT: attempt,
    }
    timeout = None if plan.attempts.timeout is None else plan.attempts.timeout + SLACK
    host = f"{job}-0.{_HOSTS}"
    # The program stands here itself: as an argument it would break the text that the manifest is.
    pod = pod_spec(plan.request, plan.command, told, defaults, timeout=timeout, host=host)
    pod["subdomain"] = _HOSTS
    asked = plan.request.resources
    labels = {**asked.get("labels", {}), f"{OWN_PREFIX}step": label_value(plan.name), _MEMBER: "{{workflow.uid}}"}
    size = "SIZE"
    document = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job, "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": size,
            "parallelism": size,
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": labels, "annotations": dict(asked.get("annotations", {}))},
                "spec": pod,
            },
        },
    }
    # The numbers are arguments, which stand in a text: without the quotes that JSON gives to one.
    manifest = json.dumps(document, indent=1).replace(f'"{size}"', f"{{{{inputs.parameters.{NODES}}}}}")
    template: dict[str, Any] = {
        "name": name,
        "inputs": {"parameters": [{"name": each} for each in ((PLACE, LABEL, NODES) if inside else (NODES,))]},
        "metadata": {"labels": {f"{OWN_PREFIX}step": label_value(plan.name)}},
        "resource": {
            "action": "create",
            "setOwnerReference": True,
            "manifest": manifest,
            "successCondition": f"status.succeeded == {{{{inputs.parameters.{NODES}}}}}",
            "failureCondition": "status.failed > 0",
        },
    }
    return {**template, **again(plan)}


def hosts_template(name: str) -> dict[str, Any]:
    """Return the template that makes the headless service of a workflow's gangs."""
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _HOSTS},
        "spec": {
            "clusterIP": "None",
            # Nodes look for each other before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {_MEMBER: "{{workflow.uid}}"},
        },
    }
    made = {"action": "apply", "setOwnerReference": True, "manifest": json.dumps(document, indent=1)}
    return {"name": name, "resource": made, "retryStrategy": {"limit": "3", "retryPolicy": "Always"}}
