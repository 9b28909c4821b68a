"""``python flow.py check``: look for mistakes without running anything."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.session import Session
from flowkit.exceptions import FlowInvalid, Problem


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(warnings: bool = True, json: bool = False) -> int:
        return _check(session, warnings, json)

    params: list[click.Parameter] = [
        click.Option(
            ["--warnings/--no-warnings"],
            default=True,
            show_default=True,
            help="Tell also what looks like a mistake: artifacts that are read and that no path sets.",
        ),
        click.Option(["--json"], is_flag=True, help="Print the problems as JSON."),
    ]
    return click.Command("check", callback=callback, params=params, help="Look for mistakes in the flow.")


def _check(session: Session, warnings: bool, json: bool) -> int:
    console = session.console
    try:
        session.prepare()
    except FlowInvalid as error:
        if not json:
            raise
        console.json({"valid": False, "problems": [_plain(problem) for problem in error.problems], "warnings": []})
        return error.exit_code
    found = session.warnings() if warnings else []
    if json:
        console.json({"valid": True, "problems": [], "warnings": [_plain(problem) for problem in found]})
        return 0
    for problem in found:
        console.warn(f"Warning: {problem}")
    steps = len(session.definition.steps)
    verdict = f"can run, with {len(found)} warning{'s' * (len(found) > 1)}" if found else "looks good"
    console.say(f"{session.definition.name} {verdict}: {steps} step{'s' * (steps != 1)}.")
    return 0


def _plain(problem: Problem) -> dict[str, Any]:
    where = problem.where
    return {
        "headline": problem.headline,
        "hint": problem.hint,
        "file": where.file if where else None,
        "line": where.line if where else None,
    }
