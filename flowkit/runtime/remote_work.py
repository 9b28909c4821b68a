"""What is kept of the jobs of one run on one service: what they are made of, and how they stand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from flowkit.decorators.contract import ExecutorRequest
from flowkit.model.launch import Launch
from flowkit.runtime.backend import RemoteRun, RowPhase
from flowkit.runtime.pacing import Backoff


class Step(NamedTuple):
    """What a step asks of the service.

    Parameters
    ----------
    request : ExecutorRequest
        Resources and environment variables.
    timeout : float or None
        Seconds that its code may take.
    """

    request: ExecutorRequest
    timeout: float | None = None


class Work(NamedTuple):
    """What the jobs of a run are made of.

    Parameters
    ----------
    run : RemoteRun
        The run.
    steps : mapping of str to Step
        What each step that runs there asks for.
    command : callable
        ``command(step, key)`` returns the command of a container for a launch list.
    environment : mapping of str to str
        Environment variables of every container.
    salt : str
        What tells this run from others of the same id (`flowkit.runtime.submissions.job_name`).
    retries : int
        How often a task is started again after failures that are not its own.
    check : callable
        Called before each submission; raises if the run has another owner by now.
    """

    run: RemoteRun
    steps: Mapping[str, Step]
    command: Callable[[str, str], Sequence[str]]
    environment: Mapping[str, str]
    salt: str
    retries: int = 3
    check: Callable[[], None] = lambda: None


class Row:
    """One launch in a job."""

    __slots__ = ("index", "launch", "phase", "told")

    def __init__(self, launch: Launch, index: int) -> None:
        self.launch = launch
        self.index = index
        self.phase: RowPhase = "queued"
        self.told = False


class Job:
    """One job, from the decision to submit it until its last row is over."""

    __slots__ = (
        "adopted",
        "backoff",
        "created",
        "due",
        "finds",
        "gang",
        "id",
        "key",
        "name",
        "rows",
        "size",
        "stage",
        "step",
        "tries",
    )

    def __init__(self, step: str, tries: int, launches: Sequence[Launch], backoff: Backoff) -> None:
        self.step = step
        self.tries = tries
        self.rows = {index: Row(launch, index) for index, launch in enumerate(launches)}
        """Those that have not ended, by index."""
        self.size = len(launches)
        self.gang = launches[0].gang
        self.name = self.key = ""
        self.id: str | None = None
        self.stage: Literal["list", "intent", "find", "submit", "record"] = "list"
        self.finds = 0
        self.due = 0.0
        self.adopted = False
        self.created = 0.0
        self.backoff = backoff


class Group:
    """Launches of one step that wait to be submitted together."""

    __slots__ = ("due", "launches")

    def __init__(self, due: float) -> None:
        self.due = due
        self.launches: deque[Launch] = deque()
