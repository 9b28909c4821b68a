"""The index of a remote root: a database in the user's cache folder that looks into the datastore for what it lacks.

Runs of this machine are written to it as they go. Those of colleagues are found by listing the runs of a flow and
reading the ones that are not known; their tasks are read when somebody asks for them, and of a run that goes on only
what may have changed. The truth is the datastore: the database can be deleted at any time.

User tags are changed in the datastore first, by version, so that two machines never undo each other's changes. A run's
own tags are read anew when that run is looked at; a listing by tags knows those of runs that were looked at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from flowkit.client.rebuild import run_from_datastore, still_held, tasks_from_datastore
from flowkit.client.settled import SETTLED_SECONDS, is_settled
from flowkit.datastore.layout import run_file, tags_file
from flowkit.datastore.many import mapped_over
from flowkit.datastore.root import machine_folder
from flowkit.datastore.runs import list_flows, list_runs, read_end, read_tags, write_heartbeat
from flowkit.datastore.sealed import Damaged, seal, unseal
from flowkit.datastore.storage import Missing, Storage
from flowkit.exceptions import DataError, FlowkitError, NotFound, StoreError
from flowkit.metadata.liveness import boot_id, host_name, process_start, this_process
from flowkit.metadata.records import FINAL, FlowRecord, Record, RunRecord, State, StepRecord, TaskRecord
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.metadata.store import RunFilter
from flowkit.metadata.tags import changed_tags

LOOK_EVERY = 2.0
"""Seconds for which what was read counts as new."""
MOST_LOST = 10
"""Of the runs that nobody works on, so many of the newest are looked at again in a listing: they may be taken over."""
_LOST_EVERY = 0.1
WRITERS = "writers"
"""The folder beside the database with an empty file for each process that writes a run to it."""
_BATCH = 1_000
_TRIES = 20
_WHOLE = ("_parameters", "0")
"""This task's record is written last: where it is there, so are those of all tasks that had ended by then."""


