"""How many events a state machine adds to an execution's history, as far as it can be told before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowkit.plugins.aws.step_functions_limits import EVENTS, TURN_EVENTS

TURN = "$.loop.turn"
"""Where a machine keeps the number of a loop's turn."""
_RETRY_EVENTS = 5


def events(scope: Mapping[str, Any]) -> int:
    """Return how many events one passage through a scope adds to the history at most; of ways, all are counted.

    Children of a distributed Map have a history of their own, and those of an inline one count once for each child that
    it may have.
    """
    states = scope["States"]
    total = 0
    for state in states.values():
        total += EVENTS[state["Type"]] + sum(events(branch) for branch in state.get("Branches", ()))
        if state["Type"] == "Choice":
            total += _turns(state) + _children(state, states)
        retries = (each for each in state.get("Retry", ()) if "JitterStrategy" not in each)
        total += _RETRY_EVENTS * sum(each["MaxAttempts"] for each in retries)
    return total


def histories(scope: Mapping[str, Any]) -> int:
    """Return the events of the longest history that an execution of a scope, or of a part of it, may have."""
    longest = events(scope)
    todo = list(scope["States"].values())
    while todo:
        state = todo.pop()
        processor = state.get("ItemProcessor")
        for inner in (*state.get("Branches", ()), *([processor] if processor else ())):
            todo += inner["States"].values()
        if processor is not None and processor["ProcessorConfig"]["Mode"] == "DISTRIBUTED":
            longest = max(longest, events(processor))
    return longest


def _turns(choice: Mapping[str, Any]) -> int:
    first = choice["Choices"][0]
    return int(first["NumericLessThan"]) * TURN_EVENTS if first.get("Variable") == TURN else 0


def _children(choice: Mapping[str, Any], states: Mapping[str, Any]) -> int:
    """Return what an inline Map adds, from the Choice that leads to it."""
    for way in choice["Choices"]:
        if "NumericLessThanEquals" in way and way.get("Variable") == "$.head.width":
            processor = states[states[way["Next"]]["Next"]]["ItemProcessor"]
            return int(way["NumericLessThanEquals"]) * (2 + events(processor))
    return 0
