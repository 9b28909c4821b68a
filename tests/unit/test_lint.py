"""Lint: each rule with a small flow, told with its line, its headline and its hint; nothing told twice."""

from __future__ import annotations

import importlib.util
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowkit.exceptions import Problem
from flowkit.model.graph import Graph, build_graph
from flowkit.model.lint import RULES, lint, nested_foreach
from flowkit.model.lint_facts import Facts

_COUNT = itertools.count()

HEAD = """\
from flowkit.model.flowspec import FlowSpec, step
from flowkit.model.parameters import Parameter

"""

Load = Callable[[str], Graph]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Write a flow into a file, import it, and return the graph of the last class in it."""
    names = []

    def load(source: str) -> Graph:
        name = f"lint_flow_{next(_COUNT)}"
        path = tmp_path / f"{name}.py"
        path.write_text(HEAD + textwrap.dedent(source), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        names.append(name)
        spec.loader.exec_module(module)
        own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == name]
        return build_graph(own[-1])

    yield load
    for name in names:
        del sys.modules[name]


def flow(*steps: str, name: str = "F") -> str:
    """A class of steps written as ``name(arguments): statement; statement``; a marker ``#1`` stays in its line."""
    lines = [f"class {name}(FlowSpec):"]
    for text in steps:
        head, _, body = text.partition(":")
        *above, head = head.split() if head.startswith("@") else [head]
        lines += [f"    {item}" for item in above if item.startswith("@")]
        if not any(item.startswith(("@step", "@plain")) for item in above):
            lines.append("    @step")
        lines = [line for line in lines if line != "    @plain"]
        head = head if "(" in head else f"{head}(self)"
        body, _, marker = body.partition("#")
        lines.append(f"    def {head}:" + (f"  # {marker}" if marker.startswith("d") else ""))
        statements = [part.strip() for part in body.split(";")]
        lines += [f"        {part}" for part in statements[:-1]]
        lines.append(f"        {statements[-1]}" + (f"  # {marker}" if marker and not marker.startswith("d") else ""))
    return "\n".join(lines) + "\n"


START_END = ("start: self.next(self.end)", "end: pass")

