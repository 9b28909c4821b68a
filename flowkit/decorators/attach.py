"""Putting decorators where they belong: above a step or a class, or on all steps by ``--with``; asking them all.

`step_decorator` and `flow_decorator` make what users write (``@retry``) out of a class (``Retry``). What is wrong
with a decorator in a flow's class is kept beside the function and told by `configure_all`, together with everything
else that is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from flowkit.decorators.contract import (
    Attempts,
    Decorator,
    ExecutorRequest,
    FlowDecorator,
    StepDecorator,
    combine,
)
from flowkit.exceptions import FlowInvalid, Location, Problem
from flowkit.model.parameters import waits_for_configs

if TYPE_CHECKING:
    from inspect import Signature
    from types import FrameType

    from flowkit.model.definition import FlowDefinition, StepDefinition

_Target = TypeVar("_Target", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type[Decorator])


class _Mark(Generic[_Class]):
    """What users write: ``@name`` or ``@name(attribute=value)``.

    Attributes
    ----------
    decorator : type
        The class of decorators that it makes.
    """

    def __init__(self, decorator: _Class) -> None:
        self.decorator = decorator
        self.__name__ = self.__qualname__ = decorator.name
        self.__module__ = decorator.__module__
        self.__doc__ = decorator.__doc__

    def __repr__(self) -> str:
        return f"<decorator @{self.decorator.name}>"

    @property
    def __signature__(self) -> Signature:
        """The attributes as keywords, for ``help`` and editors."""
        from inspect import Parameter, Signature

        keyword = Parameter.KEYWORD_ONLY
        return Signature([Parameter(name, keyword, default=value) for name, value in self.decorator.defaults.items()])

    @overload
    def __call__(self, target: _Target, /) -> _Target: ...

    @overload
    def __call__(self, /, **attributes: Any) -> Callable[[_Target], _Target]: ...

    def __call__(self, target: Any = None, /, **attributes: Any) -> Any:
        frame = sys._getframe(1)
        if target is not None:
            return self._put(target, attributes, frame, frame.f_lineno)
        code, line = frame.f_code, frame.f_lineno

        def put(target: Any) -> Any:
            frame = sys._getframe(1)
            # Python 3.10 gives the line of `def` to every decorator; the call's own line is right everywhere.
            return self._put(target, attributes, frame, line if frame.f_code is code else frame.f_lineno)

        return put

    def _put(self, target: Any, attributes: Mapping[str, Any], frame: FrameType, line: int) -> Any:
        raise NotImplementedError

    def _make(self, attributes: Mapping[str, Any], location: Location) -> tuple[Any, list[Problem]]:
        known = {key: value for key, value in attributes.items() if not waits_for_configs(value)}
        try:
            made = self.decorator.make(known, location=location)
            made.written = attributes
            return made, []
        except FlowInvalid as error:
            return None, list(error.problems)


class StepMark(_Mark[type[StepDecorator]]):
    """A decorator for steps, as users write it."""

    def _put(self, target: Any, attributes: Mapping[str, Any], frame: FrameType, line: int) -> Any:
        location = Location(frame.f_code.co_filename, line)
        name = self.decorator.name
        misplaced = self._misplaced(target, location)
        if misplaced is not None:
            # In the body of a class the problem is told with all others; elsewhere nobody would ask for it.
            if "__qualname__" not in frame.f_locals or not hasattr(target, "__dict__") or isinstance(target, type):
                raise FlowInvalid([misplaced])
            target.decorator_problems = [misplaced, *getattr(target, "decorator_problems", ())]
            return target
        made, problems = self._make(attributes, location)
        present: Sequence[Any] = getattr(target, "decorators", ())
        if made is not None and not made.multiple and any(item.name == name for item in present):
            problems.append(
                Problem(f"step '{target.__name__}' has @{name} twice", location, "keep one, with all its attributes")
            )
        if problems:
            target.decorator_problems = [*problems, *getattr(target, "decorator_problems", ())]
        else:
            target.decorators = [made, *present]
        return target

    def _misplaced(self, target: Any, location: Location) -> Problem | None:
        name = self.decorator.name
        if getattr(target, "is_step", False):
            return None
        if isinstance(target, type):
            return Problem(f"@{name} is for steps, not for the class {target.__name__}", location)
        if not callable(target):
            example = next(iter(self.decorator.defaults), None)
            hint = f"write @{name}({example}=…)" if example else f"write @{name}"
            return Problem(f"@{name} takes attributes by name only", location, hint)
        label = getattr(target, "__name__", type(target).__name__)
        return Problem(
            f"@{name} must stand above @step: '{label}' is not a step yet",
            location,
            "@step is the innermost decorator, right above def",
        )


class FlowMark(_Mark[type[FlowDecorator]]):
    """A decorator for flows, as users write it."""

    def _put(self, target: Any, attributes: Mapping[str, Any], frame: FrameType, line: int) -> Any:
        location = Location(frame.f_code.co_filename, line)
        name = self.decorator.name
        if not isinstance(target, type):
            label = getattr(target, "__name__", repr(target))
            problem = Problem(
                f"@{name} is for flows: it stands above a class, not above '{label}'",
                location,
                "put it above 'class …(FlowSpec):', attributes by name",
            )
            if "__qualname__" not in frame.f_locals or not hasattr(target, "__dict__"):
                raise FlowInvalid([problem])
            target.decorator_problems = [problem, *getattr(target, "decorator_problems", ())]
            return target
        made, problems = self._make(attributes, location)
        held = "_flow_mutators" if self.decorator.mutates else "_flow_decorators"
        present: Sequence[Any] = target.__dict__.get(held, ())
        if made is not None and not made.multiple and any(item.name == name for item in present):
            problems.append(
                Problem(f"the flow {target.__name__} has @{name} twice", location, "keep one, with all its attributes")
            )
        if problems:
            target._decorator_problems = [*problems, *target.__dict__.get("_decorator_problems", ())]  # type: ignore[attr-defined]
        else:
            setattr(target, held, [made, *present])
        return target


def step_decorator(cls: type[StepDecorator]) -> StepMark:
    """Make what users write above a step out of a class of decorators.

    Examples
    --------
    >>> retry = step_decorator(Retry)

    Then ``@retry``, ``@retry()`` and ``@retry(times=3)`` stand above ``@step``. Problems (not above a step, an unknown
    attribute, the same decorator twice) are told by `configure_all`; outside a class FlowInvalid is raised at once.
    """
    return StepMark(cls)


def flow_decorator(cls: type[FlowDecorator]) -> FlowMark:
    """Make what users write above a flow's class out of a class of decorators."""
    return FlowMark(cls)


