"""Deploying flows from Python: ``create`` is the command, in a process of its own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from flowkit.deployer.deployed import DeployedFlow
from flowkit.deployer.target import CreateOption, DeploymentRecord
from flowkit.deployer.targets import target_class
from flowkit.exceptions import DataError, UsageError, did_you_mean
from flowkit.runner.arguments import TOP, words
from flowkit.runner.program import Program
from flowkit.settings import environment

_OPTIONS = frozenset(
    {
        *("authorize", "generate_new_token", "new_token", "tags", "namespace", "max_workers", "max_log_size"),
        *("workflow_timeout", "workflow_priority", "priority", "concurrency", "notify_on_error", "notify_on_success"),
        *("workflow_title", "workflow_description"),
    }
)
"""What ``create`` of every target takes."""
_ARGUMENT = "file"
"""An option of this name is an argument of the command."""
_PAUSE = 0.02


class Deployer:
    """Deploys a flow's file.

    Parameters
    ----------
    flow_file : str or path
        The file.
    show_output : bool, default True
        Show what the command writes.
    profile : str, optional
        The settings' profile (``FLOWKIT_PROFILE``).
    env : mapping, optional
        Environment variables besides those of this process. What is done with the deployed flow later is done by this
        process, with its own.
    cwd : str, optional
        Where to run; default: the working directory.
    file_read_timeout : float, default 3600
        Seconds that the command may take.
    **top_level_kwargs
        Options before the command: ``datastore_root="…"``, ``decospecs=["retry"]`` (which is ``--with``),
        ``branch="…"``, ``production=True`` and so on.

    Raises
    ------
    UsageError
        If there is no such file, or no such option.

    Examples
    --------
    >>> deployed = Deployer("train.py").local().create(tags=["nightly"])
    >>> deployed.trigger(alpha=0.5).wait_for_completion()
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
                raise UsageError(f"Deployer has no option '{name}'", did_you_mean(name, TOP) or f"one of {sorted(TOP)}")
        self.show_output = show_output
        self._folder = cwd
        self._timeout = file_read_timeout
        self._top = words(top_level_kwargs)
        self._variables = {**environment(), **({"FLOWKIT_PROFILE": profile} if profile else {}), **(env or {})}

    def target(self, target: str, name: str | None = None) -> TargetDeployer:
        """Return what deploys the flow to a target.

        Parameters
        ----------
        target : str
            Its name, for example ``"argo-workflows"``, or that of one which a package brings.
        name : str, optional
            What the flow is called there.

        Raises
        ------
        NotFound
            If there is no such target.
        """
        return TargetDeployer(self, target, name)

    def local(self, name: str | None = None) -> TargetDeployer:
        """Return what deploys the flow to the scheduler in the box."""
        return self.target("local", name)

    def argo_workflows(self, name: str | None = None) -> TargetDeployer:
        """Return what deploys the flow to Argo Workflows."""
        return self.target("argo-workflows", name)

    def step_functions(self, name: str | None = None) -> TargetDeployer:
        """Return what deploys the flow to AWS Step Functions."""
        return self.target("step-functions", name)

    def airflow(self, name: str | None = None) -> TargetDeployer:
        """Return what deploys the flow to Airflow."""
        return self.target("airflow", name)

    def kubernetes(self, name: str | None = None) -> TargetDeployer:
        """Return what deploys the flow as a CronJob on Kubernetes."""
        return self.target("kubernetes", name)

    def command(self, target: str, name: str | None, options: list[str]) -> Program:
        """Start ``create`` and return its process."""
        named = ["--name", name] if name is not None else []
        return Program(
            [sys.executable, os.path.abspath(self.flow_file), *self._top, target, "create", *named, *options],
            "create",
            {},
            self._folder,
            self._variables,
            show=self.show_output,
        )

    def finished(self, program: Program) -> dict[str, Any]:
        """Wait for the command, and return what it says that it deployed."""
        try:
            attributes = program.await_attributes(time.monotonic() + self._timeout, lambda: False)
            while program.poll() is None:
                time.sleep(_PAUSE)
            program.relay()
            return attributes
        finally:
            program.stop()
            program.remove()


class TargetDeployer:
    """Deploys one flow to one target.

    Parameters
    ----------
    deployer : Deployer
        The flow.
    target : str
        The target's name.
    name : str or None
        What the flow is called there.
    """

    def __init__(self, deployer: Deployer, target: str, name: str | None) -> None:
        self._deployer = deployer
        self._class = target_class(target)
        self._name = name
        self.needs: object = None
        """What has to live as long as this does."""

    def create(self, **kwargs: Any) -> DeployedFlow:
        """Deploy the flow, or deploy it again.

        Parameters
        ----------
        **kwargs
            Options of ``create``: ``tags=[…]``, ``max_workers=…``, ``authorize="…"``, and those of the target.

        Raises
        ------
        FlowInvalid
            With everything that is wrong with the flow, or that the target cannot do.
        Conflict
            If somebody else has deployed something under the name.
        UsageError
            If there is no such option.
        """
        own = {option.name: option for option in self._class.options}
        for option in kwargs:
            if option not in own and option not in _OPTIONS:
                known = [*own, *_OPTIONS]
                hint = did_you_mean(option, known) or f"one of {sorted(known)}"
                raise UsageError(f"{self._class.name} create has no option '{option}'", hint)
        found = words({name: value for name, value in kwargs.items() if name in _OPTIONS})
        last: list[str] = []
        for name, value in kwargs.items():
            if name in own and value is not None:
                if name == _ARGUMENT:
                    last = [os.fspath(value)]
                else:
                    found += _own(own[name], value)
        program = self._deployer.command(self._class.name, self._name, [*found, *last])
        record = DeploymentRecord.from_json(self._deployer.finished(program).get("record"))
        if record is None:
            raise DataError("the command did not say what it deployed", "do command and program have the same flowkit?")
        return DeployedFlow(record)


def _own(option: CreateOption, value: Any) -> list[str]:
    """Return an option of the target as it is written on a command line."""
    if option.kind is bool and option.default is True:
        return [] if value else [f"--no-{option.name.replace('_', '-')}"]
    return words({option.name: value})
