"""Deployments for tests of compilers: a flow's source becomes a `Deployment` without a call to anything."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowkit import registry
from flowkit.cli.console import Console
from flowkit.cli.session import Session
from flowkit.deployer.gather import Asked, executor_specs, gather
from flowkit.deployer.target import Deployment, Target
from flowkit.exceptions import FlowInvalid
from flowkit.model.definition import FlowDefinition, define
from flowkit.model.flowspec import FlowSpec
from flowkit.runtime.bootstrap import StoredPackage

PACKAGE_KEY = "0123456789abcdef" * 4
"""Of the code package, made up."""
TEMPLATE_KEY = "fedcba9876543210" * 4
"""Of the template, made up."""
_numbers = itertools.count()


def deployment_of(
    source: str | Path,
    target: str | type[Target] | Target,
    *,
    root: str = "s3://bucket/flowkit",
    user: str = "ann",
    token: str = "flow-0-abcdefgh",
    template: str = TEMPLATE_KEY,
    name: str | None = None,
    metadata: str = "local",
    created: float = 1_800_000_000.0,
    decospecs: Iterable[str] = (),
    top: Mapping[str, Any] | None = None,
    client: Mapping[str, Any] | None = None,
    refused: bool = False,
    **options: Any,
) -> Deployment:
    """Return the deployment of a flow.

    Parameters
    ----------
    source : str or Path
        The flow's source (dedented), or the path of its file. A source needs no imports for the public names: it begins
        with ``from flowkit import *`` where it has none from flowkit.
    target : str, class or object
        The target: its name in the registry, its class, or made already.
    decospecs : iterable of str
        As ``--with``.
    top : mapping, optional
        Options before the command: ``{"branch": "b", "production": True}``.
    refused : bool, default False
        Whether the deployment is returned although `gather` found problems; otherwise they are raised.
    **options
        Those of `Asked` (``tags=…``, ``max_workers=…``), and the target's own.

    Raises
    ------
    FlowInvalid
        With everything that is wrong with the flow.
    """
    definition = definition_of(source)
    asked = Asked(**{key: options.pop(key) for key in list(options) if key in Asked._fields})
    made = target_of(target, options)
    session = Session(definition, Console(), root=root, metadata=metadata, decospecs=tuple(decospecs))
    session.options = dict(top or {})
    session.settle({})
    session.prepare(executor_specs(made, session.decospecs))
    package = StoredPackage(PACKAGE_KEY, 4096, "flow.py", definition.name)
    found = gather(
        definition,
        made,
        package=package,
        root=root,
        user=user,
        token=token,
        template=template,
        name=name,
        asked=asked,
        metadata=metadata,
        created=created,
        client=client,
    )
    if found.problems and not refused:
        raise FlowInvalid(found.problems)
    return found.deployment


def target_of(target: str | type[Target] | Target, options: Mapping[str, Any]) -> Target:
    """Return a target with its options, those not given at their defaults."""
    if isinstance(target, Target):
        return target
    cls: type[Target] = registry.load("deployers", target) if isinstance(target, str) else target
    known = {option.name: option.default for option in cls.options}
    unknown = options.keys() - known.keys()
    if unknown:
        raise TypeError(f"{cls.name} has no option {', '.join(sorted(unknown))}")
    return cls({**known, **options})


def definition_of(source: str | Path) -> FlowDefinition:
    """Return the definition of the flow in a file or a source: of several, the last one."""
    if isinstance(source, str):
        with tempfile.TemporaryDirectory() as folder:
            text = textwrap.dedent(source).lstrip("\n")
            if "flowkit import" not in text:
                text = f"from flowkit import *\n{text}"
            file = Path(folder) / "flow.py"
            file.write_text(text, encoding="utf-8")
            definition = definition_of(file)
            definition.file = "/flows/flow.py"  # the same each time: it is in the record
            return definition
    module_name = f"flow_to_deploy_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(module_name, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        flows = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, FlowSpec) and value.__module__ == module_name
        ]
        return define(flows[-1])
    finally:
        del sys.modules[module_name]
