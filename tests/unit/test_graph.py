"""The graph: what it says of a flow, where its source comes from, how it grows, and its forms for others."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import linecache
import random
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.decorators.parallel import parallel
from flowkit.decorators.retry import retry
from flowkit.exceptions import Location
from flowkit.model.flowspec import FlowSpec, step
from flowkit.model.graph import Graph, build_graph
from flowkit.model.graph_output import structure, to_dot, to_json
from flowkit.model.graph_text import to_text
from flowkit.model.lint import lint

_COUNT = itertools.count()

HEAD = "from flowkit.model.flowspec import FlowSpec, step\nfrom flowkit.decorators.parallel import parallel\n"


def cell(source: str) -> type:
    """Run a source as a notebook does, where only linecache knows it; return the class F."""
    name = f"<graph cell {next(_COUNT)}>"
    text = HEAD + source
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": "graph_cell"}
    exec(compile(text, name, "exec"), space)
    found: type = space["F"]
    return found


@pytest.fixture(autouse=True)
def clean_linecache() -> Iterator[None]:
    yield
    for name in [name for name in linecache.cache if name.startswith("<graph cell")]:
        del linecache.cache[name]


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[[str, str], Any]]:
    """Write and import a module of a name."""
    names = []

    def load(name: str, source: str) -> Any:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = sys.modules[name] = importlib.util.module_from_spec(spec)
        names.append(name)
        spec.loader.exec_module(loaded)
        return loaded

    yield load
    for name in names:
        del sys.modules[name]


def keep_name(function: Any) -> Any:
    """A decorator of a user."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> None:
        function(*args)

    return wrapper


