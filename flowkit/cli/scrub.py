"""``python flow.py logs scrub``: remove what tasks wrote, where it should not have been written."""

from __future__ import annotations

import time

import click

from flowkit.cli.log_lines import one_stream, stream_options
from flowkit.cli.lookup import find, tasks_of
from flowkit.cli.session import Session
from flowkit.datastore.logs import LogLine, rewrite_log
from flowkit.datastore.manifests import attempts
from flowkit.datastore.storage import Storage
from flowkit.metadata.records import TaskRecord


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(path: str, stream: str | None, attempt: int | None, latest: bool, include_not_done: bool) -> int:
        _scrub(session, path, one_stream(stream), attempt, latest, include_not_done)
        return 0

    params: list[click.Parameter] = [
        click.Argument(["path"]),
        *stream_options("Remove"),
        click.Option(["--latest/--all"], default=True, help="The newest attempt only (the default), or every one."),
        click.Option(["--include-not-done"], is_flag=True, help="Also of tasks that are still running."),
    ]
    return click.Command(
        "scrub",
        callback=callback,
        params=params,
        help="Remove what tasks wrote, for ever. PATH is RUN, RUN/STEP or RUN/STEP/TASK.",
    )


def _scrub(
    session: Session, path: str, stream: str | None, attempt: int | None, latest: bool, include_not_done: bool
) -> None:
    storage = session.storage()
    store = session.metadata_store(storage)
    done = skipped = 0
    try:
        for task in tasks_of(store, find(session, store, path)):
            if task.origin is not None:
                session.console.warn(
                    f"{task.step}/{task.task} was taken over: its log is that of {task.origin}, scrub it there."
                )
                skipped += 1
            elif task.state in ("pending", "running") and not include_not_done:
                session.console.warn(f"{task.step}/{task.task} is not done: --include-not-done scrubs its log too.")
                skipped += 1
            else:
                done += _scrub_task(session, storage, task, stream, attempt, latest)
    finally:
        store.close()
    session.console.say(
        f"{done:,} {'log' if done == 1 else 'logs'} scrubbed" + (f", {skipped:,} left." if skipped else ".")
    )


def _scrub_task(
    session: Session, storage: Storage, task: TaskRecord, stream: str | None, attempt: int | None, latest: bool
) -> int:
    known = attempts(storage, task.flow, task.run, task.step, task.task)
    chosen = [attempt] if attempt is not None else [task.attempt] if latest else known
    what = {None: "log", "out": "standard output", "err": "standard error"}[stream]
    note = f"[the {what} was scrubbed by {session.user} at {time.strftime('%Y-%m-%d %H:%M:%S')}]".encode()

    def stays(line: LogLine) -> bool:
        """Tell flowkit's own notes and the stream that is to stay."""
        return line.stream == "note" or (stream is not None and line.stream != stream)

    where = (task.flow, task.run, task.step, task.task)
    return sum(rewrite_log(storage, *where, number, stays, note) for number in chosen if number in known)
