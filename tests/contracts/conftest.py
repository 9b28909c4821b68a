"""The storages that keep the contract, and what the tests of this folder share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from flowkit.datastore.local import LocalStorage
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.storage import Storage

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "service")]

from served_metadata import served_service_fixture  # noqa: E402
from service_databases import database_fixture, postgresql_fixture, postgresql_server_fixture  # noqa: E402

postgresql_server = postgresql_server_fixture
postgresql = postgresql_fixture
database = database_fixture
served_service = served_service_fixture


@pytest.fixture(params=["local", "durable", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind; S3 is a server on this machine."""
    if request.param == "s3":
        from flowkit.plugins.aws.s3_storage import S3Storage

        return S3Storage(f"s3://{request.getfixturevalue('aws').bucket()}/some/root", fresh=0)
    if request.param == "memory":
        return MemoryStorage()
    return LocalStorage(str(tmp_path), durable=request.param == "durable")
