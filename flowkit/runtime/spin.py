"""Trying out one step: a task is run again in this process, on the inputs that it had in a past run.

What went before is read from the run; what the step makes is kept apart from it (`flowkit.datastore.layered`). Which
inputs a task has is found out by rehearsing the run up to it, as a resume does: so it works for a task that failed, or
never ran, as well as for one that succeeded, and for joins, children of a foreach and branches of a switch alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.datastore.layered import LayeredStorage
from flowkit.datastore.manifests import read_manifest, write_manifest
from flowkit.datastore.runs import claim_named_run, list_runs, write_end
from flowkit.datastore.storage import Storage
from flowkit.decorators.attach import executor_request
from flowkit.exceptions import NotFound, UsageError, did_you_mean
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.definition import FlowDefinition
from flowkit.model.graph import Graph
from flowkit.model.launch import Launch
from flowkit.model.manifest import Artifact, Manifest
from flowkit.model.transition import Transition
from flowkit.runtime.decisions import contradiction
from flowkit.runtime.scheduler import Scheduler
from flowkit.runtime.start import PARAMETERS, task_config
from flowkit.runtime.task import Attempt, run_as_attempt
from flowkit.runtime.usage import Meter
from flowkit.settings import environment

Overrides = Mapping[str | None, Mapping[str, Any]]
"""Values by name, for the task itself (None) or for one input of a join (``step/task``)."""
PREFIX = "spin-"
"""What the ids of kept spins begin with, in a datastore root of their own."""


class Spin(NamedTuple):
    """What became of a task that was tried out.

    Parameters
    ----------
    manifest : Manifest or None
        What it made; None where it failed.
    changed : tuple of str
        The artifacts that it made or changed.
    run : str
        The id under which it is kept in the spins' root.
    """

    manifest: Manifest | None
    changed: tuple[str, ...]
    run: str


def find_launch(storage: Storage, graph: Graph, run: str, step: str, task: str | None) -> Launch:
    """Return what is to be run, as the run's scheduler would launch it.

    Parameters
    ----------
    storage : Storage
        Where the run is.
    graph : Graph
        The flow as it is now.
    run : str
        The run whose inputs are taken.
    step : str
        The step.
    task : str, optional
        Its task; default: the first one.

    Raises
    ------
    NotFound
        If the run did not get to where the task has its inputs.
    UsageError
        If the step is a gang.
    """
    depths = graph.depths()
    wanted = None if task is None else Coordinates.parse(task, depths[step])
    rehearsal = _Rehearsal(storage, graph, run, step, wanted)
    rehearsal.start()
    launches = [launch for name in rehearsal.executors for launch in rehearsal.take(name, None, 0.0)]
    found = [each for each in launches if each.step == step and wanted in (None, each.coordinates)]
    if not found:
        where = f"{step}/{task}" if task else step
        waits = sorted({each.step for each in launches}.intersection(_before(graph, step)))
        reason = f"it got no further than {', '.join(waits)}" if waits else "the flow did not take that way"
        raise NotFound(
            f"run {graph.flow}/{run} has no inputs for {where}: {reason}",
            f"run the flow until the steps before {step} have succeeded, or name another run: spin RUN/{step}",
        )
    if found[0].gang:
        raise UsageError(f"step '{step}' is a gang (num_parallel), and a gang cannot be spun", "run the flow itself")
    return min(found, key=lambda launch: launch.coordinates)


def spin(
    definition: FlowDefinition,
    storage: Storage,
    kept: Storage,
    launch: Launch,
    run: str,
    overrides: Overrides,
    *,
    skip_decorators: bool = False,
) -> Spin:
    """Run one task in this process.

    Parameters
    ----------
    definition : FlowDefinition
        The flow, prepared.
    storage : Storage
        Where the run is; nothing is written to it.
    kept : Storage
        Where the result goes: a root of its own.
    launch : Launch
        What `find_launch` returned.
    run : str
        The run whose inputs are taken.
    overrides : mapping
        Artifacts that the task sees instead of those that it would.
    skip_decorators : bool, default False
        Run the step's code without its decorators.

    Raises
    ------
    ArtifactError
        If a value that is given cannot be stored.
    """
    parameters = read_manifest(storage, definition.name, run, *PARAMETERS)
    assert parameters is not None  # the rehearsal has read it
    name = _claim(kept, definition, run, parameters)
    step = definition.steps[launch.step]
    if skip_decorators:
        step.decorators = []
    environment().update(executor_request(step).environment)
    config = {**task_config(storage, definition, parameters), "run": name, "retries": {}}
    attempt = _SpunAttempt(definition, config, launch, LayeredStorage(kept, storage), run, overrides)
    failed = run_as_attempt(attempt)
    state = "failed" if failed else "succeeded"
    write_end(kept, definition.name, name, {"state": state, "reason": f"a spin of {run}", "finished": time.time()})
    changed = () if attempt.manifest is None else attempt.changed
    return Spin(attempt.manifest, changed, name)


class _SpunAttempt(Attempt):
    """An attempt whose inputs are another run's."""

    def __init__(
        self,
        definition: FlowDefinition,
        config: Mapping[str, Any],
        launch: Launch,
        storage: Storage,
        origin: str,
        overrides: Overrides,
    ) -> None:
        super().__init__(definition, config, launch, None, Meter(forked=False), storage)
        self.origin = origin
        self.manifest: Manifest | None = None
        self.changed: tuple[str, ...] = ()
        self._before: dict[str, Artifact] = {}
        self._given = {
            where: {name: self.writer.save(name, value, step=launch.step) for name, value in values.items()}
            for where, values in overrides.items()
        }

    def read(self, ref: TaskRef) -> Manifest:
        """Return the manifest of a parent, of the run that is tried out from."""
        return self.read_of(self.origin, ref)

    def inherited(self, parent: Manifest | None) -> dict[str, Artifact]:
        """Return the artifacts that the task begins with, and those that were given instead."""
        self._before = {**super().inherited(parent), **self._given.get(None, {})}
        return dict(self._before)

    def input_artifacts(self, ref: TaskRef, manifest: Manifest) -> dict[str, Artifact]:
        """Return the artifacts of one input of a join, and those that were given instead."""
        return {**super().input_artifacts(ref, manifest), **self._given.get(str(ref), {})}

    def commit(self, manifest: Manifest) -> None:
        """Keep what the task made apart from the run."""
        write_manifest(self.storage, manifest)
        self.manifest = manifest
        self.changed = tuple(
            name for name, artifact in manifest.artifacts.items() if self._before.get(name) != artifact
        )


