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

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.datastore.layout import index_file, manifest_file
from flowkit.deployer.target import ATTEMPT, GANG, INDEX, PREFIX, REASON, RUN, STATE, TASK, TURNS, Deployment
from flowkit.model.graph import Node
from flowkit.plugins.aws.machine_start import start_environment, start_states
from flowkit.plugins.aws.step_functions_limits import (
    EVENTS,
    GANG_POLLS,
    INLINE_CHILDREN,
    INLINE_EVENTS,
    LOOP_EVENTS,
    LOOP_TURNS,
    MAX_CONCURRENCY,
    MAX_INLINE_CONCURRENCY,
    MAX_STATE_NAME,
    TURN_EVENTS,
)

ENDED = "end of the run"
"""The state that ends a run which did not succeed; where a run is terminated, its job is submitted by hand."""
SUBMIT = "arn:aws:states:::batch:submitJob.sync"
HOST_LOST = "Host EC2*"
"""How the reason begins with which Batch ends a job whose machine is gone."""
_HEAD = "arn:aws:states:::aws-sdk:s3:headObject"
_FEW, _MANY = "", " (many)"
"""How the states of the two ways of one foreach are told apart: names are unique in the whole machine."""


class Job(NamedTuple):
    """What a state says of its Batch job, besides the environment.

    Parameters
    ----------
    definition : str
        The name of the job definition, without a revision: the newest is taken.
    name, queue : str
    tags : mapping of str to str
        Without that of the run.
    share : str or None
        The share identifier, for a queue with a scheduling policy.
    """

    definition: str
    name: str
    queue: str
    tags: Mapping[str, str]
    share: str | None = None


class Place(NamedTuple):
    """Where the datastore is: its bucket, and the prefix within, without slashes at its ends."""

    bucket: str
    prefix: str


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
        self.done = ""
        """The state that does nothing but end the scope, where a Choice needs one."""


