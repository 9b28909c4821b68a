"""The ways from step to step: every construct run by the real command, and every ``self.next`` that does not fit."""

from __future__ import annotations

import re
from typing import Any

HEAD = """
from flowkit import *
from flowkit.exceptions import *


class Story(FlowSpec):
"""

TAIL = """
    @step
    def end(self):
        pass


if __name__ == "__main__":
    Story()
"""


def story(workspace: Any, body: str, *, head: str = HEAD, tail: str = TAIL) -> None:
    """Write a flow called Story: the body of its class, as it stands, indented by four."""
    workspace.write("flow.py", head.lstrip("\n") + body + tail)


def data(workspace: Any, step: str = "end", run: int | None = None) -> Any:
    """The artifacts of a step's one task, in the newest run or the one given."""
    flow = workspace.client().Flow("Story")
    return (flow.latest_run if run is None else flow[str(run)])[step].task.data


def line_of(workspace: Any, text: str) -> int:
    """The last line of the flow that holds a text."""
    lines = (workspace.path / "flow.py").read_text(encoding="utf-8").splitlines()
    return max(number for number, line in enumerate(lines, 1) if text in line)


def test_a_split_is_joined_by_name_index_and_iteration(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.common = {"z": 1}
        self.changed = 0
        self.next(self.b, self.a, self.c)

    @step
    def a(self):
        self.v, self.changed, self.only_a = "a", 1, [1]
        self.next(self.join)

    @step
    def b(self):
        self.v, self.changed = "b", 1
        self.next(self.b2)

    @step
    def b2(self):
        self.next(self.join)

    @step
    def c(self):
        self.v, self.changed = "c", 1
        self.next(self.join)

    @step
    def join(self, inputs):
        self.order = [each.v for each in inputs]
        self.named = inputs.a.v + inputs.b2.v + inputs.c.v
        self.ends = inputs[0].v + inputs[-1].v
        self.some = [each.v for each in inputs[1:]]
        self.count = len(inputs), len(list(inputs))
        self.shown = repr(inputs)
        self.same = inputs[0] is inputs.b2 is next(iter(inputs))
        self.before = hasattr(self, "common")
        self.place = self.index, self.input, self.foreach_stack()
        self.mistakes = []
        for wrong in (
            lambda: inputs[3],
            lambda: inputs["a"],
            lambda: inputs.b,
            lambda: inputs.a.onyl_a,
            lambda: self.common,
            lambda: inputs.a.next(self.end),
        ):
            try:
                wrong()
            except Exception as error:
                self.mistakes.append(f"{type(error).__name__}: {error}")
        self.v = inputs.a.v
        self.merge_artifacts(inputs)
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    got = data(workspace)
    assert (got.order, got.named, got.ends, got.some) == (["b", "a", "c"], "abc", "bc", ["a", "c"])
    assert (got.count, got.same, got.before, got.place) == ((3, 3), True, False, (None, None, []))
    assert got.shown == "<3 inputs from b2, a, c>"
    assert (got.common, got.changed, got.only_a, got.v) == ({"z": 1}, 1, [1], "a")
    assert [text.split(":")[0] for text in got.mistakes] == [
        "IndexError",
        "TypeError",
        "AttributeError",
        "AttributeError",
        "AttributeError",
        "InvalidNext",
    ]
    assert "there are 3 inputs" in got.mistakes[0]
    assert "did you mean 'b2'?" in got.mistakes[2]
    assert "did you mean 'only_a'?" in got.mistakes[3]
    assert "take inputs[0].common, or self.merge_artifacts(inputs)" in got.mistakes[4]


def test_merging_takes_what_does_not_conflict(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.keep = "k"
        self.tried = []
        self.attempt(lambda: self.merge_artifacts([]))
        self.next(self.a, self.b)

    def attempt(self, action):
        try:
            action()
        except FlowkitError as error:
            self.tried = [*self.tried, (type(error).__name__, getattr(error, "artifact_names", []), str(error))]

    @step
    def a(self):
        self.x, self.y, self.only_a, self.equal, self.number = 1, 2, "a", [1, 2], 1
        self.next(self.join)

    @step
    def b(self):
        self.x, self.y, self.only_b, self.equal, self.number = 2, 3, "b", [1, 2], 1.0
        self.next(self.join)

    @step
    def join(self, inputs):
        self.tried = inputs.a.tried
        self.attempt(lambda: self.merge_artifacts(inputs))
        self.attempt(lambda: self.merge_artifacts(inputs, include=["equal"], exclude=["y"]))
        self.attempt(lambda: self.merge_artifacts(inputs, include=["eqaul", "keep"]))
        self.attempt(lambda: self.merge_artifacts(inputs, include="keep"))
        self.attempt(lambda: self.merge_artifacts([1, 2]))
        names = ["x", "y", "number", "only_a", "only_b", "equal", "keep"]
        self.steps = [[name for name in names if hasattr(self, name)]]
        self.merge_artifacts(inputs, include=["equal"])
        self.steps.append([name for name in names if hasattr(self, name)])
        self.x = 5
        self.merge_artifacts(inputs, exclude=["y", "number"])
        self.steps.append([name for name in names if hasattr(self, name)])
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    got = data(workspace)
    assert [(kind, names) for kind, names, _ in got.tried] == [
        ("TaskError", []),
        ("MergeConflict", ["number", "x", "y"]),
        ("TaskError", []),
        ("MergeMissing", ["eqaul"]),
        ("TaskError", []),
        ("TaskError", []),
    ]
    texts = [text for *_, text in got.tried]
    assert "the step 'start' is none" in texts[0]
    assert "exclude=['number', 'x', 'y']" in texts[1]
    assert "did you mean 'equal'?" in texts[3]
    assert got.steps == [[], ["equal"], ["x", "only_a", "only_b", "equal", "keep"]]
    assert (got.x, got.only_a, got.only_b) == (5, "a", "b")


def test_foreaches_in_foreaches_with_a_split_inside(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.xs = [10, 20]
        self.next(self.a, foreach="xs")

    @step
    def a(self):
        self.ys = [self.input + i for i in range(self.index + 1)]
        self.next(self.b, foreach="ys")

    @step
    def b(self):
        self.zs = "pq"
        self.next(self.c, foreach="zs")

    @step
    def c(self):
        self.stack = self.foreach_stack()
        self.next(self.d, self.e)

    @step
    def d(self):
        self.word = f"d{self.input}"
        self.next(self.join_split)

    @step
    def e(self):
        self.word = f"e{self.input}"
        self.next(self.join_split)

    @step
    def join_split(self, inputs):
        self.word = inputs.d.word + inputs.e.word
        self.stack = inputs.d.stack
        self.same = self.stack == self.foreach_stack() and self.input == inputs.d.input
        self.next(self.join_c)

    @step
    def join_c(self, inputs):
        self.words = [each.word for each in inputs]
        self.stacks = [each.stack for each in inputs]
        self.same = all(each.same for each in inputs)
        self.place = self.index, self.input
        self.next(self.join_b)

    @step
    def join_b(self, inputs):
        self.words = [each.words for each in inputs]
        self.stacks = [each.stacks for each in inputs]
        self.places = [each.place for each in inputs]
        self.same = all(each.same for each in inputs)
        self.next(self.join_a)

    @step
    def join_a(self, inputs):
        self.words = [each.words for each in inputs]
        self.stacks = [each.stacks for each in inputs]
        self.places = [each.places for each in inputs]
        self.same = all(each.same for each in inputs)
        self.none = self.index, self.input, self.foreach_stack()
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    got = data(workspace)
    assert got.words == [[["dpep", "dqeq"]], [["dpep", "dqeq"], ["dpep", "dqeq"]]]
    assert got.places == [[(0, 10)], [(0, 20), (1, 21)]]
    assert got.stacks[1][1][0] == [(1, 2, 20), (1, 2, 21), (0, 2, "p")]
    assert got.same
    assert got.none == (None, None, [])
    run = workspace.client().Flow("Story").latest_run
    assert sorted(task.id for task in run["c"]) == ["0.0.0", "0.0.1", "1.0.0", "1.0.1", "1.1.0", "1.1.1"]
    assert sorted(task.id for task in run["join_b"]) == ["0", "1"]


def test_what_a_foreach_goes_over(workspace: Any) -> None:
    story(
        workspace,
        """
    over_constant = ("c1", "c2")
    given = Parameter("given", default=[7, 8])

    @step
    def start(self):
        self.kinds = "generator dict set string bytes array matrix series frame range empty".split()
        self.next(self.kind, foreach="kinds")

    @step
    def kind(self):
        import numpy
        import pandas

        self.kind_name = self.input
        self.xs = {
            "generator": lambda: (n * n for n in range(3)),
            "dict": lambda: {"b": 1, "a": 2},
            "set": lambda: {"b", "a", "c"},
            "string": lambda: "hé",
            "bytes": lambda: b"ab",
            "array": lambda: numpy.array([1.5, 2.5]),
            "matrix": lambda: numpy.arange(4).reshape(2, 2),
            "series": lambda: pandas.Series([3, 4], index=[9, 8]),
            "frame": lambda: pandas.DataFrame({"left": [1], "right": [2]}),
            "range": lambda: range(2),
            "empty": lambda: [],
        }[self.input]()
        self.next(self.item, foreach="xs")

    @step
    def item(self):
        self.got = self.input.tolist() if hasattr(self.input, "tolist") else self.input
        self.next(self.inner)

    @step
    def inner(self, inputs):
        self.name = self.input
        self.items = [each.got for each in inputs]
        self.artifact = repr(inputs[0].xs) if self.input == "generator" else None
        self.next(self.outer)

    @step
    def outer(self, inputs):
        self.all = {each.name: each.items for each in inputs}
        self.generator = inputs[0].artifact
        self.next(self.fan_constant)

    @step
    def fan_constant(self):
        self.next(self.constant, foreach="over_constant")

    @step
    def constant(self):
        self.got = self.input
        self.next(self.constants)

    @step
    def constants(self, inputs):
        self.merge_artifacts(inputs, exclude=["got"])
        self.texts = [each.got for each in inputs]
        self.next(self.fan_parameter)

    @step
    def fan_parameter(self):
        self.next(self.parameter, foreach="given")

    @step
    def parameter(self):
        self.got = self.input
        self.next(self.parameters)

    @step
    def parameters(self, inputs):
        self.merge_artifacts(inputs, exclude=["got"])
        self.numbers = [each.got for each in inputs]
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    got = data(workspace)
    assert got.all == {
        "generator": [0, 1, 4],
        "dict": ["b", "a"],
        "set": ["a", "b", "c"],
        "string": ["h", "é"],
        "bytes": [97, 98],
        "array": [1.5, 2.5],
        "matrix": [[0, 1], [2, 3]],
        "series": [3, 4],
        "frame": ["left", "right"],
        "range": [0, 1],
        "empty": [],
    }
    # A generator is used up by the foreach: from there on it is the list of what it gave.
    assert got.generator == "[0, 1, 4]"
    assert (got.texts, got.numbers) == (["c1", "c2"], [7, 8])


def test_empty_foreaches_go_on_at_their_join(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.widths = [2, 0, 1]
        self.next(self.outer, foreach="widths")

    @step
    def outer(self):
        self.xs = list(range(self.input))
        self.next(self.inner, foreach="xs")

    @step
    def inner(self):
        self.ys = []
        self.next(self.never, foreach="ys")

    @step
    def never(self):
        raise RuntimeError("there is nothing to do")
        self.next(self.join_never)

    @step
    def join_never(self, inputs):
        self.count = len(inputs), list(inputs)
        self.next(self.join_inner)

    @step
    def join_inner(self, inputs):
        self.counts = [each.count for each in inputs]
        self.merge_artifacts(inputs, exclude=["count"])
        self.next(self.join_outer)

    @step
    def join_outer(self, inputs):
        self.all = [each.counts for each in inputs]
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    assert data(workspace).all == [[(0, []), (0, [])], [], [(0, [])]]


def test_a_join_sees_its_inputs_in_order_whoever_was_first(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.xs = list(range(30))
        self.next(self.child, foreach="xs")

    @step
    def child(self):
        import random
        import time

        time.sleep(random.random() / 20)
        self.got = self.index, self.input
        self.when = time.time()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.got = [each.got for each in inputs]
        times = [each.when for each in inputs]
        self.shuffled = times != sorted(times)
        self.next(self.end)
""",
    )
    workspace.run("run", "--max-workers", 8, check=True)
    got = data(workspace)
    assert got.got == [(n, n) for n in range(30)]
    assert got.shuffled


def test_a_switch_takes_one_way(workspace: Any) -> None:
    story(
        workspace,
        """
    which = Parameter("which", default="low")
    number = Parameter("number", default=1)
    flag = Parameter("flag", default=True)

    @step
    def start(self):
        self.next({"low": self.low, "high": self.high}, condition="which")

    @step
    def low(self):
        self.value = "low"
        self.next({1: self.one, -2: self.two}, condition="number")

    @step
    def one(self):
        self.times = 1
        self.next(self.meet)

    @step
    def two(self):
        self.times = 2
        self.next(self.meet)

    @step
    def high(self):
        self.value = "high"
        self.next({True: self.two, False: self.meet}, condition="flag")

    @step
    def meet(self):
        self.way = self.value, getattr(self, "times", None)
        self.next(self.end)
""",
    )
    ways = [
        ((), ("low", 1), {"start", "low", "one", "meet", "end"}),
        (("--number", -2), ("low", 2), {"start", "low", "two", "meet", "end"}),
        (("--which", "high"), ("high", 2), {"start", "high", "two", "meet", "end"}),
        (("--which=high", "--flag", "no"), ("high", None), {"start", "high", "meet", "end"}),
    ]
    for run, (options, way, steps) in enumerate(ways, 1):
        workspace.run("run", *options, check=True)
        assert data(workspace, run=run).way == way
        assert {step.id for step in workspace.client().Run(f"Story/{run}")} == steps
    wrong = workspace.run("run", "--number", 3, check=1)
    assert "step 'low': the switch has no case for self.number = 3" in wrong.stderr
    assert "its cases: 1, -2" in wrong.stderr
    near = workspace.run("run", "--which", "hihg", check=1)
    assert "did you mean 'high'? (its cases: 'low', 'high')" in near.stderr
    assert f"flow.py:{line_of(workspace, 'self.low, ')}" in near.stderr


def test_switches_foreaches_and_loops_in_each_other(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.turns, self.seen = 0, []
        self.next(self.loop)

    @step
    def loop(self):
        self.turns += 1
        self.seen.append(self.turns)
        self.again = "more" if self.turns < 4 else "enough"
        self.next({"more": self.loop, "enough": self.fan}, condition="again")

    @step
    def fan(self):
        self.xs = [1, 2, 3, 4]
        self.next(self.item, foreach="xs")

    @step
    def item(self):
        self.kind = "even" if self.input % 2 == 0 else "odd"
        self.next({"even": self.even, "odd": self.odd}, condition="kind")

    @step
    def even(self):
        self.ys = list(range(self.input))
        self.next(self.sub, foreach="ys")

    @step
    def sub(self):
        self.next(self.join_sub)

    @step
    def join_sub(self, inputs):
        self.result = "even", [each.input for each in inputs], self.input
        self.next(self.both)

    @step
    def odd(self):
        self.count = getattr(self, "count", 0) + 1
        self.again = self.count < self.input
        self.result = "odd", self.count, self.index
        self.next({True: self.odd, False: self.both}, condition="again")

    @step
    def both(self):
        self.done = self.result
        self.next(self.join)

    @step
    def join(self, inputs):
        self.all = [each.done for each in inputs]
        self.merge_artifacts(inputs, include=["seen"])
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    got = data(workspace)
    assert got.seen == [1, 2, 3, 4]
    assert got.all == [("odd", 1, 0), ("even", [0, 1], 2), ("odd", 3, 2), ("even", [0, 1, 2, 3], 4)]
    run = workspace.client().Flow("Story").latest_run
    assert {task.id for task in run["loop"]} == {"0-0", "0-1", "0-2", "0-3"}
    assert {task.id for task in run["odd"]} == {"0-0", "2-0", "2-1", "2-2"}
    assert run["fan"].task.id == "0"


def test_flows_of_one_step_and_flows_that_name_their_ends(workspace: Any) -> None:
    workspace.write(
        "one.py",
        """
        from flowkit import FlowSpec, step

        class One(FlowSpec):
            @step
            def only(self):
                self.x = [each.name for each in self]

        if __name__ == "__main__":
            One()
        """,
    )
    workspace.run("run", flow="one.py", check=True)
    assert workspace.client().Run("One/1").data.x == ["only"]
    story(
        workspace,
        """
    @step(start=True)
    def begin(self):
        self.xs = [1, 2]
        self.next(self.middle, foreach="xs")

    @step
    def middle(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.finish)

    @step(end=True)
    def finish(self):
        self.x = 3
""",
        tail="\n\nif __name__ == '__main__':\n    Story()\n",
    )
    workspace.run("run", check=True)
    assert data(workspace, "finish").x == 3


WRONG_CALLS = [
    ("self.next(self.mid, bogus=1)", "no option 'bogus'", "its options: foreach"),
    ("self.next(self.mid, foreech='xs')", "no option 'foreech'", "did you mean 'foreach'?"),
    ("self.next()", "names no step", "self.next(self.end)"),
    ("self.next({'x': self.mid})", "a dict without a condition", "condition='name of an artifact'"),
    ("self.next({'x': self.mid}, self.end, condition='v')", "one dict of cases", "self.next({"),
    ("self.next({}, condition='v')", "one dict of cases", "self.next({"),
    ("self.next(self.mid, condition='v')", "one dict of cases", "self.next({"),
    ("self.next({'x': self.mid}, condition=3)", "condition takes the name", "condition='name"),
    ("self.next({'x': self.mid}, condition='v', foreach='xs')", "not several", "a step between"),
    ("self.next(self.mid, num_parallel=2, foreach='xs')", "not several", "a step between"),
    ("self.next({'x': self.mid}, condition='nope')", "looks at self.nope, which is not set", "set self.nope before"),
    ("self.next({'y': self.mid}, condition='v')", "no case for self.v = 'x'", "its cases: 'y'"),
    ("self.next({'x': self.mid}, condition='xs')", "no case for self.xs = a value of type list", "its cases: 'x'"),
    ("self.next({'x': 'mid'}, condition='v')", "got 'mid', which is not a step", "self.next(self.<step>)"),
    ("self.next({'x': self.plain}, condition='v')", "goes to 'plain', which is not a step", "mark it with @step"),
    ("self.next('mid')", "got 'mid', which is not a step", "self.next(self.<step>)"),
    ("self.next(self.plain)", "goes to 'plain', which is not a step", "mark it with @step"),
    ("self.next(self.mid, self.end, num_parallel=2)", "num_parallel goes to one step, not to 2", "one step"),
    ("self.next(self.mid, num_parallel='2')", "a whole number above 0, not '2'", "num_parallel=4"),
    ("self.next(self.mid, num_parallel=0)", "a whole number above 0, not 0", "num_parallel=4"),
    ("self.next(self.mid, foreach=[1])", "foreach takes the name of an artifact", "foreach='xs'"),
    ("self.next(self.mid, self.end, foreach='xs')", "a foreach goes to one step, not to 2", "one step"),
    ("self.next(self.end)", "goes to end (linear), but the source says mid (linear)", "the last statement"),
    ("self.next(self.mid, foreach='xs')", "goes to mid (foreach), but the source says", "the last statement"),
    ("self.next(self.mid, self.end)", "goes to mid, end (split), but the source says", "the last statement"),
]


def test_every_call_of_next_that_does_not_fit_is_explained(workspace: Any) -> None:
    calls = "".join(f"            lambda: {call},\n" for call, *_ in WRONG_CALLS)
    story(
        workspace,
        f"""
    @step
    def start(self):
        self.v, self.xs = "x", [1]
        calls = [
{calls}        ]
        self.told = []
        for call in calls:
            try:
                call()
            except InvalidNext as error:
                self.told.append((error.headline, error.hint, error.where.line))
            else:
                self.told.append(None)
        self.next(self.mid)

    def plain(self):
        pass

    @step
    def mid(self):
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    told = data(workspace).told
    line = line_of(workspace, "  call()")
    for (call, headline, hint), got in zip(WRONG_CALLS, told, strict=True):
        assert got is not None, call
        assert got[0].startswith("step 'start': "), call
        assert headline in got[0], call
        assert hint in got[1], call
        assert got[2] == line, call


def test_a_step_that_fails_at_its_next_says_where_and_what_to_write(workspace: Any) -> None:
    story(
        workspace,
        """
    @step
    def start(self):
        self.kinds = ["missing", "none", "number", "twice", "none at all"]
        self.next(self.kind, foreach="kinds")

    @step
    def kind(self):
        if self.input == "none":
            self.ys = None
        if self.input == "number":
            self.ys = 5
        if self.input == "twice":
            self.ys = []
            self.next(self.child, foreach="ys")
        if self.input == "none at all":
            return
        self.next(self.child, foreach="ys")

    @step
    def child(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.outer)

    @step
    def outer(self, inputs):
        self.next(self.end)
""",
    )
    result = workspace.run("run", "--keep-going", check=1)
    last = line_of(workspace, 'foreach="ys"')
    flow = re.escape(str(workspace.path / "flow.py"))
    for task, headline, hint, line in [
        (0, "foreach='ys', but self.ys is not set", "set self.ys before self.next", last),
        (1, "self.ys is of type NoneType, which cannot be iterated over", "a list or anything else", last),
        (2, "self.ys is of type int, which cannot be iterated over", "a list or anything else", last),
        (3, "self.next was called twice", "call it once, as the last statement", last),
        (4, "ended without self.next", "every step but the last ends in self.next", r"\d+"),
    ]:
        told = result.stderr.split(f"Task Story/1/kind/{task} failed")[1].split("\nTask ")[0]
        assert re.search(rf"{flow}:{line}\b", told), told
        assert f"step 'kind': {headline}" in told or headline in told
        assert hint in told
    assert "Because of that, outer waits for 5 of 5" in result.stderr


def test_a_foreach_that_is_too_wide_is_refused_before_any_child_starts(workspace: Any) -> None:
    story(
        workspace,
        """
    width = Parameter("width", default=10_001)

    @step
    def start(self):
        self.xs = range(self.width)
        self.next(self.child, foreach="xs")

    @step
    def child(self):
        print("a child runs")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.count = len(inputs)
        self.next(self.end)
""",
    )
    result = workspace.run("run", check=1)
    assert "a child runs" not in result.output
    assert "10,001" in result.stderr
    assert "--max-num-splits" in result.stderr
    few = workspace.run("run", "--width", 3, "--max-num-splits", 2, check=1)
    assert "a child runs" not in few.output
    workspace.run("run", "--width", 3, "--max-num-splits", 3, check=True)
    assert data(workspace).count == 3
