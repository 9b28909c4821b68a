"""Where a task stands in its flow: foreach indices and the turn of a loop.

A task's id is its coordinates (docs/architecture.md, idea 1). ``3.1`` is index 1 inside index 3, ``0-2`` is
the third turn of a loop step, and a task outside any foreach is ``0``. Any process can name any task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from flowkit.exceptions import InvalidPathspec

_FORM = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.(?:0|[1-9][0-9]{0,17}))*(?:-(?:0|[1-9][0-9]{0,17}))?")


class Coordinates(NamedTuple):
    """The place of one task of a step.

    Parameters
    ----------
    indices : tuple of int
        One foreach index for each enclosing foreach, outermost first; empty outside any foreach.
    turn : int, optional
        For a step that is a loop (a switch with itself as a case): which turn, counted from 0.
    """

    indices: tuple[int, ...] = ()
    turn: int | None = None

    def __str__(self) -> str:
        text = ".".join(map(str, self.indices)) if self.indices else "0"
        return text if self.turn is None else f"{text}-{self.turn}"

    @classmethod
    def parse(cls, text: str, depth: int) -> Coordinates:
        """Read a task id.

        Parameters
        ----------
        text : str
            For example ``3.1`` or ``0-2``.
        depth : int
            How many foreaches enclose the step: a task id ``0`` means "the only one" at depth 0 and "index 0"
            at depth 1.

        Raises
        ------
        InvalidPathspec
            If the text is not a task id of a step at that depth.
        """
        if not _FORM.fullmatch(text):
            raise InvalidPathspec(f"'{text}' is not a task id", "a task id looks like 0, 3, 3.1 or 0-2")
        body, _, turn = text.partition("-")
        indices = tuple(map(int, body.split(".")))
        if depth == 0 and indices == (0,):
            indices = ()
        if len(indices) != depth:
            levels = (
                f"inside {depth} foreach level{'s' * (depth > 1)}"
                if depth
                else "that has one task (or one for each turn of a loop)"
            )
            example = ".".join(["3", "1", "4", "1", "5", "9"][:depth]) or "0"
            raise InvalidPathspec(
                f"'{text}' does not name a task of a step {levels}",
                f"such a task id looks like {example}; in a loop like {example}-2",
            )
        return cls(indices, int(turn) if turn else None)


class TaskRef(NamedTuple):
    """One task of a run: its step and its coordinates; ``str`` gives ``step/task``."""

    step: str
    coordinates: Coordinates

    def __str__(self) -> str:
        return f"{self.step}/{self.coordinates}"


class Span(NamedTuple):
    """`length` tasks of one step whose last foreach index counts up from that of `first`.

    A join over a million children names its parents by one span.
    """

    step: str
    first: Coordinates
    length: int = 1

    def refs(self) -> Iterator[TaskRef]:
        """Every task of the span, in index order."""
        if self.length == 1:
            yield TaskRef(self.step, self.first)
            return
        *prefix, last = self.first.indices
        for index in range(last, last + self.length):
            yield TaskRef(self.step, Coordinates((*prefix, index), self.first.turn))

    def __str__(self) -> str:
        text = f"{self.step}/{self.first}"
        return text if self.length == 1 else f"{text}+{self.length}"


def valid_task_id(text: str) -> bool:
    """Whether the text has the form of a task id, whatever the depth of its step."""
    return _FORM.fullmatch(text) is not None
