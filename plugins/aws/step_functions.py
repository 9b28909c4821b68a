"""AWS Step Functions as a target: ``python flow.py step-functions create``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from flowkit.deployer.target import CreateOption, Deployment, DeploymentRecord, Execution, Target
from flowkit.exceptions import Conflict, NotFound, Problem, UsageError
from flowkit.metadata.records import State
from flowkit.plugins.aws.batch import BatchBackend, defaults
from flowkit.plugins.aws.batch_jobs import tag_problem, tag_value
from flowkit.plugins.aws.event_bridge import machine_name, rules, schedule
from flowkit.plugins.aws.machine_start import start_environment
from flowkit.plugins.aws.machine_states import Place
from flowkit.plugins.aws.state_machine import ENDED, RUN_FAILED, definition
from flowkit.plugins.aws.step_functions_apply import Applied, remove_starters
from flowkit.plugins.aws.step_functions_calls import Account, account, call, wanted
from flowkit.plugins.aws.step_functions_jobs import END, StepJob, step_jobs
from flowkit.plugins.aws.step_functions_limits import MAX_OVERRIDES
from flowkit.plugins.aws.step_functions_problems import place_of, preflight_problems, problems
from flowkit.runtime.backend import RemoteRun

_GONE = ("StateMachineDoesNotExist", "StateMachineDeleting", "InvalidArn")
_NO_EXECUTION = ("ExecutionDoesNotExist", "InvalidArn")
_STATES: Mapping[str, State] = {
    "RUNNING": "running",
    "PENDING_REDRIVE": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "TIMED_OUT": "failed",
    "ABORTED": "cancelled",
}
_PAGE = 1000
TERMINATED = "flowkit.Terminated"


class StepFunctions(Target):
    """AWS Step Functions: a state machine whose steps are jobs of AWS Batch, started by EventBridge."""

    name = "step-functions"
    label = "AWS Step Functions"
    prefix = "sfn"
    executor: ClassVar[str | None] = "batch"
    options = (
        CreateOption("aws_batch_tag", "KEY=VALUE, a tag of every Batch job.", multiple=True, default=()),
        CreateOption("use_distributed_map", "Every foreach is a distributed Map, small ones too.", bool, False),
        CreateOption("share_identifier", "For a queue with a scheduling policy: whose share the jobs count for."),
        CreateOption("log_group", "ARN of a CloudWatch log group that gets the executions' histories."),
    )

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._account: Account | None = None

    @classmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        """Return ``Flow``, or ``project.branch.Flow``, shortened where it is longer than a name may be."""
        return machine_name(flow, project, branch)

    def problems(self, deployment: Deployment) -> list[Problem]:
        """Return limits that are passed, and what neither Step Functions nor EventBridge can do."""
        found = problems(deployment)
        for text in self._tags_given():
            key, sign, value = text.partition("=")
            wrong = tag_problem(key, value) if sign else f"'{text}' is not KEY=VALUE"
            if wrong:
                found.append(Problem(f"--aws-batch-tag: {wrong}"))
        if not any(problem.headline.startswith("--aws-batch-tag") for problem in found):
            found += self._size_problems(deployment)
        return found

    def compile(self, deployment: Deployment) -> Any:
        """Return the state machine, with its job definitions, schedule and rules.

        ``definition`` is in the Amazon States Language; the record of the deployment stands in its comment.
        """
        jobs = self._jobs(deployment)
        machine = definition(
            deployment,
            {name: job.job for name, job in jobs.items() if name != END},
            jobs[END].job,
            place_of(deployment.root) or Place("", ""),
        )
        comment = json.dumps({"flowkit": deployment.record}, ensure_ascii=False, sort_keys=True)
        return {
            "name": deployment.name,
            "type": "STANDARD",
            "definition": {"Comment": comment, **machine},
            "tags": self._machine_tags(deployment),
            "jobs": {job.job.definition: job.job.name for job in jobs.values()},
            "schedule": schedule(deployment),
            "rules": rules(deployment),
        }

    def preflight(self, deployment: Deployment) -> list[Problem]:
        """Ask whether credentials, roles and queues are there."""
        return preflight_problems(deployment, self.given)

    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        """Register the job definitions, make or replace the state machine, its schedule and its rules."""
        made = Applied(self._where(), deployment, document)
        made.job_definitions(self._jobs(deployment), defaults())
        made.machine(self.given.get("log_group"))
        return [*made.lines(), *made.schedule(), *made.rules()]

    def find(self, name: str) -> DeploymentRecord | None:
        """Read the record in the comment of the state machine of that name."""
        answer = call("stepfunctions", "describe_state_machine", absent=_GONE, stateMachineArn=self._machine(name))
        if answer is None or answer.get("status") == "DELETING":
            return None
        record = _record(answer)
        if record is None:
            raise UsageError(
                f"the state machine '{name}' was not made by flowkit", "choose another name: --name, or delete it"
            )
        return record

    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        """Look at every state machine of the account: one call for each of them."""
        from concurrent.futures import ThreadPoolExecutor

        arns: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = wanted("stepfunctions", "list_state_machines", maxResults=_PAGE, **token)
            arns += [one["stateMachineArn"] for one in page.get("stateMachines", ())]
            if not page.get("nextToken"):
                break
            token = {"nextToken": page["nextToken"]}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(_described, arns))
        records = [record for answer in answers if answer and (record := _record(answer)) is not None]
        return [record for record in records if flow is None or record.flow == flow]

    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """Start an execution."""
        text = json.dumps({"parameters": dict(parameters)} if parameters else {}, ensure_ascii=False)
        if len(text) > MAX_OVERRIDES - _OTHER_OVERRIDES:
            raise UsageError(
                f"the parameters have {len(text):,} characters, and AWS Batch takes {MAX_OVERRIDES:,} for a job's",
                "put what is large into a file on S3, and give its place",
            )
        name = f"{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}-{os.urandom(3).hex()}"
        answer = call(
            "stepfunctions",
            "start_execution",
            absent=_GONE,
            stateMachineArn=self._machine(record.name),
            name=name,
            input=text,
        )
        if answer is None:
            raise NotFound(f"there is no state machine '{record.name}'", "deploy the flow: step-functions create")
        return f"{self.prefix}-{name}"

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """Describe an execution."""
        name = self._execution_name(run)
        if name is None:
            return None
        arn = self._execution_arn(record.name, name)
        answer = call("stepfunctions", "describe_execution", absent=_NO_EXECUTION, executionArn=arn)
        return None if answer is None else _execution(answer)

    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        """List executions, the newest first."""
        found: list[Execution] = []
        token: dict[str, str] = {}
        while len(found) < limit:
            page = call(
                "stepfunctions",
                "list_executions",
                absent=_GONE,
                stateMachineArn=self._machine(record.name),
                maxResults=min(_PAGE, limit - len(found)),
                **token,
            )
            found += [_execution(one) for one in (page or {}).get("executions", ())]
            if not page or not page.get("nextToken"):
                break
            token = {"nextToken": page["nextToken"]}
        return found[:limit]

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """Stop an execution, end its jobs, and let a job end the run: what is stopped carries nothing out any more."""
        name = self._execution_name(run)
        arn = self._execution_arn(record.name, name or run)
        there = call("stepfunctions", "describe_execution", absent=_NO_EXECUTION, executionArn=arn)
        if there is None:
            raise NotFound(f"{record.name} has no run '{run}'")
        if there["status"] not in ("RUNNING", "PENDING_REDRIVE"):
            return
        machine = wanted("stepfunctions", "describe_state_machine_for_execution", executionArn=arn)
        wanted("stepfunctions", "stop_execution", executionArn=arn, error=TERMINATED, cause="terminated by its user")
        backend = BatchBackend(RemoteRun(record.flow, run, record.user, record.root))
        backend.cancel(
            [job.job for job in backend.jobs(flow=record.flow, run=tag_value(run))], "terminated", running=True
        )
        wanted("batch", "submit_job", **_end_job(json.loads(machine["definition"]), run))

    def delete(self, record: DeploymentRecord) -> None:
        """Remove the state machine, its schedule, its rules and its job definitions.

        Raises
        ------
        Conflict
            While runs go on: Step Functions ends the executions of a state machine that is deleted. Nothing starts it
            any more then.
        """
        arn = self._machine(record.name)
        described = call("stepfunctions", "describe_state_machine", absent=_GONE, stateMachineArn=arn)
        remove_starters(record.name, arn)
        if described is None:
            return
        running = wanted("stepfunctions", "list_executions", stateMachineArn=arn, statusFilter="RUNNING", maxResults=10)
        names = [f"{self.prefix}-{one['name']}" for one in running.get("executions", ())]
        if names:
            raise Conflict(
                f"{record.name} is not deleted: runs go on ({', '.join(names)}), and would be ended with it",
                "no schedule and no event starts it any more; wait for them or terminate them, then delete it again",
            )
        wanted("stepfunctions", "delete_state_machine", stateMachineArn=arn)
        for job_definition in job_definitions_of(json.loads(described["definition"])):
            for one in wanted(
                "batch", "describe_job_definitions", jobDefinitionName=job_definition, status="ACTIVE"
            ).get("jobDefinitions", ()):
                wanted("batch", "deregister_job_definition", jobDefinition=one["jobDefinitionArn"])

    # -- the parts -----------------------------------------------------------------------------------------------------

    def _jobs(self, deployment: Deployment) -> dict[str, StepJob]:
        tags = dict(text.partition("=")[::2] for text in self._tags_given())
        share = self.given.get("share_identifier") or None
        return step_jobs(deployment, defaults(), tags, share)

    def _tags_given(self) -> list[str]:
        return [str(text) for text in self.given.get("aws_batch_tag") or ()]

    def _size_problems(self, deployment: Deployment) -> list[Problem]:
        from flowkit.plugins.aws.step_functions_problems import size_problems

        return size_problems(
            deployment, self._jobs(deployment), self.compile(deployment), start_environment(deployment)
        )

    def _machine_tags(self, deployment: Deployment) -> dict[str, str]:
        tags = {"flowkit.flow": deployment.flow, "flowkit.user": deployment.user, "flowkit.name": deployment.name}
        return {key: tag_value(value) for key, value in tags.items() if value}

    def _where(self) -> Account:
        if self._account is None:
            self._account = account()
        return self._account

    def _machine(self, name: str) -> str:
        return self._where().arn("states", f"stateMachine:{name}")

    def _execution_arn(self, machine: str, name: str) -> str:
        return self._where().arn("states", f"execution:{machine}:{name}")

    def _execution_name(self, run: str) -> str | None:
        head, dash, name = run.partition("-")
        return name if dash and head == self.prefix and name else None


_OTHER_OVERRIDES = 600
"""Characters of what a job is told besides parameters."""


def job_definitions_of(machine: Any) -> list[str]:
    """Return the names of the job definitions that a definition's states name."""
    found: dict[str, None] = {}
    todo = [machine]
    while todo:
        scope = todo.pop()
        for state in scope.get("States", {}).values():
            name = state.get("Parameters", {}).get("JobDefinition") if state.get("Type") == "Task" else None
            if isinstance(name, str):
                found[name] = None
            todo += state.get("Branches", ())
            if "ItemProcessor" in state:
                todo.append(state["ItemProcessor"])
    return list(found)


