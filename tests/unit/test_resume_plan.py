"""The resume plan: what is taken over from an earlier run, what runs, and the reasons that people read."""

from __future__ import annotations

import json
import random

import pytest
from graph_builder import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flows import FLOWS
from random_world import SEEDS, World

from flowkit.exceptions import UsageError
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.transition import Transition
from flowkit.runtime.resume import OriginTask, Plan, plan

LINE = graph_of({"start": "linear a", "a": "linear b", "b": "linear end", "end": "end"})
FOREACH = graph_of(
    {
        "start": "foreach train",
        "train": "linear eval",
        "eval": "linear join",
        "join": "join linear end",
        "end": "end",
    }
)
GANG = graph_of({"start": "parallel train", "train": "linear join", "join": "join linear end", "end": "end"})
LOOP = graph_of({"start": "linear loop", "loop": "switch loop after", "after": "linear end", "end": "end"})


def tasks(graph, *names: str, width: int | None = None, **options) -> dict[tuple[str, str], OriginTask]:
    """Committed tasks ``step/task`` that went on as the graph says."""
    out = {}
    for name in names:
        step, task = name.split("/")
        node = graph[step]
        out[step, task] = OriginTask(Transition(node.kind, node.targets, width), **options)
    return out


def shown(made: Plan) -> list[str]:
    """The listing as lines of text."""
    return [
        f"{line.action} {','.join(map(str, line.tasks)) or line.step} {'?' if line.total is None else line.total}: "
        f"{line.reason}"
        for line in made.lines
    ]


def test_a_failed_step_runs_and_what_was_before_is_cloned():
    origin = tasks(LINE, "start/0", "a/0")
    made = plan(LINE, origin, run="LineFlow/7", states={("b", "0"): "failed"})
    assert made.clones == {"start": {"0": "LineFlow/7"}, "a": {"0": "LineFlow/7"}}
    assert made.transitions == {
        "start": {"0": Transition("linear", ("a",))},
        "a": {"0": Transition("linear", ("b",))},
    }
    assert made.cloned == 2
    assert not made.nothing_to_run
    assert shown(made) == [
        "clone start/0 1: succeeded in run 7",
        "clone a/0 1: succeeded in run 7",
        "run b/0 1: failed in run 7",
        "run end ?: downstream of b",
    ]


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        (None, "did not finish in run 7"),
        ({}, "never started in run 7"),
        ({("a", "0"): "failed"}, "failed in run 7"),
        ({("a", "0"): "cancelled"}, "cancelled in run 7"),
        ({("a", "0"): "running"}, "did not finish in run 7"),
        ({("a", "0"): "lost"}, "did not finish in run 7"),
        ({("a", "0"): "succeeded"}, "its result in run 7 is missing"),
    ],
)
def test_why_a_task_runs(states, reason):
    made = plan(LINE, tasks(LINE, "start/0"), run="LineFlow/7", states=states)
    assert shown(made)[1] == f"run a/0 1: {reason}"


def test_an_origin_without_any_commit_runs_whole():
    made = plan(LINE, {}, run="LineFlow/7")
    assert made.clones == {}
    assert shown(made)[0] == "run start/0 1: did not finish in run 7"


def test_a_complete_origin_leaves_nothing_to_run():
    made = plan(LINE, tasks(LINE, "start/0", "a/0", "b/0", "end/0"))
    assert made.nothing_to_run
    assert made.cloned == 4


def test_a_step_to_rerun_takes_everything_downstream_with_it():
    made = plan(LINE, tasks(LINE, "start/0", "a/0", "b/0", "end/0"), "a", run="LineFlow/7")
    assert made.clones == {"start": {"0": "LineFlow/7"}}
    assert shown(made) == [
        "clone start/0 1: succeeded in run 7",
        "run a/0 1: you asked for it",
        "run b/0 ?: downstream of a",
        "run end/0 ?: downstream of a",
    ]


def test_an_unknown_step_to_rerun():
    with pytest.raises(UsageError, match="no step 'strat'") as caught:
        plan(LINE, {}, "strat")
    assert caught.value.hint == "did you mean 'start'?"


def test_missing_foreach_children_run_alone():
    names = [f"train/{index}" for index in range(6) if index != 3]
    names += [f"eval/{index}" for index in range(6) if index not in (1, 3)]
    origin = {**tasks(FOREACH, "start/0", width=6), **tasks(FOREACH, *names)}
    made = plan(FOREACH, origin, run="F/1", states={("train", "3"): "failed", ("eval", "1"): "cancelled"})
    assert list(made.clones["train"]) == ["0", "1", "2", "4", "5"]
    assert list(made.clones["eval"]) == ["0", "2", "4", "5"]
    assert shown(made) == [
        "clone start/0 1: succeeded in run 1",
        "clone train/0+3,train/4+2 5: succeeded in run 1",
        "run train/3 1: failed in run 1",
        "clone eval/0,eval/2,eval/4+2 4: succeeded in run 1",
        "run eval/1 1: cancelled in run 1",
        "run eval ?: downstream of train",
        "run join ?: downstream of eval",
        "run end ?: downstream of eval",
    ]


