"""The scheduler, construct by construct, policy by policy, and with every event that should not be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from graph_builder import graph_of

from flowkit.decorators.contract import Attempts
from flowkit.model.coordinates import Coordinates, TaskRef
from flowkit.model.launch import Launch, spans_text
from flowkit.model.manifest import Failure
from flowkit.model.transition import Transition
from flowkit.runtime.decisions import contradiction
from flowkit.runtime.scheduler import Scheduler

LINE = graph_of({"start": "linear a", "a": "linear end", "end": "end"})
FOREACH = graph_of({"start": "foreach train", "train": "linear join", "join": "join linear end", "end": "end"})
SPLIT = graph_of(
    {
        "start": "split zeta alpha",
        "zeta": "linear join",
        "alpha": "linear join",
        "join": "join linear end",
        "end": "end",
    }
)
LOOP = graph_of({"start": "linear loop", "loop": "switch loop after", "after": "linear end", "end": "end"})
GANG = graph_of({"start": "parallel train", "train": "linear join", "join": "join linear end", "end": "end"})
ERROR = Failure("error", "ValueError: no", "ValueError", ("ValueError", "Exception"))
KILLED = Failure("killed", "killed by SIGKILL", exit_status=-9)


def ref(text: str, *indices: int, turn: int | None = None) -> TaskRef:
    return TaskRef(text, Coordinates(indices, turn))


class Drive:
    """A scheduler, the launches that it gave, and short words for events; transitions default to the graph's."""

    def __init__(self, graph, attempts=None, **options) -> None:
        self.graph = graph
        self.scheduler = Scheduler(graph, attempts or {}, **options)
        self.launches: list[Launch] = []
        self.notices = self.scheduler.start()

    def take(self, slots=None, now=0.0, executor="local") -> list[str]:
        """Take launches; return their tasks as text."""
        new = self.scheduler.take(executor, slots, now)
        self.launches += new
        return [str(launch.ref) for launch in new]

    def launch(self, task: str) -> Launch:
        return next(launch for launch in reversed(self.launches) if str(launch.ref) == task)

    def parents(self, task: str) -> str:
        return spans_text(self.launch(task).parents)

    def finish(self, *tasks: str, to: str | None = None, width: int | None = None, attempt: int | None = None):
        """Finish tasks; returns the notices of the last one."""
        notices = []
        for task in tasks:
            launch = self.launch(task)
            node = self.graph[launch.step]
            transition = Transition(node.kind, (to,) if to else node.targets, width)
            number = launch.attempt if attempt is None else attempt
            notices = self.scheduler.finished(launch.ref, number, transition, 0.0)
        return notices

    def fail(self, task: str, failure=ERROR, now=0.0, attempt: int | None = None):
        launch = self.launch(task)
        return self.scheduler.failed(launch.ref, launch.attempt if attempt is None else attempt, failure, now)

    @property
    def state(self) -> str:
        return self.scheduler.state


# -- constructs ---------------------------------------------------------------------------------------------------


def test_linear_runs_one_after_the_other():
    drive = Drive(LINE)
    assert drive.state == "running"
    assert drive.take() == ["start/0"]
    assert drive.take() == []
    drive.finish("start/0")
    assert drive.take() == ["a/0"]
    assert drive.parents("a/0") == "start/0"
    drive.finish("a/0")
    assert drive.take() == ["end/0"]
    assert drive.state == "running"
    drive.finish("end/0")
    assert drive.state == "succeeded"
    assert drive.scheduler.counts()["a"] == (0, 0, 1, 0, 0, 0)


def test_a_flow_of_one_step():
    graph = graph_of({"start": "end"})
    drive = Drive(graph)
    drive.take()
    drive.finish("start/0")
    assert drive.state == "succeeded"


def test_a_split_joins_in_the_order_of_its_targets():
    drive = Drive(SPLIT)
    drive.take()
    drive.finish("start/0")
    assert drive.take() == ["zeta/0", "alpha/0"]
    drive.finish("alpha/0")
    assert drive.take() == []
    assert [str(item) for item in drive.scheduler.awaiting()] == ["join waits for 1 of 2 of zeta, alpha"]
    drive.finish("zeta/0")
    assert drive.scheduler.awaiting() == []
    assert drive.take() == ["join/0"]
    assert drive.parents("join/0") == "zeta/0,alpha/0"
    assert drive.launch("join/0").split == ref("start")


