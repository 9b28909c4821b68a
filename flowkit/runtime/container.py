"""The wrapper in a container: it carries out one row of a launch list, and the datastore hears of all that happens.

The task itself is a process of its own (``python flow.py step …``), so that one that crashes, runs out of memory or
cannot even import its flow still has a log and a recorded failure. The wrapper reads both its streams, keeps the log
in the datastore and prints it for the service's own log, passes signals on, and ends as the task did.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from flowkit.context import SPOT_NOTICE_VARIABLE
from flowkit.datastore.layout import manifest_file
from flowkit.datastore.logs import PieceWriter
from flowkit.datastore.manifests import write_failure
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, StoreError, UsageError
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure
from flowkit.runtime import spot, streams
from flowkit.runtime.container_log import LogSender
from flowkit.runtime.executor import Ended
from flowkit.runtime.failures import silent_failure
from flowkit.runtime.forked_task import ProcessControl
from flowkit.runtime.gang import node_coordinates
from flowkit.runtime.launch_list import read_row
from flowkit.runtime.local_state import step_arguments
from flowkit.runtime.marked import MarkedLines, Piece
from flowkit.runtime.processes import OutOfMemory, signal_group
from flowkit.settings import environment, variable

END_GRACE = 20.0
"""Seconds that a task has after SIGTERM; services kill the container after 30, and the log has to get out before."""
TIMEOUT_GRACE = 5.0
"""Seconds after a step's timeout until its process is killed: the clean end inside the task comes first."""
START_GRACE = 120.0
"""Further seconds for a task that has not said yet that the user's code begins: it imports the flow."""
PARTIAL_SECONDS = 1.0
"""Seconds after which the beginning of a line is taken for a piece of it."""
DEFAULT_LIMIT = 10 << 20
"""Bytes of a log, where nobody says otherwise."""
_READ = 1 << 17
_DRAIN = 4 << 20
_LONGEST_ARGUMENT = 64 << 10
_LAST_LINES = 30
_INDEX = ("AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX")
_NODE = ("FLOWKIT_NODE", "AWS_BATCH_JOB_NODE_INDEX", "JOB_COMPLETION_INDEX")


class Row(NamedTuple):
    """What this container is to do: a launch, and of a gang which node."""

    flow: str
    run: str
    launch: Launch
    node: int | None

    @property
    def task(self) -> str:
        """The task's id."""
        place = self.launch.coordinates
        return str(place if self.node is None else node_coordinates(place, self.node))


def find_row(storage: Storage, flow: str, run: str, key: str) -> Row:
    """Return the row of a launch list that the environment names.

    ``FLOWKIT_ROW`` counts before the index variables of the services. A gang is one row, of which the container is
    one node: ``FLOWKIT_NODE``, or the service's index.

    Raises
    ------
    DataError
        If there is no such row.
    UsageError
        If a variable is no number.
    """
    index = _number("FLOWKIT_ROW")
    if index is None and variable("AWS_BATCH_JOB_NODE_INDEX"):
        index = 0  # a multi-node job has no array
    if index is None:
        index = next((found for found in map(_number, _INDEX) if found is not None), 0)
    try:
        launch = read_row(storage, key, index)
    except DataError:
        # The index may be that of a node: a gang is the one row of its list.
        launch = read_row(storage, key, 0)
        if index >= launch.gang:
            raise
    node = None
    if launch.gang:
        node = next((found for found in map(_number, _NODE) if found is not None), 0)
        if node >= launch.gang:
            raise DataError(f"this is node {node} of a gang of {launch.gang}", "the service started too many")
    return Row(flow, run, launch, node)


