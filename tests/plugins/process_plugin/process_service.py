"""A service that runs containers as local processes: one runner for each job, which outlives whoever submitted it.

Standard library only. A job is a folder with ``job.json``; its runner appends every change of a row to ``states``, a
line of JSON each. What goes wrong on demand is told by ``knobs.json`` of the service's folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAUSE = 0.02


def knobs(service: Path) -> dict[str, Any]:
    """What is to go wrong."""
    try:
        return json.loads((service / "knobs.json").read_text())
    except FileNotFoundError:
        return {}


def spend(service: Path, what: str, times: int) -> bool:
    """Whether something is to happen once more; it does so many times in all, whichever process asks."""
    for number in range(times):
        try:
            os.close(os.open(service / f"spent-{what}-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            continue
        return True
    return False


class Runner:
    """Runs the rows of one job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.service = folder.parent
        self.job = json.loads((folder / "job.json").read_text())
        self.waiting = list(range(self.job["rows"]))
        self.running: dict[int, list[subprocess.Popen[bytes]]] = {}
        self.evicted: dict[int, float] = {}

    def run(self) -> None:
        """Run them all."""
        for row in self.waiting:
            self.tell(row, "queued")
        begin = time.monotonic()
        while self.waiting or self.running:
            asked = knobs(self.service)
            self.obey()
            image = self.job["image"]
            if image and image in asked.get("no_image", ()):
                while self.waiting:
                    self.tell(self.waiting.pop(0), "failed", "image", f"pull access denied for {image}")
            waited = time.monotonic() - begin >= asked.get("queue_seconds", 0)
            slots = asked.get("slots", 4)
            while self.waiting and waited and len(self.running) < slots and not (self.service / "closed").exists():
                self.start(self.waiting.pop(0), asked)
            for row in list(self.running):
                self.look_at(row)
            time.sleep(PAUSE)

    def start(self, row: int, asked: dict[str, Any]) -> None:
        """Start a row: one process, or the nodes of a gang."""
        nodes = self.job["gang"] or 1
        processes = []
        for node in range(nodes):
            variables = {**os.environ, **self.job["environment"], "FLOWKIT_ROW": str(row)}
            if self.job["gang"]:
                variables["FLOWKIT_NODE"] = str(node)
            with open(self.folder / f"log-{row}", "ab") as log:
                processes.append(
                    subprocess.Popen(
                        self.job["command"],
                        env=variables,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        self.running[row] = processes
        self.tell(row, "running")
        after = asked.get("evict", {}).get(f"{self.job['step']}/{row}")
        if after is not None and spend(self.service, f"evict-{self.job['step']}-{row}", asked.get("evict_times", 1)):
            self.evicted[row] = time.monotonic() + after

    def look_at(self, row: int) -> None:
        """Take note of what has ended; evict what is to be evicted."""
        processes = self.running[row]
        due = self.evicted.get(row)
        if due is not None and time.monotonic() > due and any(each.poll() is None for each in processes):
            self.kill(row)
            del self.running[row]
            self.tell(row, "failed", "evicted", "Host terminated")
            return
        statuses = [each.poll() for each in processes]
        bad = next((status for status in statuses if status), 0)
        if bad:
            self.kill(row)
        if bad or None not in statuses:
            del self.running[row]
            status = bad if bad >= 0 else 128 - bad
            if bad == 0:
                self.tell(row, "succeeded", status=0)
            else:
                self.tell(row, "failed", "exit", "Essential container exited", status)

    def obey(self) -> None:
        """Cancel what is to be cancelled."""
        if (self.folder / "cancel-queued").exists() or (self.folder / "cancel-all").exists():
            while self.waiting:
                self.tell(self.waiting.pop(0), "failed", "cancelled", "cancelled by user")
        if (self.folder / "cancel-all").exists():
            for row in list(self.running):
                for each in self.running[row]:
                    if each.poll() is None:
                        each.terminate()

    def kill(self, row: int) -> None:
        """Kill a row, as a machine does that goes away: with all that it had started."""
        pids = [each.pid for each in self.running[row]]
        for pid in [*pids, *descendants(pids)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for each in self.running[row]:
            each.wait()

    def tell(self, row: int, phase: str, cause: str | None = None, message: str = "", status: Any = None) -> None:
        """Append a state."""
        line = json.dumps([row, phase, time.time(), cause, message, status])
        with open(self.folder / "states", "a", encoding="utf-8") as file:
            file.write(line + "\n")


def descendants(pids: list[int]) -> list[int]:
    """The processes that some have started (Linux only)."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = list(pids)
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[len(pids) :]


if __name__ == "__main__":
    Runner(Path(sys.argv[1])).run()
