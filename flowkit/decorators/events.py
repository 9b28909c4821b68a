"""``current.trigger``: what started a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit import context


class FlowkitEvent(NamedTuple):
    """One event that started a run.

    Parameters
    ----------
    name : str
        The event; for a finished run ``flowkit.<Flow>.end``.
    id : str
        Which one; for a finished run its pathspec.
    timestamp : float
        When, in seconds since the epoch.
    type : str
        ``event`` or ``run``.
    """

    name: str
    id: str
    timestamp: float
    type: str


def read_events(recorded: Any) -> list[FlowkitEvent]:
    """Return the events that were recorded with a run, as lists of name, id, timestamp and type.

    What has another form is left out: it was written by somebody else.
    """
    found = []
    for item in recorded if isinstance(recorded, list | tuple) else ():
        if isinstance(item, list | tuple) and len(item) == 4:
            name, which, when, kind = item
            texts = isinstance(name, str) and isinstance(which, str) and kind in ("event", "run")
            if texts and isinstance(when, int | float) and not isinstance(when, bool):
                found.append(FlowkitEvent(name, which, float(when), kind))
    return found


def started_by(extra: Mapping[str, Any], find: Callable[[str], Any] | None = None) -> Trigger | None:
    """Return what started a run, from the `extra` of its ``_parameters`` manifest; None where somebody did by hand.

    That are the events of its scheduler, or the runs that ``--trigger`` named. `find` is as for `Trigger`.
    """
    events = read_events(extra.get("trigger"))
    if not events:
        decorators = extra.get("decorators")
        given = decorators.get("trigger_on_finish") if isinstance(decorators, Mapping) else None
        events = read_events(given.get("given")) if isinstance(given, Mapping) else []
    return Trigger(events, find) if events else None


class Trigger:
    """The events that started a run; iterate, or ask by an event's name.

    Parameters
    ----------
    events : sequence of FlowkitEvent
        In the order given.
    find : callable, optional
        Returns the client object of a run, given its pathspec; default: that of the process.
    """

    def __init__(self, events: Sequence[FlowkitEvent], find: Callable[[str], Any] | None = None) -> None:
        self._events = tuple(events)
        self._find = find

    @property
    def event(self) -> FlowkitEvent | None:
        """The event, where there is exactly one; else the newest."""
        return max(self._events, key=lambda event: event.timestamp, default=None)

    @property
    def events(self) -> list[FlowkitEvent] | None:
        """All events, or None where there is none."""
        return list(self._events) or None

    @property
    def run(self) -> Any | None:
        """The newest of the runs that started this one, as a client object; None where no run did."""
        started = [event for event in self._events if event.type == "run"]
        return self._run(max(started, key=lambda event: event.timestamp)) if started else None

    @property
    def runs(self) -> list[Any] | None:
        """The runs that started this one, as client objects; None where no run did."""
        return [self._run(event) for event in self._events if event.type == "run"] or None

    def __getitem__(self, name: str) -> Any:
        """Return what an event's name, or a flow's name, stands for: a run for a finished run, else the event."""
        for event in self._events:
            if name in (event.name, event.id.partition("/")[0] if event.type == "run" else event.name):
                return self._run(event) if event.type == "run" else event
        raise KeyError(name)

    def __iter__(self) -> Iterator[FlowkitEvent]:
        return iter(self._events)

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self[name] is not None
        except KeyError:
            return False

    def __repr__(self) -> str:
        return f"Trigger({', '.join(event.id for event in self._events)})"

    def _run(self, event: FlowkitEvent) -> Any:
        if self._find is not None:
            return self._find(event.id)
        if context.client_factory is None:
            raise AttributeError("current.trigger.run needs the client, which this process does not have")
        return context.client_factory("run", event.id)
