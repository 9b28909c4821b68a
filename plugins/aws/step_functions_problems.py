"""What stands against a deployment to AWS Step Functions: told all at once, before anything is made."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.deployer.target import Deployment
from flowkit.exceptions import FlowkitError, Problem
from flowkit.plugins.aws.batch import defaults
from flowkit.plugins.aws.batch_jobs import Place as Queue
from flowkit.plugins.aws.batch_preflight import Check
from flowkit.plugins.aws.event_bridge import cron_problem
from flowkit.plugins.aws.machine_size import histories
from flowkit.plugins.aws.machine_states import Place
from flowkit.plugins.aws.step_functions_calls import wanted
from flowkit.plugins.aws.step_functions_jobs import StepJob, job_definition, queue_of
from flowkit.plugins.aws.step_functions_limits import MAX_DEFINITION, MAX_HISTORY, MAX_NAME, MAX_OVERRIDES
from flowkit.settings import settings

_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_ROLE = re.compile(r"arn:[a-z-]+:iam::[0-9]{12}:role/.+")
_FIXED = 700
"""Characters of the overrides of a start job besides parameters."""


def place_of(root: str) -> Place | None:
    """Return bucket and prefix of a datastore on S3; None where it is none."""
    scheme, separator, rest = root.partition("://")
    bucket, _, prefix = rest.partition("/")
    return Place(bucket, prefix.strip("/")) if separator and scheme == "s3" and bucket else None


def problems(deployment: Deployment) -> list[Problem]:
    """Return what can be told without a call, but for sizes."""
    found = []
    if len(deployment.name) > MAX_NAME or not _NAME.fullmatch(deployment.name):
        told = f"'{deployment.name}' is not a state machine's name: up to {MAX_NAME} letters, digits, - _ and ."
        found.append(Problem(told, None, "give another one: --name"))
    if place_of(deployment.root) is None:
        told = f"AWS Step Functions reads what follows a step from S3, and the datastore is {deployment.root}"
        found.append(Problem(told, None, "FLOWKIT_DATASTORE=s3://bucket/prefix"))
    for what, plans in (("@trigger", deployment.events), ("@trigger_on_finish", deployment.finishes)):
        if len(plans) > 1:
            names = ", ".join(plan.flow or plan.name for plan in plans)
            told = f"{what} waits for all of {names}: EventBridge starts a state machine on one event, and keeps none"
            found.append(Problem(told, None, "name one event, or deploy to the scheduler in the box or Argo Workflows"))
    if deployment.schedule is not None:
        wrong = cron_problem(deployment.schedule.cron)
        if wrong:
            told = f"the schedule '{deployment.schedule.cron}' is not to be had: {wrong}"
            found.append(Problem(told, None, "write ? for one of both, and deploy the flow twice if it needs both"))
    for node in deployment.graph.nodes.values():
        if node.kind == "switch" and not all(target.isascii() for target in node.targets):
            told = f"step '{node.name}' chooses between steps whose names AWS cannot tell it: object metadata is ASCII"
            found.append(Problem(told, node.next_location, "rename them"))
    return found


def size_problems(
    deployment: Deployment, jobs: Mapping[str, StepJob], document: Mapping[str, Any], start: Sequence[tuple[str, str]]
) -> list[Problem]:
    """Return limits that the deployment passes."""
    found = []
    size = len(json.dumps(document["definition"], ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_DEFINITION:
        told = f"the state machine has {size:,} bytes, and AWS Step Functions takes {MAX_DEFINITION:,}"
        found.append(Problem(told, None, "split the flow in two, the second with @trigger_on_finish"))
    longest = histories(document["definition"])
    if longest > MAX_HISTORY:
        told = f"a run may have {longest:,} events in its history, and AWS Step Functions ends it after {MAX_HISTORY:,}"
        found.append(Problem(told, None, "split the flow in two, the second with @trigger_on_finish"))
    values = sum(len(parameter.default or "") for parameter in deployment.parameters)
    size = _FIXED + values + sum(len(name) + 30 for name, _ in start)
    if size > MAX_OVERRIDES:
        told = f"the parameters and their defaults take {size:,} characters, and AWS Batch takes {MAX_OVERRIDES:,}"
        found.append(Problem(told, None, "make a few of them one parameter of type JSON, or a config"))
    for job in jobs.values():
        try:
            job_definition(job.submission, Queue(job.job.queue), defaults())
        except ValueError as error:
            told = f"step '{job.submission.step}' cannot run on AWS Batch: {error}"
            node = deployment.graph.nodes.get(job.submission.step)
            found.append(Problem(told, node.location if node else None))
    return found


def preflight_problems(deployment: Deployment, options: Mapping[str, Any]) -> list[Problem]:
    """Ask AWS whether it would take the deployment."""
    found = []
    starters = deployment.schedule is not None or deployment.events or deployment.finishes
    given = settings()
    roles = [("step_functions_role", given.step_functions_role, "runs the state machine", True)]
    roles.append(("eventbridge_role", given.eventbridge_role, "starts it on schedules and events", bool(starters)))
    for name, role, what, needed in roles:
        variable = f"FLOWKIT_{name.upper()}"
        if needed and not role:
            found.append(Problem(f"no role is named that {what}", None, f"set {variable}: docs/step_functions.md"))
        elif role and not _ROLE.fullmatch(role):
            told = f"{role!r} is not the ARN of a role"
            found.append(Problem(told, None, f"{variable}=arn:aws:iam::123456789012:role/…"))
    try:
        wanted("stepfunctions", "list_state_machines", maxResults=1)
    except FlowkitError as error:
        return [*found, Problem(error.headline, error.where, error.hint)]
    check = Check({name: plan.request for name, plan in deployment.steps.items()}, deployment.root, defaults())
    found += check.problems()
    for name, plan in deployment.steps.items():
        queue = check.queues.get(queue_of(plan.request))
        gang = any(deployment.graph[source].kind == "parallel" for source in deployment.graph[name].sources)
        if queue is not None and gang and not queue.place.gangs:
            told = f"step '{name}': gangs need EC2 instances that are not spot, and '{queue.place.queue}' has others"
            found.append(Problem(told, deployment.graph[name].location))
    shared = sorted(name for name, queue in check.queues.items() if queue.place.fair_share)
    if shared and not options.get("share_identifier"):
        told = f"the queue '{shared[0]}' has a scheduling policy, and wants to know whose share jobs count for"
        found.append(Problem(told, None, "give one: --share-identifier NAME"))
    return found
