"""``@secrets``: secret values as environment variables of a step, and the port for where they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_flag, items, variable_problem
from flowkit.decorators.contract import StepDecorator, TaskContext
from flowkit.exceptions import Location, Problem, TaskError, did_you_mean

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_KEYS = ("type", "id", "options", "role")
_SHORTEST = 3
"""Characters that a value must have to be hidden: hiding shorter ones would turn ordinary text into stars."""
_LINE = 8
"""Characters that a line of a value with several lines must have to be hidden by itself; shorter ones say nothing."""


class SecretsBackend(ABC):
    """The port: where secret values come from. Registered under the kind ``secrets``.

    Attributes
    ----------
    type : str
        The name that ``@secrets(sources=["<type>.<id>"])`` uses.
    """

    type: ClassVar[str]

    @abstractmethod
    def fetch(self, identity: str, options: Mapping[str, Any], role: str | None) -> Mapping[str, str]:
        """Return the environment variables that a source stands for.

        Parameters
        ----------
        identity : str
            The source's id; may be empty where the options say everything.
        options : mapping
            As the user gave them.
        role : str, optional
            The role to take on while asking.

        Raises
        ------
        FlowkitError
            If there is no such secret, or it may not be read. The message never holds a value.
        """

    def check(self, identity: str, options: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with a source, before anything runs and without asking anybody."""
        return [] if identity else ["it has no id"]


class InlineSecrets(SecretsBackend):
    """Values that stand in the source itself: for tests."""

    type = "inline"

    def fetch(self, identity: str, options: Mapping[str, Any], role: str | None) -> Mapping[str, str]:
        """Return ``options["env_vars"]``."""
        return dict(options.get("env_vars", {}))

    def check(self, identity: str, options: Mapping[str, Any]) -> list[str]:
        """Check the names of the variables and the types of their values."""
        variables = options.get("env_vars")
        if not isinstance(variables, Mapping) or len(options) != 1:
            return ['an inline source has options={"env_vars": {"NAME": "value"}} and nothing else']
        wrong = [variable_problem(name) for name in variables]
        wrong += [
            f"the value of {name} must be a text" for name, value in variables.items() if not isinstance(value, str)
        ]
        return [item for item in wrong if item]


class _Source(NamedTuple):
    type: str
    identity: str
    options: Mapping[str, Any]
    role: str | None

    def __repr__(self) -> str:
        return f"{self.type}.{self.identity}" if self.identity else self.type

    def shown(self) -> dict[str, Any]:
        """What may be seen of it: never a value of an option."""
        return {"type": self.type, "id": self.identity, "role": self.role, "options": sorted(map(str, self.options))}


