"""The resume plan: which tasks of an earlier run are taken over, which run, and why.

A pure function of the origin's commits and today's graph. It rehearses the run: the scheduler that will run the flow
is started with every usable task of the origin finishing at once, and whatever it then waits for is what runs
first. So a task is cloned exactly if every task before it is: descendants of what reruns never are, the missing
children of a foreach run alone, and a loop goes on after its last turn.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from flowkit.exceptions import InvalidPathspec, UsageError, did_you_mean
from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.graph import Graph
from flowkit.model.transition import Transition
from flowkit.runtime.decisions import contradiction
from flowkit.runtime.scheduler import Scheduler


class OriginTask(NamedTuple):
    """What the plan needs to know of one committed task of the origin run.

    Parameters
    ----------
    transition : Transition
        Where it went, from its manifest.
    gang : int
        For the control task of a gang: the number of nodes that it committed.
    origin : str or None
        ``Flow/run`` that really holds it, where the origin run took it over from an earlier one itself.
    code : str or None
        The hash of its step's source at that time.
    """

    transition: Transition
    gang: int = 0
    origin: str | None = None
    code: str | None = None


class PlanLine(NamedTuple):
    """Tasks of one step that share a fate and a reason.

    Parameters
    ----------
    step : str
        The step.
    action : str
        ``clone``, ``run``, or ``drop`` (a result of the origin that the flow has no use for any more).
    tasks : tuple of Span
        Which ones, in index order; empty where that depends on what the run will do.
    total : int or None
        How many; None where that depends on what the run will do.
    reason : str
        Why, for people.
    """

    step: str
    action: Literal["clone", "run", "drop"]
    tasks: tuple[Span, ...]
    total: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return {**self._asdict(), "tasks": [str(span) for span in self.tasks]}


@dataclass(slots=True)
class Plan:
    """What a resume will do.

    Parameters
    ----------
    origin : str
        ``Flow/run`` that it resumes.
    rerun : str or None
        The step that was asked to run again.
    clones : dict of str to dict of str to str
        Step, task id: the ``Flow/run`` whose manifest stands in for the task (always where it was really
        written). A gang is there with all its nodes or not at all.
    transitions : dict of str to dict of str to Transition
        Step, task id: the `clones` argument of `Scheduler`.
    lines : list of PlanLine
        The listing, in the order of the flow's source; for each step the cloned tasks first.
    changed : tuple of str
        Steps whose source differs from the one that made their cloned tasks.
    """

    origin: str
    rerun: str | None
    clones: dict[str, dict[str, str]] = field(default_factory=dict)
    transitions: dict[str, dict[str, Transition]] = field(default_factory=dict)
    lines: list[PlanLine] = field(default_factory=list)
    changed: tuple[str, ...] = ()

    @property
    def cloned(self) -> int:
        """How many tasks are cloned."""
        return sum(map(len, self.clones.values()))

    @property
    def nothing_to_run(self) -> bool:
        """Whether the origin is complete and everything of it is cloned."""
        return not any(line.action == "run" for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values, for ``resume --plan --json``."""
        return {
            "origin": self.origin,
            "rerun": self.rerun,
            "cloned": self.cloned,
            "changed": list(self.changed),
            "plan": [line.to_json() for line in self.lines],
        }


def plan(
    graph: Graph,
    origin: Mapping[tuple[str, str], OriginTask],
    rerun: str | None = None,
    *,
    run: str = "the origin run",
    states: Mapping[tuple[str, str], str] | None = None,
    code: Mapping[str, str] | None = None,
) -> Plan:
    """Decide what a resume takes over and what it runs; linear in steps and tasks.

    Parameters
    ----------
    graph : Graph
        The flow as it is now.
    origin : mapping of (step, task id) to OriginTask
        The committed tasks of the origin run, those that it had cloned itself included.
    rerun : str, optional
        A step that runs again, with everything downstream of it, whatever became of it.
    run : str
        ``Flow/run`` of the origin.
    states : mapping of (step, task id) to str, optional
        How tasks without a commit ended (``failed``, ``cancelled``, ``lost``, …): only the reasons use it.
    code : mapping of str to str, optional
        The hash of each step's source now.

    Raises
    ------
    UsageError
        If the flow has no step `rerun`.
    """
    if rerun is not None and rerun not in graph.nodes:
        raise UsageError(f"{graph.flow} has no step '{rerun}' to resume from", did_you_mean(rerun, graph.nodes))
    excluded = graph.downstream(rerun) if rerun is not None else set()
    rehearsal = _Rehearsal(graph, origin, excluded, run)
    rehearsal.start()
    known = code or {}
    changed = tuple(step for step in graph.nodes if _differs(rehearsal.codes.get(step), known.get(step)))
    out = Plan(run, rerun, rehearsal.taken, rehearsal.transitions, changed=changed)
    out.lines = _listing(graph, origin, rehearsal, _Reasons(rehearsal, excluded, rerun, run, states))
    return out


