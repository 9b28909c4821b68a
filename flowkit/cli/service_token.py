"""``flowkit service token``: who may call the metadata service."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.cli.service import database_of, database_options, warn_of_password
from flowkit.cli.table import moment, one_line, table
from flowkit.exceptions import UsageError
from flowkit.registry import load

SCOPES = ("read", "write", "admin")
"""Each one includes those before it."""
DEFAULT_LIFE = "90d"
_UNITS = {"m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}
_LONGEST = 100 * _UNITS["y"]


def command(console: Console) -> click.Command:
    """Make the group: ``create``, ``list``, ``revoke``."""
    commands = {
        "create": _create_command(console),
        "list": _list_command(console),
        "revoke": _revoke_command(console),
    }
    return Group("token", commands=commands, help="Make, list and revoke the tokens that the service asks for.")


def _create_command(console: Console) -> click.Command:
    def callback(name: str, scope: tuple[str, ...], project: tuple[str, ...], expires: str, **where: Any) -> int:
        seconds = life(expires)
        with _desk(console, where) as desk:
            token, text = desk.create(name, scope, project, seconds)
        limited = f" for {', '.join(token.projects)}" if token.projects else ""
        until = "it never expires" if token.expires is None else f"until {moment(token.expires)}"
        console.say(f"Token {token.id} ({name}): {', '.join(token.scopes)}{limited}, {until}.")
        console.say("This is the only time that it is shown. Whoever runs flows sets it as FLOWKIT_SERVICE_TOKEN:")
        console.data(text)
        return 0

    params: list[click.Parameter] = [
        click.Argument(["name"], metavar="NAME"),
        click.Option(
            ["--scope"],
            multiple=True,
            type=click.Choice(SCOPES),
            default=["write"],
            help="What it allows: read, write (which includes reading; the default), admin (and deleting).",
        ),
        click.Option(
            ["--project"],
            multiple=True,
            metavar="NAME",
            help="Only runs of this @project; may be repeated. Default: all.",
        ),
        click.Option(
            ["--expires"], default=DEFAULT_LIFE, metavar="TIME", help=f"12h, 90d, 1y, never. Default: {DEFAULT_LIFE}."
        ),
        *database_options(),
    ]
    text = "Make a token. It is printed once, on stdout, and kept nowhere: the database has its hash."
    return click.Command("create", callback=callback, params=params, help=text)


def _list_command(console: Console) -> click.Command:
    def callback(json: bool, **where: Any) -> int:
        with _desk(console, where) as desk:
            tokens = desk.tokens()
        if json:
            console.json([{**token._asdict(), "state": _state(token)} for token in tokens])
            return 0
        if not tokens:
            console.say("There are no tokens. Make one: flowkit service token create NAME")
            return 0
        rows = [
            (
                token.id,
                one_line(token.name, 40),
                ", ".join(token.scopes),
                one_line(", ".join(token.projects), 40) or "all",
                moment(token.created),
                "never" if token.expires is None else moment(token.expires),
                moment(token.used),
                _state(token),
            )
            for token in tokens
        ]
        for line in table(("id", "name", "scope", "projects", "created", "expires", "last used", "state"), rows):
            console.data(line)
        return 0

    params: list[click.Parameter] = [
        click.Option(["--json"], is_flag=True, help="As JSON, times in seconds since 1970."),
        *database_options(),
    ]
    return click.Command("list", callback=callback, params=params, help="List all tokens, without their secrets.")


def _revoke_command(console: Console) -> click.Command:
    def callback(ids: tuple[str, ...], **where: Any) -> int:
        with _desk(console, where) as desk:
            for token_id in ids:
                token = desk.revoke(token_id)
                console.say(f"Token {token.id} ({token.name}) is revoked: a running service refuses it within seconds.")
        return 0

    params: list[click.Parameter] = [
        click.Argument(["ids"], metavar="ID...", nargs=-1, required=True),
        *database_options(),
    ]
    return click.Command(
        "revoke", callback=callback, params=params, help="Take tokens back, by the ids that list shows."
    )


def life(text: str) -> float | None:
    """Return the seconds for which a token is good: ``90d``, ``12h``; None for ``never``.

    Raises
    ------
    UsageError
        If it is no such time.
    """
    if text == "never":
        return None
    form = re.fullmatch(r"([0-9]{1,9})([mhdwy])", text)
    seconds = int(form[1]) * _UNITS[form[2]] if form else 0.0
    if not 0 < seconds <= _LONGEST:
        raise UsageError(f"'{text}' is no time for a token to live", "for example 30m, 12h, 90d, 1y, or never")
    return seconds


def _desk(console: Console, where: dict[str, Any]) -> Any:
    warn_of_password(console)
    return load("services", "tokens")(database_of(where["database"], where["database_file"]))


def _state(token: Any) -> str:
    if token.revoked is not None:
        return "revoked"
    return "expired" if token.expires is not None and token.expires <= time.time() else "good"
