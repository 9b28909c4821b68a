"""How a state machine begins: what started it, and the parameters of the run.

An execution is started with ``{"parameters": {"alpha": "0.5"}}``, where values are JSON texts (or plain ones, as on the
command line), or with ``{}``, by hand, by a schedule or by ``trigger``; or with an event as EventBridge delivers it,
which a rule passes on whole. The first states make one of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from flowkit.deployer.target import PARAMETER, TRIGGER, Deployment, EventPlan, ParameterPlan

EVENT_SOURCE = "flowkit"
"""The ``source`` of the events that ``@trigger`` listens to."""
STATES_SOURCE = "aws.states"
_LONG = 256
"""Characters of a default that is not written into the machine: the flow's code has it as well."""
_PLAIN_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def start_environment(deployment: Deployment) -> list[tuple[str, str]]:
    """Return the variables of the start step's job, as names and values of the language; both may be paths."""
    found = [(TRIGGER, "$.trigger")]
    for parameter in deployment.parameters:
        name = f"$.names.{parameter.attribute}" if _open(parameter) else PARAMETER + parameter.attribute
        found.append((name, f"States.Format('{{}}', $.parameters.{parameter.attribute})"))
    return found


def start_states(deployment: Deployment, following: str, name: Callable[..., str]) -> dict[str, Any]:
    """Return the first states, the very first of them first."""
    begin, given, settled = name("begin", ""), name("what was given", ""), name("parameters", "")
    carried = {"run.$": "$.run", "task": "0", "zero": 0}
    unset = [parameter for parameter in deployment.parameters if _open(parameter)]
    defaults = {
        parameter.attribute: "" if _open(parameter) else parameter.default for parameter in deployment.parameters
    }
    names = {parameter.attribute: f"FLOWKIT_UNSET_{parameter.attribute}" for parameter in unset}
    events = event_states(deployment, given, name)
    states: dict[str, Any] = {
        begin: {
            "Type": "Pass",
            "Parameters": {
                "run.$": "States.Format('sfn-{}', $$.Execution.Name)",
                "given.$": "$$.Execution.Input",
                "otherwise": {"parameters": {}, "trigger": "[]"},
                "defaults": defaults,
                "names": names,
            },
            "Next": next(iter(events), given),
        },
        **events,
        given: {
            "Type": "Pass",
            "Parameters": {
                "run.$": "$.run",
                "defaults.$": "$.defaults",
                "names.$": "$.names",
                "given.$": "States.JsonMerge($.otherwise, $.given, false)",
            },
        },
    }
    following_one = settled
    for parameter in reversed(unset):
        asked, named = (name(f"parameter {parameter.attribute}", "", what) for what in ("given", "named"))
        path = f"$.given.parameters.{parameter.attribute}"
        states[asked] = _if_present(path, named, following_one)
        states[named] = {
            "Type": "Pass",
            "Result": PARAMETER + parameter.attribute,
            "ResultPath": f"$.names.{parameter.attribute}",
            "Next": following_one,
        }
        following_one = asked
    states[given]["Next"] = following_one
    states[settled] = {
        "Type": "Pass",
        "Parameters": {
            **carried,
            "names.$": "$.names",
            "trigger.$": "$.given.trigger",
            "parameters.$": "States.JsonMerge($.defaults, $.given.parameters, false)",
        },
        "Next": following,
    }
    return states


def _if_present(path: str, following: str, otherwise: str) -> dict[str, Any]:
    choice = {"Variable": path, "IsPresent": True, "Next": following}
    return {"Type": "Choice", "Choices": [choice], "Default": otherwise}


def event_states(deployment: Deployment, following: str, name: Callable[..., str]) -> dict[str, Any]:
    """Return the states that make parameters of an event, the first of them first; none where no event starts it."""
    plans = [*deployment.events[:1], *deployment.finishes[:1]]
    if not plans:
        return {}
    choice = name("what started it", "")
    states: dict[str, Any] = {choice: {"Type": "Choice", "Choices": [], "Default": following}}
    for plan in plans:
        source = STATES_SOURCE if plan.flow else EVENT_SOURCE
        first = name(f"event {plan.name}", "")
        states[choice]["Choices"].append(
            {
                "And": [
                    {"Variable": "$.given.source", "IsPresent": True},
                    {"Variable": "$.given.source", "StringEquals": source},
                ],
                "Next": first,
            }
        )
        done = following_one = name(f"event {plan.name}", "", "read")
        for attribute, field in reversed(plan.parameters):
            asked, read, merged = (
                name(f"event {plan.name}", "", f"{what} {attribute}") for what in ("has", "reads", "sets")
            )
            path = f"$.given.detail.{field}" if _PLAIN_FIELD.fullmatch(field) else f"$.given.detail['{field}']"
            states[asked] = _if_present(path, read, following_one)
            states[read] = {
                "Type": "Pass",
                "Parameters": {f"{attribute}.$": f"States.JsonToString({path})"},
                "ResultPath": "$.one",
                "Next": merged,
            }
            states[merged] = {
                "Type": "Pass",
                "Parameters": {
                    "trigger.$": "$.start.trigger",
                    "parameters.$": "States.JsonMerge($.start.parameters, $.one, false)",
                },
                "ResultPath": "$.start",
                "Next": following_one,
            }
            following_one = asked
        states[first] = {
            "Type": "Pass",
            "Parameters": {"parameters": {}, "trigger.$": _trigger(plan)},
            "ResultPath": "$.start",
            "Next": following_one,
        }
        states[done] = {
            "Type": "Pass",
            "Parameters": {
                "run.$": "$.run",
                "defaults.$": "$.defaults",
                "names.$": "$.names",
                "otherwise.$": "$.otherwise",
                "given.$": "$.start",
            },
            "Next": following,
        }
    return states


def _trigger(plan: EventPlan) -> str:
    """Return the intrinsic that gives the JSON of what started the run."""
    name = _in_format(json.dumps(plan.name, ensure_ascii=False))
    if plan.flow:
        # Milliseconds since the epoch; the language cannot divide, and JSON has exponents.
        run = _in_format(f'"{plan.flow}/sfn-')
        return f'States.Format(\'[[{name},{run}{{}}",{{}}e-3,"run"]]\', $.given.detail.name, $.given.detail.stopDate)'
    return f'States.Format(\'[[{name},"{{}}",0,"event"]]\', $.given.id)'


def _in_format(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\'{}" else sign for sign in text)


def _open(parameter: ParameterPlan) -> bool:
    """Whether the job gets a parameter only where somebody has given it: nothing stands for its value otherwise."""
    return parameter.default in (None, "null") or len(parameter.default or "") > _LONG
