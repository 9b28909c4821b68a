"""Which runs exist for whom: checked on every object that a route reads or writes.

What a caller may not see is answered as if it were not there. A caller that is limited to projects may write the runs
of these projects only, and a new run of theirs must name one of them by a system tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from flowkit.exceptions import NotFound
from flowkit.metadata.records import Record, RunRecord
from flowkit.metadata_service.access import PROJECT_TAG, Caller, projects_of
from flowkit.metadata_service.problems import Forbidden
from flowkit.metadata_service.store import Beat, ServiceStore

_Run = tuple[str, str]


def visible_run(store: ServiceStore, caller: Caller, flow: str, run: str) -> RunRecord:
    """Return a run.

    Raises
    ------
    NotFound
        If there is none for this caller.
    """
    record = store.run(flow, run)
    if record is None or not caller.sees(record):
        raise NotFound(f"there is no run {flow}/{run}")
    return record


def visible_runs(store: ServiceStore, caller: Caller) -> Callable[[str, str], bool]:
    """Return what tells whether a run exists for a caller, and asks the database once for each."""
    known: dict[_Run, bool] = {}

    def seen(flow: str, run: str) -> bool:
        if caller.projects is None:
            return True
        if (flow, run) not in known:
            record = store.run(flow, run)
            known[flow, run] = record is not None and caller.sees(record)
        return known[flow, run]

    return seen


def check_writable(store: ServiceStore, caller: Caller, records: Iterable[Record]) -> None:
    """Refuse a batch with something that a caller may not write.

    Raises
    ------
    NotFound
        If a task's run does not exist for a caller that sees only some; for others the store finds that out.
    Forbidden
        If a run is new and in none of the caller's projects or in another one too, or there and in none of them.
    """
    if caller.projects is None:
        return
    ours: set[_Run] = set()
    for record in records:
        run = (record.flow, record.run)
        if run in ours:
            continue
        if isinstance(record, RunRecord):
            _check_run(store, caller, record)
        else:
            visible_run(store, caller, *run)
        ours.add(run)


def known_beats(store: ServiceStore, caller: Caller, beats: Sequence[Beat]) -> tuple[list[Beat], list[Beat]]:
    """Return the signs of life of runs that exist for a caller, and the others."""
    seen = visible_runs(store, caller)
    told = [(beat, seen(beat.flow, beat.run)) for beat in beats]
    return [beat for beat, there in told if there], [beat for beat, there in told if not there]


def _within(caller: Caller, record: RunRecord) -> bool:
    return caller.projects is None or set(projects_of(record)) <= set(caller.projects)


def _check_run(store: ServiceStore, caller: Caller, record: RunRecord) -> None:
    there = store.run(record.flow, record.run)
    # A new run in a second project would show up there, written by somebody who has no business there.
    if not caller.sees_any(projects_of(there or record)) or (there is None and not _within(caller, record)):
        projects = " or ".join(f"{PROJECT_TAG}{name}" for name in caller.projects or ())
        raise Forbidden(
            f"this token may not write the run {record.flow}/{record.run}",
            f"it writes runs with the system tag {projects}: @project gives it to a flow's runs",
        )
