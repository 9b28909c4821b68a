"""What follows when rows of jobs have ended: their results, their last words, and whether they are started again.

A failure that is not the task's own (a reclaimed machine, no capacity) is no attempt: the same launch is submitted
again as long as its budget lasts, unless the task has committed, or recorded a failure of its own, before it was hit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flowkit.datastore.layout import failed_file, manifest_file
from flowkit.datastore.manifests import read_failure
from flowkit.datastore.many import mapped_over
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, StoreError
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure
from flowkit.runtime.backend import Backend, BackendError, RowState
from flowkit.runtime.bootstrap import EXIT_CODES
from flowkit.runtime.executor import Ended, Event, Output
from flowkit.runtime.gang import OTHER_FAILED, nodes_of
from flowkit.runtime.remote_logs import LogReader
from flowkit.runtime.retries import SILENT

LONGEST_DELAY = 60.0
"""Seconds until a task is started again, at the most."""
_TASK_ERROR = "flowkit.exceptions.TaskError"
_NO_NETWORK = (92, 95)
"""Exit codes of the bootstrap that another machine may not give."""
_WORDS = {
    "capacity": "no machine was found for it",
    "evicted": "the machine was reclaimed",
    "deleted": "somebody deleted the job",
    "lost": "the service does not know the job any more",
    "unreachable": "the machine could not be reached",
    "setup": "the container could not be set up",
}


class Over(NamedTuple):
    """A row that has ended.

    Parameters
    ----------
    tries : int
        How often its launch was submitted before.
    launch : Launch
        What it carried out.
    state : RowState
        How it ended.
    started : bool
        Whether it has begun, as far as is known.
    """

    tries: int
    launch: Launch
    state: RowState
    started: bool


class _Found(NamedTuple):
    """What an attempt left in the datastore."""

    committed: bool = False
    failure: Failure | None = None


_NOTHING = _Found()


class Ends:
    """Decides what follows rows that have ended.

    Parameters
    ----------
    backend : Backend
        The service.
    storage : Storage
        The datastore.
    flow, run : str
        The run.
    retries : int
        How often a task is started again after failures that are not its own.
    logs : LogReader
        Shows what the tasks wrote.
    tell, notice : callable
        Called with each event, and with each line for the user.

    Attributes
    ----------
    stopped : bool
        Nothing is started again any more.
    cancelled : bool
        Everything is being ended by us.
    """

    def __init__(
        self,
        backend: Backend,
        storage: Storage,
        flow: str,
        run: str,
        retries: int,
        logs: LogReader,
        tell: Callable[[Event], None],
        notice: Callable[[str], None],
    ) -> None:
        self.logs = logs
        self.stopped = self.cancelled = False
        self._backend = backend
        self._storage = storage
        self._run = (flow, run)
        self._retries = retries
        self._tell = tell
        self._notice = notice

    def settle(self, over: Sequence[Over], now: float) -> list[tuple[int, list[Launch], float]]:
        """Tell the ends of rows, and return what is to be started again: how many times it was, what, after how long.

        Parameters
        ----------
        over : sequence of Over
            The rows.
        now : float
            The time of a clock that nobody sets.
        """
        again: dict[tuple[int, str, str], list[tuple[Launch, str]]] = {}
        found = mapped_over(self._storage, self._look, over)
        for row, left in zip(over, found, strict=True):
            cause, message = _cause(row.state)
            if self._starts_again(row, cause, left):
                self._forget(row.launch, left.failure)
                again.setdefault((row.tries, row.launch.step, cause), []).append((row.launch, message))
            else:
                self._conclude(row, cause, message, left, now)
        out = []
        for (tries, step, cause), rows in again.items():
            delay = min(LONGEST_DELAY, self._backend.poll_interval * 2**tries)
            out.append((tries + 1, [launch for launch, _ in rows], delay))
            self._tell_again(step, cause, rows, tries + 1)
        return out

    def _look(self, row: Over) -> _Found:
        """Read what the attempt left; may be called in a thread."""
        launch = row.launch
        if row.state.phase == "succeeded" or (row.state.cause == "cancelled" and not row.started):
            return _NOTHING  # the runtime looks for the result
        task = (*self._run, launch.step, str(launch.coordinates))
        try:
            if self._storage.info(manifest_file(*task)) is not None:
                return _Found(committed=True)
            return _Found(failure=self._failure(launch))
        except DataError:  # the runtime looks again, and says what is wrong
            return _NOTHING

    def _failure(self, launch: Launch) -> Failure | None:
        """Return the failure that the attempt recorded; of a gang that of the node whose own fault it was."""
        found = None
        for ref in nodes_of(launch):
            failure = read_failure(self._storage, *self._run, ref.step, str(ref.coordinates), launch.attempt)
            if failure is not None and _is_own(failure):
                return failure
            found = found or failure
        return found

    def _starts_again(self, row: Over, cause: str, found: _Found) -> bool:
        if row.state.phase == "succeeded" or self.stopped or row.tries >= self._retries or found.committed:
            return False
        if cause not in _WORDS or (cause == "setup" and row.state.exit_status not in _NO_NETWORK):
            return False
        return found.failure is None or not _is_own(found.failure)

    def _forget(self, launch: Launch, failure: Failure | None) -> None:
        """Make room for how the attempt ends when it is carried out again."""
        self.logs.again(launch)
        for ref in nodes_of(launch) if failure is not None else ():
            try:
                self._storage.delete(failed_file(*self._run, ref.step, str(ref.coordinates), launch.attempt))
            except StoreError:  # then a later failure of the attempt is told as this one
                continue

    def _tell_again(self, step: str, cause: str, rows: Sequence[tuple[Launch, str]], tries: int) -> None:
        launch, message = rows[0]
        who = str(launch.ref) if len(rows) == 1 else f"{step}, {len(rows):,} tasks ({launch.ref} and others)"
        why = f"{_WORDS[cause]} ({message})" if message else _WORDS[cause]
        self._notice(f"{who}: {why}; started again ({tries} of {self._retries})")

    def _conclude(self, row: Over, cause: str, message: str, found: _Found, now: float) -> None:
        launch, state, failure = row.launch, row.state, found.failure
        status = _status(state)
        if cause == "cancelled" and not row.started:
            self._tell(Ended(launch, status, state.when, cause, started=False))
            return
        done = state.phase == "succeeded" or found.committed
        shown = self.logs.ended(launch, now, failed=not done)
        if done:
            self._tell(Ended(launch, 0, state.when))
            return
        own = failure is not None and _is_own(failure)
        if not own and (self.cancelled or (self.stopped and cause in ("cancelled", "deleted"))):
            self._tell(Ended(launch, status, state.when, "cancelled", failure=failure, started=row.started))
            return
        if not shown and failure is None and cause != "image":
            self._last_words(launch, state)
        reason = None if own or cause == "exit" else cause
        self._tell(Ended(launch, status, state.when, reason, None, message, failure))

    def _last_words(self, launch: Launch, state: RowState) -> None:
        """Show what the service's own log has of a container that died before it could store its last lines."""
        try:
            lines = self._backend.last_lines(state.job, state.row)
        except BackendError as error:
            self._notice(f"{launch.ref}: its last lines cannot be read from {self._backend.name}: {error.headline}")
            return
        for line in lines:
            self._tell(Output(launch, "err", line, state.when))


def _is_own(failure: Failure) -> bool:
    """Whether an attempt failed by what its code did: not by a signal, nor since another node of its gang was gone."""
    if failure.exception == _TASK_ERROR and failure.message.endswith(OTHER_FAILED):
        return False
    return failure.kind not in SILENT or failure.exception is not None


def _cause(state: RowState) -> tuple[str, str]:
    """Return why a row failed, and what is to be said of it; codes of the bootstrap have their own words."""
    cause, message = state.cause or "exit", state.message.strip()
    if cause == "exit" and state.exit_status in EXIT_CODES:
        return "setup", EXIT_CODES[state.exit_status]
    if cause == "exit":
        return cause, message if state.exit_status is None else ""
    return cause, message


def _status(state: RowState) -> int | None:
    """Return the exit status; what a shell reports of a signal (128 and its number) becomes negative again."""
    status = state.exit_status
    return 128 - status if status is not None and 128 < status <= 192 else status
