"""The rules about the graph as a whole: cycles, orphans, and splits that have to meet again."""

from __future__ import annotations

from collections.abc import Iterator

from flowkit.exceptions import Problem
from flowkit.model.graph import Graph, Node
from flowkit.model.lint_facts import GUESSES, Facts, at, on, words


def no_cycles(facts: Facts) -> Iterator[Problem]:
    """The flow never comes back to a step, but for a switch that names itself."""
    for cycle in _cycles(facts.graph):
        path = " → ".join([*(cycle if len(cycle) <= 6 else [*cycle[:3], "…", *cycle[-2:]]), cycle[0]])
        yield at(
            facts.graph[cycle[-1]],
            f"the steps go round in a circle: {path}",
            "only a switch can repeat, and only its own step: "
            "self.next({True: self.this_step, False: self.next_step}, condition='again')",
        )


def _cycles(graph: Graph) -> Iterator[list[str]]:
    """Cycles that have no step in common; each edge is looked at a fixed number of times."""
    left = {
        name: [item for item in node.targets if _goeson(graph, node, item)]
        for name, node in graph.nodes.items()
        if node.name != graph.end
    }
    done: set[str] = {name for name in graph.nodes if name not in left}
    for first in [*filter(None, [graph.start]), *left]:
        path, place = [first], {first: 0}
        if first in done:
            continue
        while path:
            name = path[-1]
            targets = left[name]
            while targets and targets[-1] in done:
                targets.pop()
            if not targets:
                done.add(name)
                place.pop(path.pop())
            elif targets[-1] in place:
                cycle = path[place[targets[-1]] :]
                yield cycle
                for item in cycle:
                    done.add(item)
                    place.pop(path.pop())
            else:
                place[targets[-1]] = len(path)
                path.append(targets[-1])


def _goeson(graph: Graph, node: Node, target: str) -> bool:
    """Whether an edge may be part of a cycle that no other rule tells."""
    return target in graph.nodes and target != graph.start and not (node.kind == "switch" and target == node.name)


def no_orphans(facts: Facts) -> Iterator[Problem]:
    """Every step can be reached from the start."""
    graph = facts.graph
    if graph.start is None:
        return
    meant = _meant(facts, graph.downstream(graph.start))
    if meant is None:
        return
    reached = graph.downstream(graph.start, *meant)
    orphans = [name for name in graph.nodes if name not in reached]
    follows = {
        name for orphan in orphans for name in (*graph[orphan].targets, *graph[orphan].mentions) if name != orphan
    }
    roots = [name for name in orphans if name not in follows]
    for name in roots:
        follow = [item for item in orphans if item != name] if len(roots) == 1 else []
        also = f" (nor can {', '.join(follow[:5])}{', …' if len(follow) > 5 else ''})" if follow else ""
        yield on(
            graph[name],
            f"step '{name}' cannot be reached from '{graph.start}'{also}",
            f"name it in the self.next of a step: self.next(self.{name}); or remove it",
        )


def _meant(facts: Facts, reached: set[str]) -> list[str] | None:
    """Return the steps that broken transitions are likely to mean; None where one could lead anywhere."""
    graph = facts.graph
    circles = len(facts.order) < len(reached) or any(graph[name].targets == (name,) for name in reached)
    if circles or any(graph.start in graph[name].targets for name in reached if name != graph.start):
        return None  # what goes round never comes to what stands behind it
    meant: list[str] = []
    guesses = 0
    for node in (graph[name] for name in facts.broken if name in reached):
        unknown = [target for target in node.targets if target not in graph.nodes]
        guesses += len(unknown)
        if guesses > GUESSES:
            return None
        near = [_nearest(target, graph) for target in unknown]
        steps = [name for name in (*node.mentions, *near) if name in graph.nodes]
        if None in near or not steps:
            return None
        meant += steps
    return meant


def _nearest(name: str, graph: Graph) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, graph.nodes, n=1)), None)


def joins_balance(facts: Facts) -> Iterator[Problem]:
    """Every split, foreach and gang is closed by one join, which all of its branches reach.

    A split is reported once: what follows behind it is not looked at again with respect to it.
    """
    graph = facts.graph
    told: set[str] = {opened for name in facts.broken for opened in (*graph[name].splits, name)}
    resolved = set(facts.order)
    for name in facts.order:
        node = graph[name]
        sources = [graph[source] for source in node.sources if source in resolved and source != name]
        if not sources:
            if node.is_join and name != graph.end and node.arguments == 2:
                yield _no_split(node)
            continue
        ways = [_way(source, node) for source in sources]
        involved = {opened for opened, _ in ways if opened is not None}
        if involved & told:
            told |= involved
            continue
        problem = (
            _join_problem(graph, node, sources, ways) if node.is_join else _plain_problem(graph, node, sources, ways)
        )
        if problem is None and name == graph.end and node.splits:
            problem = _end_problem(graph, node)
            involved.update(node.splits)
        if problem is not None:
            told |= involved
            yield problem


