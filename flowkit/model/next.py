"""What a call of ``self.next`` means: checked against the flow at run time, then against the graph."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

from flowkit.exceptions import InvalidNext, Location, did_you_mean
from flowkit.model.graph import Graph, Node
from flowkit.model.transition import TransitionKind

_OPTIONS = ("foreach", "num_parallel", "condition")
_NAMED = "assign it first, self.xs = …, and write foreach='xs'"
_FAN_OUT = "what runs many times is one step; a split may follow in it"


class Next(NamedTuple):
    """A transition as the step asked for it.

    Parameters
    ----------
    kind : str
        As in `flowkit.model.transition.Transition`.
    targets : tuple of str
        The steps that follow.
    variable : str, optional
        The artifact iterated over, or the one that decided.
    width : int, optional
        For a gang: its number of nodes.
    case : str, optional
        For a switch: the text of the value found.
    """

    kind: TransitionKind
    targets: tuple[str, ...]
    variable: str | None = None
    width: int | None = None
    case: str | None = None


def read_next(flow: Any, node: Node, graph: Graph, targets: tuple[Any, ...], options: Mapping[str, Any]) -> Next:
    """Return what ``self.next(*targets, **options)`` asks for.

    Parameters
    ----------
    flow : FlowSpec
        The flow object, which has the artifacts that a foreach or a switch names.
    node : Node
        The step that calls.

    Raises
    ------
    InvalidNext
        If the call is not one of the forms of `FlowSpec.next`, or differs from what the source says.
    """
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        hint = did_you_mean(unknown[0], _OPTIONS) or f"its options: {', '.join(_OPTIONS)}"
        raise _invalid(node, f"self.next has no option '{unknown[0]}'", hint)
    if len([name for name in _OPTIONS if options.get(name) is not None]) > 1:
        raise _invalid(
            node,
            "self.next takes one of foreach, num_parallel and condition, not several",
            "put a step between, one transition each",
        )
    if not targets:
        raise _invalid(node, "self.next names no step", "name the step that follows: self.next(self.end)")
    if options.get("condition") is not None or isinstance(targets[0], dict):
        asked = _switch(flow, node, graph, targets, options.get("condition"))
    else:
        asked = _plain(flow, node, graph, targets, options)
    _compare(node, asked)
    return asked


def next_by_source(flow: Any, node: Node, graph: Graph, options: Mapping[str, Any]) -> Next:
    """Return what the ``self.next`` in a step's source asks for, where the step itself did not run.

    Parameters
    ----------
    flow, node, graph
        As for `read_next`.
    options : mapping
        Options of ``self.next`` that take the place of those in the source; a gang needs its ``num_parallel``.

    Raises
    ------
    InvalidNext
        If an artifact is not set that decides, or the options do not fit.
    """
    if node.kind == "switch":
        variable = options.get("condition") or node.variable
        case = _case_of(flow, node, variable)
        return read_next(flow, node, graph, (case,), {**options, "condition": variable})
    targets = tuple(getattr(flow, name) for name in node.targets)
    given = dict(options)
    if node.kind == "foreach":
        given.setdefault("foreach", node.variable)
    if node.kind == "parallel" and given.get("num_parallel") is None:
        raise _invalid(
            node,
            "how many nodes follow is not known, since the step itself did not run",
            'the decorator that skips it says so: {"num_parallel": 4}',
        )
    return read_next(flow, node, graph, targets, given)


def _case_of(flow: Any, node: Node, variable: Any) -> dict[Any, Any]:
    """Return the switch's dict as far as it matters: the value of the artifact, if it is one of the cases."""
    value = getattr(flow, variable, None) if isinstance(variable, str) else None
    for text, target in node.cases.items():
        if text.startswith("config:"):
            found = flow
            for part in text.removeprefix("config:").split("."):
                found = getattr(found, part)
            if found == value:
                return {found: getattr(flow, target)}
        elif type(value) in (str, int, float, bool) and text == str(value):
            return {value: getattr(flow, target)}
    return {text: getattr(flow, target) for text, target in node.cases.items()}


