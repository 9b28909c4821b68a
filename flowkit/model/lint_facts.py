"""What the rules of `flowkit.model.lint` share: the facts that they judge, and how they tell a problem."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from flowkit.exceptions import Problem
from flowkit.model.graph import Graph, Node

GUESSES = 20
"""How many misspelt names are compared with all others; each costs the number of steps."""


class Facts(NamedTuple):
    """What the rules share.

    Parameters
    ----------
    graph : Graph
        The flow.
    parallel : collection of str
        Names of the decorators that make a step part of a gang.
    order : list of str
        `Graph.order`.
    broken : frozenset of str
        Steps whose transition is not known: the graph may look wrong behind them only for that reason.
    """

    graph: Graph
    parallel: Collection[str]
    order: list[str]
    broken: frozenset[str]


def on(node: Node, headline: str, hint: str | None = None) -> Problem:
    """A problem of the step itself."""
    return Problem(headline, node.location, hint)


def at(node: Node, headline: str, hint: str | None = None) -> Problem:
    """A problem of the step's transition."""
    return Problem(headline, node.next_location or node.location, hint)


def words(node: Node) -> str:
    return "num_parallel" if node.kind == "parallel" else node.kind
