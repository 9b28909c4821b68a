"""AWS Batch as a backend: steps with ``@batch`` run as its jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import Problem, StoreError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.batch_calls import call
from flowkit.plugins.aws.batch_jobs import MAX_ROWS, OWN_TAGS, Defaults, Place, Requests, definition_name, requests
from flowkit.plugins.aws.batch_preflight import Check, QueueFound, find_queues
from flowkit.plugins.aws.batch_reasons import OURS
from flowkit.plugins.aws.batch_states import DESCRIBED, Watch, chunks, listed_jobs
from flowkit.runtime.backend import Backend, BackendError, FoundJob, RemoteRun, RowPhase, RowState, Submission
from flowkit.settings import settings

LAST_LINES = 20
MOST_LAST_LINES = 50
"""How many containers' logs are read for one run: each takes two calls."""
_LOG_GROUP = "/aws/batch/job"
_LIVE: dict[str, RowPhase] = {
    "RUNNING": "running",
    "STARTING": "starting",
    "RUNNABLE": "queued",
    "PENDING": "queued",
    "SUBMITTED": "queued",
}
_PREFIX = "fk-"
"""How the names of flowkit's jobs begin."""


class BatchBackend(Backend):
    """AWS Batch.

    Job definitions are registered once for each distinct content (image, resources, volumes, roles), under a name made
    of it. Jobs are described in bulk (`flowkit.plugins.aws.batch_states`). The service's own retries are off.

    Parameters
    ----------
    run : RemoteRun or None
        The run whose jobs these are.
    """

    name = "batch"
    max_rows = MAX_ROWS
    poll_interval = 1.0

    def __init__(self, run: RemoteRun | None) -> None:
        self._run = run
        self._watch = Watch(call)
        self._places: dict[str, Place] = {}
        self._definitions: dict[str, str] = {}
        self._submitted: dict[str, str] = {}
        """The queue of each job that was submitted here, by its name."""
        self._read_logs = 0

    def preflight(self, requests: Mapping[str, ExecutorRequest]) -> list[Problem]:
        """Ask whether credentials, region, queues and their machines fit the steps."""
        check = Check(requests, self._run.root if self._run else None, defaults())
        told = check.problems()
        self._places.update({name: found.place for name, found in check.queues.items()})
        return told

    def submit(self, submission: Submission) -> str:
        """Register the job's definition, unless it is, and submit the job."""
        if self._run is None:
            raise BackendError("a job belongs to a run")
        place = self._place(submission.request)
        try:
            made = requests(submission, self._run, place, defaults())
        except ValueError as error:
            raise BackendError(f"step '{submission.step}' cannot run on AWS Batch: {error}") from error
        definition = self._definition(made)
        self._submitted[submission.name] = place.queue
        try:
            answer = call("submit_job", jobDefinition=definition, **made.submission)
        except BackendError as error:
            # It may have been deregistered since: what is cached here is no more than a hint.
            if error.answered and not error.transient:
                self._definitions.clear()
            raise
        if not answer.get("jobId"):
            raise BackendError("AWS Batch told no job's id", transient=True, answered=False)
        return str(answer["jobId"])

    def find(self, name: str) -> str | None:
        """Look for a job by name in the queue that it was submitted to, or else in every one."""
        known = self._submitted.get(name)
        for queue in [known] if known else self._queues():
            filters = [{"name": "JOB_NAME", "values": [name]}]
            found = [
                job for job in listed_jobs(call, jobQueue=queue, filters=filters) if job.get("jobName") == name
            ]  # the service does not mind upper and lower case
            # Children and nodes are told here by some: a job's own id has no index.
            found = [job for job in found if not set(job["jobId"]) & {":", "#"}]
            if found:
                # Submitted twice after all? One that has not failed counts, and of these the first.
                found.sort(key=lambda job: (job.get("status") == "FAILED", job.get("createdAt", 0)))
                return str(found[0]["jobId"])
        return None

    def states(self, jobs: Mapping[str, int]) -> Iterable[RowState]:
        """Tell the rows that have changed since the last call."""
        return self._watch.look(jobs, time.monotonic())

    def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
        """End jobs; what a first call spares is ended again while `states` looks at it."""
        told = f"{OURS}{reason}"[:1024]
        operation = "terminate_job" if running else "cancel_job"
        for job in jobs:
            self._watch.press(job, told, running=running, now=time.monotonic())
            call(operation, jobId=job, reason=told)

    def last_lines(self, job: str, row: int) -> list[str]:
        """Read the end of the container's log in CloudWatch, where there is one and it may be read."""
        if self._read_logs >= MOST_LAST_LINES:
            return []
        self._read_logs += 1
        described = call("describe_jobs", jobs=[f"{job}:{row}", f"{job}#0", job]).get("jobs", ())
        for found in sorted(described, key=lambda one: -len(one["jobId"])):
            container: Mapping[str, Any] = found.get("container") or {}
            if container.get("logStreamName"):
                group = (container.get("logConfiguration") or {}).get("options", {}).get("awslogs-group", _LOG_GROUP)
                return _log_lines(group, container["logStreamName"])
        return []

    def jobs(self, *, flow: str | None = None, run: str | None = None, user: str | None = None) -> list[FoundJob]:
        """List jobs by their tags, those of every queue that the settings or the account name."""
        names = []
        for queue in self._queues():
            listed = listed_jobs(call, jobQueue=queue, statuses=_LIVE)
            names += [
                job["jobId"]
                for job in listed
                if job.get("jobName", "").startswith(_PREFIX) and not set(job["jobId"]) & {":", "#"}
            ]
        found = []
        for chunk in chunks(list(dict.fromkeys(names)), DESCRIBED):
            for job in call("describe_jobs", jobs=list(chunk)).get("jobs", ()):
                one = _found(job)
                wanted = ((flow, one.flow), (run, one.run), (user, one.user)) if one else ()
                if one is not None and all(asked is None or asked == told for asked, told in wanted):
                    found.append(one)
        return sorted(found, key=lambda one: (one.created, one.name))

    def _place(self, request: ExecutorRequest) -> Place:
        queue = request.resources.get("queue") or settings().batch_queue
        if not queue:
            raise BackendError("no queue is named", "write @batch(queue=…), or set FLOWKIT_BATCH_QUEUE")
        if queue not in self._places:
            found: QueueFound | None = find_queues([queue]).get(queue)
            if found is None:
                raise BackendError(f"there is no queue '{queue}'", "look at the queue's name and at AWS_REGION")
            self._places[queue] = found.place
        return self._places[queue]

    def _definition(self, made: Requests) -> str:
        """Return the ARN of a job definition: a known one, a registered one, or a new one."""
        name = definition_name(made.definition)
        if name not in self._definitions:
            known = call("describe_job_definitions", jobDefinitionName=name, status="ACTIVE").get("jobDefinitions", ())
            if known:
                found = max(known, key=lambda one: one.get("revision", 0))
            else:
                found = call("register_job_definition", jobDefinitionName=name, **made.definition)
            self._definitions[name] = str(found["jobDefinitionArn"])
        return self._definitions[name]

    def _queues(self) -> list[str]:
        """Return the queues in which jobs may be: those known here, else all of the account."""
        known = [*self._places, *filter(None, [settings().batch_queue])]
        if not known or self._run is None:
            known += find_queues(None)
        return list(dict.fromkeys(known))


