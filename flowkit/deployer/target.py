"""The target port: a scheduler that runs flows (Argo Workflows, Step Functions, Airflow, the one in the box).

What is the same for every target is done once: gathering a `Deployment` from the flow, tokens, records, the commands
(`flowkit.cli.deploy`) and the API (`flowkit.deployer.deployer`). A target compiles a deployment to its own document,
without a call and always to the same one, and carries documents to the service.

A scheduler knows little: it starts the container of a step with the task's coordinates in the environment, waits, and
reads what follows (the step that a switch chose, the width of a foreach). Parents are not its business: the task
derives them (`flowkit.runtime.derive`). The environment is the whole contract between both: `flowkit.model.deployed`,
which is part of this port.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from flowkit.decorators.contract import Attempts, ExecutorRequest
from flowkit.exceptions import Location, Problem
from flowkit.metadata.records import State
from flowkit.model.deployed import ATTEMPT as ATTEMPT
from flowkit.model.deployed import FINAL as FINAL
from flowkit.model.deployed import GANG as GANG
from flowkit.model.deployed import INDEX as INDEX
from flowkit.model.deployed import NEXT as NEXT
from flowkit.model.deployed import PARAMETER as PARAMETER
from flowkit.model.deployed import PREFIX as PREFIX
from flowkit.model.deployed import REASON as REASON
from flowkit.model.deployed import RUN as RUN
from flowkit.model.deployed import STATE as STATE
from flowkit.model.deployed import TASK as TASK
from flowkit.model.deployed import TRIGGER as TRIGGER
from flowkit.model.deployed import TURNS as TURNS
from flowkit.model.graph import Graph

ParameterKind = Literal["text", "integer", "number", "boolean", "json"]
Concurrency = Literal["allow", "forbid", "replace"]
_LATEST = 1e11
"""A time, in seconds since the epoch, after which nothing was ever deployed."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a target needs to know of one step, besides its node in the graph.

    Parameters
    ----------
    name : str
        The step.
    request : ExecutorRequest
        The service it asks for, with resources, image and so on, as a run from the laptop would send them.
    attempts : Attempts
        Retries, their delay in seconds, whether a fallback attempt follows, the timeout in seconds.
    tries : int
        How often the scheduler has to start it at most: the user's attempts, the fallback, and those that
        infrastructure may cost.
    command : tuple of str
        The container's command. The same for every task of the step.
    environment : mapping of str to str
        Its fixed environment variables; no secret is among them. The target adds `RUN`, `TASK` and so on.
    """

    name: str
    request: ExecutorRequest
    attempts: Attempts
    tries: int
    command: tuple[str, ...]
    environment: Mapping[str, str]


class ParameterPlan(NamedTuple):
    """One parameter of the flow.

    Parameters
    ----------
    name, attribute : str
        On the command line, and in the flow.
    kind : str
        For forms: ``text``, ``integer``, ``number``, ``boolean`` or ``json``.
    default : str or None
        The value at deploy time as JSON text; None where it has none (it is ``null`` then, unless `required`).
    required : bool
        Whether a run needs a value: a schedule cannot give one.
    help : str
        One line.
    choices : tuple of str
        The texts allowed; empty for any.
    """

    name: str
    attribute: str
    kind: ParameterKind
    default: str | None
    required: bool
    help: str = ""
    choices: tuple[str, ...] = ()


class SchedulePlan(NamedTuple):
    """When a flow runs: cron with five fields (minute, hour, day, month, weekday) or six (and the year).

    ``cron`` is as in AWS: ``?`` may stand in a field of days, weekdays are names or 0-7 with 0 and 7 for Sunday.
    ``timezone`` is an IANA name, None for UTC.
    """

    cron: str
    timezone: str | None = None


class EventPlan(NamedTuple):
    """An event that starts a flow.

    Parameters
    ----------
    name : str
        The event's name. The end of another flow is the event ``flowkit.<Flow>.end``, or
        ``flowkit.<project>.<branch>.<Flow>.end`` (`finish_event`).
    parameters : tuple of (str, str)
        Parameters of the flow (attribute names) and the fields of the event that give their values.
    flow : str or None
        For the end of another flow: its name.
    project, branch : str or None
        Of that flow.
    """

    name: str
    parameters: tuple[tuple[str, str], ...] = ()
    flow: str | None = None
    project: str | None = None
    branch: str | None = None


def finish_event(flow: str, project: str | None = None, branch: str | None = None) -> str:
    """Return the name of the event that a run of a flow has succeeded."""
    return ".".join(["flowkit", *(part for part in (project, branch) if part), flow, "end"])


@dataclass(frozen=True, slots=True)
class Deployment:
    """A flow as it is to be deployed: everything that a compiler needs, and nothing that it has to ask for.

    Parameters
    ----------
    name : str
        What it is called at the target.
    flow : str
        The flow's name.
    graph : Graph
        Its steps and transitions.
    steps : mapping of str to StepPlan
        In the order of the source.
    parameters : tuple of ParameterPlan
    schedule : SchedulePlan or None
    events : tuple of EventPlan
        All of them together start a run (``@trigger``).
    finishes : tuple of EventPlan
        The same for ``@trigger_on_finish``.
    event_options : mapping
        ``options=`` of the trigger decorators.
    on_success, on_error : bool
        Whether there are exit hooks, or notifications, for a run that succeeded, and for one that did not.
    end_command : tuple of str
        The command of the container that ends a run which did not get to its end step, and calls exit hooks: with `RUN`
        and `STATE`. Run it after every run that did not succeed, and after others where `on_success` is set.
    end_environment : mapping of str to str
        Its fixed environment variables.
    client_command : tuple of str
        Where runs are a client's (`Target.client_run`) and the target starts it in a container: its command. Which run
        it is, `RUN` tells, its parameters `PARAMETER`; the fixed variables are `end_environment`. Started again with
        the same run, it goes on with it; it exits with `FINAL` where that is of no use.
    root : str
        The datastore.
    user, token, namespace : str
        Who deploys it, the production token, the namespace of its runs.
    tags : tuple of str
        Of its runs.
    project, branch : str or None
        ``@project``'s name and the full branch, as in ``prod`` or ``user.ann``.
    max_workers : int
        Tasks of a run at once.
    workflow_timeout : float or None
        Seconds that a run may take.
    concurrency : str
        What a firing does while a run goes on: ``allow``, ``forbid`` (it is left out) or ``replace``.
    priority : int or None
        Higher first, where the target knows it.
    options : mapping
        Values of the target's own options of ``create``.
    record : mapping
        `DeploymentRecord.to_json`: to be kept with what is made at the service, unread.
    title, description : str
        For people.
    file : str
        The flow's file.
    places : mapping of str to Location
        Where the decorators of the flow stand, by their names.
    """

    name: str
    flow: str
    graph: Graph
    steps: Mapping[str, StepPlan]
    parameters: tuple[ParameterPlan, ...] = ()
    schedule: SchedulePlan | None = None
    events: tuple[EventPlan, ...] = ()
    finishes: tuple[EventPlan, ...] = ()
    event_options: Mapping[str, Any] = field(default_factory=dict)
    on_success: bool = False
    on_error: bool = False
    end_command: tuple[str, ...] = ()
    end_environment: Mapping[str, str] = field(default_factory=dict)
    client_command: tuple[str, ...] = ()
    root: str = ""
    user: str = ""
    token: str = ""
    namespace: str = ""
    tags: tuple[str, ...] = ()
    project: str | None = None
    branch: str | None = None
    max_workers: int = 100
    workflow_timeout: float | None = None
    concurrency: Concurrency = "allow"
    priority: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    description: str = ""
    file: str = ""
    places: Mapping[str, Location] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """What is known of something deployed, from the target or from the datastore. It is data, and never trusted.

    Parameters
    ----------
    target, name, flow : str
        Where, as what, which flow.
    user, created, token : str, float, str
        Who deployed it, when (seconds since the epoch), and the production token.
    root : str
        The datastore of its runs.
    template : str
        The key of the blob from which a run begins (`flowkit.runtime.deployed`).
    package : mapping
        The code package (`flowkit.runtime.bootstrap.StoredPackage`).
    parameters : tuple of ParameterPlan
    project, branch : str or None
    schedule, timezone : str or None
    events : tuple of EventPlan
        Of both kinds.
    concurrency : str
    details : mapping
        What the target itself has to know again: plain JSON.
    metadata : str
        The metadata store of its runs.
    file : str
        The flow's file.
    version : str
        flowkit's.
    """

    target: str
    name: str
    flow: str
    user: str = ""
    created: float = 0.0
    token: str = ""
    root: str = ""
    template: str = ""
    package: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[ParameterPlan, ...] = ()
    project: str | None = None
    branch: str | None = None
    schedule: str | None = None
    timezone: str | None = None
    events: tuple[EventPlan, ...] = ()
    concurrency: Concurrency = "allow"
    details: Mapping[str, Any] = field(default_factory=dict)
    metadata: str = "local"
    file: str = ""
    version: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["parameters"] = [list(each) for each in self.parameters]
        plain["events"] = [list(each) for each in self.events]
        plain["package"], plain["details"] = dict(self.package), dict(self.details)
        return plain

    @classmethod
    def from_json(cls, data: Any) -> DeploymentRecord | None:
        """Read what `to_json` wrote; None where it is anything else. Unknown fields are left out."""
        if not isinstance(data, Mapping):
            return None
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        try:
            known["parameters"] = tuple(
                ParameterPlan._make([*item[:6], tuple(map(str, item[6]))]) for item in known.get("parameters", ())
            )
            known["events"] = tuple(
                EventPlan(item[0], tuple((str(one), str(other)) for one, other in item[1]), *item[2:5])
                for item in known.get("events", ())
            )
            known["created"] = float(known.get("created", 0.0))
            if not 0 <= known["created"] < _LATEST or known.get("concurrency", "allow") not in get_args(Concurrency):
                return None
            if not all(_is_plan(each) for each in known["parameters"]) or not all(map(_is_event, known["events"])):
                return None
            for name in ("package", "details"):
                if not isinstance(known.setdefault(name, {}), Mapping):
                    return None
            optional = ("project", "branch", "schedule", "timezone")
            if not all(isinstance(known.get(name), str | None) for name in optional):
                return None
            texts = ("target", "name", "flow", "user", "token", "root", "template", "metadata", "file", "version")
            if not all(isinstance(known.get(name, ""), str) for name in texts):
                return None
            return cls(**known)
        except (TypeError, ValueError, IndexError, KeyError):
            return None


def _is_plan(plan: ParameterPlan) -> bool:
    """Whether what was read of a parameter has the types that it must have."""
    texts = (plan.name, plan.attribute, plan.kind, plan.help)
    return all(isinstance(each, str) for each in texts) and isinstance(plan.default, str | None)


def _is_event(event: EventPlan) -> bool:
    """Whether what was read of an event has the types that it must have."""
    return isinstance(event.name, str) and all(
        isinstance(each, str | None) for each in (event.flow, event.project, event.branch)
    )


class Execution(NamedTuple):
    """One run of something deployed, as its target tells.

    Parameters
    ----------
    run : str
        The run's id in the client, with the target's prefix.
    state : str
        ``pending``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``lost``.
    reason : str or None
        A line, where there is one.
    started, finished : float or None
        Seconds since the epoch.
    """

    run: str
    state: State
    reason: str | None = None
    started: float | None = None
    finished: float | None = None


class CreateOption(NamedTuple):
    """An option of ``create`` that only one target has.

    Parameters
    ----------
    name : str
        With underscores; on the command line with dashes.
    help : str
        One line.
    kind : type
        ``str``, ``int``, ``float``, or ``bool`` for a switch.
    default : object
    multiple : bool
        May be repeated; the value is a tuple then.
    choices : tuple of str
        The texts allowed; empty for any.
    """

    name: str
    help: str
    kind: type = str
    default: Any = None
    multiple: bool = False
    choices: tuple[str, ...] = ()


class Target(ABC):
    """A scheduler that flows are deployed to.

    Made by ``Target(options)``, where `options` are the values of its `options` (defaults where nothing was given; for
    commands other than ``create`` those of the record's details). The constructor makes no call. A call that a service
    refuses, or does not answer, raises `flowkit.exceptions.FlowkitError` with a headline and a hint.
    """

    name: ClassVar[str]
    """As in the registry and on the command line: ``argo-workflows``."""
    label: ClassVar[str]
    """What people call it: ``Argo Workflows``."""
    prefix: ClassVar[str]
    """Run ids begin with it: ``argo`` for ``argo-train-x7k2``."""
    executor: ClassVar[str | None] = None
    """The service that every step gets which asks for none: ``kubernetes``, ``batch``; None where the run is a
    client's, or the machine itself carries steps out."""
    client_run: ClassVar[bool] = False
    """Whether a run is a client's (``python flow.py run`` somewhere): then the whole language works, and steps may ask
    for any service."""
    verbs: ClassVar[frozenset[str]] = frozenset({"trigger", "status", "list-runs", "terminate", "delete"})
    """What it can do besides ``create`` and ``list``: also ``suspend`` and ``unsuspend``."""
    options: ClassVar[tuple[CreateOption, ...]] = ()
    needs_remote_root: ClassVar[bool] = True
    """Whether its containers cannot reach a folder of this machine."""

    root: str | None = None
    """The datastore of the command that made it, for a target whose records are there and nowhere else; None for the
    default one."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.given = options

    @classmethod
    @abstractmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        """Return what a flow is called at the target where nobody says: a valid name, unique for flow and branch."""

    @abstractmethod
    def problems(self, deployment: Deployment) -> list[Problem]:
        """Return everything that the target cannot do, besides what `flowkit.deployer.capabilities` says: names that
        are too long, limits that are passed, combinations. No call is made."""

    @abstractmethod
    def compile(self, deployment: Deployment) -> Any:
        """Return the target's document: plain JSON values, or a text. Pure: no call, no clock, no randomness."""

    @abstractmethod
    def preflight(self, deployment: Deployment) -> list[Problem]:
        """Ask the service whether it would take the deployment (is it there, may we, are images and queues)."""

    @abstractmethod
    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        """Make or replace the deployment at the service; return lines that tell where it is and when it runs next.

        What an earlier version made and this one does not (a schedule, a sensor) is removed."""

    @abstractmethod
    def find(self, name: str) -> DeploymentRecord | None:
        """Return the record of what is deployed under a name; None where nothing is. Raises where the name is taken by
        something that flowkit has not made."""

    @abstractmethod
    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        """Return what is deployed, of one flow or of all."""

    @abstractmethod
    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """Start a run now and return its id. `parameters` are JSON texts by attribute name, checked already."""

    @abstractmethod
    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """Return how a run stands, as the scheduler tells; None where it does not know it."""

    @abstractmethod
    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        """Return the newest runs, the newest first."""

    @abstractmethod
    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """Stop a run: what runs is ended, nothing more starts."""

    def suspend(self, record: DeploymentRecord, run: str) -> None:
        """Let a run start nothing more until `unsuspend`. Only where `verbs` has it."""
        raise NotImplementedError

    def unsuspend(self, record: DeploymentRecord, run: str) -> None:
        """Let a suspended run go on. Only where `verbs` has it."""
        raise NotImplementedError

    @abstractmethod
    def delete(self, record: DeploymentRecord) -> None:
        """Remove the deployment from the service, with schedules and sensors; runs that go on end by themselves."""
