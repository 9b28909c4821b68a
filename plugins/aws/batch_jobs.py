"""What AWS Batch is sent for a job: its definition and its submission, as plain dicts. Nothing here makes a call.

The limits are the service's own (AWS Batch User Guide, "Service quotas" and "Job definition parameters"; the 8,192
characters of overrides are those of ECS RunTask, which Batch calls for each job).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.decorators.attributes import items, number

if TYPE_CHECKING:
    from flowkit.runtime.backend import RemoteRun, Submission

MAX_ROWS = 10_000
"""Rows of an array; one row is a job without an array."""
MAX_NAME = 128
MAX_DEFINITION = 24 * 1024
"""Bytes of a job definition."""
MAX_PAYLOAD = 30 * 1024
"""Bytes of a submission."""
MAX_OVERRIDES = 8192
"""Characters of the JSON in which a container's command and environment are overridden."""
MAX_TAGS = 50
"""Of a job and its definition together."""
MIN_TIMEOUT = 60
"""Seconds."""
DEFAULT_CPU, DEFAULT_MEMORY = 1, 4096
DEFAULT_TMPFS = "/flowkit_temp"
OWN_TAGS = ("flowkit.flow", "flowkit.run", "flowkit.step", "flowkit.user")
"""What every job is tagged with, so that jobs are found again and costs can be told apart."""

_ALL_NODES = "0:"
"""The main node and the workers of a gang are alike."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TAG = re.compile(r"[\w \t.:/=+\-@]*")
_FARGATE_MEMORY: dict[float, Sequence[int]] = {
    0.25: (512, 1024, 2048),
    0.5: range(1024, 4096 + 1, 1024),
    1: range(2048, 8192 + 1, 1024),
    2: range(4096, 16384 + 1, 1024),
    4: range(8192, 30720 + 1, 1024),
    8: range(16384, 61440 + 1, 4096),
    16: range(32768, 122880 + 1, 8192),
    32: (61440, 122880, 249856),
}
"""Megabytes that go with a number of processors on Fargate."""
_NOT_ON_FARGATE = (
    "gpu", "inferentia", "trainium", "efa", "host_volumes", "shared_memory", "max_swap", "swappiness", "use_tmpfs",
    "tmpfs_size", "privileged",
)  # fmt: skip


class Place(NamedTuple):
    """Where jobs go.

    Parameters
    ----------
    queue : str
        The name or ARN of the job queue.
    fargate : bool
        Whether its compute environments are Fargate's.
    fair_share : bool
        Whether it has a scheduling policy, which wants to know whose jobs they are.
    gangs : bool
        Whether gangs run there: not on Fargate, spot and managed instances.
    """

    queue: str
    fargate: bool = False
    fair_share: bool = False
    gangs: bool = True


class Defaults(NamedTuple):
    """What holds where a step says nothing.

    Parameters
    ----------
    image : str
        The container image.
    job_role, execution_role : str or None
        ARNs of the role of the task's own code, and of the role that starts the container.
    """

    image: str = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    job_role: str | None = None
    execution_role: str | None = None


class Requests(NamedTuple):
    """What is sent: the parameters of RegisterJobDefinition, and of SubmitJob but for the definition's ARN."""

    definition: dict[str, Any]
    submission: dict[str, Any]


def requests(job: Submission, run: RemoteRun, place: Place, defaults: Defaults) -> Requests:
    """Return what is sent to submit a job.

    Raises
    ------
    ValueError
        If the service would refuse it; the message says which limit is passed.
    """
    wanted = job.request.resources
    told = [*problems(wanted, place, defaults), *_shape_problems(job, place)]
    if told:
        raise ValueError("; ".join(told))
    environment = {**job.environment, **_tempdir(wanted)}
    container: dict[str, Any] = {"command": list(job.command), "environment": _pairs(environment)}
    beside: list[dict[str, str]] = []
    if len(_json({"containerOverrides": [container]})) > MAX_OVERRIDES:
        # The definition has room for them, and is kept longer than a job: it is the second choice.
        beside = container.pop("environment")
    definition = _definition(job, place, defaults, beside)
    submission = _submission(job, run, place, container)
    for what, value, limit in (
        ("the command", {"containerOverrides": [container]}, MAX_OVERRIDES),
        ("the job definition (image, volumes, environment variables)", definition, MAX_DEFINITION),
        ("the submission", submission, MAX_PAYLOAD - 300),  # the definition's ARN comes to it
    ):
        size = len(_json(value))
        if size > limit:
            raise ValueError(f"{what} has {size:,} bytes, and AWS Batch takes {limit:,}")
    return Requests(definition, submission)


