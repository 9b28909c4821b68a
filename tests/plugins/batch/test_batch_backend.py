"""`BatchBackend` against moto's Batch over HTTP, with the execution of jobs turned off."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter

import pytest
from batch_account import BUCKET, DISABLED_QUEUE, FARGATE_QUEUE, ROLE
from batch_service import EVICTED, OUT_OF_MEMORY, TIMED_OUT

from flowkit.decorators.contract import ExecutorRequest
from flowkit.plugins.aws import batch_states, session
from flowkit.plugins.aws.batch import BatchBackend
from flowkit.plugins.aws.batch_calls import call
from flowkit.plugins.aws.batch_states import Watch
from flowkit.runtime.backend import BackendError, RemoteRun, RowState, Submission
from flowkit.settings import settings

RUN = RemoteRun("Train", "7", "jo", f"s3://{BUCKET}/x")
_names = iter(range(10_000))


def submission(rows: int = 1, gang: int = 0, **resources) -> Submission:
    name = f"fk-train-7-{os.getpid():08x}{next(_names):08x}"
    request = ExecutorRequest("batch", resources)
    return Submission(name, "train", rows, gang, request, ["python", "-c", "pass"], {"A": "b"}, None)


@pytest.fixture
def held(aws):
    """The service, which executes nothing."""
    aws.hold = True
    yield aws
    for job in aws.jobs():
        aws.backend.terminate_job(job.job_id, "the test is over")
    aws._waiting.clear()


@pytest.fixture
def backend(held) -> BatchBackend:
    return BatchBackend(RUN)


class Clock:
    """Looks at jobs at times of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = Watch(call)

    def look(self, jobs, after: float = 100.0) -> list[RowState]:
        self.now += after
        return list(self.watch.look(jobs, self.now))


def told(states: list[RowState]) -> list[tuple]:
    return [(state.row, state.phase, state.cause) if state.cause else (state.row, state.phase) for state in states]


# -- submitting -------------------------------------------------------------------------------------------------------


def test_definitions_are_registered_once_for_their_content(held, backend) -> None:
    for rows in (1, 2, 3):
        backend.submit(submission(rows, cpu=2, memory=777))
    assert held.calls["SubmitJob"] == 3
    assert held.calls["RegisterJobDefinition"] == held.calls["DescribeJobDefinitions"] == 1
    BatchBackend(RUN).submit(submission(cpu=2, memory=777))  # another process finds it
    assert held.calls["RegisterJobDefinition"] == 1
    backend.submit(submission(cpu=2, memory=778))
    assert held.calls["RegisterJobDefinition"] == 2


def test_jobs_are_found_by_name_and_listed_by_tags(held, backend) -> None:
    single, array = submission(), submission(12)
    ids = [backend.submit(single), backend.submit(array)]
    for one in (backend, BatchBackend(RUN), BatchBackend(None)):
        assert [one.find(single.name), one.find(array.name)] == ids
        assert one.find(single.name[:-1]) is None
    listed = {job.job: job for job in BatchBackend(None).jobs(flow="Train", run="7", user="jo")}
    assert set(ids) <= set(listed)
    job = listed[ids[1]]
    assert (job.name, job.flow, job.run, job.step, job.user, job.rows) == (array.name, "Train", "7", "train", "jo", 12)
    assert abs(job.created - time.time()) < 600
    assert BatchBackend(None).jobs(flow="Train", run="8") == []
    assert BatchBackend(None).jobs(user="ann") == []
    held.set(ids[0], "SUCCEEDED")
    assert ids[0] not in {job.job for job in backend.jobs()}
    assert backend.find(single.name) == ids[0]  # also what has ended


def test_a_lost_answer_is_told_as_one_and_the_job_is_found(held, backend) -> None:
    job = submission()
    backend.submit(submission())
    held.lose["SubmitJob"] = 1
    with pytest.raises(BackendError) as raised:
        backend.submit(job)
    assert (raised.value.transient, raised.value.answered) == (True, False)
    assert backend.find(job.name) is not None


