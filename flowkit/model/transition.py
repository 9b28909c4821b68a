"""What a finished task decided: where the flow goes next."""

from __future__ import annotations

from typing import Literal, NamedTuple

TransitionKind = Literal["linear", "split", "foreach", "parallel", "switch", "end"]


class Transition(NamedTuple):
    """The observed transition of one task, as its manifest records it.

    A transition into a join is ``linear``. For a switch, `targets` holds the one step that was chosen (itself
    for another turn of a loop) and `case` the value that chose it.

    Parameters
    ----------
    kind : str
        One of ``linear``, ``split``, ``foreach``, ``parallel``, ``switch``, ``end``.
    targets : tuple of str
        The steps that follow; empty for ``end``.
    width : int, optional
        For ``foreach`` and ``parallel``: how many children.
    variable : str, optional
        For ``foreach``: the artifact iterated over. For ``switch``: the artifact that decides.
    case : str, optional
        For ``switch``: the text of the value that was found.
    pack : str, optional
        For ``foreach``: the key of the blob with the items, one by one.
    """

    kind: TransitionKind
    targets: tuple[str, ...] = ()
    width: int | None = None
    variable: str | None = None
    case: str | None = None
    pack: str | None = None


class Frame(NamedTuple):
    """One enclosing foreach of a task, outermost first in a manifest.

    Parameters
    ----------
    step : str
        The step that opened the foreach.
    variable : str or None
        The artifact iterated over (None for a gang).
    index : int
        Which child this task descends from.
    width : int
        How many children there are.
    pack : str or None
        The key of the blob with the items (None for a gang).
    """

    step: str
    variable: str | None
    index: int  # type: ignore[assignment]  # the word of the language; nobody searches a frame
    width: int
    pack: str | None

    def to_json(self) -> list[str | int | None]:
        """Return the JSON form."""
        return [self.step, self.variable, self.index, self.width, self.pack]
