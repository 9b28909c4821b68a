"""What is stored, damaged in every way: an error that names the thing and the way out, never a wrong value."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attack_tools import SOAK, artifact, blob_path, manifest, no_defect, root_of

from flowkit.datastore.sealed import seal, unseal
from flowkit.exceptions import ArtifactError

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    import os
    from flowkit import FlowSpec, step

    class Damaged(FlowSpec):
        @step
        def start(self):
            self.small = list(range(1_000)) * 4
            self.large = bytes(range(256)) * 8_000
            self.next(self.middle)

        @step
        def middle(self):
            if os.path.exists("fail"):
                raise ValueError("asked for")
            self.sums = (sum(self.small), sum(self.large))
            self.next(self.end)

        @step
        def end(self):
            print("the sums are", self.sums)

    if __name__ == "__main__":
        Damaged()
"""
SUMS = (sum(range(1_000)) * 4, sum(range(256)) * 8_000)


def swap(path: Path, other: Path) -> None:
    """Put the content of another blob in the place of one."""
    replace(path, other.read_bytes())


def replace(path: Path, content: bytes) -> None:
    """Write a file anew (it may be mapped by somebody, who keeps the old one)."""
    path.unlink()
    path.write_bytes(content)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replace(path, bytes(content))


BLOB_DAMAGE = {
    "swapped": swap,
    "truncated": lambda path, _: replace(path, path.read_bytes()[:-100]),
    "emptied": lambda path, _: replace(path, b""),
    "deleted": lambda path, _: path.unlink(),
    "flipped": lambda path, _: flip(path),
    "longer": lambda path, _: replace(path, path.read_bytes() + b"x"),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


KINDS = [
    (damage, name)
    for damage in sorted(BLOB_DAMAGE)
    for name in ("small", "large")
    if SOAK or name == ("large" if damage in ("truncated", "emptied", "flipped") else "small")
]


@pytest.mark.parametrize(("damage", "name"), KINDS)
def test_a_damaged_blob(workspace: Workspace, damage: str, name: str) -> None:
    workspace.write("flow.py", FLOW)
    fail = workspace.write("fail", "")
    workspace.run("run", check=1)
    fail.unlink()
    root = root_of(workspace)
    artifacts = manifest(root, "Damaged", "1", "start").artifacts
    path = blob_path(root, artifacts[name].key)
    other = blob_path(root, artifacts["large" if name == "small" else "small"].key)
    BLOB_DAMAGE[damage](path, other)
    # The task that reads it fails, and says what is wrong with what.
    resumed = workspace.run("resume", check=1)
    no_defect(resumed)
    assert f"'{name}'" in resumed.output or f"artifact {name}" in resumed.output
    assert artifacts[name].key in resumed.output
    assert "resume" in resumed.output
    # So do the client and the command line.
    dumped = workspace.run("dump", "1/start/0", "--include", name, "--max-value-size", 10_000_000)
    no_defect(dumped)
    assert dumped.returncode == 5, str(dumped)
    assert name in dumped.stderr
    with pytest.raises(ArtifactError, match=name):
        _ = workspace.client().Task("Damaged/1/start/0")[name].data
    # The way out that the message tells is one.
    if damage == "a folder":
        resumed = workspace.run("resume", "start", check=1)
        assert f"remove {path}" in resumed.output
        path.rmdir()
    for file in re.findall(r"delete (\S+) and resume", resumed.output):
        Path(file).unlink(missing_ok=True)  # told twice
    mended = workspace.run("resume", "start", check=True)
    assert f"the sums are {SUMS}" in mended.stdout


MANIFEST_DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "half-written": lambda content: content[:1000] + bytes(max(0, len(content) - 1000)),
    "emptied": lambda content: b"",
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if len(content) > 9 else b"7",
    "not JSON": lambda content: b"this is no manifest",
}


@pytest.mark.parametrize("damage", sorted(MANIFEST_DAMAGE) if SOAK else ["emptied", "flipped", "truncated"])
def test_a_damaged_manifest_never_happened(workspace: Workspace, damage: str) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    root = root_of(workspace)
    path = root / "flows/Damaged/1/middle/0/manifest.json"
    path.write_bytes(MANIFEST_DAMAGE[damage](path.read_bytes()))
    read = workspace.run("dump", "1/middle/0")
    no_defect(read)
    assert read.returncode in (4, 5), str(read)
    assert "Damaged/1/middle/0" in read.stderr or str(path) in read.stderr, str(read)
    listed = workspace.run("status", "1")
    no_defect(listed)
    resumed = workspace.run("resume", check=True)
    assert "the sums are" in resumed.stdout
    assert artifact(root, "Damaged", "2", "middle", "sums") == SUMS
    assert manifest(root, "Damaged", "2", "start").run == "1"
    assert manifest(root, "Damaged", "2", "middle").run == "2"


