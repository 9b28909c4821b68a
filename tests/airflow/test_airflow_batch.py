"""A DAG whose tasks are jobs of AWS Batch: on a real Airflow, with a service that runs jobs as processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from airflow_runs import PYTHONS, AirflowMachine, artifacts, deploy, ended
from stories import JOBS

sys.path.append(str(Path(__file__).parents[1] / "plugins" / "batch"))

from batch_account import BUCKET, QUEUE
from batch_service import BatchService

pytestmark = pytest.mark.xdist_group("batch")


def test_steps_run_as_jobs_and_tell_what_follows_by_their_manifests(tmp_path: Path, account: BatchService) -> None:
    service = account
    machine = AirflowMachine(PYTHONS[-1], tmp_path / "airflow")
    root = f"s3://{BUCKET}/airflow"
    flow = tmp_path / "jobs.py"
    flow.write_text(JOBS.lstrip("\n"), encoding="utf-8")
    machine.env.update(service.environment, FLOWKIT_BATCH_QUEUE=QUEUE, FLOWKIT_SKIP_INSTALL="true")
    file = deploy(machine, flow, root, executor="batch")
    well, badly = map(ended, machine.run([(file, {}), (file, {"fate": "bad"})]))
    assert (well.state, badly.state) == ("success", "failed")
    left = artifacts(root, f"Jobs/{well.run}", service.environment)
    assert left["state"] == "succeeded"
    assert left["tasks"]["end/0"]["found"] == "['0 even', '1 odd']"
    assert artifacts(root, f"Jobs/{badly.run}", service.environment)["state"] == "failed"
    batch = service.client("batch")
    failed = batch.list_jobs(jobQueue=QUEUE, jobStatus="FAILED")["jobSummaryList"]
    assert [job["jobName"] for job in failed] == ["fk-Jobs-start"] * 2, "not tried again without use"
    jobs = batch.list_jobs(jobQueue=QUEUE, jobStatus="SUCCEEDED")["jobSummaryList"]
    assert {"fk-Jobs-turn", "fk-Jobs-end-of-run"} <= {job["jobName"] for job in jobs}
