"""A DAG whose tasks are pods: on a real Airflow, with a Kubernetes on this machine whose pods are processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from airflow_runs import PYTHONS, AirflowMachine, artifacts, deploy, ended

sys.path += [str(Path(__file__).parents[1] / "plugins" / "batch"), str(Path(__file__).parents[1] / "kubernetes_api")]

from batch_account import BUCKET
from batch_service import BatchService
from kube_server import KubernetesApi

pytestmark = pytest.mark.xdist_group("batch")

FLOW = """
from flowkit import FlowSpec, Parameter, environment, retry, step


class Pods(FlowSpec):
    fate = Parameter("fate", default="well")

    @environment(vars={"WORD": "$(HOME) {{ x }}"})
    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        import os

        self.word = os.environ["WORD"]
        if self.fate != "well":
            raise ValueError(self.fate)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Pods()
"""


def test_steps_run_as_pods(tmp_path: Path, account: BatchService) -> None:
    """Those that tell nothing: for the others the provider runs a command in a container beside, which this cluster has
    not."""
    service = account
    machine = AirflowMachine(PYTHONS[-1], tmp_path / "airflow")
    root = f"s3://{BUCKET}/airflow"
    flow = tmp_path / "pods.py"
    flow.write_text(FLOW, encoding="utf-8")
    cluster = KubernetesApi()
    try:
        cluster.set(node_environment=service.environment)
        machine.env.update(service.environment, FLOWKIT_SKIP_INSTALL="true")
        machine.env["KUBECONFIG"] = str(cluster.kubeconfig(tmp_path / "kubeconfig"))
        file = deploy(machine, flow, root, executor="kubernetes")
        answers = machine.run([(file, {"fate": "well"}), (file, {"fate": "$(bad)"})])
        well, badly = map(ended, answers)
    finally:
        cluster.close()
    assert (well.state, badly.state) == ("success", "failed")
    tries = [task[3] for task in answers[1]["tasks"] if task[0] == "start"]
    assert tries == [2], "not tried again without use"
    left = artifacts(root, f"Pods/{well.run}", service.environment)
    assert left["state"] == "succeeded"
    assert left["tasks"]["end/0"]["word"] == repr("$(HOME) {{ x }}")
    assert artifacts(root, f"Pods/{badly.run}", service.environment)["state"] == "failed"
