"""The client's objects, from the root down."""

from __future__ import annotations

from flowkit.client.artifact import DataArtifact, FlowData
from flowkit.client.connection import normal_place, place_at
from flowkit.client.flow import Flow, Flowkit
from flowkit.client.namespace import get_metadata
from flowkit.client.object import ClientObject
from flowkit.client.run import Run
from flowkit.client.step import Step
from flowkit.client.task import Task
from flowkit.metadata.opening import is_shared

__all__ = ["DataArtifact", "Flow", "FlowData", "Flowkit", "Run", "Step", "Task", "make"]

_KINDS: dict[str, type[ClientObject]] = {
    "flow": Flow,
    "run": Run,
    "step": Step,
    "task": Task,
    "artifact": DataArtifact,
}


def make(kind: str, pathspec: str, root: str | None = None, metadata: str = "local") -> ClientObject:
    """Return the object of a kind and path, for ``current.run`` and ``current.task``.

    Nothing is looked up before it is asked for, and no namespace is looked at.

    Parameters
    ----------
    kind : str
        ``flow``, ``run``, ``step``, ``task`` or ``artifact``.
    pathspec : str
        The path.
    root : str, optional
        The datastore's root; default: where the client reads.
    metadata : str, default "local"
        The kind of the metadata store of that root.
    """
    if root is None:
        place = get_metadata()
    else:
        place = place_at(metadata, root) if is_shared(metadata) else normal_place(root)
    return _KINDS[kind].unchecked(pathspec, place)
