"""What is asked of AWS Batch before a run starts: can these steps run there?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.decorators.attributes import number
from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import Problem, StoreError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.batch_calls import call
from flowkit.plugins.aws.batch_jobs import DEFAULT_CPU, DEFAULT_MEMORY, Defaults, Place, problems
from flowkit.runtime.backend import BackendError
from flowkit.settings import settings

_SMALL_CPU, _SMALL_MEMORY = 2, 4096
"""What every instance type worth naming has: for no more, nobody is asked about them."""


class QueueFound(NamedTuple):
    """A job queue of the account.

    Parameters
    ----------
    place : Place
        What it is for jobs.
    wrong : str
        Why no job can be submitted to it; empty where one can.
    environments : tuple of str
        ARNs of its compute environments.
    machines : tuple of mapping
        The ``computeResources`` of those that are managed, where they may be seen.
    """

    place: Place
    wrong: str
    environments: tuple[str, ...]
    machines: tuple[Mapping[str, Any], ...] = ()


def find_queues(names: Sequence[str] | None) -> dict[str, QueueFound]:
    """Return the queues with these names (or ARNs), or all queues, by name as asked for.

    Raises
    ------
    BackendError
        If AWS Batch does not answer.
    """
    described: list[dict[str, Any]] = []
    token: str | None = None
    while True:
        asked: dict[str, Any] = {} if names is None else {"jobQueues": list(names)}
        answer = call("describe_job_queues", **asked, **({} if token is None else {"nextToken": token}))
        described += answer.get("jobQueues", ())
        token = answer.get("nextToken")
        if not token:
            break
    arns = sorted({one["computeEnvironment"] for queue in described for one in queue["computeEnvironmentOrder"]})
    environments = {} if names is None else _environments(arns)
    found: dict[str, QueueFound] = {}
    for queue in described:
        made = _queue(queue, environments)
        for name in (queue["jobQueueName"], queue["jobQueueArn"]):
            if names is not None and name in names:
                found[name] = made._replace(place=made.place._replace(queue=name))
        if names is None:
            found[queue["jobQueueName"]] = made
    return found


def _environments(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return compute environments by name and by ARN."""
    if not names:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for one in call("describe_compute_environments", computeEnvironments=list(names)).get("computeEnvironments", ()):
        found[one["computeEnvironmentArn"]] = found[one["computeEnvironmentName"]] = one
    return found


def _queue(queue: Mapping[str, Any], environments: Mapping[str, Mapping[str, Any]]) -> QueueFound:
    name = queue["jobQueueName"]
    arns = tuple(one["computeEnvironment"] for one in queue["computeEnvironmentOrder"])
    mine = [environments[arn] for arn in arns if arn in environments]
    resources = [one["computeResources"] for one in mine if one.get("computeResources")]
    kinds = [str(one.get("type", "")) for one in resources]
    fargate = any(kind.startswith("FARGATE") for kind in kinds)
    place = Place(name, fargate, bool(queue.get("schedulingPolicyArn")), all(kind == "EC2" for kind in kinds))
    wrong = ""
    if queue.get("state", "ENABLED") != "ENABLED":
        wrong = f"the queue '{name}' is disabled"
    elif queue.get("status", "VALID") not in ("VALID", "UPDATING"):
        wrong = f"the queue '{name}' is not valid ({queue['status']}: {queue.get('statusReason') or 'no reason told'})"
    elif any(one.get("containerOrchestrationType") == "EKS" or one.get("eksConfiguration") for one in mine):
        wrong = f"the queue '{name}' runs its jobs on EKS: use @kubernetes, or a queue on ECS"
    elif mine and all(one.get("state") == "DISABLED" or one.get("status") == "INVALID" for one in mine):
        told = "; ".join(f"{one['computeEnvironmentName']} is {_state(one)}" for one in mine)
        wrong = f"no compute environment of the queue '{name}' can be used: {told}"
    return QueueFound(place, wrong, arns, tuple(resources))


def _state(environment: Mapping[str, Any]) -> str:
    if environment.get("state") == "DISABLED":
        return "disabled"
    return f"not valid ({environment.get('statusReason') or 'no reason told'})"