@pytest.mark.parametrize(
    ("status", "code", "word", "transient", "answered"),
    [
        (429, "TooManyRequestsException", "slow down", True, True),
        (500, "ServerException", "did not answer", True, False),
        (403, "ExpiredTokenException", "have expired", True, True),
        (403, "AccessDeniedException", "permission denied", False, True),
        (403, "UnrecognizedClientException", "does not accept", False, True),
        (400, "ClientException", "asked for by a test", False, True),
    ],
)
def test_refusals_are_told_apart(held, backend, status, code, word, transient, answered) -> None:
    """Expired credentials are no end: jobs go on, and are looked at again with new ones."""
    held.refuse["DescribeJobs"] = (status, code)
    with pytest.raises(BackendError, match=word) as raised:
        list(backend.states({"x": 1}))
    assert (raised.value.transient, raised.value.answered) == (transient, answered)
    assert list(backend.states({"x": 1})) == []


def test_a_service_that_is_gone_may_come_back(aws, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    session.forget()
    with pytest.raises(BackendError, match="cannot be reached") as raised:
        BatchBackend(RUN).submit(submission())
    assert (raised.value.transient, raised.value.answered) == (True, True)


def test_what_the_service_refuses_names_the_step(held, backend) -> None:
    with pytest.raises(
        BackendError, match=r"step 'train' cannot run on AWS Batch: an array has up to 10,000"
    ) as raised:
        backend.submit(submission(10_001))
    assert not raised.value.transient
    with pytest.raises(BackendError, match="there is no queue 'nowhere'"):
        backend.submit(submission(queue="nowhere"))


# -- states -----------------------------------------------------------------------------------------------------------


def test_a_single_job_from_its_submission_to_its_end(held, backend) -> None:
    job, clock = backend.submit(submission()), Clock()
    assert clock.look({job: 1}) == []
    held.set(job, "RUNNABLE", statusReason="MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT - no machine is large enough")
    (waits,) = clock.look({job: 1})
    assert (waits.phase, waits.message[:16]) == ("queued", "MISCONFIGURATION")
    held.set(job, "RUNNING")
    assert told(clock.look({job: 1})) == [(0, "running")]
    assert clock.look({job: 1}) == []
    held.set(job, "FAILED", statusReason="Essential container in task exited", exitCode=3)
    (failed,) = clock.look({job: 1})
    assert (failed.phase, failed.cause, failed.exit_status) == ("failed", "exit", 3)
    assert abs(failed.when - time.time()) < 600
    # Whoever takes over hears all of it.
    assert told(Clock().look({job: 1})) == [(0, "running"), (0, "failed", "exit")]


def test_jobs_are_described_by_a_hundred(held, backend) -> None:
    jobs = [backend.submit(submission()) for _ in range(101)]
    held.set(jobs[3], "SUCCEEDED")
    held.calls.clear()
    assert {state.job for state in Clock().look(dict.fromkeys(jobs, 1))} == {jobs[3]}
    assert held.calls == {"DescribeJobs": 2}


def test_children_of_an_array_are_asked_about_when_some_have_moved(held, backend) -> None:
    job, clock = backend.submit(submission(20)), Clock()
    assert clock.look({job: 20}) == []
    held.calls.clear()
    assert clock.look({job: 20}) == []
    assert held.calls == {"DescribeJobs": 1}
    endings = {
        3: {"reason": OUT_OF_MEMORY, "exitCode": 137},
        4: {"statusReason": EVICTED},
        5: {"statusReason": TIMED_OUT, "exitCode": 137},
        6: {"statusReason": "I need it", "isTerminated": True, "exitCode": 143},
        7: {"statusReason": "Essential container in task exited", "exitCode": 1},
    }
    for row in (0, 1, 2, *endings):
        held.set(f"{job}:{row}", "RUNNING")
    held.set(f"{job}:0", "SUCCEEDED")
    for row, ending in endings.items():
        held.set(f"{job}:{row}", "FAILED", **ending)
    states = clock.look({job: 20})
    ended = {state.row: state.cause for state in states if state.phase in ("succeeded", "failed")}
    assert ended == {0: None, 3: "oom", 4: "evicted", 5: "timeout", 6: "deleted", 7: "exit"}
    assert {state.row for state in states if state.phase == "running"} == {0, 1, 2, *endings}
    assert clock.look({job: 20}) == []
    for row in set(range(20)) - set(ended):
        held.set(f"{job}:{row}", "SUCCEEDED")
    rest = [state for state in clock.look({job: 20}) if state.phase == "succeeded"]
    assert {state.row for state in rest} == set(range(20)) - set(ended)


def test_what_an_error_cuts_off_is_told_again(held, backend) -> None:
    job, watch = backend.submit(submission(5)), Watch(call)
    for row in range(5):
        held.set(f"{job}:{row}", "SUCCEEDED")
    first = watch.look({job: 5}, 1000.0)
    seen = [next(first) for _ in range(4)]
    first.close()
    seen += list(watch.look({job: 5}, 2000.0))
    assert {state.row for state in seen if state.phase == "succeeded"} == set(range(5))


def test_a_wide_array_costs_few_calls(held, backend) -> None:
    """A smaller form of benchmarks/batch_calls.py."""
    rows = 1200
    job, watch, now = backend.submit(submission(rows)), Watch(call), 1000.0
    counted: Counter[str] = Counter()
    session.client("batch").meta.events.register(
        "before-call.batch", lambda model, **_: counted.update([model.name]), unique_id="counted"
    )
    ended: set[int] = set()
    minutes = 4
    for minute in range(minutes):
        for look in range(6):
            step = minute * 6 + look
            for row in range(step * 50, min(rows, step * 50 + 50)):
                held.job(f"{job}:{row}").status = "RUNNING"
            for row in range(max(0, step * 50 - 50), step * 50):
                held._finish(held.job(f"{job}:{row}"), {"exitCode": 0}, succeeded=True)
            for state in watch.look({job: rows}, now):
                if state.phase == "succeeded":
                    assert state.row not in ended
                    ended.add(state.row)
            now += 10
    session.client("batch").meta.events.unregister("before-call.batch", unique_id="counted")
    assert len(ended) == 23 * 50
    assert sum(counted.values()) / minutes <= 0.02 * rows, counted
    assert held.calls["SubmitJob"] == 1


def test_a_job_that_nobody_knows_is_lost_after_a_while(held) -> None:
    clock = Clock()
    gone = {"00000000-0000-0000-0000-000000000000": 3}
    assert clock.look(gone, 1) == []
    assert clock.look(gone, 1) == []
    assert told(clock.look(gone, batch_states.MISSING_FOR)) == [(row, "failed", "lost") for row in range(3)]


def test_an_array_that_fails_before_it_has_children(held, backend) -> None:
    job, clock = backend.submit(submission(3)), Clock()
    held.job(job)._child_jobs = None
    for row in range(3):
        del held.backend._jobs[f"{job}:{row}"]
    held.set(job, "FAILED", statusReason="Container Overrides length must be at most 8192")
    (first, *_) = states = clock.look({job: 3})
    assert len(states) == 3
    assert "8192" in first.message


def test_a_gang_fails_for_the_reason_of_the_node_that_failed_first(held, backend) -> None:
    job, clock = backend.submit(submission(gang=3)), Clock()
    held.set(job, "RUNNING")
    assert told(clock.look({job: 1})) == [(0, "running")]
    held._nodes[job][2].update(status="FAILED", statusReason=EVICTED, stoppedAt=1000)
    assert clock.look({job: 1}) == []
    held._nodes[job][1].update(status="FAILED", statusReason="x", container={"exitCode": 1}, stoppedAt=2000)
    # The others wait for it: the gang is ended as a whole.
    assert clock.look({job: 1}) == []
    assert held.calls["TerminateJob"] == 1
    assert told(clock.look({job: 1})) == [(0, "failed", "evicted")]


# -- ending -----------------------------------------------------------------------------------------------------------


def test_cancelling_ends_what_waits_and_spares_what_runs(held, backend) -> None:
    job, clock = backend.submit(submission(4)), Clock()
    held.set(f"{job}:0", "RUNNING")
    held.set(f"{job}:1", "STARTING")
    backend.cancel([job], "enough", running=False)
    states = clock.look({job: 4})
    assert {state.row: state.cause for state in states if state.phase == "failed"} == {2: "cancelled", 3: "cancelled"}
    backend.cancel([job], "enough", running=True)
    assert {state.row: state.cause for state in clock.look({job: 4}) if state.phase == "failed"} == {
        0: "cancelled",
        1: "cancelled",
    }
    backend.cancel([job, "00000000-0000-0000-0000-000000000000"], "enough", running=True)  # ended ones are no error


def test_children_that_the_end_of_an_array_spared_are_ended_one_by_one(held, backend) -> None:
    job, clock = backend.submit(submission(4)), Clock()
    held.spare_starting = True
    held.set(f"{job}:0", "RUNNING")
    held.set(f"{job}:1", "STARTING")
    reason = "flowkit: enough"
    call("terminate_job", jobId=job, reason=reason)
    clock.watch.press(job, reason, running=True, now=clock.now)
    seen = [state for _ in range(4) for state in clock.look({job: 4}, batch_states.PRESS_EVERY)]
    assert {state.row: state.cause for state in seen if state.phase == "failed"} == dict.fromkeys(range(4), "cancelled")


def test_the_last_lines_come_from_the_log_of_the_service(held, backend) -> None:
    job = backend.submit(submission(2))
    assert backend.last_lines(job, 1) == []
    logs, child = held.client("logs"), held.job(f"{job}:1")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):  # another test may have run jobs
        logs.create_log_group(logGroupName="/aws/batch/job")
    logs.create_log_stream(logGroupName="/aws/batch/job", logStreamName="a/b/c")
    now = int(time.time() * 1000)
    lines = [{"timestamp": now, "message": f"line {number}"} for number in range(50)]
    logs.put_log_events(logGroupName="/aws/batch/job", logStreamName="a/b/c", logEvents=lines)
    child.log_stream_name = "a/b/c"
    assert backend.last_lines(job, 1) == [f"line {number}" for number in range(30, 50)]
    child.log_stream_name = "there/is/none"
    assert backend.last_lines(job, 1) == []


