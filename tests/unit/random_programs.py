"""Random flows whose truth is known by running them, for the tests of the data-flow check.

`Program` writes the source of a flow: random statements about a few artifact names, in steps of a random graph.
`trace` runs that source on a flow class of its own, which knows nothing of flowkit: it takes note of every read of an
artifact that worked and of every one that did not, as (step, line, name).
"""

from __future__ import annotations

import contextlib
import linecache
import random
import sys
from types import CodeType
from typing import Any

NAMES = ("alpha", "beta", "gamma", "delta", "omega")
SIMPLE = ("set", "set", "set", "copy", "read", "del", "add", "merge_in", "inputs", "input_loop")
"""Statements that always run, one after the other."""
BRANCHING = (
    *SIMPLE, "if", "if", "for", "while", "try", "finally", "suppress", "helper", "shared", "property", "guard",
    "getattr", "setattr", "lambda", "nested", "comprehension", "generator", "alias", "escape", "callback", "match",
    "short", "with", "dynamic", "super", "leave",
)  # fmt: skip


class Program:
    """The source of one random flow.

    Parameters
    ----------
    seed : int
        Decides everything.
    branching : bool
        Whether statements may be skipped, repeated or hidden; else every line of every step runs.
    """

    def __init__(self, seed: int, *, branching: bool) -> None:
        self._seed = seed
        self._code: CodeType | None = None
        self._random = random.Random(seed)
        self._kinds = BRANCHING if branching else SIMPLE
        self._branching = branching
        self._lines: list[str] = []
        self._helpers: list[str] = []
        self._bases: list[str] = []
        self._count = 0
        self._steps: list[tuple[str, bool, list[str]]] = []
        self._graph()
        self.source = self._write()

    # -- the graph ----------------------------------------------------------------------------------------------

    def _graph(self) -> None:
        shapes = ["linear", "split", "foreach", *(["switch", "loop"] if self._branching else [])]
        name, is_join = "start", False
        for _ in range(self._random.randint(1, 4)):
            name, is_join = getattr(self, f"_{self._random.choice(shapes)}")(name, is_join)
        self._step(name, is_join, "self.next(self.end)")
        self._step("end", False, "pass")

    def _linear(self, name: str, is_join: bool) -> tuple[str, bool]:
        following = self._fresh("line")
        self._step(name, is_join, f"self.next(self.{following})")
        return following, False

    def _split(self, name: str, is_join: bool) -> tuple[str, bool]:
        if is_join:
            name, is_join = self._linear(name, is_join)
        one, two, join = self._fresh("one"), self._fresh("two"), self._fresh("join")
        self._step(name, is_join, f"self.next(self.{one}, self.{two})")
        for branch in (one, two):
            self._step(branch, False, f"self.next(self.{join})")
        return join, True

    def _foreach(self, name: str, is_join: bool) -> tuple[str, bool]:
        if is_join:
            name, is_join = self._linear(name, is_join)
        each, join = self._fresh("each"), self._fresh("join")
        self._step(name, is_join, "self.items = [1, 2]", f"self.next(self.{each}, foreach='items')")
        self._step(each, False, f"self.next(self.{join})")
        return join, True

    def _switch(self, name: str, is_join: bool) -> tuple[str, bool]:
        if is_join:
            name, is_join = self._linear(name, is_join)
        one, two, after = self._fresh("case"), self._fresh("case"), self._fresh("line")
        choice = "self.choice = 'one' if pick() else 'two'"
        self._step(name, is_join, choice, f"self.next({{'one': self.{one}, 'two': self.{two}}}, condition='choice')")
        for branch in (one, two):
            self._step(branch, False, f"self.next(self.{after})")
        return after, False

    def _loop(self, name: str, is_join: bool) -> tuple[str, bool]:
        again, after = self._fresh("loop"), self._fresh("line")
        self._step(name, is_join, f"self.next(self.{again})")
        choice = "self.choice = 'go' if pick() else 'stop'"
        ending = f"self.next({{'go': self.{again}, 'stop': self.{after}}}, condition='choice')"
        self._step(again, False, choice, ending)
        return after, False

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    # -- statements ---------------------------------------------------------------------------------------------

    def _step(self, name: str, is_join: bool, *ending: str) -> None:
        self._shared_here: set[str] = set()
        caught = self._branching and ending[-1].startswith("self.next(self.") and "foreach" not in ending[-1]
        caught = caught and ending[-1].count("self.") == 2 and self._random.random() < 0.15
        head = ["@catch(var='caught')"] if caught else []
        head += ["@step", f"def {name}(self{', inputs' if is_join else ''}):"]
        lines = self._block(2, is_join, "step")
        self._steps.append((name, is_join, [*head, *(f"    {line}" for line in (*lines, *ending))]))

    def _block(self, depth: int, is_join: bool, where: str) -> list[str]:
        lines: list[str] = []
        for _ in range(self._random.randint(1, 5 if where == "step" else 3)):
            kind = self._random.choice(self._kinds)
            if depth <= 0 and kind not in SIMPLE:
                kind = "set"
            lines += getattr(self, f"_make_{kind}")(depth - 1, is_join, where)
        return lines or ["pass"]

    def _name(self) -> str:
        return self._random.choice(NAMES)

    def _inner(self, depth: int, is_join: bool, where: str) -> list[str]:
        return [f"    {line}" for line in self._block(depth, is_join, where)]

    def _make_set(self, *_: Any) -> list[str]:
        return [f"self.{self._name()} = 1"]

    def _make_copy(self, *_: Any) -> list[str]:
        return [f"self.{self._name()} = self.{self._name()}"]

    def _make_read(self, *_: Any) -> list[str]:
        return [f"use(self.{self._name()})"]

    def _make_del(self, *_: Any) -> list[str]:
        return [f"del self.{self._name()}"] if self._random.random() < 0.5 else []

    def _make_add(self, *_: Any) -> list[str]:
        return [f"self.{self._name()} += 1"]

    def _make_merge_in(self, _depth: int, is_join: bool, where: str) -> list[str]:
        if not is_join:
            return []
        return [
            self._random.choice(
                [
                    "self.merge_artifacts(inputs)",
                    f"self.merge_artifacts(inputs, exclude=['{self._name()}', 'caught'])",
                ]
            )
        ]

    def _make_inputs(self, _depth: int, is_join: bool, where: str) -> list[str]:
        return [f"use(inputs[{self._random.choice((0, 1, -1))}].{self._name()})"] if is_join else []

    def _make_input_loop(self, _depth: int, is_join: bool, where: str) -> list[str]:
        if not is_join:
            return []
        if self._random.random() < 0.5:
            return [f"use([item.{self._name()} for item in inputs])"]
        return ["for position, item in enumerate(inputs):", f"    use(item.{self._name()})"]

    def _make_if(self, *args: Any) -> list[str]:
        lines = ["if pick():", *self._inner(*args)]
        return lines if self._random.random() < 0.5 else [*lines, "else:", *self._inner(*args)]

    def _make_for(self, *args: Any) -> list[str]:
        lines = ["for _ in range(few()):", *self._inner(*args)]
        if self._random.random() < 0.4:
            lines += [f"    if pick(): {self._random.choice(('break', 'continue'))}", *self._inner(*args)]
        return lines if self._random.random() < 0.7 else [*lines, "else:", *self._inner(*args)]

    def _make_while(self, *args: Any) -> list[str]:
        if self._random.random() < 0.5:
            return ["while pick():", *self._inner(*args)]
        return ["while True:", *self._inner(*args), "    if stop(): break", *self._inner(*args)]

    def _make_try(self, *args: Any) -> list[str]:
        kind = self._random.choice(("AttributeError", "Exception", "ValueError", "(KeyError, AttributeError)"))
        body = [*self._inner(*args), *(["    fail()"] if self._random.random() < 0.3 else []), *self._inner(*args)]
        return ["try:", *body, f"except {kind}:", *self._inner(*args)]

    def _make_finally(self, *args: Any) -> list[str]:
        return ["try:", *self._inner(*args), "finally:", *self._inner(*args)]

    def _make_suppress(self, *args: Any) -> list[str]:
        return ["with suppress(Exception):", *self._inner(*args)]

    def _make_with(self, *args: Any) -> list[str]:
        return ["with nullcontext():", *self._inner(*args)]

    def _method(self, name: str, body: list[str], owner: list[str], arguments: str = "self") -> None:
        owner += ["", f"def {name}({arguments}):", *(f"    {line}" for line in body)]

    def _make_helper(self, depth: int, is_join: bool, where: str) -> list[str]:
        name = self._fresh("helper")
        body = self._block(depth, False, "helper")
        if self._random.random() < 0.2:
            body += [f"if pick(): self.{name}()", *self._block(0, False, "helper")]
        if self._random.random() < 0.2:
            body += ["fail()"] if self._random.random() < 0.3 else ["return 1"]
        self._method(name, body, self._helpers)
        return [f"self.{name}()"]

    def _make_shared(self, depth: int, is_join: bool, where: str) -> list[str]:
        # At most once in a step, and never inside another method: a read is told by its step and line.
        if where != "step" or "shared" in self._shared_here:
            return []
        self._shared_here.add("shared")
        return ["self.shared()"]

    def _make_property(self, depth: int, is_join: bool, where: str) -> list[str]:
        name = self._fresh("value")
        self._helpers += ["", "@property", f"def {name}(self):"]
        self._helpers += [f"    {line}" for line in [*self._block(0, False, "helper"), "return 1"]]
        return [f"use(self.{name})"]

    def _make_super(self, depth: int, is_join: bool, where: str) -> list[str]:
        name = self._fresh("basic")
        self._method(name, self._block(depth, False, "helper"), self._bases)
        self._method(name, [f"super().{name}()", *self._block(0, False, "helper")], self._helpers)
        return [f"self.{name}()"]

    def _make_leave(self, depth: int, is_join: bool, where: str) -> list[str]:
        return ["if pick(): return None"] if where == "helper" else []

    def _make_guard(self, depth: int, is_join: bool, where: str) -> list[str]:
        name = self._name()
        return [f"if hasattr(self, '{name}'): use(self.{name})"]

    def _make_getattr(self, *_: Any) -> list[str]:
        default = ", 0" if self._random.random() < 0.5 else ""
        return [f"use(getattr(self, '{self._name()}'{default}))"]

    def _make_setattr(self, *_: Any) -> list[str]:
        return [f"setattr(self, '{self._name()}', 1)"]

    def _make_dynamic(self, *_: Any) -> list[str]:
        return [f"setattr(self, '{self._name()}'[:], 1)"] if self._random.random() < 0.3 else []

    def _make_lambda(self, *_: Any) -> list[str]:
        return [f"later = lambda: self.{self._name()}", *self._block(0, False, "helper"), "maybe(later)"]

    def _make_nested(self, depth: int, is_join: bool, where: str) -> list[str]:
        return ["def inner():", *self._inner(0, False, "helper"), *self._block(0, False, "helper"), "maybe(inner)"]

    def _make_comprehension(self, *_: Any) -> list[str]:
        return [f"use([self.{self._name()} for _ in range(few()) if pick() or self.{self._name()}])"]

    def _make_generator(self, *_: Any) -> list[str]:
        if self._random.random() < 0.5:
            return [f"use(sum(self.{self._name()} for _ in range(few())))"]
        return [
            f"held = (self.{self._name()} for _ in range(1))",
            *self._block(0, False, "helper"),
            "maybe(held.send, None)",
        ]

    def _make_alias(self, *_: Any) -> list[str]:
        return ["me = self", f"me.{self._name()} = 1"] if self._random.random() < 0.3 else []

    def _make_escape(self, *_: Any) -> list[str]:
        return [f"give(self, '{self._name()}')"] if self._random.random() < 0.3 else []

    def _make_callback(self, depth: int, is_join: bool, where: str) -> list[str]:
        name = self._fresh("called")
        self._method(name, self._block(0, False, "helper"), self._helpers)
        return [f"back = self.{name}", *self._block(0, False, "helper"), "maybe(back)"]

    def _make_match(self, *args: Any) -> list[str]:
        lines = ["match few():", "    case 0:", *(f"    {line}" for line in self._inner(*args))]
        return [*lines, "    case _:", *(f"    {line}" for line in self._inner(*args))]

    def _make_short(self, *_: Any) -> list[str]:
        one, two = self._name(), self._name()
        return [f"use(pick() and self.{one})" if self._random.random() < 0.5 else f"use(1 if pick() else self.{two})"]

    # -- the text ------------------------------------------------------------------------------------------------

    def _write(self) -> str:
        shared = ["", "def shared(self):", *(f"    {line}" for line in self._block(0, False, "helper"))]
        lines = ["class Base(FlowSpec):", "    kept = 1", *(f"    {line}" for line in self._bases)]
        lines += ["", "class Random(Base):", *(f"    {line}" for line in [*shared, *self._helpers])]
        for _, _, step in self._steps:
            lines += ["", *(f"    {line}" for line in step)]
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def load(self, **names: Any) -> type:
        """Return the class of the flow, made with other values of ``FlowSpec``, ``step``, ``pick`` and so on."""
        if self._code is None:
            file = f"<random flow {self._seed} {self._branching}>"
            linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
            self._code = compile(self.source, file, "exec")
        space: dict[str, Any] = {"__name__": "random_flow", "suppress": contextlib.suppress, **names}
        space["nullcontext"] = contextlib.nullcontext
        exec(self._code, space)
        made: type = space["Random"]
        return made


