"""What a resume needs to know of the run that it resumes, read from that run's manifests."""

from __future__ import annotations

from typing import NamedTuple

from flowkit.datastore.layout import clones_file
from flowkit.datastore.manifests import clone_origin, read_clones, read_manifest
from flowkit.datastore.many import mapped_over
from flowkit.datastore.runs import list_steps, list_tasks, read_run
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, NotFound
from flowkit.model.manifest import Manifest
from flowkit.runtime.gang import publish
from flowkit.runtime.resume import OriginTask
from flowkit.runtime.start import PARAMETERS


class OriginRun(NamedTuple):
    """The commits of a run.

    Parameters
    ----------
    run : str
        Which run they are of: where the one that was asked for is a resume that was killed before it could start
        anything, the run that it was to resume.
    rerun : str or None
        The step from which that killed resume was to run again.
    parameters : Manifest
        Of the ``_parameters`` task of the run that was asked for.
    tasks : dict of (step, task id) to OriginTask
        Every committed task, clones included.
    """

    run: str
    rerun: str | None
    parameters: Manifest
    tasks: dict[tuple[str, str], OriginTask]


def read_origin(storage: Storage, flow: str, run: str) -> OriginRun:
    """Read the commits of a run; a damaged manifest counts as a task that never finished.

    Raises
    ------
    NotFound
        If there is no such run.
    """
    parameters = latest = run_parameters(storage, flow, run)
    rerun: str | None = None
    seen = {run}
    while not _prepared(storage, flow, run, latest):
        # Nothing of it ever ran, and its plan would be the same again: that of the run that it was to resume.
        record = read_run(storage, flow, run) or {}
        origin, rerun = str(record.get("origin") or ""), rerun or record.get("rerun")
        run = origin.rpartition("/")[2]
        if run in seen:
            raise DataError(f"the runs that {flow}/{min(seen)} resumes lead nowhere", "their run.json are damaged")
        seen.add(run)
        latest = run_parameters(storage, flow, run)
    codes: dict[str, dict[str, str]] = {run: latest.extra.get("code", {})}
    tasks: dict[tuple[str, str], OriginTask] = {}
    for step in list_steps(storage, flow, run):
        if step == PARAMETERS[0]:
            continue
        names = dict.fromkeys(list_tasks(storage, flow, run, step))  # in order: a gang's control task comes first
        clones = read_clones(storage, flow, run, step)
        if clones is not None:
            names.update(dict.fromkeys(clones[1]))

        def read(task: str, step: str = step) -> Manifest | None:
            return read_manifest(storage, flow, run, step, task, on_damage=lambda _: None)

        for task, manifest in zip(names, mapped_over(storage, read, names), strict=True):
            if manifest is None:
                continue
            if manifest.gang:
                # A runtime that was killed right after the commit may not have given the other nodes theirs.
                publish(storage, manifest)
            if manifest.run not in codes:
                codes[manifest.run] = _codes(storage, flow, manifest.run)
            origin_run = f"{flow}/{manifest.run}" if clone_origin(storage, flow, run, step, task) else None
            code = codes[manifest.run].get(step)
            tasks[step, task] = OriginTask(manifest.transition, manifest.gang, origin_run, code)
    return OriginRun(run, rerun, parameters, tasks)


def run_parameters(storage: Storage, flow: str, run: str) -> Manifest:
    manifest = read_manifest(storage, flow, run, *PARAMETERS)
    if manifest is None:
        raise NotFound(
            f"there is no run {flow}/{run} here, or it never started", "python flow.py status lists the runs"
        )
    return manifest


def _prepared(storage: Storage, flow: str, run: str, parameters: Manifest) -> bool:
    """Whether all that a run takes over was written down: nothing of it starts before."""
    steps = parameters.extra.get("clones") or ()
    return all(storage.info(clones_file(flow, run, step)) is not None for step in steps)


def _codes(storage: Storage, flow: str, run: str) -> dict[str, str]:
    manifest = read_manifest(storage, flow, run, *PARAMETERS, on_damage=lambda _: None)
    found: dict[str, str] = manifest.extra.get("code", {}) if manifest is not None else {}
    return found
