"""Who shows a run: a live display on a terminal, else the console with a line for each event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flowkit.cli.session import Session
from flowkit.exceptions import StoreError
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.runtime.decisions import Counts
from flowkit.runtime.reporter import Reporter

_RUNS = 9


class Watcher(Reporter, Protocol):
    """A reporter that has the last word, too."""

    def run_ended(self, state: str, reason: str | None, seconds: float, counts: Mapping[str, Counts]) -> None:
        """The run is over: how, why, after how long, and with how many tasks of each step."""


def watch(session: Session, store: MetadataStore, *, again: bool, plain: bool = False) -> Watcher:
    """Return who shows a run.

    Parameters
    ----------
    session : Session
        The command.
    store : MetadataStore
        Knows how long earlier runs took; asked only if the run goes on for a while.
    again : bool
        The run resumes another: it does only a part of the work, and what whole runs took says nothing of it.
    plain : bool, default False
        Tasks have the terminal: no display that is drawn over and over.
    """
    console, definition = session.console, session.definition
    if console.quiet or plain or not console.terminal.live:
        return console
    from flowkit.cli.live import LiveDisplay

    def expected() -> float | None:
        return None if again else usual_time(store, definition.name)

    return LiveDisplay(console, console.terminal, definition.graph.order(), session.program, expected)


def usual_time(store: MetadataStore, flow: str) -> float | None:
    """Return how long runs of a flow take: the median of the last ones that succeeded and were no resumes."""
    try:
        runs = store.runs(flow, RunFilter(status="succeeded", limit=_RUNS))
    except StoreError:
        return None
    took = sorted(run.finished - run.created for run in runs if run.finished is not None and run.origin is None)
    return took[len(took) // 2] if took else None
