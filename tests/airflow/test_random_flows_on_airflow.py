"""Random flows of the whole language leave on a real Airflow what ``python flow.py run`` leaves."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow_runs import PYTHONS, AirflowMachine, deploy, ended

sys.path.append(str(Path(__file__).parents[1] / "deploying"))

from random_deployments import chosen
from random_runs import begin, compare

MORE = int(os.environ.get("RANDOM_FLOWS", "2"))
LINES = [
    pytest.param(python, id=Path(python).parent.parent.name, marks=pytest.mark.xdist_group(str(python)))
    for python in PYTHONS
]


@pytest.mark.parametrize("python", LINES)
def test_on_airflow(workspace: Any, tmp_path: Path, python: str) -> None:
    machine = AirflowMachine(python, tmp_path / "airflow")
    root = workspace.path / "deployed"
    programs = chosen("airflow", MORE)
    files, here = [], []
    for program in programs:
        here.append(begin(workspace, program))
        files.append(deploy(machine, workspace.path / "flow.py", root))
    answers = machine.run([(file, program.parameters) for file, program in zip(files, programs, strict=True)], 1200)
    workspace.env["FLOWKIT_DATASTORE"] = str(root)
    for program, seen, answer in zip(programs, here, answers, strict=True):
        run = ended(answer)
        assert run.state == "success", f"{answer['said'][-4000:]}\n{program.source}"
        compare(workspace, program, seen, f"{program.flow}/{run.run}")