def defaults() -> Defaults:
    """Return what the settings say for steps that say nothing."""
    given = settings()
    image = given.batch_image or given.container_image or Defaults().image
    return Defaults(image, given.batch_job_role, given.batch_execution_role)


def _found(job: Mapping[str, Any]) -> FoundJob | None:
    tags: Mapping[str, str] = job.get("tags") or {}
    phase = _LIVE.get(job["status"])
    if phase is None or OWN_TAGS[0] not in tags:
        return None
    flow, run, step, user = (tags.get(name, "") for name in OWN_TAGS)
    array: Mapping[str, Any] = job.get("arrayProperties") or {}
    if any((array.get("statusSummary") or {}).get(status) for status in ("RUNNING", "SUCCEEDED", "FAILED")):
        phase = "running"  # the parent of an array waits while its children run
    created = float(job.get("createdAt") or 0) / 1000
    return FoundJob(job["jobId"], job["jobName"], flow, run, step, user, phase, int(array.get("size") or 1), created)


def _log_lines(group: str, stream: str) -> list[str]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = session.client("logs").get_log_events(
            logGroupName=group, logStreamName=stream, limit=LAST_LINES, startFromHead=False
        )
    except (ClientError, BotoCoreError, StoreError):
        # No permission, no such stream, another log driver: what there is stands in the datastore.
        return []
    return [str(event.get("message", "")) for event in answer.get("events", ())]
