"""``python flow.py run``."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.execution import execute_run, run_options
from flowkit.cli.session import Session


def command(session: Session) -> click.Command:
    """Make the command; its options hold the flow's parameters."""

    def callback(**options: Any) -> int:
        return execute_run(session, options)

    return click.Command(
        "run",
        callback=callback,
        params=run_options(session),
        help="Run the flow, every task in a process of its own, and keep what the steps assign to self.",
    )
