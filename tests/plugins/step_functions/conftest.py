"""Fixtures of the tests of AWS Step Functions: one service for all of them, and a user of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "batch"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("moto.stepfunctions.parser.models")

from batch_service import BatchService
from machine_service import opened, user_environment


@pytest.fixture(scope="session")
def machines() -> Iterator[BatchService]:
    """The service, for every test of this folder."""
    with opened() as service:
        yield service


@pytest.fixture
def cloud(machines: BatchService, workspace):
    """A workspace whose user deploys to the service."""
    workspace.env = {name: value for name, value in workspace.env.items() if not name.startswith("AWS_")}
    workspace.env.update(user_environment(machines))
    return workspace
