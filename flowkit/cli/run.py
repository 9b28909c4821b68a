"""``python flow.py run``."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.execution import execute_run, run_options
from flowkit.cli.session import Session

_SHOW = "Show what a container runs first, and run nothing."


def command(session: Session) -> click.Command:
    """Make the command; its options hold the flow's parameters."""

    def callback(show_bootstrap: bool, **options: Any) -> int:
        if show_bootstrap:
            from flowkit.cli.package import show_bootstrap as show

            session.prepare(tuple(options["decospecs"]))
            return show(session)
        return execute_run(session, options)

    return click.Command(
        "run",
        callback=callback,
        params=[click.Option(["--show-bootstrap"], is_flag=True, help=_SHOW), *run_options(session)],
        help="Run the flow, every task in a process of its own, and keep what the steps assign to self.",
    )