def _way(source: Node, node: Node) -> tuple[str | None, str | None]:
    """Return the innermost split that is open on the way from a step to the next, and its branch."""
    if source.opens:
        return source.name, node.name
    return (source.splits[-1] if source.splits else None), source.branch


def _join_problem(
    graph: Graph, node: Node, sources: list[Node], ways: list[tuple[str | None, str | None]]
) -> Problem | None:
    opened = {split for split, _ in ways}
    if opened == {None}:
        return None if node.name == graph.end else _no_split(node)
    if len(opened) > 1:
        described = [f"'{source.name}' ({_inside(split)})" for source, (split, _) in zip(sources, ways, strict=True)]
        return on(
            node,
            f"the join '{node.name}' joins what does not belong together: {', '.join(described[:4])}",
            "join the branches of one split at a time: first those of the inner one, in a join of their own",
        )
    split = graph[next(name for name in opened if name is not None)]
    if any(source is split for source in sources):
        if split.kind != "split":
            return None  # told by foreach_has_a_body
        return at(
            split,
            f"the split in '{split.name}' has a branch that leads straight to the join '{node.name}'",
            "put a step between the two",
        )
    if split.matching_join not in (None, node.name):
        return on(
            node,
            f"'{node.name}' and '{split.matching_join}' both join the {words(split)} of '{split.name}'",
            f"let all branches of '{split.name}' lead to one join",
        )
    joined = {branch for _, branch in ways}
    missing = [target for target in split.targets if target not in joined]
    if missing:
        names = ", ".join(f"'{name}'" for name in missing[:4]) + (", …" if len(missing) > 4 else "")
        return on(
            node,
            f"the join '{node.name}' does not get all branches of the split in '{split.name}': {names} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            f"let every branch of '{split.name}' lead to '{node.name}', "
            f"or remove from '{split.name}' what is not to be joined",
        )
    return None


def _plain_problem(
    graph: Graph, node: Node, sources: list[Node], ways: list[tuple[str | None, str | None]]
) -> Problem | None:
    if len(set(ways)) == 1:
        return None
    branches = {source.name: way for source, way in zip(sources, ways, strict=True)}
    names = ", ".join(f"'{name}' ({_inside(split)})" for name, (split, _) in list(branches.items())[:4])
    if node.name == graph.end:
        hint = f"join them in a step before: def join(self, inputs): … self.next(self.{node.name})"
    else:
        hint = f"make it a join: def {node.name}(self, inputs)"
    if len({split for split, _ in ways}) == 1:
        split = next(split for split, _ in ways)
        return on(node, f"several branches of the split in '{split}' meet in '{node.name}', which is not a join", hint)
    return on(
        node,
        f"step '{node.name}' is reached from steps with different open splits: {names}",
        "join the branches of each split first, in a step that takes inputs",
    )


def _end_problem(graph: Graph, end: Node) -> Problem:
    kinds = " and ".join(f"the {words(graph[name])} of '{name}'" for name in end.splits[-3:])
    join = f"write a join before '{end.name}': def join(self, inputs): … self.next(self.{end.name})"
    return on(end, f"the flow ends in '{end.name}' while {kinds} {'is' if len(end.splits) == 1 else 'are'} open", join)


def _no_split(node: Node) -> Problem:
    return on(
        node,
        f"the join '{node.name}' has nothing to join: no split or foreach is open there",
        f"write def {node.name}(self), without inputs; branches of a switch come together in a plain step",
    )


def foreach_has_a_body(facts: Facts) -> Iterator[Problem]:
    """A foreach does not lead straight to a join."""
    for node in facts.graph.nodes.values():
        if node.kind in ("foreach", "parallel"):
            for target in node.targets:
                if target in facts.graph.nodes and facts.graph[target].is_join:
                    yield at(
                        node,
                        f"the {words(node)} in step '{node.name}' leads straight to the join '{target}'",
                        "put a step between the two, to be run once for each item",
                    )


def _inside(split: str | None) -> str:
    return f"inside '{split}'" if split else "outside of any split"
