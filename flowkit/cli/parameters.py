"""The flow's parameters on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from flowkit.exceptions import UsageError, did_you_mean
from flowkit.model.definition import FlowDefinition
from flowkit.model.parameters import JSONTypeClass, Parameter, ParameterContext

if TYPE_CHECKING:
    from flowkit.cli.session import Session

_PREFIX = "parameter_"
"""Of the names under which click keeps the texts, so that no parameter meets an option of ours."""


def parameter_options(parameters: Iterable[Parameter]) -> list[click.Parameter]:
    """Return an option for each parameter; dashes and underscores in its name are the same."""
    return [_option(parameter) for parameter in parameters]


def _option(parameter: Parameter) -> click.Parameter:
    names = {f"--{parameter.name}", f"--{parameter.name.replace('_', '-')}"}
    return click.Option(
        [*sorted(names), _PREFIX + parameter.attribute],
        type=str,
        envvar=f"FLOWKIT_RUN_{parameter.name.upper().replace('-', '_')}",
        help=_help(parameter),
        metavar=_metavar(parameter),
    )


def _metavar(parameter: Parameter) -> str:
    """Return what stands for the value in the help: its choices, or its type as click names it."""
    kind = parameter.type
    if isinstance(kind, (list, tuple)):
        return f"[{'|'.join(map(str, kind))}]"
    if isinstance(kind, type) and hasattr(kind, "__members__"):
        return f"[{'|'.join(kind.__members__)}]"
    if parameter.separator is not None:
        return parameter.separator.join(("TEXT", "TEXT", "…"))
    known = {
        "text": "TEXT",
        "a whole number": "INTEGER",
        "a number": "FLOAT",
        "true or false": "BOOLEAN",
        "a path": "FILE",
    }
    return known.get(parameter.type_name) or parameter.type_name.upper().replace(" ", "-")


def _help(parameter: Parameter) -> str:
    parts = [parameter.help or ""]
    if parameter.required:
        parts.append("[required]")
    elif parameter.show_default and parameter.default is not None and not callable(parameter.default):
        parts.append(f"[default: {_as_typed(parameter)}]")
    return "  ".join(part for part in parts if part)


def _as_typed(parameter: Parameter) -> str:
    """Return the default as it would be given on the command line."""
    default = parameter.default
    if isinstance(parameter.type, JSONTypeClass) and not isinstance(default, str):
        import json

        return json.dumps(default, ensure_ascii=False)
    if parameter.separator is not None and isinstance(default, (list, tuple)):
        return parameter.separator.join(map(str, default))
    return str(default.name if isinstance(parameter.type, type) and hasattr(default, "name") else default)


def read_given(definition: FlowDefinition, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the parameters that were given on the command line or in the environment.

    Raises
    ------
    UsageError
        If a text is not a value of its parameter's type; all such texts are told at once.
    """
    values: dict[str, Any] = {}
    wrong: list[UsageError] = []
    for name, parameter in definition.parameters.items():
        text = options.get(_PREFIX + name)
        if text is None:
            continue
        try:
            values[name] = parameter.parse(text)
        except UsageError as error:
            wrong.append(error)
    if options.get("runner_arguments") is not None:
        _take(definition, options["runner_arguments"], values, wrong)
    _raise(wrong)
    return values


def _take(definition: FlowDefinition, file: str, values: dict[str, Any], wrong: list[UsageError]) -> None:
    """Add what a program gives (`flowkit.runner`): typed values in a file."""
    import json

    with open(file, encoding="utf-8") as arguments:
        given: dict[str, Any] = json.load(arguments)
    known = {spelling: name for name, each in definition.parameters.items() for spelling in (name, each.name)}
    for spelling, value in given.items():
        name = known.get(spelling) or known.get(spelling.replace("_", "-"))
        if name is None:
            told = ", ".join(sorted(each.name for each in definition.parameters.values())) or "none"
            hint = did_you_mean(spelling, known) or f"its parameters: {told}"
            wrong.append(UsageError(f"{definition.name} has no parameter '{spelling}'", hint))
            continue
        try:
            values[name] = definition.parameters[name].take(value)
        except UsageError as error:
            wrong.append(error)


def with_defaults(
    definition: FlowDefinition, given: Mapping[str, Any], inherited: Mapping[str, Any], session: Session
) -> dict[str, Any]:
    """Return every parameter's value: the given one, else the origin run's, else the default.

    Raises
    ------
    UsageError
        If a required one has no value, or a default cannot be computed; all such cases are told at once.
    """
    values: dict[str, Any] = {}
    wrong: list[UsageError] = []
    for name, parameter in definition.parameters.items():
        if name in given:
            values[name] = given[name]
        elif name in inherited:
            values[name] = inherited[name]
        else:
            context = ParameterContext(
                definition.name, session.user, parameter.name, session.console.say, "local", definition.config_values
            )
            try:
                values[name] = parameter.resolve_default(context)
            except UsageError as error:
                error.where = error.where or parameter.location
                wrong.append(error)
                continue
            if values[name] is None and parameter.required:
                wrong.append(
                    UsageError(
                        f"the parameter '{parameter.name}' is required",
                        f"give it: --{parameter.name} <{parameter.type_name}>",
                        parameter.location,
                    )
                )
    _raise(wrong)
    return values


def _raise(wrong: list[UsageError]) -> None:
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise UsageError("several parameters are wrong:\n" + "\n".join(f"  {error}" for error in wrong))