def _number(name: str) -> int | None:
    text = variable(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{name} must be a number, not {text!r}")
    return int(text)


def step_command(program: str, root: str, row: Row, folder: str) -> list[str]:
    """Return the command of the task's process.

    Parameters
    ----------
    program : str
        ``flow.py``, or ``-m package.module``.
    root : str
        The datastore's.
    row : Row
        What to do.
    folder : str
        Where an argument that is too long for a command line (a join's parents) is put into a file.
    """
    return flow_command(program, root, step_arguments(row.launch, row.node, row.run), folder)


def flow_command(program: str, root: str, words: Sequence[str], folder: str) -> list[str]:
    """Return the command line of a command of the flow whose code package the working directory is.

    Parameters
    ----------
    program, root, folder
        As for `step_command`.
    words : sequence of str
        The command and its arguments.
    """
    start = ["-m", program[3:]] if program.startswith("-m ") else [program]
    arguments = []
    for argument in words:
        if len(argument) > _LONGEST_ARGUMENT:
            path = os.path.join(folder, "parents")
            with open(path, "w", encoding="utf-8") as file:
                file.write(argument)
            argument = f"@{path}"
        arguments.append(argument)
    return [sys.executable, *start, "--quiet", "--datastore-root", root, *arguments]


def carry_out(
    storage: Storage, row: Row, program: str, *, timeout: float | None = None, limit: int = DEFAULT_LIMIT
) -> int:
    """Carry out a row and return the exit status of this process: the task's own, 128 and the signal that killed it.

    Parameters
    ----------
    storage : Storage
        The datastore.
    row : Row
        What to do; nothing is done where the task has a result already.
    program : str
        How the flow is started in the working directory.
    timeout : float, optional
        Seconds that the step's code may take.
    limit : int
        Bytes kept of the log.
    """
    if row.node is None and storage.info(manifest_file(row.flow, row.run, row.launch.step, row.task)) is not None:
        return 0  # somebody else was faster: this container was started twice, or again
    words = step_arguments(row.launch, row.node, row.run)
    return run_logged(storage, row, program, words, timeout=timeout, limit=limit)


def run_logged(
    storage: Storage, row: Row, program: str, words: Sequence[str], *, timeout: float | None, limit: int
) -> int:
    """Run a command of the flow as the attempt of a task: its words become the task's log, its death a failure.

    Parameters
    ----------
    storage, row, program, timeout, limit
        As for `carry_out`.
    words : sequence of str
        The command and its arguments.
    """
    launch = row.launch
    log = LogSender(PieceWriter(storage, row.flow, row.run, launch.step, row.task, launch.attempt, limit))
    with tempfile.TemporaryDirectory(prefix="flowkit-task-", ignore_cleanup_errors=True) as folder:
        wrapper = _Wrapper(row, log, os.path.join(folder, "spot-notice"), timeout)
        status = wrapper.run(flow_command(program, storage.root, words, folder))
    log.close(patient=wrapper.told is None)
    if log.trouble is not None:
        _echo("err", f"flowkit: parts of the log may be missing in the datastore: {log.trouble}\n".encode())
    failure = wrapper.failure(status)
    if failure is not None:
        try:
            write_failure(storage, row.flow, row.run, launch.step, row.task, failure)
        except StoreError as error:
            _echo("err", f"flowkit: how the task ended could not be recorded: {error.headline}\n".encode())
    return status if status >= 0 else 128 - status


class _Wrapper:
    """One task's process while it runs."""

    def __init__(self, row: Row, log: LogSender, notice: str, timeout: float | None) -> None:
        self.told: int | None = None
        """The signal by which somebody outside ended this container."""
        self._row = row
        self._log = log
        self._notice = notice
        self._timeout = timeout
        self._token = streams.new_token()
        self._lines = MarkedLines(self._token)
        self._began = self._timed_out = self._killed = False
        self._deadline: float | None = None
        self._kill_at: float | None = None
        self._flush_at: float | None = None
        self._last: deque[bytes] = deque(maxlen=_LAST_LINES)
        self._memory = OutOfMemory()
        self._out_of_memory = False
        self._usage: tuple[float, int] | None = None
        self._signals: deque[int] = deque()
        self._process: subprocess.Popen[bytes]
        self._selector = selectors.DefaultSelector()

    def run(self, command: Sequence[str]) -> int:
        """Run the task's process to its end and return its exit status, negative for a signal."""
        wakeup = self._catch_signals()
        self._process = self._start(command)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, stream is self._process.stderr)
        self._selector.register(wakeup, selectors.EVENT_READ, None)
        if self._timeout is not None:
            self._deadline = time.monotonic() + self._timeout + START_GRACE + TIMEOUT_GRACE
        self._log.start()
        watch = spot.SpotWatch(self._notice, lambda text: self._log.note(f"this machine will be taken away: {text}"))
        if variable("AWS_BATCH_JOB_ID") and (variable("AWS_EC2_METADATA_DISABLED") or "").lower() != "true":
            watch.start()
        try:
            while (status := self._ended()) is None:
                for key, _ in self._selector.select(self._patience()):
                    if key.data is None:
                        os.read(wakeup, 512)
                    else:
                        self._read(key.fd, err=key.data)
                self._act()
        finally:
            watch.stop()
        self._out_of_memory = status == -signal.SIGKILL and not self._killed and self._memory.happened()
        signal_group(self._process.pid, signal.SIGKILL)  # what the task has left behind
        self._drain()
        return status

    def failure(self, status: int) -> Failure | None:
        """Return how the task's process ended, for an attempt that may not have said so itself.

        None where it succeeded, and where somebody outside ended the container: who did knows why.
        """
        if status == 0 or self.told is not None:
            return None
        reason = "timeout" if self._timed_out else "oom" if self._out_of_memory else None
        ended = Ended(self._row.launch, status, time.time(), reason, self._usage)
        failure = silent_failure(ended, stopping=None)
        last = [line.decode("utf-8", "replace").rstrip() for line in self._last]
        if self._began or status < 0 or not any(last):
            return failure
        # It could not even begin: the flow's file or a module of it cannot be imported here, say.
        why = next(line for line in reversed(last) if line)
        return replace(
            failure,
            message=f"the step could not begin in its container: {why.strip()}{_advice(why)}",
            traceback="\n".join(last) + "\n",
        )

    # -- the process ------------------------------------------------------------------------------------------------

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        control, me = ProcessControl(), os.getpid()
        variables = {**environment(), streams.VARIABLE: self._token.hex(), SPOT_NOTICE_VARIABLE: self._notice}
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=variables,
            start_new_session=True,
            preexec_fn=lambda: control.die_with_parent(me),  # before there is any thread
        )

    def _ended(self) -> int | None:
        """Return the exit status of the task's process; None while it runs."""
        first = os.getpid() == 1
        while True:
            try:
                # The first process of a container inherits every orphan, and has to bury it.
                pid, status, used = os.wait4(-1 if first else self._process.pid, os.WNOHANG)
            except ChildProcessError:
                return 1
            if pid == self._process.pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                unit = 1 if sys.platform == "darwin" else 1024
                self._usage = (used.ru_utime + used.ru_stime, used.ru_maxrss * unit)
                return self._process.returncode
            if pid == 0:
                return None

    def _catch_signals(self) -> int:
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: self._signals.append(number))
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only has to wake the loop up
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        return read

    def _act(self) -> None:
        """Do what is due: pass signals on, kill what does not end, take a line for finished that goes on no more."""
        now = time.monotonic()
        while self._signals:
            number = self._signals.popleft()
            again, self.told = self.told is not None, self.told or number
            name = signal.Signals(number).name
            spot.write_notice(self._notice, f"{name}\n")
            self._log.note(f"the container was told to end ({name})")
            self._kill_at = now if again else now + END_GRACE
            signal_group(self._process.pid, signal.SIGTERM)
        if self._deadline is not None and now >= self._deadline:
            self._deadline, self._timed_out, self._kill_at = None, True, now
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at, self._killed = None, True
            signal_group(self._process.pid, signal.SIGKILL)
        if self._flush_at is not None and now >= self._flush_at:
            self._flush_at = None
            self._keep(self._lines.rest())

    def _patience(self) -> float | None:
        due = [when for when in (self._deadline, self._kill_at, self._flush_at) if when is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    # -- its words ----------------------------------------------------------------------------------------------------

    def _read(self, descriptor: int, *, err: bool) -> int:
        """Read once; return how many bytes came, -1 where there are none now, or no more."""
        try:
            data = os.read(descriptor, _READ)
        except (BlockingIOError, InterruptedError):
            return -1
        if not data:
            self._selector.unregister(descriptor)
            return -1
        self._keep(self._lines.feed(data, err=err))
        for mark in self._lines.marks:
            self._mark(mark)
        self._lines.marks.clear()
        if not self._lines.unfinished:
            self._flush_at = None
        elif self._flush_at is None:
            self._flush_at = time.monotonic() + PARTIAL_SECONDS
        return len(data)

    def _mark(self, mark: bytes) -> None:
        if mark == streams.BEGAN:
            self._began = True
            if self._timeout is not None:
                self._deadline = time.monotonic() + self._timeout + TIMEOUT_GRACE
        elif mark == streams.FINISHED:
            self._deadline = None

    def _drain(self) -> None:
        """Read what the task has written before its end, although others may still hold its pipes."""
        for key in list(self._selector.get_map().values()):
            taken = 0
            while key.data is not None and taken < _DRAIN:
                count = self._read(key.fd, err=key.data)
                if count < 0:
                    break
                taken += count
        self._keep(self._lines.rest(ended=True))

    def _keep(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        self._log.add(pieces)
        if not self._began:
            self._last.extend(piece.text for piece in pieces if piece.stream == "err")
        for stream in ("out", "err"):
            text = b"".join(
                piece.text + (b"" if piece.partial else b"\n") for piece in pieces if piece.stream == stream
            )
            if text:
                _echo(stream, text)


def _echo(stream: str, text: bytes) -> None:
    """Print for the service's own log."""
    view = memoryview(text)
    try:
        while view:
            view = view[os.write(2 if stream == "err" else 1, view) :]
    except OSError:
        pass  # nobody reads it


def _advice(line: str) -> str:
    if line.startswith("ModuleNotFoundError"):
        return " (the image lacks it, and it is not in the code package: see python flow.py package list)"
    return ""