def _described(arn: str) -> dict[str, Any] | None:
    return call("stepfunctions", "describe_state_machine", absent=_GONE, stateMachineArn=arn)


def _record(answer: Mapping[str, Any]) -> DeploymentRecord | None:
    """Return the record in the comment of a state machine's definition."""
    try:
        comment = json.loads(json.loads(answer["definition"])["Comment"])
        return DeploymentRecord.from_json(comment["flowkit"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _execution(answer: Mapping[str, Any]) -> Execution:
    state = _STATES.get(answer.get("status", ""), "lost")
    reason = None
    if state in ("failed", "cancelled"):
        told = [str(answer[key]) for key in ("error", "cause") if answer.get(key)]
        reason = ": ".join(_line(text) for text in told if text != RUN_FAILED) or None
        if answer.get("status") == "TIMED_OUT":
            reason = "the execution took too long"
    started, finished = answer.get("startDate"), answer.get("stopDate")
    return Execution(
        f"{StepFunctions.prefix}-{answer['name']}",
        state,
        reason,
        started.timestamp() if started is not None else None,
        finished.timestamp() if finished is not None else None,
    )


def _line(text: str) -> str:
    """Return what an execution says of its end in one line; of a failed job its name and why it failed."""
    try:
        job = json.loads(text)
        if isinstance(job, dict) and "JobName" in job:
            text = f"{job['JobName']}: {job.get('StatusReason') or 'failed'}"
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300]


def _end_job(machine: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return the submission of the job that ends a run which was terminated."""
    parameters = machine["States"][ENDED]["Parameters"]
    told = {"FLOWKIT_DEPLOYED_RUN": run, "FLOWKIT_DEPLOYED_STATE": "cancelled"}
    told["FLOWKIT_DEPLOYED_REASON"] = "terminated by its user"
    submission: dict[str, Any] = {
        "jobName": parameters["JobName"],
        "jobQueue": parameters["JobQueue"],
        "jobDefinition": parameters["JobDefinition"],
        "containerOverrides": {"environment": [{"name": name, "value": value} for name, value in told.items()]},
        "tags": {
            **{key: value for key, value in parameters["Tags"].items() if not key.endswith(".$")},
            "flowkit.run": tag_value(run),
        },
        "propagateTags": True,
    }
    if "ShareIdentifier" in parameters:
        submission["shareIdentifier"] = parameters["ShareIdentifier"]
        submission["schedulingPriorityOverride"] = parameters["SchedulingPriorityOverride"]
    return submission
