"""Flows of every shape on the interpreter of workflows, with no container at all: what each task would do is told.

So the rules of Argo (what is omitted, skipped, tried again, stopped) are checked against compiled documents cheaply;
`test_argo_stories.py` runs containers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import argo_workflow
import pytest
from argo_expressions import Refused, replace
from argo_workflow import ERROR, FAILED, SUCCEEDED, Hands, Node, Operation
from deployments import deployment_of

from flowkit.plugins.argo.target import ArgoWorkflows

Answer = Mapping[str, Any]


class Told(Hands):
    """Ends every container as a function says, in the next look.

    Parameters
    ----------
    answer : callable
        Given the step, the task's coordinates and the attempt: ``{"step": …, "width": …, "code": …}``; None where it
        goes on running.
    """

    def __init__(self, answer: Callable[[str, str, int], Answer | None]) -> None:
        self.answer = answer
        self.started: list[str] = []
        self.ended: list[str] = []
        self.most = 0
        self._running: dict[str, tuple[str, str, int]] = {}

    def start(self, node: Node, template: Mapping[str, Any], known: Mapping[str, str]) -> None:
        made = replace(template, known, strict=True)
        if node.kind == "Resource":
            manifest = made["resource"]["manifest"]
            self._running[node.name] = ("hosts" if '"Service"' in manifest else "gang", "0", 0)
            return
        variables = {each["name"]: each["value"] for each in made["container"]["env"]}
        words = made["container"]["command"]
        step = words[words.index("--step") + 1] if "--step" in words else "END"
        task = variables.get("FLOWKIT_DEPLOYED_TASK", variables.get("FLOWKIT_DEPLOYED_STATE", ""))
        attempt = int(variables.get("FLOWKIT_DEPLOYED_ATTEMPT", 0))
        self._running[node.name] = (step, task, attempt)
        self.started.append(f"{step}/{task}" + (f" {attempt}" if attempt else ""))
        self.most = max(self.most, len(self._running))

    def look(self, node: Node, template: Mapping[str, Any]) -> None:
        step, task, attempt = self._running[node.name]
        found = self.answer(step, task, attempt)
        if found is None:
            return
        del self._running[node.name]
        code = found.get("code", 0)
        node.exit_code = None if code is None else str(code)
        node.phase = SUCCEEDED if code == 0 else ERROR if code is None else FAILED
        if node.phase == SUCCEEDED:
            self.ended.append(f"{step}/{task}")
            for output in template.get("outputs", {}).get("parameters", []):
                node.outputs[output["name"]] = str(found.get(output["name"], output["valueFrom"]["default"]))

    def stop(self, node: Node) -> None:
        del self._running[node.name]
        node.phase, node.message = FAILED, "stopped"

    def active(self) -> int:
        return len(self._running)


def operation_of(source: str, answer: Callable[[str, str, int], Answer | None], **options: Any) -> Operation:
    """A workflow of a flow."""
    deployment = deployment_of(source, "argo-workflows", **options)
    spec = ArgoWorkflows({}).compile(deployment)["items"][0]["spec"]
    notes = {"annotations": {"workflows.argoproj.io/pod-name-format": "v2"}}
    return Operation("wf", "0123-uid", "default", spec, notes, Told(answer))


def carried_out(operation: Operation, rounds: int = 400) -> list[str]:
    """Carry a workflow out; return the tasks that ended well, in order."""
    for _ in range(rounds):
        operation.operate()
        if operation.over:
            return operation.hands.ended
    nodes = {node.name: node.phase for node in operation.nodes.values()}
    raise AssertionError(f"not over: {nodes}")


SWITCH = """
    class Switch(FlowSpec):
        @step
        def start(self):
            self.items = [1]
            self.next(self.each, foreach="items")

        @step
        def each(self):
            self.way = "x"
            self.next({"x": self.first, "y": self.second, "z": self.meet}, condition="way")

        @step
        def first(self):
            self.next(self.meet)

        @step
        def second(self):
            self.other = "p"
            self.next({"p": self.meet, "q": self.last}, condition="other")

        @step
        def meet(self):
            self.next(self.last)

        @step
        def last(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def test_every_way_through_switches_in_a_foreach_meets_again() -> None:
    chosen = {"0": "first", "1": "second", "2": "meet", "3": "second"}

    def answer(step: str, task: str, attempt: int) -> Answer:
        if step == "second":
            return {"step": "meet" if task == "1" else "last"}
        return {"start": {"width": 4}, "each": {"step": chosen.get(task)}}.get(step, {})

    ended = carried_out(operation := operation_of(SWITCH, answer))
    assert operation.phase == SUCCEEDED
    expected = {"start/0", "join/0", "end/0", *(f"{step}/{task}" for task in "0123" for step in ("each", "last"))}
    assert set(ended) == expected | {"first/0", "meet/0", "second/1", "meet/1", "meet/2", "second/3"}
    assert len(ended) == len(set(ended))
    assert ended[-2:] == ["join/0", "end/0"]
    tasks = {task["name"]: task for task in operation.templates["start-each"]["dag"]["tasks"]}
    # Where a child has gone elsewhere, nobody may ask what its second step has chosen.
    assert tasks["second-to-meet"]["when"] == "'{{tasks.second.outputs.parameters.step}}' == 'meet'"
    assert tasks["meet"]["depends"] == "each.Succeeded || step-first.Succeeded || second-to-meet.Succeeded"
    assert "second" not in tasks["meet"]["when"].replace("second-to-meet.status", "")


def random_ways(random: Random, steps: int) -> dict[str, list[str]]:
    """Steps that lead on to one or several later ones, each of which can be reached."""
    names = ["start", *(f"s{number}" for number in range(steps)), "end"]
    ways: dict[str, set[int]] = {name: set() for name in names[:-1]}
    for number in range(1, len(names)):
        ways[names[random.randrange(number)]].add(number)
    for number, name in enumerate(names[:-1]):
        while not ways[name] or random.random() < 0.4:
            ways[name].add(random.randrange(number + 1, len(names)))
    return {name: [names[number] for number in sorted(found)] for name, found in ways.items()}


@pytest.mark.parametrize("seed", range(25))
def test_switches_that_meet_anywhere_take_one_way(seed: int) -> None:
    random = Random(seed)
    ways = random_ways(random, random.randrange(3, 12))
    lines = ["class Ways(FlowSpec):"]
    for name, targets in [*ways.items(), ("end", [])]:
        cases = ", ".join(f'"{target}": self.{target}' for target in targets)
        leads = f"self.next({{{cases}}}, condition='way')" if len(targets) > 1 else "pass"
        if len(targets) == 1:
            leads = f"self.next(self.{targets[0]})"
        lines += ["    @step", f"    def {name}(self):", "        self.way = 'x'", f"        {leads}"]
    source = "\n".join(lines)
    for _ in range(4):
        chosen = {name: random.choice(targets) for name, targets in ways.items()}
        operation = operation_of(source, lambda step, *task, chosen=chosen: {"step": chosen.get(step)})
        expected, name = ["start/0"], "start"
        while name != "end":
            name = chosen[name]
            expected.append(f"{name}/0")
        assert carried_out(operation) == expected, source
        assert operation.phase == SUCCEEDED


DEEP = """
    class Deep(FlowSpec):
        @step
        def start(self):
            self.next(self.mid, foreach="items")

        @step
        def mid(self):
            self.next(self.low, foreach="items")

        @step
        def low(self):
            self.next(self.left, self.right)

        @step
        def left(self):
            self.next(self.merge)

        @step
        def right(self):
            self.again = "on"
            self.next({"on": self.right, "out": self.after}, condition="again")

        @step
        def after(self):
            self.next(self.merge)

        @step
        def merge(self, inputs):
            self.next(self.join_low)

        @step
        def join_low(self, inputs):
            self.next(self.join_mid)

        @step
        def join_mid(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def test_foreaches_splits_and_loops_within_each_other_have_their_coordinates() -> None:
    def answer(step: str, task: str, attempt: int) -> Answer:
        turns = int(task.partition("-")[2] or 0)
        widths = {"0": 2, "1": 0, "2": 1}
        return {
            "start": {"width": 3},
            "mid": {"width": widths.get(task, 0)},
            "right": {"step": "right" if turns < 2 else "after"},
        }.get(step, {})

    ended = carried_out(operation := operation_of(DEEP, answer))
    assert operation.phase == SUCCEEDED
    lows = ["0.0", "0.1", "2.0"]
    loops = {f"right/{low}-{turn}" for low in lows for turn in range(3)}
    one_each = {f"{step}/{low}" for low in lows for step in ("low", "left", "after", "merge")}
    assert set(ended) == {"start/0", "join_mid/0", "end/0", *loops, *one_each} | {
        f"{step}/{mid}" for step in ("mid", "join_low") for mid in "012"
    }
    assert len(ended) == len(set(ended))


def test_a_flow_whose_first_foreach_has_nothing_to_do_runs_its_join() -> None:
    ended = carried_out(operation := operation_of(DEEP, lambda *task: {}))
    assert operation.phase == SUCCEEDED
    assert ended == ["start/0", "join_mid/0", "end/0"]


RETRIED = """
    class Retried(FlowSpec):
        @step
        def start(self):
            self.next(self.bad, self.good)

        @retry(times=2, minutes_between_retries=0)
        @step
        def bad(self):
            self.next(self.join)

        @step
        def good(self):
            self.next(self.fine)

        @step
        def fine(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.mark.parametrize(
    ("codes", "attempts"),
    [([1, 1, 0], 3), ([79], 1), ([1, 79], 2), ([None, None, 0], 3), ([1] * 9, 6), ([137, 1, 1, 1, 1, 0], 6)],
)
def test_a_task_is_tried_again_until_it_is_told_not_to(codes: list[int | None], attempts: int) -> None:
    def answer(step: str, task: str, attempt: int) -> Answer:
        return {"code": codes[attempt]} if step == "bad" else {}

    operation = operation_of(RETRIED, answer)
    ended = carried_out(operation)
    tried = [each for each in operation.hands.started if each.startswith("bad/0")]
    assert len(tried) == attempts
    if codes[attempts - 1] == 0:
        assert operation.phase == SUCCEEDED
        assert ended[-1] == "end/0"
    else:
        assert operation.phase == (ERROR if codes[attempts - 1] is None else FAILED)
        assert ended[-1] == f"END/{operation.phase}"
        assert "fine/0" in ended, "what does not come after it goes on"
        assert "join/0" not in operation.hands.started


def test_no_more_pods_at_once_than_max_workers_say() -> None:
    operation = operation_of(
        SWITCH, lambda step, *task: {"width": 9} if step == "start" else {"step": "meet"}, max_workers=3
    )
    carried_out(operation)
    assert operation.hands.most == 3


def test_a_stopped_workflow_ends_what_runs_and_tells_the_run() -> None:
    operation = operation_of(RETRIED, lambda step, *task: None if step == "bad" else {})
    for _ in range(5):
        operation.operate()
    operation.shutdown = "Stop"
    operation.see({"annotations": {"flowkit/cancelled": "yes"}})
    ended = carried_out(operation)
    assert operation.phase == FAILED
    assert ended[-1] == "END/cancelled"


def test_a_terminated_workflow_has_no_exit_handler() -> None:
    operation = operation_of(RETRIED, lambda step, *task: None if step == "bad" else {})
    for _ in range(5):
        operation.operate()
    operation.shutdown = "Terminate"
    assert "END" not in str(carried_out(operation))


def test_a_workflow_that_takes_too_long_fails() -> None:
    operation = operation_of(RETRIED, lambda step, *task: None if step == "bad" else {}, workflow_timeout=1000.0)
    for _ in range(5):
        operation.operate()
    operation.started -= 2000
    assert carried_out(operation)[-1] == "END/Failed"
    assert operation.phase == FAILED


def test_a_suspended_workflow_starts_nothing() -> None:
    operation = operation_of(RETRIED, lambda *task: {})
    operation.operate()
    for _ in range(5):
        operation.operate(suspended=True)
    assert operation.hands.started == ["start/0"]
    carried_out(operation)
    assert operation.phase == SUCCEEDED


def test_a_loop_may_turn_as_often_as_argo_calls_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argo_workflow, "_DEPTH", 20)
    source = """
        class Loop(FlowSpec):
            @step
            def start(self):
                self.next(self.turn)

            @step
            def turn(self):
                self.way = "on"
                self.next({"on": self.turn, "out": self.end}, condition="way")

            @step
            def end(self):
                pass
    """
    count = 17
    ended = carried_out(
        operation := operation_of(source, lambda step, task, *_: {"step": "end" if task == f"0-{count}" else "turn"})
    )
    assert operation.phase == SUCCEEDED
    assert ended == ["start/0", *(f"turn/0-{turn}" for turn in range(count + 1)), "end/0"]
    ended = carried_out(operation := operation_of(source, lambda *task: {"step": "turn"}), rounds=100)
    assert operation.phase == ERROR
    assert operation.nodes["wf"].message == "Maximum recursion depth exceeded"
    whole = operation_of(source, lambda *task: {"step": "end"}, whole_loops=True)
    assert carried_out(whole) == ["start/0", "turn/0", "end/0"]
    env = {each["name"]: each["value"] for each in whole.templates["turn"]["container"]["env"]}
    assert env["FLOWKIT_DEPLOYED_TURNS"] == "all"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{{inputs.parameters.x}}", "failed to resolve"),
        ("{{=inputs.parameters.x}}", "failed to evaluate"),
        ("{{pod.name}}", "unknown tag"),
        ("{{=sprig.upper('x')}}", "calls sprig.upper"),
        ("{{= 1 + }}", "ends too early"),
    ],
)
def test_the_interpreter_refuses_what_it_does_not_know(document: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        replace({"it": document}, {}, strict=True)


def test_values_are_escaped_once() -> None:
    value = 'a "b"\n\\n $$ {x}'
    known = {"workflow.parameters.x": value}
    assert replace({"it": "<{{workflow.parameters.x}}>"}, known, strict=True) == {"it": f"<{value}>"}
    source = "{{=sprig.replace('$', '$$', workflow.parameters['x'])}}"
    assert replace([source], known, strict=True) == [value.replace("$", "$$")]
