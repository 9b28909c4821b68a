"""The fork server: a process that has imported the user's program and does nothing but start tasks.

It is forked from the command line before any thread, store or log file exists, so that a task costs one fork.
Where forking is not safe, and for steps that need environment variables of their own, it is itself a fresh
interpreter (`main`), and each task is started as one too.

It learns of ended tasks by ``SIGCHLD``, which wakes its one loop through a pipe and does nothing else; then it waits
for every child that has ended. A task is over when its process is, whoever else still holds its pipes. What is
left of its process group gets SIGTERM, and SIGKILL after a grace: helpers such as the resource tracker of
multiprocessing clean up in that time.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple, NoReturn

from flowkit.model.launch import Launch
from flowkit.runtime import logprocess, messages
from flowkit.runtime.forked_task import Signals, Surroundings, forget_the_past, run
from flowkit.runtime.messages import Channel, Frame
from flowkit.runtime.processes import Register, children_of, signal_group
from flowkit.runtime.seeds import Seeds
from flowkit.runtime.streams import VARIABLE
from flowkit.runtime.usage import of_ended

Target = Callable[[Mapping[str, Any], Launch, "int | None"], int]
"""``target(config, launch, node)`` carries out one attempt and returns the exit status of its process."""
LEFTOVER_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for what a task leaves running."""
_SWEEP_SECONDS = 1.5
_WITH_DESCRIPTOR = tuple(
    getattr(selectors, name) for name in ("EpollSelector", "KqueueSelector") if hasattr(selectors, name)
)


_QUIET = 0.002
"""Seconds after which others are told of a new task; one that has ended by then costs them one message, not three."""
_LATER = 0.004
_NO_PROCESS = 71
"""Exit status of a server that could not start the log process."""
_SPARE_DESCRIPTORS = 32


class _Task(NamedTuple):
    pid: int
    out: int
    err: int
    folder: bytes
    started: float


def start(
    target: Target, random_before: tuple[Any, ...] | None, warm: Callable[[], None] | None
) -> tuple[int, socket.socket]:
    """Fork the fork server; return its process id and the runtime's end of the channel.

    Parameters
    ----------
    target : callable
        What each task runs.
    random_before : tuple, optional
        See `flowkit.runtime.seeds.Seeds`.
    warm : callable, optional
        Called once in the server: imports what every task needs. It must start no thread.
    """
    mine, theirs = socket.socketpair()
    seeds = Seeds(random_before)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # else each task would write it again
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, mine
    try:
        mine.close()
        _serve(theirs, target, seeds, warm)
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(70)


def start_fresh(environment: Mapping[str, str]) -> tuple[int, socket.socket]:
    """Start a server in a fresh interpreter, which starts tasks as fresh interpreters."""
    mine, theirs = socket.socketpair()
    os.set_inheritable(theirs.fileno(), True)
    # The folder of the user's program comes last, so that a file of theirs called signal.py is not taken for Python's.
    path = [*sys.path[1:], *sys.path[:1]]
    code = f"import sys; sys.path[:] = {path!r}; from flowkit.runtime.forkserver import main; main({theirs.fileno()})"
    # Python 3.13.0 fails to import socket where the working folder is gone, unless it leaves that folder out by itself.
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    blocked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    command = [sys.executable, *safe_path, "-c", code]
    pid = os.posix_spawn(sys.executable, command, dict(environment), setsigmask=blocked)
    theirs.close()
    return pid, mine


def main(descriptor: int) -> NoReturn:
    """Be a server in a fresh interpreter (the other side of `start_fresh`)."""
    os.set_inheritable(descriptor, False)
    _serve(socket.socket(fileno=descriptor), None, Seeds(), None)


def _serve(
    end: socket.socket,
    target: Target | None,
    seeds: Seeds,
    warm: Callable[[], None] | None,
) -> NoReturn:
    signals = Signals()
    signals.block()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if null > 2:
        os.close(null)
    surroundings = Surroundings(signals, seeds)
    surroundings.control.adopt_orphans()
    forget_the_past()
    if sys.stdin is None or sys.stdin.closed:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    gc.disable()
    if warm is not None:
        warm()
    gc.freeze()  # a collection in a task would otherwise copy every page that the tasks share
    ForkServer(Channel(end), target, surroundings).serve()


