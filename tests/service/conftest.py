"""The databases under the metadata service: SQLite in a folder, and a real PostgreSQL on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from service_databases import database_fixture, postgresql_fixture, postgresql_server_fixture

from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.store import ServiceStore

postgresql_server = postgresql_server_fixture
postgresql = postgresql_fixture
database = database_fixture


@pytest.fixture
def service_store(database: str) -> Iterator[ServiceStore]:
    """A store of the service, on each of its databases in turn."""
    made = open_store(database)
    yield made
    made.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[ServiceStore]:
    """A store of the service on SQLite alone, for tests to which the database does not matter."""
    made = open_store(str(tmp_path / "service"))
    yield made
    made.close()
