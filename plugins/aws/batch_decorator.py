"""``@batch``: carry a step out on AWS Batch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import executor_request, step_decorator
from flowkit.decorators.attributes import check_flag, check_number, number
from flowkit.decorators.contract import ExecutorRequest, StepDecorator
from flowkit.exceptions import Problem, did_you_mean
from flowkit.plugins.aws.batch_jobs import (
    DEFAULT_CPU,
    DEFAULT_MEMORY,
    DEFAULT_TMPFS,
    MAX_TAGS,
    OWN_TAGS,
    efs_volume,
    fargate_problem,
    host_volume,
    listed,
    log_options,
    tag_problem,
)

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_NUMBERS = (
    "cpu", "gpu", "memory", "shared_memory", "max_swap", "swappiness", "inferentia", "trainium", "efa", "tmpfs_size",
    "ephemeral_storage",
)  # fmt: skip
_DRIVERS = (
    "awsfirelens", "awslogs", "fluentd", "gelf", "journald", "json-file", "logentries", "splunk", "syslog",
)  # fmt: skip
_ROLE = re.compile(r"arn:[a-z0-9-]+:iam::\d{12}:role/[\w+=,.@/-]+")
_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}|arn:[a-z0-9-]+:batch:[a-z0-9-]+:\d{12}:job-queue/[A-Za-z0-9_-]+")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@:-]{0,511}")


class Batch(StepDecorator):
    """Carry the step out on AWS Batch.

    A foreach becomes array jobs, a gang (``num_parallel``) a multi-node job. The datastore must be on S3. What is
    given here and what ``@resources`` says are merged: the larger counts.

    Parameters
    ----------
    cpu : float, default 1
        Processors; on EC2 whole ones.
    gpu : int, optional
        Graphics processors.
    memory : int, default 4096
        Megabytes of memory; a step that takes more is killed.
    image : str, optional
        Default: the settings ``batch_image``, ``container_image``, else ``python:<this version>-slim``.
    queue : str, optional
        Name or ARN of the job queue; default: the setting ``batch_queue``.
    iam_role, execution_role : str, optional
        ARNs of the role of the step's code, and of the role with which the container is started (which Fargate
        needs). Default: the settings ``batch_job_role`` and ``batch_execution_role``.
    shared_memory : int, optional
        Megabytes of ``/dev/shm``.
    max_swap, swappiness : int, optional
        Megabytes of swap space, and how readily it is used (0 to 100).
    inferentia, trainium : int, optional
        AWS accelerators; one kind of them.
    efa : int, optional
        Elastic Fabric Adapters.
    host_volumes : list of str, optional
        Folders of the machine, ``/folder`` or ``/folder:/where``.
    efs_volumes : list of str, optional
        EFS file systems, ``fs-…`` (mounted below ``/mnt``) or ``fs-…:/where``.
    use_tmpfs, tmpfs_tempdir : bool, default False and True
        Mount a file system in memory; make temporary files in it.
    tmpfs_size : int, optional
        Its megabytes; default: half of the memory. Giving it means ``use_tmpfs``.
    tmpfs_path : str, default "/flowkit_temp"
        Where it is mounted.
    ephemeral_storage : int, optional
        Gigabytes of disk, 21 to 200; for Fargate.
    log_driver : str, optional
        Where the container's own output goes; default ``awslogs``. Logs of flowkit do not need it.
    log_options : dict or list of str, optional
        Options of the driver, as a dict or as texts ``key:value``.
    executable : str, optional
        The Python of the image; default ``python``.
    privileged : bool, default False
        Give the container the rights of the machine's root.
    aws_batch_tags : dict of str to str, optional
        Tags of the jobs, besides flowkit's own.

    Examples
    --------
    >>> @batch(cpu=8, memory=32_000, queue="spot")
    ... @step
    ... def train(self): ...
    """

    name = "batch"
    defaults = {
        "cpu": None,
        "gpu": None,
        "memory": None,
        "image": None,
        "queue": None,
        "iam_role": None,
        "execution_role": None,
        "shared_memory": None,
        "max_swap": None,
        "swappiness": None,
        "inferentia": None,
        "trainium": None,
        "efa": None,
        "host_volumes": None,
        "efs_volumes": None,
        "use_tmpfs": False,
        "tmpfs_tempdir": True,
        "tmpfs_size": None,
        "tmpfs_path": DEFAULT_TMPFS,
        "ephemeral_storage": None,
        "log_driver": None,
        "log_options": None,
        "executable": None,
        "privileged": False,
        "aws_batch_tags": None,
    }

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check every attribute, and that the step has no other place to run."""
        wrong = [*self._text_problems(), *self._mount_problems(), *self._tag_problems(), *self._together(flow, node)]
        problems = [*self._number_problems(), *(self.problem(f"@batch: {text}") for text in wrong)]
        for name in ("use_tmpfs", "tmpfs_tempdir", "privileged"):
            problems += check_flag(self, name)
        return problems

    def executor(self) -> ExecutorRequest | None:
        """Return what was given, in the forms that `flowkit.plugins.aws.batch_jobs` reads."""
        wanted: dict[str, Any] = {}
        for name, value in self.attributes.items():
            if name in self.given and value is not None:
                wanted[name] = _plain(name, value)
        return ExecutorRequest("batch", wanted)

    def _number_problems(self) -> list[Problem]:
        return [
            *check_number(self, "cpu", low=0, above=True, optional=True),
            *check_number(self, "gpu", low=0, whole=True, optional=True),
            *check_number(self, "memory", low=4, optional=True, unit="megabytes"),
            *check_number(self, "shared_memory", low=0, optional=True, unit="megabytes"),
            *check_number(self, "max_swap", low=0, whole=True, optional=True, unit="megabytes"),
            *check_number(self, "swappiness", low=0, high=100, whole=True, optional=True),
            *check_number(self, "inferentia", low=0, high=16, whole=True, optional=True),
            *check_number(self, "trainium", low=0, high=16, whole=True, optional=True),
            *check_number(self, "efa", low=0, high=32, whole=True, optional=True),
            *check_number(self, "tmpfs_size", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "ephemeral_storage", low=21, high=200, whole=True, optional=True, unit="gigabytes"),
        ]

    def _text_problems(self) -> list[str]:
        given, wrong = self.attributes, []
        for name, pattern, example in (
            ("image", _IMAGE, "a reference of an image, like registry.example.com/team/train:3"),
            ("queue", _QUEUE, "a queue's name (letters, digits, - and _) or ARN"),
            ("iam_role", _ROLE, "a role's ARN, like arn:aws:iam::123456789012:role/name"),
            ("execution_role", _ROLE, "a role's ARN, like arn:aws:iam::123456789012:role/name"),
        ):
            value = given[name]
            if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
                wrong.append(f"{name}={value!r} is not {example}")
        driver = given["log_driver"]
        if driver is not None and driver not in _DRIVERS:
            near = did_you_mean(str(driver), _DRIVERS)
            wrong.append(f"log_driver={driver!r} must be one of {', '.join(_DRIVERS)}" + (f" ({near})" if near else ""))
        if log_options(given["log_options"]) is None:
            wrong.append('log_options must be a dict, or texts like "awslogs-group:/aws/batch/job"')
        executable = given["executable"]
        if executable is not None and (not isinstance(executable, str) or not executable.strip()):
            wrong.append(f"executable={executable!r} must be the path of a Python")
        return wrong

    def _mount_problems(self) -> list[str]:
        wrong: list[str] = []
        seen: dict[str, str] = {}
        mounts: list[tuple[str, str]] = []
        for name, read, form in (
            ("host_volumes", host_volume, "/folder or /folder:/where"),
            ("efs_volumes", efs_volume, "fs-… or fs-…:/where"),
        ):
            for text in listed(self.attributes[name]):
                found = read(text) if isinstance(text, str) else None
                if found is None:
                    wrong.append(f"{name}: {text!r} is not {form}")
                else:
                    mounts.append((f"{name}: '{text}'", found[1]))
        if self.attributes["use_tmpfs"] is True or self.attributes["tmpfs_size"] is not None:
            path = self.attributes["tmpfs_path"]
            if not isinstance(path, str) or host_volume(path) != (path, path):
                wrong.append(f"tmpfs_path={path!r} must be a folder's whole path, without ':'")
            else:
                mounts.append(("tmpfs_path", path))
        for what, path in mounts:
            other = seen.setdefault(path.rstrip("/"), what)
            if other != what:
                wrong.append(f"{what} and {other} are both mounted at {path}")
        return wrong

    def _tag_problems(self) -> list[str]:
        tags = self.attributes["aws_batch_tags"]
        if tags is None:
            return []
        if not isinstance(tags, Mapping):
            return ["aws_batch_tags must be a dict of texts, like {'team': 'forecast'}"]
        wrong = [text for key, value in tags.items() if (text := tag_problem(key, value))]
        most = MAX_TAGS - len(OWN_TAGS)
        if len(tags) > most:
            wrong.append(f"aws_batch_tags has {len(tags)} tags; {most} are possible, besides flowkit's own")
        return wrong

    def _together(self, flow: FlowDefinition, node: Node) -> list[str]:
        """Return what is wrong with attributes that are right each by itself."""
        given, wrong = self.attributes, []
        if number(given["inferentia"]) and number(given["trainium"]):
            wrong.append("inferentia and trainium exclude each other")
        if given["swappiness"] is not None and given["max_swap"] is None:
            wrong.append("swappiness needs max_swap")
        step = flow.steps[node.name]
        if any(other.name == "docker" for other in step.decorators):
            wrong.append(f"step '{node.name}' has @docker as well, and can run in one place only")
        if given["ephemeral_storage"] is not None:
            wanted = executor_request(step).resources
            cpu = number(wanted.get("cpu")) or DEFAULT_CPU
            problem = fargate_problem(cpu, number(wanted.get("memory")) or DEFAULT_MEMORY)
            wrong += [f"ephemeral_storage is for Fargate; {problem}"] if problem else []
        return wrong


def _plain(name: str, value: Any) -> Any:
    if name in _NUMBERS:
        read = number(value)
        return int(read) if read is not None and read.is_integer() else read
    if name in ("host_volumes", "efs_volumes"):
        return [str(text) for text in listed(value)]
    if name == "log_options":
        return log_options(value)
    return dict(value) if isinstance(value, Mapping) else value


batch = step_decorator(Batch)
