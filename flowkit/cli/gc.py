"""``flowkit gc``: remove old runs, and what nothing names any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.amounts import bytes_text, counted
from flowkit.cli.console import Console
from flowkit.cli.session import open_metadata
from flowkit.cli.table import moment, table
from flowkit.datastore.root import open_storage
from flowkit.settings import retention, settings

if TYPE_CHECKING:
    from flowkit.upkeep.gc import Cleaned
    from flowkit.upkeep.retention import Rules

_SHOWN = 50


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(**options: Any) -> int:
        return _gc(console, options)

    params: list[click.Parameter] = [
        click.Option(["--older-than"], metavar="AGE", help="Runs that ended so long ago: 90d, 36h, 2w."),
        click.Option(
            ["--keep"], type=click.IntRange(min=0), metavar="N", help="Never the newest N runs of a flow; all others."
        ),
        click.Option(["--keep-tag"], multiple=True, metavar="TAG", help="Never runs with this tag."),
        click.Option(["--only-tag"], multiple=True, metavar="TAG", help="Only runs with this tag."),
        click.Option(
            ["--status"],
            multiple=True,
            type=click.Choice(["succeeded", "failed", "cancelled", "lost"]),
            help="Only runs of this state; lost: never ended, and nobody works on it.",
        ),
        click.Option(["--flow"], help="Only runs of this flow."),
        click.Option(
            ["--grace"], metavar="AGE", help="Spare blobs and half-written files that are younger; default: 24h."
        ),
        click.Option(["--yes", "--delete", "yes"], is_flag=True, help="Remove; without it, say what would be."),
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--json"], is_flag=True, help="As JSON."),
    ]
    return click.Command(
        "gc",
        callback=callback,
        params=params,
        help="Remove the runs that the options, or the rules of the project file, let go, and what nothing names any "
        "more. Without --yes nothing is removed: it is said what would be.",
    )


def _gc(console: Console, options: dict[str, Any]) -> int:
    from flowkit.upkeep.gc import clean, preview
    from flowkit.upkeep.retention import parse_age
    from flowkit.upkeep.sweep import GRACE

    rules = _rules(options)
    grace = GRACE if options["grace"] is None else parse_age(options["grace"], "--grace")
    storage = open_storage(options["datastore_root"])
    store = open_metadata(settings().metadata, storage, console)
    try:
        if options["yes"]:
            found = clean(storage, store, rules, grace, console.say)
        else:
            found = preview(storage, store, rules, grace, console.say)
    finally:
        store.close()
    if options["json"]:
        console.json(_plain(found, options["yes"]))
    else:
        _show(console, found, options["yes"])
    return 0


def _rules(options: dict[str, Any]) -> Rules:
    from flowkit.upkeep.retention import Rule, Rules, parse_age, parse_rules

    age = options["older_than"]
    given = Rule(
        None if age is None else parse_age(age, "--older-than"),
        options["keep"],
        options["keep_tag"],
        options["only_tag"],
        options["status"],
    )
    if given.removes:  # a command that says what is to go means that, and nothing else
        return Rules(given, {}, options["flow"])
    return parse_rules(*retention(), options["flow"]).keeping(given.keep_tags)


def _show(console: Console, found: Cleaned, done: bool) -> None:
    if found.runs:
        rows = [
            [
                each.facts.name,
                moment(each.facts.created),
                f"{each.facts.tasks:,}",
                bytes_text(each.facts.size),
                each.why,
            ]
            for each in found.runs[:_SHOWN]
        ]
        for line in table(["run", "started", "tasks", "records", "why"], rows, right=(2, 3)):
            console.data(line)
        if len(found.runs) > _SHOWN:
            console.data(f"… and {len(found.runs) - _SHOWN:,} more")
        console.data("")
    for kept in found.kept[:_SHOWN]:
        console.say(f"kept {kept.facts.name}: {kept.why}")
    runs, unused, unfinished = found.removed, found.unused, found.unfinished
    verb = "removed" if done else "would go"
    went = f"{counted(runs.runs, 'run')} with {counted(runs.tasks, 'task')}"
    console.data(f"{verb}: {went}, {bytes_text(runs.size)} of records and logs")
    console.data(f"{verb}: {counted(unused.blobs, 'blob')} that nothing names any more, {bytes_text(unused.size)}")
    if unfinished.blobs:
        console.data(f"{verb}: {counted(unfinished.blobs, 'half-written file')}, {bytes_text(unfinished.size)}")
    if not done and (runs.runs or unused.blobs or unfinished.blobs):
        console.say("Nothing was removed yet. To remove it: the same command with --yes")


def _plain(found: Cleaned, done: bool) -> dict[str, Any]:
    return {
        "removed": done,
        "runs": [
            {
                "flow": each.facts.flow,
                "run": each.facts.run,
                "state": each.facts.state,
                "created": each.facts.created,
                "tasks": each.facts.tasks,
                "bytes": each.facts.size,
                "why": each.why,
            }
            for each in found.runs
        ],
        "kept": [{"flow": each.facts.flow, "run": each.facts.run, "why": each.why} for each in found.kept],
        "tasks": found.removed.tasks,
        "bytes": found.removed.size,
        "blobs": {"count": found.unused.blobs, "bytes": found.unused.size},
        "half_written": {"count": found.unfinished.blobs, "bytes": found.unfinished.size},
    }
