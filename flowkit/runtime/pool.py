"""What the machine has, what tasks need of it, and what is free: plain counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flowkit.model.launch import Launch


class Needs(NamedTuple):
    """What one task of a step takes while it runs.

    Parameters
    ----------
    gpu : int
        Graphics processors.
    memory : int
        Bytes.
    cpu : int
        Thousandths of a processor.
    """

    gpu: int = 0
    memory: int = 0
    cpu: int = 0


NOTHING = Needs()


class Pool:
    """What the machine has, and what of it is taken.

    Parameters
    ----------
    total : Needs
        What there is; 0 processors and 0 bytes where these are not counted.
    devices : sequence of str
        The names of the graphics processors.
    needs : mapping of str to Needs
        What each step needs, never more than there is.
    """

    def __init__(self, total: Needs, devices: Sequence[str], needs: Mapping[str, Needs]) -> None:
        self.total = total
        self.needs = needs
        self._uses = dict.fromkeys(devices, 0)
        self._memory = total.memory
        self._cpu = total.cpu

    def room(self, needs: Needs) -> int | None:
        """Return how many tasks with such needs fit now; None for any number."""
        rooms = []
        if needs.gpu:
            rooms.append(sum(not uses for uses in self._uses.values()) // needs.gpu)
        if needs.memory:
            rooms.append(self._memory // needs.memory)
        if needs.cpu:
            rooms.append(self._cpu // needs.cpu)
        return min(rooms, default=None)

    def fits(self, launch: Launch) -> bool:
        """Whether a launch fits now, as a gang with all of its nodes."""
        room = self.room(self.needs.get(launch.step, NOTHING))
        return room is None or room >= max(1, launch.gang)

    def take(self, step: str) -> tuple[str, ...]:
        """Take what one task of a step needs; return the names of its graphics processors.

        Where it does not fit (a gang that is larger than the machine), the least used ones are shared.
        """
        needs = self.needs.get(step, NOTHING)
        self._memory -= needs.memory
        self._cpu -= needs.cpu
        if not needs.gpu:
            return ()
        devices = sorted(self._uses, key=self._uses.__getitem__)[: needs.gpu]
        taken = tuple(name for name in self._uses if name in devices)
        for name in taken:
            self._uses[name] += 1
        return taken

    def give_back(self, step: str, devices: Sequence[str]) -> None:
        """Give back what `take` took."""
        needs = self.needs.get(step, NOTHING)
        self._memory += needs.memory
        self._cpu += needs.cpu
        for name in devices:
            self._uses[name] -= 1
