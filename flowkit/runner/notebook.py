"""Running a flow that is defined in a cell of a notebook: its cell becomes a file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flowkit.exceptions import RunFailed, UsageError
from flowkit.model.flowspec import FlowSpec
from flowkit.runner.cells import program_of
from flowkit.runner.executing import Executing, ExecutingRun, ExecutingTask
from flowkit.runner.runner import Runner

if TYPE_CHECKING:
    from types import TracebackType

    from flowkit.client.run import Run

_Made = TypeVar("_Made", bound=Executing)


class CellFile:
    """The file of a cell, which is there as long as somebody may run it."""

    def __init__(self, folder: str, name: str, source: str) -> None:
        descriptor, self.path = tempfile.mkstemp(prefix=f".{name}-", suffix=".py", dir=folder)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(source)
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: str, process: int) -> None:
    if os.getpid() != process:  # a fork's copy
        return
    try:
        os.unlink(path)
    except OSError:
        pass  # the folder went first


class NBRunner:
    """Runs a flow that a cell defines.

    The definitions of the cell are written to a file beside the notebook, with those of other cells that they need:
    imports, functions, classes, constants. The file is removed when nothing can run it any more, at the latest by
    `cleanup` (or when the ``with`` block ends).

    Parameters
    ----------
    flow : class
        The flow.
    show_output, profile, env, file_read_timeout
        As for `Runner`.
    base_dir : str, optional
        Where the file is written and run; default: the working directory.
    **top_level_kwargs
        As for `Runner`.

    Raises
    ------
    UsageError
        If it is no flow, its cell cannot be found, or what it needs is not defined by plain Python.
    """

    def __init__(
        self,
        flow: type[FlowSpec],
        show_output: bool = True,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        base_dir: str | None = None,
        file_read_timeout: float = 3600,
        **top_level_kwargs: Any,
    ) -> None:
        if not (isinstance(flow, type) and issubclass(flow, FlowSpec)):
            raise UsageError(f"NBRunner takes the class of a flow, not {flow!r}", "NBRunner(MyFlow)")
        folder = os.path.abspath(base_dir or os.getcwd())
        self._file = CellFile(folder, flow.__name__, program_of(flow))
        self.flow_file = self._file.path
        self._runner = Runner(self.flow_file, show_output, profile, env, folder, file_read_timeout, **top_level_kwargs)

    def __enter__(self) -> NBRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

    async def __aenter__(self) -> NBRunner:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.cleanup)

    def nbrun(self, **kwargs: Any) -> Run:
        """Run the flow to its end and return the run.

        Raises
        ------
        RunFailed
            If it failed; `run` returns such a run without an error.
        """
        return self._result(self._runner.run(**kwargs))

    def nbresume(self, step_to_rerun: str | None = None, **kwargs: Any) -> Run:
        """Resume a run to its end and return the new one; errors as for `nbrun`."""
        return self._result(self._runner.resume(step_to_rerun, **kwargs))

    def run(self, **kwargs: Any) -> ExecutingRun:
        """As `Runner.run`."""
        return self._keeping(self._runner.run(**kwargs))

    def resume(self, step_to_rerun: str | None = None, **kwargs: Any) -> ExecutingRun:
        """As `Runner.resume`."""
        return self._keeping(self._runner.resume(step_to_rerun, **kwargs))

    def spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """As `Runner.spin`."""
        return self._keeping(self._runner.spin(pathspec, **kwargs))

    async def async_run(self, **kwargs: Any) -> ExecutingRun:
        """As `Runner.async_run`."""
        return self._keeping(await self._runner.async_run(**kwargs))

    async def async_resume(self, step_to_rerun: str | None = None, **kwargs: Any) -> ExecutingRun:
        """As `Runner.async_resume`."""
        return self._keeping(await self._runner.async_resume(step_to_rerun, **kwargs))

    async def async_spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """As `Runner.async_spin`."""
        return self._keeping(await self._runner.async_spin(pathspec, **kwargs))

    def cleanup(self) -> None:
        """End what still runs, and remove the flow's file."""
        self._runner.cleanup()
        self._file.remove()

    def _keeping(self, executing: _Made) -> _Made:
        executing.needs = self._file
        return executing

    def _result(self, executing: ExecutingRun) -> Run:
        run = executing.run
        if executing.status != "successful":
            reason = run.status_reason or executing.stderr.strip()[-2000:]
            executing.cleanup()
            raise RunFailed(f"run {run.pathspec} {run.status}: {reason}", f"Run('{run.pathspec}') shows what it left")
        executing.cleanup()
        return run