# -- before a run -----------------------------------------------------------------------------------------------------


def preflight(**steps) -> list[str]:
    asked = {name: ExecutorRequest("batch", wanted) for name, wanted in steps.items()}
    return [str(problem) for problem in BatchBackend(RUN).preflight(asked)]


def test_nothing_is_wrong_with_what_is_right(aws) -> None:
    assert preflight(train={"cpu": 16, "memory": 60_000}, join={}) == []
    assert preflight(train={"queue": FARGATE_QUEUE, "execution_role": ROLE}) == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"queue": "flowkit-queu"}, ("there is no queue 'flowkit-queu' in us-east-1", "did you mean 'flowkit-queue'?")),
        ({"queue": DISABLED_QUEUE}, ("is disabled", "'train'")),
        ({"cpu": 100}, ("64 processors at the most",)),
        ({"memory": 300_000}, ("no instance type", "65536")),
        ({"memory": 99_999_999}, ("memory=99999999,",)),
        ({"gpu": 1}, ("no instance type", "0 GPUs")),
        ({"queue": FARGATE_QUEUE, "gpu": 1, "execution_role": ROLE}, ("gpu is not to be had on Fargate",)),
        ({"queue": FARGATE_QUEUE, "cpu": 3, "execution_role": ROLE}, ("cpu=3",)),
        ({"ephemeral_storage": 30}, ("is for Fargate",)),
    ],
)
def test_what_cannot_run_is_told_before(aws, wanted, words) -> None:
    told = preflight(train=wanted, join={"cpu": 1})
    assert len(told) == 1
    assert all(word in told[0] for word in words), told


