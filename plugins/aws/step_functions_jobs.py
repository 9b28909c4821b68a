"""The Batch jobs of a state machine: one job definition for each step, which has the constant command and environment.

So a state only says what varies, which is little: what may be overridden of a job has 8,192 characters, and the
definition of a state machine 1 MB. A job definition is named after what was asked for, before anybody has looked
whether its queue is Fargate's; so the machine's definition is known without a call.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.decorators.contract import ExecutorRequest
from flowkit.deployer.target import Deployment
from flowkit.plugins.aws.batch_jobs import MAX_NAME, OWN_TAGS, Defaults, Place, requests, tag_value
from flowkit.plugins.aws.machine_states import HOST_LOST, Job
from flowkit.runtime.backend import RemoteRun, Submission
from flowkit.settings import settings

TIMEOUT_SLACK = 600.0
"""Seconds beyond a step's timeout, which the container itself keeps, until Batch ends the job: it has to be set up
first, and may have to be told that its time is over."""
END = ""
"""Stands for the end command among the steps."""
_OWN_TRIES = 10
"""Attempts that Batch takes."""


class StepJob(NamedTuple):
    """The job of a step, as it is asked for.

    Parameters
    ----------
    job : Job
        What the state says.
    submission : Submission
        What the job definition is made of.
    """

    job: Job
    submission: Submission


def step_jobs(
    deployment: Deployment, defaults: Defaults, tags: Mapping[str, str], share: str | None
) -> dict[str, StepJob]:
    """Return the jobs of a deployment by step, and that of its end command as `END`.

    Parameters
    ----------
    deployment : Deployment
    defaults : Defaults
        What the settings say for steps that say nothing.
    tags : mapping of str to str
        Further tags of all jobs.
    share : str or None
        The share identifier.
    """
    found = {}
    start = deployment.graph.start or ""
    for name, plan in deployment.steps.items():
        gang = 2 if _in_gang(deployment, name) else 0  # the real number is told when it is known
        timeout = plan.attempts.timeout
        submission = Submission(
            name=_job_name(deployment.flow, name),
            step=name,
            rows=1,
            gang=gang,
            request=plan.request,
            command=plan.command,
            environment=plan.environment,
            timeout=None if timeout is None else timeout + TIMEOUT_SLACK,
        )
        found[name] = _job(deployment, submission, defaults, tags, share)
    # The end command has no request of its own: where and as whom the start step runs, it can run as well.
    request = deployment.steps[start].request if start in deployment.steps else ExecutorRequest("batch")
    small = {
        key: value
        for key, value in request.resources.items()
        if key in ("queue", "image", "iam_role", "execution_role", "log_driver", "log_options")
    }
    submission = Submission(
        name=_job_name(deployment.flow, "end-of-run"),
        step="end-of-run",
        rows=1,
        gang=0,
        request=ExecutorRequest("batch", small),
        command=deployment.end_command,
        environment=deployment.end_environment,
        timeout=None,
    )
    found[END] = _job(deployment, submission, defaults, tags, share)
    return found


def job_definition(submission: Submission, place: Place, defaults: Defaults) -> dict[str, Any]:
    """Return the parameters of RegisterJobDefinition, but for the name.

    Raises
    ------
    ValueError
        If AWS Batch would refuse it; the message says which limit is passed.
    """
    run = RemoteRun("", "", "", "")
    made = requests(submission, run, place, defaults)
    overrides = made.submission.get("containerOverrides")
    found = dict(made.definition)
    if overrides is None:
        ranges = made.submission["nodeOverrides"]["nodePropertyOverrides"]
        overrides = ranges[0]["containerOverrides"]
        own = found["nodeProperties"]["nodeRangeProperties"][0]["container"]
    else:
        own = found["containerProperties"]
    own["command"] = overrides["command"]
    own["environment"] = overrides.get("environment", own.get("environment", []))
    if not submission.gang:  # its nodes have to agree on the attempt, which the machine counts
        found["retryStrategy"] = _own_retries()
    if "timeout" in made.submission:
        found["timeout"] = made.submission["timeout"]
    return found


def _own_retries() -> dict[str, Any]:
    return {
        "attempts": min(_OWN_TRIES, 1 + settings().infrastructure_retries),
        "evaluateOnExit": [
            {"onStatusReason": HOST_LOST, "action": "RETRY"},
            {"onReason": "*", "action": "EXIT"},
        ],
    }


def queue_of(request: ExecutorRequest) -> str:
    """Return the queue that a step asks for, or the settings name; empty for none."""
    return str(request.resources.get("queue") or settings().batch_queue or "")


def _job(
    deployment: Deployment, submission: Submission, defaults: Defaults, tags: Mapping[str, str], share: str | None
) -> StepJob:
    wanted = submission.request.resources
    queue = queue_of(submission.request)
    own = dict(zip(OWN_TAGS, (deployment.flow, "", submission.step, deployment.user), strict=True))
    del own["flowkit.run"]
    every = {**(wanted.get("aws_batch_tags") or {}), **tags, **{key: tag_value(text) for key, text in own.items()}}
    asked = [
        deployment.name,
        submission.step,
        submission.gang,
        dict(wanted),
        list(submission.command),
        dict(submission.environment),
        submission.timeout,
        queue,
        list(defaults),
        settings().infrastructure_retries,
    ]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    return StepJob(Job(f"flowkit-{digest[:32]}", submission.name, queue, every, share), submission)


def _job_name(flow: str, step: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", f"fk-{flow}-{step}").strip("-")
    return plain[:MAX_NAME]


def _in_gang(deployment: Deployment, step: str) -> bool:
    return any(deployment.graph[source].kind == "parallel" for source in deployment.graph[step].sources)
