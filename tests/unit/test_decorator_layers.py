"""What decorators do around a step: the layers called as a task calls them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from flowkit import context, current
from flowkit.decorators.catch import Catch
from flowkit.decorators.contract import Attempts, StepDecorator, TaskContext
from flowkit.decorators.environment import Environment
from flowkit.decorators.events import FlowkitEvent, Trigger
from flowkit.decorators.exit_hook import ExitHook
from flowkit.decorators.parallel import Parallel, ParallelInfo
from flowkit.decorators.secrets import Secrets
from flowkit.decorators.timeout import Timeout, spoken
from flowkit.decorators.trigger import TriggerOnFinish
from flowkit.exceptions import (
    FailureHandledByCatch,
    FlowkitExceptionWrapper,
    InvalidNext,
    Location,
    NotFound,
    TaskError,
    TimeoutException,
)
from flowkit.model.graph import Node


def task(**given: Any) -> Any:
    """A task's context; `hidden` and `went` of it hold what was redacted and which transition was set."""
    hidden: list[str] = []
    went: list[str] = []
    values: dict[str, Any] = {
        "flow": SimpleNamespace(),
        "inputs": None,
        "run": "1",
        "step": "work",
        "task": "0",
        "node": Node("work", "linear", Location("flow.py", 1), ("after",)),
        "attempt": 0,
        "retries": 0,
        "fallback": False,
        "failure": None,
        "extra": {},
        "redact": hidden.append,
        "set_transition": lambda *targets: went.extend(targets),
    }
    made = TaskContext(**{**values, **given})
    return SimpleNamespace(context=made, hidden=hidden, went=went, extra=made.extra, flow=made.flow)


def run(decorator: StepDecorator, on: Any, body: Callable[[], None]) -> None:
    """Run a body inside one layer."""
    decorator.around(on.context, body)


def failing(error: BaseException) -> Callable[[], None]:
    """A body that raises."""

    def body() -> None:
        raise error

    return body


# -- catch ------------------------------------------------------------------------------------------------------------


def test_catch_keeps_the_exception_of_the_last_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    on = task()
    run(Catch({"var": "failure"}), on, failing(ValueError("no such thing")))
    kept = on.flow.failure
    assert isinstance(kept, FlowkitExceptionWrapper)
    assert (kept.exception, kept.type) == ("no such thing", "builtins.ValueError")
    assert kept.stacktrace is not None
    assert __file__ in kept.stacktrace
    assert "flowkit/decorators" not in kept.stacktrace
    assert on.went == ["after"]
    assert on.extra["catch"]["type"] == "builtins.ValueError"
    assert "ValueError: no such thing" in capsys.readouterr().err


def test_what_catch_keeps_can_be_stored_whatever_the_exception_was() -> None:
    class Stubborn(Exception):
        def __init__(self) -> None:
            self.handle = sys.stdout

        def __str__(self) -> str:
            raise RuntimeError("not even this works")

    on = task()
    run(Catch({"var": "failure", "print_exception": False}), on, failing(Stubborn()))
    kept = cloudpickle.loads(cloudpickle.dumps(on.flow.failure))
    assert kept.type.endswith("Stubborn")
    assert "RuntimeError" in kept.exception
    with pytest.raises(FlowkitExceptionWrapper):
        raise kept


def test_catch_tells_where_nothing_was_wrong() -> None:
    on = task()
    run(Catch({"var": "failure"}), on, lambda: None)
    assert on.flow.failure is None
    assert (on.extra, on.went) == ({}, [])


@pytest.mark.parametrize("attempt", [0, 1])
def test_catch_leaves_earlier_attempts_to_retry(attempt: int) -> None:
    on = task(attempt=attempt, retries=2)
    with pytest.raises(ValueError, match="again"):
        run(Catch(), on, failing(ValueError("again")))
    assert on.went == []


def test_catch_acts_at_once_where_retry_does_not_name_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    policy = Attempts(retries=3, on=("OSError", "timeout"))
    for error in (ConnectionError(), TimeoutException("late")):
        with pytest.raises(type(error)):
            run(Catch(), task(retries=3, policy=policy), failing(error))
    on = task(retries=3, policy=policy)
    run(Catch(), on, failing(KeyError("x")))
    assert on.went == ["after"]


def test_catch_swallows_an_exit_of_the_interpreter_but_neither_ctrl_c_nor_a_wrong_flow() -> None:
    on = task()
    run(Catch({"var": "failure", "print_exception": False}), on, failing(SystemExit(3)))
    assert on.flow.failure.type == "builtins.SystemExit"
    for error in (KeyboardInterrupt(), InvalidNext("self.next was called twice")):
        with pytest.raises(type(error)):
            run(Catch(), task(), failing(error))


