"""From a flow's graph to the tasks of a DAG: which step is mapped over what, what waits for what, and by which rule.

Airflow cannot expand inside what is expanded. So each step within foreaches is one mapped task over the flat list of
its tasks' ids, however deep it is; a small task before it makes the list from the widths that the foreach's own tasks
told.
Steps that follow each other within a foreach are mapped over the same list. A join is mapped over the list of the step
that opened what it joins.

What a switch chooses is told to those within foreaches by such a list too: it has the ids of the tasks that chose the
step, and may be empty, which Airflow calls skipped. Outside, a branch task skips what was not chosen. An edge from a
branch to a step that has other ways in leads through an empty task: a branch itself always succeeds, and the step's
rule has to see which way was taken.

The rules: outside foreaches a step with one way in runs when that did, one with several when one of them was taken and
none failed; so does the join of a foreach, which waits for the step that opened it too: without children the steps
between are skipped. Within foreaches lists decide, so a step only minds failures. The end always runs unless something
failed: a run in which it did not is never a success.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flowkit.model.graph import Graph, Node

ALWAYS = "none_failed"
ONE_WAY = "none_failed_min_one_success"
SIMPLE = "all_success"


@dataclass(frozen=True, slots=True)
class ListTask:
    """A small task that makes the list which steps are mapped over.

    Parameters
    ----------
    step : str
        The first step that is mapped over it.
    function : str
        ``children`` of a foreach, ``gangs`` of a num_parallel, or those that have ``chosen`` the step.
    sources : tuple of (bool, str)
        Whether it is the list of another step (or what a step's tasks told), and whose.
    depth : int
        How many foreaches are about the step that opens it.
    """

    step: str
    function: str
    sources: tuple[tuple[bool, str], ...]
    depth: int = 0


@dataclass(slots=True)
class StepTask:
    """A step in Airflow.

    Parameters
    ----------
    name : str
        The step.
    rule : str
        Its trigger rule.
    mapped : str or None
        The step whose list it is mapped over.
    tells : bool
        Whether another task has to know what follows it.
    loops : bool
        All turns are carried out by one task.
    gang : bool
        All nodes are carried out by one task.
    after : list of str
        The steps that it waits for, besides what its list waits for.
    through : list of (str, str)
        Switches that may lead to it, and by what: ``branch``, or ``empty`` for an empty task between.
    last : bool
        Nothing that waits for it waits for all that runs beside it: the task that ends the run has to.
    """

    name: str
    rule: str = SIMPLE
    mapped: str | None = None
    tells: bool = False
    loops: bool = False
    gang: bool = False
    after: list[str] = field(default_factory=list)
    through: list[tuple[str, str]] = field(default_factory=list)
    last: bool = False


@dataclass(slots=True)
class Plan:
    """The tasks of a DAG, each after what it needs.

    Parameters
    ----------
    steps : dict of str to StepTask
        In an order in which each comes after all that leads to it.
    lists : dict of str to ListTask
        By the step that they are made for.
    branches : dict of str to dict
        For a switch outside foreaches: each step that it may lead to, and by what (as in `StepTask.through`).
    """

    steps: dict[str, StepTask] = field(default_factory=dict)
    lists: dict[str, ListTask] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)


def plan(graph: Graph) -> Plan:
    """Return the tasks that carry out a flow."""
    made = Plan()
    closes = {node.matching_join: name for name, node in graph.nodes.items() if node.matching_join is not None}
    for name in graph.order():
        _add(made, graph, graph[name], closes.get(name))
    for name, task in made.steps.items():
        node = graph[name]
        told = any(
            of_list is False and name == source for each in made.lists.values() for of_list, source in each.sources
        )
        task.tells = told or name in made.branches
        joined = any(graph[target].is_join for target in node.targets)
        task.last = task.mapped is not None or joined or name == graph.end
    return made


def exits(node: Node) -> tuple[str, ...]:
    """Return the steps that can follow a step; for a loop without itself."""
    return tuple(target for target in node.targets if target != node.name)


def _chooses(node: Node) -> bool:
    return node.kind == "switch" and len(exits(node)) > 1


def _add(made: Plan, graph: Graph, node: Node, opener: str | None) -> None:
    task = StepTask(node.name, loops=node.is_loop)
    sources = [source for source in node.sources if source != node.name]
    task.gang = any(graph[source].kind == "parallel" for source in sources)
    task.mapped = _mapped(made, graph, node, sources, opener)
    own = made.lists.get(node.name)
    for source in sources:
        if task.mapped is None and _chooses(graph[source]):
            way = "empty" if len(sources) > 1 else "branch"
            task.through.append((source, way))
            made.branches.setdefault(source, {})[node.name] = way
        elif own is None or (False, source) not in own.sources:
            task.after.append(source)
    if opener is not None and graph[opener].kind != "split" and opener not in task.after:
        task.after.insert(0, opener)
    if task.mapped is not None or node.name == graph.end:
        task.rule = ALWAYS
    elif len(task.after) + len(task.through) > 1:
        task.rule = ONE_WAY
    made.steps[node.name] = task


def _mapped(made: Plan, graph: Graph, node: Node, sources: list[str], opener: str | None) -> str | None:
    """Return the step whose list a step is mapped over; make the list where there is none yet."""
    if opener is not None and node.is_join:
        return made.steps[opener].mapped
    if node.depth == 0:
        return None
    source = graph[sources[0]]
    if source.kind in ("foreach", "parallel"):
        function = "gangs" if source.kind == "parallel" else "children"
        made.lists[node.name] = ListTask(node.name, function, ((False, source.name),), source.depth)
        return node.name
    if len(sources) == 1 and not _chooses(source):
        return made.steps[source.name].mapped
    ways: list[tuple[bool, str]] = []
    for name in sources:
        way = (False, name) if _chooses(graph[name]) else (True, made.steps[name].mapped or name)
        if way not in ways:
            ways.append(way)
    made.lists[node.name] = ListTask(node.name, "chosen", tuple(ways))
    return node.name
