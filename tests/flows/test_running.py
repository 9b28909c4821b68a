"""Running: what is kept when a step fails, what is said, what is logged, and how tasks start."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from typing import Any

import pytest


def write(workspace: Any, body: str, *, head: str = "", end: str = "pass") -> None:
    """Write a flow called Story, given the body of its class, indented by four."""
    workspace.write(
        "flow.py",
        f"import os, signal, sys, time\nfrom flowkit import *\n{textwrap.dedent(head)}\n\n"
        f"class Story(FlowSpec):\n{body}\n"
        f"    @step\n    def end(self):\n        {end}\n\n\nif __name__ == '__main__':\n    Story()\n",
    )


def resume_command(result: Any) -> str:
    """The command that the last words of a run name."""
    found = re.search(r"^ +(python \S+ resume --origin-run-id \S+.*)$", result.stderr, re.MULTILINE)
    assert found, str(result)
    return found[1]


def execute(workspace: Any, command: str, **options: Any) -> Any:
    """Run a command as it was printed, but with the interpreter of the tests."""
    return workspace.command(sys.executable, *shlex.split(command)[1:], **options)


def newest(workspace: Any) -> Any:
    """The newest run."""
    return workspace.client().Flow("Story").latest_run


def test_what_runs_beside_a_failing_task_is_kept(workspace: Any) -> None:
    workspace.write("helper.py", "def deep(value):\n    return 1 / value\n")
    write(
        workspace,
        """
    @step
    def start(self):
        self.id_file = open("run_id").read()
        self.xs = [0, 1, 2, 3]
        self.next(self.child, foreach="xs")

    @step
    def child(self):
        with open(f"ran-{self.input}", "a") as file:
            file.write("x")
        if self.input == 0:
            while not os.path.exists("ran-1"):
                time.sleep(0.01)
            divisor = 0 if not os.path.exists("mended") else 1
            helper.deep(divisor)
        if self.input == 1 and not os.path.exists("mended"):
            time.sleep(0.5)
        self.done = self.input
        self.next(self.after)

    @step
    def after(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.done = [each.done for each in inputs]
        self.next(self.end)
""",
        head="import helper",
    )
    result = workspace.run("run", "--max-workers", 2, "--run-id-file", "run_id", "--tag", "first", check=1)
    line = (workspace.path / "flow.py").read_text().splitlines().index("            helper.deep(divisor)") + 1
    assert f"Task Story/1/child/0 failed ({workspace.path / 'flow.py'}:{line})" in result.stderr
    assert f'File "{workspace.path / "flow.py"}", line {line}, in child' in result.stderr
    assert "in deep\n" in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "flowkit/" not in result.output.replace("python flow", "")
    # The screen says at once what failed and what is awaited.
    assert "child/0] Task failed: ZeroDivisionError: division by zero" in result.stdout
    assert (workspace.path / "ran-1").exists()
    assert not (workspace.path / "ran-3").exists()
    run = newest(workspace)
    assert (run.data is None, run.successful, "first" in run.tags) == (True, False, True)
    assert run["start"].task.data.id_file == "1"
    assert {task.id: task.successful for task in run["child"]} == {"0": False, "1": True}
    workspace.write("mended", "")
    resumed = execute(workspace, resume_command(result), check=True)
    assert "Done!" in resumed.stdout
    assert newest(workspace).data.done == [0, 1, 2, 3]
    runs = [(workspace.path / f"ran-{n}").read_text() for n in range(4)]
    assert runs == ["xx", "x", "x", "x"]
    assert newest(workspace).origin_pathspec == "Story/1"


BRANCHES = """
    @step
    def start(self):
        self.next(self.bad, self.slow, self.other)

    @step
    def bad(self):
        while not os.path.exists("slow"):
            time.sleep(0.01)
        raise ValueError("this branch fails")
        self.next(self.join)

    @step
    def slow(self):
        open("slow", "w").close()
        time.sleep(60 if "--fail-fast" in self.mode else 0.3)
        self.next(self.join)

    @step
    def other(self):
        self.xs = [1, 2]
        self.next(self.leaf, foreach="xs")

    @step
    def leaf(self):
        self.next(self.leaves)

    @step
    def leaves(self, inputs):
        time.sleep(0.4)
        self.next(self.more)

    @step
    def more(self):
        open(f"more{self.mode}", "w").close()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    mode = Parameter("mode", default="")
"""


def test_failing_fast_and_keeping_going(workspace: Any) -> None:
    write(workspace, BRANCHES)
    fast = workspace.run("run", "--fail-fast", "--mode=--fail-fast", timeout=30, check=1)
    assert "Task Story/1/bad/0 failed" in fast.stderr
    states = {task.pathspec: task.finished_at is not None for step in newest(workspace) for task in step}
    assert "Story/1/slow/0" in states
    assert not newest(workspace)["slow"].task.successful
    (workspace.path / "slow").unlink()
    going = workspace.run("run", "--keep-going", "--mode=-going", check=1)
    assert "Task Story/2/bad/0 failed" in going.stderr
    assert (workspace.path / "more-going").exists()
    assert newest(workspace)["more"].task.successful
    assert newest(workspace)["slow"].task.successful
    assert "join" not in [step.id for step in newest(workspace)]
    assert "join waits for" in going.stderr
    both = workspace.run("run", "--keep-going", "--fail-fast", check=2)
    assert "exclude each other" in both.stderr


def test_a_process_that_dies_is_one_task_that_failed(workspace: Any) -> None:
    write(
        workspace,
        """
    @step
    def start(self):
        self.xs = ["leave", "leave badly", "segfault", "kill", "well", "exit", "recursion", "interrupt"]
        self.next(self.child, foreach="xs")

    @step
    def child(self):
        print("before the end of", self.input, flush=True)
        if self.input == "leave":
            os._exit(0)
        if self.input == "leave badly":
            os._exit(7)
        if self.input == "segfault":
            import ctypes

            ctypes.string_at(0)
        if self.input == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.input == "exit":
            sys.exit(0)
        if self.input == "recursion":
            self.deeper()
        if self.input == "interrupt":
            raise KeyboardInterrupt
        self.next(self.join)

    def deeper(self):
        self.deeper()

    @step
    def join(self, inputs):
        self.next(self.end)
""",
    )
    workspace.run("run", "--keep-going", check=1)
    workspace.run("run", "--keep-going", "--task-start", "spawn", check=1)
    for run in ("1", "2"):
        tasks = {task.index: task for task in workspace.client().Run(f"Story/{run}")["child"]}
        assert [task.successful for task in (tasks[n] for n in range(8))] == [n == 4 for n in range(8)]
        reasons = [str(tasks[n].exception or "") for n in range(8)]
        assert "ended with status 0 and without a result" in reasons[0]
        assert "ended with status 7 and without a result" in reasons[1]
        assert "crashed (SIGSEGV)" in reasons[2]
        assert "killed by SIGKILL" in reasons[3]
        assert "SystemExit" in reasons[5]
        assert "RecursionError" in reasons[6]
        assert "KeyboardInterrupt" in reasons[7] or "interrupted" in reasons[7]
        for n, name in enumerate(["leave", "leave badly", "segfault", "kill"]):
            assert f"before the end of {name}\n" in tasks[n].stdout
        # faulthandler tells where a crash was
        assert "in child" in tasks[2].stderr


CONSTRUCTS = """
    base = Parameter("base", default=10)
    constant = {"k": 1}

    @step
    def start(self):
        self.pids = [os.getpid()]
        self.next(self.left, self.right)

    @step
    def left(self):
        self.xs = [1, 2]
        self.next(self.item, foreach="xs")

    @step
    def item(self):
        self.n = getattr(self, "n", 0) + 1
        self.again = self.n < self.input
        self.next({True: self.item, False: self.out}, condition="again")

    @step
    def out(self):
        self.value = self.n * self.base + self.index
        self.next(self.items)

    @step
    def items(self, inputs):
        self.values = [each.value for each in inputs]
        self.next(self.join)

    @retry(times=1, minutes_between_retries=0)
    @step
    def right(self):
        if current.retry_count == 0:
            raise ValueError("once")
        self.ys = []
        self.next(self.none, foreach="ys")

    @step
    def none(self):
        self.next(self.nones)

    @step
    def nones(self, inputs):
        self.next(self.begin)

    @step
    def begin(self):
        self.next(self.gang, num_parallel=2)

    @parallel
    @step
    def gang(self):
        self.node = current.parallel.node_index
        self.next(self.gangs)

    @step
    def gangs(self, inputs):
        self.nodes = [each.node for each in inputs]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs)
        self.state = MODULE_STATE, self.constant, current.run.id
        self.next(self.end)
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_every_construct_however_tasks_start(workspace: Any, how: str) -> None:
    write(workspace, CONSTRUCTS, head="MODULE_STATE = [1]")
    result = workspace.run("run", "--task-start", how, "--base", 100, check=True)
    data = newest(workspace).data
    assert (data.values, data.nodes, data.state) == ([100, 201], [0, 1], ([1], {"k": 1}, "1"))
    assert "ValueError: once" in result.stdout
    assert len(workspace.processes()) == 0


