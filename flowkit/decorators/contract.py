"""The contract of decorators: what one says before a run, and how it wraps a step.

A step decorator is an object with attributes (``@retry(times=3)`` has ``times``). Before anything runs,
`configure` validates it with the whole flow in view, `attempts` says how often to try, `executor` who carries the
step out. In the task, `around` is one onion layer about the user's step: the first decorator written is the
outermost layer. Built-in decorators use nothing that one from another package cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from flowkit.exceptions import Location, Problem

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node


@dataclass(frozen=True, slots=True)
class Attempts:
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
        Seconds after which the runtime kills the process, where the step's own timeout did not work.
    """

    retries: int = 0
    delay: float = 0.0
    backoff: float = 1.0
    max_delay: float = 3600.0
    on: tuple[str, ...] = ()
    fallback: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class ExecutorRequest:
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
    resources: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


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
        unknown = [key for key in given if key not in self.defaults]
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
        self.inserted_by = inserted_by
        self.location = location

    def problem(self, headline: str, hint: str | None = None) -> Problem:
        """Return a problem at the place where the decorator stands."""
        return Problem(headline, self.location, hint)


class StepDecorator(Decorator):
    """A decorator of one step."""

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Validate the attributes with the flow in view; return everything that is wrong."""
        return []

    def attempts(self) -> Attempts | None:
        """Return how often the step is to be tried, where the decorator has a say in it."""
        return None

    def executor(self) -> ExecutorRequest | None:
        """Return who is to carry the step out, where the decorator has a say in it."""
        return None

    def package_files(self) -> list[tuple[str, str]]:
        """Return files for the code package, as (path on this machine, path in the package)."""
        return []

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

    def record(self) -> Any:
        """Return what is written into the run's parameters manifest about the decorator (plain JSON)."""
        return self.attributes

    def run_ended(self, flow: FlowDefinition, pathspec: str, state: str) -> None:
        """Act after a local run; called once, by the process that ran it."""


@dataclass(frozen=True, slots=True)
class Option:
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


def combine(attempts: list[Attempts]) -> Attempts:
    """Join what several decorators of one step say about attempts: the most of each, the first delay given."""
    given = [item for item in attempts if item.retries or item.delay]
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
