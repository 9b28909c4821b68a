"""Lets the tests of this folder import the values that they share, and use the schedulers of other folders."""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
sys.path[:0] = [
    HERE,
    *(os.path.join(TESTS, name) for name in ("kubernetes_api", "plugins/step_functions", "plugins/batch")),
]

from argo_fixtures import argo, argo_user, bucket, folder_user  # noqa: E402
from kubernetes_fixtures import kubernetes_api, kubernetes_server  # noqa: E402

__all__ = ["argo", "argo_user", "bucket", "folder_user", "kubernetes_api", "kubernetes_server"]
