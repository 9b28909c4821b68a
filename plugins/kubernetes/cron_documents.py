"""From a deployment to a CronJob whose pod is the client of a run, and back: pure functions over plain dicts.

The Job that the CronJob makes runs one pod. A pod that was lost (its machine, its memory) is replaced, and goes on with
the run of its Job; one that ended the run, or that no further start would help, says so by its exit status, with which
the Job is over. A flow without a schedule has a suspended CronJob: the template of what `trigger` starts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from flowkit.decorators.contract import ExecutorRequest
from flowkit.deployer.target import FINAL, PARAMETER, RUN, Deployment, DeploymentRecord, Execution
from flowkit.exceptions import Problem, UsageError
from flowkit.model.cron import five_field_problems, to_five_fields
from flowkit.plugins.kubernetes.cluster import one_line
from flowkit.plugins.kubernetes.manifests import CANCELLED, CONTAINER, Defaults, literal, pod_spec
from flowkit.plugins.kubernetes.pods import epoch
from flowkit.plugins.kubernetes.syntax import (
    ANNOTATIONS_LIMIT,
    OWN_PREFIX,
    digest,
    is_image,
    is_label_name,
    is_subdomain,
    label_value,
)

PREFIX = "kubernetes"
DEPLOYMENT = f"{OWN_PREFIX}deployment"
RECORD = f"{OWN_PREFIX}record"
LONGEST_NAME = 52
"""Characters of a CronJob's name: its controller puts a hyphen and ten digits behind it
(https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/)."""
NEVER = "0 0 1 1 *"
"""What a CronJob without a schedule says, since it must have one; it is suspended."""
KEPT = 7 * 24 * 3600
"""Seconds that a Job is kept at most after its end."""
GRACE = 90
"""Seconds between SIGTERM and SIGKILL: the client asks why it has to end, and ends its jobs."""
_JOB_NAME = "KUBERNETES_JOB_NAME"
_POLICIES = {"allow": "Allow", "forbid": "Forbid", "replace": "Replace"}


def cron_name(flow: str, project: str | None, branch: str | None) -> str:
    """Return what a flow's CronJob is called where nobody says; another flow or branch gets another name."""
    whole = ".".join(part for part in (project, branch, flow) if part)
    name = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"f-{name}".rstrip("-")
    if name == whole.lower() and len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9].rstrip('-')}-{digest(whole, 8)}"


def cron_problems(deployment: Deployment) -> list[Problem]:
    """Return what is wrong with a deployment, without asking the cluster."""
    problems = []
    name = deployment.name
    if not is_label_name(name) or len(name) > LONGEST_NAME or not name[0].isalpha():
        problems.append(
            Problem(
                f"'{name}' cannot be the name of a CronJob",
                None,
                f"lower-case letters, digits and '-', at most {LONGEST_NAME}, a letter first: --name",
            )
        )
    if deployment.schedule is not None:
        cron = deployment.schedule.cron
        for text in five_field_problems(cron):
            problems.append(Problem(f"@schedule: '{cron}': {text}", None, "a CronJob has cron of five fields"))
    if len(json.dumps(dict(deployment.record)).encode()) > ANNOTATIONS_LIMIT - 16 * 1024:
        problems.append(
            Problem("what has to be known of the deployment is too long for an annotation (240 KB)", None,
                    "the defaults of its parameters are what takes the room")
        )  # fmt: skip
    return problems + _option_problems(deployment.options)


def _option_problems(options: Mapping[str, Any]) -> list[Problem]:
    wrong = []
    namespace = options.get("kubernetes_namespace")
    if namespace is not None and not is_label_name(namespace):
        wrong.append(f"--kubernetes-namespace '{namespace}': lower-case letters, digits and '-', at most 63")
    if options.get("image") is not None and not is_image(options["image"]):
        wrong.append(f"--image '{options['image']}' is not a reference of an image, like registry.example.com/team/x:3")
    if options.get("service_account") is not None and not is_subdomain(options["service_account"]):
        wrong.append(f"--service-account '{options['service_account']}': lower-case letters, digits, '-' and '.'")
    for name in ("secrets", "image_pull_secrets"):
        for item in options.get(name) or ():
            if not is_subdomain(item):
                wrong.append(f"--{name.replace('_', '-')} '{item}' is not a secret's name")
    for name, least in (("cpu", 0), ("memory", 0), ("disk", 0), ("starts", 1), ("history", 1), ("deadline", 10)):
        value = options.get(name)
        if value is not None and (value < least or (least == 0 and value == 0)):
            wrong.append(f"--{name} {value:g}: at least {least}" if least else f"--{name} {value:g}: above 0")
    return [Problem(text) for text in wrong]


