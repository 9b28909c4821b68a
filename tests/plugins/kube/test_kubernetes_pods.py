"""What the status of a pod means, by itself."""

from __future__ import annotations

from typing import Any

import pytest

from flowkit.plugins.kubernetes.pods import PodState, epoch, read_pod
from flowkit.plugins.kubernetes.rows import JobFacts, JobId, RowBook


def pod(status: dict[str, Any], *, node: str = "n", leaving: bool = False, index: str | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "uid": "u",
        "name": "fk-1-x",
        "labels": {"flowkit/job": "fk-1"},
        "annotations": {},
        "creationTimestamp": "2026-01-02T03:04:05Z",
    }
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-02T03:05:05Z"
    if index is not None:
        metadata["annotations"]["batch.kubernetes.io/job-completion-index"] = index
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


def main(**state: Any) -> list[dict[str, Any]]:
    """The states of the containers of a pod: ours, and one that a mesh has put there."""
    return [{"name": "istio-proxy", "state": {"running": {}}}, {"name": "main", "state": state}]


def read(*args: Any, **options: Any) -> PodState:
    state = read_pod(pod(*args, **options))
    assert state is not None
    return state


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "more urgent"}


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ({"phase": "Pending"}, "starting"),
        ({"phase": "Pending", "containerStatuses": main(waiting={"reason": "ContainerCreating"})}, "starting"),
        ({"phase": "Running", "containerStatuses": main(waiting={"reason": "PodInitializing"})}, "starting"),
        ({"phase": "Running", "containerStatuses": main(running={"startedAt": "2026-01-02T03:04:09Z"})}, "running"),
        ({"phase": "Running", "containerStatuses": main(terminated={"exitCode": 0})}, "running"),
        ({"phase": "Succeeded", "containerStatuses": main(terminated={"exitCode": 0})}, "succeeded"),
        ({"phase": "Succeeded"}, "succeeded"),
    ],
)
def test_phases(status: dict[str, Any], phase: str) -> None:
    assert read(status).phase == phase


