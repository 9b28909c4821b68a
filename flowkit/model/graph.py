"""The graph of a flow: its steps and the transitions between them, read from the source and never run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flowkit.exceptions import Location

NodeKind = Literal["linear", "split", "foreach", "parallel", "switch", "join", "end", "invalid"]


@dataclass(slots=True)
class Node:
    """One step of the graph.

    Parameters
    ----------
    name : str
        The step.
    kind : str
        How it goes on: ``linear``, ``split``, ``foreach``, ``parallel`` (num_parallel), ``switch`` or ``end``;
        ``invalid`` where the source has no ``self.next`` that can be understood. Whether it is a join is said by
        `is_join`, which goes together with any of them in the graph; lint allows only ``linear`` and ``end`` there.
    targets : tuple of str
        The steps named by ``self.next``, in order; for a switch in the order of its cases, each once.
    """

    name: str
    kind: NodeKind
    location: Location
    targets: tuple[str, ...] = ()
    is_join: bool = False
    """The step takes ``inputs``."""
    arguments: int = 1
    """How many arguments the function takes, self included."""
    variable: str | None = None
    """For a foreach the artifact iterated over; for a switch the artifact that decides."""
    cases: Mapping[str, str] = field(default_factory=dict)
    """For a switch: the text of each case value to its target."""
    num_parallel: bool = False
    next_location: Location | None = None
    """Where ``self.next`` stands."""
    doc: str = ""
    decorators: tuple[str, ...] = ()
    """Names of the step's decorators, outermost first."""
    sources: tuple[str, ...] = ()
    """The steps that lead here, in the order of the flow's source."""
    depth: int = 0
    """How many foreaches (and gangs) enclose the step."""
    splits: tuple[str, ...] = ()
    """The splits, foreaches and gangs that are open when the step runs, outermost first."""
    matching_join: str | None = None
    """For a split, foreach or gang: the join that closes it."""
    problem: str | None = None
    """Why the transition could not be understood, where `kind` is ``invalid``."""

    @property
    def is_loop(self) -> bool:
        """Whether the step is a switch with itself as a case."""
        return self.name in self.targets


@dataclass(slots=True)
class Graph:
    """The steps of one flow.

    Parameters
    ----------
    flow : str
        The flow's name.
    nodes : dict of str to Node
        Every step, in the order of the source.
    start, end : str or None
        The first and the last step; None where the flow has none or several.
    """

    flow: str
    nodes: dict[str, Node]
    start: str | None
    end: str | None
    file: str = ""
    doc: str = ""

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def depths(self) -> dict[str, int]:
        """How many foreaches enclose each step."""
        return {name: node.depth for name, node in self.nodes.items()}

    def downstream(self, step: str) -> set[str]:
        """Return the step and everything that can follow it."""
        seen: set[str] = set()
        todo = [step]
        while todo:
            name = todo.pop()
            if name not in seen and name in self.nodes:
                seen.add(name)
                todo.extend(self.nodes[name].targets)
        return seen
