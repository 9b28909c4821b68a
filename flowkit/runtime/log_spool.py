"""The logs of local tasks on their way to a storage that cannot append.

The log process writes them to files in a folder of this machine, as it does for a local root: it never waits for a
network. Threads of the runtime's process take what is new from there and write it as pieces, soon at first and less
often later, and once more when the task has ended. A run's end is recorded after all of them are there (`settle`).

What a runtime that was killed had not brought away stays in the folder; the next run of the same root on this machine
brings it (`LogSpool` looks for it at its start).
"""

from __future__ import annotations

import fcntl
import heapq
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from flowkit.datastore.layout import log_piece
from flowkit.datastore.logs import PieceWriter, log_parts
from flowkit.datastore.root import machine_folder
from flowkit.datastore.storage import Storage
from flowkit.exceptions import FlowkitError

FOLDER = "logs"
"""The folder of spools below the machine's folder of a root."""
FIRST_INTERVAL = 1.0
LAST_INTERVAL = 30.0
"""Seconds between two pieces of a log; each pause is twice the one before, up to this."""
LATE_LINES = 3.0
"""Seconds after a task's end in which what it left behind may still write."""
PATIENCE = 30.0
"""Seconds that `LogSpool.settle` goes on trying without any success."""
_THREADS = 8
_BLOCK = 4 << 20
_LOCK = "lock"

_Attempt = tuple[str, str, int]


class _Log:
    """One log on its way."""

    __slots__ = ("busy", "due", "ended", "interval", "path", "read", "writer")

    def __init__(self, path: str, writer: PieceWriter) -> None:
        self.path = path
        self.writer = writer
        self.read = 0
        self.interval = FIRST_INTERVAL
        self.due = math.inf
        self.busy = False
        self.ended: float | None = None


