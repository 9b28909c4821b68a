"""What a resume needs to know of the run that it resumes, read from that run's manifests."""

from __future__ import annotations

from typing import NamedTuple

from flowkit.datastore.manifests import clone_origin, read_clones, read_manifest
from flowkit.datastore.runs import list_steps, list_tasks
from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound
from flowkit.model.manifest import Manifest
from flowkit.runtime.gang import publish
from flowkit.runtime.resume import OriginTask
from flowkit.runtime.start import PARAMETERS


class OriginRun(NamedTuple):
    """The commits of a run.

    Parameters
    ----------
    parameters : Manifest
        Of its ``_parameters`` task.
    tasks : dict of (step, task id) to OriginTask
        Every committed task, clones included.
    """

    parameters: Manifest
    tasks: dict[tuple[str, str], OriginTask]


def read_origin(storage: Storage, flow: str, run: str) -> OriginRun:
    """Read the commits of a run; a damaged manifest counts as a task that never finished.

    Raises
    ------
    NotFound
        If there is no such run.
    """
    parameters = read_manifest(storage, flow, run, *PARAMETERS)
    if parameters is None:
        raise NotFound(
            f"there is no run {flow}/{run} here, or it never started", "python flow.py status lists the runs"
        )
    codes: dict[str, dict[str, str]] = {run: parameters.extra.get("code", {})}
    tasks: dict[tuple[str, str], OriginTask] = {}
    for step in list_steps(storage, flow, run):
        if step == PARAMETERS[0]:
            continue
        names = dict.fromkeys(list_tasks(storage, flow, run, step))  # in order: a gang's control task comes first
        clones = read_clones(storage, flow, run, step)
        if clones is not None:
            names.update(dict.fromkeys(clones[1]))
        for task in names:
            manifest = read_manifest(storage, flow, run, step, task, on_damage=lambda _: None)
            if manifest is None:
                continue
            if manifest.gang:
                # A runtime that was killed right after the commit may not have given the other nodes theirs.
                publish(storage, manifest)
            if manifest.run not in codes:
                codes[manifest.run] = _codes(storage, flow, manifest.run)
            origin = f"{flow}/{manifest.run}" if clone_origin(storage, flow, run, step, task) else None
            code = codes[manifest.run].get(step)
            tasks[step, task] = OriginTask(manifest.transition, manifest.gang, origin, code)
    return OriginRun(parameters, tasks)


def _codes(storage: Storage, flow: str, run: str) -> dict[str, str]:
    manifest = read_manifest(storage, flow, run, *PARAMETERS, on_damage=lambda _: None)
    found: dict[str, str] = manifest.extra.get("code", {}) if manifest is not None else {}
    return found