class Everything(FlowSpec):
    """A flow with every form of transition.

    And more to say.
    """

    @step
    def start(self):
        """Split."""
        self.next(self.choose, self.many)

    @retry(times=2)
    @step
    def choose(self):
        self.next({"a": self.case_a, 1: self.case_b, (True and "x") or "y": self.case_b}, condition="kind")

    @step
    def case_a(self):
        self.next(self.joined)

    @step
    def case_b(this):
        this.again = False
        this.next({True: this.case_b, False: this.after}, condition="again")

    @step
    def after(self):
        self.next(self.joined)

    @retry
    @step
    @keep_name
    def many(self):
        xs = [1, 2]
        self.xs = xs
        self.next(
            self.inner,
            foreach="xs",
        )

    @step
    def inner(self):
        self.next(self.gang, num_parallel=len(self.xs))

    @parallel
    @step
    def gang(self):
        self.next(self.gang_join)

    @step
    def gang_join(self, inputs):
        self.next(self.many_join)

    @step
    def many_join(self, inputs):
        self.next(self.joined)

    @step
    def joined(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


class Right(Everything):
    """The one case that cannot be read is written out."""

    @step
    def choose(self):
        self.next({"a": self.case_a, 1: self.case_b, self.config.key: self.case_b}, condition="kind")


def test_forms() -> None:
    graph = build_graph(Right)
    assert lint(graph) == []
    assert list(graph.nodes) == [
        "start", "choose", "case_a", "case_b", "after", "many", "inner", "gang", "gang_join", "many_join", "joined",
        "end",
    ]  # fmt: skip
    assert {name: node.kind for name, node in graph.nodes.items() if node.kind != "linear"} == {
        "start": "split", "choose": "switch", "case_b": "switch", "many": "foreach", "inner": "parallel", "end": "end",
    }  # fmt: skip
    assert {name for name, node in graph.nodes.items() if node.is_join} == {"gang_join", "many_join", "joined"}
    assert graph["choose"].cases == {"a": "case_a", "1": "case_b", "config:config.key": "case_b"}
    assert graph["choose"].targets == ("case_a", "case_b")
    assert graph["choose"].variable == "kind"
    assert graph["case_b"].is_loop
    assert not graph["choose"].is_loop
    assert graph["case_b"].cases == {"True": "case_b", "False": "after"}
    assert graph["many"].variable == "xs"
    assert graph["inner"].num_parallel
    assert {name: node.matching_join for name, node in graph.nodes.items() if node.matching_join} == {
        "start": "joined", "many": "many_join", "inner": "gang_join",
    }  # fmt: skip
    assert {name: depth for name, depth in graph.depths().items() if depth} == {"inner": 1, "gang": 2, "gang_join": 1}
    assert graph["gang"].splits == ("start", "many", "inner")
    assert graph["gang_join"].splits == ("start", "many")
    assert graph["many_join"].splits == ("start",)
    assert graph["joined"].splits == ()
    assert graph["joined"].sources == ("case_a", "after", "many_join")
    assert graph["after"].branch == "choose"
    assert graph["many_join"].branch == "many"
    assert (graph.start, graph.end, graph.flow, graph.file) == ("start", "end", "Right", __file__)
    assert graph.doc == "The one case that cannot be read is written out."
    assert graph["many"].decorators == ("retry",)
    assert graph["gang"].decorators == ("parallel",)
    assert graph["start"].doc == "Split."


def test_location_is_that_of_the_def() -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    graph = build_graph(Everything)
    for node in graph.nodes.values():
        assert node.location.file == __file__
        assert lines[node.location.line - 1].startswith(f"    def {node.name}(")
    where = graph["many"].next_location
    assert where is not None
    assert lines[where.line - 1] == "        self.next("


def test_downstream_and_order() -> None:
    graph = build_graph(Right)
    assert graph.downstream("many_join") == {"many_join", "joined", "end"}
    assert graph.downstream("case_a", "gang_join") == {"case_a", "gang_join", "many_join", "joined", "end"}
    order = {name: place for place, name in enumerate(graph.order())}
    assert len(order) == len(graph.nodes)
    for node in graph.nodes.values():
        assert all(order[node.name] < order[target] for target in node.targets if target != node.name)


def test_inheritance_over_files(module: Callable[[str, str], Any]) -> None:
    base = module(
        "graph_base_flow",
        """
        from flowkit.model.flowspec import FlowSpec, step

        class Base(FlowSpec):
            @step
            def start(self):
                self.next(self.work)

            @step
            def work(self):
                self.next(self.end)

            @step
            def dropped(self):
                self.next(self.end)

            @step
            def end(self):
                pass
        """,
    )
    derived = module(
        "graph_derived_flow",
        """
        from flowkit.model.flowspec import step
        from graph_base_flow import Base

        class Mixin:
            @step
            def more(self):
                self.next(self.end)

        class Derived(Mixin, Base):
            dropped = None

            @step
            def work(self):
                "Nearer."
                self.next(self.more)
        """,
    )
    graph = build_graph(derived.Derived)
    assert lint(graph) == []
    assert list(graph.nodes) == ["start", "work", "end", "more"]
    assert graph["work"].targets == ("more",)
    assert graph["start"].location == Location(base.__file__, 6)
    assert graph["work"].location.file == derived.__file__
    assert graph.file == derived.__file__
    assert build_graph(base.Base)["work"].targets == ("end",)


def test_classes_anywhere() -> None:
    """A flow in a function, in an if, and two steps of one name in two branches."""

    def make() -> type:
        if sys.version_info:

            class Inner(FlowSpec):
                if len(sys.path) >= 0:

                    @step
                    def start(self):
                        self.next(self.end)

                else:

                    @step
                    def start(self):
                        self.next(self.start)

                @step
                def end(self):
                    def nested() -> None:
                        self.next(self.start)

                    self.f = nested

        return Inner

    graph = build_graph(make())
    assert graph["start"].targets == ("end",)
    assert graph["end"].kind == "end"
    assert lint(graph) == []


def test_one_step_and_marks() -> None:
    graph = build_graph(cell("class F(FlowSpec):\n    @step\n    def only(self):\n        pass\n"))
    assert (graph.start, graph.end) == ("only", "only")
    marked = cell(
        "class F(FlowSpec):\n    @step(start=True)\n    def a(self):\n        self.next(self.b)\n"
        "    @step(end=True)\n    def b(self):\n        pass\n"
    )
    graph = build_graph(marked)
    assert (graph.start, graph.end) == ("a", "b")
    assert graph["a"].marked_start
    assert graph["b"].marked_end


def test_changed_file_is_noticed(module: Callable[[str, str], Any], tmp_path: Path) -> None:
    source = HEAD + "class F(FlowSpec):\n    @step\n    def start(self):\n        pass\n"
    loaded = module("graph_changed_flow", source)
    assert build_graph(loaded.F)["start"].kind == "end"
    (tmp_path / "graph_changed_flow.py").write_text(source.replace("def start", "def other") + "# longer\n")
    (problem,) = lint(build_graph(loaded.F))
    assert problem.headline == "the source of a step cannot be read: 'start'"
    (tmp_path / "graph_changed_flow.py").write_text("def broken(:\n")
    assert [item.headline for item in lint(build_graph(loaded.F))] == [problem.headline]


# -- forms for others ----------------------------------------------------------------------------------------------


def test_json() -> None:
    told = to_json(
        build_graph(Right),
        parameters=[{"name": "alpha", "type": "int"}],
        step_decorators={
            "gang": [{"name": "parallel", "attributes": {}, "statically_defined": True, "inserted_by": None}]
        },
    )
    assert json.loads(json.dumps(told)) == told
    assert list(told) == [
        "file", "start_step", "end_step", "parameters", "constants", "steps", "graph_structure", "doc", "decorators",
        "extensions",
    ]  # fmt: skip
    assert {name: item["type"] for name, item in told["steps"].items()} == {
        "start": "split-static", "choose": "split-switch", "case_a": "linear", "case_b": "split-switch",
        "after": "linear", "many": "split-foreach", "inner": "split-parallel", "gang": "linear", "gang_join": "join",
        "many_join": "join", "joined": "join", "end": "end",
    }  # fmt: skip
    assert told["graph_structure"] == [
        "start",
        [
            ["choose", [["case_a"], ["case_b", "after"]]],
            ["many", [["inner", [["gang"]], "gang_join"]], "many_join"],
        ],
        "joined",
        "end",
    ]
    assert told["steps"]["choose"]["condition"] == "kind"
    assert told["steps"]["many"]["foreach_artifact"] == "xs"
    assert told["steps"]["many"]["matching_join"] == "many_join"
    assert told["steps"]["many"]["decorators"][0]["name"] == "retry"
    assert told["parameters"] == [{"name": "alpha", "type": "int"}]


def test_dot_is_quoted() -> None:
    flow = cell(
        "class F(FlowSpec):\n    @step\n    def start(self):\n"
        "        self.next({'a\"]; x': self.a, 'b\\\\': self.end}, condition='x')\n"
        "    @step\n    def a(self):\n        self.next(self.end)\n    @step\n    def end(self):\n        pass\n"
    )
    text = to_dot(build_graph(flow))
    assert '"start" -> "a" [label="a\\"]; x"];' in text
    assert '"start" -> "end" [label="b\\\\"];' in text
    assert text.startswith('digraph "F" {\n')
    assert text.endswith("}\n")


def test_text() -> None:
    text = to_text(build_graph(Right), width=40)
    assert text.startswith(
        "The one case that cannot be read is written out.\n\nStep start\n    Split.\n    => choose, many\n"
    )
    assert "@retry\nStep many\n    => inner, for each of self.xs\n" in text
    assert "Step case_b\n    => case_b (again) if True, after if\n       False (by self.again)\n" in text
    assert "@parallel\nStep gang\n    => gang_join\n\nStep gang_join (join)\n" in text
    assert text.endswith("Step end\n")
    assert "=> ? (a case of the switch is" in to_text(build_graph(Everything))


# -- how it grows --------------------------------------------------------------------------------------------------


def write(name: str, body: str, arguments: str = "self", decorator: str = "") -> str:
    return f"{decorator}    @step\n    def {name}({arguments}):\n        {body}\n"


def splits_in_a_row(count: int) -> str:
    parts = ["class F(FlowSpec):\n", write("start", "self.next(self.s0)")]
    for i in range(count):
        parts += [
            write(f"s{i}", f"self.next(self.a{i}, self.b{i})"),
            write(f"a{i}", f"self.next(self.j{i})"),
            write(f"b{i}", f"self.next({{1: self.j{i}_x, 2: self.j{i}_y}}, condition='x')"),
            write(f"j{i}_x", f"self.next(self.j{i})"),
            write(f"j{i}_y", f"self.next(self.j{i})"),
            write(f"j{i}", f"self.next(self.{f's{i + 1}' if i + 1 < count else 'end'})", "self, inputs"),
        ]
    return "".join([*parts, write("end", "pass")])


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python are run by a call: a measure of work that does not depend on the machine."""
    count = 0

    def local(frame: object, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    before = sys.gettrace()
    sys.settrace(local)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_work_is_linear() -> None:
    def work(count: int) -> Callable[[], object]:
        flow = cell(splits_in_a_row(count))

        def run() -> None:
            graph = build_graph(flow)
            assert lint(graph) == []
            to_json(graph)
            to_dot(graph)

        return run

    small, large = lines_run(work(50)), lines_run(work(100))
    assert large < 2.1 * small
    assert small < 1_000 * 302


def test_long_chain() -> None:
    names = ["start", *(f"s{i}" for i in range(10_000)), "end"]
    source = "".join(write(name, f"self.next(self.{after})") for name, after in itertools.pairwise(names))
    graph = build_graph(cell("class F(FlowSpec):\n" + source + write("end", "pass")))
    assert lint(graph) == []
    assert structure(graph) == names == graph.order()
    assert len(to_text(graph).splitlines()) == 3 * len(names) - 2


def test_deep_nesting() -> None:
    count = 1_000
    parts = ["class F(FlowSpec):\n", write("start", "self.next(self.s0)")]
    for i in range(count):
        parts.append(write(f"s{i}", f"self.next(self.{f's{i + 1}' if i + 1 < count else 'body'}, foreach='xs')"))
        parts.append(write(f"j{i}", f"self.next(self.{f'j{i - 1}' if i else 'end'})", "self, inputs"))
    graph = build_graph(cell("".join([*parts, write("body", f"self.next(self.j{count - 1})"), write("end", "pass")])))
    assert lint(graph) == []
    assert graph["body"].depth == count
    assert graph["s0"].matching_join == "j0"
    assert graph["j0"].depth == 0


def test_long_circle_and_many_circles() -> None:
    names = ["start", *(f"s{i}" for i in range(3_000))]
    source = "".join(write(name, f"self.next(self.{after})") for name, after in itertools.pairwise([*names, "s0"]))
    (problem,) = lint(build_graph(cell("class F(FlowSpec):\n" + source + write("end", "pass"))))
    assert problem.headline == "the steps go round in a circle: s0 → s1 → s2 → … → s2998 → s2999 → s0"
    pairs = "".join(
        write(f"a{i}", f"self.next({{1: self.b{i}, 2: self.a{i + 1}}}, condition='x')")
        + write(f"b{i}", f"self.next(self.a{i})")
        for i in range(500)
    )
    around = write("start", "self.next(self.a0)") + write("a500", "self.next(self.end)") + write("end", "pass")
    flow = cell("class F(FlowSpec):\n" + around + pairs)
    assert len(lint(build_graph(flow))) == 500


# -- any valid flow ------------------------------------------------------------------------------------------------

Block = tuple[str, list[Any]]


def blocks() -> st.SearchStrategy[list[Block]]:
    leaf = st.sampled_from(["linear", "loop", "gang"]).map(lambda kind: (kind, []))
    return st.recursive(
        st.lists(leaf, min_size=1, max_size=3),
        lambda body: st.lists(
            st.one_of(
                leaf,
                body.map(lambda one: ("foreach", [one])),
                st.lists(body, min_size=2, max_size=3).map(lambda several: ("split", several)),
                st.lists(body, min_size=2, max_size=3).map(lambda several: ("switch", several)),
                st.lists(body, min_size=2, max_size=3).map(lambda several: ("switch_apart", several)),
            ),
            min_size=1,
            max_size=3,
        ),
        max_leaves=12,
    )


class Written:
    """The source of a random flow, and what the graph is to say of it."""

    def __init__(self) -> None:
        self.sources: list[str] = []
        self.splits: dict[str, tuple[str, ...]] = {}
        self.depth: dict[str, int] = {}
        self.joins: dict[str, str] = {}

    def add(self, kind: str, text: str, splits: tuple[str, ...], depth: int, name: str = "", **how: str) -> str:
        name = name or f"{kind}{len(self.sources)}"
        self.sources.append(write(name, text.replace("SELF", name), **how))
        self.splits[name], self.depth[name] = splits, depth
        return name

    def series(self, body: list[Block], after: str, splits: tuple[str, ...], depth: int) -> str:
        """Write blocks one after the other, the last one first, and return the name of the first step."""
        for kind, inner in reversed(body):
            after = getattr(self, kind)(inner, after, splits, depth)
        return after

    def linear(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        return self.add("linear", f"self.next(self.{after})", splits, depth)

    def loop(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        out = self.linear([], after, splits, depth)
        text = f"self.next({{True: self.SELF, False: self.{out}}}, condition='x')"
        return self.add("loop", text, splits, depth)

    def _opened(self, kind: str, after: str, splits: tuple[str, ...], depth: int, inside: int) -> Any:
        join = self.add("join", f"self.next(self.{after})", splits, depth, arguments="self, inputs")
        name = f"{kind}_of_{join}"
        self.joins[name] = join
        return name, join, (*splits, name), depth + inside

    def gang(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        name, join, *within = self._opened("gang", after, splits, depth, 1)
        member = self.add("member", f"self.next(self.{join})", *within, decorator="    @parallel\n")
        return self.add("gang", f"self.next(self.{member}, num_parallel=3)", splits, depth, name)

    def foreach(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        name, join, *within = self._opened("foreach", after, splits, depth, 1)
        first = self.series(inner[0], join, *within)
        return self.add("foreach", f"self.next(self.{first}, foreach='xs')", splits, depth, name)

    def split(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        name, join, *within = self._opened("split", after, splits, depth, 0)
        firsts = [self.series(body, join, *within) for body in inner]
        return self.add("split", f"self.next({', '.join(f'self.{item}' for item in firsts)})", splits, depth, name)

    def switch(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        return self.switch_apart(inner, self.linear([], after, splits, depth), splits, depth)

    def switch_apart(self, inner: list[Any], after: str, splits: tuple[str, ...], depth: int) -> str:
        firsts = [self.series(body, after, splits, depth) for body in inner]
        cases = ", ".join(f"{number}: self.{item}" for number, item in enumerate(firsts))
        return self.add("switch", f"self.next({{{cases}}}, condition='x')", splits, depth)


def flat(nested: list[Any]) -> list[str]:
    return [name for item in nested for name in (flat(item) if isinstance(item, list) else [item])]


@settings(max_examples=60, deadline=None)
@given(blocks(), st.integers(0, 2**32))
def test_any_valid_flow(body: list[Block], seed: int) -> None:
    written = Written()
    written.add("end", "pass", (), 0, "end")
    first = written.series(body, "end", (), 0)
    written.add("start", f"self.next(self.{first})", (), 0, "start")
    random.Random(seed).shuffle(written.sources)  # the order of the source has no meaning
    graph: Graph = build_graph(cell("class F(FlowSpec):\n" + "".join(written.sources)))
    assert lint(graph) == []
    assert {name: node.splits for name, node in graph.nodes.items()} == written.splits
    assert graph.depths() == written.depth
    assert {name: node.matching_join for name, node in graph.nodes.items() if node.matching_join} == written.joins
    assert sorted(flat(structure(graph))) == sorted(graph.nodes)


@settings(max_examples=100, deadline=None)
@given(blocks(), st.integers(0, 2**32))
def test_lint_lets_only_sound_flows_pass(body: list[Block], seed: int) -> None:
    """Bend one transition of a valid flow: either lint objects, or the flow still runs to its end."""
    written = Written()
    written.add("end", "pass", (), 0, "end")
    first = written.series(body, "end", (), 0)
    written.add("start", f"self.next(self.{first})", (), 0, "start")
    names = list(written.splits)
    chance = random.Random(seed)
    for _ in range(5):
        sources = list(written.sources)
        bent = chance.randrange(1, len(sources))
        old = chance.choice(re.findall(r"self\.(?!next)(\w+)", sources[bent]))
        sources[bent] = sources[bent].replace(f"self.{old}", f"self.{chance.choice(names)}", 1)
        graph = build_graph(cell("class F(FlowSpec):\n" + "".join(sources)))
        if not lint(graph):
            for _ in range(3):
                carry_out(graph, chance)


def carry_out(graph: Graph, chance: random.Random) -> None:
    """Run a flow without its code: every foreach has two items, every switch chooses by chance."""
    assert graph.start is not None
    todo: list[tuple[str, tuple[tuple[str, int], ...]]] = [(graph.start, ())]
    waiting: dict[tuple[str, tuple[tuple[str, int], ...]], int] = {}
    ended = 0
    while todo:
        name, frames = todo.pop()
        node = graph[name]
        assert [split for split, _ in frames] == list(node.splits)
        if node.kind == "end":
            ended += 1
            continue
        if node.kind == "switch":
            launched = [(chance.choice(node.targets), frames)]
        elif node.kind == "linear":
            launched = [(node.targets[0], frames)]
        elif node.kind == "split":
            launched = [(target, (*frames, (name, index))) for index, target in enumerate(node.targets)]
        else:
            launched = [(node.targets[0], (*frames, (name, index))) for index in range(2)]
        for target, inner in launched:
            if not graph[target].is_join:
                todo.append((target, inner))
                continue
            split = graph[inner[-1][0]]
            assert split.matching_join == target
            key = (target, inner[:-1])
            waiting[key] = waiting.get(key, 0) + 1
            if waiting[key] == (len(split.targets) if split.kind == "split" else 2):
                del waiting[key]
                todo.append(key)
    assert ended == 1
    assert not waiting


STEPS = st.tuples(st.sampled_from("lsfwpe"), st.lists(st.integers(0, 7), min_size=1, max_size=3), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=7))
def test_any_flow_at_all(steps: list[tuple[str, list[int], bool]]) -> None:
    """However wrong a flow is: a graph, problems with a place, and every form for others; a valid one can be drawn."""
    names = ["start", *(f"s{i}" for i in range(1, len(steps)))]
    sources = ["class F(FlowSpec):\n"]
    for name, (kind, numbers, join) in zip(names, steps, strict=True):
        targets = [f"self.{'end' if number == 0 else f's{number}'}" for number in numbers]
        bodies = {
            "l": f"self.next({targets[0]})",
            "s": f"self.next({', '.join(targets)})",
            "f": f"self.next({targets[0]}, foreach='xs')",
            "p": f"self.next({targets[0]}, num_parallel=2)",
            "w": f"self.next({{{', '.join(f'{i}: {item}' for i, item in enumerate(targets))}}}, condition='x')",
            "e": "pass",
        }
        sources.append(write(name, bodies[kind], "self, inputs" if join else "self"))
    graph = build_graph(cell("".join([*sources, write("end", "pass")])))
    problems = lint(graph)
    assert all(problem.where and problem.where.line > 0 and problem.hint for problem in problems)
    assert len(set(problems)) == len(problems)
    assert set(flat(structure(graph))) <= set(graph.nodes)
    assert to_dot(graph)
    assert to_text(graph)
    if not problems:
        assert sorted(flat(structure(graph))) == sorted(graph.nodes) == sorted(graph.order())
        assert all(node.matching_join for node in graph.nodes.values() if node.opens)
        carry_out(graph, random.Random(0))
