"""The graph as plain text, as ``show`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from flowkit.model.graph import Graph, Node


def to_text(graph: Graph, width: int = 80) -> str:
    """Return a flow's documentation and its steps, each with its decorators, what it does and where it leads.

    Parameters
    ----------
    graph : Graph
        The flow.
    width : int, default 80
        Characters of a line; longer texts are wrapped.

    Returns
    -------
    str
        Steps stand in the order in which they can run; those that cannot be reached come last.
    """
    order = graph.order()
    reached = set(order)
    names = [*order, *(name for name in graph.nodes if name not in reached)]
    parts = [*([graph.doc] if graph.doc else []), *("\n".join(_step(graph, graph[name], width)) for name in names)]
    return "\n\n".join(parts) + "\n"


def _step(graph: Graph, node: Node, width: int) -> Iterator[str]:
    from textwrap import wrap

    for decorator in node.decorators:
        yield f"@{decorator}"
    yield f"Step {node.name}" + (" (join)" if node.is_join else "")
    summary = node.doc.partition("\n\n")[0]
    yield from wrap(summary, max(width, 20), initial_indent="    ", subsequent_indent="    ")
    if node.targets:
        arrow = "    => "
        yield from wrap(
            _leads_to(node),
            max(width, 20),
            initial_indent=arrow,
            subsequent_indent=" " * len(arrow),
            break_long_words=False,
            break_on_hyphens=False,
        )
    elif node.problem is not None:
        yield f"    => ? ({node.problem})"
    elif node.name != graph.end:
        yield "    => ?"


def _leads_to(node: Node) -> str:
    if node.kind == "foreach":
        return f"{node.targets[0]}, for each of self.{node.variable}"
    if node.kind == "parallel":
        return f"{node.targets[0]}, as a gang (num_parallel)"
    if node.kind != "switch":
        return ", ".join(node.targets)
    cases: dict[str, list[str]] = {}
    for case, target in node.cases.items():
        cases.setdefault(target, []).append(case)
    chosen = ", ".join(
        f"{target}{' (again)' if target == node.name else ''} if {' or '.join(texts)}"
        for target, texts in cases.items()
    )
    return f"{chosen} (by self.{node.variable})"
