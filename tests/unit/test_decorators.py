"""Putting decorators on steps and flows, asking them, and what they say about their attributes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowkit import (
    FlowSpec,
    Parameter,
    catch,
    environment,
    exit_hook,
    parallel,
    project,
    resources,
    retry,
    schedule,
    secrets,
    step,
    timeout,
    trigger,
    trigger_on_finish,
)
from flowkit.decorators.attach import attach, configure_all, executor_request, parse_decospec, policy
from flowkit.decorators.catch import Catch
from flowkit.decorators.contract import Attempts, StepDecorator
from flowkit.decorators.retry import Retry
from flowkit.exceptions import FlowInvalid, UsageError
from flowkit.model.cron import cron_problems
from flowkit.model.definition import FlowDefinition, define


def line() -> int:
    """The line of the caller."""
    return sys._getframe(1).f_lineno


def one_step(*decorators: Any) -> FlowDefinition:
    """A flow whose step `work` has the decorators, outermost first."""

    class Decorated(FlowSpec):
        @step
        def start(self) -> None:
            self.next(self.work)

        @step
        def work(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    for decorator in reversed(decorators):
        decorator(Decorated.work)
    return define(Decorated)


def flow_with(*decorators: Any) -> FlowDefinition:
    """A flow that has the flow decorators, outermost first, and a parameter."""

    class Decorated(FlowSpec):
        table = Parameter("table", default="t")

        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    for decorator in reversed(decorators):
        decorator(Decorated)
    return define(Decorated)


def told(definition: FlowDefinition, **options: Any) -> list[str]:
    """Everything that is wrong, as it would be shown."""
    return [str(problem) for problem in configure_all(definition, options)]


# -- where they stand -------------------------------------------------------------------------------------------------


def test_the_three_ways_to_write_a_decorator_and_their_order() -> None:
    class Written(FlowSpec):
        @retry
        @timeout(seconds=5)
        @step
        def start(self) -> None:
            self.next(self.end)

        @retry()
        @step
        def end(self) -> None:
            pass

    definition = define(Written)
    assert [item.name for item in definition.steps["start"].decorators] == ["retry", "timeout"]
    assert [item.attributes["times"] for item in definition.steps["end"].decorators] == [3]
    assert definition.graph["start"].decorators == ("retry", "timeout")
    assert told(definition) == []


def test_a_decorator_knows_its_line() -> None:
    class Written(FlowSpec):
        before = line()

        @retry
        @timeout(
            seconds=5,
        )
        @step
        def start(self) -> None:
            pass

    first, second = define(Written).steps["start"].decorators
    # Python 3.10 knows only the line of `def` for a decorator without parentheses.
    assert first.location in [(__file__, Written.before + 2), (__file__, Written.before + 7)]
    assert second.location == (__file__, Written.before + 3)


def test_every_misplaced_or_misspelt_decorator_is_told_at_once() -> None:
    class Wrong(FlowSpec):
        before = line()

        @step
        @retry(times=3)
        def start(self) -> None:
            self.next(self.end)

        @retry(tims=3)
        @catch
        @catch
        @step
        def end(self) -> None:
            pass

        @timeout(seconds=1)
        def helper(self) -> None:
            pass

    problems = configure_all(define(Wrong), {})
    assert [problem.headline for problem in problems] == [
        "@retry must stand above @step: 'start' is not a step yet",
        "@retry has no attribute 'tims'",
        "step 'end' has @catch twice",
        "@timeout must stand above @step: 'helper' is not a step yet",
    ]
    assert problems[1].hint == "did you mean 'times'?"
    lines = [problem.where.line - Wrong.before for problem in problems if problem.where]
    assert lines in ([3, 7, 8, 14], [3, 7, 11, 14]), "Python 3.10 tells the line of `def` of the bare @catch"


def test_the_same_wrong_decorator_of_a_base_class_is_told_once_and_not_where_it_is_overridden() -> None:
    class Base(FlowSpec):
        @retry(tims=3)
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    class Derived(Base):
        pass

    class Mended(Base):
        @retry(times=3)
        @step
        def start(self) -> None:
            self.next(self.end)

    assert len(told(define(Derived))) == 1
    assert told(define(Mended)) == []


def test_outside_a_class_a_misplaced_decorator_is_refused_at_once() -> None:
    def plain() -> None:
        pass

    with pytest.raises(FlowInvalid, match="must stand above @step") as caught:
        retry(plain)
    assert caught.value.problems[0].where == (__file__, line() - 1)
    with pytest.raises(FlowInvalid, match="by name only") as caught:
        retry(3)
    assert caught.value.hint == "write @retry(times=…)"
    with pytest.raises(FlowInvalid, match="not for the class"):
        retry(type("Flow", (), {}))
    with pytest.raises(FlowInvalid, match="stands above a class"):
        project(name="p")(plain)


def test_flow_decorators_are_inherited_and_the_nearest_one_wins() -> None:
    def hook() -> None:
        pass

    @project(name="base")
    @exit_hook(on_success=[hook])
    class Base(FlowSpec):
        @step
        def start(self) -> None:
            pass

    @project(name="own")
    @exit_hook(on_error=[hook])
    class Own(Base):
        pass

    assert [item.name for item in define(Own).decorators] == ["project", "exit_hook", "exit_hook"]
    assert define(Own).decorators[0].attributes["name"] == "own"
    assert define(Base).decorators[0].attributes["name"] == "base"
    assert told(define(Own)) == []


def test_a_flow_decorator_given_twice_and_one_with_a_wrong_attribute() -> None:
    problems = told(flow_with(project(name="a"), project(name="b"), schedule(corn="* * * * *")))
    assert len(problems) == 2
    assert "has @project twice" in problems[0]
    assert "did you mean 'cron'?" in problems[1]


def test_help_shows_the_attributes() -> None:
    from inspect import signature

    assert "times=3" in str(signature(retry))
    assert "Try the step again" in (retry.__doc__ or "")
    assert repr(retry) == "<decorator @retry>"


# -- --with -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "attributes"),
    [
        ("retry", "retry", {}),
        ("retry:", "retry", {}),
        ("retry:times=2,minutes_between_retries=0", "retry", {"times": 2, "minutes_between_retries": 0}),
        ("timeout:seconds=1.5", "timeout", {"seconds": 1.5}),
        ("catch:var=failure,print_exception=false", "catch", {"var": "failure", "print_exception": False}),
        ('environment:vars={"A": "x,y=z", "B": [1, 2]}', "environment", {"vars": {"A": "x,y=z", "B": [1, 2]}}),
        ('secrets:sources=["a.b", "c.d"],role=me', "secrets", {"sources": ["a.b", "c.d"], "role": "me"}),
        ('card:title="a, \\"b\\"",id=x', "card", {"title": 'a, "b"', "id": "x"}),
        ("batch:image=repo:5000/name:1.2,cpu=007", "batch", {"image": "repo:5000/name:1.2", "cpu": 7}),
        ("batch:queue=,image=a=b", "batch", {"queue": "", "image": "a=b"}),
    ],
)
def test_decospecs(text: str, name: str, attributes: dict[str, Any]) -> None:
    assert parse_decospec(text) == (name, attributes)


@pytest.mark.parametrize("text", ["", ":times=2", "retry:times", "retry:=2", "retry:times=1,times=2"])
def test_decospecs_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--with"):
        parse_decospec(text)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_decospecs_of_json_come_back(attributes: dict[str, Any]) -> None:
    import json

    text = "x:" + ",".join(f"{key}={json.dumps(value)}" for key, value in attributes.items())
    assert parse_decospec(text) == ("x", attributes)


def test_with_never_overrides_what_stands_in_the_source() -> None:
    definition = one_step(retry(times=7))
    attach(definition, ["retry:times=1", "retry:times=2"])
    times = {name: step.decorator("retry").attributes["times"] for name, step in definition.steps.items()}
    assert times == {"start": 2, "work": 7, "end": 2}
    assert definition.steps["start"].decorators[0].inserted_by == "--with"
    assert definition.steps["start"].function.decorators == [], "the user's class is not changed"


def test_with_leaves_out_what_it_does_not_fit_and_puts_catch_around_the_rest() -> None:
    class Wide(FlowSpec):
        @step
        def start(self) -> None:
            self.items = [1]
            self.next(self.work, foreach="items")

        @timeout(seconds=5)
        @step
        def work(self) -> None:
            self.next(self.join)

        @step
        def join(self, inputs: Any) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    definition = define(Wide)
    attach(definition, ["retry", "catch"])
    names = {name: [item.name for item in step.decorators] for name, step in definition.steps.items()}
    assert names["start"] == ["retry"]
    assert names["work"] == ["catch", "timeout", "retry"]
    assert told(definition) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rety", "did you mean 'retry'"),
        ("project:name=x", "is for the flow"),
        ("nothing_like_it", "known: "),
    ],
)
def test_with_names_that_are_no_step_decorators(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attach(one_step(), [spec])


def test_with_attributes_that_are_wrong_are_told_once_for_all_steps() -> None:
    with pytest.raises(FlowInvalid, match="no attribute 'tims'"):
        attach(one_step(), ["retry:tims=3"])
    definition = one_step()
    attach(definition, ["retry:times=many"])
    (problem,) = told(definition)
    assert problem == "@retry(times='many'): times must be a whole number from 0 to 99 (given by --with)"


# -- what they ask for ------------------------------------------------------------------------------------------------


def test_retry_waits_here_only_for_a_pause_that_was_given() -> None:
    assert policy(one_step(retry).steps["work"]) == Attempts(retries=3)
    asked = retry(times="2", minutes_between_retries="0.5", backoff=2, max_minutes=1, on=[ValueError, "killed"])
    assert policy(one_step(asked).steps["work"]) == Attempts(
        retries=2, delay=30.0, backoff=2.0, max_delay=60.0, on=("ValueError", "killed")
    )
    assert policy(one_step(retry(minutes_between_retries=600)).steps["work"]).delay == 3600.0


def test_retry_catch_and_timeout_together() -> None:
    asked = policy(one_step(catch, retry(times=2), timeout(minutes=1, seconds="30")).steps["work"])
    assert (asked.retries, asked.fallback) == (2, True)
    assert asked.timeout == 90
    assert policy(one_step().steps["work"]) == Attempts()


class Odd(ConnectionError):
    """An exception of a user."""


@pytest.mark.parametrize(
    ("on", "kind", "error", "again"),
    [
        (None, "error", ValueError, True),
        (ValueError, "error", ValueError, True),
        (ValueError, "error", UnicodeDecodeError, True),
        (ValueError, "error", KeyError, False),
        ([KeyError, OSError], "error", Odd, True),
        ("Odd", "error", Odd, True),
        (Odd, "error", Odd, True),
        (Odd, "error", ConnectionError, False),
        (f"{__name__}.Odd", "error", Odd, True),
        ("elsewhere.Odd", "error", Odd, False),
        ("timeout", "timeout", None, True),
        ("killed", "vanished", None, False),
        (["killed", "vanished"], "vanished", None, True),
    ],
)
def test_retry_on_some_failures_only(on: Any, kind: str, error: type[Exception] | None, again: bool) -> None:
    from flowkit.decorators.contract import class_name

    definition = one_step(retry(on=on))
    assert told(definition) == []
    names = [class_name(base) for base in error.__mro__] if error else []
    assert policy(definition.steps["work"]).retries_on(kind, names) is again


def test_resources_and_environment() -> None:
    asked = executor_request(
        one_step(resources(cpu="2", memory=1e3), environment(vars={"A": "1", "B": 2})).steps["work"]
    )
    assert asked.resources == {"cpu": 2, "memory": 1000}
    assert asked.fresh
    assert asked.environment == {"A": "1", "B": "2"}
    nothing = executor_request(one_step(resources, retry).steps["work"])
    assert (nothing.name, dict(nothing.resources), nothing.fresh) == (None, {}, False)


def test_records_are_plain_json() -> None:
    import json

    def hook() -> None:
        pass

    definition = flow_with(exit_hook(on_error=[hook]), schedule(weekly=True), trigger(event=hook))
    assert told(definition) == []
    records = [item.record() for item in definition.decorators]
    assert json.loads(json.dumps(records)) == records
    assert records[0]["on_error"][0].endswith("hook")
    assert records[1]["schedule"] == "0 0 ? * SUN *"
    assert Retry({"on": [ValueError]}).record()["on"] == ["builtins.ValueError"]


# -- what is wrong with attributes ------------------------------------------------------------------------------------


def nothing() -> None:
    """A function to give where one is asked for."""


def of_three(one: int, two: int, three: int) -> None:
    """A function that no hook can be."""


@pytest.mark.parametrize(
    ("decorators", "parts"),
    [
        ([retry(times=-1)], ["times must be a whole number from 0 to 99"]),
        ([retry(times=1.5)], ["times"]),
        ([retry(times=True)], ["times"]),
        (
            [retry(times=100, minutes_between_retries="soon", backoff=0.5, max_minutes=float("nan"))],
            ["times", "minutes_between_retries", "backoff", "max_minutes"],
        ),
        ([retry(on="timout")], ["did you mean 'timeout'?"]),
        ([retry(on=[3, int])], ["on=…): 3 is neither", "on=…): int is neither"]),
        ([timeout], ["@timeout needs a time above 0"]),
        ([timeout(seconds=-1)], ["seconds must be a number of seconds of at least 0"]),
        ([timeout(hours=1e9)], ["above a year"]),
        ([catch(var="end")], ["the name of a step"]),
        ([catch(var="not a name")], ["must be the name of an artifact"]),
        ([catch(var="next", print_exception="yes")], ["print_exception must be True or False", "flowkit's own"]),
        ([environment(vars=["A"])], ["vars must be a dict"]),
        ([environment(vars={"1A": "x"})], ["'1A' is not a name"]),
        (
            [environment(vars={"A": True, "B": None})],
            ['write "A": "true"', "B must be a text or a number, not NoneType"],
        ),
        ([environment(vars={"FLOWKIT_DATASTORE": "/tmp"})], ["belongs to flowkit"]),
        ([environment(vars={"A": "x\0"})], ["null character"]),
        (
            [resources(cpu=0, gpu=1.5, memory="a lot")],
            ["cpu must be a number above 0", "gpu", "memory must be a number of megabytes"],
        ),
        ([secrets], ["has no sources"]),
        (
            [secrets(sources=["nowhere.x", "plain", 3])],
            ["no type of secrets 'nowhere'", "'<type>.<id>'", "a text or a dict"],
        ),
        ([secrets(sources=[{"typ": "inline"}])], ["did you mean 'type'?", "no type"]),
        (
            [secrets(sources=[{"type": "inline", "options": {"env_vars": {"FLOWKIT_X": "s3cret", "B": 5}}}])],
            ["FLOWKIT_X", "value of B must be a text"],
        ),
        ([secrets(sources=["inline.x"])], ["an inline source has options="]),
    ],
)
def test_wrong_attributes_of_step_decorators(decorators: list[Any], parts: list[str]) -> None:
    problems = told(one_step(*decorators))
    assert len(problems) == len(parts), problems
    for problem, part in zip(problems, parts, strict=True):
        assert part in problem
        assert problem.startswith(__file__), "the place is told"
        assert "s3cret" not in problem


@pytest.mark.parametrize(
    ("decorators", "parts"),
    [
        ([project], ["@project needs a name"]),
        (
            [project(name="My Project", branch="a/b", production="no")],
            ["production must be True", "not a project's name", "'a/b' is not the name of a branch"],
        ),
        ([schedule(cron="61 * * * *")], ["'61' is not a minute (0 to 59)"]),
        (
            [schedule(cron="* *", timezone="Europe/Olso", daily="x")],
            ["daily must be", "2 fields", "did you mean 'Europe/Oslo'?"],
        ),
        ([schedule(timezone="../../etc/passwd")], ["no such time zone"]),
        ([trigger], ["takes event=… or events=[…], and has none"]),
        ([trigger(event="a", events=["b"])], ["and has both"]),
        ([trigger(event={"name": "a", "parameters": {"tabel": "x"}})], ["did you mean 'table'?"]),
        ([trigger(events=["a", 3, {"nam": "x"}])], ["not int", "did you mean 'name'?", "has no name"]),
        ([trigger(event={"name": "a", "parameters": [3]})], ["are not names"]),
        ([trigger_on_finish(flow="a.b")], ["'a.b' does not name a flow"]),
        ([trigger_on_finish(flow={"flow": "A"})], ["'flow' means nothing here", "'name' must be a text"]),
        ([trigger_on_finish(flows=["A", "p.user.b.B"], options=3)], ["options must be a dict"]),
        ([exit_hook], ["has no function"]),
        ([exit_hook(on_success=nothing())], ["has no function"]),
        ([exit_hook(on_error=["nothing"])], ["'nothing' is not a function"]),
        ([exit_hook(on_error=[of_three])], ["of_three needs more than a run"]),
    ],
)
def test_wrong_attributes_of_flow_decorators(decorators: list[Any], parts: list[str]) -> None:
    problems = told(flow_with(*decorators))
    assert len(problems) == len(parts), problems
    for problem, part in zip(problems, parts, strict=True):
        assert part in problem
        assert problem.startswith(__file__), "the place is told"


def test_catch_is_not_for_steps_that_decide_what_follows() -> None:
    class Open(FlowSpec):
        @catch
        @step
        def start(self) -> None:
            self.items = [1]
            self.next(self.work, foreach="items")

        @catch(var="failure")
        @step
        def work(self) -> None:
            self.next(self.join)

        @step
        def join(self, inputs: Any) -> None:
            self.case = "a"
            self.next(self.choose)

        @catch
        @step
        def choose(self) -> None:
            self.next({"a": self.gang, "b": self.end}, condition="case")

        @catch
        @step
        def gang(self) -> None:
            self.next(self.node, num_parallel=2)

        @parallel
        @step
        def node(self) -> None:
            self.next(self.last)

        @step
        def last(self, inputs: Any) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    problems = told(define(Open))
    assert len(problems) == 3
    for problem, name in zip(problems, ["start", "choose", "gang"], strict=True):
        assert f"@catch cannot be on step '{name}'" in problem


@pytest.mark.parametrize(
    "cron",
    [
        "* * * * *",
        "0 0 ? * SUN *",
        "0/15 9-17 * JAN,MAR MON-FRI",
        "0 6 L * ? 2030",
        "0 6 15W * ?",
        "0 6 ? * 5#2 *",
        "0 6 ? * FRIL *",
        "5,10,*/20 0 1-7 */2 0",
    ],
)
def test_cron_texts_that_are_right(cron: str) -> None:
    assert cron_problems(cron) == []


@given(st.text())
def test_any_text_is_a_cron_text_or_is_told_why_not(text: str) -> None:
    assert all(isinstance(problem, str) for problem in cron_problems(text))


def test_project_settles_its_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    from flowkit.settings import settings

    monkeypatch.setenv("FLOWKIT_USER", "ann")
    settings(reload=True)

    def settled(made: Any, **options: Any) -> tuple[Any, ...]:
        definition = flow_with(made)
        assert told(definition, **options) == []
        (found,) = definition.decorators
        values = found.current()
        assert found.system_tags() == ["project:p", f"project_branch:{values['branch_name']}"]
        assert values["project_flow_name"] == f"p.{values['branch_name']}.Decorated"
        other = flow_with(made).decorators[0]
        other.restore(found.record())
        assert other.current() == values
        return values["branch_name"], values["is_user_branch"], values["is_production"]

    try:
        assert settled(project(name="p")) == ("user.ann", True, False)
        assert settled(project(name="p", branch="b")) == ("test.b", False, False)
        assert settled(project(name="p", branch="b"), branch="c") == ("test.c", False, False)
        assert settled(project(name="p", production=True)) == ("prod", False, True)
        assert settled(project(name="p"), production=True, branch="c") == ("prod.c", False, True)
        (problem,) = told(flow_with(project(name="p")), branch="No Branch")
        assert problem.startswith("'No Branch' is not the name of a branch")
    finally:
        monkeypatch.undo()
        settings(reload=True)


def test_inline_secrets_never_show() -> None:
    definition = one_step(secrets(sources=[{"type": "inline", "options": {"env_vars": {"TOKEN": "s3cret-value"}}}]))
    assert told(definition) == []
    (made,) = definition.steps["work"].decorators
    for shown in (made.record(), made.attributes, vars(made)["attributes"], repr(made)):
        assert "s3cret" not in repr(shown)
    definition = one_step()
    attach(definition, ['secrets:sources=[{"type": "inline", "options": {"env_vars": {"TOKEN": "s3cret-value"}}}]'])
    (problem,) = told(definition)
    assert "cannot be given on the command line" in problem
    assert "s3cret" not in problem


def test_a_decorator_of_another_package_uses_the_same_contract() -> None:
    from flowkit.decorators.attach import step_decorator

    class Loud(StepDecorator):
        """Be loud."""

        name = "loud"
        defaults = {"volume": 11}
        multiple = True

    loud = step_decorator(Loud)
    definition = one_step(loud(volume=1), loud)
    assert [item.attributes["volume"] for item in definition.steps["work"].decorators] == [1, 11]
    assert told(definition) == []
    assert Catch.outermost
