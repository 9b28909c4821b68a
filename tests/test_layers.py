"""The house keeps its shape: who may import what, read from every import statement.

Imports inside functions and under TYPE_CHECKING count like any other. The rules are functions of sources, so that
the tests below can also show that each rule notices what it forbids.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "flowkit": "flowkit",
    "plugins": "flowkit.plugins",
    "metadata_service": "flowkit.metadata_service",
    "tutorials/__init__.py": "flowkit.tutorials",
}

GROUND = {"exceptions", "settings", "registry", "version"}
VALUES = {"model", "context", "decorators"}
INPUT_OUTPUT = {"datastore", "metadata", "package"}
SEES: dict[str, set[str]] = {
    "exceptions": set(),
    "version": set(),
    "settings": {"exceptions", "version"},
    "registry": {"exceptions", "settings", "version"},
    "model": GROUND,
    "context": GROUND | {"model"},
    "decorators": GROUND | {"model", "context"},
    "datastore": GROUND | VALUES,
    "metadata": GROUND | VALUES,
    "package": GROUND | VALUES,
    "runtime": GROUND | VALUES | INPUT_OUTPUT,
    "client": GROUND | VALUES | INPUT_OUTPUT,
    "upkeep": GROUND | VALUES | INPUT_OUTPUT | {"client"},
    "cli": GROUND | VALUES | INPUT_OUTPUT | {"runtime", "client", "upkeep", "deployer"},
    "runner": GROUND | VALUES | INPUT_OUTPUT | {"runtime", "client"},
    "deployer": GROUND | VALUES | INPUT_OUTPUT | {"runtime", "client", "runner"},
    "__main__": GROUND | {"cli"},
    "plugins": GROUND | VALUES | INPUT_OUTPUT,
    "metadata_service": GROUND | VALUES | INPUT_OUTPUT | {"client"},
    "tutorials": set(),
}
"""Each part of flowkit (besides itself) and the parts below it that it may see."""

PORTS = {
    "flowkit.runtime.executor",
    "flowkit.runtime.backend",
    "flowkit.deployer.target",
}
"""Modules of the upper layers that plugins implement."""

DOORS = {
    ("flowkit.model.flowspec", "FlowSpec.__init__", "flowkit.cli.main"),
    ("flowkit.metadata_service.__main__", "main", "flowkit.cli.console_script"),
}
"""The ways up: making a flow starts the command line, and so does running the service as a module.
(module, function, what it imports)"""

OWNERS: dict[str, set[str]] = {
    "click": {"flowkit.cli"},
    "cloudpickle": {"flowkit.datastore"},
    "blake3": {"flowkit.datastore"},
    "tomli": {"flowkit.model.config_files", "flowkit.model.config_parsers", "flowkit.settings"},
    "numpy": {"flowkit.datastore.arrow"},
    "pandas": {"flowkit.datastore.arrow"},
    "pyarrow": {"flowkit.datastore.arrow"},
    "boto3": {"flowkit.plugins.aws"},
    "botocore": {"flowkit.plugins.aws"},
    "fastapi": {"flowkit.metadata_service"},
    "h11": {"flowkit.metadata_service"},
    "jwt": {"flowkit.metadata_service"},
    "prometheus_client": {"flowkit.metadata_service"},
    "psycopg": {"flowkit.metadata_service"},
    "pydantic": {"flowkit.metadata_service"},
    "starlette": {"flowkit.metadata_service"},
    "uvicorn": {"flowkit.metadata_service"},
    "requests": {"flowkit.metadata.service_calls"},
    "tenacity": {"flowkit.plugins", "flowkit.metadata.service_calls"},
    "cronsim": {"flowkit.deployer.local.cron"},
    "docker": {"flowkit.plugins.docker"},
    "kubernetes": {"flowkit.plugins.kubernetes"},
    "urllib3": {"flowkit.plugins"},
    "yaml": {"flowkit.plugins.yaml_files"},
}
"""Every third-party package and the parts that may know it."""

CODECS = {"flowkit.datastore.codecs", "flowkit.datastore.pickling"}
"""The only modules that pickle or unpickle."""

PICKLERS = {"pickle", "_pickle", "cloudpickle", "marshal", "shelve", "dill"}
ENVIRONMENT_READERS = {"flowkit.settings"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


class Import(NamedTuple):
    """One imported module (or name), where, and inside which function."""

    module: str
    scope: str
    target: str
    line: int

    def __str__(self) -> str:
        inside = f" in {self.scope}" if self.scope else ""
        return f"{self.module}:{self.line}{inside} imports {self.target}"


Sources = Mapping[str, str]


def read_sources() -> dict[str, str]:
    """Every module of flowkit by its name, from the folders of the repository."""
    sources = {}
    for folder, package in FOLDERS.items():
        path = ROOT / folder
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            parts = () if path.is_file() else file.relative_to(path).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            sources[name] = file.read_text(encoding="utf-8")
    return sources


def imports(sources: Sources) -> list[Import]:
    """Every import of every module, resolved to modules where the name is one."""
    names = frozenset(sources)
    return [found for module, source in sources.items() for found in _imports(module, source, names)]


@cache  # every rule asks, and nearly always for the house as it stands
def _imports(module: str, source: str, names: frozenset[str]) -> list[Import]:
    return _Reader(module, names).read(source)


class _Reader(ast.NodeVisitor):
    def __init__(self, module: str, names: frozenset[str]) -> None:
        self.module = module
        self.names = names
        self.scope: list[str] = []
        self.found: list[Import] = []

    def read(self, source: str) -> list[Import]:
        self.visit(ast.parse(source, self.module))
        return self.found

    def _add(self, target: str, line: int) -> None:
        self.found.append(Import(self.module, ".".join(self.scope), target, line))

    def _scoped(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.scope.append(node.name)
        self.generic_visit(node)
        self.scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _scoped

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            self._add("." * node.level + (node.module or ""), node.lineno)
            return
        for alias in node.names:
            # `from flowkit.model import graph` imports a module, `from flowkit.model.graph import Node` does not.
            whole = f"{node.module}.{alias.name}"
            self._add(whole if whole in self.names else str(node.module), node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                self._add(first.value, node.lineno)
        self.generic_visit(node)


def part(module: str) -> str:
    """The part of flowkit that a module belongs to: its second name."""
    return [*module.split("."), ""][1]


def within(module: str, owner: str) -> bool:
    return module == owner or module.startswith(owner + ".")


def _ours(sources: Sources) -> Iterator[Import]:
    """Imports of flowkit by flowkit, without the front page's own and the named doors."""
    for found in imports(sources):
        if found.module == "flowkit" or (found.module, found.scope, found.target) in DOORS:
            continue
        if within(found.target, "flowkit"):
            yield found


