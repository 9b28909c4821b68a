"""The order of a flow's steps as templates of Argo Workflows: DAGs.

The flow is one DAG; the steps within a foreach are a DAG of their own, which is used once for each child
(``withSequence``, as many as the foreach's task has written) with the child's coordinates as the parameter ``place``. A
loop is a template that calls itself with the next turn.

``depends`` says after what a task comes, ``when`` whether a switch has chosen it. Argo omits a task whose ``depends``
does not hold, and skips one whose ``when`` does not: neither has outputs, and to ask for one stops some versions for
ever (https://github.com/argoproj/argo-workflows/issues/15837). So nothing but the status is asked of a task that may
not have run: where a step is reached from a switch that may not have run, and from elsewhere, too, a task between the
two, which does nothing, runs if the switch has chosen the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.deployer.target import PARAMETER, TASK, TRIGGER, TURNS, Deployment
from flowkit.model.graph import Node
from flowkit.plugins.argo.gangs import LABEL, NODES, PLACE, gang_template, hosts_template
from flowkit.plugins.argo.names import Names
from flowkit.plugins.argo.pods import NOTHING, Pods

TURN = "turn"
"""The parameter with a loop's turn."""
WHOLE_LOOPS = "whole_loops"
"""The option by which one container carries out all turns of a loop: Argo Workflows lets templates call each other a
hundred deep, so that a loop of containers may turn some ninety times."""


class Dags(NamedTuple):
    """The templates of a flow, and the name of the first one."""

    entry: str
    templates: list[dict[str, Any]]


def dag_templates(deployment: Deployment, names: Names, pods: Pods) -> Dags:
    """Return the templates of a flow.

    Parameters
    ----------
    deployment : Deployment
        The flow.
    names : Names
        For templates.
    pods : Pods
        Makes those of containers.
    """
    return _Compiler(deployment, names, pods).compile()


