"""``@retry``: try a step again when it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_number, items, number
from flowkit.decorators.contract import Attempts, StepDecorator, class_name
from flowkit.exceptions import Problem, did_you_mean

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

MOST = 99
"""The largest number of retries."""

KINDS = (
    *("error", "timeout", "killed", "oom", "crash", "vanished", "lost", "cancelled", "internal"),
    *("image", "capacity", "evicted", "deleted", "unreachable", "setup", "rejected"),
)
"""The kinds of failure that `on` may name, as in `flowkit.model.manifest.Failure`."""


class Retry(StepDecorator):
    """Try the step again when it fails.

    Each attempt starts afresh from the step's inputs. When the last one fails too, the run fails, unless ``@catch``
    stands above the step.

    Parameters
    ----------
    times : int, default 3
        Retries after the first attempt, 0 to 99.
    minutes_between_retries : float, default 2
        Minutes before the first retry. On this machine the pause is only made when it is given explicitly: the
        default is meant for clusters. Other tasks run meanwhile.
    backoff : float, default 1.0
        The factor by which the pause grows from retry to retry; at least 1.
    max_minutes : float, default 60
        The longest pause, in minutes.
    on : exception class, str, or list of these, optional
        What is worth a retry: exception classes (subclasses count), their names, or kinds of failure: ``error``,
        ``timeout``, ``killed`` (by a signal), ``oom``, ``crash``, ``vanished``, ``lost``, and where a service carries
        it out ``capacity``, ``evicted``, ``deleted``, ``unreachable``. Default: everything. A machine that was
        reclaimed is no attempt at first: see the setting ``infrastructure_retries``.

    Examples
    --------
    >>> @retry(times=5, minutes_between_retries=1, backoff=2, on=[ConnectionError, "killed"])
    ... @step
    ... def fetch(self): ...
    """

    name = "retry"
    defaults = {
        "times": 3,
        "minutes_between_retries": 2,
        "backoff": 1.0,
        "max_minutes": 60,
        "on": None,
    }

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check the numbers and the names in `on`."""
        return [
            *check_number(self, "times", low=0, high=MOST, whole=True),
            *check_number(self, "minutes_between_retries", low=0, unit="minutes"),
            *check_number(self, "backoff", low=1),
            *check_number(self, "max_minutes", low=0, unit="minutes"),
            *(problem for item in items(self.attributes["on"]) for problem in self._check_on(item)),
        ]

    def attempts(self) -> Attempts:
        """Return the retries and the pause."""
        explicit = "minutes_between_retries" in self.given
        longest = (number(self.attributes["max_minutes"]) or 0.0) * 60
        return Attempts(
            retries=int(number(self.attributes["times"]) or 0),
            delay=min((number(self.attributes["minutes_between_retries"]) or 0.0) * 60, longest) if explicit else 0.0,
            backoff=number(self.attributes["backoff"]) or 1.0,
            max_delay=longest,
            on=tuple(_name(item) for item in items(self.attributes["on"])),
        )

    def _check_on(self, item: Any) -> list[Problem]:
        if isinstance(item, type) and issubclass(item, BaseException):
            return []
        if isinstance(item, str) and (item in KINDS or _may_be_class(item)):
            return []
        shown = repr(item) if isinstance(item, (str, int, float)) else _name(item)
        return [
            self.problem(
                f"@retry(on=…): {shown} is neither an exception class nor a kind of failure",
                (did_you_mean(item, KINDS) if isinstance(item, str) else None)
                or f"exception classes, their names, or: {', '.join(KINDS)}",
            )
        ]


def _may_be_class(text: str) -> bool:
    """Whether a text looks like a class: a module before it, or a capital letter in it."""
    return all(part.isidentifier() for part in text.split(".")) and ("." in text or not text.islower())


def _name(item: Any) -> str:
    if isinstance(item, str):
        return item
    return class_name(item if isinstance(item, type) else type(item))


retry = step_decorator(Retry)
