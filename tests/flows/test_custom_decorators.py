"""Decorators and mutators that users write, in real runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "decorators.md"

LAYERS = """
    from flowkit import (
        USER_SKIP_STEP, FlowMutator, FlowSpec, Parameter, UserStepDecorator, catch, current, retry, step,
        timeout, user_step_decorator,
    )


    class Noted(UserStepDecorator):
        def init(self, label="-"):
            self.label = label

        def pre_step(self, step_name, flow, inputs=None):
            print(f"pre {self.label} {step_name} {inputs is not None}")

        def post_step(self, step_name, flow, exception=None):
            print(f"post {self.label} {step_name} {type(exception).__name__}")
            return exception


    @user_step_decorator
    def around(step_name, flow, inputs, attributes):
        print(f"before {step_name} {attributes.get('label')}")
        try:
            yield
        finally:
            print(f"after {step_name}")


    @user_step_decorator
    def skipping(step_name, flow, inputs):
        flow.items = ["x", "y"]
        yield USER_SKIP_STEP


    @user_step_decorator
    def swallowing(step_name, flow, inputs):
        try:
            yield
        except ValueError as error:
            flow.swallowed = str(error)


    class Gang(UserStepDecorator):
        def pre_step(self, step_name, flow, inputs=None):
            self.skip_step = {"foreach": "others"}
            flow.others = [1, 2, 3]


    class Replacing(UserStepDecorator):
        def pre_step(self, step_name, flow, inputs=None):
            def body(flow, inputs):
                flow.joined = sorted(one.item for one in inputs)
                flow.next(flow.second)

            return body


    class Translating(UserStepDecorator):
        def post_step(self, step_name, flow, exception=None):
            return KeyError("translated") if exception is not None else None


    class Redirecting(UserStepDecorator):
        def post_step(self, step_name, flow, exception=None):
            flow.kind = "right"
            return None, {"condition": "kind"}


    class Everywhere(FlowMutator):
        def pre_mutate(self, mutable_flow):
            mutable_flow.add_parameter("level", Parameter("level", default=2))

        def mutate(self, mutable_flow):
            for name, step in mutable_flow.steps:
                if name != "start":
                    step.add_decorator("retry", deco_kwargs={"times": 1, "minutes_between_retries": 0})


    @Everywhere
    class Layers(FlowSpec):
        @Noted(label="outer")
        @skipping
        @Noted(label="cut off")
        @step
        def start(self):
            print("never")
            self.next(self.each, foreach="items")

        @around(label="L")
        @Noted(label="inner")
        @step
        def each(self):
            self.item = self.input
            if current.retry_count == 0 and self.input == "x":
                raise ConnectionError("once")
            self.next(self.join)

        @Replacing
        @Noted(label="cut off too")
        @step
        def join(self, inputs):
            print("never")
            self.next(self.second)

        @Gang
        @step
        def second(self):
            self.next(self.again, foreach="items")

        @swallowing
        @step
        def again(self):
            raise ValueError(f"swallowed {self.input}")
            self.next(self.last)

        @step
        def last(self, inputs):
            self.swallowed = [one.swallowed for one in inputs]
            self.joined = ["x", "y"]
            self.next(self.choose)

        @Redirecting
        @step
        def choose(self):
            self.kind = "left"
            self.next({"left": self.left, "right": self.right}, condition="kind")

        @step
        def left(self):
            self.way = "left"
            self.next(self.end)

        @catch(var="failure")
        @Translating
        @step
        def right(self):
            self.way = "right"
            raise ValueError("to be translated")
            self.next(self.end)

        @step
        def end(self):
            self.answer = self.level


    if __name__ == "__main__":
        Layers()
