"""From a decision to a process: which of the firings that were decided are to be started now. Pure rules.

Before a run is started, that it may have been is written down (`Firing.tries`). Whether it was is told by its record in
the datastore only: a scheduler that finds a firing without one starts it again, a little later, and of two processes
with the same run id one begins the run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from flowkit.deployer.local.firings import CLOCK_BACK, PAUSES, RECENT, TRIES, Decision, Firing, Memory

PATIENCE = 300.0
"""Seconds for which a run that replaces another waits for that one's end."""


def ready(
    memory: Memory, now: float, ours: Collection[str] = (), room: int | None = None
) -> tuple[Memory, list[Firing]]:
    """Return the firings that are to be started at a moment, once what is returned with them is written down.

    Parameters
    ----------
    memory : Memory
    now : float
    ours : collection of str
        Runs whose process is alive: they are not started again, however long they take to begin.
    room : int, optional
        How many runs there is room for; the others wait.
    """
    chosen: list[Firing] = []
    kept: list[Firing] = []
    begun = {*memory.active, *(each.run for each in memory.decided if each.tries)}
    for firing in memory.decided:
        waits = now - firing.decided < PATIENCE and not begun.isdisjoint(firing.after)
        full = room is not None and len(chosen) >= room and not firing.tries
        # A time that is further away than any pause is one of a clock that was ahead.
        pauses = now < firing.not_before <= now + CLOCK_BACK
        if firing.run in ours or pauses or waits or full:
            kept.append(firing)
            continue
        pause = PAUSES[min(firing.tries, len(PAUSES) - 1)]
        firing = firing._replace(tries=firing.tries + 1, not_before=now + pause)
        chosen.append(firing)
        kept.append(firing)
    return (replace(memory, decided=tuple(kept)) if chosen else memory), chosen


def began(memory: Memory, runs: Collection[str], now: float) -> Memory:
    """Return what is remembered once some runs are known to have begun."""
    if not runs:
        return memory
    active = {**memory.active, **{each.run: now for each in memory.decided if each.run in runs}}
    return replace(memory, decided=tuple(each for each in memory.decided if each.run not in runs), active=active)


def over(memory: Memory, runs: Collection[str]) -> Memory:
    """Return what is remembered once some runs are over."""
    if not runs:
        return memory
    return replace(memory, active={run: when for run, when in memory.active.items() if run not in runs})


class Failure(NamedTuple):
    """How processes of a run ended before it had begun: how often, the last one's words, whether it was refused."""

    times: int
    words: str
    refused: bool = False


def given_up(memory: Memory, failed: Mapping[str, Failure], now: float, ours: Collection[str] = ()) -> Decision:
    """Return what is remembered without the firings that cannot begin.

    Parameters
    ----------
    memory : Memory
    failed : mapping
        Of the runs whose processes this scheduler has seen to end before the run had begun. That one was started by a
        scheduler which was killed then is no failure of it.
    now : float
    ours : collection of str
        Runs whose process is alive.
    """
    hopeless: dict[str, str] = {}
    for firing in memory.decided:
        failure = failed.get(firing.run)
        if failure is None or firing.run in ours:
            continue
        if failure.refused:
            hopeless[firing.run] = failure.words
        elif failure.times >= TRIES:
            hopeless[firing.run] = f"it did not begin, started {failure.times} times: {failure.words}"
    if not hopeless:
        return Decision(memory)
    kept = tuple(each for each in memory.decided if each.run not in hopeless)
    ended = (*memory.ended, *((run, why, now) for run, why in hopeless.items()))[-RECENT:]
    notes = tuple(f"{run} was not run: {why}" for run, why in hopeless.items())
    return Decision(replace(memory, decided=kept, ended=ended), notes)
