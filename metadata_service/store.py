"""What the service keeps beyond the metadata port: artifacts, attempts, events, tokens, what Metaflow's clients send.

`ServiceStore` is the port between the routes and the databases; `flowkit.metadata_service.sqlite` and
`flowkit.metadata_service.postgresql` implement it over one set of queries.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.metadata.records import ArtifactRecord, OutputRecord, Record, RunRecord, State
from flowkit.metadata.store import MetadataStore


class Event(NamedTuple):
    """One change, as readers of the stream get it.

    Parameters
    ----------
    id : int
        Grows with every event that becomes visible: a reader that has seen `id` has missed nothing before it.
    kind : str
        ``run``, ``task``, ``tags``, ``deleted``.
    flow, run, step, task : str or None
        What changed.
    data : mapping
        The new record as plain values (`RunRecord.to_json`, `TaskRecord.to_json`), or what there is to say.
    projects : tuple of str
        The projects of the run (its system tags ``project:…``), for whoever may see only some.
    created : float
        Seconds since the epoch, by the service's clock.
    """

    id: int
    kind: str
    flow: str
    run: str | None
    step: str | None
    task: str | None
    data: Mapping[str, Any]
    projects: tuple[str, ...]
    created: float


class Attempt(NamedTuple):
    """One attempt of a task, as it was last reported."""

    attempt: int
    state: State
    started: float | None
    finished: float | None
    reason: str | None


class ArtifactPlace(NamedTuple):
    """An artifact and the attempt that has it."""

    flow: str
    run: str
    step: str
    task: str
    attempt: int
    artifact: ArtifactRecord


class Read(NamedTuple):
    """A task that read an artifact: an edge of the lineage graph."""

    flow: str
    run: str
    step: str
    task: str
    name: str
    key: str


class Beat(NamedTuple):
    """A sign of life of a run, or of one of its tasks."""

    flow: str
    run: str
    step: str | None = None
    task: str | None = None


class Field(NamedTuple):
    """One metadata field of a task, as Metaflow's clients write them.

    Parameters
    ----------
    id : int
        Given by the store; 0 in what is written.
    step, task : str
        Of which task.
    name, value, type : str
        What was written.
    user : str
    tags : tuple of str
        ``attempt_id:N`` among them.
    created : float
        Seconds since the epoch, by the service's clock; 0 in what is written.
    """

    id: int
    step: str
    task: str
    name: str
    value: str
    type: str
    user: str
    tags: tuple[str, ...]
    created: float


class ForeignArtifact(NamedTuple):
    """An artifact as Metaflow's clients register it: the index entry and their own words, which are handed back."""

    step: str
    task: str
    attempt: int
    artifact: ArtifactRecord
    words: Mapping[str, Any]