def _plain(flow: Any, node: Node, graph: Graph, targets: tuple[Any, ...], options: Mapping[str, Any]) -> Next:
    names = tuple(_target(flow, node, graph, target) for target in targets)
    if options.get("foreach") is not None:
        variable = options["foreach"]
        if not isinstance(variable, str):
            raise _invalid(node, f"foreach takes the name of an artifact, not {_short(variable)}", _NAMED)
        if len(names) != 1:
            raise _invalid(node, f"a foreach goes to one step, not to {len(names)}", _FAN_OUT)
        return Next("foreach", names, variable)
    if options.get("num_parallel") is not None:
        width = options["num_parallel"]
        if len(names) != 1:
            raise _invalid(node, f"num_parallel goes to one step, not to {len(names)}", _FAN_OUT)
        if isinstance(width, bool) or not hasattr(width, "__index__") or width < 1:
            raise _invalid(
                node,
                f"num_parallel takes a whole number above 0, not {_short(width)}",
                "it is how many tasks run at once: self.next(self.train, num_parallel=4)",
            )
        return Next("parallel", names, None, int(width))
    return Next("linear" if len(names) == 1 else "split", names)


def _switch(flow: Any, node: Node, graph: Graph, targets: tuple[Any, ...], condition: Any) -> Next:
    if condition is None:
        raise _invalid(node, "self.next got a dict without a condition", "add condition='name of an artifact'")
    if not isinstance(condition, str):
        raise _invalid(
            node, f"condition takes the name of an artifact, not {_short(condition)}", "condition='name of an artifact'"
        )
    if len(targets) != 1 or not isinstance(targets[0], dict) or not targets[0]:
        raise _invalid(node, "a condition goes with one dict of cases", "self.next({'a': self.x}, condition='name')")
    try:
        value = getattr(flow, condition)
    except AttributeError:
        raise _invalid(
            node, f"the switch looks at self.{condition}, which is not set", f"set self.{condition} before self.next"
        ) from None
    cases = {case: _target(flow, node, graph, target) for case, target in targets[0].items()}
    try:
        chosen = cases[value]
    except (KeyError, TypeError):
        known = f"its cases: {', '.join(map(_short, cases))}"
        near = did_you_mean(value, [case for case in cases if isinstance(case, str)]) if type(value) is str else None
        raise _invalid(
            node,
            f"the switch has no case for self.{condition} = {_short(value)}",
            f"{near} ({known})" if near else known,
        ) from None
    return Next("switch", (chosen,), condition, None, _short(value))


def _target(flow: Any, node: Node, graph: Graph, target: Any) -> str:
    function = getattr(target, "__func__", None)
    if function is None or getattr(target, "__self__", None) is not flow:
        raise _invalid(node, f"self.next got {_short(target)}, which is not a step", "write self.next(self.<step>)")
    name: str = function.__name__
    if name not in graph.nodes:
        raise _invalid(
            node,
            f"self.next goes to '{name}', which is not a step",
            did_you_mean(name, graph.nodes) or f"mark it with @step: def {name}(self)",
        )
    return name


def _compare(node: Node, asked: Next) -> None:
    """Hold a transition against the source: the scheduler and every deployed form rely on the graph."""
    fits = asked.kind == node.kind and (
        asked.targets[0] in node.targets if asked.kind == "switch" else asked.targets == node.targets
    )
    if not fits:
        raise _invalid(
            node,
            f"self.next goes to {', '.join(asked.targets)} ({asked.kind}), "
            f"but the source says {', '.join(node.targets) or 'nothing'} ({node.kind})",
            "call self.next once, as the last statement of the step, in the form that is to be carried out",
        )


def _short(value: Any) -> str:
    """A value in an error: only built-in types show what they hold."""
    if type(value) in (str, int, float, bool, type(None)):
        text = repr(value)
        return text if len(text) <= 80 else text[:77] + "…"
    return f"a value of type {type(value).__name__}"


def _invalid(node: Node, headline: str, hint: str) -> InvalidNext:
    return InvalidNext(f"step '{node.name}': {headline}", hint, calling_line(node))


def calling_line(node: Node) -> Location:
    """Return the line that a step is carrying out right now; where it is not running, that of its ``self.next``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == node.name and code.co_filename == node.location.file:
            return Location(code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return node.next_location or node.location
