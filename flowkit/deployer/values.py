"""What a flow says that is known only when it is deployed: defaults of parameters, its schedule, what starts it.

Functions of the user's are called here, once for each deployment; everything after that is pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.deployer.target import EventPlan, ParameterKind, ParameterPlan, SchedulePlan, finish_event
from flowkit.exceptions import Problem, UsageError, message_of
from flowkit.model.include_file import IncludeFile
from flowkit.model.parameters import JSONTypeClass, Parameter, ParameterContext

if TYPE_CHECKING:
    from flowkit.decorators.contract import FlowDecorator
    from flowkit.model.definition import FlowDefinition

_KINDS: Mapping[Any, ParameterKind] = {str: "text", int: "integer", float: "number", bool: "boolean"}


class DeployValues(NamedTuple):
    """What is known of a flow from the moment that it is deployed.

    Parameters
    ----------
    parameters : tuple of ParameterPlan
        Those that a run may be given. The content of an `IncludeFile` is not among them: it goes into the template.
    defaults : mapping of str to object
        The value of each parameter that has one, by attribute name.
    schedule : SchedulePlan or None
    events, finishes : tuple of EventPlan
    event_options : mapping
    on_success, on_error : bool
        Whether the flow has exit hooks for these ends.
    project, branch : str or None
    problems : tuple of Problem
        All that is wrong with these, each with its place.
    """

    parameters: tuple[ParameterPlan, ...] = ()
    defaults: Mapping[str, Any] = {}
    schedule: SchedulePlan | None = None
    events: tuple[EventPlan, ...] = ()
    finishes: tuple[EventPlan, ...] = ()
    event_options: Mapping[str, Any] = {}
    on_success: bool = False
    on_error: bool = False
    project: str | None = None
    branch: str | None = None
    problems: tuple[Problem, ...] = ()


def deploy_values(
    definition: FlowDefinition,
    *,
    user: str,
    storage: str = "local",
    say: Callable[[str], None] = lambda line: None,
) -> DeployValues:
    """Find out what a flow's decorators and parameters mean for a deployment.

    Parameters
    ----------
    definition : FlowDefinition
        The flow, with its decorators configured.
    user : str
        Who deploys it.
    storage : str, default "local"
        The datastore's kind, for defaults that are computed.
    say : callable, optional
        Prints a line that a computed default has for the user.
    """
    context = ParameterContext(definition.name, user, "", say, storage, definition.config_values)
    problems: list[Problem] = []
    plans, defaults = _parameters(definition, context, problems)
    current: dict[str, Any] = {}
    for decorator in _named(definition, "project"):
        current.update(decorator.current())
    project, branch = current.get("project_name"), current.get("branch_name")
    schedule = None
    options: dict[str, Any] = {}
    events: list[EventPlan] = []
    finishes: list[EventPlan] = []
    for decorator in _named(definition, "schedule"):
        expression = decorator.expression()
        schedule = SchedulePlan(expression, decorator.attributes["timezone"]) if expression else None
    for decorator in _named(definition, "trigger"):
        options.update(decorator.attributes["options"] or {})
        for item in _wanted(decorator, "event", "events"):
            events += _event(decorator, item, definition, context, problems)
    for decorator in _named(definition, "trigger_on_finish"):
        options.update(decorator.attributes["options"] or {})
        for item in _wanted(decorator, "flow", "flows"):
            finishes += _finish(decorator, item, project, branch, context, problems)
    hooks = _named(definition, "exit_hook")
    found = DeployValues(
        parameters=tuple(plans),
        defaults=defaults,
        schedule=schedule,
        events=tuple(events),
        finishes=tuple(finishes),
        event_options=options,
        on_success=any(hook.attributes["on_success"] for hook in hooks),
        on_error=any(hook.attributes["on_error"] for hook in hooks),
        project=project,
        branch=branch,
    )
    problems += _unfilled(definition, found) + _doubled(definition, found)
    return found._replace(problems=tuple(problems))


def _named(definition: FlowDefinition, name: str) -> list[Any]:
    return [decorator for decorator in definition.decorators if decorator.name == name]


# -- parameters -----------------------------------------------------------------------------------------------------


def _parameters(
    definition: FlowDefinition, context: ParameterContext, problems: list[Problem]
) -> tuple[list[ParameterPlan], dict[str, Any]]:
    plans: list[ParameterPlan] = []
    defaults: dict[str, Any] = {}
    for attribute, parameter in definition.parameters.items():
        try:
            value = parameter.resolve_default(context._replace(parameter_name=parameter.name))
            text = None if value is None or isinstance(parameter, IncludeFile) else json_text(parameter, value)
        except UsageError as error:
            problems.append(Problem(error.headline, error.where or parameter.location, error.hint))
            continue
        if value is not None or not parameter.required:
            defaults[attribute] = value
        if isinstance(parameter, IncludeFile):
            if value is None and parameter.required:
                problems.append(
                    Problem(
                        f"the parameter '{parameter.name}' needs a file, and where a deployed run starts there is none",
                        parameter.location,
                        "give IncludeFile a default: its content is kept when the flow is deployed",
                    )
                )
            continue
        required = value is None and parameter.required
        plans.append(
            ParameterPlan(
                parameter.name,
                attribute,
                kind_of(parameter),
                text,
                required,
                _line(parameter.help),
                choices_of(parameter),
            )
        )
    return plans, defaults


def kind_of(parameter: Parameter) -> ParameterKind:
    """Return what a form asks for: a type of another package is asked for as text."""
    if parameter.separator is not None or isinstance(parameter.type, JSONTypeClass):
        return "json"
    return _KINDS.get(parameter.type, "text") if isinstance(parameter.type, type) else "text"


def choices_of(parameter: Parameter) -> tuple[str, ...]:
    """Return the texts that a parameter takes; empty for any."""
    if isinstance(parameter.type, (list, tuple)):
        return tuple(map(str, parameter.type))
    members: Mapping[str, Any] | None = getattr(parameter.type, "__members__", None)
    return tuple(members) if members and isinstance(parameter.type, type) else ()


def json_text(parameter: Parameter, value: Any) -> str:
    """Return a parameter's value as JSON.

    A member of an Enum is its name, a value of another package's type its text; reading it again gives the value.

    Raises
    ------
    UsageError
        If JSON cannot hold it.
    """
    if isinstance(parameter.type, type) and hasattr(parameter.type, "__members__") and hasattr(value, "name"):
        value = value.name
    elif isinstance(parameter.type, (list, tuple)) or (
        parameter.type not in _KINDS and not isinstance(parameter.type, JSONTypeClass)
    ):
        value = str(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the default of parameter '{parameter.name}' cannot be kept with a deployment: {error}",
            "texts, numbers, truth values, lists and dictionaries of them can",
            parameter.location,
        ) from None


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _unfilled(definition: FlowDefinition, found: DeployValues) -> list[Problem]:
    """Return a problem for each parameter that what starts the flow by itself cannot give."""
    problems = []
    given = {attribute for event in found.events for attribute, _ in event.parameters}
    starters = [
        ("schedule", found.schedule is not None, frozenset()),
        ("trigger", bool(found.events), frozenset(given)),
        ("trigger_on_finish", bool(found.finishes), frozenset()),
    ]
    for plan in found.parameters:
        if not plan.required:
            continue
        for name, there, filled in starters:
            if there and plan.attribute not in filled:
                problems.append(
                    Problem(
                        f"the parameter '{plan.name}' is required, and @{name} cannot give it a value",
                        definition.parameters[plan.attribute].location,
                        "give it a default" + (", or map a field of the event to it" if name == "trigger" else ""),
                    )
                )
    return problems


def _doubled(definition: FlowDefinition, found: DeployValues) -> list[Problem]:
    """Return a problem for each event that is waited for twice: it would count as both."""
    problems = []
    for decorator, several in (("trigger", found.events), ("trigger_on_finish", found.finishes)):
        names = [event.name for event in several]
        for name in sorted({name for name in names if names.count(name) > 1}):
            where = next((item.location for item in _named(definition, decorator)), None)
            problems.append(Problem(f"@{decorator} waits for '{name}' twice", where, "name it once"))
    return problems


# -- events ---------------------------------------------------------------------------------------------------------


def _wanted(decorator: FlowDecorator, single: str, several: str) -> list[Any]:
    from flowkit.decorators.trigger import wanted

    return wanted(decorator, single, several)


def _event(
    decorator: FlowDecorator,
    item: Any,
    definition: FlowDefinition,
    context: ParameterContext,
    problems: list[Problem],
) -> list[EventPlan]:
    """Return the event that an entry of ``@trigger`` means; none where that cannot be found out."""
    found = _called(decorator, item, context, problems)
    if isinstance(found, str):
        found = {"name": found}
    if not isinstance(found, Mapping):
        if found is not _FAILED:
            problems.append(_odd(decorator, item, found, "the name of an event, or a dict with it"))
        return []
    name = _called(decorator, found.get("name"), context, problems)
    given = _called(decorator, found.get("parameters"), context, problems)
    if name is _FAILED or given is _FAILED:
        return []
    if not isinstance(name, str) or not name:
        problems.append(_odd(decorator, found.get("name"), name, "the name of an event"))
        return []
    pairs = _pairs(decorator, given, definition, problems)
    return [] if pairs is None else [EventPlan(name, pairs)]


def _pairs(
    decorator: FlowDecorator, given: Any, definition: FlowDefinition, problems: list[Problem]
) -> tuple[tuple[str, str], ...] | None:
    """Return the flow's parameters (attributes) and the fields of the event that fill them."""
    if given is None:
        return ()
    entries = list(given.items()) if isinstance(given, Mapping) else [given] if isinstance(given, str) else given
    names = {each.name: attribute for attribute, each in definition.parameters.items()}
    names |= {attribute: attribute for attribute in definition.parameters}
    found: dict[str, str] = {}
    try:
        pairs = [(entry, entry) if isinstance(entry, str) else tuple(entry) for entry in entries]
        for parameter, field in pairs:
            if not isinstance(field, str) or not field:
                raise TypeError
            if parameter not in names:
                problems.append(decorator.problem(f"@trigger: the flow has no parameter '{parameter}'"))
                return None
            found[names[parameter]] = field
    except (TypeError, ValueError):
        problems.append(
            decorator.problem(
                "@trigger: the parameters of an event are not names",
                'a dict {"parameter": "field"}, or a list of names or of ("parameter", "field")',
            )
        )
        return None
    return tuple(found.items())


