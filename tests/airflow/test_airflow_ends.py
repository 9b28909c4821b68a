"""What Airflow reads of a deployment as a whole, and that hooks and people hear how its runs end."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from airflow_runs import PYTHONS, AirflowMachine, deploy, ended

sys.path.append(str(Path(__file__).parents[1] / "deploying"))

from heard_ends import NOTIFY, opened, written

TIMED = """
    from flowkit import FlowSpec, schedule, step


    @schedule(cron="30 6 ? * MON-FRI *", timezone="Europe/Oslo")
    class Timed(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Timed()
"""
LINES = [
    pytest.param(python, id=Path(python).parent.parent.name, marks=pytest.mark.xdist_group(str(python)))
    for python in PYTHONS
]


@pytest.mark.parametrize("python", LINES)
def test_schedule_time_zone_policy_and_priority_are_as_airflow_reads_them(
    workspace: Any, tmp_path: Path, python: str
) -> None:
    machine = AirflowMachine(python, tmp_path / "airflow")
    before = datetime.now(timezone.utc)
    file = deploy(
        machine, workspace.write("timed.py", TIMED), tmp_path / "root", "--concurrency", "forbid", "--priority", "5"
    )
    machine.migrate()
    machine.airflow("dags", "reserialize")
    said = machine.airflow("dags", "details", "Timed", "-o", "json")
    (told,) = json.loads(next(line for line in said.splitlines() if line.startswith("[{")))
    assert told["max_active_runs"] == "1"
    lines = machine.airflow("dags", "next-execution", "Timed", "-n", "4").splitlines()
    due = [datetime.fromisoformat(line) for line in lines if re.match(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00$", line)]
    assert len(due) == 4
    assert due[0] > before, "what was due before the flow was deployed is not carried out"
    for when in due:
        there = when.astimezone(ZoneInfo("Europe/Oslo"))
        assert (there.hour, there.minute, there.weekday() < 5) == (6, 30, True)
    read = (
        "import sys\n"
        "try:\n    from airflow.dag_processing.dagbag import DagBag\n"
        "except ImportError:\n    from airflow.models.dagbag import DagBag\n"
        "(dag,) = DagBag(sys.argv[1]).dags.values()\n"
        "print('weights', sorted({(each.priority_weight, str(each.weight_rule)) for each in dag.tasks}))\n"
    )
    said = machine._call([python, "-c", read, str(file)], 120)
    weights = next(line for line in said.splitlines() if line.startswith("weights"))
    assert re.fullmatch(r"weights \[\(5, .*absolute.*\)\]", weights, re.IGNORECASE), weights


@pytest.mark.parametrize("python", LINES)
def test_hooks_are_called_and_people_are_told(workspace: Any, tmp_path: Path, python: str) -> None:
    machine = AirflowMachine(python, tmp_path / "airflow")
    with opened(tmp_path / "hooks") as heard:
        machine.env["FLOWKIT_NOTIFY_URL"] = heard.url
        flow = written(workspace, heard).path / "flow.py"
        file = deploy(machine, flow, tmp_path / "root", *NOTIFY)
        answers = machine.run([(file, {}), (file, {"fail": True})])
        ends = [ended(answer) for answer in answers]
        assert [end.state for end in ends] == ["success", "failed"]
        heard.check(*(f"Ends/{end.run}" for end in ends))
