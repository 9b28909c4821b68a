"""A launch: the scheduler's decision that one attempt of one task is to be carried out.

A launch carries what coordinates cannot tell (which branch a switch took, the last turn of a loop, the width
of a foreach), so that the process that runs it probes for nothing. Its text form travels on the command line
of ``python flow.py step`` and in launch lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from flowkit.exceptions import UsageError
from flowkit.model.coordinates import Coordinates, Span, TaskRef

AttemptKind = Literal["user", "fallback"]
"""``user`` runs the step's code; ``fallback`` lets ``@catch`` stand in for a process that died silently."""


class Launch(NamedTuple):
    """One attempt of one task.

    Parameters
    ----------
    step, coordinates
        The task.
    parents : tuple of Span
        The tasks whose artifacts it sees, in the order in which a join sees its inputs. Empty for the join of
        an empty foreach and for the start step.
    split : TaskRef, optional
        For a join: the task that opened the foreach or split which it closes.
    attempt : int
        Counted from 0 over user and fallback attempts together.
    kind : "user" or "fallback"
        Who acts in this attempt.
    gang : int
        The number of nodes of a ``num_parallel`` gang, which is launched as one unit; 0 for a plain task.
        Node i has the coordinates of the launch with i as the last index.
    """

    step: str
    coordinates: Coordinates
    parents: tuple[Span, ...] = ()
    split: TaskRef | None = None
    attempt: int = 0
    kind: AttemptKind = "user"
    gang: int = 0

    @property
    def ref(self) -> TaskRef:
        """The task."""
        return TaskRef(self.step, self.coordinates)

    def parent_refs(self) -> Iterator[TaskRef]:
        """Every parent, in input order."""
        for span in self.parents:
            yield from span.refs()


def spans_text(spans: tuple[Span, ...]) -> str:
    """Write spans as ``step/first+length,…`` (the form that `parse_spans` reads)."""
    return ",".join(map(str, spans))


def parse_spans(text: str, depth_of: dict[str, int]) -> tuple[Span, ...]:
    """Read what `spans_text` wrote.

    Parameters
    ----------
    text : str
        For example ``train/0+100`` or ``a/0,b/0``; empty for no parents.
    depth_of : dict of str to int
        How many foreaches enclose each step of the flow.

    Raises
    ------
    UsageError
        If the text names an unknown step or is malformed.
    """
    return tuple(_parse_span(part, depth_of) for part in text.split(",") if part)


def _parse_span(text: str, depth_of: dict[str, int]) -> Span:
    step, slash, rest = text.partition("/")
    task, plus, count = rest.partition("+")
    if not slash or step not in depth_of or (plus and not (count.isascii() and count.isdigit() and len(count) < 10)):
        raise UsageError(f"'{text}' does not name tasks of this flow")
    return Span(step, Coordinates.parse(task, depth_of[step]), int(count) if plus else 1)


def read_spans(text: str) -> tuple[Span, ...]:
    """Read what `spans_text` wrote without knowing the flow, as far as names go.

    The depth of a step is taken from the id itself: an id ``0`` of a step outside any foreach reads as index 0, which
    is written the same. For naming tasks that is enough.

    Raises
    ------
    UsageError
        If the text is malformed.
    """
    spans = []
    for part in text.split(","):
        if part:
            step, _, rest = part.partition("/")
            depth = rest.partition("+")[0].partition("-")[0].count(".") + 1
            spans.append(_parse_span(part, {step: depth}))
    return tuple(spans)
