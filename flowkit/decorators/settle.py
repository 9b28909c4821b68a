"""From a flow's class to the flow of one command: configs are known, what waited for them is computed.

Before a run everything that the class says is put together in this order: configs, then the ``pre_mutate`` of
mutators, then parameters; later, with ``--with`` attached, their ``mutate``. Other processes of the same run do the
same with the same configs, so that all have the same flow.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from flowkit.exceptions import FlowInvalid, Problem, UsageError
from flowkit.model.definition import FlowDefinition
from flowkit.model.parameters import duplicate_names, waits_for_configs


def settle(definition: FlowDefinition, stored: Mapping[str, Any]) -> None:
    """Put a flow together as far as it can be before the command line is read.

    Parameters
    ----------
    definition : FlowDefinition
        The flow, fresh from `define`; it is changed.
    stored : mapping
        The values of its configs as they are kept with a run, by attribute name.

    Raises
    ------
    UsageError
        If a value does not fit its config's type, or what uses it cannot be computed.
    FlowInvalid
        If decorators, mutators or parameters are wrong then.
    """
    if definition.configs:
        from flowkit.model.configs import finished

        definition.stored_configs = {name: stored.get(name) for name in definition.configs}
        values = {name: finished(config, stored.get(name)) for name, config in definition.configs.items()}
        definition.config_values = values
    problems = _decorators(definition)
    changed: dict[str, Any] = {}
    for name, value in definition.constants.items():
        if waits_for_configs(value):
            changed[name] = definition.constants[name] = _plain(_settled(value, definition, problems))
    before = dict(definition.parameters)
    if "flowkit.decorators.mutators" in sys.modules and not problems:
        from flowkit.decorators.mutable import pre_mutate

        problems += pre_mutate(definition)
        changed.update(_changed_parameters(before, definition.parameters))
        problems += _same_names(definition)
    for name, parameter in definition.parameters.items():
        if parameter.waiting is not None:
            definition.parameters[name] = _parameter(parameter, definition, problems)
    _raise(problems)
    if changed:
        adapt_class(definition, changed)


class _Removed:
    """Stands in the class for a parameter that a mutator has taken away."""

    def __get__(self, flow: Any, owner: Any = None) -> Any:
        raise AttributeError("a mutator has removed this parameter")


def _changed_parameters(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    changed = {name: parameter for name, parameter in now.items() if before.get(name) is not parameter}
    return {**changed, **{name: _Removed() for name in before if name not in now}}


def _same_names(definition: FlowDefinition) -> list[Problem]:
    return [
        Problem(f"two parameters are called '{name}' (upper and lower case are the same)")
        for name in duplicate_names(list(definition.parameters.values()))
    ]


def adapt_class(definition: FlowDefinition, attributes: Mapping[str, Any]) -> None:
    """Have steps see other attributes of the class than those that it was written with; the class itself stays."""
    cls = definition.cls
    told = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    definition.cls = type(cls.__name__, (cls,), {**told, **attributes})


def _decorators(definition: FlowDefinition) -> list[Problem]:
    problems: list[Problem] = []
    lists = [definition.decorators, definition.mutators, *(step.decorators for step in definition.steps.values())]
    for decorators in lists:
        for position, decorator in enumerate(decorators):
            if waits_for_configs(decorator.written):
                made = _decorator(decorator, definition, problems)
                if made is not None:
                    decorators[position] = made
    return problems


def _decorator(decorator: Any, definition: FlowDefinition, problems: list[Problem]) -> Any:
    try:
        return decorator.settled(_plain(_settled(decorator.written, definition, problems)))
    except FlowInvalid as error:
        problems += error.problems
        return None


def _parameter(parameter: Any, definition: FlowDefinition, problems: list[Problem]) -> Any:
    told = _settled(parameter.waiting, definition, problems)
    if told is None:
        return parameter
    try:
        return parameter.settled(told)
    except UsageError as error:
        problems.append(Problem(error.headline, error.where, error.hint))
        return parameter


def _settled(value: Any, definition: FlowDefinition, problems: list[Problem]) -> Any:
    from flowkit.model.configs import settled

    try:
        return settled(value, definition.config_values)
    except UsageError as error:
        problems.append(Problem(error.headline, error.where, error.hint))
        return type(value)() if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    from flowkit.model.configs import plain

    return plain(value)


def _raise(problems: list[Problem]) -> None:
    if problems:
        raise FlowInvalid(list(dict.fromkeys(problems)))
