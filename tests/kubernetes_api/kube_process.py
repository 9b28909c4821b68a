"""Containers of a loopback cluster: local processes with the environment, the limits and the ends of a pod's."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from kube_cron import expanded, field_of
from kube_strict import quantity


class Container:
    """One process, in a folder and a session of its own.

    Parameters
    ----------
    command : list of str
        What to run; ``python`` is the Python of the tests.
    variables : mapping of str to str
        Its whole environment, but for what every image has.
    memory : float or None
        Bytes above which it is killed, with all its children.
    deadline : float or None
        Seconds after which it is ended.
    """

    def __init__(
        self, command: list[str], variables: Mapping[str, str], memory: float | None, deadline: float | None
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="kube-pod-")
        self.log = os.path.join(self.folder, "log")
        self.started = time.time()
        self.memory = memory
        self.deadline = time.monotonic() + deadline if deadline else None
        self.killed: str | None = None
        self._kill_at: float | None = None
        self._looked = 0.0
        work = os.path.join(self.folder, "work")
        os.mkdir(work)
        environment = {
            "PATH": os.pathsep.join((os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin")),
            "HOME": work,
            "TMPDIR": work,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",  # else every pod's linear algebra takes all processors
            **variables,
        }
        with open(self.log, "wb") as log:
            try:
                self.process = subprocess.Popen(
                    command,
                    cwd=work,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise

    def end(self, why: str | None, grace: float) -> None:
        """Ask it to end, and kill it after a grace; `why` is told as the reason of its end."""
        if self._kill_at is None:
            self.killed = self.killed or why
            self._kill_at = time.monotonic() + grace
            try:
                os.kill(self.process.pid, signal.SIGTERM)  # the container's first process gets it, and no other
            except ProcessLookupError:
                pass

    def kill(self) -> None:
        """Kill it at once."""
        self._signal(signal.SIGKILL)

    def look(self) -> int | None:
        """Do what is due, and return the exit status once it is over: 128 and the signal that killed it."""
        status = self.process.poll()
        if status is not None:
            self._signal(signal.SIGKILL)  # a container takes its children along
            return status if status >= 0 else 128 - status
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._signal(signal.SIGKILL)
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.end("DeadlineExceeded", 2.0)
        if self.memory is not None and now - self._looked > 0.05:
            self._looked = now
            if self._used() > self.memory:
                self.killed = "OOMKilled"
                self._signal(signal.SIGKILL)
        return None

    def lines(self, count: int | None) -> bytes:
        """Return the end of its log."""
        with open(self.log, "rb") as file:
            data = file.read()
        if count is None:
            return data
        return b"".join(data.splitlines(keepends=True)[-count:])

    def close(self) -> None:
        """Kill what is left, and remove its folder."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        for group in {self.process.pid, *self._descendants()}:
            try:
                os.killpg(group, number) if os.getpgid(group) == group else os.kill(group, number)
            except (ProcessLookupError, PermissionError):
                continue

    def _descendants(self) -> list[int]:
        """Every process of its session, and of the sessions that its children have begun."""
        found, parents = [], {self.process.pid}
        table = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat", "rb") as file:
                        rest = file.read().rpartition(b") ")[2].split()
                    table.append((int(entry), int(rest[1]), int(rest[3])))
                except (OSError, IndexError, ValueError):
                    continue
        grown = True
        while grown:
            grown = False
            for pid, parent, session in table:
                if pid not in parents and (parent in parents or session == self.process.pid):
                    parents.add(pid)
                    found.append(pid)
                    grown = True
        return found

    def _used(self) -> float:
        total = 0
        for pid in (self.process.pid, *self._descendants()):
            try:
                with open(f"/proc/{pid}/statm", "rb") as file:
                    total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, IndexError, ValueError):
                continue
        return total


def environment_of(
    container: dict[str, Any], secrets: Mapping[str, dict[str, Any]], pod: dict[str, Any]
) -> dict[str, str]:
    """Return the environment that a container asks for; raises KeyError with the name of a secret that is missing."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        data = secrets[source["secretRef"]["name"]].get("data") or {}
        variables.update({name: base64.b64decode(value).decode() for name, value in data.items()})
    for item in container.get("env") or ():
        if "valueFrom" in item:
            variables[item["name"]] = field_of(pod, item["valueFrom"]["fieldRef"]["fieldPath"])
        else:
            variables[item["name"]] = expanded(item.get("value", ""), variables)
    return variables


def memory_limit(container: dict[str, Any]) -> float | None:
    """Return the bytes that a container may use."""
    amount = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    return None if amount is None else quantity(amount)
