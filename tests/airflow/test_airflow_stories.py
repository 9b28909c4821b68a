"""Flows on a real Airflow, of both lines, leave what they leave on a laptop; and its runs are as true."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from airflow_runs import PYTHONS, AirflowMachine, Ended, artifacts, deploy, ended
from stories import BROKEN, CROSSED, GANGS, RICH

SOURCES = {"rich": RICH, "gangs": GANGS, "broken": BROKEN, "crossed": CROSSED}
ORDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rich": ("rich", {}),
    "rich, otherwise": ("rich", {"sizes": [], "the-word": "\"'{{ x }}\n$(HOME) ü", "deep": True}),
    "gangs": ("gangs", {}),
    "broken": ("broken", {}),
    "crossed bd": ("crossed", {"way": "bd"}),
    "crossed bf": ("crossed", {"way": "bf"}),
    "crossed c": ("crossed", {"way": "c"}),
}


class Told(NamedTuple):
    """What came of all stories on one Airflow."""

    machine: AirflowMachine
    root: Path
    answers: Mapping[str, dict[str, Any]]

    def ended(self, story: str) -> Ended:
        return ended(self.answers[story])

    def left(self, story: str) -> dict[str, Any]:
        flow = ORDERS[story][0].capitalize()
        return artifacts(self.root, f"{flow}/{self.ended(story).run}")


def line(python: str) -> str:
    return Path(python).parent.parent.name


@pytest.fixture(scope="session")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flows")
    for name, source in SOURCES.items():
        (folder / f"{name}.py").write_text(source.lstrip("\n"), encoding="utf-8")
    return folder


LINES = [pytest.param(python, id=line(python), marks=pytest.mark.xdist_group(line(python))) for python in PYTHONS]


@pytest.fixture(scope="session", params=LINES)
def told(request: pytest.FixtureRequest, flows: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("airflow")
    machine = AirflowMachine(request.param, folder)
    machine.env.update(STORY_HOOKS=str(folder / "hooks"), STORY_TRIES=str(folder / "tries"))
    root = folder / "store"
    files = {name: deploy(machine, flows / f"{name}.py", root) for name in SOURCES}
    narrow = ("--name", "narrow", "--max-map-length", "2")
    orders = [(files[flow], given) for flow, given in ORDERS.values()]
    orders.append((deploy(machine, flows / "broken.py", root, *narrow), {"which": 9}))
    return Told(machine, root, dict(zip([*ORDERS, "narrow"], machine.run(orders), strict=True)))


@pytest.fixture(scope="session")
def laptop(flows: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What runs on a laptop leave, made when it is asked for."""
    folder = tmp_path_factory.mktemp("laptop")
    env = {name: value for name, value in os.environ.items() if not name.startswith("FLOWKIT_")}
    env.update(STORY_HOOKS=str(folder / "hooks"), STORY_TRIES=str(folder / "tries"))
    made: dict[str, dict[str, Any]] = {}

    def left(story: str) -> dict[str, Any]:
        if story not in made:
            flow, given = ORDERS[story]
            words = [word for name, value in given.items() for word in (f"--{name}", _word(value))]
            command = [
                sys.executable,
                f"{flow}.py",
                "--quiet",
                "--datastore-root",
                str(folder / "store"),
                "run",
                *words,
            ]
            done = subprocess.run(
                [*command, "--run-id-file", str(folder / "id")],
                cwd=flows, env=env, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode in (0, 1), done.stderr
            made[story] = artifacts(folder / "store", f"{flow.capitalize()}/{(folder / 'id').read_text().strip()}")
        return made[story]

    return left


def _word(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("story", [name for name in ORDERS if name != "broken"])
def test_a_flow_leaves_on_airflow_what_it_leaves_on_a_laptop(told: Told, laptop: Any, story: str) -> None:
    assert told.ended(story).state == "success"
    here, there = laptop(story), told.left(story)
    assert there["state"] == here["state"] == "succeeded"
    assert there["tasks"].keys() == here["tasks"].keys()
    for task, values in here["tasks"].items():
        assert there["tasks"][task] == values, task


def test_a_failed_task_fails_the_run_for_airflow_and_for_flowkit(told: Told) -> None:
    run = told.ended("broken")
    assert run.state == "failed"
    assert sorted(run.tasks["work"]) == ["failed", "success", "success"]
    assert run.tasks["join"] == run.tasks["end"] == ["upstream_failed"]
    assert run.tasks["flowkit-end"] == ["failed"]
    left = told.left("broken")
    assert left["state"] == "failed"
    assert "join/0" not in left["tasks"]
    hooks = (told.machine.folder / "hooks").read_text().splitlines()
    assert f"Broken/{run.run} False" in hooks
    tries = (told.machine.folder / "tries").read_text().split()
    assert tries.count("1") == 2, "a failure that no further attempt mends is not tried again"


def test_hooks_hear_of_success_once(told: Told) -> None:
    hooks = (told.machine.folder / "hooks").read_text().splitlines()
    assert hooks.count(f"Rich/{told.ended('rich').run} True") == 1


def test_a_foreach_that_is_too_wide_says_which_setting_to_raise(told: Told) -> None:
    run = told.ended("narrow")
    assert run.state == "failed"
    assert run.tasks["work-tasks"] == ["failed"]
    assert "AIRFLOW__CORE__MAX_MAP_LENGTH" in told.answers["narrow"]["said"]
    assert artifacts(told.root, f"Broken/{run.run}")["state"] == "failed"


def test_what_is_not_taken_is_skipped(told: Told) -> None:
    tasks = told.ended("crossed bd").tasks
    assert tasks["f"] == tasks["c"] == tasks["child"] == tasks["child_join"] == ["skipped"]
    tasks = told.ended("rich, otherwise").tasks
    assert tasks["outer"] == tasks["inner"] == ["skipped"]
    assert tasks["outer_join"] == tasks["node"] == ["success"]


def test_files_for_pods_and_jobs_are_read_by_airflow(told: Told, flows: Path, tmp_path: Path) -> None:
    made = []
    env = {**told.machine.env, "FLOWKIT_BATCH_QUEUE": "queue", "FLOWKIT_DATASTORE": "s3://bucket/prefix"}
    for executor in ("kubernetes", "batch"):
        for flow in ("broken", "crossed"):
            command = [sys.executable, f"{flow}.py", "airflow", "create", "--only-json", "--executor", executor]
            command += ["--name", f"{flow}-{executor}"]
            done = subprocess.run(command, cwd=flows, env=env, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, done.stderr
            made.append(tmp_path / f"{flow}-{executor}.py")
            made[-1].write_text(done.stdout, encoding="utf-8")
    for answer in told.machine.run([(path, None) for path in made]):
        assert "flowkit-end" in answer.get("tasks", ()), answer
