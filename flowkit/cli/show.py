"""``python flow.py show``: what the flow is for, and its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowkit.cli.console import clean
from flowkit.cli.session import Session
from flowkit.cli.terminal import cells, step_style
from flowkit.exceptions import UsageError

if TYPE_CHECKING:
    from flowkit.model.graph import Graph

_LONGEST = 300
"""Lines of a drawing; a longer one is harder to read than the list."""


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(svg: str | None) -> int:
        graph = session.definition.graph
        if svg is not None:
            _write_svg(session, graph, svg)
            return 0
        from flowkit.model.graph_text import to_text

        console = session.console
        width = min(console.terminal.size()[0], 120)
        text = clean(to_text(graph, width)).rstrip("\n")
        if console.terminal.live:
            doc = clean(graph.doc)
            drawn = _drawing(session, graph, console.terminal.size()[0])
            text = "\n\n".join(part for part in (doc, drawn, text[len(doc) :].lstrip("\n")) if part)
        console.data(text)
        return 0

    params: list[click.Parameter] = [
        click.Option(["--svg"], type=click.Path(dir_okay=False), help="Draw the graph into this file; - for stdout."),
    ]
    return click.Command("show", callback=callback, params=params, help="Show what the flow is for, and its steps.")


def _drawing(session: Session, graph: Graph, width: int) -> str:
    """Return the graph drawn with characters; nothing where it cannot be, or is too large."""
    from flowkit.model.graph_drawing import draw
    from flowkit.model.graph_layout import layout

    console = session.console
    plan = layout(graph)
    if plan is None or plan.width > width or plan.height > _LONGEST:
        return ""
    drawing = draw(plan, ascii=not console.terminal.unicode)
    lines = [clean(line) for line in drawing.lines]
    if any(cells(line) != len(line) for line in lines):
        return ""
    styles = {name: step_style(place) for place, name in enumerate(graph.order())}
    rows: dict[int, list[tuple[int, str]]] = {}
    for text, (row, column) in drawing.names.items():
        rows.setdefault(row, []).append((column, text.partition(" ")[0]))
    for row, names in rows.items():
        line = lines[row]
        for column, name in sorted(names, reverse=True):
            after = column + len(name)
            line = line[:column] + console.paint(line[column:after], styles.get(name, "")) + line[after:]
        lines[row] = line
    return "\n".join(lines)


def _write_svg(session: Session, graph: Graph, path: str) -> None:
    from flowkit.model.graph_svg import to_svg

    picture = to_svg(graph)
    if path == "-":
        session.console.data(picture.rstrip("\n"))
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    session.console.say(f"The graph is in {path}.")
