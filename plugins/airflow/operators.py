"""What carries tasks out: pods, Batch jobs, processes on Airflow's own machine; and what each needs in a DAG file."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.datastore.layout import manifest_file
from flowkit.decorators.contract import ExecutorRequest
from flowkit.deployer.target import Deployment, StepPlan
from flowkit.plugins.airflow.plan import Plan, StepTask
from flowkit.plugins.aws.batch import defaults
from flowkit.plugins.aws.step_functions_jobs import END, step_jobs
from flowkit.plugins.kubernetes import manifests
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, label_value, object_name
from flowkit.settings import settings

SLACK = 600
"""Seconds that a task may take besides its ``@timeout`` until the scheduler ends it, as the last resort: for its start,
fetching the code, keeping its results."""
POD_START = 3600
"""Seconds that a pod may wait for a machine; after that it is an attempt that failed."""
_HEAVY = (
    "cpu",
    "memory",
    "disk",
    "gpu",
    "gpu_vendor",
    "shared_memory",
    "tmpfs_size",
    "use_tmpfs",
    "extended_resources",
)
"""What the task that ends a run does not need of what the start step asks for."""
_RUN, _TASK = "run-of-it", "task-of-it"
"""Stand for what is not known yet in a path; no name of a flow or step has a dash."""
DEFAULT_EXECUTOR = "kubernetes"
LOCAL = "local"
EXECUTORS = ("kubernetes", "batch", LOCAL)


class Operators(ABC):
    """The operators of one executor: the classes of `fragments`, and the arguments for their objects.

    Parameters
    ----------
    deployment : Deployment
        What is deployed.
    """

    own_timeout = False
    """Whether ``@timeout`` becomes Airflow's own limit too. Not where a task first waits for a machine."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    def work(self, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
        """Return what says to an operator which command and environment a task has; None where both are given to it."""
        return None

    @abstractmethod
    def fragments(self, made: Plan) -> list[str]:
        """Return the pieces of source that go into the file."""

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command of a container as it is here."""
        return list(command)

    def step_environment(self, step: StepPlan) -> Mapping[str, str]:
        """Return the fixed variables of a step."""
        return dict(step.environment)

    def end_environment(self) -> Mapping[str, str]:
        """Return the fixed variables of the task that ends a run."""
        return dict(self.deployment.end_environment)

    def step_arguments(self, step: StepPlan, task: StepTask) -> dict[str, Any]:
        """Return what the operator of a step is given besides."""
        return {}

    def end_arguments(self) -> dict[str, Any]:
        """Return what the operator of the task that ends a run is given besides."""
        return {}


class LocalOperators(Operators):
    """Processes on the machine where Airflow's tasks run."""

    own_timeout = True

    def fragments(self, made: Plan) -> list[str]:
        """Return the pieces of source that go into the file."""
        return ["local"]

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command of a container as it is here: with this machine's interpreter."""
        python = str(self.deployment.options.get("python") or sys.executable)
        return [python, *command[1:]] if command[:1] == ("python",) else list(command)


