"""Container templates: the pod of a step as Argo Workflows has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.decorators.contract import ExecutorRequest
from flowkit.deployer.target import ATTEMPT, FINAL, NEXT, RUN, STATE, Deployment, StepPlan
from flowkit.plugins.kubernetes.manifests import Defaults, pod_spec
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, label_value

PROGRAM = "flowkit-program"
"""The argument of the workflow that holds what every container runs first: 4 KB that stand in the document once."""
FOLDER = "/tmp/flowkit"
"""Where a container writes what follows its task."""
RUN_ID = "argo-{{workflow.name}}"
NOTHING = "-"
"""What an output is of a task that was skipped: nothing that a step could be called."""
SLACK = 300
"""Seconds that a container has beyond ``@timeout``, which it keeps itself: for its start, its log and its result."""
_ENDED = ("image", "image_pull_policy", "image_pull_secrets", "secrets", "service_account", "node_selector",
          "tolerations", "security_context", "labels", "annotations")  # fmt: skip
"""Of a step's attributes, those that the container has too that ends a run: it needs no machine of the step's size."""
_TEMPLATE_FIELDS = ("serviceAccountName", "nodeSelector", "tolerations", "volumes")


CANCELLED = f"{OWN_PREFIX}cancelled"
"""The annotation of a workflow that flowkit has stopped: ``yes``."""


class Pods:
    """Makes the templates of one deployment's containers.

    Parameters
    ----------
    deployment : Deployment
        The flow.
    defaults : Defaults
        What steps leave open.
    """

    def __init__(self, deployment: Deployment, defaults: Defaults) -> None:
        self.defaults = defaults
        self._deployment = deployment
        self.program = program_of(deployment.end_command)
        """What every container runs first."""

    def step(
        self,
        plan: StepPlan,
        name: str,
        *,
        inputs: Sequence[str],
        environment: Mapping[str, str],
        outputs: Sequence[str],
    ) -> dict[str, Any]:
        """Return the template of a step's container.

        Parameters
        ----------
        plan : StepPlan
            The step.
        name : str
            The template's.
        inputs : sequence of str
            Names of its parameters.
        environment : mapping of str to str
            What tells the task; `RUN` and `ATTEMPT` are added.
        outputs : sequence of str
            Which of ``step`` and ``width`` are read when it has ended.
        """
        told = {**plan.environment, **environment, RUN: RUN_ID}
        if outputs:
            told[NEXT] = FOLDER
        if plan.tries > 1:
            told[ATTEMPT] = "{{retries}}"
        template = self.container(plan.request, plan.command, told, name, plan.name)
        template.update(again(plan))
        if plan.attempts.timeout is not None:
            template["activeDeadlineSeconds"] = str(int(plan.attempts.timeout) + SLACK)
        if inputs:
            template["inputs"] = {"parameters": [{"name": each} for each in inputs]}
        if outputs:
            template["outputs"] = {"parameters": [_output(each) for each in outputs]}
        return template

    def end(self, name: str) -> dict[str, Any]:
        """Return the template of the container that ends a run which did not get to its end step."""
        # Who stops a run by flowkit says so in an annotation of the workflow: Argo itself calls it failed. The template
        # must not have it among its ``workflowMetadata``, which count before the workflow's own.
        state = f"{{{{=workflow.annotations['{CANCELLED}'] == 'yes' ? 'cancelled' : workflow.status}}}}"
        told = {**self._deployment.end_environment, RUN: RUN_ID, STATE: state}
        template = self.container(self.end_request(), self._deployment.end_command, told, name, None)
        template["retryStrategy"] = {"limit": "3", "retryPolicy": "Always"}
        return template

    def end_request(self) -> ExecutorRequest:
        """Return what a container asks for that runs after all steps: the image and the rights of the last one."""
        steps, last = self._deployment.steps, self._deployment.graph.end
        request = steps[last or next(iter(steps))].request
        return ExecutorRequest(
            request.name, {key: request.resources[key] for key in _ENDED if key in request.resources}
        )

    def container(
        self,
        request: ExecutorRequest,
        command: Sequence[str],
        environment: Mapping[str, str],
        name: str,
        step: str | None,
    ) -> dict[str, Any]:
        """Return a template with one container, as Argo Workflows wants it: it brings the rest of the pod itself."""
        pod = pod_spec(request, self._command(command), environment, self.defaults._replace(service_account=None))
        container = pod["containers"][0]
        for key in ("name", "terminationMessagePolicy"):
            del container[key]
        template: dict[str, Any] = {"name": name, "container": container}
        template.update({key: pod[key] for key in _TEMPLATE_FIELDS if key in pod})
        given = request.resources
        metadata = {key: dict(given[key]) for key in ("labels", "annotations") if given.get(key)}
        if step is not None:
            metadata["labels"] = {**metadata.get("labels", {}), f"{OWN_PREFIX}step": label_value(step)}
        if metadata:
            template["metadata"] = metadata
        return template

    def _command(self, command: Sequence[str]) -> list[str]:
        """Return a command whose program is the workflow's argument."""
        argument = f"{{{{workflow.parameters.{PROGRAM}}}}}"
        return [argument if word == self.program else word for word in command]


def program_of(command: Sequence[str]) -> str | None:
    """Return the program of a command ``python -c PROGRAM …``; None where it has none."""
    return command[command.index("-c") + 1] if "-c" in command[:-1] else None


def again(plan: StepPlan) -> dict[str, Any]:
    """Return how often a step's task is started again, and after what pause."""
    if plan.tries <= 1:
        return {}
    attempts = plan.attempts
    strategy: dict[str, Any] = {
        "limit": str(plan.tries - 1),
        "retryPolicy": "Always",
        # The container says so where no further attempt is of use.
        "expression": f"asInt(lastRetry.exitCode) != {FINAL}",
    }
    if attempts.delay > 0:
        backoff = {"duration": duration(attempts.delay)}
        if attempts.backoff > 1:
            backoff["factor"] = str(max(2, round(attempts.backoff)))
            backoff["cap"] = duration(max(attempts.delay, attempts.max_delay))
        strategy["backoff"] = backoff
    return {"retryStrategy": strategy}


def untemplated(text: str) -> str:
    """Return a JSON text that means the same and has nothing in it that Argo takes for a variable.

    Two opening braces stand beside each other within a JSON string only, where the second may be written as a number.
    """
    return text.replace("{{", "{\\u007b")


def duration(seconds: float) -> str:
    """Return seconds as Argo Workflows reads them."""
    return f"{int(seconds)}s" if float(seconds).is_integer() else f"{max(1, round(seconds * 1000))}ms"


def _output(name: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"path": f"{FOLDER}/{name}", "default": NOTHING if name == "step" else "0"}}
