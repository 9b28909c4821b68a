"""``flowkit metadata``: the index of runs and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.datastore.root import machine_folder, open_storage
from flowkit.exceptions import DataError
from flowkit.registry import load
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
    rebuild = click.Command(
        "rebuild",
        callback=callback,
        params=params,
        help="Make the metadata store anew from the manifests in the datastore, which are the truth.",
    )
    return Group("metadata", commands={"rebuild": rebuild}, help="The index of runs and tasks.")


def _rebuild(console: Console, datastore_root: str | None) -> int:
    from flowkit.client.rebuild import remake
    from flowkit.metadata.sqlite import set_aside

    storage = open_storage(datastore_root)
    folder = machine_folder(storage)

    def aside() -> str | None:
        kept = set_aside(folder)
        console.say(f"The metadata store is damaged: it is kept as {kept}, and a new one is made.")
        return kept

    def told(so_far: Summary) -> None:
        console.say(f"… {so_far.runs:,} runs, {so_far.tasks:,} tasks")

    store: Any = load("metadata", settings().metadata)
    summary, _ = remake(storage, lambda: store(folder), aside, told)
    _tell(console, storage.root, summary)
    return DataError.exit_code if summary.problems else 0


def _tell(console: Console, root: str, summary: Summary) -> None:
    console.say(
        f"{root}: {summary.flows:,} flows, {summary.runs:,} runs, {summary.tasks:,} tasks"
        + (f"; {summary.forgotten:,} runs that are gone were forgotten" if summary.forgotten else "")
    )
    for problem in summary.problems[:_PROBLEMS_SHOWN]:
        console.warn(f"could not be read: {problem}")
    more = len(summary.problems) - _PROBLEMS_SHOWN
    if more > 0:
        console.warn(f"… and {more:,} more")
