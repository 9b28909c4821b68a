"""The flows that are measured: one source for flowkit and Metaflow, in which only the import line differs."""

from __future__ import annotations

_HEAD = """\
import os
{imports}
from {framework} import FlowSpec, step


class Bench(FlowSpec):
"""

_TAIL = """
if __name__ == "__main__":
    Bench()
"""

_FOREACH = """
    @step
    def start(self):
        self.items = list(range({width}))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        {say}self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(task.y for task in inputs)
        self.next(self.end)

    @step
    def end(self):
        assert self.total == {width} * ({width} - 1)
"""

_NESTED = """
    @step
    def start(self):
        self.outer = list(range({width}))
        self.next(self.row, foreach="outer")

    @step
    def row(self):
        self.inner = [self.input * {width} + column for column in range({width})]
        self.next(self.cell, foreach="inner")

    @step
    def cell(self):
        self.y = self.input
        self.next(self.join_row)

    @step
    def join_row(self, inputs):
        self.y = sum(task.y for task in inputs)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(task.y for task in inputs)
        self.next(self.end)

    @step
    def end(self):
        assert self.total == {width} ** 2 * ({width} ** 2 - 1) // 2
"""

_TWO_STEPS = """
    @step
    def start(self):
{make}
        self.next(self.end)

    @step
    def end(self):
{use}
"""

FRAME = """\
rng = np.random.default_rng(0)
words = np.array(["word " + str(1000 + i) for i in range(1000)], dtype=object)
self.x = pd.DataFrame(
    {{
        "a": rng.random({rows}),
        "b": rng.random({rows}),
        "c": rng.random({rows}),
        "n": rng.integers(0, 1000, {rows}),
        "s": words[rng.integers(0, 1000, {rows})],
    }}
)"""
"""Makes a table of three columns of floats, one of integers, one of strings, with `{rows}` to fill in."""


def _flow(framework: str, body: str, imports: str = "") -> str:
    return _HEAD.format(framework=framework, imports=imports) + body.lstrip("\n") + "\n" + _TAIL


def _indented(text: str) -> str:
    return "\n".join(" " * 8 + line for line in text.splitlines())


def _two_steps(framework: str, make: str, use: str, imports: str = "") -> str:
    return _flow(framework, _TWO_STEPS.format(make=_indented(make), use=_indented(use)), imports)


def chain(framework: str, length: int, fails_at: int | None = None, imports: str = "") -> str:
    """Return a flow of so many steps in a row, each of which reads and changes an artifact.

    Step number `fails_at` (from 1) fails where the environment variable BENCH_FAIL is set.
    """
    names = ["start", *(f"s{number}" for number in range(2, length)), "end"]
    steps = []
    for number, name in enumerate(names, 1):
        lines = ["self.x = 1" if number == 1 else "self.x = self.x + 1"]
        if number == fails_at:
            lines.insert(0, 'assert "BENCH_FAIL" not in os.environ')
        lines.append(f"self.next(self.{names[number]})" if number < length else f"assert self.x == {length}")
        steps.append(f"    @step\n    def {name}(self):\n" + _indented("\n".join(lines)) + "\n")
    return _flow(framework, "\n".join(steps), imports)


def foreach(framework: str, width: int, *, say: bool = False) -> str:
    """Return a flow with a foreach and a join over it; its steps may print a line each."""
    return _flow(framework, _FOREACH.format(width=width, say='print("at", self.input)\n        ' if say else ""))


def nested(framework: str, width: int) -> str:
    """Return a foreach within a foreach, both of one width."""
    return _flow(framework, _NESTED.format(width=width))


def random_array(framework: str, megabytes: int) -> str:
    """Return a flow that makes an array of random floats in one step and sums it in the next."""
    make = f"self.x = np.random.default_rng(0).random({megabytes} * 131072)"
    return _two_steps(framework, make, "self.total = float(self.x.sum())", "import numpy as np")


def compressible_array(framework: str, megabytes: int) -> str:
    """Return the same with an array that any compression makes small."""
    make = f"self.x = np.tile(np.arange(1024.0), {megabytes} * 128)"
    return _two_steps(framework, make, "self.total = float(self.x.sum())", "import numpy as np")


def frame(framework: str, rows: int) -> str:
    """Return a flow that makes a table in one step, and sums its numbers and measures its strings in the next."""
    use = 'self.total = float(self.x[["a", "b", "c", "n"]].sum().sum()) + float(self.x["s"].str.len().sum())'
    return _two_steps(framework, FRAME.format(rows=rows), use, "import numpy as np\nimport pandas as pd")


def many_artifacts(framework: str, count: int) -> str:
    """Return a flow whose first step leaves so many artifacts, of which the next reads one."""
    make = f'for number in range({count}):\n    setattr(self, f"a{{number}}", number)'
    return _two_steps(framework, make, f"assert self.a{count - 1} == {count - 1}")


def splits(framework: str, count: int) -> str:
    """Return a flow of so many two-way splits in a row, each with its join."""
    steps = []
    for number in range(count):
        follows = f"split{number + 1}" if number + 1 < count else "end"
        name = f"split{number}" if number else "start"
        steps.append(f"    @step\n    def {name}(self):\n        self.next(self.a{number}, self.b{number})\n")
        for side in "ab":
            steps.append(f"    @step\n    def {side}{number}(self):\n        self.next(self.join{number})\n")
        steps.append(f"    @step\n    def join{number}(self, inputs):\n        self.next(self.{follows})\n")
    steps.append("    @step\n    def end(self):\n        pass\n")
    return _flow(framework, "\n".join(steps))
