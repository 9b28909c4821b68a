"""A flow as a value: what its class says, gathered once and handed around.

`define` reads a subclass of FlowSpec; nothing is attached to the class itself, so that ``--with`` and the
like change the definition of one command and never the user's class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flowkit.model.graph import Graph


@dataclass(slots=True)
class StepDefinition:
    """One step: its function and its decorators, outermost first (objects of `flowkit.decorators.contract`)."""

    name: str
    function: Callable[..., Any]
    decorators: list[Any] = field(default_factory=list)

    def decorator(self, name: str) -> Any | None:
        """Return the step's decorator of a name, or None."""
        return next((item for item in self.decorators if item.name == name), None)


@dataclass(slots=True)
class FlowDefinition:
    """One flow.

    Parameters
    ----------
    cls : type
        The user's class; `name` is its name and `file` where it stands.
    graph : Graph
        Its steps and transitions.
    steps : dict of str to StepDefinition
        In the order of the source.
    parameters : dict of str to Parameter
        By attribute name.
    constants : dict of str to object
        Class-level values that are neither steps, methods nor parameters.
    decorators : list
        Flow decorators, outermost first.
    """

    cls: type
    name: str
    file: str
    graph: Graph
    steps: dict[str, StepDefinition]
    parameters: dict[str, Any]
    constants: dict[str, Any]
    decorators: list[Any]
