"""The executor for debugging: one task at a time, in the terminal's foreground, with the keyboard.

A task is a fresh interpreter in the process group of the command, so that ``breakpoint()`` can ask and Ctrl-C reaches
it. What it prints goes to the terminal as it is and is not kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from flowkit.exceptions import is_ours
from flowkit.model.launch import Launch
from flowkit.runtime.executor import Ended, Event, Executor, Started

_LOOK = 0.05
"""Seconds between two looks at a process, where the system cannot tell of its end."""


class DebugExecutor(Executor):
    """Carries launches out one by one, in the foreground.

    Parameters
    ----------
    command : callable
        Returns the command line of a fresh interpreter that carries a launch out.
    variables : mapping
        Environment variables, by step.
    environment : mapping
        Those of this process.
    """

    name = "debug"

    def __init__(
        self,
        command: Callable[[Launch], list[str]],
        variables: Mapping[str, Mapping[str, str]],
        environment: Mapping[str, str],
    ) -> None:
        self.notices = []
        self._command = command
        self._variables = variables
        self._environment = environment
        self._waiting: deque[Launch] = deque()
        self._events: list[Event] = []
        self._task: tuple[Launch, subprocess.Popen[bytes]] | None = None
        self._watched = -1
        self._cancelled = False

    @property
    def in_foreground(self) -> bool:
        """Whether a task has the keyboard: Ctrl-C is for it."""
        return self._task is not None

    def capacity(self) -> int | None:
        """Return 1 while nothing runs."""
        return 0 if self._task is not None or self._waiting else 1

    def submit(self, launches: Sequence[Launch]) -> None:
        """Start a launch as soon as the one before has ended."""
        self._waiting.extend(launches)
        self._start()

    def file_descriptors(self) -> Sequence[int]:
        """Return what tells of the end of the task."""
        return [self._watched] if self._watched >= 0 else []

    def poll(self) -> list[Event]:
        """Return what has happened."""
        if self._task is not None:
            launch, process = self._task
            status = process.poll()
            if status is not None:
                self._forget()
                reason = "cancelled" if self._cancelled else None
                self._events.append(Ended(launch, status, time.time(), reason))
                self._start()
        events, self._events = self._events, []
        return events

    def next_deadline(self) -> float | None:
        """Return when to look again."""
        if self._events:
            return 0.0
        return time.time() + _LOOK if self._task is not None and self._watched < 0 else None

    def cancel(self, *, now: bool) -> None:
        """End the task; what waits ends at once."""
        self._cancelled = True
        while self._waiting:
            self._events.append(Ended(self._waiting.popleft(), None, time.time(), "cancelled", started=False))
        if self._task is not None:
            self._task[1].send_signal(signal.SIGKILL if now else signal.SIGTERM)

    def close(self) -> None:
        """End the task, if there is one."""
        if self._task is not None:
            self._task[1].kill()
            self._task[1].wait()
            self._forget()

    def _start(self) -> None:
        if self._task is not None or not self._waiting:
            return
        launch = self._waiting.popleft()
        environment = {**self._environment, **self._variables.get(launch.step, {})}
        process = subprocess.Popen(self._command(launch), env=environment)
        self._task = (launch, process)
        if hasattr(os, "pidfd_open"):
            self._watched = os.pidfd_open(process.pid)
        self._events.append(Started(launch, process.pid, time.time()))

    def _forget(self) -> None:
        self._task = None
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1


def post_mortem(error: BaseException) -> None:
    """Open the debugger where a step failed: at the innermost frame of the user's own code.

    Frames of flowkit's that called the step are left out; those of libraries that it called are there (``down``).
    """
    import pdb
    import traceback

    frames = [frame for frame in _frames(error.__traceback__) if not is_ours(frame[0].f_code.co_filename)]
    if not frames:
        return
    sys.stderr.write("".join(traceback.format_exception_only(type(error), error)))
    debugger = pdb.Pdb()
    up = next((count for count, (frame, *_) in enumerate(reversed(frames)) if _is_users(frame)), 0)
    if up:
        debugger.rcLines.append(f"up {up}")
    debugger.reset()
    debugger.interaction(None, _chained(frames))


def _frames(trace: TracebackType | None) -> list[tuple[FrameType, int, int]]:
    found = []
    while trace is not None:
        found.append((trace.tb_frame, trace.tb_lasti, trace.tb_lineno))
        trace = trace.tb_next
    return found


def _chained(frames: Sequence[tuple[FrameType, int, int]]) -> Any:
    trace = None
    for frame, instruction, line in reversed(frames):
        trace = TracebackType(trace, frame, instruction, line)
    return trace


def _is_users(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return "site-packages" not in file and not file.startswith((os.path.dirname(os.__file__), "<frozen"))
