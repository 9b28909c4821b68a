"""Mutators: decorators that change a flow, or one step, before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowkit.decorators.contract import FlowDecorator, StepDecorator
from flowkit.decorators.user_steps import UserDecorator, UserDecoratorType

if TYPE_CHECKING:
    from flowkit.decorators.mutable import MutableFlow, MutableStep


class FlowMutator(UserDecorator, FlowDecorator, metaclass=UserDecoratorType):
    """Changes a flow before it runs: subclass it, and write it above the class of a flow.

    Examples
    --------
    >>> class RetryEverything(FlowMutator):
    ...     def init(self, times=3):
    ...         self.times = times
    ...
    ...     def mutate(self, mutable_flow):
    ...         for name, step in mutable_flow.steps:
    ...             step.add_decorator("retry", deco_kwargs={"times": self.times})

    Of several, the one nearest to the class acts first, and those of base classes before those of the flow. They act
    in every process that runs a part of the flow, so what they do may depend on nothing but the flow and its configs.
    """

    abstract = True
    mutates = True
    multiple = True

    def pre_mutate(self, mutable_flow: MutableFlow) -> None:
        """Change the flow before its parameters are looked at: parameters, flow decorators and everything else."""

    def mutate(self, mutable_flow: MutableFlow) -> None:
        """Change the decorators of steps, with those that ``--with`` has added."""


class StepMutator(UserDecorator, StepDecorator, metaclass=UserDecoratorType):
    """Changes a step before the flow runs: subclass it, and write it above ``@step``.

    Examples
    --------
    >>> class Patient(StepMutator):
    ...     def mutate(self, mutable_step):
    ...         mutable_step.add_decorator("timeout", deco_kwargs={"hours": 5}, duplicates=mutable_step.OVERRIDE)
    ...         mutable_step.add_decorator("retry")
    """

    abstract = True
    mutates = True
    multiple = True
    users = True

    def pre_mutate(self, mutable_step: MutableStep) -> None:
        """Change the step before the flow's parameters are looked at."""

    def mutate(self, mutable_step: MutableStep) -> None:
        """Change the step's decorators, with those that ``--with`` has added."""