def test_children_of_a_foreach_that_reruns_are_not_cloned():
    names = [f"train/{index}" for index in range(3)]
    made = plan(FOREACH, tasks(FOREACH, *names), run="F/1", states={("start", "0"): "lost"})
    assert made.clones == {}
    assert shown(made) == [
        "run start/0 1: did not finish in run 1",
        "run train/0+3 ?: downstream of start",
        "run eval ?: downstream of start",
        "run join ?: downstream of start",
        "run end ?: downstream of start",
    ]


def test_a_join_without_all_its_inputs_is_not_cloned():
    origin = {
        **tasks(FOREACH, "start/0", width=2),
        **tasks(FOREACH, "train/0", "train/1", "eval/0", "join/0", "end/0"),
    }
    made = plan(FOREACH, origin, run="F/1")
    assert set(made.clones) == {"start", "train", "eval"}
    assert "run join/0 ?: downstream of eval" in shown(made)


def test_a_gang_is_cloned_whole_or_not_at_all():
    start = tasks(GANG, "start/0", width=3)
    whole = {**start, **tasks(GANG, "train/0", "train/1", "train/2", gang=3)}
    made = plan(GANG, whole, run="G/1")
    assert list(made.clones["train"]) == ["0", "1", "2"]
    assert list(made.transitions["train"]) == ["0"]
    assert "clone train/0+3 3: succeeded in run 1" in shown(made)
    for missing in ("0", "1", "2"):
        part = {key: entry for key, entry in whole.items() if key != ("train", missing)}
        made = plan(GANG, part, run="G/1")
        assert "train" not in made.clones
        reason = "did not finish in run 1" if missing == "0" else "its gang is not complete"
        assert f"run train/0+3 3: {reason}" in shown(made)
        assert not any(line.action == "drop" for line in made.lines)
    smaller = {**start, **tasks(GANG, "train/0", "train/1", gang=2)}
    assert "run train/0+3 3: its gang had 2 nodes, now it has 3" in shown(plan(GANG, smaller, run="G/1"))


def test_turns_of_a_loop_are_cloned_up_to_the_first_missing_one():
    again, out = Transition("switch", ("loop",)), Transition("switch", ("after",))
    origin = tasks(LOOP, "start/0")
    origin |= {("loop", f"0-{turn}"): OriginTask(again) for turn in (0, 1, 3)}
    origin["loop", "0-4"] = OriginTask(out)
    made = plan(LOOP, origin, run="L/1")
    assert list(made.clones["loop"]) == ["0-0", "0-1"]
    assert shown(made)[1:3] == [
        "clone loop/0-0,loop/0-1 2: succeeded in run 1",
        "run loop/0-2 1: did not finish in run 1",
    ]


def test_a_chain_of_resumes_names_where_each_task_was_really_written():
    origin = {**tasks(LINE, "start/0", origin="LineFlow/3"), **tasks(LINE, "a/0")}
    made = plan(LINE, origin, run="LineFlow/7")
    assert made.clones == {"start": {"0": "LineFlow/3"}, "a": {"0": "LineFlow/7"}}


def test_a_graph_that_changed_reruns_what_led_elsewhere():
    before = graph_of({"start": "linear a", "a": "linear old", "old": "linear end", "end": "end"})
    origin = tasks(before, "start/0", "a/0", "old/0", "end/0")
    made = plan(LINE, origin, run="LineFlow/7")
    assert made.clones == {"start": {"0": "LineFlow/7"}}
    assert shown(made) == [
        "clone start/0 1: succeeded in run 7",
        "run a/0 1: the flow has changed: it went on to old, the graph says b",
        "run b ?: downstream of a",
        "run end/0 ?: downstream of a",
        "drop old 1: the flow has no step 'old' any more",
    ]


def test_a_step_whose_nesting_changed():
    before = graph_of({"start": "foreach a", "a": "linear j", "j": "join linear end", "end": "end"})
    now = graph_of({"start": "linear a", "a": "linear j", "j": "linear end", "end": "end"})
    origin = {**tasks(before, "start/0", width=2), **tasks(before, "a/0", "a/1", "j/0")}
    made = plan(now, origin, run="F/1")
    assert made.clones == {}
    assert shown(made)[0] == "run start/0 1: the flow has changed: it went on by 'foreach', the graph says 'linear'"
    assert shown(made)[-1] == "drop a 1: its place in the flow has changed"


