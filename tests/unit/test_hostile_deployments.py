"""What is read of deployments was written by anybody: what cannot be one is told, and stops nothing else."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import click
import pytest

from flowkit.cli.seconds import Seconds
from flowkit.cli.table import moment
from flowkit.datastore.layout import deployment_file, schedule_file, scheduler_lease
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.sealed import seal
from flowkit.deployer.local.firings import CLOCK_BACK, Firing, Memory, Plan, begin, decide, scheduled_run
from flowkit.deployer.local.loop import Scheduler
from flowkit.deployer.local.memories import read_memory
from flowkit.deployer.local.starts import ready
from flowkit.deployer.records import read_records
from flowkit.deployer.target import DeploymentRecord
from flowkit.deployer.targets import target_class
from flowkit.exceptions import NotFound

GOOD = DeploymentRecord("local", "good", "Good", created=1.0).to_json()
WRONG: dict[str, dict[str, Any]] = {
    "another": {"name": "good"},
    "outside": {"name": "../../../outside"},
    "elsewhere": {"target": "argo-workflows"},
    "never": {"created": float("nan")},
    "far": {"created": 1e300},
    "policy": {"concurrency": ["allow"]},
    "event": {"events": [[3, [], None, None, None]]},
    "flow": {"events": [["e", [], 3, None, None]]},
    "plan": {"parameters": [[1, "a", "str", None, False, "", []]]},
    "colours": {"name": "\x1b[2Jcolours"},
}


def test_records_of_others_are_told_and_stop_nothing(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    storage.replace(deployment_file("local", "good"), [seal(GOOD)])
    for name, fields in WRONG.items():
        storage.replace(deployment_file("local", name), [seal({**GOOD, "name": name, **fields})])
    storage.replace(deployment_file("local", "torn"), [seal(GOOD)[:-9]])
    folder = tmp_path / os.path.dirname(deployment_file("local", "good"))
    (folder / ".. .json").write_bytes(seal(GOOD))
    damaged: list[str] = []
    assert [record.name for record in read_records(storage, "local", damaged.append)] == ["good"]
    assert sorted(damaged) == sorted([*WRONG, "torn"])

    said: list[str] = []
    scheduler = Scheduler(storage, said.append)
    scheduler.once()
    assert sorted(said) == [
        f"{name}: the record of this deployment is damaged (deploy the flow again)" for name in sorted(damaged)
    ]


def _memory(**fields: Any) -> dict[str, Any]:
    return {**Memory(looked=5.0, source="datastore", read=1).to_json(), **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {"looked": float("nan")},
        {"looked": float("inf")},
        {"active": {"../../outside": 1.0}},
        {"active": {"local-other-20261121T020000Z": 1.0}},
        {"decided": [{**Firing("/etc/cron.d/x", "trigger", 1.0)._asdict()}]},
        {"decided": [{**Firing("local-good-20261121T020000Z", "trigger", 1.0)._asdict(), "not_before": float("nan")}]},
        {"waiting": {"e": ["e", "1", "yesterday", "event", {}]}},
        {"waiting": {"e": ["e", "1", 1.0, "event", ["no", "fields"]]}},
        {"read": 1e999},
    ],
)
def test_a_memory_of_others_counts_as_none(fields: dict[str, Any]) -> None:
    storage = _storage_with(json.loads(json.dumps(_memory())))
    assert read_memory(storage, "good")[0] is not None
    storage = _storage_with(json.loads(json.dumps(_memory(**fields))))
    assert read_memory(storage, "good")[0] is None


def _storage_with(memory: dict[str, Any]) -> Any:
    from flowkit.datastore.memory import MemoryStorage

    storage = MemoryStorage()
    storage.replace(schedule_file("good"), [seal(memory)])
    return storage


def test_a_clock_that_was_years_ahead_does_not_stop_a_schedule() -> None:
    plan = Plan("good", "Good", 0.0, "0 * * * *")
    ahead = decide(plan, begin(plan, None, "datastore", lambda: 0, 3e8), 3e8).memory
    now = 86_400.0 + 60.0
    memory = begin(plan, ahead, "datastore", lambda: 0, now)
    assert memory.looked == now
    due = decide(plan, memory, now + 3_600.0).memory
    assert [each.run for each in due.decided][-1] == scheduled_run("good", 86_400.0 + 3_600.0)
    # That of another machine may be a little ahead: what it looked at is not looked at again.
    assert begin(plan, memory, "datastore", lambda: 0, now - CLOCK_BACK / 2).looked == now
    # Nor does a pause last until the clock is there again.
    waits = Memory(decided=(Firing("local-good-20361121T020000Z", "schedule", 1.0, tries=1, not_before=3e8),))
    assert [each.tries for each in ready(waits, now)[1]] == [2]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("argo", "did you mean 'argo-workflows'?"),
        ("kubernets", "did you mean 'kubernetes'?"),
        ("STEP", "did you mean 'step-functions'?"),
        ("", "known: "),
        ("../x\x1b[2J", "known: "),
    ],
)
def test_a_scheduler_that_there_is_not(name: str, hint: str) -> None:
    with pytest.raises(NotFound, match="no scheduler called") as caught:
        target_class(name)
    assert str(caught.value.hint).startswith(hint)
    assert "known: airflow, argo-workflows, " in str(caught.value.hint)
    assert "\x1b" not in caught.value.headline


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_no_number_of_seconds(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Seconds(min=0).convert(text, None, None)
    assert Seconds(min=0).convert("0.5", None, None) == 0.5


def test_a_time_that_no_calendar_has_is_a_dash() -> None:
    assert {moment(each) for each in (None, float("nan"), 1e300, -1e300)} == {"-"}


def test_a_root_that_cannot_be_written_is_not_another_scheduler(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    (tmp_path / scheduler_lease()).mkdir(parents=True)  # also root, whom no permission stops, cannot write there
    said: list[str] = []
    ready: list[bool] = []
    stop = threading.Event()

    def told(line: str) -> None:
        said.append(line)
        stop.set()

    Scheduler(storage, told, poll=0.01).run(stop, ready.append)
    assert ready == []
    assert len(said) == 1
    assert str(tmp_path) in said[0]
