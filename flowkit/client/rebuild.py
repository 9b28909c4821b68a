"""Making the metadata store anew from the datastore, which is the truth.

Everything is read from what runs left: ``run.json``, ``end.json``, ``tags.json``, manifests, failures and clones.
What nobody wrote down comes back differently: heartbeats (that of a run that never ended is the last renewal of its
lease, or the time it began), when an attempt began that never ended, and the retry that a killed run still had in
mind (its task is shown as failed).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from flowkit.client.settled import is_settled, left_open
from flowkit.datastore.layout import clones_file, log_piece
from flowkit.datastore.lease import read_holder
from flowkit.datastore.manifests import attempts, clone_origin, read_clones, read_failure, read_manifest
from flowkit.datastore.many import mapped_over
from flowkit.datastore.runs import (
    list_flows,
    list_runs,
    list_steps,
    list_tasks,
    newest_run,
    read_end,
    read_heartbeat,
    read_run,
    read_tags,
)
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, FlowkitError
from flowkit.metadata.liveness import HEARTBEAT_LIMIT
from flowkit.metadata.outputs import output_of
from flowkit.metadata.records import (
    FINAL,
    FlowRecord,
    OutputRecord,
    Record,
    RunRecord,
    State,
    TaskRecord,
    deployment_tags,
)
from flowkit.metadata.relational import DamagedDatabase
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.metadata.tags import changed_tags
from flowkit.model.manifest import Manifest

PARAMETERS = "_parameters"
_BATCH = 1_000
_PAGE = 1_000
# What content of the wrong shape raises where it is taken apart: files below the root are not to be trusted.
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass(slots=True)
class Summary:
    """What a rebuild found.

    Attributes
    ----------
    flows, runs, tasks : int
        How many were written to the index.
    forgotten : int
        Runs that the index had and the datastore has not.
    problems : list of str
        What could not be read, one line each; the rest was.
    """

    flows: int = 0
    runs: int = 0
    tasks: int = 0
    forgotten: int = 0
    problems: list[str] = field(default_factory=list)


def rebuild(storage: Storage, store: MetadataStore, told: Callable[[Summary], None] | None = None) -> Summary:
    """Bring the metadata store to what the datastore says.

    It may run beside running flows: runs with a living owner keep their records and are only added to. Killed half-way,
    it is simply done again.

    Parameters
    ----------
    storage : Storage
        The datastore.
    store : MetadataStore
        Its index.
    told : callable, optional
        Is given the summary so far after each batch of about a thousand records, to show progress.

    Raises
    ------
    StoreError
        If the datastore cannot be listed or the index cannot be written. One bad run is a problem in the summary.
    """
    # What a store has that is shared by many datastores need not be in this one.
    indexed = {} if store.shared else {flow.flow: set(_indexed_runs(store, flow)) for flow in store.flows()}
    summary = Summary()
    writer = _Writer(storage, store, summary, told)
    for flow in list_flows(storage):
        before = summary.runs
        stale = indexed.pop(flow, set())
        for run in list_runs(storage, flow):  # in the order of their numbers, which is the fast one for the index
            if writer.add_run(flow, run):
                stale.discard(run)
        summary.flows += summary.runs > before
        indexed[flow] = stale
    writer.flush()
    for flow, gone in indexed.items():
        for run in gone:
            store.forget(flow, run)
            summary.forgotten += 1
    store.settle()
    return summary


def add_missing(storage: Storage, store: MetadataStore, flow: str, run: str | None = None) -> None:
    """Add one run to the metadata store, if the datastore has it and the index does not.

    A run whose index was locked, or on a full disk, until it was killed is known to the datastore alone.

    Parameters
    ----------
    run : str, optional
        Which; default: the newest one.
    """
    run = run or newest_run(storage, flow)
    if run is None or store.run(flow, run) is not None:
        return
    writer = _Writer(storage, store, Summary(), None)
    writer.add_run(flow, run)
    writer.flush()


def remake(
    storage: Storage,
    open_store: Callable[[], MetadataStore],
    set_aside: Callable[[], str | None],
    told: Callable[[Summary], None] | None = None,
) -> tuple[Summary, str | None]:
    """Rebuild the metadata store, also where its database is damaged.

    Parameters
    ----------
    storage : Storage
        The datastore.
    open_store : callable
        Opens its index.
    set_aside : callable
        Renames a damaged database, so that the next one that is opened is new, and returns where it is now.
    told : callable, optional
        As for `rebuild`.

    Returns
    -------
    Summary and str or None
        What was found, and where the damaged database is, if there was one.

    Raises
    ------
    StoreError
        If the index cannot be opened or written for another reason: a newer version, a lock, no permission.
    """
    try:
        with closing(open_store()) as store:
            return rebuild(storage, store, told), None
    except DamagedDatabase:
        aside = set_aside()
    with closing(open_store()) as store:
        return rebuild(storage, store, told), aside


class _Writer:
    """Collects records into batches."""

    def __init__(
        self, storage: Storage, store: MetadataStore, summary: Summary, told: Callable[[Summary], None] | None
    ) -> None:
        self._storage = storage
        self._store = store
        self._summary = summary
        self._told = told
        self._batch: list[Record] = []

    def add_run(self, flow: str, run: str) -> bool:
        """Add a run with its tasks; False where there is none (it was deleted, or is no run)."""
        problems = self._summary.problems
        try:
            record = run_from_datastore(self._storage, flow, run)
        except (FlowkitError, *_MALFORMED) as error:
            problems.append(f"{flow}/{run}: {_text(error)}")
            return True  # it is there, only unreadable: what the index knows of it may stay
        if record is None:
            return False
        known = self._store.run(flow, run)
        if known is not None and self._store.shared:
            if not _same_run(known, record):
                problems.append(f"{flow}/{run}: the metadata store has another run of that number, by {known.user}")
                return True
            if record.state in FINAL or known.state not in ("running", "pending"):
                self._batch.append(record)  # what is there is added to; its tags are the store's own
        elif known is None:
            self._batch.append(record)
        elif known.unattended and record.state in FINAL:
            self._batch.append(record)  # whoever ended it may not have reached the index, and nobody else will
            self._set_tags(known, record)
        elif known.state in ("running", "pending"):
            self._set_tags(known, record)  # its owner writes the rest
        else:
            self._store.forget(flow, run)
            self._batch.append(record)
        self._summary.runs += 1
        outputs: list[OutputRecord] | None = [] if self._store.outputs else None
        over = record.state if is_settled(self._storage, record) else None
        for task in tasks_from_datastore(self._storage, flow, run, problems.append, outputs=outputs, over=over):
            self._batch.append(task)
            self._summary.tasks += 1
            if outputs:
                self._batch += outputs
                outputs.clear()
            if len(self._batch) >= _BATCH:
                self.flush()
        return True

    def flush(self) -> None:
        if not self._batch:
            return
        self._store.write(self._batch)
        for record in self._batch:
            if isinstance(record, RunRecord) and record.state not in FINAL:
                self._look_again(record)
        self._batch = []
        if self._told is not None:
            self._told(self._summary)

    def _look_again(self, record: RunRecord) -> None:
        """A run may have ended, and said so in the index, between reading it and writing that it was running."""
        now = run_from_datastore(self._storage, record.flow, record.run)
        if now is not None and now.state in FINAL:
            self._store.write([now])

    def _set_tags(self, known: RunRecord, record: RunRecord) -> None:
        add, remove = set(record.tags) - set(known.tags), set(known.tags) - set(record.tags)
        try:
            if add or remove:
                changed_tags(known.tags, known.system_tags, add, remove)
                self._store.change_tags(known.flow, known.run, add, remove)
        except FlowkitError as error:
            self._summary.problems.append(f"{known.flow}/{known.run}: {error.headline}")


def run_from_datastore(storage: Storage, flow: str, run: str) -> RunRecord | None:
    """Return a run as the datastore knows it; None where there is none, or it was deleted.

    Raises
    ------
    DataError
        If its ``run.json`` is damaged.
    """
    claim = read_run(storage, flow, run)
    if claim is None:
        return None
    created, user = claim.get("created"), claim.get("user")
    if created is None or not _is_time(created) or not isinstance(user, str):
        raise DataError("its run.json does not say who began it, and when")
    end = read_end(storage, flow, run) or {}
    finished = end.get("finished")
    state: State = end["state"] if end.get("state") in FINAL else "running"
    ended = state in FINAL and _is_time(finished)
    system_tags = _texts(claim.get("system_tags"))
    if isinstance(claim.get("deployment"), str):
        system_tags += deployment_tags(claim["deployment"])[:1]
    tags = read_tags(storage, flow, run)
    tags = _texts(claim.get("tags")) if tags is None else tags
    record = RunRecord(
        flow=flow,
        run=run,
        user=user,
        state=state,
        created=created,
        reason=_text_or_none(end.get("reason")) if state in FINAL else None,
        finished=finished if ended else None,
        heartbeat=finished if ended else created,
        tags=tuple(sorted(set(tags) - set(system_tags))),
        system_tags=tuple(sorted(set(system_tags))),
        origin=_text_or_none(claim.get("origin")),
        host=_text_or_none(claim.get("host")),
        boot_id=_text_or_none(claim.get("boot_id")),
        pid=_whole(claim.get("pid")),
        process_start=_whole(claim.get("process_start")),
    )
    return record if ended else still_held(storage, record)


def still_held(storage: Storage, record: RunRecord) -> RunRecord:
    """Return a run that has not ended with the process that has it now, which need not be the one that began it."""
    if record.unattended:
        return record
    holder = read_holder(storage, record.flow, record.run)
    if holder is not None:
        owner, seen = holder.owner, holder.until - HEARTBEAT_LIMIT
    elif storage.remote:  # at a local root the index has the heartbeats
        owner = read_heartbeat(storage, record.flow, record.run) or {}
        seen = owner["when"] if _is_time(owner.get("when")) else 0.0
    else:
        return record
    if seen <= record.created:
        return record
    return record._replace(
        heartbeat=seen,
        host=_text_or_none(owner.get("host")),
        boot_id=_text_or_none(owner.get("boot_id")),
        pid=_whole(owner.get("pid")),
        process_start=_whole(owner.get("process_start")),
    )


def tasks_from_datastore(
    storage: Storage,
    flow: str,
    run: str,
    problem: Callable[[str], None],
    known: Container[tuple[str, str]] = (),
    outputs: list[OutputRecord] | None = None,
    over: State | None = None,
) -> Iterator[TaskRecord]:
    """Yield every task of a run as the datastore knows it.

    Parameters
    ----------
    problem : callable
        Is given a line for each thing that could not be read.
    known : container of (step, task)
        Tasks that are left out: nothing of them changes any more.
    outputs : list, optional
        Gets what each task made and read, just before the task is yielded.
    over : str, optional
        How the run ended, where nothing of it goes on (`is_settled`): see `left_open`.
    """
    try:
        steps = list_steps(storage, flow, run)
    except (FlowkitError, *_MALFORMED) as error:
        problem(f"{flow}/{run}: {_text(error)}")
        return
    for step in steps:
        if step.startswith("_") and step != PARAMETERS:
            continue  # no task: what the end command of a scheduler's run wrote
        clones = [each for each in _cloned(storage, flow, run, step, problem) if (step, each.task) not in known]
        if outputs is not None and clones:
            yield from _with_outputs(storage, clones, problem, outputs)
        else:
            yield from clones

        def read(task: str, step: str = step) -> tuple[TaskRecord, Manifest | None] | None:
            try:
                return _task(storage, flow, run, step, task, problem)
            except (FlowkitError, *_MALFORMED) as error:
                problem(f"{flow}/{run}/{step}/{task}: {_text(error)}")
                return None

        tasks = [task for task in list_tasks(storage, flow, run, step) if (step, task) not in known]
        for found in mapped_over(storage, read, tasks):
            if found is not None:
                record, manifest = found
                if outputs is not None and manifest is not None:
                    outputs.append(output_of(manifest))
                yield record if over is None else left_open(record, over)


def _with_outputs(
    storage: Storage, clones: list[TaskRecord], problem: Callable[[str], None], outputs: list[OutputRecord]
) -> Iterator[TaskRecord]:
    """Yield the records of cloned tasks; what their origins made is what they have."""

    def read(clone: TaskRecord) -> Manifest | None:
        try:
            return read_manifest(storage, clone.flow, clone.run, clone.step, clone.task)
        except (FlowkitError, *_MALFORMED) as error:
            problem(f"{clone.flow}/{clone.run}/{clone.step}/{clone.task}: {_text(error)}")
            return None

    for clone, manifest in zip(clones, mapped_over(storage, read, clones), strict=True):
        if manifest is not None:
            outputs.append(output_of(manifest, run=clone.run, task=clone.task, attempt=0))
        yield clone


def _task(
    storage: Storage, flow: str, run: str, step: str, task: str, problem: Callable[[str], None]
) -> tuple[TaskRecord, Manifest | None] | None:
    def damaged(error: DataError) -> None:
        problem(f"{flow}/{run}/{step}/{task}: {error.headline}")

    manifest = read_manifest(storage, flow, run, step, task, on_damage=damaged)
    if manifest is not None:
        if (manifest.flow, manifest.run) != (flow, run):
            return None  # a clone, listed already
        times = manifest.started or None, manifest.ended or None
        return TaskRecord(flow, run, step, task, "succeeded", manifest.attempt, *times), manifest
    tried = attempts(storage, flow, run, step, task)
    if not tried:
        return None  # an empty folder: nothing is known to have begun
    failure = read_failure(storage, flow, run, step, task, tried[-1])
    if failure is None:
        began = _first_words(storage, flow, run, step, task, tried[-1])
        return TaskRecord(flow, run, step, task, "running", tried[-1], began), None
    state: State = "cancelled" if failure.kind == "cancelled" else "failed"
    times = failure.started or None, failure.ended or None
    return TaskRecord(flow, run, step, task, state, tried[-1], *times, failure.message), None


def _first_words(storage: Storage, flow: str, run: str, step: str, task: str, attempt: int) -> float | None:
    """Return when an attempt wrote the first piece of its log: the earliest that is known of it."""
    info = storage.info(log_piece(flow, run, step, task, attempt, 1))
    return None if info is None else info.modified


def _cloned(storage: Storage, flow: str, run: str, step: str, problem: Callable[[str], None]) -> Iterator[TaskRecord]:
    try:
        clones = read_clones(storage, flow, run, step)
        if clones is None:
            return
        info = storage.info(clones_file(flow, run, step))
        taken = info.modified if info is not None else None
        for task in clones[1]:
            yield TaskRecord(
                flow, run, step, task, "succeeded", 0, taken, taken, None, _first_origin(storage, flow, run, step, task)
            )
    except (FlowkitError, *_MALFORMED) as error:
        problem(f"{flow}/{run}/{step}: {_text(error)}")


def _first_origin(storage: Storage, flow: str, run: str, step: str, task: str) -> str:
    """Follow clones of clones to the task that really ran."""
    seen = set()
    while (flow, run, task) not in seen:
        seen.add((flow, run, task))
        further = clone_origin(storage, flow, run, step, task)
        if further is None:
            break
        flow, run, task = further
    return f"{flow}/{run}/{step}/{task}"


def _indexed_runs(store: MetadataStore, flow: FlowRecord) -> Iterator[str]:
    before: str | None = None
    while True:
        page = store.runs(flow.flow, RunFilter(before=before, limit=_PAGE))
        yield from (record.run for record in page)
        if len(page) < _PAGE:
            return
        before = page[-1].run


def _same_run(one: RunRecord, other: RunRecord) -> bool:
    """Whether two records are of the same run: begun at the same time, or by the same process."""
    owner = (other.host, other.boot_id, other.pid, other.process_start)
    mine = (one.host, one.boot_id, one.pid, one.process_start)
    return abs(one.created - other.created) < 0.001 or (one.pid is not None and mine == owner)


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < 1e12


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _text(error: BaseException) -> str:
    return error.headline if isinstance(error, FlowkitError) else f"malformed ({type(error).__name__}: {error})"
