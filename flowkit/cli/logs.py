"""``python flow.py logs``: what tasks wrote, also while they run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain, islice

import click

from flowkit.cli.console import Console, clean
from flowkit.cli.group import Group
from flowkit.cli.lookup import Place, find, tasks_of
from flowkit.cli.session import Session
from flowkit.datastore.logs import LogLine, joined, read_log, shown_time, tail_log
from flowkit.datastore.manifests import attempts, read_manifest
from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound
from flowkit.metadata.records import TaskRecord

Attempt = tuple[str, str, str, str, int]
"""Flow, run, step, task and attempt of a log."""


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


def stream_options(what: str) -> list[click.Parameter]:
    """Return the options that choose between a task's streams."""
    return [
        click.Option(["--stdout", "stream"], flag_value="out", help=f"{what} the standard output only."),
        click.Option(["--stderr", "stream"], flag_value="err", help=f"{what} the standard error only."),
        click.Option(["--both", "stream"], flag_value="both", help=f"{what} both (the default)."),
        click.Option(["--attempt"], type=click.IntRange(min=0), help="Of this attempt, counted from 0."),
    ]


def _show_command(session: Session) -> click.Command:
    def callback(
        path: str | None, stream: str | None, attempt: int | None, timestamps: bool, follow: bool, tail: int | None
    ) -> int:
        _show(session, path, None if stream == "both" else stream, attempt, timestamps, follow, tail)
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


class Printer:
    """Prints lines of logs.

    Parameters
    ----------
    console : Console
        Where.
    stream : str or None
        ``out`` or ``err`` to show only that one; notes of flowkit itself are always shown.
    timestamps : bool
        Whether each line begins with its time.
    named : bool
        Whether each line names its task.
    """

    def __init__(self, console: Console, stream: str | None, timestamps: bool, named: bool) -> None:
        self.console = console
        self.count = 0
        self._stream = stream
        self._timestamps = timestamps
        self._named = named

    def show(self, task: TaskRecord, lines: Iterable[LogLine]) -> None:
        """Print lines of one task."""
        head = f"[{task.step}/{task.task}] " if self._named else ""
        for line in lines:
            if self._stream is not None and line.stream not in (self._stream, "note"):
                continue
            stamp = f"{shown_time(line.when)} " if self._timestamps else ""
            text = clean(line.text.decode("utf-8", "replace").removesuffix("\r"))
            self.console.data(f"{stamp}{head}{text}")
            self.count += 1
            if not self.console.listening:
                return


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
        first = list(islice(tasks, 2))
        printer = Printer(session.console, stream, timestamps, named=len(first) > 1)
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


def log_of(storage: Storage, task: TaskRecord, attempt: int | None = None) -> Attempt:
    """Return which log a task has: of a task taken over from another run, the original's."""
    if task.origin is not None:
        manifest = read_manifest(storage, task.flow, task.run, task.step, task.task, on_damage=lambda _: None)
        if manifest is not None:
            newest = manifest.attempt if attempt is None else attempt
            return manifest.flow, manifest.run, manifest.step, manifest.task, newest
    return task.flow, task.run, task.step, task.task, task.attempt if attempt is None else attempt


def last_lines(storage: Storage, where: Attempt, count: int) -> Iterable[LogLine]:
    """Return the last lines of a log, reading its end only."""
    # Pieces of one line count one by one: ask for some more. A line in very many pieces comes without its beginning.
    return deque(joined(tail_log(storage, *where, 4 * count + 16)), maxlen=count)
