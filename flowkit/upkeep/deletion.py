"""Removing runs: which ones go, and how, so that nothing that stays misses anything.

A run stays, whatever the rules say, while somebody may be working on it, and while a run that stays reads its tasks:
a resumed run names the tasks that it took over and does not copy them.

A run goes in steps, each of which may be the last if the process is killed: the next sweep goes on from there.

1. Its ``run.json`` becomes a tombstone that keeps the record. From now on nobody can resume it or take it over.
2. All runs are listed again. One that began meanwhile and resumes it, or an owner that took it over meanwhile, gets it
   back as it was. A resume claims its own run *before* it looks whether its origin still stands
   (`flowkit.runtime.start.begin`), so that one of the two always sees the other.
3. Its objects are removed, its record in the index, and last the record in the tombstone. The tombstone stays: the
   number is never used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from flowkit.datastore.layout import data_folder, run_file, run_folder
from flowkit.datastore.many import paired_with
from flowkit.datastore.runs import bury_run, list_flows, list_runs, raise_run, read_run
from flowkit.datastore.sealed import Damaged, read_sealed
from flowkit.datastore.storage import Storage
from flowkit.exceptions import Conflict, NotFound
from flowkit.metadata.store import MetadataStore
from flowkit.upkeep.census import RunFacts, census, indexed, is_of, needed_runs, why_alive, why_held
from flowkit.upkeep.retention import Rule, Rules, chosen, old_enough


class Doomed(NamedTuple):
    """A run that is to go, and why."""

    facts: RunFacts
    why: str


class Kept(NamedTuple):
    """A run that would go, and why it does not."""

    facts: RunFacts
    why: str


@dataclass(slots=True)
class Plan:
    """What is to become of the runs of a datastore.

    Attributes
    ----------
    doomed : list of Doomed
        What goes.
    kept : list of Kept
        What the rules let go, and stays all the same.
    runs : dict of str to RunFacts
        All there are, by ``Flow/run``.
    """

    doomed: list[Doomed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    runs: dict[str, RunFacts] = field(default_factory=dict)


class Removed(NamedTuple):
    """What was removed: runs, tasks, bytes of their objects."""

    runs: int = 0
    tasks: int = 0
    size: int = 0


def make_plan(storage: Storage, store: MetadataStore, rules: Rules, now: float) -> Plan:
    """Decide which runs go; nothing is changed.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore
        Its index, for the heartbeats.
    rules : Rules
        What may go.
    now : float
        Seconds since the epoch.

    Raises
    ------
    StoreError
        If anything cannot be listed or read.
    """
    plan = Plan(runs={facts.name: facts for facts in census(storage)})
    doomed: dict[str, Doomed] = {}
    for flow, runs in groupby(sorted(plan.runs.values(), key=lambda facts: facts.flow), lambda facts: facts.flow):
        rule = rules.of(flow)
        for facts, why in _of_flow(list(runs), rule, now):
            if not facts.unfinished and not _tagged_as_asked(storage, store, facts, rule):
                continue
            alive = None if facts.state == "deleted" else why_alive(storage, store, facts, now)
            if alive is None:
                doomed[facts.name] = Doomed(facts, why)
            else:
                plan.kept.append(Kept(facts, alive))
    stay = [facts for name, facts in plan.runs.items() if name not in doomed]
    for name, reader in _readers(storage, stay, doomed):
        plan.kept.append(Kept(doomed.pop(name).facts, f"{reader} has tasks of it"))
    plan.doomed = list(doomed.values())
    return plan


def plan_one(storage: Storage, store: MetadataStore, flow: str, run: str, now: float) -> Plan:
    """Decide whether one run can go, whatever the rules say.

    Raises
    ------
    NotFound
        If there is no such run.
    Conflict
        If somebody works on it, or a run that stays has tasks of it.
    """
    plan = make_plan(storage, store, Rules(flows={flow: Rule(keep=0)}, only=flow), now)
    facts = plan.runs.get(f"{flow}/{run}")
    if facts is None or (facts.state == "deleted" and not facts.unfinished):
        raise NotFound(f"there is no run {flow}/{run}", "flowkit status lists the flows, and their latest runs")
    others = [each for each in plan.runs.values() if each is not facts]
    why = why_alive(storage, store, facts, now) if facts.state != "deleted" else None
    for _, reader in _readers(storage, others, {facts.name: Doomed(facts, "")}):
        why = f"{reader} has tasks of it"
    if why is not None:
        raise Conflict(f"run {facts.name} cannot be removed: {why}")
    return Plan([Doomed(facts, "asked for")], [], plan.runs)


def carry_out(
    storage: Storage, store: MetadataStore, plan: Plan, keep_turn: Callable[[], None], told: Callable[[str], None]
) -> Removed:
    """Remove the runs of a plan.

    Parameters
    ----------
    storage, store
        The datastore and its index.
    plan : Plan
        What goes; a run that turns out to be needed after all is put back, and moves to what is kept.
    keep_turn : callable
        Is called before every step: raises where this process may not go on.
    told : callable
        Is given a line for each run that is gone.

    Raises
    ------
    StoreError
        If anything cannot be removed; what was begun is finished by the next sweep.
    """
    buried: dict[str, Doomed] = {}
    for doomed in plan.doomed:
        keep_turn()
        if _bury(storage, doomed.facts):
            buried[doomed.facts.name] = doomed
    for name, why in _needed_after_all(storage, store, plan, buried):
        doomed = buried.pop(name)
        _put_back(storage, doomed.facts)
        plan.kept.append(Kept(doomed.facts, why))
    plan.doomed = list(buried.values())
    runs = tasks = size = 0
    for facts, _ in plan.doomed:
        _remove(storage, store, facts, keep_turn)
        runs, tasks, size = runs + 1, tasks + facts.tasks, size + facts.size
        told(f"removed {facts.name}")
    return Removed(runs, tasks, size)


def _of_flow(runs: list[RunFacts], rule: Rule, now: float) -> Iterator[tuple[RunFacts, str]]:
    for facts in runs:
        if facts.unfinished:
            yield facts, "its removal was begun before"
    for facts, why in chosen(runs, rule):
        if old_enough(facts, rule, now):
            yield facts, why


def _tagged_as_asked(storage: Storage, store: MetadataStore, facts: RunFacts, rule: Rule) -> bool:
    """Whether the index agrees on the tags of a run that would go: a service may have changed them since."""
    if not rule.keep_tags and not rule.only_tags:
        return True
    known = indexed(storage, store, facts)
    tags = set() if known is None else {*known.tags, *known.system_tags}
    return known is None or (not tags & set(rule.keep_tags) and tags >= set(rule.only_tags))


def _readers(storage: Storage, stay: list[RunFacts], doomed: dict[str, Doomed]) -> Iterator[tuple[str, str]]:
    """Yield each doomed run that runs which stay need, and one that does; what these need is needed, too."""
    if not doomed:
        return
    readers = [facts for facts in stay if facts.state != "deleted"]  # a tombstone reads nothing
    needed: set[str] = set()
    while readers:
        found: list[RunFacts] = []
        for reader, names in paired_with(storage, lambda facts: needed_runs(storage, facts), readers):
            for name in names:
                if name in doomed and name not in needed:
                    needed.add(name)
                    found.append(doomed[name].facts)
                    yield name, reader.name
        readers = found


def _bury(storage: Storage, facts: RunFacts) -> bool:
    """Put a tombstone in a run's place; False where nobody can tell any more what it was."""
    if facts.state == "deleted":
        return True
    record = read_run(storage, facts.flow, facts.run)
    if record is None:
        return False
    bury_run(storage, facts.flow, facts.run, record)
    return True


