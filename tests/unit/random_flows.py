"""Random flows from a grammar, what their tasks do, and what must come of it by a plain recursive reading.

A block is a piece of a flow with one way in: a step, a chain of blocks, a split, a foreach, a gang, a switch or a
loop. The reading (`expected`) knows nothing of the scheduler: it walks the blocks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from graph_builder import graph_of
from hypothesis import strategies as st

from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.graph import Graph
from flowkit.model.transition import Transition

Block = Any
"""("step",), ("gang",), ("loop",), or (kind, [blocks]) for chain, split, switch, and foreach (of one block)."""

LEAF = st.sampled_from([("step",), ("gang",), ("loop",)])


def _several(kind: str, inner: st.SearchStrategy[Block], least: int, most: int) -> st.SearchStrategy[Block]:
    return st.tuples(st.just(kind), st.lists(inner, min_size=least, max_size=most))


BLOCKS = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        _several("chain", inner, 1, 3),
        _several("split", inner, 2, 3),
        _several("switch", inner, 2, 3),
        _several("foreach", inner, 1, 1),
    ),
    max_leaves=7,
)


@dataclass
class Compiled:
    """A block as steps: where it begins, and the steps whose ``self.next`` leads out of it."""

    entry: str
    exits: list[str]
    parts: list[Compiled] = field(default_factory=list)


class RandomFlow:
    """A flow made of a block between start and end, with tasks that decide by a seed.

    Parameters
    ----------
    block : Block
        Its shape.
    seed : int
        Decides widths (0 to 3), nodes (1 to 3), choices and turns, by task.
    """

    def __init__(self, block: Block, seed: int) -> None:
        self.seed = seed
        self.openers: dict[TaskRef, TaskRef] = {}
        """For each expected join: the task that opened what it closes."""
        self._lines: dict[str, list[str]] = {"start": ["linear"], "end": ["end"]}
        self._block = block
        self._compiled = self._compile(block)
        self._lead("start", self._compiled.entry)
        for step in self._compiled.exits:
            self._lead(step, "end")
        self.graph: Graph = graph_of({name: " ".join(words) for name, words in self._lines.items()})

    def _step(self, *words: str) -> str:
        name = f"s{len(self._lines):02}"
        self._lines[name] = list(words)
        return name

    def _lead(self, step: str, target: str) -> None:
        self._lines[step].append(target)

    def _compile(self, block: Block) -> Compiled:
        kind = block[0]
        if kind == "step":
            name = self._step("linear")
            return Compiled(name, [name])
        if kind == "loop":
            name = self._step("switch")
            after = self._step("linear")
            self._lines[name] += [name, after]
            return Compiled(name, [after])
        if kind == "gang":
            opener, member, join = self._step("parallel"), self._step("linear"), self._step("join", "linear")
            self._lead(opener, member)
            self._lead(member, join)
            return Compiled(opener, [join], [Compiled(member, [member])])
        if kind == "chain":
            parts = [self._compile(item) for item in block[1]]
            for before, after in pairwise(parts):
                for step in before.exits:
                    self._lead(step, after.entry)
            return Compiled(parts[0].entry, parts[-1].exits, parts)
        opener = self._step(kind)
        parts = [self._compile(item) for item in block[1]]
        for part in parts:
            self._lead(opener, part.entry)
        exits = [step for part in parts for step in part.exits]
        if kind == "switch":
            return Compiled(opener, exits, parts)
        join = self._step("join", "linear")
        for step in exits:
            self._lead(step, join)
        return Compiled(opener, [join], parts)

    def transition(self, ref: TaskRef) -> Transition:
        """Return what a task does at its end: the same whenever it runs."""
        node = self.graph[ref.step]
        chance = random.Random(f"{self.seed} {ref}")
        if node.kind == "foreach":
            return Transition("foreach", node.targets, chance.choice([0, 1, 2, 3]))
        if node.kind == "parallel":
            return Transition("parallel", node.targets, chance.choice([1, 2, 3]))
        if node.kind == "switch":
            if node.is_loop and (ref.coordinates.turn or 0) >= 3:
                return Transition("switch", (node.targets[1],))
            return Transition("switch", (chance.choice(node.targets),))
        return Transition(node.kind, node.targets)  # type: ignore[arg-type]

    def expected(self) -> dict[TaskRef, list[TaskRef]]:
        """Return every task that must run (a gang by its node 0), each with its parents in input order."""
        out: dict[TaskRef, list[TaskRef]] = {}
        start = TaskRef("start", Coordinates())
        out[start] = []
        last = self._read(self._block, self._compiled, (), start, out)
        out[TaskRef("end", Coordinates())] = [last]
        return out

    def _read(
        self,
        block: Block,
        compiled: Compiled,
        indices: tuple[int, ...],
        parent: TaskRef,
        out: dict[TaskRef, list[TaskRef]],
    ) -> TaskRef:
        """Walk one block from the task that leads into it; return the task that leads out."""
        kind = block[0]
        if kind == "chain":
            for item, part in zip(block[1], compiled.parts, strict=True):
                parent = self._read(item, part, indices, parent, out)
            return parent
        turn = 0 if kind == "loop" else None
        task = TaskRef(compiled.entry, Coordinates(indices, turn))
        out[task] = [parent]
        if kind == "step":
            return task
        if kind == "loop":
            while self.transition(task).targets[0] == task.step:
                parent, turn = task, (task.coordinates.turn or 0) + 1
                task = TaskRef(task.step, Coordinates(indices, turn))
                out[task] = [parent]
            after = TaskRef(compiled.exits[0], Coordinates(indices))
            out[after] = [task]
            return after
        if kind == "switch":
            chosen = self.transition(task).targets[0]
            number = next(index for index, part in enumerate(compiled.parts) if part.entry == chosen)
            return self._read(block[1][number], compiled.parts[number], indices, task, out)
        width = self.transition(task).width or 0
        if kind == "gang":
            member = compiled.parts[0].entry
            out[TaskRef(member, Coordinates((*indices, 0)))] = [task]
            ends = [TaskRef(member, Coordinates((*indices, node))) for node in range(width)]
        elif kind == "foreach":
            ends = [self._read(block[1][0], compiled.parts[0], (*indices, index), task, out) for index in range(width)]
        else:
            ends = [
                self._read(item, part, indices, task, out) for item, part in zip(block[1], compiled.parts, strict=True)
            ]
        join = TaskRef(compiled.exits[0], Coordinates(indices))
        out[join] = ends
        self.openers[join] = task
        return join


FLOWS = st.builds(RandomFlow, BLOCKS, st.integers(0, 2**16))
