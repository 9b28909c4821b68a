"""``@timeout``: end a step that takes too long.

At the limit a signal raises `TimeoutException` in the step. Code that no signal can interrupt, because it is stuck in
a native library, is killed by the executor after a grace; shortly before, the watchdog of `faulthandler`, which needs
no interpreter, writes to the log where the step hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_number, number
from flowkit.decorators.contract import Attempts, StepDecorator, TaskContext
from flowkit.exceptions import Problem, TimeoutException

if TYPE_CHECKING:
    from types import FrameType

    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600}
_LONGEST = 366 * 24 * 3600
_STDERR = 2
_HANGS = 2.0
"""Seconds after the limit when a step that is still there counts as hanging; executors have a longer grace."""


class Timeout(StepDecorator):
    """End the step when it takes longer than the sum of `seconds`, `minutes` and `hours`.

    The limit holds for each attempt. The step fails with `TimeoutException`, which ``@retry`` and ``@catch`` treat
    like any other.

    Parameters
    ----------
    seconds, minutes, hours : float, default 0
        Their sum is the limit.

    Examples
    --------
    >>> @timeout(minutes=10)
    ... @step
    ... def train(self): ...
    """

    name = "timeout"
    defaults = {"seconds": 0, "minutes": 0, "hours": 0}

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check the numbers and their sum."""
        problems = [problem for unit in _UNITS for problem in check_number(self, unit, low=0, unit=unit)]
        if not problems and not 0 < self.limit() <= _LONGEST:
            headline = "@timeout needs a time above 0" if not self.limit() else "@timeout: the time is above a year"
            problems.append(self.problem(headline, "for example @timeout(minutes=10)"))
        return problems

    def attempts(self) -> Attempts | None:
        """Return the limit, so that the executor kills what the signal did not end."""
        limit = self.limit()
        return Attempts(timeout=limit) if limit else None

    def limit(self) -> float:
        """Return the limit in seconds."""
        return sum((number(self.attributes[unit]) or 0.0) * factor for unit, factor in _UNITS.items())

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Run the step with the signal and the watchdog set."""
        limit = self.limit()
        if task.fallback or not limit:
            proceed()
            return
        import faulthandler

        faulthandler.dump_traceback_later(limit + _HANGS, file=_STDERR)
        try:
            _interrupted_after(limit, task.step, proceed)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _interrupted_after(limit: float, step: str, proceed: Callable[[], None]) -> None:
    import signal
    import threading

    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        proceed()  # the executor alone must do
        return
    running = True

    def ring(signum: int, frame: FrameType | None) -> None:
        if running:
            raise TimeoutException(f"step '{step}' took longer than its @timeout of {spoken(limit)}")

    before: Any = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        proceed()
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)


def spoken(seconds: float) -> str:
    """Return a time as it is said: ``90 s`` is ``1 min 30 s``."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value:g} {unit}" for value, unit in parts if value)


timeout = step_decorator(Timeout)
