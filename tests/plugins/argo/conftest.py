"""Lets the tests of this folder use a loopback cluster with Argo Workflows, and make deployments."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(TESTS, "kubernetes_api"), os.path.join(TESTS, "deploying")]

from argo_fixtures import argo, argo_user, bucket, folder_user  # noqa: E402
from kubernetes_fixtures import kubeconfig, kubernetes_api, kubernetes_server  # noqa: E402

__all__ = ["argo", "argo_user", "bucket", "folder_user", "kubeconfig", "kubernetes_api", "kubernetes_server"]