def test_results_that_nothing_leads_to_are_dropped():
    origin = {**tasks(FOREACH, "start/0", width=1), **tasks(FOREACH, "train/0", "eval/0", "join/0", "end/0")}
    origin |= tasks(FOREACH, "train/7")
    made = plan(FOREACH, origin, run="F/1")
    assert made.nothing_to_run
    assert "drop train/7 1: nothing in the flow leads there any more" in shown(made)


def test_changed_code_of_cloned_steps_is_told():
    origin = {**tasks(LINE, "start/0", code="old"), **tasks(LINE, "a/0", code="same"), **tasks(LINE, "b/0")}
    now = {"start": "new", "a": "same", "b": "x", "end": "new"}
    assert plan(LINE, origin, code=now).changed == ("start",)
    assert plan(LINE, origin, "start", code=now).changed == ()
    assert plan(LINE, origin).changed == ()


def test_the_plan_as_json():
    made = plan(LINE, tasks(LINE, "start/0"), "b", run="LineFlow/7", states={})
    data = json.loads(json.dumps(made.to_json()))
    assert data["origin"] == "LineFlow/7"
    assert (data["rerun"], data["cloned"], data["changed"]) == ("b", 1, [])
    assert data["plan"][0] == {
        "step": "start",
        "action": "clone",
        "tasks": ["start/0"],
        "total": 1,
        "reason": "succeeded in run 7",
    }


# -- properties ----------------------------------------------------------------------------------------------------


def commits(world: World) -> dict[tuple[str, str], OriginTask]:
    """What a run left behind, a gang with all its nodes."""
    out = {}
    for ref in world.committed:
        gang = world.launched[ref][0].gang
        entry = OriginTask(world.flow.transition(ref), gang)
        for node in range(gang or 1):
            coordinates = ref.coordinates
            if gang:
                coordinates = Coordinates((*coordinates.indices[:-1], node))
            out[ref.step, str(coordinates)] = entry
    return out


def cloned_refs(flow, made: Plan) -> set[TaskRef]:
    return {
        TaskRef(step, Coordinates.parse(task, flow.graph[step].depth))
        for step, found in made.transitions.items()
        for task in found
    }


@settings(max_examples=150, deadline=None)
@given(FLOWS, SEEDS, st.integers(1, 60), st.sampled_from([0.0, 0.2]), st.sampled_from(["finish", "keep-going"]))
def test_a_resume_repeats_nothing_and_reaches_the_end(flow, seed, when, failing, policy):
    world = World(flow, seed, failing=failing, on_failure=policy)
    world.run(stop_after=when)
    made = plan(flow.graph, commits(world), run="F/1")
    assert cloned_refs(flow, made) == world.committed
    assert made.nothing_to_run == (world.committed == set(world.expected))
    assert not any(line.action == "drop" for line in made.lines)
    again = World(flow, seed + 1, clones=made.transitions)
    assert again.run() == "succeeded"
    assert set(again.launched) == set(world.expected) - world.committed
    first = {
        ref for line in made.lines if line.action == "run" and line.total for span in line.tasks for ref in span.refs()
    }
    assert {ref for ref in first if ref in world.expected} <= set(again.launched)


@settings(max_examples=150, deadline=None)
@given(FLOWS, SEEDS, st.data())
def test_a_step_to_rerun_runs_with_all_that_follows_and_nothing_else(flow, seed, data):
    world = World(flow, seed)
    world.run()
    step = data.draw(st.sampled_from(list(flow.graph.nodes)))
    made = plan(flow.graph, commits(world), step, run="F/1")
    expected = {ref for ref in world.expected if ref.step not in flow.graph.downstream(step)}
    assert cloned_refs(flow, made) == expected
    again = World(flow, seed + 1, clones=made.transitions)
    assert again.run() == "succeeded"
    assert set(again.launched) == set(world.expected) - expected


@settings(max_examples=150, deadline=None)
@given(FLOWS, SEEDS, st.integers(0, 2**32))
def test_a_task_is_cloned_only_if_everything_before_it_is(flow, seed, holes):
    world = World(flow, seed)
    world.run()
    chance = random.Random(holes)
    origin = {key: entry for key, entry in commits(world).items() if chance.random() < 0.8}
    made = plan(flow.graph, origin, run="F/1")
    cloned = cloned_refs(flow, made)
    for ref in cloned:
        family = {*world.expected[ref], flow.openers.get(ref)} - {None}
        assert all(parent in cloned or world.node_zero(parent) in cloned for parent in family)
    again = World(flow, seed + 1, clones=made.transitions)
    assert again.run() == "succeeded"
    assert set(again.launched) | cloned == set(world.expected)
    assert not set(again.launched) & cloned
