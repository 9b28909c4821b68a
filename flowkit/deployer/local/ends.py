"""Which runs of other flows have succeeded since the last look (``@trigger_on_finish``): pure rules.

Runs are noticed by what is known of them, whoever started them: a run that ends needs to tell nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flowkit.deployer.local.firings import FlowWatch, Happened, Plan
from flowkit.deployer.target import EventPlan

LOOK_BACK = 3_600.0
"""Seconds before the newest run that is known in which another may still turn up: machines have their own clocks."""
MOST_OPEN = 500
"""Runs of one flow that go on, of which so many of the newest are watched: those that were lost long ago are not."""
_OVER = frozenset({"succeeded", "failed", "cancelled"})


class Ended(NamedTuple):
    """A run of a flow that is waited for: its id, when it was made, its state, when it ended, its system tags."""

    run: str
    created: float
    state: str
    finished: float | None
    tags: tuple[str, ...] = ()


def look(
    plan: Plan, event: EventPlan, watch: FlowWatch, runs: Iterable[Ended], now: float
) -> tuple[FlowWatch, list[Happened]]:
    """Return which runs have succeeded since the last look, the first to end first.

    Parameters
    ----------
    plan : Plan
    event : EventPlan
        The flow's end.
    watch : FlowWatch
        What is known.
    runs : iterable of Ended
        Those of the flow that were made after `horizon`, the newest first, and all of ``watch.open`` that there still
        are.
    now : float
    """
    happened, still, seen, newest = [], [], dict(watch.seen), watch.since
    for run in runs:
        newest = max(newest, min(run.created, now))
        if run.run in seen:
            continue
        if run.state not in _OVER:
            still.append(run.run)
            continue
        seen[run.run] = run.created
        over = run.finished if run.finished is not None else run.created
        if run.state == "succeeded" and over >= plan.created and _belongs(event, run.tags):
            happened.append(Happened(event.name, f"{event.flow}/{run.run}", over, "run"))
    edge = newest - 2 * LOOK_BACK
    kept = {run: created for run, created in seen.items() if created >= edge}
    happened.sort(key=lambda each: (each.when, each.id))
    return FlowWatch(newest, tuple(still[:MOST_OPEN]), kept), happened


def put_back(watch: FlowWatch, runs: Sequence[str]) -> FlowWatch:
    """Return what is known as if the ends of some runs had not been seen: there is no room for them yet."""
    seen = {run: created for run, created in watch.seen.items() if run not in runs}
    return watch._replace(open=(*watch.open, *(run for run in runs if run not in watch.open)), seen=seen)


def horizon(watch: FlowWatch) -> float:
    """Return since when runs have to be looked at."""
    return watch.since - LOOK_BACK


def _belongs(event: EventPlan, tags: Sequence[str]) -> bool:
    """Whether a run is one of the project and branch that are waited for: of none, where none is."""
    wanted = {f"project:{event.project}", f"project_branch:{event.branch}"} if event.project else set()
    return wanted <= set(tags)