def _finish(
    decorator: FlowDecorator,
    item: Any,
    project: str | None,
    branch: str | None,
    context: ParameterContext,
    problems: list[Problem],
) -> list[EventPlan]:
    """Return the end of a flow that an entry of ``@trigger_on_finish`` means.

    A flow that is named without a project is one of this flow's project and branch.
    """
    found = _called(decorator, item, context, problems)
    if isinstance(found, str):
        parts = found.split(".")
        found = {"name": parts[-1]}
        if len(parts) > 2:
            found.update(project=parts[0], project_branch=".".join(parts[1:-1]))
    if not isinstance(found, Mapping):
        if found is not _FAILED:
            problems.append(_odd(decorator, item, found, "the name of a flow, or a dict with it"))
        return []
    keys = ("name", "project", "project_branch")
    values = {key: _called(decorator, found.get(key), context, problems) for key in keys}
    if any(value is _FAILED for value in values.values()):
        return []
    flow, of, on = values["name"], values["project"] or project, values["project_branch"] or branch
    if not isinstance(flow, str) or not flow.isidentifier():
        problems.append(_odd(decorator, found.get("name"), flow, "the name of a flow"))
        return []
    if not isinstance(of, str | None) or not isinstance(on, str | None) or (of is None) != (on is None):
        problems.append(
            decorator.problem(
                f"@trigger_on_finish: of the flow {flow} only one of project and branch is known",
                "give both: project and project_branch",
            )
        )
        return []
    return [EventPlan(finish_event(flow, of, on), (), flow, of, on)]


class _Failed:
    """Stands for a value that a function of the user's did not give; the problem is told already."""


_FAILED = _Failed()


def _called(decorator: FlowDecorator, value: Any, context: ParameterContext, problems: list[Problem]) -> Any:
    """Return a value, calling it where it is a function that is to be called at deploy time."""
    if not callable(value):
        return value
    try:
        return value(context) if _takes_one(value) else value()
    except Exception as error:  # the user's code
        told = f"{type(error).__name__}: {message_of(error)}"
        problems.append(
            decorator.problem(
                f"@{decorator.name}: the function '{_label(value)}' failed: {told}",
                "it is called when the flow is deployed",
            )
        )
        return _FAILED


def _takes_one(function: Callable[..., Any]) -> bool:
    import inspect

    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a built-in function tells nothing
        return True
    return True


def _label(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _odd(decorator: FlowDecorator, asked: Any, got: Any, wanted: str) -> Problem:
    what = f"the function '{_label(asked)}' returned {got!r}" if callable(asked) else repr(got)
    return decorator.problem(f"@{decorator.name}: {what}, which is not {wanted}")