class LogSpool:
    """Brings the logs of one run's local tasks to the datastore while they grow.

    Parameters
    ----------
    storage : Storage
        Where they belong; called from several threads.
    flow, run : str
        Whose logs.

    Attributes
    ----------
    folder : str
        Where the log process writes: ``<folder>/<step>/<task>/<attempt>/log``.
    troubles : list of str
        What went wrong, in one line each; whoever tells it empties the list.
    """

    def __init__(self, storage: Storage, flow: str, run: str) -> None:
        self.troubles: list[str] = []
        self._storage = storage
        self._flow, self._run = flow, run
        base = os.path.join(machine_folder(storage), FOLDER)
        self._left = _left_behind(base)
        try:
            os.makedirs(base, exist_ok=True)
            self._own, self._lock = _make_folder(base, run)
        except OSError:  # no home that can be written, as in some containers
            self._own, self._lock = tempfile.mkdtemp(prefix="flowkit-logs-"), None
        self.folder = os.path.join(self._own, flow, run)
        os.makedirs(self.folder)
        self._changed = threading.Condition()
        self._logs: dict[_Attempt, _Log] = {}
        self._queue: list[tuple[float, int, _Attempt]] = []
        self._pushed = 0
        self._threads: list[threading.Thread] = []
        self._settling = self._closing = self._gave_up = False
        self._success = 0.0
        self._told: set[str] = set()

    # -- what the executor tells ----------------------------------------------------------------------------------

    def began(self, step: str, task: str, attempt: int) -> None:
        """A task is about to write its log."""
        key = (step, task, attempt)
        path = os.path.join(self.folder, step, task, str(attempt), "log")
        with self._changed:
            if key not in self._logs:
                self._logs[key] = _Log(path, PieceWriter(self._storage, self._flow, self._run, step, task, attempt))
                self._plan(key, FIRST_INTERVAL)
            if not self._threads:
                self._start()

    def ended(self, step: str, task: str, attempt: int) -> None:
        """A task has ended, and what it wrote is in its file."""
        with self._changed:
            self._end((step, task, attempt))

    def settle(self) -> None:
        """Wait until every log is in the datastore, for as long as there is some success every half minute."""
        with self._changed:
            self._settling = True
            self._success = time.monotonic()
            for key in list(self._logs):
                self._end(key, again=True)
            while self._logs and not self._gave_up and time.monotonic() - self._success < PATIENCE:
                self._changed.wait(0.5)
            if self._logs and not self._gave_up:
                self._gave_up = True
                many = f"the logs of {len(self._logs)} tasks" if len(self._logs) > 1 else "the log of a task"
                self.troubles.append(
                    f"{many} could not be brought to {self._storage.root} whole: the next run from here does so"
                )
            self._settling = False

    def close(self) -> None:
        """End the threads; what could not be brought away stays in its folder for the next run."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(PATIENCE)
        if not self._logs:
            shutil.rmtree(self._own, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def _end(self, key: _Attempt, again: bool = False) -> None:
        log = self._logs.get(key)
        if log is not None and (again or log.ended is None):
            log.ended = log.ended or time.monotonic()
            self._plan(key, 0.0)

    # -- threads --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for number in range(_THREADS):
            thread = threading.Thread(target=self._serve, name=f"flowkit-logs-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _plan(self, key: _Attempt, seconds: float) -> None:
        """Let a log be looked at after some seconds, or sooner where that was the plan already."""
        log = self._logs[key]
        due = time.monotonic() + seconds
        if due < log.due:
            log.due = due
            if not log.busy:
                self._queue_up(key, log)

    def _queue_up(self, key: _Attempt, log: _Log) -> None:
        self._pushed += 1
        heapq.heappush(self._queue, (log.due, self._pushed, key))
        self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                key, left = self._next()
                if key is None and left is None:
                    return
                log = self._logs[key] if key is not None else None
                hurry = self._settling
            if left is not None:
                self._rescue(left)
            if key is None or log is None:
                continue
            pause = self._advance(log, hurry)
            with self._changed:
                log.busy = False
                if pause is None:
                    del self._logs[key]
                    self._changed.notify_all()
                else:
                    log.due = min(log.due, time.monotonic() + pause)
                    self._queue_up(key, log)

    def _next(self) -> tuple[_Attempt | None, str | None]:
        """Wait for a log that is due, and take it; else what another run left behind; nothing at the end."""
        while not self._closing:
            now = time.monotonic()
            while self._queue and self._queue[0][0] <= now:
                due, _, key = heapq.heappop(self._queue)
                log = self._logs.get(key)
                if log is not None and not log.busy and log.due == due:  # else there is a later plan for it
                    log.busy, log.due = True, math.inf
                    return key, None
            if self._left:
                return None, self._left.pop()
            self._changed.wait(self._queue[0][0] - now if self._queue else None)
        return None, None

    def _advance(self, log: _Log, hurry: bool) -> float | None:
        """Bring what is new of a log; return the seconds to the next look, None where that was the last."""
        ended = log.ended
        last = ended is not None and (hurry or time.monotonic() - ended >= LATE_LINES)
        try:
            wrote = self._bring(log)
            if last:
                log.writer.close()
        except (FlowkitError, OSError) as error:
            self._tell(error)
            log.interval = min(log.interval * 2, LAST_INTERVAL)
            return min(1.0, log.interval) if hurry else log.interval
        self._success = time.monotonic()
        if last:
            _remove(log.path, self.folder)
            return None
        if ended is not None:
            return LATE_LINES
        if wrote:
            log.interval = min(log.interval * 2, LAST_INTERVAL)
            return log.interval
        return min(log.interval, 2.0)

    def _bring(self, log: _Log) -> bool:
        log.writer.append(b"")  # what the storage refused the last time
        wrote = False
        try:
            with open(log.path, "rb") as file:
                file.seek(log.read)
                while block := file.read(_BLOCK):
                    log.read += len(block)
                    wrote = True
                    log.writer.append(block)
        except FileNotFoundError:
            pass  # it has written nothing
        return wrote

    def _tell(self, error: Exception) -> None:
        text = error.headline if isinstance(error, FlowkitError) else str(error)
        with self._changed:
            if text not in self._told:
                self._told.add(text)
                self.troubles.append(f"logs wait on this machine: {text}")

    # -- what others left -----------------------------------------------------------------------------------------

    def _rescue(self, folder: str) -> None:
        """Bring the logs that a runtime left behind when it was killed, and remove its folder."""
        lock = _try_to_lock(folder)
        if lock is None:
            return  # it is at work
        try:
            for path, where in _logs_below(folder):
                _, numbers = log_parts(self._storage, *where)
                infos = [self._storage.info(log_piece(*where, number)) for number in numbers]
                there = sum(info.size for info in infos if info is not None)
                writer = PieceWriter(self._storage, *where)
                with open(path, "rb") as file:
                    file.seek(there)
                    while block := file.read(_BLOCK):
                        writer.append(block)
                writer.close()
            shutil.rmtree(folder, ignore_errors=True)
        except (FlowkitError, OSError) as error:
            self._tell(error)
        finally:
            os.close(lock)


def _make_folder(base: str, run: str) -> tuple[str, int | None]:
    """Make a folder that is held by this process from its first moment on; return it and the lock."""
    draft = tempfile.mkdtemp(prefix=".", dir=base)
    lock = _try_to_lock(draft, os.O_CREAT)
    folder = os.path.join(base, f"{run}-{os.path.basename(draft)[1:]}")
    os.rename(draft, folder)
    return folder, lock


def _left_behind(base: str) -> list[str]:
    """Return the folders of other runtimes, dead or alive."""
    try:
        names = sorted(name for name in os.listdir(base) if not name.startswith("."))
    except OSError:
        return []
    return [os.path.join(base, name) for name in names if os.path.isfile(os.path.join(base, name, _LOCK))]


def _try_to_lock(folder: str, create: int = 0) -> int | None:
    """Hold a folder for as long as this process lives; None where another one does."""
    try:
        descriptor = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CLOEXEC | create, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        os.close(descriptor)
        return None


def _logs_below(folder: str) -> Iterator[tuple[str, tuple[str, str, str, str, int]]]:
    """Yield each log below a spool, and whose it is."""
    for path, _, files in os.walk(folder):
        parts = os.path.relpath(path, folder).split(os.sep)
        if "log" in files and len(parts) == 5 and parts[4].isascii() and parts[4].isdigit():
            flow, run, step, task, attempt = parts
            yield os.path.join(path, "log"), (flow, run, step, task, int(attempt))


def _remove(path: str, top: str) -> None:
    """Remove a log and the folders that it leaves empty."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    folder = os.path.dirname(path)
    while folder != top:
        try:
            os.rmdir(folder)
        except OSError:
            return  # the logs of others are there, or it never was
        folder = os.path.dirname(folder)