def definition_name(definition: Mapping[str, Any]) -> str:
    """Return the name of a job definition: the same for the same content, whoever registers it."""
    return "flowkit-" + hashlib.sha256(_json(definition)).hexdigest()[:32]


def problems(wanted: Mapping[str, Any], place: Place, defaults: Defaults) -> list[str]:
    """Return what cannot be, of the resources of a step on a queue."""
    told = []
    if place.fargate:
        told += [
            f"{name} is not to be had on Fargate, where the queue '{place.queue}' runs its jobs"
            for name in _NOT_ON_FARGATE
            if wanted.get(name)
        ]
        problem = fargate_problem(_cpu(wanted), _memory(wanted))
        if problem:
            told.append(problem)
        if not (wanted.get("execution_role") or defaults.execution_role):
            told.append("Fargate needs an execution_role (or the setting batch_execution_role)")
    elif wanted.get("ephemeral_storage"):
        told.append(f"ephemeral_storage is for Fargate, and the queue '{place.queue}' runs its jobs on EC2")
    tags = wanted.get("aws_batch_tags") or {}
    if len(tags) > MAX_TAGS - len(OWN_TAGS):
        told.append(f"{len(tags)} tags are too many: {MAX_TAGS - len(OWN_TAGS)}, besides those of flowkit itself")
    return told


def fargate_problem(cpu: float, memory: float) -> str | None:
    """Return what is wrong with processors and megabytes of a container on Fargate; None for a pair that it has."""
    possible = _FARGATE_MEMORY.get(cpu)
    if possible is None:
        known = ", ".join(f"{count:g}" for count in _FARGATE_MEMORY)
        return f"Fargate has no containers with cpu={cpu:g}: {known}"
    if memory in possible:
        return None
    larger = [size for size in possible if size >= memory]
    near = f"the next larger is {larger[0]}" if larger else f"the most is {possible[-1]}: ask for more processors"
    return f"Fargate has no containers with cpu={cpu:g} and memory={memory:g}: {near}"


def tag_problem(key: Any, value: Any) -> str | None:
    """Return what is wrong with a tag; None for a good one."""
    if not isinstance(key, str) or not 0 < len(key) <= 128 or not _TAG.fullmatch(key):
        return f"{key!r} is not a tag's key: up to 128 letters, digits, spaces and . : / = + - @ _"
    if key.lower().startswith("aws:") or key.startswith("flowkit."):
        return f"the tag '{key}' begins with a prefix that is not the user's (aws:, flowkit.)"
    if not isinstance(value, str) or len(value) > 256 or not _TAG.fullmatch(value):
        return f"the tag '{key}' has a wrong value: up to 256 letters, digits, spaces and . : / = + - @ _"
    return None


def host_volume(text: str) -> tuple[str, str] | None:
    """Return where a folder of the machine is and where it is mounted, from ``/folder`` or ``/folder:/mount``."""
    host, _, mount = text.partition(":")
    mount = mount or host
    good = all(path.startswith("/") and ":" not in path and path.strip("/") for path in (host, mount))
    return (host, mount) if good else None


def efs_volume(text: str) -> tuple[str, str] | None:
    """Return the id of an EFS file system and where it is mounted, from ``fs-…`` or ``fs-…:/mount``."""
    system, _, mount = text.partition(":")
    mount = mount or f"/mnt/{system}"
    good = re.fullmatch(r"fs-[0-9a-f]{8,40}", system) and mount.startswith("/") and ":" not in mount
    return (system, mount) if good else None


