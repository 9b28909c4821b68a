"""Lines of logs as commands show them: whose log, which stream, how each line is printed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import click

from flowkit.cli.console import Console, clean
from flowkit.cli.terminal import step_style
from flowkit.datastore.logs import LogLine, joined, shown_time, tail_log
from flowkit.datastore.manifests import read_manifest
from flowkit.datastore.storage import Storage
from flowkit.metadata.records import TaskRecord

Attempt = tuple[str, str, str, str, int]
"""Flow, run, step, task and attempt of a log."""


def stream_options(what: str) -> list[click.Parameter]:
    """Return the options that choose between a task's streams."""
    return [
        click.Option(["--stdout", "stream"], flag_value="out", help=f"{what} the standard output only."),
        click.Option(["--stderr", "stream"], flag_value="err", help=f"{what} the standard error only."),
        click.Option(["--both", "stream"], flag_value="both", help=f"{what} both (the default)."),
        click.Option(["--attempt"], type=click.IntRange(min=0), help="Of this attempt, counted from 0."),
    ]


def one_stream(chosen: object) -> str | None:
    """Return ``out`` or ``err`` where one of them was chosen; None for both (click 8.1 gives False for no choice)."""
    return chosen if isinstance(chosen, str) and chosen in ("out", "err") else None


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
        self._styles: dict[str, str] = {}

    def show(self, task: TaskRecord, lines: Iterable[LogLine]) -> None:
        """Print lines of one task."""
        paint = self.console.paint
        head = paint(clean(f"[{task.step}/{task.task}] "), self._style(task.step)) if self._named else ""
        for line in lines:
            if self._stream is not None and line.stream not in (self._stream, "note"):
                continue
            stamp = paint(f"{shown_time(line.when)} ", "dim") if self._timestamps else ""
            text = clean(line.text.decode("utf-8", "replace").removesuffix("\r"))
            self.console.data(f"{stamp}{head}{paint(text, 'dim') if line.stream == 'note' else text}")
            self.count += 1
            if not self.console.listening:
                return

    def _style(self, step: str) -> str:
        """Return the colour of a step: the next one for a step that was not seen before."""
        return self._styles.setdefault(step, step_style(len(self._styles)))


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