# One case: its name, the flow, and what is told as (marker of the line, headline, text of the hint). The marker of a
# `def` line begins with d.
CASES: list[tuple[str, str, list[tuple[str, str, str]]]] = [
    (
        "a reserved name",
        flow("start: self.next(self.input)", "input: self.next(self.end) #d1", "end: pass"),
        [("d1", "a step cannot be called 'input': every flow has an attribute of that name", "'input_step'")],
    ),
    (
        "the name of a method of FlowSpec",
        flow("start: self.next(self.foreach_stack)", "foreach_stack: self.next(self.end) #d1", "end: pass"),
        [("d1", "a step cannot be called 'foreach_stack': every flow has an attribute of that name", "rename it")],
    ),
    (
        "no start",
        flow("begin: self.next(self.end) #d1", "end: pass"),
        [("d1", "the flow F has no start step", "mark one with @step(start=True); 'begin' looks like it")],
    ),
    (
        "no end",
        flow("start: self.next(self.finish)", "finish: pass #d1"),
        [("d1", "the flow F has no end step", "mark one with @step(end=True); 'finish' looks like it")],
    ),
    ("no steps", "class F(FlowSpec):\n    pass\n", [("", "the flow F has no steps", "@step")]),
    (
        "two starts",
        flow("@step(start=True) a: self.next(self.end)", "@step(start=True) b: self.next(self.end) #d1", "end: pass"),
        [("d1", "the flow has several steps marked as its start: 'a' (line 6) and 'b'", "@step(start=True) on one")],
    ),
    (
        "two ends",
        flow("start: self.next(self.a, self.b)", "@step(end=True) a: pass", "@step(end=True) b: pass #d1"),
        [("d1", "the flow has several steps marked as its end: 'a' (line 9) and 'b'", "keep @step(end=True) on one")],
    ),
    (
        "a marked start and another one called so",
        flow("@step(start=True) a: self.next(self.start)", "start: self.next(self.end) #d1", "end: pass"),
        [("d1", "'a' is marked as the start step, and another step is called 'start'", "rename the step 'start'")],
    ),
    (
        "back to the start",
        flow("start: self.next(self.a)", "a: self.next({1: self.start, 2: self.end}, condition='x') #1", "end: pass"),
        [("1", "step 'a' leads back to the start step 'start'", "let a switch step name itself")],
    ),
    (
        "the start again and again",
        flow("start: self.next(self.start) #1", "end: pass"),
        [("1", "step 'start' leads back to the start step 'start'", "let a switch step name itself")],
    ),
    (
        "back to the start and never to the end",
        flow("start: self.next(self.a)", "a: self.next(self.start) #1", "end: pass"),
        [("1", "step 'a' leads back to the start step 'start'", "let a switch step name itself")],
    ),
    (
        "the end goes on",
        flow("start: self.next(self.end)", "end: self.next(self.start) #1"),
        [("1", "the end step 'end' has a self.next", "remove it, or mark another step with @step(end=True)")],
    ),
    (
        "the end goes on in an if",
        flow("start: self.next(self.end)", "end: self.x = [self.next(self.start)] #1"),
        [("1", "the end step 'end' has a self.next", "remove it")],
    ),
    (
        "the end joins",
        flow(
            "start: self.next(self.a, self.b)", "a: self.next(self.end)", "b: self.next(self.end)",
            "end(self, inputs): pass #d1",
        ),
        [("d1", "the end step 'end' takes inputs", "join in a step of its own before it")],
    ),
    (
        "a name in upper case",
        flow("start: self.next(self.trainModel)", "trainModel: self.next(self.end) #d1", "end: pass"),
        [("d1", "the step name 'trainModel' has characters other than a-z, 0-9 and _, or begins with _",
          "rename it to 'train_model'")],
    ),
    (
        "a name with an underscore before it",
        flow("start: self.next(self._a)", "_a: self.next(self.end) #d1", "end: pass"),
        [("d1", "the step name '_a' has characters other than a-z, 0-9 and _, or begins with _", "rename it to 'a'")],
    ),
    (
        "a name of other letters",
        flow("start: self.next(self.schätzen)", "schätzen: self.next(self.end) #d1", "end: pass"),
        [("d1", "the step name 'schätzen' has characters other than a-z, 0-9 and _, or begins with _", "'sch_tzen'")],
    ),
    (
        "a very long name",
        flow(f"start: self.next(self.{'a' * 129})", f"{'a' * 129}: self.next(self.end) #d1", "end: pass"),
        [("d1", "the step name 'aaaaaaaaaaaaaaaaaaaa…' has 129 characters", "use at most 128")],
    ),
    (
        "no arguments",
        flow("start(): self.next(self.end) #d1", "end: pass"),
        [("d1", "step 'start' takes no arguments", "write def start(self)")],
    ),
    (
        "too many arguments",
        flow("start(self, inputs, alpha=3): self.next(self.end) #d1", "end: pass"),
        [("d1", "step 'start' takes 3 arguments", "values reach a step as artifacts")],
    ),
    (
        "a join that splits",
        flow(
            "start: self.next(self.a, self.b)", "a: self.next(self.j)", "b: self.next(self.j)",
            "j(self, inputs): self.next(self.c, foreach='xs') #1", "c: self.next(self.k)",
            "k(self, inputs): self.next(self.end)", "end: pass",
        ),
        [("1", "step 'j' is a join and a foreach at once", "and put the foreach there")],
    ),
    (
        "no self.next",
        flow("start: self.next(self.a)", "a: self.x = 1 #d1", "b: self.next(self.end)", "end: pass"),
        [("d1", "step 'a' does not end in self.next", "only the end step ('end') has none")],
    ),
    (
        "an unknown step",
        flow("start: self.next(self.tarin) #1", "train: self.next(self.end)", "end: pass"),
        [("1", "step 'start' goes to 'tarin', which is not a step", "did you mean 'train'?")],
    ),
    (
        "a method that is no step",
        flow("start: self.next(self.zzz) #1", "@plain zzz: self.next(self.end)", "end: pass"),
        [("1", "step 'start' goes to 'zzz', which is not a step", "write the step: @step above def zzz(self)")],
    ),
    (
        "a circle",
        flow("start: self.next(self.a)", "a: self.next(self.b)",
             "b: self.next({1: self.a, 2: self.end}, condition='x') #1", "end: pass"),
        [("1", "the steps go round in a circle: a → b → a", "only a switch can repeat, and only its own step")],
    ),
    (
        "a circle of one",
        flow("start: self.next(self.a)", "a: self.next(self.a) #1", "end: pass"),
        [("1", "the steps go round in a circle: a → a", "only a switch can repeat")],
    ),
    (
        "orphans",
        flow(*START_END, "a: self.next(self.b) #d1", "b: self.next(self.end)"),
        [("d1", "step 'a' cannot be reached from 'start' (nor can b)", "name it in the self.next of a step")],
    ),
    (
        "an orphan beside a misspelt step",
        flow("start: self.next(self.tarin) #1", "train: self.next(self.end)", "zz: self.next(self.end) #d1",
             "end: pass"),
        [("1", "step 'start' goes to 'tarin', which is not a step", "did you mean 'train'?"),
         ("d1", "step 'zz' cannot be reached from 'start'", "or remove it")],
    ),
    (
        "the end inside a foreach",
        flow("start: self.next(self.end, foreach='xs')", "end: pass #d1"),
        [("d1", "the flow ends in 'end' while the foreach of 'start' is open", "write a join before 'end'")],
    ),
    (
        "the end inside two foreaches",
        flow("start: self.next(self.a, foreach='xs')", "a: self.next(self.b, foreach='xs')", "b: self.next(self.end)",
             "end: pass #d1"),
        [("d1", "the flow ends in 'end' while the foreach of 'start' and the foreach of 'a' are open", "write a join")],
    ),
    (
        "branches meet in a plain step",
        flow("start: self.next(self.a, self.b)", "a: self.next(self.c)", "b: self.next(self.c)",
             "c: self.next(self.end) #d1", "end: pass"),
        [("d1", "several branches of the split in 'start' meet in 'c', which is not a join", "def c(self, inputs)")],
    ),
    (
        "branches meet in the end",
        flow("start: self.next(self.a, self.b)", "a: self.next(self.end)", "b: self.next(self.end)", "end: pass #d1"),
        [("d1", "several branches of the split in 'start' meet in 'end', which is not a join",
          "join them in a step before: def join(self, inputs)")],
    ),
    (
        "a branch that passes the join",
        flow("start: self.next(self.a, self.b, self.c)", "a: self.next(self.j)", "b: self.next(self.j)",
             "c: self.next(self.end)", "j(self, inputs): self.next(self.end) #d1", "end: pass"),
        [("d1", "the join 'j' does not get all branches of the split in 'start': 'c' is missing",
          "let every branch of 'start' lead to 'j'")],
    ),
    (
        "a join without a split",
        flow("start: self.next(self.j)", "j(self, inputs): self.next(self.end) #d1", "end: pass"),
        [("d1", "the join 'j' has nothing to join: no split or foreach is open there", "write def j(self)")],
    ),
    (
        "a start that joins",
        flow("start(self, inputs): self.next(self.end) #d1", "end: pass"),
        [("d1", "the join 'start' has nothing to join: no split or foreach is open there", "write def start(self)")],
    ),
    (
        "unrelated splits",
        flow("start: self.next(self.a, self.b)", "a: self.next(self.c, foreach='xs')", "c: self.next(self.j)",
             "b: self.next(self.j)", "j(self, inputs): self.next(self.end) #d1", "end: pass"),
        [("d1", "the join 'j' joins what does not belong together: 'c' (inside 'a'), 'b' (inside 'start')",
          "first those of the inner one")],
    ),
    (
        "a split straight into its join",
        flow("start: self.next(self.a, self.j) #1", "a: self.next(self.j)", "j(self, inputs): self.next(self.end)",
             "end: pass"),
        [("1", "the split in 'start' has a branch that leads straight to the join 'j'", "put a step between the two")],
    ),
    (
        "a foreach that two joins close",
        flow("start: self.next(self.a, foreach='xs')", "a: self.next({1: self.b, 2: self.c}, condition='x')",
             "b: self.next(self.j)", "c: self.next(self.k)", "j(self, inputs): self.next(self.end)",
             "k(self, inputs): self.next(self.end) #d1", "end: pass"),
        [("d1", "'k' and 'j' both join the foreach of 'start'", "let all branches of 'start' lead to one join")],
    ),
    (
        "reached from two foreaches",
        flow("start: self.next({1: self.a, 2: self.b}, condition='x')", "a: self.next(self.c, foreach='xs')",
             "b: self.next(self.c, foreach='ys')", "c: self.next(self.j) #d1", "j(self, inputs): self.next(self.end)",
             "end: pass"),
        [("d1", "step 'c' is reached from steps with different open splits: 'a' (inside 'a'), 'b' (inside 'b')",
          "join the branches of each split first")],
    ),
    (
        "a switch without a choice",
        flow("start: self.next({1: self.end, 2: self.end}, condition='x') #1", "end: pass"),
        [("1", "the switch in step 'start' can only go to 'end'", "write self.next(self.end)")],
    ),
    (
        "a loop without a way out",
        flow("start: self.next(self.a)", "a: self.next({True: self.a}, condition='x') #1", "end: pass"),
        [("1", "the switch in step 'a' can only go to 'a'", "it would turn for ever: add a case that leads out")],
    ),
    (
        "a foreach straight into its join",
        flow("start: self.next(self.j, foreach='xs') #1", "j(self, inputs): self.next(self.end)", "end: pass"),
        [("1", "the foreach in step 'start' leads straight to the join 'j'", "put a step between the two")],
    ),
    (
        "num_parallel to a plain step",
        flow("start: self.next(self.a, num_parallel=4)", "a: self.next(self.j) #d1",
             "j(self, inputs): self.next(self.end)", "end: pass"),
        [("d1", "step 'start' starts 'a' with num_parallel, but 'a' is not a @parallel step", "write @parallel above")],
    ),
    (
        "a case that is a join",
        flow("start: self.next(self.a, self.b)", "a: self.next({1: self.c, 2: self.j}, condition='x') #1",
             "b: self.next(self.j)", "c: self.next(self.j)", "j(self, inputs): self.next(self.end)", "end: pass"),
        [("1", "the switch in step 'a' has the join 'j' as a case", "put a step between the two")],
    ),
    (
        "a step defined twice",
        flow("start: self.next(self.end)", "end: pass", "end: self.x = 1 #d1"),
        [("d1", "the step 'end' is defined twice in F: in line 9 and in line 12", "only the last one counts")],
    ),
    (
        "a step and a parameter",
        flow("start: self.next(self.end)", "end: pass #d1")
        .replace("(FlowSpec):\n", "(FlowSpec):\n    end = Parameter('end')\n"),
        [("d1", "'end' is a step and something else in F: in line 5 and in line 10", "rename one of the two")],
    ),
    (
        "a parameter after a step",
        flow("start: self.next(self.train)", "train: self.next(self.end)", "end: pass") + "    train = 3  # 1\n",
        [("1", "'train' is a step and something else in F: in line 9 and in line 14", "rename one of the two")],
    ),
    (
        "a parameter over an inherited step",
        flow("start: self.next(self.a)", "a: self.next(self.end) #d1", "end: pass", name="Base")
        + "class F(Base):\n    a = Parameter('a')\n",
        [("a", "the step 'a' has the same name as a parameter of F", "rename one of the two")],
    ),
    (
        "a step over an inherited parameter",
        "class Base(FlowSpec):\n    a = Parameter('a')\n"
        + flow("start: self.next(self.a)", "a: self.next(self.end)", "end: pass").replace("(FlowSpec)", "(Base)"),
        [("a", "the step 'a' has the same name as the parameter 'a' of Base", "rename one of the two")],
    ),
    (
        "an override without @step",
        flow("start: self.next(self.end)", "end: pass", name="Base")
        + "class F(Base):\n    def end(self):  # d1\n        pass\n",
        [("d1", "F.end replaces a step and is none itself", "write @step above it")],
    ),
    (
        "a decorator that loses the name",
        "def deco(function):\n    def wrapper(self):\n        function(self)\n    return wrapper\n\n"
        + flow("start: self.next(self.end)", "end: pass").replace("    def start", "    @deco\n    def start"),
        [("a", "step 'start': its function is called 'wrapper'", "functools.wraps")],
    ),
]  # fmt: skip


