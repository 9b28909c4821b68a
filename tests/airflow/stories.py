"""The flows of the stories that are told on Airflow: few, each with much of the language."""

from __future__ import annotations

RICH = '''
import os, signal
from flowkit import FlowSpec, Parameter, catch, current, exit_hook, parallel, retry, step, timeout


def tell(run):
    with open(os.environ["STORY_HOOKS"], "a") as file:
        file.write(f"{run.pathspec} {run.successful}\\n")


@exit_hook(on_success=[tell], on_error=[tell])
class Rich(FlowSpec):
    """Costs {{ 1 / 0 }}, "quotes", \'quotes\' and \\ {% raw %} in one line."""

    sizes = Parameter("sizes", default=[2, 0, 3], help="{{ 1 / 0 }} \'\'\' \\"\\"\\" # \\\\")
    word = Parameter("the-word", default="plain")
    deep = Parameter("deep", default=False)
    price = Parameter("price", default=0.5)

    @step
    def start(self):
        assert self.price == 0.5 and isinstance(self.deep, bool)
        self.next(self.left, self.right)

    @step
    def left(self):
        self.next(self.outer, foreach="sizes")

    @step
    def outer(self):
        self.mine = self.input
        self.inner_items = list(range(self.input))
        self.next(self.inner, foreach="inner_items")

    @step
    def inner(self):
        self.kind = ("zero", "odd", "even")[0 if not self.input else 1 + (self.input + 1) % 2]
        self.next({"odd": self.odd, "even": self.even, "zero": self.both}, condition="kind")

    @step
    def odd(self):
        self.value = f"odd {self.index}"
        self.next(self.both)

    @step
    def even(self):
        self.next(self.even_more)

    @retry(times=1, minutes_between_retries=0)
    @step
    def even_more(self):
        assert current.retry_count == 1, "only the second attempt does it"
        self.value = f"even {self.index}"
        self.next(self.both)

    @step
    def both(self):
        self.value = getattr(self, "value", "zero") + f" of {self.mine}"
        self.next(self.inner_join)

    @step
    def inner_join(self, inputs):
        self.values = [each.value for each in inputs]
        self.next(self.outer_join)

    @step
    def outer_join(self, inputs):
        self.values = [each.values for each in inputs]
        self.next(self.all)

    @catch(var="broken")
    @retry(times=1, minutes_between_retries=0)
    @step
    def right(self):
        if self.word:
            raise ValueError(self.word)
        self.next(self.counting)

    @step
    def counting(self):
        self.count = getattr(self, "count", 0) + 1
        self.go = "again" if self.count < 3 else ("deep" if self.deep else "shallow")
        self.next({"again": self.counting, "deep": self.gang_opens, "shallow": self.shallow}, condition="go")

    @step
    def gang_opens(self):
        self.next(self.node, num_parallel=2)

    @parallel
    @step
    def node(self):
        self.number = current.parallel.node_index
        self.size = current.parallel.num_nodes
        self.next(self.gang_join)

    @step
    def gang_join(self, inputs):
        self.numbers = [(each.number, each.size) for each in inputs]
        self.next(self.met)

    @step
    def shallow(self):
        self.numbers = []
        self.next(self.met)

    @step
    def met(self):
        self.next(self.all)

    @step
    def all(self, inputs):
        self.values, self.numbers = inputs.outer_join.values, inputs.met.numbers
        self.next(self.end)

    @timeout(minutes=5)
    @step
    def end(self):
        print(self.values, self.numbers)


if __name__ == "__main__":
    Rich()
'''
"""A foreach in a foreach with bodies of several steps and a switch whose ways meet, an empty foreach, a loop that ends
in two ways, a gang in one branch of a switch, retries, a caught failure, parameters of every kind, hooks."""

GANGS = """
from flowkit import FlowSpec, current, parallel, step


class Gangs(FlowSpec):
    @step
    def start(self):
        self.teams = [1, 3]
        self.next(self.team, foreach="teams")

    @step
    def team(self):
        self.next(self.node, num_parallel=self.input)

    @parallel
    @step
    def node(self):
        self.said = f"{current.parallel.node_index} of {current.parallel.num_nodes}"
        self.next(self.join)

    @step
    def join(self, inputs):
        self.said = [each.said for each in inputs]
        self.next(self.teams_join)

    @step
    def teams_join(self, inputs):
        self.said = [each.said for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Gangs()
"""

BROKEN = """
import os
from flowkit import FlowSpec, Parameter, exit_hook, retry, step


def tell(run):
    with open(os.environ["STORY_HOOKS"], "a") as file:
        file.write(f"{run.pathspec} {run.successful}\\n")


@exit_hook(on_error=[tell])
class Broken(FlowSpec):
    which = Parameter("which", default=1)

    @step
    def start(self):
        self.items = [0, 1, 2]
        self.next(self.work, foreach="items")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        with open(os.environ["STORY_TRIES"], "a") as file:
            file.write(f"{self.input}\\n")
        if self.input == self.which:
            raise ValueError("it is this one")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Broken()
"""

CROSSED = """
from flowkit import FlowSpec, Parameter, step


class Crossed(FlowSpec):
    way = Parameter("way", default="bd")

    @step
    def start(self):
        self.first, self.second = self.way[0], self.way[-1]
        self.next({"b": self.b, "c": self.c}, condition="first")

    @step
    def b(self):
        self.next({"d": self.d, "f": self.f}, condition="second")

    @step
    def f(self):
        self.seen = "f"
        self.next(self.c)

    @step
    def c(self):
        self.seen = getattr(self, "seen", "") + "c"
        self.many = [1, 2]
        self.next(self.child, foreach="many")

    @step
    def child(self):
        self.next(self.child_join)

    @step
    def child_join(self, inputs):
        self.merge_artifacts(inputs, include=["seen"])
        self.next(self.end)

    @step
    def d(self):
        self.seen = "d"
        self.next(self.end)

    @step
    def end(self):
        print(self.seen)


if __name__ == "__main__":
    Crossed()
"""
"""Switches whose ways cross: a step that one switch leads to at once, and another one over a step between."""

JOBS = """
from flowkit import FlowSpec, Parameter, retry, step


class Jobs(FlowSpec):
    fate = Parameter("fate", default="well")

    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        if self.fate != "well":
            raise ValueError(self.fate)
        self.count = 0
        self.next(self.turn)

    @step
    def turn(self):
        self.count += 1
        self.go = "again" if self.count < 2 else "wide"
        self.next({"again": self.turn, "wide": self.wide, "narrow": self.end}, condition="go")

    @step
    def wide(self):
        self.items = [0, 1]
        self.next(self.inner, foreach="items")

    @step
    def inner(self):
        self.kind = "odd" if self.input % 2 else "even"
        self.next({"odd": self.odd, "even": self.even}, condition="kind")

    @step
    def odd(self):
        self.said = f"{self.index} odd"
        self.next(self.join)

    @step
    def even(self):
        self.said = f"{self.index} even"
        self.next(self.join)

    @step
    def join(self, inputs):
        self.found = [each.said for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Jobs()
"""
"""What jobs have to tell by their manifests: a width, choices, and the way out of a loop."""
