"""A deployment as a state machine of AWS Step Functions, in the Amazon States Language. Pure: no call is made here.

The state that travels through the machine is small, whatever the flow does: the run's id, the coordinates of the task
that goes on, and what was read last about what follows::

    {"run": "sfn-…", "task": "3.1", "zero": 0, "head": {…}, "loop": {"turn": 2}}

A step is a Batch job. What follows a foreach, a gang, a switch or a loop is read from the metadata of the task's
manifest (``s3:headObject``). The scopes of the language are those of the flow: a branch of a split is a branch of a
Parallel state, a child of a foreach an iteration of a Map, a loop has an edge back to itself. Branches of a switch meet
again by themselves.

A foreach has three ways on, of which a Choice takes one: none for no children, an inline Map for a few, a distributed
Map for more. The latter reads the children's task ids from an index file that the foreach's task writes, and each of
its children has a history of its own. Around a foreach that has others within it is always distributed, which keeps the
definition small (no body is written more than twice) and the histories short.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowkit.datastore.layout import index_file
from flowkit.deployer.target import INDEX, REASON, RUN, STATE, TURNS, Deployment
from flowkit.model.graph import Node
from flowkit.plugins.aws.machine_size import TURN, events
from flowkit.plugins.aws.machine_start import start_states
from flowkit.plugins.aws.machine_states import GANG_FAILED, Job, Names, Place, StepStates, job_state
from flowkit.plugins.aws.step_functions_limits import (
    FEWEST_TURNS,
    INLINE_CHILDREN,
    INLINE_EVENTS,
    LOOP_EVENTS,
    LOOP_TURNS,
    MAX_CONCURRENCY,
    MAX_INLINE_CONCURRENCY,
    TURN_EVENTS,
)

ENDED = "end of the run"
"""The state that ends a run which did not succeed; where a run is terminated, its job is submitted by hand."""
_MANY = " (many)"
"""Tells the states of the two ways of one foreach apart: names are unique in the whole machine."""
RUN_FAILED = "flowkit.RunFailed"
_SUCCEEDED = "flowkit.Succeeded"
_TOO_LONG, _UNKNOWN_STEP, _TOO_MANY_TURNS = "flowkit.TookTooLong", "flowkit.UnknownStep", "flowkit.TooManyTurns"
_OURS = (_TOO_LONG, _UNKNOWN_STEP, _TOO_MANY_TURNS, GANG_FAILED)
"""Errors of the machine itself, whose causes are a line to read."""


def definition(deployment: Deployment, jobs: Mapping[str, Job], end: Job, place: Place) -> dict[str, Any]:
    """Return the definition of a flow's state machine.

    Parameters
    ----------
    deployment : Deployment
        The flow.
    jobs : mapping of str to Job
        By step.
    end : Job
        Of the end command.
    place : Place
        The datastore.
    """
    return _Machine(deployment, jobs, end, place).definition()


class _Scope:
    """The states of one ``States`` object, and how it is left.

    Parameters
    ----------
    stop : str or None
        The step before which the scope ends; None for the whole flow.
    depth : int
        Foreaches around it.
    variant : str
        What is added to the names of its states.
    workers : int
        Tasks that may run at once in it.
    within_map : bool
        Its states are an iteration's, whose results the Map collects: they are to be as short as can be.
    """

    def __init__(self, stop: str | None, depth: int, variant: str, workers: int, *, within_map: bool = False) -> None:
        self.stop = stop
        self.depth = depth
        self.variant = variant
        self.workers = max(1, workers)
        self.within_map = within_map
        self.states: dict[str, Any] = {}


class _Machine:
    def __init__(self, deployment: Deployment, jobs: Mapping[str, Job], end: Job, place: Place) -> None:
        self._deployment = deployment
        self._graph = deployment.graph
        self._end = end
        self._name = Names()
        self._make = StepStates(deployment, jobs, place, self._name)
        self._bucket = place.bucket
        nodes = self._graph.nodes.values()
        loops, foreaches = sum(node.is_loop for node in nodes), sum(node.kind == "foreach" for node in nodes)
        self._turns = max(FEWEST_TURNS, min(LOOP_TURNS, LOOP_EVENTS // (TURN_EVENTS * max(1, loops))))
        self._inline_events = INLINE_EVENTS // max(1, foreaches)
        self._always_many = bool(deployment.options.get("use_distributed_map"))

    def definition(self) -> dict[str, Any]:
        deployment, name = self._deployment, self._name
        branches = [self._scope(self._graph.start or "", _Scope(None, 0, "", deployment.max_workers))]
        if deployment.workflow_timeout is not None:
            branches.append(self._clock(deployment.workflow_timeout))
        states = start_states(deployment, name("the flow"), name, lambda pairs: job_state(self._end, pairs))
        begin = next(iter(states))
        over, failed, ended = name("run succeeded"), name("run failed"), name(ENDED)
        success = name("exit hooks of success") if deployment.on_success else over
        said, unsaid = name("why it failed"), name("what failed")
        catch = [
            {"ErrorEquals": list(_OURS), "ResultPath": "$.outcome", "Next": said},
            {"ErrorEquals": ["States.ALL"], "ResultPath": "$.outcome", "Next": unsaid},
        ]
        if len(branches) > 1:
            catch.insert(0, {"ErrorEquals": [_SUCCEEDED], "ResultPath": "$.outcome", "Next": success})
        states[name("the flow")] = {
            "Type": "Parallel",
            "Branches": branches,
            "ResultPath": None,
            "Catch": catch,
            "Next": success,
        }
        whatever = {"ErrorEquals": ["States.ALL"], "ResultPath": "$.unended"}
        if deployment.on_success:
            states[success] = {
                **job_state(self._end, [(RUN, "$.run"), (STATE, "succeeded")]),
                "Catch": [{**whatever, "Next": over}],
                "Next": over,
            }
        states[over] = {"Type": "Succeed"}
        for state, path in ((said, "$.outcome.Cause"), (unsaid, "$.outcome.Error")):
            # What a service says as its cause may be longer than a job's variables can be.
            states[state] = {"Type": "Pass", "InputPath": path, "ResultPath": "$.reason", "Next": ended}
        states[ended] = {
            **job_state(self._end, [(RUN, "$.run"), (STATE, "failed"), (REASON, "$.reason")]),
            "Catch": [{**whatever, "Next": failed}],
            "Next": failed,
        }
        states[failed] = {"Type": "Fail", "Error": RUN_FAILED, "CausePath": "$.outcome.Cause"}
        return {"StartAt": begin, "States": states}

    def _clock(self, seconds: float) -> dict[str, Any]:
        """Return the branch that ends a run which takes too long: an execution that times out carries nothing out."""
        wait, fail = self._name("time allowed"), self._name("took too long")
        cause = f"the run took longer than {seconds:g} s (--workflow-timeout)"
        return {
            "StartAt": wait,
            "States": {
                wait: {"Type": "Wait", "Seconds": max(1, round(seconds)), "Next": fail},
                fail: {"Type": "Fail", "Error": _TOO_LONG, "Cause": cause},
            },
        }

    # -- scopes ------------------------------------------------------------------------------------------------------

    def _scope(self, first: str, scope: _Scope) -> dict[str, Any]:
        """Return the states from a step up to that at which the scope ends."""
        todo, seen = [first], set()
        while todo:
            step = todo.pop()
            if step in seen or step == scope.stop:
                continue
            seen.add(step)
            todo += reversed(self._step(self._graph[step], scope))
        return {"StartAt": self._entry(first, scope), "States": scope.states}

    def _step(self, node: Node, scope: _Scope) -> list[str]:
        """Add the states of a step; return the steps of the same scope that follow."""
        kinds = {"split": self._split, "foreach": self._foreach, "parallel": self._gang, "switch": self._switch}
        if node.kind in kinds:
            return kinds[node.kind](node, scope)
        state = self._make.task(node.name)
        if node.targets:
            state |= self._to(node.targets[0], scope)
        elif self._deployment.workflow_timeout is None:
            state["End"] = True
        else:
            # A Parallel state waits for all its branches: the clock beside the flow has to be stopped.
            state["Next"] = self._name("flow finished")
            cause = "the flow has come to its end; this is how the clock beside it is stopped"
            scope.states[state["Next"]] = {"Type": "Fail", "Error": _SUCCEEDED, "Cause": cause}
        scope.states[self._name(node.name, scope.variant)] = state
        return list(node.targets)

    def _split(self, node: Node, scope: _Scope) -> list[str]:
        join = node.matching_join or ""
        each = scope.workers // max(1, len(node.targets))
        name, opened = self._names(node, scope, "", "branches")
        scope.states[name] = {**self._make.task(node.name), "Next": opened}
        branches = []
        for number, target in enumerate(node.targets):
            if target == join:
                (nothing,) = self._names(node, scope, f"branch {number} has no steps")
                branches.append({"StartAt": nothing, "States": {nothing: {"Type": "Succeed"}}})
            else:
                branches.append(self._scope(target, _Scope(join, scope.depth, scope.variant, each)))
        scope.states[opened] = {
            "Type": "Parallel",
            "Branches": branches,
            "ResultPath": None,
            **self._to(join, scope),
        }
        return [join]

    def _foreach(self, node: Node, scope: _Scope) -> list[str]:
        join, target = node.matching_join or "", node.targets[0]
        name, head, how_many, many = self._names(node, scope, "", "what follows", "how many", "many")
        width = {"width.$": "States.StringToJson($.Metadata.width)"}
        scope.states[name] = {**self._make.task(node.name, [(INDEX, "1")]), "Next": head}
        scope.states[head] = {**self._make.head(node.name, width), "Next": how_many}
        none = self._after_choice(join, scope, node)
        choices: list[dict[str, Any]] = [{"Variable": "$.head.width", "NumericEquals": 0, "Next": none}]
        nested = self._holds_foreach(target, join)
        outer, inner = self._shares(scope.workers, target, join, nested)
        variant = scope.variant
        if not self._always_many and not nested:
            body = self._scope(target, _Scope(join, scope.depth + 1, variant, inner, within_map=True))
            most = min(INLINE_CHILDREN, self._inline_events // max(1, events(body)))
            if most:
                few = self._few(node, scope, body, min(outer, MAX_INLINE_CONCURRENCY))
                choices.append({"Variable": "$.head.width", "NumericLessThanEquals": most, "Next": few})
                variant += _MANY
        scope.states[how_many] = {"Type": "Choice", "Choices": choices, "Default": many}
        if variant != scope.variant or nested or self._always_many:
            body = self._scope(target, _Scope(join, scope.depth + 1, variant, inner, within_map=True))
        scope.states[many] = {
            "Type": "Map",
            "ItemReader": {
                "Resource": "arn:aws:states:::s3:getObject",
                "ReaderConfig": {"InputType": "JSON"},
                "Parameters": {"Bucket": self._bucket, "Key.$": self._make.key(node.name, index_file)},
            },
            "ItemSelector": {"run.$": "$.run", "task.$": "$$.Map.Item.Value", "zero": 0},
            "ItemProcessor": {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, **body},
            "MaxConcurrency": min(outer, MAX_CONCURRENCY),
            "ResultPath": None,
            **self._to(join, scope),
        }
        return [join]

    def _few(self, node: Node, scope: _Scope, body: dict[str, Any], workers: int) -> str:
        """Add the way of a foreach with few children; return the name of its first state."""
        indices, each = self._names(node, scope, "indices", "few")
        nested = "States.Format('{}.{}', $.task, $$.Map.Item.Value)"
        scope.states[indices] = {
            "Type": "Pass",
            "Parameters": {"all.$": "States.ArrayRange(0, States.MathAdd($.head.width, -1), 1)"},
            "ResultPath": "$.indices",
            "Next": each,
        }
        scope.states[each] = {
            "Type": "Map",
            "ItemsPath": "$.indices.all",
            "ItemSelector": {
                "run.$": "$.run",
                "task.$": nested if scope.depth else "States.Format('{}', $$.Map.Item.Value)",
                "zero": 0,
            },
            "ItemProcessor": {"ProcessorConfig": {"Mode": "INLINE"}, **body},
            "MaxConcurrency": workers,
            "ResultPath": None,
            **self._to(node.matching_join or "", scope),
        }
        return indices

    def _switch(self, node: Node, scope: _Scope) -> list[str]:
        name, head, which, unknown = self._names(node, scope, "", "what follows", "which way", "unknown way")
        place = "States.Format('{}-{}', $.task, $.loop.turn)" if node.is_loop else "$.task"
        scope.states[name] = {**self._make.task(node.name, task=place), "Next": head}
        scope.states[head] = {**self._make.head(node.name, {"next.$": "$.Metadata.next"}), "Next": which}
        others = [target for target in node.targets if target != node.name]
        ways = {target: self._after_choice(target, scope, node) for target in others}
        if node.is_loop:
            ways[node.name] = self._loop(node, scope, name, others)
        choices = [{"Variable": "$.head.next", "StringEquals": way, "Next": ways[way]} for way in node.targets]
        scope.states[which] = {"Type": "Choice", "Choices": choices, "Default": unknown}
        told = f"the manifest of step '{node.name}' names a step that this state machine does not know"
        scope.states[unknown] = {"Type": "Fail", "Error": _UNKNOWN_STEP, "Cause": told}
        return others

    def _loop(self, node: Node, scope: _Scope, task: str, exits: list[str]) -> str:
        """Add the states that count a loop's turns; return the one that begins the next turn.

        An execution's history has an end, to which a loop of a thousand turns would come. So after many of them one job
        carries out all that are left; where the loop has several ways out, nobody could tell then which one it took.
        """
        first, following, enough, rest = self._names(
            node, scope, "first turn", "next turn", "many turns", "all other turns"
        )
        scope.states[first] = {"Type": "Pass", "Result": {"turn": 0}, "ResultPath": "$.loop", "Next": task}
        scope.states[following] = {
            "Type": "Pass",
            "Parameters": {"turn.$": f"States.MathAdd({TURN}, 1)"},
            "ResultPath": "$.loop",
            "Next": enough,
        }
        again = {"Variable": TURN, "NumericLessThan": self._turns, "Next": task}
        scope.states[enough] = {"Type": "Choice", "Choices": [again], "Default": rest}
        if len(exits) == 1:
            scope.states[rest] = {**self._make.task(node.name, [(TURNS, "all")]), **self._to(exits[0], scope)}
        else:
            cause = f"step '{node.name}' has turned {self._turns:,} times, and an execution's history has an end"
            scope.states[rest] = {"Type": "Fail", "Error": _TOO_MANY_TURNS, "Cause": cause}
        return following

    def _gang(self, node: Node, scope: _Scope) -> list[str]:
        join, target = node.matching_join or "", node.targets[0]
        name, head = self._names(node, scope, "", "what follows")
        width = {"width.$": "States.StringToJson($.Metadata.width)"}
        first = self._make.gang_entry(target, scope.variant)
        scope.states[name] = {**self._make.task(node.name), "Next": head}
        scope.states[head] = {**self._make.head(node.name, width), "Next": first}
        following = self._after_choice(join, scope, node)
        scope.states |= self._make.gang(target, scope.variant, scope.depth > 0, following)
        return [join]

    # -- transitions ---------------------------------------------------------------------------------------------------

    def _names(self, node: Node, scope: _Scope, *what: str) -> list[str]:
        return [self._name(node.name, scope.variant, each) for each in what]

    def _entry(self, step: str, scope: _Scope) -> str:
        """Return the state with which a step begins."""
        return self._name(step, scope.variant, "first turn" if self._graph[step].is_loop else "")

    def _to(self, step: str, scope: _Scope) -> dict[str, Any]:
        """Return the fields by which a state goes on to a step, or leaves the scope."""
        if step != scope.stop:
            return {"Next": self._entry(step, scope)}
        return {"OutputPath": "$.zero", "End": True} if scope.within_map else {"End": True}

    def _after_choice(self, step: str, scope: _Scope, node: Node) -> str:
        """Return the state for a Choice to go on to, which cannot end a scope itself."""
        if step != scope.stop:
            return self._entry(step, scope)
        (done,) = self._names(node, scope, "done")
        scope.states[done] = {"Type": "Succeed", **({"OutputPath": "$.zero"} if scope.within_map else {})}
        return done

    # -- how many at once ----------------------------------------------------------------------------------------------

    def _shares(self, workers: int, target: str, join: str, nested: bool) -> tuple[int, int]:
        """Return how many children of a foreach run at once, and how many tasks in each of them."""
        breadth = self._breadth(target, join)
        outer = max(1, workers // breadth)
        if nested:
            outer = int(outer**0.5)
        return outer, workers // outer

    def _breadth(self, first: str, stop: str) -> int:
        """Return how many tasks run at once between two steps, where each foreach has one child at a time."""
        most, todo, seen = 1, [first], {stop}
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self._graph[name]
            join = node.matching_join or ""
            if node.kind == "split":
                most = max(most, sum(self._breadth(target, join) for target in node.targets if target != join))
            elif node.kind == "foreach":
                most = max(most, self._breadth(node.targets[0], join))
            todo += [join] if node.opens else node.targets
        return most

    def _holds_foreach(self, first: str, stop: str) -> bool:
        """Whether there is a foreach between two steps."""
        todo, seen = [first], {stop}
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                if self._graph[name].kind == "foreach":
                    return True
                todo += self._graph[name].targets
        return False
