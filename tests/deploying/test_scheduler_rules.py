"""What the scheduler in the box decides, by clocks that the tests set: cron, time zones, catching up, events, ends."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.deployer.local.cron import CronTimes
from flowkit.deployer.local.ends import Ended, horizon, look, put_back
from flowkit.deployer.local.firings import (
    MOST_CAUGHT_UP,
    MOST_DECIDED,
    TRIES,
    FlowWatch,
    Happened,
    Memory,
    Plan,
    begin,
    decide,
    event_run,
    is_run_of,
    plan_of,
    scheduled_run,
    take,
    triggered_run,
)
from flowkit.deployer.local.starts import PATIENCE, Failure, began, given_up, over, ready
from flowkit.deployer.target import DeploymentRecord, EventPlan, finish_event
from flowkit.exceptions import UsageError
from flowkit.model.pathspec import check_part


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


def shown(moments: Any) -> list[str]:
    return [datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M") for when in moments]


def first(cron: str, zone: str | None, since: str, count: int) -> list[str]:
    return shown(islice(CronTimes(cron, zone).after(at(since)), count))


# -- cron ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "since", "due"),
    [
        ("0 6 ? * MON-FRI *", "2026-11-20T12:00", ["2026-11-23T06:00", "2026-11-24T06:00"]),
        ("0 0 L * ? *", "2028-01-31T00:00", ["2028-02-29T00:00", "2028-03-31T00:00"]),
        ("0 0 L-3 2 ? 2027-2028", "2026-01-01T00:00", ["2027-02-25T00:00", "2028-02-26T00:00"]),
        ("0 0 LW * ? *", "2026-01-01T00:00", ["2026-01-30T00:00", "2026-02-27T00:00"]),
        ("0 0 1W,15W * ? *", "2026-02-01T00:00", ["2026-02-02T00:00", "2026-02-16T00:00", "2026-03-02T00:00"]),
        ("0 0 31W * ? *", "2026-10-01T00:00", ["2026-10-30T00:00", "2026-12-31T00:00"]),
        ("0 0 ? * MON#2,FRIL *", "2026-01-01T00:00", ["2026-01-12T00:00", "2026-01-30T00:00", "2026-02-09T00:00"]),
        ("0 0 ? * L *", "2026-11-20T00:00", ["2026-11-21T00:00", "2026-11-28T00:00"]),
        ("0 0 13 * FRI", "2026-11-10T00:00", ["2026-11-13T00:00", "2026-11-20T00:00"]),
        ("30 */8 * * FRI-SUN", "2026-11-22T12:00", ["2026-11-22T16:30", "2026-11-27T00:30"]),
        ("0 0 29 2 ? *", "2096-03-01T00:00", ["2104-02-29T00:00"]),
        ("0 0 1 1 ? 2020", "2026-01-01T00:00", []),
        ("0 0 31 6 ? *", "2026-01-01T00:00", []),
    ],
)
def test_a_schedule_is_due_when_it_says(cron: str, since: str, due: list[str]) -> None:
    assert first(cron, None, since, len(due) or 1) == due


@pytest.mark.parametrize(
    ("cron", "zone", "since", "due"),
    [
        # A time that does not exist is due when the gap ends; one that there is twice is due the first time.
        ("30 2 * * *", "Europe/Oslo", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("30 2 * * *", "Europe/Oslo", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        # Two of them that the same gap swallows are one.
        ("0,30 2,3 * * *", "Europe/Oslo", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-29T01:30"]),
        # What goes by minutes or hours goes by the time that passes.
        (
            "*/30 * * * *",
            "America/New_York",
            "2026-11-01T05:00",
            ["2026-11-01T05:30", "2026-11-01T06:00", "2026-11-01T06:30", "2026-11-01T07:00"],
        ),
        ("0 * * * *", "Europe/Oslo", "2026-03-29T00:00", ["2026-03-29T01:00", "2026-03-29T02:00"]),
        ("0 0 * * *", "Asia/Kathmandu", "2026-11-21T00:00", ["2026-11-21T18:15"]),
        # Here midnight itself is what does not exist.
        ("0 0 * * *", "America/Asuncion", "2024-10-05T12:00", ["2024-10-06T04:00", "2024-10-07T03:00"]),
    ],
)
def test_where_clocks_are_changed_nothing_is_lost_or_doubled(cron: str, zone: str, since: str, due: list[str]) -> None:
    assert first(cron, zone, since, len(due)) == due
    # Looked at from right after a moment, the next one is the next one.
    for one, other in pairwise(due):
        assert first(cron, zone, one, 1) == [other]


def test_the_latest_moment_is_found_without_going_through_all() -> None:
    assert CronTimes("* * * * *", "Europe/Oslo").latest(0.0, at("2026-11-21T10:00")) == at("2026-11-21T10:00")
    assert CronTimes("0 0 29 2 *").latest(0.0, at("2026-11-21T10:00")) == at("2024-02-29T00:00")
    assert CronTimes("0 0 29 2 *").latest(at("2024-02-29T00:00"), at("2026-11-21T10:00")) is None
    with pytest.raises(UsageError, match="time zone"):
        CronTimes("* * * * *", "Mars/Olympus")
    with pytest.raises(UsageError, match="hour"):
        CronTimes("0 25 * * *")


# -- schedules -------------------------------------------------------------------------------------------------------

NIGHTLY = Plan("nightly", "Train", created=at("2026-11-21T12:00"), schedule="0 2 * * *")


def started(plan: Plan) -> Memory:
    return begin(plan, None, "datastore", lambda: 7, plan.created)


def decided(memory: Memory) -> list[str]:
    return [each.run for each in memory.decided]


def test_a_schedule_counts_from_when_it_was_deployed_and_fires_once() -> None:
    memory = started(NIGHTLY)
    assert (memory.looked, memory.read) == (NIGHTLY.created, 7)
    assert decide(NIGHTLY, memory, at("2026-11-22T01:59")).memory.decided == ()
    due = decide(NIGHTLY, memory, at("2026-11-22T02:00")).memory
    assert decided(due) == ["local-nightly-20261122T020000Z"]
    assert decided(decide(NIGHTLY, due, at("2026-11-22T02:00")).memory) == decided(due)
    # The clock was set back: what was looked at is not looked at again.
    assert decide(NIGHTLY, due, at("2026-11-21T23:00")).memory == due
    # What is remembered survives as JSON.
    assert Memory.from_json(json.loads(json.dumps(due.to_json()))) == due
    # Deployed again with the same schedule, it goes on; another schedule counts from now on.
    again = NIGHTLY._replace(created=at("2026-11-25T12:00"))
    assert begin(again, due, "datastore", lambda: 9, again.created) == due
    other = begin(again._replace(schedule="0 3 * * *"), due, "service", lambda: 9, again.created)
    assert (other.looked, other.read, other.decided) == (again.created, 9, due.decided)


@pytest.mark.parametrize(
    ("catch_up", "runs", "words"),
    [
        ("none", [], "no scheduler ran"),
        ("last", ["local-nightly-20261125T020000Z"], "caught up"),
        ("all", [f"local-nightly-202611{day}T020000Z" for day in (22, 23, 24, 25)], "4 firings"),
    ],
)
def test_what_becomes_of_firings_that_were_missed(catch_up: Any, runs: list[str], words: str) -> None:
    plan = NIGHTLY._replace(catch_up=catch_up)
    decision = decide(plan, started(plan), at("2026-11-25T12:00"))
    assert decided(decision.memory) == runs
    assert words in "\n".join(decision.notes)
    # One that is due now is no missed one.
    decision = decide(plan, started(plan), at("2026-11-22T02:00"))
    assert (decided(decision.memory), decision.notes) == (["local-nightly-20261122T020000Z"], ())


def test_catching_up_with_all_of_a_year_of_minutes_is_bounded() -> None:
    plan = NIGHTLY._replace(schedule="* * * * *", catch_up="all", created=at("2026-11-01T00:00"))
    found = decide(plan, started(plan), at("2026-11-08T00:00")).memory.decided
    assert len(found) == MOST_CAUGHT_UP
    assert found[-1].when == at("2026-11-08T00:00")


def test_forbid_leaves_scheduled_firings_out_and_catches_up_one_by_one() -> None:
    plan = NIGHTLY._replace(concurrency="forbid")
    busy = began(decide(plan, started(plan), at("2026-11-22T02:00")).memory, {"local-nightly-20261122T020000Z"}, 1.0)
    decision = decide(plan, busy, at("2026-11-23T02:00"))
    assert decided(decision.memory) == []
    assert "local-nightly-20261122T020000Z goes on" in decision.notes[0]
    every = plan._replace(catch_up="all")
    memory, seen = started(every), []
    for _ in range(9):
        memory = decide(every, memory, at("2026-11-25T12:00")).memory
        assert len(memory.decided) <= 1
        seen += decided(memory)
        memory = over(began(memory, decided(memory), 1.0), memory.active)
    assert list(dict.fromkeys(seen)) == [f"local-nightly-202611{day}T020000Z" for day in (22, 23, 24, 25)]


def test_replace_starts_the_new_one_when_the_old_one_is_over() -> None:
    plan = NIGHTLY._replace(concurrency="replace")
    now = at("2026-11-22T02:00")
    memory, chosen = ready(decide(plan, started(plan), now).memory, now)
    assert [each.run for each in chosen] == ["local-nightly-20261122T020000Z"]
    memory = began(memory, decided(memory), now)
    now = at("2026-11-23T02:00")
    memory = decide(plan, memory, now).memory
    assert memory.decided[0].after == ("local-nightly-20261122T020000Z",)
    assert ready(memory, now)[1] == []
    # It does not wait for ever for one that does not stop.
    assert len(ready(memory, now + PATIENCE)[1]) == 1
    # One that has not begun is replaced without a trace.
    later = at("2026-11-24T02:00")
    decision = decide(plan, memory, later)
    assert decided(decision.memory) == ["local-nightly-20261124T020000Z"]
    assert "is replaced" in decision.notes[0]
    assert len(ready(over(decision.memory, ["local-nightly-20261122T020000Z"]), later)[1]) == 1


def test_a_run_that_does_not_begin_is_tried_again_and_then_given_up() -> None:
    now = at("2026-11-22T02:00")
    memory = decide(NIGHTLY, started(NIGHTLY), now).memory
    run = memory.decided[0].run
    starts = 0
    for second in range(300):
        memory, chosen = ready(memory, now + second)
        starts += len(chosen)
        memory, notes = given_up(memory, {run: Failure(starts, "no such module")}, now + second)
        if notes:
            break
    assert starts == TRIES
    assert memory.decided == ()
    assert memory.ended[0][:2] == (run, f"it did not begin, started {TRIES} times: no such module")
    # There may be no room for it.
    assert ready(decide(NIGHTLY, started(NIGHTLY), now).memory, now, (), 0)[1] == []
    # While its process is alive it is not started again, however long it takes; a refusal is final at once.
    memory, _ = ready(decide(NIGHTLY, started(NIGHTLY), now).memory, now)
    assert ready(memory, now + 500, {run})[1] == []
    assert given_up(memory, {run: Failure(1, "no such option", True)}, now).memory.ended[0][1] == "no such option"


# -- events ----------------------------------------------------------------------------------------------------------


def event(name: str, number: int, when: float = 0.0, **data: Any) -> Happened:
    return Happened(name, f"{name}-{number}", when or at("2026-11-21T13:00") + number, "event", data)


TABLES = NIGHTLY._replace(schedule=None, events=(EventPlan("data", (("table", "table_name"),)),))
BOTH = NIGHTLY._replace(schedule=None, events=(EventPlan("a"), EventPlan("b", (("x", "y"),))))


def test_each_event_starts_a_run_with_its_fields() -> None:
    events = [event("data", 1, table_name="sales", rows=3), event("else", 1), event("data", 2)]
    (memory, _), count = take(TABLES, started(TABLES), events, 1.0)
    assert count == 3
    assert [dict(each.parameters) for each in memory.decided] == [{"table": '"sales"'}, {}]
    assert memory.decided[0].events == (("data", "data-1", events[0].when, "event"),)
    assert memory.decided[0].run == event_run("nightly", events[:1])
    # The same event once more is the same run.
    assert take(TABLES, memory, events[:1], 2.0)[0].memory == memory


def test_all_events_together_start_a_run_the_newest_of_each_counts() -> None:
    memory = started(BOTH)
    (memory, _), _ = take(BOTH, memory, [event("a", 1), event("a", 2)], 1.0)
    assert memory.decided == ()
    assert list(memory.waiting) == ["a"]
    memory = Memory.from_json(json.loads(json.dumps(memory.to_json())))
    (memory, _), _ = take(BOTH, memory, [event("b", 3, y=[1]), event("b", 4)], 1.0)
    assert [[each[1] for each in firing.events] for firing in memory.decided] == [["a-2", "b-3"]]
    assert memory.decided[0].parameters == {"x": "[1]"}
    assert list(memory.waiting) == ["b"]
    # What is not waited for any more after a deployment is forgotten.
    assert begin(TABLES, memory, "datastore", lambda: 0, 1.0).waiting == {}


def test_a_reset_forgets_what_was_waited_for() -> None:
    plan = BOTH._replace(reset=("0 0 * * *", "Europe/Oslo"))
    early, late = at("2026-11-21T22:59"), at("2026-11-21T23:01")
    (memory, _), _ = take(plan, started(plan), [event("a", 1, early), event("b", 1, late)], late)
    assert (memory.decided, list(memory.waiting)) == ((), ["b"])
    (memory, _), _ = take(plan, memory, [event("a", 2, late + 60)], late + 60)
    assert len(memory.decided) == 1


def test_forbid_lets_events_wait_and_loses_none() -> None:
    plan = TABLES._replace(concurrency="forbid")
    (memory, _), count = take(plan, started(plan), [event("data", 1), event("data", 2)], 1.0)
    assert (len(memory.decided), count) == (1, 1)
    memory = over(began(memory, decided(memory), 1.0), decided(memory))
    assert take(plan, memory, [event("data", 2)], 1.0)[1] == 1
    # A flood waits where it is kept, too.
    (memory, _), count = take(TABLES, started(TABLES), [event("data", number) for number in range(500)], 1.0)
    assert count == len(memory.decided) == MOST_DECIDED


def test_what_a_record_says_becomes_a_plan_and_nonsense_becomes_a_default() -> None:
    record = DeploymentRecord("local", "n", "F", schedule="0 0 * * *", events=(EventPlan("a"),))
    odd = {"catch_up": "sometimes", "workflow_timeout": "soon", "event_options": {"reset_at": {"cron": 3}}}
    plan = plan_of(replace(record, details=odd, concurrency="never"))
    assert (plan.catch_up, plan.timeout, plan.reset, plan.concurrency) == ("last", None, None, "allow")
    good = {"catch_up": "all", "workflow_timeout": 60, "event_options": {"reset_at": {"cron": "0 0 * * *"}}}
    plan = plan_of(replace(record, details=good, concurrency="forbid"))
    assert (plan.catch_up, plan.timeout, plan.reset) == ("all", 60.0, ("0 0 * * *", None))


# -- the ends of runs of other flows -----------------------------------------------------------------------------------

CREATED = at("2026-11-21T12:00")
END = EventPlan(finish_event("Prepare"), (), "Prepare")
AFTER = NIGHTLY._replace(schedule=None, events=(END,))


def ended(run: str, minutes: float, state: str = "succeeded", finished: float | None = None, **more: Any) -> Ended:
    created = CREATED + 60 * minutes
    return Ended(run, created, state, CREATED + 60 * (finished if finished is not None else minutes + 1), **more)


def test_every_run_that_succeeds_is_noticed_once_whatever_the_order() -> None:
    watch = FlowWatch(CREATED)
    # One that began before the deployment and ended after it counts, one that had ended does not.
    watch, found = look(AFTER, END, watch, [ended("1", -30, finished=5), ended("2", -90, finished=-1)], CREATED + 360)
    assert [each.id for each in found] == ["Prepare/1"]
    watch, found = look(AFTER, END, watch, [ended("4", 2, "running"), ended("1", -30, finished=5)], CREATED + 400)
    assert (found, watch.open) == ([], ("4",))
    # Run 3 turns up later than run 4, which was made later; run 5 has failed.
    assert horizon(watch) < CREATED + 60
    news = [ended("5", 3, "failed"), ended("4", 2), ended("3", 1, finished=9)]
    watch, found = look(AFTER, END, watch, news, CREATED + 700)
    assert [each.id for each in found] == ["Prepare/4", "Prepare/3"]
    assert look(AFTER, END, watch, news, CREATED + 800)[1] == []
    # There was no room for one: it is noticed again.
    assert [each.id for each in look(AFTER, END, put_back(watch, ["3"]), news, CREATED + 900)[1]] == ["Prepare/3"]


def test_the_end_of_a_projects_flow_is_that_of_its_branch() -> None:
    event = EventPlan(finish_event("Prepare", "fraud", "prod"), (), "Prepare", "fraud", "prod")
    plan = AFTER._replace(events=(event,))
    runs = [
        ended("1", 1, tags=("project:fraud", "project_branch:prod", "user:ann")),
        ended("2", 2, tags=("project:fraud", "project_branch:user.ann")),
        ended("3", 3, tags=("project:other", "project_branch:prod")),
        ended("4", 4),
    ]
    assert [each.id for each in look(plan, event, FlowWatch(CREATED), runs, CREATED + 900)[1]] == ["Prepare/1"]


# -- ids -------------------------------------------------------------------------------------------------------------


def test_ids_of_runs_are_names_and_tell_whose_they_are() -> None:
    runs = [scheduled_run("a", 0.0), triggered_run("a", 0.0, b"\x01\x02"), event_run("a", [event("x", 1)])]
    for run in runs:
        assert check_part(run) == run
        assert is_run_of("a", run)
        assert not is_run_of("a-19700101T000000Z", run)
    assert not is_run_of("a", scheduled_run("a-b", 0.0))
    assert event_run("a", [event("x", 1), event("y", 1)]) == event_run("a", [event("y", 1), event("x", 1)])


# -- killed at any moment --------------------------------------------------------------------------------------------


class _World:
    """A scheduler that is killed now and then, with all that outlives it: its memory, and the claimed runs."""

    def __init__(self, plan: Plan, events: list[Happened]) -> None:
        self.plan, self.events = plan, events
        self.memory: Memory | None = None
        self.claimed: set[str] = set()

    def tick(self, now: float, killed: int) -> None:
        memory = begin(self.plan, self.memory, "here", lambda: 0, now)
        memory = began(memory, {each.run for each in memory.decided if each.run in self.claimed}, now)
        memory = over(memory, list(memory.active))
        memory = decide(self.plan, memory, now).memory
        emitted = [each for each in self.events[memory.read or 0 :] if each.when <= now]
        decision, count = take(self.plan, memory, emitted, now)
        memory, chosen = ready(decision.memory, now)
        if killed == 1:
            return
        self.memory = Memory.from_json(json.loads(json.dumps(_read(memory, count).to_json())))
        for firing in chosen:
            if killed == 2:
                return
            self.claimed.add(firing.run)


def _read(memory: Memory, count: int) -> Memory:
    return Memory.from_json({**memory.to_json(), "read": (memory.read or 0) + count})


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 80), st.sampled_from([0, 0, 1, 2])), min_size=5, max_size=40),
    st.lists(st.integers(1, 2000), max_size=12),
)
def test_killed_at_any_moment_nothing_is_lost_or_doubled(turns: list[tuple[int, int]], offsets: list[int]) -> None:
    plan = TABLES._replace(schedule="* * * * *", catch_up="all")
    events = [event("data", number, plan.created + offset) for number, offset in enumerate(sorted(offsets))]
    world, now = _World(plan, events), plan.created
    world.tick(now, 0)
    for seconds, killed in turns:
        now += seconds
        world.tick(now, killed)
    for _ in range(TRIES + 2):  # and then it lives
        now += 61
        world.tick(now, 0)
    due = CronTimes("* * * * *").between(plan.created, now)
    wanted = {scheduled_run("nightly", when) for when in due}
    wanted |= {event_run("nightly", [each]) for each in events if each.when <= now}
    assert set(world.claimed) == wanted