class RemoteIndex(SqliteMetadata):
    """The index of one remote root.

    Parameters
    ----------
    storage : Storage
        The datastore.
    notice : callable, optional
        As for `SqliteMetadata`.

    Raises
    ------
    StoreError
        If the database cannot be opened, or the datastore cannot be read.
    """

    writes_tags = True

    def __init__(self, storage: Storage, *, notice: Callable[[str], None] | None = None) -> None:
        folder = machine_folder(storage)
        super().__init__(folder, read_only=not _can_write(folder), notice=notice)
        self.fresh = False
        self._storage = storage
        self._looked: dict[tuple[str, ...], float] = {}
        self._gone: set[tuple[str, str]] = set()
        self._beating: threading.Thread | None = None

    def write(self, records: Sequence[Record]) -> None:
        """Insert or update records in one transaction."""
        super().write(records)
        for record in records:
            if isinstance(record, RunRecord) and record.pid == os.getpid():
                self._note_writer(record)

    def _note_writer(self, record: RunRecord) -> None:
        """Leave a mark of this process, for as long as it works on the run."""
        mark = self._mark(record)
        try:
            if record.state in FINAL:
                os.unlink(mark)
            elif not os.path.exists(mark):
                os.makedirs(os.path.dirname(mark), exist_ok=True)
                _remove_old_marks(os.path.dirname(mark))
                with open(mark, "wb"):
                    pass
        except OSError:
            return  # then others of this machine read the run from the datastore

    def _mark(self, record: RunRecord) -> str:
        return os.path.join(self.root, WRITERS, f"{record.flow}-{record.run}-{record.pid}-{record.process_start}")

    def _is_written_here(self, record: RunRecord) -> bool:
        """Whether a process that works on a run writes what becomes of it to this index, and not to another user's."""
        return (
            record.state == "running"
            and (record.host, record.boot_id) == (host_name(), boot_id())
            and os.path.exists(self._mark(record))
        )

    # -- what is asked for ----------------------------------------------------------------------------------------

    def flows(self, namespace: str | None = None) -> list[FlowRecord]:
        """Return the flows that have runs (with that tag), newest first."""
        if self._is_due("flows"):
            for flow in list_flows(self._storage):
                self._find_runs(flow)
        return super().flows(namespace)

    def runs(self, flow: str, which: RunFilter) -> list[RunRecord]:
        """Return runs of a flow, newest first."""
        if which.before is None:
            self._find_runs(flow)
        return super().runs(flow, which)

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run."""
        self._look_at_run(flow, run)
        return super().run(flow, run)

    def steps(self, flow: str, run: str) -> list[StepRecord]:
        """Return the steps of a run that have tasks, in the order in which they began."""
        self._find_tasks(flow, run)
        return super().steps(flow, run)

    def tasks(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        *,
        status: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[TaskRecord]:
        """Return tasks, in the order in which they began."""
        self._find_tasks(flow, run)
        return super().tasks(flow, run, step, status=status, limit=limit, after=after)

    def task(self, flow: str, run: str, step: str, task: str) -> TaskRecord | None:
        """Return one task."""
        self._find_tasks(flow, run)
        return super().task(flow, run, step, task)

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive, here and for those who look on from elsewhere.

        The datastore is told by a thread: the owner's loop does not wait for a network.
        """
        super().heartbeat(flow, run, when)
        if self._beating is None or not self._beating.is_alive():
            self._beating = threading.Thread(target=self._beat, args=(flow, run, when), daemon=True)
            self._beating.start()

    def _beat(self, flow: str, run: str, when: float) -> None:
        try:
            write_heartbeat(self._storage, flow, run, {"when": when, **this_process()._asdict()})
        except FlowkitError:
            return  # the next one follows

    def change_tags(self, flow: str, run: str, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
        """Remove, then add user tags at once, in the datastore and here, and return the new ones, sorted.

        Raises
        ------
        NotFound
            If there is no such run.
        UsageError
            If the rules of tags forbid it; nothing is changed then.
        StoreError
            If others change them all the time.
        """
        record = self.run(flow, run)
        if record is None:
            raise NotFound(f"there is no run {flow}/{run}")
        add, remove = list(add), list(remove)
        for _ in range(_TRIES):
            tags = self._change_stored(record, add, remove)
            if tags is not None:
                self._set_tags(flow, run, tags)
                return tags
        raise StoreError(f"the tags of {flow}/{run} are changed by others all the time", "try again in a moment")

    # -- runs -----------------------------------------------------------------------------------------------------

    def _find_runs(self, flow: str) -> None:
        """Read the runs that the index does not know, and those that may have gone on."""
        if not self._is_due("runs", flow):
            return
        listed = list_runs(self._storage, flow)
        known = set(self._run_names(flow))
        missing = [run for run in listed if run not in known and (flow, run) not in self._gone]
        for run, found in zip(
            missing, mapped_over(self._storage, lambda run: self._read(flow, run), missing), strict=True
        ):
            if found is None:
                self._gone.add((flow, run))
            else:
                self._take(None, found)
        going = [
            record for record in super().runs(flow, RunFilter(status="running")) if not self._is_written_here(record)
        ]
        going += super().runs(flow, RunFilter(status="lost", limit=MOST_LOST))
        for status in ("failed", "cancelled"):
            going += filter(_may_go_on, super().runs(flow, RunFilter(status=status, limit=MOST_LOST)))
        for before, found in zip(going, mapped_over(self._storage, self._read_again, going), strict=True):
            if found is not None:
                self._take(before, found)
        for run in known.difference(listed):
            if self._storage.info(run_file(flow, run)) is None:  # else it began after the listing
                self.forget(flow, run)

    def _read(self, flow: str, run: str) -> RunRecord | None:
        try:
            return run_from_datastore(self._storage, flow, run)
        except StoreError:
            raise
        except (DataError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None  # what is damaged never happened

    def _read_again(self, record: RunRecord) -> RunRecord | None:
        """Return a run that had not ended, or may go on, as it is now; None where nothing has changed."""
        end = read_end(self._storage, record.flow, record.run)
        if end is not None:
            same = (end.get("state"), end.get("finished")) == (record.state, record.finished)
            return None if same else self._read(record.flow, record.run)
        return still_held(self._storage, record._replace(state="running", reason=None, finished=None))

    def _look_at_run(self, flow: str, run: str) -> None:
        """Read one run anew, where it may have changed."""
        record = super().run(flow, run)
        if record is not None and self._is_written_here(record):
            return
        # That a run is lost is not told from what was read a moment ago: its process may have ended it since.
        lost = record is not None and record.state == "lost"
        every = min(LOOK_EVERY, _LOST_EVERY) if lost else LOOK_EVERY
        if not self._is_due("run", flow, run, every=every):
            return
        if record is not None and record.state in FINAL and not _may_go_on(record):
            tags = read_tags(self._storage, flow, run)
            if tags is not None:
                self._set_tags(flow, run, tuple(tags))
            return
        found = self._read(flow, run)
        if found is not None:
            self._take(record, found)

    def _take(self, before: RunRecord | None, found: RunRecord) -> None:
        """Write a run as the datastore has it."""
        where = (found.flow, found.run)
        if before is not None and found.state in FINAL and super().task(*where, *_WHOLE) is not None:
            self._read_tasks(*where, whole=True)  # before its end makes them look complete
        super().write([found])
        if before is not None:
            self._set_tags(*where, found.tags)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def _find_tasks(self, flow: str, run: str) -> None:
        """Read the tasks of a run that the index does not know, or that may have gone on."""
        self._look_at_run(flow, run)
        record = super().run(flow, run)
        if record is None or self._is_written_here(record):
            return
        over = record.state in FINAL
        if over and super().task(flow, run, *_WHOLE) is not None:
            return
        if self._is_due("all tasks" if over else "tasks", flow, run):
            settled = over and record.unattended and is_settled(self._storage, record)
            whole = over and (settled or not record.unattended)
            self._read_tasks(flow, run, whole=whole, over=record.state if settled else None)

    def _read_tasks(self, flow: str, run: str, *, whole: bool, over: State | None = None) -> None:
        known = {(each.step, each.task) for each in super().tasks(flow, run, status="succeeded")}
        batch: list[TaskRecord] = []
        last: list[TaskRecord] = []
        for found in tasks_from_datastore(self._storage, flow, run, lambda _: None, known, over=over):
            (last if (found.step, found.task) == _WHOLE else batch).append(found)
            if len(batch) >= _BATCH:
                super().write(batch)
                batch = []
        super().write([*batch, *(last if whole else ())])

    # -- tags -----------------------------------------------------------------------------------------------------

    def _change_stored(self, record: RunRecord, add: list[str], remove: list[str]) -> tuple[str, ...] | None:
        """Change the datastore's copy; None where somebody else changed it in between."""
        path = tags_file(record.flow, record.run)
        try:
            found = self._storage.read_version(path)
        except Missing:
            tags = changed_tags(record.tags, record.system_tags, add, remove)
            done = tags == record.tags or self._storage.create(path, [seal({"tags": list(tags)})])
            return tags if done else None
        try:
            before = [str(tag) for tag in unseal(found.content, path).get("tags", [])]
        except Damaged:
            before = list(record.tags)
        tags = changed_tags(before, record.system_tags, add, remove)
        if sorted(tags) == sorted(before):
            return tags
        return tags if self._storage.replace_version(path, seal({"tags": list(tags)}), found.version) else None

    def _set_tags(self, flow: str, run: str, tags: tuple[str, ...]) -> None:
        """Make the index say what the datastore says."""
        record = super().run(flow, run)
        if record is None or set(record.tags) == set(tags):
            return
        try:
            super().change_tags(flow, run, set(tags) - set(record.tags), set(record.tags) - set(tags))
        except FlowkitError:  # what somebody wrote there by hand may be no tags
            return

    def _is_due(self, *what: str, every: float | None = None) -> bool:
        now = time.monotonic()
        last = self._looked.get(what)
        if last is not None and now - last < (LOOK_EVERY if every is None else every):
            return False
        self._looked[what] = now
        return True


def _may_go_on(record: RunRecord) -> bool:
    """Whether a scheduler's run that has ended may have other tasks at work, or be tried again."""
    over = time.time() - (record.finished or record.created)
    return record.unattended and record.state != "succeeded" and over < SETTLED_SECONDS


def _remove_old_marks(folder: str) -> None:
    """Remove the marks of processes that were killed."""
    for name in os.listdir(folder):
        *_, pid, start = name.split("-")
        if pid.isdigit() and str(process_start(int(pid))) != start:
            os.unlink(os.path.join(folder, name))


def _can_write(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
