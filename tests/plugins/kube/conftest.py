"""Lets the tests of this folder use the loopback Kubernetes API of ``tests/kubernetes_api``."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(os.path.dirname(HERE)), "kubernetes_api")]

from kubernetes_fixtures import kubeconfig, kubernetes_api, kubernetes_server  # noqa: E402

__all__ = ["kubeconfig", "kubernetes_api", "kubernetes_server"]
