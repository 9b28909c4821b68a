"""Decorators in real runs: flows written to a folder and run by the real command."""

from __future__ import annotations

import textwrap
from typing import Any

END = """
@step
def end(self):
    pass
"""


def flow(body: str, *, header: str = "", above: str = "", end: str = END) -> str:
    """The source of a flow called Story, given the body of its class and what stands above it."""
    parts = [
        "import os, signal, sys, time",
        "from flowkit import *",
        textwrap.dedent(header),
        textwrap.dedent(above).strip(),
        "class Story(FlowSpec):",
        textwrap.indent(textwrap.dedent(body) + end, "    "),
        "if __name__ == '__main__':",
        "    Story()",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def last(workspace: Any) -> Any:
    """The newest run, through the client."""
    return workspace.client().Flow("Story").latest_run


def attempts(text: str) -> list[int]:
    """The attempts that printed themselves."""
    return [number for number in range(10) if f"try-{number}" in text]


def test_a_pause_before_a_retry_holds_no_slot(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            def start(self):
                self.next(self.shaky, self.steady)

            @retry(times=1, minutes_between_retries=0.02)
            @step
            def shaky(self):
                if current.retry_count == 0:
                    raise ConnectionError("try again")
                print("shaky again")
                self.next(self.join)

            @step
            def steady(self):
                print("steady meanwhile")
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)
            """
        ),
    )
    out = workspace.run("run", "--max-workers", 1, check=True).stdout
    assert out.index("steady meanwhile") < out.index("shaky again")


def test_retry_names_what_is_worth_it(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @retry(times=5, on=[ConnectionError, "killed"])
            @step
            def start(self):
                print(f"try-{current.retry_count}", flush=True)
                if current.retry_count == 0:
                    raise ConnectionResetError("a subclass")
                if current.retry_count == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                {}["not worth it"]
                self.next(self.end)
            """
        ),
    )
    result = workspace.run("run", check=1)
    assert attempts(result.stdout) == [0, 1, 2]
    assert "KeyError: 'not worth it'" in result.output


def test_retry_given_on_the_command_line(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            def start(self):
                print(f"try-{current.retry_count}", flush=True)
                if current.retry_count < 2:
                    raise ValueError
                self.next(self.end)
            """
        ),
    )
    assert attempts(workspace.run("run", "--with", "retry:times=2", check=True).stdout) == [0, 1, 2]
    assert attempts(workspace.run("run", "--with", "retry:times=1", check=1).stdout) == [0, 1]
    assert attempts(workspace.run("--with", "retry:times=2", "run", check=True).stdout) == [0, 1, 2]
    assert attempts(workspace.run("run", env={"FLOWKIT_DECOSPECS": "retry:times=2"}, check=True).stdout) == [0, 1, 2]
    wrong = workspace.run("run", "--with", "rety", check=2)
    assert "did you mean 'retry'?" in wrong.stderr


def test_catch_goes_on_whatever_happened_to_the_step(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            def start(self):
                self.how = ["well", "raise", "kill", "segfault", "exit", "leave", "next"]
                self.next(self.fail, foreach="how")

            @catch(var="failure")
            @step
            def fail(self):
                self.before = self.input
                if self.input == "raise":
                    raise Odd("no such thing")
                if self.input == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.input == "segfault":
                    os.kill(os.getpid(), signal.SIGSEGV)
                if self.input == "exit":
                    sys.exit("bye")
                if self.input == "leave":
                    os._exit(0)
                self.next(self.join)

            @step
            def join(self, inputs):
                self.types = [each.failure and each.failure.type for each in inputs]
                self.texts = [each.failure and each.failure.exception for each in inputs]
                self.before = [getattr(each, "before", None) for each in inputs]
                self.next(self.end)
            """,
            header="""
            class Odd(Exception):
                def __reduce__(self):
                    raise TypeError("cannot be pickled")
            """,
        ),
    )
    result = workspace.run("run", check=True)
    data = last(workspace).data
    died = "flowkit.exceptions.FailureHandledByCatch"
    assert data.types == [None, "__main__.Odd", died, died, "builtins.SystemExit", died, None]
    assert data.texts[1] == "no such thing"
    assert "SIGKILL" in data.texts[2]
    assert "SIGSEGV" in data.texts[3]
    assert data.before == ["well", "raise", None, None, "exit", None, "next"], "what was assigned before is kept"
    assert 'raise Odd("no such thing")' in result.output, "the traceback is in the log"