def test_foreach_children_in_order_and_join_inputs_as_one_span():
    drive = Drive(FOREACH)
    drive.take()
    drive.finish("start/0", width=5)
    assert drive.scheduler.waiting("local") == 5
    assert drive.take(2) == ["train/0", "train/1"]
    assert drive.take(9) == ["train/2", "train/3", "train/4"]
    assert {drive.parents(f"train/{index}") for index in range(5)} == {"start/0"}
    drive.finish("train/3", "train/0", "train/4", "train/2")
    assert [str(item) for item in drive.scheduler.awaiting()] == ["join waits for 1 of 5 of train"]
    assert drive.take() == []
    drive.finish("train/1")
    assert drive.take() == ["join/0"]
    assert drive.parents("join/0") == "train/0+5"
    assert drive.launch("join/0").split == ref("start")


def test_an_empty_foreach_goes_straight_to_its_join():
    drive = Drive(FOREACH)
    drive.take()
    drive.finish("start/0", width=0)
    assert drive.take() == ["join/0"]
    assert drive.launch("join/0").parents == ()
    assert drive.launch("join/0").split == ref("start")


NESTED = graph_of(
    {
        "start": "foreach outer",
        "outer": "foreach inner",
        "inner": "linear low",
        "low": "join linear high",
        "high": "join linear end",
        "end": "end",
    }
)


def test_nested_foreach_with_an_empty_inner_one():
    drive = Drive(NESTED)
    drive.take()
    drive.finish("start/0", width=3)
    assert drive.take() == ["outer/0", "outer/1", "outer/2"]
    drive.finish("outer/1", width=0)
    assert drive.take() == ["low/1"]
    drive.finish("outer/2", width=1)
    drive.finish("outer/0", width=2)
    assert drive.take() == ["inner/2.0", "inner/0.0", "inner/0.1"]
    drive.finish("inner/2.0", "inner/0.1", "inner/0.0", "low/1")
    assert drive.take() == ["low/2", "low/0"]
    assert drive.parents("low/0") == "inner/0.0+2"
    assert drive.launch("low/2").split == ref("outer", 2)
    drive.finish("low/2", "low/0")
    assert drive.take() == ["high/0"]
    assert drive.parents("high/0") == "low/0+3"
    drive.finish("high/0")
    drive.take()
    drive.finish("end/0")
    assert drive.state == "succeeded"


def test_the_deepest_foreach_goes_first_and_what_goes_on_before_what_opens():
    drive = Drive(NESTED)
    drive.take()
    drive.finish("start/0", width=100)
    assert drive.take(2) == ["outer/0", "outer/1"]
    drive.finish("outer/0", width=2)
    drive.finish("outer/1", width=0)
    assert drive.take(4) == ["low/1", "inner/0.0", "inner/0.1", "outer/2"]


SWITCHED = graph_of(
    {
        "start": "foreach pick",
        "pick": "switch left right",
        "left": "linear more",
        "more": "linear join",
        "right": "linear join",
        "join": "join linear end",
        "end": "end",
    }
)


def test_a_switch_in_a_foreach_joins_whichever_step_arrives():
    drive = Drive(SWITCHED)
    drive.take()
    drive.finish("start/0", width=5)
    drive.take()
    for index, choice in enumerate(["left", "right", "right", "left", "right"]):
        drive.finish(f"pick/{index}", to=choice)
    drive.take()
    drive.finish("left/3", "left/0", "right/1", "right/2", "right/4")
    assert drive.take() == ["more/3", "more/0"]
    drive.finish("more/0", "more/3")
    assert drive.take() == ["join/0"]
    assert drive.parents("join/0") == "more/0,right/1+2,more/3,right/4"


def test_a_switch_converges_in_a_step_that_runs_once():
    graph = graph_of(
        {"start": "switch a b", "a": "linear meet", "b": "linear meet", "meet": "linear end", "end": "end"}
    )
    drive = Drive(graph)
    drive.take()
    drive.finish("start/0", to="b")
    assert drive.take() == ["b/0"]
    drive.finish("b/0")
    assert drive.take() == ["meet/0"]
    assert drive.parents("meet/0") == "b/0"


