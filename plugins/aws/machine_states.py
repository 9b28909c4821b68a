"""The states of one step: its job, the look at what follows it, and of a gang the watch over its job."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flowkit.datastore.layout import manifest_file
from flowkit.deployer.target import ATTEMPT, GANG, PREFIX, RUN, TASK, Deployment
from flowkit.plugins.aws.machine_start import escaped, start_environment, throttled
from flowkit.plugins.aws.step_functions_limits import GANG_POLLS, MAX_DELAY, MAX_STATE_NAME

HOST_LOST = "Host EC2*"
"""How the reason begins with which Batch ends a job whose machine is gone."""
GANG_FAILED = "flowkit.GangFailed"
_RUN, _TASK = "0run0", "0task0"
"""Stand for the run's id and the task's in a path until the intrinsic's own places do."""

Pairs = list[tuple[str, str]]
"""Environment variables; a value that begins with ``$`` or ``States.`` is looked up when the state is entered."""


class Job(NamedTuple):
    """What a state says of its Batch job, besides the environment.

    Parameters
    ----------
    definition : str
        The name of the job definition, without a revision: the newest is taken.
    name, queue : str
    tags : mapping of str to str
        Without that of the run.
    share : str or None
        The share identifier, for a queue with a scheduling policy.
    """

    definition: str
    name: str
    queue: str
    tags: Mapping[str, str]
    share: str | None = None


class Place(NamedTuple):
    """Where the datastore is: its bucket, and the prefix within, without slashes at its ends."""

    bucket: str
    prefix: str