def test_catch_stands_in_for_a_process_that_died(capsys: pytest.CaptureFixture[str]) -> None:
    failure = {"kind": "killed", "message": "its process was killed by SIGKILL", "exit_status": -9}
    on = task(attempt=3, retries=2, fallback=True, failure=failure)
    run(Catch({"var": "failure"}), on, failing(FailureHandledByCatch("the process was killed by SIGKILL")))
    assert on.flow.failure.type == "flowkit.exceptions.FailureHandledByCatch"
    assert "SIGKILL" in on.flow.failure.exception
    assert on.extra["catch"]["failure"] == failure
    assert on.went == ["after"]


def test_catch_on_the_last_step_goes_nowhere() -> None:
    on = task(node=Node("end", "end", Location("flow.py", 1)))
    run(Catch({"print_exception": False}), on, failing(ValueError()))
    assert on.went == []


# -- timeout ----------------------------------------------------------------------------------------------------------


def test_timeout_interrupts_the_step_where_it_is() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutException, match=r"step 'work' took longer than its @timeout of 0.05 s") as caught:
        run(Timeout({"seconds": 0.05}), task(), lambda: time.sleep(60))
    assert "lambda: time.sleep(60)" in str(caught.traceback[-2].statement)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_timeout_leaves_nothing_behind() -> None:
    done = []
    run(Timeout({"seconds": 60}), task(), lambda: done.append(1))
    assert done
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with pytest.raises(KeyError):
        run(Timeout({"seconds": 60}), task(), failing(KeyError()))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_fallback_attempt_has_no_timeout() -> None:
    seen = []
    run(Timeout({"hours": 1}), task(fallback=True), lambda: seen.append(signal.getitimer(signal.ITIMER_REAL)))
    assert seen == [(0.0, 0.0)]


def test_catch_around_timeout() -> None:
    on = task()
    inner = Timeout({"seconds": 0.05})
    run(Catch({"var": "failure", "print_exception": False}), on, lambda: run(inner, on, lambda: time.sleep(60)))
    assert on.flow.failure.type == "flowkit.exceptions.TimeoutException"


def test_times_as_they_are_said() -> None:
    assert [spoken(value) for value in (0.5, 90, 3600, 7325)] == ["0.5 s", "1 min 30 s", "1 h", "2 h 2 min 5 s"]


# -- environment, secrets, gangs --------------------------------------------------------------------------------------


def test_environment_is_there_whoever_started_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "red")
    seen = []
    run(Environment({"vars": {"COLOUR": 3}}), task(), lambda: seen.append(os.environ["COLOUR"]))
    assert seen == ["3"]


def inline(**variables: str) -> dict[str, Any]:
    """A source of secrets."""
    return {"type": "inline", "options": {"env_vars": variables}}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOKEN and KEY are not set now and, whatever the test sets them to, not afterwards."""
    for name in ("TOKEN", "KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("variables")
def test_secrets_are_in_the_environment_and_hidden() -> None:
    on = task()
    seen = []
    key = "-----BEGIN-----\nabcdefghijkl\nx\n"
    run(
        Secrets({"sources": [inline(TOKEN="hunter2"), inline(KEY=key)]}),
        on,
        lambda: seen.append((os.environ["TOKEN"], os.environ["KEY"])),
    )
    assert seen == [("hunter2", key)]
    assert {"hunter2", key, "abcdefghijkl", repr(key)[1:-1]} <= set(on.hidden)
    assert "x" not in on.hidden, "hiding short lines would make everything else unreadable"
    assert "" not in on.hidden
    assert on.context.masked("hunter2 and more") == "*** and more"


@pytest.mark.usefixtures("variables")
def test_secrets_that_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match="both inline and inline give TOKEN") as caught:
        run(Secrets({"sources": [inline(TOKEN="s3cret-1"), inline(TOKEN="s3cret-2")]}), task(), lambda: None)
    assert "s3cret" not in str(caught.value)
    assert "TOKEN" not in os.environ
    monkeypatch.setenv("TOKEN", "public")
    with pytest.raises(TaskError, match="TOKEN is set in the environment already"):
        run(Secrets({"sources": [inline(TOKEN="s3cret-1")]}), task(), lambda: None)
    run(Secrets({"sources": [inline(TOKEN="s3cret-1")], "allow_override": True}), task(), lambda: None)
    assert os.environ["TOKEN"] == "s3cret-1"


@pytest.mark.usefixtures("variables")
def test_a_fallback_attempt_asks_for_no_secrets() -> None:
    on = task(fallback=True)
    run(Secrets({"sources": [inline(TOKEN="hunter2")]}), on, lambda: None)
    assert on.hidden == []
    assert "TOKEN" not in os.environ


def test_a_node_knows_its_gang_and_prepares_its_framework() -> None:
    class Framework(Parallel):
        name = "framework"

        def setup_distributed_env(self, flow: Any) -> None:
            flow.prepared = current.parallel

    on = task(gang={"size": 3, "node": 2, "control_task": "0", "main_ip": "127.0.0.1"})
    current.enter({"is_parallel": False})
    try:
        run(Framework(), on, lambda: None)
        assert on.flow.prepared == ParallelInfo("127.0.0.1", 3, 2, "0")
        assert current.is_parallel
    finally:
        current.leave()


# -- after and before the run -----------------------------------------------------------------------------------------


class FoundRun:
    """What the client gives for a run."""

    def __init__(self, pathspec: str) -> None:
        self.pathspec = pathspec
        self.successful = not pathspec.endswith("/bad")
        self.finished_at = None


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that knows every run but Flow/none."""

    def factory(kind: str, pathspec: str) -> FoundRun:
        if pathspec.endswith("/none"):
            raise NotFound(f"there is no {kind} '{pathspec}'", "try another one")
        return FoundRun(pathspec)

    monkeypatch.setattr(context, "client_factory", factory)


