"""What a process does between its fork and the user's code, and between that and its end.

`become_task` makes a process that the fork server has just forked a task of its own; `finish` ends it as an
interpreter would, without ever returning into the command line or the user's main program.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from flowkit.runtime import streams
from flowkit.runtime.seeds import Seeds

_OOM_SCORE = b"500"
"""Added to a task's badness, so that the kernel ends tasks before the runtime and its helpers."""
_SET_PDEATHSIG, _SET_SUBREAPER = 1, 36
_BLOCKED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGALRM")


class ProcessControl:
    """``prctl`` of Linux; nothing elsewhere."""

    def __init__(self) -> None:
        self._call: Callable[..., int] | None = None
        if sys.platform == "linux":
            try:
                import ctypes

                self._call = ctypes.CDLL(None).prctl
            except (ImportError, OSError, AttributeError):
                pass  # an interpreter without ctypes: the runtime still ends its tasks, unless all is killed at once

    def die_with_parent(self, parent: int) -> None:
        """Have the kernel kill this process when its parent ends, and end now if it has ended already."""
        if self._call is not None:
            self._call(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    def adopt_orphans(self) -> None:
        """Become the parent of every descendant that loses its own."""
        if self._call is not None:
            self._call(_SET_SUBREAPER, 1, 0, 0, 0)


class Signals:
    """The signals that the helper processes do not take, since they are meant for the runtime.

    Ctrl-C reaches every process of the terminal's foreground. The helpers block such signals rather than ignore
    them: a task then lets all of them through by one call, with the meaning that they had for the user's program.
    """

    def __init__(self) -> None:
        self._child_ended = signal.getsignal(signal.SIGCHLD)
        # Handlers of the command line's own have no place in a task; those that the user's import has set do.
        self._ours = [
            number
            for number in signal.valid_signals()
            if (getattr(signal.getsignal(number), "__module__", None) or "").partition(".")[0] == "flowkit"
        ]

    def block(self) -> None:
        """Let nothing through that is meant for the runtime."""
        signal.pthread_sigmask(signal.SIG_SETMASK, [getattr(signal, name) for name in _BLOCKED])
        # A task reads no terminal: without these, one that tries would be stopped for good.
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Let signals mean what they mean in a fresh interpreter that has imported the user's program."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, self._child_ended or signal.SIG_DFL)
        for number in self._ours:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if signal.SIGINT in signal.sigpending():
            # A Ctrl-C that came before this process had a group of its own was meant for the runtime, which ends tasks.
            signal.sigwait((signal.SIGINT,))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def restore_for_exec(self) -> None:
        """Let signals mean what they mean to a program that is started anew; handlers do not outlive that anyway."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python itself ignores these
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Surroundings:
    """What the fork server prepares once for all of its tasks.

    Parameters
    ----------
    signals : Signals
        Of the fork server.
    seeds : Seeds
        Random states as the flow's import left them.
    """

    def __init__(self, signals: Signals, seeds: Seeds) -> None:
        self.signals = signals
        self.control = ProcessControl()
        self.seeds = seeds
        self.token = streams.new_token()
        self.collects = gc.isenabled()
        self.server = os.getpid()
        # Once, here: the tasks inherit the objects and only let the descriptors lead elsewhere.
        self._marked = streams.install(self.token)
        faulthandler.enable(2)

    def separate(self, descriptors: Iterable[int], out: int, err: int) -> None:
        """Make this process, just forked, one of its own: process group, parent's death, descriptors."""
        os.setpgid(0, 0)
        self.control.die_with_parent(self.server)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(out, self._marked, inheritable=False)
        for descriptor in (*descriptors, out, err):
            if descriptor > 2:
                os.close(descriptor)
        if sys.platform == "linux":
            try:
                score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            except OSError:
                pass  # no /proc, or not ours to write: the kernel decides without our advice
            else:
                try:
                    os.write(score, _OOM_SCORE)
                except OSError:
                    pass
                os.close(score)

    def become_task(self) -> None:
        """Make this process, forked and separated, look like a fresh interpreter that has imported the flow."""
        self.signals.restore()
        self.seeds.renew()
        if self.collects:
            gc.enable()


def forget_the_past() -> None:
    """Drop what would happen at the end of the program that forked this process (called once, by the fork server)."""
    atexit._clear()
    import weakref

    # Temporary folders and the like of the import belong to the program that made them.
    registry = getattr(weakref.finalize, "_registry", None)
    if registry is not None:
        registry.clear()
        weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    # What these two do at the end is per process.
    for module, function in (("logging", "shutdown"), ("multiprocessing.util", "_exit_function")):
        if module in sys.modules:
            atexit.register(getattr(sys.modules[module], function))


def run(target: Callable[[], int]) -> NoReturn:
    """Run a task's code and end the process with what it returns."""
    try:
        status = target()
    except SystemExit as error:
        status = _exit_status(error)
    except KeyboardInterrupt:
        finish(_end_by_interrupt)
    except BaseException:
        _show_traceback()
        status = 1
    finish(lambda: os._exit(status & 0xFF))


def finish(leave: Callable[[], Any]) -> NoReturn:
    """End this process as an interpreter ends: threads, atexit, streams; then `leave`."""
    threading: Any = sys.modules.get("threading")
    try:
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        # An exit handler's error does not change how the task ended.
        _show_traceback()
    try:
        _save_coverage(sys.modules)
    finally:
        streams.flush()
        leave()
        os._exit(1)


def _end_by_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _exit_status(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    _write_error(f"{error.code}\n")
    return 1


def _show_traceback() -> None:
    import traceback

    _write_error(traceback.format_exc())


def _write_error(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _save_coverage(modules: Mapping[str, Any]) -> None:
    """Write what coverage.py has measured: its own exit handler belongs to the program that started it."""
    coverage = getattr(modules.get("coverage"), "Coverage", None)
    current = coverage.current() if coverage is not None else None
    if current is not None:
        current.stop()
        current.save()