def line_of(source: str, marker: str) -> int | None:
    """The line of a marker in the file; None for one that is not there."""
    for number, line in enumerate((HEAD + source).splitlines(), 1):
        if line.endswith(f"# {marker}"):
            return number
    return None


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rule(load: Load, source: str, expected: list[tuple[str, str, str]]) -> None:
    problems = lint(load(source))
    assert [problem.headline for problem in problems] == [headline for _, headline, _ in expected]
    for problem, (marker, _, hint) in zip(problems, expected, strict=True):
        line = line_of(source, marker)
        assert problem.where is not None
        assert problem.where.file.endswith(".py")
        if line is not None:
            assert problem.where.line == line
        assert problem.hint is not None
        assert hint in problem.hint


NOT_UNDERSTOOD = [
    ("if self.x:\n    self.next(self.end)", "stands inside an if", "a switch"),
    ("for x in [1]:\n    self.next(self.end)", "stands inside a loop", "move it after the block"),
    ("try:\n    self.next(self.end)\nfinally:\n    pass", "stands inside a try block", "move it after the block"),
    ("with open('x'):\n    self.next(self.end)", "stands inside a with block", "move it after the block"),
    ("self.next(self.end)\nprint()", "is not the last statement", "after what stands in line 8"),
    ("return self.next(self.end)", "is returned", "without return"),
    ("x = self.next(self.end)", "is part of another statement", "a statement of its own"),
    ("self.next()", "names no step", "self.next(self.end)"),
    ("self.next(self.end, self.end)", "names the step 'end' twice", "a foreach"),
    ("self.next(*self.steps)", "not '*self.steps'", "name every step"),
    ("self.next(end)", "not 'end'", "write self.next(self.end)"),
    ("self.next('end')", "not the text 'end'", "write self.next(self.end)"),
    ("self.next(self.end())", "not a call of it: 'self.end()'", "without the parentheses"),
    ("self.next([self.end])", "not '[self.end]'", "one after the other"),
    ("self.next(self.end if self.x else self.a)", "takes steps, not", "is a switch"),
    ("self.next(getattr(self, 'end'))", "not 'getattr(self, 'end')'", "self.<step>"),
    ("self.next(self.end, forech='xs')", "has no option 'forech'", "did you mean 'foreach'?"),
    ("self.next(self.end, **options)", "not '**options'", "write the option out"),
    ("self.next(self.end, foreach=self.xs)", "not 'self.xs'", "write foreach='xs'"),
    ("self.next(self.end, foreach=[1, 2])", "not '[1, 2]'", "self.xs = …"),
    ("self.next(self.end, foreach='self.xs')", "foreach='self.xs' is not the name", "foreach='xs'"),
    ("self.next(self.a, self.end, foreach='xs')", "foreach goes to one step, not to 2", "let that one split"),
    ("self.next(self.a, self.end, num_parallel=2)", "num_parallel goes to one step, not to 2", "let that one split"),
    ("self.next(self.a, foreach='xs', num_parallel=2)", "one of foreach and num_parallel", "a step between"),
    ("self.next({1: self.a, 2: self.end})", "a dict without a condition", "condition="),
    ("self.next({}, condition='x')", "the dict of cases is empty", "condition="),
    ("self.next(self.end, condition='x')", "goes with one dict of cases", "condition="),
    ("self.next({1: self.a}, self.end)", "either steps or one dict", "condition="),
    ("self.next({1: self.a, 2: self.end}, foreach='xs')", "foreach does not go with a dict", "condition="),
    ("self.next({1: self.a, 2: self.end}, condition=self.x)", "condition takes the name", "condition='x'"),
    ("self.next({1: self.a, True: self.end}, condition='x')", "two cases of the switch read True", "1, 1.0 and True"),
    ("self.next({1: self.a, '1': self.end}, condition='x')", "two cases of the switch read 1", "make the cases differ"),
    ("self.next({x: self.a, 2: self.end}, condition='x')", "is 'x', which is known only at run time", "a string"),
    ("self.next({None: self.a, 2: self.end}, condition='x')", "is 'None', which", "a string"),
    ("self.next({**cases}, condition='x')", "is a dict that is unpacked", "a string"),
    ("self.next({1: 'a', 2: self.end}, condition='x')", "not the text 'a'", "write self.next(self.a)"),
]


