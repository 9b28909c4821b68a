"""The only printer of flowkit.

Data goes to stdout, talk goes to stderr. The lines of a run (what its tasks do and write) go to stdout with a time
stamp. Whatever a task, a name or a database holds is shown without control characters, so that it cannot drive the
terminal. A closed pipe (``| head``) ends the printing, never the run.
"""

from __future__ import annotations

import os
import re
import sys
import time
from typing import Any, TextIO

from flowkit.exceptions import FlowkitError
from flowkit.model.coordinates import TaskRef
from flowkit.model.manifest import Failure
from flowkit.settings import variable

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ESCAPE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[@-_])")


def clean(text: str) -> str:
    """Return the text without terminal escape sequences and other control characters (tabs and line ends stay)."""
    if text.isprintable():
        return text
    return _CONTROL.sub("�", _ESCAPE.sub("", text))


class Console:
    """Prints for one command.

    Parameters
    ----------
    quiet : bool
        Say only what a user asked for, and errors.
    out, err : text streams, optional
        Default: the process's own.
    """

    def __init__(self, *, quiet: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.quiet = quiet
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._closed: set[int] = set()

    # -- what any command says --------------------------------------------------------------------------------

    def data(self, text: str) -> None:
        """Print what was asked for, to stdout, as it is."""
        self._write(self._out, text + "\n")

    @property
    def listening(self) -> bool:
        """Whether anybody reads stdout still: ``| head`` has gone when it has had enough."""
        return id(self._out) not in self._closed

    def json(self, value: Any) -> None:
        """Print a value as JSON, to stdout."""
        import json

        self.data(json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False, default=str))

    def say(self, text: str = "") -> None:
        """Tell something beside the data, to stderr; nothing where the user asked for quiet."""
        if not self.quiet:
            self._write(self._err, clean(text) + "\n")

    def error(self, error: FlowkitError) -> None:
        """Print an error: headline, where, hint."""
        self._write(self._err, clean(str(error)) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning, to stderr, also where the user asked for quiet."""
        self._write(self._err, clean(text) + "\n")

    def flush(self) -> None:
        """Push out what is buffered."""
        for stream in (self._out, self._err):
            if id(stream) not in self._closed:
                try:
                    stream.flush()
                except (BrokenPipeError, OSError, ValueError):
                    self._give_up(stream)

    # -- the lines of a run (flowkit.runtime.reporter.Reporter) --------------------------------------------------

    def run_started(self, flow: str, run: str, origin: str | None) -> None:
        """The run has its id."""
        self._line(f"Workflow starting (run-id {run})" + (f", resumed from {origin}" if origin else ""))

    def task_started(self, task: TaskRef, attempt: int, fallback: bool, pid: int | None) -> None:
        """An attempt has a process."""
        what = "fallback is starting to handle the failure" if fallback else "is starting"
        again = f" (attempt {attempt + 1})" if attempt and not fallback else ""
        self._line(f"Task {what}{again}.", task, pid)

    def line(self, task: TaskRef, stream: str, text: str, when: float) -> None:
        """A task wrote a line."""
        self._line(text, task, None, when)

    def task_succeeded(self, task: TaskRef, width: int | None, caught: str | None) -> None:
        """A task has a result."""
        if width is not None:
            self._line(f"Foreach yields {width:,} child steps.", task)
        if caught is None:
            self._line("Task finished successfully.", task)
        else:
            self._line(f"Task finished: the step failed, and @catch kept the {caught.rpartition('.')[2]}.", task)

    def task_failed(self, task: TaskRef, failure: Failure, retry_in: float | None, again: str | None) -> None:
        """An attempt failed."""
        if failure.kind == "cancelled":
            self._line("Task cancelled.", task)
            return
        self._line(f"Task failed: {failure.message.splitlines()[0] if failure.message else failure.kind}", task)
        if again == "retry":
            pause = f" in {retry_in:.0f} s" if retry_in and retry_in >= 1 else ""
            self._line(f"Task will be tried again{pause}.", task)

    def cloned(self, step: str, count: int) -> None:
        """Tasks were taken over from the origin run."""
        self._line(f"{step}: {count:,} {'task' if count == 1 else 'tasks'} cloned.")

    def notice(self, text: str) -> None:
        """Something that the user should know."""
        self._line(text)

    def run_line(self, text: str) -> None:
        """Print one more line of the run."""
        self._line(text)

    def _line(self, text: str, task: TaskRef | None = None, pid: int | None = None, when: float | None = None) -> None:
        if self.quiet and task is None:
            return
        now = time.time() if when is None else when
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        where = f" [{task}{f' (pid {pid})' if pid else ''}]" if task else ""
        self._write(self._out, f"{stamp}{where} {clean(text)}\n")

    # -- writing ------------------------------------------------------------------------------------------------

    def _write(self, stream: TextIO, text: str) -> None:
        if id(stream) in self._closed:
            return
        try:
            stream.write(text)
            if stream is self._err or stream.isatty():
                stream.flush()
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (BrokenPipeError, ValueError):
            self._give_up(stream)

    def _give_up(self, stream: TextIO) -> None:
        """Stop writing to a stream whose reader is gone, and keep Python from complaining about it at exit."""
        self._closed.add(id(stream))
        try:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
        except (OSError, ValueError):
            return


def colored() -> bool:
    """Whether stdout takes colours: a terminal that is not dumb, and no ``NO_COLOR``."""
    return sys.stdout.isatty() and not variable("NO_COLOR") and variable("TERM") != "dumb"
