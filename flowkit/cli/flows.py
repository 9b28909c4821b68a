"""``flowkit status``: who you are, where things are kept, and every flow with its latest run."""

from __future__ import annotations

from typing import Any

import click

from flowkit.cli.console import Console
from flowkit.cli.session import open_metadata
from flowkit.cli.status import plain_run, took
from flowkit.cli.table import moment, one_line, table
from flowkit.datastore.root import open_storage
from flowkit.exceptions import NotFound
from flowkit.metadata.opening import is_shared, open_shared
from flowkit.metadata.records import FlowRecord, RunRecord
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.settings import settings, user_name


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(datastore_root: str | None, json: bool) -> int:
        return _status(console, datastore_root, json)

    params: list[click.Parameter] = [
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--json"], is_flag=True, help="As JSON."),
    ]
    return click.Command(
        "status",
        callback=callback,
        params=params,
        help="Show who you are, where things are kept, and every flow with its latest run.",
    )


def _status(console: Console, datastore_root: str | None, json: bool) -> int:
    user = user_name()
    namespace = settings().namespace or f"user:{user}"
    root: str | None = None
    try:
        storage = open_storage(datastore_root)
        root = storage.root
        store = open_metadata(settings().metadata, storage, console)
    except NotFound as error:
        if datastore_root is not None or root is not None:
            raise
        if is_shared(settings().metadata):
            return _show(console, open_shared(settings().metadata), user, namespace, None, json)
        if json:
            console.json({"user": user, "namespace": namespace, "root": None, "flows": []})
            return 0
        console.data(f"user: {one_line(user)}\nnamespace: {one_line(namespace)}\nroot: none")
        console.say(f"{error.headline}\n    {error.hint}")
        return 0
    return _show(console, store, user, namespace, root, json)


def _show(console: Console, store: MetadataStore, user: str, namespace: str, root: str | None, json: bool) -> int:
    try:
        flows = [(flow, next(iter(store.runs(flow.flow, RunFilter(limit=1))), None)) for flow in store.flows()]
    finally:
        store.close()
    if json:
        console.json({"user": user, "namespace": namespace, "root": root, "flows": [_plain(*pair) for pair in flows]})
        return 0
    console.data(f"user: {one_line(user)}\nnamespace: {one_line(namespace)}\nroot: {one_line(root or 'none')}")
    if not flows:
        console.say("No flow has run there yet.")
        return 0
    rows = [
        [flow.flow, run.run, run.state, run.user, moment(run.created), took(run)]
        for flow, run in flows
        if run is not None
    ]
    console.data("")
    heads = ["flow", "latest run", "state", "user", "started", "took"]
    for line in table(heads, rows, paint=lambda column, cell: console.paint_state(cell) if column == 2 else cell):
        console.data(line)
    return 0


def _plain(flow: FlowRecord, run: RunRecord | None) -> dict[str, Any]:
    return {"flow": flow.flow, "created": flow.created, "latest_run": None if run is None else plain_run(run)}
