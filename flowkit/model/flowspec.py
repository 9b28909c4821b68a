"""FlowSpec, the class that users derive their flows from, and `step`, which marks its steps.

A flow object does nothing by itself: inside a task a *binding* stands behind it (`TaskBinding`, made by
`flowkit.runtime.task`), which loads artifacts, knows parameters and foreach items and takes note of the transition.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, overload

from flowkit.exceptions import TaskError
from flowkit.model import flow_file
from flowkit.model.inputs import Inputs, merge
from flowkit.model.manifest import Artifact

_Function = TypeVar("_Function", bound=Callable[..., Any])

RANDOM_BEFORE = sys.modules["random"].getstate() if "random" in sys.modules else None
"""The state of Python's random numbers before the flow's own code: it tells whether that code seeds them."""
INTERNAL = frozenset({"_binding"})
"""Instance attributes that are no artifacts."""


class TaskBinding(Protocol):
    """What stands behind a flow object inside a task, or behind one input of a join."""

    step_name: str
    step_names: frozenset[str]
    is_join: bool
    constants: Mapping[str, Any]

    def load(self, name: str) -> Any:
        """Return an artifact's value; AttributeError where the task has none of that name."""

    def load_parameter(self, name: str) -> Any:
        """Return a parameter's value."""

    def forget(self, name: str) -> bool:
        """End an artifact that came from before; False where there was none."""

    def artifacts(self) -> Mapping[str, Artifact]:
        """Return the artifacts that were there before the step set any."""

    def adopt(self, name: str, artifact: Artifact) -> None:
        """Take over an artifact by reference."""

    def foreach_input(self) -> Any:
        """Return the item of the innermost foreach."""

    def foreach_index(self) -> int | None:
        """Return the index in the innermost foreach."""

    def foreach_frames(self) -> list[tuple[int, int, Any]]:
        """Return (index, width, item) of every enclosing foreach, outermost first."""

    def take_next(self, flow: Any, targets: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Take note of ``self.next``."""


@overload
def step(function: _Function) -> _Function: ...


@overload
def step(*, start: bool = False, end: bool = False) -> Callable[[_Function], _Function]: ...


def step(function: Any = None, *, start: bool = False, end: bool = False) -> Any:
    """Mark a method of a flow as a step.

    Parameters
    ----------
    start, end : bool, default False
        The flow begins (ends) here. Without the mark the steps called ``start`` and ``end`` do, and a flow of one
        step needs neither.

    Examples
    --------
    >>> class Hello(FlowSpec):
    ...     @step
    ...     def start(self):
    ...         self.next(self.end)
    ...
    ...     @step
    ...     def end(self):
    ...         pass
    """

    def mark(function: Any) -> Any:
        function.is_step = True
        function.step_start = start
        function.step_end = end
        function.name = function.__name__
        function.decorators = list(getattr(function, "decorators", ()))
        return function

    return mark if function is None else mark(function)


class FlowSpec:
    """A flow: subclass it, mark its steps with ``@step``, end each with ``self.next``.

    Everything that a step assigns to ``self`` is an artifact: it is stored when the step ends and can be read in the
    steps that follow and, later, with the client. ``python flow.py run`` runs the flow when the file ends in
    ``if __name__ == "__main__": MyFlow()``.

    Parameters
    ----------
    use_cli : bool, default True
        Whether making the object reads the command line and acts on it.
    """

    _binding: TaskBinding | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == "__main__":
            flow_file.defined(cls)

    def __init__(self, use_cli: bool = True) -> None:
        flow_file.started()
        if use_cli:
            from flowkit.cli.main import main

            main(type(self))

    # -- artifacts ------------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        binding = self.__dict__.get("_binding")
        if binding is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        value = binding.load(name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        binding = self.__dict__.get("_binding")
        if binding is not None:
            if name in binding.constants:
                raise AttributeError(
                    f"'{name}' is a constant of the flow and cannot be changed in a step: use another name"
                )
            if name in binding.step_names:
                raise AttributeError(f"'{name}' is a step of the flow: give the artifact another name")
            if name in _OWN_NAMES:
                raise AttributeError(f"every flow has its own '{name}': give the artifact another name")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        binding = self.__dict__.get("_binding")
        if name in INTERNAL or binding is None:
            object.__delattr__(self, name)
            return
        if name in binding.constants or hasattr(getattr(type(self), name, None), "__delete__"):
            raise AttributeError(f"'{name}' belongs to the flow's class and cannot be deleted in a step")
        known_before = binding.forget(name)
        if name in self.__dict__:
            object.__delattr__(self, name)
        elif not known_before:
            raise AttributeError(f"there is no artifact '{name}' to delete")

    def __getstate__(self) -> Any:
        raise TaskError(
            "a flow object cannot be stored as an artifact",
            "store the value that you need, e.g. self.x = inputs[0].x and not self.x = inputs[0]",
        )

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        for name in dir(type(self)):
            function = getattr(type(self), name)
            if getattr(function, "is_step", False):
                yield getattr(self, name)

    # -- what a step may ask and say ----------------------------------------------------------------------------

    def _bound(self, what: str) -> TaskBinding:
        binding = self.__dict__.get("_binding")
        if binding is None:
            raise TaskError(f"{what} has a meaning only while a step runs")
        result: TaskBinding = binding
        return result

    @property
    def input(self) -> Any:
        """The item of the innermost foreach that this task was started for; None outside a foreach."""
        return self._bound("self.input").foreach_input()

    @property
    def index(self) -> int | None:
        """The index of `input` in its foreach, counted from 0; None outside a foreach."""
        return self._bound("self.index").foreach_index()

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        """Return (index, number of children, item) for every enclosing foreach, outermost first."""
        return self._bound("self.foreach_stack()").foreach_frames()

    def next(self, *targets: Any, **options: Any) -> None:
        """Say which steps follow; the last statement of every step but the last.

        Parameters
        ----------
        *targets
            One step (``self.a``), several for a split (``self.a, self.b``), or a dict for a switch
            (``{"yes": self.a, "no": self.b}, condition="answer"``).
        foreach : str
            The name of an artifact: one task of the target for each of its items.
        num_parallel : int
            That many tasks of the target at once, as one gang.
        condition : str
            The name of the artifact that chooses from the dict.

        Raises
        ------
        InvalidNext
            If the call does not fit the flow.
        """
        self._bound("self.next").take_next(self, targets, options)

    def merge_artifacts(
        self, inputs: Inputs | Iterable[FlowSpec], exclude: Iterable[str] = (), include: Iterable[str] = ()
    ) -> None:
        """Take over the artifacts of a join's inputs that do not conflict.

        Artifacts are compared by content, and taken by reference: nothing is loaded. Names that were already set in
        this step are skipped.

        Parameters
        ----------
        inputs
            The ``inputs`` of the join.
        exclude : iterable of str
            Names to leave out.
        include : iterable of str
            The only names to take; not together with `exclude`.

        Raises
        ------
        MergeConflict
            If the inputs have different values of a name (then nothing is taken).
        MergeMissing
            If no input has a name to include.
        TaskError
            If the step is not a join, or both `include` and `exclude` are given.
        """
        merge(self, inputs, _names(exclude, "exclude"), _names(include, "include"))


_OWN_NAMES = frozenset(name for name in vars(FlowSpec) if not name.startswith("_"))
"""What the class gives every flow: ``next``, ``input`` and the like cannot be artifacts."""


def _names(given: Iterable[str], option: str) -> list[str]:
    if isinstance(given, str):
        raise TaskError(f"merge_artifacts({option}=…) takes a list of names, not the string '{given}'")
    return list(given)


flow_file.install_excepthook()
