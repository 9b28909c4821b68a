"""Where the steps of a graph stand when it is drawn from top to bottom, in character cells.

Steps are boxes, one below the other; branches stand side by side; what a foreach repeats is framed. A graph whose
transitions cannot be shown by such nesting (cases of a switch that meet at different steps) has no layout here.
`flowkit.model.graph_drawing` draws it as text, `flowkit.model.graph_svg` as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowkit.model.graph import Graph, Node
from flowkit.model.graph_output import structure

BOX_HEIGHT = 3
_GAP = 2
_DEEPEST = 40
"""Splits inside each other that are drawn; deeper ones would not fit on any screen."""


class Box(NamedTuple):
    """A step: its outer edge, in cells, and whether it is a join or turns to itself."""

    name: str
    x: int
    y: int
    width: int
    kind: str
    again: bool = False


class Frame(NamedTuple):
    """What is repeated: the outer edge of the frame around it and how often that is done."""

    x: int
    y: int
    width: int
    height: int
    label: str


class Wire(NamedTuple):
    """A horizontal or vertical line between two cells, ends included."""

    x1: int
    y1: int
    x2: int
    y2: int


class Label(NamedTuple):
    """A text around the middle `x`."""

    x: int
    y: int
    text: str


class Layout(NamedTuple):
    """A drawing: its size and its parts."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    frames: tuple[Frame, ...]
    wires: tuple[Wire, ...]
    labels: tuple[Label, ...]


def layout(graph: Graph) -> Layout | None:
    """Return where everything stands; None for a graph that cannot be drawn like this."""
    series = structure(graph)
    if not series or _depth(series) > _DEEPEST or not _shows_all(graph, series):
        return None
    placing = _Placing(graph)
    block = placing.measure(series)
    placing.place(block, 0, 0)
    return Layout(
        block.width,
        block.height,
        tuple(placing.boxes),
        tuple(placing.frames),
        tuple(placing.wires),
        tuple(placing.labels),
    )


class _Block:
    """A part of the drawing: its size, and the column (from its left) at which it is entered and left."""

    __slots__ = ("axis", "height", "items", "kind", "labels", "name", "width")

    def __init__(self, kind: str, width: int, height: int, axis: int, name: str = "") -> None:
        self.kind, self.width, self.height, self.axis, self.name = kind, width, height, axis, name
        self.items: list[_Block] = []
        self.labels: list[str] = []


