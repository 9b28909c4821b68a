"""From a submission to the objects of Kubernetes, as plain dicts: a pure function, so that each can be looked at.

Rows of a fan-out are the indexes of one Indexed Job: ``backoffLimitPerIndex: 0`` fails a row at its first failure and
lets the other rows go on. Kubernetes starts nothing again by itself: that is the runtime's to decide. All pods are
created at once (parallelism = completions): the cluster's own queue orders them, and a waiting row can be cancelled by
deleting its pod, since a deleted pod's index has failed.

A gang is one Indexed Job whose first failure ends all nodes (``backoffLimit: 0``), with a headless service that gives
each node a name; where the cluster knows JobSets, a JobSet of one such job, which brings the service.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.decorators.contract import ExecutorRequest
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, digest, label_value, object_name
from flowkit.runtime.backend import RemoteRun, Submission

CONTAINER = "main"
JOB_LABEL = f"{OWN_PREFIX}job"
RUN_KEY = f"{OWN_PREFIX}run-key"
SUBMISSION = f"{OWN_PREFIX}submission"
GANG = f"{OWN_PREFIX}gang"
ROWS = f"{OWN_PREFIX}rows"
CANCELLED = f"{OWN_PREFIX}cancelled"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
POOL_LABEL = "outerbounds.co/compute-pool"
JOBSET_GROUP, JOBSET_VERSION, JOBSETS = "jobset.x-k8s.io", "v1alpha2", "jobsets"
_NODES = "n"
"""The name of the one replicated job of a JobSet; short, as it becomes part of every host's name."""

KEPT = 24 * 3600
"""Seconds that a finished job is kept, so that a client that was away can still ask how it ended."""

CPU, MEMORY, DISK = 1, 4096, 10240


class Defaults(NamedTuple):
    """What the settings say for steps that do not.

    Parameters
    ----------
    namespace, image : str
    service_account : str or None
    """

    namespace: str
    image: str
    service_account: str | None = None


def namespace_of(resources: Mapping[str, Any], defaults: Defaults) -> str:
    """Return the namespace of a step's jobs."""
    return str(resources.get("namespace") or defaults.namespace)


def run_key(run: RemoteRun) -> str:
    """Return the value of the label by which the jobs of one run are found: two datastores may have the same run."""
    return digest("\n".join((run.root, run.flow, run.run)), 24)


def submission_key(run: RemoteRun, submission: Submission) -> str:
    """Return what a submission is known by: a job of the same name that carries another one is not ours."""
    said = [run.root, run.flow, run.run, submission.name, submission.rows, submission.gang, list(submission.command)]
    return digest(json.dumps(said), 32)


def job_document(run: RemoteRun, submission: Submission, defaults: Defaults) -> dict[str, Any]:
    """Return the Job of a submission: plain, Indexed for several rows, or of a gang.

    Parameters
    ----------
    run : RemoteRun
        Names and labels come from it.
    submission : Submission
        What to run.
    defaults : Defaults
        What the step leaves open.
    """
    name = object_name(submission.name)
    host = f"{name}-0.{name}" if submission.gang else None
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(run, submission, defaults),
        "spec": {
            **_job_spec(run, submission, defaults, host, name if submission.gang else None),
            "ttlSecondsAfterFinished": KEPT,
        },
    }


def service_document(run: RemoteRun, submission: Submission, defaults: Defaults, owner: str) -> dict[str, Any]:
    """Return the headless service that gives the nodes of a gang their names.

    Parameters
    ----------
    owner : str
        The uid of the gang's Job: the service goes when the job goes.
    """
    metadata = _metadata(run, submission, defaults)
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": owner}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata, "ownerReferences": [reference]},
        "spec": {
            "clusterIP": "None",
            # Nodes look for each other before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {JOB_LABEL: metadata["name"]},
        },
    }


def jobset_document(run: RemoteRun, submission: Submission, defaults: Defaults) -> dict[str, Any]:
    """Return the JobSet of a gang, for clusters that know them."""
    name = object_name(submission.name)
    spec = _job_spec(run, submission, defaults, f"{name}-{_NODES}-0-0.{name}", None)
    return {
        "apiVersion": f"{JOBSET_GROUP}/{JOBSET_VERSION}",
        "kind": "JobSet",
        "metadata": _metadata(run, submission, defaults),
        "spec": {
            "failurePolicy": {"maxRestarts": 0},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "ttlSecondsAfterFinished": KEPT,
            "replicatedJobs": [{"name": _NODES, "replicas": 1, "template": {"spec": spec}}],
        },
    }


