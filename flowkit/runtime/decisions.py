"""What the scheduler says: decisions, notices and counts, and how a transition can contradict the graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from flowkit.model.coordinates import TaskRef
from flowkit.model.graph import Node
from flowkit.model.manifest import Failure
from flowkit.model.transition import Transition

Action = Literal["retry", "fallback", "failed", "cancelled", "ignored"]
NoticeKind = Literal["duplicate", "late", "contradiction", "too wide"]


class Notice(NamedTuple):
    """Something about an event that was not as expected.

    Parameters
    ----------
    kind : str
        ``duplicate`` (the task is over, or was never launched: nothing changed), ``late`` (an earlier attempt
        committed after all; the task counts as finished), ``contradiction`` (the event cannot be true, or the
        transition does not fit the graph), ``too wide`` (a foreach above the limit).
    ref : TaskRef
        The task.
    text : str
        One line for the screen.
    failure : Failure or None
        Set where the task has failed by it: nothing follows it, and the run will end as failed.
    """

    kind: NoticeKind
    ref: TaskRef
    text: str
    failure: Failure | None = None


class Decision(NamedTuple):
    """What becomes of a task whose attempt failed.

    Parameters
    ----------
    action : str
        ``retry`` or ``fallback`` (another attempt), ``failed`` (for good), ``cancelled``, ``ignored`` (the report
        changed nothing: a duplicate, or another attempt has committed the task).
    ref : TaskRef
        The task.
    attempt : int
        The attempt that the report was about.
    next_attempt : int or None
        The number of the next attempt, if there is one.
    at : float or None
        When it starts at the earliest, on the clock of the caller's `now`.
    why : str
        One line: why there is no other attempt, or why the report was ignored.
    """

    action: Action
    ref: TaskRef
    attempt: int
    next_attempt: int | None = None
    at: float | None = None
    why: str = ""


class Counts(NamedTuple):
    """The tasks of one step that are known so far, by what has become of them; a gang counts all its nodes."""

    pending: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    cloned: int = 0


class Awaited(NamedTuple):
    """A join that waits: `arrived` of `expected` branches are there, which end in one of the steps `of`."""

    step: str
    arrived: int
    expected: int
    of: tuple[str, ...]

    def __str__(self) -> str:
        missing = self.expected - self.arrived
        return f"{self.step} waits for {missing} of {self.expected} of {', '.join(self.of)}"


def check_width(ref: TaskRef, width: int, max_width: int) -> Failure | None:
    """Return the failure of a task whose foreach or gang is wider than allowed, or None."""
    if width <= max_width:
        return None
    message = f"{ref} opens {width:,} tasks at once, the limit is {max_width:,} (raise it with --max-num-splits)"
    return Failure("error", message, retry=False)


def contradiction(node: Node, transition: Transition) -> str | None:
    """Say how a transition contradicts the graph, or return None where it fits.

    Parameters
    ----------
    node : Node
        The step that made it.
    transition : Transition
        What its task recorded.
    """
    kind = node.kind
    if transition.kind != kind:
        return f"it went on by '{transition.kind}', the graph says '{kind}'"
    targets = transition.targets
    if kind == "switch":
        if len(targets) != 1 or targets[0] not in node.targets:
            return f"it chose {_names(targets)}, the graph says one of {_names(node.targets)}"
    elif targets != node.targets:
        return f"it went on to {_names(targets)}, the graph says {_names(node.targets)}"
    if kind in ("foreach", "parallel"):
        width, least = transition.width, 0 if kind == "foreach" else 1
        if not isinstance(width, int) or width < least:
            return f"its width is {width!r}"
    return None


def contradicts(ref: TaskRef, wrong: str) -> Notice:
    """Return the notice about a task that cannot go on as it says; it has failed by that."""
    message = f"{ref} does not fit the flow's graph: {wrong}"
    return Notice("contradiction", ref, message, Failure("internal", message, retry=False))


def _names(steps: Iterable[str]) -> str:
    return ", ".join(map(str, steps)) or "nothing"
