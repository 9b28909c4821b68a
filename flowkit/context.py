"""``current``: what a step may know about the run that it is part of.

The module is called context since one called ``current`` would shadow the object in ``from flowkit import current``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SPOT_NOTICE_VARIABLE = "FLOWKIT_SPOT_NOTICE"
"""Environment variable of a task in a container: the path of a file that appears when the machine is going to be taken
away (``current.spot_termination_notice``)."""


class Current:
    """Facts about the running task, as attributes.

    Outside a task `is_running_flow` is False and every other attribute raises AttributeError.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._lazy: dict[str, Callable[[], Any]] = {}
        self._read: set[str] = set()

    @property
    def is_running_flow(self) -> bool:
        """Whether a step is being executed in this process."""
        return bool(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._values:
            self._read.add(name)
            return self._values[name]
        if name in self._lazy:
            self._read.add(name)
            value = self._values[name] = self._lazy[name]()
            return value
        if not self._values:
            raise AttributeError(f"current.{name} exists only while a step runs")
        from flowkit.exceptions import did_you_mean

        hint = did_you_mean(name, [*self._values, *self._lazy])
        raise AttributeError(f"current has no attribute '{name}'" + (f" ({hint})" if hint else ""))

    def __contains__(self, name: str) -> bool:
        return name in self._values or name in self._lazy

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values, *self._lazy})

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default where this task has none of that name."""
        return getattr(self, name) if name in self else default

    def enter(self, values: Mapping[str, Any], lazy: Mapping[str, Callable[[], Any]] | None = None) -> None:
        """Begin a task: replace everything that was known (called by the runtime, not by users)."""
        self._values = dict(values)
        self._lazy = dict(lazy or {})
        self._read = set()

    def add(self, values: Mapping[str, Any]) -> None:
        """Add attributes while a task runs (called by decorators)."""
        self._values.update(values)

    def leave(self) -> set[str]:
        """End a task and return the names of the attributes that it read."""
        read, self._values, self._lazy, self._read = self._read, {}, {}, set()
        return read


current = Current()

client_factory: Callable[..., Any] | None = None
"""``client_factory(kind, pathspec, root=None)`` makes a client object for ``current.run`` and ``current.task``.

The command line sets it, so that the runtime need not know the client.
"""