def parse_decospec(text: str) -> tuple[str, dict[str, Any]]:
    """Read a decorator given as text.

    Parameters
    ----------
    text : str
        ``name`` or ``name:attribute=value,…``. Values are read as JSON, then as numbers, else they are texts; commas
        inside brackets and double quotes belong to the value.

    Raises
    ------
    UsageError
        If an attribute has no value, or is given twice.

    Examples
    --------
    >>> parse_decospec("retry:times=2,minutes_between_retries=0")
    ('retry', {'times': 2, 'minutes_between_retries': 0})
    """
    from flowkit.exceptions import UsageError

    name, _, rest = text.strip().partition(":")
    attributes: dict[str, Any] = {}
    for part in _split(rest):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"--with {text}: '{part}' is not attribute=value", "for example --with retry:times=2")
        if key in attributes:
            raise UsageError(f"--with {text}: '{key}' is given twice")
        attributes[key] = _value(value.strip())
    if not name:
        raise UsageError(f"--with '{text}' does not name a decorator", "for example --with retry:times=2")
    return name, attributes


def _split(text: str) -> list[str]:
    parts: list[str] = []
    start = depth = 0
    quoted = escaped = False
    for position, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"' and (depth or text[position - 1 : position] in ("=", " ")):
            quoted = True
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth = max(0, depth - 1)
        elif char == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Any:
    import json

    for read in (json.loads, int, float):
        try:
            return read(text)
        except (ValueError, RecursionError):
            continue
    return text


def attach(definition: FlowDefinition, specs: Sequence[str], origin: str = "--with") -> None:
    """Add decorators to every step that lacks them.

    A decorator that stands in the source is never overridden. Of several texts that name the same decorator the last
    one counts, so that the more special origin comes last. Steps that a decorator does not fit (``catch`` on a
    foreach) are left out, and so are those that say already which service carries them out, where it is another one.

    Parameters
    ----------
    definition : FlowDefinition
        The flow; its steps' lists of decorators are changed, never the user's class.
    specs : sequence of str
        As for `parse_decospec`.
    origin : str
        Who asks, for messages.

    Raises
    ------
    UsageError
        If a text cannot be read, or nothing has the name.
    FlowInvalid
        If the decorator has no such attribute.
    """
    from flowkit.exceptions import UsageError

    wanted: dict[str, list[tuple[type[StepDecorator], dict[str, Any]]]] = {}
    for text in specs:
        name, attributes = parse_decospec(text)
        found = find_decorator(name, origin)
        if not (isinstance(found, type) and issubclass(found, StepDecorator)):
            raise UsageError(f"{origin} {name}: it is not a decorator of steps")
        earlier = wanted.setdefault(name, [])
        if not found.multiple:
            earlier.clear()
        earlier.append((found, attributes))
    for name, chosen in wanted.items():
        for step in definition.steps.values():
            if step.decorator(name) is None and not (_is_service(chosen[0][0]) and services(step)):
                for found, attributes in chosen:
                    if found.fits(definition.graph[step.name]):
                        place(step.decorators, found.make(attributes, inserted_by=origin))


def place(decorators: list[Any], made: Any) -> None:
    """Put a decorator among those of a step that stand in the source.

    The one that swallows errors goes around all others. Any other one goes inside them, and about those that users
    write: these see an environment, secrets and errors as the step does.
    """
    users = (position for position, decorator in enumerate(decorators) if decorator.users)
    decorators.insert(0 if made.outermost else next(users, len(decorators)), made)


