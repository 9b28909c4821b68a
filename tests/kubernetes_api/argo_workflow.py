"""One workflow of the loopback cluster, carried out as Argo's controller does: from its nodes, again and again.

`Operation.operate` looks at the nodes and makes those that are due, until the workflow is over. What it cannot know it
asks its `Hands`: pods and objects are theirs. The rules are those of Argo Workflows 3.6:

- ``depends`` is looked at when all tasks in it are fulfilled; where it does not hold, the task is omitted, and where
  ``when`` does not, skipped. A sequence of nothing is skipped. None of these has outputs.
- A DAG is over when nothing in it runs; omitted and skipped tasks have the phase of what they came after, and the DAG
  that of its last tasks, a failure first.
- After a failure, what does not come after it goes on.
- A retried node is as its last attempt: policy, then limit, then expression, as processNodeRetries has it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from argo_expressions import Refused, Unknown, evaluate, nested, replace, should_execute
from argo_fields import check_spec, dependencies

SUCCEEDED, FAILED, ERROR, SKIPPED, OMITTED, RUNNING = "Succeeded", "Failed", "Error", "Skipped", "Omitted", "Running"
_COMPLETED = (SUCCEEDED, FAILED, ERROR)
_DEPTH = 100
"""Templates within templates, as Argo allows."""


@dataclass
class Node:
    """One node of a workflow: a task, an attempt, a DAG, a group of tasks.

    Parameters
    ----------
    name : str
        Whole, with those that it is in.
    kind : str
        ``Pod``, ``Resource``, ``DAG``, ``Retry``, ``TaskGroup``, ``Skipped``.
    phase : str
    template : str
    """

    name: str
    kind: str
    phase: str = RUNNING
    template: str = ""
    message: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    exit_code: str | None = None
    attempts: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def fulfilled(self) -> bool:
        """Whether nothing more happens to it."""
        return self.phase != RUNNING


class Hands(ABC):
    """Makes what a workflow wants made, and tells how it stands."""

    @abstractmethod
    def start(self, node: Node, template: Mapping[str, Any], known: Mapping[str, str]) -> None:
        """Make the pod or the object of a node."""

    @abstractmethod
    def look(self, node: Node, template: Mapping[str, Any]) -> None:
        """Set the node's phase, message, exit code and outputs where it has ended."""

    @abstractmethod
    def stop(self, node: Node) -> None:
        """End a node's pod."""

    @abstractmethod
    def active(self) -> int:
        """Return how many pods there are that have not ended."""