def test_catch_waits_for_the_last_retry(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @catch(var="failure")
            @retry(times=2)
            @step
            def start(self):
                print(f"try-{current.retry_count}", flush=True)
                self.count = current.retry_count
                if current.retry_count == 1:
                    os._exit(3)
                raise ValueError(current.retry_count)
                self.next(self.end)
            """
        ),
    )
    assert attempts(workspace.run("run", check=True).stdout) == [0, 1, 2]
    data = last(workspace).data
    assert (data.failure.exception, data.count) == ("2", 2)


def test_timeouts_of_steps_that_can_be_interrupted_and_of_one_that_cannot(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            def start(self):
                self.how = ["sleep", "hang", "quick"]
                self.next(self.slow, foreach="how")

            @catch(var="failure")
            @timeout(seconds=1)
            @step
            def slow(self):
                if self.input == "hang":
                    # Native code that holds the interpreter and that no signal reaches.
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
                    ctypes.PyDLL(None).sleep(600)
                if self.input == "sleep":
                    time.sleep(600)
                self.next(self.join)

            @step
            def join(self, inputs):
                self.types = [each.failure and each.failure.type for each in inputs]
                self.texts = [each.failure and each.failure.exception for each in inputs]
                self.next(self.end)
            """,
            header="import ctypes",
        ),
    )
    result = workspace.run("run", check=True)
    data = last(workspace).data
    prefix = "flowkit.exceptions."
    assert data.types == [prefix + "TimeoutException", prefix + "FailureHandledByCatch", None]
    assert "timeout of 1 s" in data.texts[0]
    assert "@timeout" in data.texts[1]
    assert "Timeout (" in result.output, "the log shows where it hung"


def test_a_timeout_fails_the_run_with_the_users_own_line(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @timeout(seconds=0.2)
            @step
            def start(self):
                time.sleep(600)
                self.next(self.end)
            """
        ),
    )
    result = workspace.run("run", check=1)
    assert "TimeoutException: step 'start' took longer than its @timeout of 0.2 s" in result.output
    assert "time.sleep(600)" in result.output


def test_environment_is_set_before_the_file_is_imported(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @environment(vars={"COLOUR": "red", "NUMBER": 3})
            @step
            def start(self):
                self.seen = SEEN
                self.number = os.environ["NUMBER"]
                self.next(self.end)
            """,
            header="SEEN = os.environ.get('COLOUR')",
            end="""
@step
def end(self):
    self.after = (SEEN, os.environ.get("NUMBER"))
""",
        ),
    )
    workspace.run("run", check=True)
    data = last(workspace).data
    assert (data.seen, data.number, data.after) == ("red", "3", (None, None))


def test_secrets_are_nowhere_to_be_read(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @secrets(sources=[{"type": "inline", "options": {"env_vars": {"TOKEN": "hunter-2-value"}}}])
            @step
            def start(self):
                token = os.environ["TOKEN"]
                print("the token is", token, "here")
                print("and there", token, file=sys.stderr)
                self.length = len(token)
                self.next(self.caught)

            @catch(var="failure")
            @secrets(sources=[{"type": "inline", "options": {"env_vars": {"TOKEN": "hunter-2-value"}}}])
            @step
            def caught(self):
                raise ValueError("refused: " + os.environ["TOKEN"])
                self.next(self.work)

            @secrets(sources=[{"type": "inline", "options": {"env_vars": {"TOKEN": "hunter-2-value"}}}])
            @step
            def work(self):
                raise ValueError("refused: " + os.environ["TOKEN"])
                self.next(self.end)
            """
        ),
    )
    result = workspace.run("run", check=1)
    assert "the token is *** here" in result.stdout
    assert "refused: ***" in result.output
    shown = [result.output]
    for command in (
        ["show"],
        ["output-raw"],
        ["output-raw", "--json"],
        ["check"],
        ["dump", "1/start"],
        ["logs", "1/start"],
    ):
        shown.append(workspace.run(*command).output)
    assert not [text for text in shown if "hunter-2" in text]
    stored = [path for path in (workspace.path / ".flowkit").rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if b"hunter-2" in path.read_bytes()]
    run = last(workspace)
    assert run["start"].task["length"].data == 14
    assert run["caught"].task["failure"].data.exception == "refused: ***"


def test_a_gang_of_three(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            def start(self):
                self.alone = current.is_parallel
                self.next(self.train, num_parallel=3)

            @parallel
            @step
            def train(self):
                self.me = tuple(current.parallel)
                self.names = current.parallel._fields
                self.together = current.is_parallel
                self.next(self.join)

            @step
            def join(self, inputs):
                self.all = [each.me for each in inputs]
                self.together = {each.together for each in inputs}
                self.names = inputs[0].names
                self.next(self.end)
            """
        ),
    )
    workspace.run("run", check=True)
    data = last(workspace).data
    control = {each[3] for each in data.all}
    assert len(control) == 1
    assert [each[:3] for each in data.all] == [("127.0.0.1", 3, node) for node in range(3)]
    assert data.names == ("main_ip", "num_nodes", "node_index", "control_task_id")
    assert data.together == {True}


