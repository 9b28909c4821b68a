"""From a flow to a `Deployment`: everything that a compiler needs, put together without asking anybody.

What has to be found out first (values of deploy time, the code package's key, the production token, the template's key)
is given; so the same flow always gives the same deployment, and a target's document can be looked at before anything
is uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.decorators.attach import executor_request, policy, services
from flowkit.decorators.contract import Attempts
from flowkit.deployer.commands import Commands, Facts, fixed_environment, is_remote
from flowkit.deployer.target import Concurrency, Deployment, DeploymentRecord, ParameterPlan, StepPlan, Target
from flowkit.deployer.values import DeployValues, deploy_values
from flowkit.exceptions import Problem
from flowkit.model.deployed import NOTIFY
from flowkit.settings import settings
from flowkit.version import __version__

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition, StepDefinition
    from flowkit.runtime.bootstrap import StoredPackage

_MEGABYTE = 1024 * 1024
_LONGEST_DEFAULT = 4096
"""Characters of a default in a document, since schedulers limit these (the input of a state machine to 256 KB in all).
A longer one is in the template only, from which a run takes what it is not given."""


class Asked(NamedTuple):
    """The options of ``create`` that every target has.

    Parameters
    ----------
    tags : tuple of str
        Of its runs.
    namespace : str or None
        Of its runs; default: ``production:<token>``.
    max_workers : int
        Tasks of a run at once.
    max_log_size : int
        MB kept of each attempt's log.
    workflow_timeout : float or None
        Seconds that a run may take.
    concurrency : str
        What a firing does while a run goes on.
    priority : int or None
        Higher first.
    notify_on_error, notify_on_success : bool
        Whether people are told of ends.
    title, description : str
        For people.
    """

    tags: tuple[str, ...] = ()
    namespace: str | None = None
    max_workers: int = 100
    max_log_size: int = 10
    workflow_timeout: float | None = None
    concurrency: Concurrency = "allow"
    priority: int | None = None
    notify_on_error: bool = False
    notify_on_success: bool = False
    title: str = ""
    description: str = ""


class Gathered(NamedTuple):
    """A deployment, and what is wrong with it."""

    deployment: Deployment
    problems: tuple[Problem, ...]


def gather(
    definition: FlowDefinition,
    target: Target,
    *,
    package: StoredPackage,
    root: str,
    user: str,
    token: str,
    template: str = "",
    name: str | None = None,
    asked: Asked | None = None,
    values: DeployValues | None = None,
    metadata: str = "local",
    created: float = 0.0,
    client: Mapping[str, Any] | None = None,
) -> Gathered:
    """Put a deployment together.

    Parameters
    ----------
    definition : FlowDefinition
        The flow, with its decorators attached (those of `executor_specs` too) and configured.
    target : Target
        Made with the values of its options.
    package : StoredPackage
        The code package.
    root : str
        The datastore as containers reach it.
    user, token : str
        Who deploys, and the production token.
    template : str
        The key of the blob from which runs begin (`flowkit.runtime.deployed.store_template`).
    name : str, optional
        What it is called at the target; default: what the target calls it.
    asked : Asked, optional
        Options of ``create``.
    values : DeployValues, optional
        What was found out at deploy time; default: it is found out now.
    metadata : str, default "local"
        The metadata store of its runs.
    created : float
        Seconds since the epoch, for the record.
    client : mapping, optional
        For a target whose runs are a client's: how ``run`` is called, kept as ``details["client"]`` of the record:
        ``python``, ``folder``, ``top`` (the words before ``run``) and ``run`` (those after it).
    """
    asked = asked or Asked()
    found = values if values is not None else deploy_values(definition, user=user)
    if not target.client_run:
        found = found._replace(parameters=_short(found.parameters))
    called = name or target.default_name(definition.name, found.project, found.branch)
    facts = Facts(package, root, user, token, template, metadata, created, asked.max_log_size * _MEGABYTE)
    commands, environment = Commands(definition.graph.start, facts), fixed_environment(root, user, metadata)
    steps = _steps(definition, commands, environment)
    notify = [end for end, wanted in (("error", asked.notify_on_error), ("success", asked.notify_on_success)) if wanted]
    options = {option.name: target.given.get(option.name, option.default) for option in target.options}
    deployment = Deployment(
        name=called,
        flow=definition.name,
        graph=definition.graph,
        steps=steps,
        parameters=found.parameters,
        schedule=found.schedule,
        events=found.events,
        finishes=found.finishes,
        event_options=found.event_options,
        on_success=found.on_success or asked.notify_on_success,
        on_error=found.on_error or asked.notify_on_error,
        end_command=commands.end(),
        end_environment={**environment, **({NOTIFY: ",".join(notify)} if notify else {})},
        client_command=_client_command(target, called, commands, steps, client),
        root=root,
        user=user,
        token=token,
        namespace=asked.namespace or f"production:{token}",
        tags=asked.tags,
        project=found.project,
        branch=found.branch,
        max_workers=asked.max_workers,
        workflow_timeout=asked.workflow_timeout,
        concurrency=asked.concurrency,
        priority=asked.priority,
        options=options,
        record=_record(definition, target, called, found, facts, asked, _details(options, found, asked, client)),
        title=asked.title or called,
        description=asked.description or _summary(definition),
        file=definition.file,
        places={item.name: item.location for item in definition.decorators if item.location is not None},
    )
    return Gathered(deployment, (*found.problems, *_problems(definition, target, root, metadata)))


def _steps(definition: FlowDefinition, commands: Commands, environment: Mapping[str, str]) -> dict[str, StepPlan]:
    steps = {}
    for step in definition.steps.values():
        request, attempts = executor_request(step), policy(step)
        command = commands.step(step.name, request, attempts)
        fixed = {**environment, **request.environment}
        steps[step.name] = StepPlan(step.name, request, attempts, tries(attempts), command, fixed)
    return steps


def _details(
    options: Mapping[str, Any], found: DeployValues, asked: Asked, client: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what the target has to know again: its options, and for runs of a client how they are started."""
    details = dict(options)
    if client is not None:
        details["client"] = dict(client)
        details["workflow_timeout"] = asked.workflow_timeout
        details["event_options"] = dict(found.event_options)
    return details


