"""``flowkit scheduler``: the scheduler in the box, which starts deployed flows when they are due."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from flowkit.cli.console import Console
from flowkit.datastore.root import open_storage

_POLL = "Seconds between two looks. Default: 1 for a folder, 10 for a datastore behind a network."


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(datastore_root: str | None, once: bool, until_idle: bool, poll: float | None) -> int:
        return _serve(console, datastore_root, once, until_idle, poll)

    params: list[click.Parameter] = [
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--once"], is_flag=True, help="Look once, start what is due, and end: for a cron of your own."),
        click.Option(["--until-idle"], is_flag=True, help="End when nothing is due and no run goes on."),
        click.Option(["--poll"], type=click.FloatRange(0.05, 600), metavar="SECONDS", help=_POLL),
    ]
    return click.Command(
        "scheduler",
        callback=callback,
        params=params,
        help="Start flows that were deployed with 'python flow.py local create' when they are due: by their schedule,"
        " by events, when other flows have succeeded. It goes on until it is stopped (Ctrl-C, SIGTERM); runs that it"
        " has started go on without it. Several may be started for one datastore: one of them works, and another one"
        " takes over when it is gone.",
    )


def _serve(console: Console, root: str | None, once: bool, until_idle: bool, poll: float | None) -> int:
    from flowkit.deployer.local.loop import Scheduler

    storage = open_storage(root, create=True)

    def told(line: str) -> None:
        console.data(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
        console.flush()

    scheduler = Scheduler(storage, told, poll=poll)
    if once:
        scheduler.once()
        return 0
    stop = threading.Event()
    with _stopped_by_signals(stop):
        scheduler.run(stop, lambda active: _ready(console, storage.root, active), until_idle=until_idle)
    console.say("Stopped. Runs that it has started go on." if stop.is_set() else "Nothing is due, and no run goes on.")
    return 0


def _ready(console: Console, root: str, active: bool) -> None:
    if active:
        console.say(f"The scheduler is at work on {root}. Ctrl-C stops it.")
    else:
        console.say(f"Another scheduler is at work on {root}: this one waits, and takes over when that one is gone.")
    console.flush()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Have SIGINT and SIGTERM set an event."""

    def told(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {each: signal.signal(each, told) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