def log_options(given: Any) -> dict[str, str] | None:
    """Return options of a log driver, from a dict or from texts ``key:value``; None where they are neither."""
    if isinstance(given, Mapping):
        return {str(key): str(value) for key, value in given.items()}
    found = {}
    for text in listed(given):
        key, colon, value = str(text).partition(":")
        if not colon or not key.strip():
            return None
        found[key.strip()] = value.strip()
    return found


def listed(given: Any) -> list[Any]:
    """Return a list, or what a text separated by commas lists."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",") if part.strip()]
    return items(given)


def tag_value(text: str) -> str:
    """Return a text as the value of a tag: what may not be in one becomes ``_``."""
    return re.sub(r"[^\w .:/=+\-@]", "_", text)[:256]


def _shape_problems(job: Submission, place: Place) -> list[str]:
    told = []
    if len(job.name) > MAX_NAME or not _NAME.fullmatch(job.name):
        told.append(f"'{job.name}' is not a job's name: up to {MAX_NAME} letters, digits, - and _")
    if not 1 <= job.rows <= MAX_ROWS:
        told.append(f"an array has up to {MAX_ROWS:,} rows, not {job.rows:,}")
    if job.gang and not place.gangs:
        told.append(
            f"gangs (num_parallel) need EC2 instances that are not spot, and the queue '{place.queue}' has others"
        )
    if job.gang and job.rows != 1:
        told.append("a gang is no array")
    if job.gang > 1000:
        told.append(f"a gang has up to 1,000 nodes, not {job.gang:,}")
    return told


def _definition(job: Submission, place: Place, defaults: Defaults, beside: list[dict[str, str]]) -> dict[str, Any]:
    container = _container(job.request.resources, place, defaults)
    if beside:
        container["environment"] = beside
    definition: dict[str, Any] = {"retryStrategy": {"attempts": 1}, "propagateTags": True}
    if job.gang:
        definition["type"] = "multinode"
        nodes = [{"targetNodes": _ALL_NODES, "container": container}]
        definition["nodeProperties"] = {"numNodes": job.gang, "mainNode": 0, "nodeRangeProperties": nodes}
    else:
        definition["type"] = "container"
        definition["platformCapabilities"] = ["FARGATE" if place.fargate else "EC2"]
        definition["containerProperties"] = container
    return definition


def _submission(job: Submission, run: RemoteRun, place: Place, container: dict[str, Any]) -> dict[str, Any]:
    wanted = job.request.resources
    own = dict(zip(OWN_TAGS, map(tag_value, (run.flow, run.run, job.step, run.user)), strict=True))
    request: dict[str, Any] = {
        "jobName": job.name,
        "jobQueue": place.queue,
        "retryStrategy": {"attempts": 1},
        "propagateTags": True,
        "tags": {**(wanted.get("aws_batch_tags") or {}), **own},
    }
    if job.gang:
        ranges = [{"targetNodes": _ALL_NODES, "containerOverrides": container}]
        request["nodeOverrides"] = {"nodePropertyOverrides": ranges}
    else:
        request["containerOverrides"] = container
    if job.rows > 1:
        request["arrayProperties"] = {"size": job.rows}
    if job.timeout is not None:
        request["timeout"] = {"attemptDurationSeconds": max(MIN_TIMEOUT, math.ceil(job.timeout))}
    if place.fair_share:
        request["shareIdentifier"] = re.sub(r"[^A-Za-z0-9]", "", run.user)[:255] or "flowkit"
        request["schedulingPriorityOverride"] = 0
    return request


def _container(wanted: Mapping[str, Any], place: Place, defaults: Defaults) -> dict[str, Any]:
    cpu = _cpu(wanted)
    needs = [
        {"type": "VCPU", "value": f"{cpu:g}" if place.fargate else str(max(1, math.ceil(cpu)))},
        {"type": "MEMORY", "value": str(math.ceil(_memory(wanted)))},
    ]
    gpus = number(wanted.get("gpu"))
    if gpus:
        needs.append({"type": "GPU", "value": str(math.ceil(gpus))})
    container: dict[str, Any] = {"image": wanted.get("image") or defaults.image, "resourceRequirements": needs}
    roles = {
        "jobRoleArn": wanted.get("iam_role") or defaults.job_role,
        "executionRoleArn": wanted.get("execution_role") or defaults.execution_role,
    }
    container.update({name: role for name, role in roles.items() if role})
    linux = _linux(wanted)
    if linux:
        container["linuxParameters"] = linux
    volumes, mounts = _volumes(wanted)
    if volumes:
        container["volumes"], container["mountPoints"] = volumes, mounts
    if wanted.get("privileged"):
        container["privileged"] = True
    storage = number(wanted.get("ephemeral_storage"))
    if storage:
        container["ephemeralStorage"] = {"sizeInGiB": int(storage)}
    if place.fargate:
        # Without an address of its own a container in a public subnet reaches neither image nor datastore.
        container["networkConfiguration"] = {"assignPublicIp": "ENABLED"}
    options = log_options(wanted.get("log_options")) or {}
    if wanted.get("log_driver") or options:
        container["logConfiguration"] = {"logDriver": wanted.get("log_driver") or "awslogs", "options": options}
    return container


def _linux(wanted: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in (("shared_memory", "sharedMemorySize"), ("max_swap", "maxSwap"), ("swappiness", "swappiness")):
        value = number(wanted.get(name))
        if value is not None and (value or name != "shared_memory"):
            found[key] = math.ceil(value)
    if _tmpfs(wanted):
        size = number(wanted.get("tmpfs_size")) or _memory(wanted) / 2
        found["tmpfs"] = [{"containerPath": wanted.get("tmpfs_path") or DEFAULT_TMPFS, "size": math.ceil(size)}]
    devices = [f"/dev/neuron{index}" for index in range(_count(wanted, "inferentia") + _count(wanted, "trainium"))]
    devices += [f"/dev/infiniband/uverbs{index}" for index in range(_count(wanted, "efa"))]
    if devices:
        access = ["READ", "WRITE", "MKNOD"]
        found["devices"] = [{"hostPath": path, "containerPath": path, "permissions": access} for path in devices]
    return found


def _volumes(wanted: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []

    def mount(name: str, path: str, source: dict[str, Any]) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"sourceVolume": name, "containerPath": path, "readOnly": False})

    for index, text in enumerate(listed(wanted.get("host_volumes"))):
        found = host_volume(str(text))
        if found is not None:
            mount(f"host{index}", found[1], {"host": {"sourcePath": found[0]}})
    for index, text in enumerate(listed(wanted.get("efs_volumes"))):
        found = efs_volume(str(text))
        if found is not None:
            source = {"fileSystemId": found[0], "transitEncryption": "ENABLED"}
            mount(f"efs{index}", found[1], {"efsVolumeConfiguration": source})
    return volumes, mounts


def _tmpfs(wanted: Mapping[str, Any]) -> bool:
    return bool(wanted.get("use_tmpfs") or number(wanted.get("tmpfs_size")))


def _tempdir(wanted: Mapping[str, Any]) -> dict[str, str]:
    if not _tmpfs(wanted) or wanted.get("tmpfs_tempdir") is False:
        return {}
    path = str(wanted.get("tmpfs_path") or DEFAULT_TMPFS)
    return {"FLOWKIT_TEMPDIR": path, "TMPDIR": path}


def _cpu(wanted: Mapping[str, Any]) -> float:
    return number(wanted.get("cpu")) or DEFAULT_CPU


def _memory(wanted: Mapping[str, Any]) -> float:
    return number(wanted.get("memory")) or DEFAULT_MEMORY


def _count(wanted: Mapping[str, Any], name: str) -> int:
    return int(number(wanted.get(name)) or 0)


def _pairs(environment: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in environment.items()]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
