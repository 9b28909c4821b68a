"""What a pod's status means for the row of a job that it carries out: pure functions over its JSON."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.plugins.kubernetes.cluster import one_line
from flowkit.plugins.kubernetes.manifests import CONTAINER, INDEX_LABEL, JOB_LABEL
from flowkit.runtime.backend import Cause, RowPhase

_PULLING = frozenset(("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"))
_NEVER_STARTS = frozenset(("InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"))
_MISCONFIGURED = frozenset(("CreateContainerConfigError", "CreateContainerError", "RunContainerError"))
_CANNOT_RUN = frozenset(("StartError", "ContainerCannotRun", "ContainerCreateFailed"))
_REFUSALS = ("not found", "manifest unknown", "unauthorized", "denied", "forbidden", "authentication required",
             "does not exist", "no such host", "invalid reference", "no match for platform")  # fmt: skip
"""What registries say where trying again would not help."""
_MACHINE = frozenset(
    ("Evicted", "Preempting", "Preempted", "NodeLost", "Shutdown", "NodeShutdown", "Terminated", "NodeAffinity")
)
_NO_ROOM = ("OutOf", "UnexpectedAdmissionError", "Unschedulable")


class PodState(NamedTuple):
    """How a pod stands, as far as its row is concerned.

    Parameters
    ----------
    uid, pod, job : str
        Its identity, its name, and the value of its label for the job.
    row : int
        The row, or the node of a gang.
    phase : str
        As in `RowState`.
    when : float
        Epoch seconds.
    cause, message, exit_status
        As in `RowState`. A pod that waits has a message where there is a reason.
    trouble : str or None
        Why its container cannot start yet: ``pull`` (may get better), ``never``.
    leaving : bool
        Somebody asked for its deletion.
    disrupted : str or None
        Why its machine gives it up, where that was announced.
    last : str
        The last lines of its log, where they are kept with its state.
    """

    uid: str
    pod: str
    job: str
    row: int
    phase: RowPhase
    when: float
    cause: Cause | None = None
    message: str = ""
    exit_status: int | None = None
    trouble: str | None = None
    leaving: bool = False
    disrupted: str | None = None
    last: str = ""

    @property
    def ended(self) -> bool:
        """Whether it never changes again."""
        return self.phase in ("succeeded", "failed")


def read_pod(pod: Mapping[str, Any]) -> PodState | None:
    """Return how a pod stands; None for one that is not flowkit's."""
    metadata, status = pod.get("metadata") or {}, pod.get("status") or {}
    labels = metadata.get("labels") or {}
    if JOB_LABEL not in labels:
        return None
    index = labels.get(INDEX_LABEL) or (metadata.get("annotations") or {}).get(INDEX_LABEL) or "0"
    state = PodState(
        uid=str(metadata.get("uid")),
        pod=str(metadata.get("name")),
        job=labels[JOB_LABEL],
        row=int(index) if str(index).isdigit() else 0,
        phase="queued",
        when=epoch(metadata.get("creationTimestamp")),
        leaving=bool(metadata.get("deletionTimestamp")),
        disrupted=_disruption(status),
    )
    # Meshes put containers of their own beside ours.
    containers = [item for item in status.get("containerStatuses") or () if item.get("name") == CONTAINER]
    inner = (containers[0].get("state") or {}) if containers else {}
    phase = status.get("phase")
    if phase == "Succeeded":
        return state._replace(phase="succeeded", when=_finished(inner) or state.when, exit_status=0)
    if phase == "Failed":
        return _failed(state, status, inner)
    if inner.get("running") or inner.get("terminated"):  # how the pod ended is told a moment later
        began = (inner.get("running") or inner["terminated"]).get("startedAt")
        return state._replace(phase="running", when=epoch(began) or state.when)
    if not (pod.get("spec") or {}).get("nodeName"):
        return state._replace(message=_unschedulable(status))
    return _starting(state._replace(phase="starting", when=epoch(status.get("startTime")) or state.when), inner)


def _starting(state: PodState, inner: Mapping[str, Any]) -> PodState:
    waiting = inner.get("waiting") or {}
    reason, message = waiting.get("reason") or "", one_line(waiting.get("message"))
    told = f"{reason}: {message}" if message else reason
    if reason in _NEVER_STARTS:
        return state._replace(message=told, trouble="never")
    if reason in _PULLING:
        # At first there is the registry's answer; later often nothing but the name of the image.
        return state._replace(message=told, trouble="never" if is_refusal(message) else "pull")
    if reason in _MISCONFIGURED:
        return state._replace(message=told, trouble="pull")
    return state


def is_refusal(message: str) -> bool:
    """Whether a registry said no for good: no later try would be answered differently."""
    return any(word in message.lower() for word in _REFUSALS)


def _failed(state: PodState, status: Mapping[str, Any], inner: Mapping[str, Any]) -> PodState:
    ended = inner.get("terminated") or {}
    reason, message = status.get("reason") or "", one_line(status.get("message"))
    code = ended.get("exitCode")
    failed = state._replace(
        phase="failed",
        when=_finished(inner) or time.time(),
        exit_status=code if isinstance(code, int) else None,
        last=str(ended.get("message") or ""),
    )
    told = f"{reason}: {message}" if reason and message else reason or message
    if ended.get("reason") == "OOMKilled":
        return failed._replace(cause="oom", message="OOMKilled")
    if reason == "DeadlineExceeded":
        return failed._replace(cause="timeout", message="DeadlineExceeded")
    if reason == "Evicted" and "low on resource: memory" in message and "exceed" in message:
        # The machine had no memory left, and this pod had taken more than it asked for.
        return failed._replace(cause="oom", message=told)
    if reason == "Evicted" and ("exceeds the total limit" in message or "exceeds its local" in message):
        return failed._replace(cause="exit", message=told)  # its own disk limit: the same again would not help
    if reason.startswith(_NO_ROOM):
        return failed._replace(cause="capacity", message=told)
    if reason in _MACHINE or state.disrupted is not None:
        return failed._replace(cause="evicted", message=told or state.disrupted or reason)
    if ended.get("reason") == "ContainerStatusUnknown" or (not ended and not state.leaving):
        return failed._replace(cause="evicted", message=told or "its machine does not know what became of it")
    if ended.get("reason") in _CANNOT_RUN:
        return failed._replace(cause="image", message=f"{ended['reason']}: {one_line(ended.get('message'))}", last="")
    if state.leaving:
        return failed._replace(cause="deleted", message="somebody deleted its pod")
    return failed._replace(cause="exit", message=f"exit status {code}")


def _disruption(status: Mapping[str, Any]) -> str | None:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return f"{condition.get('reason') or 'disrupted'}: {one_line(condition.get('message'))}".rstrip(": ")
    return None


def _unschedulable(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return one_line(condition.get("message")) or str(condition.get("reason") or "")
    return ""


def _finished(inner: Mapping[str, Any]) -> float:
    return epoch((inner.get("terminated") or {}).get("finishedAt"))


def epoch(stamp: Any) -> float:
    """Return a time of the API in epoch seconds; 0 for none."""
    if not isinstance(stamp, str) or len(stamp) < 19:
        return 0.0
    try:
        return float(calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")))
    except ValueError:
        return 0.0


def indexes(text: Any) -> list[tuple[int, int]]:
    """Read what a Job says of its indexes, ``1,3-5``, as ranges with both ends."""
    ranges = []
    for part in str(text or "").split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            ranges.append((int(first), int(last) if last.isdigit() else int(first)))
    return ranges
