"""What the data-flow check warns of, and where it stays silent."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import READ_ONLY, Program, trace

from flowkit.decorators.catch import catch
from flowkit.exceptions import Problem
from flowkit.model.dataflow import step_data, undefined_reads
from flowkit.model.definition import FlowDefinition, define
from flowkit.model.flowspec import FlowSpec, step
from flowkit.model.lint import lint

Load = Callable[..., FlowDefinition]
HEAD = """\
import contextlib, functools, tempfile, threading
from typing import TYPE_CHECKING
from flowkit import FlowSpec, IncludeFile, Parameter, catch, retry, step, timeout
def maybe(): return True
def give(flow): flow.x = 1
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that makes a flow of the source of its class (the last one in it)."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def load(source: str, **others: str) -> FlowDefinition:
        for name, text in others.items():
            (tmp_path / f"{name}.py").write_text(HEAD + textwrap.dedent(text))
            made.append(name)
        file = tmp_path / f"flow{len(made)}.py"
        file.write_text(HEAD + textwrap.dedent(source))
        made.append(file.stem)
        module = __import__(file.stem)
        flows = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == file.stem]
        definition = define(flows[-1])
        assert lint(definition.graph) == []
        return definition

    yield load
    for name in made:
        sys.modules.pop(name, None)


def told(definition: FlowDefinition) -> list[str]:
    """The names that are warned of, with what stands in that line."""
    return [_name(problem) for problem in undefined_reads(definition)]


def _name(problem: Problem) -> str:
    match = re.search(r"self\.(\w+)|reads '(\w+)'", problem.headline)
    assert match
    return match[1] or match[2]


def body(*lines: str, after: str = "pass", extra: str = "") -> str:
    """A flow of two steps: the lines in the first, then what comes in the second; more methods by `extra`."""
    first = "\n".join(f"        {line}" for line in "\n".join(lines).splitlines())
    second = "\n".join(f"        {line}" for line in after.splitlines())
    methods = textwrap.indent(textwrap.dedent(extra), "    ")
    return (
        f"class F(FlowSpec):\n{methods}\n    @step\n    def start(self):\n{first}\n        self.next(self.end)\n\n"
        f"    @step\n    def end(self):\n{second}\n"
    )


# -- what is told --------------------------------------------------------------------------------------------------


def test_a_typing_mistake_is_told_with_its_place_and_the_nearest_name(load):
    definition = load(body("self.alpha = 1", after="print(self.alhpa)"))
    (problem,) = undefined_reads(definition)
    assert problem.headline == "step 'end' reads self.alhpa, which no path sets before"
    assert problem.hint == "did you mean 'alpha'?"
    assert problem.where is not None
    assert problem.where.file == definition.file
    assert "self.alhpa" in Path(definition.file).read_text().splitlines()[problem.where.line - 1]


@pytest.mark.parametrize(
    "lines",
    [
        "print(self.x)",
        "self.y = [self.x for _ in range(3)]",
        "self.x += 1",
        "self.x.append(1)",
        "self.x[0] = 1",
        "self.x.y = 1",
        "print(f'{self.x}')",
        "if maybe(): print(self.x)",
        "print(maybe() and self.x)",
        "print(1 if maybe() else self.x)",
        "for _ in range(2): print(self.x)",
        "while self.x: pass",
        "print(self.x)\nself.x = 1",
        "self.x = 1\ndel self.x\nprint(self.x)",
        "self.x: int\nprint(self.x)",
        "with open('f') as file: print(self.x)",
        "with contextlib.closing(maybe()): print(self.x)",
        "with tempfile.TemporaryDirectory(): print(self.x)",
        "try:\n    print(self.x)\nexcept (ValueError, KeyError): pass",
        "try:\n    print(self.x)\nfinally: pass",
        "try:\n    pass\nexcept AttributeError: print(self.x)",
        "match maybe():\n    case True: print(self.x)",
        "print(sum(self.x for _ in range(2)))",
        "print(getattr(self, 'x'))",
        "if maybe(): self.z = 1\nelse: print(self.x)",
        "if maybe():\n    self.x = 1\n    del self.x\nelse: pass\nprint(self.x)",
        "print(isinstance(self, F), type(self).__name__, self.x)",
        "self.x()",
        "lambda: 1\nprint(self.x)",
        "def inner(self): self.x = 1\nprint(self.x)",
        "if TYPE_CHECKING: self.x = 1\nprint(self.x)",
    ],
)
def test_what_nothing_sets_is_told(load, lines):
    assert set(told(load(body(lines)))) == {"x"}


