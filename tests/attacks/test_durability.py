"""What ``FLOWKIT_DURABLE=1`` promises (docs/durability.md), checked against what really goes to the system.

The system calls of a whole run are watched (by strace where it is there, else by functions put in their place) and a
power cut is imagined at every one of them: whichever manifest could be found after it, all that it names is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attack_tools import manifest, root_of

from flowkit.datastore.sealed import unseal

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    import os
    if os.environ.get("WATCH"):
        import watched  # noqa: F401
    from flowkit import FlowSpec, retry, step

    class Durable(FlowSpec):
        @step
        def start(self):
            print("a line, so that the log is there before the result")
            self.large = os.urandom(2_000_000)
            self.middle = os.urandom(20_000)
            self.items = [1, 2, 3]
            self.next(self.work, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @step
        def work(self):
            print("a line")
            self.mine = [self.input] * 5_000 + [os.urandom(10_000)]
            self.same = list(range(5_000))
            self.next(self.join)

        @step
        def join(self, inputs):
            self.all = [each.mine for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Durable()
"""

WATCHED = '''
"""Notes what is synced, linked, renamed and made, in the order in which that ends."""
import json
import os

descriptor = os.open(os.environ["WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(*event):
    os.write(descriptor, (json.dumps(event) + "\\n").encode())

def wrap(name, described):
    original = getattr(os, name)
    def wrapped(*args, **kwargs):
        event = described(*args)
        result = original(*args, **kwargs)
        note(*event)
        return result
    setattr(os, name, wrapped)

wrap("fsync", lambda fd: ("fsync", os.readlink(f"/proc/self/fd/{fd}")))
wrap("link", lambda source, target: ("link", source, target))
wrap("replace", lambda source, target: ("rename", source, target))
wrap("mkdir", lambda path, *_: ("mkdir", os.path.abspath(path)))
'''

CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(fsync|link|linkat|rename|renameat2?|mkdir|mkdirat)\((.*)\) += 0")


def traced(path: Path, cwd: Path) -> list[list[str]]:
    """Read what strace wrote."""
    events: list[list[str]] = []
    unfinished: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        process = line.split()[0]
        if line.endswith("<unfinished ...>"):
            unfinished[process] = line.removesuffix("<unfinished ...>").rstrip()
            continue
        if " resumed>" in line:  # it counts when it is over
            line = unfinished.pop(process) + line.partition(" resumed>")[2]
        found = CALL.match(line)
        if found is None:
            continue
        name, arguments = found.groups()
        if name == "fsync":
            events.append(["fsync", arguments.partition("<")[2].rpartition(">")[0]])
            continue
        paths = [str(cwd / each) for each in re.findall(r'"([^"]*)"', arguments)]
        events.append([name.removesuffix("2").removesuffix("at"), *paths])
    return events


def watch(workspace: Workspace, how: str, *command: str) -> list[list[str]]:
    """Run the flow durably and return what it did, in order."""
    env = {**workspace.env, "FLOWKIT_DURABLE": "1"}
    if how == "strace":
        trace = workspace.path.parent / "trace"
        names = "fsync,link,linkat,rename,renameat,renameat2,mkdir,mkdirat"
        # --seccomp-bpf would be faster but is not everywhere; one thread a process, so no call is torn in two lines
        line = ["strace", "-f", "-y", "-qq", "-e", f"trace={names}", "-e", "signal=none", "-o", str(trace)]
        result = workspace.command(*line, sys.executable, "flow.py", *command, env=env, timeout=120)
        assert result.returncode == 0, str(result)
        return traced(trace, workspace.path)
    journal = workspace.path.parent / "events"
    workspace.write("watched.py", WATCHED)
    result = workspace.run(*command, env={**env, "WATCH": str(journal)})
    assert result.returncode == 0, str(result)
    return [json.loads(line) for line in journal.read_text().splitlines()]


