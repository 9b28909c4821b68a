"""``status RUN`` on a terminal: a run as the live display would show it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowkit.cli.run_view import RunView, StepView, draw
from flowkit.cli.session import Session
from flowkit.cli.table import one_line
from flowkit.metadata.records import RunRecord, StepRecord

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage

_MOST_STEPS = 1_000


def show_run(
    session: Session,
    storage: Storage,
    run: RunRecord,
    steps: Sequence[Mapping[str, Any]],
    begun: Mapping[str, StepRecord],
) -> None:
    """Print how a run stands.

    Parameters
    ----------
    session : Session
        The command.
    storage : Storage
        Tells how wide the foreaches of a run are that has not ended.
    run : RunRecord
        The run.
    steps : sequence of mapping
        Each with ``step`` and its tasks counted by state.
    begun : mapping of str to StepRecord
        The steps that have tasks.
    """
    now = time.time()
    views = []
    for step in steps:
        name = step["step"]
        known = {key: int(value) for key, value in step.items() if key != "step"}
        total = sum(known.values())
        if run.finished is None and total:
            total = max(total, _width(session, storage, run, name))
        known["pending"] = total - sum(known.values()) + known["pending"]
        views.append(StepView(one_line(name), **known, total=total, seconds=_seconds(begun.get(name), run, now)))
    seconds = (run.finished or now) - run.created if run.state != "lost" else None
    terminal = session.console.terminal
    view = RunView(one_line(f"{run.flow}/{run.run}"), run.state, seconds, views)
    session.console.lines(draw(view, terminal, terminal.size()[0] - 1, _MOST_STEPS))


def _seconds(step: StepRecord | None, run: RunRecord, now: float) -> float | None:
    if step is None:
        return None
    end = step.finished if step.finished is not None else run.finished if run.finished is not None else now
    return max(end - step.created, 0.0)


def _width(session: Session, storage: Storage, run: RunRecord, name: str) -> int:
    """Return how many tasks the foreach before a step starts; 0 where that is not to be told from one task."""
    from flowkit.datastore.manifests import read_manifest

    graph = session.definition.graph
    if name not in graph.nodes:
        return 0
    for source in graph[name].sources:
        opener = graph[source]
        if opener.kind in ("foreach", "parallel") and opener.depth == 0 and not opener.is_loop:
            manifest = read_manifest(storage, run.flow, run.run, source, "0", on_damage=lambda _: None)
            if manifest is not None:
                return manifest.transition.width or 0
    return 0