@pytest.mark.parametrize(
    ("lines", "extra"),
    [
        ("self.helper()", "def helper(self): return self.x"),
        ("self.one()", "def one(self): self.two()\ndef two(self): return self.x"),
        ("print(self.value)", "@property\ndef value(self): return self.x"),
        (
            "self.value = 1",
            "@property\ndef value(self): return 1\n@value.setter\ndef value(self, new): self.y = self.x",
        ),
        ("print(self.value)", "@functools.cached_property\ndef value(self): return self.x"),
        ("self.helper()\nprint(self.x)", "def helper(self): self.x = 1; del self.x"),
        ("print(self.x)", "def helper(self): self.x = 1"),
        ("print(self.x)", "def __init__(self, use_cli=True):\n    self.x = 1\n    super().__init__(use_cli)"),
        ("F.helper(self)", "def helper(self): return self.x"),
        ("print(self.__x)", "def helper(self): self.x = 1"),
    ],
)
def test_methods_of_the_flow_are_followed(load, lines, extra):
    assert [name.removeprefix("_F__") for name in told(load(body(lines, extra=extra)))] == ["x"]


def test_a_read_in_a_method_tells_the_step_and_the_method_and_each_place_once(load):
    source = body(
        "self.one()", after="self.one()", extra="def one(self): self.two()\ndef two(self): return self.missing"
    )
    (problem,) = undefined_reads(load(source))
    assert problem.headline == "step 'start' (and 1 more) reads self.missing in two(), which no path sets before"


def test_base_classes_and_mixins_in_other_files_are_followed(load):
    base = """
        class Base(FlowSpec):
            size = 3
            @step
            def start(self):
                self.rows = self.prepare()
                self.next(self.end)
        class Mixin:
            def prepare(self):
                self.width = self.size
                return self.hidden
        """
    flow = """
        from base import Base, Mixin
        class Child(Mixin, Base):
            @step
            def end(self):
                print(self.rows, self.width, self.widht)
            def prepare(self):
                return super().prepare()
        """
    problems = undefined_reads(load(flow, base=base))
    assert [(Path(problem.where.file).name, _name(problem)) for problem in problems] == [
        ("flow1.py", "widht"),
        ("base.py", "hidden"),
    ]


JOIN = """
    class F(FlowSpec):
        const = 1
        alpha = Parameter("alpha", default=1)
        @step
        def start(self):
            self.before = 1
            self.items = [1, 2]
            self.next(self.train, foreach="items")
        {decorators}
        @step
        def train(self):
            self.score = self.before + self.input + self.index
            self.next(self.join)
        @step
        def join(self, inputs):
            {lines}
            self.next(self.end)
        @step
        def end(self):
            {after}
    """


def join(lines: str, after: str = "pass", decorators: str = "") -> str:
    indented = lines.replace("\n", "\n" + " " * 12)
    return textwrap.dedent(JOIN).format(lines=indented.replace(" " * 12, " " * 8), after=after, decorators=decorators)


@pytest.mark.parametrize(
    "lines",
    [
        "print(self.score)",
        "print(self.before)",
        "print(inputs[0].scoer)",
        "print(inputs.train.scoer)",
        "print([item.scoer for item in inputs])",
        "for item in inputs: print(item.scoer)",
        "for k, item in enumerate(inputs): print(item.scoer)",
        "first = inputs[0]\nprint(first.scoer)",
        "self.merge_artifacts(inputs, exclude=['score'])\nprint(self.score)",
        "self.merge_artifacts(inputs, include=['before'])\nprint(self.score)",
        "print(self.before)\nself.merge_artifacts(inputs)",
        "print(max(item.scoer for item in inputs), len(inputs))",
    ],
)
def test_a_join_begins_without_artifacts_and_its_inputs_have_theirs(load, lines):
    assert len(told(load(join(lines)))) == 1