def test_a_loop_counts_its_turns_and_the_next_step_drops_them():
    drive = Drive(LOOP)
    drive.take()
    drive.finish("start/0")
    assert drive.take() == ["loop/0-0"]
    assert drive.parents("loop/0-0") == "start/0"
    drive.finish("loop/0-0", to="loop")
    assert drive.take() == ["loop/0-1"]
    assert drive.parents("loop/0-1") == "loop/0-0"
    drive.finish("loop/0-1", to="loop")
    drive.take()
    drive.finish("loop/0-2", to="after")
    assert drive.take() == ["after/0"]
    assert drive.parents("after/0") == "loop/0-2"


def test_a_loop_as_the_start_and_in_a_foreach():
    start = Drive(graph_of({"start": "switch start end", "end": "end"}))
    assert start.take() == ["start/0-0"]
    start.finish("start/0-0", to="start")
    assert start.take() == ["start/0-1"]
    inside = Drive(
        graph_of(
            {
                "start": "foreach loop",
                "loop": "switch loop after",
                "after": "linear join",
                "join": "join linear end",
                "end": "end",
            }
        )
    )
    inside.take()
    inside.finish("start/0", width=2)
    assert inside.take() == ["loop/0-0", "loop/1-0"]
    inside.finish("loop/1-0", to="loop")
    inside.finish("loop/0-0", to="after")
    assert inside.take() == ["loop/1-1", "after/0"]
    inside.finish("loop/1-1", to="after")
    inside.take()
    inside.finish("after/1", "after/0")
    assert inside.take() == ["join/0"]
    assert inside.parents("join/0") == "after/0+2"


def test_a_very_long_loop_of_clones_needs_no_recursion():
    turns = {f"0-{turn}": Transition("switch", ("loop",)) for turn in range(20_000)}
    drive = Drive(LOOP, clones={"start": {"0": Transition("linear", ("loop",))}, "loop": turns})
    assert drive.take() == ["loop/0-20000"]
    assert drive.scheduler.counts()["loop"].cloned == 20_000


def test_a_gang_is_one_launch_and_arrives_whole():
    drive = Drive(GANG)
    drive.take()
    drive.finish("start/0", width=3)
    assert drive.scheduler.waiting("local") == 3
    assert drive.take(3) == ["train/0"]
    assert drive.launch("train/0").gang == 3
    assert drive.scheduler.counts()["train"].running == 3
    drive.finish("train/0")
    assert drive.take() == ["join/0"]
    assert drive.parents("join/0") == "train/0+3"


def test_a_gang_takes_its_slots_all_or_none_and_is_not_overtaken():
    graph = graph_of(
        {
            "start": "split wide slow",
            "wide": "parallel train",
            "train": "linear low",
            "low": "join linear join",
            "slow": "foreach item",
            "item": "linear mid",
            "mid": "join linear join",
            "join": "join linear end",
            "end": "end",
        }
    )
    drive = Drive(graph)
    drive.take()
    drive.finish("start/0")
    drive.take()
    drive.finish("slow/0", width=10)
    assert drive.take(1) == ["item/0"]
    drive.finish("wide/0", width=3)
    assert drive.take(2) == []
    assert drive.take(3) == ["train/0"]
    assert drive.take(2) == ["item/1", "item/2"]


def test_a_gang_wider_than_its_executor_starts_alone():
    drive = Drive(GANG)
    drive.take()
    drive.finish("start/0", width=8)
    assert drive.take(2) == ["train/0"]


def test_each_executor_has_a_queue_of_its_own():
    drive = Drive(FOREACH, executor_of=lambda step: "batch" if step == "train" else "local")
    assert drive.scheduler.executors == ("local", "batch")
    drive.take()
    drive.finish("start/0", width=3)
    assert drive.take() == []
    assert drive.scheduler.waiting("batch") == 3
    assert drive.take(None, executor="batch") == ["train/0", "train/1", "train/2"]
    assert drive.take(None, executor="nowhere") == []