class KubernetesOperators(Operators):
    """Pods of a Kubernetes cluster, by the operator of Airflow's provider."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        given = settings()
        image = given.kubernetes_image or given.container_image
        self._defaults = manifests.Defaults(
            given.kubernetes_namespace or "default",
            image or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim",
            given.kubernetes_service_account,
        )

    def fragments(self, made: Plan) -> list[str]:
        """Return the pieces of source that go into the file."""
        return ["kubernetes"]

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command of a container as it is here: Kubernetes replaces ``$(NAME)`` in it."""
        return [manifests.literal(word) for word in command]

    def step_environment(self, step: StepPlan) -> Mapping[str, str]:
        """Return the fixed variables of a step, with that of a temporary folder in memory."""
        made = manifests.pod_spec(step.request._replace(environment={}), (), {}, self._defaults)
        own = {str(item["name"]): str(item["value"]) for item in made["containers"][0]["env"]}
        return {**own, **step.environment}

    def step_arguments(self, step: StepPlan, task: StepTask) -> dict[str, Any]:
        """Return the pod of a step."""
        limit = step.attempts.timeout
        return self._pod(step.request, step.name, limit + SLACK if limit is not None and not task.loops else None)

    def end_arguments(self) -> dict[str, Any]:
        """Return the pod of the task that ends a run: where the start step runs, which is known to be a place."""
        start = self.deployment.steps[str(self.deployment.graph.start)].request
        small = {key: value for key, value in start.resources.items() if key not in _HEAVY}
        return self._pod(start._replace(resources=small), "end", None)

    def _pod(self, request: ExecutorRequest, step: str, timeout: float | None) -> dict[str, Any]:
        wanted = request.resources
        spec = manifests.pod_spec(request._replace(environment={}), (), {}, self._defaults, timeout=timeout)
        container = spec["containers"][0]
        image = container["image"]
        for name in ("command", "env"):  # the operator's own, for each task
            del container[name]
        labels = {
            **wanted.get("labels", {}),
            "app.kubernetes.io/name": "flowkit",
            f"{OWN_PREFIX}flow": label_value(self.deployment.flow),
            f"{OWN_PREFIX}step": label_value(step),
            f"{OWN_PREFIX}user": label_value(self.deployment.user),
        }
        annotations = {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            **wanted.get("annotations", {}),
            f"{OWN_PREFIX}flow": self.deployment.flow,
            f"{OWN_PREFIX}step": step,
            f"{OWN_PREFIX}user": self.deployment.user,
            f"{OWN_PREFIX}root": self.deployment.root,
        }
        return {
            "name": object_name(f"{self.deployment.flow}-{step}".lower())[:40].rstrip("-."),
            "namespace": manifests.namespace_of(wanted, self._defaults),
            "image": image,
            "startup_timeout_seconds": POD_START,
            "pod_template_dict": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": spec,
            },
        }


class BatchOperators(Operators):
    """Jobs of AWS Batch, by the operator of Airflow's provider. The command and fixed environment are in the job
    definitions, which are registered when the file is written: their names are known before."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self.jobs = step_jobs(deployment, defaults(), {}, None)

    def fragments(self, made: Plan) -> list[str]:
        """Return the pieces of source that go into the file."""
        return ["batch"]

    def work(self, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
        """Return nothing: the job definition has both."""
        return {}

    def step_arguments(self, step: StepPlan, task: StepTask) -> dict[str, Any]:
        """Return the job of a step, and where its tasks' manifests are."""
        found = self._job(step.name)
        if task.tells:
            bucket, _, prefix = self.deployment.root.partition("://")[2].partition("/")
            path = manifest_file(self.deployment.flow, _RUN, step.name, _TASK)
            before, _, after = "/".join(part for part in (prefix.strip("/"), path) if part).partition(_RUN)
            between, _, file = after.partition(_TASK)
            found["manifest"] = (bucket, before, between, file)
        return found

    def end_arguments(self) -> dict[str, Any]:
        """Return the job of the task that ends a run."""
        return self._job(END)

    def _job(self, step: str) -> dict[str, Any]:
        job = self.jobs[step].job
        return {"job_name": job.name, "job_definition": job.definition, "job_queue": job.queue, "tags": dict(job.tags)}


def operators(deployment: Deployment) -> Operators:
    """Return the operators for a deployment's executor."""
    executor = str(deployment.options.get("executor") or DEFAULT_EXECUTOR)
    if executor == LOCAL:
        return LocalOperators(deployment)
    if executor == "batch":
        return BatchOperators(deployment)
    return KubernetesOperators(deployment)


def register(deployment: Deployment) -> None:
    """Register the job definitions that the file names, where AWS Batch carries steps out."""
    made = operators(deployment)
    if isinstance(made, BatchOperators):
        from flowkit.plugins.aws.step_functions_apply import Applied
        from flowkit.plugins.aws.step_functions_calls import account

        Applied(account(), deployment, {"name": deployment.name}).job_definitions(made.jobs, defaults())