def test_the_way_past_a_join_is_explained(load):
    first, second = undefined_reads(load(join("print(self.score)", "print(self.before)")))
    assert "take inputs[0].score, or call self.merge_artifacts(inputs)" in str(first.hint)
    assert "artifacts do not pass a join" in str(second.hint)


def test_what_foreach_and_condition_name_must_be_set(load):
    source = """
        class F(FlowSpec):
            @step
            def start(self):
                self.kinds = "a"
                self.next({"a": self.a, "b": self.b}, condition="kind")
            @step
            def a(self):
                self.next(self.c)
            @step
            def b(self):
                self.next(self.c)
            @step
            def c(self):
                self.next(self.each, foreach="itens")
            @step
            def each(self):
                self.next(self.join)
            @step
            def join(self, inputs):
                self.next(self.end)
            @step
            def end(self):
                pass
        """
    first, second = undefined_reads(load(source))
    assert first.headline == "step 'start' has condition='kind', but no path sets self.kind"
    assert first.hint == "did you mean 'kinds'?"
    assert second.headline == "step 'c' has foreach='itens', but no path sets self.itens"


def test_a_name_of_another_branch_and_of_a_later_step_is_told(load):
    source = """
        class F(FlowSpec):
            @step
            def start(self):
                print(self.one)
                self.next(self.a, self.b)
            @step
            def a(self):
                self.one = 1
                self.next(self.join)
            @step
            def b(self):
                print(self.one)
                self.next(self.join)
            @step
            def join(self, inputs):
                print(inputs.a.one, inputs[1].one, inputs.b.one)
                self.next(self.end)
            @step
            def end(self):
                print(self.one)
        """
    problems = undefined_reads(load(source))
    assert [problem.headline.split(",")[0] for problem in problems] == [
        "step 'start' reads self.one",
        "step 'b' reads self.one",
        "step 'join' reads 'one' of inputs.b",
        "step 'end' reads self.one",
    ]
    assert problems[1].hint == "step 'a' sets it, but no path leads from there to here"


def test_init_does_not_run_in_tasks(load):
    extra = "def __init__(self, use_cli=True):\n    self.early = 1\n    super().__init__(use_cli)"
    (problem,) = undefined_reads(load(body("print(self.early)", extra=extra)))
    assert "__init__ does not run in tasks" in str(problem.hint)


