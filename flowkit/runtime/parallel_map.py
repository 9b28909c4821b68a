"""Calling a function on many values at once within a step: forked processes that bring their results home in files.

A child is a copy of the step's process: the function and its surroundings need not be picklable, only what it returns.
Results are written by the codecs of artifacts and mapped into memory, so that big arrays are not copied.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from flowkit.datastore import codecs
from flowkit.datastore.encoding import NotEncodable
from flowkit.exceptions import FlowkitError, StoreError, UsageError
from flowkit.runtime.forked_task import ProcessControl
from flowkit.runtime.seeds import Seeds

Value = TypeVar("Value")
Result = TypeVar("Result")
_ALIGNMENT = 64
_PAUSE = 0.002


class ChildFailed(FlowkitError):
    """A function failed in a process of `parallel_map`; what it raised is the cause where it could be sent back."""


class _InChild(Exception):
    """Shows the traceback of the child beneath the exception that came from it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


def parallel_map(
    f: Callable[[Value], Result], xs: Iterable[Value], max_parallel: int | None = None, dir: str | None = None
) -> list[Result]:
    """Return ``[f(x) for x in xs]``, computed by several processes.

    Parameters
    ----------
    f : callable
        Of one value. It may be a lambda or a closure; what it changes outside of itself is lost.
    xs : iterable
        The values.
    max_parallel : int, optional
        Processes at once; default: the processors that this process may use.
    dir : str, optional
        Where results are kept until they are read; default: the system's folder for temporary files.

    Raises
    ------
    Exception
        What `f` raised for the first value (in time) that it failed for; the others are stopped.
    ChildFailed
        If a process died, or what `f` returned or raised cannot be pickled.
    """
    found = dict(_computed(f, xs, max_parallel, dir))
    return [found[index] for index in range(len(found))]


def parallel_imap_unordered(
    f: Callable[[Value], Result], xs: Iterable[Value], max_parallel: int | None = None, dir: str | None = None
) -> Iterator[Result]:
    """Yield ``f(x)`` for every value, in the order in which the results come.

    Values are taken from `xs` as processes become free, so that it may be endless; parameters and errors as for
    `parallel_map`. What still runs is stopped when the iterator is closed.
    """
    for _, result in _computed(f, xs, max_parallel, dir):
        yield result


def _computed(
    f: Callable[[Value], Result], xs: Iterable[Value], most: int | None, folder: str | None
) -> Iterator[tuple[int, Result]]:
    if most is not None and (not isinstance(most, int) or most < 1):
        raise UsageError(f"max_parallel={most!r} is not a number of processes", "give 1 or more, or leave it out")
    if not hasattr(os, "fork"):
        raise UsageError("parallel_map needs an operating system with fork", "call the function in a loop")
    most = most or _processors()
    seeds, control = Seeds(), ProcessControl()
    running: dict[int, _Child] = {}
    try:
        place = tempfile.TemporaryDirectory(prefix="parallel-map-", dir=folder)
    except OSError as error:
        raise _no_room(error) from error
    with place:
        values = enumerate(xs)
        more = True
        try:
            while more or running:
                while more and len(running) < most:
                    following = next(values, None)
                    if following is None:
                        more = False
                        break
                    child = _Child(f, *following, place.name, seeds, control)
                    running[child.pid] = child
                if running:
                    for child in _ended(running):
                        yield child.index, child.result()
        finally:
            _stop(running)


def _no_room(error: OSError) -> StoreError:
    return StoreError(f"parallel_map cannot keep its results: {error}", "give a folder with room: dir=…")


class _Child:
    """One call in a process of its own."""

    def __init__(
        self, f: Callable[[Any], Any], index: int, value: Any, folder: str, seeds: Seeds, control: ProcessControl
    ) -> None:
        self.index = index
        self.path = os.path.join(folder, str(index))
        self.status = 0
        parent = os.getpid()
        _flush()
        self.pid = os.fork()
        if not self.pid:
            control.die_with_parent(parent)
            seeds.renew()
            _work(f, value, self.path)
        self.watched = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else -1

    def has_ended(self) -> bool:
        """Whether the process is over; it is waited for then."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)
            self.forget()
        return pid != 0

    def stop(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.forget()

    def forget(self) -> None:
        if self.watched >= 0:
            os.close(self.watched)
            self.watched = -1

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        if not os.path.exists(self.path):
            how = f"was killed by {_signal(-self.status)}" if self.status < 0 else f"exited with {self.status}"
            raise ChildFailed(f"parallel_map: the process for value {self.index} {how} before it had a result")
        head, encoded = _read(self.path)
        if head["kind"] == "value":
            return codecs.decode(head["codec"], encoded, head["meta"])
        try:
            error = codecs.decode(head["codec"], encoded, head["meta"])
        except Exception:  # an exception of the user's may refuse to be made again, in any way it likes
            error = None
        if isinstance(error, BaseException):
            raise error from _InChild(head["traceback"])
        raise ChildFailed(f"parallel_map: value {self.index}: {head['headline']}") from _InChild(head["traceback"])


def _work(f: Callable[[Any], Any], value: Any, path: str) -> NoReturn:
    """Be the child: call, write, leave; nothing of the parent's (exit handlers, its caller's code) is run."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            result = f(value)
            try:
                _write(path, result, {"kind": "value"})
            except NotEncodable as error:
                told = error.__cause__ or error
                raise ChildFailed(
                    f"parallel_map: a result ({type(result).__name__}) cannot be pickled: {told}"
                ) from told
            except OSError as error:
                raise _no_room(error) from error
        except BaseException as error:
            _write_error(path, error)
        status = 0
    finally:
        _flush()
        os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # as in a program without a console
                stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more, or it is closed


def _write_error(path: str, error: BaseException) -> None:
    import traceback

    kind = type(error).__name__
    head = {"kind": "error", "traceback": traceback.format_exc(), "headline": f"{kind}: {error}"}
    try:
        _write(path, error.with_traceback(None), head)
    except Exception:  # an exception of the user's may refuse to be pickled, in any way it likes
        _write(path, None, head)


def _write(path: str, value: Any, head: dict[str, Any]) -> None:
    encoded = codecs.encode(value)
    text = json.dumps({**head, "codec": encoded.codec, "meta": dict(encoded.meta)}).encode()
    start = -(-(len(text) + 8) // _ALIGNMENT) * _ALIGNMENT
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.ljust(start - 8))
        for chunk in encoded.chunks:
            file.write(chunk)
    os.rename(part, path)


def _read(path: str) -> tuple[dict[str, Any], memoryview]:
    with open(path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    os.unlink(path)
    length = int.from_bytes(memory[:8], "little")
    head: dict[str, Any] = json.loads(bytes(memory[8 : 8 + length]))
    start = -(-(length + 8) // _ALIGNMENT) * _ALIGNMENT
    return head, memory[start:]


def _ended(running: dict[int, _Child]) -> list[_Child]:
    """Wait until a process has ended, and return those that have."""
    while True:
        ended = [child for child in running.values() if child.has_ended()]
        if ended:
            for child in ended:
                del running[child.pid]
            return ended
        watched = [child.watched for child in running.values() if child.watched >= 0]
        if len(watched) == len(running):
            _wait(watched)
        else:
            time.sleep(_PAUSE)


def _wait(descriptors: list[int]) -> None:
    poll = select.poll()  # select() ends at descriptor 1024
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.poll()


def _stop(running: dict[int, _Child]) -> None:
    for child in running.values():
        child.stop()
    running.clear()


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
