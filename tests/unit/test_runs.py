"""Run ids: each number once, whoever claims it, however many at once, whatever became of the hint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowkit.datastore import runs
from flowkit.datastore.layout import last_run_file, run_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import write_failure
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.sealed import Damaged
from flowkit.exceptions import InvalidPathspec
from flowkit.model.manifest import Failure

CLAIM = """
import sys
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.runs import claim_run
storage = LocalStorage(sys.argv[1], durable=False)
sys.stdin.readline()
print(*[claim_run(storage, "F", {"user": sys.argv[2]}) for _ in range(5)])
"""


def test_numbers_go_up() -> None:
    storage = MemoryStorage()
    assert [runs.claim_run(storage, "F", {}) for _ in range(3)] == ["1", "2", "3"]
    assert runs.claim_run(storage, "G", {}) == "1"
    assert runs.read_run(storage, "F", "2") == {"flow": "F", "run": "2"}
    assert runs.read_run(storage, "F", "9") is None


def test_claimed_at_once_by_many_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    children = [
        subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(20)
    ]
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    numbers = [int(word) for child in children for word in child.communicate(timeout=60)[0].split()]
    assert all(child.returncode == 0 for child in children)
    assert sorted(numbers) == list(range(1, 101))
    storage = LocalStorage(str(tmp_path), durable=False)
    assert runs.list_runs(storage, "F") == [str(i) for i in range(1, 101)]


@pytest.mark.parametrize("hint", [b"3", b"999999", b"junk", b"-1", b"", b"\xff", b"1" * 30])
def test_a_wrong_hint_changes_nothing(hint: bytes) -> None:
    storage = MemoryStorage()
    for _ in range(30):
        runs.claim_run(storage, "F", {})
    storage.replace(last_run_file("F"), [hint])
    assert runs.claim_run(storage, "F", {}) == "31"


def test_a_number_is_never_used_again() -> None:
    storage = MemoryStorage()
    for _ in range(3):
        runs.claim_run(storage, "F", {})
    runs.bury_run(storage, "F", "3")
    storage.delete(last_run_file("F"))
    assert runs.read_run(storage, "F", "3") is None
    assert runs.claim_run(storage, "F", {}) == "4"


def test_named_runs_and_the_order_of_a_listing() -> None:
    storage = MemoryStorage()
    assert runs.claim_named_run(storage, "F", "argo-x1", {"user": "me"})
    assert not runs.claim_named_run(storage, "F", "argo-x1", {"user": "you"})
    for _ in range(11):
        runs.claim_run(storage, "F", {})
    assert runs.list_runs(storage, "F") == [*map(str, range(1, 12)), "argo-x1"]
    record = runs.read_run(storage, "F", "argo-x1")
    assert record is not None
    assert record["user"] == "me"


def test_listing_sees_only_what_flowkit_named() -> None:
    storage = MemoryStorage()
    run = runs.claim_run(storage, "F", {})
    for task in ("10", "2", "2.1", "0-2", "0-10", "x"):
        storage.create(f"flows/F/{run}/train/{task}/manifest.json", [b""])
    runs.write_end(storage, "F", run, {"state": "succeeded"})
    storage.create(f"flows/F/{run}/.launches/x", [b""])
    storage.create("flows/.DS_Store", [b""])
    storage.create("flows/a b/1/run.json", [b""])
    assert runs.list_flows(storage) == ["F"]
    assert runs.list_runs(storage, "F") == ["1"]
    assert runs.list_steps(storage, "F", run) == ["train"]
    assert runs.list_tasks(storage, "F", run, "train") == ["0-2", "0-10", "2", "2.1", "10"]
    assert runs.list_tasks(storage, "F", run, "nothing") == []


def test_end_and_tags() -> None:
    storage = MemoryStorage()
    assert runs.read_end(storage, "F", "1") is None
    assert runs.read_tags(storage, "F", "1") is None
    runs.write_end(storage, "F", "1", {"state": "failed"})
    runs.write_end(storage, "F", "1", {"state": "succeeded"})
    runs.write_tags(storage, "F", "1", {"b", "a ü"})
    assert runs.read_end(storage, "F", "1") == {"state": "succeeded"}
    assert runs.read_tags(storage, "F", "1") == ["a ü", "b"]
    storage.replace("flows/F/1/end.json", [b"{"])
    storage.replace("flows/F/1/tags.json", [b"{"])
    assert runs.read_end(storage, "F", "1") is None
    assert runs.read_tags(storage, "F", "1") is None


def test_a_damaged_record_is_named() -> None:
    storage = MemoryStorage()
    storage.replace(run_file("F", "1"), [b"half"])
    with pytest.raises(Damaged, match=r"run\.json"):
        runs.read_run(storage, "F", "1")
    assert runs.claim_run(storage, "F", {}) == "2"


@pytest.mark.parametrize("name", ["..", "a/b", "", ".last", "a\0", "a\n", "a" * 300, "é"])
def test_no_name_leaves_its_folder(name: str) -> None:
    storage = MemoryStorage()
    with pytest.raises(InvalidPathspec):
        runs.claim_run(storage, name, {})
    with pytest.raises(InvalidPathspec):
        runs.read_run(storage, "F", name)
    with pytest.raises(InvalidPathspec):
        write_failure(storage, "F", "1", "s", name, Failure("error", "x"))