def test_a_project_and_its_branches(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @environment(vars={"FRESH": "yes"})
            @step
            def start(self):
                self.mine = (current.project_name, current.branch_name, current.project_flow_name)
                self.next(self.end)
            """,
            above="@project(name='fraud')",
            end="""
@step
def end(self):
    self.how = (current.is_user_branch, current.is_production, current.branch_name)
""",
        ),
    )
    workspace.run("run", check=True)
    run = last(workspace)
    assert run.data.mine == ("fraud", "user.tester", "fraud.user.tester.Story")
    assert run.data.how == (True, False, "user.tester")
    assert {"project:fraud", "project_branch:user.tester"} <= set(run.system_tags)
    workspace.run("--branch", "next", "--production", "run", check=True)
    run = last(workspace)
    assert run.data.mine == ("fraud", "prod.next", "fraud.prod.next.Story")
    assert run.data.how == (False, True, "prod.next")
    assert "project_branch:prod.next" in run.system_tags


def test_exit_hooks_see_the_run_and_change_nothing(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            bad = Parameter("bad", default=False)

            @step
            def start(self):
                if self.bad:
                    raise ValueError("bad")
                self.kept = Kept()
                self.next(self.end)
            """,
            header="""
            class Kept:
                pass

            def well(run):
                print("hook well", run.pathspec, run.successful, type(run.data.kept).__name__)

            def broken():
                raise ValueError("the hook is broken")

            def badly(run):
                print("hook badly", run.pathspec, run.successful)
            """,
            above="""
            @exit_hook(on_success=[broken, well])
            @exit_hook(on_error=[badly])
            """,
        ),
    )
    good = workspace.run("run", check=True)
    assert "hook well Story/1 True Kept" in good.output
    assert "the hook is broken" in good.stderr
    assert "hook badly" not in good.output
    bad = workspace.run("run", "--bad", "true", check=1)
    assert "hook badly Story/2 False" in bad.output
    assert "hook well" not in bad.output


def test_a_run_that_stands_in_for_the_one_waited_for(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            def start(self):
                found = current.get("trigger")
                self.value = found.run.data.value + 1 if found else 0
                self.next(self.end)
            """,
            above="@trigger_on_finish(flow='Story')",
        ),
    )
    workspace.run("run", check=True)
    workspace.run("--trigger", "Story/1", "run", check=True)
    assert last(workspace).data.value == 1
    wrong = workspace.run("--trigger", "Story/77", "run")
    assert wrong.returncode != 0
    assert "--trigger Story/77" in wrong.stderr


def test_everything_that_is_wrong_is_told_at_once(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        flow(
            """
            @step
            @retry
            def start(self):
                self.next(self.end)

            @timeout(seconds="soon")
            @retry(times=1000)
            @catch(vra="x")
            @step
            def end(self):
                pass
            """,
            above="@project(name='Not Good')",
            end="",
        ),
    )
    for command in (["check"], ["run"]):
        result = workspace.run(*command, check=3)
        for part in ("must stand above @step", "seconds must be", "times must be", "no attribute 'vra'", "'Not Good'"):
            assert part in result.stderr
        assert "Traceback" not in result.output
        assert "flow.py:" in result.stderr
