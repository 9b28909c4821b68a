"""What steps keep on ``self``: artifacts, constants, ``current``, inheritance, and all that is refused."""

from __future__ import annotations

from typing import Any


def write(workspace: Any, body: str, *, head: str = "", name: str = "flow.py") -> None:
    """Write a flow called Story, given the body of its class, indented by four."""
    workspace.write(
        name,
        f"from flowkit import *\n{head}\n\nclass Story(FlowSpec):\n{body}\n"
        "    @step\n    def end(self):\n        pass\n\n\nif __name__ == '__main__':\n    Story()\n",
    )


def newest(workspace: Any) -> Any:
    """The newest run."""
    return workspace.client().Flow("Story").latest_run


def test_artifacts_pass_on_and_end(workspace: Any) -> None:
    write(
        workspace,
        """
    constant = 5
    table = {"a": [1]}
    _hidden_constant = 1
    given = Parameter("given", default=[1], type=JSONType)

    @step
    def start(self):
        self.x, self.none, self.items = 1, None, [1]
        self._hidden = 2
        self.alias = self.items
        self.words = {"b", "a"}
        self.sum = self.constant + self._hidden_constant
        self.gone = self.again = "here"
        self.function = lambda n: n + 1
        self.next(self.middle)

    @step
    def middle(self):
        self.items.append(2)
        self.table["a"].append(2)
        self.given.append(2)
        self.seen = self._hidden, hasattr(self, "x"), hasattr(self, "nope"), getattr(self, "nope", 3)
        self.place = self.index, self.input, self.foreach_stack()
        del self.gone
        self.again
        del self.again
        self.left = hasattr(self, "gone"), hasattr(self, "again")
        self.again = "back"
        self.counted = self.function(1)
        self.x += 1
        self.next(self.last)

    @step
    def last(self):
        self.shown = self.items, self.alias, hasattr(self, "gone"), self.again, self.words
        self.kept = self.table, self.given
        self.next(self.end)
""",
    )
    workspace.run("run", check=True)
    run = newest(workspace)
    start, middle, last = (run[name].task for name in ("start", "middle", "last"))
    assert (start.data.items, middle.data.items, start.data.alias, last.data.alias) == ([1], [1, 2], [1], [1])
    assert start.data.gone == "here"
    assert "gone" not in middle
    assert "_hidden" not in {artifact.id for artifact in middle}
    assert middle.data.seen == (2, True, False, 3)
    assert middle.data.place == (None, None, [])
    assert middle.data.left == (False, False)
    assert (middle.data.counted, middle.data.x, start.data.x) == (2, 2, 1)
    assert last.data.shown == ([1, 2], [1], False, "back", {"a", "b"})
    # Constants and parameters are read only: what a step does to its copy ends with the step.
    assert last.data.kept == ({"a": [1]}, [1])
    assert (last.data.constant, last.data.sum) == (5, 6)
    # What was read and not changed is the same content still, also where it pickles differently each time.
    assert start["words"].sha == last["words"].sha


def test_loaded_arrays_are_changed_in_place_without_touching_what_is_stored(workspace: Any) -> None:
    write(
        workspace,
        """
    @step
    def start(self):
        self.small, self.large = np.zeros(10), np.zeros(2_000_000)
        self.untouched = np.ones(2_000_000)
        self.next(self.change)

    @step
    def change(self):
        self.small[0] = self.large[-1] = 5
        self.total = float(self.untouched.sum())
        self.next(self.look)

    @step
    def look(self):
        self.sums = float(self.small.sum()), float(self.large.sum()), float(self.untouched.sum())
        self.next(self.end)
""",
        head="import numpy as np",
    )
    workspace.run("run", check=True)
    run = newest(workspace)
    start, change, look = (run[name].task for name in ("start", "change", "look"))
    assert look.data.sums == (5.0, 5.0, 2_000_000.0)
    assert (start.data.small.sum(), start.data.large.sum()) == (0, 0)
    assert (change.data.small.sum(), change.data.large.sum()) == (5, 5)
    assert start["untouched"].sha == look["untouched"].sha
    assert start["large"].sha != change["large"].sha


