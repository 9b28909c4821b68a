"""From a task's coordinates to its launch, where no scheduler of ours tells it: in what a foreign scheduler starts.

Most parents follow from the graph and the coordinates alone. Three things do not: which branch of a switch ran before
the place where its branches meet, which turn of a loop was the last, how wide a foreach was. They stand in the
manifests of the tasks before, as committed transitions: the derivation follows these from the last step that is certain
(the immediate dominator), and never asks whether something exists.

The dominators are computed by the algorithm of Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from flowkit.exceptions import DataError
from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.graph import Graph, Node
from flowkit.model.launch import Launch
from flowkit.model.transition import Transition


class Derivation:
    """Derives the launches of one run.

    Parameters
    ----------
    graph : Graph
        The flow's.
    transition_of : callable
        Returns the transition of a task that is committed; raises DataError where it is not. Asked once for a task.
    each : callable, default map
        Calls a function for each of many items, and yields what it returns in their order: several at once, where
        each call travels (`flowkit.datastore.many.mapped_over`).
    """

    def __init__(
        self,
        graph: Graph,
        transition_of: Callable[[TaskRef], Transition],
        each: Callable[[Callable[[int], TaskRef], Iterable[int]], Iterator[TaskRef]] = map,
    ) -> None:
        self._each = each
        self._nodes = graph.nodes
        self._start = graph.start
        self._transition_of = transition_of
        self._known: dict[TaskRef, Transition] = {}

    def launch(self, step: str, coordinates: Coordinates, *, gang: int = 0, attempt: int = 0) -> Launch:
        """Return the launch of a task.

        Parameters
        ----------
        step, coordinates
            The task; of a gang the control node.
        gang : int, default 0
            Nodes of the gang.
        attempt : int, default 0
            Which attempt it is.

        Raises
        ------
        DataError
            If a task before it is not committed, or what is committed leads elsewhere.
        """
        node = self._nodes[step]
        if node.is_join:
            opener = self._opener(node, coordinates)
            return Launch(step, coordinates, self._inputs(node, opener), opener, attempt, gang=gang)
        parent = self._parent(node, coordinates)
        parents = () if parent is None else (Span(*parent),)
        return Launch(step, coordinates, parents, attempt=attempt, gang=gang)

    # -- one parent ----------------------------------------------------------------------------------------------------

    def _parent(self, node: Node, coordinates: Coordinates) -> TaskRef | None:
        """Return the task before one that is no join; None for the first of the run."""
        if node.is_loop and coordinates.turn:
            return TaskRef(node.name, Coordinates(coordinates.indices, coordinates.turn - 1))
        if node.name == self._start:
            return None
        if node.splits and node.name in self._nodes[node.splits[-1]].targets:
            opener = self._nodes[node.splits[-1]]
            within = coordinates.indices if opener.kind == "split" else coordinates.indices[:-1]
            return TaskRef(opener.name, Coordinates(within))
        sources = self._sources(node)
        if len(sources) == 1:
            first = self._first(sources[0], coordinates.indices)
            return first if not self._nodes[sources[0]].is_loop else self._follow(first, node.name)
        return self._follow(self._first(self._dominators[node.name], coordinates.indices), node.name)

    # -- a join's parents ----------------------------------------------------------------------------------------------

    def _opener(self, join: Node, coordinates: Coordinates) -> TaskRef:
        """Return the task that opened what a join closes."""
        openers = self._openers[join.name]
        if len(openers) == 1:
            return TaskRef(openers[0], Coordinates(coordinates.indices))
        # Branches of a switch that each open something, and close it in the same step.
        return self._follow(self._first(self._dominators[join.name], coordinates.indices), join.name)

    def _inputs(self, join: Node, opener: TaskRef) -> tuple[Span, ...]:
        node = self._nodes[opener.step]
        indices = opener.coordinates.indices
        if node.kind == "split":
            return tuple(Span(*self._branch_end(join, node, target, indices, opener)) for target in node.targets)
        transition = self._transition(opener)
        width = transition.width or 0
        ends = self._ends(join, node, node.targets[0])
        if not width:
            return ()
        if len(ends) == 1 and not self._nodes[ends[0]].is_loop:
            return (Span(ends[0], Coordinates((*indices, 0)), width),)
        target = node.targets[0]
        found = self._each(lambda index: self._follow(self._first(target, (*indices, index)), join.name), range(width))
        return tuple(_spans(found))

    def _branch_end(self, join: Node, opener: Node, target: str, indices: tuple[int, ...], ref: TaskRef) -> TaskRef:
        if target == join.name:
            return ref
        ends = self._ends(join, opener, target)
        if len(ends) == 1 and not self._nodes[ends[0]].is_loop:
            return TaskRef(ends[0], Coordinates(indices))
        return self._follow(self._first(target, indices), join.name)

    def _ends(self, join: Node, opener: Node, target: str) -> list[str]:
        """Return the steps with which one branch of an opener may arrive at its join."""
        nodes = (self._nodes[name] for name in join.sources)
        return [node.name for node in nodes if node.splits[-1:] == (opener.name,) and node.branch == target]

    # -- following what is committed ----------------------------------------------------------------------------------

    def _follow(self, ref: TaskRef, until: str) -> TaskRef:
        """Return the last task before a step: from a task on, along the transitions, without what closes on the way.

        Where the step is a join, and the way leads through what opens what it closes, that is its opener.
        """
        while True:
            node = self._nodes[ref.step]
            transition = self._transition(ref)
            if node.opens:
                following = node.matching_join or ""
            else:
                following = transition.targets[0] if transition.targets else ""
            if following == until and not (following == ref.step and node.is_loop):
                return ref
            if following not in self._nodes:
                raise DataError(f"{ref} does not lead to the step '{until}'", "the run's manifests contradict the flow")
            turn = None
            if self._nodes[following].is_loop:
                turn = (ref.coordinates.turn or 0) + 1 if following == ref.step else 0
            ref = TaskRef(following, Coordinates(ref.coordinates.indices, turn))

    def _transition(self, ref: TaskRef) -> Transition:
        if ref not in self._known:
            self._known[ref] = self._transition_of(ref)
        return self._known[ref]

    def _first(self, step: str, indices: tuple[int, ...]) -> TaskRef:
        return TaskRef(step, Coordinates(indices, 0 if self._nodes[step].is_loop else None))

    @staticmethod
    def _sources(node: Node) -> list[str]:
        return [name for name in node.sources if name != node.name]

    # -- the graph -----------------------------------------------------------------------------------------------------

    @cached_property
    def _openers(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for node in self._nodes.values():
            if node.matching_join is not None:
                found.setdefault(node.matching_join, []).append(node.name)
        return found

    @cached_property
    def _dominators(self) -> dict[str, str]:
        """For each step the nearest one that every way to it passes."""
        order = self._order()
        place = {name: index for index, name in enumerate(order)}
        found: dict[str, str] = {order[0]: order[0]}
        # One pass is enough: without its loops to themselves the graph has no cycle.
        for name in order[1:]:
            sources = [source for source in self._sources(self._nodes[name]) if source in found]
            nearest = sources[0]
            for other in sources[1:]:
                while nearest != other:
                    if place[nearest] > place[other]:
                        nearest = found[nearest]
                    else:
                        other = found[other]
            found[name] = nearest
        return found

    def _order(self) -> list[str]:
        """Return the steps so that each comes after its sources."""
        missing = {name: len(self._sources(node)) for name, node in self._nodes.items()}
        ready = [self._start or ""]
        order = []
        while ready:
            name = ready.pop()
            order.append(name)
            for target in self._nodes[name].targets:
                if target == name:
                    continue
                missing[target] -= 1
                if not missing[target]:
                    ready.append(target)
        return order


def _spans(refs: Iterator[TaskRef]) -> Iterator[Span]:
    """Put tasks in a row together whose last index counts up."""
    span: Span | None = None
    for ref in refs:
        if span is not None and (ref.step, ref.coordinates.turn) == (span.step, span.first.turn):
            span = span._replace(length=span.length + 1)
            continue
        if span is not None:
            yield span
        span = Span(ref.step, ref.coordinates)
    if span is not None:
        yield span
