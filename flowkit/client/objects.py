"""The client's objects, from the root down."""

from __future__ import annotations

from flowkit.client.artifact import DataArtifact, FlowData
from flowkit.client.flow import Flow, Flowkit
from flowkit.client.object import ClientObject
from flowkit.client.run import Run
from flowkit.client.step import Step
from flowkit.client.task import Task

__all__ = ["DataArtifact", "Flow", "FlowData", "Flowkit", "Run", "Step", "Task", "make"]

_KINDS: dict[str, type[ClientObject]] = {
    "flow": Flow,
    "run": Run,
    "step": Step,
    "task": Task,
    "artifact": DataArtifact,
}


def make(kind: str, pathspec: str) -> ClientObject:
    """Return the object of a kind (``flow``, ``run``, ``step``, ``task``, ``artifact``) and path.

    Nothing is looked up before it is asked for, and no namespace is looked at: this is what ``current.run`` and
    ``current.task`` are made with.
    """
    return _KINDS[kind].unchecked(pathspec)