class _Placing:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.boxes: list[Box] = []
        self.frames: list[Frame] = []
        self.wires: list[Wire] = []
        self.labels: list[Label] = []

    # -- how large everything is ----------------------------------------------------------------------------------

    def measure(self, series: Sequence[Any]) -> _Block:
        items: list[_Block] = []
        for place, item in enumerate(series):
            if isinstance(item, str):
                width = len(_text(self.graph[item])) + 4
                items.append(_Block("step", width, BOX_HEIGHT, width // 2, item))
            else:
                items.append(self._branches(self.graph[series[place - 1]], item))
        if not items:
            return _Block("series", 1, 0, 0)
        axis = max(item.axis for item in items)
        width = axis + max(item.width - item.axis for item in items)
        block = _Block("series", width, sum(item.height for item in items), axis)
        block.items = items
        return block

    def _branches(self, opener: Node, branches: Sequence[Sequence[Any]]) -> _Block:
        measured = [self.measure(branch) for branch in branches]
        if opener.kind in ("foreach", "parallel"):
            body = measured[0]
            label = f" each of {opener.variable} " if opener.kind == "foreach" else " a gang "
            # The label stands left of the line that comes in from above.
            axis = max(body.axis + 2, len(label) + 3)
            width = axis + max(body.width - body.axis + 2, len(label) // 2)
            block = _Block("frame", width, body.height + 2, axis, label)
            block.items = [body]
            return block
        labels = [""] * len(measured)
        if opener.kind == "switch":
            targets = [target for target in opener.targets if target != opener.name]
            labels = [_cases(opener, target) for target in targets]
        for part, label in zip(measured, labels, strict=True):
            half = (len(label) + 1) // 2
            more = max(0, half - part.axis)
            part_axis = part.axis + more
            part.width = max(part.width + more, part_axis + half + 1)
            part.axis = part_axis
        height = 2 + max(part.height for part in measured) + (1 if any(labels) else 0)
        width = sum(part.width for part in measured) + _GAP * (len(measured) - 1)
        first, last = measured[0].axis, width - measured[-1].width + measured[-1].axis
        block = _Block("branches", width, height, (first + last) // 2)
        block.items, block.labels = measured, labels
        return block

    # -- where everything stands ----------------------------------------------------------------------------------

    def place(self, block: _Block, x: int, y: int) -> None:
        if block.kind == "step":
            node = self.graph[block.name]
            kind = "join" if node.is_join else node.kind
            self.boxes.append(Box(_text(node), x, y, block.width, kind, node.is_loop))
        elif block.kind == "frame":
            body = block.items[0]
            self.frames.append(Frame(x, y, block.width, block.height, block.name))
            self.place(body, x + block.axis - body.axis, y + 1)
            self._down(x + block.axis, y, y + 1)
            self._down(x + block.axis, y + block.height - 2, y + block.height - 1)
        elif block.kind == "branches":
            self._place_branches(block, x, y)
        else:
            top = y
            for place, item in enumerate(block.items):
                if place:
                    self._down(x + block.axis, top - 1, top)
                self.place(item, x + block.axis - item.axis, top)
                top += item.height

    def _place_branches(self, block: _Block, x: int, y: int) -> None:
        bottom = y + block.height - 1
        top = y + (2 if any(block.labels) else 1)
        left = x
        axes = []
        for part, label in zip(block.items, block.labels, strict=True):
            axis = left + part.axis
            axes.append(axis)
            self._down(axis, y, top)
            if label:
                self.labels.append(Label(axis, y + 1, label))
            self.place(part, left, top)
            self._down(axis, max(top + part.height - 1, top), bottom)
            left += part.width + _GAP
        for row in (y, bottom):
            self.wires.append(Wire(min(axes[0], x + block.axis), row, max(axes[-1], x + block.axis), row))

    def _down(self, x: int, top: int, bottom: int) -> None:
        if bottom > top:
            self.wires.append(Wire(x, top, x, bottom))


def _text(node: Node) -> str:
    return f"{node.name} ?{node.variable}" if node.kind == "switch" and node.variable else node.name


def _cases(opener: Node, target: str) -> str:
    return " or ".join(case for case, of_case in opener.cases.items() if of_case == target)


def _depth(series: Sequence[Any]) -> int:
    """Return how deep lists are inside each other."""
    deepest, todo = 0, [(series, 1)]
    while todo:
        items, depth = todo.pop()
        deepest = max(deepest, depth)
        todo += [(item, depth + 1) for item in items if not isinstance(item, str)]
    return deepest


def _shows_all(graph: Graph, series: Sequence[Any]) -> bool:
    """Whether a drawing of the series shows each transition of the graph, and nothing else."""
    shown: set[tuple[str, str]] = set()
    complete = True

    def follow(items: Sequence[Any], coming: list[str]) -> list[str]:
        nonlocal complete
        for place, item in enumerate(items):
            if isinstance(item, str):
                shown.update((name, item) for name in coming)
                coming = [item]
            else:
                opener = items[place - 1]
                ends = [follow(branch, [opener]) for branch in item]
                complete = complete and len(item) == len(set(graph[opener].targets) - {opener})
                coming = [name for branch in ends for name in branch]
        return coming

    follow(series, [])
    wanted = {
        (name, target)
        for name in graph.order()
        for target in graph[name].targets
        if target != name and target in graph.nodes
    }
    return complete and shown == wanted