class Token(NamedTuple):
    """A token, without the secret: only its hash is stored.

    Parameters
    ----------
    id : str
        A short public name, the first part of the token.
    name : str
        What its maker called it.
    scopes : tuple of str
        Of ``read``, ``write``, ``admin``; each one includes those before it.
    projects : tuple of str
        The only projects that it may touch; empty for all.
    created, expires, revoked, used : float or None
        Seconds since the epoch.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...]
    created: float
    expires: float | None = None
    revoked: float | None = None
    used: float | None = None


class ServiceStore(MetadataStore):
    """The metadata port, and everything else that the service's routes need.

    All methods may be called from any thread. `heartbeat_limit` tells after how many seconds of silence a run that
    has not ended is lost.
    """

    heartbeat_limit: float

    # -- writing ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def register(self, records: Sequence[Record], key: str | None = None) -> bool:
        """Write records, and an event for each run or task that changed, in one transaction.

        Parameters
        ----------
        records : sequence
            As for `write`, but that heartbeats in them do not count: a run that has not ended gets the service's
            time as its heartbeat.
        key : str, optional
            Of a request that may come again: the second time nothing is written (keys are kept for a day).

        Returns
        -------
        bool
            False if the key was seen before.

        Raises
        ------
        UnknownRun
            If the run of a task or an output was never written (a `StoreError` of its own, for what the client did).
        UsageError
            If the database cannot hold a value.
        """

    @abstractmethod
    def reserve_run(self, flow: str, at_least: int = 1) -> int:
        """Return the next number of a flow, never given out before and none that the index has; then it is taken."""

    @abstractmethod
    def heartbeats(self, beats: Sequence[Beat], when: float) -> list[Beat]:
        """Note signs of life (by the service's clock) in one transaction; return those of runs or tasks unknown."""

    @abstractmethod
    def delete_run(self, flow: str, run: str) -> bool:
        """Drop everything about a run, with an event; False where there is none. Its number is never used again."""

    # -- reading ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def recent_runs(
        self, *, limit: int, before: tuple[float, str, str] | None = None, project: str | None = None
    ) -> list[RunRecord]:
        """Return runs of all flows, the newest by creation first.

        `before` is ``(created, flow, run)`` of the last one of the page before; `project` keeps the runs that have
        the system tag ``project:<project>``.
        """

    @abstractmethod
    def attempts(self, flow: str, run: str, step: str, task: str) -> list[Attempt]:
        """Return every attempt of a task that was reported, the first one first."""

    @abstractmethod
    def artifacts(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        task: str | None = None,
        *,
        attempt: int | None = None,
        name: str | None = None,
        after: tuple[str, str, int, str] | None = None,
        limit: int | None = None,
    ) -> list[ArtifactPlace]:
        """Return artifacts of a run, a step or a task, by ``(step, task, attempt, name)``, which is the cursor too.

        Without `attempt`, those of each task's newest attempt that has any.
        """

    @abstractmethod
    def artifacts_by_key(
        self, key: str, *, after: tuple[str, str, str, str, int, str] | None = None, limit: int = 100
    ) -> list[ArtifactPlace]:
        """Return who has an artifact with the given content: run by run as they were first registered.

        `after` is the ``(flow, run, step, task, attempt, name)`` of the last one of the page before (`NotFound` if
        its run was dropped meanwhile).
        """

    @abstractmethod
    def reads(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        task: str | None = None,
        *,
        after: tuple[str, str, str, str] | None = None,
        limit: int | None = None,
    ) -> list[Read]:
        """Return what the tasks of a run, a step, or one task read, by ``(step, task, name, key)``: the cursor too."""

    @abstractmethod
    def readers(self, key: str, *, after: tuple[str, str, str, str, str] | None = None, limit: int = 100) -> list[Read]:
        """Return who read the given content: run by run as they were first registered.

        `after` is the ``(flow, run, step, task, name)`` of the last one of the page before.
        """

    @abstractmethod
    def output(self, flow: str, run: str, step: str, task: str) -> OutputRecord | None:
        """Return what the newest attempt with an output made and read."""

    # -- what Metaflow's clients send and ask for --------------------------------------------------------------------

    @abstractmethod
    def run_id(self, flow: str, run: str) -> int:
        """Return the number by which a run goes where numbers are asked for: its own, or one given to a named run."""

    @abstractmethod
    def run_name(self, flow: str, number: int) -> str | None:
        """Return the named run that goes by a number that `run_id` gave out; None for others."""

    @abstractmethod
    def new_task(self, flow: str, run: str, step: str) -> str:
        """Return an id for a new task: the run's next number, sequential within it, never given out before."""

    @abstractmethod
    def task_number(self, flow: str, run: str, step: str, task: str) -> int:
        """Return the number of a task within its run: given out when it is first asked for, then always the same."""

    @abstractmethod
    def task_numbers(self, flow: str, run: str, tasks: Sequence[tuple[str, str]]) -> list[int]:
        """Return the numbers of many tasks, ``(step, task)``, at once; see `task_number`."""

    @abstractmethod
    def task_name(self, flow: str, run: str, number: int) -> tuple[str, str] | None:
        """Return step and task of a number that was given out; None for others."""

    @abstractmethod
    def add_step(self, flow: str, run: str, step: str, facts: Mapping[str, Any]) -> bool:
        """Register a step before it has tasks, with what the client says of it; False if it is there already."""

    @abstractmethod
    def step_facts(self, flow: str, run: str) -> dict[str, Mapping[str, Any]]:
        """Return the registered steps of a run, in the order of registration (`created` among their facts)."""

    @abstractmethod
    def add_fields(self, flow: str, run: str, fields: Sequence[Field]) -> list[Field]:
        """Write metadata fields; returned with ids and times."""

    @abstractmethod
    def fields(
        self, flow: str, run: str, step: str | None = None, task: str | None = None, name: str | None = None
    ) -> list[Field]:
        """Return metadata fields of a run, a step or a task, oldest first."""

    @abstractmethod
    def add_artifacts(self, flow: str, run: str, artifacts: Sequence[ForeignArtifact]) -> None:
        """Register artifacts; one that is there (same task, attempt, name) stays as it is."""

    @abstractmethod
    def foreign_artifacts(
        self, flow: str, run: str, step: str | None = None, task: str | None = None, attempt: int | None = None
    ) -> list[ForeignArtifact]:
        """Return every artifact of every attempt (or one), flowkit's own with empty `words`."""

    @abstractmethod
    def put_facts(self, flow: str, run: str | None, facts: Mapping[str, Any]) -> None:
        """Keep what a client said of a flow (`run` None) or a run and no column holds; replaces what was kept."""

    @abstractmethod
    def facts(self, flow: str, run: str | None) -> Mapping[str, Any]:
        """Return what `put_facts` kept."""

    # -- events ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def events_after(self, event_id: int, limit: int = 1000) -> list[Event]:
        """Return events after an id, oldest first, and none that an open transaction could still precede."""

    @abstractmethod
    def last_event(self) -> int:
        """Return the id of the newest event that `events_after` would return; 0 where there is none."""

    @abstractmethod
    def first_event(self) -> int:
        """Return the id of the oldest event that is kept; 0 where there is none."""

    @abstractmethod
    def trim_events(self, keep_seconds: float) -> int:
        """Drop events older than that, idempotency keys past their day, old audit entries; returns how many events."""

    @abstractmethod
    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` (from a thread of the store's) whenever there may be new events; returns what ends it.

        It may be called too often, never too seldom: a lost connection is made again and then counts as news.
        """

    # -- tokens and audit --------------------------------------------------------------------------------------------

    @abstractmethod
    def add_token(self, token: Token, digest: str) -> None:
        """Store a token with the hash of its secret."""

    @abstractmethod
    def tokens(self) -> list[Token]:
        """Return all tokens, the oldest first."""

    @abstractmethod
    def find_token(self, token_id: str) -> tuple[Token, str] | None:
        """Return a token and the hash of its secret."""

    @abstractmethod
    def revoke_token(self, token_id: str, when: float) -> bool:
        """Note that a token is not good any more; False where there is none."""

    @abstractmethod
    def use_tokens(self, used: Mapping[str, float]) -> None:
        """Note when tokens were last used."""

    @abstractmethod
    def audit(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append entries (``when, who, action, what, status``) to the log of writes."""

    @abstractmethod
    def audited(self, *, limit: int = 100, before: int | None = None) -> list[tuple[int, Mapping[str, Any]]]:
        """Return the newest entries with their ids, newest first."""

    # -- the service itself ------------------------------------------------------------------------------------------

    @abstractmethod
    def ping(self) -> None:
        """Ask the database something trivial. Raises `StoreError` if it does not answer."""
