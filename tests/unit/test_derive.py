"""A launch that is derived from coordinates is the one that the scheduler decides, for any flow."""

from __future__ import annotations

import pytest
from graph_builder import graph_of
from hypothesis import given, settings
from random_flows import FLOWS
from random_world import SEEDS, World

from flowkit.exceptions import DataError
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.transition import Transition
from flowkit.runtime.derive import Derivation


@settings(max_examples=150, deadline=None)
@given(FLOWS, SEEDS)
def test_what_is_derived_is_what_the_scheduler_decides(flow, seed):
    world = World(flow, seed)
    assert world.run() == "succeeded"
    asked: list[TaskRef] = []

    def transition_of(ref: TaskRef) -> Transition:
        asked.append(ref)
        assert ref in world.committed
        return flow.transition(ref)

    for ref, launches in world.launched.items():
        del asked[:]
        (decided,) = launches
        derived = Derivation(flow.graph, transition_of).launch(ref.step, ref.coordinates, gang=decided.gang)
        assert (list(derived.parent_refs()), derived.split, derived.gang) == (
            list(decided.parent_refs()),
            decided.split,
            decided.gang,
        )
        assert derived.parents == decided.parents
        assert len(asked) == len(set(asked)), "no transition is asked for twice"


def test_a_wide_foreach_needs_one_look():
    graph = graph_of({"start": "foreach work", "work": "linear join", "join": "join linear end", "end": "end"})
    asked = []

    def transition_of(ref: TaskRef) -> Transition:
        asked.append(ref)
        return Transition("foreach", ("work",), 1_000_000, "xs")

    launch = Derivation(graph, transition_of).launch("join", Coordinates())
    assert [str(span) for span in launch.parents] == ["work/0+1000000"]
    assert asked == [TaskRef("start", Coordinates())]


def test_what_leads_elsewhere_is_told():
    graph = graph_of(
        {
            "start": "switch a b",
            "a": "linear c",
            "b": "linear c",
            "c": "linear end",
            "end": "end",
        }
    )
    with pytest.raises(DataError, match="does not lead to the step 'c'"):
        Derivation(graph, lambda ref: Transition("linear", ("nowhere",))).launch("c", Coordinates())
