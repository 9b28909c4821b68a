"""What runs where: the features of the language, and which target has them. Data, from which the table in the
documentation is made (``docs/deploying.md``, by ``docs/make_capabilities.py``), and by which ``create`` refuses.

A cell is ``yes``, ``no`` or ``part`` with a note that says which part. Where a target cannot do something that a flow
uses, `refusals` names every place in the flow's source, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from flowkit.exceptions import Location, Problem

if TYPE_CHECKING:
    from flowkit.deployer.target import Deployment
    from flowkit.model.graph import Node

Support = Literal["yes", "part", "no"]


class Cell(NamedTuple):
    """What one target makes of one feature; ``note`` says which part, or why not, in a few words."""

    support: Support
    note: str = ""


YES = Cell("yes")


class Feature(NamedTuple):
    """One feature of the language.

    Parameters
    ----------
    name : str
        In the table below.
    label : str
        For people.
    uses : callable
        Returns the places where a deployment uses it: a step's name and where that stands, or an empty text for the
        flow as a whole.
    """

    name: str
    label: str
    uses: Callable[[Deployment], list[tuple[str, Location | None]]]


def _nodes(fits: Callable[[Deployment, Node], bool]) -> Callable[[Deployment], list[tuple[str, Location | None]]]:
    def uses(deployment: Deployment) -> list[tuple[str, Location | None]]:
        nodes = deployment.graph.nodes.values()
        return [(node.name, node.next_location or node.location) for node in nodes if fits(deployment, node)]

    return uses


def _steps(fits: Callable[[Deployment, str], bool]) -> Callable[[Deployment], list[tuple[str, Location | None]]]:
    def uses(deployment: Deployment) -> list[tuple[str, Location | None]]:
        return [(name, deployment.graph[name].location) for name in deployment.steps if fits(deployment, name)]

    return uses


def _flow(
    fits: Callable[[Deployment], bool], decorator: str = ""
) -> Callable[[Deployment], list[tuple[str, Location | None]]]:
    return lambda deployment: [("", deployment.places.get(decorator))] if fits(deployment) else []


def _body_is_long(deployment: Deployment, node: Node) -> bool:
    """Whether a foreach's children have more to do than one step before they are joined."""
    if node.kind != "foreach" or not node.targets:
        return False
    return any(not deployment.graph[target].is_join for target in deployment.graph[node.targets[0]].targets)


def _decorated(name: str) -> Callable[[Deployment, str], bool]:
    return lambda deployment, step: name in deployment.graph[step].decorators


FEATURES: tuple[Feature, ...] = (
    Feature("linear", "steps in a row", _nodes(lambda _, node: node.kind == "linear")),
    Feature("split", "split and join", _nodes(lambda _, node: node.kind == "split")),
    Feature("foreach", "foreach", _nodes(lambda _, node: node.kind == "foreach")),
    Feature(
        "nested_foreach",
        "foreach in a foreach",
        _nodes(lambda _, node: node.kind == "foreach" and node.depth > 0),
    ),
    Feature("long_foreach", "foreach over several steps", _nodes(_body_is_long)),
    Feature("switch", "switch", _nodes(lambda _, node: node.kind == "switch" and not node.is_loop)),
    Feature(
        "switch_in_foreach",
        "switch in a foreach",
        _nodes(lambda _, node: node.kind == "switch" and not node.is_loop and node.depth > 0),
    ),
    Feature("loop", "loop (a switch back to its own step)", _nodes(lambda _, node: node.is_loop)),
    Feature("num_parallel", "gang (`num_parallel`)", _nodes(lambda _, node: node.kind == "parallel")),
    Feature("retry", "`@retry`, with its delay", _steps(lambda flow, step: flow.steps[step].attempts.retries > 0)),
    Feature("catch", "`@catch`", _steps(lambda flow, step: flow.steps[step].attempts.fallback)),
    Feature("timeout", "`@timeout`", _steps(lambda flow, step: flow.steps[step].attempts.timeout is not None)),
    Feature("environment", "`@environment`", _steps(_decorated("environment"))),
    Feature("secrets", "`@secrets`", _steps(_decorated("secrets"))),
    Feature("resources", "`@resources`", _steps(_decorated("resources"))),
    Feature("schedule", "`@schedule`", _flow(lambda flow: flow.schedule is not None, "schedule")),
    Feature(
        "time_zone",
        "`@schedule(timezone=…)`",
        _flow(lambda flow: bool(flow.schedule and flow.schedule.timezone), "schedule"),
    ),
    Feature("parameters", "parameters, with defaults of deploy time", _flow(lambda flow: bool(flow.parameters))),
    Feature("events", "`@trigger`", _flow(lambda flow: bool(flow.events), "trigger")),
    Feature("on_finish", "`@trigger_on_finish`", _flow(lambda flow: bool(flow.finishes), "trigger_on_finish")),
    Feature("exit_hooks", "`@exit_hook`", _flow(lambda flow: flow.on_success or flow.on_error, "exit_hook")),
    Feature("concurrency", "`--concurrency forbid` or `replace`", _flow(lambda flow: flow.concurrency != "allow")),
    Feature("priority", "`--priority`", _flow(lambda flow: flow.priority is not None)),
    Feature("notifications", "`--notify-on-error`, `--notify-on-success`", _flow(lambda flow: False)),
    Feature("suspend", "`suspend` and `unsuspend` of a run", _flow(lambda flow: False)),
)
"""In the order of the table."""