def test_a_fallback_is_carried_out_here_whoever_carries_the_step_out():
    attempts = {"train": Attempts(fallback=True)}
    drive = Drive(FOREACH, attempts, executor_of=lambda step: "batch")
    assert drive.scheduler.executors == ("batch", "local")
    drive.take(executor="batch")
    drive.finish("start/0", width=2)
    drive.take(executor="batch")
    assert drive.fail("train/0", Failure("evicted", "")).action == "fallback"
    assert drive.fail("train/1", KILLED).action == "fallback"
    assert drive.take(executor="batch", now=1.0) == []
    assert drive.take(1, now=1.0) == ["train/0"]
    assert (drive.scheduler.busy("local"), drive.scheduler.busy("batch")) == (1, 0)
    drive.finish("train/0")
    # A late commit withdraws what waits in the other queue.
    drive.finish("train/1", attempt=0)
    assert drive.scheduler.waiting("local") == 0
    assert drive.take(executor="batch", now=1.0) == ["join/0"]


def test_without_a_fallback_elsewhere_there_is_no_queue_for_one():
    assert Drive(FOREACH, executor_of=lambda step: "batch").scheduler.executors == ("batch",)
    lanes = Drive(FOREACH, {"train": Attempts(fallback=True)}, executor_of=lambda step: "local gpu=1")
    assert lanes.scheduler.executors == ("local gpu=1",)


def test_too_many_kinds_of_ends_for_a_byte():
    names = [f"s{number}" for number in range(300)]
    steps = {"start": "foreach pick", "pick": "switch " + " ".join(names), "join": "join linear end", "end": "end"}
    graph = graph_of({**steps, **dict.fromkeys(names, "linear join")})
    drive = Drive(graph)
    drive.take()
    drive.finish("start/0", width=300)
    drive.take()
    for number, name in enumerate(names):
        drive.finish(f"pick/{number}", to=name)
    drive.take()
    drive.finish(*(f"{name}/{number}" for number, name in enumerate(names)))
    drive.take()
    assert drive.parents("join/0") == ",".join(f"{name}/{number}" for number, name in enumerate(names))


# -- widths and transitions that do not fit --------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [FOREACH, GANG])
def test_a_foreach_above_the_limit_fails_before_any_child_starts(graph):
    drive = Drive(graph, max_width=10)
    drive.take()
    (notice,) = drive.finish("start/0", width=11)
    assert notice.kind == "too wide"
    assert "--max-num-splits" in notice.text
    assert drive.scheduler.failures == {ref("start"): notice.failure}
    assert drive.take() == []
    assert drive.state == "failed"
    assert drive.scheduler.counts()["start"] == (0, 0, 0, 1, 0, 0)
    fits = Drive(graph, max_width=10)
    fits.take()
    assert fits.finish("start/0", width=10) == []


@pytest.mark.parametrize(
    ("graph", "transition"),
    [
        (LINE, Transition("linear", ("end",))),
        (LINE, Transition("linear", ("nowhere",))),
        (LINE, Transition("linear", ())),
        (LINE, Transition("end")),
        (LINE, Transition("foreach", ("a",), 3)),
        (FOREACH, Transition("foreach", ("train",), None)),
        (FOREACH, Transition("foreach", ("train",), -1)),
        (FOREACH, Transition("linear", ("train",))),
        (GANG, Transition("parallel", ("train",), 0)),
        (SPLIT, Transition("split", ("zeta",))),
    ],
)
def test_a_transition_that_contradicts_the_graph_fails_the_task_plainly(graph, transition):
    assert contradiction(graph["start"], transition)
    drive = Drive(graph)
    drive.take()
    (notice,) = drive.scheduler.finished(ref("start"), 0, transition, 0.0)
    assert notice.kind == "contradiction"
    assert notice.failure is not None
    assert "start/0 does not fit the flow's graph" in notice.text
    assert drive.take() == []
    assert drive.state == "failed"


