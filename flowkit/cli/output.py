"""``python flow.py output-dot`` and ``output-raw``: the graph for other programs."""

from __future__ import annotations

import click

from flowkit.cli.session import Session


def output_dot_command(session: Session) -> click.Command:
    """Make ``output-dot``."""

    def callback() -> int:
        from flowkit.model.graph_output import to_dot

        session.console.data(to_dot(session.definition.graph).rstrip("\n"))
        return 0

    return click.Command("output-dot", callback=callback, help="Write the graph in the language of graphviz.")


def output_raw_command(session: Session) -> click.Command:
    """Make ``output-raw``."""

    def callback(json: bool) -> int:
        from flowkit.model.graph_output import describe

        graph = describe(session.definition)
        if json:
            session.console.json(graph)
            return 0
        for name, node in graph["steps"].items():
            session.console.data(f"{name}: {node['type']} -> {', '.join(node['next']) or 'the end'}")
        return 0

    params: list[click.Parameter] = [click.Option(["--json"], is_flag=True, help="As JSON, with all that is known.")]
    return click.Command("output-raw", callback=callback, params=params, help="Write the graph as plain data.")