class Trace:
    """What happened in runs of one program.

    Attributes
    ----------
    found, missed : set of (str, int, str)
        Reads of an artifact, by step, line and name, that worked or did not.
    """

    def __init__(self, *, go_on: bool) -> None:
        self.go_on = go_on
        self.found: set[tuple[str, int, str]] = set()
        self.missed: set[tuple[str, int, str]] = set()
        self.step = ""


def trace(program: Program, nodes: Any, seeds: range, *, go_on: bool = False) -> Trace:
    """Run a program several times, with other decisions each time.

    Parameters
    ----------
    nodes : mapping
        The steps of the graph by name, with ``kind``, ``targets`` and ``is_join``.
    go_on : bool
        An artifact that is not there reads as 1, so that everything that follows runs as well.
    """
    told = Trace(go_on=go_on)
    for seed in seeds:
        _Run(program, nodes, told, random.Random(seed)).run()
    return told


class _Run:
    def __init__(self, program: Program, nodes: Any, told: Trace, chance: random.Random) -> None:
        self.nodes, self.told = nodes, told
        self.budget = 30

        def fail() -> None:
            raise ValueError

        def maybe(function: Any, *args: Any) -> None:
            if chance.random() < 0.7:
                function(*args)

        self.cls = program.load(
            FlowSpec=_tracing(told),
            step=lambda function: function,
            catch=lambda var: lambda function: setattr(function, "var", var) or function,
            pick=lambda: chance.random() < 0.5 and self._spend(),
            stop=lambda: not (chance.random() < 0.5 and self._spend()),
            few=lambda: chance.choice((0, 1, 2)),
            use=lambda value: value,
            fail=fail,
            maybe=maybe,
            give=lambda flow, name: setattr(flow, name, 1),
        )

    def _spend(self) -> bool:
        self.budget -= 1
        return self.budget > 0

    def run(self) -> None:
        with contextlib.suppress(AttributeError, ValueError, StopIteration, RecursionError):
            self._walk("start", {})

    def _walk(self, name: str, before: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
        """Run steps up to a join, which is left to whoever opened what it closes."""
        inputs: Any = None
        while True:
            after, targets = self._task(name, before, inputs)
            node, inputs = self.nodes[name], None
            if not targets:
                return None
            if node.kind in ("split", "foreach"):
                starts = targets if node.kind == "split" else targets * 2
                ended = [self._walk(target, after) for target in starts]
                inputs = [self._flow(task[2]) for task in ended if task is not None]
                name, before = next(task[0] for task in ended if task is not None), {}
            elif self.nodes[targets[0]].is_join:
                return targets[0], name, after
            else:
                name, before = targets[0], after

    def _flow(self, artifacts: dict[str, Any]) -> Any:
        flow = object.__new__(self.cls)
        object.__getattribute__(flow, "__dict__").update(artifacts)
        return flow

    def _task(self, name: str, before: dict[str, Any], inputs: Any) -> tuple[dict[str, Any], list[str]]:
        self.told.step = name
        flow = self._flow(before)
        held = object.__getattribute__(flow, "__dict__")
        function = vars(self.cls)[name]
        try:
            function(flow, *([inputs] if inputs is not None else []))
            targets = held.pop("_next", [])
        except (AttributeError, ValueError, StopIteration):
            if not hasattr(function, "var"):
                raise
            targets = list(self.nodes[name].targets)
        if hasattr(function, "var"):
            held[function.var] = 1
        return dict(held), targets


def _tracing(told: Trace) -> type:
    class Tracing:
        def __getattribute__(self, name: str) -> Any:
            if name not in NAMES:
                return object.__getattribute__(self, name)
            where = (told.step, sys._getframe(1).f_lineno, name)
            try:
                value = object.__getattribute__(self, name)
            except AttributeError:
                told.missed.add(where)
                if told.go_on:
                    return 1
                raise
            told.found.add(where)
            return value

        def __delattr__(self, name: str) -> None:
            if not told.go_on or name in object.__getattribute__(self, "__dict__"):
                object.__delattr__(self, name)

        def merge_artifacts(self, inputs: Any, exclude: Any = ()) -> None:
            own = object.__getattribute__(self, "__dict__")
            for item in inputs:
                for name, value in object.__getattribute__(item, "__dict__").items():
                    if name not in exclude:
                        own.setdefault(name, value)

        def next(self, *targets: Any, foreach: str = "", condition: str = "") -> None:
            own = object.__getattribute__(self, "__dict__")
            chosen = [targets[0][own[condition]]] if condition else targets
            own["_next"] = [target.__name__ for target in chosen]

    return Tracing


READ_ONLY: dict[str, Any] = dict.fromkeys(("pick", "stop", "few", "use", "fail", "maybe", "give"))
"""What a flow's source calls, where it is only read and never run."""
