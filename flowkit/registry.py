"""Names to implementations, imported only when a name is asked for.

Each kind of thing that can be plugged in has a table from its name to ``module:attribute`` and the extra that
brings its dependencies. Entry points of installed packages (group ``flowkit.<kind>``) are looked at only for
names that the table does not know.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

from flowkit.exceptions import MissingExtra, NotFound, UsageError, did_you_mean


class Entry(NamedTuple):
    """Where an implementation is, and which extra installs what it needs."""

    target: str
    extra: str | None = None


TABLES: dict[str, dict[str, Entry]] = {
    "decorators": {
        "retry": Entry("flowkit.decorators.retry:Retry"),
        "catch": Entry("flowkit.decorators.catch:Catch"),
        "timeout": Entry("flowkit.decorators.timeout:Timeout"),
        "environment": Entry("flowkit.decorators.environment:Environment"),
        "resources": Entry("flowkit.decorators.resources:Resources"),
        "secrets": Entry("flowkit.decorators.secrets:Secrets"),
        "parallel": Entry("flowkit.decorators.parallel:Parallel"),
        "batch": Entry("flowkit.plugins.aws.batch_decorator:Batch"),
        "kubernetes": Entry("flowkit.plugins.kubernetes.decorator:Kubernetes"),
        "docker": Entry("flowkit.plugins.docker.decorator:Docker"),
        "pytorch_parallel": Entry("flowkit.decorators.torchrun:PytorchParallel"),
    },
    "flow_decorators": {
        "project": Entry("flowkit.decorators.project:Project"),
        "schedule": Entry("flowkit.decorators.schedule:Schedule"),
        "trigger": Entry("flowkit.decorators.trigger:Trigger"),
        "trigger_on_finish": Entry("flowkit.decorators.trigger:TriggerOnFinish"),
        "exit_hook": Entry("flowkit.decorators.exit_hook:ExitHook"),
        "package": Entry("flowkit.decorators.package:Package"),
    },
    "secrets": {
        "inline": Entry("flowkit.decorators.secrets:InlineSecrets"),
        "aws-secrets-manager": Entry("flowkit.plugins.aws.secrets_manager:SecretsManager", "aws"),
    },
    "storages": {
        "local": Entry("flowkit.datastore.local:LocalStorage"),
        "memory": Entry("flowkit.datastore.memory:MemoryStorage"),
        "s3": Entry("flowkit.plugins.aws.s3_storage:S3Storage", "aws"),
    },
    "codecs": {
        "arrow": Entry("flowkit.datastore.arrow:ArrowCodec", "arrow"),
    },
    "metadata": {
        "local": Entry("flowkit.metadata.sqlite:SqliteMetadata"),
        "service": Entry("flowkit.metadata.service:ServiceMetadata", "service-client"),
    },
    "services": {
        "metadata": Entry("flowkit.metadata_service.server:Server", "service"),
        "tokens": Entry("flowkit.metadata_service.token_desk:TokenDesk", "service"),
    },
    "config_parsers": {
        "yaml": Entry("flowkit.plugins.yaml_files:yaml_parser", "yaml"),
        "yml": Entry("flowkit.plugins.yaml_files:yaml_parser", "yaml"),
    },
    "executors": {
        "local": Entry("flowkit.runtime.local:LocalExecutor"),
    },
    "backends": {
        "batch": Entry("flowkit.plugins.aws.batch:BatchBackend", "aws"),
        "kubernetes": Entry("flowkit.plugins.kubernetes.backend:KubernetesBackend", "kubernetes"),
        "docker": Entry("flowkit.plugins.docker.backend:DockerBackend"),
    },
    "deployers": {
        "local": Entry("flowkit.deployer.local.target:LocalTarget"),
        "argo-workflows": Entry("flowkit.plugins.argo.target:ArgoWorkflows", "kubernetes"),
        "step-functions": Entry("flowkit.plugins.aws.step_functions:StepFunctions", "aws"),
        "airflow": Entry("flowkit.plugins.airflow.target:Airflow"),
        "kubernetes": Entry("flowkit.plugins.kubernetes.cron_target:KubernetesCron", "kubernetes"),
    },
}


def names(kind: str) -> list[str]:
    """Every name of a kind: the built-in ones and those of installed packages."""
    return sorted({*TABLES.get(kind, {}), *_entry_points(kind)})


def load(kind: str, name: str) -> Any:
    """Import and return the implementation of a name.

    Raises
    ------
    NotFound
        If nothing has the name; the hint gives the nearest one.
    MissingExtra
        If a dependency of it is not installed; the hint says what to install.
    """
    entry = TABLES.get(kind, {}).get(name)
    label = kind.rstrip("s").replace("_", " ")
    if entry is None:
        point = _entry_points(kind).get(name)
        if point is None:
            known = names(kind)
            hint = did_you_mean(name, known) or f"known: {', '.join(known)}"
            raise NotFound(f"there is no {label} called '{name}'", hint)
        return _loaded(point)
    module, _, attribute = entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        if entry.extra is None:
            raise
        raise MissingExtra(
            f"the {label} '{name}' needs a package that is not installed: {error.name}",
            f"pip install 'flowkit[{entry.extra}]'",
        ) from error


def plugin(kind: str, name: str) -> Any:
    """Import and return what an installed package brings under a name; None where none does.

    Raises
    ------
    UsageError
        If it cannot be imported; the package is named.
    """
    point = _entry_points(kind).get(name)
    return None if point is None else _loaded(point)


def plugins(kind: str) -> dict[str, str]:
    """Return the names that installed packages bring, each with its package; nothing is imported."""
    return {name: _package(point) for name, point in sorted(_entry_points(kind).items())}


def _loaded(point: Any) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:  # the border to code that is not ours
        raise UsageError(
            f"the plugin '{point.name}' of the package {_package(point)} ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}",
            f"reinstall or remove it: pip uninstall {_package(point)}",
        ) from error


def _package(point: Any) -> str:
    found = getattr(point, "dist", None)
    return str(found.name) if found is not None else point.value.partition(":")[0]


def _entry_points(kind: str) -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=f"flowkit.{kind}")}
