"""The graph for other programs: as JSON (``output-raw --json``, the ``_graph_info`` of a run) and as graphviz text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flowkit.model.definition import FlowDefinition
from flowkit.model.graph import Graph, Node

_TYPES = {
    "linear": "linear",
    "split": "split-static",
    "foreach": "split-foreach",
    "parallel": "split-parallel",
    "switch": "split-switch",
    "end": "end",
    "invalid": "linear",
}
_SHAPES = {"switch": "hexagon", "end": "box", "linear": "box"}


def to_json(
    graph: Graph,
    *,
    parameters: Iterable[Mapping[str, Any]] = (),
    constants: Iterable[Mapping[str, Any]] = (),
    decorators: Iterable[Mapping[str, Any]] = (),
    step_decorators: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Return a flow as plain JSON values.

    Parameters
    ----------
    graph : Graph
        The flow; one that lint finds nothing wrong with.
    parameters, constants : iterable of mapping
        Each with ``name`` and ``type``.
    decorators : iterable of mapping
        The flow's decorators: ``name``, ``attributes``, ``statically_defined``, ``inserted_by``.
    step_decorators : mapping of str to iterable of mapping, optional
        The same for each step; without it only the names are told.

    Returns
    -------
    dict
        ``file, start_step, end_step, parameters, constants, steps, graph_structure, doc, decorators, extensions``.
        ``graph_structure`` is a series of steps; after a step that branches comes the list of its branches, each a
        series, up to the step where they meet again.
    """
    given = step_decorators or {}
    return {
        "file": graph.file,
        "start_step": graph.start,
        "end_step": graph.end,
        "parameters": [dict(item) for item in parameters],
        "constants": [dict(item) for item in constants],
        "steps": {
            name: _step(graph, node, [dict(item) for item in given[name]] if name in given else _named(node))
            for name, node in graph.nodes.items()
        },
        "graph_structure": structure(graph),
        "doc": graph.doc,
        "decorators": [dict(item) for item in decorators],
        "extensions": {},
    }


def _named(node: Node) -> list[dict[str, Any]]:
    return [
        {"name": name, "attributes": {}, "statically_defined": True, "inserted_by": None} for name in node.decorators
    ]