class _Machine:
    def __init__(self, deployment: Deployment, jobs: Mapping[str, Job], end: Job, place: Place) -> None:
        self._deployment = deployment
        self._graph = deployment.graph
        self._jobs = jobs
        self._end = end
        self._place = place
        self._names: dict[tuple[str, str, str], str] = {}
        self._taken: set[str] = set()
        self._loops = max(1, sum(node.is_loop for node in self._graph.nodes.values()))
        self._always_many = bool(deployment.options.get("use_distributed_map"))

    def definition(self) -> dict[str, Any]:
        deployment = self._deployment
        flow = self._scope(self._graph.start or "", _Scope(None, 0, _FEW, deployment.max_workers))
        branches = [flow]
        if deployment.workflow_timeout is not None:
            branches.append(self._clock(deployment.workflow_timeout))
        states = start_states(deployment, self._name("flow", ""), self._name)
        begin = next(iter(states))
        success = self._name("end hooks", "") if deployment.on_success else self._name("succeeded", "")
        failed, ended = self._name("failed", ""), self._name(ENDED, "")
        catch = [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.outcome", "Next": ended}]
        if len(branches) > 1:
            catch.insert(0, {"ErrorEquals": [_SUCCEEDED], "ResultPath": "$.outcome", "Next": success})
        states[self._name("flow", "")] = {
            "Type": "Parallel",
            "Branches": branches,
            "ResultPath": None,
            "Catch": catch,
            "Next": success,
        }
        after = {"ErrorEquals": ["States.ALL"], "ResultPath": "$.unended"}
        if deployment.on_success:
            states[success] = {
                **self._batch(self._end, [(RUN, "$.run"), (STATE, "succeeded")]),
                "Catch": [{**after, "Next": self._name("succeeded", "")}],
                "Next": self._name("succeeded", ""),
            }
        states[self._name("succeeded", "")] = {"Type": "Succeed"}
        states[ended] = {
            **self._batch(self._end, [(RUN, "$.run"), (STATE, "failed"), (REASON, "$.outcome.Error")]),
            "Catch": [{**after, "Next": failed}],
            "Next": failed,
        }
        states[failed] = {"Type": "Fail", "ErrorPath": "$.outcome.Error", "CausePath": "$.outcome.Cause"}
        return {"StartAt": begin, "States": states}

    def _clock(self, seconds: float) -> dict[str, Any]:
        """Return the branch that ends a run which takes too long: an execution that times out carries nothing out."""
        wait, fail = self._name("time allowed", ""), self._name("took too long", "")
        cause = f"the run took longer than {seconds:g} s (--workflow-timeout)"
        return {
            "StartAt": wait,
            "States": {
                wait: {"Type": "Wait", "Seconds": max(1, round(seconds)), "Next": fail},
                fail: {"Type": "Fail", "Error": "flowkit.TookTooLong", "Cause": cause},
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
            todo += reversed(self._step(step, scope))
        return {"StartAt": self._entry(first, scope), "States": scope.states}

    def _step(self, step: str, scope: _Scope) -> list[str]:
        """Add the states of a step; return the steps of the same scope that follow."""
        node = self._graph[step]
        if node.kind == "end" or not node.targets:
            scope.states[self._name(step, scope.variant)] = {**self._task(step, scope), **self._finish()}
            self._finished(scope)
            return []
        if node.kind == "split":
            return self._split(node, scope)
        if node.kind == "foreach":
            return self._foreach(node, scope)
        if node.kind == "parallel":
            return self._gang(node, scope)
        if node.kind == "switch":
            return self._switch(node, scope)
        scope.states[self._name(step, scope.variant)] = {
            **self._task(step, scope),
            **self._to(node.targets[0], scope),
        }
        return [node.targets[0]]

    def _finish(self) -> dict[str, Any]:
        if self._deployment.workflow_timeout is None:
            return {"End": True}
        return {"Next": self._name("finished", "")}

    def _finished(self, scope: _Scope) -> None:
        """Beside a clock, a flow that has come to its end has to stop that: a Parallel state waits for all branches."""
        if self._deployment.workflow_timeout is not None:
            cause = "the flow has come to its end; this is how the branch beside it is stopped"
            scope.states[self._name("finished", "")] = {"Type": "Fail", "Error": _SUCCEEDED, "Cause": cause}

    def _split(self, node: Node, scope: _Scope) -> list[str]:
        join = node.matching_join or ""
        each = scope.workers // max(1, len(node.targets))
        branches = [
            self._scope(target, _Scope(join, scope.depth, scope.variant, each))
            if target != join
            else self._nothing(node, scope)
            for target in node.targets
        ]
        name, opened = self._name(node.name, scope.variant), self._name(node.name, scope.variant, "branches")
        scope.states[name] = {**self._task(node.name, scope), "Next": opened}
        scope.states[opened] = {
            "Type": "Parallel",
            "Branches": branches,
            "ResultPath": None,
            **self._to(join, scope),
        }
        return [join]

    def _nothing(self, node: Node, scope: _Scope) -> dict[str, Any]:
        name = self._name(node.name, scope.variant, "straight to the join")
        return {"StartAt": name, "States": {name: {"Type": "Succeed"}}}

    def _foreach(self, node: Node, scope: _Scope) -> list[str]:
        join, target = node.matching_join or "", node.targets[0]
        outer, inner = _shares(scope.workers, self._nested(target, join))
        name, how_many = (self._name(node.name, scope.variant, what) for what in ("", "how many"))
        scope.states[name] = {**self._task(node.name, scope, [(INDEX, "1")]), "Next": self._head_name(node, scope)}
        self._head(node, scope, {"width.$": "States.StringToJson($.Metadata.width)"}, how_many)
        none = self._choice_of(join, scope)
        choices: list[dict[str, Any]] = [{"Variable": "$.head.width", "NumericEquals": 0, "Next": none}]
        many = self._name(node.name, scope.variant, "many")
        if not self._always_many and not self._nested(target, join):
            few = _Scope(join, scope.depth + 1, scope.variant + _FEW, inner, within_map=True)
            body = self._scope(target, few)
            most = min(INLINE_CHILDREN, INLINE_EVENTS // max(1, events(body)))
            if most > 0:
                indices = self._inline(node, scope, body, min(outer, MAX_INLINE_CONCURRENCY))
                choices.append({"Variable": "$.head.width", "NumericLessThanEquals": most, "Next": indices})
        variant = scope.variant + _MANY if len(choices) > 1 else scope.variant
        scope.states[how_many] = {"Type": "Choice", "Choices": choices, "Default": many}
        body = self._scope(target, _Scope(join, scope.depth + 1, variant, inner, within_map=True))
        scope.states[many] = {
            "Type": "Map",
            "ItemReader": {
                "Resource": "arn:aws:states:::s3:getObject",
                "ReaderConfig": {"InputType": "JSON"},
                "Parameters": {"Bucket": self._place.bucket, "Key.$": self._key(node.name, _index_path)},
            },
            "ItemSelector": {"run.$": "$.run", "task.$": "$$.Map.Item.Value", "zero": 0},
            "ItemProcessor": {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, **body},
            "MaxConcurrency": min(outer, MAX_CONCURRENCY),
            "ResultPath": None,
            **self._to(join, scope),
        }
        return [join]

    def _inline(self, node: Node, scope: _Scope, body: dict[str, Any], workers: int) -> str:
        """Add the way of a foreach with few children; return the name of its first state."""
        indices, each = (self._name(node.name, scope.variant, what) for what in ("indices", "few"))
        item = "States.Format('{}', $$.Map.Item.Value)"
        if scope.depth:
            item = "States.Format('{}.{}', $.task, $$.Map.Item.Value)"
        scope.states[indices] = {
            "Type": "Pass",
            "Parameters": {"all.$": "States.ArrayRange(0, States.MathAdd($.head.width, -1), 1)"},
            "ResultPath": "$.indices",
            "Next": each,
        }
        scope.states[each] = {
            "Type": "Map",
            "ItemsPath": "$.indices.all",
            "ItemSelector": {"run.$": "$.run", "task.$": item, "zero": 0},
            "ItemProcessor": {"ProcessorConfig": {"Mode": "INLINE"}, **body},
            "MaxConcurrency": workers,
            "ResultPath": None,
            **self._to(node.matching_join or "", scope),
        }
        return indices

    def _switch(self, node: Node, scope: _Scope) -> list[str]:
        name, which = self._name(node.name, scope.variant), self._name(node.name, scope.variant, "which way")
        task = self._task(node.name, scope)
        if node.is_loop:
            task["Parameters"]["ContainerOverrides"]["Environment"] = self._pairs(
                [(RUN, "$.run"), (TASK, "States.Format('{}-{}', $.task, $.loop.turn)"), *self._start_pairs(node.name)]
            )
        scope.states[name] = {**task, "Next": self._head_name(node, scope)}
        self._head(node, scope, {"next.$": "$.Metadata.next"}, which)
        choices = []
        for target in node.targets:
            following = self._choice_of(target, scope) if target != node.name else ""
            if target == node.name:
                following = self._name(node.name, scope.variant, "next turn")
                self._turns(node, scope, name, following)
            choices.append({"Variable": "$.head.next", "StringEquals": target, "Next": following})
        unknown = self._name(node.name, scope.variant, "unknown way")
        scope.states[which] = {"Type": "Choice", "Choices": choices, "Default": unknown}
        told = (
            "the manifest names no step that this state machine knows: was the flow deployed again under another name?"
        )
        scope.states[unknown] = {"Type": "Fail", "Error": "flowkit.UnknownStep", "Cause": told}
        return [target for target in node.targets if target != node.name]

    def _turns(self, node: Node, scope: _Scope, task: str, following: str) -> None:
        """Add the states that count a loop's turns.

        An execution's history has an end, to which a loop of a thousand turns would come. So after many of them one job
        carries out all that are left; where the loop has several ways out, nobody could tell then which one it took.
        """
        first, enough, rest = (
            self._name(node.name, scope.variant, what) for what in ("first turn", "many turns", "all other turns")
        )
        most = max(10, min(LOOP_TURNS, LOOP_EVENTS // (TURN_EVENTS * self._loops)))
        scope.states[first] = {"Type": "Pass", "Result": {"turn": 0}, "ResultPath": "$.loop", "Next": task}
        scope.states[following] = {
            "Type": "Pass",
            "Parameters": {"turn.$": "States.MathAdd($.loop.turn, 1)"},
            "ResultPath": "$.loop",
            "Next": enough,
        }
        scope.states[enough] = {
            "Type": "Choice",
            "Choices": [{"Variable": "$.loop.turn", "NumericLessThan": most, "Next": task}],
            "Default": rest,
        }
        exits = [target for target in node.targets if target != node.name]
        if len(exits) == 1:
            pairs = [(RUN, "$.run"), (TASK, "$.task"), (TURNS, "all"), *self._start_pairs(node.name)]
            job = self._batch(self._jobs[node.name], pairs, self._retries(node.name))
            scope.states[rest] = {**job, **self._to(exits[0], scope)}
            return
        cause = f"step '{node.name}' has turned {most:,} times, and the history of an execution has an end"
        scope.states[rest] = {"Type": "Fail", "Error": "flowkit.TooManyTurns", "Cause": cause}

    def _gang(self, node: Node, scope: _Scope) -> list[str]:
        """Add a gang: one job with several nodes.

        Their number can only be given by the SDK's own call, which does not wait; so the job is looked at, ever less
        often. All nodes are told the attempt, which no one of them could find out."""
        join, target = node.matching_join or "", node.targets[0]
        variant = scope.variant
        name, first = self._name(node.name, variant), self._name(target, variant, "first attempt")
        scope.states[name] = {**self._task(node.name, scope), "Next": self._head_name(node, scope)}
        self._head(node, scope, {"width.$": "States.StringToJson($.Metadata.width)"}, first)
        submit, wait, look, how, longer, failed, pause, again = (
            self._name(target, variant, what)
            for what in ("", "wait", "state", "how it stands", "wait longer", "failed", "pause", "next attempt")
        )
        attempts = self._deployment.steps[target].attempts
        retries = attempts.retries + int(attempts.fallback)
        status, reason = "$.job.found.Status", "$.job.found.StatusReason"
        lost = [
            {"Variable": reason, "IsPresent": True},
            {"Variable": reason, "StringMatches": HOST_LOST},
            {"Variable": "$.gang.attempt", "NumericLessThan": self._deployment.steps[target].tries - 1},
        ]
        fresh = [
            {"Variable": status, "StringEquals": "FAILED"},
            {"Variable": "$.gang.attempt", "NumericLessThan": retries},
        ]
        begun = {"seconds": GANG_POLLS[0]}
        service = _throttled("Batch.BatchException", "Batch.ServerException", "Batch.SdkClientException")
        scope.states |= {
            first: {"Type": "Pass", "Result": {**begun, "attempt": 0}, "ResultPath": "$.gang", "Next": submit},
            submit: {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:batch:submitJob",
                "Parameters": self._nodes(target, scope),
                "ResultSelector": {"id.$": "$.JobId"},
                "ResultPath": "$.submitted",
                "Retry": [service],
                "Next": wait,
            },
            wait: {"Type": "Wait", "SecondsPath": "$.gang.seconds", "Next": look},
            look: {
                "Type": "Task",
                "Resource": "arn:aws:states:::aws-sdk:batch:describeJobs",
                "Parameters": {"Jobs.$": "States.Array($.submitted.id)"},
                "ResultSelector": {"found.$": "States.ArrayGetItem($.Jobs, 0)"},
                "ResultPath": "$.job",
                "Retry": [service],
                "Next": how,
            },
            how: {
                "Type": "Choice",
                "Choices": [
                    {"Variable": status, "StringEquals": "SUCCEEDED", "Next": self._choice_of(join, scope)},
                    {"And": fresh, "Next": pause},
                    {"And": [{"Variable": status, "StringEquals": "FAILED"}, *lost], "Next": pause},
                    {"Variable": status, "StringEquals": "FAILED", "Next": failed},
                    {"Variable": "$.gang.seconds", "NumericLessThan": GANG_POLLS[1], "Next": longer},
                ],
                "Default": wait,
            },
            longer: self._counted({"seconds.$": f"States.MathAdd($.gang.seconds, {GANG_POLLS[0]})"}, wait),
            pause: {"Type": "Wait", "Seconds": max(1, round(attempts.delay)), "Next": again},
            again: self._counted({"attempt.$": "States.MathAdd($.gang.attempt, 1)"}, submit),
            failed: {"Type": "Fail", "Error": "States.TaskFailed", "Cause": f"the gang of step '{target}' failed"},
        }
        return [join]

    @staticmethod
    def _counted(changed: dict[str, str], following: str) -> dict[str, Any]:
        kept = {f"{name}.$": f"$.gang.{name}" for name in ("seconds", "attempt") if f"{name}.$" not in changed}
        return {"Type": "Pass", "Parameters": {**kept, **changed}, "ResultPath": "$.gang", "Next": following}

    def _nodes(self, step: str, scope: _Scope) -> dict[str, Any]:
        """Return the parameters of the submission of a gang's job."""
        prefix = "States.Format('{}.', $.task)" if scope.depth else ""
        pairs = [
            (RUN, "$.run"),
            (PREFIX, prefix),
            (GANG, "States.Format('{}', $.head.width)"),
            (ATTEMPT, "States.Format('{}', $.gang.attempt)"),
        ]
        parameters: dict[str, Any] = self._batch(self._jobs[step], pairs)["Parameters"]
        container = parameters.pop("ContainerOverrides")
        ranges = [{"TargetNodes": "0:", "ContainerOverrides": container}]
        parameters["NodeOverrides"] = {"NumNodes.$": "$.head.width", "NodePropertyOverrides": ranges}
        return parameters

    # -- states ------------------------------------------------------------------------------------------------------

    def _task(self, step: str, scope: _Scope, more: list[tuple[str, str]] | None = None) -> dict[str, Any]:
        pairs = [(RUN, "$.run"), (TASK, "$.task"), *(more or ()), *self._start_pairs(step)]
        return self._batch(self._jobs[step], pairs, self._retries(step))

    def _start_pairs(self, step: str) -> list[tuple[str, str]]:
        return start_environment(self._deployment) if step == self._graph.start else []

    def _batch(
        self, job: Job, pairs: list[tuple[str, str]], retry: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "JobName": job.name,
            "JobDefinition": job.definition,
            "JobQueue": job.queue,
            "ContainerOverrides": {"Environment": self._pairs(pairs)},
            "Tags": {**job.tags, "flowkit.run.$": "$.run"},
            "PropagateTags": True,
        }
        if job.share is not None:
            parameters.update({"ShareIdentifier": job.share, "SchedulingPriorityOverride": 0})
        throttled = _throttled("Batch.AWSBatchException", "Batch.ServerException", "Batch.SdkClientException")
        return {
            "Type": "Task",
            "Resource": SUBMIT,
            "Parameters": parameters,
            "ResultPath": None,
            "Retry": [throttled, *(retry or ())],
        }

    @staticmethod
    def _pairs(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
        return [
            {
                ("Name.$" if name.startswith("$") else "Name"): name,
                ("Value.$" if value.startswith(("$", "States.")) else "Value"): value,
            }
            for name, value in pairs
        ]

    def _retries(self, step: str) -> list[dict[str, Any]]:
        """Return how often the user's attempts are begun again: lost machines are made up for by Batch itself."""
        attempts = self._deployment.steps[step].attempts
        again = attempts.retries + int(attempts.fallback)
        if not again:
            return []
        longest = max(1, min(round(attempts.max_delay), _LONGEST_DELAY))
        pause = {
            "IntervalSeconds": min(max(1, round(attempts.delay)), longest),
            "BackoffRate": max(1.0, attempts.backoff),
        }
        if pause["BackoffRate"] > 1.0:
            pause["MaxDelaySeconds"] = max(longest, pause["IntervalSeconds"] + 1)
        return [{"ErrorEquals": ["States.TaskFailed"], **pause, "MaxAttempts": again}]

    def _head_name(self, node: Node, scope: _Scope) -> str:
        return self._name(node.name, scope.variant, "what follows")

    def _head(self, node: Node, scope: _Scope, selected: dict[str, str], following: str) -> None:
        scope.states[self._head_name(node, scope)] = {
            "Type": "Task",
            "Resource": _HEAD,
            "Parameters": {"Bucket": self._place.bucket, "Key.$": self._key(node.name, _manifest_path)},
            "ResultSelector": selected,
            "ResultPath": "$.head",
            "Retry": [_throttled("States.TaskFailed")],
            "Next": following,
        }

    def _key(self, step: str, path: Any) -> str:
        """Return the intrinsic that gives the key of an object of the task that goes on."""
        node = self._graph[step]
        prefix = f"{self._place.prefix}/" if self._place.prefix else ""
        task = "{}-{}" if node.is_loop else "{}"
        given = "$.run, $.task, $.loop.turn" if node.is_loop else "$.run, $.task"
        text = _escaped(prefix + path(self._deployment.flow, _RUN, step, _TASK))
        return f"States.Format('{text.replace(_RUN, '{}').replace(_TASK, task)}', {given})"

    # -- names and transitions ---------------------------------------------------------------------------------------

    def _entry(self, step: str, scope: _Scope) -> str:
        """Return the state with which a step begins."""
        return self._name(step, scope.variant, "first turn" if self._graph[step].is_loop else "")

    def _to(self, step: str, scope: _Scope) -> dict[str, Any]:
        """Return the fields by which a state goes on to a step, or leaves the scope."""
        if step != scope.stop:
            return {"Next": self._entry(step, scope)}
        return {"OutputPath": "$.zero", "End": True} if scope.within_map else {"End": True}

    def _choice_of(self, step: str, scope: _Scope) -> str:
        """Return the state for a Choice to go on to, which cannot end a scope itself."""
        if step != scope.stop:
            return self._entry(step, scope)
        if not scope.done:
            scope.done = self._name(f"{step}: on to it", f"{scope.variant} {len(self._names)}".rstrip())
            scope.states[scope.done] = {"Type": "Succeed", **({"OutputPath": "$.zero"} if scope.within_map else {})}
        return scope.done

    def _name(self, step: str, variant: str, what: str = "") -> str:
        """Return the name of a state: the same for the same arguments, unique and short enough."""
        key = (step, variant, what)
        found = self._names.get(key)
        if found is None:
            found = whole = f"{step}: {what}{variant}" if what else f"{step}{variant}"
            number = 1
            while len(found) > MAX_STATE_NAME or found in self._taken:
                mark = hashlib.sha256(f"{whole} {number}".encode()).hexdigest()[:8]
                found, number = f"{whole[: MAX_STATE_NAME - 9]} {mark}", number + 1
            self._names[key] = found
            self._taken.add(found)
        return found

    def _nested(self, first: str, stop: str) -> bool:
        """Whether there is a foreach between two steps."""
        todo, seen = [first], {stop}
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self._graph[name]
            if node.kind == "foreach":
                return True
            todo += node.targets
        return False


def events(scope: Mapping[str, Any]) -> int:
    """Return about how many events one passage through a scope adds to the history: of ways, all are counted."""
    total = 0
    for state in scope["States"].values():
        turns = LOOP_TURNS if "NumericLessThan" in str(state.get("Choices", ""))[:80] and "$.loop" in str(state) else 1
        total += EVENTS.get(state["Type"], 2) if turns == 1 else TURN_EVENTS * turns
        total += sum(events(branch) for branch in state.get("Branches", ()))
        processor = state.get("ItemProcessor")
        if processor is not None and processor["ProcessorConfig"]["Mode"] == "INLINE":
            total += INLINE_CHILDREN * events(processor)
    return total


def _shares(workers: int, nested: bool) -> tuple[int, int]:
    """Return how many children run at once, and how many tasks in each of them."""
    if not nested:
        return workers, 1
    outer = 1
    while (outer + 1) * (outer + 1) <= workers:
        outer += 1
    return outer, workers // outer


def _throttled(*errors: str) -> dict[str, Any]:
    """Return how a call to a service is made again that asked to slow down, or failed."""
    return {
        "ErrorEquals": list(errors),
        "IntervalSeconds": 2,
        "BackoffRate": 2.0,
        "MaxAttempts": 6,
        "MaxDelaySeconds": 60,
        "JitterStrategy": "FULL",
    }


def _manifest_path(flow: str, run: str, step: str, task: str) -> str:
    return manifest_file(flow, run, step, task)


def _index_path(flow: str, run: str, step: str, task: str) -> str:
    return index_file(flow, run, step, task)


def _escaped(text: str) -> str:
    """Return a text as it stands in a text of an intrinsic function."""
    return "".join(f"\\{sign}" if sign in "\\'{}" else sign for sign in text)


_RUN, _TASK = "0run0", "0task0"
"""Stand for the run's id and the task's in a path until the intrinsic's own places do."""
_SUCCEEDED = "flowkit.Succeeded"
_LONGEST_DELAY = 31_622_399
"""Seconds; of a MaxDelaySeconds in the Amazon States Language."""
