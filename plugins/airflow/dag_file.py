"""A deployment as the text of a DAG file that Airflow 2.9 or later reads, and 3. Pure: the same one, the same text.

Nothing of a flow's texts is ever put into the code but as a literal (`flowkit.plugins.airflow.literals`), and no
operator in the file has template fields: a text with ``{{ … }}`` stays what it is.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from flowkit.deployer.target import Deployment, EventPlan, ParameterPlan, StepPlan, finish_event
from flowkit.model.cron import to_five_fields
from flowkit.plugins.airflow.literals import Code, call, literal
from flowkit.plugins.airflow.operators import SLACK, Operators, operators
from flowkit.plugins.airflow.plan import ALWAYS, SIMPLE, ListTask, Plan, StepTask, plan

MARK = "# flowkit-deployment: "
"""Begins the line that has the deployment's record."""
END_TASK = "flowkit-end"
"""The task that ends a run; no step can be called so."""
MAX_DELAY = 24 * 3600
"""Airflow's own longest pause between attempts, in seconds (``max_retry_delay``)."""
_LOOP_RETRIES = 1000
_MANY_RUNS = 16
"""Runs of a flow at once where nobody says: Airflow's own default (``max_active_runs_per_dag``)."""


def dag_file(deployment: Deployment) -> str:
    """Return the text of the file.

    Raises
    ------
    UsageError
        If the schedule cannot be said in five fields.
    """
    made = plan(deployment.graph)
    kind = operators(deployment)
    commands = [*(step.command for step in deployment.steps.values()), deployment.end_command]
    common = _common_prefix([kind.command(command) for command in commands])
    parts = [
        _head(deployment),
        "from __future__ import annotations\n\n" + _fragment("head"),
        *(_fragment(name) for name in kind.fragments(made)),
        _constants(deployment, kind, common),
        _dag(deployment),
    ]
    writer = _Writer(deployment, made, kind, common)
    body = [*writer.steps(), *writer.end()]
    return "\n\n".join(part.strip("\n") + "\n" for part in parts) + "\n" + "\n".join(_indented(body)) + "\n"


def read_record(text: str) -> Any:
    """Return the record that a DAG file carries, as plain values; None where it carries none."""
    found = re.search(f"^{re.escape(MARK)}(.*)$", text[:1_000_000], re.MULTILINE)
    if found is None:
        return None
    try:
        return json.loads(found[1])
    except ValueError:
        return None


def _fragment(name: str) -> str:
    with open(os.path.join(os.path.dirname(__file__), f"{name}.txt"), encoding="utf-8") as file:
        return file.read()


def _head(deployment: Deployment) -> str:
    # Not in the first two lines, where a comment may name the file's encoding; in ASCII, without any line's end.
    record = json.dumps(deployment.record, ensure_ascii=True, sort_keys=True)
    return (
        "# A DAG of Airflow, made by flowkit from a flow: deploy the flow again to change it.\n"
        "# It needs Airflow 2.9 or later, or 3, and nothing of flowkit.\n"
        "# What follows is for flowkit, which finds the deployment by it.\n"
        f"{MARK}{record}"
    )


def _constants(deployment: Deployment, kind: Operators, common: Sequence[str]) -> str:
    events: dict[str, Any] = {}
    for event in deployment.events:
        events[asset_uri(event.name)] = (event.name, None)
    for event in deployment.finishes:
        events[asset_uri(event.name)] = (event.name, event.flow)
    fields = {attribute: field for event in deployment.events for attribute, field in event.parameters}
    values: dict[str, Any] = {
        "LAST": deployment.graph.end,
        "MAX_MAP_LENGTH": int(deployment.options.get("max_map_length") or 1024),
        "PARAMETERS": {item.name: item.attribute for item in deployment.parameters},
        "EVENTS": events,
        "EVENT_FIELDS": fields,
    }
    if kind.work((), {}) is None:
        values["COMMAND"], values["ENVIRONMENT"] = list(common), dict(kind.end_environment())
    return "".join(f"{name} = {literal(value)}\n" for name, value in values.items())


# -- the DAG itself --------------------------------------------------------------------------------------------------


def _dag(deployment: Deployment) -> str:
    defaults: dict[str, Any] = {
        "owner": deployment.user or "flowkit",
        "retries": 2,
        "retry_delay": Code("timedelta(seconds=10)"),
        "depends_on_past": False,
    }
    if deployment.priority is not None:
        defaults["priority_weight"], defaults["weight_rule"] = deployment.priority, "absolute"
    if deployment.options.get("worker_pool"):
        defaults["pool"] = str(deployment.options["worker_pool"])
    arguments: dict[str, Any] = {
        "dag_id": deployment.name,
        "description": _line(deployment.description or deployment.title),
        "schedule": Code(_schedule(deployment)),
        "start_date": Code(_start(deployment)),
        "catchup": False,
        "max_active_runs": 1 if deployment.concurrency == "forbid" else _MANY_RUNS,
        "max_active_tasks": deployment.max_workers,
    }
    if deployment.workflow_timeout:
        arguments["dagrun_timeout"] = Code(_seconds(deployment.workflow_timeout))
    if deployment.options.get("is_paused_upon_creation") is not None:
        arguments["is_paused_upon_creation"] = bool(deployment.options["is_paused_upon_creation"])
    if deployment.parameters:
        arguments["params"] = {item.name: Code(_param(item)) for item in deployment.parameters}
    arguments["tags"] = _tags(deployment)
    arguments["default_args"] = defaults
    lines = "".join(f"    {name}={literal(value, 4)},\n" for name, value in arguments.items())
    return f"{_schedule_imports(deployment)}with DAG(\n{lines}) as dag:"


