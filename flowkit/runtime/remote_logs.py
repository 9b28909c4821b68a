"""What remote tasks write, as far as it is shown while they run: read from the datastore, never too much of it.

Some tasks are followed while they run; of the others the last lines are shown when they have ended, as long as that
costs few calls. Everything is in the datastore for ``python flow.py logs``.
"""

from __future__ import annotations

from collections.abc import Callable

from flowkit.datastore.logs import START, Joiner, LogLine, read_log_from, tail_log
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError
from flowkit.model.coordinates import TaskRef
from flowkit.model.launch import Launch
from flowkit.runtime.executor import Event, Output
from flowkit.runtime.pacing import Bucket

MOST_FOLLOWED = 20
"""Tasks whose logs are followed at once."""
LAST_LINES = 100
"""Lines that are shown of a task that was not followed while it ran."""
_EVERY = 2.0
"""Seconds between two looks at one log."""
_RATE = 10.0
"""Reads a second, in the long run, and how many at once."""
_BURST = 100
_MOST_BLOCKS = 20
"""Blocks of some megabytes that are shown of one log after its task has ended."""


class _Followed:
    """How far the log of one launch has been shown."""

    __slots__ = ("due", "joiner", "launch", "position")

    def __init__(self, launch: Launch, due: float) -> None:
        self.launch = launch
        self.position = START
        self.joiner = Joiner()
        self.due = due


class LogReader:
    """Shows the logs of the tasks of one run that run elsewhere.

    Parameters
    ----------
    storage : Storage
        Where they are.
    flow, run : str
        The run.
    tell : callable
        Called with each `Output`.
    quiet : bool, default False
        Nobody looks: nothing is read at all.
    """

    def __init__(
        self, storage: Storage, flow: str, run: str, tell: Callable[[Event], None], *, quiet: bool = False
    ) -> None:
        self._storage = storage
        self._run = (flow, run)
        self._tell = tell
        self._quiet = quiet
        self._bucket = Bucket(_RATE, _BURST)
        self._failed = Bucket(_RATE, _BURST * 5)
        self._followed: dict[tuple[TaskRef, int], _Followed] = {}
        self.unshown = 0
        """How many tasks ended whose lines were not looked for."""

    def started(self, launch: Launch, now: float) -> None:
        """Follow a task, if there are not enough already."""
        key = (launch.ref, launch.attempt)
        if self._quiet:
            return
        if len(self._followed) < MOST_FOLLOWED and key not in self._followed:
            self._followed[key] = _Followed(launch, now + _EVERY)

    def look(self, now: float) -> None:
        """Show what the followed tasks have written since the last look."""
        for each in self._followed.values():
            if each.due <= now and self._bucket.take(now):
                each.due = now + _EVERY
                self._more(each)

    def next_look(self, now: float) -> float | None:
        """When `look` has something to do; None where nothing is followed."""
        if not self._followed:
            return None
        return max(min(each.due for each in self._followed.values()), self._bucket.next_at(now))

    def ended(self, launch: Launch, now: float, *, failed: bool) -> bool:
        """Show what is left of a task's log, and follow it no more; return whether any line was shown.

        Those that failed are shown, unless there are hundreds; others as long as there are not too many.
        """
        if self._quiet:
            return True
        each = self._followed.pop((launch.ref, launch.attempt), None)
        if each is not None:
            shown = each.position != START
            for _ in range(_MOST_BLOCKS):
                if not self._more(each):
                    break
                shown = True
            for line in each.joiner.rest():
                self._show(launch, line)
            return shown
        if not (self._failed if failed else self._bucket).take(now):
            self.unshown += 1
            return True
        return self._last(launch)

    def again(self, launch: Launch) -> None:
        """Leave a task that is started again: what it writes then comes after what it has written."""
        each = self._followed.get((launch.ref, launch.attempt))
        if each is not None:
            each.joiner = Joiner()

    def _more(self, each: _Followed) -> bool:
        launch = each.launch
        try:
            lines, each.position = read_log_from(
                self._storage, *self._run, launch.step, str(launch.coordinates), launch.attempt, each.position
            )
        except DataError:  # the storage does not answer: it is all there at the next look, and for `logs`
            return False
        for line in lines:
            whole = each.joiner.add(line)
            if whole is not None:
                self._show(launch, whole)
        return bool(lines)

    def _last(self, launch: Launch) -> bool:
        joiner = Joiner()
        try:
            lines = tail_log(
                self._storage, *self._run, launch.step, str(launch.coordinates), launch.attempt, LAST_LINES
            )
        except DataError:
            return True  # there may be some
        for line in lines:
            whole = joiner.add(line)
            if whole is not None:
                self._show(launch, whole)
        for line in joiner.rest():
            self._show(launch, line)
        return bool(lines)

    def _show(self, launch: Launch, line: LogLine) -> None:
        stream = "out" if line.stream == "out" else "err"
        self._tell(Output(launch, stream, line.text.decode("utf-8", "replace"), line.when))