def test_a_pod_without_a_machine_waits_and_says_why() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3\nnodes \x1b[2J"}
    state = read({"phase": "Pending", "conditions": [condition]}, node="", index="4")
    assert (state.phase, state.row) == ("queued", 4)
    assert state.message == "0/3 nodes \ufffd[2J", "nothing of it reaches a terminal as it is"


@pytest.mark.parametrize(
    ("reason", "message", "trouble"),
    [
        ("ErrImagePull", "rpc error: code = NotFound: manifest unknown", "never"),
        ("ErrImagePull", "dial tcp: i/o timeout", "pull"),
        ("ImagePullBackOff", 'Back-off pulling image "x"', "pull"),
        ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: x: not found', "never"),
        ("InvalidImageName", "couldn't parse", "never"),
        ("CreateContainerConfigError", 'secret "db" not found', "pull"),
        ("ContainerCreating", "", None),
    ],
)
def test_containers_that_do_not_start(reason: str, message: str, trouble: str | None) -> None:
    waiting = {"reason": reason, "message": message}
    assert read({"phase": "Pending", "containerStatuses": main(waiting=waiting)}).trouble == trouble


def failed(why: str = "", said: str = "", /, conditions: Any = (), **ended: Any) -> dict[str, Any]:
    return {
        "phase": "Failed",
        "reason": why,
        "message": said,
        "conditions": list(conditions),
        "containerStatuses": main(terminated=ended) if ended else [],
    }


@pytest.mark.parametrize(
    ("status", "cause", "code"),
    [
        (failed(exitCode=3, reason="Error"), "exit", 3),
        (failed(exitCode=137, reason="Error"), "exit", 137),
        (failed(exitCode=137, reason="OOMKilled"), "oom", 137),
        (failed(exitCode=1, reason="OOMKilled"), "oom", 1),
        (failed("DeadlineExceeded", "too long", exitCode=143, reason="Error"), "timeout", 143),
        (
            failed(
                "Evicted", "The node was low on resource: memory. Container main uses 9Gi, which exceeds its request"
            ),
            "oom",
            None,
        ),
        (failed("Evicted", "The node was low on resource: ephemeral-storage."), "evicted", None),
        (
            failed("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 1M."),
            "exit",
            None,
        ),
        (failed("Shutdown", "Node is shutting down", exitCode=143), "evicted", 143),
        (failed("NodeLost"), "evicted", None),
        (failed("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu"), "capacity", None),
        (failed("UnexpectedAdmissionError", "no devices"), "capacity", None),
        (failed(conditions=[DISRUPTED], exitCode=143, reason="Error"), "evicted", 143),
        (failed(exitCode=137, reason="ContainerStatusUnknown"), "evicted", 137),
        (failed(), "evicted", None),
        (failed(exitCode=128, reason="StartError", message="exec: python: not found"), "image", 128),
    ],
)
def test_causes_of_failures(status: dict[str, Any], cause: str, code: int | None) -> None:
    state = read(status)
    assert (state.cause, state.exit_status) == (cause, code)
    assert state.message


def test_a_pod_that_was_deleted_did_not_fail_by_itself() -> None:
    assert read(failed(exitCode=143, reason="Error"), leaving=True).cause == "deleted"


@pytest.mark.parametrize("odd", [{}, {"metadata": {}}, {"metadata": {"labels": {"app": "x"}}, "status": None}])
def test_pods_that_are_not_ours_are_left_alone(odd: dict[str, Any]) -> None:
    assert read_pod(odd) is None


def test_times() -> None:
    assert epoch("1970-01-01T00:01:00Z") == epoch("1970-01-01T00:01:00.123456Z") == 60.0
    assert epoch(None) == epoch("soon") == epoch("9999-99-99T99:99:99Z") == 0.0


# -- the book ---------------------------------------------------------------------------------------------------------

JOB = JobId("ns", "fk-1")


def heard(row: int, phase: str, **changes: Any) -> PodState:
    return PodState(f"u{row}", f"p{row}", "fk-1", row, phase, 1.0, **changes)  # type: ignore[arg-type]


def told(book: RowBook, job: JobId = JOB) -> list[tuple[int, str, str | None]]:
    return [(state.row, state.phase, state.cause) for state in book.take([("id", job)])]


def test_each_change_is_told_once() -> None:
    book = RowBook()
    book.changed("ns", heard(0, "queued"))
    book.changed("ns", heard(1, "running"))
    assert told(book) == [(0, "queued", None), (1, "running", None)]
    book.changed("ns", heard(1, "running"))
    book.changed("ns", heard(0, "queued", message="0/3 nodes"))
    assert told(book) == []
    book.changed("ns", heard(1, "failed", cause="exit"))
    book.changed("ns", heard(1, "succeeded"))
    assert told(book) == [(1, "failed", "exit")], "an end is for good"


def test_pods_of_other_namespaces_are_others() -> None:
    book = RowBook()
    book.changed("elsewhere", heard(0, "failed", cause="exit"))
    assert told(book) == []


def test_a_pod_that_vanishes_after_its_success_was_missed_has_succeeded() -> None:
    book = RowBook()
    book.changed("ns", heard(0, "running"))
    book.changed("ns", heard(1, "running"))
    told(book)
    book.listed("ns", [])
    assert told(book) == []
    assert book.unresolved == {"ns/fk-1": {0, 1}}
    book.settle(JOB, 2, JobFacts([(0, 0)], [], None, ""), known=True, unseen=False)
    assert told(book) == [(0, "succeeded", None), (1, "failed", "deleted")]


def test_rows_that_no_pod_was_seen_of_follow_their_job() -> None:
    book = RowBook()
    facts = JobFacts([(0, 1)], [(2, 2)], "Failed", "Job has failed indexes")
    book.settle(JOB, 3, facts, known=True, unseen=False)
    assert told(book) == []
    book.settle(JOB, 3, facts, known=True, unseen=True)
    assert told(book) == [(0, "succeeded", None), (1, "succeeded", None), (2, "failed", "lost")]


def test_what_nobody_asks_for_any_more_is_forgotten() -> None:
    book = RowBook()
    book.changed("ns", heard(0, "succeeded"))
    assert told(book) == [(0, "succeeded", None)]
    book.forget([])
    book.changed("ns", heard(0, "succeeded"))
    assert told(book) == []
    assert book.pods("ns/fk-1") == {}


def test_a_gang_is_as_far_as_its_slowest_node() -> None:
    book, job = RowBook(), JobId("ns", "fk-1", "job", 3)
    book.changed("ns", heard(0, "running"))
    assert told(book, job) == [(0, "queued", None)]
    book.changed("ns", heard(1, "running"))
    book.changed("ns", heard(2, "starting"))
    assert told(book, job) == [(0, "starting", None)]
    book.changed("ns", heard(2, "running"))
    assert told(book, job) == [(0, "running", None)]
    book.changed("ns", heard(1, "failed", cause="exit", exit_status=4))
    assert told(book, job) == [], "the others are still there"
    book.changed("ns", heard(0, "failed", cause="deleted"))
    book.vanished("ns", heard(2, "running", leaving=True, disrupted=None))
    book.settle(job, 1, JobFacts([], [], "Failed", "backoff"), known=True, unseen=False)
    assert told(book, job) == [(0, "failed", "exit")]


def test_ids_are_read_as_they_are_written() -> None:
    for job in (JOB, JobId("ns", "a.b", "jobset", 4)):
        assert JobId.read(str(job)) == job