def _client_command(
    target: Target, name: str, commands: Commands, steps: Mapping[str, StepPlan], client: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Return the command of a container that is a run's client; none where no container is one."""
    if not (target.client_run and target.needs_remote_root) or client is None:
        return ()
    services = {plan.request.name for plan in steps.values() if plan.request.name}
    specs = executor_specs(target, (*client.get("top", ()), *client.get("run", ())))
    return commands.client(f"{target.name}/{name}", client, specs, services)


def _short(parameters: tuple[ParameterPlan, ...]) -> tuple[ParameterPlan, ...]:
    """Return parameters without defaults that are too long for a document."""
    return tuple(
        plan._replace(default=None) if plan.default is not None and len(plan.default) > _LONGEST_DEFAULT else plan
        for plan in parameters
    )


def executor_specs(target: Target, given: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the decorators that a target's flows get as ``--with`` would give them: its service, for steps without.

    Parameters
    ----------
    target : Target
    given : iterable of str
        What ``--with`` says already: where it names the service, that holds, with its attributes.
    """
    if target.executor is None or any(spec.partition(":")[0].strip() == target.executor for spec in given):
        return ()
    return (target.executor,)


def tries(attempts: Attempts) -> int:
    """Return how often a scheduler has to start a task at most: the user's attempts, the one of the fallback, and those
    that a machine may cost (the setting ``infrastructure_retries``)."""
    return attempts.retries + 1 + int(attempts.fallback) + settings().infrastructure_retries


def _record(
    definition: FlowDefinition,
    target: Target,
    name: str,
    found: DeployValues,
    facts: Facts,
    asked: Asked,
    details: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the deployment's record as it comes out of JSON: lists where there are tuples."""
    record = DeploymentRecord(
        target=target.name,
        name=name,
        flow=definition.name,
        user=facts.user,
        created=facts.created,
        token=facts.token,
        root=facts.root,
        template=facts.template,
        package=facts.package._asdict(),
        parameters=found.parameters,
        project=found.project,
        branch=found.branch,
        schedule=found.schedule.cron if found.schedule else None,
        timezone=found.schedule.timezone if found.schedule else None,
        events=(*found.events, *found.finishes),
        concurrency=asked.concurrency,
        details=details,
        metadata=facts.metadata,
        file=definition.file,
        version=__version__,
    )
    plain: dict[str, Any] = json.loads(json.dumps(record.to_json()))
    return plain


def _summary(definition: FlowDefinition) -> str:
    """Return the first line of what the flow's class says about itself, where it says something of its own."""
    text = definition.cls.__dict__.get("__doc__") or ""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _problems(definition: FlowDefinition, target: Target, root: str, metadata: str) -> list[Problem]:
    problems = []
    if target.needs_remote_root and metadata == "service" and settings().service_url is None:
        problems.append(
            Problem(
                f"{target.label} starts containers, which cannot reach a metadata service on this machine",
                None,
                "say where it is: FLOWKIT_SERVICE_URL",
            )
        )
    if target.needs_remote_root and not is_remote(root):
        problems.append(
            Problem(
                f"{target.label} starts containers, which cannot reach the datastore {root}",
                None,
                "keep the datastore where both can reach it: FLOWKIT_DATASTORE=s3://bucket/prefix",
            )
        )
    if not target.client_run:
        for step in definition.steps.values():
            problems += _service_problems(step, target)
    return problems


def _service_problems(step: StepDefinition, target: Target) -> list[Problem]:
    """Return a problem for each service that a step asks for and the target cannot start."""
    problems = []
    for name in services(step):
        if name == target.executor:
            continue
        given: Any = step.decorator(name)
        able = f"it starts @{target.executor} only" if target.executor else "it carries steps out on its own machine"
        problems.append(
            given.problem(
                f"step '{step.name}' asks for @{name}, which {target.label} cannot start: {able}",
                f"leave @{name} out" + (f", or write @{target.executor}" if target.executor else ""),
            )
        )
    return problems
