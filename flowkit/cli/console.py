"""The only printer of flowkit.

Data goes to stdout, talk goes to stderr. The lines of a run (what its tasks do and write) go to stdout with a time
stamp. Whatever a task, a name or a database holds is shown without control characters, so that it cannot drive the
terminal. A closed pipe (``| head``) ends the printing, never the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from flowkit.cli.terminal import STATE_STYLES, Part, Terminal, terminal_of
from flowkit.exceptions import FlowkitError
from flowkit.model.coordinates import TaskRef
from flowkit.model.manifest import Failure, Manifest

if TYPE_CHECKING:
    from flowkit.runtime.decisions import Counts

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ESCAPE = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[@-_])")


def clean(text: str) -> str:
    """Return the text without terminal escape sequences and other control characters (tabs and line ends stay)."""
    if text.isprintable():
        return text
    return _CONTROL.sub("�", _ESCAPE.sub("", text))


class Display(Protocol):
    """Something that stays at the bottom of the terminal (`flowkit.cli.live`)."""

    def above(self, text: str) -> None:
        """Show lines above it."""

    def close(self) -> None:
        """Leave the terminal."""


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
        self._display: Display | None = None
        self._terminal: Terminal | None = None

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

    def task_started(self, task: TaskRef, attempt: int, fallback: bool, pid: int | None, when: float) -> None:
        """An attempt has a process."""
        if self.quiet:
            return
        what = "fallback is starting to handle the failure" if fallback else "is starting"
        again = f" (attempt {attempt + 1})" if attempt and not fallback else ""
        self._line(f"Task {what}{again}.", task, pid, when)

    def line(self, task: TaskRef, stream: str, text: str, when: float) -> None:
        """A task wrote a line."""
        self._line(text, task, None, when)

    def task_succeeded(self, task: TaskRef, manifest: Manifest) -> None:
        """A task has a result."""
        if self.quiet:
            return
        width, caught = manifest.transition.width, caught_by(manifest)
        if width is not None:
            self._line(f"Foreach yields {width:,} child steps.", task)
        if caught is None:
            self._line("Task finished successfully.", task)
        else:
            self._line(f"Task finished: the step failed, and @catch kept the {caught}.", task)

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

    def turn(self, counts: Callable[[], Mapping[str, Counts]]) -> float | None:
        """Return None: lines are printed at once."""
        return None

    def run_ended(self, state: str, reason: str | None, seconds: float, counts: Mapping[str, Counts]) -> None:
        """The run is over."""
        if state == "succeeded":
            self._line(f"Done! ({seconds:.1f} s)")
        elif state == "cancelled":
            self._line(f"The run was {reason or 'cancelled'}.")
        else:
            self._line("Workflow failed.")

    def _line(self, text: str, task: TaskRef | None = None, pid: int | None = None, when: float | None = None) -> None:
        if self.quiet and task is None:
            return
        now = time.time() if when is None else when
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        where = f" [{task}{f' (pid {pid})' if pid else ''}]" if task else ""
        self._write(self._out, f"{stamp}{where} {clean(text)}\n")

    # -- a terminal ---------------------------------------------------------------------------------------------

    @property
    def terminal(self) -> Terminal:
        """What stdout can show."""
        if self._terminal is None:
            self._terminal = terminal_of(self._out)
        return self._terminal

    def paint(self, text: str, style: str) -> str:
        """Return a text in a style, for `data`; as it is where stdout takes no colours."""
        return self.terminal.paint(text, style)

    def paint_state(self, state: str) -> str:
        """Return the name of a state (with spaces around it) in its colour."""
        return self.paint(state, STATE_STYLES.get(state.strip(), ""))

    def lines(self, lines: Iterable[Sequence[Part]]) -> None:
        """Print lines of parts, no wider than the terminal."""
        width = self.terminal.size()[0] - 1
        self.data("\n".join(self.terminal.line(parts, width) for parts in lines))

    def attach(self, display: Display) -> None:
        """Let a display have the terminal: what is printed meanwhile goes above it."""
        self.flush()
        self._display = display

    def release(self) -> None:
        """Take the display away, if there is one: print as usual again."""
        if self._display is not None:
            display, self._display = self._display, None
            display.close()

    def put(self, text: str) -> None:
        """Write what a display draws, as it is."""
        self._put(self._out, text)

    def ready(self) -> bool:
        """Whether stdout takes something now; a terminal that was stopped by Ctrl-S does not."""
        import select

        if not self.listening:
            return True
        try:
            poller = select.poll()
            poller.register(self._out.fileno(), select.POLLOUT)
            return bool(poller.poll(0))
        except (OSError, ValueError):
            return True

    @contextlib.contextmanager
    def paged(self) -> Iterator[None]:
        """Show `data` in the user's pager where stdout is a terminal and it is longer than the screen."""
        if not self.terminal.live:
            yield
            return
        from flowkit.cli.pager import Pager

        direct, pager = self._out, Pager(self._out, self.terminal.size())
        self._out = cast(TextIO, pager)
        try:
            yield
        finally:
            self._out = direct
            pager.finish()

    # -- writing ------------------------------------------------------------------------------------------------

    def _write(self, stream: TextIO, text: str) -> None:
        if self._display is not None and stream.isatty():
            self._display.above(text)
        else:
            self._put(stream, text)

    def _put(self, stream: TextIO, text: str) -> None:
        if id(stream) in self._closed:
            return
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if stream is self._err or stream.isatty():
                stream.flush()
        except BlockingIOError:  # another program has changed the terminal that it shares with us
            os.set_blocking(stream.fileno(), True)
        except (OSError, ValueError):  # the reader is gone, the terminal hung up, the disk is full
            self._give_up(stream)

    def _give_up(self, stream: TextIO) -> None:
        """Stop writing to a stream whose reader is gone, and keep Python from complaining about it at exit."""
        self._closed.add(id(stream))
        try:
            descriptor = stream.fileno()
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, descriptor)
            os.close(devnull)
        except (OSError, ValueError):
            return


def caught_by(manifest: Manifest) -> str | None:
    """Return the class of the exception that ``@catch`` kept, where the step failed and the flow goes on."""
    caught = manifest.extra.get("catch")
    return str(caught.get("type")).rpartition(".")[2] if isinstance(caught, dict) else None


def open_streams() -> None:
    """Open the standard streams that the program was started without (``>&-``, daemons).

    Else a file of ours would get their numbers, and there would be nothing to print to.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
