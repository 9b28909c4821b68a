"""What the objects of jobs say: for ``list``, and of rows whose pods are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowkit.plugins.kubernetes.cluster import one_line
from flowkit.plugins.kubernetes.manifests import CANCELLED, GANG, JOB_LABEL, ROWS
from flowkit.plugins.kubernetes.pods import epoch, indexes
from flowkit.plugins.kubernetes.rows import JobFacts, JobId
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, label_value
from flowkit.runtime.backend import FoundJob, RowPhase

_ENDS = {"Complete": "Complete", "Completed": "Complete", "Failed": "Failed"}
"""The conditions of Jobs and JobSets that say that they are over."""


def facts_of(item: Mapping[str, Any]) -> JobFacts:
    """Return what a Job or a JobSet says of itself."""
    status = item.get("status") or {}
    annotations = (item.get("metadata") or {}).get("annotations") or {}
    ended, message = None, ""
    for condition in status.get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in _ENDS:
            ended = _ENDS[condition["type"]]
            message = one_line(condition.get("message") or condition.get("reason"))
    completed, failed = indexes(status.get("completedIndexes")), indexes(status.get("failedIndexes"))
    return JobFacts(completed, failed, ended, message, annotations.get(CANCELLED))


def found_job(kind: str, item: Mapping[str, Any]) -> FoundJob | None:
    """Return a job as ``list`` shows it; None for one that has ended."""
    metadata, status = item["metadata"], item.get("status") or {}
    if facts_of(item).ended or metadata.get("deletionTimestamp"):
        return None
    said = metadata.get("annotations") or {}
    job = JobId(str(metadata["namespace"]), str(metadata["name"]), kind, int(said.get(GANG, "0")))
    phase: RowPhase = "queued"
    if kind == "jobset":
        replicated = status.get("replicatedJobsStatus") or ()
        if any(part.get("active") or part.get("ready") for part in replicated):
            phase = "starting"
        if any(part.get("ready") for part in replicated):
            phase = "running"
    elif status.get("ready"):
        phase = "running"
    elif status.get("active"):
        phase = "starting"
    flow, run, step, user = (str(said.get(f"{OWN_PREFIX}{key}", "")) for key in ("flow", "run", "step", "user"))
    created = epoch(metadata.get("creationTimestamp"))
    return FoundJob(str(job), job.name, flow, run, step, user, phase, int(said.get(ROWS, "1")), created)


def label_selector(flow: str | None, run: str | None, user: str | None) -> str:
    """Return the selector of flowkit's jobs, as far as labels can tell them."""
    parts = [JOB_LABEL]
    for name, value in (("flow", flow), ("run", run), ("user", user)):
        if value is not None:
            parts.append(f"{OWN_PREFIX}{name}={label_value(value)}")
    return ",".join(parts)


def cancelled_reason(reason: str) -> dict[str, Any]:
    """Return the patch that leaves word of a cancellation."""
    return {"metadata": {"annotations": {CANCELLED: reason or "cancelled"}}}
