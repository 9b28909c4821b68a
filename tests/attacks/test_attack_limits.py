"""Full and read-only disks, limits that are hit, clocks that are set: said in plain words, and mended by resume."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attack_tools import SOAK, artifact, no_defect, root_of, wait_gone, wait_until

if TYPE_CHECKING:
    from conftest import Result, Workspace

FLOW = """
    import os
    import random
    import time

    from flowkit import FlowSpec, retry, step

    class Limited(FlowSpec):
        @step
        def start(self):
            self.noise = random.Random(1).randbytes(300_000)
            self.next(self.middle)

        @step
        def middle(self):
            open(os.environ.get("BEGAN", "began"), "w").close()
            while os.path.exists("hold"):
                time.sleep(0.005)
            for _ in range(int(os.environ.get("PRINTED", "0"))):
                print("x" * 99)
            self.big = random.Random(2).randbytes(int(os.environ.get("BIG", "10")))
            self.items = list(range(20))
            self.next(self.work, foreach="items")

        @step
        def work(self):
            self.mine = random.Random(self.input).randbytes(10_000)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.sizes = [len(each.mine) for each in inputs]
            self.right = all(each.mine == random.Random(i).randbytes(10_000) for i, each in enumerate(inputs))
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Limited()
"""

Mount = Callable[..., None]


@pytest.fixture
def small_disk(workspace: Workspace) -> Iterator[Mount]:
    """A file system of its own for the datastore; call it to change it."""
    mount = shutil.which("mount")
    if sys.platform != "linux" or os.geteuid() != 0 or mount is None:
        pytest.skip("only root on Linux may mount a small disk")
    root = root_of(workspace)
    root.mkdir()
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", root], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")

    def change(options: str) -> None:
        subprocess.run([mount, "-o", f"remount,{options}", root], check=True)

    try:
        yield change
    finally:
        workspace.close()
        while subprocess.run(["umount", "-l", root], capture_output=True).returncode == 0:
            pass


def finish(workspace: Workspace, last: str = "2") -> None:
    """Resume, and look at the result."""
    result = workspace.run("resume")
    no_defect(result)
    assert result.returncode == 0, str(result)
    assert artifact(root_of(workspace), "Limited", last, "join", "sizes") == [10_000] * 20
    assert artifact(root_of(workspace), "Limited", last, "join", "right") is True


def said(result: Result, *words: str) -> None:
    """Check that a run failed, in plain words that hold one of these."""
    no_defect(result)
    assert result.returncode in (1, 5), str(result)
    assert any(word in result.stderr for word in words), str(result)


def test_a_disk_that_a_big_artifact_fills(workspace: Workspace, small_disk: Mount) -> None:
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", env={"BIG": "9000000"})
    said(result, "No space left on device")
    assert "disk is full" in result.stderr
    assert result.returncode == 1, str(result)  # one artifact was too much: there was still room to tell
    assert not list((root_of(workspace) / ".tmp").iterdir())
    finish(workspace)


@pytest.mark.parametrize("kept", [0, 8_000, 30_000, 60_000, 120_000, 420_000] if SOAK else [0, 8_000, 60_000])
def test_a_disk_with_no_room_left(workspace: Workspace, small_disk: Mount, kept: int) -> None:
    """Whatever it is that does not fit any more: the claim, the database, a blob, a manifest, the failure itself."""
    workspace.write("flow.py", FLOW)
    hold = workspace.write("hold", "")
    run = workspace.start("run")
    wait_until((workspace.path / "began").exists)
    ballast = root_of(workspace) / "ballast"
    free = os.statvfs(root_of(workspace)).f_bavail * os.statvfs(root_of(workspace)).f_frsize
    with open(ballast, "wb", buffering=0) as file:
        try:
            for _ in range(max(0, free - kept) // 4096):
                file.write(bytes(4096))
        except OSError:
            pass
    hold.unlink()
    out, err = run.communicate(timeout=60)
    assert run.returncode in (0, 1, 5), out + err
    assert "defect in flowkit" not in err
    assert "Traceback" not in err or "/flowkit/" not in err, err
    if run.returncode:
        assert "No space left on device" in out + err or "disk is full" in out + err, out + err
    wait_gone(workspace)
    for command in (["run"], ["status"], ["resume"], ["status", "1"]):
        no_defect(workspace.run(*command))
    ballast.unlink()
    small_disk("size=30m")
    result = workspace.run("resume", "--origin-run-id", "1")
    no_defect(result)
    assert result.returncode == 0, str(result)
    last = result.stdout.split("run-id ")[1].split(")")[0].split(",")[0]
    assert artifact(root_of(workspace), "Limited", last, "join", "right") is True


def test_a_disk_that_logs_fill_costs_lines_only(workspace: Workspace, small_disk: Mount) -> None:
    workspace.write("flow.py", FLOW)
    result = workspace.run("run", env={"PRINTED": "60000"})
    no_defect(result)
    assert "log lines are lost" in result.output, str(result)[-3000:]


def test_a_disk_that_becomes_read_only(workspace: Workspace, small_disk: Mount) -> None:
    workspace.write("flow.py", FLOW)
    hold = workspace.write("hold", "")
    run = workspace.start("run")
    wait_until((workspace.path / "began").exists)
    # What is open for writing keeps a file system writable; a second mount above it hides that.
    root = root_of(workspace)
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
    hold.unlink()
    out, err = run.communicate(timeout=60)
    assert run.returncode in (1, 5), out + err
    assert "defect in flowkit" not in err
    assert "ead-only" in err, err
    wait_gone(workspace)
    no_defect(workspace.run("status"))
    refused = workspace.run("run")
    said(refused, "ead-only")
    subprocess.run(["umount", root], check=True)
    small_disk("size=30m")
    finish(workspace)


def limited(workspace: Workspace, limit: str, *command: str, env: dict[str, str] | None = None) -> Result:
    """Run the flow below a limit of the shell."""
    python = f"{sys.executable} flow.py {' '.join(command)}"
    return workspace.command("sh", "-c", f"{limit} && exec {python}", env=env, timeout=120)


def test_a_quota_on_the_size_of_files(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    result = limited(workspace, "ulimit -f 2000", "run", env={"BIG": "9000000"})
    said(result, "File too large")
    finish(workspace)


@pytest.mark.parametrize("descriptors", [24, 32, 48, 64] if SOAK else [24, 32])
def test_few_descriptors(workspace: Workspace, descriptors: int) -> None:
    workspace.write("flow.py", FLOW)
    result = limited(workspace, f"ulimit -n {descriptors}", "run", "--max-workers", "16")
    no_defect(result)
    if result.returncode == 0:
        assert artifact(root_of(workspace), "Limited", "1", "join", "right") is True
    else:
        said(result, "Too many open files", "ulimit -n")


def test_more_large_inputs_than_descriptors(workspace: Workspace) -> None:
    """Each mapping keeps a descriptor: with a hard limit below the number of inputs there are not enough."""
    source = FLOW.replace("randbytes(10_000)", "randbytes(1_100_000)").replace("range(20)", "range(60)")
    workspace.write("flow.py", source.replace("len(each.mine) for", "len(memoryview(each.mine)) for"))
    result = limited(workspace, "ulimit -n 40", "run", "--max-workers", "2")
    no_defect(result)
    if result.returncode != 0:
        said(result, "Too many open files", "ulimit -n")
    result = workspace.run("resume") if result.returncode else result
    assert result.returncode == 0, str(result)


NOBODY = 65534


def test_few_processes(workspace: Workspace, tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("the limit of processes is counted by user: only root may become another one, with setpriv")
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    try:
        folder.chmod(0o777)
        flow = folder / "flow.py"
        flow.write_text(workspace.write("flow.py", FLOW).read_text())
        probe = subprocess.run(
            [*become, "prlimit", "--nproc=50", sys.executable, "-c", "import flowkit"], capture_output=True, text=True
        )
        if probe.returncode != 0:
            pytest.skip(f"another user cannot use this Python: {probe.stderr.strip().splitlines()[-1:]}")
        env = {"HOME": str(folder), "FLOWKIT_HOME": str(folder), "FLOWKIT_DATASTORE": str(folder / "store")}
        for limit in (0, 1, 2, 4):
            shell = f"cd {folder} && exec prlimit --nproc={limit} {sys.executable} flow.py run --max-workers 8"
            result = workspace.command(*become, "sh", "-c", shell, env=env, timeout=120)
            no_defect(result)
            if result.returncode == 0:
                assert limit > 0
            else:
                assert "process" in result.stderr, str(result)
                assert "ulimit -u" in result.stderr or "no process could be started" in result.output, str(result)
            wait_gone(workspace)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("chance", [0.3, 0.7] if SOAK else [0.5])
def test_forks_that_are_refused_now_and_then(workspace: Workspace, chance: float) -> None:
    patch = f"""
    import errno
    server_forks = random.Random(5)
    real_fork, runtime = os.fork, os.getpid()

    def fork():
        if os.getpid() != runtime and server_forks.random() < {chance}:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real_fork()

    os.fork = fork
    """
    workspace.write("flow.py", FLOW.replace("    class Limited", patch + "\n    class Limited", 1))
    result = workspace.run("run", "--max-workers", "4", timeout=120)
    no_defect(result)
    assert result.returncode == 0, str(result)
    assert result.stdout.count("trying again") == 1
    assert "Traceback" not in result.stderr
    assert artifact(root_of(workspace), "Limited", "1", "join", "right") is True


CLOCK = """
    import os
    import time

    real = time.time
    time.time = lambda: real() + (float(os.environ["JUMP"]) if os.path.exists("jumped") else 0.0)

    from flowkit import FlowSpec, retry, step, timeout

    class Clock(FlowSpec):
        @step
        def start(self):
            open("jumped", "w").close()
            self.items = [1, 2, 3]
            self.next(self.work, foreach="items")

        @timeout(minutes=30)
        @retry(times=2, minutes_between_retries=0.01)
        @step
        def work(self):
            if self.input == 2 and not os.path.exists("tried"):
                open("tried", "w").close()
                # The clock goes on being set while the pause of a retry is waited for.
                os.rename("jumped", "was-jumped")
                raise ValueError("once more")
            if not os.path.exists("jumped"):
                open("jumped", "w").close()
            self.next(self.join)

        @step
        def join(self, inputs):
            self.count = len(list(inputs))
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Clock()
"""


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_is_set(workspace: Workspace, jump: int) -> None:
    workspace.write("flow.py", CLOCK)
    result = workspace.run("run", env={"JUMP": str(jump)}, timeout=60)
    no_defect(result)
    assert result.returncode == 0, str(result)
    assert artifact(root_of(workspace), "Clock", "1", "join", "count") == 3
    run = workspace.client().Flow("Clock")["1"]
    assert run.successful
    assert "succeeded" in workspace.run("status", "1", env={"JUMP": str(jump)}, check=True).stdout


def test_a_run_whose_clock_was_set_back_still_hears_of_a_cancel(workspace: Workspace) -> None:
    workspace.write(
        "flow.py",
        """
        import os, time
        real = time.time
        time.time = lambda: real() - (3600.0 if os.path.exists("jumped") else 0.0)
        from flowkit import FlowSpec, step

        class Back(FlowSpec):
            @step
            def start(self):
                open("jumped", "w").close()
                time.sleep(600)
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Back()
        """,
    )
    run = workspace.start("run")
    wait_until((workspace.path / "jumped").exists)
    # As from another machine: not by a signal, which cancel sends where it can.
    note = root_of(workspace) / "flows/Back/1/cancel.json"
    note.write_text('{"by": "somebody"}')
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, out + err
    assert "cancelled by somebody" in out + err
