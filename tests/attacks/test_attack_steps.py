"""Steps that do what no step should: the run survives, says what happened, and leaves nothing behind."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from attack_tools import SOAK, artifact, no_defect, root_of, wait_gone

if TYPE_CHECKING:
    from conftest import Workspace

MEGABYTES = 500 if SOAK else 20

FLOW = """
    import ctypes
    import os
    import resource
    import shutil
    import signal
    import sys
    import time

    from flowkit import FlowSpec, Parameter, retry, step, timeout

    WHAT = os.environ["WHAT"].split()

    class Rude(FlowSpec):
        @step
        def start(self):
            self.what = WHAT
            self.next(self.rude, foreach="what")

        @timeout(seconds=1 if WHAT == ["hang_in_c"] else 600)
        @step
        def rude(self):
            getattr(self, self.input)()
            self.value = "made"
            self.next(self.join)

        def close_stdout(self):
            sys.stdout.close()
            os.close(1)
            sys.stderr.write("still heard\\n")

        def close_every_descriptor(self):
            os.closerange(0, 256)

        def no_newline(self):
            for _ in range(64):
                sys.stdout.write("x" * 65536)
            sys.stdout.flush()

        def many_lines(self):
            line = "y" * 99 + "\\n"
            for _ in range(int(os.environ["MEGABYTES"]) * 100):
                sys.stdout.write(line * 100)

        def binary_junk(self):
            for _ in range(50):
                os.write(1, os.urandom(10_000))
                os.write(2, os.urandom(10_000))

        def children(self):
            for kind in range(3):
                if os.fork() == 0:
                    if kind == 1:
                        os.setsid()
                    if kind == 2:
                        signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    time.sleep(600)
                    os._exit(0)

        def change_directory(self):
            os.chdir("/")

        def delete_working_folder(self):
            shutil.rmtree(os.getcwd())

        def handlers(self):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1):
                signal.signal(number, lambda *_: None)
            signal.alarm(1)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

        def leave_early(self):
            os._exit(0)

        def leave_by_exit(self):
            sys.exit(0)

        def allocate(self):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
            self.much = [bytearray(1 << 24) for _ in range(1000)]

        def allocate_in_the_background(self):
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
            self.kept = []
            while True:
                try:
                    self.kept.append(bytearray(1 << 20))
                except MemoryError:
                    return  # and now nothing is left for storing what there is

        def segfault(self):
            ctypes.string_at(0)

        def abort(self):
            os.abort()

        def hang_in_c(self):
            # A call that holds the interpreter's lock and does not end for a signal: no Python code runs any more.
            mutex = ctypes.create_string_buffer(128)
            for _ in range(2):
                ctypes.PyDLL(None).pthread_mutex_lock(mutex)

        def kill_myself(self):
            os.kill(os.getpid(), signal.SIGKILL)

        def kill_my_group(self):
            os.killpg(0, signal.SIGTERM)
            time.sleep(600)

        def kill_everything_near(self):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)

        def stop_myself(self):
            if os.fork() == 0:
                time.sleep(0.3)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)

        def raise_strange(self):
            class Strange(BaseException):
                def __str__(self):
                    raise ValueError("no text")
                __repr__ = __str__
            raise Strange()

        def deep(self):
            def down(n):
                return down(n + 1)
            down(0)

        def unicode_error(self):
            raise ValueError("\\udcff \\x00 \\x1b[2J \\u202e")

        def replace_streams(self):
            sys.stdout = sys.stderr = None

        def threads_left(self):
            import threading
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            threading.Thread(target=time.sleep, args=(0.1,)).start()

        @step
        def join(self, inputs):
            self.values = [each.value for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            assert self.values == ["made"] * len(WHAT)

    if __name__ == "__main__":
        Rude()
"""

FINE = [
    "close_stdout",
    "close_every_descriptor",
    "no_newline",
    "many_lines",
    "binary_junk",
    "children",
    "change_directory",
    "handlers",
    "stop_myself",
    "replace_streams",
    "threads_left",
]
FAILS = {
    "leave_early": "ended with status 0 and without a result",
    "leave_by_exit": "SystemExit",
    "allocate": "MemoryError",
    "segfault": "SIGSEGV",
    "abort": "SIGABRT",
    "hang_in_c": "longer than @timeout",
    "kill_myself": "killed by SIGKILL",
    "kill_my_group": "killed by SIGTERM",
    "kill_everything_near": "process is gone",
    "raise_strange": "Strange",
    "deep": "RecursionError",
    "unicode_error": "ValueError",
}


ALONE = ["hang_in_c", "kill_everything_near"]


def environment(*what: str) -> dict[str, str]:
    return {"WHAT": " ".join(what), "MEGABYTES": str(MEGABYTES)}


@pytest.mark.parametrize("what", [*([each] for each in FINE if SOAK), FINE], ids=" ".join)
def test_rude_steps_that_get_away_with_it(workspace: Workspace, what: list[str]) -> None:
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", env=environment(*what), timeout=300)
    no_defect(result)
    assert result.returncode == 0, str(result)
    assert artifact(root_of(workspace), "Rude", "1", "end", "values") == ["made"] * len(what)
    wait_gone(workspace)
    if "close_stdout" in what:
        # The screen may leave lines out when other tasks flood it; a log never does.
        heard = workspace.run("logs", f"1/rude/{what.index('close_stdout')}", env=environment(*what))
        assert "still heard" in heard.output
    if "many_lines" in what:
        logs = workspace.run("logs", "1/rude", env=environment(*what))
        no_defect(logs)
        assert "cut" in logs.output, logs.output[-2000:]
        for log in root_of(workspace).rglob("log"):
            assert log.stat().st_size < 11 << 20


@pytest.mark.parametrize(
    "what",
    [*([each] for each in sorted(FAILS) if SOAK or each in ALONE), sorted(set(FAILS) - set(ALONE))],
    ids=" ".join,
)
def test_rude_steps_that_fail(workspace: Workspace, what: list[str]) -> None:
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", "--keep-going", env=environment(*what), timeout=120)
    no_defect(result)
    assert result.returncode == 1, str(result)
    assert "rude/0" in result.stderr
    assert "resume" in result.stderr
    wait_gone(workspace)
    told = json.loads(workspace.run("status", "1", "--json", env=environment(*what), check=True).stdout)
    reasons = {task["task"].rpartition("/")[2]: task["reason"] for task in told["failed"]}
    for index, each in enumerate(what):
        assert FAILS[each] in reasons[str(index)]
    # A failed task is not a broken run.
    mended = FLOW.replace("getattr(self, self.input)()", "pass")
    workspace.write("flow.py", mended)
    workspace.run("resume", env=environment(*what), check=True)
    assert artifact(root_of(workspace), "Rude", "2", "end", "values") == ["made"] * len(what)


def test_a_step_that_takes_all_memory_and_then_stores(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", env=environment("allocate_in_the_background"), timeout=120)
    no_defect(result)
    assert result.returncode == 1, str(result)
    assert "Memory" in result.stderr or "memory" in result.stderr, str(result)
    workspace.write("flow.py", FLOW.replace("getattr(self, self.input)()", "pass"))
    workspace.run("resume", env=environment("allocate_in_the_background"), check=True)


def test_a_step_that_deletes_the_working_folder(workspace: Workspace) -> None:
    """The datastore is inside, and gone with it: that is said, and nothing hangs."""
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", env=environment("delete_working_folder"))
    no_defect(result)
    assert result.returncode in (1, 5), str(result)
    assert ".flowkit" in result.stderr, str(result)
    workspace.path.mkdir(exist_ok=True)
    wait_gone(workspace)


def test_a_working_folder_that_is_gone_before_the_start(workspace: Workspace) -> None:
    flow = workspace.write("flow.py", FLOW)
    store = {"FLOWKIT_DATASTORE": str(workspace.path / "store")}
    shell = f"mkdir gone && cd gone && rmdir ../gone && {sys.executable} {flow} "
    lost = workspace.command("sh", "-c", shell + "run", env=environment("change_directory"))
    no_defect(lost)
    assert lost.returncode == 4, str(lost)
    assert "the working directory does not exist any more" in lost.stderr
    for start in ("fork", "spawn"):
        told = workspace.command(
            "sh", "-c", f"{shell} run --task-start {start}", env={**environment("change_directory"), **store}
        )
        no_defect(told)
        assert told.returncode == 0, str(told)


def test_a_step_that_deletes_the_working_folder_but_not_the_datastore(workspace: Workspace) -> None:
    workspace.write("inner/flow.py", FLOW)
    store = {"FLOWKIT_DATASTORE": str(workspace.path / "store")}
    shell = f"cd inner && exec {sys.executable} flow.py run"
    result = workspace.command("sh", "-c", shell, env={**environment("delete_working_folder"), **store})
    no_defect(result)
    assert result.returncode == 0, str(result)
    assert artifact(workspace.path / "store", "Rude", "1", "end", "values") == ["made"]


def test_the_kernel_ends_a_task_before_the_runtime(workspace: Workspace) -> None:
    workspace.write(
        "flow.py",
        """
        import os
        from flowkit import FlowSpec, step

        class Greedy(FlowSpec):
            @step
            def start(self):
                with open("/proc/self/oom_score_adj") as file:
                    self.score = int(file.read())
                self.next(self.end)

            @step
            def end(self):
                assert self.score >= 500

        if __name__ == "__main__":
            Greedy()
        """,
    )
    workspace.run("run", check=True)
