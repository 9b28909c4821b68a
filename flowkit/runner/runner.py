"""Running flows from Python: each run is the command, in a process of its own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flowkit.exceptions import UsageError, did_you_mean
from flowkit.runner.arguments import TOP, split, words
from flowkit.runner.executing import Executing, ExecutingRun, ExecutingTask
from flowkit.runner.program import Program
from flowkit.settings import environment

if TYPE_CHECKING:
    from types import TracebackType

_Made = TypeVar("_Made", bound=Executing)


class Runner:
    """Runs a flow's file.

    Parameters
    ----------
    flow_file : str or path
        The file.
    show_output : bool, default True
        Show what the commands write while this process waits for them.
    profile : str, optional
        The settings' profile (``FLOWKIT_PROFILE``).
    env : mapping, optional
        Environment variables besides those of this process.
    cwd : str, optional
        Where to run; default: the working directory.
    file_read_timeout : float, default 3600
        Seconds that a command may take until it has begun a run.
    **top_level_kwargs
        Options before the command: ``datastore_root="…"``, ``decospecs=["retry"]`` (which is ``--with``),
        ``config={"train": "a.toml"}``, ``branch="…"`` and so on.

    Raises
    ------
    UsageError
        If there is no such file, or no such option.

    Examples
    --------
    >>> with Runner("train.py", show_output=False).run(alpha=0.5, tags=["nightly"]) as running:
    ...     print(running.status, running.run.data.accuracy)
    """

    def __init__(
        self,
        flow_file: str | os.PathLike[str],
        show_output: bool = True,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        file_read_timeout: float = 3600,
        **top_level_kwargs: Any,
    ) -> None:
        self.flow_file = os.path.join(cwd or "", os.fspath(flow_file))
        if not os.path.isfile(self.flow_file):
            raise UsageError(f"there is no flow file {self.flow_file}", "give the path of a file with a flow")
        for name in top_level_kwargs:
            if name not in TOP:
                raise UsageError(f"Runner has no option '{name}'", did_you_mean(name, TOP) or f"one of {sorted(TOP)}")
        self.show_output = show_output
        self._folder = cwd
        self._timeout = file_read_timeout
        self._top = words(top_level_kwargs)
        self._variables = {**environment(), **({"FLOWKIT_PROFILE": profile} if profile else {}), **(env or {})}
        self._started: list[Program] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    async def __aenter__(self) -> Runner:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.cleanup)

    def run(self, **kwargs: Any) -> ExecutingRun:
        """Run the flow to its end.

        Parameters
        ----------
        **kwargs
            The flow's parameters by name, and options of ``run``: ``max_workers``, ``tags``, ``decospecs``, ….

        Returns
        -------
        ExecutingRun
            The run that is over; its status tells how.

        Raises
        ------
        FlowkitError
            If no run began: `UsageError` for wrong parameters, `FlowInvalid` for a flow that is none, ….
        """
        return self._finished(self._start(ExecutingRun, "run", kwargs))

    def resume(self, step_to_rerun: str | None = None, **kwargs: Any) -> ExecutingRun:
        """Resume a run (``origin_run_id``; default: your last one) to its end; otherwise as `run`."""
        return self._finished(self._start(ExecutingRun, "resume", kwargs, step_to_rerun))

    def spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Try out a step or a task, and keep what it makes for `ExecutingTask.task`.

        Parameters
        ----------
        pathspec : str
            A step, or ``run/step/task``.
        **kwargs
            Options of ``spin``: ``artifacts_module``, ``skip_decorators``, ``set=["alpha=1"]``, ``persist``.
        """
        return self._finished(self._start(ExecutingTask, "spin", {"persist": True, **kwargs}, pathspec))

    async def async_run(self, **kwargs: Any) -> ExecutingRun:
        """Start a run and return as soon as it has begun; otherwise as `run`."""
        return await self._started_async(ExecutingRun, "run", kwargs)

    async def async_resume(self, step_to_rerun: str | None = None, **kwargs: Any) -> ExecutingRun:
        """Start to resume a run and return as soon as it has begun; otherwise as `resume`."""
        return await self._started_async(ExecutingRun, "resume", kwargs, step_to_rerun)

    async def async_spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Start a spin; otherwise as `spin`."""
        return await self._started_async(ExecutingTask, "spin", {"persist": True, **kwargs}, pathspec)

    def cleanup(self) -> None:
        """End every command of this runner that still runs, and remove their files."""
        started, self._started = self._started, []
        for each in started:
            each.stop()
        for each in started:
            each.remove()

    def _start(
        self,
        kind: type[_Made],
        command: str,
        given: dict[str, Any],
        argument: str | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> _Made:
        asked = split(command, given)
        if asked.parameters and command == "spin":
            name = next(iter(asked.parameters))
            raise UsageError(f"spin has no option '{name}'", 'a parameter is given by set=["name=value"]')
        program = Program(
            [
                *(sys.executable, os.path.abspath(self.flow_file), *self._top, command, *asked.options),
                *([argument] if argument is not None else []),
            ],
            command,
            asked.parameters,
            self._folder,
            self._variables,
            show=self.show_output,
        )
        self._started.append(program)
        try:
            attributes = program.await_attributes(time.monotonic() + self._timeout, given_up)
        except BaseException:
            program.stop()
            program.remove()
            raise
        return kind(program, attributes)

    async def _started_async(
        self, kind: type[_Made], command: str, given: dict[str, Any], argument: str | None = None
    ) -> _Made:
        import asyncio
        import threading

        given_up = threading.Event()
        try:
            return await asyncio.to_thread(self._start, kind, command, given, argument, given_up.is_set)
        except asyncio.CancelledError:
            given_up.set()
            raise

    def _finished(self, made: _Made) -> _Made:
        try:
            made.finish()
        except BaseException:  # Ctrl-C in a notebook ends what it waits for
            made.cleanup()
            raise
        return made
