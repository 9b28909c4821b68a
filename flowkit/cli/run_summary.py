"""What is shown at the end of a run on a terminal: time per step, the slowest tasks, what was written."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flowkit.cli.console import clean
from flowkit.cli.run_view import mark
from flowkit.cli.table import duration, one_line, short
from flowkit.cli.terminal import Part, Terminal, cells, fit, padded, step_style
from flowkit.model.coordinates import TaskRef
from flowkit.model.manifest import Manifest

if TYPE_CHECKING:
    from flowkit.runtime.decisions import Counts

_MOST_STEPS = 20
_SLOWEST = 3
_WORTH_NAMING = 0.5
"""Seconds that a task must take to be listed as slow."""


class _StepTime:
    """When a step's first task began and its last one ended, and how long they took together."""

    __slots__ = ("began", "count", "ended", "total")

    def __init__(self) -> None:
        self.began, self.ended, self.total, self.count = float("inf"), 0.0, 0.0, 0


class Summary:
    """Collects, in constant time and memory a task, what there will be to say.

    Attributes
    ----------
    attempts : int
        How many attempts failed; counted by the owner.
    artifacts, bytes : int
        What was written.
    """

    def __init__(self) -> None:
        self.attempts = 0
        self.artifacts = 0
        self.bytes = 0
        self._steps: dict[str, _StepTime] = {}
        self._slowest: list[tuple[float, TaskRef]] = []

    def add(self, task: TaskRef, manifest: Manifest) -> None:
        """Take note of a task that succeeded."""
        took = max(manifest.ended - manifest.started, 0.0)
        of_step = self._steps.get(task.step)
        if of_step is None:
            of_step = self._steps[task.step] = _StepTime()
        of_step.began = min(of_step.began, manifest.started)
        of_step.ended = max(of_step.ended, manifest.ended)
        of_step.total += took
        of_step.count += 1
        written = manifest.extra.get("written")
        if isinstance(written, list) and len(written) == 2:
            self.artifacts += written[0]
            self.bytes += written[1]
        if len(self._slowest) < _SLOWEST:
            heapq.heappush(self._slowest, (took, task))
        elif took > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, (took, task))

    def lines(
        self,
        terminal: Terminal,
        title: str,
        state: str,
        reason: str | None,
        seconds: float,
        counts: Mapping[str, Counts],
        order: Sequence[str],
    ) -> list[list[Part]]:
        """Return the summary as lines of parts.

        Parameters
        ----------
        terminal : Terminal
            Its size and characters.
        title, state : str
            ``Flow/run`` and how it ended.
        reason : str or None
            Why, where that is to be said.
        seconds : float
            How long the run took.
        counts : mapping
            The tasks of each step.
        order : sequence of str
            The steps.
        """
        width = terminal.size()[0] - 1
        sign, style = mark(state, terminal)
        lines: list[list[Part]] = [[], [(sign, style), (f" {title} ", "bold"), (state, style)]]
        lines[1].append((f" in {duration(seconds)}" + (f": {one_line(reason)}" if reason else ""), ""))
        lines += self._table(terminal, width, counts, order)
        lines += [[(f"  {name}: ", "dim"), (text, "")] for name, text in self._facts(terminal, counts)]
        return lines

    def _facts(self, terminal: Terminal, counts: Mapping[str, Counts]) -> list[tuple[str, str]]:
        facts = []
        slow = sorted((item for item in self._slowest if item[0] >= _WORTH_NAMING), reverse=True)
        tasks = sum(step.count for step in self._steps.values())
        if slow and tasks > 1:
            dot = f" {terminal.glyphs.dot} "
            facts.append(("slowest", dot.join(f"{clean(str(task))} {short(took)}" for took, task in slow)))
        cloned = sum(row.cloned for row in counts.values())
        if cloned:
            facts.append(("cloned", f"{cloned:,} of {cloned + tasks:,} tasks, which did not run again"))
        if self.attempts:
            facts.append(("failed attempts", f"{self.attempts:,}"))
        if self.artifacts:
            noun = "artifact" if self.artifacts == 1 else "artifacts"
            facts.append(("written", f"{self.artifacts:,} {noun}, {size(self.bytes)}"))
        return facts

    def _table(
        self, terminal: Terminal, width: int, counts: Mapping[str, Counts], order: Sequence[str]
    ) -> list[list[Part]]:
        places = {name: place for place, name in enumerate(order)}
        begun = [name for name in order if name in counts and any(counts[name])]
        shown = set(heapq.nlargest(_MOST_STEPS, begun, key=self._took))
        rows: list[tuple[str, list[str]]] = []
        for name in begun:
            if name in shown:
                rows.append((name, self._row(name, counts[name])))
        if not rows:
            return []
        heads = ["step", "tasks", "took", "a task"]
        columns = list(zip(heads[1:], *(row for _, row in rows), strict=True))
        wide = [max(map(cells, column)) for column in columns]
        name_width = min(max(cells(name) for name in ("step", *shown)), max(width - sum(wide) - 12, 8))
        lines: list[list[Part]] = [[(_joined(heads[0], heads[1:], name_width, wide), "dim")]]
        for name, row in rows:
            sign = mark(_state(counts[name]), terminal)
            shown_name = padded(fit(name, name_width, terminal.glyphs.dots), name_width)
            style = step_style(places[name])
            lines.append([("  ", ""), sign, (f" {shown_name}", style), (_joined("", row, 0, wide, 0), "")])
        if len(rows) < len(begun):
            lines.append([(f"    {terminal.glyphs.dots} {len(begun) - len(rows):,} quicker steps", "dim")])
        return lines

    def _took(self, name: str) -> float:
        of_step = self._steps.get(name)
        return of_step.ended - of_step.began if of_step is not None else 0.0

    def _row(self, name: str, of_step: Counts) -> list[str]:
        times = self._steps.get(name)
        tasks = f"{sum(of_step):,}"
        if of_step.cloned:
            tasks = (
                f"{of_step.cloned:,} cloned"
                if of_step.cloned == sum(of_step)
                else f"{tasks}, {of_step.cloned:,} cloned"
            )
        if of_step.failed:
            tasks += f", {of_step.failed:,} failed"
        if times is None:
            return [tasks, "", ""]
        return [
            tasks,
            short(times.ended - times.began),
            short(times.total / times.count) if times.count > 1 else "",
        ]


def size(count: int) -> str:
    """Return a number of bytes as people read it: ``812 B``, ``1.4 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _state(of_step: Counts) -> str:
    if of_step.failed:
        return "failed"
    if of_step.cancelled:
        return "cancelled"
    return "succeeded" if of_step.succeeded + of_step.cloned == sum(of_step) else "pending"


def _joined(name: str, row: Sequence[str], name_width: int, wide: Sequence[int], indent: int = 4) -> str:
    cells_of_row = "".join(f"  {text:>{width}}" for text, width in zip(row, wide, strict=True))
    return (" " * indent + padded(name, name_width) + cells_of_row).rstrip()
