"""Making a state machine and what starts it, as its document says; what an earlier version had besides is removed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flowkit.deployer.target import Deployment
from flowkit.exceptions import Conflict
from flowkit.plugins.aws.batch_jobs import Defaults, Place
from flowkit.plugins.aws.batch_preflight import find_queues
from flowkit.plugins.aws.event_bridge import short_name
from flowkit.plugins.aws.step_functions_calls import Account, call, wanted
from flowkit.plugins.aws.step_functions_jobs import StepJob, job_definition
from flowkit.plugins.aws.step_functions_limits import MAX_SCHEDULE_NAME
from flowkit.runtime.backend import BackendError
from flowkit.settings import settings

_TARGET = "flowkit"
"""The id of the one target of each rule."""
_OURS = "Starts {name} (flow "
"""How the description of a rule begins that was made for a deployment."""


class Applied:
    """One deployment on its way to the services.

    Parameters
    ----------
    where : Account
    deployment : Deployment
    document : mapping
        What `StepFunctions.compile` made.
    """

    def __init__(self, where: Account, deployment: Deployment, document: Mapping[str, Any]) -> None:
        self._where = where
        self._deployment = deployment
        self._document = document
        self._arn = where.arn("states", f"stateMachine:{document['name']}")

    def job_definitions(self, jobs: Mapping[str, StepJob], defaults: Defaults) -> None:
        """Register the job definitions that are not there yet."""
        queues = find_queues(sorted({job.job.queue for job in jobs.values()}))
        for job in jobs.values():
            found = queues.get(job.job.queue)
            place = found.place if found is not None else Place(job.job.queue)
            try:
                content = job_definition(job.submission, place, defaults)
            except ValueError as error:
                raise BackendError(f"step '{job.submission.step}' cannot run on AWS Batch: {error}") from error
            name = job.job.definition
            known = wanted("batch", "describe_job_definitions", jobDefinitionName=name, status="ACTIVE")
            there = max(known.get("jobDefinitions", ()), key=lambda one: one.get("revision", 0), default=None)
            if there is None or there.get("platformCapabilities", []) != content.get("platformCapabilities", []):
                wanted("batch", "register_job_definition", jobDefinitionName=name, **content)

    def machine(self, log_group: str | None) -> None:
        """Make the state machine, or give it its new definition."""
        text = json.dumps(self._document["definition"], ensure_ascii=False, separators=(",", ":"))
        if self._where.partition != "aws":
            text = text.replace("arn:aws:states:::", f"arn:{self._where.partition}:states:::")
        told: dict[str, Any] = {"definition": text, "roleArn": settings().step_functions_role}
        if log_group:
            group = log_group if log_group.endswith(":*") else f"{log_group}:*"
            told["loggingConfiguration"] = {
                "level": "ALL",
                "includeExecutionData": False,
                "destinations": [{"cloudWatchLogsLogGroup": {"logGroupArn": group}}],
            }
        tags = [{"key": key, "value": value} for key, value in self._document["tags"].items()]
        gone = ("StateMachineDoesNotExist",)
        if call("stepfunctions", "describe_state_machine", absent=gone, stateMachineArn=self._arn) is None:
            wanted(
                "stepfunctions", "create_state_machine", name=self._document["name"], type="STANDARD", tags=tags, **told
            )
        else:
            wanted("stepfunctions", "update_state_machine", stateMachineArn=self._arn, **told)
            wanted("stepfunctions", "tag_resource", resourceArn=self._arn, tags=tags)

    def lines(self) -> list[str]:
        """Return where the state machine is."""
        region, arn = self._where.region, self._arn
        place = {"aws-cn": "console.amazonaws.cn", "aws-us-gov": "console.amazonaws-us-gov.com"}
        console = place.get(self._where.partition, f"{region}.console.aws.amazon.com")
        return [f"state machine {arn}", f"https://{console}/states/home?region={region}#/statemachines/view/{arn}"]

    def schedule(self) -> list[str]:
        """Make, replace or remove the schedule."""
        wanted_one = self._document["schedule"]
        if wanted_one is None:
            _remove_schedule(self._deployment.name)
            return []
        target = {**wanted_one["Target"], "Arn": self._arn, "RoleArn": settings().eventbridge_role}
        told = {**wanted_one, "Target": target}
        # It may be there although the answer to a first call was lost.
        if call("scheduler", "create_schedule", absent=("ConflictException",), **told) is None:
            there = wanted("scheduler", "get_schedule", Name=told["Name"])
            if not str(there.get("Description", "")).startswith(_OURS.format(name=self._deployment.name)):
                raise Conflict(
                    f"there is a schedule '{told['Name']}' at EventBridge Scheduler that flowkit has not made",
                    "rename it, or deploy the flow under another name: --name",
                )
            wanted("scheduler", "update_schedule", **told)
        return [f"schedule {told['ScheduleExpression']} in {told['ScheduleExpressionTimezone']}"]

    def rules(self) -> list[str]:
        """Make the rules, and remove those of an earlier version."""
        names = set()
        for rule in self._document["rules"]:
            names.add(rule["Name"])
            wanted("events", "put_rule", **rule)
            target = {"Id": _TARGET, "Arn": self._arn, "RoleArn": settings().eventbridge_role}
            answer = wanted("events", "put_targets", Rule=rule["Name"], Targets=[target])
            if answer.get("FailedEntryCount"):
                failed = answer["FailedEntries"][0]
                raise BackendError(f"EventBridge refuses a target: {failed.get('ErrorMessage')}")
        _remove_rules(self._deployment.name, self._arn, keep=names)
        return [f"rule {rule['Name']}: {rule['EventPattern']}" for rule in self._document["rules"]]


def remove_starters(name: str, arn: str) -> None:
    """Remove the schedule and the rules of a deployment."""
    _remove_schedule(name)
    _remove_rules(name, arn, keep=set())


def _remove_schedule(name: str) -> None:
    gone = ("ResourceNotFoundException",)
    short = short_name(name, MAX_SCHEDULE_NAME)
    there = call("scheduler", "get_schedule", absent=gone, Name=short)
    # Somebody may have a schedule of that name for something else.
    if there is not None and str(there.get("Description", "")).startswith(_OURS.format(name=name)):
        call("scheduler", "delete_schedule", absent=gone, Name=short)


def _remove_rules(name: str, arn: str, *, keep: set[str]) -> None:
    """Remove the rules that start a machine and were made for it; those that somebody else has made stay."""
    gone = ("ResourceNotFoundException",)
    token: dict[str, str] = {}
    found: list[str] = []
    while True:
        page = wanted("events", "list_rule_names_by_target", TargetArn=arn, **token)
        found += page.get("RuleNames", ())
        if not page.get("NextToken"):
            break
        token = {"NextToken": page["NextToken"]}
    for rule in found:
        if rule in keep:
            continue
        described = call("events", "describe_rule", absent=gone, Name=rule)
        if described is not None and str(described.get("Description", "")).startswith(_OURS.format(name=name)):
            call("events", "remove_targets", absent=gone, Rule=rule, Ids=[_TARGET])
            call("events", "delete_rule", absent=gone, Name=rule)