MISTAKES = {
    "self.valeu": "step 'start' has no artifact 'valeu' (did you mean 'value'?)",
    "self.given = 1": "'given' is a parameter and cannot be changed in a step",
    "del self.given": "'given' belongs to the flow's class and cannot be deleted",
    "self.constant = 1": "'constant' is a constant of the flow and cannot be changed in a step",
    "del self.constant": "'constant' belongs to the flow's class and cannot be deleted",
    "self.end = 1": "'end' is a step of the flow: give the artifact another name",
    "self.next = 1": "every flow has its own 'next'",
    "self.input = 1": "every flow has its own 'input'",
    "self.merge_artifacts = 1": "every flow has its own 'merge_artifacts'",
    "del self.nothing": "there is no artifact 'nothing' to delete",
    "self.computed = 1": "computed",
    "current.run_idd": "current has no attribute 'run_idd' (did you mean 'run_id'?)",
}


def test_what_cannot_be_done_to_self_is_explained(workspace: Any) -> None:
    write(
        workspace,
        f"""
    given = Parameter("given", default=1)
    constant = 2

    @property
    def computed(self):
        return self.value * 2

    @step
    def start(self):
        self.told = {{}}
        for code in {list(MISTAKES)!r}:
            try:
                exec(code)
            except AttributeError as error:
                self.told[code] = str(error)
        self.value = 4
        self.told["computed"] = self.computed
        self.next(self.end)
""".replace("        self.told = {}", "        self.value = 1\n        self.told = {}"),
    )
    workspace.run("run", check=True)
    told = newest(workspace).data.told
    assert told.pop("computed") == 8
    assert set(told) == set(MISTAKES)
    for code, text in MISTAKES.items():
        assert text in told[code]


def test_what_cannot_be_stored_is_named_with_a_way_out(workspace: Any) -> None:
    write(
        workspace,
        """
    @step
    def start(self):
        self.kinds = ["lock", "self", "inside", "file", "own", "items"]
        self.next(self.store, foreach="kinds")

    @step
    def store(self):
        kind = self.input
        if kind == "lock":
            self.x = {"a": [1, threading.Lock()]}
        if kind == "self":
            self.x = self
        if kind == "inside":
            self.x = [self]
        if kind == "file":
            self.x = open(__file__)
        if kind == "own":
            self.x = Own()
        self.items = [1, threading.Lock()] if kind == "items" else []
        self.next(self.other, foreach="items")

    @step
    def other(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.join_all)

    @step
    def join_all(self, inputs):
        self.next(self.end)
""",
        head="import threading\n\n\nclass Own:\n    def __reduce__(self):\n        return {}['no such key']",
    )
    result = workspace.run("run", "--keep-going", check=1)
    status = workspace.client().Run("Story/1")["store"]
    reasons = {task.index: str(task.exception or "") for task in status}
    stored = "step 'store': the artifact 'x' cannot be stored: "
    assert stored + "self.x['a'][1] is a _thread.lock, which cannot be pickled" in reasons[0]
    assert stored + "a flow object cannot be stored as an artifact" in reasons[1]
    assert stored + "a flow object cannot be stored as an artifact" in reasons[2]
    assert stored + "a _io.TextIOWrapper cannot be pickled" in reasons[3]
    assert "no such key" in reasons[4]
    assert "items" in reasons[5]
    assert "_thread.lock" in reasons[5]
    log = workspace.run("logs", "1/store", check=True).stdout
    assert "leave self.x['a'][1] out" in log
    assert "self.x = inputs[0].x and not self.x = inputs[0]" in log
    assert "open it in each step" in log
    # Only lines of the user's are shown: their own __reduce__ is one, our pickler is not.
    assert "in __reduce__" in log
    assert "cloudpickle.py" not in result.output + log


def test_inputs_of_a_join_are_for_reading(workspace: Any) -> None:
    write(
        workspace,
        """
    @step
    def start(self):
        self.xs = [1, 2]
        self.next(self.child, foreach="xs")

    @step
    def child(self):
        self.value = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        inputs[0].note = "a note of the join's own"
        self.note = inputs[0].note
        self.told = []
        for code in ("del inputs[0].value", "inputs[0].next(self.end)", "inputs[0].vlaue"):
            try:
                exec(code)
            except (FlowkitError, AttributeError) as error:
                self.told.append(str(error))
        self.flow = inputs[0]
        self.next(self.end)
""",
    )
    failed = workspace.run("run", check=1)
    assert "the artifact 'flow' cannot be stored: a flow object cannot be stored" in failed.stderr
    source = (workspace.path / "flow.py").read_text()
    workspace.write("flow.py", source.replace("self.flow = inputs[0]", "self.flow = inputs"))
    failed = workspace.run("resume", check=1)
    assert "the artifact 'flow' cannot be stored: the inputs of a join cannot be stored" in failed.stderr
    assert "self.scores = [i.score for i in inputs]" in failed.stderr
    workspace.write("flow.py", source.replace("self.flow = inputs[0]", ""))
    workspace.run("resume", check=True)
    data = newest(workspace).data
    assert data.note == "a note of the join's own"
    assert [text.split("\n")[0] for text in data.told] == [
        "del inputs[…].value: the inputs of a join cannot be changed",
        "self.next is called on self, not on an input",
        "the input child/0 has no artifact 'vlaue' (did you mean 'value'?)",
    ]


