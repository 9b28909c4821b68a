"""Fixtures of a loopback cluster with Argo Workflows, and a flow's way through it: for whatever folder imports them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from argo_controller import Argo
from kube_server import ARGO, KubernetesApi

FOLDER_PLUGIN = Path(__file__).resolve().parents[1] / "plugins/argo/folder_plugin"
"""A package with the target ``argo-on-folder``: as ``argo-workflows``, with a datastore in a folder."""
ACCOUNT = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}


class Ended(NamedTuple):
    """A run that Argo carried out.

    Parameters
    ----------
    pathspec : str
        ``Flow/run``.
    state : str
        As Argo tells it: ``succeeded``, ``failed``, ``cancelled``.
    workflow : str
        The workflow's name.
    """

    pathspec: str
    state: str
    workflow: str


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of an S3 with a bucket ``runs``."""
    boto3 = pytest.importorskip("boto3")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="id", aws_secret_access_key="key", region_name="us-east-1"
    )
    client.create_bucket(Bucket="runs")
    client.close()
    yield url
    server.stop()


@pytest.fixture
def argo(kubernetes_api: KubernetesApi) -> Iterator[Argo]:
    """The Argo Workflows of the loopback cluster."""
    kubernetes_api.set(unknown=set())
    made = Argo(kubernetes_api)
    yield made
    made.close()
    kubernetes_api.set(unknown=set(ARGO))
    assert made.mistakes == []


@pytest.fixture
def argo_user(workspace: Any, kubernetes_api: KubernetesApi, argo: Argo, bucket: str) -> Any:
    """A workspace whose user has the cluster and a bucket; containers may read the bucket."""
    return argo_user_of(workspace, kubernetes_api, bucket)


def argo_user_of(workspace: Any, api: KubernetesApi, bucket: str) -> Any:
    """Let a workspace's user have a cluster with Argo Workflows and a bucket; return the workspace."""
    workspace.env = {name: value for name, value in workspace.env.items() if not name.startswith("AWS_")}
    workspace.env.update(
        ACCOUNT,
        FLOWKIT_S3_ENDPOINT_URL=bucket,
        FLOWKIT_DATASTORE=f"s3://runs/{uuid.uuid4().hex}",
        FLOWKIT_SKIP_INSTALL="true",
        KUBECONFIG=str(api.kubeconfig(workspace.home / "kubeconfig")),
    )
    api.set(node_environment=ACCOUNT)
    return workspace


@pytest.fixture
def folder_user(workspace: Any, kubernetes_api: KubernetesApi, argo: Argo) -> Any:
    """A workspace whose user has the cluster, and a datastore in a folder that containers reach."""
    return folder_user_of(workspace, kubernetes_api)


def folder_user_of(workspace: Any, api: KubernetesApi) -> Any:
    """Let a workspace's user have a cluster with Argo Workflows, and ``argo-on-folder``; return the workspace."""
    workspace.env.update(
        FLOWKIT_DATASTORE=str(workspace.home / "datastore"),
        FLOWKIT_SKIP_INSTALL="true",
        PYTHONPATH=str(FOLDER_PLUGIN),
        KUBECONFIG=str(api.kubeconfig(workspace.home / "kubeconfig")),
    )
    return workspace


def run_on_argo(
    user: Any,
    argo: Argo,
    flow: str | Path = "flow.py",
    *,
    parameters: Mapping[str, Any] | None = None,
    create: tuple[str, ...] = (),
    target: str = "argo-workflows",
    seconds: float = 240.0,
) -> Ended:
    """Deploy a flow's file by the real command, trigger it, and wait until Argo says that it is over.

    Parameters
    ----------
    user : workspace
        As `argo_user` makes it.
    argo : Argo
        Who carries it out.
    flow : str or Path, default "flow.py"
        In the workspace.
    parameters : mapping, optional
        Values of the flow's parameters, by their names on the command line.
    create : tuple of str
        Further words for ``create``.
    target : str, default "argo-workflows"
        Or ``argo-on-folder``, for a user of `folder_user`: a pod takes a third of the time.
    seconds : float
        How long it may take.
    """
    user.run(target, "create", *create, flow=flow, check=True, timeout=seconds)
    words = [word for name, value in (parameters or {}).items() for word in (f"--{name}", _text(value))]
    file_of_id = user.home / f"id-{uuid.uuid4().hex}"
    user.run(target, "trigger", *words, "--run-id-file", str(file_of_id), flow=flow, check=True, timeout=seconds)
    run = file_of_id.read_text().strip()
    return ended(argo, run.rpartition("/")[2], seconds=seconds)


def ended(argo: Argo, run: str, *, seconds: float = 240.0) -> Ended:
    """Wait until Argo says that a run is over."""
    name = run.removeprefix("argo-")
    phase = argo.wait(name, seconds=seconds)
    workflow = argo.api.store.get("workflows", "default", name)
    cancelled = workflow["metadata"].get("annotations", {}).get("flowkit/cancelled") == "yes"
    state = "cancelled" if cancelled and phase != "Succeeded" else phase.lower()
    return Ended(f"{workflow['metadata']['labels']['flowkit/flow']}/{run}", state, name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
