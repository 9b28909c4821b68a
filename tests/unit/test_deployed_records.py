"""What is known of runs that a scheduler carries out: nobody watches them, and their tasks speak for themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit.client import remote_index
from flowkit.client.rebuild import rebuild
from flowkit.client.remote_index import RemoteIndex
from flowkit.client.settled import SETTLED_SECONDS
from flowkit.datastore.layout import attempt_folder, end_file, index_file, round_file
from flowkit.datastore.local import LocalStorage
from flowkit.datastore.manifests import write_failure, write_manifest
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.runs import change_end, claim_named_run, read_end, write_end
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import Attempts
from flowkit.exceptions import StoreError
from flowkit.metadata.liveness import observed_run, why_lost
from flowkit.metadata.memory import MemoryMetadata
from flowkit.metadata.records import RunRecord, State, TaskRecord, deployment_tags
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure, Manifest
from flowkit.model.transition import Transition
from flowkit.runtime.deployed import Work
from flowkit.runtime.deployed import end as end_in_container
from flowkit.runtime.gang import stage
from flowkit.runtime.own_records import OwnRecords, end_run, has_store, repeat_failure
from flowkit.runtime.own_rounds import asked_again, begin_round

FLOW, RUN = "Night", "argo-night-x7k2"
NAME = "argo-workflows/night.prod"
DAY = 86400.0
TWICE = Attempts(retries=1)


class Scheduled:
    """A run of a scheduler, in which tasks end as they are told to."""

    def __init__(self, storage: Storage, store: MetadataStore | None, ago: float = 100.0) -> None:
        self.storage = storage
        self.store = store
        self.created = time.time() - ago
        claim = {
            "user": "ada",
            "created": self.created,
            "tags": ["nightly"],
            "system_tags": ["user:ada", *deployment_tags(NAME)],
            "deployment": NAME,
        }
        assert claim_named_run(storage, FLOW, RUN, claim)
        extra = {"graph": {"end_step": "end"}, "user": "ada"}
        self.parameters = self.commit("_parameters", "0", ("start",), extra=extra)

    def commit(self, step: str, task: str, targets: tuple[str, ...] = ("join",), **fields: Any) -> Manifest:
        kind = "end" if step == "end" else "linear"
        transition = Transition(kind, () if step == "end" else targets)
        manifest = Manifest(
            FLOW, RUN, step, task, 0, {}, transition, started=self.created, ended=self.created + 1, **fields
        )
        write_manifest(self.storage, manifest)
        return manifest

    def task(
        self,
        step: str,
        task: str,
        work: Callable[[], int] | str = "well",
        *,
        attempt: int = 0,
        policy: Attempts = TWICE,
    ) -> list[str]:
        """Carry out an attempt: what it does, or how it ends; return what it told its log."""
        told: list[str] = []
        launch = Launch(step, Coordinates((int(task),)) if step == "work" else Coordinates(), attempt=attempt)

        def carry_out() -> int:
            if callable(work):
                return work()
            if work == "well":
                self.commit(step, task)
            elif work != "in silence":
                self.fail(step, task, attempt, work)
            return 0 if work == "well" else 1

        OwnRecords(self.storage, self.store, self.parameters, launch, policy, told.append).carry_out(carry_out)
        return told

    def fail(self, step: str, task: str, attempt: int, message: str, **fields: Any) -> None:
        now = time.time()
        failure = Failure("error", message, "ValueError", attempt=attempt, started=now, ended=now, **fields)
        write_failure(self.storage, FLOW, RUN, step, task, failure)

    def end(self, state: State, reason: str | None = None) -> RunRecord:
        record = end_run(self.storage, FLOW, RUN, state, reason, self.store)
        assert record is not None
        return record

    @property
    def ended(self) -> tuple[str, str | None] | None:
        end = read_end(self.storage, FLOW, RUN)
        return None if end is None else (end["state"], end["reason"])


def shown(store: MetadataStore) -> tuple[str, str | None]:
    record = store.run(FLOW, RUN)
    assert record is not None
    return record.state, record.reason


def tasks(store: MetadataStore) -> dict[str, tuple[str, int]]:
    found = {f"{each.step}/{each.task}": (each.state, each.attempt) for each in store.tasks(FLOW, RUN)}
    assert found.pop("_parameters/0", ("succeeded", 0)) == ("succeeded", 0)
    return found


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return LocalStorage(str(tmp_path), durable=False)


@pytest.fixture(params=[MemoryMetadata, SqliteMetadata])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    made = request.param(*([] if request.param is MemoryMetadata else [str(tmp_path)]))
    yield made
    made.close()


def test_silence_makes_no_run_of_a_scheduler_lost() -> None:
    record = RunRecord(FLOW, RUN, "ada", "running", 1.0, heartbeat=1.0, system_tags=tuple(deployment_tags(NAME)))
    assert record.deployment == NAME
    assert record.unattended
    assert why_lost(record, 1e9) is None
    assert observed_run(record, 1e9) == record
    # One that a runtime watches is lost with it, deployed or not.
    watched = record._replace(host="elsewhere", pid=7)
    assert not watched.unattended
    assert observed_run(watched, 1e9).state == "lost"
    assert observed_run(record._replace(system_tags=("runtime:local",)), 1e9).state == "lost"


def test_tasks_tell_how_their_run_stands(storage: Storage, store: MetadataStore) -> None:
    run = Scheduled(storage, store)
    assert run.task("start", "0") == []
    assert shown(store) == ("running", None)
    record = store.run(FLOW, RUN)
    assert record is not None
    assert (record.user, record.created, record.tags) == ("ada", run.created, ("nightly",))
    assert (record.deployment, record.host, record.pid) == (NAME, None, None)

    def meanwhile() -> int:
        assert tasks(store)["work/0"] == ("running", 0)
        run.task("work", "1", "once")
        assert tasks(store)["work/1"] == ("pending", 0)
        assert shown(store) == ("running", None)
        run.task("work", "1", "for good", attempt=1)
        assert tasks(store)["work/1"] == ("failed", 1)
        assert shown(store) == run.ended == ("failed", "work/1: for good")
        run.task("work", "2", "another", policy=Attempts())
        assert shown(store) == run.ended == ("failed", "work/1: for good")
        run.commit("work", "0")
        return 0

    run.task("work", "0", meanwhile)
    assert tasks(store) == {
        "start/0": ("succeeded", 0),
        "work/0": ("succeeded", 0),
        "work/1": ("failed", 1),
        "work/2": ("failed", 0),
    }
    assert run.ended == ("failed", "work/1: for good")

    # The scheduler is told to try both again: the first of them takes the ending back.
    run.task("work", "2", attempt=1, policy=Attempts())
    assert run.ended is None
    assert shown(store) == ("running", None)
    run.task("work", "1", attempt=2)
    run.task("join", "0")
    run.task("end", "0")
    assert shown(store) == run.ended == ("succeeded", None)
    assert run.end("failed", "late, and wrong").state == "succeeded"
    assert shown(store) == run.ended == ("succeeded", None)


def test_the_end_command_says_what_no_task_could(storage: Storage, store: MetadataStore) -> None:
    assert end_run(storage, FLOW, RUN, "failed", None, store) is None  # it never began
    run = Scheduled(storage, store)
    run.task("start", "0")
    run.task("work", "0", "once")

    # Two whose processes were killed: somebody wrote how one of them ended.
    store.write([TaskRecord(FLOW, RUN, "work", task, "running", 0, time.time()) for task in ("1", "2")])
    run.fail("work", "1", 0, "ended by SIGKILL")
    record = run.end("failed", "workflow failed")
    assert (record.state, record.reason) == shown(store) == run.ended == ("failed", "work/0: once")
    states = {"start/0": "succeeded", "work/0": "failed", "work/1": "failed", "work/2": "lost"}
    assert {name: state for name, (state, _) in tasks(store).items()} == states
    found = store.task(FLOW, RUN, "work", "1")
    assert found is not None
    assert found.reason == "ended by SIGKILL"
    before = read_end(storage, FLOW, RUN)
    run.end("cancelled", "again")
    assert read_end(storage, FLOW, RUN) == before


def run_record(store: MetadataStore) -> RunRecord:
    record = store.run(FLOW, RUN)
    assert record is not None
    return record


def test_an_attempt_that_is_not_made_says_so_for_the_one_before(storage: Storage, store: MetadataStore) -> None:
    """A process was killed at its last attempt, and nobody could say so before its container was started again."""
    run = Scheduled(storage, store)
    run.task("start", "0")
    store.write([TaskRecord(FLOW, RUN, "work", "1", "running", 0, time.time())])
    run.fail("work", "1", 0, "killed by SIGKILL")
    launch = Launch("work", Coordinates((1,)), attempt=2)
    repeat_failure(storage, FLOW, RUN, launch, None)
    OwnRecords(storage, store, run.parameters, launch, Attempts(), print).tell()
    assert shown(store) == run.ended == ("failed", "work/1: killed by SIGKILL")
    assert tasks(store)["work/1"] == ("failed", 2)
    new = MemoryMetadata()
    rebuild(storage, new)
    assert tasks(new) == tasks(store)
    repeat_failure(storage, FLOW, RUN, Launch("work", Coordinates((7,)), attempt=2), None)  # of which nothing is known
    assert list(storage.children(f"flows/{FLOW}/{RUN}/work")) == ["1"]


def test_what_had_failed_is_tried_again_where_somebody_asks_for_it(storage: Storage) -> None:
    run = Scheduled(storage, None)

    def asked(task: str, attempt: int) -> bool:
        return asked_again(storage, FLOW, RUN, Launch("work", Coordinates((int(task),)), attempt=attempt))

    for task in ("0", "1"):
        run.task("work", task, "no luck", policy=Attempts())
        assert not asked(task, 1)  # other tasks may go on: this is the scheduler, which cannot tell
    assert not begin_round(storage, FLOW, "another")
    run.end("failed")
    assert asked("0", 1)
    assert asked("1", 1)
    run.task("work", "0", "again no luck", attempt=1, policy=Attempts())
    assert run.ended == ("failed", "work/0: again no luck")
    storage.delete(end_file(FLOW, RUN))  # as if it were still at work
    assert asked("1", 1)
    assert not asked("0", 2)
    storage.replace(round_file(FLOW, RUN), [b"torn"])
    assert not asked("1", 1)
    run.commit("end", "0")
    run.end("failed")
    assert not asked("1", 1)
    assert not begin_round(storage, FLOW, RUN)


def test_the_nodes_of_a_gang_tell_what_each_of_them_knows(storage: Storage, store: MetadataStore) -> None:
    run = Scheduled(storage, store)

    def broken() -> int:
        run.fail("work", "1", 0, "ValueError: node one")
        stage(storage, Manifest(FLOW, RUN, "work", "2", 0, {}, Transition("linear", ("join",))))
        run.fail("work", "0", 0, "TaskError: node 1 of the gang failed")
        return 1

    launch = Launch("work", Coordinates((0,)), gang=4)
    for policy, state in ((TWICE, "pending"), (Attempts(), "failed")):
        work = broken if state == "pending" else lambda: 1
        OwnRecords(storage, store, run.parameters, launch, policy, print).carry_out(work)
        other = (state, "TaskError: node 1 of the gang failed")
        told = {each.task: (each.state, each.reason) for each in store.tasks(FLOW, RUN, "work")}
        assert told == {"0": other, "1": (state, "ValueError: node one"), "2": other, "3": other}
    assert shown(store) == run.ended == ("failed", "work/1: ValueError: node one")
    storage.delete(end_file(FLOW, RUN))
    assert run.end("failed").reason == "work/1: ValueError: node one"
    new = MemoryMetadata()
    rebuild(storage, new)
    assert tasks(new) == {f"work/{node}": ("failed", 0) for node in range(3)}  # the fourth one never came to begin


@pytest.mark.parametrize(
    ("before", "told", "after"),
    [
        (None, ("failed", None), ("failed", None)),
        (None, ("failed", "no\n  room" + "!" * 600), ("failed", "no room" + "!" * 493)),
        (None, ("cancelled", "by hand"), ("cancelled", "by hand")),
        (("failed", "work/0: it"), ("cancelled", "by hand"), ("cancelled", "by hand")),
        (("failed", "work/0: it"), ("cancelled", None), ("cancelled", "work/0: it")),
        (("cancelled", "work/0: it"), ("failed", "it failed"), ("cancelled", "work/0: it")),
        (("failed", None), ("failed", "no room"), ("failed", "no room")),
        (
            None,
            ("succeeded", None),
            ("failed", "its last step has no result, though the scheduler says that it succeeded"),
        ),
    ],
)
def test_ends_are_refined_and_settled(storage: Storage, before: Any, told: Any, after: Any) -> None:
    run = Scheduled(storage, None)
    if before is not None:
        write_end(storage, FLOW, RUN, {"state": before[0], "reason": before[1], "finished": 1.0})
    run.end(*told)
    assert run.ended == after
    run.end("failed", "more")
    assert run.ended == after
    assert (read_end(storage, FLOW, RUN) or {})["settled"] is True
    run.commit("end", "0")  # had it been there, it would have succeeded whatever was said
    run.end("failed", "more")
    assert run.ended == ("succeeded", None)
    with pytest.raises(ValueError, match="no run ends lost"):
        run.end("lost")


def test_tasks_of_a_run_that_was_stopped_were_stopped_with_it(storage: Storage, store: MetadataStore) -> None:
    run = Scheduled(storage, store)
    run.task("start", "0")
    store.write([TaskRecord(FLOW, RUN, "work", "1", "running", 0, time.time())])
    storage.create(f"{attempt_folder(FLOW, RUN, 'work', '1', 0)}/log", [b""])
    run.end("cancelled")
    new = MemoryMetadata()
    rebuild(storage, new)
    assert tasks(store) == tasks(new) == {"start/0": ("succeeded", 0), "work/1": ("cancelled", 0)}


def test_an_end_reaches_the_index_though_the_flow_cannot_be_read(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Scheduled(storage, None)
    for name, value in (("RUN", RUN), ("STATE", "Error"), ("REASON", "no image")):
        monkeypatch.setenv(f"FLOWKIT_DEPLOYED_{name}", value)
    monkeypatch.chdir(tmp_path)
    work = Work(storage, FLOW, "not-there.py", None, True, None, 10_000)
    assert end_in_container(work) != 0  # exit hooks are not called; the run is over all the same
    assert run.ended == ("failed", "no image")
    index = SqliteMetadata(storage.root)
    assert shown(index) == ("failed", "no image")
    assert tasks(index) == {}
    index.close()


def test_an_end_that_several_write(storage: Storage) -> None:
    Scheduled(storage, None)
    seen: list[Any] = []

    def change(stands: Any) -> Any:
        seen.append(stands)
        if len(seen) == 1:  # another one is quicker
            write_end(storage, FLOW, RUN, {"state": "succeeded"})
        return None if stands else {"state": "failed"}

    assert change_end(storage, FLOW, RUN, change) == {"state": "succeeded"}
    assert seen == [None, {"state": "succeeded"}]
    storage.replace(end_file(FLOW, RUN), [b"torn"])
    assert change_end(storage, FLOW, RUN, lambda stands: {"state": "failed", "was": stands}) == {
        "state": "failed",
        "was": None,
    }

    def never(stands: Any) -> Any:
        write_end(storage, FLOW, RUN, {"state": "failed", "turn": time.time_ns()})
        return {"state": "succeeded"}

    with pytest.raises(StoreError, match="all the time"):
        change_end(storage, FLOW, RUN, never)


def test_tasks_at_a_remote_root_need_no_store() -> None:
    storage = MemoryStorage("memory:away")
    assert storage.remote
    assert (has_store(storage, "local"), has_store(storage, "service")) == (False, True)
    run = Scheduled(storage, None)
    run.task("start", "0")
    run.task("work", "0", "no luck", policy=Attempts())
    assert run.ended == ("failed", "work/0: no luck")
    run.task("work", "0", attempt=1, policy=Attempts())
    assert run.ended is None
    run.task("end", "0")
    assert run.ended == ("succeeded", None)


def test_an_index_is_rebuilt_as_it_was(storage: Storage, store: MetadataStore, tmp_path: Path) -> None:
    run = Scheduled(storage, store)
    run.task("start", "0")
    run.task("work", "0")
    run.task("work", "1", "no luck", policy=Attempts())
    storage.create(f"{attempt_folder(FLOW, RUN, 'work', '2', 0)}/log", [b""])  # it runs
    storage.create(f"{attempt_folder(FLOW, RUN, '_ended', '0', 0)}/log", [b""])  # no task: exit hooks
    storage.create(index_file(FLOW, RUN, "start", "0"), [b'["0","1","2"]'])
    new = MemoryMetadata()
    assert rebuild(storage, new).problems == []
    assert shown(new) == shown(store) == ("failed", "work/1: no luck")
    assert tasks(new) == {**tasks(store), "work/2": ("running", 0)}
    assert run_record(new)._replace(heartbeat=None) == run_record(store)._replace(heartbeat=None)
    run.end("failed")
    assert rebuild(storage, new).problems == []
    assert tasks(new)["work/2"] == ("lost", 0)
    # An index that the end did not reach learns of it.
    store.write([run_record(store)._replace(state="running", reason=None, finished=None)])
    rebuild(storage, store)
    assert shown(store) == ("failed", "work/1: no luck")
    # A run whose run.json names the deployment only is one all the same.
    claim_named_run(storage, FLOW, "sfn-1", {"user": "ada", "created": 5.0, "deployment": "step-functions/night"})
    rebuild(storage, new)
    other = new.run(FLOW, "sfn-1")
    assert other is not None
    assert (other.state, other.deployment) == ("running", "step-functions/night")


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Storage], RemoteIndex]]:
    monkeypatch.setattr(remote_index, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(remote_index, "machine_folder", lambda storage: str(tmp_path / "laptop"))
    opened = []

    def look(storage: Storage) -> RemoteIndex:
        opened.append(RemoteIndex(storage))
        return opened[-1]

    yield look
    for index in opened:
        index.close()


def test_a_laptop_follows_a_run_of_a_scheduler(laptop: Callable[[Storage], RemoteIndex]) -> None:
    storage = MemoryStorage("memory:shared")
    run = Scheduled(storage, None, ago=5 * DAY)
    index = laptop(storage)
    assert shown(index) == ("running", None)
    run.task("start", "0")
    storage.create(f"{attempt_folder(FLOW, RUN, 'work', '0', 0)}/log.000001", [b"x"])
    assert tasks(index) == {"start/0": ("succeeded", 0), "work/0": ("running", 0)}
    run.task("work", "1", "no luck", policy=Attempts())
    assert shown(index) == ("failed", "work/1: no luck")
    assert tasks(index)["work/0"] == ("running", 0)
    run.commit("work", "0")  # it had begun before the other one failed
    assert tasks(index)["work/0"] == ("succeeded", 0)
    reads: list[str] = []
    storage.read = lambda path: reads.append(path) or MemoryStorage.read(storage, path)  # type: ignore[method-assign,assignment,func-returns-value]
    assert [(each.run, each.state) for each in index.runs(FLOW, RunFilter())] == [(RUN, "failed")]
    assert reads == [end_file(FLOW, RUN)]  # nothing is new, and no more is asked
    del storage.read  # type: ignore[method-assign]
    run.task("work", "1", attempt=1, policy=Attempts())
    assert [(each.run, each.state) for each in index.runs(FLOW, RunFilter())] == [(RUN, "running")]
    assert tasks(index)["work/1"] == ("succeeded", 0)
    storage.create(f"{attempt_folder(FLOW, RUN, 'work', '2', 0)}/log.000001", [b"x"])
    run.end("cancelled", "by hand")
    assert shown(index) == ("cancelled", "by hand")
    assert tasks(index)["work/2"] == ("cancelled", 0)


def test_what_has_long_failed_is_not_read_again(
    laptop: Callable[[Storage], RemoteIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage("memory:old")
    Scheduled(storage, None, ago=9 * DAY)
    failed = {"state": "failed", "reason": "it", "finished": time.time() - SETTLED_SECONDS - 60}
    write_end(storage, FLOW, RUN, failed)
    index = laptop(storage)
    assert shown(index) == ("failed", "it")
    assert tasks(index) == {}
    reads: list[str] = []
    read = MemoryStorage.read
    monkeypatch.setattr(MemoryStorage, "read", lambda self, path: reads.append(path) or read(self, path))
    index.runs(FLOW, RunFilter())
    index.tasks(FLOW, RUN)
    assert [path for path in reads if not path.endswith("tags.json")] == []
