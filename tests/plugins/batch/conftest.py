"""Fixtures of the tests of AWS Batch: one service for all of them, and a user of it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

pytest.importorskip("boto3")
pytest.importorskip("moto.server")

from batch_account import BUCKET, QUEUE
from batch_service import BatchService, opened


@pytest.fixture(scope="session")
def batch_server() -> Iterator[BatchService]:
    """The service, for every test of this folder."""
    with opened() as service:
        yield service


@pytest.fixture
def service(batch_server: BatchService) -> Iterator[BatchService]:
    """The service, with nothing going wrong and no call counted yet."""
    batch_server.calls.clear()
    batch_server.started.clear()
    yield batch_server
    batch_server.hold = batch_server.spare_starting = False
    batch_server.lose.clear()
    batch_server.refuse.clear()


@pytest.fixture
def aws(
    service: BatchService, service_models: None, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> Iterator[BatchService]:
    """This process as a client of the service."""
    from flowkit.plugins.aws import session
    from flowkit.settings import settings

    for name in list(os.environ):
        if name.startswith(("AWS_", "FLOWKIT_")):
            monkeypatch.delenv(name)
    for name, value in {**service.environment, "FLOWKIT_BATCH_QUEUE": QUEUE, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    settings(reload=True)
    session.forget()
    yield service
    session.forget()
    monkeypatch.undo()
    settings(reload=True)


@pytest.fixture
def cloud(service: BatchService, workspace):
    """A workspace whose user runs steps on the service."""
    workspace.env = {name: value for name, value in workspace.env.items() if not name.startswith("AWS_")}
    workspace.env.update(
        service.environment,
        FLOWKIT_BATCH_QUEUE=QUEUE,
        FLOWKIT_DATASTORE=f"s3://{BUCKET}/{uuid.uuid4().hex}",
        FLOWKIT_SKIP_INSTALL="true",
    )
    return workspace