def cron_document(deployment: Deployment, defaults: Defaults, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the CronJob of a deployment; its namespace is that of the call, unless an option names one.

    Parameters
    ----------
    deployment : Deployment
        With the client's command.
    defaults : Defaults
        The image and the account of the client's pod where no option says one.
    variables : mapping of str to str
        Further variables of the client: settings that hold for the pods of its steps.
    """
    labels = {
        "app.kubernetes.io/name": "flowkit",
        "app.kubernetes.io/component": "client",
        f"{OWN_PREFIX}flow": label_value(deployment.flow),
        f"{OWN_PREFIX}user": label_value(deployment.user),
        DEPLOYMENT: deployment.name,
    }
    named = {"project": deployment.project, "branch": deployment.branch}
    labels |= {f"{OWN_PREFIX}{key}": label_value(value) for key, value in named.items() if value}
    said = {"flow": deployment.flow, "user": deployment.user, "title": deployment.title, **named}
    annotations = {f"{OWN_PREFIX}{key}": value for key, value in said.items() if value}
    if deployment.description:
        annotations["kubernetes.io/description"] = deployment.description
    schedule = deployment.schedule
    options = deployment.options
    metadata: dict[str, Any] = {"name": deployment.name, "labels": labels}
    if options.get("kubernetes_namespace"):
        metadata["namespace"] = options["kubernetes_namespace"]
    spec: dict[str, Any] = {
        "schedule": NEVER if schedule is None else to_five_fields(schedule.cron),
        "timeZone": (schedule.timezone if schedule is not None else None) or "Etc/UTC",
        "suspend": schedule is None,
        "concurrencyPolicy": _POLICIES[deployment.concurrency],
        "startingDeadlineSeconds": options["deadline"],
        "successfulJobsHistoryLimit": options["history"],
        "failedJobsHistoryLimit": options["history"],
        "jobTemplate": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": _job_spec(deployment, defaults, variables, labels, annotations),
        },
    }
    record = json.dumps(dict(deployment.record), sort_keys=True, separators=(",", ":"))
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {**metadata, "annotations": {**annotations, RECORD: record}},
        "spec": spec,
    }


def client_resources(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the client's pod asks for, in the words of ``@kubernetes``."""
    names = ("image", "service_account", "cpu", "memory", "disk", "secrets", "image_pull_secrets")
    found = {name: options[name] for name in names if options.get(name)}
    namespace = options.get("kubernetes_namespace")
    return {**found, **({"namespace": namespace} if namespace else {})}


def _job_spec(
    deployment: Deployment,
    defaults: Defaults,
    variables: Mapping[str, str],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> dict[str, Any]:
    request = ExecutorRequest(PREFIX, client_resources(deployment.options))
    fixed = {**deployment.end_environment, **variables}
    pod = pod_spec(request, deployment.client_command, fixed, defaults)
    job_name = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    pod["containers"][0]["env"] += [
        {"name": _JOB_NAME, "valueFrom": job_name},
        {"name": RUN, "value": f"{PREFIX}-$({_JOB_NAME})"},
    ]
    pod["terminationGracePeriodSeconds"] = GRACE
    safe = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    spec: dict[str, Any] = {
        "backoffLimit": deployment.options["starts"] - 1,
        "podFailurePolicy": {
            "rules": [
                # The run has ended, or would be refused every time.
                {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [FINAL]}},
                # Drained, preempted, reclaimed: that is nobody's failure.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "ttlSecondsAfterFinished": KEPT,
        "template": {"metadata": {"labels": dict(labels), "annotations": {**safe, **annotations}}, "spec": pod},
    }
    if deployment.workflow_timeout is not None:
        spec["activeDeadlineSeconds"] = max(1, math.ceil(deployment.workflow_timeout))
    return spec


def job_of(cron: Mapping[str, Any], name: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return a Job as the CronJob would make it, with values of parameters.

    Parameters
    ----------
    cron : mapping
        The CronJob, as the cluster has it.
    name : str
        Of the Job.
    parameters : mapping of str to str
        JSON by attribute name.
    """
    template = json.loads(json.dumps(cron["spec"]["jobTemplate"]))
    metadata = template.get("metadata") or {}
    owner = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": cron["metadata"]["name"],
        "uid": cron["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    manual = {"cronjob.kubernetes.io/instantiate": "manual"}
    given = [{"name": f"{PARAMETER}{key}", "value": literal(parameters[key])} for key in sorted(parameters)]
    template["spec"]["template"]["spec"]["containers"][0]["env"] += given
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": metadata.get("labels") or {},
            "annotations": {**(metadata.get("annotations") or {}), **manual},
            "ownerReferences": [owner],
        },
        "spec": template["spec"],
    }


def record_of(cron: Mapping[str, Any]) -> DeploymentRecord | None:
    """Return the record that a CronJob carries; None for one that is not flowkit's."""
    metadata = cron.get("metadata") or {}
    try:
        record = DeploymentRecord.from_json(json.loads((metadata.get("annotations") or {}).get(RECORD) or "null"))
    except ValueError:
        return None
    # An object that somebody copied says what the other one is called.
    return record if record is not None and record.name == metadata.get("name") else None


def run_of(job: str) -> str:
    """Return the id of the run of a Job."""
    return f"{PREFIX}-{job}"


def job_name(run: str) -> str:
    """Return the name of the Job of a run.

    Raises
    ------
    UsageError
        If the id is not one of a run that a CronJob began.
    """
    run = run.rpartition("/")[2]
    name = run.removeprefix(f"{PREFIX}-")
    if name == run or not is_subdomain(name):
        raise UsageError(f"'{run}' is no run of a CronJob: these begin with {PREFIX}-")
    return name


def execution_of(job: Mapping[str, Any]) -> Execution:
    """Return how a run stands, by its Job."""
    metadata, status = job["metadata"], job.get("status") or {}
    run = run_of(str(metadata["name"]))
    started = epoch(status.get("startTime") or metadata.get("creationTimestamp")) or None
    cancelled = (metadata.get("annotations") or {}).get(CANCELLED)
    for condition in status.get("conditions") or ():
        if condition.get("status") != "True":
            continue
        kind, when = condition.get("type"), epoch(condition.get("lastTransitionTime")) or None
        if kind == "Complete":
            return Execution(run, "succeeded", None, started, epoch(status.get("completionTime")) or when)
        if kind in ("Failed", "FailureTarget"):
            if cancelled:
                return Execution(run, "cancelled", one_line(cancelled), started, when)
            return Execution(run, "failed", _reason(condition), started, when if kind == "Failed" else None)
    if cancelled or metadata.get("deletionTimestamp"):
        return Execution(run, "cancelled", one_line(cancelled) or "its Job is being deleted", started)
    again = int(status.get("failed") or 0)
    if status.get("ready") or again:
        reason = f"its client was started again ({again} times)" if again else None
        return Execution(run, "running", reason, started)
    return Execution(run, "pending", None, started)


def _reason(condition: Mapping[str, Any]) -> str:
    reason, message = one_line(condition.get("reason")), one_line(condition.get("message"))
    if reason == "PodFailurePolicy":
        return "the run failed (its log and its tasks tell why)"
    if reason == "BackoffLimitExceeded":
        return "its client ended too often without an end of the run: see --starts"
    if reason == "DeadlineExceeded":
        return "it took longer than --workflow-timeout"
    return f"{reason}: {message}" if reason and message else reason or message