# -- where it stays silent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        "if maybe(): self.x = 1\nprint(self.x)",
        "for self.x in [1]: pass\nprint(self.x)",
        "for _ in range(2):\n    if maybe(): print(self.x)\n    self.x = 1",
        "while True:\n    if maybe(): break\n    if maybe(): print(self.x)\n    self.x = 1",
        "while maybe():\n    if maybe():\n        self.x = 1\n        continue\n    print(self.x)",
        "with open('f') as self.x: print(self.x)",
        "self.x, self.y = 1, 2\nprint(self.x)",
        "self.x = self.y = 1\nprint(self.x)",
        "self.x: int = 1\nprint(self.x)",
        "(self.y, [self.x, *self.z]) = 1, [2, 3]\nprint(self.x)",
        "setattr(self, 'x', 1)\nprint(self.x)",
        "setattr(self, 'x'[:], 1)\nprint(self.x)",
        "for name in ['x']: setattr(self, name, 1)\nprint(self.x)",
        "if hasattr(self, 'x'): print(self.x)",
        "if getattr(self, 'x', None): print(self.x)",
        "print(getattr(self, 'x', 1))",
        "print(getattr(self, 'x'[:]))\nprint(self.x)",
        "try:\n    print(self.x)\nexcept AttributeError: pass",
        "try:\n    print(self.x)\nexcept Exception: pass",
        "try:\n    print(self.x)\nexcept: pass",
        "Missing = AttributeError\ntry:\n    print(self.x)\nexcept Missing: pass",
        "try:\n    self.x = 1\n    maybe()\nexcept ValueError: print(self.x)",
        "try:\n    self.x = 1\nfinally: print(self.x)",
        "try:\n    pass\nfinally: self.x = 1\nprint(self.x)",
        "for _ in range(2):\n    try:\n        break\n    finally: self.x = 1\nprint(self.x)",
        "with contextlib.suppress(AttributeError): print(self.x)",
        "with maybe(): print(self.x)",
        "give(self)\nprint(self.x)",
        "me = self\nme.x = 1\nprint(self.x)",
        "flows = [self]\nflows[0].x = 1\nprint(self.x)",
        "vars(self)['x'] = 1\nprint(self.x)",
        "vars()['self'].x = 1\nprint(self.x)",
        "self.__dict__['x'] = 1\nprint(self.x)",
        "exec('self.x = 1')\nprint(self.x)",
        "F.x = 1\nprint(self.x)",
        "type(self).x = 1\nprint(self.x)",
        "self.__class__.x = 1\nprint(self.x)",
        "def later(): self.x = 1\nlater()\nprint(self.x)",
        "def later(): return self.x\nprint(later)",
        "later = lambda: self.x\nprint(later)",
        "rows = (self.x for _ in range(2))\nprint(rows)",
        "class Inner:\n    def work(inner): self.x = 1\nInner().work()\nprint(self.x)",
        "def inner(self): return self.x\nprint(inner)",
        "[setattr(self, 'x', 1) for _ in range(2)]\nprint(self.x)",
        "print([self.x for _ in range(2) if setattr(self, 'x', 1) or True])",
        "raise ValueError\nprint(self.x)",
        "if False: print(self.x)",
        "if not True: print(self.x)",
        "if TYPE_CHECKING: print(self.x)",
        "while True: maybe()\nprint(self.x)",
        "self = self\nprint(self.x)",
        "self.x = 1\nif maybe(): del self.x\nprint(self.x)",
        "self.x = 1\ndel self.x\nself.x = 2\nprint(self.x)",
        "match maybe():\n    case True: self.x = 1\n    case _: pass\nprint(self.x)",
        "print(self.input, self.index, self.foreach_stack(), self.__class__, self.__doc__, self.start)",
        "import sys\nsys._getframe().f_locals['self'].x = 1\nprint(self.x)",
        "from operator import attrgetter\nprint(attrgetter('x')(self))",
    ],
)
def test_what_may_be_set_is_not_told(load, lines):
    assert told(load(body(lines))) == []


@pytest.mark.parametrize(
    ("lines", "extra"),
    [
        ("self.helper()\nprint(self.x)", "def helper(self): self.x = 1"),
        ("self.helper()\nprint(self.x)", "@classmethod\ndef helper(cls): cls.x = 1"),
        ("self.helper(self)\nprint(self.x)", "@staticmethod\ndef helper(flow): flow.x = 1"),
        ("super().helper()\nprint(self.x)", "def helper(self): self.x = 1"),
        ("self.helper(2)\nprint(self.x)", "def helper(self, n):\n    if n: self.helper(n - 1)\n    self.x = 1"),
        ("self.helper(2)", "def helper(self, n):\n    if n < 2: print(self.x)\n    self.x = 1\n    self.helper(n - 1)"),
        ("self.helper(0)\nself.x = 1\nself.helper(1)", "def helper(self, n):\n    if n: print(self.x)"),
        ("print(list(self.rows()), self.x)", "def rows(self):\n    yield 1\n    self.x = 1"),
        ("call = self.helper\ncall()\nprint(self.x)", "def helper(self): self.x = 1"),
        ("threading.Thread(target=self.helper).start()\nprint(self.x)", "def helper(self): self.x = 1"),
        ("call = self.helper\nself.x = 1\ncall()", "def helper(self): return self.x"),
        ("print(self.value, self.x)", "@property\ndef value(self): self.x = 1"),
        ("print(self.value, self.value)", "@functools.cached_property\ndef value(self): return 1"),
        ("self.helper()\nprint(self.x)", "@functools.lru_cache\ndef helper(self): self.x = 1"),
        ("self.helper()\nprint(self.x)", "helper = lambda self: setattr(self, 'x', 1)"),
        ("self.helper()\nprint(self.x)", "helper = functools.partialmethod(give)\nhelper = property(give)"),
        ("getattr(self, 'help' + 'er')()\nprint(self.x)", "def helper(self): self.x = 1"),
        ("with self.kept(): print(self.x)", "@contextlib.contextmanager\ndef kept(self):\n    self.x = 1\n    yield"),
        ("print(self.x)", "x = 1"),
        ("print(self.x)", "x = Parameter('x', default=1)"),
        ("print(self.x)", "x = IncludeFile('x')"),
        ("print(self.x)", "class x: pass"),
        ("print(self.x)", "def __getattr__(self, name): return 1"),
        ("self.__x = 1\nself.helper()", "def helper(self): return self.__x"),
        ("self.fail()\nprint(self.x)", "def fail(self): raise ValueError"),
        ("self.fail()\nprint(self.x)", "def fail(self):\n    if maybe(): return\n    self.x = 1"),
        ("try: self.helper()\nexcept AttributeError: pass", "def helper(self): return self.x"),
        ("self.helper = lambda: 1\nself.helper()", "def helper(self): return self.x"),
    ],
)
def test_what_methods_may_set_is_not_told(load, lines, extra):
    assert told(load(body(lines, extra=extra))) == []


