"""``python flow.py help`` and ``version``."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.session import Session
from flowkit.version import __version__


def help_command(session: Session) -> click.Command:
    """Make ``help``, which lists the commands."""

    def callback() -> int:
        parent: Any = click.get_current_context().parent
        if parent is not None:
            parent.command.lists_plugins = True
            session.console.data(parent.get_help())
        return 0

    return click.Command("help", callback=callback, help="List all commands.")


def version_command(session: Session) -> click.Command:
    """Make ``version``, which prints the version and nothing else."""

    def callback() -> int:
        session.console.data(__version__)
        return 0

    return click.Command("version", callback=callback, help="Print the version.")
