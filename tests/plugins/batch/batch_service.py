"""AWS Batch on this machine: moto's server over HTTP, and a runner that executes its jobs as local processes.

moto keeps the records, and answers. It sets no index for children of arrays, starts a thread (and a Docker container)
for each job, cancels nothing, and does not page lists, so these parts of it are replaced while the service is open, by
what the service's documentation says. Jobs run as processes with the environment of a container; a test can have a row
evicted, run out of memory or pass its time, and turn execution off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from batch_account import prepare
from moto.batch import models, responses
from moto.core import DEFAULT_ACCOUNT_ID
from moto.server import ThreadedMotoServer

REGION = "us-east-1"
_PAGE, _FILTERED_PAGE = 1000, 100
_ALIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")
_QUEUED = ("SUBMITTED", "PENDING", "RUNNABLE")
KILL_GRACE = 5.0
EVICTED = "Host EC2 (instance i-0123456789abcdef0) terminated."
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
TIMED_OUT = "Job attempt duration exceeded timeout"
NO_IMAGE = (
    "CannotPullContainerError: pull image manifest has been retried 5 time(s): failed to resolve ref "
    "docker.io/missing/image:1: pull access denied, repository does not exist or may require authorization"
)


class Unit:
    """What is executed: a single job, a child of an array, or a node of a gang."""

    def __init__(self, job: models.Job, parent: models.Job | None, index: int | None, nodes: int = 0) -> None:
        self.job = job
        self.parent = parent
        self.index = index
        self.nodes = nodes
        self.process: subprocess.Popen[bytes] | None = None
        self.kill_at: float | None = None
        self.ending: dict[str, Any] | None = None
        self.folder = ""

    @property
    def id(self) -> str:
        return self.job.job_id if not self.nodes else f"{self.job.job_id}#{self.index}"


class BatchService:
    """AWS (S3, Batch, Secrets Manager, logs) on 127.0.0.1.

    Attributes
    ----------
    url : str
        Its endpoint.
    calls : Counter
        How often each operation of Batch was called: ``SubmitJob``, ``DescribeJobs``, …
    hold : bool
        Jobs are not executed.
    spare_starting : bool
        Ending the parent of an array spares children that are starting, as the service does.
    parallel : int
        Processes at once; a gang counts as one.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.hold = False
        self.lose: Counter[str] = Counter()
        """Operations whose next answers get lost, after they were carried out."""
        self.refuse: dict[str, tuple[int, str]] = {}
        """Operations whose next call is refused, with a status and a code."""
        self.parallel = 4
        self.started: list[str] = []
        """Ids of what was executed, in order."""
        self.image_environment: dict[str, str] = {}
        """What the images of all jobs have in their environment."""
        self.spare_starting = False
        self._folder = tempfile.mkdtemp(prefix="batch-service-")
        self._lock = threading.RLock()
        self._waiting: deque[list[Unit]] = deque()
        self._running: list[Unit] = []
        self._nodes: dict[str, list[dict[str, Any]]] = {}
        self._open = True
        self._undo = contextlib.ExitStack()
        self._replace_parts()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self._thread = threading.Thread(target=self._loop, name="batch-runner", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop everything that runs."""
        self._open = False
        self._thread.join(10)
        with self._lock:
            for unit in self._running:
                self._signal(unit, signal.SIGKILL)
                if unit.process is not None:
                    unit.process.wait()
        self._server.stop()
        self._undo.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a client of the service has in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, name: str) -> Any:
        """Return boto3's own client."""
        import boto3

        return boto3.client(
            name,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    @property
    def backend(self) -> models.BatchBackend:
        """moto's records."""
        return models.batch_backends[DEFAULT_ACCOUNT_ID][REGION]

    def job(self, name: str) -> models.Job:
        """Return a job by id."""
        return self.backend._jobs[name]

    def jobs(self) -> list[models.Job]:
        """Return the jobs that were submitted, oldest first; children are not among them."""
        with self._lock:
            return [job for job in self.backend._jobs.values() if ":" not in job.job_id]

    # -- what tests do to jobs --------------------------------------------------------------------------------------

    def running(self) -> list[str]:
        """Return the ids of what is being executed."""
        with self._lock:
            return [unit.id for unit in self._running]

    def evict(self, name: str) -> None:
        """Take the machine away from a job, a child or a node."""
        self._kill(name, {"statusReason": EVICTED})

    def out_of_memory(self, name: str) -> None:
        """Kill a container for its memory."""
        self._kill(
            name, {"reason": OUT_OF_MEMORY, "exitCode": 137, "statusReason": "Essential container in task exited"}
        )

    def time_out(self, name: str) -> None:
        """End a job as the service does at ``attemptDurationSeconds``."""
        self._kill(name, {"statusReason": TIMED_OUT, "exitCode": 137})

    def set(self, name: str, status: str, **told: Any) -> None:
        """Put a job (with `hold`) into a state; `told` as in `_finish`."""
        with self._lock:
            job = self.job(name)
            if status in ("SUCCEEDED", "FAILED"):
                self._finish(job, told, succeeded=status == "SUCCEEDED")
            else:
                job.status = status
                if status == "RUNNING":
                    job.job_started_at = datetime.now()
                if "statusReason" in told:
                    job.job_stopped_reason = told["statusReason"]
            self._update_parent(name.partition(":")[0])

    def _kill(self, name: str, ending: dict[str, Any]) -> None:
        with self._lock:
            unit = next(unit for unit in self._running if unit.id == name)
            unit.ending = ending
            self._signal(unit, signal.SIGKILL)

    @staticmethod
    def _signal(unit: Unit, number: int) -> None:
        if unit.process is not None and unit.process.poll() is None:
            try:
                os.killpg(unit.process.pid, number)
            except ProcessLookupError:
                pass

    # -- executing --------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._open:
            with self._lock:
                self._start_some()
                for unit in list(self._running):
                    self._look(unit)
            time.sleep(0.01)

    def _start_some(self) -> None:
        while self._waiting and len(self._running) < self.parallel and not self.hold:
            units = [unit for unit in self._waiting.popleft() if unit.job.status in _ALIVE]
            for unit in units:
                self._start(unit)

    def _start(self, unit: Unit) -> None:
        properties, overrides = _container(unit.job)
        unit.job.status = "STARTING"
        unit.job.job_started_at = datetime.now()
        if "missing/" in properties["image"]:
            self._end(unit, {"statusReason": "Task failed to start", "reason": NO_IMAGE}, succeeded=False)
            return
        command = list(overrides.get("command") or properties.get("command") or ())
        if command[0] == "python":
            command[0] = sys.executable
        given = [*properties.get("environment", ()), *overrides.get("environment", ())]
        unit.folder = tempfile.mkdtemp(dir=self._folder)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": unit.folder,
            **({} if "TMPDIR" not in os.environ else {"TMPDIR": os.environ["TMPDIR"]}),
            "AWS_ACCESS_KEY_ID": "of-the-role",
            "AWS_SECRET_ACCESS_KEY": "of-the-role",
            **self.image_environment,
            **{pair["name"]: pair["value"] for pair in given},
            "AWS_BATCH_JOB_ID": unit.id,
            "AWS_BATCH_JOB_ATTEMPT": "1",
            "AWS_BATCH_JQ_NAME": unit.job.job_queue.name,
        }
        if unit.nodes:
            environment.update(AWS_BATCH_JOB_NODE_INDEX=str(unit.index), AWS_BATCH_JOB_NUM_NODES=str(unit.nodes))
            environment.update(AWS_BATCH_JOB_MAIN_NODE_INDEX="0")
            if unit.index:
                environment.update(AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS="127.0.0.1")
        elif unit.index is not None:
            environment.update(AWS_BATCH_JOB_ARRAY_INDEX=str(unit.index))
        with open(os.path.join(unit.folder, "log"), "wb") as log:
            unit.process = subprocess.Popen(
                command, env=environment, cwd=unit.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        unit.job.status = "RUNNING"
        self.started.append(unit.id)
        self._running.append(unit)
        if unit.parent is not None:
            self._update_parent(unit.parent.job_id)

    def _look(self, unit: Unit) -> None:
        if unit.process is None:
            return
        status = unit.process.poll()
        if status is None:
            if unit.kill_at is not None and time.monotonic() > unit.kill_at:
                self._signal(unit, signal.SIGKILL)
            return
        self._signal(unit, signal.SIGKILL)
        code = status if status >= 0 else 128 - status
        told = unit.ending if unit.ending is not None else {"statusReason": "Essential container in task exited"}
        if "exitCode" not in told and unit.ending is None:
            told["exitCode"] = code
        self._log(unit)
        self._running.remove(unit)
        self._end(unit, told, succeeded=status == 0 and unit.ending is None)

    def _end(self, unit: Unit, told: dict[str, Any], *, succeeded: bool) -> None:
        if not unit.nodes:
            self._finish(unit.job, told, succeeded=succeeded)
            if unit.parent is not None:
                self._update_parent(unit.parent.job_id)
            return
        nodes = self._nodes[unit.job.job_id]
        nodes[unit.index or 0].update(
            status="SUCCEEDED" if succeeded else "FAILED",
            stoppedAt=int(time.time() * 1000),
            statusReason=told.get("statusReason"),
            container={key: told[key] for key in ("exitCode", "reason") if key in told},
        )
        if unit.index == 0 and not unit.job.job_stopped:
            for other in self._running:
                if other.job is unit.job:
                    other.ending = other.ending or {"statusReason": "The main node has ended", "exitCode": 137}
                    self._signal(other, signal.SIGKILL)
            self._finish(unit.job, {"statusReason": told.get("statusReason")}, succeeded=succeeded)

    @staticmethod
    def _finish(job: models.Job, told: dict[str, Any], *, succeeded: bool) -> None:
        told = dict(told)
        job.told = told
        job.job_stopped_reason = told.get("statusReason")
        job.exit_code = told.get("exitCode", 0 if succeeded else None)
        job._mark_stopped(success=succeeded)

    def _update_parent(self, name: str) -> None:
        parent = self.backend._jobs.get(name)
        children = parent._child_jobs if parent is not None else None
        if not children:
            return
        states = Counter(child.status for child in children)
        if states["SUCCEEDED"] == len(children):
            self._finish(parent, {}, succeeded=True)
        elif states["SUCCEEDED"] + states["FAILED"] == len(children):
            self._finish(parent, {"statusReason": "Array Child Job failed"}, succeeded=False)
        else:
            parent.status = "PENDING"

    def _log(self, unit: Unit) -> None:
        text = Path(unit.folder, "log").read_text(errors="replace")
        logs, stream = unit.job._log_backend, f"{unit.job.job_definition.name}/default/{unit.id.replace(':', '-')}"
        logs.ensure_log_group("/aws/batch/job")
        logs.ensure_log_stream("/aws/batch/job", stream)
        now = int(time.time() * 1000)
        lines = [{"timestamp": now, "message": line} for line in text.splitlines()]
        if lines:
            logs.put_log_events("/aws/batch/job", stream, lines)
        unit.job.log_stream_name = stream
        shutil.rmtree(unit.folder, ignore_errors=True)

    # -- the parts of moto that are replaced --------------------------------------------------------------------------

    def _replace_parts(self) -> None:
        for owner, name, made in (
            (models.Job, "start", lambda job: None),
            (models.Job, "describe_short", self._described(models.Job.describe_short)),
            (models.BatchBackend, "cancel_job", lambda backend, job, reason: self._cancel(job, reason)),
            (models.BatchBackend, "terminate_job", lambda backend, job, reason: self._terminate(job, reason)),
            (models.BatchBackend, "reset", lambda backend: None),
            (responses.BatchResponse, "submitjob", self._answer("SubmitJob", self._submit)),
            (responses.BatchResponse, "describejobs", self._answer("DescribeJobs", self._describe)),
            (responses.BatchResponse, "listjobs", self._answer("ListJobs", self._list)),
        ):
            before = getattr(owner, name)
            setattr(owner, name, made)
            self._undo.callback(setattr, owner, name, before)
        for name, operation in (
            ("canceljob", "CancelJob"),
            ("terminatejob", "TerminateJob"),
            ("registerjobdefinition", "RegisterJobDefinition"),
            ("describejobdefinitions", "DescribeJobDefinitions"),
            ("describejobqueues", "DescribeJobQueues"),
        ):
            before = getattr(responses.BatchResponse, name)
            setattr(responses.BatchResponse, name, self._answer(operation, before))
            self._undo.callback(setattr, responses.BatchResponse, name, before)

    def _answer(self, operation: str, answer: Callable[[Any], str]) -> Callable[[Any], str]:
        """Count an operation, and lose or refuse answers where a test asks for it."""

        def answered(response: Any) -> Any:
            self.calls[operation] += 1
            if operation in self.refuse:
                return _refused(*self.refuse.pop(operation))
            with self._lock:
                told = answer(response)
            if self.lose[operation] > 0:
                self.lose[operation] -= 1
                return _refused(500, "ServerException")
            return told

        return answered

    def _submit(self, response: Any) -> str:
        before = set(self.backend._jobs)
        told: str = _SUBMIT(response)
        (name,) = (name for name in self.backend._jobs if name not in before and ":" not in name)
        job = self.backend._jobs[name]
        job.sent = json.loads(response.body)
        if job._child_jobs:
            for index, child in enumerate(job._child_jobs):
                child.sent = job.sent
                child.status = "RUNNABLE"
                self._waiting.append([Unit(child, job, index)])
            job.status = "PENDING"
        elif job.job_definition.type == "multinode":
            asked = job.sent.get("nodeOverrides", {}).get("numNodes")
            size = int(asked or job.job_definition.node_properties["numNodes"])
            self._nodes[name] = [
                {
                    "jobId": f"{name}#{index}",
                    "jobName": job.job_name,
                    "status": "RUNNING",
                    "nodeProperties": {"nodeIndex": index, "isMainNode": index == 0, "numNodes": size},
                }
                for index in range(size)
            ]
            self._waiting.append([Unit(job, None, index, size) for index in range(size)])
            job.status = "RUNNABLE"
        else:
            job.status = "RUNNABLE"
            self._waiting.append([Unit(job, None, None)])
        return told

    def _described(self, before: Callable[[models.Job], dict[str, Any]]) -> Callable[[models.Job], dict[str, Any]]:
        def described(job: models.Job) -> dict[str, Any]:
            told = before(job)
            extra = getattr(job, "told", {})
            container = {key: extra[key] for key in ("exitCode", "reason") if key in extra}
            if container:
                told["container"] = container
            for flag in ("isTerminated", "isCancelled"):
                told[flag] = bool(extra.get(flag))
            if ":" in job.job_id:
                told["arrayProperties"] = {"index": int(job.job_id.rpartition(":")[2])}
            return told

        return described

    def _describe(self, response: Any) -> str:
        found = []
        names = response._get_param("jobs")
        assert len(names) <= 100, "DescribeJobs takes 100 jobs"
        for name in names:
            parent, hash_sign, index = name.partition("#")
            if hash_sign and parent in self._nodes and int(index) < len(self._nodes[parent]):
                found.append({**self._nodes[parent][int(index)], "jobQueue": "", "jobDefinition": "", "startedAt": 0})
            elif name in self.backend._jobs:
                job = self.backend._jobs[name]
                short, told = job.describe_short(), job.describe()
                container = {**told.get("container", {}), **short.get("container", {})}
                if job.log_stream_name:
                    container["logStreamName"] = job.log_stream_name
                found.append({**told, "container": container})
        return json.dumps({"jobs": found})

    def _list(self, response: Any) -> str:
        parent, gang = response._get_param("arrayJobId"), response._get_param("multiNodeJobId")
        filters, status = response._get_param("filters"), response._get_param("jobStatus")
        if gang:
            listed = [node for node in self._nodes.get(gang, ()) if node["status"] == (status or "RUNNING")]
        elif parent:
            children = self.backend._jobs[parent]._child_jobs or []
            listed = [child.describe_short() for child in children if child.status == (status or "RUNNING")]
        else:
            queue = response._get_param("jobQueue")
            jobs = self.backend.list_jobs(queue, None, None if filters else status or "RUNNING", filters)
            listed = [job.describe_short() for job in jobs if ":" not in job.job_id]
        size = min(response._get_param("maxResults") or _PAGE, _FILTERED_PAGE if filters else _PAGE)
        start = int(response._get_param("nextToken") or 0)
        answer: dict[str, Any] = {"jobSummaryList": listed[start : start + size]}
        if start + size < len(listed):
            answer["nextToken"] = str(start + size)
        return json.dumps(answer)

    def _cancel(self, name: str, reason: str) -> None:
        for job in self._parts(name):
            if job.status in _QUEUED:
                self._finish(job, {"statusReason": reason, "isCancelled": True}, succeeded=False)
        self._update_parent(name)

    def _terminate(self, name: str, reason: str) -> None:
        told = {"statusReason": reason, "isTerminated": True}
        spare = self.spare_starting and bool(self.backend._jobs[name]._child_jobs)
        ended = {id(job) for job in self._parts(name) if not (spare and job.status in ("STARTING", "RUNNING"))}
        for unit in self._running:
            if id(unit.job) in ended:
                unit.ending = unit.ending or {**told, "exitCode": 143}
                unit.kill_at = unit.kill_at or time.monotonic() + KILL_GRACE
                self._signal(unit, signal.SIGTERM)
        executed = {id(unit.job) for unit in self._running}
        for job in self._parts(name):
            if id(job) in ended - executed and job.status in _ALIVE:
                self._finish(job, told, succeeded=False)
        self._update_parent(name.partition(":")[0])

    def _parts(self, name: str) -> list[models.Job]:
        job = self.backend._jobs.get(name)
        if job is None:
            return []
        return list(job._child_jobs or [job])


def _container(job: models.Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the properties of a job's container, and what its submission overrides."""
    definition, sent = job.job_definition, job.sent
    if definition.type == "multinode":
        ranges = definition.node_properties["nodeRangeProperties"]
        overrides = sent.get("nodeOverrides", {}).get("nodePropertyOverrides", [{}])
        return ranges[0]["container"], overrides[0].get("containerOverrides", {})
    return definition.container_properties, sent.get("containerOverrides", {})


def _refused(status: int, code: str) -> tuple[str, dict[str, Any]]:
    return json.dumps({"message": "asked for by a test"}), {"status": status, "x-amzn-errortype": code}


_SUBMIT = responses.BatchResponse.submitjob


@contextlib.contextmanager
def opened() -> Iterator[BatchService]:
    """Serve while the context is open, with a bucket, a queue on EC2 and one on Fargate.

    moto's records are the process's, and so are its parts that are replaced: nested contexts share a service.
    """
    if _open:
        _open.append(_open[0])
    else:
        service = BatchService()
        _open.append(service)
        try:
            prepare(service)
        except BaseException:
            _open.clear()
            service.close()
            raise
    try:
        yield _open[0]
    finally:
        service = _open.pop()
        if not _open:
            service.close()


_open: list[BatchService] = []
"""The service, once for each context that is open."""
