"""What is wrong with a flow, told before anything runs: all of it at once, each with a place and a remedy.

Each rule is one small generator over the graph; `RULES` is their order. A rule stays silent about what only follows
from a mistake that another rule reports: a step that cannot be reached because a transition names an unknown step
is not an orphan of its own. All rules are linear in steps and edges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator

from flowkit.exceptions import Location, Problem, did_you_mean
from flowkit.model.flowspec import FlowSpec
from flowkit.model.graph import UNREADABLE, Graph, Node
from flowkit.model.lint_facts import GUESSES, Facts, at, on, words
from flowkit.model.lint_structure import foreach_has_a_body, joins_balance, no_cycles, no_orphans

RESERVED = frozenset({"name", "next", "input", "index", "cmd"})
"""Step names that mean something else on every flow; all attributes of FlowSpec are reserved as well."""

_LONGEST_NAME = 128
"""Characters of a step's name: it is the name of a folder, of a job and of a column."""


def lint(graph: Graph, parallel: Collection[str] = frozenset({"parallel"})) -> list[Problem]:
    """Return everything that is wrong with a flow, in the order of the rules; nothing where it can run.

    Parameters
    ----------
    graph : Graph
        What `flowkit.model.graph.build_graph` made.
    parallel : collection of str
        Names of the decorators that make a step part of a gang: ``parallel`` and what derives from it.
    """
    broken = frozenset(
        node.name
        for node in graph.nodes.values()
        if node.kind == "invalid"
        or (node.kind == "end" and node.name != graph.end)
        or any(target not in graph.nodes for target in node.targets)
    )
    facts = Facts(graph, parallel, graph.order(), broken)
    return list(dict.fromkeys(problem for rule in RULES for problem in rule(facts)))


def nested_foreach(graph: Graph) -> list[Problem]:
    """Return a problem for each foreach inside a foreach, for targets that cannot carry one out."""
    return [
        at(node, f"the foreach in step '{node.name}' is inside the foreach of '{_outer_foreach(graph, node)}'")
        for node in graph.nodes.values()
        if node.kind == "foreach" and node.depth > 0
    ]


def _outer_foreach(graph: Graph, node: Node) -> str:
    return next(name for name in reversed(node.splits) if graph[name].kind != "split")


# -- the class and its names ---------------------------------------------------------------------------------------


def written_well(facts: Facts) -> Iterator[Problem]:
    """The class says one thing for each name, and @step is the innermost decorator."""
    yield from facts.graph.problems


def reserved_names(facts: Facts) -> Iterator[Problem]:
    """No step has a name that means something else on every flow."""
    for node in facts.graph.nodes.values():
        if node.name in RESERVED or hasattr(FlowSpec, node.name):
            yield on(node, f"a step cannot be called '{node.name}': every flow has an attribute of that name",
                      f"rename it, e.g. to '{node.name.strip('_')}_step'")  # fmt: skip