def _job_spec(
    run: RemoteRun, submission: Submission, defaults: Defaults, host: str | None, subdomain: str | None
) -> dict[str, Any]:
    size = submission.gang or submission.rows
    spec: dict[str, Any] = {"completions": size, "parallelism": size}
    if size > 1 or submission.gang:
        spec["completionMode"] = "Indexed"
    if submission.rows > 1:
        spec["backoffLimitPerIndex"] = 0
    else:
        spec["backoffLimit"] = 0
    pod = pod_spec(
        submission.request, submission.command, submission.environment, defaults, timeout=submission.timeout, host=host
    )
    if subdomain is not None:
        pod["subdomain"] = subdomain
    spec["template"] = {"metadata": _pod_metadata(run, submission), "spec": pod}
    return spec


def labels(run: RemoteRun, step: str) -> dict[str, str]:
    """Return the labels of what belongs to a step of a run."""
    return {
        "app.kubernetes.io/name": "flowkit",
        f"{OWN_PREFIX}flow": label_value(run.flow),
        f"{OWN_PREFIX}run": label_value(run.run),
        f"{OWN_PREFIX}step": label_value(step),
        f"{OWN_PREFIX}user": label_value(run.user),
        RUN_KEY: run_key(run),
    }


def _metadata(run: RemoteRun, submission: Submission, defaults: Defaults) -> dict[str, Any]:
    resources = submission.request.resources
    own = _annotations(run, submission)
    own[SUBMISSION] = submission_key(run, submission)
    own[ROWS] = str(submission.rows)
    if submission.gang:
        own[GANG] = str(submission.gang)
    name = object_name(submission.name)
    return {
        "name": name,
        "namespace": namespace_of(resources, defaults),
        "labels": {**resources.get("labels", {}), **labels(run, submission.step), JOB_LABEL: name},
        "annotations": {**resources.get("annotations", {}), **own},
    }


def _annotations(run: RemoteRun, submission: Submission) -> dict[str, str]:
    """The real values of what labels can only hold in part."""
    named = {"flow": run.flow, "run": run.run, "step": submission.step, "user": run.user, "root": run.root}
    return {f"{OWN_PREFIX}{key}": value for key, value in named.items()}


def _pod_metadata(run: RemoteRun, submission: Submission) -> dict[str, Any]:
    resources = submission.request.resources
    name = object_name(submission.name)
    return {
        "labels": {**resources.get("labels", {}), **labels(run, submission.step), JOB_LABEL: name},
        "annotations": {
            # Removing a node to save money must not cost the task that runs on it.
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            **resources.get("annotations", {}),
            **_annotations(run, submission),
        },
    }


def pod_spec(
    request: ExecutorRequest,
    command: Sequence[str],
    environment: Mapping[str, str],
    defaults: Defaults,
    *,
    timeout: float | None = None,
    host: str | None = None,
) -> dict[str, Any]:
    """Return the specification of a pod with one container.

    Parameters
    ----------
    request : ExecutorRequest
        Resources and environment of the step.
    command : sequence of str
        The container's.
    environment : mapping of str to str
        Further environment variables; they count before those of the request.
    defaults : Defaults
        What the step leaves open.
    timeout : float, optional
        Seconds that the pod may take.
    host : str, optional
        The name of the host on which the first node of a gang runs.
    """
    wanted = request.resources
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": wanted.get("image") or defaults.image,
        "command": [literal(word) for word in command],
        "env": _environment(request, environment, host),
        "resources": resource_requirements(wanted),
        # The last lines of a container that failed are kept with its state, even when its machine is gone.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    volumes, mounts = _volumes(wanted)
    optional = {
        "imagePullPolicy": wanted.get("image_pull_policy"),
        "envFrom": [{"secretRef": {"name": name}} for name in wanted.get("secrets") or ()],
        "ports": [{"containerPort": wanted["port"]}] if wanted.get("port") else None,
        "securityContext": wanted.get("security_context"),
        "volumeMounts": mounts,
    }
    container.update({key: value for key, value in optional.items() if value})
    selector = dict(wanted.get("node_selector") or {})
    if wanted.get("compute_pool"):
        selector[POOL_LABEL] = wanted["compute_pool"]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        # Otherwise every service of the namespace adds half a dozen environment variables.
        "enableServiceLinks": False,
        "containers": [container],
    }
    if timeout is not None:
        # On the pod, not on the job: a row's time starts when it has a machine, and ends that row only.
        pod["activeDeadlineSeconds"] = max(1, math.ceil(timeout))
    optional = {
        "serviceAccountName": wanted.get("service_account") or defaults.service_account,
        "imagePullSecrets": [{"name": name} for name in wanted.get("image_pull_secrets") or ()],
        "nodeSelector": selector,
        "tolerations": list(wanted.get("tolerations") or ()),
        "volumes": volumes,
    }
    pod.update({key: value for key, value in optional.items() if value})
    return pod