def services(step: StepDefinition) -> list[str]:
    """Return the names of the decorators of a step that have a service carry it out (``batch``, ``kubernetes``)."""
    return [decorator.name for decorator in step.decorators if _is_service(type(decorator))]


def _is_service(decorator: type[StepDecorator]) -> bool:
    from flowkit import registry

    name = decorator.name
    if name in registry.TABLES["backends"]:
        return True
    # The entry points of all packages are looked through only where it may be one of them.
    asks = decorator.executor is not StepDecorator.executor and name not in registry.TABLES["decorators"]
    return asks and name in registry.names("backends")


def find_decorator(name: str, origin: str = "", *, flow: bool = False) -> Any:
    """Return the class of decorators of a name: a built-in one, a user's that was imported, or a package's.

    Parameters
    ----------
    name : str
        For example ``retry``; a user's also with its module, ``monitors.Timing``.
    origin : str
        Who asks, for messages.
    flow : bool
        Whether it is for a flow and not for its steps.

    Raises
    ------
    UsageError
        If nothing has the name, or several things have it.
    """
    from flowkit import registry
    from flowkit.exceptions import NotFound, UsageError, did_you_mean

    kind = "flow_decorators" if flow else "decorators"
    lead = f"{origin} {name}: ".lstrip() if origin else ""
    users = sys.modules.get("flowkit.decorators.user_steps")  # only a flow that has some loads them
    if users is not None and name not in registry.TABLES[kind]:
        found = users.registered(name)
        if len(found) > 1:
            places = ", ".join(sorted(f"{each.__module__}.{each.__qualname__}" for each in found))
            raise UsageError(f"{lead}several decorators are called '{name}'", f"write which one: {places}")
        if found:
            return found[0]
    try:
        return registry.load(kind, name)
    except NotFound as error:
        other = "decorators" if flow else "flow_decorators"
        if name in registry.TABLES[other]:
            raise UsageError(
                f"{lead}@{name} is for {'the steps of a flow' if flow else 'the flow, not for its steps'}",
                "write it above @step" if flow else "write it above the class",
            ) from None
        near = did_you_mean(name, users.registered_names()) if users is not None else None
        raise UsageError(f"{lead}{error.headline}", near or error.hint) from None


def written_problems(definition: FlowDefinition) -> list[Problem]:
    """Return what is wrong with decorators as they stand in the source: in the flow's class and its bases."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for cls in definition.cls.__mro__:
        found: list[Problem] = list(vars(cls).get("_decorator_problems", ()))
        for name, value in vars(cls).items():
            if name not in seen:
                seen.add(name)
                state = getattr(value, "__dict__", None)
                if isinstance(state, dict):
                    found += state.get("decorator_problems", ())
        problems += found
    return problems


def configure_all(definition: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
    """Ask every decorator whether it is right; return everything that is wrong, each thing once.

    Parameters
    ----------
    definition : FlowDefinition
        The flow, with what `attach` added.
    options : mapping
        The values of the options of flow decorators, by name.
    """
    problems = written_problems(definition)
    for flow_level in definition.decorators:
        problems += flow_level.configure_flow(definition, options)
    for step in definition.steps.values():
        for decorator in step.decorators:
            problems += decorator.configure(definition, definition.graph[step.name])
        problems += _rivals(step)
    return list(dict.fromkeys(problems))


def _rivals(step: StepDefinition) -> list[Problem]:
    names = services(step)
    if len(names) < 2:
        return []
    both = " and ".join(f"@{name}" for name in names)
    where = next(item.location for item in step.decorators if item.name == names[-1])
    headline = f"step '{step.name}' has {both}: one service carries it out"
    return [Problem(headline, where, "keep the one that it is to run on")]


def policy(step: StepDefinition) -> Attempts:
    """Return how often a step is tried, as all its decorators together say."""
    said = [decorator.attempts() for decorator in step.decorators]
    return combine([item for item in said if item is not None])


def executor_request(step: StepDefinition) -> ExecutorRequest:
    """Return who carries a step out, and with what, as all its decorators together say.

    Of resources the larger wins, of an environment variable the outermost decorator.
    """
    name: str | None = None
    fresh = False
    resources: dict[str, Any] = {}
    environment: dict[str, str] = {}
    for decorator in step.decorators:
        request: ExecutorRequest | None = decorator.executor()
        if request is not None:
            name = name or request.name
            fresh = fresh or request.fresh
            for key, value in request.resources.items():
                known = resources.get(key)
                resources[key] = value if known is None else _larger(known, value)
            environment = {**request.environment, **environment}
    return ExecutorRequest(name, resources, fresh, environment)


def _larger(one: Any, other: Any) -> Any:
    try:
        return max(one, other)
    except TypeError:  # not comparable: the outermost one counts
        return one


def restore_flow(definition: FlowDefinition, records: Mapping[str, Any]) -> None:
    """Give flow decorators, in another process, what their `record` wrote into the run's parameters manifest."""
    for decorator in definition.decorators:
        if decorator.name in records:
            decorator.restore(records[decorator.name])
