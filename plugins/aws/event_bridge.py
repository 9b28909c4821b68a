"""What starts a state machine: a schedule of EventBridge Scheduler, and rules of EventBridge. Pure.

A schedule has a time zone, which a rule cannot have; so it is not a rule. A rule passes the event on as it is: the
machine's first states read it (`flowkit.plugins.aws.machine_start`).
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from flowkit.deployer.target import Deployment, EventPlan
from flowkit.plugins.aws.machine_start import EVENT_SOURCE, STATES_SOURCE
from flowkit.plugins.aws.step_functions_limits import MAX_NAME, MAX_RULE_NAME, MAX_SCHEDULE_NAME

_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_NAME = re.compile(r"[^0-9A-Za-z_.-]")


def short_name(name: str, longest: int) -> str:
    """Return a name as a service takes it; a long one is cut, and told apart by a hash."""
    plain = _NAME.sub("-", name)
    if plain == name and len(name) <= longest:
        return name
    return f"{plain[: longest - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def machine_name(flow: str, project: str | None, branch: str | None) -> str:
    """Return what a flow's state machine is called where nobody says."""
    return short_name(".".join(part for part in (project, branch, flow) if part), MAX_NAME)


def schedule(deployment: Deployment) -> dict[str, Any] | None:
    """Return the parameters of CreateSchedule, but for the target's ARNs; None where the flow has no schedule."""
    if deployment.schedule is None:
        return None
    return {
        "Name": short_name(deployment.name, MAX_SCHEDULE_NAME),
        "Description": f"Starts {deployment.name} (flow {deployment.flow})"[:512],
        "ScheduleExpression": f"cron({to_aws_cron(deployment.schedule.cron)})",
        "ScheduleExpressionTimezone": deployment.schedule.timezone or "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "State": "ENABLED",
        "Target": {"Input": "{}"},
    }


def rules(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the parameters of PutRule for each event that starts the flow."""
    found = []
    for plan in (*deployment.events, *deployment.finishes):
        pattern = finish_pattern(plan) if plan.flow else {"source": [EVENT_SOURCE], "detail-type": [plan.name]}
        found.append(
            {
                "Name": short_name(f"{deployment.name}.{plan.name}", MAX_RULE_NAME),
                "Description": f"Starts {deployment.name} (flow {deployment.flow}) on {plan.name}"[:512],
                "EventPattern": json.dumps(pattern),
                "State": "ENABLED",
            }
        )
    return found


def finish_pattern(plan: EventPlan) -> dict[str, Any]:
    """Return the pattern of the event that a run of another state machine has succeeded."""
    name = machine_name(plan.flow or "", plan.project, plan.branch)
    return {
        "source": [STATES_SOURCE],
        "detail-type": ["Step Functions Execution Status Change"],
        "detail": {"status": ["SUCCEEDED"], "stateMachineArn": [{"suffix": f":stateMachine:{name}"}]},
    }


def to_aws_cron(cron: str) -> str:
    """Return a cron text as EventBridge has it: six fields, ``?`` for one of the two fields of days, and the weekdays
    by name (its numbers begin with 1 for Sunday).

    Examples
    --------
    >>> to_aws_cron("0 6 * * 1-5")
    '0 6 ? * MON-FRI *'
    """
    fields = cron.upper().split()
    minute, hour, day, month, weekday = fields[:5]
    year = fields[5] if len(fields) > 5 else "*"
    weekday = ",".join(_weekday(part) for part in weekday.split(","))
    if weekday in ("*", "?"):
        weekday, day = "?", "*" if day == "?" else day
    elif day == "*":
        day = "?"
    return " ".join((minute, hour, day, month, weekday, year))


def cron_problem(cron: str) -> str | None:
    """Return what EventBridge cannot take of a cron text that is one; None where it can."""
    _, _, day, _, weekday, _ = to_aws_cron(cron).split()
    if "?" not in (day, weekday):
        return "it fires on days of the month and on weekdays, and EventBridge takes one of both"
    return None


def _weekday(part: str) -> str:
    span, slash, every = part.partition("/")
    if part in ("*", "?", "L"):
        return part
    if part.endswith("L"):
        return f"{_number(part[:-1]) % 7 + 1}L"
    day, sign, rest = part.partition("#")
    if sign:
        return f"{_number(day) % 7 + 1}#{rest}"
    first, dash, last = span.partition("-")
    begin = 0 if span == "*" else _number(first)
    end = _number(last) if dash else 6 if slash else begin
    if end < begin:  # over the end of the week
        end += 7
    if dash and not slash and end < 7:
        return f"{_DAYS[begin]}-{_DAYS[end]}"
    return ",".join(_DAYS[number % 7] for number in range(begin, end + 1, int(every or 1)))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else _DAYS.index(text)