def wrong_arrows(sources: Sources) -> list[str]:
    """Imports that do not point down: upwards, between strangers, of the front page, relative, or of unknown parts."""
    wrong = [str(found) for found in imports(sources) if found.target.startswith(".")]
    for found in _ours(sources):
        source, target = part(found.module), part(found.target)
        if source not in SEES:
            wrong.append(f"{found.module} is in no layer: add it to SEES")
        elif source == target or (found.target in PORTS and source == "plugins"):
            continue
        elif target not in SEES[source]:
            wrong.append(str(found))
    return wrong


def cycles(sources: Sources) -> list[str]:
    """Groups of modules that import each other, directly or around corners."""
    graph: dict[str, set[str]] = {module: set() for module in sources if module != "flowkit"}
    for found in _ours(sources):
        if found.target in graph and found.target != found.module:
            graph[found.module].add(found.target)
    return [" <-> ".join(sorted(group)) for group in _strongly_connected(graph) if len(group) > 1]


def _strongly_connected(graph: Mapping[str, set[str]]) -> list[list[str]]:
    order: list[str] = []
    seen: set[str] = set()

    def visit(node: str, edges: Mapping[str, set[str]], out: list[str]) -> None:
        if node not in seen:
            seen.add(node)
            for following in edges[node]:
                visit(following, edges, out)
            out.append(node)

    for node in graph:
        visit(node, graph, order)
    back: dict[str, set[str]] = {node: set() for node in graph}
    for node, targets in graph.items():
        for target in targets:
            back[target].add(node)
    seen.clear()
    groups = []
    for node in reversed(order):
        group: list[str] = []
        visit(node, back, group)
        if group:
            groups.append(group)
    return groups


def foreign_imports(sources: Sources) -> list[str]:
    """Third-party packages outside their owners."""
    wrong = []
    for found in imports(sources):
        package = found.target.split(".")[0]
        if package in sys.stdlib_module_names or package in ("flowkit", "tomllib", ""):
            continue
        if not any(within(found.module, owner) for owner in OWNERS.get(package, ())):
            wrong.append(str(found))
    return wrong


def picklers(sources: Sources) -> list[str]:
    """Imports of something that can pickle, outside the codecs."""
    return [
        str(found)
        for found in imports(sources)
        if found.target.split(".")[0] in PICKLERS and found.module not in CODECS
    ]


