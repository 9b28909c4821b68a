"""Runs in the datastore: how an id is claimed, what is recorded of a run, and which there are.

A run's id is a small number, claimed by creating its ``run.json``. A number is never used again: deleting a run leaves
a tombstone in that place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flowkit.datastore import layout
from flowkit.datastore.sealed import Damaged, create_sealed, read_sealed, seal, unseal
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import InvalidPathspec, StoreError
from flowkit.model.coordinates import valid_task_id
from flowkit.model.pathspec import check_part

_PATIENCE = 5
"""How many numbers in a row may be taken before the runs are listed."""
_TRIES = 20


def claim_run(
    storage: Storage, flow: str, record: dict[str, Any], reserve: Callable[[int], str | None] | None = None
) -> str:
    """Claim the next number of a flow by writing its ``run.json``, and return it.

    Parameters
    ----------
    record : dict
        Plain JSON values: who starts the run, when, from which origin. ``flow`` and ``run`` are added.
    reserve : callable, optional
        Gives the next number, not below a given one, where somebody numbers the runs of several datastores; None
        where that is out of reach, and the datastore gives the number itself.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    if reserve is not None:
        run = _claim_reserved(storage, flow, record, reserve)
        if run is not None:
            return run
    number = _hint(storage, flow)
    if number is None:
        number = _highest(storage, flow)
    taken = 0
    while True:
        number += 1
        run = str(number)
        if claim_named_run(storage, flow, run, record):
            _leave_hint(storage, flow, run)
            return run
        taken += 1
        if taken % _PATIENCE == 0:  # the hint was behind, or many runs begin at once
            number = max(number, _highest(storage, flow))


def _claim_reserved(
    storage: Storage, flow: str, record: dict[str, Any], reserve: Callable[[int], str | None]
) -> str | None:
    at_least = 1
    while (run := reserve(at_least)) is not None:
        if claim_named_run(storage, flow, run, record):
            if int(run) > (_hint(storage, flow) or 0):
                _leave_hint(storage, flow, run)
            return run
        at_least = max(int(run), _highest(storage, flow)) + 1  # runs from before there was somebody who numbers them
    return None


def _leave_hint(storage: Storage, flow: str, run: str) -> None:
    # Not replaced in one go: nothing depends on the hint, and some file systems flush to disk at a rename.
    storage.delete(layout.last_run_file(flow))
    storage.create(layout.last_run_file(flow), [run.encode()])


def claim_named_run(storage: Storage, flow: str, run: str, record: dict[str, Any]) -> bool:
    """Claim a given id, such as ``argo-train-x7k2``; False if it is taken."""
    return create_sealed(storage, layout.run_file(flow, run), {**record, "flow": flow, "run": run})


def read_run(storage: Storage, flow: str, run: str) -> dict[str, Any] | None:
    """Return what was recorded when a run began; None where there is no such run, or it was deleted.

    Raises
    ------
    Damaged
        If the record is damaged.
    """
    record = read_sealed(storage, layout.run_file(flow, run))
    return None if record is None or "deleted" in record else record


def bury_run(storage: Storage, flow: str, run: str, record: Mapping[str, Any] | None = None) -> None:
    """Put a tombstone in the place of a run's record: its number is not used again.

    Parameters
    ----------
    record : mapping, optional
        What was recorded when the run began. The tombstone keeps it until everything else of the run is gone, when it
        is replaced by one without: one with it tells that the deletion is not finished, or can be taken back.
    """
    body: dict[str, Any] = {"flow": flow, "run": run, "deleted": time.time()}
    if record is not None:
        body["record"] = dict(record)
    storage.replace(layout.run_file(flow, run), [seal(body)])


def raise_run(storage: Storage, flow: str, run: str, record: Mapping[str, Any]) -> None:
    """Put a run's record back in the place of its tombstone, before anything of the run was removed."""
    storage.replace(layout.run_file(flow, run), [seal(dict(record))])


def write_end(storage: Storage, flow: str, run: str, record: dict[str, Any]) -> None:
    """Record how a run ended, in the place of an earlier ending (a run that was taken over ends again)."""
    storage.replace(layout.end_file(flow, run), [seal(record)])


