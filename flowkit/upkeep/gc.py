"""Cleaning a datastore: runs that the rules let go, blobs that nothing names, what killed writers left."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from flowkit.datastore.layout import UPKEEP, sweep_file, upkeep_lease
from flowkit.datastore.storage import Storage
from flowkit.datastore.sweeping import SHORTEST_GRACE
from flowkit.exceptions import StoreError, UsageError
from flowkit.metadata.store import MetadataStore
from flowkit.upkeep.deletion import Doomed, Kept, Plan, Removed, carry_out, make_plan
from flowkit.upkeep.retention import Rules
from flowkit.upkeep.sweep import GRACE, Unused, count_unused, sweep
from flowkit.upkeep.turn import take_turn


class Cleaned(NamedTuple):
    """What a cleaning removes, or would remove.

    Parameters
    ----------
    runs : tuple of Doomed
        The runs, each with why.
    kept : tuple of Kept
        Runs that the rules let go and that stay, each with why.
    removed : Removed
        The runs in numbers: how many, their tasks, the bytes of their objects.
    unused : Unused
        Blobs that nothing names, or nothing but the runs that go.
    unfinished : Unused
        Half-written files (or uploads) that killed writers left.
    """

    runs: tuple[Doomed, ...]
    kept: tuple[Kept, ...]
    removed: Removed
    unused: Unused
    unfinished: Unused


def preview(
    storage: Storage,
    store: MetadataStore,
    rules: Rules,
    grace: float = GRACE,
    told: Callable[[str], None] = lambda _: None,
) -> Cleaned:
    """Return what `clean` would remove; nothing is changed.

    Blobs of the runs that would go are counted where nothing else names them.
    """
    plan = make_plan(storage, store, rules, time.time())
    before = time.time() - _checked(grace)
    unused = count_unused(storage, before, {each.facts.name for each in plan.doomed})
    return _cleaned(plan, _numbers(plan), unused, _half_written(storage, before, False, told))


def clean(
    storage: Storage,
    store: MetadataStore,
    rules: Rules,
    grace: float = GRACE,
    told: Callable[[str], None] = lambda _: None,
) -> Cleaned:
    """Remove the runs that the rules let go, then the blobs that nothing names.

    It may run beside anything else, on any machine, and be killed at any point: the next one goes on.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore
        Its index, which forgets the runs.
    rules : Rules
        What may go.
    grace : float, default one day
        Seconds since they were written or last asked for during which blobs and half-written files are spared.
    told : callable, optional
        Is given lines of progress.

    Raises
    ------
    Conflict
        If another process cleans the same datastore.
    UsageError
        If the grace period is too short to be safe.
    StoreError
        If anything cannot be listed, read or removed.
    """
    _checked(grace)
    turn = take_turn(storage, told)
    try:
        storage.delete(sweep_file())  # of one that was killed
        plan = make_plan(storage, store, rules, time.time())
        removed = carry_out(storage, store, plan, turn.keep, told)
        info = storage.info(upkeep_lease())
        started = time.time() if info is None else info.modified  # by the clock that stamps the blobs
        before = started - grace
        unused = sweep(storage, before, started, turn.keep, told)
        turn.keep()
        unfinished = _half_written(storage, before, True, told)
        storage.prune(f"{UPKEEP}/candidates")
    finally:
        with suppress(StoreError):  # then it ends by itself
            turn.release()
    return _cleaned(plan, removed, unused, unfinished)


def _half_written(storage: Storage, before: float, remove: bool, told: Callable[[str], None]) -> Unused:
    try:
        left = storage.unfinished(before, remove=remove)
    except StoreError as error:  # on S3 that takes a permission of its own, which few have
        told(f"half-written files could not be looked at: {error.headline}")
        return Unused()
    return Unused(len(left), sum(each.size for each in left))


def _checked(grace: float) -> float:
    if grace < SHORTEST_GRACE:
        raise UsageError(
            f"a grace period of {grace:g} s is too short: a task that is about to commit would lose its artifacts",
            f"at least {SHORTEST_GRACE / 3600:g}h; the default is {GRACE / 3600:g}h",
        )
    return grace


def _numbers(plan: Plan) -> Removed:
    facts = [each.facts for each in plan.doomed]
    return Removed(len(facts), sum(each.tasks for each in facts), sum(each.size for each in facts))


def _cleaned(plan: Plan, removed: Removed, unused: Unused, unfinished: Unused) -> Cleaned:
    return Cleaned(tuple(plan.doomed), tuple(plan.kept), removed, unused, unfinished)