@pytest.mark.usefixtures("client")
def test_exit_hooks_of_every_kind(capfd: pytest.CaptureFixture[str]) -> None:
    def told(run: Any) -> None:
        print("told", run.pathspec, flush=True)

    def placed(what: Any, extra: int = 3) -> None:
        print("placed", what.pathspec, extra)

    def silent() -> None:
        print("silent")

    made = ExitHook({"on_success": [told, placed, silent, lambda run=None: print("default", run.pathspec)]})
    assert made.run_ended(None, "Flow/1", "succeeded") == []  # type: ignore[arg-type]
    assert capfd.readouterr().out == "told Flow/1\nplaced Flow/1 3\nsilent\ndefault Flow/1\n"
    assert made.run_ended(None, "Flow/1", "failed") == []  # type: ignore[arg-type]
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("client")
def test_exit_hooks_that_go_wrong_are_told_and_do_not_stop_the_next(capfd: pytest.CaptureFixture[str]) -> None:
    def raises() -> None:
        raise ValueError("no network")

    def exits() -> None:
        sys.exit(4)

    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leaves() -> None:
        sys.exit(0)

    def works() -> None:
        print("works")

    made = ExitHook({"on_error": [raises, exits, dies, leaves, works]})
    problems = made.run_ended(None, "Flow/1", "cancelled")  # type: ignore[arg-type]
    assert [problem.headline for problem in problems] == [
        "the exit hook raises failed (exit status 1, see above)",
        "the exit hook exits failed (exit status 1, see above)",
        "the exit hook dies was killed by signal 9",
    ]
    out, err = capfd.readouterr()
    assert out == "works\n"
    assert "ValueError: no network" in err


@pytest.mark.usefixtures("client")
def test_runs_given_by_trigger() -> None:
    made = TriggerOnFinish({"flow": "Prepare"})
    assert made.configure_flow(None, {"trigger": ["Prepare/7", "Prepare/7", "Other/2"]}) == []  # type: ignore[arg-type]
    other = TriggerOnFinish({"flow": "Prepare"})
    other.restore(made.record())
    found = other.current()["trigger"]
    assert len(found) == 2
    assert found.event.name == "flowkit.Prepare.end"
    assert [event.id for event in found.events] == ["Prepare/7", "Other/2"]
    assert found.run.pathspec == "Prepare/7"
    assert [run.pathspec for run in found.runs] == ["Prepare/7", "Other/2"]
    assert found["Other"].pathspec == found["flowkit.Other.end"].pathspec == "Other/2"
    assert "Prepare" in found
    assert "Nobody" not in found
    assert TriggerOnFinish({"flow": "Prepare"}).current() == {}


@pytest.mark.usefixtures("client")
def test_runs_given_by_trigger_that_cannot_be() -> None:
    made = TriggerOnFinish({"flow": "Prepare"})
    problems = made.configure_flow(None, {"trigger": ["Prepare", "Prepare/bad", "Prepare/none"]})  # type: ignore[arg-type]
    assert [problem.headline for problem in problems] == [
        "--trigger 'Prepare' does not name a run",
        "--trigger Prepare/bad: the run did not succeed",
        "--trigger Prepare/none: there is no run 'Prepare/none'",
    ]


def test_events() -> None:
    found = Trigger([FlowkitEvent("arrived", "e1", 1.0, "event"), FlowkitEvent("checked", "e2", 2.0, "event")])
    assert found.event is not None
    assert found.event.id == "e2"
    assert (found.run, found.runs) == (None, None)
    assert found["arrived"].id == "e1"
    assert [event.id for event in found] == ["e1", "e2"]
    with pytest.raises(KeyError):
        found["e1"]
