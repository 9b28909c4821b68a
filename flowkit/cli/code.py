"""``flowkit code``: the code that a run took along, beside the code that is here now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from flowkit.cli.console import Console
from flowkit.cli.group import Group
from flowkit.exceptions import NotFound, UsageError

if TYPE_CHECKING:
    from flowkit.client.code import Code

_LARGEST = 1 << 20
"""Bytes of the largest file whose lines are compared."""


def command(console: Console) -> click.Command:
    """Make the group: ``diff``, ``pull``."""

    def diff(run: str, folder: str, file_list: bool) -> int:
        return _diff(console, run, folder, file_list)

    def pull(run: str, into: str | None, force: bool) -> int:
        return _pull(console, run, into, force)

    run = click.Argument(["run"], metavar="FLOW/RUN")
    commands: dict[str, click.Command] = {
        "diff": click.Command(
            "diff",
            callback=diff,
            params=[
                run,
                click.Option(["--folder"], default=".", help="The code to compare it with. Default: this folder."),
                click.Option(["--file-list"], is_flag=True, help="Name the files only."),
            ],
            help="Show how the code here differs from that of a run.",
        ),
        "pull": click.Command(
            "pull",
            callback=pull,
            params=[
                run,
                click.Option(["--into"], help="The folder. Default: one with the name of the flow and the run."),
                click.Option(["--force"], is_flag=True, help="Replace files that are there already."),
            ],
            help="Unpack the code of a run.",
        ),
    }
    return Group("code", commands=commands, help="Compare and unpack the code that a run took along.")


def _code(run: str) -> Code:
    from flowkit.client.run import Run

    code = Run(run, _namespace_check=False).code
    if code is None:
        raise NotFound(
            f"the run {run} took no code along", "only runs with steps that run elsewhere do (@batch, @kubernetes)"
        )
    return code


def _pull(console: Console, run: str, into: str | None, force: bool) -> int:
    code = _code(run)
    folder = into or run.strip("/").replace("/", "-")
    try:
        names = code.extract_to(folder, overwrite=force)
    except OSError as error:
        raise UsageError(f"--into: {folder} cannot be written: {error.strerror}") from None
    console.say(f"{folder}: {len(names):,} files")
    console.data("\n".join(os.path.join(folder, name) for name in names))
    return 0


def _diff(console: Console, run: str, folder: str, file_list: bool) -> int:
    code = _code(run)
    count = 0
    for name in code.files:
        path = os.path.join(folder, name)
        here = _read(path)
        there = code.read(name)
        if here == there:
            continue
        count += 1
        if file_list or here is None:
            console.data(name if file_list else f"Only in {run}: {name}")
        else:
            for line in _lines(run, name, there, path, here):
                console.data(line)
    console.say(f"{count:,} of {len(code.files):,} files differ" if count else f"the code here is that of {run}")
    return 0


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _lines(run: str, name: str, there: bytes, path: str, here: bytes) -> Iterator[str]:
    from difflib import unified_diff

    if b"\0" in there + here or max(len(there), len(here)) > _LARGEST:
        yield f"{run}: {name} and {path} differ"
        return
    before, after = (text.decode("utf-8", "backslashreplace").splitlines() for text in (there, here))
    for line in unified_diff(before, after, f"{run}/{name}", path, lineterm=""):
        # What a run holds may be anybody's text: nothing in it may move the cursor of a terminal.
        yield "".join(char if char.isprintable() or char == "\t" else "\ufffd" for char in line)
