"""``flowkit tutorials``: flows to learn from, copied to where they can be changed."""

from __future__ import annotations

import os

import click

from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.exceptions import Conflict, NotFound, StoreError, did_you_mean

TARGET = "flowkit-tutorials"
"""The folder that they are copied to, below the working directory."""
_LEFT = ("__pycache__", ".flowkit")


def command(console: Console) -> click.Command:
    """Make the group: ``list`` and ``pull``."""

    def list_callback() -> int:
        found = episodes()
        width = max(map(len, found), default=0)
        for name, folder in found.items():
            console.data(f"{name:<{width}}  {_title(folder)}".rstrip())
        return 0

    def pull_callback(episode: str | None) -> int:
        return _pull(console, episode)

    pull_params: list[click.Parameter] = [
        click.Option(["--episode"], metavar="NAME", help="Only this one, such as 01-flights.")
    ]
    commands: dict[str, click.Command] = {
        "list": click.Command("list", callback=list_callback, help="List the tutorials."),
        "pull": click.Command(
            "pull", callback=pull_callback, params=pull_params, help=f"Copy the tutorials to ./{TARGET}."
        ),
    }
    return Group("tutorials", commands=commands, help="Flows to learn from.")


def episodes() -> dict[str, str]:
    """Return the installed tutorials: name to folder, in their order."""
    from importlib.util import find_spec

    spec = find_spec("flowkit.tutorials")
    found: dict[str, str] = {}
    for place in (spec.submodule_search_locations if spec is not None else None) or ():
        for name in sorted(os.listdir(place)):
            folder = os.path.join(place, name)
            if name[:1].isdigit() and os.path.isdir(folder):
                found[name] = folder
    return found


def _title(folder: str) -> str:
    """Return what a tutorial is about: the first line of its README."""
    try:
        with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
            return file.readline().lstrip("# ").strip()
    except OSError:
        return ""


def _pull(console: Console, episode: str | None) -> int:
    known = episodes()
    if episode is not None:
        if episode not in known:
            hint = did_you_mean(episode, known) or f"tutorials: {', '.join(known) or 'none'}"
            raise NotFound(f"there is no tutorial '{episode}'", hint)
        known = {episode: known[episode]}
    there = [name for name in known if os.path.lexists(os.path.join(TARGET, name))]
    if there:
        raise Conflict(
            f"{os.path.join(TARGET, there[0])} is there already, and may hold your changes",
            "move it away first, or go to another folder",
        )
    import shutil

    for name, folder in known.items():
        target = os.path.join(TARGET, name)
        try:
            shutil.copytree(folder, target, ignore=shutil.ignore_patterns(*_LEFT))
        except (OSError, shutil.Error) as error:
            raise StoreError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        console.say(f"{target}  {_title(folder)}")
    console.say("Each has a README.md that says how to begin.")
    return 0
