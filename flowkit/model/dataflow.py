"""Which artifacts each step reads and sets, told from the source before anything runs.

`undefined_reads` finds what is read although no path through the flow sets it: a typing mistake, a value that was
deleted, an artifact that was expected to pass a join. It judges only what it is sure of: where a step may do something
that cannot be followed (`flowkit.model.effects_walk`), it is silent about that step and about all that follow.

Every step is walked once. What its code does to names is then carried along the graph, all names at once as the bits
of an integer, each step after those that lead to it, a loop step twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from flowkit.exceptions import Location, Problem, did_you_mean
from flowkit.model.definition import FlowDefinition, StepDefinition
from flowkit.model.effects import UNSURE, Effects, Read
from flowkit.model.effects_self import ANYTHING, MERGED
from flowkit.model.effects_walk import Analysis
from flowkit.model.flow_methods import inner_function
from flowkit.model.graph import Graph
from flowkit.model.step_source import forget_sources

_HARMLESS = frozenset(
    {
        "batch", "card", "catch", "conda", "environment", "kubernetes", "parallel", "pypi", "resources", "retry",
        "secrets", "timeout",
    }
)  # fmt: skip
"""Decorators of ours that set nothing on ``self`` (but for the ``var`` of catch)."""
_MOST_HINTS = 50
"""For how many problems the nearest name is looked up; each costs the number of names."""


class StepData(NamedTuple):
    """What the source of one step says about artifacts.

    Parameters
    ----------
    reads : frozenset of str
        Artifacts that it may read, those that it sets itself among them.
    sets : frozenset of str
        Artifacts that it may set.
    surely_sets : frozenset of str
        Artifacts that it sets on every path to its end.
    unsure : bool
        It may set others too: not all of what it does can be told from the source.
    """

    reads: frozenset[str]
    sets: frozenset[str]
    surely_sets: frozenset[str]
    unsure: bool


def step_data(definition: FlowDefinition) -> dict[str, StepData]:
    """Return what each step reads and sets, in the order of the source.

    Parameters
    ----------
    definition : FlowDefinition
        The flow.
    """
    analysis = Analysis(definition.cls)
    effects = _effects_of_steps(definition, analysis)
    forget_sources()
    return {
        name: StepData(item.reads, item.sets - {ANYTHING, MERGED}, item.surely, item.unsure or MERGED in item.sets)
        for name, item in effects.items()
    }


def undefined_reads(definition: FlowDefinition) -> list[Problem]:
    """Return where an artifact is read that no path sets before: each place once, in the order of the source.

    Parameters
    ----------
    definition : FlowDefinition
        The flow; with its ``--with`` decorators, if any.

    Returns
    -------
    list of Problem
        Each with the file and line of the read and, where there is one, the nearest name. They are warnings: the
        step may never come to that line. Empty for a graph that is not valid (lint tells that), and for a class that
        defines itself how its attributes are read or set.
    """
    graph = definition.graph
    if any(node.kind == "invalid" for node in graph.nodes.values()):
        return []
    analysis = Analysis(definition.cls)
    try:
        if analysis.methods.opaque:
            return []
        effects = _effects_of_steps(definition, analysis)
        needs = {name: _open_needs(definition, analysis, effects, name) for name in graph.order()}
        if not any(needs.values()):
            return []
        wanted = {need.name for items in needs.values() for need in items}
        flow = _Carried(graph, effects, wanted)
        fine = analysis.fine
        fine.update(need.place for step, items in needs.items() for need in items if not flow.misses(step, need))
        undefined = [(step, need) for step, items in needs.items() for need in items if need.place not in fine]
        return list(_problems(definition, analysis, effects, undefined))
    finally:
        forget_sources()


# -- steps ---------------------------------------------------------------------------------------------------------


def _effects_of_steps(definition: FlowDefinition, analysis: Analysis) -> dict[str, Effects]:
    return {name: _effects(definition, analysis, step) for name, step in definition.steps.items()}


def _effects(definition: FlowDefinition, analysis: Analysis, step: StepDefinition) -> Effects:
    """The effects of a step with its decorators."""
    function = inner_function(step.function)
    attribute = analysis.methods.attribute(step.name)
    if function is None or attribute is None or not all(map(_is_harmless, step.decorators)):
        return UNSURE
    effects = analysis.effects(function, attribute.owner, inputs=definition.graph[step.name].is_join)
    caught = next((item for item in step.decorators if item.name == "catch"), None)
    if caught is None:
        return effects
    # Where the step failed, all that it had set until then is kept, whatever it was about to delete.
    var = caught.attributes.get("var")
    own = frozenset({var} if isinstance(var, str) else ())
    return effects._replace(
        added=(effects.sets - {ANYTHING, MERGED}) | own,
        sets=effects.sets | own,
        deleted=frozenset(),
        surely=own,
        merged=frozenset() if MERGED in effects.sets else None,
        unsure=effects.unsure or ANYTHING in effects.sets,
        never_ends=False,
    )


def _is_harmless(decorator: object) -> bool:
    kind = type(decorator)
    return kind.__module__.startswith("flowkit.") and getattr(decorator, "name", None) in _HARMLESS


def _open_needs(
    definition: FlowDefinition, analysis: Analysis, effects: Mapping[str, Effects], step: str
) -> list[Read]:
    """What a step needs from the steps before it, as far as it can be judged."""
    known = effects[step].needs
    if not known:
        return []
    return [
        need
        for need in known
        if need.name not in analysis.guarded
        and need.name not in definition.parameters
        and need.name not in definition.constants
        and need.name not in definition.configs
        and analysis.methods.attribute(need.name) is None
        and not _shadowed(need, effects)
    ]


def _shadowed(need: Read, effects: Mapping[str, Effects]) -> bool:
    """Whether a method on the way is replaced by an artifact of its name."""
    return bool(need.via) and any(name in item.sets for name in need.via for item in effects.values())


# -- along the graph -----------------------------------------------------------------------------------------------


class _Carried:
    """Which of some names may be there when each step begins and ends.

    Parameters
    ----------
    graph : Graph
        The flow.
    effects : mapping of str to Effects
        What each step does.
    names : iterable of str
        The names to follow.
    """

    def __init__(self, graph: Graph, effects: Mapping[str, Effects], names: Iterable[str]) -> None:
        self._graph = graph
        self._bits = {name: 1 << position for position, name in enumerate(sorted(names))}
        self._all = (1 << len(self._bits)) - 1
        self._begin: dict[str, int] = {}
        self._inputs: dict[str, int] = {}
        self._end: dict[str, int] = {}
        for name in graph.order():
            self._carry(name, effects[name])

    def _carry(self, step: str, effects: Effects) -> None:
        node = self._graph[step]
        arriving = 0
        for source in node.sources:
            arriving |= self._end.get(source, 0)
        begin, inputs = (0, arriving) if node.is_join else (arriving, 0)
        end = self._after(effects, begin, inputs)
        if node.is_loop:
            begin |= end
            end = self._after(effects, begin, inputs)
        self._begin[step], self._inputs[step], self._end[step] = begin, inputs, end

    def _after(self, effects: Effects, begin: int, inputs: int) -> int:
        if effects.unsure:
            return self._all
        end = begin
        if effects.merged is not None:
            end |= inputs & ~self._mask(effects.merged)
        return (end & ~self._mask(effects.deleted)) | self._mask(effects.added)

    def _mask(self, names: Iterable[str]) -> int:
        mask = 0
        for name in names:
            mask |= self._bits.get(name, 0)
        return mask

    def misses(self, step: str, need: Read) -> bool:
        """Whether no path brings the name that a step reads."""
        bit = self._bits[need.name]
        if need.kind == "input":
            if need.source is None:
                return not self._inputs[step] & bit
            return need.source in self._graph[step].sources and not self._end[need.source] & bit
        if need.deleted:
            return True
        there = self._begin[step] | (self._inputs[step] if need.merged else 0)
        return not there & bit

    def names(self, step: str, *, of_inputs: bool) -> list[str]:
        """Return the names that may be there when a step begins, or in the inputs of a join."""
        mask = self._inputs[step] if of_inputs else self._begin[step]
        return [name for name, bit in self._bits.items() if mask & bit]


# -- telling -------------------------------------------------------------------------------------------------------


def _problems(
    definition: FlowDefinition, analysis: Analysis, effects: Mapping[str, Effects], undefined: list[tuple[str, Read]]
) -> Iterator[Problem]:
    if not undefined:
        return
    everything = {name for item in effects.values() for name in item.sets if name.isidentifier()}
    flow = _Carried(definition.graph, effects, everything | {need.name for _, need in undefined})
    places: dict[tuple[object, ...], list[tuple[str, Read]]] = {}
    for step, need in undefined:
        places.setdefault(need.place, []).append((step, need))
    for position, found in enumerate(sorted(places.values(), key=lambda found: _order(definition, found[0][1]))):
        step, need = found[0]
        steps = list(dict.fromkeys(step for step, _ in found))
        hint = _hint(definition, analysis, effects, flow, step, need) if position < _MOST_HINTS else None
        yield Problem(_headline(steps, need), Location(need.file, need.line), hint)


def _order(definition: FlowDefinition, need: Read) -> tuple[object, ...]:
    return need.file != definition.file, need.file, need.line, need.name


def _headline(steps: list[str], need: Read) -> str:
    more = f" (and {len(steps) - 1} more)" if len(steps) > 1 else ""
    who = f"step '{steps[0]}'{more}"
    within = f" in {need.via[-1]}()" if need.via else ""
    if need.kind == "foreach":
        return f"{who} has foreach='{need.name}', but no path sets self.{need.name}"
    if need.kind == "condition":
        return f"{who} has condition='{need.name}', but no path sets self.{need.name}"
    if need.kind == "input":
        whose = f"inputs.{need.source}" if need.source else "its inputs"
        return f"{who} reads '{need.name}' of {whose}, which no path sets"
    if need.deleted:
        return f"{who} reads self.{need.name}{within}, which is deleted before"
    return f"{who} reads self.{need.name}{within}, which no path sets before"


def _hint(
    definition: FlowDefinition,
    analysis: Analysis,
    effects: Mapping[str, Effects],
    flow: _Carried,
    step: str,
    need: Read,
) -> str | None:
    if need.deleted and need.kind != "input":
        return "read it before del, or do not delete it"
    graph = definition.graph
    is_join = graph[step].is_join
    if is_join and need.kind != "input" and need.name in flow.names(step, of_inputs=True):
        return f"artifacts do not pass a join: take inputs[0].{need.name}, or call self.merge_artifacts(inputs) before"
    near = flow.names(step, of_inputs=need.kind == "input")
    if need.kind != "input":
        near += [*effects[step].sets, *definition.parameters, *definition.constants, *definition.configs]
        near += [name for base in definition.cls.__mro__[:-1] for name in vars(base) if not name.startswith("_")]
    guess = did_you_mean(need.name, {name for name in near if name.isidentifier() and name != need.name})
    if guess is not None:
        return guess
    setters = [name for name, item in effects.items() if need.name in item.sets]
    if step in setters:
        return f"step '{step}' sets it only afterwards"
    if setters:
        return f"step '{setters[0]}' sets it, but no path leads from there to here{_by_join(graph, setters[0], step)}"
    start = analysis.methods.attribute("__init__")
    function = inner_function(start.value) if start is not None and not analysis.methods.is_ours(start) else None
    if function is not None and need.name in function.__code__.co_names:
        return "__init__ does not run in tasks: set it in the class body, or in the first step"
    return None


def _by_join(graph: Graph, setter: str, step: str) -> str:
    return " that keeps it (artifacts do not pass a join)" if step in graph.downstream(setter) else ""