class _Rehearsal(Scheduler):
    """The scheduler of the run to come, which notes what it takes from the origin and what it refuses."""

    def __init__(
        self, graph: Graph, origin: Mapping[tuple[str, str], OriginTask], excluded: set[str], run: str
    ) -> None:
        usable: dict[str, dict[str, OriginTask]] = {}
        for (step, task), entry in origin.items():
            if step in graph.nodes and step not in excluded:
                usable.setdefault(step, {})[task] = entry
        # The clones themselves are told by `clone_of`; here it only counts which steps have some.
        super().__init__(graph, {}, max_width=sys.maxsize, clones={step: {} for step in usable})
        self._usable = usable
        self._run = run
        self.taken: dict[str, dict[str, str]] = {}
        self.transitions: dict[str, dict[str, Transition]] = {}
        self.refused: dict[TaskRef, str] = {}
        self.spans: dict[str, _Spans] = {}
        self.codes: dict[str, set[str | None]] = {}

    def clone_of(self, ref: TaskRef, gang: int) -> Transition | None:
        """Take a task from the origin, where it fits today's graph and its gang is whole."""
        usable = self._usable.get(ref.step, {})
        task = str(ref.coordinates)
        entry = usable.get(task)
        if entry is None:
            return None
        wrong = contradiction(self.graph.nodes[ref.step], entry.transition)
        if wrong is not None:
            self.refused[ref] = f"the flow has changed: {wrong}"
            return None
        if entry.gang != gang:
            self.refused[ref] = f"its gang had {entry.gang} nodes, now it has {gang}"
            return None
        nodes = _nodes(ref, gang) if gang else [task]
        if not all(node in usable for node in nodes):
            self.refused[ref] = "its gang is not complete"
            return None
        taken = self.taken.setdefault(ref.step, {})
        for node in nodes:
            taken[node] = usable[node].origin or self._run
        self.transitions.setdefault(ref.step, {})[task] = entry.transition
        self.spans.setdefault(ref.step, _Spans()).add(Span(ref.step, ref.coordinates, len(nodes)))
        self.codes.setdefault(ref.step, set()).add(entry.code)
        return entry.transition


class _Spans:
    """Tasks of one step, consecutive ones as one span."""

    __slots__ = ("_spans", "count")

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self.count = 0

    def add(self, span: Span) -> None:
        self.count += span.length
        if self._spans and span.first.indices:
            step, first, length = self._spans[-1]
            *prefix, last = first.indices
            if span.first == (((*prefix, last + length)), first.turn):
                self._spans[-1] = Span(step, first, length + span.length)
                return
        self._spans.append(span)

    def tuple(self) -> tuple[Span, ...]:
        return tuple(self._spans)


class _Reasons:
    """Why a task that could start at once was not cloned."""

    def __init__(
        self,
        rehearsal: _Rehearsal,
        excluded: set[str],
        rerun: str | None,
        run: str,
        states: Mapping[tuple[str, str], str] | None,
    ) -> None:
        self._refused = rehearsal.refused
        self._excluded = excluded
        self._rerun = rerun
        _, _, number = run.partition("/")
        self.run = f"run {number}" if number else run
        self._states = states

    def of_task(self, ref: TaskRef) -> str:
        """Why one task runs whose inputs are all there."""
        if ref.step in self._excluded:
            return self.of_step(ref.step, ref.step)
        if ref in self._refused:
            return self._refused[ref]
        if self._states is None:
            return f"did not finish in {self.run}"
        state = self._states.get((ref.step, str(ref.coordinates)))
        if state is None:
            return f"never started in {self.run}"
        if state == "succeeded":
            return f"its result in {self.run} is missing"
        return f"{state} in {self.run}" if state in ("failed", "cancelled") else f"did not finish in {self.run}"

    def of_step(self, step: str, cause: str) -> str:
        """Why tasks of a step run after tasks of the step `cause`."""
        if step == self._rerun:
            return "you asked for it"
        return f"downstream of {self._rerun if step in self._excluded else cause}"