def _step(graph: Graph, node: Node, decorators: list[dict[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": node.name,
        "type": _type(graph, node),
        "line": node.location.line,
        "source_file": node.location.file,
        "doc": node.doc,
        "decorators": decorators,
        "next": list(node.targets),
    }
    if node.kind == "foreach":
        told["foreach_artifact"] = node.variable
    elif node.kind == "parallel":
        told["num_parallel"] = True
    elif node.kind == "switch":
        told["condition"] = node.variable
        told["switch_cases"] = dict(node.cases)
    if node.matching_join is not None:
        told["matching_join"] = node.matching_join
    return told


def _type(graph: Graph, node: Node) -> str:
    """A start that branches keeps its type; the only step of a flow is its end."""
    if node.name == graph.end:
        return "end"
    if node.kind == "linear" and (node.is_join or node.name == graph.start):
        return "join" if node.is_join else "start"
    return _TYPES[node.kind]


# -- the structure as nested lists ---------------------------------------------------------------------------------


def structure(graph: Graph) -> list[Any]:
    """Return the steps as a series; a step that branches is followed by the list of its branches.

    Linear in steps and edges: where the cases of a switch meet again, the series goes on once for all of them.
    """
    meeting = _meeting_points(graph)
    result: list[Any] = []
    if graph.start is None:
        return result
    todo: list[tuple[str | None, str | None, list[Any]]] = [(graph.start, None, result)]
    seen: set[str] = set()
    while todo:
        name, stop, series = todo.pop()
        while name is not None and name != stop and name in meeting and name not in seen:
            seen.add(name)
            series.append(name)
            node = graph[name]
            after = node.matching_join if node.opens else meeting[name]
            targets = [target for target in node.targets if target != name]
            if len(targets) < 2 and not node.opens:
                name = targets[0] if targets else None
                continue
            branches: list[Any] = [[] for _ in targets]
            series.append(branches)
            todo.extend((target, after, branch) for target, branch in zip(targets, branches, strict=True))
            name = after
    return result


def _meeting_points(graph: Graph) -> dict[str, str | None]:
    """For each step that can be reached, the first one that every way from it comes by; None after the end.

    These are the immediate post-dominators: from the last step to the first, each is the lowest common ancestor of the
    targets in the tree of those already found. Each step of the tree keeps a second, longer pointer towards the root,
    so that an ancestor is found in logarithmic time however deep the tree is.
    """
    parent: dict[str | None, str | None] = {None: None}
    jump: dict[str | None, str | None] = {None: None}
    height: dict[str | None, int] = {None: 0}

    def raised(name: str | None, to: int) -> str | None:
        while height[name] > to:
            name = jump[name] if height[jump[name]] >= to else parent[name]
        return name

    def common(one: str | None, other: str | None) -> str | None:
        lower = min(height[one], height[other])
        one, other = raised(one, lower), raised(other, lower)
        while one != other:
            far = jump[one] != jump[other]
            one, other = (jump[one], jump[other]) if far else (parent[one], parent[other])
        return one

    for name in reversed(graph.order()):
        targets = [target for target in graph[name].targets if target != name and target in parent]
        met: str | None = targets[0] if targets else None
        for target in targets[1:]:
            met = common(met, target)
        parent[name], height[name] = met, height[met] + 1
        even = height[met] - height[jump[met]] == height[jump[met]] - height[jump[jump[met]]]
        jump[name] = jump[jump[met]] if even else met
    return {name: met for name, met in parent.items() if name is not None}


# -- graphviz ------------------------------------------------------------------------------------------------------


def to_dot(graph: Graph) -> str:
    """Return the graph in the language of graphviz, to be drawn by ``dot -Tpng``."""
    lines = [f"digraph {_quoted(graph.flow)} {{", 'node [fontname="Helvetica"];', 'edge [fontname="Helvetica"];']
    for node in graph.nodes.values():
        shape = "box" if node.is_join else _SHAPES.get(node.kind, "box")
        lines.append(f"{_quoted(node.name)} [label={_quoted(_label(graph, node))}, shape={shape}];")
    for node in graph.nodes.values():
        labels: dict[str, list[str]] = {target: [] for target in node.targets}
        for case, target in node.cases.items():
            labels[target].append(case)
        for target, cases in labels.items():
            label = f" [label={_quoted(', '.join(cases))}]" if cases else ""
            lines.append(f"{_quoted(node.name)} -> {_quoted(target)}{label};")
    return "\n".join([*lines, "}"]) + "\n"


def _label(graph: Graph, node: Node) -> str:
    kind = _type(graph, node).removeprefix("split-").replace("static", "split")
    kind = {"start": "linear", "parallel": "num_parallel"}.get(kind, kind)
    if node.variable:
        kind += f": {node.variable}"
    return f"{node.name}\n{kind}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def describe(definition: FlowDefinition) -> dict[str, Any]:
    """Return all that is known of a flow as plain JSON values: `to_json` with parameters, constants and decorators.

    Values of constants and attributes that are secret are not among them (`Decorator.record`).
    """
    return to_json(
        definition.graph,
        parameters=[
            {"name": name, "type": getattr(item.type, "__name__", item.type_name)}
            for name, item in definition.parameters.items()
        ],
        constants=[{"name": name, "type": type(value).__name__} for name, value in definition.constants.items()],
        decorators=[_decorator(item) for item in definition.decorators],
        step_decorators={name: [_decorator(item) for item in s.decorators] for name, s in definition.steps.items()},
    )


def _decorator(decorator: Any) -> dict[str, Any]:
    return {
        "name": decorator.name,
        "attributes": decorator.record(),
        "statically_defined": decorator.inserted_by is None,
        "inserted_by": decorator.inserted_by,
    }
