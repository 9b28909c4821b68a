"""The graph of a flow: its steps and the transitions between them, read from the source and never run.

`build_graph` always gives a graph, also of a flow that cannot run; `flowkit.model.lint` says what is wrong with it.
Everything here is linear in steps and edges, and nothing recurses along the flow.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import cleandoc
from types import FunctionType
from typing import Any, Literal

from flowkit.exceptions import Location, Problem
from flowkit.model.flowspec import FlowSpec
from flowkit.model.next_call import NextCall, arguments, read_next_call
from flowkit.model.parameters import Parameter
from flowkit.model.step_source import StepSource, find_sources, plain_function, source_problems

NodeKind = Literal["linear", "split", "foreach", "parallel", "switch", "end", "invalid"]

_OPENING = frozenset({"split", "foreach", "parallel"})

UNREADABLE = "the source of a step cannot be read"
"""The problem of a step without source; it comes to all steps of a file alike."""


@dataclass(slots=True)
class Node:
    """One step of the graph.

    Parameters
    ----------
    name : str
        The step.
    kind : str
        How it goes on: ``linear``, ``split``, ``foreach``, ``parallel`` (num_parallel), ``switch`` or ``end``;
        ``invalid`` where the source has no ``self.next`` that can be understood. Whether it is a join is said by
        `is_join`, which goes together with any of them in the graph; lint allows only ``linear`` and ``end`` there.
    targets : tuple of str
        The steps named by ``self.next``, in order; for a switch in the order of its cases, each once.
    """

    name: str
    kind: NodeKind
    location: Location
    targets: tuple[str, ...] = ()
    is_join: bool = False
    """The step takes ``inputs``."""
    arguments: int = 1
    """How many arguments the function takes, self included."""
    variable: str | None = None
    """For a foreach the artifact iterated over; for a switch the artifact that decides."""
    cases: Mapping[str, str] = field(default_factory=dict)
    """For a switch: the text of each case value to its target."""
    num_parallel: bool = False
    next_location: Location | None = None
    """Where ``self.next`` stands."""
    doc: str = ""
    decorators: tuple[str, ...] = ()
    """Names of the step's decorators, outermost first."""
    sources: tuple[str, ...] = ()
    """The steps that lead here, in the order of the flow's source."""
    depth: int = 0
    """How many foreaches (and gangs) enclose the step."""
    splits: tuple[str, ...] = ()
    """The splits, foreaches and gangs that are open when the step runs, outermost first."""
    matching_join: str | None = None
    """For a split, foreach or gang: the join that closes it."""
    branch: str | None = None
    """The target of the innermost open split (foreach, gang) by which the step is reached."""
    marked_start: bool = False
    """Marked with ``@step(start=True)``."""
    marked_end: bool = False
    """Marked with ``@step(end=True)``."""
    problem: str | None = None
    """Why the transition could not be understood, where `kind` is ``invalid``."""
    hint: str | None = None
    """What to write instead, where there is a problem."""
    mentions: tuple[str, ...] = ()
    """Names in a ``self.next`` that could not be understood; the steps among them may be meant."""

    @property
    def opens(self) -> bool:
        """Whether the step opens a split, foreach or gang, which a join has to close."""
        return self.kind in _OPENING

    @property
    def is_loop(self) -> bool:
        """Whether the step is a switch with itself as a case."""
        return self.name in self.targets


