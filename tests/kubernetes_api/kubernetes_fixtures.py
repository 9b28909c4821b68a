"""Fixtures of the loopback Kubernetes API, for the tests of whatever folder imports them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_server import KubernetesApi


@pytest.fixture(scope="session")
def kubernetes_server() -> Iterator[KubernetesApi]:
    """The API of one test process; see `kubernetes_api`."""
    api = KubernetesApi()
    yield api
    api.close()


@pytest.fixture
def kubernetes_api(kubernetes_server: KubernetesApi) -> Iterator[KubernetesApi]:
    """A loopback Kubernetes API with nothing in it."""
    kubernetes_server.reset()
    yield kubernetes_server
    kubernetes_server.reset()


@pytest.fixture
def kubeconfig(kubernetes_api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig that leads to the loopback API, and the settings of this process with it."""
    from flowkit.settings import settings

    path = kubernetes_api.kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))
    for name in ("FLOWKIT_KUBERNETES_NAMESPACE", "FLOWKIT_KUBERNETES_CONTEXT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    settings(reload=True)
    return path
