"""What the runtime must know of processes: when forking is not safe, and what a dead run left behind."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable
from typing import Any

from flowkit.metadata.liveness import boot_id, process_start

HARMLESS_THREADS = ("jemalloc_bg_thd",)
"""Names of native threads that a fork may leave behind: they touch nothing that the child needs."""
REGISTER_FOLDER = ".processes"
"""Folder below a local root with one file for each run that has local processes."""
_FORK_UNSAFE = {"tensorflow": "TensorFlow", "jax": "JAX", "jaxlib": "JAX"}
_THREADS_SETTLE = 0.03


def why_not_fork(own: Collection[int] = ()) -> str | None:
    """Return in a few words why tasks cannot be forked from this process; None where they can.

    Call it right after a fork: libraries that are prepared for one (OpenBLAS) end their threads then, so that those
    which are left are those of libraries that are not (libgomp after a fit, rayon after a query): a child that uses
    them hangs for ever.

    Parameters
    ----------
    own : collection of int
        Descriptors of flowkit's own that do not count.
    """
    if sys.platform != "linux":
        return f"forking is not safe on {sys.platform}"
    return _threads() or _loaded() or _open_channels(own)


def _threads() -> str | None:
    deadline = time.monotonic() + _THREADS_SETTLE
    while True:
        found = _foreign_threads()
        if not found:
            return None
        if time.monotonic() > deadline:
            break
        time.sleep(0.002)  # a thread that was just joined is seen for a moment still
    count = len(found)
    label = f"{count} native threads are" if count > 1 else "a native thread is"
    named = sorted({name for name in found if not name.startswith("python")})
    return f"{label} running since the flow was imported" + (f" ({', '.join(named)})" if named else "")


def _foreign_threads() -> list[str]:
    main = str(os.getpid())
    found = []
    debugger: set[str] | None = None
    for thread in os.listdir("/proc/self/task"):
        if thread == main:
            continue
        if debugger is None:
            debugger = _debugger_threads()
        try:
            with open(f"/proc/self/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            continue  # it has just ended
        if name not in HARMLESS_THREADS and thread not in debugger:
            found.append(name)
    return found


def _debugger_threads() -> set[str]:
    """Threads of debugpy, which follows forks by itself and hides them from `threading.enumerate`."""
    threading: Any = sys.modules.get("threading")
    if "pydevd" not in sys.modules or threading is None:
        return set()
    return {
        str(thread.native_id)
        for thread in list(threading._active.values())
        if getattr(thread, "is_pydev_daemon_thread", False) or thread.name.startswith(("pydevd.", "debugpy."))
    }


def _loaded() -> str | None:
    for module, label in _FORK_UNSAFE.items():
        if module in sys.modules:
            return f"{label} is loaded, which does not survive a fork"
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and getattr(cuda, "is_initialized", bool)():
        return "CUDA is initialised"
    jpype: Any = sys.modules.get("jpype")
    if jpype is not None and getattr(jpype, "isJVMStarted", bool)():
        return "a Java virtual machine is running"
    return None


def _open_channels(own: Collection[int]) -> str | None:
    """Sockets and pipes that the user's import opened: two processes that share one garble what goes through it.

    Python opens descriptors so that they are closed on exec; those that came with this process (from a shell, make,
    a terminal) cannot be, since they have survived one.
    """
    import fcntl

    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor <= 2 or descriptor in own:
            continue
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("/dev/nvidia"):
                return "CUDA is initialised"
            if not target.startswith(("socket:", "pipe:")) or "pydevd" in sys.modules:
                continue  # a debugger has sockets of its own, which do not count
            closes = fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        except OSError:
            continue  # the descriptor of the listing itself
        if closes:
            kind = target.partition(":")[0]
            return f"a {kind} is open since the flow was imported"
    return None


def signal_group(leader: int, signum: int) -> bool:
    """Send a signal to a task's process group, or to the task where it has not made its group yet.

    Returns
    -------
    bool
        Whether there was anybody to receive it.
    """
    for send in (os.killpg, os.kill):
        try:
            send(leader, signum)
            return True
        except ProcessLookupError:
            continue
        except PermissionError:
            return True  # somebody is there who has become another user
    return False


def children_of(pid: int) -> list[int]:
    """Return the processes whose parent is `pid` now."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(part) for part in file.read().split()]
    except OSError:
        pass
    return [child for child, parent, _ in _all_processes() if parent == pid]


