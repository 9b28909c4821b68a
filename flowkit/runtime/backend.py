"""The backend port: a service that runs containers (AWS Batch, Kubernetes, a Docker daemon).

What is the same for every service (launch lists, intents, infrastructure retries, logs, reattaching) is
`flowkit.runtime.remote.RemoteExecutor`; a backend only submits jobs, tells their states in bulk and ends them. All its
methods are called from one thread of the executor, never at the same time. A job has rows: row i carries out
launch i of its launch list; a gang is a job whose rows start together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import FlowkitError, Problem

RowPhase = Literal["queued", "starting", "running", "succeeded", "failed"]

INFRASTRUCTURE = frozenset(("image", "capacity", "evicted", "deleted", "lost", "unreachable"))
"""Causes of failures that are not the user's code: they have a retry budget of their own, except ``image``, which no
retry mends."""

Cause = Literal[
    "exit", "oom", "timeout", "image", "capacity", "evicted", "deleted", "lost", "cancelled", "unreachable"
]  # fmt: skip
"""Why a row failed: ``exit`` (the program ended by itself, see its status), ``oom`` (killed for its memory),
``timeout`` (killed at the job's own limit), ``image`` (the container image cannot be had), ``capacity`` (no machine
that fits), ``evicted`` (the machine was reclaimed or drained), ``deleted`` (somebody deleted the job), ``cancelled``
(by us), ``lost`` (the service does not know it any more), ``unreachable`` (the service has not answered for long)."""


class BackendError(FlowkitError):
    """A service refused a call, or did not answer.

    Attributes
    ----------
    transient : bool
        Whether the same call may work later: throttled, no answer, a fault of the service.
    answered : bool
        Whether the service certainly did not carry the call out; after a lost answer it may have.
    """

    exit_code = 5

    def __init__(
        self, headline: str, hint: str | None = None, *, transient: bool = False, answered: bool = True
    ) -> None:
        super().__init__(headline, hint)
        self.transient = transient
        self.answered = answered


class RemoteRun(NamedTuple):
    """The run that a backend's jobs belong to.

    Parameters
    ----------
    flow, run, user : str
        Names and ids; jobs are named and labelled with them.
    root : str
        The datastore's root as a container reaches it.
    """

    flow: str
    run: str
    user: str
    root: str


class Submission(NamedTuple):
    """A job to submit.

    Parameters
    ----------
    name : str
        Deterministic and unique: a job that was submitted and whose answer was lost is found again by it. Lower-case
        letters, digits and hyphens, at most 63.
    step : str
        Whose tasks its rows are.
    rows : int
        How many; 1 is a plain job, not an array.
    gang : int
        Nodes of a gang (then `rows` is 1, and node i is told by the service's own index variable); 0 for none.
    request : ExecutorRequest
        Resources (with the backend's own attributes, merged by maximum) and environment variables.
    command : sequence of str
        The container's command, the same for each row: `flowkit.runtime.bootstrap` finds the row by the index
        variables of the services.
    environment : mapping of str to str
        Environment variables of the container; no secret is among them.
    timeout : float or None
        Seconds after which the service itself ends a row, as the last resort.
    """

    name: str
    step: str
    rows: int
    gang: int
    request: ExecutorRequest
    command: Sequence[str]
    environment: Mapping[str, str]
    timeout: float | None


class RowState(NamedTuple):
    """How one row of a job stands.

    Parameters
    ----------
    job : str
        The id that `Backend.submit` returned.
    row : int
        Its index in the launch list.
    phase : str
        See `RowPhase`.
    when : float
        Seconds since the epoch when it came to this phase, as far as the service tells.
    cause : str or None
        For ``failed``: see `Cause`.
    message : str
        What the service says about it, one line; shown to the user, of a row that waits too (why it does).
    exit_status : int or None
        Of the container's program.
    """

    job: str
    row: int
    phase: RowPhase
    when: float
    cause: Cause | None = None
    message: str = ""
    exit_status: int | None = None


class FoundJob(NamedTuple):
    """A job of a service, for ``list`` and ``kill``."""

    job: str
    name: str
    flow: str
    run: str
    step: str
    user: str
    phase: RowPhase
    rows: int
    created: float


class Backend(ABC):
    """A service that runs containers.

    Made by ``Backend(run)``; `run` is None for what needs no run (``preflight``, ``jobs``). The constructor makes no
    call.
    """

    name: str
    """``batch``, ``kubernetes``, ``docker``: as in the registry and in `ExecutorRequest.name`."""
    max_rows: int
    """The most rows of one job; 1 where the service has no arrays."""
    poll_interval: float
    """Seconds between two looks at the jobs of a run, at the least."""
    on_this_machine = False
    """Whether its containers run here: they reach folders of this machine, and ``--max-workers`` bounds them."""

    @abstractmethod
    def __init__(self, run: RemoteRun | None) -> None: ...

    @abstractmethod
    def preflight(self, requests: Mapping[str, ExecutorRequest]) -> list[Problem]:
        """Ask the service whether the steps can run there (credentials, queue, namespace); return all that is wrong."""

    @abstractmethod
    def submit(self, submission: Submission) -> str:
        """Submit a job and return its id.

        Raises
        ------
        BackendError
            `answered` is False where the job may have been made all the same: `find` tells.
        """

    @abstractmethod
    def find(self, name: str) -> str | None:
        """Return the id of a job by its deterministic name; None where there is none."""

    @abstractmethod
    def states(self, jobs: Mapping[str, int]) -> Iterable[RowState]:
        """Tell how the rows of jobs stand, in as few calls as the service allows.

        Only rows whose state has changed since the last call need to be told; after a restart all are.

        Parameters
        ----------
        jobs : mapping of str to int
            Ids of jobs with rows that have not ended, and the number of their rows (of a gang: 1).
        """

    @abstractmethod
    def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
        """End jobs: only rows that wait for a machine, or with `running` every one. Ended ones are no error."""

    @abstractmethod
    def last_lines(self, job: str, row: int) -> list[str]:
        """Return the last lines of the container's own log, where the service keeps one; an empty list otherwise."""

    @abstractmethod
    def jobs(self, *, flow: str | None = None, run: str | None = None, user: str | None = None) -> list[FoundJob]:
        """List jobs of flowkit that have not ended."""

    def wait_descriptor(self) -> int | None:
        """Return a descriptor that turns readable when `states` has news; None for polling."""
        return None

    def close(self) -> None:
        """Release connections; jobs go on."""
        return None
