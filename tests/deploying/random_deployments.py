"""Random flows of the whole language, as source, for whoever carries them out in two ways and compares.

What a task computes depends on its place in the flow and on the values before it, and on nothing else: two runs of the
same source with the same parameters must leave the same tasks with the same artifacts, whoever starts the tasks.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

PRIME = 10_007
VALUES = (
    "'plain'",
    "'ä \\u2028 \"quoted\" $(HOME) {{curly}}'",
    "{'nested': [1, (2, 3), {'deep': None}]}",
    "b'\\x00\\xff' * 700",
    "1.5e-300",
    "{'one', 'two'}",
    "list(range(2000))",
    "True",
)
FEATURES = frozenset(
    {"linear", "split", "foreach", "nested_foreach", "long_foreach", "switch", "switch_in_foreach", "loop",
     "num_parallel", "retry", "catch", "timeout", "environment", "secrets", "resources", "parameters"}
)  # fmt: skip
"""What can come out, by the names of `flowkit.deployer.capabilities`."""


@dataclass
class Pending:
    """A step whose transition is not decided yet."""

    name: str
    is_join: bool = False
    takes_input: bool = False
    lines: list[str] = field(default_factory=list)
    parallel: bool = False


class RandomProgram:
    """The source of one random flow, and values for its parameters.

    Parameters
    ----------
    seed : int or str
        Decides everything.
    size : int
        About how many blocks it has.
    most : int
        How many tasks may run, at most, one after the other or at once.
    gangs : bool
        Whether it may have gangs.

    Attributes
    ----------
    name, flow : str
        What the seed is, and how the flow is called for it.
    source : str
        Of the flow.
    parameters : dict
        Values of some of its parameters, by their names on the command line.
    features : set of str
        What it uses.
    """

    def __init__(self, seed: int | str, *, size: int = 3, most: int = 24, gangs: bool = True) -> None:
        self._gangs = gangs
        self.name = str(seed)
        self.flow = "Random" + "".join(part.title() for part in re.split(r"\W+", self.name))
        number = 0
        while True:  # the first that is not too large
            self._random = random.Random(f"{seed} {number}")
            self._steps: list[str] = []
            self._count = 0
            self.features: set[str] = {"parameters"}
            self.tasks = 0
            self._build(size)
            if self.tasks <= most:
                break
            number += 1
        chance = self._random
        given = {"alpha": chance.randint(0, 99), "word": chance.choice(["a b", "it's \"$(HOME)\" $$ {x} ä", ""]),
                 "ratio": 0.25, "flag": True, "table": {"rows": [1, None, "x"]}}  # fmt: skip
        self.parameters = {name: value for name, value in given.items() if chance.random() < 0.6}
        whole = "\n".join([*HEAD, *self._steps, *TAIL])
        self.source = whole.replace("RandomFlow", self.flow)

    def _build(self, size: int) -> None:
        first = Pending("start", lines=["self.x = self.alpha", "self.trail = ()", "self.given = self.what()"])
        exits = self._blocks([first], size, 0, 1)
        for each in exits:
            self._end(each, "self.next(self.end)", linear=True)
        self._steps.append(
            "\n".join(["    @step", "    def end(self):", "        self.done = (self.x_(), self.trail)"])
        )
        self.tasks += 1

    # -- shapes -----------------------------------------------------------------------------------------------------

    def _blocks(self, exits: list[Pending], size: int, depth: int, times: int) -> list[Pending]:
        """Add blocks after steps; `times` is about how often each of them runs."""
        for _ in range(size):
            shapes = ["linear", "split", "foreach", "switch", "loop", *(["gang"] if self._gangs else [])]
            if self._inside:
                shapes += ["foreach", "switch"]
            if depth >= 3:
                shapes = ["linear", "switch", "loop"]
            exits = getattr(self, f"_{self._random.choice(shapes)}")(exits, depth, times)
        return exits

    def _one(self, exits: list[Pending], times: int) -> Pending:
        """Have a single step go on that can open something: no join, and no step of a gang."""
        if len(exits) == 1 and not (exits[0].parallel or exits[0].is_join) and self._random.random() < 0.8:
            return exits[0]
        following = self._step("line", times)
        for each in exits:
            self._end(each, f"self.next(self.{following.name})", linear=True)
        return following

    def _linear(self, exits: list[Pending], depth: int, times: int) -> list[Pending]:
        self.features.add("linear")
        following = self._step("line", times)
        for each in exits:
            self._end(each, f"self.next(self.{following.name})", linear=True)
        return [following]

    def _split(self, exits: list[Pending], depth: int, times: int) -> list[Pending]:
        self.features.add("split")
        opener = self._one(exits, times)
        join = self._step("join", times, is_join=True)
        branches = [self._step("branch", times) for _ in range(self._random.randint(2, 3))]
        self._end(opener, f"self.next({', '.join(f'self.{each.name}' for each in branches)})")
        for branch in branches:
            ends = self._blocks([branch], self._random.randint(0, 1), depth + 1, times)
            if len(ends) == 1:
                join.lines.append(f"self.of_{branch.name} = getattr(inputs.{ends[0].name}, 'x', None)")
            for each in ends:
                self._end(each, f"self.next(self.{join.name})", linear=True)
        return [join]

    def _foreach(self, exits: list[Pending], depth: int, times: int) -> list[Pending]:
        self.features.add("foreach")
        if depth and self._inside:
            self.features.add("nested_foreach")
        opener = self._one(exits, times)
        width = self._random.choice([0, 1, 2, 2, 3])
        items = self._random.choice([
            f"list(range({width}))",
            f"[{{'at': index}} for index in range({width})]",
            f"'abc'[:{width}]",
            f"tuple(range({width}))[::-1]",
        ])  # fmt: skip
        opener.lines.append(f"self.items = {items}")
        join = self._step("join", times, is_join=True)
        each = self._step("each", times * width)
        each.takes_input = True
        self._end(opener, f"self.next(self.{each.name}, foreach='items')")
        inside, self._inside = self._inside, True
        size = self._random.randint(0, 2)
        if size:
            self.features.add("long_foreach")
        ends = self._blocks([each], size, depth + 1, times * width)
        self._inside = inside
        for item in ends:
            self._end(item, f"self.next(self.{join.name})", linear=True)
        return [join]

    _inside = False

    def _gang(self, exits: list[Pending], depth: int, times: int) -> list[Pending]:
        self.features.add("num_parallel")
        opener = self._one(exits, times)
        nodes = self._random.randint(1, 3)
        member = self._step("member", times * nodes)
        member.parallel = True
        join = self._step("join", times, is_join=True)
        self._end(opener, f"self.next(self.{member.name}, num_parallel={nodes})")
        self._end(member, f"self.next(self.{join.name})")
        return [join]

    def _switch(self, exits: list[Pending], depth: int, times: int) -> list[Pending]:
        self.features |= {"switch", *(["switch_in_foreach"] if self._inside else [])}
        opener = self._one(exits, times)
        ends: list[Pending] = []
        targets = []
        for _ in range(self._random.randint(2, 3)):
            case = self._step("case", times)
            targets.append(case.name)
            ends += self._blocks([case], self._random.randint(0, 1) if depth < 2 else 0, depth + 1, times)
        if self._random.random() < 0.4:  # one case leaves all of that out
            after = self._step("line", times)
            for each in ends:
                self._end(each, f"self.next(self.{after.name})", linear=True)
            targets.append(after.name)
            ends = [after]
        cases = ", ".join(f"'{index}': self.{name}" for index, name in enumerate(targets))
        opener.lines.append(f"self.way = str(self.x_() % {len(targets)})")
        self._end(opener, f"self.next({{{cases}}}, condition='way')")
        return ends

    def _loop(self, exits: list[Pending], depth: int, times: int) -> list[Pending]:
        self.features.add("loop")
        turns = self._random.randint(1, 3)
        again, after = self._step("loop", times * turns), self._step("line", times)
        for each in exits:
            self._end(each, f"self.next(self.{again.name})", linear=True)
        turn = f"turn_{again.name}"
        again.lines += [
            f"self.{turn} = getattr(self, '{turn}', 0) + 1",
            f"self.way = 'again' if self.{turn} < {turns} else 'on'",
        ]
        self._end(again, f"self.next({{'again': self.{again.name}, 'on': self.{after.name}}}, condition='way')")
        return [after]

    # -- steps ------------------------------------------------------------------------------------------------------

    def _step(self, prefix: str, times: int, *, is_join: bool = False) -> Pending:
        self._count += 1
        self.tasks += times
        return Pending(f"{prefix}_{self._count}", is_join)

    def _end(self, step: Pending, ending: str, *, linear: bool = False) -> None:
        chance, number = self._random, len(self._steps)
        decorators, before = self._decorators(step, linear=linear)
        lines = []
        if step.is_join:
            lines += [
                "self.x = self.folded(inputs)",
                "self.trail = tuple(getattr(each, 'trail', ()) for each in inputs)",
            ]
        if step.takes_input:
            lines += [f"self.x = (self.x_() + len(str(self.input)) * 5 + self.index) % {PRIME}"]
        if step.parallel:
            lines += ["self.node = (current.parallel.node_index, current.parallel.num_nodes)",
                      f"self.x = (self.x_() + current.parallel.node_index) % {PRIME}"]  # fmt: skip
        lines += [*before, f"self.x = (self.x_() * 3 + {number}) % {PRIME}"]
        if not step.is_join:
            lines.append(f"self.trail = (*getattr(self, 'trail', ()), '{step.name}')")
        lines.append("self.who = f'{current.step_name}/{current.task_id}'")
        if chance.random() < 0.4:
            lines.append(f"self.kept_{number} = {chance.choice(VALUES)}")
        if chance.random() < 0.2:
            lines.append("self.given = self.what()")
        lines += [*step.lines, ending]
        arguments = "self, inputs" if step.is_join else "self"
        head = [*decorators, *(["@parallel"] if step.parallel else []), "@step", f"def {step.name}({arguments}):"]
        self._steps.append("\n".join([*(f"    {line}" for line in head), *(f"        {line}" for line in lines)]))

    def _decorators(self, step: Pending, *, linear: bool) -> tuple[list[str], list[str]]:
        """Return decorators of a step, and what it does because of them."""
        chance = self._random
        decorators, lines = [], []
        if chance.random() < 0.2:
            self.features.add("retry")
            decorators.append("@retry(times=1, minutes_between_retries=0)")
            lines += ["if current.retry_count == 0 and self.x_() % 2: raise ValueError('made to fail')",
                      "self.attempts = current.retry_count + 1"]  # fmt: skip
        if linear and not step.parallel and step.name != "start" and chance.random() < 0.15:
            self.features.add("catch")
            decorators.append(f"@catch(var='caught_{step.name}')")
            lines.append("if self.x_() % 3 == 0: raise KeyError('caught')")
        if chance.random() < 0.1:
            self.features.add("timeout")
            decorators.append("@timeout(seconds=200)")
        if chance.random() < 0.15:
            self.features.add("environment")
            decorators.append("@environment(vars={'COLOUR': 'red $(HOME) $$ \"x\"'})")
            lines.append("self.colour = os.environ['COLOUR']")
        if chance.random() < 0.1:
            self.features.add("secrets")
            values = "{'env_vars': {'PASSPHRASE': 'open sesame 17'}}"
            decorators.append(f"@secrets(sources=[{{'type': 'inline', 'options': {values}}}])")
            lines.append("self.secret_size = len(os.environ['PASSPHRASE'])")
        if chance.random() < 0.15:
            self.features.add("resources")
            decorators.append("@resources(cpu=1, memory=200)")
        return decorators, lines


def chosen(target: str, more: int) -> list[RandomProgram]:
    """Return the flows for a target: a few small ones that have everything in them together, and some more."""
    found: list[RandomProgram] = []
    missing, seed = set(FEATURES), 0
    while missing:
        program = RandomProgram(f"{target} {seed}", size=3, most=14)
        seed += 1
        # At first only those that bring much: there should not be many.
        if len(program.features & missing) >= max(1, min(7 - seed // 10, len(missing))):
            found.append(program)
            missing -= program.features
    return found + [RandomProgram(f"{target} more {number}") for number in range(more)]


HEAD = [
    "import functools, os",
    "from flowkit import *",
    "",
    "class RandomFlow(FlowSpec):",
    "    alpha = Parameter('alpha', default=7)",
    "    word = Parameter('word', default='plain')",
    "    ratio = Parameter('ratio', type=float, default=lambda context: 1.5)",
    "    flag = Parameter('flag', default=False)",
    "    table = Parameter('table', type=JSONType, default='{\"a\": [1]}')",
    "",
    "    def x_(self):",
    "        return getattr(self, 'x', 1)",
    "",
    "    def what(self):",
    "        return (self.alpha, self.word, self.ratio, self.flag, self.table)",
    "",
    "    def folded(self, inputs):",
    f"        return functools.reduce(lambda a, b: (a * 31 + getattr(b, 'x', 5)) % {PRIME}, inputs, 7)",
    "",
]
TAIL = ["", "if __name__ == '__main__':", "    RandomFlow()", ""]

LOOK = """
import json, sys
from flowkit import Run, namespace
namespace(None)
run = Run(sys.argv[1])
def plain(value):
    return repr(sorted(value)) if isinstance(value, (set, frozenset)) else repr(value)
tasks = {
    f"{step.id}/{task.id}": {each.id: plain(each.data) for each in task if not each.id.startswith("_")}
    for step in run for task in step
}
print(json.dumps({"state": run.status, "tasks": tasks}))
"""
"""Prints what a run left: its state, and every artifact of every task."""


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return what is not the same in what two runs left (`LOOK`), a line each."""
    found = [] if one["state"] == other["state"] else [f"state: {one['state']} and {other['state']}"]
    for task in sorted({*one["tasks"], *other["tasks"]}):
        here, there = one["tasks"].get(task), other["tasks"].get(task)
        if here is None or there is None:
            found.append(f"{task}: only in {'the second' if here is None else 'the first'}")
            continue
        found += [
            f"{task}.{name}: {here.get(name)} and {there.get(name)}"
            for name in sorted({*here, *there})
            if here.get(name) != there.get(name)
        ]
    return found
