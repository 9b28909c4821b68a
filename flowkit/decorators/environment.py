"""``@environment``: environment variables for a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import variable_problem
from flowkit.decorators.contract import ExecutorRequest, StepDecorator, TaskContext
from flowkit.exceptions import Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node


class Environment(StepDecorator):
    """Set environment variables for the step, before its Python starts.

    The step runs in a fresh interpreter, so that libraries which read variables when they are imported see them.
    Values are recorded with the flow: keep secrets in ``@secrets``.

    Parameters
    ----------
    vars : dict of str to str or number
        The variables.

    Examples
    --------
    >>> @environment(vars={"OMP_NUM_THREADS": 2})
    ... @step
    ... def train(self): ...
    """

    name = "environment"
    defaults = {"vars": {}}

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check names and values."""
        given = self.attributes["vars"]
        if not isinstance(given, Mapping):
            return [self.problem("@environment: vars must be a dict", 'write vars={"NAME": "value"}')]
        problems = []
        for name, value in given.items():
            wrong = variable_problem(name)
            if wrong:
                problems.append(self.problem(f"@environment: {wrong}"))
            elif not _is_text(value):
                hint = f'"{name}": "{str(value).lower()}"' if isinstance(value, bool) else f'"{name}": "…"'
                problems.append(
                    self.problem(
                        f"@environment: the value of {name} must be a text or a number, not {type(value).__name__}",
                        f"write {hint}",
                    )
                )
            elif "\0" in str(value):
                problems.append(self.problem(f"@environment: the value of {name} has a null character in it"))
        return problems

    def variables(self) -> dict[str, str]:
        """Return the variables as texts."""
        return {str(name): str(value) for name, value in self.attributes["vars"].items()}

    def executor(self) -> ExecutorRequest | None:
        """Ask for a fresh interpreter with the variables."""
        variables = self.variables()
        return ExecutorRequest(fresh=True, environment=variables) if variables else None

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Make sure of the variables, also where the step was started by hand."""
        from flowkit.settings import environment

        environment().update(self.variables())
        proceed()


def _is_text(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


environment = step_decorator(Environment)