def test_graphs_that_lint_would_refuse_end_in_a_failure():
    unopened = Drive(graph_of({"start": "linear b", "b": "linear end", "end": "end"}))
    unopened.graph["b"].is_join = True
    unopened.take()
    assert unopened.finish("start/0")[0].kind == "contradiction"
    early = Drive(graph_of({"start": "foreach end", "end": "end"}))
    early.take()
    early.finish("start/0", width=1)
    early.take()
    assert early.finish("end/0")[0].kind == "contradiction"
    assert early.state == "failed"
    unjoined = Drive(graph_of({"start": "foreach end", "end": "end"}))
    unjoined.take()
    assert unjoined.finish("start/0", width=0)[0].kind == "contradiction"
    direct = Drive(graph_of({"start": "foreach end", "end": "join end"}))
    direct.take()
    assert direct.finish("start/0", width=2)[0].kind == "contradiction"
    gang = graph_of({"start": "parallel a", "a": "linear b", "b": "linear j", "j": "join linear end", "end": "end"})
    loose = Drive(gang)
    loose.take()
    loose.finish("start/0", width=2)
    loose.take()
    assert loose.finish("a/0")[0].kind == "contradiction"
    crossed = graph_of({"start": "foreach a", "a": "linear j", "j": "join linear end", "end": "end"})
    crossed["start"].matching_join = "other"
    wrong = Drive(crossed)
    wrong.take()
    wrong.finish("start/0", width=1)
    wrong.take()
    assert wrong.finish("a/0")[0].kind == "contradiction"
    twice = graph_of({"start": "split a b", "a": "linear b", "b": "linear j", "j": "join linear end", "end": "end"})
    double = Drive(twice)
    double.take()
    double.finish("start/0")
    double.take()
    double.finish("a/0")
    double.finish("b/0")
    assert double.state == "running"


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_retry_waits_for_its_time_without_a_slot_and_backs_off():
    drive = Drive(LINE, {"start": Attempts(retries=4, delay=10, backoff=2, max_delay=35)})
    now = 100.0
    for attempt, pause in enumerate([10, 20, 35, 35]):
        assert drive.take(1, now) == ["start/0"]
        assert drive.launch("start/0").attempt == attempt
        decision = drive.fail("start/0", now=now)
        assert (decision.action, decision.next_attempt, decision.at) == ("retry", attempt + 1, now + pause)
        assert drive.scheduler.in_flight == 0
        assert drive.scheduler.counts()["start"] == (1, 0, 0, 0, 0, 0)
        assert drive.take(1, now + pause - 0.5) == []
        assert drive.state == "running"
        assert drive.scheduler.next_wakeup(now) == now + pause
        now += pause
        assert drive.scheduler.next_wakeup(now + 5) == now + 5
    assert drive.take(1, now) == ["start/0"]
    assert drive.scheduler.next_wakeup(now) is None
    decision = drive.fail("start/0", now=now)
    assert (decision.action, decision.why) == ("failed", "no retry is left")
    assert drive.state == "failed"


def test_a_backoff_beyond_all_numbers_is_the_longest_pause():
    drive = Drive(LINE, {"start": Attempts(retries=2, delay=1, backoff=1e300, max_delay=60)})
    for pause in (1, 60):
        drive.take(now=1000)
        assert drive.fail("start/0").at == pause


@pytest.mark.parametrize(
    ("on", "failure", "again"),
    [
        ((), ERROR, True),
        (("ValueError",), ERROR, True),
        (("builtins.ValueError",), ERROR, True),
        (("Exception",), ERROR, True),
        (("KeyError",), ERROR, False),
        (("oom", "killed"), ERROR, False),
        (("oom", "killed"), KILLED, True),
        (("Timeout",), Failure("error", "", "requests.exceptions.Timeout"), True),
        (("requests.exceptions.Timeout",), Failure("error", "", "requests.exceptions.Timeout"), True),
        (("exceptions.Timeout",), Failure("error", "", "requests.exceptions.Timeout"), True),
        (("out",), Failure("error", "", "requests.exceptions.Timeout"), False),
        (("other.Timeout",), Failure("error", "", "requests.exceptions.Timeout"), False),
        (("OSError",), Failure("error", "", "my.Broken", ("my.Broken", "OSError", "Exception")), True),
        (("timeout",), Failure("timeout", "", "flowkit.exceptions.TimeoutException"), True),
        ((), Failure("error", "", "InvalidNext", retry=False), False),
        ((), Failure("cancelled", ""), False),
    ],
)
def test_what_is_worth_a_retry(on, failure, again):
    drive = Drive(LINE, {"start": Attempts(retries=3, on=on)})
    drive.take()
    assert drive.fail("start/0", failure).action == ("retry" if again else "failed")