@pytest.mark.parametrize(
    "lines",
    [
        "self.merge_artifacts(inputs)\nprint(self.score, self.before)",
        "self.merge_artifacts(inputs=inputs, exclude=['score'])\nprint(self.before)",
        "self.merge_artifacts(inputs, include=['score'])\nprint(self.score)",
        "names = ['before']\nself.merge_artifacts(inputs, names)\nprint(self.score)",
        "if maybe(): self.merge_artifacts(inputs)\nprint(self.score)",
        "self.helper(inputs)\nprint(self.score)",
        "print(inputs[0].score, inputs.train.before, inputs[0].alpha, inputs[0].const, inputs[0].input)",
        "print(self.alpha, self.const, self.items if hasattr(self, 'items') else 0)",
        "for item in inputs: item.new = 1\nprint(inputs[0].new)",
        "for item in list(inputs): item.new = 1\nprint(inputs[0].new)",
        "for item in inputs: give(item)\nprint(inputs[0].x)",
        "give(inputs[0])\nprint(inputs[0].x)",
        "item = object()\nprint([item.nothing for item in [1]])",
        "for item in inputs: pass\nitem = 1\nprint(item.nothing)",
        "one, two = inputs\none.x = 1\nprint(inputs[0].x)",
        "if hasattr(inputs[0], 'x'): print(inputs[0].x)",
        "print(max(inputs, key=lambda item: item.score).nothing)",
        "print(inputs.nobody.x)",
        "inputs = [self]\nprint(inputs[0].x)",
        "try: print(inputs[0].x)\nexcept AttributeError: pass",
    ],
)
def test_joins_that_may_be_right_are_not_told(load, lines):
    definition = load(join(lines) + "\n    def helper(self, some):\n        self.merge_artifacts(some)\n")
    assert told(definition) == []


def test_catch_sets_its_artifact_and_keeps_what_was_set_before_the_failure(load):
    after = "print(self.failure, self.part)"
    source = body("self.part = 1", "del self.part", after=after).replace(
        "    @step", "    @catch(var='failure')\n    @step", 1
    )
    assert told(load(source)) == []
    assert told(load(join("print(inputs[0].failure)", decorators="@catch(var='failure')"))) == []
    assert told(load(join("print(inputs[0].failure)", decorators="@retry\n    @timeout(seconds=5)"))) == ["failure"]


def test_a_step_in_somebody_elses_wrapper_may_set_anything(load):
    source = """
        def wrapped(function):
            @functools.wraps(function)
            def around(self):
                self.x = 1
                function(self)
            return around
        class F(FlowSpec):
            @step
            @wrapped
            def start(self):
                print(self.x, self.y)
                self.next(self.end)
            @step
            def end(self):
                print(self.x)
        """
    assert told(load(source)) == []


def test_a_decorator_of_another_package_may_set_anything(load):
    source = """
        from flowkit.decorators.attach import step_decorator
        from flowkit.decorators.contract import StepDecorator
        class Giving(StepDecorator):
            name = "giving"
            def around(self, task, proceed):
                task.flow.x = 1
                proceed()
        giving = step_decorator(Giving)
        class F(FlowSpec):
            @giving
            @step
            def start(self):
                print(self.x)
                self.next(self.end)
            @step
            def end(self):
                print(self.x)
        """
    assert told(load(source)) == []