def test_everything_wrong_is_told_at_once(aws) -> None:
    told = preflight(a={"cpu": 100}, b={"queue": DISABLED_QUEUE}, c={"queue": "none"})
    assert len(told) == 3


def test_without_a_queue(aws, monkeypatch) -> None:
    monkeypatch.delenv("FLOWKIT_BATCH_QUEUE")
    settings(reload=True)
    (told,) = preflight(train={})
    assert "no queue is named for step 'train'" in told
    with pytest.raises(BackendError, match="no queue"):
        BatchBackend(RUN).submit(submission())


def test_a_wrong_region_says_which_one_was_looked_at(aws, monkeypatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    session.forget()
    (told,) = preflight(train={})
    assert "in eu-central-1" in told
    assert "there is none; is it the right one?" in told


def test_without_credentials_and_without_a_region(aws, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    session.forget()
    (told,) = preflight(train={})
    assert "there are no AWS credentials" in told or "credentials cannot be had" in told
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    session.forget()
    (told,) = preflight(train={})
    assert "there are no AWS credentials" in told
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    session.forget()
    (told,) = preflight(train={})
    assert "region" in told


def test_a_datastore_that_jobs_do_not_reach(aws) -> None:
    backend = BatchBackend(RUN._replace(root="/home/jo/.flowkit"))
    (told,) = backend.preflight({"train": ExecutorRequest("batch")})
    assert "s3://" in str(told)
