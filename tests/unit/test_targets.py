"""Targets by name, and what third-party packages can get wrong about them."""

from __future__ import annotations

import pytest

from flowkit.deployer.local.target import LocalTarget
from flowkit.deployer.targets import make_target, target_class
from flowkit.exceptions import NotFound, UsageError


def test_a_name_is_found_with_dashes_and_underscores():
    assert target_class("local") is LocalTarget
    assert target_class("step_functions") is target_class("step-functions")
    with pytest.raises(NotFound, match="there is no scheduler called 'argo' to deploy to"):
        target_class("argo")


def test_a_package_that_brings_something_else_is_named(tmp_path, monkeypatch):
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[flowkit.deployers]\nodd = json:dumps\nbroken = no_such_module:X\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"'odd' is no flowkit\.deployer\.target\.Target"):
        target_class("odd")
    with pytest.raises(UsageError, match="'broken' of the package odd"):
        target_class("broken")


def test_options_that_are_missing_or_unknown_have_their_defaults():
    made = make_target(LocalTarget, {"catch_up": None, "python": "python3", "client": {}})
    assert made.given == {"catch_up": "last", "python": "python3"}
