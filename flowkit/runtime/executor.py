"""The executor port: who carries launches out.

An executor takes groups of launches and reports what happens to them as events. It decides nothing: retries,
order and what follows are the scheduler's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure

if TYPE_CHECKING:
    from flowkit.runtime.submissions import SubmittedJob


class Started(NamedTuple):
    """A launch has a process (or a job) of its own now."""

    launch: Launch
    pid: int | None
    when: float


class Ended(NamedTuple):
    """A launch is over.

    Parameters
    ----------
    launch : Launch
        Which one.
    exit_status : int or None
        What the process returned; negative for the signal that killed it; None where nobody knows.
    when : float
        Seconds since the epoch.
    reason : str or None
        What the executor knows beyond the status: ``timeout`` (killed by it at the deadline), ``cancelled``,
        ``oom``, ``lost`` (server or machine gone), or why a service could not carry it out
        (`flowkit.runtime.backend.Cause`, ``setup``: its container could not
        begin, and ``rejected``: it refused the job).
    usage : tuple of float and int, optional
        Processor seconds and the peak of memory in bytes of its process (of a gang: the sum, and the largest).
    """

    launch: Launch
    exit_status: int | None
    when: float
    reason: str | None = None
    usage: tuple[float, int] | None = None
    message: str = ""
    """What a service says about it, one line."""
    failure: Failure | None = None
    """What the attempt recorded of its end, where the executor has read it already."""
    started: bool = True
    """Whether it may have begun; False where it was taken back before."""


class Output(NamedTuple):
    """A line that a task wrote; `stream` is ``out`` or ``err``."""

    launch: Launch
    stream: str
    text: str
    when: float


Event = Started | Ended | Output


class Executor(ABC):
    """Carries launches out."""

    name: str
    notices: list[str]
    """What the user should be told, in one line each; whoever tells it empties the list."""
    elsewhere = False
    """Whether what it carries out goes on when this process ends."""

    @property
    def in_foreground(self) -> bool:
        """Whether a task has the terminal's keyboard: Ctrl-C is for it then."""
        return False

    @abstractmethod
    def capacity(self) -> int | None:
        """How many more launches it takes now; None for any number. A gang counts as its number of nodes."""

    @abstractmethod
    def submit(self, launches: Sequence[Launch]) -> None:
        """Start launches; what becomes of them is told by `poll`."""

    def adopt(self, submissions: Sequence[SubmittedJob], launches: Sequence[Launch]) -> None:
        """Carry launches out that a runtime which is gone had submitted; by default they are started as new.

        Parameters
        ----------
        submissions : sequence of SubmittedJob
            The jobs that have them.
        launches : sequence of Launch
            As for `submit`.
        """
        self.submit(launches)

    def submitted(self) -> bool:
        """Whether everything that it was given is where it goes on without this process."""
        return self.elsewhere

    @abstractmethod
    def file_descriptors(self) -> Sequence[int]:
        """Descriptors that turn readable when `poll` has something to tell."""

    @abstractmethod
    def poll(self) -> list[Event]:
        """Return what has happened since the last call, without waiting; `Output` of a task precedes its `Ended`."""

    @abstractmethod
    def next_deadline(self) -> float | None:
        """When `poll` must be called at the latest (epoch seconds), e.g. to kill a task at its timeout."""

    @abstractmethod
    def cancel(self, *, now: bool) -> None:
        """End every launch: with a signal and a grace period, or at once."""

    def withdraw(self) -> None:
        """Take back what was submitted and has not started: nothing new starts any more, what runs goes on.

        Launches that are taken back end as ``cancelled``. Nothing to do where each launch starts at once.
        """
        return None

    def detach(self) -> int:
        """Leave what runs alone from now on, also in `close`; return how many tasks go on without this process."""
        return 0

    def settle(self) -> None:
        """Bring what is kept elsewhere (logs) to the datastore: nothing runs any more, and the run's end comes next.

        It may take a while, and gives up after a while; `notices` then says what is missing.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Stop what the executor runs for itself, and leave no process behind."""
