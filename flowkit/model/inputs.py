"""The ``inputs`` of a join, and merging what they hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flowkit.exceptions import MergeConflict, MergeMissing, TaskError, did_you_mean
from flowkit.model.manifest import Artifact


class Inputs:
    """The tasks that a join brings together, each as a flow object with its artifacts.

    Iteration and indices follow the order of the foreach's items or, after a split, the order of its branches.
    ``inputs.train`` is the input whose last step is ``train``.

    Parameters
    ----------
    count : int
        How many there are.
    open_input : callable
        ``open_input(i)`` makes the flow object of input i; called once for each.
    positions : mapping of str to int
        The first input of each step's name.
    """

    def __init__(self, count: int, open_input: Callable[[int], Any], positions: Mapping[str, int]) -> None:
        self._count = count
        self._open = open_input
        self._positions = positions
        self._opened: dict[int, Any] = {}
        self.length_read = False

    def __len__(self) -> int:
        self.length_read = True
        return self._count

    def __iter__(self) -> Iterator[Any]:
        self.length_read = True
        for index in range(self._count):
            yield self[index]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not isinstance(index, int):
            raise TypeError(f"inputs[…] takes a number, not {type(index).__name__}: inputs.<step> takes a step's name")
        position = index + self._count if index < 0 else index
        if not 0 <= position < self._count:
            raise IndexError(f"inputs[{index}]: there are {self._count} inputs")
        if position not in self._opened:
            self._opened[position] = self._open(position)
        return self._opened[position]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._positions:
            known = list(self._positions)
            hint = did_you_mean(name, known) or f"the inputs come from: {', '.join(known) or 'no step'}"
            raise AttributeError(f"no input comes from a step '{name}' ({hint})")
        return self[self._positions[name]]

    def __repr__(self) -> str:
        return f"<{self._count} inputs from {', '.join(self._positions) or 'no step'}>"

    def __reduce__(self) -> Any:
        raise TaskError(
            "the inputs of a join cannot be stored as an artifact",
            "store the values that you need, e.g. self.scores = [i.score for i in inputs]",
        )


def merge(flow: Any, inputs: Iterable[Any], exclude: list[str], include: list[str]) -> None:
    """Carry out `FlowSpec.merge_artifacts`."""
    binding = flow.__dict__.get("_binding")
    sources = list(inputs)
    if binding is None or not binding.is_join:
        step = f" '{binding.step_name}'" if binding is not None else ""
        raise TaskError(
            f"merge_artifacts belongs into a join, and the step{step} is none",
            "a join takes inputs: def join(self, inputs)",
        )
    if include and exclude:
        raise TaskError("merge_artifacts takes include or exclude, not both")
    found, conflicts = _collect(sources, binding, set(flow.__dict__), set(exclude), set(include))
    if conflicts:
        names = ", ".join(sorted(conflicts))
        raise MergeConflict(
            f"the inputs have different values of: {names}",
            sorted(conflicts),
            "set each before the call (self.x = inputs[0].x), or leave it out: "
            f"self.merge_artifacts(inputs, exclude={sorted(conflicts)!r})",
        )
    missing = sorted(name for name in include if name not in found and name not in flow.__dict__)
    if missing:
        everything = {name for source in sources for name in _artifacts(source)}
        hints = [did_you_mean(name, everything) for name in missing]
        raise MergeMissing(f"no input has: {', '.join(missing)}", missing, next(filter(None, hints), None))
    for name, artifact in found.items():
        binding.adopt(name, artifact)


def _collect(
    sources: list[Any], binding: Any, already: set[str], exclude: set[str], include: set[str]
) -> tuple[dict[str, Artifact], set[str]]:
    found: dict[str, Artifact] = {}
    conflicts: set[str] = set()
    own = binding.artifacts()
    for source in sources:
        for name, artifact in _artifacts(source).items():
            if name in already or name in exclude or (include and name not in include) or name in own:
                continue
            if name not in found:
                found[name] = artifact
            elif found[name].key != artifact.key:
                conflicts.add(name)
    return found, conflicts


def _artifacts(source: Any) -> Mapping[str, Artifact]:
    binding = getattr(source, "__dict__", {}).get("_binding")
    if binding is None:
        raise TaskError("merge_artifacts takes the inputs of the join", "self.merge_artifacts(inputs)")
    result: Mapping[str, Artifact] = binding.artifacts()
    return result
