"""Fixtures of databases, for the folders of tests that need some: imported by their ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgresql_server import PostgresqlServer

from flowkit.metadata_service.migrations import migrate

DATABASES = ("sqlite", "postgresql")
_templates: dict[int, str] = {}


@pytest.fixture(scope="session", name="postgresql_server")
def postgresql_server_fixture() -> Iterator[PostgresqlServer]:
    """A PostgreSQL, begun when a test first asks for one; one for each worker, so that a test may restart it."""
    server = PostgresqlServer()
    yield server
    server.remove()


@pytest.fixture(name="postgresql")
def postgresql_fixture(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """The URL of a PostgreSQL database that is up to date and empty, for one test."""
    template = _templates.get(id(postgresql_server))
    if template is None:
        made = postgresql_server.create()
        migrate(made)
        template = _templates[id(postgresql_server)] = made.rpartition("/")[2]
    url = postgresql_server.create(template)
    yield url
    postgresql_server.drop(url)


@pytest.fixture(params=DATABASES, name="database")
def database_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What ``--database`` is given: each kind of database in turn, empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service'}"
    url: str = request.getfixturevalue("postgresql")
    return url
