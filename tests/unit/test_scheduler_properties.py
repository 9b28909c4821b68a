"""Whatever the flow, the order of events and what goes wrong among them: the scheduler reaches the same end."""

from __future__ import annotations

import random

from graph_builder import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from random_flows import FLOWS, RandomFlow

from flowkit.decorators.contract import Attempts
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure
from flowkit.model.transition import Transition
from flowkit.runtime.scheduler import Scheduler

SEEDS = st.integers(0, 2**32)
MANY = settings(max_examples=150, deadline=None)
FAILURES = [
    Failure("error", "ValueError", "ValueError", ("ValueError", "Exception")),
    Failure("error", "KeyError", "KeyError", ("KeyError", "LookupError", "Exception")),
    Failure("killed", "killed"),
    Failure("oom", "out of memory"),
    Failure("timeout", "too slow", "flowkit.exceptions.TimeoutException"),
    Failure("timeout", "too slow"),
    Failure("error", "wrong for ever", "InvalidNext", retry=False),
]


class World:
    """Carries launches out in a random order, and tells the scheduler the truth, twice, late, and lies.

    Every launch is checked: it is one that must run, its inputs are committed, it was not launched before (but for
    the next attempt after a failure), and it sees its parents in the right order.
    """

    def __init__(self, flow: RandomFlow, seed: int, *, noise: float = 0.0, failing: float = 0.0, **options) -> None:
        self.flow = flow
        self.expected = flow.expected()
        self.chance = random.Random(seed)
        self.noise = noise
        self.failing = failing
        self.attempts: dict[str, Attempts] = options.pop("attempts", {})
        self.cloned = {
            TaskRef(step, Coordinates.parse(task, flow.graph[step].depth))
            for step, tasks in (options.get("clones") or {}).items()
            for task in tasks
        }
        self.scheduler = Scheduler(flow.graph, self.attempts, **options)
        self.running: list[Launch] = []
        self.given_up: list[Launch] = []
        self.launched: dict[TaskRef, list[Launch]] = {}
        self.committed: set[TaskRef] = set(self.cloned)
        self.failed: set[TaskRef] = set()
        self.promised: dict[TaskRef, tuple[int, float]] = {}
        self.superseded: set[TaskRef] = set()
        self.now = 0.0
        self.steps = 0
        self.first_failure: int | None = None
        assert self.scheduler.start() == []

    def run(self, stop_after: int | None = None) -> str:
        """Play to the end, or cancel after so many turns; return the state."""
        while self.scheduler.state == "running":
            self.steps += 1
            assert self.steps < 20_000, "it does not end"
            if stop_after == self.steps:
                self.scheduler.cancel()
            self.turn()
            assert self.scheduler.in_flight == len(self.running)
            assert self.scheduler.should_cancel is (
                self.scheduler._on_failure == "fail-fast" and bool(self.scheduler.failures)
            )
        assert not self.running
        return self.scheduler.state

    def turn(self) -> None:
        roll = self.chance.random()
        if roll < self.noise:
            self.disturb()
        elif roll < 0.5 or not self.running:
            self.take()
        else:
            self.end(self.chance.choice(self.running))

    def take(self) -> None:
        wakeup = self.scheduler.next_wakeup(self.now)
        if wakeup is not None and not self.running and not self.scheduler.waiting("local"):
            self.now = wakeup
        free = self.chance.choice([1, 2, 5, None])
        launches = self.scheduler.take("local", free, self.now)
        if free is not None and not (len(launches) == 1 and launches[0].gang > free):
            assert sum(launch.gang or 1 for launch in launches) <= free
        for launch in launches:
            self.check(launch)
            self.running.append(launch)
            self.launched.setdefault(launch.ref, []).append(launch)

    def check(self, launch: Launch) -> None:
        ref = launch.ref
        assert ref not in self.committed, "it was finished already"
        assert ref not in self.failed, "it had failed for good"
        before = self.launched.get(ref, [])
        assert launch.attempt == len(before)
        if before:
            number, at = self.promised.pop(ref)
            assert launch.attempt == number
            assert self.now >= at
            assert launch[:4] == before[0][:4]
        policy = self.attempts.get(ref.step, Attempts())
        user = [item for item in (*before, launch) if item.kind == "user"]
        assert len(user) <= policy.retries + 1
        assert len(before) + 1 - len(user) <= policy.fallback
        parents = list(launch.parent_refs())
        assert parents == self.expected[ref]
        assert launch.split == self.flow.openers.get(ref)
        for parent in parents:
            assert parent in self.committed or self.node_zero(parent) in self.committed

    def node_zero(self, ref: TaskRef) -> TaskRef:
        return TaskRef(ref.step, Coordinates((*ref.coordinates.indices[:-1], 0)))

    def end(self, launch: Launch) -> None:
        ref = launch.ref
        self.running.remove(launch)
        if self.chance.random() < self.failing:
            decision = self.scheduler.failed(ref, launch.attempt, self.chance.choice(FAILURES), self.now)
            if ref in self.superseded:
                assert decision.action == "ignored"
                return
            self.given_up.append(launch)
            if decision.action in ("retry", "fallback"):
                assert decision.next_attempt is not None
                assert decision.at is not None
                assert decision.at >= self.now
                self.promised[ref] = (decision.next_attempt, decision.at)
            else:
                assert decision.action in ("failed", "cancelled")
                self.failed.add(ref)
                self.first_failure = self.first_failure or self.steps
            return
        notices = self.scheduler.finished(ref, launch.attempt, self.flow.transition(ref), self.now)
        assert [notice.kind for notice in notices] == (["duplicate"] if ref in self.superseded else [])
        self.committed.add(ref)

    def disturb(self) -> None:
        """Tell something that is old, wrong or impossible."""
        kind = self.chance.choice(["twice", "unknown", "future", "late", "backwards"])
        if kind == "twice" and self.launched:
            ref = self.chance.choice(list(self.launched))
            if ref in self.committed and ref not in self.superseded:
                attempt = self.chance.randrange(3)
                (notice,) = self.scheduler.finished(ref, attempt, self.flow.transition(ref), self.now)
                assert notice.kind == "duplicate"
                assert self.scheduler.failed(ref, attempt, FAILURES[0], self.now).action == "ignored"
        elif kind == "unknown":
            ref = self.chance.choice(list(self.expected))
            ref = ref._replace(coordinates=Coordinates((*ref.coordinates.indices, 77)))
            (notice,) = self.scheduler.finished(ref, 0, Transition("end"), self.now)
            assert notice.failure is None
            assert self.scheduler.failed(ref, 0, FAILURES[0], self.now).action == "ignored"
        elif kind == "future" and self.running:
            launch = self.chance.choice(self.running)
            (notice,) = self.scheduler.finished(launch.ref, launch.attempt + 1, Transition("end"), self.now)
            assert notice.kind == "contradiction"
            assert self.scheduler.failed(launch.ref, launch.attempt + 1, FAILURES[0], self.now).action == "ignored"
        elif kind == "late" and self.given_up:
            self.finish_late(self.chance.choice(self.given_up))
        elif kind == "backwards":
            assert self.scheduler.take("elsewhere", None, -1e9) == []

    def finish_late(self, launch: Launch) -> None:
        """An attempt that was given up commits after all."""
        ref = launch.ref
        if ref in self.committed:
            return
        (notice,) = self.scheduler.finished(ref, launch.attempt, self.flow.transition(ref), self.now)
        assert notice.kind == "late"
        if ref in self.failed:
            return
        self.committed.add(ref)
        self.promised.pop(ref, None)
        if any(item.ref == ref for item in self.running):
            self.superseded.add(ref)


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