def test_a_thread_of_the_import_makes_tasks_start_fresh(workspace: Any) -> None:
    write(
        workspace,
        """
    @step
    def start(self):
        self.threads = threading.active_count()
        self.next(self.end)
""",
        head="""
        import threading

        if __name__ == "__main__":
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        """,
    )
    result = workspace.run("run", check=True)
    assert "tasks start in fresh interpreters: " in result.stdout
    assert newest(workspace).data.threads == 2
    forced = workspace.run("run", env={"FLOWKIT_TASK_START": "fork"}, check=True)
    assert "fresh interpreters" not in forced.stdout
    assert newest(workspace).data.threads == 1


DRAWING = """
    @step
    def start(self):
        self.xs = range(6)
        self.next(self.draw, foreach="xs")

    @step
    def draw(self):
        self.drawn = random.random(), float(np.random.rand())
        self.next(self.join)

    @step
    def join(self, inputs):
        self.drawn = [each.drawn for each in inputs]
        self.next(self.end)
"""


def test_children_of_a_foreach_draw_their_own_numbers_unless_seeded(workspace: Any) -> None:
    for head, one, two in (
        ("import random\nimport numpy as np\nrandom.random(), np.random.rand()", 6, 6),
        ("import random\nimport numpy as np\nrandom.seed(1)", 1, 6),
        ("import random\nimport numpy as np\nnp.random.seed(1)", 6, 1),
        ("import random\nimport numpy as np\nimport seeding", 1, 1),
    ):
        workspace.write("seeding.py", "import random\nimport numpy\nrandom.seed(7)\nnumpy.random.seed(7)\n")
        write(workspace, DRAWING, head=head)
        workspace.run("run", check=True)
        drawn = newest(workspace).data.drawn
        assert (len({a for a, _ in drawn}), len({b for _, b in drawn})) == (one, two), head
    workspace.run("run", "--task-start", "spawn", check=True)
    assert newest(workspace).data.drawn == drawn