def test_current_tells_about_the_task(workspace: Any) -> None:
    write(
        workspace,
        """
    p = Parameter("p", default=1)
    q = Parameter("q-dash", default=1)

    @step
    def start(self):
        self.facts = {
            name: getattr(current, name)
            for name in (
                "is_running_flow flow_name run_id step_name task_id retry_count origin_run_id pathspec namespace "
                "username parameter_names is_parallel"
            ).split()
        }
        self.tags = sorted(current.tags)
        self.objects = current.run.pathspec, current.task.pathspec, os.path.isdir(current.tempdir)
        self.steps = {name: (one["type"], one["next"]) for name, one in current.graph["steps"].items()}
        self.same = current.graph == current.graph_info
        self.asked = current.get("nothing", 5), "nothing" in current, "run_id" in current, hasattr(current, "nothing")
        self.next(self.end)
""",
        head="import os\n\nassert not current.is_running_flow\nassert not hasattr(current, 'run_id')",
    )
    workspace.run("run", "--tag", "blue", "--tag", "b:1", "--namespace", "team", check=True)
    workspace.client().namespace(None)
    data = workspace.client().Step("Story/1/start").task.data
    assert data.facts == {
        "is_running_flow": True,
        "flow_name": "Story",
        "run_id": "1",
        "step_name": "start",
        "task_id": "0",
        "retry_count": 0,
        "origin_run_id": None,
        "pathspec": "Story/1/start/0",
        "namespace": "team",
        "username": "tester",
        "parameter_names": ["p", "q"],
        "is_parallel": False,
    }
    assert {"blue", "b:1"} <= set(data.tags)
    assert data.objects == ("Story/1", "Story/1/start/0", True)
    assert data.steps == {"start": ("start", ["end"]), "end": ("end", [])}
    assert data.same
    assert data.asked == (5, False, True, False)


def test_steps_parameters_and_constants_come_from_other_files(workspace: Any) -> None:
    workspace.write("kit/__init__.py", "")
    workspace.write(
        "kit/parts.py",
        """
        from flowkit import FlowSpec, Parameter, retry, step


        class Base(FlowSpec):
            alpha = Parameter("alpha", default=3)
            numbers = [1, 2]
            over = "base"

            @step
            def start(self):
                self.greeting = self.greet("base")
                self.next(self.middle)

            @step
            def middle(self):
                raise RuntimeError("overridden")
                self.next(self.end)

            def greet(self, who):
                return f"hello {who}"


        class Ending:
            closing = "mixed in"

            @step
            def end(self):
                self.ended = self.closing
        """,
    )
    workspace.write(
        "kit/story.py",
        """
        from flowkit import Parameter, step
        from kit.parts import Base, Ending


        class Story(Ending, Base):
            over = "child"
            beta = Parameter("beta", default="b")

            @step
            def middle(self):
                self.values = self.alpha, self.numbers, self.over, self.beta, self.closing
                self.greeting = super().greet("child") + self.greeting
                self.next(self.end)


        if __name__ == "__main__":
            Story()
        """,
    )
    run = workspace.command("python", "-m", "kit.story", "run", "--alpha", 8, check=True, env=path_of_python())
    assert "Done!" in run.stdout
    spawned = ["python", "-m", "kit.story", "run", "--task-start", "spawn"]
    workspace.command(*spawned, check=True, env=path_of_python())
    for run_id, alpha in ((1, 8), (2, 3)):
        data = workspace.client().Run(f"Story/{run_id}").data
        assert data.values == (alpha, [1, 2], "child", "b", "mixed in")
        assert (data.greeting, data.ended) == ("hello childhello base", "mixed in")
    failing = (workspace.path / "kit/parts.py").read_text().replace("self.ended = self.closing", "1 / 0")
    workspace.write("kit/parts.py", failing)
    failed = workspace.command("python", "-m", "kit.story", "run", check=1, env=path_of_python())
    assert f"parts.py:{failing[: failing.index('1 / 0')].count(chr(10)) + 1}" in failed.stderr


def path_of_python() -> dict[str, str]:
    """An environment in which ``python`` is the interpreter of the tests."""
    import os
    import sys

    return {"PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
