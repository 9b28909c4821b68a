"""Following the logs of a run while it runs: new tasks are noticed, and each log is read on from where it was."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from flowkit.cli.log_lines import Attempt, Printer, log_of
from flowkit.cli.lookup import Place
from flowkit.datastore.logs import START, Joiner, LogLine, Position, read_log_from
from flowkit.datastore.storage import Storage
from flowkit.metadata.records import FINAL, TaskRecord
from flowkit.metadata.store import MetadataStore

_PAUSE = 0.2
"""Seconds between two looks where nothing was new."""
_REMOTE_PAUSE = 2.0
"""The same where each look travels; logs come there every few seconds anyway."""
_PAGE = 1_000


@dataclass(slots=True)
class _Followed:
    """A log that may still grow."""

    task: TaskRecord
    attempt: int
    position: Position = START
    joiner: Joiner = field(default_factory=Joiner)


class Follower:
    """Prints what the tasks of a run write, until the run ends.

    Parameters
    ----------
    storage, store
        Where logs and tasks are.
    place : Place
        The run, the step or the task.
    printer : Printer
        Prints lines.
    attempt : int, optional
        Follow this attempt of each task only.
    tail : int, optional
        Begin with so many lines of what a task has written already.
    """

    def __init__(
        self,
        storage: Storage,
        store: MetadataStore,
        place: Place,
        printer: Printer,
        attempt: int | None = None,
        tail: int | None = None,
    ) -> None:
        self._storage = storage
        self._store = store
        self._place = place
        self._printer = printer
        self._only = attempt
        self._tail = tail
        self._open: dict[tuple[str, str], _Followed] = {}
        self._shown: dict[tuple[str, str], int] = {}
        self._cursor: str | None = None
        self._first = True

    def run(self) -> None:
        """Print until the run is over, or nobody reads any more."""
        console, run = self._printer.console, self._place.run
        over = False
        while console.listening:
            # The state is read before the logs: what was written before the end is not missed.
            record = self._store.run(run.flow, run.run)
            ended = record is None or record.state in FINAL or record.state == "lost"
            before = self._printer.count
            self._notice_tasks()
            self._read()
            console.flush()
            self._first = False
            if ended and over:
                state = f"has {record.state}" if record is not None and record.state != "lost" else "is lost"
                reason = f" ({record.reason})" if record is not None and record.reason else ""
                console.say(f"Run {run.run} {state.replace('has cancelled', 'was cancelled')}{reason}.")
                return
            # One more look after the end: the last lines of a task's own children may come late.
            over = ended
            if self._printer.count == before:
                time.sleep(_REMOTE_PAUSE if self._storage.remote else _PAUSE)

    def _notice_tasks(self) -> None:
        """Find the tasks that began since the last look, and those that were tried again."""
        flow, run, step = self._place.run.flow, self._place.run.run, self._place.step
        for key, followed in self._open.items():
            followed.task = self._store.task(flow, run, *key) or followed.task
        if self._place.task is not None and step is not None:
            task = self._store.task(flow, run, step, self._place.task)
            if task is not None:
                self._notice(task)
            return
        after = self._cursor
        while True:
            page = self._store.tasks(flow, run, step, limit=_PAGE, after=after)
            for task in page:
                if task.started is None:
                    return  # what has not begun comes last
                if not task.step.startswith("_"):
                    self._notice(task)
                after = task.task if step is not None else f"{task.step}/{task.task}"
                if task.state in FINAL:
                    # The next look begins behind the last task whose place does not change any more.
                    self._cursor = after
            if len(page) < _PAGE:
                return

    def _notice(self, task: TaskRecord) -> None:
        key = (task.step, task.task)
        if key in self._open or (task.origin is not None and self._place.task is None):
            return  # what was taken over from another run was written long ago
        shown = self._shown.get(key)
        if shown is not None and (self._only is not None or task.attempt <= shown):
            return
        if self._only is not None:
            first = self._only
        elif shown is not None:
            first = shown + 1
        else:
            first = task.attempt if self._first else 0
        self._open[key] = _Followed(task, first)

    def _read(self) -> None:
        for key, followed in list(self._open.items()):
            newest = followed.task.attempt if self._only is None else self._only
            while followed.attempt < newest:  # it was tried again: first what the earlier attempt wrote to its end
                self._print(followed, last=True)
                followed.attempt += 1
                followed.position = START
            ended = followed.task.state in FINAL or followed.task.state == "lost"
            self._print(followed, last=ended)
            if ended:
                del self._open[key]
                self._shown[key] = followed.attempt

    def _print(self, followed: _Followed, *, last: bool) -> None:
        """Print what was written since the last look."""
        task = followed.task
        where: Attempt = log_of(self._storage, task, followed.attempt if task.origin is None else None)
        kept: deque[LogLine] | None = deque(maxlen=self._tail) if self._first and self._tail else None
        while True:
            lines, followed.position = read_log_from(self._storage, *where, followed.position)
            whole = [found for found in map(followed.joiner.add, lines) if found is not None]
            if not lines:
                break
            if kept is not None:
                kept.extend(whole)
            else:
                self._printer.show(task, whole)
        rest = followed.joiner.rest() if last else []
        self._printer.show(task, [*(kept or ()), *rest])
