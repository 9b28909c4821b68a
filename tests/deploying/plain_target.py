"""A target of nobody's: its deployments are carried out by `plain_scheduler`, on this machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployments import definition_of

from flowkit.cli.console import Console
from flowkit.cli.package import build
from flowkit.cli.parameters import with_defaults
from flowkit.cli.session import Session
from flowkit.datastore.root import open_storage
from flowkit.deployer.gather import gather
from flowkit.deployer.target import Deployment, DeploymentRecord, Execution, Target
from flowkit.exceptions import FlowkitError
from flowkit.runtime.bootstrap import store_package
from flowkit.runtime.start import RunRequest
from flowkit.runtime.template import store_template


class PlainTarget(Target):
    """A target that nobody serves."""

    name = "plain"
    label = "Nobody's"
    prefix = "plain"
    needs_remote_root = False

    @classmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        return flow.lower()

    def problems(self, deployment: Deployment) -> list[Any]:
        return []

    def compile(self, deployment: Deployment) -> Any:
        return {"name": deployment.name}

    def preflight(self, deployment: Deployment) -> list[Any]:
        return []

    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        raise FlowkitError("nothing is applied here")

    def find(self, name: str) -> DeploymentRecord | None:
        return None

    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        return []

    def trigger(self, record: DeploymentRecord, parameters: Any) -> str:
        raise FlowkitError("nothing is triggered here")

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        return None

    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        return []

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        raise FlowkitError("nothing runs here")

    def delete(self, record: DeploymentRecord) -> None:
        raise FlowkitError("nothing is deployed here")


def deploy_here(file: Path, root: str, *, user: str = "tester") -> Deployment:
    """Return the deployment of a flow whose containers are processes of this machine; code and template are stored."""
    definition = definition_of(file)
    storage = open_storage(root, create=True)
    session = Session(definition, Console(), root=root)
    session.settle({})
    session.prepare(())
    package = store_package(storage, build(session))
    request = RunRequest(
        user=user,
        parameters=with_defaults(definition, {}, {}, session),
        namespace="production:token",
        package=package._asdict(),
    )
    template = store_template(storage, definition, request, target="plain", name=definition.name.lower())
    found = gather(definition, PlainTarget({}), package=package, root=root, user=user, token="token", template=template)
    assert not found.problems
    steps = {name: replace(plan, command=_here(plan.command)) for name, plan in found.deployment.steps.items()}
    return replace(found.deployment, steps=steps, end_command=_here(found.deployment.end_command))


def _here(command: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, *command[1:])
