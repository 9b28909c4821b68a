"""Graphs for the tests of the scheduler and the resume plan, built by hand: no source is read."""

from __future__ import annotations

from flowkit.exceptions import Location
from flowkit.model.graph import Graph, Node


def graph_of(steps: dict[str, str]) -> Graph:
    """Build a graph from a line a step, in any order but with ``start`` and ``end``.

    A line is ``KIND TARGET…``; with ``join`` in front for a join: ``{"start": "foreach train", "train": "linear join",
    "join": "join linear end", "end": "end"}``.
    """
    nodes = {name: _node(name, text.split()) for name, text in steps.items()}
    for name, node in nodes.items():
        for target in node.targets:
            nodes[target].sources = (*nodes[target].sources, name)
    _nest(nodes, "start", ())
    return Graph("TestFlow", nodes, "start", "end")


def _node(name: str, words: list[str]) -> Node:
    is_join = words[0] == "join"
    kind, *targets = words[is_join:]
    return Node(name, kind, Location("flow.py", 1), tuple(targets), is_join, 1 + is_join)  # type: ignore[arg-type]


def _nest(nodes: dict[str, Node], start: str, splits: tuple[str, ...]) -> None:
    """Walk the graph once and fill in what is open at each step, and which join closes what."""
    todo: list[tuple[str, tuple[str, ...], str | None]] = [(start, splits, None)]
    seen = set()
    while todo:
        name, splits, branch = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        node = nodes[name]
        if node.is_join:
            opener = nodes[splits[-1]]
            opener.matching_join = name
            splits, branch = splits[:-1], opener.branch
        node.splits = splits
        node.branch = branch
        node.depth = sum(nodes[item].kind != "split" for item in splits)
        inner = (*splits, name) if node.kind in ("split", "foreach", "parallel") else splits
        todo += [(target, inner, branch if inner == splits else target) for target in node.targets]
