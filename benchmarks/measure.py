"""Run one command as a cold process and measure it with everything that it starts.

Seconds of the clock end when the command does. The processor's seconds are those of the whole tree: this process
adopts what the command leaves behind and waits for it. Memory is the sum of the proportional set sizes of the tree
(a page that several share counts once), sampled from /proc; sampling costs a little time, so it is done in a run of
its own wherever a workload is short enough to be run more than once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

LIMIT = 900.0
"""Seconds after which a command is killed."""
_PATIENCE = 10.0
"""Seconds that processes may outlive the command that started them."""
_PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """A command ended otherwise than it should have."""


@dataclass(frozen=True)
class Sample:
    """What one run cost.

    Parameters
    ----------
    wall, cpu : float
        Seconds.
    memory : int or None
        Bytes: the peak of the whole tree, where it was sampled.
    first_memory : int or None
        Bytes: the peak resident set of the process that was started, where it was sampled.
    written : int
        Bytes given to the system to write, by the whole tree.
    output : str
        Both streams.
    left_behind : int
        Processes that had to be killed afterwards.
    """

    wall: float
    cpu: float
    memory: int | None
    first_memory: int | None
    written: int
    output: str
    left_behind: int


def run(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    *,
    every: float | None = None,
    fails: bool = False,
    limit: float = LIMIT,
) -> Sample:
    """Run a command in a folder to its end.

    Parameters
    ----------
    every : float, optional
        Seconds between two samples of memory; none are taken without it.
    fails : bool, default False
        The command is expected to fail.

    Raises
    ------
    Failed
        With the end of its output.
    """
    adopt_orphans()
    os.sync()  # what the run before wrote is not written back during this one
    path = os.path.join(folder, ".output")
    cpu, written = _cpu(), _written()
    with open(path, "w+b") as file:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        killer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        killer.daemon = True
        killer.start()
        sampler = _Sampler(process.pid, every) if every and sys.platform == "linux" else None
        # Without a timeout of its own: that one would look only now and then.
        status = process.wait()
        wall = time.perf_counter() - began
        killer.cancel()
        left = _reap()
        if sampler:
            sampler.stop()
        file.seek(0)
        output = file.read().decode("utf-8", "replace")
    os.unlink(path)
    if (status != 0) != fails:
        raise Failed(f"{' '.join(command)} ended with {status}:\n{output[-3000:]}")
    return Sample(
        wall,
        _cpu() - cpu,
        sampler.peak if sampler else None,
        sampler.first if sampler else None,
        _written() - written,
        output,
        left,
    )


def stored(folder: str, leave_out: set[str]) -> tuple[int, int]:
    """Return the number of files below a folder and the bytes in them, but for some names at its top."""
    files = size = 0
    for place, folders, names in os.walk(folder):
        if place == folder:
            folders[:] = [name for name in folders if name not in leave_out]
            names = [name for name in names if name not in leave_out]
        for name in names:
            files += 1
            size += os.lstat(os.path.join(place, name)).st_size
    return files, size


class _Sampler:
    """Looks at the memory of all processes below this one now and then, in a thread."""

    def __init__(self, pid: int, every: float) -> None:
        self.peak = 0
        self.first = 0
        self._pid = pid
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._ended.wait(self._every):
            total = sum(field(f"/proc/{pid}/smaps_rollup", b"Pss:") for pid in below(os.getpid()))
            self.peak = max(self.peak, total)
            self.first = max(self.first, field(f"/proc/{self._pid}/status", b"VmHWM:"))


def below(pid: int) -> list[int]:
    """Return all descendants of a process."""
    found: list[int] = []
    left = [pid]
    while left:
        parent = left.pop()
        children: list[int] = []
        try:
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                    children += map(int, file.read().split())
        except OSError:  # it has ended
            pass
        found += children
        left += children
    return found


def field(path: str, name: bytes) -> int:
    """Return a field of a file of /proc, in bytes; 0 where the process has ended."""
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def adopt_orphans() -> None:
    """Become the parent of what a process leaves behind when it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> int:
    """Wait for what the command left behind, kill what stays, and return how many stayed."""
    deadline = time.monotonic() + _PATIENCE
    killed: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return len(killed)
        if pid:
            continue
        if time.monotonic() > deadline:
            for child in below(os.getpid()):
                killed.add(child)
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _written() -> int:
    try:
        with open("/proc/self/io", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"wchar:"))
    except OSError:
        return 0