class _Compiler:
    def __init__(self, deployment: Deployment, names: Names, pods: Pods) -> None:
        self._deployment = deployment
        self._nodes = deployment.graph.nodes
        self._pods = pods
        self._order = deployment.graph.order()
        self._step = {name: names.give(name) for name in self._order}
        """The task of each step, and the template that it uses, but for loops: theirs is in `_loop`."""
        self._scope = {name: self._scope_of(name) for name in self._order}
        self._only = self._only_steps()
        """Of a foreach over one plain step: that step. It needs no DAG, of which each child would have a node."""
        foreaches = [name for name in self._order if self._nodes[name].kind == "foreach"]
        self._children = {
            name: self._step[self._only[name]] if name in self._only else names.give(f"{name}-each")
            for name in foreaches
        }
        self._whole_loops = bool(deployment.options.get(WHOLE_LOOPS))
        loops = [] if self._whole_loops else [name for name in self._order if self._nodes[name].is_loop]
        self._loop = {name: names.give(f"{name}-turns") for name in loops}
        self._between = {
            (source.name, name): names.give(f"{source.name}-to-{name}")
            for name in self._order
            for source in self._choosing(name)
            if not self._always_before(source.name, name)
        }
        """The tasks between a switch that may not have run and a step that it may choose."""
        self._nothing = names.give("chosen") if self._between else ""
        self._entry = names.give("flow")
        self._hosts = names.give("hosts") if any(node.kind == "parallel" for node in self._nodes.values()) else None
        self._gangs = [name for name in self._order if self._is_gang(name)]
        self._with_gangs = self._scopes_with_gangs()

    def compile(self) -> Dags:
        scopes: dict[str | None, list[str]] = {None: []}
        for name in self._order:
            if self._nodes[name].kind == "foreach":
                scopes[name] = []
            scopes[self._scope[name]].append(name)
        templates = [self._dag(scope, steps) for scope, steps in scopes.items() if scope not in self._only]
        for name in self._order:
            templates += self._templates_of(name)
        if self._hosts is not None:
            templates.append(hosts_template(self._hosts))
        if self._between:
            templates.append({"name": self._nothing, "suspend": {"duration": "0"}})
        return Dags(self._entry, templates)

    # -- where steps are -----------------------------------------------------------------------------------------------

    def _is_gang(self, name: str) -> bool:
        splits = self._nodes[name].splits
        return bool(splits) and self._nodes[splits[-1]].kind == "parallel"

    def _scope_of(self, name: str) -> str | None:
        """Return the innermost foreach that a step is in."""
        opened = (each for each in reversed(self._nodes[name].splits) if self._nodes[each].kind == "foreach")
        return next(opened, None)

    def _only_steps(self) -> dict[str, str]:
        found: dict[str, list[str]] = {}
        for name, scope in self._scope.items():
            if scope is not None:
                found.setdefault(scope, []).append(name)
        return {
            scope: steps[0]
            for scope, steps in found.items()
            if len(steps) == 1 and self._nodes[steps[0]].kind == "linear"
        }

    def _scopes_with_gangs(self) -> set[str | None]:
        found: set[str | None] = set()
        for name in self._gangs:
            scope = self._scope[name]
            while scope is not None and scope not in found:
                found.add(scope)
                scope = self._scope[scope]
        return found

    # -- templates -----------------------------------------------------------------------------------------------------

    def _dag(self, scope: str | None, steps: list[str]) -> dict[str, Any]:
        tasks = []
        for name in steps:
            tasks += self._tasks_between(name)
            tasks.append(self._task(name, scope))
            if self._nodes[name].kind == "foreach":
                tasks.append(self._children_task(name, scope))
        if scope is None:
            if self._hosts is not None:
                tasks.insert(0, {"name": self._hosts, "template": self._hosts})
            return {"name": self._entry, "dag": {"tasks": tasks}}
        inputs = [PLACE, *([LABEL] if scope in self._with_gangs else [])]
        return {
            "name": self._children[scope],
            "inputs": {"parameters": [{"name": each} for each in inputs]},
            "dag": {"tasks": tasks},
        }

    def _task(self, name: str, scope: str | None) -> dict[str, Any]:
        node = self._nodes[name]
        task = {"name": self._step[name], "template": self._loop.get(name, self._step[name])}
        given = {} if scope is None else {PLACE: _input(PLACE)}
        if name in self._loop:
            given[TURN] = "0"
        if self._is_gang(name):
            given = {} if scope is None else {PLACE: _input(PLACE), LABEL: _input(LABEL)}
            given[NODES] = self._output(node.splits[-1], "width")
        return {**task, **self._after(node), **_arguments(given)}

    def _children_task(self, name: str, scope: str | None) -> dict[str, Any]:
        given = {PLACE: "{{item}}" if scope is None else f"{_input(PLACE)}.{{{{item}}}}"}
        if name in self._with_gangs:
            given[LABEL] = "{{item}}" if scope is None else f"{_input(LABEL)}-{{{{item}}}}"
        return {
            "name": self._children[name],
            "template": self._children[name],
            "depends": f"{self._step[name]}.Succeeded",
            "withSequence": {"start": "0", "count": self._output(name, "width")},
            **_arguments(given),
        }

    def _templates_of(self, name: str) -> list[dict[str, Any]]:
        node, plan = self._nodes[name], self._deployment.steps[name]
        scope = self._scope[name]
        place = "0" if scope is None else _input(PLACE)
        inputs = [] if scope is None else [PLACE]
        if self._is_gang(name):
            number = self._gangs.index(name)
            return [gang_template(plan, self._step[name], self._pods.defaults, number=number, inside=scope is not None)]
        outputs = {"switch": ["step"], "foreach": ["width"], "parallel": ["width"]}.get(node.kind, [])
        told = {TASK: place}
        if name in self._loop:
            inputs, told[TASK] = [*inputs, TURN], f"{place}-{_input(TURN)}"
        elif node.is_loop:
            told[TURNS] = "all"
        template = self._pods.step(plan, self._step[name], inputs=inputs, environment=told, outputs=outputs)
        if name == self._deployment.graph.start:
            template["container"]["env"] += start_environment(self._deployment)
        return [self._turns(node, inputs), template] if name in self._loop else [template]

    def _turns(self, node: Node, inputs: list[str]) -> dict[str, Any]:
        """Return the template of a loop: one turn, and again where it has chosen itself."""
        same = {each: _input(each) for each in inputs}
        following = {**same, TURN: f"{{{{=asInt(inputs.parameters.{TURN}) + 1}}}}"}
        turn = {"name": "turn", "template": self._step[node.name], **_arguments(same)}
        again = {
            "name": "again",
            "template": self._loop[node.name],
            "depends": "turn.Succeeded",
            "when": _chosen("{{tasks.turn.outputs.parameters.step}}", node.name),
            **_arguments(following),
        }
        template: dict[str, Any] = {
            "name": self._loop[node.name],
            "inputs": {"parameters": [{"name": each} for each in inputs]},
            "dag": {"tasks": [turn, again]},
        }
        if len(_exits(node)) > 1:  # somebody asks where it went in the end
            last, first = (f"tasks.{task}.outputs.parameters.step" for task in ("again", "turn"))
            chosen = {"expression": f"tasks.again.status == 'Succeeded' ? {last} : {first}", "default": NOTHING}
            template["outputs"] = {"parameters": [{"name": "step", "valueFrom": chosen}]}
        return template

    # -- order ---------------------------------------------------------------------------------------------------------

    def _after(self, node: Node) -> dict[str, str]:
        """Return ``depends`` and ``when`` of a step's task."""
        if node.name == self._deployment.graph.start:
            return {} if self._hosts is None else {"depends": f"{self._hosts}.Succeeded"}
        if node.is_join:
            return {"depends": self._joined(node)}
        sources = [self._nodes[name] for name in node.sources if name != node.name]
        sources = [source for source in sources if source.kind != "foreach"]  # its children's DAG begins here
        tasks = {
            source.name: self._between.get((source.name, node.name), self._step[source.name]) for source in sources
        }
        found = {}
        if sources:
            found["depends"] = " || ".join(f"{task}.Succeeded" for task in tasks.values())
        asked = [source.name for source in self._choosing(node.name) if (source.name, node.name) not in self._between]
        if asked:
            found["when"] = " || ".join(
                _chosen(self._output(source, "step"), node.name)
                if source in asked
                else f"'{{{{tasks.{task}.status}}}}' == 'Succeeded'"
                for source, task in tasks.items()
            )
        return found

    def _tasks_between(self, name: str) -> list[dict[str, Any]]:
        return [
            {
                "name": self._between[source.name, name],
                "template": self._nothing,
                "depends": self._succeeded(source.name),
                "when": _chosen(self._output(source.name, "step"), name),
            }
            for source in self._choosing(name)
            if (source.name, name) in self._between
        ]

    def _choosing(self, name: str) -> list[Node]:
        """Return the switches that lead to a step and may lead elsewhere."""
        sources = (self._nodes[each] for each in self._nodes[name].sources if each != name)
        return [source for source in sources if source.kind == "switch" and len(_exits(source)) > 1]

    def _always_before(self, switch: str, name: str) -> bool:
        """Whether no way leads from the start to a step but through a switch."""
        seen, todo = {switch, name}, list(self._nodes[name].sources)
        while todo:
            each = todo.pop()
            if each not in seen:
                if each == self._deployment.graph.start:
                    return False
                seen.add(each)
                todo.extend(self._nodes[each].sources)
        return True

    def _joined(self, join: Node) -> str:
        """Return after what a join comes: after every branch of what it closes.

        Several openers are branches of a switch: one of them has run.
        """
        openers = dict.fromkeys(source for name in join.sources for source in self._closed_by(join, name))
        ways = [self._branches(join, self._nodes[name]) for name in openers]
        return ways[0] if len(ways) == 1 else " || ".join(f"({way})" for way in ways)

    def _closed_by(self, join: Node, source: str) -> list[str]:
        """Return what a join closes where it is reached from a step: what is open there, or the step itself."""
        node = self._nodes[source]
        if node.opens and join.name in node.targets:
            return [source]
        return list(node.splits[-1:])

    def _branches(self, join: Node, opener: Node) -> str:
        if opener.kind == "foreach":
            children = self._children[opener.name]
            # Nothing to do is skipped: the join of no children runs all the same.
            return f"({children}.Succeeded || {children}.Skipped)"
        parts = []
        for target in opener.targets:
            if target == join.name:
                parts.append(self._succeeded(opener.name))
                continue
            ends = [
                self._succeeded(name)
                for name in join.sources
                if self._nodes[name].splits[-1:] == (opener.name,) and self._nodes[name].branch == target
            ]
            parts.append(ends[0] if len(ends) == 1 else f"({' || '.join(ends)})")
        return " && ".join(parts)

    def _succeeded(self, name: str) -> str:
        return f"{self._step[name]}.Succeeded"

    def _output(self, name: str, output: str) -> str:
        return f"{{{{tasks.{self._step[name]}.outputs.parameters.{output}}}}}"


