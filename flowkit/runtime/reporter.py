"""The reporter port: what a run tells whoever watches it. The runtime itself never prints."""

from __future__ import annotations

from typing import Protocol

from flowkit.model.coordinates import TaskRef
from flowkit.model.manifest import Failure


class Reporter(Protocol):
    """Told what happens in a run, in order."""

    def run_started(self, flow: str, run: str, origin: str | None) -> None:
        """The run has its id and is about to start."""

    def task_started(self, task: TaskRef, attempt: int, fallback: bool, pid: int | None) -> None:
        """An attempt has a process."""

    def line(self, task: TaskRef, stream: str, text: str, when: float) -> None:
        """A task wrote a line to its ``out`` or ``err``."""

    def task_succeeded(self, task: TaskRef, width: int | None, caught: str | None) -> None:
        """A task has a committed result.

        `width` is the number of children that its foreach starts; `caught` is the class of the exception that
        ``@catch`` kept, for a step that failed and without which the flow goes on.
        """

    def task_failed(self, task: TaskRef, failure: Failure, retry_in: float | None, again: str | None) -> None:
        """An attempt failed.

        `again` is ``retry`` or ``fallback`` where there is another attempt, in `retry_in` seconds; else None.
        """

    def cloned(self, step: str, count: int) -> None:
        """So many tasks of a step were taken over from the origin run."""

    def notice(self, text: str) -> None:
        """Something that the user should know, in one line."""


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