@pytest.mark.parametrize(
    ("failure", "fallback"),
    [
        (KILLED, True),
        (Failure("oom", ""), True),
        (Failure("vanished", ""), True),
        (Failure("timeout", "killed at the hard limit"), True),
        (Failure("timeout", "", "flowkit.exceptions.TimeoutException"), False),
        (ERROR, False),
        (Failure("cancelled", ""), False),
    ],
)
def test_the_fallback_stands_in_for_a_process_that_died_silently(failure, fallback):
    drive = Drive(LINE, {"start": Attempts(retries=1, fallback=True)})
    drive.take()
    assert drive.fail("start/0", KILLED).action == "retry"
    drive.take()
    decision = drive.fail("start/0", failure)
    assert decision.action == ("fallback" if fallback else "failed")
    if fallback:
        drive.take()
        assert drive.launch("start/0")[4:6] == (2, "fallback")
        assert drive.fail("start/0", KILLED).action == "failed"


def test_the_fallback_also_follows_an_error_that_ends_the_retries_early():
    drive = Drive(LINE, {"start": Attempts(retries=3, on=("OSError",), fallback=True)})
    drive.take()
    assert drive.fail("start/0", ERROR).action == "fallback"
    drive.take()
    assert drive.launch("start/0").kind == "fallback"
    assert drive.finish("start/0") == []


def test_a_gang_retries_as_one():
    drive = Drive(GANG, {"train": Attempts(retries=1)})
    drive.take()
    drive.finish("start/0", width=3)
    drive.take(3)
    assert drive.fail("train/0").action == "retry"
    assert drive.take(2) == ["train/0"]  # nothing else runs, so it starts although it does not fit
    assert drive.launch("train/0")[4:] == (1, "user", 3)


def test_a_join_keeps_its_inputs_over_a_retry():
    drive = Drive(FOREACH, {"join": Attempts(retries=1)})
    drive.take()
    drive.finish("start/0", width=2)
    drive.take()
    drive.finish("train/0", "train/1")
    drive.take()
    first = drive.launch("join/0")
    drive.fail("join/0")
    drive.take()
    assert drive.launch("join/0") == first._replace(attempt=1)


# -- policies ----------------------------------------------------------------------------------------------------------


def half_done(**options) -> Drive:
    """A foreach of 4: children 0 and 1 run, 2 and 3 wait."""
    drive = Drive(FOREACH, **options)
    drive.take()
    drive.finish("start/0", width=4)
    drive.take(2)
    return drive


def test_finish_lets_what_runs_end_and_starts_nothing():
    drive = half_done()
    decision = drive.fail("train/0")
    assert (decision.action, decision.why) == ("failed", "the step has no @retry")
    assert drive.state == "running"
    assert not drive.scheduler.should_cancel
    assert drive.scheduler.waiting("local") == 0
    assert drive.take() == []
    drive.finish("train/1")
    assert drive.state == "failed"
    assert drive.scheduler.counts()["train"] == (2, 0, 1, 1, 0, 0)
    assert str(drive.scheduler.awaiting()[0]) == "join waits for 3 of 4 of train"


def test_finish_drops_pending_retries_of_other_tasks():
    drive = half_done(attempts={"train": Attempts(retries=1, delay=10)})
    assert drive.fail("train/0").action == "retry"
    assert drive.fail("train/1", Failure("error", "", retry=False)).action == "failed"
    assert drive.scheduler.next_wakeup(0.0) is None
    assert drive.take(now=100.0) == []
    assert drive.state == "failed"


def test_no_retry_once_the_run_has_failed():
    drive = half_done(attempts={"train": Attempts(retries=1)})
    drive.fail("train/0", Failure("error", "", retry=False))
    decision = drive.fail("train/1", KILLED)
    assert (decision.action, decision.why) == ("failed", "the run has stopped: no retry")


def test_what_is_taken_back_after_a_failure_is_cancelled_and_has_not_failed():
    drive = half_done()
    drive.fail("train/0")
    assert drive.fail("train/1", Failure("cancelled", "")).action == "cancelled"
    assert list(drive.scheduler.failures) == [ref("train", 0)]
    assert drive.state == "failed"


def test_fail_fast_asks_for_the_end_of_what_runs():
    drive = half_done(on_failure="fail-fast")
    drive.fail("train/0")
    assert drive.scheduler.should_cancel
    assert drive.fail("train/1", Failure("cancelled", "")).action == "cancelled"
    assert drive.state == "failed"
    assert list(drive.scheduler.failures) == [ref("train", 0)]
    assert drive.scheduler.counts()["train"] == (2, 0, 0, 1, 1, 0)


