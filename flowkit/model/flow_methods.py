"""The attributes that a flow's classes define, and the source of its methods: what ``self.name`` means in a step."""

from __future__ import annotations

from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, NamedTuple

from flowkit.model.flowspec import FlowSpec
from flowkit.model.next_call import FunctionSource
from flowkit.model.step_source import find_sources

_ACCESS = ("__getattr__", "__getattribute__", "__setattr__", "__delattr__")
_PLAIN_DESCRIPTORS = (property, staticmethod, classmethod, MemberDescriptorType, GetSetDescriptorType, FunctionType)
_MISSING = object()


class Attribute(NamedTuple):
    """What a class says a name is.

    Parameters
    ----------
    value : object
        As it stands in the class, not bound to anything.
    owner : type
        The class.
    """

    value: Any
    owner: type


class FlowMethods:
    """Looks names up as Python does for a flow object, without running anything.

    Parameters
    ----------
    cls : type
        The flow's class.
    """

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self._own = [base for base in cls.__mro__ if base not in FlowSpec.__mro__]
        self._known: dict[str, Attribute | None] = {}
        self._sources: dict[str, dict[Any, Any]] = {}

    @property
    def opaque(self) -> bool:
        """Whether the flow's classes define themselves how attributes are read and set."""
        return any(name in vars(base) for base in self._own for name in _ACCESS)

    def attribute(self, name: str, after: type | None = None) -> Attribute | None:
        """Return what the nearest class defines under a name, or None.

        Parameters
        ----------
        name : str
            The attribute.
        after : type, optional
            Only classes that come after this one count, as for ``super()``.
        """
        if after is None:
            if name not in self._known:
                self._known[name] = self._find(name, self.cls.__mro__)
            return self._known[name]
        order = self.cls.__mro__
        return self._find(name, order[order.index(after) + 1 :] if after in order else ())

    def _find(self, name: str, classes: tuple[type, ...]) -> Attribute | None:
        for base in classes:
            value = vars(base).get(name, _MISSING)
            if value is not _MISSING:
                return Attribute(value, base)
        return None

    def is_ours(self, attribute: Attribute) -> bool:
        """Whether it comes with every flow: nothing of it sets artifacts unseen."""
        return attribute.owner in FlowSpec.__mro__

    def source(self, function: FunctionType) -> FunctionSource | None:
        """Return the source of a method; all methods of its file that the flow's classes have are found at once."""
        file = function.__code__.co_filename
        if file not in self._sources:
            self._sources[file] = find_sources([*self._functions(file), function])
        found = self._sources[file].get(function.__code__)
        if found is None and function.__code__ not in self._sources[file]:
            self._sources[file].update(find_sources([function]))
            found = self._sources[file].get(function.__code__)
        return None if found is None else found.function

    def _functions(self, file: str) -> list[FunctionType]:
        found = []
        for base in self._own:
            for value in vars(base).values():
                candidates = (value.fget, value.fset) if isinstance(value, property) else (inner_function(value),)
                found += [
                    item for item in candidates if isinstance(item, FunctionType) and item.__code__.co_filename == file
                ]
        return found


def inner_function(value: Any) -> FunctionType | None:
    """Return the function of a class method, static method or step; None where something stands around it."""
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    if not isinstance(value, FunctionType) or "__wrapped__" in value.__dict__:
        return None
    return value


def is_plain(value: Any) -> bool:
    """Whether reading the attribute runs no code of a descriptor that somebody else wrote."""
    kind = type(value)
    return isinstance(value, _PLAIN_DESCRIPTORS) or not hasattr(kind, "__get__") or hasattr(kind, "is_config")


def cached_function(value: Any) -> FunctionType | None:
    """Return the function of a ``functools.cached_property``."""
    if type(value).__name__ == "cached_property" and type(value).__module__ == "functools":
        function = value.func
        return function if isinstance(function, FunctionType) else None
    return None
