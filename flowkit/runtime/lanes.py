"""The steps that need the same of this machine, as executors: so it is shared among the tasks that run.

Steps that need the same make up a lane: an executor of its own to the scheduler and the runtime, whose capacity is
the number of its tasks that fit beside what runs now. So a task is launched only when it can start at once: none
waits outside the scheduler, which alone knows when nothing may start any more, and a step that waits for a GPU
keeps no other step waiting. What carries the launches out is one local executor behind all lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowkit.model.launch import Launch
from flowkit.runtime import machine
from flowkit.runtime.executor import Event, Executor
from flowkit.runtime.local import LocalExecutor
from flowkit.runtime.pool import NOTHING, Needs, Pool

_MEGABYTE = 1024 * 1024


class Lane(Executor):
    """The steps with the same needs, as an executor.

    Parameters
    ----------
    local : LocalExecutor
        Carries the launches out, tells their events, and is cancelled and closed by itself.
    pool : Pool
        What all lanes share.
    needs : Needs
        Of each task.
    """

    def __init__(self, local: LocalExecutor, pool: Pool, needs: Needs) -> None:
        self.name = lane_name(needs)
        self.notices: list[str] = []
        self._local = local
        self._pool = pool
        self._needs = needs

    def capacity(self) -> int | None:
        """Return how many tasks fit beside what runs."""
        workers, room = self._local.capacity(), self._pool.room(self._needs)
        return workers if room is None else room if workers is None else min(workers, room)

    def submit(self, launches: Sequence[Launch]) -> None:
        """Start launches."""
        self._local.submit(launches)

    def file_descriptors(self) -> Sequence[int]:
        """Return nothing: the local executor has them."""
        return ()

    def poll(self) -> list[Event]:
        """Return nothing: the local executor tells it all."""
        return []

    def next_deadline(self) -> float | None:
        """Return None: the local executor has the deadlines."""
        return None

    def cancel(self, *, now: bool) -> None:
        """Do nothing: every launch is the local executor's."""

    def close(self) -> None:
        """Do nothing: the local executor is closed once."""


class Lanes(NamedTuple):
    """How the machine is shared in one run.

    Parameters
    ----------
    executor_of : dict of str to str
        Each step's lane by name; ``local`` for steps that need nothing that is counted.
    executors : dict of str to Executor
        Every lane and the local executor, those that need the most first: what is small finds its place beside them.
    """

    executor_of: dict[str, str]
    executors: dict[str, Executor]


def share(
    local: LocalExecutor,
    wanted: Mapping[str, Mapping[str, float]],
    *,
    respect: bool,
    gpus: str | None,
    visible: str | None,
) -> Lanes:
    """Share this machine among the steps of a run.

    Parameters
    ----------
    local : LocalExecutor
        Carries the tasks out; told what they need. Its notices say what the machine does not have.
    wanted : mapping of str to mapping
        By step, for those that run here: what ``@resources`` asks for (``gpu``, ``cpu``, ``memory`` in megabytes).
    respect : bool
        Whether processors and memory bound what runs at once, beside GPUs. A task without ``@resources`` counts as
        one processor then; memory counts where it was asked for.
    gpus, visible
        See `flowkit.runtime.machine.graphics`.
    """
    asking = {step: int(asked.get("gpu") or 0) for step, asked in wanted.items()}
    devices = machine.graphics(gpus, visible) if any(asking.values()) else []
    total = Needs(len(devices))
    if respect:
        total = Needs(len(devices), machine.memory() or 0, max(1, int(machine.processors() * 1000)))
    for step, count in asking.items():
        if count > len(devices):
            local.notices.append(_too_few(step, count, len(devices)))
    needs = {step: _needs(asked, total) for step, asked in wanted.items()}
    lanes = sorted({each for each in needs.values() if each != NOTHING}, reverse=True)
    if not lanes:
        return Lanes(dict.fromkeys(needs, local.name), {local.name: local})
    pool = Pool(total, devices, needs)
    local.share(pool)
    executors: dict[str, Executor] = {lane_name(each): Lane(local, pool, each) for each in lanes}
    return Lanes({step: lane_name(each) for step, each in needs.items()}, {**executors, local.name: local})


def lane_name(needs: Needs) -> str:
    """Return the name under which the scheduler knows a lane: those with the same first word share a machine."""
    words = [f"{name}={value}" for name, value in zip(needs._fields, needs, strict=True) if value]
    return " ".join((LocalExecutor.name, *words))


def _needs(asked: Mapping[str, float], total: Needs) -> Needs:
    """Return what a task counts as: never more than there is, and all there is where that is not enough."""
    gpu = min(int(asked.get("gpu") or 0), total.gpu)
    if not total.cpu:
        return Needs(gpu)
    cpu = max(1, int(asked.get("cpu", 1) * 1000))
    # Memory of an unknown amount bounds nothing.
    memory = int(asked.get("memory", 0) * _MEGABYTE) if total.memory else 0
    if cpu > total.cpu or memory > total.memory:
        return Needs(gpu, total.memory, total.cpu)
    return Needs(gpu, memory, cpu)


def _too_few(step: str, wanted: int, have: int) -> str:
    gpus = f"{wanted} GPU{'s' if wanted > 1 else ''}"
    if have:
        return (
            f"Step '{step}' asks for {gpus}; there are {have} here, which each of its tasks gets (FLOWKIT_LOCAL_GPUS)."
        )
    return f"Step '{step}' asks for {gpus}; there is none here, so it runs without (FLOWKIT_LOCAL_GPUS says otherwise)."