def _all_processes() -> Iterable[tuple[int, int, int]]:
    """Yield id, parent and process group of every process that can be seen."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            yield int(name), int(fields[1]), int(fields[2])
        except (OSError, IndexError, ValueError):
            continue  # it has just ended


class Register:
    """The file in which the processes of one run are noted, so that a later run can clear what a dead one left.

    The first line names the owner, each further one a task's process, the leader of its process group. The fork
    server writes it as it forks, so a start is what the clock said then, not what ``/proc`` says: that costs a fifth
    of a millisecond for a new process.

    Parameters
    ----------
    path : str
        The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor: int | None = None
        self._boot = boot_id() or "-"

    @classmethod
    def create(cls, root: str) -> Register | None:
        """Begin the register of this process's run below a local root; None where it cannot be written."""
        pid = os.getpid()
        start = process_start(pid) or 0
        register = cls(os.path.join(root, REGISTER_FOLDER, f"{pid}-{start}"))
        try:
            os.makedirs(os.path.dirname(register.path), exist_ok=True)
            with open(register.path, "w", encoding="ascii") as file:
                file.write(f"{pid} {start} {register._boot}\n")
        except OSError:
            return None  # a read-only or full disk: the run will say so itself, in better words
        return register

    def open(self) -> None:
        """Get ready to note processes."""
        try:
            self.descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError:
            self.descriptor = None  # the folder is gone; a leftover is all that can come of it

    def note(self, pid: int) -> None:
        """Note a process that was forked just now."""
        if self.descriptor is not None:
            try:
                os.write(self.descriptor, f"{pid} {_clock_ticks()} {self._boot}\n".encode())
            except OSError:
                pass  # the disk is full

    def remove(self) -> None:
        """Forget everything: the run has ended and left nothing."""
        try:
            os.unlink(self.path)
        except OSError:
            pass  # the whole folder is gone


def _clock_ticks() -> int:
    """Return now in the unit of a process's start time."""
    return int(time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) * os.sysconf("SC_CLK_TCK"))


def clear_leftovers(root: str) -> int:
    """Kill the processes that runs below a local root left when they were killed themselves.

    Returns
    -------
    int
        How many processes were killed.
    """
    folder = os.path.join(root, REGISTER_FOLDER)
    try:
        names = os.listdir(folder)
    except OSError:
        return 0
    killed = 0
    for name in names:
        register = Register(os.path.join(folder, name))
        try:
            with open(register.path, encoding="ascii", errors="replace") as file:
                entries = [entry for entry in map(_parse_entry, file) if entry is not None]
        except OSError:
            continue
        if entries:
            owner, started, boot = entries[0]
            mine = boot_id() or "-"
            if boot == mine:
                if process_start(owner) == started:
                    continue
                killed += _kill_groups({pid: start for pid, start, _ in entries[1:]})
            elif boot.partition("/")[0] == mine.partition("/")[0]:
                continue  # another container of this machine, maybe alive: its processes cannot be seen here
        register.remove()
    return killed


def _parse_entry(line: str) -> tuple[int, int, str] | None:
    parts = line.split()
    if len(parts) != 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        return None
    return int(parts[0]), int(parts[1]), parts[2]


def _kill_groups(leaders: dict[int, int]) -> int:
    """Kill what is left of process groups, given when each leader started: a later leader is somebody else."""
    killed = 0
    tolerance = 2 * os.sysconf("SC_CLK_TCK")
    for pid, _, group in list(_all_processes()) if leaders else ():
        noted = leaders.get(group)
        start = None if noted is None else process_start(pid)
        leader = None if noted is None else process_start(group)
        if noted is None or start is None or start < noted - tolerance:
            continue
        if leader is not None and abs(leader - noted) > tolerance:
            continue
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EPERM):
                raise
    return killed


class OutOfMemory:
    """Tells whether the kernel has killed somebody of this machine or container for want of memory."""

    def __init__(self) -> None:
        self._files = _counter_files()
        self._count = self._read()

    def happened(self) -> bool:
        """Whether that has happened since the last call (or since the beginning)."""
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        total = 0
        for path in self._files:
            try:
                with open(path, encoding="ascii") as file:
                    for line in file:
                        if line.startswith("oom_kill "):
                            total += int(line.split()[1])
            except (OSError, ValueError):
                continue
        return total


def _counter_files() -> list[str]:
    """The counters of this process's control group; the machine's where there are none."""
    found = []
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if not controllers:
                    found.append(f"/sys/fs/cgroup{path}/memory.events")
                elif "memory" in controllers.split(","):
                    found.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    except (OSError, ValueError):
        return ["/proc/vmstat"]
    found += ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"]
    for path in found:
        if os.path.exists(path):
            return [path]
    return ["/proc/vmstat"]