@pytest.mark.parametrize(("body", "headline", "hint"), NOT_UNDERSTOOD, ids=[item[0] for item in NOT_UNDERSTOOD])
def test_transition_not_understood(load: Load, body: str, headline: str, hint: str) -> None:
    source = (
        "class F(FlowSpec):\n    @step\n    def start(self):\n"
        + textwrap.indent(body, " " * 8)
        + "\n    @step\n    def a(self):\n        self.next(self.end)\n    @step\n    def end(self):\n        pass\n"
    )
    graph = load(source)
    problems = [problem for problem in lint(graph) if "cannot be reached" not in problem.headline]
    assert len(problems) == 1
    assert problems[0].headline.startswith("step 'start': ")
    assert headline in problems[0].headline
    assert problems[0].hint is not None
    assert hint in problems[0].hint
    first = (HEAD + source).splitlines().index("    def start(self):") + 1
    assert problems[0].where == graph["start"].next_location
    assert problems[0].where is not None
    assert first < problems[0].where.line <= first + 2


def test_async_step(load: Load) -> None:
    source = flow(*START_END).replace("def start", "async def start")
    (problem,) = lint(load(source))
    assert problem.headline == "step 'start': a step cannot be an async function"


def test_everything_at_once(load: Load) -> None:
    """Mistakes of many kinds are told together, and none of what only follows from them."""
    source = flow(
        "start: self.next(self.a, self.b, self.Big) #1",
        "a: self.next(self.jion) #2",
        "b: self.next(self.c, foreach=self.xs) #3",
        "c: self.next(self.join)",
        "Big(self): self.next(self.join) #d4",
        "join(self, inputs): self.next(self.end)",
        "lost: pass #d5",
        "end(self, inputs): pass #d6",
    )
    problems = lint(load(source))
    assert [problem.where.line for problem in problems if problem.where] == [
        line_of(source, marker) for marker in ("d6", "d4", "d5", "3", "2", "d5")
    ]
    assert [problem.headline for problem in problems][-1] == "step 'lost' cannot be reached from 'start'"