def change_end(
    storage: Storage, flow: str, run: str, change: Callable[[dict[str, Any] | None], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Record how a run ended where several may at once; return the record that stands.

    Parameters
    ----------
    change : callable
        Is given the record that is there (None for none, or a damaged one), and returns the one to put in its place,
        or None to leave it. It may be called again, where somebody else was quicker.

    Raises
    ------
    StoreError
        If it cannot be written, or others change it all the time.
    """
    path = layout.end_file(flow, run)
    for _ in range(_TRIES):
        try:
            found = storage.read_version(path)
        except Missing:
            wanted = change(None)
            if wanted is None or create_sealed(storage, path, wanted):
                return wanted
            continue
        try:
            stands: dict[str, Any] | None = unseal(found.content, path)
        except Damaged:
            stands = None
        wanted = change(stands)
        if wanted is None or storage.replace_version(path, seal(wanted), found.version):
            return stands if wanted is None else wanted
    raise StoreError(f"how the run {flow}/{run} ended is written by others all the time", "try again in a moment")


def read_end(storage: Storage, flow: str, run: str) -> dict[str, Any] | None:
    """Return how a run ended; None where it has not, or the record is damaged (then it is as if it had been killed)."""
    try:
        return read_sealed(storage, layout.end_file(flow, run))
    except Damaged:
        return None


def write_tags(storage: Storage, flow: str, run: str, tags: Iterable[str]) -> None:
    """Record a run's user tags, in the place of earlier ones, so that an index can be rebuilt with them."""
    storage.replace(layout.tags_file(flow, run), [seal({"tags": sorted(tags)})])


def read_tags(storage: Storage, flow: str, run: str) -> list[str] | None:
    """Return a run's user tags as last recorded; None where they never were changed, or the record is damaged."""
    try:
        record = read_sealed(storage, layout.tags_file(flow, run))
    except Damaged:
        return None
    return None if record is None else [str(tag) for tag in record.get("tags", [])]


def write_heartbeat(storage: Storage, flow: str, run: str, record: dict[str, Any]) -> None:
    """Note that a run's runtime is alive: ``when`` (seconds since the epoch), and what names its process."""
    storage.replace(layout.heartbeat_file(flow, run), [seal(record)])


def read_heartbeat(storage: Storage, flow: str, run: str) -> dict[str, Any] | None:
    """Return the last note of a run's runtime; None where there is none, or it is damaged."""
    try:
        return read_sealed(storage, layout.heartbeat_file(flow, run))
    except Damaged:
        return None


def list_flows(storage: Storage) -> list[str]:
    """Return the names of the flows that have runs, sorted."""
    return sorted(_names(storage, layout.FLOWS))


def list_runs(storage: Storage, flow: str) -> list[str]:
    """Return the ids of a flow's runs: numbers in their order, then names; deleted ones may be among them."""
    return sorted(_names(storage, layout.flow_folder(flow)), key=_order)


def list_steps(storage: Storage, flow: str, run: str) -> list[str]:
    """Return the steps of a run that have tasks or clones, sorted (with ``_parameters``)."""
    return sorted(name for name in _names(storage, layout.run_folder(flow, run)) if name.isidentifier())


def list_tasks(storage: Storage, flow: str, run: str, step: str) -> list[str]:
    """Return the tasks of a step that began in this run (clones are in `read_clones`), in index order."""
    names = storage.children(layout.step_folder(flow, run, step))
    return sorted((name for name in names if valid_task_id(name)), key=_task_order)


def newest_run(storage: Storage, flow: str) -> str | None:
    """Return the flow's highest number that was noted, or found where the note is missing; None where it has none."""
    number = _hint(storage, flow) or _highest(storage, flow)
    return str(number) if number else None


def _names(storage: Storage, folder: str) -> Iterable[str]:
    for name in storage.children(folder):
        try:
            yield check_part(name)
        except InvalidPathspec:  # a stranger's file, or one of flowkit's own that begins with a dot
            continue


def _order(run: str) -> tuple[int, int, str]:
    return (0, int(run), run) if _is_number(run) else (1, 0, run)


def _task_order(task: str) -> tuple[list[int], int]:
    body, _, turn = task.partition("-")
    return [int(index) for index in body.split(".")], int(turn or -1)


def _is_number(run: str) -> bool:
    return run.isascii() and run.isdigit() and len(run) <= 18 and (run == "0" or run[0] != "0")


def _hint(storage: Storage, flow: str) -> int | None:
    """Return the highest number that was noted, if a run really has it: a forged hint cannot skip numbers."""
    try:
        text = storage.read(layout.last_run_file(flow)).decode("ascii", "replace")
    except (Missing, StoreError):
        return None
    known = _is_number(text) and storage.info(layout.run_file(flow, text)) is not None
    return int(text) if known else None


def _highest(storage: Storage, flow: str) -> int:
    return max((int(run) for run in _names(storage, layout.flow_folder(flow)) if _is_number(run)), default=0)
