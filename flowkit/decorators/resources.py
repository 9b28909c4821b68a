"""``@resources``: what a step needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_number, number
from flowkit.decorators.contract import ExecutorRequest, StepDecorator
from flowkit.exceptions import Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node


class Resources(StepDecorator):
    """Say what the step needs, wherever it runs.

    On this machine each task gets GPUs of its own, as far as there are any, and processors and memory bound what runs
    at once where ``--respect-resources`` asks for it. On a cluster the larger of this and of what the cluster's own
    decorator asks for counts.

    Parameters
    ----------
    cpu : float, default 1
        Processors.
    gpu : int, optional
        Graphics processors.
    memory : int, default 4096
        Megabytes of memory.
    disk : int, optional
        Megabytes of disk.
    shared_memory : int, optional
        Megabytes of shared memory.

    Examples
    --------
    >>> @resources(cpu=8, memory=32_000)
    ... @step
    ... def train(self): ...
    """

    name = "resources"
    defaults = {"cpu": "1", "gpu": None, "disk": None, "memory": "4096", "shared_memory": None}

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check the numbers."""
        return [
            *check_number(self, "cpu", low=0, above=True, optional=True),
            *check_number(self, "gpu", low=0, whole=True, optional=True),
            *check_number(self, "memory", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "disk", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "shared_memory", low=0, optional=True, unit="megabytes"),
        ]

    def executor(self) -> ExecutorRequest | None:
        """Return what was asked for; what was not is left to the executor's own defaults."""
        wanted: dict[str, Any] = {}
        for name in self.defaults:
            value = number(self.attributes[name]) if name in self.given else None
            if value is not None:
                wanted[name] = int(value) if value.is_integer() else value
        return ExecutorRequest(resources=wanted) if wanted else None


resources = step_decorator(Resources)
