"""Random flows through the real command, compared with a plain reading of what they mean."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attack_tools import SOAK, Journal, artifact, committed, no_defect
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from conftest import Workspace

Block = Any
"""("step",), ("loop", turns), ("foreach", width, block), or (kind, [blocks]) for chain, split and switch."""

LEAF = st.one_of(st.just(("step",)), st.tuples(st.just("loop"), st.integers(1, 3)))
BLOCKS = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.tuples(st.just("chain"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("split"), st.lists(inner, min_size=2, max_size=3)),
        st.tuples(st.just("switch"), st.lists(inner, min_size=2, max_size=3)),
        st.tuples(st.just("foreach"), st.integers(0, 4), inner),
    ),
    max_leaves=6,
)
PRIME = 1_000_003


class Program:
    """A block between start and end as a flow's source, and what it computes, read without any flow."""

    def __init__(self, block: Block) -> None:
        self._steps: list[str] = []
        self._count = 0
        entry, self.meaning = self._compile(block, "end")
        begin = self._body("start", ["self.x = 1"], f"self.next(self.{entry})")
        end = self._body("end", [], "self.done = self.x")
        self.source = "\n".join([*HEAD, begin, *reversed(self._steps), end, *TAIL])

    def _name(self) -> str:
        self._count += 1
        return f"s{self._count:02}"

    def _body(self, name: str, lines: list[str], last: str, arguments: str = "self") -> str:
        body = [f"journal.note(current); trouble({name!r}, current)", *lines, last]
        return "\n".join(["    @step", f"    def {name}({arguments}):", *(f"        {line}" for line in body)])

    def _add(self, name: str, lines: list[str], last: str, arguments: str = "self") -> str:
        self._steps.append(self._body(name, lines, last, arguments))
        return name

    def _compile(self, block: Block, after: str) -> tuple[str, Callable[[int], int]]:
        """Add a block's steps, which lead to `after`; return the first one and the block's meaning."""
        kind = block[0]
        if kind == "chain":
            meanings = []
            for item in reversed(block[1]):
                after, meaning = self._compile(item, after)
                meanings.insert(0, meaning)
            return after, lambda x: _through(meanings, x)
        name = self._name()
        number = self._count
        go = f"self.next(self.{after})"
        change = f"self.x = (self.x * 3 + {number}) % {PRIME}"

        def changed(x: int) -> int:
            return (x * 3 + number) % PRIME

        if kind == "step":
            return self._add(name, [change], go), changed
        if kind == "loop":
            turns = block[1]
            last = self._add(self._name(), [], go)
            lines = [
                change,
                f"self.turn_{name} = getattr(self, 'turn_{name}', 0) + 1",
                f"self.way = 'again' if self.turn_{name} < {turns} else 'on'",
                # In a foreach or an outer loop it may come here once more.
                f"if self.way == 'on': del self.turn_{name}",
            ]
            choice = f"self.next({{'again': self.{name}, 'on': self.{last}}}, condition='way')"
            return self._add(name, lines, choice), lambda x: _through([changed] * turns, x)
        if kind == "switch":
            parts = [self._compile(item, after) for item in block[1]]
            cases = ", ".join(f"'{index}': self.{entry}" for index, (entry, _) in enumerate(parts))
            lines = [change, f"self.way = str(self.x % {len(parts)})"]
            self._add(name, lines, f"self.next({{{cases}}}, condition='way')")
            return name, lambda x: parts[changed(x) % len(parts)][1](changed(x))
        fold = f"self.x = functools.reduce(lambda a, b: (a * 31 + b.x) % {PRIME}, inputs, 7)"
        join = self._add(self._name(), [fold], go, "self, inputs")
        if kind == "split":
            parts = [self._compile(item, join) for item in block[1]]
            self._add(name, [change], f"self.next({', '.join(f'self.{entry}' for entry, _ in parts)})")
            return name, lambda x: _fold([meaning(changed(x)) for _, meaning in parts])
        _, width, inner = block
        entry, meaning = self._compile(inner, join)
        take = self._add(self._name(), [f"self.x = (self.x + self.input * 5) % {PRIME}"], f"self.next(self.{entry})")
        self._add(name, [change, f"self.items = list(range({width}))"], f"self.next(self.{take}, foreach='items')")
        return name, lambda x: _fold([meaning((changed(x) + index * 5) % PRIME) for index in range(width)])


def _through(meanings: list[Callable[[int], int]], x: int) -> int:
    for meaning in meanings:
        x = meaning(x)
    return x


def _fold(values: list[int]) -> int:
    total = 7
    for value in values:
        total = (total * 31 + value) % PRIME
    return total


HEAD = [
    "import functools, os, zlib",
    "import journal",
    "from flowkit import FlowSpec, current, step",
    "SEED = os.environ.get('TROUBLE')",
    "def trouble(step, current):",
    "    if SEED and zlib.crc32(f'{SEED} {current.pathspec.split(chr(47), 2)[2]}'.encode()) % 5 == 0:",
    "        how = zlib.crc32(SEED.encode()) % 3",
    "        if how == 0: raise ValueError('asked for')",
    "        os._exit(0) if how == 1 else os.kill(os.getpid(), 9)",
    "class Random(FlowSpec):",
]
TAIL = ["if __name__ == '__main__':", "    Random()", ""]


@settings(
    max_examples=150 if SOAK else 7,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if SOAK else [Phase.generate],
)
@given(block=BLOCKS, seed=st.integers(0, 2**16))
def test_random_flows_compute_what_they_mean(workspace: Workspace, block: Block, seed: int) -> None:
    program = Program(block)
    expected = program.meaning(1)
    journal = Journal(workspace)
    journal.path.unlink(missing_ok=True)
    root = workspace.path / ".flowkit"
    shutil.rmtree(root, ignore_errors=True)
    (workspace.path / "flow.py").write_text(program.source)
    chance = random.Random(seed)
    results: dict[str, set[tuple[str, str]]] = {}
    for run in range(1, 5):
        keep_going = ["--keep-going"] if chance.random() < 0.5 else []
        workers = ["--max-workers", str(chance.randint(1, 4))]
        trouble = {"TROUBLE": f"{seed} {run}"} if run < 3 and chance.random() < 0.7 else {}
        result = workspace.run("run" if run == 1 else "resume", *keep_going, *workers, env=trouble)
        no_defect(result)
        assert result.returncode == (0 if not trouble else result.returncode), str(result)
        results[str(run)] = committed(root, "Random", str(run))
        if result.returncode == 0:
            break
    assert artifact(root, "Random", str(run), "end", "done") == expected, program.source
    journal.check_nothing_twice(results, {str(run): str(run - 1) for run in range(2, 5)})
