"""Which tasks a task came from and led to, told from manifests and coordinates.

A manifest names its parents. Children follow from the transition: every task id that a target could have is known
from the coordinates, and which of them exists says the index. The parents of a task without a manifest, such as one
that failed, follow from the graph in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flowkit.client.connection import Connection
from flowkit.model.launch import read_spans
from flowkit.model.manifest import Manifest

_FEW = 32
"""Up to so many ids are looked up one by one; beyond, the step's tasks are listed once."""


def parent_ids(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (step, task) of every parent, in the order in which a join sees its inputs."""
    for span in read_spans(manifest.parents):
        for ref in span.refs():
            if not ref.step.startswith("_"):  # the parameters are not one of the user's steps
                yield ref.step, str(ref.coordinates)


def child_ids(connection: Connection, run: str, manifest: Manifest, task: str) -> Iterator[tuple[str, str]]:
    """Yield (step, task) of every child that has begun, in the order of targets and indices.

    Parameters
    ----------
    connection : Connection
        Where to look whether a child exists.
    run : str
        The run to look in, which is not the manifest's where the task was taken over from another run.
    manifest : Manifest
        Of the task.
    task : str
        The task's id.
    """
    transition = manifest.transition
    fans_out = transition.kind in ("foreach", "parallel")
    for target in transition.targets:
        step = (manifest.flow, run, target)
        if fans_out:
            found = _existing(connection, step, _fanned_out(manifest, task), transition.width or 0)
        else:
            found = _existing(connection, step, [_next_ids(manifest, target, task)])
        yield from ((target, child) for child in found)


def _fanned_out(manifest: Manifest, task: str) -> Iterator[list[str]]:
    """Yield the ids that each child of a foreach or gang may have: it may be the first turn of a loop."""
    prefix = f"{task.partition('-')[0]}." if manifest.frames else ""
    for index in range(manifest.transition.width or 0):
        yield [f"{prefix}{index}", f"{prefix}{index}-0"]


def _next_ids(manifest: Manifest, target: str, task: str) -> list[str]:
    """Return the ids that the one child in a step may have."""
    body, _, turn = task.partition("-")
    if target == manifest.step:
        return [f"{body}-{int(turn or 0) + 1}"]
    # The same place; the first turn of a loop; behind the join of the foreach that the task is in.
    outer = body.rpartition(".")[0] or "0"
    return [body, f"{body}-0", *([outer, f"{outer}-0"] if manifest.frames else [])]


def _existing(
    connection: Connection, step: tuple[str, str, str], wanted: Iterable[list[str]], count: int = 1
) -> Iterator[str]:
    """Yield, of each list of possible ids, the first one that exists; `count` is the number of lists."""
    metadata = connection.metadata
    if count > _FEW:
        known = {record.task for record in metadata.tasks(*step)}
        for ids in wanted:
            yield from [name for name in ids if name in known][:1]
        return
    for ids in wanted:
        for name in ids:
            if metadata.task(*step, name) is not None:
                yield name
                break


class Shape:
    """The graph that a run was started with, as its parameters' manifest tells it.

    Parameters
    ----------
    graph : mapping
        The JSON of `flowkit.model.graph_output.to_json`; empty where it is not known.
    """

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self.start = str(graph.get("start_step") or "start")
        self.end = str(graph.get("end_step") or "end")
        self.steps: Mapping[str, Mapping[str, Any]] = graph.get("steps") or {}

    def children(self, step: str) -> list[str]:
        """Return the steps that may follow one."""
        return [str(name) for name in self.steps.get(step, {}).get("next", ())]

    def parents(self, step: str) -> list[str]:
        """Return the steps that may come before one."""
        return [name for name in self.steps if step in self.children(name)]

    def fans_out(self, step: str) -> bool:
        """Whether the step opens a foreach or a gang."""
        return self.steps.get(step, {}).get("type") in ("split-foreach", "split-parallel")

    def gathers(self, step: str, source: str) -> bool:
        """Whether a step joins all that a foreach made of another one."""
        outer, inner = self.depth(step), self.depth(source)
        return outer is not None and inner is not None and inner > outer

    def depth(self, step: str) -> int | None:
        """Return how many foreaches enclose a step; None where the graph does not know it."""
        depths = {self.start: 0}
        todo = [self.start]
        joins = {node.get("matching_join") for node in self.steps.values()}
        while todo and step not in depths:
            name = todo.pop()
            inside = depths[name] + self.fans_out(name)
            behind = self.steps.get(name, {}).get("matching_join")
            found = {target: inside for target in self.children(name) if target not in joins}
            if behind is not None:
                found[behind] = depths[name]
            todo += [target for target in found if target not in depths]
            depths = {**found, **depths}
        return depths.get(step)


def likely_parent_ids(
    connection: Connection, shape: Shape, where: tuple[str, str, str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (step, task) of the tasks that a task without a manifest must have come from, in index order.

    Parameters
    ----------
    connection : Connection
        Where to look which tasks there are.
    shape : Shape
        The graph of the run.
    where : tuple of str
        Flow, run, step and task.
    """
    flow, run, step, task = where
    body, dash, turn = task.partition("-")
    if dash and turn != "0":
        yield step, f"{body}-{int(turn) - 1}"
        return
    for source in shape.parents(step):
        if source == step:
            continue
        if shape.fans_out(source):
            names = _existing(connection, (flow, run, source), [[body.rpartition(".")[0] or "0"]])
        elif shape.gathers(step, source):
            names = _last_turns(connection, (flow, run, source), f"{body}." if shape.depth(step) else "")
        elif source in shape.children(source):
            names = _last_turns(connection, (flow, run, source), f"{body}-")
        else:
            names = _existing(connection, (flow, run, source), [[body]])
        yield from ((source, name) for name in names)


def _last_turns(connection: Connection, step: tuple[str, str, str], prefix: str) -> Iterator[str]:
    """Yield the ids of a step's completed tasks with a prefix, in index order; of a loop's turns only the last ones."""
    last: dict[str, int] = {}
    for record in connection.metadata.tasks(*step, status="succeeded"):
        if record.task.startswith(prefix):
            body, dash, turn = record.task.partition("-")
            last[body] = max(last.get(body, -1), int(turn) if dash else -1)
    for body in sorted(last, key=lambda name: [int(index) for index in name.split(".")]):
        yield body if last[body] < 0 else f"{body}-{last[body]}"