def _start(deployment: Deployment) -> str:
    """Return when the DAG begins: of a schedule now, or Airflow would carry out the last time before now at once."""
    created = deployment.record.get("created") or 0.0
    if deployment.schedule is None or not created:
        return "pendulum.datetime(2024, 1, 1, tz='UTC')"
    moment = time.gmtime(float(created))
    return f"pendulum.datetime({', '.join(str(part) for part in moment[:6])}, tz='UTC')"


def asset_uri(event: str) -> str:
    """Return the asset (in Airflow 2: dataset) that stands for an event."""
    return "flowkit://event/" + quote(event, safe=".")


def end_event(deployment: Deployment) -> str:
    """Return the event that a run of the flow has succeeded."""
    return finish_event(deployment.flow, deployment.project, deployment.branch)


def _schedule(deployment: Deployment) -> str:
    events: tuple[EventPlan, ...] = (*deployment.events, *deployment.finishes)
    assets = "[" + ", ".join(f"Asset({literal(asset_uri(event.name))})" for event in events) + "]"
    if deployment.schedule is None:
        return assets if events else "None"
    cron = literal(to_five_fields(deployment.schedule.cron))
    table = f"CronTriggerTimetable({cron}, timezone={literal(deployment.schedule.timezone or 'UTC')})"
    return f"assets_or_time({table}, {assets})" if events else table


def _schedule_imports(deployment: Deployment) -> str:
    text = ""
    if deployment.schedule is not None:
        text += "from airflow.timetables.trigger import CronTriggerTimetable  # noqa: E402\n\n"
        if deployment.events or deployment.finishes:
            text += _fragment("assets_or_time") + "\n\n"
    return text


def _param(item: ParameterPlan) -> str:
    default = json.loads(item.default) if item.default is not None else None
    kinds = {"text": ["string"], "integer": ["integer"], "number": ["number"], "boolean": ["boolean"]}
    types = kinds.get(item.kind, ["object", "array", "string", "number", "boolean"])
    arguments: dict[str, Any] = {}
    if not item.required:
        arguments["default"] = default
    if default is None and not item.required:
        types = [*types, "null"]
    arguments["type"] = types[0] if len(types) == 1 else types
    if item.choices:
        arguments["enum"] = [*item.choices, *([None] if "null" in types else [])]
    if item.help:
        arguments["description"] = _line(item.help)
    return f"Param({', '.join(f'{name}={literal(value, 8)}' for name, value in arguments.items())})"


def _tags(deployment: Deployment) -> list[str]:
    """The tags of the DAG; Airflow takes a hundred characters each."""
    wanted = ["flowkit", deployment.flow, *deployment.tags]
    return sorted({tag[:100] for tag in wanted})


