"""The pods of a loopback cluster as the job controller makes them, and how it numbers them."""

from __future__ import annotations

import uuid
from typing import Any

INDEX = "batch.kubernetes.io/job-completion-index"
JOB_NAME = "batch.kubernetes.io/job-name"


def new_pod(job: dict[str, Any], index: int) -> dict[str, Any]:
    """Return the pod that the job controller makes for an index of a job."""
    spec, metadata = job["spec"], job["metadata"]
    template = spec["template"]
    inherited = template.get("metadata") or {}
    labels = {
        **inherited.get("labels", {}),
        JOB_NAME: metadata["name"],
        "batch.kubernetes.io/controller-uid": metadata["uid"],
    }
    annotations = dict(inherited.get("annotations", {}))
    pod = {**template["spec"]}
    prefix = metadata["name"]
    if spec.get("completionMode") == "Indexed":
        prefix = f"{metadata['name']}-{index}"
        labels[INDEX] = annotations[INDEX] = str(index)
        pod["hostname"] = prefix
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    return {
        "metadata": {
            "name": f"{prefix}-{uuid.uuid4().hex[:5]}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": pod,
        "status": {"phase": "Pending"},
    }


def container_state(state: dict[str, Any]) -> dict[str, Any]:
    running = "running" in state
    return {
        "name": "main",
        "image": "",
        "imageID": "",
        "ready": running,
        "restartCount": 0,
        "started": running,
        "state": state,
    }


def index_of(pod: dict[str, Any]) -> int:
    """Return the status of our container in a state."""
    return int(pod["metadata"]["annotations"].get(INDEX, "0"))


def ranges(numbers: set[int]) -> str:
    """Return indexes as a Job tells them: ``1,3-5``."""
    """Return the index of a pod in its job."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
