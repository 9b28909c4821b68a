"""A run, or a spin, that was started from Python: how it stands, what it writes, its client object."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypeVar

from flowkit.client.connection import SPINS, forget
from flowkit.client.objects import make
from flowkit.exceptions import UsageError
from flowkit.runner.program import STREAMS, Program

if TYPE_CHECKING:
    from types import TracebackType

    from flowkit.client.run import Run
    from flowkit.client.task import Task

_PAUSE = 0.02
_Self = TypeVar("_Self", bound="Executing")


class Executing:
    """A command that was started.

    Attributes
    ----------
    command_obj : Program
        The process.
    """

    def __init__(self, program: Program, attributes: dict[str, Any]) -> None:
        self.command_obj = program
        self._attributes = attributes
        self.needs: object = None
        """What has to live as long as this does."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.cleanup)

    @property
    def returncode(self) -> int | None:
        """The exit code of the command; None while it runs."""
        return self.command_obj.poll()

    @property
    def status(self) -> str:
        """``running``, ``successful``, ``failed``, or ``timeout`` where `wait` gave it up."""
        if self.command_obj.timed_out:
            return "timeout"
        code = self.returncode
        return "running" if code is None else "successful" if code == 0 else "failed"

    @property
    def stdout(self) -> str:
        """What the command has written to standard output so far."""
        return self.command_obj.read("stdout")

    @property
    def stderr(self) -> str:
        """What the command has written to standard error so far."""
        return self.command_obj.read("stderr")

    async def wait(self: _Self, timeout: float | None = None, stream: str | None = None) -> _Self:
        """Wait until the command has ended.

        Parameters
        ----------
        timeout : float, optional
            Seconds, after which it is ended and its status is ``timeout``.
        stream : str, optional
            ``stdout`` or ``stderr``: what is written to it meanwhile is printed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        printing = None if stream is None else asyncio.ensure_future(self._print(stream))
        try:
            while self.returncode is None:
                if deadline is not None and time.monotonic() > deadline:
                    self.command_obj.timed_out = True
                    await asyncio.to_thread(self.command_obj.stop)
                    break
                await asyncio.sleep(_PAUSE)
            if printing is not None:
                await printing
        finally:
            if printing is not None:
                printing.cancel()
        return self

    async def stream_log(self, stream: str, position: int | None = None) -> AsyncIterator[tuple[int, str]]:
        """Yield the lines of a stream as they are written, each with the position after it, to the command's end.

        Parameters
        ----------
        stream : str
            ``stdout`` or ``stderr``.
        position : int, optional
            Where to begin: one that was yielded before; default: the beginning.
        """
        if stream not in STREAMS:
            raise UsageError(f"there is no stream '{stream}'", "stdout or stderr")
        at = position or 0
        with open(self.command_obj.path(stream), "rb") as file:
            while True:
                ended = self.returncode is not None
                file.seek(at)
                for line in file:
                    if not line.endswith(b"\n") and not ended:
                        break
                    at += len(line)
                    yield at, line.decode("utf-8", "replace").removesuffix("\n")
                if ended:
                    return
                await asyncio.sleep(_PAUSE)

    async def _print(self, stream: str) -> None:
        import sys

        async for _, line in self.stream_log(stream):
            sys.stdout.write(f"{line}\n")

    def finish(self) -> None:
        """Wait until the command has ended, and show what it writes if that was asked for."""
        while self.returncode is None:
            self.command_obj.relay()
            time.sleep(_PAUSE)
        self.command_obj.relay()

    def cleanup(self) -> None:
        """End the command if it still runs, and remove the files with its streams."""
        self.command_obj.stop()
        self.command_obj.remove()


class ExecutingRun(Executing):
    """A run that was started by `Runner.run` or `Runner.resume`."""

    @property
    def run(self) -> Run:
        """The run, as the client sees it."""
        found: Any = make(
            "run", self.pathspec, str(self._attributes["root"]), str(self._attributes.get("metadata") or "local")
        )
        return found  # type: ignore[no-any-return]

    @property
    def pathspec(self) -> str:
        """``Flow/run``."""
        return f"{self._attributes['flow_name']}/{self._attributes['run_id']}"

    def __repr__(self) -> str:
        return f"<ExecutingRun {self.pathspec}: {self.status}>"


class ExecutingTask(Executing):
    """A step that was tried out by `Runner.spin`."""

    @property
    def task(self) -> Task:
        """The task, as the client sees it."""
        from flowkit.client.task import Task

        place = f"{SPINS}@{self._attributes['root']}"
        forget(place)  # what was listed before does not know this one
        return Task.unchecked(str(self._attributes["task"]), place)

    def __repr__(self) -> str:
        return f"<ExecutingTask {self._attributes['task']}: {self.status}>"
