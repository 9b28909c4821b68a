"""How a state machine begins: whether it may, what started it, and the parameters of the run.

An execution is started with ``{"parameters": {"alpha": "0.5"}}``, where values are JSON texts (or plain ones, as on the
command line), or with ``{}``, by hand, by a schedule or by ``trigger``; or with an event as EventBridge delivers it,
which a rule passes on whole. The first states make one of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from flowkit.deployer.target import PARAMETER, REASON, RUN, STATE, TRIGGER, Deployment, EventPlan

EVENT_SOURCE = "flowkit"
"""The ``source`` of the events that ``@trigger`` listens to."""
STATES_SOURCE = "aws.states"
LEFT_OUT = "flowkit.LeftOut"
_LONG = 256
"""Characters of a default that is not written into the machine: the run begins from a template that has it as well."""
_MOST_LISTED = 100
_PLAIN_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Naming = Callable[..., str]
"""Gives a state its name: of its step or part, of a variant, and of what it does."""


def start_environment(deployment: Deployment) -> list[tuple[str, str]]:
    """Return the variables of the start step's job: names, and values of the language.

    An empty one stands for no value, as ``null`` does.
    """
    values = [
        (each.attribute, f"States.Format('{{}}', $.parameters.{each.attribute})") for each in deployment.parameters
    ]
    return [(TRIGGER, "$.trigger"), *((PARAMETER + attribute, value) for attribute, value in values)]


def start_states(
    deployment: Deployment, following: str, name: Naming, end: Callable[[list[tuple[str, str]]], dict[str, Any]]
) -> dict[str, Any]:
    """Return the first states, the very first of them first.

    Parameters
    ----------
    deployment : Deployment
    following : str
        The state after them.
    name : callable
    end : callable
        Returns a state that runs the end command, of its variables.
    """
    begin, given, settled = (name(text) for text in ("run begins", "what was given", "its parameters"))
    defaults = {}
    for parameter in deployment.parameters:
        default = parameter.default or ""
        defaults[parameter.attribute] = default if default != "null" and len(default) <= _LONG else ""
    events = _event_states(deployment, given, name)
    turns = _one_at_a_time(deployment, next(iter(events), given), name, end)
    return {
        begin: {
            "Type": "Pass",
            "Parameters": {
                "run.$": "States.Format('sfn-{}', $$.Execution.Name)",
                "self.$": "$$.Execution.Id",
                "given.$": "$$.Execution.Input",
                "otherwise": {"parameters": {}, "trigger": "[]"},
                "defaults": defaults,
            },
            "Next": next(iter({**turns, **events}), given),
        },
        **turns,
        **events,
        given: {
            "Type": "Pass",
            "Parameters": {
                "run.$": "$.run",
                "defaults.$": "$.defaults",
                "given.$": "States.JsonMerge($.otherwise, $.given, false)",
            },
            "Next": settled,
        },
        settled: {
            "Type": "Pass",
            "Parameters": {
                "run.$": "$.run",
                "task": "0",
                "zero": 0,
                "trigger.$": "$.given.trigger",
                "parameters.$": "States.JsonMerge($.defaults, $.given.parameters, false)",
            },
            "Next": following,
        },
    }


# -- events ------------------------------------------------------------------------------------------------------------


def _event_states(deployment: Deployment, following: str, name: Naming) -> dict[str, Any]:
    """Return the states that make parameters of an event, the first of them first; none where no event starts it."""
    plans = [*deployment.events[:1], *deployment.finishes[:1]]
    if not plans:
        return {}
    choice = name("what started it")
    states: dict[str, Any] = {choice: {"Type": "Choice", "Choices": [], "Default": following}}
    for plan in plans:
        expects, reads, told = (name(f"event {plan.name}", "", what) for what in ("", "fields", "parameters"))
        source = [
            {"Variable": "$.given.source", "IsPresent": True},
            {"Variable": "$.given.source", "StringEquals": STATES_SOURCE if plan.flow else EVENT_SOURCE},
        ]
        states[choice]["Choices"].append({"And": source, "Next": expects})
        fields = {field: None for _, field in plan.parameters}
        states[expects] = {
            "Type": "Pass",
            "Result": {"timestamp": 0, "stopDate": 0, "name": "", **fields},
            "ResultPath": "$.expected",
            "Next": reads,
        }
        states[reads] = {
            "Type": "Pass",
            "Parameters": {
                "run.$": "$.run",
                "otherwise.$": "$.otherwise",
                "defaults.$": "$.defaults",
                "id.$": "$.given.id",
                "detail.$": "States.JsonMerge($.expected, $.given.detail, false)",
            },
            "Next": told,
        }
        states[told] = {
            "Type": "Pass",
            "Parameters": {
                "run.$": "$.run",
                "otherwise.$": "$.otherwise",
                "defaults.$": "$.defaults",
                "given": {
                    "trigger.$": _trigger(plan),
                    "parameters": {
                        f"{attribute}.$": f"States.JsonToString({_field(field)})"
                        for attribute, field in plan.parameters
                    },
                },
            },
            "Next": following,
        }
    return states


def _field(name: str) -> str:
    if _PLAIN_FIELD.fullmatch(name):
        return f"$.detail.{name}"
    escaped = name.replace("\\", "\\\\").replace("'", "\\'")
    return f"$.detail['{escaped}']"


def _trigger(plan: EventPlan) -> str:
    """Return the intrinsic that gives the JSON of what started the run."""
    name = escaped(json.dumps(plan.name, ensure_ascii=False))
    if plan.flow:
        # Milliseconds since the epoch; the language cannot divide, and JSON has exponents.
        run = escaped(f'"{plan.flow}/sfn-')
        return f'States.Format(\'[[{name},{run}{{}}",{{}}e-3,"run"]]\', $.detail.name, $.detail.stopDate)'
    return f'States.Format(\'[[{name},"{{}}",{{}},"event"]]\', $.id, $.detail.timestamp)'


def escaped(text: str) -> str:
    """Return a text as it stands in a text of an intrinsic function."""
    return "".join(f"\\{sign}" if sign in "\\'{}" else sign for sign in text)


# -- one at a time -----------------------------------------------------------------------------------------------------


def _one_at_a_time(
    deployment: Deployment,
    following: str,
    name: Naming,
    end: Callable[[list[tuple[str, str]]], dict[str, Any]],
) -> dict[str, Any]:
    """Return the states that look whether another execution runs; none where several may.

    Of several that run, the oldest goes on with ``forbid``, and the newest with ``replace``: so of two that start at
    once one does. The service's list may be a moment behind.
    """
    if deployment.concurrency == "allow":
        return {}
    rule = deployment.concurrency
    replace = rule == "replace"
    look, alone, which, mine, leave, left = (
        name("other runs", "", what)
        for what in ("", "any", "which goes on", "is it this one", "left out", "is left out")
    )
    place = "0" if replace else "States.MathAdd($.others.count, -1)"
    after = name("other runs", "", "replaced") if replace else following
    states: dict[str, Any] = {
        look: {
            "Type": "Task",
            "Resource": "arn:aws:states:::aws-sdk:sfn:listExecutions",
            "Parameters": {
                "StateMachineArn.$": "$$.StateMachine.Id",
                "StatusFilter": "RUNNING",
                "MaxResults": _MOST_LISTED,
            },
            "ResultSelector": {"all.$": "$.Executions", "count.$": "States.ArrayLength($.Executions)"},
            "ResultPath": "$.others",
            "Retry": [throttled("States.TaskFailed")],
            "Next": alone,
        },
        alone: {
            "Type": "Choice",
            "Choices": [{"Variable": "$.others.count", "NumericLessThan": 1, "Next": following}],
            "Default": which,
        },
        which: {
            "Type": "Pass",
            "Parameters": {"run.$": f"States.ArrayGetItem($.others.all, {place})"},
            "ResultPath": "$.first",
            "Next": mine,
        },
        mine: {
            "Type": "Choice",
            "Choices": [{"Variable": "$.first.run.ExecutionArn", "StringEqualsPath": "$.self", "Next": after}],
            "Default": leave,
        },
        leave: {
            "Type": "Task",
            "Resource": "arn:aws:states:::aws-sdk:sfn:stopExecution",
            "Parameters": {
                "ExecutionArn.$": "$.self",
                "Error": LEFT_OUT,
                "Cause.$": f"States.Format('sfn-{{}} goes on (--concurrency {rule})', $.first.run.Name)",
            },
            "ResultPath": None,
            "Next": left,
        },
        left: {"Type": "Fail", "Error": LEFT_OUT, "Cause": "another run goes on"},
    }
    if replace:
        states[after] = _replaced(name, following, end)
    return states


def _replaced(name: Naming, following: str, end: Callable[[list[tuple[str, str]]], dict[str, Any]]) -> dict[str, Any]:
    """Return the state that stops all other executions, and has their runs ended by a job for each."""
    what, stop, ended, own = (name("replaced run", "", part) for part in ("", "stop", "end", "is this one"))
    job = end([(RUN, "$.run"), (STATE, "cancelled"), (REASON, "$.why")])
    job["Resource"] = "arn:aws:states:::batch:submitJob"
    return {
        "Type": "Map",
        "ItemsPath": "$.others.all",
        "ItemSelector": {
            "arn.$": "$$.Map.Item.Value.ExecutionArn",
            "run.$": "States.Format('sfn-{}', $$.Map.Item.Value.Name)",
            "why.$": "States.Format('replaced by {}', $.run)",
            "self.$": "$.self",
            "zero": 0,
        },
        "ItemProcessor": {
            "ProcessorConfig": {"Mode": "INLINE"},
            "StartAt": what,
            "States": {
                what: {
                    "Type": "Choice",
                    "Choices": [{"Variable": "$.arn", "StringEqualsPath": "$.self", "Next": own}],
                    "Default": stop,
                },
                stop: {
                    "Type": "Task",
                    "Resource": "arn:aws:states:::aws-sdk:sfn:stopExecution",
                    "Parameters": {"ExecutionArn.$": "$.arn", "Error": "flowkit.Replaced", "Cause.$": "$.why"},
                    "ResultPath": None,
                    "Retry": [throttled("States.TaskFailed")],
                    "Next": ended,
                },
                ended: {**job, "OutputPath": "$.zero", "End": True},
                own: {"Type": "Succeed", "OutputPath": "$.zero"},
            },
        },
        "ResultPath": None,
        "Next": following,
    }


def throttled(*errors: str) -> dict[str, Any]:
    """Return how a call to a service is made again that asked to slow down, or failed."""
    return {
        "ErrorEquals": list(errors),
        "IntervalSeconds": 2,
        "BackoffRate": 2.0,
        "MaxAttempts": 6,
        "MaxDelaySeconds": 60,
        "JitterStrategy": "FULL",
    }