class Disk:
    """What a power cut would leave, at worst: content and names that were synced, and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.synced: set[str] = set()  # files whose content is there
        self.content: dict[str, str] = {}  # name to the file that it was linked from
        self.names: dict[str, bool] = {}  # name to whether its folder was synced since

    def take(self, event: list[str]) -> None:
        kind, *paths = event
        if kind == "fsync":
            self.synced.add(paths[0])
            for name in self.names:
                if os.path.dirname(name) == paths[0]:
                    self.names[name] = True
        elif kind == "mkdir":
            self.names[paths[0]] = False
        else:
            source, target = paths
            self.names[target] = False
            self.content[target] = source

    def survives(self, path: str) -> bool:
        """Whether a file is there, whole, with all folders that lead to it."""
        if self.content.get(path, path) not in self.synced:
            return False
        while path != os.path.dirname(self.root):
            if not self.names.get(path, True):
                return False
            path = os.path.dirname(path)
        return True


def hows() -> list[str]:
    return ["functions", "strace"] if shutil.which("strace") else ["functions"]


@pytest.mark.parametrize("how", hows())
def test_a_manifest_that_is_found_after_a_power_cut_has_all_that_it_names(workspace: Workspace, how: str) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("what is open is read from /proc")
    if how == "strace" and subprocess.run(["strace", "-qq", "true"], capture_output=True).returncode != 0:
        pytest.skip("strace may not trace here")
    workspace.write("flow.py", FLOW)
    events = watch(workspace, how, "run")
    root = root_of(workspace)
    disk = Disk(root)
    manifests = {str(path): unseal(path.read_bytes(), "it") for path in root.rglob("manifest.json")}
    assert len(manifests) == 7
    linked = []
    for event in events:
        if event[0] == "link" and event[2] in manifests:
            # From here on the manifest may be found; what it names has to be there already.
            linked.append(event[2])
            for key in blobs_of(manifests[event[2]]):
                blob = f"{root}/blobs/{key[:2]}/{key}"
                assert disk.survives(blob), f"{event[2]} names {blob}, which a power cut could still take"
            assert event[1] in disk.synced, f"{event[2]} was linked before its content was there"
        disk.take(event)
    assert sorted(linked) == sorted(manifests)
    # And once the run has ended, nothing of it can be lost.
    for path in [*manifests, *map(str, root.rglob("run.json")), *map(str, root.rglob("end.json"))]:
        assert disk.survives(path), f"{path} could be lost after the run has ended"


def blobs_of(body: dict[str, Any]) -> set[str]:
    """Return the keys of all blobs that a manifest names: artifacts that are not inside it, and packs."""
    stored = [each for each in body["artifacts"].values() if each.get("inline") is None]
    packs = json.dumps([body["transition"], body.get("frames")])
    return {each["key"] for each in stored} | set(re.findall(r"[0-9a-f]{64}", packs))


def test_a_blob_of_a_run_that_was_not_durable_is_made_so(workspace: Workspace) -> None:
    """A dedupe hit relies on content that nobody had synced."""
    workspace.write("flow.py", FLOW.replace("os.urandom(2_000_000)", "bytes(2_000_000)"))
    workspace.run("run", check=True)
    key = manifest(root_of(workspace), "Durable", "1", "start").artifacts["large"].key
    blob = f"{root_of(workspace)}/blobs/{key[:2]}/{key}"
    events = watch(workspace, "functions", "run")
    synced = [event[1] for event in events if event[0] == "fsync"]
    assert blob in synced
    folder = os.path.dirname(blob)
    while folder != str(root_of(workspace)):
        assert folder in synced
        folder = os.path.dirname(folder)


def test_nothing_is_synced_unless_asked_for(workspace: Workspace) -> None:
    workspace.write("flow.py", FLOW)
    workspace.write("watched.py", WATCHED)
    journal = workspace.path.parent / "events"
    workspace.run("run", env={"WATCH": str(journal)}, check=True)
    assert not [line for line in journal.read_text().splitlines() if json.loads(line)[0] == "fsync"]