# -- its tasks -------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes the tasks of a DAG.

    Parameters
    ----------
    deployment : Deployment
    made : Plan
    kind : Operators
    common : sequence of str
        The words with which all commands begin: the constant ``COMMAND``.
    """

    def __init__(self, deployment: Deployment, made: Plan, kind: Operators, common: Sequence[str]) -> None:
        self._deployment = deployment
        self._made = made
        self._kind = kind
        self._common = common
        self._environment = kind.end_environment()

    def steps(self) -> list[str]:
        """Return the lines of all steps, each after what it needs."""
        lines: list[str] = []
        for name, task in self._made.steps.items():
            own = self._made.lists.get(name)
            if own is not None:
                lines += ["", f"tasks_{name} = {_list_task(own)}"]
            lines += ["", f"step_{name} = {self._step(self._deployment.steps[name], task)}", *_edges(task)]
            if name in self._made.branches:
                lines += ["", *_branch(name, self._made.branches[name])]
        return lines

    def end(self) -> list[str]:
        """Return the lines of the task that ends runs: a teardown, which runs whatever has become of the others, and
        when somebody stops the run."""
        deployment = self._deployment
        arguments: dict[str, Any] = {
            "task_id": END_TASK,
            **self._work(deployment.end_command, self._environment),
            "on_success": deployment.on_success,
            **self._kind.end_arguments(),
            "retries": 2,
        }
        waits = [f"step_{name}" for name, task in self._made.steps.items() if task.last]
        return [
            "",
            "# Runs whatever has become of the steps, and when somebody stops the run; fails where it did not succeed.",
            f"flowkit_end = {call('End', arguments, 4)}.as_teardown(on_failure_fail_dagrun=True)",
            f"[{', '.join(waits)}] >> flowkit_end",
        ]

    def _step(self, step: StepPlan, task: StepTask) -> str:
        graph = self._deployment.graph
        arguments: dict[str, Any] = {
            "task_id": step.name,
            **self._work(step.command, self._kind.step_environment(step)),
        }
        flags = {"begins": step.name == graph.start, "tells": task.tells, "loops": task.loops}
        arguments.update({name: True for name, wanted in flags.items() if wanted})
        arguments.update(self._kind.step_arguments(step, task))
        arguments.update(_attempts(step, task, self._kind))
        if task.rule != SIMPLE:
            arguments["trigger_rule"] = task.rule
        if step.name == graph.end:
            arguments["outlets"] = [Code(f"Asset({literal(asset_uri(end_event(self._deployment)))})")]
        cls = "Gang" if task.gang else "Step"
        if task.mapped is None:
            return call(cls, arguments, 4)
        if not task.gang:
            arguments["map_index_template"] = "{{ task.place }}"
        return f"{call(f'{cls}.partial', arguments, 4)}.expand(place=tasks_{task.mapped}.output)"

    def _work(self, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
        known = self._kind.work(command, environment)
        if known is not None:
            return known
        shared = self._environment
        variables: Any = Code("ENVIRONMENT")
        if environment != shared:
            further = {key: value for key, value in environment.items() if shared.get(key) != value}
            inherited = shared.keys() <= environment.keys()
            variables = {Code("**ENVIRONMENT"): Code(""), **further} if inherited else dict(environment)
        words = self._kind.command(command)[len(self._common) :]
        return {"command": [Code("*COMMAND"), *words], "environment": variables}


def _attempts(step: StepPlan, task: StepTask, kind: Operators) -> dict[str, Any]:
    """How often Airflow starts a task, and how long it may take.

    A task that is of no use to try again says so itself (exit status 79); so a loop, whose turns have attempts of their
    own, may be started as often as that takes.
    """
    policy = step.attempts
    retries = max(step.tries - 1, _LOOP_RETRIES) if task.loops else step.tries - 1
    found: dict[str, Any] = {"retries": retries}
    if retries:
        found["retry_delay"] = Code(_seconds(policy.delay))
        if policy.backoff > 1 and policy.delay > 0:
            found["retry_exponential_backoff"] = True
            found["max_retry_delay"] = Code(_seconds(min(policy.max_delay, MAX_DELAY)))
    if policy.timeout is not None and not task.loops and kind.own_timeout:
        found["execution_timeout"] = Code(_seconds(policy.timeout + SLACK))
    return found


def _list_task(own: ListTask) -> str:
    sources = [Code(f"{'tasks' if of_list else 'step'}_{name}.output") for of_list, name in own.sources]
    given: list[Any] = [own.step] if own.function == "chosen" else [own.step, own.depth]
    arguments = {
        "task_id": f"{own.step}-tasks",
        "python_callable": Code(own.function),
        "op_args": [*given, *sources],
        "trigger_rule": ALWAYS,
    }
    return call("PythonOperator", arguments, 4)


def _branch(switch: str, ways: Mapping[str, str]) -> list[str]:
    """The task that leads to what a switch chose, and the empty ones between it and steps with other ways in."""
    ids = {target: target if way == "branch" else f"{switch}-{target}" for target, way in ways.items()}
    arguments = {
        "task_id": f"{switch}-branch",
        "python_callable": Code("branch"),
        "op_args": [Code(f"step_{switch}.output"), ids],
    }
    lines = [f"branch_{switch} = {call('BranchPythonOperator', arguments, 4)}"]
    empty = {target: f"{switch}-{target}" for target, way in ways.items() if way == "empty"}
    if empty:
        tasks = {target: Code(f"EmptyOperator(task_id={literal(task)})") for target, task in empty.items()}
        lines.append(f"ways_{switch} = {literal(tasks, 4)}")
        lines.append(f"branch_{switch} >> list(ways_{switch}.values())")
    return lines


def _edges(task: StepTask) -> list[str]:
    before = [f"step_{name}" for name in task.after]
    for switch, way in task.through:
        before.append(f"branch_{switch}" if way == "branch" else f"ways_{switch}[{literal(task.name)}]")
    if not before:
        return []
    return [f"{before[0] if len(before) == 1 else '[' + ', '.join(before) + ']'} >> step_{task.name}"]


# -- small things ----------------------------------------------------------------------------------------------------


def _indented(lines: Sequence[str]) -> list[str]:
    """Lines of the body; what is inside of calls is indented already."""
    return [f"    {line}" if line else "" for line in lines]


def _seconds(seconds: float) -> str:
    return (
        f"timedelta(seconds={float(seconds):g})" if float(seconds).is_integer() else f"timedelta(seconds={seconds!r})"
    )


def _line(text: str) -> str:
    return " ".join(str(text).split())[:1000]


def _common_prefix(commands: Sequence[Sequence[str]]) -> list[str]:
    """Return the words with which all commands begin."""
    found: list[str] = []
    for words in zip(*commands, strict=False):
        if any(word != words[0] for word in words):
            break
        found.append(words[0])
    return found
