"""A run as it stands, drawn for a terminal: by ``run`` and ``resume`` while it goes on, and by ``status``.

Pure: a `RunView` goes in, lines come out. Names in it are safe to show (`flowkit.cli.console.clean`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.cli.table import duration, short
from flowkit.cli.terminal import STATE_STYLES, Part, Terminal, cells, fit, padded, step_style

MOST_STEPS = 16
"""So many steps get a line of their own in a live display."""
_WIDEST_NAME = 28
_WIDEST_BAR = 30


class StepView(NamedTuple):
    """One step of a run.

    Parameters
    ----------
    name : str
        The step.
    pending, running, succeeded, failed, cancelled, cloned, lost : int
        Its tasks by what has become of them.
    total : int
        How many tasks it has, as far as that is known; at least the sum of the others.
    seconds : float or None
        How long it has taken.
    rate : float or None
        Tasks a second of late.
    """

    name: str
    pending: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    cloned: int = 0
    lost: int = 0
    total: int = 0
    seconds: float | None = None
    rate: float | None = None

    @property
    def done(self) -> int:
        """Tasks that have a result."""
        return self.succeeded + self.cloned

    @property
    def state(self) -> str:
        """The state of the step as a whole."""
        if self.failed:
            return "failed"
        if self.running:
            return "running"
        if self.lost:
            return "lost"
        if self.cancelled:
            return "cancelled"
        if self.total and self.done >= self.total:
            return "succeeded"
        return "pending"


class RunView(NamedTuple):
    """One run.

    Parameters
    ----------
    title : str
        ``Flow/run``.
    state : str
        How it stands.
    seconds : float or None
        How long it has taken.
    steps : sequence of StepView
        In the order of the flow.
    expected : float or None
        How long earlier runs took, in seconds.
    note : str
        One more line, such as the next retry.
    """

    title: str
    state: str
    seconds: float | None
    steps: Sequence[StepView]
    expected: float | None = None
    note: str = ""


def draw(view: RunView, terminal: Terminal, width: int, most_steps: int = MOST_STEPS) -> list[list[Part]]:
    """Return a run as lines of parts, at most `most_steps` and 4 of them.

    Parameters
    ----------
    view : RunView
        The run.
    terminal : Terminal
        Its characters are used.
    width : int
        Columns; what does not fit is left out, the least important first.
    most_steps : int
        Where there are more steps, those are shown where something happens.
    """
    shown = _shown(view.steps, max(most_steps, 1))
    widest = max((cells(view.steps[place].name) for place in shown), default=0)
    name_width = min(widest, _WIDEST_NAME, max(width // 3, 8))
    lines = [_head(view, terminal, width)]
    lines += [_step(view.steps[place], place, terminal, width, name_width) for place in shown]
    if len(shown) < len(view.steps):
        lines.append(_others(view.steps, set(shown), terminal))
    if view.note:
        lines.append([(f"   {view.note}", "yellow")])
    return lines


def mark(state: str, terminal: Terminal) -> Part:
    """Return the sign of a state."""
    glyphs = terminal.glyphs
    sign = {
        "succeeded": glyphs.done,
        "running": glyphs.running,
        "failed": glyphs.failed,
        "lost": glyphs.failed,
        "cancelled": glyphs.failed,
    }.get(state, glyphs.waiting)
    return sign, STATE_STYLES.get(state, "")


def _head(view: RunView, terminal: Terminal, width: int) -> list[Part]:
    parts: list[Part] = [mark(view.state, terminal), (f" {view.title}", "bold"), (f" {view.state}", "")]
    facts = []
    if view.seconds is not None:
        took = duration(view.seconds) if view.state != "running" else duration(int(view.seconds)).replace(".0 ", " ")
        usual = view.expected
        if usual is not None and usual >= 1:
            about = duration(round(usual)).replace(".0 ", " ")
            took += f" of about {about}" if view.seconds <= usual else f", usually {about}"
        facts.append(took)
    done = sum(step.done for step in view.steps)
    failed = sum(step.failed for step in view.steps)
    facts.append(f"{done:,} {'task' if done == 1 else 'tasks'} done")
    if failed:
        facts.append(f"{failed:,} failed")
    return [*parts, *_fitting(facts, terminal, width - sum(cells(text) for text, _ in parts))]


def _step(step: StepView, place: int, terminal: Terminal, width: int, name_width: int) -> list[Part]:
    name = padded(fit(step.name, name_width, terminal.glyphs.dots), name_width)
    parts: list[Part] = [(" ", ""), mark(step.state, terminal), (f" {name}", step_style(place))]
    room = width - name_width - 3
    if step.total > 1:
        bar_width = min(_WIDEST_BAR, room - 34)
        if bar_width >= 6:
            parts += [(" ", ""), *_bar(step, terminal, bar_width)]
            room -= bar_width + 1
    return [*parts, *_fitting(_facts(step), terminal, room)]


def _facts(step: StepView) -> list[str]:
    """Return what there is to say of a step, the most important first."""
    if step.total <= 1:
        counts = [f"{step.cloned} cloned" if step.cloned else ""]
        counts += [name for name in ("failed", "cancelled", "lost") if getattr(step, name)]
        counts += [short(step.seconds) if step.seconds is not None else ""]
        return [fact for fact in counts if fact]
    facts = [f"{step.done:,}/{step.total:,}"]
    for name in ("failed", "running"):
        if getattr(step, name):
            facts.append(f"{getattr(step, name):,} {name}")
    left = step.total - step.done - step.failed - step.cancelled - step.lost
    if step.rate and step.rate >= 0.001:
        facts.append(_rate(step.rate))
        if left > 0:
            facts.append(f"{duration(round(left / step.rate)).replace('.0 ', ' ')} left")
    for name in ("cloned", "pending", "cancelled", "lost"):
        if getattr(step, name):
            facts.append(f"{getattr(step, name):,} {name}")
    if not step.rate and step.seconds is not None:
        facts.append(short(step.seconds))
    return facts


def _rate(rate: float) -> str:
    if rate < 1:
        return f"{rate * 60:.1f}/min"
    return f"{rate:,.0f}/s" if rate >= 9.95 else f"{rate:.1f}/s"


def _fitting(facts: Sequence[str], terminal: Terminal, room: int) -> list[Part]:
    """Return as many facts as there is room for, with dots between them."""
    parts: list[Part] = []
    between = "  "
    for fact in facts:
        size = cells(fact) + len(between)
        if size > room:
            break
        room -= size
        style = "red" if fact.endswith(("failed", "lost")) else "" if not parts else "dim"
        parts += [(between, ""), (fact, style)]
        between = f" {terminal.glyphs.dot} "
    return parts


def _bar(step: StepView, terminal: Terminal, width: int) -> list[Part]:
    """Return a bar: what is done, what failed, what is left."""
    failed = step.failed + step.cancelled + step.lost
    done_width = step.done * width // step.total
    failed_width = min(max(1, failed * width // step.total), width - done_width) if failed else 0
    rest = width - done_width - failed_width
    done_style = "green" if step.done == step.total else "cyan"
    glyphs = terminal.glyphs
    return [(glyphs.full * done_width, done_style), (glyphs.full * failed_width, "red"), (glyphs.empty * rest, "dim")]


def _shown(steps: Sequence[StepView], most: int) -> list[int]:
    """Return which steps to show: those where something happens, then what has just ended, then what comes next."""
    if len(steps) <= most:
        return list(range(len(steps)))
    busy = [place for place, step in enumerate(steps) if step.running or step.failed or step.lost]
    chosen = set(busy[:most])
    last_begun = max((place for place, step in enumerate(steps) if step.total), default=0)
    for distance in range(len(steps)):
        for place in (last_begun - distance, last_begun + distance + 1):
            if len(chosen) >= most:
                return sorted(chosen)
            if 0 <= place < len(steps):
                chosen.add(place)
    return sorted(chosen)


def _others(steps: Sequence[StepView], shown: set[int], terminal: Terminal) -> list[Part]:
    states = [step.state for place, step in enumerate(steps) if place not in shown]
    counted = [f"{states.count(state):,} {state}" for state in dict.fromkeys(states)]
    more = f"{len(states):,} more {'step' if len(states) == 1 else 'steps'}"
    return [(f" {terminal.glyphs.dots} {more}: {', '.join(counted)}", "dim")]