def step_names(facts: Facts) -> Iterator[Problem]:
    """Step names are of lower case letters, digits and underscores, and do not begin with an underscore."""
    for node in facts.graph.nodes.values():
        name = node.name
        if not re.fullmatch("[a-z0-9][a-z0-9_]*", name) and not hasattr(FlowSpec, name):
            better = re.sub("[^a-z0-9_]+", "_", re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
            yield on(
                node,
                f"the step name '{name}' has characters other than a-z, 0-9 and _, or begins with _",
                f"rename it to '{better}'" if better else "rename it",
            )
        elif len(name) > _LONGEST_NAME:
            yield on(node, f"the step name '{name[:20]}…' has {len(name)} characters",
                      f"use at most {_LONGEST_NAME}")  # fmt: skip


def ends_exist(facts: Facts) -> Iterator[Problem]:
    """There is one start and one end."""
    graph = facts.graph
    if not graph.nodes:
        yield Problem(
            f"the flow {graph.flow} has no steps",
            Location(graph.file, 1) if graph.file else None,
            "write at least one:\n@step\ndef start(self):\n    …",
        )
        return
    for word, found in (("start", graph.start), ("end", graph.end)):
        marked = [node for node in graph.nodes.values() if _marked(node, word)]
        for node in marked[1:]:
            yield on(
                node,
                f"the flow has several steps marked as its {word}: '{marked[0].name}' "
                f"(line {marked[0].location.line}) and '{node.name}'",
                f"keep @step({word}=True) on one of them and write @step on the others",
            )
        if found is None and not marked and word not in graph.lost:
            yield _no_end_point(graph, word)


def _no_end_point(graph: Graph, word: str) -> Problem:
    nodes = list(graph.nodes.values())
    if word == "start":
        likely = [node for node in nodes if not node.sources]
    else:
        likely = [node for node in nodes if node.kind == "end"]
    choices = [node.name for node in nodes if node.name != ("end" if word == "start" else "start")]
    hint = f"name a step '{word}' or mark one with @step({word}=True)"
    if len(likely) == 1:
        hint += f"; '{likely[0].name}' looks like it"
    elif near := did_you_mean(word, choices):
        hint += f" ({near})"
    place = likely[0] if len(likely) == 1 else nodes[0 if word == "start" else -1]
    return on(place, f"the flow {graph.flow} has no {word} step", hint)


def _marked(node: Node, word: str) -> bool:
    return node.marked_start if word == "start" else node.marked_end


def ends_unambiguous(facts: Facts) -> Iterator[Problem]:
    """Where a step is marked as start (end), no other one is called so."""
    for word, found in (("start", facts.graph.start), ("end", facts.graph.end)):
        named = facts.graph.nodes.get(word)
        if named is not None and found is not None and found != word:
            yield on(
                named,
                f"'{found}' is marked as the {word} step, and another step is called '{word}'",
                f"rename the step '{word}', or remove the mark from '{found}'",
            )


def start_has_no_sources(facts: Facts) -> Iterator[Problem]:
    """Nothing leads to the start."""
    graph = facts.graph
    if graph.start is None or graph.start == graph.end:
        return
    for source in graph[graph.start].sources:
        loop = source == graph.start and graph[source].kind == "switch"
        if not loop and source != graph.end:
            yield at(
                graph[source],
                f"step '{source}' leads back to the start step '{graph.start}'",
                "a flow begins once: to repeat something, let a switch step name itself as a case",
            )


def end_is_the_end(facts: Facts) -> Iterator[Problem]:
    """The end leads nowhere and joins nothing."""
    graph = facts.graph
    if graph.end is None:
        return
    end = graph[graph.end]
    if end.kind != "end" and end.next_location is not None:
        yield at(end, f"the end step '{end.name}' has a self.next",
                  "remove it, or mark another step with @step(end=True)")  # fmt: skip
    if end.is_join and end.arguments == 2:
        yield on(
            end,
            f"the end step '{end.name}' takes inputs",
            f"join in a step of its own before it: def join(self, inputs): … self.next(self.{end.name}), "
            f"and write def {end.name}(self)",
        )


# -- the transition of each step -----------------------------------------------------------------------------------


def argument_counts(facts: Facts) -> Iterator[Problem]:
    """A step takes self, or self and inputs; a join goes on to one step."""
    for node in facts.graph.nodes.values():
        if node.arguments == 0:
            yield on(node, f"step '{node.name}' takes no arguments", f"write def {node.name}(self)")
        elif node.arguments > 2:
            yield on(
                node,
                f"step '{node.name}' takes {node.arguments} arguments",
                f"a step takes self, a join self and inputs: def {node.name}(self, inputs); "
                "values reach a step as artifacts, self.x, and as parameters",
            )
        elif node.is_join and node.kind not in ("linear", "end", "invalid"):
            yield at(
                node,
                f"step '{node.name}' is a join and a {words(node)} at once",
                f"let the join go on to one step, and put the {words(node)} there",
            )


def transitions_exist(facts: Facts) -> Iterator[Problem]:
    """Every step but the end says where the flow goes."""
    graph = facts.graph
    if graph.end is None and sum(node.kind == "end" for node in graph.nodes.values()) == 1:
        return  # it is the end, which only lacks its mark
    for node in graph.nodes.values():
        if node.kind == "end" and node.name != graph.end and (graph.end is not None or not node.marked_end):
            yield on(
                node,
                f"step '{node.name}' does not end in self.next",
                f"write self.next(self.<step>) as its last statement; only the end step"
                f"{f' ({graph.end!r})' if graph.end else ''} has none",
            )


def transitions_understood(facts: Facts) -> Iterator[Problem]:
    """Every ``self.next`` has one of the forms that the graph can be read from."""
    unreadable: list[Node] = []
    for node in facts.graph.nodes.values():
        if node.problem == UNREADABLE:
            unreadable.append(node)
        elif node.kind == "invalid" and (node.name != facts.graph.end or node.next_location is None):
            yield at(node, f"step '{node.name}': {node.problem}", node.hint)
    if unreadable:
        names = ", ".join(f"'{node.name}'" for node in unreadable[:5]) + (", …" if len(unreadable) > 5 else "")
        yield on(unreadable[0], f"{UNREADABLE}: {names}", unreadable[0].hint)


def targets_exist(facts: Facts) -> Iterator[Problem]:
    """Every ``self.next`` names steps."""
    nodes = facts.graph.nodes
    guesses = 0
    for node in nodes.values():
        for target in node.targets:
            if target not in nodes and target not in facts.graph.lost:
                guesses += 1
                near = did_you_mean(target, nodes) if guesses <= GUESSES else None
                yield at(
                    node,
                    f"step '{node.name}' goes to '{target}', which is not a step",
                    near or f"write the step: @step above def {target}(self)",
                )


def switches_choose(facts: Facts) -> Iterator[Problem]:
    """A switch has at least two steps to choose from."""
    for node in facts.graph.nodes.values():
        if node.kind == "switch" and len(node.targets) < 2:
            only = node.targets[0]
            yield at(
                node,
                f"the switch in step '{node.name}' can only go to '{only}'",
                "it would turn for ever: add a case that leads out"
                if only == node.name
                else f"write self.next(self.{only}), or add a case for another step",
            )


# -- gangs and switches --------------------------------------------------------------------------------------------


def gangs_are_parallel(facts: Facts) -> Iterator[Problem]:
    """What num_parallel leads to is a @parallel step."""
    for node in facts.graph.nodes.values():
        for target in node.targets if node.kind == "parallel" else ():
            known = target in facts.graph.nodes and not facts.graph[target].is_join
            if known and not _is_parallel(facts, target):
                yield on(
                    facts.graph[target],
                    f"step '{node.name}' starts '{target}' with num_parallel, but '{target}' is not a @parallel step",
                    f"write @parallel above @step of '{target}', or use foreach for tasks that do not know each other",
                )


def parallel_then_join(facts: Facts) -> Iterator[Problem]:
    """A @parallel step leads to a join."""
    nodes = facts.graph.nodes
    for node in nodes.values():
        if not _is_parallel(facts, node.name) or node.name in facts.broken:
            continue
        if node.kind != "linear" or not nodes[node.targets[0]].is_join:
            yield at(
                node,
                f"the @parallel step '{node.name}' is not followed by a join",
                "let it lead to a step that takes inputs: def join(self, inputs)",
            )


def parallel_needs_gang(facts: Facts) -> Iterator[Problem]:
    """A @parallel step is reached only by num_parallel."""
    graph = facts.graph
    for node in graph.nodes.values():
        if not _is_parallel(facts, node.name):
            continue
        if node.name == graph.start:
            yield on(node, f"the start step '{node.name}' cannot be a @parallel step",
                      f"put a step before it: self.next(self.{node.name}, num_parallel=2)")  # fmt: skip
        for source in node.sources:
            if graph[source].kind != "parallel":
                yield at(
                    graph[source],
                    f"step '{source}' leads to the @parallel step '{node.name}' without num_parallel",
                    f"write self.next(self.{node.name}, num_parallel=2), or remove @parallel from '{node.name}'",
                )


def _is_parallel(facts: Facts, name: str) -> bool:
    return any(decorator in facts.parallel for decorator in facts.graph[name].decorators)


def cases_are_plain(facts: Facts) -> Iterator[Problem]:
    """No case of a switch is a join."""
    graph = facts.graph
    for node in graph.nodes.values():
        for target in node.targets if node.kind == "switch" else ():
            if target in graph.nodes and graph[target].is_join and target != node.name:
                yield at(
                    node,
                    f"the switch in step '{node.name}' has the join '{target}' as a case",
                    f"put a step between the two, or write def {target}(self) if nothing is to be joined there",
                )


RULES: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    written_well,
    reserved_names,
    ends_exist,
    ends_unambiguous,
    start_has_no_sources,
    end_is_the_end,
    step_names,
    argument_counts,
    transitions_exist,
    transitions_understood,
    targets_exist,
    no_cycles,
    no_orphans,
    joins_balance,
    switches_choose,
    foreach_has_a_body,
    gangs_are_parallel,
    parallel_then_join,
    parallel_needs_gang,
    cases_are_plain,
)