class Names:
    """Names of states: unique in a machine, and short enough.

    Those that belong to no step have a space in them, so that no step can have the same.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], str] = {}
        self._taken: set[str] = set()

    def __call__(self, step: str, variant: str = "", what: str = "") -> str:
        """Return the name of a state, the same for the same arguments.

        Parameters
        ----------
        step : str
            Whose it is.
        variant : str
            Which of several ways through the same steps.
        what : str
            What it does for the step; empty for the step itself.
        """
        key = (step, variant, what)
        found = self._known.get(key)
        if found is None:
            found = whole = f"{step}: {what}{variant}" if what else f"{step}{variant}"
            number = 1
            while len(found) > MAX_STATE_NAME or found in self._taken:
                mark = hashlib.sha256(f"{whole} {number}".encode()).hexdigest()[:8]
                found, number = f"{whole[: MAX_STATE_NAME - 9]} {mark}", number + 1
            self._known[key] = found
            self._taken.add(found)
        return found


class StepStates:
    """Makes the states of steps.

    Parameters
    ----------
    deployment : Deployment
    jobs : mapping of str to Job
        By step.
    place : Place
        The datastore.
    name : Names
    """

    def __init__(self, deployment: Deployment, jobs: Mapping[str, Job], place: Place, name: Names) -> None:
        self._deployment = deployment
        self._graph = deployment.graph
        self._jobs = jobs
        self._place = place
        self._name = name

    def task(self, step: str, more: Pairs | None = None, task: str = "$.task") -> dict[str, Any]:
        """Return the state that carries a task out: it has no field yet that says what comes next."""
        pairs = [(RUN, "$.run"), (TASK, task), *(more or ())]
        if step == self._graph.start:
            pairs += start_environment(self._deployment)
        return job_state(self._jobs[step], pairs, self.retries(step))

    def head(self, step: str, selected: Mapping[str, str]) -> dict[str, Any]:
        """Return the state that reads the metadata of a task's manifest into ``$.head``."""
        return {
            "Type": "Task",
            "Resource": "arn:aws:states:::aws-sdk:s3:headObject",
            "Parameters": {"Bucket": self._place.bucket, "Key.$": self.key(step, manifest_file)},
            "ResultSelector": dict(selected),
            "ResultPath": "$.head",
            "Retry": [throttled("States.TaskFailed")],
        }

    def key(self, step: str, path: Callable[[str, str, str, str], str]) -> str:
        """Return the intrinsic that gives the key of an object of the task that goes on."""
        loop = self._graph[step].is_loop
        prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        text = escaped(prefix + path(self._deployment.flow, _RUN, step, _TASK))
        text = text.replace(_RUN, "{}").replace(_TASK, "{}-{}" if loop else "{}")
        return f"States.Format('{text}', $.run, $.task{', $.loop.turn' if loop else ''})"

    def retries(self, step: str) -> list[dict[str, Any]]:
        """Return how the user's attempts are begun again: lost machines are made up for by Batch itself."""
        attempts = self._deployment.steps[step].attempts
        again = attempts.retries + int(attempts.fallback)
        if not again:
            return []
        longest = min(max(1, round(attempts.max_delay)), MAX_DELAY)
        first = min(max(1, round(attempts.delay)), longest)
        pause: dict[str, Any] = {"IntervalSeconds": first, "BackoffRate": max(1.0, attempts.backoff)}
        if attempts.backoff > 1.0 and longest > first:
            pause["MaxDelaySeconds"] = longest
        elif attempts.backoff > 1.0:
            pause["BackoffRate"] = 1.0
        return [{"ErrorEquals": ["States.TaskFailed"], **pause, "MaxAttempts": again}]

    # -- gangs ---------------------------------------------------------------------------------------------------------

    def gang_entry(self, step: str, variant: str) -> str:
        """Return the state with which a gang begins."""
        return self._name(step, variant, "first attempt")

    def gang(self, step: str, variant: str, nested: bool, following: str) -> dict[str, Any]:
        """Return the states of a gang: one job with several nodes.

        Their number can only be given by the SDK's own call, which does not wait; so the job is looked at, ever less
        often. All nodes are told the attempt, which no one of them could find out.
        """
        name = [self._name(step, variant, what) for what in ("", "wait", "state", "how it stands", "wait longer")]
        submit, wait, look, how, longer = name
        failed, pause, again = (self._name(step, variant, what) for what in ("failed", "pause", "next attempt"))
        attempts = self._deployment.steps[step].attempts
        service = throttled("Batch.BatchException", "Batch.ServerException", "Batch.SdkClientException")
        begun = {"seconds": GANG_POLLS[0], "attempt": 0}
        return {
            self.gang_entry(step, variant): {
                "Type": "Pass",
                "Result": begun,
                "ResultPath": "$.gang",
                "Next": submit,
            },
            submit: {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:batch:submitJob",
                "Parameters": self._nodes(step, nested),
                "ResultSelector": {"id.$": "$.JobId"},
                "ResultPath": "$.submitted",
                "Retry": [service],
                "Next": wait,
            },
            wait: {"Type": "Wait", "SecondsPath": "$.gang.seconds", "Next": look},
            look: {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:batch:describeJobs",
                "Parameters": {"Jobs.$": "States.Array($.submitted.id)"},
                "ResultSelector": {"found.$": "States.ArrayGetItem($.Jobs, 0)"},
                "ResultPath": "$.job",
                "Retry": [service],
                "Next": how,
            },
            how: {"Type": "Choice", "Choices": self._how(step, following, pause, failed, longer), "Default": wait},
            longer: _counted({"seconds.$": f"States.MathAdd($.gang.seconds, {GANG_POLLS[0]})"}, wait),
            pause: {"Type": "Wait", "Seconds": max(1, round(attempts.delay)), "Next": again},
            again: _counted({"attempt.$": "States.MathAdd($.gang.attempt, 1)"}, submit),
            failed: {"Type": "Fail", "Error": GANG_FAILED, "Cause": f"the gang of step '{step}' failed"},
        }

    def _how(self, step: str, following: str, pause: str, failed: str, longer: str) -> list[dict[str, Any]]:
        """Return the ways on of a gang: it has succeeded, is tried again, has failed, or goes on."""
        plan = self._deployment.steps[step]
        retries = plan.attempts.retries + int(plan.attempts.fallback)
        status, reason, attempt = "$.job.found.Status", "$.job.found.StatusReason", "$.gang.attempt"
        broken = {"Variable": status, "StringEquals": "FAILED"}
        lost = [
            broken,
            {"Variable": reason, "IsPresent": True},
            {"Variable": reason, "StringMatches": HOST_LOST},
            {"Variable": attempt, "NumericLessThan": plan.tries - 1},
        ]
        return [
            {"Variable": status, "StringEquals": "SUCCEEDED", "Next": following},
            {"And": [broken, {"Variable": attempt, "NumericLessThan": retries}], "Next": pause},
            {"And": lost, "Next": pause},
            {**broken, "Next": failed},
            {"Variable": "$.gang.seconds", "NumericLessThan": GANG_POLLS[1], "Next": longer},
        ]

    def _nodes(self, step: str, nested: bool) -> dict[str, Any]:
        """Return the parameters of the submission of a gang's job."""
        pairs = [
            (RUN, "$.run"),
            (PREFIX, "States.Format('{}.', $.task)" if nested else ""),
            (GANG, "States.Format('{}', $.head.width)"),
            (ATTEMPT, "States.Format('{}', $.gang.attempt)"),
        ]
        parameters: dict[str, Any] = job_state(self._jobs[step], pairs)["Parameters"]
        container = parameters.pop("ContainerOverrides")
        ranges = [{"TargetNodes": "0:", "ContainerOverrides": container}]
        parameters["NodeOverrides"] = {"NumNodes.$": "$.head.width", "NodePropertyOverrides": ranges}
        return parameters


def job_state(job: Job, pairs: Pairs, retry: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a state that submits a job and waits for its end; what it did before stays as it is."""
    environment = [
        {"Name": name, ("Value.$" if value.startswith(("$", "States.")) else "Value"): value} for name, value in pairs
    ]
    parameters: dict[str, Any] = {
        "JobName": job.name,
        "JobDefinition": job.definition,
        "JobQueue": job.queue,
        "ContainerOverrides": {"Environment": environment},
        "Tags": {**job.tags, "flowkit.run.$": "$.run"},
        "PropagateTags": True,
    }
    if job.share is not None:
        parameters.update({"ShareIdentifier": job.share, "SchedulingPriorityOverride": 0})
    service = throttled("Batch.AWSBatchException", "Batch.ServerException", "Batch.SdkClientException")
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::batch:submitJob.sync",
        "Parameters": parameters,
        "ResultPath": None,
        "Retry": [service, *(retry or ())],
    }


def _counted(changed: dict[str, str], following: str) -> dict[str, Any]:
    kept = {f"{name}.$": f"$.gang.{name}" for name in ("seconds", "attempt") if f"{name}.$" not in changed}
    return {"Type": "Pass", "Parameters": {**kept, **changed}, "ResultPath": "$.gang", "Next": following}
