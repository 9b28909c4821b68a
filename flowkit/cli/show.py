"""``python flow.py show``: what the flow is for, and its steps."""

from __future__ import annotations

import click

from flowkit.cli.console import clean
from flowkit.cli.session import Session


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback() -> int:
        import shutil

        from flowkit.model.graph_text import to_text

        width = min(shutil.get_terminal_size((80, 24)).columns, 120)
        session.console.data(clean(to_text(session.definition.graph, width)).rstrip("\n"))
        return 0

    return click.Command("show", callback=callback, help="Show what the flow is for, and its steps.")