class _Rehearsal(Scheduler):
    """The run's scheduler, in which what was committed before the step finishes at once."""

    def __init__(self, storage: Storage, graph: Graph, run: str, step: str, wanted: Coordinates | None) -> None:
        if read_manifest(storage, graph.flow, run, *PARAMETERS) is None:
            raise NotFound(f"there is no run {graph.flow}/{run} here, or it never started", "status lists the runs")
        self._storage = storage
        self._run = run
        self._step = step
        self._turn = wanted.turn if wanted is not None else None
        before = _before(graph, step)
        super().__init__(graph, {}, max_width=sys.maxsize, clones={name: {} for name in (*before, step)})

    def clone_of(self, ref: TaskRef, gang: int) -> Transition | None:
        """Return where a task of the run went, if it is one before the step (or an earlier turn of it)."""
        turn = ref.coordinates.turn
        if ref.step == self._step and (turn is None or turn >= (self._turn or 0)):
            return None
        task = str(ref.coordinates)
        manifest = read_manifest(self._storage, self.graph.flow, self._run, ref.step, task, on_damage=lambda _: None)
        if manifest is None or contradiction(self.graph.nodes[ref.step], manifest.transition) is not None:
            return None
        return manifest.transition


def _before(graph: Graph, step: str) -> list[str]:
    """Return the steps from which a step can be reached, without itself."""
    found: dict[str, None] = {}
    todo = [step]
    while todo:
        for source in graph.nodes[todo.pop()].sources:
            if source not in found and source != step:
                found[source] = None
                todo.append(source)
    return list(found)


def _claim(kept: Storage, definition: FlowDefinition, origin: str, parameters: Manifest) -> str:
    """Take the next id among the spins, and note there what the spin is of."""
    taken = [int(run[len(PREFIX) :]) for run in list_runs(kept, definition.name) if run[len(PREFIX) :].isdigit()]
    number = max(taken, default=0)
    user = parameters.extra.get("user")
    record = {"user": user, "created": time.time(), "tags": [], "system_tags": [f"user:{user}", f"spin_of:{origin}"]}
    while True:
        number += 1
        run = f"{PREFIX}{number}"
        if claim_named_run(kept, definition.name, run, {**record, "file": definition.file}):
            write_manifest(kept, parameters._replace(run=run))
            return run


def check_overrides(definition: FlowDefinition, launch: Launch, overrides: Overrides) -> None:
    """Refuse values for inputs that the task does not have.

    Raises
    ------
    UsageError
        With the nearest name as a hint.
    """
    inputs = [str(ref) for ref in launch.parent_refs()] if definition.graph[launch.step].is_join else []
    for where in overrides:
        if where is not None and where not in inputs:
            known = f"its inputs: {', '.join(inputs[:10])}" if inputs else "it is no join: write name=value"
            raise UsageError(f"{launch.ref} has no input '{where}'", did_you_mean(where, inputs) or known)