class ForkServer:
    """The state of the server.

    Parameters
    ----------
    runtime : Channel
        To the runtime; when it closes, the server kills its tasks and ends.
    target : callable, optional
        What a forked task runs; None in a fresh interpreter.
    surroundings : Surroundings
        Of its tasks.
    """

    def __init__(self, runtime: Channel, target: Target | None, surroundings: Surroundings) -> None:
        self._runtime = runtime
        self._target = target
        self._surroundings = surroundings
        self._config: dict[str, Any] = {}
        self._log: Channel | None = None
        self._log_pid: int | None = None
        self._register: Register | None = None
        self._tasks: dict[int, _Task] = {}
        self._by_pid: dict[int, int] = {}
        self._most_descriptors = 0
        self._quiet: dict[int, float] = {}
        self._tell_at = 0.0
        self._leftovers: deque[tuple[float, int]] = deque()
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self._selector = selectors.DefaultSelector()
        self._writing = False

    def serve(self) -> NoReturn:
        """Start what the runtime asks for and tell it what ends, until it is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        channel = self._runtime.fileno()
        self._selector.register(channel, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in self._selector.select(self._timeout())}
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if channel in ready:
                for each in self._runtime.receive():
                    self._handle(each)
                if self._runtime.closed:
                    self._die()
            self._announce(time.monotonic())
            if self._writing != (self._runtime.pending > 0 and self._tell_at == 0.0):
                self._writing = not self._writing
                write = selectors.EVENT_WRITE if self._writing else 0
                self._selector.modify(channel, selectors.EVENT_READ | write)
            if self._leftovers:
                self._end_leftovers()

    # -- what the runtime asks for --------------------------------------------------------------------------------

    def _handle(self, asked: Frame) -> None:
        if asked.kind in (messages.FORK, messages.EXEC):
            self._start(asked)
        elif asked.kind == messages.SIGNAL:
            task = self._tasks.get(asked.task)
            if task is not None:
                signal_group(task.pid, asked.number)
        elif asked.kind == messages.CONFIG:
            self._config = json.loads(asked.payload)
            self._most_descriptors = _descriptor_limit(3 * int(self._config.get("max_workers") or 0))
            if "register" in self._config:
                self._register = Register(self._config["register"])
                self._register.open()
        elif asked.kind == messages.LOG_LINK:
            self._log = Channel(socket.socket(fileno=self._runtime.descriptors.popleft()))
        elif asked.kind == messages.NEW_LOG:
            self._start_log(self._runtime.descriptors.popleft())
        elif asked.kind == messages.QUIT:
            self._die()

    def _start(self, asked: Frame) -> None:
        folder, rest = messages.unpack_task(asked.payload)
        pipes: list[int] = []
        try:
            if _SPARE_DESCRIPTORS + 3 * len(self._tasks) > self._most_descriptors:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # the log process would not get them
            pipes += os.pipe()
            pipes += os.pipe()
            pid = os.fork()
        except OSError as error:
            for descriptor in pipes:
                os.close(descriptor)
            self._runtime.keep(messages.frame(messages.REFUSED, asked.task, error.errno or 0, str(error).encode()))
            self._tell_at = 0.0
            return
        out, out_end, err, err_end = pipes
        if pid == 0:
            self._in_child(asked, rest, pipes)
        if self._register is not None:
            self._register.note(pid)
        os.close(out_end)
        os.close(err_end)
        folder_token = messages.pack_task(folder, self._surroundings.token)
        self._tasks[asked.task] = _Task(pid, out, err, folder_token, time.time())
        self._by_pid[pid] = asked.task
        self._quiet[asked.task] = time.monotonic() + _QUIET

    def _announce(self, now: float) -> None:
        """Tell of tasks that have run for a while, and send what was kept for the runtime when it is due."""
        while self._quiet:
            number, due = next(iter(self._quiet.items()))
            if due > now:
                break
            task = self._tasks[number]
            del self._quiet[number]
            self._tell_log(number, task)
            self._runtime.keep(_started(number, task))
            self._tell_at = now
        if self._tell_at <= now and self._runtime.pending:
            self._tell_at = 0.0
            self._runtime.flush()

    def _tell_log(self, number: int, task: _Task, more: bytes = b"") -> None:
        # The server keeps its own ends, so that a log process that dies breaks no task's pipe.
        if self._log is not None:
            told = messages.frame(messages.TASK, number, task.pid, messages.pack_time(task.started, task.folder))
            self._log.send_descriptors([task.out, task.err], told + more)

    def _in_child(self, asked: Frame, rest: bytes, pipes: list[int]) -> NoReturn:
        try:
            out, out_end, err, err_end = pipes
            self._surroundings.separate([out, err, *self._own_descriptors()], out_end, err_end)
            if asked.kind == messages.EXEC:
                self._execute(json.loads(rest))
            self._surroundings.become_task()
            target, config = self._target, self._config
            what, variables = json.loads(rest)
            launch = messages.launch_from_json(what)
            if variables:
                _environment().update(variables)
            node = None if asked.number < 0 else asked.number
            if target is not None:
                run(lambda: target(config, launch, node))
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode("utf-8", "replace"))
        finally:
            os._exit(70)

    def _execute(self, asked: list[Any]) -> NoReturn:
        arguments, variables = asked
        self._surroundings.signals.restore_for_exec()
        environment = {**_environment(), **variables, VARIABLE: self._surroundings.token.hex()}
        try:
            os.execvpe(arguments[0], arguments, environment)
        except OSError as error:
            os.write(2, f"{arguments[0]} cannot be started: {error.strerror}\n".encode())
            os._exit(127)

    def _own_descriptors(self) -> list[int]:
        own = [self._runtime.fileno(), self._wake, self._waker]
        if isinstance(self._selector, _WITH_DESCRIPTOR):
            own.append(self._selector.fileno())
        if self._log is not None:
            own.append(self._log.fileno())
        if self._register is not None and self._register.descriptor is not None:
            own.append(self._register.descriptor)
        for task in self._tasks.values():
            own += (task.out, task.err)
        return own

    def _start_log(self, descriptor: int) -> None:
        if self._log is not None:
            self._log.close()
        mine, theirs = messages.pair()
        pid = _fork_patiently()
        if pid == 0:
            try:
                mine.close()
                for each in {*self._own_descriptors()} - {mine.fileno()}:
                    if each >= 0:
                        os.close(each)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                logprocess.main(Channel(socket.socket(fileno=descriptor)), Channel(theirs))
            finally:
                os._exit(70)
        theirs.close()
        os.close(descriptor)
        self._log, self._log_pid = mine, pid
        for number, task in self._tasks.items():
            if number not in self._quiet:
                self._tell_log(number, task)

    # -- what ends ------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status, account = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._by_pid.pop(pid, None)
            if number is None:
                continue  # the log process, or an orphan that the server has adopted
            task = self._tasks.pop(number)
            if _signal_leftover(pid, signal.SIGTERM):
                self._leftovers.append((time.monotonic() + LEFTOVER_GRACE, pid))
            code = os.waitstatus_to_exitcode(status)
            end = messages.pack_end(messages.End(pid, task.started, time.time(), *of_ended(account)))
            drain = messages.frame(messages.DRAIN, number, code, end)
            ended = messages.frame(messages.ENDED, number, code, end)
            if self._quiet.pop(number, None) is not None:
                self._tell_log(number, task, drain)
                ended = _started(number, task) + ended
            elif self._log is not None:
                self._log.write(drain)
            if not self._runtime.pending:
                self._tell_at = time.monotonic() + _LATER
            self._runtime.keep(ended)
            os.close(task.out)
            os.close(task.err)

    def _timeout(self) -> float | None:
        due = [self._leftovers[0][0]] if self._leftovers else []
        if self._quiet:
            due.append(next(iter(self._quiet.values())))
        if self._runtime.pending and self._tell_at:
            due.append(self._tell_at)
        if self._log is not None and self._log.pending:
            self._log.flush()
            due.append(time.monotonic() + 0.05)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _end_leftovers(self) -> None:
        now = time.monotonic()
        while self._leftovers and self._leftovers[0][0] <= now:
            _, group = self._leftovers.popleft()
            if group not in self._by_pid:
                _signal_leftover(group, signal.SIGKILL)

    def _die(self) -> NoReturn:
        """Kill every process that came from a task, then end."""
        for task in self._tasks.values():
            signal_group(task.pid, signal.SIGKILL)
        for _, group in self._leftovers:
            _signal_leftover(group, signal.SIGKILL)
        # Whatever left its group is a child of this process as soon as its own parent is dead.
        deadline = time.monotonic() + _SWEEP_SECONDS
        while time.monotonic() < deadline:
            _reap_all()
            left = [pid for pid in children_of(os.getpid()) if pid != self._log_pid]
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass  # it has just ended, or has become another user
            time.sleep(0.005)
        os._exit(0)


def _fork_patiently() -> int:
    """Fork what nothing can do without: the machine may have no process to give for a moment."""
    for pause in (0.01, 0.03, 0.1, 0.3, 1.0):
        try:
            return os.fork()
        except OSError:
            time.sleep(pause)
    try:
        return os.fork()
    except OSError:
        os._exit(_NO_PROCESS)


def _descriptor_limit(wanted: int) -> int:
    """Return how many descriptors a process may have, raising the usual limit where more workers need it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        except (OSError, ValueError):
            pass  # then fewer tasks run at once
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _started(number: int, task: _Task) -> bytes:
    return messages.frame(messages.STARTED, number, task.pid, messages.pack_time(task.started))


def _signal_leftover(group: int, signum: int) -> bool:
    """Signal the members of a process group whose leader has ended; return whether there were any."""
    try:
        os.killpg(group, signum)
    except OSError:
        return False
    return True


def _reap_all() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _environment() -> MutableMapping[str, str]:
    from flowkit.settings import environment

    return environment()