class Operation:
    """A workflow that goes on.

    Parameters
    ----------
    name, uid, namespace : str
        The workflow's.
    spec : mapping
        Of its template, with the workflow's arguments put in.
    metadata : mapping
        Labels and annotations.
    hands : Hands
        Who acts.
    """

    def __init__(
        self, name: str, uid: str, namespace: str, spec: Mapping[str, Any], metadata: Mapping[str, Any], hands: Hands
    ) -> None:
        check_spec(spec)
        self.name, self.spec, self.hands = name, spec, hands
        self.templates = {template["name"]: template for template in spec["templates"]}
        self.nodes: dict[str, Node] = {}
        self.phase, self.message = RUNNING, ""
        self.shutdown: str | None = None
        self.started = time.monotonic()
        self.known: dict[str, str] = {"workflow.name": name, "workflow.uid": uid, "workflow.namespace": namespace}
        for argument in spec.get("arguments", {}).get("parameters", []):
            if "value" not in argument:
                raise Refused(f"spec.arguments.{argument['name']}.value is required")
            self.known[f"workflow.parameters.{argument['name']}"] = argument["value"]
        self.see(metadata)

    def see(self, metadata: Mapping[str, Any]) -> None:
        """Take what the workflow is labelled with now; what its template says counts before that."""
        for given in (metadata, self.spec["workflowMetadata"]):
            for kind in ("labels", "annotations"):
                for key, value in (given.get(kind) or {}).items():
                    self.known[f"workflow.{kind}.{key}"] = value

    @property
    def over(self) -> bool:
        """Whether the workflow has ended."""
        return self.phase != RUNNING

    def operate(self, *, suspended: bool = False) -> None:
        """Do everything that is due."""
        self._pods()
        if suspended and self.shutdown is None:
            return
        main = self._execute(self.name, self.spec["entrypoint"], {}, 0, ending=False)
        if main is None or not main.fulfilled:
            return
        status, message = main.phase, main.message
        if self.shutdown is not None:
            status, message = FAILED, f"Stopped with strategy '{self.shutdown}'"
        if "onExit" in self.spec and self.shutdown != "Terminate":
            self.known["workflow.status"] = status
            ended = self._execute(f"{self.name}.onExit", self.spec["onExit"], {}, 0, ending=True)
            if ended is None or not ended.fulfilled:
                return
            if ended.phase in (FAILED, ERROR) and status == SUCCEEDED:
                status, message = ended.phase, ended.message
        self.phase, self.message = status, message

    def _pods(self) -> None:
        late = self._late()
        for node in list(self.nodes.values()):
            if node.fulfilled or node.kind not in ("Pod", "Resource"):
                continue
            self.hands.look(node, self.templates[node.template])
            if node.fulfilled:
                node.ended = time.monotonic()
            elif (self.shutdown or late) and not (self.shutdown == "Stop" and ".onExit" in node.name):
                self.hands.stop(node)

    def _late(self) -> bool:
        deadline = self.spec.get("activeDeadlineSeconds")
        return (
            deadline is not None and "workflow.status" not in self.known and time.monotonic() > self.started + deadline
        )

    # -- templates -----------------------------------------------------------------------------------------------------

    def _execute(
        self,
        name: str,
        template_name: str,
        given: Mapping[str, str],
        depth: int,
        *,
        ending: bool,
        retried: bool = False,
    ) -> Node | None:
        """Bring a node forward, or make it; None where it must wait to be made."""
        template = self.templates[template_name]
        node = self.nodes.get(name)
        if node is not None and node.fulfilled:
            return node
        if depth > _DEPTH:
            return self._end(name, "DAG", ERROR, "Maximum recursion depth exceeded")
        if node is None and (self._late() and not ending):
            return self._end(name, "Skipped", FAILED, "Step exceeded its deadline")
        if node is None and self.shutdown is not None and not (ending and self.shutdown == "Stop"):
            return self._end(name, "Skipped", FAILED, f"workflow shutdown with strategy: {self.shutdown}")
        known = dict(self.known)
        for each in template.get("inputs", {}).get("parameters", []):
            if each["name"] not in given:
                return self._end(name, "Skipped", ERROR, f"inputs.parameters.{each['name']} was not supplied")
            known[f"inputs.parameters.{each['name']}"] = given[each["name"]]
        if "retryStrategy" in template and not retried:
            return self._retry(name, template, given, depth, ending=ending)
        if "dag" in template:
            return self._dag(name, replace(template, known), depth, ending=ending)
        return self._leaf(name, template, known)

    def _leaf(self, name: str, template: Mapping[str, Any], known: dict[str, str]) -> Node | None:
        node = self.nodes.get(name)
        if node is not None:
            return node
        if "suspend" in template:
            return self._end(name, "Suspend", SUCCEEDED)
        limit = self.spec.get("parallelism")
        if limit is not None and self.hands.active() >= limit:
            return None
        attempt = name.rpartition("(")[2][:-1] if "retryStrategy" in template else "0"
        node = Node(name, "Pod" if "container" in template else "Resource", template=template["name"])
        self.nodes[name] = node
        self.hands.start(node, template, {**known, **({"retries": attempt} if "retryStrategy" in template else {})})
        return node

    def _end(self, name: str, kind: str, phase: str, message: str = "") -> Node:
        node = self.nodes[name] = Node(name, kind, phase, message=message)
        return node

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _retry(
        self, name: str, template: Mapping[str, Any], given: Mapping[str, str], depth: int, *, ending: bool
    ) -> Node | None:
        node = self.nodes.setdefault(name, Node(name, "Retry", template=template["name"]))
        if node.attempts:
            last = self.nodes[node.attempts[-1]]
            if not last.fulfilled:
                return node
            if self._settled(node, last, template["retryStrategy"]) or node.fulfilled:
                return node
        child = f"{name}({len(node.attempts)})"
        made = self._execute(child, template["name"], given, depth, ending=ending, retried=True)
        if made is not None:
            node.attempts.append(child)
        return node

    def _settled(self, node: Node, last: Node, strategy: Mapping[str, Any]) -> bool:
        """Give a node the phase of its last attempt, unless another one follows; True also while it waits."""
        if last.phase == SUCCEEDED:
            node.phase, node.outputs = SUCCEEDED, last.outputs
            return True
        if self.shutdown is not None or self._late():
            node.phase, node.message = last.phase, f"Stopped with strategy '{self.shutdown}'"
            return True
        limit, count = int(strategy["limit"]), len(node.attempts)
        backoff = strategy.get("backoff")
        if backoff is not None and count <= limit:
            pause = _seconds(backoff["duration"]) * int(backoff.get("factor", "1")) ** (count - 1)
            pause = min(pause, _seconds(backoff.get("cap", "1000000s")))
            if time.monotonic() < last.ended + pause:
                node.message = f"Backoff for {pause:g} seconds"
                return True
        if count > limit:
            node.phase, node.message = last.phase, "No more retries left"
        elif "expression" in strategy:
            code = "-1" if last.exit_code is None else last.exit_code
            if evaluate(strategy["expression"], nested({"lastRetry.exitCode": code})) is not True:
                node.phase, node.message = last.phase, "retryStrategy.expression evaluated to false"
        return node.fulfilled

    # -- DAGs ----------------------------------------------------------------------------------------------------------

    def _dag(self, name: str, template: Mapping[str, Any], depth: int, *, ending: bool) -> Node:
        node = self.nodes.setdefault(name, Node(name, "DAG", template=template["name"]))
        tasks = {task["name"]: task for task in template["dag"]["tasks"]}
        before = {each: dependencies(task) for each, task in tasks.items()}
        visited: set[str] = set()
        followed = {each for names in before.values() for each in names}
        targets = sorted(tasks.keys() - followed)
        for target in targets:
            self._task(name, tasks, before, target, visited, depth, ending=ending)
        mine = {each: self.nodes.get(f"{name}.{each}") for each in tasks}
        if self.shutdown is not None and not (ending and self.shutdown == "Stop"):
            node.phase = FAILED
            return node
        if any(each is not None and not each.fulfilled for each in mine.values()):
            return node
        phases: dict[str, str] = {}
        for target in targets:
            phase = _branch_phase(target, mine, before, phases)
            if phase is None:
                return node
        found = [phases[target] for target in targets]
        node.phase = next((phase for phase in found if phase in (FAILED, ERROR)), SUCCEEDED)
        if node.phase == SUCCEEDED:
            self._outputs(node, template, mine)
        else:
            node.message = next(each.message for each in mine.values() if each and each.phase in (FAILED, ERROR))
        return node

    def _outputs(self, node: Node, template: Mapping[str, Any], mine: Mapping[str, Node | None]) -> None:
        known = self._results(mine)
        for output in template.get("outputs", {}).get("parameters", []):
            source = output["valueFrom"]
            try:
                value = evaluate(source["expression"], nested(known))
            except Unknown:
                value = None
            node.outputs[output["name"]] = source["default"] if value is None else str(value)

    @staticmethod
    def _results(mine: Mapping[str, Node | None]) -> dict[str, str]:
        """Return what tasks may know of others: of those that have not run, nothing but their status."""
        known = {}
        for each, node in mine.items():
            if node is not None and node.fulfilled:
                known[f"tasks.{each}.status"] = node.phase
                known.update({f"tasks.{each}.outputs.parameters.{key}": text for key, text in node.outputs.items()})
        return known

    def _task(
        self, dag: str, tasks: Mapping[str, Any], before: Mapping[str, list[str]], name: str, visited: set[str],
        depth: int, *, ending: bool,
    ) -> None:  # fmt: skip
        if name in visited:
            return
        visited.add(name)
        place, task = f"{dag}.{name}", tasks[name]
        node = self.nodes.get(place)
        if node is not None and node.fulfilled:
            return
        for each in before[name]:
            self._task(dag, tasks, before, each, visited, depth, ending=ending)
        earlier = {each: self.nodes.get(f"{dag}.{each}") for each in _above(name, before)}
        if any(earlier[each] is None or not earlier[each].fulfilled for each in before[name]):  # type: ignore[union-attr]
            return
        if node is None and not self._depends(task, earlier):
            self._end(place, "Skipped", OMITTED, "omitted: depends condition not met")
            return
        known = {**self.known, **self._results(earlier)}
        resolved = replace({**task, "when": replace(task.get("when", ""), known)}, known)
        if "{{tasks." in resolved["when"]:
            raise Refused(f"the task {place} asks for what is not there, and waits for ever: {resolved['when']}")
        if not should_execute(resolved["when"]):
            self._end(place, "Skipped", SKIPPED, f"when '{resolved['when']}' evaluated false")
            return
        if "withSequence" in task:
            self._group(place, resolved, depth, ending=ending)
            return
        left = [tag for tag in ("{{tasks.", "{{=") if tag in str(resolved.get("arguments"))]
        if left:
            raise Refused(f"the task {place} has unresolved arguments: {resolved['arguments']}")
        self._execute(place, task["template"], _given(resolved), depth + 1, ending=ending)

    def _depends(self, task: Mapping[str, Any], earlier: Mapping[str, Node | None]) -> bool:
        if "depends" not in task:
            return True
        results = {
            each.replace("-", "_"): {
                result: node is not None and node.phase == phase
                for result, phase in (("Succeeded", SUCCEEDED), ("Failed", FAILED), ("Errored", ERROR),
                                      ("Skipped", SKIPPED), ("Omitted", OMITTED))
            }
            for each, node in earlier.items()
        }  # fmt: skip
        return evaluate(task["depends"].replace("-", "_"), results) is True

    def _group(self, place: str, task: Mapping[str, Any], depth: int, *, ending: bool) -> None:
        sequence = task["withSequence"]
        if not sequence["count"].isdigit() or sequence["start"] != "0":
            raise Refused(f"the sequence of {place} counts {sequence['count']!r}")
        count = int(sequence["count"])
        if not count:
            self._end(place, "Skipped", SKIPPED, "Skipped, empty params")
            return
        group = self.nodes.setdefault(place, Node(place, "TaskGroup"))
        made = []
        for item in range(count):
            one = replace(task, {"item": str(item)})
            made.append(
                self._execute(f"{place}({item}:{item})", task["template"], _given(one), depth + 1, ending=ending)
            )
        if all(node is not None and node.fulfilled for node in made):
            phases = [node.phase for node in made if node is not None and node.phase in (FAILED, ERROR)]
            group.phase = phases[-1] if phases else SUCCEEDED
            group.message = next((node.message for node in made if node and node.phase in (FAILED, ERROR)), "")


def _branch_phase(
    name: str, mine: Mapping[str, Node | None], before: Mapping[str, list[str]], phases: dict[str, str]
) -> str | None:
    """Return the phase that a task has, or that comes down to it; None where one before it has not been made."""
    todo = [name]
    while todo:
        each = todo[-1]
        node = mine[each]
        if node is None:
            return None
        waiting = [other for other in before[each] if other not in phases]
        if waiting:
            todo += waiting
            continue
        todo.pop()
        inherited = [phases[other] for other in before[each]]
        if node.phase in _COMPLETED:
            phases[each] = node.phase
        else:
            phases[each] = next((phase for phase in inherited if phase in (FAILED, ERROR)), SUCCEEDED)
    return phases[name]


def _above(name: str, before: Mapping[str, list[str]]) -> list[str]:
    found: dict[str, None] = {}
    todo = list(before[name])
    while todo:
        each = todo.pop()
        if each not in found:
            found[each] = None
            todo += before[each]
    return list(found)


def _given(task: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in task.get("arguments", {}).get("parameters", [])}


def _seconds(text: str) -> float:
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text[:-1])