def test_a_turn_of_a_loop_step_sees_what_the_turn_before_it_set(load):
    source = """
        class F(FlowSpec):
            @step
            def start(self):
                self.first = True
                self.next(self.turn)
            @step
            def turn(self):
                if not self.first:
                    print(self.last, self.never)
                self.first = False
                self.last = 1
                self.more = "no"
                self.next({"yes": self.turn, "no": self.end}, condition="more")
            @step
            def end(self):
                print(self.last)
        """
    assert told(load(source)) == ["never"]


def test_a_flow_that_is_not_valid_has_no_warnings():
    class Broken(FlowSpec):
        @step
        def start(self):
            if print(self.x):  # type: ignore[attr-defined]
                self.next(self.end)

        @step
        def end(self):
            pass

    assert undefined_reads(define(Broken)) == []


def test_a_flow_without_source_is_not_judged():
    space: dict[str, Any] = {"FlowSpec": FlowSpec, "step": step, "__name__": "nowhere"}
    exec("class F(FlowSpec):\n    @step\n    def start(self):\n        print(self.x)", space)
    assert undefined_reads(define(space["F"])) == []


def test_deep_code_is_left_alone(load):
    deep = "+".join(["self.x"] * 3000)
    methods = "\n".join(f"def m{n}(self): self.m{n + 1}()" for n in range(200)) + "\ndef m200(self): self.x = 1"
    assert told(load(body("self.m0()", "print(self.x)", extra=methods))) == []
    limit = sys.getrecursionlimit()
    try:
        definition = load(body(f"print({deep})"))
    except (RecursionError, MemoryError):  # some Pythons do not compile it
        return
    assert set(told(definition)) <= {"x"}
    assert sys.getrecursionlimit() == limit


# -- facts ---------------------------------------------------------------------------------------------------------


def test_the_data_of_each_step(load):
    source = body(
        "self.always = 1",
        "if maybe(): self.sometimes = self.size",
        "else: self.either = 1",
        "self.helper()",
        "del self.always",
        extra="size = 3\ndef helper(self): self.by_helper = self.always",
        after="try: self.kept = 1\nexcept ValueError: pass\nself.both = self.by_helper\ngive(self)",
    )
    start, end = step_data(load(source)).values()
    assert start.reads == {"always"}
    assert start.sets == {"always", "sometimes", "either", "by_helper"}
    assert start.surely_sets == {"by_helper"}
    assert not start.unsure
    assert end.reads == {"by_helper"}
    assert end.surely_sets == {"both"}
    assert end.unsure


# -- random flows --------------------------------------------------------------------------------------------------


def warned(program: Program) -> tuple[set[tuple[str, int, str]], Any]:
    """Return what is warned of, as (step, line, name), and the steps."""
    definition = define(program.load(FlowSpec=FlowSpec, step=step, catch=catch, **READ_ONLY))
    assert lint(definition.graph) == [], program.source
    found = set()
    for problem in undefined_reads(definition):
        match = re.match(r"step '(\w+)'", problem.headline)
        assert match is not None
        assert problem.where is not None
        found.add((match[1], problem.where.line, _name(problem)))
    return found, definition.graph.nodes


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9))
def test_no_warning_is_false_in_flows_with_branches_loops_and_tricks(seed):
    program = Program(seed, branching=True)
    found, nodes = warned(program)
    assert not found & trace(program, nodes, range(20)).found, program.source


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9))
def test_in_straight_code_exactly_what_fails_is_told(seed):
    program = Program(seed, branching=False)
    found, nodes = warned(program)
    told = trace(program, nodes, range(1), go_on=True)
    lines = program.source.splitlines()
    # `inputs[0]` is judged by all inputs together, and a line of a method by all its callers.
    sure = {place for place in told.missed if "inputs[" not in lines[place[1] - 1]}
    assert found <= told.missed - told.found, program.source
    assert {place for place in sure if place not in told.found} <= found, program.source