def test_valid_flows(load: Load) -> None:
    for source in (
        flow(*START_END),
        flow("only: self.x = 1"),
        flow("start: self.next({True: self.start, False: self.end}, condition='x')", "end: pass"),
        flow("@step(start=True) a: self.next(self.b)", "@step(end=True) b: pass"),
        flow("start: self.next(self.a)", "a: self.next({True: self.a, False: self.end}, condition='x')", "end: pass"),
        flow("start: self.next({self.config.k: self.a, 'b': self.end, -1: self.a}, condition='x')",
             "a: self.next(self.end)", "end: pass"),
        # a switch in a branch of a split, whose cases go to the join on their own
        flow("start: self.next(self.a, self.b)", "a: self.next({1: self.c, 2: self.d}, condition='x')",
             "b: self.next(self.j)", "c: self.next(self.j)", "d: self.next(self.j)",
             "j(self, inputs): self.next(self.end)", "end: pass"),
        # a loop in a foreach, and a foreach in a case of a switch
        flow("start: self.next({1: self.f, 2: self.g}, condition='x')", "f: self.next(self.a, foreach='xs')",
             "a: self.next({1: self.a, 2: self.b}, condition='x')", "b: self.next(self.j)",
             "j(self, inputs): self.next(self.g)", "g: self.next(self.end)", "end: pass"),
    ):  # fmt: skip
        assert lint(load(source)) == [], source


