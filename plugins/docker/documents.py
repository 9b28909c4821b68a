"""What a container is made of: its options for the Docker API."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError
from flowkit.runtime.backend import RemoteRun, Submission
from flowkit.settings import settings

LABEL = "flowkit."
"""What the labels of our containers begin with."""
LOG_SIZE = "10m"
"""What the daemon keeps of a container's own log; the datastore has the task's."""


class Host(NamedTuple):
    """What the daemon is like.

    Parameters
    ----------
    rootless : bool
        Its containers' root is the user who runs it.
    remapped : bool
        It maps the users of containers to others.
    """

    rootless: bool = False
    remapped: bool = False


class Secrets(NamedTuple):
    """How a container gets its credentials: files that are mounted, and variables that name them."""

    binds: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def image_of(resources: Any) -> str:
    """Return the image of a step."""
    given = resources.get("image") or settings().container_image
    return str(given or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim")


def run_key(run: RemoteRun) -> str:
    """Return a text of its own for a run: another datastore may have a run of the same name."""
    return hashlib.sha256("\0".join((run.root, run.flow, run.run)).encode()).hexdigest()[:32]


def labels(run: RemoteRun, submission: Submission, index: int, created: float) -> dict[str, str]:
    """Return the labels of the container of a row, or of a gang's node."""
    found = {
        "run-key": run_key(run),
        "flow": run.flow,
        "run": run.run,
        "user": run.user,
        "step": submission.step,
        "job": submission.name,
        "index": str(index),
        "count": str(count_of(submission)),
        "gang": str(submission.gang),
        "timeout": f"{submission.timeout or 0:g}",
        "created": f"{created:.3f}",
    }
    return {LABEL + name: value for name, value in found.items()}


def count_of(submission: Submission) -> int:
    """Return how many containers a job has."""
    return submission.gang or submission.rows


def container_options(
    api: Any, run: RemoteRun, submission: Submission, index: int, created: float, host: Host, secrets: Secrets
) -> dict[str, Any]:
    """Return the arguments with which the client makes a container.

    Parameters
    ----------
    api : docker.APIClient
        Makes the part for the host.
    run : RemoteRun
        The run.
    submission : Submission
        The job.
    index : int
        The row, or the node of a gang.
    created : float
        When the job was submitted, in seconds since the epoch.
    host : Host
        The daemon.
    secrets : Secrets
        The credentials.
    """
    wanted = submission.request.resources
    user = str(wanted.get("user") or _own_user(host))
    environment = {**submission.request.environment, **submission.environment, **dict(secrets.environment)}
    environment["FLOWKIT_ROW"] = "0" if submission.gang else str(index)
    if submission.gang:
        environment |= {"FLOWKIT_NODE": str(index), "FLOWKIT_MAIN_HOST": "127.0.0.1"}
    if user.partition(":")[0] not in ("", "0", "root"):
        environment.setdefault("HOME", "/tmp")  # the image need not know the user
    return {
        "image": image_of(wanted),
        "command": list(submission.command),
        "entrypoint": [],
        "name": f"{submission.name}-{index}",
        "labels": labels(run, submission, index, created),
        "environment": environment,
        "user": user,
        "host_config": api.create_host_config(**_host_options(run, submission, host, secrets)),
    }


def _host_options(run: RemoteRun, submission: Submission, host: Host, secrets: Secrets) -> dict[str, Any]:
    wanted = submission.request.resources
    binds = [*wanted.get("volumes", ()), *secrets.binds]
    if "://" not in run.root:
        if ":" in run.root:
            raise UsageError(f"Docker cannot mount {run.root}: its path has a colon", "keep the datastore elsewhere")
        binds.append(f"{run.root}:{run.root}")
    options: dict[str, Any] = {
        "binds": binds,
        "log_config": {"type": "json-file", "config": {"max-size": LOG_SIZE}},
    }
    network = wanted.get("network") or ("host" if submission.gang else None)
    if network:
        options["network_mode"] = network
    if wanted.get("memory"):
        options["mem_limit"] = f"{int(wanted['memory'])}m"
    if wanted.get("shared_memory"):
        options["shm_size"] = f"{int(wanted['shared_memory'])}m"
    if wanted.get("cpu"):
        # More than the machine has is refused.
        options["nano_cpus"] = int(min(float(wanted["cpu"]), os.cpu_count() or 1) * 1e9)
    if wanted.get("gpu"):
        options["device_requests"] = [{"Driver": "", "Count": int(wanted["gpu"]), "Capabilities": [["gpu"]]}]
    if host.remapped:
        options["userns_mode"] = "host"
    return options


def _own_user(host: Host) -> str:
    """Return whose the files in a mounted folder are to be: of whoever starts the run."""
    if host.rootless or not hasattr(os, "getuid"):
        return "0:0"
    return f"{os.getuid()}:{os.getgid()}"
