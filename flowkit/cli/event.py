"""``flowkit event``: events that start deployed flows (``@trigger``), emitted and listed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.exceptions import UsageError
from flowkit.settings import settings, user_name

_ROOT = "Where the datastore is that keeps events, where no metadata service does. Default: the nearest .flowkit."
_METADATA = "service: the metadata service keeps them. Default: your settings."
_SHOWN = 20


def command(console: Console) -> click.Command:
    """Make the group: ``emit``, ``list``."""
    commands = {"emit": _emit_command(console), "list": _list_command(console)}
    return Group("event", commands=commands, help="Emit an event that starts deployed flows, and list them.")


def _emit_command(console: Console) -> click.Command:
    def callback(name: str, data: str | None, id: str | None, **where: Any) -> int:
        fields = _fields(data)
        with _events(console, where, create=True) as events:
            event = events.emit(name, fields, id=id, user=user_name())
        console.say(f"Emitted {event.name}:")
        console.data(event.id)
        return 0

    params: list[click.Parameter] = [
        click.Argument(["name"]),
        click.Option(["--data"], metavar="JSON", help="""Its fields: '{"table": "sales"}'; - reads them from stdin."""),
        click.Option(["--id"], metavar="ID", help="Which one: a second event of this id starts nothing again."),
        *_place(),
    ]
    return click.Command(
        "emit",
        callback=callback,
        params=params,
        help="Emit an event. Flows that wait for it (@trigger) and are deployed in the box are started with it.",
    )


def _list_command(console: Console) -> click.Command:
    def callback(limit: int, json: bool, **where: Any) -> int:
        with _events(console, where) as events:
            found = events.emitted(max(0, events.last_emitted() - limit), limit)
        if json:
            console.json([event.to_json() for event in found])
            return 0
        if not found:
            console.say("There are no events. Emit one: flowkit event emit NAME")
            return 0
        from json import dumps

        from flowkit.cli.table import moment, one_line, table

        rows = [
            [
                moment(each.created),
                one_line(each.name, 40),
                one_line(each.id, 40),
                each.user,
                one_line(dumps(each.data), 60),
            ]
            for each in reversed(found)
        ]
        for line in table(["when", "name", "id", "user", "data"], rows):
            console.data(line)
        return 0

    params: list[click.Parameter] = [
        click.Option(
            ["--limit"], type=click.IntRange(1, 1000), default=_SHOWN, show_default=True, help="At most so many."
        ),
        click.Option(["--json"], is_flag=True, help="As JSON, the oldest first, times in seconds since 1970."),
        *_place(),
    ]
    return click.Command("list", callback=callback, params=params, help="List the newest events, the newest first.")


def _place() -> list[click.Parameter]:
    return [
        click.Option(["--datastore-root"], help=_ROOT),
        click.Option(["--metadata"], type=click.Choice(["local", "service"]), help=_METADATA),
    ]


def _fields(data: str | None) -> Any:
    if data is None:
        return None
    import json
    import sys

    try:
        return json.loads(sys.stdin.read() if data == "-" else data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--data is no JSON: {error}", """for example --data '{"table": "sales"}'""") from None


@contextmanager
def _events(console: Console, where: dict[str, Any], create: bool = False) -> Iterator[Any]:
    """Give what keeps events: the metadata service, or the datastore."""
    from flowkit.metadata.opening import is_shared, open_shared

    name = where["metadata"] or settings().metadata
    if is_shared(name):
        store = open_shared(name)
        if store.keeps_events:
            try:
                yield store
            finally:
                store.close()
            return
        store.close()
    from flowkit.datastore.event_log import EventLog
    from flowkit.datastore.root import open_storage

    yield EventLog(open_storage(where["datastore_root"], create=create))
