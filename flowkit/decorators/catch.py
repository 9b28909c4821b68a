"""``@catch``: go on when a step fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_flag
from flowkit.decorators.contract import Attempts, StepDecorator, TaskContext, class_name
from flowkit.exceptions import FlowkitExceptionWrapper, InvalidNext, Problem, TimeoutException

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_TOO_OPEN = {
    "foreach": "how many tasks follow is known only when it has run",
    "parallel": "how many nodes follow is known only when it has run",
    "switch": "which branch follows is known only when it has run",
}
_TAKEN = frozenset({"name", "next", "input", "inputs", "index", "cmd", "foreach_stack", "merge_artifacts"})


class Catch(StepDecorator):
    """Go on with the flow when the step fails for good: after its last retry.

    What the step had assigned before it failed is kept. A process that was killed, or ended without a word, is
    caught too: then the exception is a `FailureHandledByCatch` that says what happened.

    Parameters
    ----------
    var : str, optional
        The artifact that tells: a `FlowkitExceptionWrapper` (``exception``, ``type``, ``stacktrace``) where the step
        failed, None where it did not.
    print_exception : bool, default True
        Show the traceback in the task's log.

    Examples
    --------
    >>> @catch(var="failure")
    ... @step
    ... def train(self): ...
    """

    name = "catch"
    defaults = {"var": None, "print_exception": True}
    outermost = True

    _policy: Attempts | None = None

    @classmethod
    def fits(cls, node: Node) -> bool:
        """Not on a step that decides what follows."""
        return node.kind not in _TOO_OPEN

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check the artifact's name, and that what follows does not depend on the step."""
        problems = check_flag(self, "print_exception")
        if not self.fits(node):
            problems.append(
                self.problem(
                    f"@catch cannot be on step '{node.name}': {_TOO_OPEN[node.kind]}",
                    "move what can fail into a step before it",
                )
            )
        var = self.attributes["var"]
        if var is not None:
            problems += self._check_var(var, flow)
        from flowkit.decorators.attach import policy

        self._policy = policy(flow.steps[node.name])
        return problems

    def attempts(self) -> Attempts:
        """Ask for an attempt that stands in where the process died."""
        return Attempts(fallback=True)

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Run the step; on the last attempt keep what it raised and go on."""
        try:
            proceed()
        except InvalidNext:
            raise  # the flow itself is wrong, which must not go unseen
        except (Exception, SystemExit) as error:
            if self._tried_again(task, error):
                raise
            self._keep(task, error)
        else:
            if self.attributes["var"]:
                setattr(task.flow, self.attributes["var"], None)

    def _tried_again(self, task: TaskContext, error: BaseException) -> bool:
        if task.fallback or task.attempt >= task.retries:
            return False
        policy = task.policy or self._policy
        if policy is None:
            return True
        kind = "timeout" if isinstance(error, TimeoutException) else "error"
        return policy.retries_on(kind, [class_name(base) for base in type(error).__mro__])

    def _keep(self, task: TaskContext, error: BaseException) -> None:
        wrapped = FlowkitExceptionWrapper(error)
        wrapped.exception = task.masked(wrapped.exception or "")
        wrapped.stacktrace = task.masked(wrapped.stacktrace or "")
        if self.attributes["print_exception"]:
            sys.stderr.write(f"@catch: step '{task.step}' failed and the flow goes on without it:\n{wrapped}")
        if self.attributes["var"]:
            setattr(task.flow, self.attributes["var"], wrapped)
        told: dict[str, Any] = {"type": wrapped.type, "exception": wrapped.exception, "stacktrace": wrapped.stacktrace}
        if task.failure:
            told["failure"] = {key: task.failure.get(key) for key in ("kind", "message", "exit_status")}
        task.extra[self.name] = told
        if task.node.kind != "end":
            task.set_transition(*task.node.targets)

    def _check_var(self, var: Any, flow: FlowDefinition) -> list[Problem]:
        from keyword import iskeyword

        if not isinstance(var, str) or not var.isidentifier() or iskeyword(var):
            return [self.problem(f"@catch(var={var!r}): var must be the name of an artifact", 'e.g. var="failure"')]
        taken = None
        if var in flow.steps:
            taken = "a step"
        elif var in flow.parameters:
            taken = "a parameter"
        elif var in flow.constants:
            taken = "a constant of the flow"
        elif var in _TAKEN or var.startswith("_"):
            taken = "something of flowkit's own"
        if taken:
            return [self.problem(f"@catch(var='{var}'): '{var}' is the name of {taken}", "give it a name of its own")]
        return []


catch = step_decorator(Catch)
