"""``python flow.py check``: look for mistakes without running anything."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.session import Session
from flowkit.exceptions import FlowInvalid, Problem


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(warnings: bool = False, json: bool = False) -> int:
        return _check(session, json)

    params: list[click.Parameter] = [
        click.Option(["--warnings/--no-warnings"], default=False, hidden=True),
        click.Option(["--json"], is_flag=True, help="Print the problems as JSON."),
    ]
    return click.Command("check", callback=callback, params=params, help="Look for mistakes in the flow.")


def _check(session: Session, json: bool) -> int:
    try:
        session.prepare()
    except FlowInvalid as error:
        if not json:
            raise
        session.console.json({"valid": False, "problems": [_plain(problem) for problem in error.problems]})
        return error.exit_code
    if json:
        session.console.json({"valid": True, "problems": []})
    else:
        session.console.say(f"{session.definition.name} looks good: {len(session.definition.steps)} steps.")
    return 0


def _plain(problem: Problem) -> dict[str, Any]:
    where = problem.where
    return {
        "headline": problem.headline,
        "hint": problem.hint,
        "file": where.file if where else None,
        "line": where.line if where else None,
    }
