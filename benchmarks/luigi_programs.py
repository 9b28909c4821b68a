"""The same work for Luigi, in its own way: each task pickles what it made to a file, in a process of its own."""

from __future__ import annotations

from flows import FRAME

_HEAD = """\
import os
import pickle
import sys
{imports}
import luigi
from luigi.format import Nop


class Stored(luigi.Task):
    def output(self):
        return luigi.LocalTarget(f"out/{{self.task_id}}.pickle", format=Nop)

    def keep(self, value):
        with self.output().open("w") as file:
            pickle.dump(value, file, protocol=5)


def load(target):
    with target.open("r") as file:
        return pickle.load(file)

"""

_TAIL = """

if __name__ == "__main__":
    luigi.configuration.get_config().set("worker", "force_multiprocessing", "true")
    done = luigi.build([{last}], workers={workers}, local_scheduler=True, log_level="WARNING")
    sys.exit(not done)
"""

_CHAIN = """
class Link(Stored):
    number = luigi.IntParameter()

    def requires(self):
        return Link(self.number - 1) if self.number > 1 else []

    def run(self):
        if self.number == {fails_at} and "BENCH_FAIL" in os.environ:
            raise RuntimeError("as asked")
        self.keep(load(self.input()) + 1 if self.number > 1 else 1)
"""

_FOREACH = """
class Items(Stored):
    def run(self):
        self.keep(list(range({width})))


class Work(Stored):
    index = luigi.IntParameter()

    def requires(self):
        return Items()

    def run(self):
        self.keep(load(self.input())[self.index] * 2)


class Join(Stored):
    def requires(self):
        return [Work(index) for index in range({width})]

    def run(self):
        self.keep(sum(load(target) for target in self.input()))


class End(Stored):
    def requires(self):
        return Join()

    def run(self):
        assert load(self.input()) == {width} * ({width} - 1)
        self.keep(None)
"""

_TWO_STEPS = """
class Start(Stored):
    def run(self):
{make}
        self.keep(x)


class End(Stored):
    def requires(self):
        return Start()

    def run(self):
        x = load(self.input())
        self.keep({use})
"""


def _program(body: str, last: str, workers: int = 1, imports: str = "") -> str:
    return _HEAD.format(imports=imports) + body + _TAIL.format(last=last, workers=workers)


def _two_steps(make: str, use: str, imports: str) -> str:
    lines = "\n".join(" " * 8 + line for line in make.splitlines())
    return _program(_TWO_STEPS.format(make=lines, use=use), "End()", imports=imports)


def chain(length: int, fails_at: int = 0) -> str:
    """Return so many tasks in a row."""
    return _program(_CHAIN.format(fails_at=fails_at), f"Link({length})")


def foreach(width: int) -> str:
    """Return a task for each of so many items, and one that joins them."""
    return _program(_FOREACH.format(width=width), "End()", workers=2)


def random_array(megabytes: int) -> str:
    """Return a task that makes an array of random floats and one that sums it."""
    return _two_steps(
        f"x = np.random.default_rng(0).random({megabytes} * 131072)", "float(x.sum())", "import numpy as np"
    )


def compressible_array(megabytes: int) -> str:
    """Return the same with an array that any compression makes small."""
    return _two_steps(f"x = np.tile(np.arange(1024.0), {megabytes} * 128)", "float(x.sum())", "import numpy as np")


def frame(rows: int) -> str:
    """Return a task that makes a table and one that sums it."""
    use = 'float(x[["a", "b", "c", "n"]].sum().sum()) + float(x["s"].str.len().sum())'
    make = FRAME.format(rows=rows).replace("self.x", "x")
    return _two_steps(make, use, "import numpy as np\nimport pandas as pd")
