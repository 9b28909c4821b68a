"""A flow as a value: what its class says, gathered once and handed around.

`define` reads a subclass of FlowSpec; nothing is attached to the class itself, so that ``--with`` and the
like change the definition of one command and never the user's class.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from flowkit.exceptions import FlowInvalid, Location, Problem
from flowkit.model.flowspec import FlowSpec
from flowkit.model.graph import Graph, build_graph
from flowkit.model.parameters import Parameter, duplicate_names


@dataclass(slots=True)
class StepDefinition:
    """One step: its function and its decorators, outermost first (objects of `flowkit.decorators.contract`)."""

    name: str
    function: Callable[..., Any]
    decorators: list[Any] = field(default_factory=list)

    def decorator(self, name: str) -> Any | None:
        """Return the step's decorator of a name, or None."""
        return next((item for item in self.decorators if item.name == name), None)


@dataclass(slots=True)
class FlowDefinition:
    """One flow.

    Parameters
    ----------
    cls : type
        The user's class; `name` is its name and `file` where it stands.
    graph : Graph
        Its steps and transitions.
    steps : dict of str to StepDefinition
        In the order of the source.
    parameters : dict of str to Parameter
        By attribute name.
    constants : dict of str to object
        Class-level values that are neither steps, methods nor parameters.
    decorators : list
        Flow decorators, outermost first.
    configs : dict of str to Config
        By attribute name.
    config_values : dict of str to object
        What each config is, as mutators and decorators see it: empty until `flowkit.decorators.settle.settle`.
    stored_configs : dict of str to object
        The same as they are stored with a run.
    mutators : list
        FlowMutators, in the order in which they act.
    """

    cls: type
    name: str
    file: str
    graph: Graph
    steps: dict[str, StepDefinition]
    parameters: dict[str, Any]
    constants: dict[str, Any]
    decorators: list[Any]
    configs: dict[str, Any] = field(default_factory=dict)
    config_values: dict[str, Any] = field(default_factory=dict)
    stored_configs: dict[str, Any] = field(default_factory=dict)
    mutators: list[Any] = field(default_factory=list)


def define(cls: type[FlowSpec]) -> FlowDefinition:
    """Gather what a flow's class says.

    Parameters
    ----------
    cls : type
        A subclass of FlowSpec; its base classes count, the nearest definition of a name wins.

    Raises
    ------
    FlowInvalid
        If two parameters have the same name (ignoring case), or a parameter the name of a step.
    """
    graph = build_graph(cls)
    steps = {}
    for name in graph.nodes:
        function = getattr(cls, name)
        steps[name] = StepDefinition(name, function, list(function.decorators))
    attributes = _attributes(cls)
    parameters = {name: value for name, value in attributes.items() if isinstance(value, Parameter)}
    configs = {name: value for name, value in attributes.items() if is_config(value)}
    problems = [
        Problem(f"two parameters are called '{name}' (upper and lower case are the same)", _class_location(graph))
        for name in duplicate_names(list(parameters.values()))
    ]
    problems += [
        Problem(f"the parameter '{name}' has the name of something that every flow has", _class_location(graph))
        for name in parameters
        if hasattr(FlowSpec, name)
    ]
    if configs:
        problems += _config_problems(configs)
    if problems:
        raise FlowInvalid(problems)
    return FlowDefinition(
        cls=cls,
        name=cls.__name__,
        file=graph.file,
        graph=graph,
        steps=steps,
        parameters=parameters,
        constants={name: value for name, value in attributes.items() if _is_constant(name, value)},
        decorators=_flow_decorators(cls),
        configs=configs,
        mutators=_mutators(cls),
    )


def is_config(value: Any) -> bool:
    """Whether a value of a class is a `flowkit.model.configs.Config`, without importing it for flows that have none."""
    return getattr(type(value), "is_config", False) is True


def _config_problems(configs: dict[str, Any]) -> list[Problem]:
    from flowkit.model.configs import options

    problems = []
    seen: dict[str, str] = {}
    for attribute, config in configs.items():
        name, where = options(config).name, options(config).location
        if hasattr(FlowSpec, attribute):
            problems.append(Problem(f"the config '{attribute}' has the name of something that every flow has", where))
        folded = name.lower().replace("-", "_")
        if folded in seen:
            problems.append(Problem(f"two configs are called '{name}' (upper and lower case are the same)", where))
        seen[folded] = attribute
    return problems


def _attributes(cls: type) -> dict[str, Any]:
    """What the classes of a flow define, base classes first, each name with its nearest value."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base not in FlowSpec.__mro__:
            found.update(vars(base))
    return found


def _is_constant(name: str, value: Any) -> bool:
    if (
        is_config(value)
        or name.startswith("_")
        or callable(value)
        or isinstance(value, (Parameter, property, classmethod, staticmethod))
    ):
        return False
    return not hasattr(type(value), "__get__") and type(value).__name__ != "module"


def _flow_decorators(cls: type) -> list[Any]:
    """The flow decorators of a class and its bases; the nearest one of a name wins unless it may be repeated."""
    found: list[Any] = []
    for base in cls.__mro__:
        for decorator in vars(base).get("_flow_decorators", ()):
            if decorator.multiple or all(item.name != decorator.name for item in found):
                found.append(decorator)
    return found


def _mutators(cls: type) -> list[Any]:
    """The FlowMutators of a class and its bases: those of base classes act first, of one class the innermost first."""
    found: list[Any] = []
    for base in reversed(cls.__mro__):
        found += reversed(vars(base).get("_flow_mutators", ()))
    return found


def _class_location(graph: Graph) -> Location | None:
    first = next(iter(graph.nodes.values()), None)
    return Location(graph.file, first.location.line) if first else None


def code_fingerprint(function: Callable[..., Any]) -> str:
    """Return a short text that changes when the code of a function does, and not when it merely moves in its file.

    It is made of the compiled code, without line numbers, so fingerprints of different Python versions (the part before
    the colon) cannot be compared.
    """
    plain = _unwrapped(function)
    code = getattr(plain, "__code__", None)
    check = 0 if code is None else _checksum(code, 0)
    return f"{sys.version_info[0]}.{sys.version_info[1]}:{check:08x}"


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the innermost function behind ``__wrapped__``."""
    for _ in range(100):
        inner = getattr(function, "__wrapped__", None)
        if inner is None:
            break
        function = inner
    return function


def _checksum(code: CodeType, check: int) -> int:
    check = zlib.crc32(code.co_code, check)
    check = zlib.crc32(repr((code.co_names, code.co_varnames, code.co_freevars)).encode(), check)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            check = _checksum(constant, check)
        else:
            text = repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)
            check = zlib.crc32(text.encode("utf-8", "surrogatepass"), check)
    return check
