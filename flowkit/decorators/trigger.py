"""``@trigger`` and ``@trigger_on_finish``: what starts a deployed flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators import events as values
from flowkit.decorators.attach import flow_decorator
from flowkit.decorators.attributes import check_options, items
from flowkit.decorators.contract import FlowDecorator, Option
from flowkit.decorators.events import FlowkitEvent
from flowkit.exceptions import FlowkitError, Problem, did_you_mean

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition


class Trigger(FlowDecorator):
    """Start the deployed flow when events happen.

    Parameters
    ----------
    event : str or dict or callable
        The event: its name, or a dict with ``name`` and ``parameters`` (a dict from the flow's parameters to the
        event's fields, or a list of names that are the same in both), or a function that returns one of these when
        the flow is deployed.
    events : list of these
        All of them must have happened. One of `event` and `events` is given.
    options : dict
        For the scheduler, for example ``{"reset_at": {"cron": "0 0 * * *", "timezone": "UTC"}}``.

    Examples
    --------
    >>> @trigger(event={"name": "data_arrived", "parameters": {"table": "table_name"}})
    ... class TrainFlow(FlowSpec): ...
    """

    name = "trigger"
    defaults = {"event": None, "events": [], "options": {}}

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Check the form of every event, and that its parameters are the flow's."""
        problems = check_options(self) + one_of(self, "event", "events")
        for event in wanted(self, "event", "events"):
            problems += self._check_event(event, flow)
        return problems

    def _check_event(self, event: Any, flow: FlowDefinition) -> list[Problem]:
        if callable(event) or (isinstance(event, str) and event):
            return []
        if not isinstance(event, Mapping):
            shown = "an empty text" if event == "" else type(event).__name__
            return [self.problem(f"@trigger: an event is a text, a dict or a function, not {shown}")]
        problems = unknown_keys(self, event, ("name", "parameters"))
        name = event.get("name")
        if not (callable(name) or (isinstance(name, str) and name)):
            problems.append(self.problem("@trigger: an event has no name", 'write {"name": "data_arrived"}'))
        given = event.get("parameters", {})
        if callable(given):
            return problems
        for parameter in self._parameters(given):
            if not isinstance(parameter, str):
                problems.append(
                    self.problem(
                        f"@trigger: the parameters of the event {name!r} are not names",
                        'a dict {"parameter": "field"}, or a list of names or of ("parameter", "field")',
                    )
                )
            elif parameter not in self._known(flow):
                hint = did_you_mean(parameter, self._known(flow))
                problems.append(self.problem(f"@trigger: the flow has no parameter '{parameter}'", hint))
        return problems

    @staticmethod
    def _parameters(given: Any) -> list[Any]:
        if isinstance(given, Mapping):
            return list(given)
        return [entry[0] if isinstance(entry, (list, tuple)) and len(entry) == 2 else entry for entry in items(given)]

    @staticmethod
    def _known(flow: FlowDefinition) -> set[str]:
        return {*flow.parameters, *(str(getattr(item, "name", name)) for name, item in flow.parameters.items())}


class TriggerOnFinish(FlowDecorator):
    """Start the deployed flow when other flows have finished.

    ``--trigger Flow/run`` (may be repeated) stands in for them on this machine: ``current.trigger`` then tells of
    these runs.

    Parameters
    ----------
    flow : str or dict or callable
        The flow: its name, ``"project.branch.Flow"``, or a dict with ``name``, ``project`` and ``project_branch``.
    flows : list of these
        All of them must have finished. One of `flow` and `flows` is given.
    options : dict
        For the scheduler.

    Examples
    --------
    >>> @trigger_on_finish(flow="PrepareFlow")
    ... class TrainFlow(FlowSpec): ...
    """

    name = "trigger_on_finish"
    defaults = {"flow": None, "flows": [], "options": {}}
    options = (
        Option("trigger", "A run, as Flow/run, that stands in for the one waited for (repeatable).", multiple=True),
    )

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._events: list[FlowkitEvent] = []

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Check the names of the flows and look at the runs of ``--trigger``."""
        problems = check_options(self) + one_of(self, "flow", "flows")
        for other in wanted(self, "flow", "flows"):
            problems += self._check_other(other)
        self._events = []
        for pathspec in dict.fromkeys(options.get("trigger") or ()):
            event, wrong = _finished(pathspec)
            if wrong is not None:
                problems.append(wrong)
            elif event is not None:
                self._events.append(event)
        return problems

    def current(self) -> Mapping[str, Any]:
        """Return the trigger, where one was given."""
        return {"trigger": values.Trigger(self._events)} if self._events else {}

    def record(self) -> Any:
        """Return the attributes and the runs given."""
        return {**super().record(), "given": [list(event) for event in self._events]}

    def restore(self, recorded: Any) -> None:
        """Take over the runs given when the run was started."""
        if isinstance(recorded, Mapping):
            self._events = [FlowkitEvent(*event) for event in recorded.get("given", ())]

    def _check_other(self, other: Any) -> list[Problem]:
        if callable(other):
            return []
        if isinstance(other, Mapping):
            problems = unknown_keys(self, other, ("name", "project", "project_branch"))
            for key in ("name", "project", "project_branch"):
                value = other.get(key)
                if value is None and key != "name":
                    continue
                if not callable(value) and not (isinstance(value, str) and value):
                    problems.append(self.problem(f"@trigger_on_finish: '{key}' must be a text"))
            return problems
        parts = other.split(".") if isinstance(other, str) else []
        if len(parts) not in (1, 3, 4) or not all(parts) or not parts[-1].isidentifier():
            shown = repr(other) if isinstance(other, str) else type(other).__name__
            return [
                self.problem(
                    f"@trigger_on_finish: {shown} does not name a flow",
                    "write the flow's name, 'project.branch.Flow', or a dict with name, project and project_branch",
                )
            ]
        return []


def one_of(decorator: FlowDecorator, single: str, several: str) -> list[Problem]:
    """Return a problem unless exactly one of two attributes is given."""
    one, many = decorator.attributes[single], decorator.attributes[several]
    if (one is None) != (not many):
        return []
    said = "both" if one is not None else "none"
    return [
        decorator.problem(f"@{decorator.name} takes {single}=… or {several}=[…], and has {said}", f"give one {single}")
    ]


def wanted(decorator: FlowDecorator, single: str, several: str) -> list[Any]:
    """Return what the two attributes name together."""
    one = decorator.attributes[single]
    return ([] if one is None else [one]) + items(decorator.attributes[several])


def unknown_keys(decorator: FlowDecorator, given: Mapping[Any, Any], known: tuple[str, ...]) -> list[Problem]:
    """Return a problem for each key that means nothing."""
    return [
        decorator.problem(
            f"@{decorator.name}: '{key}' means nothing here",
            did_you_mean(str(key), known) or f"known: {', '.join(known)}",
        )
        for key in given
        if key not in known
    ]


def _finished(pathspec: Any) -> tuple[FlowkitEvent | None, Problem | None]:
    """Look at a run of ``--trigger``: it has to be there and to have succeeded."""
    flow, slash, run = str(pathspec).partition("/")
    if not flow or not slash or not run or "/" in run:
        return None, Problem(f"--trigger '{pathspec}' does not name a run", hint="write Flow/run, e.g. PrepareFlow/12")
    from flowkit import context

    when = 0.0
    if context.client_factory is not None:
        try:
            found = context.client_factory("run", pathspec)
            if not found.successful:
                return None, Problem(f"--trigger {pathspec}: the run did not succeed", hint="give one that did")
            when = found.finished_at.timestamp() if found.finished_at else 0.0
        except FlowkitError as error:
            return None, Problem(f"--trigger {pathspec}: {error.headline}", hint=error.hint)
    return FlowkitEvent(f"flowkit.{flow}.end", str(pathspec), when, "run"), None


trigger = flow_decorator(Trigger)
trigger_on_finish = flow_decorator(TriggerOnFinish)
