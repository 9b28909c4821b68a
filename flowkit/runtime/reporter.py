"""The reporter port: what a run tells whoever watches it. The runtime itself never prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from flowkit.model.coordinates import TaskRef
from flowkit.model.manifest import Failure, Manifest
from flowkit.runtime.decisions import Counts


class Reporter(Protocol):
    """Told what happens in a run, in order."""

    def run_started(self, flow: str, run: str, origin: str | None) -> None:
        """The run has its id and is about to start."""

    def task_started(self, task: TaskRef, attempt: int, fallback: bool, pid: int | None, when: float) -> None:
        """An attempt has a process."""

    def line(self, task: TaskRef, stream: str, text: str, when: float) -> None:
        """A task wrote a line to its ``out`` or ``err``."""

    def task_succeeded(self, task: TaskRef, manifest: Manifest) -> None:
        """A task has a committed result: what it left, how long it took, where it goes on."""

    def task_failed(self, task: TaskRef, failure: Failure, retry_in: float | None, again: str | None) -> None:
        """An attempt failed.

        `again` is ``retry`` or ``fallback`` where there is another attempt, in `retry_in` seconds; else None.
        """

    def cloned(self, step: str, count: int) -> None:
        """So many tasks of a step were taken over from the origin run."""

    def notice(self, text: str) -> None:
        """Something that the user should know, in one line."""

    def turn(self, counts: Callable[[], Mapping[str, Counts]]) -> float | None:
        """A turn of the loop is over; return after how many seconds to be called again at the latest, if at all.

        `counts` returns the tasks of each step as the scheduler knows them; it costs something, so who shows them
        calls it no more often than it draws.
        """


class RunFailure:
    """What a failed run leaves to be told at its end.

    Attributes
    ----------
    failures : list of (TaskRef, Failure)
        The tasks that failed for good, in the order in which they did.
    awaited : list of str
        What did not start because of it, one line a step.
    """

    def __init__(self) -> None:
        self.failures: list[tuple[TaskRef, Failure]] = []
        self.awaited: list[str] = []