@dataclass(slots=True)
class Graph:
    """The steps of one flow.

    Parameters
    ----------
    flow : str
        The flow's name.
    nodes : dict of str to Node
        Every step, in the order of the source.
    start, end : str or None
        The first and the last step; None where the flow has none or several.
    problems : tuple of Problem
        What is wrong with the class itself, e.g. a step that is defined twice; `flowkit.model.lint.lint` tells it
        together with what is wrong with the graph.
    """

    flow: str
    nodes: dict[str, Node]
    start: str | None
    end: str | None
    file: str = ""
    doc: str = ""
    problems: tuple[Problem, ...] = ()
    lost: frozenset[str] = frozenset()
    """Steps that the class replaces by something else, by mistake; `problems` tells them."""

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def depths(self) -> dict[str, int]:
        """How many foreaches enclose each step."""
        return {name: node.depth for name, node in self.nodes.items()}

    def order(self) -> list[str]:
        """Return the steps that can be reached, each after all that lead to it.

        Steps of a cycle, and what follows only after one, are missing; a switch that turns to itself is no cycle.
        """
        if self.start is None:
            return []
        reachable = self.downstream(self.start)
        waiting = {
            name: sum(source in reachable and source != name for source in self.nodes[name].sources)
            for name in reachable
            if name != self.start
        }
        ready = [self.start]
        for name in ready:  # grows while it is read
            for target in self.nodes[name].targets:
                if target in waiting and target != name:
                    waiting[target] -= 1
                    if waiting[target] == 0:
                        ready.append(target)
        return ready

    def downstream(self, *steps: str) -> set[str]:
        """Return the steps and everything that can follow them."""
        seen: set[str] = set()
        todo = list(steps)
        while todo:
            name = todo.pop()
            if name not in seen and name in self.nodes:
                seen.add(name)
                todo.extend(self.nodes[name].targets)
        return seen


def build_graph(cls: type) -> Graph:
    """Read a flow's graph from its class.

    Parameters
    ----------
    cls : type
        A subclass of FlowSpec. Steps of its base classes count, those of the outermost base first; a step that is
        overridden keeps its place and takes the nearest definition.

    Returns
    -------
    Graph
        Also where the flow is not valid. Only the source of the classes is read; nothing of it is run.
    """
    functions, problems, lost = _collect(cls)
    plain = {name: function for name, value in functions.items() if (function := plain_function(value)) is not None}
    sources = find_sources(plain.values())
    found = [(function, sources[function.__code__]) for function in plain.values() if function.__code__ in sources]
    more_problems, more_lost = source_problems(found)
    problems += more_problems
    lost |= more_lost - set(functions)
    nodes: dict[str, Node] = {}
    for name, value in functions.items():
        function = plain.get(name)
        nodes[name] = _node(name, value, function, sources.get(function.__code__) if function else None)
    start, end = _ends(nodes, bool(lost))
    doc = cleandoc(cls.__doc__ or "")
    graph = Graph(cls.__name__, nodes, start, end, _file(cls, nodes), doc, tuple(problems), frozenset(lost))
    _connect(graph)
    return graph


# -- from the class to nodes ---------------------------------------------------------------------------------------


def _collect(cls: type) -> tuple[dict[str, Any], list[Problem], set[str]]:
    """Return the steps of a class and its bases by name, what is wrong with their names, and which are lost by that."""
    steps: dict[str, Any] = {}
    lost: set[str] = set()
    parameters: dict[str, str] = {}
    problems: list[Problem] = []
    for base in reversed(cls.__mro__):
        if base in FlowSpec.__mro__:
            continue
        for name, value in list(vars(base).items()):
            if _is_step(value):
                if name in parameters:
                    problems.append(_clash(name, value, parameters.pop(name)))
                steps[name] = value
                lost.discard(name)
            elif name in steps:
                step = steps.pop(name)
                if value is not None:  # None takes the step away on purpose
                    problems.append(_replaced(name, base, step, value))
                    lost.add(name)
            if isinstance(value, Parameter):
                parameters[name] = f"the parameter '{name}' of {base.__name__}"
            elif getattr(type(value), "is_config", False) is True:
                parameters[name] = f"the config '{name}' of {base.__name__}"
    return steps, problems, lost


