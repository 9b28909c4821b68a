"""The live display of a run on a terminal: steps and their counts below, what tasks write scrolling above.

Everything goes out through the console (`flowkit.cli.console.Console.put`). Nothing is drawn more often than ten times
a second, nor for more than a fortieth of the time: an event costs a few microseconds, a drawing is put off in
proportion to what the last one took. The cursor is left visible and below the display, so that a killed run leaves the
terminal as it should be.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowkit.cli.console import clean
from flowkit.cli.run_summary import Summary
from flowkit.cli.run_view import MOST_STEPS, RunView, StepView, draw
from flowkit.cli.table import duration, one_line
from flowkit.cli.terminal import Part, Terminal, cells, fit, padded, step_style
from flowkit.model.coordinates import TaskRef
from flowkit.model.manifest import Failure, Manifest

if TYPE_CHECKING:
    from flowkit.cli.console import Console
    from flowkit.runtime.decisions import Counts

PATIENCE = 0.3
"""Seconds before the display appears: a run that is over by then only leaves its lines and its summary."""
INTERVAL = 0.1
"""Seconds between two drawings, at least."""
SHARE = 40
"""A drawing may take one part in so many of the time until the next one."""
IDLE = 1.0
"""Seconds between two drawings where nothing happens but time passing."""
_RATE_SECONDS = 10.0
_MOST_LINES = 500
_MOST_BLOCKED = 50_000
_WIDEST_LABEL = 24


class LiveDisplay:
    """Shows a run; a `flowkit.runtime.reporter.Reporter`.

    Parameters
    ----------
    console : Console
        Prints.
    terminal : Terminal
        What stdout can show.
    steps : sequence of str
        The flow's steps in the order in which they can run.
    program : str
        What commands for this flow begin with, e.g. ``python flow.py``.
    expected : callable, optional
        Returns how many seconds earlier runs took, or None; asked once, when the display appears.
    clock : callable
        Seconds that only ever grow.
    """

    def __init__(
        self,
        console: Console,
        terminal: Terminal,
        steps: Sequence[str],
        program: str,
        expected: Callable[[], float | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._terminal = terminal
        self._steps = {name: place for place, name in enumerate(steps)}
        self._program = program
        self._run = ""
        self._expected = expected
        self._usual: float | None = None
        self._clock = clock
        self._began = clock()
        self._title = ""
        self._lines: list[str] = []
        self._frame: list[str] = []
        self._widths: list[int] = []
        self._visible = self._dirty = False
        self._due = self._began + PATIENCE
        self._drawn = 0.0
        self._label = 0
        self._same: tuple[TaskRef, str, int] | None = None
        self._head = ""
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._retries: dict[TaskRef, float] = {}
        self._previous: dict[int, Any] = {}
        self.summary = Summary()

    # -- what happens (Reporter) ----------------------------------------------------------------------------------

    def run_started(self, flow: str, run: str, origin: str | None) -> None:
        """The run has its id: from now on the terminal is ours."""
        self._title, self._run = clean(f"{flow}/{run}"), run
        self._console.attach(self)
        self._catch_signals()
        text = [(self._title, "bold"), (" started", ""), (f", resumed from {clean(origin)}" if origin else "", "")]
        self._add([*text])

    def task_started(self, task: TaskRef, attempt: int, fallback: bool, pid: int | None, when: float) -> None:
        """An attempt has a process."""
        if task.step not in self._first:
            self._first[task.step] = self._clock()
        if self._retries:
            self._retries.pop(task, None)
        self._dirty = True

    def line(self, task: TaskRef, stream: str, text: str, when: float) -> None:
        """A task wrote a line."""
        # A progress bar that goes back to the start of its line shows what it showed last.
        if not text.isprintable():
            text = clean(text.rstrip("\r\n").rpartition("\r")[2])
        # Lines come in numbers, and most have the task and the second of the one before.
        same = (task, stream, int(when))
        if same != self._same:
            paint = self._terminal.paint
            rule = paint(self._terminal.glyphs.rule, "red" if stream == "err" else "dim")
            self._head = "".join([paint(*part) for part in self._prefix(task, when)]) + rule
            self._same = same
        self._lines.append(f"{self._head} {text}")
        self._dirty = True

    def task_succeeded(self, task: TaskRef, manifest: Manifest) -> None:
        """A task has a committed result."""
        self.summary.add(task, manifest)
        self._last[task.step] = self._clock()
        self._dirty = True

    def task_failed(self, task: TaskRef, failure: Failure, retry_in: float | None, again: str | None) -> None:
        """An attempt failed."""
        self.summary.attempts += 1
        self._last[task.step] = self._clock()
        message = one_line(failure.message, 500) or failure.kind
        glyphs = self._terminal.glyphs
        prefix = self._prefix(task, time.time())
        if failure.kind == "cancelled" and again is None:
            self._add([*prefix, (f"{glyphs.failed} cancelled", "yellow")])
        elif again is None:
            self._add([*prefix, (f"{glyphs.failed} failed: {message}", "red")])
        else:
            pause = f" in {retry_in:.0f} s" if retry_in and retry_in >= 1 else ""
            then = f"it is tried again{pause}" if again == "retry" else "its fallback takes over"
            self._add([*prefix, (f"{glyphs.again} failed: {message}; {then}", "yellow")])
            if pause and retry_in:
                self._retries[task] = self._clock() + retry_in

    def cloned(self, step: str, count: int) -> None:
        """Tasks were taken over from the origin run."""
        self._dirty = True

    def notice(self, text: str) -> None:
        """Something that the user should know."""
        self._add([(clean(text), "yellow")])

    def turn(self, counts: Callable[[], Mapping[str, Counts]]) -> float | None:
        """Draw if it is time to; return after how many seconds to be asked again."""
        now = self._clock()
        if self._lines and (not self._visible or len(self._lines) >= _MOST_LINES) and self._accepting():
            self._flush(self._frame)
        due = self._due if self._dirty or not self._visible else max(self._due, self._drawn + IDLE)
        if now < due:
            return due - now
        if not self._accepting():
            return INTERVAL
        if not self._visible and self._expected is not None:
            self._usual = self._expected()
        self._draw(counts())
        spent = self._clock() - now
        self._due = now + max(INTERVAL, SHARE * spent)
        return IDLE

    def _accepting(self) -> bool:
        """Whether to write now: a terminal that was stopped stops no run, until there is too much to remember."""
        return self._console.ready() or len(self._lines) >= _MOST_BLOCKED

    # -- drawing --------------------------------------------------------------------------------------------------

    def view(self, counts: Mapping[str, Counts], state: str = "running") -> RunView:
        """Return the run as it stands."""
        now = self._clock()
        steps = [self._step(name, counts[name], now) for name in self._steps if name in counts]
        return RunView(self._title, state, now - self._began, steps, self._usual, self._note(now))

    def _step(self, name: str, of_step: Counts, now: float) -> StepView:
        pending, running, succeeded, failed, cancelled, cloned = of_step
        total = pending + running + succeeded + failed + cancelled + cloned
        seconds = rate = None
        began = self._first.get(name)
        if began is not None:
            seconds = (now if running else self._last.get(name, now)) - began
            if total > 1 and running:
                rate = self._rate(name, succeeded + failed, now)
        return StepView(name, pending, running, succeeded, failed, cancelled, cloned, 0, total, seconds, rate)

    def _rate(self, name: str, done: int, now: float) -> float | None:
        """Return how many tasks a second have ended of late."""
        samples = self._samples.setdefault(name, deque([(self._first[name], 0)]))
        samples.append((now, done))
        while len(samples) > 2 and samples[1][0] < now - _RATE_SECONDS:
            samples.popleft()
        (before, earlier), span = samples[0], now - samples[0][0]
        return (done - earlier) / span if done > earlier and span > INTERVAL and before >= 0 else None

    def _note(self, now: float) -> str:
        if not self._retries:
            return ""
        task = min(self._retries, key=self._retries.__getitem__)
        more = f", and {len(self._retries) - 1:,} more" if len(self._retries) > 1 else ""
        wait = duration(max(0, round(self._retries[task] - now))).replace(".0 ", " ")
        return f"{self._terminal.glyphs.again} {clean(str(task))} is tried again in {wait}{more}"

    def _draw(self, counts: Mapping[str, Counts]) -> None:
        now = self._clock()
        columns, rows = self._terminal.size()
        frame: list[str] = []
        widths: list[int] = []
        if self._terminal.in_foreground() and rows >= 4:
            # One column stays free: a full line would make some terminals begin another one.
            width = max(columns - 1, 1)
            lines = draw(self.view(counts), self._terminal, width, min(MOST_STEPS, rows - 4))
            frame = [self._terminal.line(parts, width) for parts in lines]
            widths = [min(sum(cells(text) for text, _ in parts), width) for parts in lines]
        self._flush(frame, widths)
        self._dirty, self._visible, self._drawn = False, True, now

    def _flush(self, frame: list[str], widths: list[int] | None = None) -> None:
        """Write the lines that wait, and the display below them, in one go."""
        out = []
        if self._frame:
            columns, _ = self._terminal.size()
            # Terminals break lines anew that have become too long for a window made narrower.
            height = sum(max(1, -(-width // columns)) for width in self._widths)
            same = not self._lines and height == len(self._frame)
            out.append(f"\x1b[{height}A\r" + ("" if same else "\x1b[J"))
        out += [f"{line}\n" for line in self._lines]
        out += [f"{line}\x1b[K\n" for line in frame]
        if self._frame and len(frame) < len(self._frame):
            out.append("\x1b[J")
        self._lines = []
        self._frame = frame
        if widths is not None:
            self._widths = widths
        self._console.put("".join(out))

    def above(self, text: str) -> None:
        """Show text of the command itself (lines, without control characters) above the display."""
        self._lines += text.removesuffix("\n").split("\n")
        self._flush(self._frame)

    def _prefix(self, task: TaskRef, when: float) -> list[Part]:
        name = str(task)
        label = fit(name if name.isprintable() else clean(name), _WIDEST_LABEL, self._terminal.glyphs.dots)
        self._label = max(self._label, cells(label))
        parts: list[Part] = [(f"{padded(label, self._label)} ", step_style(self._steps.get(task.step, 0)))]
        if self._terminal.size()[0] >= 60:
            parts.insert(0, (time.strftime("%H:%M:%S ", time.localtime(when)), "dim"))
        return parts

    def _add(self, parts: Sequence[Part]) -> None:
        paint = self._terminal.paint
        self._lines.append("".join([paint(text, style) for text, style in parts]))
        self._dirty = True

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the display away; what is printed from now on stays."""
        self._release_signals()
        if self._lines or self._frame:
            self._flush([], [])

    def run_ended(self, state: str, reason: str | None, seconds: float, counts: Mapping[str, Counts]) -> None:
        """The run is over, and the display is gone: show the summary."""
        order = list(self._steps)
        commands = [f"{self._program} status {self._run}"]
        if state == "succeeded" and order:
            commands.append(f"dump {self._run}/{order[-1]}")
        commands.append(f"logs {self._run}")
        why = reason if state == "cancelled" else None
        console = self._console
        console.lines(self.summary.lines(self._terminal, self._title, state, why, seconds, counts, order))
        # Not cut, unlike the others: it is there to be copied.
        console.data(console.paint("  look further: ", "dim") + clean(", ".join(commands)))

    # -- signals --------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        """Draw at once where the window has changed, and anew where the shell has written in between."""
        for number, action in ((signal.SIGWINCH, self._resized), (signal.SIGCONT, self._continued)):
            try:
                self._previous[number] = signal.signal(number, action)
            except ValueError:  # not the main thread: the next drawing will do
                return

    def _release_signals(self) -> None:
        for number, action in self._previous.items():
            signal.signal(number, action if action is not None else signal.SIG_DFL)
        self._previous = {}

    def _resized(self, _number: int, _frame: Any) -> None:
        self._dirty, self._due = True, min(self._due, self._clock()) if self._visible else self._due

    def _continued(self, _number: int, _frame: Any) -> None:
        self._frame, self._widths, self._dirty = [], [], True
