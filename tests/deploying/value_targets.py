"""Targets that only compile, and whose document is the deployment itself."""

from __future__ import annotations

from flowkit.deployer.target import Target


class Cluster(Target):
    """A target whose document is the deployment itself."""

    name, label, prefix, executor = "cluster", "the cluster", "cluster", "kubernetes"

    @classmethod
    def default_name(cls, flow, project, branch):
        return ".".join(part for part in (project, branch, flow) if part)

    def problems(self, deployment):
        return []

    def compile(self, deployment):
        return deployment

    preflight = problems

    def apply(self, deployment, document):
        raise AssertionError("nothing is carried anywhere here")

    find = deployed = trigger = execution = executions = terminate = delete = apply


class Client(Cluster):
    """A target that starts runs as a user would."""

    name, executor, client_run, needs_remote_root = "client", None, True, False


class Machine(Client):
    """A target that carries steps out itself."""

    name, label, client_run = "machine", "the machine", False
