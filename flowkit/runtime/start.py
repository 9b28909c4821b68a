"""Beginning a run: its id is claimed, its parameters are committed as the ``_parameters`` task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.manifests import write_manifest
from flowkit.datastore.runs import bury_run, claim_named_run, claim_run, read_run
from flowkit.datastore.storage import Storage
from flowkit.decorators.attach import policy
from flowkit.decorators.contract import Attempts
from flowkit.exceptions import Conflict
from flowkit.metadata.liveness import this_process
from flowkit.metadata.records import RunRecord
from flowkit.model.definition import FlowDefinition, code_fingerprint
from flowkit.model.graph_output import describe
from flowkit.model.manifest import NOTHING, Manifest
from flowkit.model.transition import Transition

PARAMETERS = ("_parameters", "0")
"""Step and task of the pseudo task that holds parameters, constants and settings of a run."""


class RunRequest(NamedTuple):
    """What a run is to be started with.

    Parameters
    ----------
    user : str
        Who starts it.
    parameters : mapping
        Every parameter's value by attribute name.
    tags : tuple of str
        User tags.
    namespace : str or None
        The namespace that tasks see.
    decospecs : tuple of str
        ``--with`` of the command line and the settings.
    options : mapping
        Values of the options that flow decorators add.
    origin : str or None
        ``Flow/run`` that is resumed.
    rerun : str or None
        The step from which a resumed run runs again.
    clones : tuple of str
        The steps of which tasks are taken over: their ``clones.json`` are written next, before anything starts. One
        that is missing tells that the run never came to start anything.
    run_options : mapping
        Options of the command that began it which hold for the whole run, for who takes it over: plain JSON values.
    package : mapping or None
        Its code package (`flowkit.runtime.bootstrap.StoredPackage` as a dict), where something runs elsewhere.
    name : str or None
        The run's id, where a scheduler has chosen it; default: the flow's next number.
    deployment : str or None
        ``target/name`` of the deployment that it is a run of.
    trigger : tuple of (str, str, float, str)
        The events that started it: name, id, when, ``event`` or ``run``.
    """

    user: str
    parameters: Mapping[str, Any] = NOTHING
    tags: tuple[str, ...] = ()
    namespace: str | None = None
    decospecs: tuple[str, ...] = ()
    options: Mapping[str, Any] = NOTHING
    origin: str | None = None
    rerun: str | None = None
    clones: tuple[str, ...] = ()
    run_options: Mapping[str, Any] = NOTHING
    package: Mapping[str, Any] | None = None
    name: str | None = None
    deployment: str | None = None
    trigger: tuple[tuple[str, str, float, str], ...] = ()


class StartedRun(NamedTuple):
    """A run that has its id and its parameters."""

    record: RunRecord
    parameters: Manifest


def begin(
    storage: Storage,
    definition: FlowDefinition,
    request: RunRequest,
    reserve: Callable[[int], str | None] | None = None,
) -> StartedRun:
    """Claim a run id and commit the run's parameters.

    Parameters
    ----------
    reserve : callable, optional
        Gives numbers for runs (`flowkit.datastore.runs.claim_run`).

    Raises
    ------
    StoreError
        If the datastore cannot be written.
    ArtifactError
        If a parameter or a constant cannot be stored.
    Conflict
        If the run that is resumed is being removed at this moment, or the id that was chosen is taken.
    """
    now = time.time()
    claim = {**run_claim(definition, request, now), **this_process()._asdict()}
    if request.name is None:
        run = claim_run(storage, definition.name, claim, reserve)
    elif claim_named_run(storage, definition.name, request.name, claim):
        run = request.name
    else:
        raise Conflict(f"there is a run {definition.name}/{request.name} already", "another process has begun it")
    if request.origin is not None:
        _check_origin(storage, definition.name, run, request.origin)
    manifest = parameters_manifest(storage, definition, request, run, now)
    write_manifest(storage, manifest)
    return StartedRun(RunRecord.from_json({**claim, "run": run, "state": "running", "heartbeat": now}), manifest)


def run_claim(definition: FlowDefinition, request: RunRequest, now: float) -> dict[str, Any]:
    """Return what is recorded of a run when it begins, but for the process that owns it: plain JSON values.

    Parameters
    ----------
    now : float
        Seconds since the epoch.
    """
    from flowkit.version import __version__

    runtime = request.deployment.partition("/")[0] if request.deployment is not None else "local"
    system_tags = [f"user:{request.user}", f"runtime:{runtime}", f"python_version:{_python_version()}"]
    system_tags.append(f"flowkit_version:{__version__}")
    if request.deployment is not None:
        system_tags.append(f"deployment:{request.deployment}")
    for decorator in definition.decorators:
        system_tags += decorator.system_tags()
    claim = {
        "flow": definition.name,
        "user": request.user,
        "created": now,
        "tags": sorted(set(request.tags) - set(system_tags)),
        "system_tags": sorted(set(system_tags)),
        "origin": request.origin,
        "rerun": request.rerun,
        "file": definition.file,
    }
    return claim if request.deployment is None else {**claim, "deployment": request.deployment}


def _check_origin(storage: Storage, flow: str, run: str, origin: str) -> None:
    """Make sure that the run that is resumed still stands.

    Who removes runs looks for those that resume one after it has put a tombstone in its place
    (`flowkit.upkeep.deletion`), and we look for the tombstone after our run is there: one of the two sees the other.
    """
    origin_flow, _, origin_run = origin.partition("/")
    if read_run(storage, origin_flow, origin_run) is None:
        bury_run(storage, flow, run)
        raise Conflict(f"run {origin} is being removed", "somebody removes old runs: resume another one, or run anew")


def parameters_manifest(
    storage: Storage, definition: FlowDefinition, request: RunRequest, run: str, now: float
) -> Manifest:
    """Return the manifest of a run's ``_parameters`` task, and store the values that it names.

    Parameters
    ----------
    run : str
        Its id.
    now : float
        When it began, in seconds since the epoch.

    Raises
    ------
    ArtifactError
        If a parameter or a constant cannot be stored.
    """
    writer = ArtifactWriter(Blobs(storage))
    values = {**definition.constants, **definition.stored_configs, **request.parameters}
    artifacts = {name: writer.save(name, value, step=PARAMETERS[0]) for name, value in values.items()}
    extra: dict[str, Any] = {
        "graph": describe(definition),
        "with": list(request.decospecs),
        "options": dict(request.options),
        "run_options": dict(request.run_options),
        "namespace": request.namespace,
        "user": request.user,
        "tags": list(request.tags),
        "origin": request.origin,
        "clones": list(request.clones),
        "code": {name: code_fingerprint(step.function) for name, step in definition.steps.items()},
        "decorators": {item.name: item.record() for item in definition.decorators},
    }
    if definition.stored_configs:
        extra["configs"] = sorted(definition.stored_configs)
    if request.package is not None:
        extra["package"] = dict(request.package)
    if request.deployment is not None:
        extra["deployment"] = request.deployment
    if request.trigger:
        extra["trigger"] = [list(event) for event in request.trigger]
    return Manifest(
        flow=definition.name,
        run=run,
        step=PARAMETERS[0],
        task=PARAMETERS[1],
        attempt=0,
        artifacts=artifacts,
        transition=Transition("linear", (definition.graph.start or "",)),
        started=now,
        ended=time.time(),
        extra=extra,
    )


def policies(definition: FlowDefinition) -> dict[str, Attempts]:
    """Return how often each step is to be tried."""
    return {name: policy(step) for name, step in definition.steps.items()}


def task_config(storage: Storage, definition: FlowDefinition, parameters: Manifest) -> dict[str, Any]:
    """Return what every task of a run is told: plain JSON values.

    Parameters
    ----------
    storage : Storage
        Where the run is.
    parameters : Manifest
        The run's ``_parameters`` manifest.
    """
    extra = parameters.extra
    return {
        "root": storage.root,
        "flow": parameters.flow,
        "run": parameters.run,
        "user": extra.get("user"),
        "namespace": extra.get("namespace"),
        "tags": extra.get("tags", []),
        "origin": (extra.get("origin") or "").rpartition("/")[2] or None,
        "retries": {name: item.retries for name, item in policies(definition).items()},
        "parameters": parameters.to_json(),
    }


def _python_version() -> str:
    import sys

    return ".".join(map(str, sys.version_info[:3]))
