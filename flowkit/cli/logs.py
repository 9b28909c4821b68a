"""``python flow.py logs``: what tasks wrote, also while they run."""

from __future__ import annotations

from itertools import chain, islice

import click

from flowkit.cli.group import Group
from flowkit.cli.log_lines import Printer, last_lines, log_of, one_stream, stream_options
from flowkit.cli.lookup import Place, find, tasks_of
from flowkit.cli.session import Session
from flowkit.datastore.logs import joined, read_log
from flowkit.datastore.manifests import attempts
from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound
from flowkit.metadata.records import TaskRecord

_HOOKS = "_ended"
"""Where the end command of a scheduler's run keeps its log."""


class _Logs(Group):
    """``logs PATH`` means ``logs show PATH``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)


def command(session: Session) -> click.Command:
    """Make the group: ``show``, which is meant where no other is named, and ``scrub``."""
    from flowkit.cli.scrub import command as scrub

    return _Logs("logs", commands={"show": _show_command(session), "scrub": scrub(session)})


def _show_command(session: Session) -> click.Command:
    def callback(
        path: str | None, stream: str | None, attempt: int | None, timestamps: bool, follow: bool, tail: int | None
    ) -> int:
        _show(session, path, one_stream(stream), attempt, timestamps, follow, tail)
        return 0

    params: list[click.Parameter] = [
        click.Argument(["path"], required=False),
        *stream_options("Show"),
        click.Option(["--timestamps/--no-timestamps"], default=False, help="Show when each line was written."),
        click.Option(["--follow", "-f"], is_flag=True, help="Show lines as they are written, until the run ends."),
        click.Option(["--tail"], type=click.IntRange(min=1), metavar="N", help="The last N lines of each task only."),
    ]
    return click.Command(
        "show",
        callback=callback,
        params=params,
        help="Show what tasks wrote. PATH is RUN, RUN/STEP or RUN/STEP/TASK; default: the newest run. "
        "`logs scrub PATH` removes it.",
    )


def _show(
    session: Session,
    path: str | None,
    stream: str | None,
    attempt: int | None,
    timestamps: bool,
    follow: bool,
    tail: int | None,
) -> None:
    storage = session.storage()
    store = session.metadata_store(storage)
    try:
        place = find(session, store, path)
        if path is None:
            session.console.say(f"The logs of run {place.run.run}:")
        if follow:
            from flowkit.cli.follow import Follower

            printer = Printer(session.console, stream, timestamps, named=place.task is None)
            Follower(storage, store, place, printer, attempt, tail).run()
            return
        tasks = tasks_of(store, place)
        if place.step == _HOOKS:  # no task of the index: what the exit hooks of a scheduler's run wrote
            tasks = iter([TaskRecord(place.run.flow, place.run.run, _HOOKS, "0", "succeeded")])
        first = list(islice(tasks, 2))
        printer = Printer(session.console, stream, timestamps, named=len(first) > 1)
        with session.console.paged():
            for task in chain(first, tasks):
                _show_task(storage, place, task, printer, attempt, tail)
                if not session.console.listening:
                    return
        if not printer.count:
            session.console.say("Nothing was written." if first else "No task has begun yet.")
    finally:
        store.close()


def _show_task(
    storage: Storage, place: Place, task: TaskRecord, printer: Printer, attempt: int | None, tail: int | None
) -> None:
    where = log_of(storage, task, attempt)
    if attempt is not None and attempt not in attempts(storage, *where[:4]):
        if place.task is not None:
            known = ", ".join(map(str, attempts(storage, *where[:4]))) or "none"
            raise NotFound(f"the task {place.path} has no attempt {attempt}", f"its attempts: {known}")
        return
    printer.show(task, last_lines(storage, where, tail) if tail is not None else joined(read_log(storage, *where)))