def test_tasks_end_as_programs_do_and_read_nothing(workspace: Any) -> None:
    write(
        workspace,
        """
    @step
    def start(self):
        self.typed = sys.stdin.read()
        atexit.register(lambda: print("the task's own last words"))
        threading.Thread(target=self.slowly).start()
        self.next(self.end)

    def slowly(self):
        time.sleep(0.2)
        print("the thread has ended")
""",
        head="""
        import atexit
        import threading

        atexit.register(lambda: print(f"the program's last words, pid {os.getpid()}"))
        """,
    )
    for how in ("fork", "spawn"):
        result = workspace.run("run", "--task-start", how, input="typed by the user", check=True)
        assert newest(workspace).data.typed == ""
        log = newest(workspace)["start"].task.stdout
        assert log.index("the thread has ended") < log.index("the task's own last words")
        own = re.findall(r"^the program's last words, pid (\d+)$", result.stdout, re.MULTILINE)
        assert len(own) == 1, result.stdout


def test_what_tasks_write_is_kept_in_order_whatever_it_is(workspace: Any) -> None:
    write(
        workspace,
        r"""
    @step
    def start(self):
        print("one")
        sys.stdout.flush()
        print("two", file=sys.stderr, flush=True)
        os.write(1, b"binary \xff\xfe\x00 junk\n")
        os.write(2, "ünïcödé \U0001f600\n".encode())
        os.system("echo from a child process")
        print("\x1b[31mred\x1b[0m \x1b]0;title\x07bell")
        print("no end of line", end="", flush=True)
        self.next(self.long)

    @step
    def long(self):
        print("y" * 3_000_000)
        print("after the long line")
        self.next(self.much)

    @step
    def much(self):
        for n in range(30_000):
            print(f"line {n:06}", "z" * 40)
        self.next(self.end)
""",
        end='print("fine")',
    )
    result = workspace.run("run", "--max-log-size", 1, check=True)
    run = newest(workspace)
    start = run["start"].task
    lines = workspace.run("logs", "1/start", check=True).output.splitlines()
    out = start.stdout.splitlines()
    assert (out[0], out[2], out[-1]) == ("one", "from a child process", "no end of line")
    assert re.fullmatch("binary .*junk", out[1])
    assert re.search("red.*bell", out[3])
    assert start.stderr.splitlines() == ["two", "ünïcödé \U0001f600"]
    assert {"one", "two"} <= {line.rsplit(maxsplit=1)[-1] for line in lines}
    # The terminal is not driven by what tasks write.
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    much = run["much"].task.stdout
    assert much.startswith("line 000000")
    assert len(much) < 1_300_000
    assert "--max-log-size" in much + run["much"].task.stderr
    assert "fine\n" in run["end"].task.stdout
    assert len(run["long"].task.stdout) < 1_300_000
    shown = workspace.run("logs", "1/much", check=True)
    assert "--max-log-size" in shown.output


def test_a_run_needs_no_terminal(workspace: Any) -> None:
    write(workspace, "    @step\n    def start(self):\n        print('x' * 100_000)\n        self.next(self.end)\n")
    for closed in ("| head -1", "<&-", ">&- 2>&-", "<&- >&- 2>&-"):
        workspace.command("sh", "-c", f"{sys.executable} flow.py run {closed}", check=True)
        assert newest(workspace).successful
    assert len(list(workspace.client().Flow("Story"))) == 4