def _put_back(storage: Storage, facts: RunFacts) -> None:
    tombstone = read_sealed(storage, run_file(facts.flow, facts.run)) or {}
    record = tombstone.get("record")
    if isinstance(record, dict):
        raise_run(storage, facts.flow, facts.run, record)


def _needed_after_all(
    storage: Storage, store: MetadataStore, plan: Plan, buried: dict[str, Doomed]
) -> Iterator[tuple[str, str]]:
    """Yield the buried runs that somebody has begun to work on or to resume since the plan was made, with why."""
    if not buried:
        return
    found: dict[str, str] = {}
    for name, doomed in buried.items():
        held = why_held(storage, store, doomed.facts) if doomed.facts.state != "deleted" else None
        if held is not None:
            found[name] = held
    waiting = [buried[name].facts for name in found]
    for flow in list_flows(storage):
        for run in list_runs(storage, flow):
            if f"{flow}/{run}" not in plan.runs:
                origin = _origin_of(storage, flow, run)
                if origin in buried and origin not in found:
                    found[origin] = f"{flow}/{run} resumes it"
                    waiting.append(buried[origin].facts)
    for name, reader in _readers(storage, waiting, {name: each for name, each in buried.items() if name not in found}):
        found[name] = f"{reader} has tasks of it"
    yield from found.items()


def _origin_of(storage: Storage, flow: str, run: str) -> str:
    try:
        record = read_run(storage, flow, run)
    except Damaged:
        record = None
    return str((record or {}).get("origin") or "")


def _remove(storage: Storage, store: MetadataStore, facts: RunFacts, keep_turn: Callable[[], None]) -> None:
    tombstone = run_file(facts.flow, facts.run)

    def paths() -> Iterator[str]:
        for folder in (run_folder(facts.flow, facts.run), data_folder(facts.flow, facts.run)):
            for count, entry in enumerate(storage.walk(folder)):
                if not count % 100:
                    keep_turn()
                if entry.path != tombstone:
                    yield entry.path

    storage.delete_all(paths())
    storage.prune(run_folder(facts.flow, facts.run))
    storage.prune(data_folder(facts.flow, facts.run))
    if not store.shared or indexed(storage, store, facts) is not None:
        store.forget(facts.flow, facts.run)
    store.withdraw(facts.flow, facts.run, is_of(storage, facts))
    bury_run(storage, facts.flow, facts.run)
