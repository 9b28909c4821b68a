"""Mutators and the decorators of users: what they see and change, in which order, and what is told of mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowkit import (
    Config,
    FlowMutator,
    FlowSpec,
    Parameter,
    StepMutator,
    UserStepDecorator,
    catch,
    config_expr,
    environment,
    exit_hook,
    project,
    resources,
    retry,
    schedule,
    step,
    timeout,
    user_step_decorator,
)
from flowkit.decorators.attach import attach, configure_all
from flowkit.decorators.mutable import MutableFlow, mutate
from flowkit.decorators.settle import settle
from flowkit.exceptions import FlowInvalid, Problem, UsageError
from flowkit.model.definition import FlowDefinition, define


def prepared(cls: type, configs: dict[str, Any] | None = None, decospecs: tuple[str, ...] = ()) -> FlowDefinition:
    """The flow as it is when a run starts."""
    definition = define(cls)
    settle(definition, configs or {})
    attach(definition, decospecs)
    problems = mutate(definition) + configure_all(definition, {})
    if problems:
        raise FlowInvalid(problems)
    return definition


def problems_of(cls: type) -> list[Problem]:
    with pytest.raises(FlowInvalid) as caught:
        prepared(cls)
    return list(caught.value.problems)


def names(definition: FlowDefinition, name: str = "start") -> list[str]:
    return [decorator.name for decorator in definition.steps[name].decorators]


def acting(pre_mutate: Callable[[Any], None] | None = None, mutate: Callable[[Any], None] | None = None) -> Any:
    """A FlowMutator that does what it is told."""
    hooks = {"pre_mutate": pre_mutate, "mutate": mutate}
    body = {name: lambda self, flow, act=act: act(flow) for name, act in hooks.items() if act is not None}
    return type(FlowMutator)("Acting", (FlowMutator,), body)


def flow(*above: Any, **attributes: Any) -> type:
    """A flow of two steps with decorators above the class, the first one outermost."""

    class Flow(FlowSpec):
        @retry(times=1)
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    for name, value in attributes.items():
        setattr(Flow, name, value)
        getattr(value, "__set_name__", lambda *_: None)(Flow, name)
    for decorator in reversed(above):
        Flow = decorator(Flow)
    return Flow


# -- order ---------------------------------------------------------------------------------------------------------

LOG: list[str] = []


class Noting(FlowMutator):
    def init(self, name):
        self.label = name

    def pre_mutate(self, mutable_flow):
        LOG.append(f"pre {self.label}")

    def mutate(self, mutable_flow):
        LOG.append(f"mutate {self.label}")


class AnotherNoting(Noting):
    pass


class NotingStep(StepMutator):
    def init(self, label):
        self.label = label

    def pre_mutate(self, mutable_step):
        LOG.append(f"pre {mutable_step.name} {self.label}")

    def mutate(self, mutable_step):
        LOG.append(f"mutate {mutable_step.name} {self.label}")


def test_the_nearest_mutator_acts_first_and_flows_before_steps() -> None:
    @Noting("base")
    class Base(FlowSpec):
        @NotingStep("outer")
        @NotingStep("inner")
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    @Noting("outer")
    @Noting("inner")
    class Flow(Base):
        pass

    LOG.clear()
    prepared(Flow)
    steps = ["start inner", "start outer"]
    order = ["base", "inner", "outer", *steps]
    assert LOG == [f"pre {who}" for who in order] + [f"mutate {who}" for who in order]  # noqa: SIM300
    assert names(define(Flow)) == ["NotingStep", "NotingStep"], "the class itself is left as it is"


def test_mutators_that_mutators_add_act_later() -> None:
    def add(mutable_flow: MutableFlow) -> None:
        mutable_flow.add_decorator(AnotherNoting, deco_args=["added"])
        mutable_flow.start.add_decorator(NotingStep("step"))

    LOG.clear()
    prepared(flow(acting(add), Noting("first")))
    assert LOG == ["pre first", "pre added", "pre start step", "mutate first", "mutate added", "mutate start step"]


# -- what they see -------------------------------------------------------------------------------------------------


def test_what_a_mutator_sees() -> None:
    seen: dict[str, Any] = {}

    def look(mutable_flow: MutableFlow) -> None:
        seen["configs"] = dict(mutable_flow.configs)
        seen["parameters"] = [name for name, _ in mutable_flow.parameters]
        seen["steps"] = [(name, each.name) for name, each in mutable_flow.steps]
        seen["specs"] = [tuple(spec) for spec in mutable_flow.start.decorator_specs]
        seen["flow"] = [spec.name for spec in mutable_flow.start.flow.decorator_specs]
        seen["has"] = (mutable_flow.start.has_decorator("retry"), mutable_flow.start.has_decorator(timeout))
        seen["direct"] = (mutable_flow.cfg.lr, mutable_flow.alpha.name)
        seen["nothing"] = hasattr(mutable_flow, "nothing")

    cls = flow(acting(look), schedule(daily=True), cfg=Config("cfg"), alpha=Parameter("alpha", default=1))
    prepared(cls, {"cfg": {"lr": 0.5}})
    assert seen["configs"] == {"cfg": {"lr": 0.5}}
    assert seen["parameters"] == ["alpha"]
    assert seen["steps"] == [("start", "start"), ("end", "end")]
    (spec,) = seen["specs"]
    assert spec[:3] == ("retry", "flowkit.decorators.retry.Retry", [])
    assert spec[3]["times"] == 1
    assert spec[3]["minutes_between_retries"] == 2, "defaults are among them"
    assert seen["flow"] == ["Acting", "schedule"] or seen["flow"] == ["schedule", "Acting"]
    assert seen["has"] == (True, False)
    assert seen["direct"] == (0.5, "alpha")
    assert seen["nothing"] is False


# -- what they change ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duplicates", "times"),
    [("IGNORE", 1), ("OVERRIDE", 3)],
)
def test_duplicates(duplicates: str, times: int) -> None:
    def add(mutable_flow: MutableFlow) -> None:
        for _, each in mutable_flow.steps:
            each.add_decorator("retry", deco_kwargs={"times": 3}, duplicates=getattr(each, duplicates))

    definition = prepared(flow(acting(mutate=add)))
    assert names(definition) == ["retry"]
    assert definition.steps["start"].decorators[0].attributes["times"] == times
    assert definition.steps["end"].decorators[0].attributes["times"] == 3
    assert definition.steps["end"].decorators[0].inserted_by == "the mutator Acting"
    assert definition.graph["end"].decorators == ("retry",)


def test_a_duplicate_may_be_an_error() -> None:
    def add(mutable_flow: MutableFlow) -> None:
        mutable_flow.start.add_decorator(retry, duplicates=mutable_flow.ERROR)

    (problem,) = problems_of(flow(acting(mutate=add)))
    assert problem.headline == "@Acting, mutate: step 'start' has @retry already"
    assert problem.where is not None
    assert problem.where.file == __file__


def test_decorators_are_added_by_name_by_text_by_class_and_as_they_are_written() -> None:
    def add(mutable_flow: MutableFlow) -> None:
        end = mutable_flow.end
        end.add_decorator("timeout:minutes=5")
        end.add_decorator(resources, deco_kwargs={"cpu": config_expr("cfg.cpu * 2")})
        end.add_decorator(environment, deco_kwargs={"vars": mutable_flow.cfg.vars})
        end.add_decorator(Passing)
        end.add_decorator(Labelled(label="x"))
        end.add_decorator("passing_generator")
        end.add_decorator("catch")
        mutable_flow.add_decorator("project:name=a")

    definition = prepared(flow(acting(add), cfg=Config("cfg")), {"cfg": {"cpu": 2, "vars": {"A": "1"}}})
    added = {decorator.name: decorator for decorator in definition.steps["end"].decorators}
    # What swallows errors outermost, what users write innermost, about it the rest.
    assert names(definition, "end")[0] == "catch"
    assert set(names(definition, "end")[1:4]) == {"timeout", "resources", "environment"}
    assert set(names(definition, "end")[4:]) == {"Passing", "Labelled", "passing_generator"}
    assert added["timeout"].attributes["minutes"] == 5
    assert added["resources"].attributes["cpu"] == 4
    assert added["environment"].attributes["vars"] == {"A": "1"}
    assert type(added["environment"].attributes["vars"]) is dict
    assert added["Labelled"].label == "x"
    assert [decorator.name for decorator in definition.decorators] == ["project"]


def test_decorators_are_removed() -> None:
    removed = []

    def remove(mutable_flow: MutableFlow) -> None:
        start = mutable_flow.start
        removed.append(start.remove_decorator("timeout"))
        removed.append(start.remove_decorator("retry", deco_kwargs={"times": 9}))
        removed.append(start.remove_decorator("retry", deco_kwargs={"times": 1}))
        removed.append(start.remove_decorator(retry))
        removed.append(mutable_flow.remove_decorator(project))

    definition = prepared(flow(acting(remove), project(name="a")))
    assert removed == [False, False, True, False, True]
    assert names(definition) == []
    assert definition.decorators == []


def test_what_with_has_attached_is_seen_by_mutate_only() -> None:
    seen = []

    def note(mutable_flow: MutableFlow) -> None:
        seen.append([spec.name for spec in mutable_flow.end.decorator_specs])

    prepared(flow(acting(note, note)), decospecs=("timeout:minutes=1",))
    assert seen == [[], ["timeout"]]


def test_parameters_come_and_go() -> None:
    def change(mutable_flow: MutableFlow) -> None:
        mutable_flow.add_parameter("made", Parameter("made", default=mutable_flow.cfg.lr))
        mutable_flow.add_parameter("kept", Parameter("kept", default=2), overwrite=True)
        assert mutable_flow.remove_parameter("gone")
        assert not mutable_flow.remove_parameter("gone")

    cls = flow(
        acting(change),
        cfg=Config("cfg"),
        kept=Parameter("kept", default=1),
        gone=Parameter("gone", default=1),
    )
    definition = prepared(cls, {"cfg": {"lr": 0.5}})
    assert {name: one.default for name, one in definition.parameters.items()} == {"made": 0.5, "kept": 2}
    assert definition.parameters["made"].type is float
    assert issubclass(definition.cls, cls), "steps see another class"
    assert not hasattr(cls, "made"), "and the user's own is as it was"
    assert isinstance(definition.cls.made, Parameter)
    assert not hasattr(definition.cls, "gone")


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda f: f.add_parameter("kept", Parameter("kept")), "there is a parameter 'kept' already"),
        (lambda f: f.add_parameter("start", Parameter("start")), "the flow has something else that is called 'start'"),
        (lambda f: f.add_parameter("x", 5), "add_parameter('x') takes a Parameter, not 5"),
        (lambda f: f.add_parameter("x", Parameter("KEPT")), "two parameters are called 'KEPT'"),
        (lambda f: f.add_decorator("retry"), "@retry is for the steps of a flow"),
        (lambda f: f.add_decorator(retry), "@retry is for steps"),
        (lambda f: f.start.add_decorator(project), "@project is for flows, not for steps"),
        (lambda f: f.start.add_decorator("retri"), "there is no decorator called 'retri'"),
        (lambda f: f.start.add_decorator(5), "5 is no decorator"),
        (lambda f: f.start.add_decorator(timeout, deco_kwargs={"second": 5}), "@timeout has no attribute 'second'"),
        (lambda f: f.start.add_decorator(timeout, deco_args=[5]), "@timeout takes its attributes by name"),
        (lambda f: f.start.add_decorator(timeout, duplicates=9), "duplicates=9"),
        (lambda f: f.strat, "the flow has no step, config or parameter 'strat' (did you mean 'start'?)"),
        (lambda f: _raise(ValueError("odd")), "@Acting failed in pre_mutate: ValueError: odd"),
        (lambda f: 1 / 0, "@Acting failed in pre_mutate: ZeroDivisionError: division by zero"),
    ],
)
def test_mistakes_in_pre_mutate(act, message: str) -> None:
    (problem,) = problems_of(flow(acting(act), kept=Parameter("kept", default=1)))
    assert message in problem.headline
    if "two parameters" not in message:
        assert problem.where is not None
        assert problem.where.file == __file__


@pytest.mark.parametrize(
    "act",
    [
        lambda f: f.add_parameter("x", Parameter("x")),
        lambda f: f.remove_parameter("kept"),
        lambda f: f.add_decorator("project"),
        lambda f: f.remove_decorator("schedule"),
        lambda f: f.add_decorator(Noting, deco_args=["x"]),
        lambda f: f.start.add_decorator(NotingStep, deco_args=["x"]),
    ],
)
def test_what_is_too_late_in_mutate(act) -> None:
    (problem,) = problems_of(flow(acting(mutate=act), schedule, kept=Parameter("kept", default=1)))
    assert "in mutate it is too late" in problem.headline
    assert problem.hint == "do that in pre_mutate"


def test_a_repeatable_decorator_is_added_beside_another() -> None:
    def add(mutable_flow: MutableFlow) -> None:
        mutable_flow.add_decorator(exit_hook, deco_kwargs={"on_success": [print]})
        mutable_flow.add_decorator(exit_hook, deco_kwargs={"on_error": [print]})

    assert [one.name for one in prepared(flow(acting(add))).decorators] == ["exit_hook", "exit_hook"]


# -- writing them down ---------------------------------------------------------------------------------------------


class Passing(UserStepDecorator):
    pass


class Labelled(UserStepDecorator):
    def init(self, label="none"):
        self.label = label


@user_step_decorator
def passing_generator(step_name, flow, inputs):
    """Nothing."""
    yield


@user_step_decorator
def with_attributes(step_name, flow, inputs, attributes):
    yield


def test_the_forms_above_a_step() -> None:
    class Flow(FlowSpec):
        @Passing
        @Labelled(label="a")
        @Labelled(label="b")
        @passing_generator
        @passing_generator()
        @with_attributes(a=1)
        @catch
        @step
        def start(self):
            pass

    definition = prepared(Flow)
    decorators = definition.steps["start"].decorators
    assert [each.name for each in decorators] == [
        "Passing", "Labelled", "Labelled", "passing_generator", "passing_generator", "with_attributes", "catch",
    ]  # fmt: skip
    assert [each.label for each in decorators[1:3]] == ["a", "b"]
    assert decorators[2].location.line == decorators[1].location.line + 1
    assert decorators[5].record() == {"a": 1}
    assert passing_generator.__doc__ == "Nothing."


def test_attributes_may_wait_for_configs() -> None:
    class Flow(FlowSpec):
        cfg = Config("cfg")

        @Labelled(label=cfg.name)
        @with_attributes(**cfg.more)
        @step
        def start(self):
            pass

    first, second = prepared(Flow, {"cfg": {"name": "n", "more": {"a": [1]}}}).steps["start"].decorators
    assert first.label == "n"
    assert second.attributes == {"a": [1]}
    assert type(second.attributes["a"]) is list


def written(decorator: Any) -> type:
    class Flow(FlowSpec):
        @decorator
        @step
        def start(self):
            pass

    return Flow


@pytest.mark.parametrize(
    ("decorator", "message"),
    [
        (Passing(a=1), "@Passing failed in init: TypeError: it takes nothing in parentheses"),
        (Labelled(labl="x"), "@Labelled failed in init: TypeError"),
        (passing_generator(a=1), "it takes nothing in parentheses: give it a fourth argument, attributes"),
        (NotingStep("a", "b"), "@NotingStep failed in init: TypeError"),
    ],
)
def test_attributes_that_a_decorator_does_not_take(decorator, message: str) -> None:
    (problem,) = problems_of(written(decorator))
    assert message in problem.headline
    assert problem.where is not None
    assert problem.where.file == __file__


def test_what_stands_in_the_wrong_place_is_told() -> None:
    class Flow(FlowSpec):
        @step
        @Passing
        def start(self):
            pass

    (problem,) = problems_of(Flow)
    assert problem.headline == "@Passing must stand above @step: 'start' is not a step yet"
    (problem,) = problems_of(written(Noting("x")))
    assert "@Noting is for flows" in problem.headline
    with pytest.raises(FlowInvalid, match="@Passing is for steps, not for the class"):
        Passing(Flow)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda step_name, flow, inputs: None, "@user_step_decorator is for generators"),
        (5, "@user_step_decorator is for generators, and '5' is none"),
    ],
)
def test_what_is_no_generator(function, message: str) -> None:
    with pytest.raises(FlowInvalid, match=message):
        user_step_decorator(function)


def test_a_generator_of_other_arguments() -> None:
    def two(step_name, flow):
        yield

    with pytest.raises(FlowInvalid, match="'two' is to take three or four arguments, and takes 2"):
        user_step_decorator(two)


# -- by --with -----------------------------------------------------------------------------------------------------


def test_decorators_of_users_by_name() -> None:
    definition = prepared(flow(), decospecs=("Labelled:label=z", "test_mutators.Passing", "retry:times=4"))
    assert set(names(definition, "end")) == {"Labelled", "Passing", "retry"}
    assert names(definition, "end")[0] == "retry"
    assert names(definition, "start")[0] == "retry"
    assert definition.steps["start"].decorator("retry").attributes["times"] == 1, "what is written is not overridden"
    assert definition.steps["end"].decorator("Labelled").label == "z"


def test_names_that_are_not_known_or_not_clear() -> None:
    with pytest.raises(UsageError, match="there is no decorator called 'Labeled'") as caught:
        prepared(flow(), decospecs=("Labeled",))
    assert caught.value.hint == "did you mean 'Labelled'?"
    for module in ("one", "two"):
        type(Passing)("Ambiguous", (UserStepDecorator,), {"__module__": module})
    with pytest.raises(UsageError, match="several decorators are called 'Ambiguous'") as caught:
        prepared(flow(), decospecs=("Ambiguous",))
    assert caught.value.hint == "write which one: one.Ambiguous, two.Ambiguous"
    assert names(prepared(flow(), decospecs=("two.Ambiguous",)), "end") == ["Ambiguous"]


def test_further_files_for_the_code_package() -> None:
    class Shipping(UserStepDecorator):
        def add_to_package(self):
            return ["data/", ("/x/y.csv", "inputs/y.csv")]

    (decorator,) = prepared(written(Shipping)).steps["start"].decorators
    assert decorator.package_files() == [("data/", "data"), ("/x/y.csv", "inputs/y.csv")]
