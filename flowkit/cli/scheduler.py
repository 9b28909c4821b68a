"""``flowkit scheduler``: the scheduler in the box, which starts deployed flows when they are due."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import click

from flowkit.cli.console import Console
from flowkit.cli.seconds import Seconds
from flowkit.datastore.root import open_storage

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.deployer.local.loop import Scheduler

_STOPS_WITHIN = 5.0
"""Seconds for which the end of a scheduler in a thread is waited for: whatever it waits for itself, nothing is lost."""
_POLL = "Seconds between two looks. Default: 1 for a folder, 10 for a datastore behind a network."


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(
        datastore_root: str | None, once: bool, until_idle: bool, poll: float | None, max_runs: int | None
    ) -> int:
        from flowkit.deployer.local.loop import Scheduler

        storage = open_storage(datastore_root, create=True)
        scheduler = Scheduler(storage, _teller(console), poll=poll, most_runs=max_runs)
        return _serve(console, scheduler, storage, once, until_idle)

    params: list[click.Parameter] = [
        click.Option(["--datastore-root"], help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--once"], is_flag=True, help="Look once, start what is due, and end: for a cron of your own."),
        click.Option(["--until-idle"], is_flag=True, help="End when nothing is due and no run goes on."),
        click.Option(["--poll"], type=Seconds(0.05, 600), metavar="SECONDS", help=_POLL),
        click.Option(
            ["--max-runs"],
            type=click.IntRange(1),
            metavar="N",
            help="Runs at once, of all deployments; others wait. Default: 4 for each processor, at least 16.",
        ),
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


def _serve(console: Console, scheduler: Scheduler, storage: Storage, once: bool, until_idle: bool) -> int:
    if once:
        scheduler.once()
        return 0
    stop = threading.Event()
    with _stopped_by_signals(stop):
        scheduler.run(stop, lambda active: _ready(console, storage, active), until_idle=until_idle)
    console.say("Stopped. Runs that it has started go on." if stop.is_set() else "Nothing is due, and no run goes on.")
    return 0


@contextmanager
def beside(console: Console, root: str | None, poll: float | None = None) -> Iterator[Callable[[], None]]:
    """Have a scheduler at work, in a thread, for as long as the context lasts; nothing of it outlives that but runs.

    It gives what ends the scheduler before: as long as the service still answers that it may be talking to.

    Raises
    ------
    StoreError
        If the datastore cannot be opened.
    """
    from flowkit.deployer.local.loop import Scheduler

    storage = open_storage(root, create=True)
    stop = threading.Event()

    def work() -> None:
        Scheduler(storage, _teller(console), poll=poll).run(stop, lambda active: _ready(console, storage, active))

    thread = threading.Thread(target=work, name="flowkit-scheduler", daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join(_STOPS_WITHIN)

    try:
        yield end
    finally:
        end()


def _teller(console: Console) -> Callable[[str], None]:
    def told(line: str) -> None:
        console.data(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
        console.flush()

    return told


def _ready(console: Console, storage: Storage, active: bool) -> None:
    from flowkit.deployer.records import read_records

    root = storage.root
    if active:
        console.say(f"The scheduler is at work on {root}. Ctrl-C stops it.")
        if next(read_records(storage, "local"), None) is None:
            console.say("Nothing is deployed there yet: python flow.py local create")
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
