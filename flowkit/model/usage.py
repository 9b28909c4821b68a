"""What an attempt of a task has used of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Usage(NamedTuple):
    """What an attempt used while it ran.

    Parameters
    ----------
    seconds : float or None
        From its beginning to its end; None where the one or the other is not known.
    cpu_seconds : float
        Processor time of its process and of those that it started and waited for.
    memory : int
        Bytes of memory that its process held at its peak, or the largest of those that it waited for. What it shares
        with other tasks counts (Python, and what the flow's file imports).
    gpu_memory : int or None
        Bytes of GPU memory at the peak, as PyTorch, JAX or CuPy tell; None where none of them used a GPU.
    """

    seconds: float | None
    cpu_seconds: float
    memory: int
    gpu_memory: int | None = None

    @classmethod
    def read(cls, data: Any, started: float | None, ended: float | None) -> Usage | None:
        """Return what `to_json` wrote; None where nothing (or nothing that can be read) was recorded.

        Parameters
        ----------
        data : object
            What a manifest or a failure has under ``usage``.
        started, ended : float or None
            The attempt's times.
        """
        if not isinstance(data, Mapping):
            return None
        cpu, memory, gpu_memory = data.get("cpu"), data.get("memory"), data.get("gpu_memory")
        if not isinstance(cpu, int | float) or not isinstance(memory, int):
            return None
        seconds = max(0.0, ended - started) if started and ended else None
        return cls(seconds, float(cpu), memory, gpu_memory if isinstance(gpu_memory, int) else None)


def to_json(cpu_seconds: float, memory: int, gpu_memory: int | None = None) -> dict[str, Any]:
    """Return what is recorded; the times are recorded with the attempt itself."""
    recorded: dict[str, Any] = {"cpu": round(cpu_seconds, 4), "memory": memory}
    if gpu_memory is not None:
        recorded["gpu_memory"] = gpu_memory
    return recorded
