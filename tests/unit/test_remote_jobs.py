"""Jobs of a service without any process: what is submitted together, found again, taken over, given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest

from flowkit.datastore.layout import failed_file, launches_folder
from flowkit.datastore.manifests import write_failure, write_manifest
from flowkit.datastore.memory import MemoryStorage
from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import Conflict, Problem, StoreError
from flowkit.model.coordinates import Coordinates, Span
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure, Manifest
from flowkit.model.transition import Transition
from flowkit.runtime.backend import Backend, BackendError, FoundJob, RemoteRun, RowState, Submission
from flowkit.runtime.executor import Ended, Event, Started
from flowkit.runtime.launch_list import read_rows
from flowkit.runtime.remote import RemoteExecutor
from flowkit.runtime.remote_work import Step, Work
from flowkit.runtime.submissions import read_submissions

RUN = RemoteRun("Flow", "1", "ada", "memory:")


class Cluster:
    """What outlives a backend: the jobs of a service, and what it is to do wrong."""

    def __init__(self) -> None:
        self.jobs: dict[str, Submission] = {}
        self.states: dict[str, dict[int, RowState]] = {}
        self.cancelled: list[tuple[str, bool]] = []
        self.errors: dict[str, list[BackendError | None]] = {}
        self.calls: list[str] = []
        self.lock = threading.Lock()

    def set(self, job: str, row: int, phase: str, cause: str | None = None, message: str = "", status=None) -> None:
        with self.lock:
            when = time.time()
            self.states.setdefault(job, {})[row] = RowState(job, row, phase, when, cause, message, status)  # type: ignore[arg-type]

    def ended(self, job: str, rows: Iterable[int]) -> None:
        for row in rows:
            self.set(job, row, "succeeded", status=0)

    def trouble(self, call: str) -> BackendError | None:
        self.calls.append(call)
        left = self.errors.get(call)
        return left.pop(0) if left else None


class Scripted(Backend):
    """The backend of a `Cluster`."""

    name = "scripted"
    poll_interval = 0.01

    def __init__(self, cluster: Cluster, max_rows: int = 10_000) -> None:
        self.cluster = cluster
        self.max_rows = max_rows
        self.closed = False

    def preflight(self, requests: Mapping[str, ExecutorRequest]) -> list[Problem]:
        return []

    def submit(self, submission: Submission) -> str:
        error = self.cluster.trouble("submit")
        if error is None or not error.answered:
            self.cluster.jobs[submission.name] = submission
        if error is not None:
            raise error
        return submission.name

    def find(self, name: str) -> str | None:
        error = self.cluster.trouble("find")
        if error is not None:
            raise error
        return name if name in self.cluster.jobs else None

    def states(self, jobs: Mapping[str, int]) -> Iterator[RowState]:
        error = self.cluster.trouble("states")
        if error is not None:
            raise error
        with self.cluster.lock:
            yield from [state for job in jobs for state in self.cluster.states.get(job, {}).values()]
        # What no service of sound mind says changes nothing.
        yield RowState("of somebody else", 0, "failed", 0.0)
        yield from (RowState(job, rows + 5, "succeeded", 0.0) for job, rows in jobs.items())

    def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
        error = self.cluster.trouble("cancel")
        if error is not None:
            raise error
        for job in jobs:
            self.cluster.cancelled.append((job, running))
            known = self.cluster.states.get(job, {})
            for row in range(self.cluster.jobs[job].rows):
                if running or row not in known:
                    self.cluster.set(job, row, "failed", "cancelled")

    def last_lines(self, job: str, row: int) -> list[str]:
        self.cluster.calls.append("last_lines")
        return ["its last words"]

    def jobs(self, *, flow: str | None = None, run: str | None = None, user: str | None = None) -> list[FoundJob]:
        return []

    def close(self) -> None:
        self.closed = True


class Laptop:
    """One runtime's executor, and what it has told so far."""

    def __init__(self, cluster: Cluster, storage: MemoryStorage, max_rows: int = 10_000, **options) -> None:
        steps = {name: Step(ExecutorRequest("scripted"), 60.0) for name in ("train", "score")}
        check: Callable[[], None] = options.pop("check", lambda: None)
        work = Work(RUN, steps, lambda step, key: ["run", step, key], {"A": "b"}, "salt", 2, check)
        self.storage = storage
        self.cluster = cluster
        self.executor = RemoteExecutor(Scripted(cluster, max_rows), storage, work, **options)
        self.events: list[Event] = []

    def until(self, met: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not met():
            assert time.monotonic() < deadline, (self.events, self.executor.notices, self.cluster.calls[-20:])
            self.events += self.executor.poll()
            time.sleep(0.002)

    @property
    def ended(self) -> list[Ended]:
        return [event for event in self.events if isinstance(event, Ended)]

    def until_ended(self, count: int) -> None:
        self.until(lambda: len(self.ended) >= count)
        assert len(self.ended) == count

    def submitted(self) -> list[tuple[str, int]]:
        return [(job.step, job.rows) for job in self.cluster.jobs.values()]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def laptop(cluster):
    made: list[Laptop] = []

    def make(**options) -> Laptop:
        storage = made[0].storage if made else MemoryStorage()
        made.append(Laptop(cluster, storage, **options))
        return made[-1]

    yield make
    for each in made:
        each.executor.close()
        assert each.executor.file_descriptors() == ()


def launches(count: int, step: str = "train", attempt: int = 0) -> list[Launch]:
    parents = (Span("start", Coordinates()),)
    return [Launch(step, Coordinates((index,)), parents, attempt=attempt) for index in range(count)]


def commit(storage: MemoryStorage, launch: Launch) -> None:
    """Commit a task, as its container would have."""
    task = str(launch.coordinates)
    write_manifest(storage, Manifest("Flow", "1", launch.step, task, 0, {}, Transition("linear", ("join",))))


TRANSIENT = BackendError("slow down", transient=True)
LOST = BackendError("no answer", transient=True, answered=False)


def test_launches_of_a_step_go_together_as_far_as_a_job_has_rows(cluster, laptop) -> None:
    one = laptop(max_rows=4)
    wanted = [*launches(10), *launches(1, "score"), Launch("train", Coordinates((0,)), gang=3)]
    one.executor.submit(wanted)
    one.until(lambda: len(cluster.jobs) == 5)
    assert sorted(one.submitted()) == [("score", 1), ("train", 1), ("train", 2), ("train", 4), ("train", 4)]
    assert sorted(job.gang for job in cluster.jobs.values()) == [0, 0, 0, 0, 3]
    for job in cluster.jobs.values():
        assert job.timeout == 660.0
        assert dict(job.environment) == {"A": "b"}
        assert len(read_rows(one.storage, job.command[2], job.rows)) == job.rows
    for name, job in cluster.jobs.items():
        cluster.ended(name, range(job.rows))
    one.until_ended(12)
    assert sum(isinstance(event, Started) for event in one.events) == 12
    recorded = read_submissions(one.storage, "Flow", "1")
    assert {job.name: job.job for job in recorded} == {name: name for name in cluster.jobs}


def test_what_comes_fast_is_collected_into_larger_jobs(cluster, laptop) -> None:
    one = laptop()
    for index in range(60):
        one.executor.submit([launches(60)[index]])
        time.sleep(0.01)
    one.until(one.executor.submitted)
    assert sum(rows for _, rows in one.submitted()) == 60
    assert len(cluster.jobs) < 20


@pytest.mark.parametrize("answers", [[LOST], [TRANSIENT, LOST], [TRANSIENT, TRANSIENT], [LOST, LOST]])
def test_a_submission_that_is_not_answered_is_found_or_made_once(cluster, laptop, answers) -> None:
    cluster.errors["submit"] = list(answers)
    one = laptop()
    one.executor.submit(launches(3))
    one.until(one.executor.submitted)
    assert len(cluster.jobs) == 1
    made = sum(error is None or not error.answered for error in [*answers, None][: cluster.calls.count("submit")])
    assert made == 1
    name = next(iter(cluster.jobs))
    cluster.ended(name, range(3))
    one.until_ended(3)


def test_an_intent_is_there_before_the_job_and_its_id_after(cluster, laptop) -> None:
    one = laptop()
    seen: list[list[str]] = []
    submit = Scripted.submit

    class Looking(Scripted):
        def submit(self, submission: Submission) -> str:
            seen.append(list(one.storage.children(launches_folder("Flow", "1"))))
            return submit(self, submission)

    one.executor._backend.__class__ = Looking
    one.executor.submit(launches(2))
    one.until(one.executor.submitted)
    (name,) = cluster.jobs
    assert seen == [[f"{name}.json"]]
    assert set(one.storage.children(launches_folder("Flow", "1"))) == {f"{name}.json", f"{name}.job.json"}


def test_machines_that_go_away_cost_no_attempt_but_a_budget(cluster, laptop) -> None:
    one = laptop()
    one.executor.submit(launches(4))
    one.until(lambda: cluster.jobs)
    first = next(iter(cluster.jobs))
    cluster.set(first, 0, "failed", "evicted", "spot")
    cluster.set(first, 1, "failed", "capacity")
    cluster.set(first, 2, "failed", "exit", status=137)
    cluster.set(first, 3, "succeeded", status=0)
    one.until_ended(2)
    assert [(str(end.launch.ref), end.exit_status, end.reason) for end in one.ended] == [
        ("train/2", -9, None),
        ("train/3", 0, None),
    ]
    one.until(lambda: sum(rows for _, rows in one.submitted()) == 6)
    again = [name for name in cluster.jobs if name != first]
    for name in again:
        for row in range(cluster.jobs[name].rows):
            cluster.set(name, row, "failed", "lost")
    one.until(lambda: sum(rows for _, rows in one.submitted()) == 8)
    for name in [name for name in cluster.jobs if name not in (first, *again)]:
        for row in range(cluster.jobs[name].rows):
            cluster.set(name, row, "failed", "evicted", "spot again")
    one.until_ended(4)
    assert {(end.reason, end.message, end.launch.attempt) for end in one.ended[2:]} == {("evicted", "spot again", 0)}
    told = "\n".join(one.executor.notices)
    assert "train/0: the machine was reclaimed (spot); started again (1 of 2)" in told
    assert "train/1: no machine was found for it; started again (1 of 2)" in told
    assert "train, 2 tasks (train/0 and others): the service does not know the job any more" in told
    tries = sorted(job.tries for job in read_submissions(one.storage, "Flow", "1"))
    assert set(tries) == {0, 1, 2}


def test_a_task_that_was_done_before_its_machine_went_is_done(cluster, laptop) -> None:
    one = laptop()
    mine = launches(3)
    one.executor.submit(mine)
    one.until(lambda: cluster.jobs)
    (name,) = cluster.jobs
    commit(one.storage, mine[0])
    write_failure(one.storage, "Flow", "1", "train", "1", Failure("error", "ValueError: no", "ValueError"))
    write_failure(one.storage, "Flow", "1", "train", "2", Failure("killed", "by SIGTERM"))
    for row in range(3):
        cluster.set(name, row, "failed", "evicted")
    one.until_ended(2)
    assert [(str(end.launch.ref), end.exit_status, end.reason) for end in one.ended] == [
        ("train/0", 0, None),
        ("train/1", None, None),
    ]
    one.until(lambda: one.submitted() == [("train", 3), ("train", 1)])
    # How the attempt ends when it is carried out again has room.
    assert one.storage.info(failed_file("Flow", "1", "train", "2", 0)) is None


def test_a_gang_whose_node_went_away_starts_again_whole(cluster, laptop) -> None:
    one = laptop()
    one.executor.submit([Launch("train", Coordinates((0,)), gang=3)])
    one.until(lambda: cluster.jobs)
    (name,) = cluster.jobs
    gone = Failure("error", "TaskError: node 2 of the gang failed", "flowkit.exceptions.TaskError")
    write_failure(one.storage, "Flow", "1", "train", "0", gone)
    write_failure(one.storage, "Flow", "1", "train", "2", Failure("killed", "by SIGTERM"))
    cluster.set(name, 0, "failed", "evicted")
    one.until(lambda: len(cluster.jobs) == 2)
    assert [job.gang for job in cluster.jobs.values()] == [3, 3]
    assert all(one.storage.info(failed_file("Flow", "1", "train", str(node), 0)) is None for node in range(3))
    write_failure(one.storage, "Flow", "1", "train", "0", gone)
    write_failure(one.storage, "Flow", "1", "train", "1", Failure("error", "ValueError: no", "ValueError"))
    cluster.set(next(other for other in cluster.jobs if other != name), 0, "failed", "evicted")
    one.until_ended(1)
    assert len(cluster.jobs) == 2


@pytest.mark.parametrize(
    ("cause", "status", "reason", "message"),
    [
        ("image", None, "image", "no such image"),
        ("oom", 137, "oom", "no such image"),
        ("timeout", None, "timeout", "no such image"),
        ("exit", 3, None, ""),
        ("exit", 91, "setup", "the image lacks what flowkit needs"),
        ("exit", 96, "setup", "the code package is damaged"),
    ],
)
def test_what_is_the_tasks_own_is_not_started_again(cluster, laptop, cause, status, reason, message) -> None:
    one = laptop()
    one.executor.submit(launches(1))
    one.until(lambda: cluster.jobs)
    (name,) = cluster.jobs
    cluster.set(name, 0, "failed", cause, "no such image", status)
    one.until_ended(1)
    end = one.ended[0]
    assert (end.reason, end.message[: len(message)] if message else end.message) == (reason, message)
    assert cluster.calls.count("last_lines") == (cause != "image")
    assert len(cluster.jobs) == 1


def test_a_job_that_is_refused_ends_its_rows(cluster, laptop) -> None:
    cluster.errors["submit"] = [BackendError("no such queue", "make it")]
    one = laptop()
    one.executor.submit(launches(2))
    one.until_ended(2)
    assert {(end.reason, end.message) for end in one.ended} == {("rejected", "no such queue; make it")}


def test_withdrawing_takes_back_what_waits_only(cluster, laptop) -> None:
    one = laptop()
    one.executor.submit(launches(3))
    one.until(lambda: cluster.jobs)
    (name,) = cluster.jobs
    cluster.set(name, 1, "running")
    one.until(lambda: any(isinstance(event, Started) for event in one.events))
    one.executor.withdraw()
    one.executor.submit([])
    one.until_ended(2)
    assert {end.reason for end in one.ended} == {"cancelled"}
    assert cluster.cancelled == [(name, False)]
    cluster.set(name, 1, "failed", "evicted")
    one.until_ended(3)  # nothing is started again any more
    assert one.ended[-1].reason == "evicted"
    assert len(cluster.jobs) == 1


def test_cancelling_ends_all_also_what_was_not_submitted(cluster, laptop) -> None:
    cluster.errors["submit"] = [None, *[TRANSIENT] * 50]
    one = laptop(max_rows=2)
    one.executor.submit(launches(4))
    one.until(lambda: len(cluster.jobs) == 1 and cluster.calls.count("submit") > 1)
    one.executor.cancel(now=False)
    one.until_ended(4)
    assert {end.reason for end in one.ended} == {"cancelled"}
    assert [running for _, running in cluster.cancelled] == [True]


def test_cancelling_at_once_waits_for_no_answer(cluster, laptop) -> None:
    one = laptop()
    one.executor.submit(launches(2))
    one.until(lambda: cluster.jobs)
    cluster.errors["cancel"] = [TRANSIENT]
    cluster.errors["states"] = [TRANSIENT] * 1000
    one.executor.cancel(now=True)
    one.until_ended(2)


def test_another_runtime_takes_over_what_the_first_had_submitted(cluster, laptop) -> None:
    first = laptop()
    mine = launches(6)
    first.executor.submit(mine[:4])
    first.until(first.executor.submitted)
    (job,) = cluster.jobs
    # The answer to its last submission never came: an intent without an id, for a job that is there.
    cluster.errors["submit"] = [LOST]
    cluster.errors["find"] = [TRANSIENT] * 1000
    first.executor.submit(mine[4:5])
    first.until(lambda: len(cluster.jobs) == 2)
    assert first.executor.detach() == 5
    first.executor.close()
    other = next(name for name in cluster.jobs if name != job)
    recorded = read_submissions(first.storage, "Flow", "1")
    assert [found.job for found in sorted(recorded, key=lambda found: -found.rows)] == [job, None]

    cluster.errors.clear()
    cluster.ended(job, [0, 1, 2])
    cluster.set(job, 3, "failed", "deleted")
    second = laptop()
    # Task 0 is known to be done; 5 was never submitted.
    second.executor.adopt(recorded, mine[1:])
    second.until_ended(2)
    assert sorted(str(end.launch.ref) for end in second.ended) == ["train/1", "train/2"]
    second.until(lambda: len(cluster.jobs) == 4)
    assert sorted(rows for _, rows in second.submitted()) == [1, 1, 1, 4]
    for name in cluster.jobs:
        if name != job:
            cluster.ended(name, [0])
    second.until_ended(5)
    assert other in cluster.jobs
    names = {found.job: found.tries for found in read_submissions(first.storage, "Flow", "1")}
    assert names.keys() == set(cluster.jobs)
    assert sorted(names.values()) == [0, 0, 0, 1]


def test_who_has_lost_the_run_submits_nothing_and_leaves_its_jobs_alone(cluster, laptop) -> None:
    owned = [True]

    def check() -> None:
        if not owned[0]:
            raise Conflict("somebody else owns the run")

    one = laptop(check=check)
    one.executor.submit(launches(1))
    one.until(one.executor.submitted)
    owned[0] = False
    one.executor.submit(launches(1, "score"))
    with pytest.raises(Conflict, match="somebody else"):
        one.until(lambda: False)
    one.executor.close()
    assert one.submitted() == [("train", 1)]
    assert cluster.cancelled == []


def test_a_service_or_a_storage_that_is_silent_is_asked_again(cluster, laptop, monkeypatch) -> None:
    monkeypatch.setattr("flowkit.runtime.remote_jobs.UNREACHABLE_AFTER", 0.0)
    one = laptop()
    create, failing = one.storage.create, [3]

    def unreliable(path, content):
        if failing[0]:
            failing[0] -= 1
            raise StoreError("the storage is slow")
        return create(path, content)

    one.storage.create = unreliable  # type: ignore[method-assign]
    cluster.errors["states"] = [TRANSIENT, TRANSIENT]
    one.executor.submit(launches(1))
    one.until(one.executor.submitted)
    (name,) = cluster.jobs
    cluster.ended(name, [0])
    one.until_ended(1)
    assert "scripted does not answer, trying on: the storage is slow" in one.executor.notices[0]
    assert any("answers again" in line for line in one.executor.notices)


def test_a_service_on_this_machine_gets_no_more_than_it_may(cluster, laptop) -> None:
    one = laptop(limit=3)
    assert one.executor.capacity() == 3
    one.executor.submit(launches(2))
    assert one.executor.capacity() == 1
    one.until(lambda: cluster.jobs)
    (name,) = cluster.jobs
    cluster.ended(name, [0, 1])
    one.until_ended(2)
    assert one.executor.capacity() == 3
    assert laptop().executor.capacity() is None
