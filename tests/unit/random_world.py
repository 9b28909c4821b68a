"""A world that carries launches out in random order and disturbs the scheduler, for the property tests."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from random_flows import RandomFlow

from flowkit.decorators.contract import Attempts
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure
from flowkit.model.transition import Transition
from flowkit.runtime.scheduler import Scheduler

SEEDS = st.integers(0, 2**32)
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