TARGETS: tuple[str, ...] = ("local", "argo-workflows", "step-functions", "airflow", "kubernetes")
"""In the order of the table's columns."""

_ALL: Mapping[str, Cell] = {feature.name: YES for feature in FEATURES}

TABLE: dict[str, dict[str, Cell]] = {
    "local": {
        **_ALL,
        "priority": Cell("no", "runs start when they are due"),
        "suspend": Cell("no", "a run's client goes on until it is ended"),
    },
    "argo-workflows": {
        **_ALL,
        "concurrency": Cell("part", "of a schedule's firings: each event starts a run"),
    },
    "step-functions": {
        **_ALL,
        "events": Cell("part", "one event; several together are refused"),
        "on_finish": Cell("part", "of one flow, on Step Functions in the same account and region"),
        "concurrency": Cell("part", "of runs that begin within a second or two of each other both may go on"),
        "priority": Cell("no", "Step Functions has none"),
        "suspend": Cell("no", "Step Functions cannot"),
    },
    "airflow": {
        **_ALL,
        "num_parallel": Cell("part", "with `--executor local`"),
        "events": Cell("part", "as assets (datasets) of Airflow, which its REST API is told of"),
        "on_finish": Cell("part", "of flows on the same Airflow"),
        "concurrency": Cell("part", "`forbid` lets one run wait; no `replace`"),
        "suspend": Cell("no", "Airflow pauses DAGs, not their runs"),
    },
    "kubernetes": {
        **_ALL,
        "events": Cell("no", "nothing listens for them"),
        "on_finish": Cell("no", "nothing listens for them"),
        "priority": Cell("no", "a Job has none"),
        "suspend": Cell("no", "a run's client goes on until it is ended"),
    },
}
"""What each target makes of each feature. A test runs what a cell claims."""


def refusals(target: str, deployment: Deployment) -> list[Problem]:
    """Return a problem for each place where a flow uses what a target cannot do.

    Parameters
    ----------
    target : str
        Its name; for one that is not in the table (from another package) nothing is refused.
    deployment : Deployment
        The flow.
    """
    problems = []
    row = TABLE.get(target, {})
    for feature in FEATURES:
        cell = row.get(feature.name, YES)
        if cell.support != "no":
            continue
        others = [name for name in TARGETS if TABLE[name].get(feature.name, YES).support != "no"]
        hint = f"these can: {', '.join(others)}" if others else None
        because = f" ({cell.note})" if cell.note else ""
        for step, where in feature.uses(deployment):
            what = f"step '{step}': " if step else ""
            problems.append(Problem(f"{what}{target} cannot do {feature.label}{because}", where, hint))
    return problems
