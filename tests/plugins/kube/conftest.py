"""Lets the tests of this folder use the loopback Kubernetes API of ``tests/kubernetes_api``, and a bucket."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(os.path.dirname(HERE)), "kubernetes_api")]

from kubernetes_fixtures import kubeconfig, kubernetes_api, kubernetes_server  # noqa: E402

__all__ = ["kubeconfig", "kubernetes_api", "kubernetes_server"]

ACCOUNT = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def endpoint(moto_endpoint: str) -> str:
    """An S3 with a bucket."""
    boto3 = pytest.importorskip("boto3")
    client = boto3.client(
        "s3",
        endpoint_url=moto_endpoint,
        aws_access_key_id="id",
        aws_secret_access_key="key",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="runs")
    client.close()
    return moto_endpoint


@pytest.fixture
def cluster(workspace: Any, kubernetes_api: Any, endpoint: str) -> Any:
    """A workspace whose user has a cluster and a bucket; the nodes of the cluster may read the bucket."""
    workspace.env = {name: value for name, value in workspace.env.items() if not name.startswith("AWS_")}
    workspace.env.update(
        ACCOUNT,
        FLOWKIT_S3_ENDPOINT_URL=endpoint,
        FLOWKIT_DATASTORE=f"s3://runs/{uuid.uuid4().hex}",
        FLOWKIT_SKIP_INSTALL="true",
        KUBECONFIG=str(kubernetes_api.kubeconfig(workspace.home / "kubeconfig")),
    )
    kubernetes_api.set(node_environment=ACCOUNT)
    return workspace


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """A function that waits for something to be true, and returns it."""

    def wait(done: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 60
        while not (found := done()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    return wait