def test_a_manifest_in_the_place_of_another(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    root = root_of(workspace)
    folder = root / "flows/Damaged/1"
    replace(folder / "middle/0/manifest.json", (folder / "start/0/manifest.json").read_bytes())
    read = workspace.run("dump", "1/middle/0")
    no_defect(read)
    assert read.returncode == 5, str(read)
    workspace.run("resume", check=True)
    assert artifact(root, "Damaged", "2", "middle", "sums") == SUMS


@pytest.mark.parametrize("part", ["middle/0/manifest.json", "_parameters/0/manifest.json"])
def test_a_manifest_of_a_newer_version(workspace: Workspace, part: str) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    path = root_of(workspace) / "flows/Damaged/1" / part
    body = unseal(path.read_bytes(), "it")
    replace(path, seal({**body, "format": body["format"] + 1, "artifacts": "of another kind"}))
    for command in (["resume"], ["dump", "1/middle"] if "middle" in part else ["resume", "start"]):
        result = workspace.run(*command)
        no_defect(result)
        assert result.returncode == 5, str(result)
        assert str(path) in result.stderr
        assert "pip install -U flowkit" in result.stderr


@pytest.mark.parametrize("damage", sorted(MANIFEST_DAMAGE) if SOAK else ["half-written"])
@pytest.mark.parametrize(
    "part", ["run.json", "_parameters/0/manifest.json", "end.json", "start/clones.json", "../.last", "1/failed.json"]
)
def test_damage_to_what_a_run_rests_upon(workspace: Workspace, part: str, damage: str) -> None:
    workspace.write("flow.py", FLOW)
    fail = workspace.write("fail", "")
    workspace.run("run", check=1)
    workspace.run("resume", check=1)
    fail.unlink()
    root = root_of(workspace)
    folder = root / "flows/Damaged/2"
    path = folder / (part if part != "1/failed.json" else "middle/0/0/failed.json")
    replace(path, MANIFEST_DAMAGE[damage](path.read_bytes()))
    for command in (["status", "2"], ["logs", "2/middle"], ["dump", "2/start"]):
        no_defect(workspace.run(*command))
    resumed = workspace.run("resume")
    no_defect(resumed)
    if resumed.returncode == 0:
        last = resumed.stdout.split("run-id ")[1].split(")")[0].split(",")[0]
        assert artifact(root, "Damaged", last, "middle", "sums") == SUMS
    else:
        assert resumed.returncode == 5, str(resumed)
        assert str(path) in resumed.stderr, str(resumed)
    rebuilt = workspace.flowkit("metadata", "rebuild")
    no_defect(rebuilt)
    again = workspace.run("run", check=True)
    assert "the sums are" in again.stdout


LOCKER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
db.execute("ROLLBACK")
"""


def test_a_locked_database_holds_no_run_up(workspace: Workspace, soak: bool) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    database = root_of(workspace) / "metadata.db"
    seconds = 60 if soak else 3
    command = [sys.executable, "-c", LOCKER, str(database), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdout
        assert locker.stdout.readline() == "locked\n"
        while locker.poll() is None:
            result = workspace.run("run", timeout=120)
            no_defect(result)
            assert result.returncode in (0, 5), str(result)
            if result.returncode == 5:
                assert "metadata.db" in result.stderr
                assert "locked" in result.stderr or "busy" in result.stderr, str(result)
            else:
                assert f"the sums are {SUMS}" in result.stdout
    assert workspace.run("status", "1", check=True)
    assert "the sums are" in workspace.run("resume", "middle", check=True).stdout
    for run in json.loads(workspace.run("status", "--json", check=True).stdout):
        assert run["state"] == "succeeded"


DATABASE_DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "no database": lambda path: path.write_bytes(b"this is no database, and never was one" * 100),
    "rubbish inside": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes([255]) * 40_000),
}


@pytest.mark.parametrize("damage", sorted(DATABASE_DAMAGE))
def test_a_damaged_database(workspace: Workspace, damage: str) -> None:
    workspace.write("flow.py", FLOW)
    fail = workspace.write("fail", "")
    workspace.run("run", check=1)
    fail.unlink()
    database = root_of(workspace) / "metadata.db"
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    DATABASE_DAMAGE[damage](database)
    for command in (["status"], ["resume"], ["status", "1"]):
        result = workspace.run(*command)
        no_defect(result)
        if damage in ("deleted", "emptied"):  # it heals itself
            assert result.returncode == 0, str(result)
        else:
            assert result.returncode == 5, str(result)
            assert str(database) in result.stderr
            assert "flowkit metadata rebuild" in result.stderr
    if damage not in ("deleted", "emptied"):
        workspace.flowkit("metadata", "rebuild", check=True)
        workspace.run("resume", check=True)
    states = [run["state"] for run in json.loads(workspace.run("status", "--json", check=True).stdout)]
    assert states == ["succeeded", "failed"]
    assert artifact(root_of(workspace), "Damaged", "2", "middle", "sums") == SUMS


def test_a_database_of_a_newer_version(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    workspace.run("run", check=True)
    database = root_of(workspace) / "metadata.db"
    with sqlite3.connect(database) as db:
        db.execute("PRAGMA user_version = 999999")
    db.close()
    for command in (["status"], ["run"], ["resume"], ["dump", "1/middle"]):
        result = workspace.run(*command)
        no_defect(result)
        assert result.returncode == 5, str(result)
        assert str(database) in result.stderr
        assert "pip install -U flowkit" in result.stderr, str(result)
