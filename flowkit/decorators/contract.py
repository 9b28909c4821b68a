"""The contract of decorators: what one says before a run, and how it wraps a step.

A step decorator is an object with attributes (``@retry(times=3)`` has ``times``). Before anything runs,
`configure` validates it with the whole flow in view, `attempts` says how often to try, `executor` who carries the
step out. In the task, `around` is one onion layer about the user's step: the first decorator written is the
outermost layer. Built-in decorators use nothing that one from another package cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from flowkit.exceptions import Location, Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node


class Attempts(NamedTuple):
    """How often a step is tried, as the scheduler needs to know it.

    Parameters
    ----------
    retries : int
        Further attempts of the user's code after the first one.
    delay : float
        Seconds before a retry (0: at once).
    backoff : float
        The factor by which the delay grows from retry to retry.
    max_delay : float
        The longest pause, in seconds.
    on : tuple of str
        Names of exception classes (with or without module; base classes count) and failure kinds
        (`flowkit.model.manifest.Failure.kind`) that are worth a retry; empty for all.
    fallback : bool
        After the last user attempt ended without a word (its process died), one more attempt in which
        decorators stand in for the user's code.
    timeout : float or None
        Seconds that the step's code may take. Where it does not end by itself then, the executor kills its process
        after a grace.
    """

    retries: int = 0
    delay: float = 0.0
    backoff: float = 1.0
    max_delay: float = 3600.0
    on: tuple[str, ...] = ()
    fallback: bool = False
    timeout: float | None = None

    def retries_on(self, kind: str, names: Iterable[str] = ()) -> bool:
        """Whether a failure is worth a retry, as long as one is left.

        Parameters
        ----------
        kind : str
            The kind of the failure, as in `flowkit.model.manifest.Failure`.
        names : iterable of str
            The names of the exception's class and its base classes, with their modules.
        """
        if not self.on or kind in self.on:
            return True
        return any(_same_class(found, name) for found in names for name in self.on)


class ExecutorRequest(NamedTuple):
    """Who carries a step out, and with what.

    Parameters
    ----------
    name : str
        The executor's name in the registry (``local``, ``batch``, ``kubernetes``).
    resources : mapping
        ``cpu``, ``memory`` (MB), ``gpu``, … as the executor understands them.
    fresh : bool
        The process must be a fresh interpreter with `environment` set before it starts.
    environment : mapping of str to str
        Environment variables of the process.
    """

    name: str | None = None
    resources: Mapping[str, Any] = MappingProxyType({})
    fresh: bool = False
    environment: Mapping[str, str] = MappingProxyType({})


def _no_next(options: Mapping[str, Any], *, only_missing: bool = False) -> None:
    """Stands where no task is running."""


@dataclass(slots=True)
class TaskContext:
    """What a decorator sees of the task that it wraps.

    Parameters
    ----------
    flow : FlowSpec
        The ``self`` of the step.
    inputs : object or None
        The ``inputs`` of a join.
    step, task, run : str
        Names and ids.
    node : Node
        The step in the graph.
    attempt, retries : int
        This attempt, counted from 0, and how many retries there are in all: ``attempt >= retries`` is the last
        one of the user's code.
    fallback : bool
        The user's code does not run in this attempt; `failure` says how the last one ended.
    extra : dict
        What goes into the manifest's ``extra`` under the decorator's name.
    redact : callable
        ``redact(value)`` hides a secret value in logs, errors and previews from now on.
    set_transition : callable
        ``set_transition(*targets)`` does what ``self.next`` would have done, for a body that was skipped.
    """

    flow: Any
    inputs: Any
    run: str
    step: str
    task: str
    node: Node
    attempt: int
    retries: int
    fallback: bool
    failure: Mapping[str, Any] | None
    extra: dict[str, Any]
    redact: Callable[[str], None]
    set_transition: Callable[..., None]
    gang: Mapping[str, Any] | None = None
    """For a task of a gang: ``size``, ``node`` (its index), ``control_task`` (a task id) and ``main_ip``."""
    policy: Attempts | None = None
    """What all decorators of the step say about attempts."""
    body: Callable[[], None] | None = None
    """What runs instead of the step, where a decorator says so."""
    change_next: Callable[..., None] = _no_next
    """``change_next({"num_parallel": 4})`` does what the step's ``self.next`` would have done, or did, with some of its
    options changed; ``only_missing=True`` leaves a call alone that the step has made."""
    secret: list[str] = field(default_factory=list)
    """Every value that was given to `hide`."""

    def hide(self, value: str) -> None:
        """Hide a value from now on: in what the task lets out, and in what decorators store."""
        self.secret.append(value)
        self.redact(value)

    def masked(self, text: str) -> str:
        """Return a text without the values that were given to `hide`."""
        for value in sorted(self.secret, key=len, reverse=True):
            text = text.replace(value, "***")
        return text


class Decorator:
    """What step and flow decorators have in common: a name, and attributes with defaults.

    Parameters
    ----------
    attributes : mapping
        The attributes given by the user; every other one has its default.
    inserted_by : str or None
        What attached it, where it does not stand in the source: e.g. ``--with``.
    location : Location or None
        Where it stands in the user's code.

    Raises
    ------
    FlowInvalid
        If the decorator has no attribute of a given name.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    mutates: ClassVar[bool] = False
    """Whether it changes the flow before it runs (`flowkit.decorators.mutators`)."""
    multiple: ClassVar[bool] = False
    """Whether a step (or flow) may have it more than once."""

    def __init__(
        self,
        attributes: Mapping[str, Any] | None = None,
        *,
        inserted_by: str | None = None,
        location: Location | None = None,
    ) -> None:
        from flowkit.exceptions import FlowInvalid, did_you_mean

        given = dict(attributes or {})
        # A config that is unpacked into the decorator has its keys looked at when its values are known.
        unknown = [key for key in given if key not in self.defaults and not key.startswith("**")]
        if unknown:
            raise FlowInvalid(
                [
                    Problem(
                        f"@{self.name} has no attribute '{key}'",
                        location,
                        did_you_mean(key, self.defaults) or f"it has: {', '.join(self.defaults) or 'none'}",
                    )
                    for key in unknown
                ]
            )
        self.attributes: dict[str, Any] = {**self.defaults, **given}
        self.given = frozenset(given)
        self.written: Mapping[str, Any] = given
        self.inserted_by = inserted_by
        self.location = location

    @classmethod
    def make(cls, attributes: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Return a decorator; of a class that users call to decorate, this is the way to an object of it."""
        return cls(attributes, **options)

    def settled(self, attributes: Mapping[str, Any]) -> Any:
        """Return the same decorator with other attributes: those that waited for configs are known."""
        return type(self).make(attributes, inserted_by=self.inserted_by, location=self.location)

    def problem(self, headline: str, hint: str | None = None) -> Problem:
        """Return a problem at the place where the decorator stands."""
        if self.inserted_by:
            headline = f"{headline} (given by {self.inserted_by})"
        return Problem(headline, self.location, hint)

    def record(self) -> Any:
        """Return what may be stored and shown of the attributes: plain JSON, without secret values."""
        return plain(self.attributes)

    def package_files(self) -> list[tuple[str, str]]:
        """Return files and folders for the code package, as (path on this machine, name in the package).

        A relative path is below the folder of the flow's file.
        """
        return []


class StepDecorator(Decorator):
    """A decorator of one step."""

    users: ClassVar[bool] = False
    """Whether a user has written it, as a `flowkit.decorators.user_steps.UserStepDecorator`."""
    outermost: ClassVar[bool] = False
    """Whether ``--with`` puts it around the decorators that stand in the source, and not inside them."""
    gang: ClassVar[bool] = False
    """Whether it marks the step of a gang, as ``@parallel`` does."""

    @classmethod
    def fits(cls, node: Node) -> bool:
        """Whether ``--with`` attaches it to a step of this kind."""
        return True

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Validate the attributes with the flow in view; return everything that is wrong."""
        return []

    def attempts(self) -> Attempts | None:
        """Return how often the step is to be tried, where the decorator has a say in it."""
        return None

    def executor(self) -> ExecutorRequest | None:
        """Return who is to carry the step out, where the decorator has a say in it."""
        return None

    def around(self, task: TaskContext, proceed: Callable[[], None]) -> None:
        """Wrap the step: call `proceed` to run what is inside, or do not."""
        proceed()


class FlowDecorator(Decorator):
    """A decorator of a flow."""

    options: ClassVar[tuple[Option, ...]] = ()
    """Top-level command line options that it adds."""

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Validate the attributes with the flow and the values of its options in view."""
        return []

    def system_tags(self) -> list[str]:
        """Return system tags for every run."""
        return []

    def current(self) -> Mapping[str, Any]:
        """Return attributes of ``current`` for every task."""
        return {}

    def package_suffixes(self) -> list[str]:
        """Return suffixes of further files of the flow's folder that belong into the code package."""
        return []

    def restore(self, recorded: Any) -> None:
        """Take over, in another process, what `record` wrote into the run's parameters manifest."""

    def run_ended(self, flow: FlowDefinition, pathspec: str, state: str) -> list[Problem]:
        """Act after a local run; called once, by the process that ran it. Return what did not work."""
        return []


class Option(NamedTuple):
    """A top-level command line option that a flow decorator adds.

    Parameters
    ----------
    name : str
        For example ``branch`` (the option is ``--branch``; the environment variable ``FLOWKIT_BRANCH``).
    help : str
        One line.
    flag, multiple : bool
        A switch without a value; may be repeated.
    """

    name: str
    help: str
    flag: bool = False
    multiple: bool = False


def _same_class(found: str, name: str) -> bool:
    """Whether a class that was found is the one named, in full or by the end of its name."""
    if "." not in found:  # a built-in one, or recorded without its module
        return found == name.rpartition(".")[2]
    return found == name or found.endswith(f".{name}")


def class_name(cls: type) -> str:
    """Return the name by which ``@retry(on=…)`` and records of failures call a class."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def plain(value: Any) -> Any:
    """Return a value of an attribute as plain JSON: functions and classes become their names, the rest its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def combine(attempts: list[Attempts]) -> Attempts:
    """Join what several decorators of one step say about attempts: the most of each, the first delay given."""
    given = [item for item in attempts if item.retries or item.delay or item.on]
    first = given[0] if given else Attempts()
    timeouts = [item.timeout for item in attempts if item.timeout is not None]
    return Attempts(
        retries=max((item.retries for item in attempts), default=0),
        delay=first.delay,
        backoff=first.backoff,
        max_delay=first.max_delay,
        on=first.on,
        fallback=any(item.fallback for item in attempts),
        timeout=min(timeouts) if timeouts else None,
    )
