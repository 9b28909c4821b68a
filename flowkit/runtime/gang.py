"""Gangs (``num_parallel``): several nodes that commit as one task.

Each node but the control node (index 0) stages its manifest under its attempt. The control node waits until all
are staged, then commits its own manifest, which names the attempt and the number of nodes: that is the commit of the
gang. After it the staged manifests are published under the nodes' names, by the control node or, had it died right
then, by whoever looks next (`publish` may be repeated).
"""

from __future__ import annotations

import json
import time

from flowkit.datastore.layout import attempt_folder
from flowkit.datastore.manifests import read_failure, write_manifest
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import DataError, TaskError
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.launch import Launch
from flowkit.model.manifest import Manifest

OTHER_FAILED = "of the gang failed"
"""How the message of a control node ends whose own code did nothing wrong."""


def node_coordinates(control: Coordinates, node: int) -> Coordinates:
    """Return the coordinates of one node of a gang, from those of its control node."""
    return Coordinates((*control.indices[:-1], node), control.turn)


def node_task(control_task: str, node: int) -> str:
    """Return the task id of one node of a gang, from that of its control node."""
    prefix, dot, _ = control_task.rpartition(".")
    return f"{prefix}{dot}{node}"


def nodes_of(launch: Launch) -> list[TaskRef]:
    """Return the tasks of a launch: every node of a gang."""
    if not launch.gang:
        return [launch.ref]
    return [TaskRef(launch.step, node_coordinates(launch.coordinates, node)) for node in range(launch.gang)]


def _staged_file(flow: str, run: str, step: str, task: str, attempt: int) -> str:
    return f"{attempt_folder(flow, run, step, task, attempt)}/staged.json"


def stage(storage: Storage, manifest: Manifest) -> None:
    """Put a node's manifest where the control node will find it."""
    path = _staged_file(manifest.flow, manifest.run, manifest.step, manifest.task, manifest.attempt)
    storage.create(path, [json.dumps(manifest.to_json(), separators=(",", ":")).encode()])


def has_staged(storage: Storage, flow: str, run: str, step: str, task: str, attempt: int) -> bool:
    """Whether a node has put its result where the control node finds it: its own part of the attempt went well."""
    return storage.info(_staged_file(flow, run, step, task, attempt)) is not None


def wait_for_nodes(
    storage: Storage, flow: str, run: str, step: str, control_task: str, attempt: int, size: int
) -> None:
    """Wait until every other node of the gang has staged its result.

    The runtime ends the whole gang when a node's process dies, so that this never waits for a node that is gone.

    Raises
    ------
    TaskError
        If a node recorded a failure.
    """
    pause = 0.005
    waiting = list(range(1, size))
    while waiting:
        task = node_task(control_task, waiting[-1])
        if storage.info(_staged_file(flow, run, step, task, attempt)) is not None:
            waiting.pop()
            continue
        if read_failure(storage, flow, run, step, task, attempt) is not None:
            raise TaskError(f"node {waiting[-1]} {OTHER_FAILED}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def publish(storage: Storage, control: Manifest) -> None:
    """Give every node of a committed gang its manifest."""
    for node in range(1, control.gang):
        task = node_task(control.task, node)
        path = _staged_file(control.flow, control.run, control.step, task, control.attempt)
        try:
            staged = json.loads(storage.read(path))
        except (Missing, ValueError) as error:
            raise DataError(
                f"the result of node {node} of the gang {control.step}/{control.task} is missing"
            ) from error
        write_manifest(storage, Manifest.from_json(staged))