class Check:
    """One look at everything that steps need of AWS Batch.

    Parameters
    ----------
    requests : mapping of str to ExecutorRequest
        What each step asks for.
    root : str or None
        The datastore's root as a container reaches it.
    given : Defaults
        What the settings say.

    Attributes
    ----------
    queues : dict of str to QueueFound
        The queues of the steps, after `problems`.
    """

    def __init__(self, requests: Mapping[str, ExecutorRequest], root: str | None, given: Defaults) -> None:
        self.queues: dict[str, QueueFound] = {}
        self._requests = requests
        self._root = root
        self._given = given

    def problems(self) -> list[Problem]:
        """Return everything that is wrong; an empty list where all steps can run."""
        told = []
        if self._root is not None and not self._root.startswith("s3://"):
            told.append(
                Problem(
                    "@batch needs the datastore on S3: jobs do not reach this machine's folders",
                    hint="set FLOWKIT_DATASTORE=s3://bucket/prefix",
                )
            )
        steps = self._by_queue()
        nameless = steps.pop("", [])
        if nameless:
            told.append(
                Problem(
                    f"no queue is named for {_named(nameless)}",
                    hint="write @batch(queue=…), or set FLOWKIT_BATCH_QUEUE",
                )
            )
        try:
            self.queues = find_queues(sorted(steps)) if steps else {}
            known = None if len(self.queues) == len(steps) else sorted(find_queues(None))
        except BackendError as error:
            return [*told, Problem(error.headline, hint=error.hint)]
        for queue, names in steps.items():
            found = self.queues.get(queue)
            if found is None:
                told.append(_unknown(queue, names, known or []))
            elif found.wrong:
                told.append(Problem(f"{found.wrong} ({_named(names)})", hint="enable it, or name another queue"))
            else:
                told += self._on_queue(found, names)
        return told

    def _by_queue(self) -> dict[str, list[str]]:
        steps: dict[str, list[str]] = {}
        for step, request in self._requests.items():
            steps.setdefault(str(request.resources.get("queue") or settings().batch_queue or ""), []).append(step)
        return steps

    def _on_queue(self, found: QueueFound, names: Sequence[str]) -> list[Problem]:
        told = []
        machines = _Machines(found)
        for step in names:
            wanted = self._requests[step].resources
            for text in [*problems(wanted, found.place, self._given), *machines.problems(wanted)]:
                told.append(Problem(f"step '{step}' cannot run on AWS Batch: {text}"))
        return told


class _Machines:
    """The largest machine of a queue, as far as it can be told."""

    def __init__(self, found: QueueFound) -> None:
        self._found = found
        self._largest: tuple[float, float, float] | None = None
        self._asked = False

    def problems(self, wanted: Mapping[str, Any]) -> list[str]:
        """Return what no machine of the queue has."""
        if self._found.place.fargate or not self._found.machines:
            return []
        queue = self._found.place.queue
        needs = (
            number(wanted.get("cpu")) or DEFAULT_CPU,
            number(wanted.get("memory")) or DEFAULT_MEMORY,
            number(wanted.get("gpu")) or 0.0,
        )
        most = max((float(one.get("maxvCpus") or 0) for one in self._found.machines), default=0.0)
        if most and needs[0] > most:
            return [f"cpu={needs[0]:.12g}, and the queue '{queue}' has {most:.12g} processors at the most (maxvCpus)"]
        if needs[0] <= _SMALL_CPU and needs[1] <= _SMALL_MEMORY and not needs[2]:
            return []
        largest = self._find_largest()
        if largest is None:
            return []
        units = (("cpu", "processors"), ("memory", "megabytes of memory"), ("gpu", "GPUs"))
        return [
            f"{name}={need:.12g}, and no instance type of the queue '{queue}' has more than {most:.12g} {unit}"
            for (name, unit), need, most in zip(units, needs, largest, strict=True)
            if need > most
        ]

    def _find_largest(self) -> tuple[float, float, float] | None:
        """Return the most processors, megabytes and GPUs of an instance type; None where it cannot be told."""
        if not self._asked:
            self._asked = True
            types = sorted({str(one) for machines in self._found.machines for one in machines.get("instanceTypes", ())})
            whole = all("instanceTypes" in machines for machines in self._found.machines)
            if whole and types and "optimal" not in types and not any(one.startswith("default") for one in types):
                self._largest = _largest(types)
        return self._largest


def _largest(types: Iterable[str]) -> tuple[float, float, float] | None:
    from botocore.exceptions import BotoCoreError, ClientError

    patterns = [one if "." in one else f"{one}.*" for one in types]
    found: list[Mapping[str, Any]] = []
    try:
        pages = session.client("ec2").get_paginator("describe_instance_types")
        for page in pages.paginate(Filters=[{"Name": "instance-type", "Values": patterns}]):
            found += page["InstanceTypes"]
    except (ClientError, BotoCoreError, StoreError):
        return None  # no permission to look: the queue says it later, as a job that stays RUNNABLE
    if not found:
        return None
    return (
        max(float(one["VCpuInfo"]["DefaultVCpus"]) for one in found),
        max(float(one["MemoryInfo"]["SizeInMiB"]) for one in found),
        max(float(sum(gpu.get("Count", 0) for gpu in one.get("GpuInfo", {}).get("Gpus", ()))) for one in found),
    )


def _unknown(queue: str, names: Sequence[str], known: Sequence[str]) -> Problem:
    from flowkit.exceptions import did_you_mean

    region = session.configured_region() or "this region"
    near = did_you_mean(queue, known)
    there = (
        f"in {region} there are: {', '.join(known[:10])}"
        if known
        else f"in {region} there is none; is it the right one?"
    )
    return Problem(f"there is no queue '{queue}' in {region} ({_named(names)})", hint=near or there)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5]) + (", …" if len(names) > 5 else "")
    return f"step {shown}" if len(names) == 1 else f"steps {shown}"
