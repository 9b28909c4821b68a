"""Whether the owner of a run is alive: what its process tells first, heartbeats where that tells nothing.

A record names its runtime's process by host, boot and start time, so that a process id that was given out again
is not taken for it. On another machine, in another container, or without ``/proc``, only the heartbeat is left.

A run of a scheduler has no owner at all: between two of its tasks nobody gives a sign of life, for as long as a queue
is long. Such a run is running until something says that it has ended (its end step, a task that failed for good, the
end command that the scheduler runs); silence alone never makes it lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from flowkit.metadata.records import FINAL, RunRecord, TaskRecord

HEARTBEAT_INTERVAL = 10.0
"""Seconds between two heartbeats of a run's owner."""
HEARTBEAT_LIMIT = 30.0
"""Seconds after the last heartbeat from which on a run counts as lost, where nothing more certain is known."""


class Owner(NamedTuple):
    """A process, named so that no other one is ever taken for it."""

    host: str
    boot_id: str | None
    pid: int
    process_start: int | None


def this_process() -> Owner:
    """Return the current process, as a run's record names its owner."""
    pid = os.getpid()
    return Owner(host_name(), boot_id(), pid, process_start(pid))


def host_name() -> str:
    """Return this machine's name."""
    return os.uname().nodename


def boot_id() -> str | None:
    """Return what is the same for two processes only if they can see each other's ids; None where nobody can tell.

    On Linux the kernel's boot id and the namespace of process ids: containers on one machine share the former.
    """
    return _boot_id(os.getpid())


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where it is gone, a zombie or cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def owner_is_gone(facts: Mapping[str, Any]) -> bool | None:
    """Whether the process that `Owner`'s fields name has ended; None where it cannot be seen from here."""
    known: dict[str, Any] = {
        name: facts.get(name) for name in Owner._fields
    }  # whatever it is: it is looked at with care
    record = RunRecord("", "", "", "running", 0.0, **known)
    lives = _process_lives(record)
    return None if lives is None else not lives


def is_alive(record: RunRecord, now: float, limit: float = HEARTBEAT_LIMIT) -> bool:
    """Whether somebody still works on a run that has not ended.

    Parameters
    ----------
    record : RunRecord
        The run as it is stored.
    now : float
        Seconds since the epoch.
    limit : float, default 30
        Seconds without a heartbeat after which nobody does.
    """
    return record.state not in FINAL and why_lost(record, now, limit) is None


def why_lost(record: RunRecord, now: float, limit: float = HEARTBEAT_LIMIT) -> str | None:
    """Return in one line why nobody works on a run any more; None while somebody does, or where it has ended."""
    if record.state in FINAL:
        return None
    if record.state == "lost":
        return record.reason or "its runtime gave it up"
    if record.unattended:
        return None
    known = _process_lives(record)
    if known is True:
        return None
    if known is False:
        return f"its runtime (process {record.pid} on {record.host}) is gone"
    silence = now - (record.created if record.heartbeat is None else record.heartbeat)
    if silence <= limit:
        return None
    where = f" on {record.host}" if record.host else ""
    return f"its runtime{where} has not been heard of for {silence:.0f} s"


def observed_run(record: RunRecord, now: float, limit: float = HEARTBEAT_LIMIT) -> RunRecord:
    """Return a run as it is to be shown: ``lost`` with a reason, where it is stored as open and nobody works on it."""
    reason = why_lost(record, now, limit)
    return record if reason is None else record._replace(state="lost", reason=reason)


def observed_task(record: TaskRecord, lost: str | None) -> TaskRecord:
    """Return a task as it is to be shown, given why its run is lost (None where it is not)."""
    if lost is None or record.state != "running":
        return record
    return record._replace(state="lost", reason=lost)


@cache
def _boot_id(_pid: int) -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except (OSError, ValueError):
        return None


def _process_lives(record: RunRecord) -> bool | None:
    """Tell from the process itself; None where it cannot be seen from here."""
    pid = record.pid
    if not isinstance(pid, int) or not 0 < pid < 2**31 or record.host != host_name() or record.boot_id != boot_id():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there and belongs to somebody else
    if record.boot_id is None or record.process_start is None:
        return None  # there is a process of that id: the same one, or a later one
    start = process_start(pid)
    if start is None:
        return False if os.path.exists(f"/proc/{pid}/stat") or not _exists(pid) else None
    return start == record.process_start


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
