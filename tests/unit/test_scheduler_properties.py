"""Whatever the flow, the order of events and what goes wrong among them: the scheduler reaches the same end."""

from __future__ import annotations

import random

from graph_builder import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flows import FLOWS
from random_world import SEEDS, World

from flowkit.decorators.contract import Attempts
from flowkit.model.coordinates import TaskRef
from flowkit.model.launch import Launch
from flowkit.model.transition import Transition
from flowkit.runtime.scheduler import Scheduler

MANY = settings(max_examples=150, deadline=None)


def outcome(world: World) -> dict[TaskRef, tuple[list[TaskRef], TaskRef | None, int]]:
    return {ref: (list(items[0].parent_refs()), items[0].split, items[0].gang) for ref, items in world.launched.items()}


def depends_on(world: World, bad: set[TaskRef]) -> set[TaskRef]:
    """Return the tasks that have one of `bad` among their ancestors (expected is in topological order)."""
    tainted: set[TaskRef] = set()
    for ref, parents in world.expected.items():
        family = {
            world.flow.openers.get(ref),
            *parents,
            *(world.node_zero(parent) for parent in parents if parent not in world.expected),
        }
        if family & bad or family & tainted:
            tainted.add(ref)
    return tainted


@MANY
@given(FLOWS, SEEDS, SEEDS)
def test_every_order_of_events_reaches_the_same_end(flow, one, two):
    first = World(flow, one)
    second = World(flow, two, noise=0.3)
    assert first.run() == second.run() == "succeeded"
    assert set(first.launched) == set(second.launched) == set(first.expected)
    assert outcome(first) == outcome(second)
    assert all(len(items) == 1 for items in first.launched.values())
    counts = first.scheduler.counts()
    assert sum(row.succeeded for row in counts.values()) == sum(items[0].gang or 1 for items in first.launched.values())
    assert not any(row.pending or row.running or row.failed or row.cancelled for row in counts.values())
    assert first.scheduler.awaiting() == []


ATTEMPTS = st.builds(
    Attempts,
    retries=st.integers(0, 3),
    delay=st.sampled_from([0.0, 1.0, 60.0]),
    backoff=st.sampled_from([1.0, 2.0, 1e200]),
    max_delay=st.just(100.0),
    on=st.sampled_from([(), ("LookupError", "killed"), ("oom",)]),
    fallback=st.booleans(),
)


@MANY
@given(FLOWS, SEEDS, ATTEMPTS, st.sampled_from([0.0, 0.3]))
def test_keep_going_runs_exactly_what_does_not_depend_on_a_failure(flow, seed, attempts, noise):
    policies = dict.fromkeys(flow.graph.nodes, attempts)
    world = World(flow, seed, noise=noise, failing=0.2, attempts=policies, on_failure="keep-going")
    state = world.run()
    assert state == ("failed" if world.failed else "succeeded")
    assert set(world.scheduler.failures) == world.failed
    assert set(world.launched) == set(world.expected) - depends_on(world, world.failed)
    assert world.committed == set(world.launched) - world.failed


@MANY
@given(FLOWS, SEEDS, ATTEMPTS, st.sampled_from(["finish", "fail-fast"]))
def test_nothing_starts_after_the_first_failure(flow, seed, attempts, policy):
    policies = dict.fromkeys(flow.graph.nodes, attempts)
    world = World(flow, seed, failing=0.2, attempts=policies, on_failure=policy)
    take = world.scheduler.take

    def watched(executor, slots, now):
        launches = take(executor, slots, now)
        assert not (launches and world.first_failure), "it started something after a failure"
        return launches

    world.scheduler.take = watched
    assert world.run() == ("failed" if world.failed else "succeeded")
    assert world.committed | world.failed | set(world.promised) == set(world.launched)


@MANY
@given(FLOWS, SEEDS, st.integers(1, 30), st.sampled_from([0.0, 0.2]))
def test_a_cancelled_run_settles(flow, seed, when, failing):
    world = World(flow, seed, failing=failing)
    state = world.run(stop_after=when)
    if world.scheduler.stopped and not world.scheduler.failures:
        assert state in ("cancelled", "succeeded")
    assert (state == "succeeded") <= (world.committed == set(world.expected))
    assert world.scheduler.take("local", None, 1e12) == []


JOINED = graph_of({"start": "foreach a", "a": "linear b", "b": "linear j", "j": "join linear end", "end": "end"})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), SEEDS)
def test_a_join_sees_its_inputs_in_index_order_whatever_the_order_of_ends(width, seed):
    chance = random.Random(seed)
    scheduler = Scheduler(JOINED, {})
    scheduler.start()
    running: list[Launch] = []
    joins = []
    while scheduler.state == "running":
        running += scheduler.take("local", chance.choice([1, 7, None]), 0.0)
        launch = running.pop(chance.randrange(len(running)))
        joins += [launch] if launch.step == "j" else []
        node = JOINED[launch.step]
        scheduler.finished(launch.ref, 0, Transition(node.kind, node.targets, width), 0.0)
    (join,) = joins
    assert [ref.coordinates.indices for ref in join.parent_refs()] == [(index,) for index in range(width)]
    assert len(join.parents) <= 1