def _is_step(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and getattr(value, "is_step", False) is True


def _replaced(name: str, base: type, step: Any, value: Any) -> Problem:
    """A subclass gives a step's name to something that is none."""
    function = plain_function(value)
    if function is not None:
        where = _location(function)
        return Problem(f"{base.__name__}.{name} replaces a step and is none itself", where, "write @step above it")
    config = getattr(type(value), "is_config", False) is True
    what = "parameter" if isinstance(value, Parameter) else "config" if config else "value"
    return _clash(name, step, f"a {what} of {base.__name__}")


def _clash(name: str, step: Any, other: str) -> Problem:
    function = plain_function(step)
    where = _location(function) if function else None
    return Problem(f"the step '{name}' has the same name as {other}", where, "rename one of the two")


def _node(name: str, value: Any, function: FunctionType | None, source: StepSource | None) -> Node:
    """Make the node of one step; its place in the graph is found later."""
    location = _location(function) if function else Location("?", 0)
    if source is None:
        call = NextCall(
            "invalid",
            problem=UNREADABLE,
            hint="the graph is read from the source: write the step with def in a file or a notebook cell, and start "
            "again if the file was changed meanwhile",
        )
    else:
        location = location._replace(line=source.function.lineno)
        call = read_next_call(source.function)
    called = getattr(value, "__name__", name)
    if called != name:
        call = NextCall(
            "invalid",
            problem=f"its function is called '{called}'",
            hint=f"name it '{name}'; if a decorator below @step replaces the function, let it use functools.wraps",
        )
    count = arguments(source.function) if source else function.__code__.co_argcount if function else 1
    return Node(
        name=name,
        kind=call.kind,
        location=location,
        targets=call.targets,
        is_join=count >= 2,
        arguments=count,
        variable=call.variable,
        cases=call.cases or {},
        num_parallel=call.kind == "parallel",
        next_location=location._replace(line=call.line) if call.line else None,
        doc=cleandoc(getattr(value, "__doc__", None) or ""),
        decorators=tuple(decorator.name for decorator in getattr(value, "decorators", ())),
        marked_start=bool(getattr(value, "step_start", False)),
        marked_end=bool(getattr(value, "step_end", False)),
        problem=call.problem,
        hint=call.hint,
        mentions=call.mentions,
    )


def _location(function: FunctionType) -> Location:
    return Location(function.__code__.co_filename, function.__code__.co_firstlineno)


def _file(cls: type, nodes: Mapping[str, Node]) -> str:
    """The file of the class: that of its module, in a notebook that of a step."""
    module_file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if isinstance(module_file, str):
        return module_file
    return next((node.location.file for node in reversed(list(nodes.values()))), "")


def _ends(nodes: Mapping[str, Node], incomplete: bool) -> tuple[str | None, str | None]:
    """Return the names of the start and the end: the one that is marked, else the one called so, else the only step."""
    result = []
    for name, marked in (
        ("start", [node.name for node in nodes.values() if node.marked_start]),
        ("end", [node.name for node in nodes.values() if node.marked_end]),
    ):
        if marked:
            result.append(marked[0] if len(marked) == 1 else None)
        elif name in nodes:
            result.append(name)
        else:
            result.append(next(iter(nodes)) if len(nodes) == 1 and not incomplete else None)
    return result[0], result[1]


# -- from nodes to the graph ---------------------------------------------------------------------------------------


def _connect(graph: Graph) -> None:
    """Fill in what follows from all nodes together: sources, open splits, depth, matching joins.

    The open splits of a step are those of any step that leads to it (lint checks that they agree), with the one
    that this step opens added, and without the last one where the step is a join. A tuple of open splits is shared
    by all steps that have it.
    """
    nodes = graph.nodes
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for node in nodes.values():
        for target in node.targets:
            if target in sources:
                sources[target].append(node.name)
    for name, names in sources.items():
        nodes[name].sources = tuple(names)
    opened: dict[str, tuple[str, ...]] = {}
    done: set[str] = set()
    for name in graph.order():
        node = nodes[name]
        source = next((nodes[item] for item in node.sources if item in done), None)
        done.add(name)
        if source is None:
            continue
        if source.opens:
            if source.name not in opened:
                opened[source.name] = (*source.splits, source.name)
            node.splits, node.branch = opened[source.name], name
            node.depth = source.depth + (source.kind != "split")
        else:
            node.splits, node.branch, node.depth = source.splits, source.branch, source.depth
        if node.is_join and node.splits:
            closed = nodes[node.splits[-1]]
            closed.matching_join = closed.matching_join or name
            node.splits, node.branch, node.depth = closed.splits, closed.branch, closed.depth
