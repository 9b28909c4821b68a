"""Which tasks a task came from and led to, told from manifests and coordinates.

A manifest names its parents. Children follow from the transition: every task id that a target could have is known
from the coordinates, and which of them exists says the index. Nothing is searched.
"""

from __future__ import annotations

from collections.abc import Iterator

from flowkit.client.connection import Connection
from flowkit.model.launch import read_spans
from flowkit.model.manifest import Manifest

_FEW = 32
"""Up to so many ids are looked up one by one; beyond, the step's tasks are listed once."""


def parent_ids(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (step, task) of every parent, in the order in which a join sees its inputs."""
    for span in read_spans(manifest.parents):
        for ref in span.refs():
            if not ref.step.startswith("_"):  # the parameters are not one of the user's steps
                yield ref.step, str(ref.coordinates)


def child_ids(connection: Connection, run: str, manifest: Manifest, task: str) -> Iterator[tuple[str, str]]:
    """Yield (step, task) of every child that has begun, in the order of targets and indices.

    Parameters
    ----------
    connection : Connection
        Where to look whether a child exists.
    run : str
        The run to look in, which is not the manifest's where the task was taken over from another run.
    manifest : Manifest
        Of the task.
    task : str
        The task's id.
    """
    body, _, turn = task.partition("-")
    transition = manifest.transition
    for target in transition.targets:
        if transition.kind in ("foreach", "parallel"):
            prefix = f"{body}." if manifest.frames else ""
            children = [[f"{prefix}{index}", f"{prefix}{index}-0"] for index in range(transition.width or 0)]
        elif target == manifest.step:
            children = [[f"{body}-{int(turn or 0) + 1}"]]
        else:
            # The same place; the first turn of a loop; behind the join of the foreach that the task is in.
            outer = body.rpartition(".")[0] or "0"
            children = [[body, f"{body}-0", *([outer, f"{outer}-0"] if manifest.frames else [])]]
        for child in _existing(connection, manifest.flow, run, target, children):
            yield target, child


def _existing(connection: Connection, flow: str, run: str, step: str, wanted: list[list[str]]) -> Iterator[str]:
    """Yield, of each list of possible ids, the first one that exists."""
    metadata = connection.metadata
    if len(wanted) > _FEW:
        known = {record.task for record in metadata.tasks(flow, run, step)}
        for ids in wanted:
            yield from [name for name in ids if name in known][:1]
        return
    for ids in wanted:
        for name in ids:
            if metadata.task(flow, run, step, name) is not None:
                yield name
                break
