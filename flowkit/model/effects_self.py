"""What happens to the attributes of ``self``: reads, sets, deletions, and calls of the flow's own methods.

The ground of `flowkit.model.effects_walk`, which walks through a function's source and tells what happens here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from flowkit.model.effects import UNSURE, Effects, Read, ReadKind, State
from flowkit.model.effects_names import inputs_of
from flowkit.model.flow_methods import Attribute, FlowMethods, cached_function, inner_function, is_plain
from flowkit.model.next_call import FunctionSource
from flowkit.model.parameters import Parameter

_LATER = 0x20 | 0x80 | 0x200
"""Code flags of generators and async functions: a call runs nothing of them yet."""
_INSIDE = frozenset({"__dict__", "_binding"})

ANYTHING, MERGED, GONE = "*", "&", "-"
"""In the log beside names that were set: anything may have been; the inputs were merged; before a deleted name."""


class Shared(ABC):
    """What the walks through one flow share.

    Attributes
    ----------
    methods : FlowMethods
        What names mean in the flow.
    guarded : set of str
        Names that the flow itself asks about (``hasattr``), or that may be set at any time: never to be judged.
    fine : set of tuple
        Places of reads in methods (`Read.place`) for which some caller has done enough, or may have: what a method
        does can depend on its arguments, so another caller is not blamed.
    """

    def __init__(self, cls: type) -> None:
        self.methods = FlowMethods(cls)
        self.guarded: set[str] = set()
        self.fine: set[tuple[object, ...]] = set()

    @abstractmethod
    def effects(self, function: FunctionType, owner: type) -> Effects:
        """Return the effects of a method."""


class OnSelf:
    """The names of one function, while it is walked through.

    Parameters
    ----------
    analysis : Shared
        The flow.
    function : function
        As it stands in the class `owner`; `source` is its source.
    inputs : bool
        Whether its second argument is the inputs of a join.
    """

    def __init__(
        self, analysis: Shared, function: FunctionType, source: FunctionSource, owner: type, inputs: bool
    ) -> None:
        self.analysis = analysis
        self.methods = analysis.methods
        self.function = function
        self.source = source
        self.owner = owner
        self.file = function.__code__.co_filename
        given = [*source.args.posonlyargs, *source.args.args]
        self.me = given[0].arg if given else ""
        self.inputs = given[1].arg if inputs and len(given) > 1 else ""
        self.input_names, self.inputs_known = inputs_of(source, self.inputs) if self.inputs else (frozenset(), True)
        self.needs: dict[Read, None] = {}
        self.reads: set[str] = set()
        self.log: list[str] = []
        self.silent = 0
        self.trial = 0
        self.self_known = bool(self.me)
        self.returns: list[State] = []
        self.loops: list[list[State]] = []
        self._set_in_loop: dict[int, frozenset[str]] = {}

    # -- what happens to names ------------------------------------------------------------------------------------

    def name(self, attribute: str) -> str:
        """The name under which an attribute is kept: ``__x`` is private to the class that it is written in."""
        if attribute.startswith("__") and not attribute.endswith("__"):
            parts = self.function.__qualname__.split(".")
            lexical = parts[-2].lstrip("_") if len(parts) > 1 else ""
            return f"_{lexical}{attribute}" if lexical else attribute
        return attribute

    def read(self, name: str, line: int, state: State, kind: ReadKind = "self", source: str | None = None) -> None:
        """An artifact is read."""
        if kind != "input":
            self.reads.add(name)
        if self.silent or self.trial or state.dead or state.unsure or (kind != "input" and name in state.added):
            return
        deleted = kind != "input" and name in state.deleted
        merged = state.merged is not None and name not in state.merged
        self.needs[Read(name, self.file, line, kind, deleted, merged, source)] = None

    def store(self, name: str, state: State) -> None:
        """An attribute of self is set: an artifact, or by a property."""
        attribute = self.methods.attribute(name)
        if attribute is not None and isinstance(attribute.value, property):
            self.call_function(name, attribute.value.fset, attribute.owner, state)
            return
        if attribute is not None and not is_plain(attribute.value) and not isinstance(attribute.value, Parameter):
            self.unsure(state)
        state.assign(name)
        self.log.append(name)

    def delete(self, name: str, state: State) -> None:
        """An attribute of self is deleted."""
        state.remove(name)
        self.log.append(GONE + name)

    def unsure(self, state: State) -> None:
        """Something happens that cannot be told."""
        state.unsure = True
        self.log.append(ANYTHING)

    def absorb(self, names: Iterable[str], state: State) -> None:
        """What stands in a part of the log may have happened, or not."""
        for name in set(names):
            if name == ANYTHING:
                state.unsure = True
            elif name == MERGED:
                state.merge(frozenset())
            elif name.startswith(GONE):
                state.surely.discard(name[1:])
            else:
                state.added.add(name)
                state.deleted.discard(name)

    def apply(self, effects: Effects, via: str, state: State) -> None:
        """A method runs here."""
        self.reads |= effects.reads
        for need in effects.needs:
            if self.trial or state.dead:
                continue
            if self.silent or state.unsure or need.name in state.added:
                self.analysis.fine.add(need.place)
                continue
            deleted = need.deleted or need.name in state.deleted
            merged = need.merged or (state.merged is not None and need.name not in state.merged)
            self.needs[need._replace(deleted=deleted, merged=merged, via=(via, *need.via))] = None
        self.log += [*effects.sets, *(GONE + name for name in effects.deletes)]
        if effects.unsure:
            self.log.append(ANYTHING)
        state.apply(effects)

    @contextmanager
    def unjudged(self) -> Iterator[None]:
        """Reads in here are not judged."""
        self.silent += 1
        try:
            yield
        finally:
            self.silent -= 1

    def later(self, run: Callable[[State], None], state: State) -> None:
        """Code that runs at any time from now on, any number of times, or never."""
        mark, returns, loops = len(self.log), self.returns, self.loops
        self.returns, self.loops = [], []
        with self.unjudged():
            run(State())
        self.returns, self.loops = returns, loops
        names = self.log[mark:]
        self.analysis.guarded.update(names)
        self.absorb(names, state)

    # -- methods of the flow --------------------------------------------------------------------------------------

    def load(self, name: str, line: int, state: State, after: type | None = None) -> None:
        """``self.name`` is read: an artifact, or what the class says."""
        attribute = self.methods.attribute(name, after)
        if name in _INSIDE or (attribute is None and (after is not None or name.startswith("__"))):
            self.unsure(state)
        elif attribute is None:
            self.read(name, line, state)
        elif isinstance(attribute.value, property) and not self.methods.is_ours(attribute):
            self.call_function(name, attribute.value.fget, attribute.owner, state)
        elif cached := cached_function(attribute.value):
            once = state.copy()
            self.call_function(name, cached, attribute.owner, once)
            state.join(once)
        elif not self._is_inert(attribute):
            self.later(lambda away: self.call_method(name, attribute, away), state)

    def _is_inert(self, attribute: Attribute) -> bool:
        """Whether the attribute, when it is only read, cannot do anything to self."""
        value = attribute.value
        if isinstance(value, FunctionType):
            if self.methods.is_ours(attribute):
                return value.__name__ in ("next", "foreach_stack")
            return bool(getattr(value, "is_step", False))
        return isinstance(value, (Parameter, staticmethod)) or (is_plain(value) and not isinstance(value, classmethod))

    def call_method(self, name: str, attribute: Attribute, state: State) -> None:
        """``self.name(…)`` is called, and the class says what it is."""
        value = attribute.value
        function = inner_function(value)
        if isinstance(value, staticmethod) or (function is None and is_plain(value) and not _bound(value)):
            return
        if self.methods.is_ours(attribute):
            if name != "foreach_stack":
                self.unsure(state)
        elif function is None:
            self.unsure(state)
        elif isinstance(value, classmethod):
            effects = self.analysis.effects(function, attribute.owner)
            self.analysis.guarded.update(effects.sets)
            if effects.unsure:
                self.unsure(state)
        else:
            self.call_function(name, function, attribute.owner, state)

    def call_function(self, name: str, function: Any, owner: type, state: State) -> None:
        """A function of the flow's classes is called with self."""
        if not isinstance(function, FunctionType) or "__wrapped__" in function.__dict__:
            self.apply(UNSURE, name, state)
            return
        effects = self.analysis.effects(function, owner)
        if not function.__code__.co_flags & _LATER:
            self.apply(effects, name, state)
            return
        self.reads |= effects.reads
        names = [*effects.sets, *([ANYTHING] if effects.unsure else [])]
        self.log += names
        self.analysis.guarded.update(names)
        self.absorb(names, state)


def _bound(value: Any) -> bool:
    """Whether calling a class attribute through self hands self to it."""
    return hasattr(type(value), "__get__")