def _environment(request: ExecutorRequest, further: Mapping[str, str], host: str | None) -> list[dict[str, str]]:
    wanted = request.resources
    variables = {**request.environment, **further}
    if _tmpfs_size(wanted) is not None and wanted.get("tmpfs_tempdir", True):
        variables["FLOWKIT_TEMPDIR"] = _tmpfs_path(wanted)
    if host is not None:
        variables["FLOWKIT_MAIN_HOST"] = host
        variables["FLOWKIT_HOSTNAME_TIMEOUT"] = str(wanted.get("hostname_resolution_timeout", 600))
    return [{"name": name, "value": literal(variables[name])} for name in sorted(variables)]


def literal(text: str) -> str:
    """Return a text so that Kubernetes leaves it as it is: in commands and variables it replaces ``$(NAME)``."""
    return text.replace("$", "$$")


def resource_requirements(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return requests and limits: burstable asks, guaranteed is bound by what it asks for."""
    requests = {
        "cpu": cpu_quantity(wanted.get("cpu") or CPU),
        "memory": megabytes(wanted.get("memory") or MEMORY),
        "ephemeral-storage": megabytes(wanted.get("disk") or DISK),
    }
    limits = dict(requests) if wanted.get("qos") == "guaranteed" else {}
    # Devices are never shared: what is asked for is the limit.
    devices = {name: str(count) for name, count in (wanted.get("extended_resources") or {}).items()}
    if wanted.get("gpu"):
        devices[f"{wanted.get('gpu_vendor') or 'nvidia'}.com/gpu"] = str(wanted["gpu"])
    limits.update(devices)
    requests.update(devices)
    return {"requests": requests, "limits": limits} if limits else {"requests": requests}


def cpu_quantity(value: float) -> str:
    """Return processors as a quantity: whole ones, or thousandths."""
    return str(int(value)) if float(value).is_integer() else f"{max(1, round(value * 1000))}m"


def megabytes(value: float) -> str:
    """Return megabytes as a quantity."""
    return f"{math.ceil(value)}M"


def _tmpfs_size(wanted: Mapping[str, Any]) -> float | None:
    size = wanted.get("tmpfs_size")
    if size:
        return float(size)
    return float(wanted.get("memory") or MEMORY) / 2 if wanted.get("use_tmpfs") else None


def _tmpfs_path(wanted: Mapping[str, Any]) -> str:
    return str(wanted.get("tmpfs_path") or "/flowkit_temp")


def _volumes(wanted: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def add(name: str, source: dict[str, Any], path: str) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path})

    size = _tmpfs_size(wanted)
    if size is not None:
        add("tmpfs", {"emptyDir": {"medium": "Memory", "sizeLimit": megabytes(size)}}, _tmpfs_path(wanted))
    shared = wanted.get("shared_memory")
    if shared:
        add("shared-memory", {"emptyDir": {"medium": "Memory", "sizeLimit": megabytes(shared)}}, "/dev/shm")
    for position, (claim, path) in enumerate((wanted.get("persistent_volume_claims") or {}).items()):
        add(f"claim-{position}", {"persistentVolumeClaim": {"claimName": claim}}, path)
    return volumes, mounts
