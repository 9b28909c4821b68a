"""Why a job of AWS Batch failed, from what the service says about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.runtime.backend import Cause

OURS = "flowkit: "
"""How the reasons begin with which flowkit itself ends jobs."""

_TEXTS: tuple[tuple[Cause, str], ...] = (
    ("timeout", r"attempt duration exceeded"),
    ("oom", r"OutOfMemory|out of memory|OOMKilled"),
    ("image", r"CannotPull|ImagePull|CannotInspectContainer|pull image|manifest .*unknown"
              r"|exec format error|executable file not found|CannotCreateContainerError"
              r"|ResourceInitializationError|exec: "),
    ("capacity", r"Capacity is unavailable|INSUFFICIENT_INSTANCE_CAPACITY|JobStateTimeLimit|^CAPACITY:"
                 r"|RESOURCE:(CPU|MEMORY|GPU|ENI|PORTS)|MISCONFIGURATION:|no container instance"),
    ("evicted", r"Host EC2 .*terminated|spot (task|interruption|instance)|SpotInterruption|instance .*terminated"
                r"|being drained|DockerTimeoutError|CannotStartContainerError"
                r"|host .*(retire|degraded)|TaskFailedToStart"),
    ("deleted", r"(terminated|cancell?ed) (by user|from (the )?console)"),
)  # fmt: skip
_BY_TEXT = tuple((cause, re.compile(pattern, re.IGNORECASE)) for cause, pattern in _TEXTS)
_ESSENTIAL = re.compile(r"essential container in task exited", re.IGNORECASE)
_EMPTY = re.compile(r"essential container in task exited|task failed to start", re.IGNORECASE)
"""What says nothing beside the container's own reason."""
_KILLED = (137, 143)


class Ending(NamedTuple):
    """How a job ended: why, what the service says, and the exit status of its program."""

    cause: Cause
    message: str
    exit_status: int | None


def ending(job: Mapping[str, Any]) -> Ending:
    """Return why a job failed.

    Parameters
    ----------
    job : mapping
        A job as DescribeJobs or ListJobs tells it (they name alike what matters here).
    """
    container = _container(job)
    reason = _line(job.get("statusReason"))
    detail = _line(container.get("reason"))
    status = container.get("exitCode")
    exit_status = status if isinstance(status, int) else None
    return Ending(_cause(job, reason, detail, exit_status), _message(reason, detail), exit_status)


def waiting(job: Mapping[str, Any]) -> str:
    """Return what the service says about a job that waits for a machine; empty where it says nothing."""
    return _line(job.get("statusReason"))


def _message(reason: str, detail: str) -> str:
    if not detail or not reason:
        return detail or reason
    return detail if _EMPTY.search(reason) else f"{reason} ({detail})"


def _cause(job: Mapping[str, Any], reason: str, detail: str, exit_status: int | None) -> Cause:
    if reason.startswith(OURS):
        return "cancelled"
    for cause, pattern in _BY_TEXT:
        if pattern.search(detail) or pattern.search(reason):
            return cause
    if job.get("isTerminated") or job.get("isCancelled"):
        return "deleted"
    normal = not reason or _ESSENTIAL.search(reason)
    if exit_status in _KILLED and not normal:
        return "deleted"  # a reason that the service does not give: somebody's own, and killed by a signal
    if exit_status is not None:
        return "exit"
    return "lost"


def _container(job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is told about a job's container: its own entry, or that of its last attempt."""
    found: Mapping[str, Any] = job.get("container") or {}
    if found.get("exitCode") is not None or found.get("reason"):
        return found
    for attempt in reversed(job.get("attempts") or ()):
        told: Mapping[str, Any] = attempt.get("container") or {}
        if told.get("exitCode") is not None or told.get("reason"):
            return told
    return found


def _line(text: Any) -> str:
    """Return a text of the service in one line of bounded length; it may hold what users wrote."""
    return " ".join(str(text).split())[:500] if text else ""