PARALLEL = "from flowkit.decorators.parallel import parallel\n\n"


def test_gangs(load: Load) -> None:
    good = flow("start: self.next(self.a, num_parallel=self.n)", "@parallel @step a: self.next(self.j)",
                "j(self, inputs): self.next(self.end)", "end: pass")  # fmt: skip
    graph = load(PARALLEL + good)
    assert lint(graph) == []
    assert [problem.headline for problem in lint(graph, {"pytorch_parallel"})] == [
        "step 'start' starts 'a' with num_parallel, but 'a' is not a @parallel step"
    ]
    assert [
        problem.headline for problem in lint(load(PARALLEL + good.replace("num_parallel=self.n", "foreach='x'")))
    ] == ["step 'start' leads to the @parallel step 'a' without num_parallel"]
    between = good.replace("self.next(self.j)", "self.next(self.b)")
    between += "    @step\n    def b(self):\n        self.next(self.j)\n"
    assert [problem.headline for problem in lint(load(PARALLEL + between))] == [
        "the @parallel step 'a' is not followed by a join"
    ]
    at_start = flow("@parallel @step start: self.next(self.end)", "end: pass")
    assert [problem.headline for problem in lint(load(PARALLEL + at_start))] == [
        "the @parallel step 'start' is not followed by a join",
        "the start step 'start' cannot be a @parallel step",
    ]


