"""The front page gives every public name, and says the same to readers, type checkers and the interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flowkit


def _told_to_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(flowkit.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


@pytest.mark.parametrize("name", flowkit.__all__)
def test_every_public_name_is_there(name) -> None:
    assert getattr(flowkit, name) is not None
    assert name in dir(flowkit)


def test_type_checkers_are_told_the_same() -> None:
    told = _told_to_type_checkers()
    assert told.pop("exceptions") == "flowkit"
    assert told == flowkit._HOMES
    assert sorted({*told, "exceptions"}) == sorted(flowkit.__all__)


def test_an_unknown_name_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="module 'flowkit' has no attribute 'Flowspec'"):
        _ = flowkit.Flowspec
    with pytest.raises(ImportError, match="cannot import name 'Flowspec'"):
        from flowkit import Flowspec  # noqa: F401


@pytest.mark.parametrize("first", ["import flowkit.metadata.store", "from flowkit import metadata", "pass"])
def test_metadata_is_the_function_whatever_was_imported_first(first) -> None:
    code = f"""
{first}
import flowkit
from flowkit.metadata import records
from flowkit import metadata
import flowkit.metadata.store
assert metadata is flowkit.metadata and metadata.__module__ == "flowkit.client.namespace", metadata
assert records.__name__ == "flowkit.metadata.records"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from flowkit import *", names)
    assert set(flowkit.__all__) <= set(names)
