"""The graph as an SVG picture, for ``show --svg``: no library, every text escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flowkit.model.graph import Graph
from flowkit.model.graph_layout import BOX_HEIGHT, Box, Label, Layout, Wire, layout

_CELL = (9, 16)
_MARGIN = 16
_FILLS = {
    "linear": "#eaf2fb",
    "end": "#e8e8e8",
    "join": "#e9f5ea",
    "split": "#fdf3e1",
    "foreach": "#fdf3e1",
    "parallel": "#fdf3e1",
    "switch": "#f6e9f7",
}
_STYLE = (
    "text{font:13px ui-monospace,Menlo,Consolas,monospace;text-anchor:middle;fill:#222}"
    ".l{font-size:11px;fill:#666}.b{stroke:#445;stroke-width:1.2}.f{fill:none;stroke:#889;stroke-dasharray:4 3}"
    ".w{stroke:#667;stroke-width:1.2;fill:none}"
)


def to_svg(graph: Graph) -> str:
    """Return a picture of the graph.

    Where branches nest, it is drawn as `show` draws it; else each step stands below all that lead to it, with a
    straight line for each transition.
    """
    plan = layout(graph)
    body = list(_nested(plan)) if plan is not None else []
    if plan is None:
        boxes, size = _rows(graph)
        body = [*_straight(graph, boxes), *(_box(box) for box in boxes.values())]
    else:
        size = (plan.width, plan.height)
    width, height = size[0] * _CELL[0] + 2 * _MARGIN, size[1] * _CELL[1] + 2 * _MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    title = f"<title>{_escaped(graph.flow)}</title>"
    ground = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([head, title, f"<style>{_STYLE}</style>", ground, *body, "</svg>"]) + "\n"


def _nested(plan: Layout) -> Iterator[str]:
    for frame in plan.frames:
        x, y = _middle(frame.x, frame.y)
        width, height = (frame.width - 1) * _CELL[0], (frame.height - 1) * _CELL[1]
        yield f'<rect class="f" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        middle = frame.x + 2 + len(frame.label) // 2
        yield _text(Label(middle, frame.y, frame.label.strip()), "l", dy=13)
    for wire in plan.wires:
        yield _line(wire)
    for box in plan.boxes:
        yield _box(box)
    for label in plan.labels:
        x, y = _middle(label.x, label.y)
        half = len(label.text) * 7 // 2 + 2
        yield f'<rect x="{x - half}" y="{y - 8}" width="{2 * half}" height="16" fill="#fff"/>'
        yield _text(label, "l", dy=4)


def _rows(graph: Graph) -> tuple[dict[str, Box], tuple[int, int]]:
    """Put each step below all that lead to it, those of one row beside each other."""
    order = graph.order()
    level: dict[str, int] = {}
    for name in order:
        level[name] = max((level[source] + 1 for source in graph[name].sources if source in level), default=0)
    rows: dict[int, list[str]] = {}
    for name in (*order, *(name for name in graph.nodes if name not in level)):
        rows.setdefault(level.get(name, len(order)), []).append(name)
    widths = {row: sum(len(name) + 8 for name in names) - 4 for row, names in rows.items()}
    widest = max(widths.values(), default=1)
    boxes = {}
    for place, row in enumerate(sorted(rows)):
        x = (widest - widths[row]) // 2
        for name in rows[row]:
            node = graph[name]
            kind = "join" if node.is_join else node.kind
            boxes[name] = Box(name, x, place * (BOX_HEIGHT + 2), len(name) + 4, kind, node.is_loop)
            x += len(name) + 8
    return boxes, (widest, max(len(rows) * (BOX_HEIGHT + 2) - 2, 1))


def _straight(graph: Graph, boxes: Mapping[str, Box]) -> Iterator[str]:
    for node in graph.nodes.values():
        for target in node.targets:
            if target in boxes and target != node.name:
                start, end = boxes[node.name], boxes[target]
                yield _line(
                    Wire(start.x + start.width // 2, start.y + 2, end.x + end.width // 2, end.y if end.y else 0)
                )


def _box(box: Box) -> str:
    x, y = _middle(box.x, box.y)
    width, height = (box.width - 1) * _CELL[0], (BOX_HEIGHT - 1) * _CELL[1]
    fill = _FILLS.get(box.kind, "#fff")
    text = Label(box.x, box.y + 1, box.name + (" ↺" if box.again else ""))
    drawn = f'<rect class="b" x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}"/>'
    return drawn + _text(text, "", dy=4, at=x + width / 2)


def _line(wire: Wire) -> str:
    (x1, y1), (x2, y2) = _middle(wire.x1, wire.y1), _middle(wire.x2, wire.y2)
    return f'<path class="w" d="M{x1} {y1}L{x2} {y2}"/>'


def _text(label: Label, style: str, dy: int, at: float | None = None) -> str:
    x, y = _middle(label.x, label.y)
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x if at is None else at:g}" y="{y + dy}">{_escaped(label.text)}</text>'


def _middle(x: int, y: int) -> tuple[int, int]:
    """Return the middle of a cell, in pixels."""
    return _MARGIN + x * _CELL[0] + _CELL[0] // 2, _MARGIN + y * _CELL[1] + _CELL[1] // 2


def _escaped(text: str) -> str:
    """Return a text for XML, which has no place for control characters."""
    plain = "".join(char if char.isprintable() else "�" for char in text)
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
