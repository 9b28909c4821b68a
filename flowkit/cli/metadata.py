"""``flowkit metadata``: the index of runs and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowkit.cli.amounts import counted
from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.datastore.root import machine_folder, open_storage
from flowkit.exceptions import DataError
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.client.rebuild import Summary

_PROBLEMS_SHOWN = 20


def command(console: Console) -> click.Command:
    """Make the group."""

    def callback(datastore_root: str | None) -> int:
        return _rebuild(console, datastore_root)

    params: list[click.Parameter] = [
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
    ]
    push = click.Command(
        "push",
        callback=lambda forget: _push(console) if forget is None else _forget(console, forget),
        params=[
            click.Option(
                ["--forget"],
                metavar="URL",
                help="Send nothing, and drop what waits for this address: one that was a mistake.",
            )
        ],
        help="Send what waits for a metadata service that was away.",
    )
    rebuild = click.Command(
        "rebuild",
        callback=callback,
        params=params,
        help="Make the index anew from the datastore, which is the truth.",
    )
    return Group("metadata", commands={"push": push, "rebuild": rebuild}, help="The index of runs and tasks.")


def _push(console: Console) -> int:
    from flowkit.metadata.service import service_place
    from flowkit.metadata.service_calls import needs_packages
    from flowkit.metadata.service_push import Pushed, push

    needs_packages()

    def told(pushed: Pushed) -> None:
        run = f"{pushed.flow}/{pushed.run}: " if pushed.run else ""
        if pushed.sent or not pushed.problem:
            console.say(f"{run}{counted(pushed.sent, 'record')} sent to {pushed.url}")
        if pushed.problem:
            waits = f"; {counted(pushed.left, 'record')} still to be sent" if pushed.left else ""
            console.warn(f"{run}{pushed.problem}{waits}")

    found = push(service_place, told)
    if not found:
        console.say("Nothing waits for a metadata service.")
    for url in sorted({pushed.url for pushed in found if pushed.left} - {service_place().url}):
        console.warn(f"    if {url} was a mistake: flowkit metadata push --forget {url}, and flowkit metadata rebuild")
    return DataError.exit_code if any(pushed.problem for pushed in found) else 0


def _forget(console: Console, url: str) -> int:
    from flowkit.metadata.service_calls import checked_url
    from flowkit.metadata.service_push import forget

    dropped = forget(checked_url(url))
    for pushed in dropped:
        console.say(f"{pushed.flow}/{pushed.run}: {counted(pushed.left, 'record')} for {pushed.url} dropped")
    if dropped:
        console.say("flowkit metadata rebuild records the runs that the datastore has at the service of the settings.")
    else:
        console.say(f"Nothing waits for {url}.")
    return 0


def _rebuild(console: Console, datastore_root: str | None) -> int:
    from flowkit.client.rebuild import remake
    from flowkit.client.stores import open_index

    storage = open_storage(datastore_root)

    def aside() -> str | None:
        from flowkit.metadata.sqlite import set_aside

        kept = set_aside(machine_folder(storage))
        console.say(f"The metadata store is damaged: it is kept as {kept}, and a new one is made.")
        return kept

    def told(so_far: Summary) -> None:
        console.say(f"… {counted(so_far.runs, 'run')}, {counted(so_far.tasks, 'task')}")

    summary, _ = remake(storage, lambda: open_index(settings().metadata, storage, plain=True), aside, told)
    _tell(console, storage.root, summary)
    return DataError.exit_code if summary.problems else 0


def _tell(console: Console, root: str, summary: Summary) -> None:
    console.say(
        f"{root}: {counted(summary.flows, 'flow')}, {counted(summary.runs, 'run')}, {counted(summary.tasks, 'task')}"
        + (f"; {summary.forgotten:,} runs that are gone were forgotten" if summary.forgotten else "")
    )
    for problem in summary.problems[:_PROBLEMS_SHOWN]:
        console.warn(f"could not be read: {problem}")
    more = len(summary.problems) - _PROBLEMS_SHOWN
    if more > 0:
        console.warn(f"… and {more:,} more")
