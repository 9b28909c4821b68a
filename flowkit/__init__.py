"""flowkit: run Python flows on the laptop and in the cloud, keep every artifact, resume what failed.

The front page: the public names, each imported when it is first asked for, so that ``import flowkit`` costs next
to nothing. Nothing inside flowkit imports from here.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 10):  # noqa: UP036 (where flowkit was not installed by pip, which would have refused)
    sys.stderr.write(
        "flowkit needs Python 3.10 or newer, and this is Python %d.%d (%s).\n"  # noqa: UP031
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    raise SystemExit(2)

if TYPE_CHECKING:
    from flowkit import exceptions as exceptions
    from flowkit.client.namespace import (
        default_metadata,
        default_namespace,
        get_metadata,
        get_namespace,
        inspect_spin,
        metadata,
        namespace,
    )
    from flowkit.client.objects import DataArtifact, Flow, Flowkit, Run, Step, Task
    from flowkit.context import current
    from flowkit.decorators.catch import catch
    from flowkit.decorators.environment import environment
    from flowkit.decorators.exit_hook import exit_hook
    from flowkit.decorators.mutators import FlowMutator, StepMutator
    from flowkit.decorators.package import package
    from flowkit.decorators.parallel import parallel
    from flowkit.decorators.project import project
    from flowkit.decorators.resources import resources
    from flowkit.decorators.retry import retry
    from flowkit.decorators.schedule import schedule
    from flowkit.decorators.secrets import secrets
    from flowkit.decorators.timeout import timeout
    from flowkit.decorators.torchrun import pytorch_parallel
    from flowkit.decorators.trigger import trigger, trigger_on_finish
    from flowkit.decorators.user_steps import USER_SKIP_STEP, UserStepDecorator, user_step_decorator
    from flowkit.deployer.deployed import DeployedFlow, TriggeredRun
    from flowkit.deployer.deployer import Deployer
    from flowkit.deployer.notebook import NBDeployer
    from flowkit.exceptions import FlowkitError
    from flowkit.model.config_parsers import pyproject_toml_parser, requirements_txt_parser
    from flowkit.model.configs import Config, ConfigValue, config_expr
    from flowkit.model.flowspec import FlowSpec, step
    from flowkit.model.include_file import IncludeFile
    from flowkit.model.parameters import JSONType, JSONTypeClass, Parameter
    from flowkit.plugins.aws.batch_decorator import batch
    from flowkit.plugins.aws.s3_client import S3
    from flowkit.plugins.aws.s3_exceptions import (
        FlowkitS3AccessDenied,
        FlowkitS3Exception,
        FlowkitS3InsufficientDiskSpace,
        FlowkitS3InvalidObject,
        FlowkitS3InvalidRange,
        FlowkitS3NotFound,
        FlowkitS3URLException,
    )
    from flowkit.plugins.aws.s3_objects import S3GetObject, S3Object, S3PutObject
    from flowkit.plugins.docker.decorator import docker
    from flowkit.plugins.kubernetes.decorator import kubernetes
    from flowkit.plugins.yaml_files import conda_environment_yml_parser, yaml_parser
    from flowkit.runner.executing import ExecutingRun, ExecutingTask
    from flowkit.runner.notebook import NBRunner
    from flowkit.runner.runner import Runner
    from flowkit.runtime.parallel_map import parallel_imap_unordered, parallel_map
    from flowkit.runtime.timing import profile
    from flowkit.version import __version__

__all__ = [
    "S3",
    "USER_SKIP_STEP",
    "Config",
    "ConfigValue",
    "DataArtifact",
    "DeployedFlow",
    "Deployer",
    "ExecutingRun",
    "ExecutingTask",
    "Flow",
    "FlowMutator",
    "FlowSpec",
    "Flowkit",
    "FlowkitError",
    "FlowkitS3AccessDenied",
    "FlowkitS3Exception",
    "FlowkitS3InsufficientDiskSpace",
    "FlowkitS3InvalidObject",
    "FlowkitS3InvalidRange",
    "FlowkitS3NotFound",
    "FlowkitS3URLException",
    "IncludeFile",
    "JSONType",
    "JSONTypeClass",
    "NBDeployer",
    "NBRunner",
    "Parameter",
    "Run",
    "Runner",
    "S3GetObject",
    "S3Object",
    "S3PutObject",
    "Step",
    "StepMutator",
    "Task",
    "TriggeredRun",
    "UserStepDecorator",
    "__version__",
    "batch",
    "catch",
    "conda_environment_yml_parser",
    "config_expr",
    "current",
    "default_metadata",
    "default_namespace",
    "docker",
    "environment",
    "exceptions",
    "exit_hook",
    "get_metadata",
    "get_namespace",
    "inspect_spin",
    "kubernetes",
    "metadata",
    "namespace",
    "package",
    "parallel",
    "parallel_imap_unordered",
    "parallel_map",
    "profile",
    "project",
    "pyproject_toml_parser",
    "pytorch_parallel",
    "requirements_txt_parser",
    "resources",
    "retry",
    "schedule",
    "secrets",
    "step",
    "timeout",
    "trigger",
    "trigger_on_finish",
    "user_step_decorator",
    "yaml_parser",
]

_HOMES: dict[str, str] = {
    "FlowSpec": "flowkit.model.flowspec",
    "step": "flowkit.model.flowspec",
    "Parameter": "flowkit.model.parameters",
    "JSONType": "flowkit.model.parameters",
    "JSONTypeClass": "flowkit.model.parameters",
    "Config": "flowkit.model.configs",
    "ConfigValue": "flowkit.model.configs",
    "FlowMutator": "flowkit.decorators.mutators",
    "StepMutator": "flowkit.decorators.mutators",
    "UserStepDecorator": "flowkit.decorators.user_steps",
    "user_step_decorator": "flowkit.decorators.user_steps",
    "USER_SKIP_STEP": "flowkit.decorators.user_steps",
    "config_expr": "flowkit.model.configs",
    "conda_environment_yml_parser": "flowkit.plugins.yaml_files",
    "pyproject_toml_parser": "flowkit.model.config_parsers",
    "requirements_txt_parser": "flowkit.model.config_parsers",
    "yaml_parser": "flowkit.plugins.yaml_files",
    "IncludeFile": "flowkit.model.include_file",
    "current": "flowkit.context",
    "batch": "flowkit.plugins.aws.batch_decorator",
    "catch": "flowkit.decorators.catch",
    "docker": "flowkit.plugins.docker.decorator",
    "environment": "flowkit.decorators.environment",
    "exit_hook": "flowkit.decorators.exit_hook",
    "package": "flowkit.decorators.package",
    "parallel": "flowkit.decorators.parallel",
    "kubernetes": "flowkit.plugins.kubernetes.decorator",
    "project": "flowkit.decorators.project",
    "pytorch_parallel": "flowkit.decorators.torchrun",
    "resources": "flowkit.decorators.resources",
    "retry": "flowkit.decorators.retry",
    "schedule": "flowkit.decorators.schedule",
    "secrets": "flowkit.decorators.secrets",
    "timeout": "flowkit.decorators.timeout",
    "trigger": "flowkit.decorators.trigger",
    "trigger_on_finish": "flowkit.decorators.trigger",
    "Flowkit": "flowkit.client.objects",
    "Flow": "flowkit.client.objects",
    "Run": "flowkit.client.objects",
    "Step": "flowkit.client.objects",
    "Task": "flowkit.client.objects",
    "DataArtifact": "flowkit.client.objects",
    "namespace": "flowkit.client.namespace",
    "get_namespace": "flowkit.client.namespace",
    "default_namespace": "flowkit.client.namespace",
    "metadata": "flowkit.client.namespace",
    "get_metadata": "flowkit.client.namespace",
    "inspect_spin": "flowkit.client.namespace",
    "default_metadata": "flowkit.client.namespace",
    "FlowkitError": "flowkit.exceptions",
    "parallel_imap_unordered": "flowkit.runtime.parallel_map",
    "parallel_map": "flowkit.runtime.parallel_map",
    "profile": "flowkit.runtime.timing",
    "ExecutingRun": "flowkit.runner.executing",
    "ExecutingTask": "flowkit.runner.executing",
    "NBRunner": "flowkit.runner.notebook",
    "Runner": "flowkit.runner.runner",
    "DeployedFlow": "flowkit.deployer.deployed",
    "Deployer": "flowkit.deployer.deployer",
    "NBDeployer": "flowkit.deployer.notebook",
    "TriggeredRun": "flowkit.deployer.deployed",
    "S3": "flowkit.plugins.aws.s3_client",
    "S3GetObject": "flowkit.plugins.aws.s3_objects",
    "S3Object": "flowkit.plugins.aws.s3_objects",
    "S3PutObject": "flowkit.plugins.aws.s3_objects",
    "FlowkitS3AccessDenied": "flowkit.plugins.aws.s3_exceptions",
    "FlowkitS3Exception": "flowkit.plugins.aws.s3_exceptions",
    "FlowkitS3InsufficientDiskSpace": "flowkit.plugins.aws.s3_exceptions",
    "FlowkitS3InvalidObject": "flowkit.plugins.aws.s3_exceptions",
    "FlowkitS3InvalidRange": "flowkit.plugins.aws.s3_exceptions",
    "FlowkitS3NotFound": "flowkit.plugins.aws.s3_exceptions",
    "FlowkitS3URLException": "flowkit.plugins.aws.s3_exceptions",
    "__version__": "flowkit.version",
}
"""Where each public name lives; a submodule that is public itself (`exceptions`) needs no entry."""


def __getattr__(name: str) -> Any:
    """Import a public name's module and keep what it holds, so that this is called once for each name."""
    from importlib import import_module

    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in __all__:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'", name=name, obj=sys.modules[__name__])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _FrontPage(ModuleType):
    """A module on which the public name ``metadata`` cannot be covered by the folder of that name.

    Importing ``flowkit.metadata.…`` binds the subpackage to its parent, as any import does; users mean the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontPage
