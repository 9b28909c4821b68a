"""``python flow.py tag``: the tags of runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.console import clean
from flowkit.cli.group import Group
from flowkit.cli.lookup import find_run, newest_run
from flowkit.cli.session import Session
from flowkit.exceptions import UsageError
from flowkit.metadata.records import RunRecord
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.client.run import Run

_PAGE = 1_000


def command(session: Session) -> click.Command:
    """Make the group: ``add``, ``remove``, ``replace``, ``list``."""
    commands: dict[str, click.Command] = {
        "add": _add_command(session),
        "remove": _remove_command(session),
        "replace": _replace_command(session),
        "list": _list_command(session),
    }
    return Group("tag", commands=commands, help="Add, remove and list tags of runs.")


def _which() -> list[click.Parameter]:
    return [
        click.Option(["--run-id"], help="The run. Default: the newest one in the namespace."),
        click.Option(["--namespace"], help="The namespace to look for the newest run in. Default: your own."),
    ]


def _add_command(session: Session) -> click.Command:
    def callback(tags: tuple[str, ...], run_id: str | None, namespace: str | None) -> int:
        return _change(session, run_id, namespace, add=tags, remove=())

    params = [click.Argument(["tags"], nargs=-1, required=True), *_which()]
    return click.Command("add", callback=callback, params=params, help="Add tags to a run.")


def _remove_command(session: Session) -> click.Command:
    def callback(tags: tuple[str, ...], run_id: str | None, namespace: str | None) -> int:
        return _change(session, run_id, namespace, add=(), remove=tags)

    params = [click.Argument(["tags"], nargs=-1, required=True), *_which()]
    return click.Command("remove", callback=callback, params=params, help="Remove tags from a run.")


def _replace_command(session: Session) -> click.Command:
    def callback(add: tuple[str, ...], remove: tuple[str, ...], run_id: str | None, namespace: str | None) -> int:
        return _change(session, run_id, namespace, add=add, remove=remove)

    params: list[click.Parameter] = [
        click.Option(["--add"], multiple=True, metavar="TAG", help="Add this one; may be repeated."),
        click.Option(["--remove"], multiple=True, metavar="TAG", help="Remove this one; may be repeated."),
        *_which(),
    ]
    return click.Command("replace", callback=callback, params=params, help="Remove tags and add others, at once.")


def _change(
    session: Session, run_id: str | None, namespace: str | None, *, add: Sequence[str], remove: Sequence[str]
) -> int:
    if not add and not remove:
        raise UsageError("there is no tag to add or to remove", "give --add TAG, --remove TAG, or both")
    storage = session.storage()
    store = session.metadata_store(storage)
    try:
        if run_id is not None:
            record = find_run(session, store, run_id)
        else:
            record = newest_run(session, store, _namespace(session, namespace))
    finally:
        store.close()
    run = _client_run(session, record, storage.root)
    run.replace_tags(remove, add)
    session.console.say(f"Tags of run {record.run}: {', '.join(sorted(run.user_tags)) or 'none'}")
    return 0


def _client_run(session: Session, record: RunRecord, root: str) -> Run:
    # The client keeps the index and the datastore's own copy of the tags in step.
    from flowkit.client.connection import place_at
    from flowkit.client.objects import Run

    return Run.unchecked(f"{record.flow}/{record.run}", place_at(session.metadata, root))


def _namespace(session: Session, given: str | None) -> str | None:
    """Return a namespace as a tag; an empty one is the global one, in which everything is."""
    if given is not None:
        return given or None
    return settings().namespace or f"user:{session.user}"


def _list_command(session: Session) -> click.Command:
    def callback(run: str | None, run_id: str | None, **options: bool) -> int:
        return _list(session, run, run_id, options)

    params: list[click.Parameter] = [
        click.Argument(["run"], required=False),
        click.Option(["--run-id"], help="Of this run, like RUN."),
        click.Option(["--all", "all_runs"], is_flag=True, help="Of all runs of the flow (the default)."),
        click.Option(["--my-runs"], is_flag=True, help="Of your own runs."),
        click.Option(["--hide-system-tags"], is_flag=True, help="Without the tags that flowkit gives."),
        click.Option(["--group-by-tag"], is_flag=True, help="Each tag with its runs."),
        click.Option(["--group-by-run"], is_flag=True, help="Each run with its tags."),
        click.Option(["--flat"], is_flag=True, hidden=True),
        click.Option(["--json"], is_flag=True, help="As JSON: each run with its tags."),
    ]
    return click.Command("list", callback=callback, params=params, help="List the tags of one run, or of many.")


def _list(session: Session, run: str | None, run_id: str | None, options: dict[str, bool]) -> int:
    if run is not None and run_id is not None:
        raise UsageError("the run is given twice", "give it as RUN or with --run-id")
    run = run if run is not None else run_id
    choices = [name for name in ("all_runs", "my_runs") if options[name]]
    if len(choices) + (run is not None) > 1:
        raise UsageError("--all, --my-runs and a run exclude each other")
    if options["group_by_tag"] + options["group_by_run"] + options["flat"] > 1:
        raise UsageError("--group-by-tag, --group-by-run and --flat exclude each other")
    storage = session.storage()
    store = session.metadata_store(storage)
    try:
        if run is not None:
            runs = [find_run(session, store, run)]
        else:
            runs = _runs(store, session.definition.name, session.user if options["my_runs"] else None)
    finally:
        store.close()
    hide = options["hide_system_tags"]
    if options["json"]:
        session.console.json([_plain(record, hide) for record in runs])
        return 0
    for line in _lines(runs, hide, options):
        session.console.data(clean(line).replace("\n", " "))
    return 0


def _lines(runs: list[RunRecord], hide: bool, options: dict[str, bool]) -> Iterable[str]:
    if options["group_by_run"]:
        return [f"{record.run}: {', '.join(_tags(record, hide))}" for record in runs]
    by_tag: dict[str, list[str]] = {}
    for record in runs:
        for tag in _tags(record, hide):
            by_tag.setdefault(tag, []).append(record.run)
    if options["group_by_tag"]:
        return [f"{tag}: {', '.join(found)}" for tag, found in sorted(by_tag.items())]
    return sorted(by_tag)


def _tags(record: RunRecord, hide: bool) -> list[str]:
    return [*record.tags, *(() if hide else record.system_tags)]


def _plain(record: RunRecord, hide: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"run": record.run, "tags": list(record.tags)}
    return found if hide else {**found, "system_tags": list(record.system_tags)}


def _runs(store: MetadataStore, flow: str, user: str | None) -> list[RunRecord]:
    found: list[RunRecord] = []
    before: str | None = None
    while True:
        page = store.runs(flow, RunFilter(user=user, before=before, limit=_PAGE))
        found += page
        if len(page) < _PAGE:
            return found
        before = page[-1].run