def environment_reads(sources: Sources) -> list[str]:
    """Uses of the environment outside the settings."""
    wrong = []
    for module, source in sources.items():
        if module in ENVIRONMENT_READERS:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
                if isinstance(node.value, ast.Name) and node.value.id in ("os", "posix"):
                    wrong.append(f"{module}:{node.lineno} uses os.{node.attr}")
            elif isinstance(node, ast.ImportFrom) and node.module in ("os", "posix"):
                wrong += [f"{module}:{node.lineno} imports {a.name}" for a in node.names if a.name in ENVIRONMENT]
    return wrong


RULES = [wrong_arrows, cycles, foreign_imports, picklers, environment_reads]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule) -> None:
    wrong = rule(read_sources())
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_part_has_a_layer() -> None:
    parts = {part(module) for module in read_sources()} - {""}
    assert parts <= set(SEES), f"not in SEES: {parts - set(SEES)}"


def test_each_door_is_used() -> None:
    used = {(found.module, found.scope, found.target) for found in imports(read_sources())}
    assert used >= DOORS, f"no longer needed: {DOORS - used}"


def test_layers_of_the_table_have_no_cycle() -> None:
    assert all(len(group) == 1 for group in _strongly_connected(SEES))


INNOCENT = {"flowkit": "", "flowkit.exceptions": "", "flowkit.model": "", "flowkit.model.graph": "import os"}


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (wrong_arrows, "flowkit.model.lint", "from flowkit.runtime.task import run"),
        (wrong_arrows, "flowkit.model.lint", "def f():\n    import flowkit.cli.main"),
        (wrong_arrows, "flowkit.model.lint", "import importlib\nimportlib.import_module('flowkit.cli.main')"),
        (
            wrong_arrows,
            "flowkit.datastore.blobs",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from flowkit.client import objects",
        ),
        (wrong_arrows, "flowkit.datastore.blobs", "from flowkit.metadata import store"),
        (wrong_arrows, "flowkit.client.objects", "from flowkit.runtime import scheduler"),
        (wrong_arrows, "flowkit.model.lint", "from flowkit.decorators import retry"),
        (wrong_arrows, "flowkit.plugins.aws", "from flowkit.runtime.local import LocalExecutor"),
        (wrong_arrows, "flowkit.metadata_service.api", "from flowkit.cli import main"),
        (wrong_arrows, "flowkit.model.lint", "from flowkit import FlowSpec"),
        (wrong_arrows, "flowkit.model.lint", "import flowkit"),
        (wrong_arrows, "flowkit.model.lint", "from . import graph"),
        (wrong_arrows, "flowkit.surprise", "from flowkit.exceptions import FlowkitError"),
        (wrong_arrows, "flowkit.model.flowspec", "def f():\n    from flowkit.cli.main import main"),
        (cycles, "flowkit.exceptions", "def f():\n    from flowkit.model.b import b"),
        (foreign_imports, "flowkit.model.lint", "import click"),
        (foreign_imports, "flowkit.cli.main", "def f():\n    import requests"),
        (foreign_imports, "flowkit.datastore.blobs", "from numpy import array"),
        (picklers, "flowkit.datastore.blobs", "import pickle"),
        (picklers, "flowkit.runtime.task", "def f():\n    from cloudpickle import dumps"),
        (environment_reads, "flowkit.cli.main", "import os\nos.environ['X']"),
        (environment_reads, "flowkit.cli.main", "def f():\n    from os import getenv"),
    ],
)
def test_a_rule_notices(rule, module, source) -> None:
    broken = {**INNOCENT, "flowkit.model.b": "from flowkit.exceptions import x", "flowkit.runtime": "", module: source}
    assert len(rule(broken)) == 1


def test_the_innocent_house_passes() -> None:
    for rule in RULES:
        assert rule(INNOCENT) == []


def test_what_is_allowed_passes() -> None:
    sources = {
        **INNOCENT,
        "flowkit.cli": "",
        "flowkit.cli.main": "import click\nfrom flowkit.model.graph import Node",
        "flowkit.runtime.executor": "",
        "flowkit.plugins.aws.batch": "import boto3\nfrom flowkit.runtime.executor import Executor",
        "flowkit.model.flowspec": "class FlowSpec:\n  def __init__(self):\n    from flowkit.cli.main import main",
        "flowkit.settings": "import os\nos.environ",
        "flowkit.datastore.codecs": "import pickle",
    }
    for rule in RULES:
        assert rule(sources) == []
