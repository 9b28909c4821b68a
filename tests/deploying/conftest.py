"""Lets the tests of this folder import the values that they share, and use the schedulers of other folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
sys.path[:0] = [
    HERE,
    *(os.path.join(TESTS, name) for name in ("kubernetes_api", "plugins/step_functions", "plugins/batch")),
]

from argo_fixtures import argo, argo_user, bucket, folder_user  # noqa: E402
from kubernetes_fixtures import kubernetes_api, kubernetes_server  # noqa: E402

__all__ = ["argo", "argo_user", "bucket", "folder_user", "kubernetes_api", "kubernetes_server"]


@pytest.fixture(scope="session")
def machines() -> Iterator[Any]:
    """AWS Step Functions, for every test of this folder."""
    from machine_service import opened

    with opened() as service:
        yield service


@pytest.fixture
def cloud(machines: Any, workspace: Any) -> Any:
    """A workspace whose user deploys there."""
    from machine_service import user_environment

    workspace.env = {name: value for name, value in workspace.env.items() if not name.startswith("AWS_")}
    workspace.env.update(user_environment(machines))
    return workspace