def test_keep_going_runs_all_that_does_not_depend_on_the_failure():
    drive = half_done(on_failure="keep-going")
    drive.fail("train/0")
    assert drive.state == "running"
    assert drive.take() == ["train/2", "train/3"]
    drive.finish("train/1", "train/2", "train/3")
    assert drive.take() == []
    assert drive.state == "failed"


def test_cancel_starts_nothing_and_ends_as_cancelled():
    drive = half_done(attempts={"train": Attempts(retries=5)})
    drive.scheduler.cancel()
    assert drive.take() == []
    assert drive.state == "running"
    assert drive.fail("train/0", KILLED).action == "cancelled"
    drive.finish("train/1")
    assert drive.state == "cancelled"
    assert drive.scheduler.counts()["train"] == (2, 0, 1, 0, 1, 0)


def test_cancel_after_a_failure_stays_a_failure_and_after_the_end_changes_nothing():
    drive = half_done()
    drive.fail("train/0")
    drive.scheduler.cancel()
    drive.fail("train/1", KILLED)
    assert drive.state == "failed"
    done = Drive(graph_of({"start": "end"}))
    done.take()
    done.finish("start/0")
    done.scheduler.cancel()
    assert done.state == "succeeded"


def test_cancel_while_the_last_task_runs():
    drive = Drive(graph_of({"start": "end"}))
    drive.take()
    drive.scheduler.cancel()
    drive.finish("start/0")
    assert drive.state == "succeeded"


def test_what_a_task_raises_while_it_is_cancelled_is_its_failure():
    drive = half_done()
    drive.scheduler.cancel()
    assert drive.fail("train/0", ERROR).action == "failed"
    drive.fail("train/1", KILLED)
    assert drive.state == "cancelled"


def test_cancel_before_anything_was_taken():
    drive = Drive(LINE)
    drive.scheduler.cancel()
    assert drive.state == "cancelled"


# -- events that should not be -------------------------------------------------------------------------------------


def test_events_of_tasks_that_do_not_run_change_nothing():
    drive = Drive(LINE)
    scheduler = drive.scheduler
    assert scheduler.finished(ref("start"), 0, Transition("linear", ("a",)), 0.0)[0].kind == "duplicate"
    assert drive.take() == ["start/0"]
    assert scheduler.finished(ref("start"), 7, Transition("linear", ("a",)), 0.0)[0].kind == "contradiction"
    assert scheduler.finished(ref("start"), -1, Transition("linear", ("a",)), 0.0)[0].kind == "contradiction"
    assert scheduler.finished(ref("nowhere"), 0, Transition("end"), 0.0)[0].kind == "duplicate"
    assert scheduler.failed(ref("nowhere"), 0, ERROR, 0.0).action == "ignored"
    assert scheduler.failed(ref("start"), 1, ERROR, 0.0).action == "ignored"
    assert drive.finish("start/0") == []
    assert drive.finish("start/0")[0].kind == "duplicate"
    assert drive.fail("start/0").action == "ignored"
    assert drive.take() == ["a/0"]
    assert drive.take() == []
    assert scheduler.start() == []
    assert drive.take() == []


def test_a_failure_reported_twice_costs_one_attempt():
    drive = Drive(LINE, {"start": Attempts(retries=1, delay=5)})
    drive.take()
    assert drive.fail("start/0").action == "retry"
    assert drive.fail("start/0", attempt=0).action == "ignored"
    assert drive.fail("start/0", attempt=1).action == "ignored"
    drive.take(now=5)
    assert drive.fail("start/0", attempt=0).action == "ignored"
    assert drive.fail("start/0").action == "failed"


def test_a_late_commit_counts_and_withdraws_the_retry():
    for when in (0.0, 10.0):  # while the retry waits for its time, and while it is queued
        drive = Drive(LINE, {"start": Attempts(retries=1, delay=5)})
        drive.take()
        drive.fail("start/0")
        drive.take(0, now=when)
        assert drive.finish("start/0", attempt=0)[0].kind == "late"
        assert drive.scheduler.next_wakeup(0.0) is None
        assert drive.take(now=100) == ["a/0"]
        assert drive.scheduler.counts()["start"] == (0, 0, 1, 0, 0, 0)