def start_environment(deployment: Deployment) -> list[dict[str, str]]:
    """Return the environment variables by which the start step gets the run's arguments."""
    given = {f"{PARAMETER}{plan.attribute}": plan.attribute for plan in deployment.parameters}
    given[TRIGGER] = TRIGGER_ARGUMENT
    return [{"name": name, "value": _argument(each)} for name, each in given.items()]


def _argument(name: str) -> str:
    # Kubernetes takes $(NAME) in a variable's value for another variable, and $$ for one $.
    return f"{{{{=sprig.replace('$', '$$', workflow.parameters['{name}'])}}}}"


TRIGGER_ARGUMENT = "flowkit-trigger"
"""The argument of the workflow that tells the events which started it."""


def _exits(node: Node) -> tuple[str, ...]:
    """Return the steps to which a switch may go, other than itself."""
    return tuple(target for target in node.targets if target != node.name)


def _chosen(output: str, target: str) -> str:
    # In quotes: the words of a govaluate expression would be variables, and an output that is missing nonsense.
    return f"'{output}' == '{target}'"


def _input(name: str) -> str:
    return f"{{{{inputs.parameters.{name}}}}}"


def _arguments(given: Mapping[str, str]) -> dict[str, Any]:
    if not given:
        return {}
    return {"arguments": {"parameters": [{"name": name, "value": value} for name, value in given.items()]}}
