"""What this machine has: processors, memory, graphics processors.

Limits of the container or of the command that started this process count: what it may use, not what is built in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from flowkit.exceptions import UsageError

_MOST_GPUS = 1024
_CGROUPS = "/sys/fs/cgroup"
_PATIENCE = 10.0
"""Seconds that ``nvidia-smi`` is given: where the driver is broken, it hangs."""


def processors() -> float:
    """Return how many processors this process may use at once; a container's quota may be a fraction."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        count = float(os.cpu_count() or 1)
    return min([count, *_processor_limits()])


def memory() -> int | None:
    """Return how many bytes of memory this process may use at most; None where nobody knows."""
    known = [*_memory_limits()]
    try:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError):
        pass
    return min(known, default=None)


def graphics(configured: str | None, visible: str | None) -> list[str]:
    """Return the graphics processors that tasks may use, by the names that ``CUDA_VISIBLE_DEVICES`` takes.

    Parameters
    ----------
    configured : str or None
        The setting ``local_gpus``: how many there are, or their names separated by commas (``1,`` is the one that is
        called 1).
    visible : str or None
        ``CUDA_VISIBLE_DEVICES`` as this process was given it.

    Raises
    ------
    UsageError
        If the setting is neither.
    """
    given = None if visible is None else _usable(visible)
    if configured is None:
        return _found() if given is None else given
    text = configured.strip()
    if text.isascii() and text.isdigit():
        count = min(int(text), _MOST_GPUS)
        return given[:count] if given is not None and len(given) >= count else [str(i) for i in range(count)]
    names = [name.strip() for name in text.removesuffix(",").split(",")]
    if not all(names) or len(set(names)) < len(names) or any(not _is_name(name) for name in names):
        raise UsageError(
            f"FLOWKIT_LOCAL_GPUS must be a number of GPUs or a list of their ids, not {configured!r}",
            "for example FLOWKIT_LOCAL_GPUS=2 for two of them, or FLOWKIT_LOCAL_GPUS=0,3 for these two",
        )
    return names


def _is_name(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace("/", "").isalnum() and not text.startswith("-")


def _usable(visible: str) -> list[str]:
    """Read ``CUDA_VISIBLE_DEVICES`` as CUDA does: the first name that is none hides all that follow."""
    names: list[str] = []
    for name in visible.split(","):
        name = name.strip()
        if not (name.isdigit() or name.startswith(("GPU-", "MIG-"))) or name in names:
            break
        names.append(name)
    return names


def _found() -> list[str]:
    """Ask the driver; without one, ``nvidia-smi``, which also knows where the driver is another system's (WSL)."""
    try:
        count = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        count = _listed_by_tool()
    return [str(i) for i in range(count)]


def _listed_by_tool() -> int:
    import shutil

    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    import subprocess

    try:
        done = subprocess.run([tool, "-L"], capture_output=True, timeout=_PATIENCE, check=False, encoding="utf-8")
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


# -- control groups -----------------------------------------------------------------------------------------------


def _processor_limits() -> Iterable[float]:
    for folder in _folders("cpu"):
        quota, _, period = (_text(f"{folder}/cpu.max") or "").partition(" ")
        if not quota:
            quota, period = _text(f"{folder}/cpu.cfs_quota_us") or "", _text(f"{folder}/cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


def _memory_limits() -> Iterable[int]:
    for folder in _folders("memory"):
        limit = _text(f"{folder}/memory.max") or _text(f"{folder}/memory.limit_in_bytes") or ""
        if limit.isdigit() and int(limit) > 0:
            yield int(limit)


def _folders(controller: str) -> Iterable[str]:
    """Yield the folders of this process's control group for a controller, up to the root of its hierarchy."""
    for line in (_text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = f"{_CGROUPS}/{controller}" if controllers else _CGROUPS
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # of another container: only what is mounted here counts
            parts = []
        for depth in range(len(parts), -1, -1):
            yield "/".join((root, *parts[:depth]))


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None
