"""Measuring what an attempt uses: a few microseconds, as it is done in every task.

The peak of memory is the kernel's own account of the process. A forked task begins with the pages that it shares
with the fork server (Python and the imports of the flow), not with that process's past peak. A process that was
started by exec inherits in this account the peak of the one that it replaced; there the peak is read from where
it counts anew, which costs more than the account, and nothing beside the start of an interpreter.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

from flowkit.model.usage import to_json

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in the unit of ``ru_maxrss``."""


class Meter:
    """Measures from its making on.

    Parameters
    ----------
    forked : bool
        Whether this process is a fork that has not replaced its program.
    """

    __slots__ = ("_before", "_forked")

    def __init__(self, *, forked: bool) -> None:
        self._forked = forked
        own = resource.getrusage(resource.RUSAGE_SELF)
        self._before = own.ru_utime + own.ru_stime

    def read(self) -> dict[str, Any]:
        """Return what was used so far, as it is recorded (see `flowkit.model.usage.Usage`)."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime - self._before
        peak = own.ru_maxrss * _UNIT if self._forked else _peak_since_exec() or own.ru_maxrss * _UNIT
        return to_json(cpu, max(peak, children.ru_maxrss * _UNIT), _gpu_memory())


def of_ended(account: Any) -> tuple[float, int]:
    """Return processor seconds and peak bytes from what ``wait4`` tells of a process that has ended."""
    return account.ru_utime + account.ru_stime, account.ru_maxrss * _UNIT


def _peak_since_exec() -> int | None:
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux
    return None


def _gpu_memory() -> int | None:
    """The peak of GPU memory over all devices, from the libraries that have used one; nothing is imported for it."""
    found = []
    for name, ask in _LIBRARIES:
        library = sys.modules.get(name)
        if library is not None:
            try:
                peak = ask(library)
            except Exception:
                # A border: the library may raise whatever a broken device makes of it, which fails no task.
                continue
            if peak:
                found.append(int(peak))
    return sum(found) if found else None


def _of_torch(torch: Any) -> int:
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count()))


def _of_jax(bridge: Any) -> int:
    if not bridge.backends_are_initialized():
        return 0
    peak = 0
    for device in sys.modules["jax"].devices():
        if device.platform != "cpu":
            peak += (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    return peak


def _of_cupy(cupy: Any) -> int:
    pool = cupy.get_default_memory_pool()
    return int(pool.total_bytes())  # what it holds: the pool gives nothing back by itself


_LIBRARIES = (("torch", _of_torch), ("jax._src.xla_bridge", _of_jax), ("cupy", _of_cupy))