def test_nested_foreach(load: Load) -> None:
    nested = flow(
        "start: self.next(self.a, foreach='xs')", "a: self.next(self.b, self.c)",
        "b: self.next(self.d, foreach='ys')", "d: self.next(self.k)", "k(self, inputs): self.next(self.l)",
        "l: self.next(self.j)", "c: self.next(self.j)", "j(self, inputs): self.next(self.m)",
        "m(self, inputs): self.next(self.end)", "end: pass",
    )  # fmt: skip
    graph = load(nested)
    assert lint(graph) == []
    (problem,) = nested_foreach(graph)
    assert problem == Problem(
        "the foreach in step 'b' is inside the foreach of 'start'", graph["b"].next_location, problem.hint
    )


def test_no_source() -> None:
    """A flow made by exec has no source to read; that is told once."""
    space: dict[str, type] = {}
    exec(HEAD + flow(*START_END), space)
    (problem,) = lint(build_graph(space["F"]))
    assert problem.headline == "the source of a step cannot be read: 'start', 'end'"
    assert problem.hint is not None
    assert "write the step with def in a file or a notebook cell" in problem.hint


def test_every_rule_has_a_sentence() -> None:
    assert len(set(RULES)) == len(RULES) == 20
    assert all(re.fullmatch(r"[A-Z@W].*\.(\n.*)*", rule.__doc__ or "", re.DOTALL) for rule in RULES)


def test_facts_are_shared(load: Load) -> None:
    graph = load(flow(*START_END))
    facts = Facts(graph, {"parallel"}, graph.order(), frozenset())
    assert [list(rule(facts)) for rule in RULES] == [[]] * len(RULES)
