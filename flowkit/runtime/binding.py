"""What stands behind ``self`` in a task, and behind each input of a join (`flowkit.model.flowspec.TaskBinding`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowkit.datastore.artifacts import ArtifactSet, read_item
from flowkit.datastore.blobs import Blobs
from flowkit.exceptions import InvalidNext, TaskError, did_you_mean
from flowkit.model.definition import FlowDefinition
from flowkit.model.flowspec import INTERNAL
from flowkit.model.graph import Node
from flowkit.model.manifest import Artifact
from flowkit.model.next import Next, calling_line, read_next
from flowkit.model.transition import Frame

_NOT_READ = object()


class Foreach:
    """The enclosing foreaches of a task and their items, read when they are asked for."""

    def __init__(self, frames: Sequence[Frame], blobs: Blobs) -> None:
        self.frames = tuple(frames)
        self.reads: set[str] = set()
        self._blobs = blobs
        self._items: dict[int, Any] = {}

    def item(self, level: int) -> Any:
        """Return the item of one level (0 is the outermost); a gang's item is the node's index."""
        frame = self.frames[level]
        if frame.pack is None:
            return frame.index
        if level not in self._items:
            self._items[level] = read_item(self._blobs, frame.pack, frame.width, frame.index)
        return self._items[level]


class Binding:
    """Behind ``self``: artifacts of this task, the foreach item, the transition.

    Parameters
    ----------
    definition, node
        The flow and the step.
    artifacts : ArtifactSet
        What the task inherited: for a join only parameters and constants.
    foreach : Foreach
        The enclosing foreaches.

    Attributes
    ----------
    own : mapping of str to object
        The attributes of the flow object that it stands behind, for hints.
    """

    def __init__(self, definition: FlowDefinition, node: Node, artifacts: ArtifactSet, foreach: Foreach) -> None:
        self.definition = definition
        self.node = node
        self.step_name = node.name
        self.step_names = frozenset(definition.graph.nodes)
        self.constants: Mapping[str, Any] = definition.constants
        self.is_join = node.is_join
        self.set = artifacts
        self.foreach = foreach
        self.deleted: set[str] = set()
        self.next: Next | None = None
        self.absent: set[str] = set()
        self.parameters_read: set[str] = set()
        self._parameters: dict[str, Any] = {}
        self.own: Mapping[str, Any] = {}

    def load(self, name: str) -> Any:
        """Return an artifact's value."""
        if name in self.deleted or name not in self.set.inherited:
            self.absent.add(name)
            raise AttributeError(self._missing(name))
        return self.set.load(name)

    def load_parameter(self, name: str) -> Any:
        """Return a parameter's value."""
        self.parameters_read.add(name)
        if name not in self._parameters:
            if name not in self.set.inherited:
                raise AttributeError(f"the run has no value of the parameter '{name}'")
            self._parameters[name] = self.set.load(name)
        return self._parameters[name]

    def forget(self, name: str) -> bool:
        """End an artifact."""
        known = name in self.set.inherited and name not in self.deleted
        self.deleted.add(name)
        return known

    def artifacts(self) -> Mapping[str, Artifact]:
        """Return what the task inherited or took over."""
        return self.set.inherited

    def adopt(self, name: str, artifact: Artifact) -> None:
        """Take over an artifact of an input by reference."""
        self.deleted.discard(name)
        self.set.inherited[name] = artifact

    def foreach_input(self) -> Any:
        """Return the item of the innermost foreach."""
        self.foreach.reads.add("input")
        return self.foreach.item(len(self.foreach.frames) - 1) if self.foreach.frames else None

    def foreach_index(self) -> int | None:
        """Return the index in the innermost foreach."""
        self.foreach.reads.add("index")
        return self.foreach.frames[-1].index if self.foreach.frames else None

    def foreach_frames(self) -> list[tuple[int, int, Any]]:
        """Return (index, width, item) of every enclosing foreach."""
        self.foreach.reads.add("foreach_stack")
        frames = self.foreach.frames
        return [(frame.index, frame.width, self.foreach.item(level)) for level, frame in enumerate(frames)]

    def take_next(self, flow: Any, targets: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Take note of ``self.next``."""
        if self.next is not None:
            raise InvalidNext(
                f"step '{self.step_name}': self.next was called twice",
                "call it once, as the last statement of the step",
                calling_line(self.node),
            )
        self.next = read_next(flow, self.node, self.definition.graph, targets, options)

    def _missing(self, name: str) -> str:
        text = f"step '{self.step_name}' has no artifact '{name}'"
        known = (
            {*self.own, *self.set.inherited, *self.definition.parameters, *self.definition.configs}
            - self.deleted
            - INTERNAL
        )
        hint = did_you_mean(name, known)
        if hint:
            return f"{text} ({hint})"
        if self.is_join:
            return f"{text} (artifacts do not pass a join: take inputs[0].{name}, or self.merge_artifacts(inputs))"
        return text


class InputBinding:
    """Behind one input of a join: the artifacts of a finished task, read only.

    Parameters
    ----------
    step, task : str
        The task.
    artifacts : ArtifactSet
        What it has.
    reads : list of str
        Where reads are noted, as ``step/task:name=key``.
    """

    is_join = False

    def __init__(
        self,
        definition: FlowDefinition,
        step: str,
        task: str,
        artifacts: ArtifactSet,
        foreach: Foreach,
        reads: list[str],
    ) -> None:
        self.step_name = step
        self.task = task
        self.step_names = frozenset(definition.graph.nodes)
        self.constants: Mapping[str, Any] = definition.constants
        self._set = artifacts
        self._foreach = foreach
        self._reads = reads

    def load(self, name: str) -> Any:
        """Return an artifact's value."""
        if name not in self._set.inherited:
            self._reads.append(f"{self.step_name}/{self.task}:{name}")
            hint = did_you_mean(name, self._set.inherited)
            text = f"the input {self.step_name}/{self.task} has no artifact '{name}'"
            raise AttributeError(f"{text} ({hint})" if hint else text)
        self._reads.append(f"{self.step_name}/{self.task}:{name}={self._set.inherited[name].key}")
        return self._set.load(name)

    def load_parameter(self, name: str) -> Any:
        """Return a parameter's value."""
        return self.load(name)

    def forget(self, name: str) -> bool:
        """Inputs are read only."""
        raise TaskError(f"del inputs[…].{name}: the inputs of a join cannot be changed")

    def artifacts(self) -> Mapping[str, Artifact]:
        """Return the artifacts of the task."""
        return self._set.inherited

    def adopt(self, name: str, artifact: Artifact) -> None:
        """Inputs are read only."""
        raise TaskError("merge_artifacts is called on self")

    def foreach_input(self) -> Any:
        """Return the item that the input was started for."""
        return self._foreach.item(len(self._foreach.frames) - 1) if self._foreach.frames else None

    def foreach_index(self) -> int | None:
        """Return the input's index in its foreach."""
        return self._foreach.frames[-1].index if self._foreach.frames else None

    def foreach_frames(self) -> list[tuple[int, int, Any]]:
        """Return (index, width, item) of every foreach that encloses the input."""
        frames = self._foreach.frames
        return [(frame.index, frame.width, self._foreach.item(level)) for level, frame in enumerate(frames)]

    def take_next(self, flow: Any, targets: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Inputs do not run."""
        raise InvalidNext("self.next is called on self, not on an input")
