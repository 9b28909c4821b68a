"""Deploying a flow that is defined in a cell of a notebook: its cell becomes a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flowkit.deployer.deployer import Deployer, TargetDeployer
from flowkit.exceptions import UsageError
from flowkit.model.flowspec import FlowSpec
from flowkit.runner.cells import program_of
from flowkit.runner.notebook import CellFile


class NBDeployer(Deployer):
    """Deploys a flow that a cell defines.

    The definitions of the cell are written to a file beside the notebook, as `flowkit.NBRunner` does. The file is
    removed when nothing can deploy it any more, at the latest by `cleanup`; what is deployed has its code package.

    Parameters
    ----------
    flow : class
        The flow.
    show_output, profile, env, file_read_timeout
        As for `Deployer`.
    base_dir : str, optional
        Where the file is written and run; default: the working directory.
    **top_level_kwargs
        As for `Deployer`.

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
            raise UsageError(f"NBDeployer takes the class of a flow, not {flow!r}", "NBDeployer(MyFlow)")
        folder = os.path.abspath(base_dir or os.getcwd())
        self._file = CellFile(folder, flow.__name__, program_of(flow))
        super().__init__(self._file.path, show_output, profile, env, folder, file_read_timeout, **top_level_kwargs)

    def target(self, target: str, name: str | None = None) -> TargetDeployer:
        """As `Deployer.target`."""
        made = super().target(target, name)
        made.needs = self._file
        return made

    def cleanup(self) -> None:
        """Remove the flow's file."""
        self._file.remove()
