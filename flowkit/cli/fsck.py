"""``flowkit fsck``: is all well with the datastore and its index?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowkit.cli.amounts import bytes_text, counted
from flowkit.cli.console import Console
from flowkit.cli.session import open_metadata
from flowkit.cli.table import one_line
from flowkit.datastore.root import open_storage
from flowkit.exceptions import DataError
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.store import MetadataStore
    from flowkit.upkeep.fsck import Finding

_SHOWN = 200


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(datastore_root: str | None, deep: bool, repair: bool, json: bool) -> int:
        return _fsck(console, datastore_root, deep, repair, json)

    params: list[click.Parameter] = [
        click.Option(["--deep"], is_flag=True, help="Read every blob, and compare its content with its name."),
        click.Option(["--repair"], is_flag=True, help="Repair what can be repaired."),
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--json"], is_flag=True, help="As JSON."),
    ]
    return click.Command(
        "fsck",
        callback=callback,
        params=params,
        help="Check manifests, blobs and the index, say what is wrong and what to do; with --repair do what can be "
        "done. Ends with exit code 5 where something is wrong and was not repaired.",
    )


def _fsck(console: Console, root: str | None, deep: bool, repair: bool, json: bool) -> int:
    from flowkit.upkeep.fsck import Check

    storage = open_storage(root)
    findings: list[Finding] = []
    store = _open_index(console, storage, repair, findings)
    # That of a remote root is a copy on this machine, which is brought up to date by reading it.
    index = settings().metadata != "local" or not storage.remote
    try:
        check = Check(storage, store, index=index, deep=deep, repair=repair, told=console.say)
        for finding in check.run():
            findings.append(finding)
            if not json and len(findings) <= _SHOWN:
                _show(console, finding)
    finally:
        if store is not None:
            store.close()
    wrong = [finding for finding in findings if finding.severity == "error" and not finding.repaired]
    if json:
        console.json(
            {"root": storage.root, **check.checked._asdict(), "findings": [each._asdict() for each in findings]}
        )
    else:
        if len(findings) > _SHOWN:
            console.data(f"… and {len(findings) - _SHOWN:,} more: --json has all of them")
        looked = check.checked
        repaired = sum(finding.repaired for finding in findings)
        console.data(
            f"{storage.root}: {counted(looked.runs, 'run')}, {counted(looked.records, 'record')}, "
            f"{counted(looked.blobs, 'blob')} ({bytes_text(looked.blob_bytes)}{', every one read' if deep else ''}): "
            + ", ".join((_count(len(wrong), "error"), _count(len(findings) - len(wrong) - repaired, "warning")))
            + f", {repaired:,} repaired"
        )
    return DataError.exit_code if wrong else 0


def _open_index(console: Console, storage: Storage, repair: bool, findings: list[Finding]) -> MetadataStore | None:
    """Open the index; None where it is damaged and not to be repaired."""
    from flowkit.metadata.relational import DamagedDatabase
    from flowkit.upkeep.fsck import Finding

    name = settings().metadata
    try:
        store = open_metadata(name, storage, console)
    except DamagedDatabase as error:
        todo = "flowkit metadata rebuild makes it anew"
        finding = Finding("error", "the index", error.headline, todo)
        if repair:
            finding = finding._replace(repaired=_remade(storage))
        findings.append(finding)
        _show(console, finding)
        return open_metadata(name, storage, console) if repair else None
    return store


def _remade(storage: Storage) -> bool:
    from flowkit.client.rebuild import remake
    from flowkit.datastore.root import machine_folder
    from flowkit.metadata.sqlite import SqliteMetadata, set_aside

    folder = machine_folder(storage)
    remake(storage, lambda: SqliteMetadata(folder), lambda: set_aside(folder))
    return True


def _count(number: int, what: str) -> str:
    return counted(number, what) if number else f"no {what}s"


def _show(console: Console, finding: Finding) -> None:
    state = "repaired" if finding.repaired else finding.severity
    style = "succeeded" if finding.repaired else "failed" if finding.severity == "error" else "pending"
    painted = console.paint_state(style).replace(style, state)
    console.data(f"{painted}: {one_line(finding.where)}: {one_line(finding.what)}")
    if not finding.repaired:
        console.data(f"    {one_line(finding.todo)}")
