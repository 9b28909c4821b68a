"""What a piece of a step's code does to ``self``, as values: states along its paths, and effects as a whole.

`flowkit.model.effects_walk` makes them from the source; `flowkit.model.dataflow` carries them along the graph.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

ReadKind = Literal["self", "foreach", "condition", "input"]


class Read(NamedTuple):
    """An artifact that is read where the code itself did not set it before.

    Parameters
    ----------
    name : str
        The artifact.
    file, line : str, int
        Where it is read.
    kind : str
        Through ``self``, by ``foreach=`` or ``condition=`` in ``self.next``, or through an input of a join.
    deleted : bool
        The code deleted it before, on every path.
    merged : bool
        `merge_artifacts` may have brought it.
    source : str or None
        For an input: the step that it comes from; None for any of them.
    via : tuple of str
        The methods of the flow through which the code is reached, outermost first.
    """

    name: str
    file: str
    line: int
    kind: ReadKind = "self"
    deleted: bool = False
    merged: bool = False
    source: str | None = None
    via: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[object, ...]:
        """What is the same for one read in the source, however it is reached."""
        return self.file, self.line, self.name, self.kind, self.source


class Effects(NamedTuple):
    """What a function does to ``self``, whatever was there before.

    Parameters
    ----------
    needs : tuple of Read
        What it reads without having set it itself.
    reads : frozenset of str
        Every artifact that it may read.
    added : frozenset of str
        What it may have set when it ends.
    deleted : frozenset of str
        What it has surely deleted when it ends.
    surely : frozenset of str
        What it has set on every path that ends.
    sets, deletes : frozenset of str
        What it may set or delete at any moment.
    merged : frozenset of str or None
        It may have called `merge_artifacts`, on everything but these names.
    unsure : bool
        It may do anything: what it does cannot be told from the source.
    never_ends : bool
        No path leads to its end: it raises.
    """

    needs: tuple[Read, ...] = ()
    reads: frozenset[str] = frozenset()
    added: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()
    surely: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    deletes: frozenset[str] = frozenset()
    merged: frozenset[str] | None = None
    unsure: bool = False
    never_ends: bool = False


UNSURE = Effects(unsure=True)


class State:
    """What holds at one place of the code, whichever path led there.

    Attributes
    ----------
    added : set of str
        Names that some path has set.
    deleted : set of str
        Names that every path has deleted.
    surely : set of str
        Names that every path has set.
    merged : frozenset of str or None
        Some path has merged the inputs of the join; these names are not there by that.
    unsure : bool
        Some path has done what cannot be told.
    dead : bool
        No path leads here.
    """

    __slots__ = ("added", "dead", "deleted", "merged", "surely", "unsure")

    def __init__(self) -> None:
        self.added: set[str] = set()
        self.deleted: set[str] = set()
        self.surely: set[str] = set()
        self.merged: frozenset[str] | None = None
        self.unsure = False
        self.dead = False

    def copy(self) -> State:
        """Return a state that goes its own way from here."""
        other = State()
        other.added = set(self.added)
        other.deleted = set(self.deleted)
        other.surely = set(self.surely)
        other.merged = self.merged
        other.unsure = self.unsure
        other.dead = self.dead
        return other

    def become(self, other: State) -> None:
        """Take over another state."""
        self.added, self.deleted, self.surely = other.added, other.deleted, other.surely
        self.merged, self.unsure, self.dead = other.merged, other.unsure, other.dead

    def join(self, other: State) -> None:
        """Let the paths of another state come in."""
        if other.dead:
            return
        if self.dead:
            self.become(other.copy())
            return
        self.added |= other.added
        self.deleted &= other.deleted
        self.surely &= other.surely
        self.unsure = self.unsure or other.unsure
        if other.merged is not None:
            self.merged = other.merged if self.merged is None else self.merged & other.merged

    def assign(self, name: str) -> None:
        """The name is set."""
        self.added.add(name)
        self.surely.add(name)
        self.deleted.discard(name)

    def remove(self, name: str) -> None:
        """The name is deleted."""
        self.deleted.add(name)
        self.added.discard(name)
        self.surely.discard(name)
        if self.merged is not None:
            self.merged |= {name}

    def merge(self, excluded: frozenset[str]) -> None:
        """Everything that the inputs have comes in, but for some names."""
        self.merged = excluded if self.merged is None else self.merged & excluded
        self.deleted &= excluded

    def apply(self, effects: Effects) -> None:
        """A function with these effects runs to its end."""
        self.added -= effects.deleted
        self.deleted -= effects.added
        if effects.merged is not None:
            self.merge(effects.merged)
        self.added |= effects.added
        self.deleted |= effects.deleted
        if self.merged is not None:
            self.merged |= effects.deleted
        self.surely -= effects.deletes
        self.surely |= effects.surely
        self.unsure = self.unsure or effects.unsure
        self.dead = self.dead or effects.never_ends
