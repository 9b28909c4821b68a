"""``flowkit du``: what takes the room in the datastore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.amounts import bytes_text, counted
from flowkit.cli.console import Console
from flowkit.cli.table import table
from flowkit.datastore.root import open_storage
from flowkit.exceptions import NotFound

if TYPE_CHECKING:
    from flowkit.upkeep.du import Room, Usage

_BY = ("flow", "run", "artifact", "deployment")


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(datastore_root: str | None, flow: str | None, by: str, limit: int, json: bool) -> int:
        return _du(console, datastore_root, flow, by, limit, json)

    params: list[click.Parameter] = [
        click.Option(["--by"], type=click.Choice(_BY), default="flow", show_default=True, help="One line for each."),
        click.Option(["--flow"], help="Only of this flow."),
        click.Option(["--limit"], type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."),
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--json"], is_flag=True, help="As JSON, with everything."),
    ]
    return click.Command(
        "du",
        callback=callback,
        params=params,
        help="Show what takes the room in the datastore: by flow, run, artifact or deployment, the largest first. What "
        "several share is counted once in all.",
    )


def _du(console: Console, root: str | None, flow: str | None, by: str, limit: int, json: bool) -> int:
    from flowkit.upkeep.du import measure

    storage = open_storage(root)
    usage = measure(storage, flow)
    if flow is not None and flow not in usage.flows:
        raise NotFound(f"there is no flow {flow} in {storage.root}", "flowkit du lists them")
    if json:
        console.json({"root": storage.root, **_plain(usage)})
        return 0
    kinds: dict[str, Mapping[Any, Room]] = {
        "flow": usage.flows,
        "run": usage.runs,
        "artifact": usage.artifacts,
        "deployment": usage.deployments,
    }
    found = kinds[by]
    rows = sorted(found.items(), key=lambda item: (-item[1].total, item[0]))
    heads = {"flow": ["flow", "runs", "tasks"], "run": ["run", "tasks"]}.get(by, [by, "blobs"])
    amounts = ["own", "shared"] if by == "artifact" else ["own", "shared", "records", "data"]
    cells = [
        [
            name if isinstance(name, str) else "/".join(name),
            *(f"{getattr(room, head):,}" for head in heads[1:]),
            *(bytes_text(getattr(room, amount)) for amount in amounts),
        ]
        for name, room in rows[:limit]
    ]
    if cells:
        for line in table([*heads, *amounts], cells, right=range(1, len(heads) + len(amounts))):
            console.data(line)
        if len(rows) > limit:
            console.data(f"… and {len(rows) - limit:,} more")
        console.data("")
    _totals(console, storage.root, usage)
    return 0


def _totals(console: Console, root: str, usage: Usage) -> None:
    console.data(
        f"{root}: {bytes_text(usage.total)}: {bytes_text(usage.blob_bytes)} in {counted(usage.blobs, 'blob')}, "
        f"{bytes_text(usage.records)} of records and logs, {bytes_text(usage.data)} of S3(run=…)"
    )
    if usage.unused:
        are = "is" if usage.unused == 1 else "are"
        console.data(
            f"{counted(usage.unused, 'blob')} ({bytes_text(usage.unused_bytes)}) {are} named by nothing: "
            "flowkit gc --yes removes those that are old enough"
        )


def _plain(usage: Usage) -> dict[str, Any]:
    return {
        "bytes": usage.total,
        "blobs": {"count": usage.blobs, "bytes": usage.blob_bytes},
        "unused": {"count": usage.unused, "bytes": usage.unused_bytes},
        "records": usage.records,
        "data": usage.data,
        "flows": [{"flow": name, **_room(room)} for name, room in sorted(usage.flows.items())],
        "runs": [{"flow": flow, "run": run, **_room(room)} for (flow, run), room in sorted(usage.runs.items())],
        "deployments": [
            {"flow": flow, "deployment": name, **_room(room)}
            for (flow, name), room in sorted(usage.deployments.items())
        ],
        "artifacts": [
            {"flow": flow, "artifact": name, "own": room.own, "shared": room.shared, "blobs": room.blobs}
            for (flow, name), room in sorted(usage.artifacts.items())
        ],
    }


def _room(room: Room) -> dict[str, int]:
    names = ("own", "shared", "records", "data", "tasks", "blobs")
    return {name: getattr(room, name) for name in names}
