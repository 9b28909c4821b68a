"""Running a flow that is defined in a cell of a notebook: its cell becomes a file."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.exceptions import RunFailed, UsageError
from flowkit.model.flowspec import FlowSpec
from flowkit.runner.executing import ExecutingRun, ExecutingTask
from flowkit.runner.runner import Runner

if TYPE_CHECKING:
    from types import TracebackType

    from flowkit.client.run import Run

_KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
"""Statements of a cell that define something; what else a cell does, it does in the notebook only."""


class NBRunner:
    """Runs a flow that a cell defines.

    The cell has to hold all that the flow needs: imports, functions, constants. It is written to a file beside the
    notebook, which is removed by `cleanup` (or when the ``with`` block ends).

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
        If it is no flow, or its cell cannot be found.
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
        source = _program(flow)
        name = f".{flow.__name__}-{hashlib.sha256(source.encode()).hexdigest()[:12]}.py"
        self.flow_file = os.path.join(folder, name)
        with open(self.flow_file, "w", encoding="utf-8") as file:
            file.write(source)
        self._runner = Runner(self.flow_file, show_output, profile, env, folder, file_read_timeout, **top_level_kwargs)

    def __enter__(self) -> NBRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()

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
        return self._runner.run(**kwargs)

    def resume(self, step_to_rerun: str | None = None, **kwargs: Any) -> ExecutingRun:
        """As `Runner.resume`."""
        return self._runner.resume(step_to_rerun, **kwargs)

    def spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """As `Runner.spin`."""
        return self._runner.spin(pathspec, **kwargs)

    async def async_run(self, **kwargs: Any) -> ExecutingRun:
        """As `Runner.async_run`."""
        return await self._runner.async_run(**kwargs)

    async def async_resume(self, step_to_rerun: str | None = None, **kwargs: Any) -> ExecutingRun:
        """As `Runner.async_resume`."""
        return await self._runner.async_resume(step_to_rerun, **kwargs)

    async def async_spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """As `Runner.async_spin`."""
        return await self._runner.async_spin(pathspec, **kwargs)

    def cleanup(self) -> None:
        """End what still runs, and remove the flow's file."""
        self._runner.cleanup()
        try:
            os.unlink(self.flow_file)
        except FileNotFoundError:
            pass  # another NBRunner of the same cell was first

    def _result(self, executing: ExecutingRun) -> Run:
        run = executing.run
        if executing.status != "successful":
            reason = run.status_reason or executing.stderr.strip()[-2000:]
            executing.cleanup()
            raise RunFailed(f"run {run.pathspec} {run.status}: {reason}", f"Run('{run.pathspec}') shows what it left")
        executing.cleanup()
        return run


def _program(flow: type[FlowSpec]) -> str:
    """Return the source of a flow file with all that the cell of the flow defines."""
    cell = _cell(flow)
    try:
        body = ast.parse(cell).body
    except SyntaxError as error:
        raise UsageError(
            f"the cell of {flow.__name__} is not plain Python: {error.msg} (line {error.lineno})",
            "keep magics (% and !) in another cell than the flow",
        ) from error
    lines = cell.splitlines()
    kept: list[str] = []
    for statement in body:
        if isinstance(statement, _KEPT) and not _drives(statement):
            first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
            kept += ["\n".join(lines[first - 1 : statement.end_lineno])]
    return "\n\n".join([*kept, f'if __name__ == "__main__":\n    {flow.__name__}()\n'])


def _drives(statement: ast.stmt) -> bool:
    """Whether a statement runs flows rather than defining something: it is for the notebook."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)):
        return False
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return bool(names & {"NBRunner", "Runner", "NBDeployer", "Deployer"}) or any(
        isinstance(node, (ast.Await, ast.Yield)) for node in ast.walk(statement)
    )


def _cell(flow: type[FlowSpec]) -> str:
    """Return the text of the cell (or file) that defines a flow: its steps know where they were compiled."""
    for value in vars(flow).values():
        function = inspect.unwrap(value) if callable(value) else None
        code = getattr(function, "__code__", None)
        if code is not None and getattr(function, "__module__", None) == flow.__module__:
            lines = linecache.getlines(code.co_filename)
            if lines:
                return "".join(lines)
    raise UsageError(
        f"the source of {flow.__name__} cannot be found",
        "define the flow in a cell of the notebook, or use Runner(file)",
    )
