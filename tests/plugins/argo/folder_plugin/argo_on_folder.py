"""Argo Workflows whose pods reach folders of this machine, as those of the loopback cluster do: no bucket is needed."""

from __future__ import annotations

from flowkit.plugins.argo.target import ArgoWorkflows


class ArgoOnFolder(ArgoWorkflows):
    """As `ArgoWorkflows`, with a datastore in a folder."""

    name = "argo-on-folder"
    needs_remote_root = False

    def preflight(self, deployment):
        """As there, but for the folder."""
        return [problem for problem in super().preflight(deployment) if "cannot reach" not in problem.headline]