def _listing(
    graph: Graph, origin: Mapping[tuple[str, str], OriginTask], rehearsal: _Rehearsal, reasons: _Reasons
) -> list[PlanLine]:
    first: dict[str, dict[str, _Spans]] = {}
    covered: set[tuple[str, str]] = set()
    for ref, gang in rehearsal.ready():
        spans = first.setdefault(ref.step, {}).setdefault(reasons.of_task(ref), _Spans())
        nodes = _nodes(ref, gang)
        spans.add(Span(ref.step, ref.coordinates, len(nodes)))
        covered.update((ref.step, node) for node in nodes if (ref.step, node) in origin)
    unused, strange = _unused(graph, origin, rehearsal, covered)
    causes = _follow(graph, [step for step in graph.nodes if step in first])
    lines: list[PlanLine] = []
    for step in graph.nodes:
        if step in rehearsal.spans:
            done = rehearsal.spans[step]
            lines.append(PlanLine(step, "clone", done.tuple(), done.count, f"succeeded in {reasons.run}"))
        for reason, spans in first.get(step, {}).items():
            lines.append(PlanLine(step, "run", spans.tuple(), spans.count, reason))
        again = unused.get(step, _Spans())
        if step in causes:
            lines.append(PlanLine(step, "run", again.tuple(), None, reasons.of_step(step, causes[step])))
        elif again.count:
            lines.append(PlanLine(step, "drop", again.tuple(), again.count, "nothing in the flow leads there any more"))
    for step, count in strange.items():
        why = "its place in the flow has changed" if step in graph.nodes else f"the flow has no step '{step}' any more"
        lines.append(PlanLine(step, "drop", (), count, why))
    return lines


def _unused(
    graph: Graph,
    origin: Mapping[tuple[str, str], OriginTask],
    rehearsal: _Rehearsal,
    covered: set[tuple[str, str]],
) -> tuple[dict[str, _Spans], dict[str, int]]:
    """Return the origin's results that are not cloned, and how many of each step have no place in the graph."""
    places: list[TaskRef] = []
    strange: dict[str, int] = {}
    depths = graph.depths()
    for step, task in origin:
        if task in rehearsal.taken.get(step, ()) or (step, task) in covered:
            continue
        try:
            places.append(TaskRef(step, Coordinates.parse(task, depths[step])))
        except (KeyError, InvalidPathspec):
            strange[step] = strange.get(step, 0) + 1
    spans: dict[str, _Spans] = {}
    for ref in sorted(places, key=_order):
        spans.setdefault(ref.step, _Spans()).add(Span(ref.step, ref.coordinates))
    return spans, strange


def _follow(graph: Graph, steps: list[str]) -> dict[str, str]:
    """Return the steps that follow the ones that run first, each with the first of those that leads to it."""
    causes: dict[str, str] = {}
    todo = deque((step, step) for step in steps)
    while todo:
        step, cause = todo.popleft()
        for target in graph[step].targets:
            if target not in causes and target != step:
                causes[target] = cause
                todo.append((target, cause))
    return causes


def _nodes(ref: TaskRef, gang: int) -> list[str]:
    """The task ids of a task: one, or one for each node of a gang."""
    *prefix, last = ref.coordinates.indices or (0,)
    if gang < 2:
        return [str(ref.coordinates)]
    return [str(Coordinates((*prefix, last + node))) for node in range(gang)]


def _order(ref: TaskRef) -> tuple[tuple[int, ...], int]:
    return ref.coordinates.indices, ref.coordinates.turn or 0


def _differs(then: set[str | None] | None, now: str | None) -> bool:
    return bool(then) and now is not None and bool((then or set()) - {now, None})