"""


def test_layers_skips_replacements_and_changed_transitions(workspace: Any) -> None:
    workspace.write("flow.py", LAYERS)
    done = workspace.run("run", "--level", "5", "--with", "Noted:label=with", check=True)
    assert "never" not in done.output
    assert "cut off" not in done.output
    run = workspace.client().Flow("Layers").latest_run
    log = {task.pathspec.partition("/")[2].partition("/")[2]: task.stdout.split("\n") for one in run for task in one}
    assert log["start/0"][:2] == ["pre outer start False", "post outer start NoneType"]
    assert log["each/1"][:4] == ["before each L", "pre inner each False", "post inner each NoneType", "after each"]
    assert run["each"]["0"].current_attempt == 1, "the mutator's @retry"
    assert run["join"].task.data.joined == ["x", "y"]
    assert len(list(run["again"])) == 3, "the decorator's list, not the step's"
    assert sorted(run["last"].task.data.swallowed) == ["swallowed 1", "swallowed 2", "swallowed 3"]
    assert run.data.way == "right"
    assert run.data.failure.type == "builtins.KeyError"
    assert run.data.answer == 5
    assert log["last/0"][:2] == ["pre with last True", "post with last NoneType"]
    assert sum("with each" in line for line in log["each/1"]) == 0, "it stands there already: --with adds no second"


def test_fresh_interpreters_have_the_same_flow(workspace: Any) -> None:
    workspace.write("flow.py", LAYERS)
    workspace.run("run", "--task-start", "spawn", "--with", "around", check=True)
    run = workspace.client().Flow("Layers").latest_run
    assert run["left"].task.stdout.startswith("before left None") if "left" in run else run.data.way == "right"
    assert run["end"].task.stdout == "before end None\nafter end\n"
    assert run.data.answer == 2


BROKEN = """
    from flowkit import FlowSpec, UserStepDecorator, retry, step, user_step_decorator


    class Before(UserStepDecorator):
        def pre_step(self, step_name, flow, inputs=None):
            flow.nothing["x"]


    class After(UserStepDecorator):
        def post_step(self, step_name, flow, exception=None):
            raise RuntimeError("no more")


    class Odd(UserStepDecorator):
        def post_step(self, step_name, flow, exception=None):
            return 5


    class Replacing(UserStepDecorator):
        def pre_step(self, step_name, flow, inputs=None):
            return "body"


    class Skipping(UserStepDecorator):
        def pre_step(self, step_name, flow, inputs=None):
            self.skip_step = {"foreech": "xs"}


    @user_step_decorator
    def early(step_name, flow, inputs):
        open("/does/not/exist")
        yield


    @user_step_decorator
    def late(step_name, flow, inputs):
        yield
        assert flow.index is not None, "late"


    @user_step_decorator
    def twice(step_name, flow, inputs):
        yield
        yield


    class Broken(FlowSpec):
        nothing = {}

        @step
        def start(self):
            self.next(*STEPS)

        %(steps)s

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Broken()
"""
HOOKS = {
    "Before": "@Before failed in pre_step: KeyError: 'x'",
    "After": "@After failed in post_step: RuntimeError: no more",
    "Odd": "@Odd: post_step returns int",
    "Replacing": "@Replacing gives a str to run instead of the step",
    "Skipping": "self.next has no option 'foreech'",
    "early": "@early failed in what it does before the yield: FileNotFoundError",
    "late": "@late failed in what it does after the yield: AssertionError: late",
    "twice": "@twice yields more than once",
}


def test_a_hook_that_fails_is_named_with_its_line(workspace: Any) -> None:
    steps = "".join(
        f"\n        @{name}\n        @step\n        def {name.lower()}_(self):\n            self.next(self.join)\n"
        for name in HOOKS
    )
    targets = ", ".join(f"self.{name.lower()}_" for name in HOOKS)
    workspace.write("flow.py", BROKEN.replace("%(steps)s", steps.strip()).replace("*STEPS", targets))
    failed = workspace.run("run", "--keep-going", check=1)
    run = workspace.client().Flow("Broken").latest_run
    lines = (Path(workspace.path) / "flow.py").read_text().splitlines()
    places = {"Before": 'flow.nothing["x"]', "After": 'raise RuntimeError("no more")', "late": "assert flow.index"}
    for name, message in HOOKS.items():
        log = run[f"{name.lower()}_"].task.stderr
        assert message in log, name
        if name in places:
            line = next(number for number, text in enumerate(lines, 1) if places[name] in text)
            assert f"flow.py:{line}: {message}" in log
    assert "site-packages" not in failed.stderr
    assert "flowkit/decorators" not in failed.output


def test_mistakes_of_mutators_are_problems_of_the_flow(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowMutator, FlowSpec, StepMutator, step


        class Dividing(FlowMutator):
            def pre_mutate(self, mutable_flow):
                1 / 0


        class Unknown(StepMutator):
            def mutate(self, mutable_step):
                mutable_step.add_decorator("retri")


        class Adding(StepMutator):
            def mutate(self, mutable_step):
                mutable_step.add_decorator("timeout", deco_kwargs={"minutes": -1})


        @MUTATOR
        class Wrong(FlowSpec):
            @Unknown
            @step
            def start(self):
                self.next(self.end)

            @Adding
            @step
            def end(self):
                pass


        if __name__ == "__main__":
            Wrong()
        """,
    )
    source = (Path(workspace.path) / "flow.py").read_text()
    (Path(workspace.path) / "flow.py").write_text(source.replace("@MUTATOR", "@Dividing"))
    said = workspace.run("check", check=3).stderr
    assert "flow.py:6: @Dividing failed in pre_mutate: ZeroDivisionError: division by zero" in said
    (Path(workspace.path) / "flow.py").write_text(source.replace("@MUTATOR", ""))
    said = workspace.run("run", check=3).stderr
    assert "flow.py:11: @Unknown, mutate: there is no decorator called 'retri'" in said
    assert "did you mean 'retry'?" in said
    (Path(workspace.path) / "flow.py").write_text(source.replace("@MUTATOR", "").replace("@Unknown", ""))
    said = workspace.run("run", check=3).stderr
    assert "@timeout(minutes=-1)" in said
    assert "(given by the mutator Adding)" in said


def test_the_examples_of_the_documentation_work(workspace: Any) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    files = {match[1]: block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}
    assert {"timing.py", "gpu_monitor.py"} <= set(files)
    for name, block in files.items():
        workspace.write(name, block)
    workspace.run("run", flow="timing.py", check=True)
    data = workspace.client().Flow("TimedFlow").latest_run.data
    assert set(data.seconds) == {"start", "end"}
    workspace.run("run", flow="gpu_monitor.py", env={"PATH": str(workspace.path)}, check=True)
    run = workspace.client().Flow("MonitoredFlow").latest_run
    assert run.data.gpu_use == [], "there is no GPU to be asked"