def test_a_late_commit_beats_the_attempt_that_runs():
    drive = Drive(LINE, {"start": Attempts(retries=1)})
    drive.take()
    drive.fail("start/0")
    assert drive.take() == ["start/0"]
    assert drive.finish("start/0", attempt=0)[0].kind == "late"
    assert drive.take() == ["a/0"]
    drive.finish("a/0")
    drive.take()
    drive.finish("end/0")
    assert drive.state == "running"  # attempt 1 of start still runs
    assert drive.finish("start/0", attempt=0)[0].kind == "duplicate"
    assert drive.state == "running"
    assert drive.fail("start/0", attempt=1).action == "ignored"
    assert drive.state == "succeeded"
    assert drive.scheduler.counts()["start"] == (0, 0, 1, 0, 0, 0)


def test_the_attempt_that_was_beaten_may_also_end_well():
    drive = Drive(LINE, {"start": Attempts(retries=1)})
    drive.take()
    drive.fail("start/0")
    drive.take()
    drive.finish("start/0", attempt=0)
    assert drive.finish("start/0", attempt=1)[0].kind == "duplicate"
    assert drive.take() == ["a/0"]
    assert drive.scheduler.in_flight == 1


def test_an_end_that_was_promised_but_not_launched_is_ignored():
    drive = Drive(LINE, {"start": Attempts(retries=1, delay=5)})
    drive.take()
    drive.fail("start/0")
    assert drive.finish("start/0", attempt=1)[0].kind == "contradiction"
    assert drive.take(now=5) == ["start/0"]


def test_a_commit_after_the_final_failure_is_left_to_a_resume():
    drive = half_done()
    drive.fail("train/0")
    (notice,) = drive.finish("train/0")
    assert notice.kind == "late"
    assert "resume" in notice.text
    drive.finish("train/1")
    assert drive.state == "failed"


def test_slots_of_zero_take_nothing():
    drive = Drive(LINE)
    assert drive.take(0) == []
    assert drive.take(1) == ["start/0"]
    assert [str(launch.ref) for launch in drive.scheduler.running()] == ["start/0"]


# -- clones ------------------------------------------------------------------------------------------------------------


def test_clones_finish_at_once_and_the_rest_runs():
    train = {str(index): Transition("linear", ("join",)) for index in range(5) if index != 3}
    drive = Drive(FOREACH, clones={"start": {"0": Transition("foreach", ("train",), 5)}, "train": train})
    assert drive.notices == []
    assert drive.scheduler.counts()["train"] == (1, 0, 0, 0, 0, 4)
    assert drive.take() == ["train/3"]
    drive.finish("train/3")
    assert drive.take() == ["join/0"]
    assert drive.parents("join/0") == "train/0+5"


def test_all_cloned_is_succeeded_at_once():
    clones = {
        "start": {"0": Transition("linear", ("a",))},
        "a": {"0": Transition("linear", ("end",))},
        "end": {"0": Transition("end")},
    }
    assert Drive(LINE, clones=clones).state == "succeeded"


def test_a_clone_above_the_limit_is_told_at_the_start():
    drive = Drive(FOREACH, clones={"start": {"0": Transition("foreach", ("train",), 50)}}, max_width=10)
    assert [notice.kind for notice in drive.notices] == ["too wide"]
    assert drive.state == "failed"
    assert drive.scheduler.counts()["start"] == (0, 0, 0, 1, 0, 0)


def test_a_gang_is_cloned_whole():
    clones = {"start": {"0": Transition("parallel", ("train",), 3)}, "train": {"0": Transition("linear", ("join",))}}
    drive = Drive(GANG, clones=clones)
    assert drive.scheduler.counts()["train"].cloned == 3
    assert drive.take() == ["join/0"]
    assert drive.parents("join/0") == "train/0+3"


@pytest.mark.parametrize("options", [["--steps", "2"], ["--slots", "0"], ["--resume"]])
def test_the_benchmark_runs(options):
    script = os.path.join(os.path.dirname(__file__), "..", "..", "benchmarks", "scheduler_scale.py")
    done = subprocess.run([sys.executable, script, "500", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "MB peak" in done.stdout