class Secrets(StepDecorator):
    """Give the step secret values as environment variables.

    They are fetched in the step's own process, right before its code, and hidden in logs, errors and previews.

    Parameters
    ----------
    sources : list of str or dict
        Where they come from: ``"<type>.<id>"``, or a dict with ``type``, ``id``, ``options`` and ``role``. The type
        ``inline`` takes the values from its options: ``{"type": "inline", "options": {"env_vars": {"TOKEN": "…"}}}``.
    role : str, optional
        The role to take on for sources that name none.
    allow_override : bool, default False
        Whether a variable that is set already may be replaced.

    Examples
    --------
    >>> @secrets(sources=["aws-secrets-manager.prod/db"])
    ... @step
    ... def load(self): ...
    """

    name = "secrets"
    defaults = {"sources": [], "role": None, "allow_override": False}

    def __init__(
        self,
        attributes: Mapping[str, Any] | None = None,
        *,
        inserted_by: str | None = None,
        location: Location | None = None,
    ) -> None:
        super().__init__(attributes, inserted_by=inserted_by, location=location)
        self._given = items(self.attributes["sources"])
        # From here on nothing that shows attributes can show a value.
        self.attributes["sources"] = [_shown(source) for source in self._given]

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check the form of every source, and that its type exists."""
        problems = check_flag(self, "allow_override")
        role = self.attributes["role"]
        if role is not None and not isinstance(role, str):
            problems.append(self.problem("@secrets: role must be a text"))
        if not self._given:
            problems.append(self.problem("@secrets has no sources", 'for example @secrets(sources=["<type>.<id>"])'))
        for position, source in enumerate(self._given):
            problems += [self.problem(f"@secrets: source {position + 1}: {text}") for text in self._check(source)]
        return problems

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Put the values into the environment."""
        if not task.fallback:
            from flowkit.settings import environment

            environment().update(self._fetch(environment(), task.hide))
        proceed()

    def _check(self, given: Any) -> list[str]:
        source, wrong = _read(given)
        if source is None:
            return wrong
        from flowkit import registry

        if source.type not in registry.TABLES["secrets"]:
            known = registry.names("secrets")
            if source.type not in known:
                near = did_you_mean(source.type, known) or f"known: {', '.join(known)}"
                return [*wrong, f"there is no type of secrets '{source.type}' ({near})"]
        if source.type == InlineSecrets.type and self.inserted_by:
            return [*wrong, "inline values cannot be given on the command line, which is recorded with the run"]
        backend: SecretsBackend = registry.load("secrets", source.type)()
        return [*wrong, *backend.check(source.identity, source.options)]

    def _fetch(self, present: Mapping[str, str], hide: Callable[[str], None]) -> dict[str, str]:
        from flowkit import registry

        found: dict[str, str] = {}
        origins: dict[str, _Source] = {}
        for given in self._given:
            source, wrong = _read(given)
            if source is None:
                raise TaskError(f"@secrets: {wrong[0]}", where=self.location)
            backend: SecretsBackend = registry.load("secrets", source.type)()
            for name, value in backend.fetch(source.identity, source.options, source.role or self._role()).items():
                text = str(value)
                _hide(text, hide)
                problem = variable_problem(name)
                if problem is None and name in origins:
                    problem = f"both {origins[name]} and {source} give {name}"
                if problem is None and name in present and not self.attributes["allow_override"]:
                    problem = f"{name} is set in the environment already (allow_override=True replaces it)"
                if problem is not None:
                    raise TaskError(f"@secrets: {problem}", where=self.location)
                found[name] = text
                origins[name] = source
        return found

    def _role(self) -> str | None:
        role: str | None = self.attributes["role"]
        return role


def _hide(value: str, hide: Callable[[str], None]) -> None:
    """Hide a value, the lines of a value with several, and how it looks inside quotes."""
    if not value:
        return
    forms = {value, value.strip(), repr(value)[1:-1]} if len(value.strip()) >= _SHORTEST else set()
    lines = value.splitlines()
    if len(lines) > 1:
        forms.update(line.strip() for line in lines if len(line.strip()) >= _LINE)
    for form in sorted(forms, key=len, reverse=True):
        if form:
            hide(form)


def _read(given: Any) -> tuple[_Source | None, list[str]]:
    """Read a source; what is wrong with it never holds a value."""
    if isinstance(given, str):
        before, _, after = given.partition(".")
        if not before or not after:
            return None, ["a text must have the form '<type>.<id>'"]
        return _Source(before, after, {}, None), []
    if not isinstance(given, Mapping):
        return None, [f"it must be a text or a dict, not {type(given).__name__}"]
    wrong = [
        f"it has no key '{key}'" + (f" ({hint})" if (hint := did_you_mean(str(key), _KEYS)) else "")
        for key in given
        if key not in _KEYS
    ]
    kind: Any = given.get("type")
    identity: Any = given.get("id")
    options, role = given.get("options"), given.get("role")
    if not isinstance(kind, str) or not kind:
        return None, [*wrong, "it has no type"]
    if identity is not None and not isinstance(identity, str):
        return None, [*wrong, "its id must be a text"]
    if options is not None and not isinstance(options, Mapping):
        return None, [*wrong, "its options must be a dict"]
    if role is not None and not isinstance(role, str):
        return None, [*wrong, "its role must be a text"]
    return _Source(kind, identity or "", options or {}, role), wrong


def _shown(given: Any) -> Any:
    source, _ = _read(given)
    return source.shown() if source is not None else type(given).__name__


secrets = step_decorator(Secrets)
