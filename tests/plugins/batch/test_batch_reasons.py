"""Why jobs failed, told apart by what AWS Batch says."""

from __future__ import annotations

import pytest

from flowkit.plugins.aws.batch_reasons import ending

ESSENTIAL = "Essential container in task exited"
NOT_STARTED = {"statusReason": "Task failed to start"}
OOM = "OutOfMemoryError: Container killed due to memory usage"
LIMIT = "Canceled by JobStateTimeLimit action due to reason: CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"


@pytest.mark.parametrize(
    ("cause", "told", "container"),
    [
        ("exit", {"statusReason": ESSENTIAL}, {"exitCode": 1}),
        ("exit", {"statusReason": ESSENTIAL}, {"exitCode": 137}),
        ("exit", {}, {"exitCode": 3}),
        ("oom", {"statusReason": ESSENTIAL}, {"exitCode": 137, "reason": OOM}),
        ("image", NOT_STARTED, {"reason": "CannotPullContainerError: Error response from daemon"}),
        ("image", NOT_STARTED, {"reason": 'CannotStartContainerError: exec: "python": executable file not found'}),
        ("image", {"statusReason": "ResourceInitializationError: unable to pull secrets or registry auth"}, {}),
        ("evicted", {"statusReason": "Host EC2 (instance i-0b1c2d3e4f) terminated."}, {}),
        ("evicted", {"statusReason": "Host EC2 (instance i-0b1c2d3e4f) terminated."}, {"exitCode": 137}),
        ("evicted", {"statusReason": "Your Spot Task was interrupted."}, {"exitCode": 143}),
        ("evicted", NOT_STARTED, {"reason": "DockerTimeoutError: Could not transition to created"}),
        ("capacity", {"statusReason": "Capacity is unavailable at this time. Please try again later"}, {}),
        ("capacity", {"statusReason": LIMIT, "isCancelled": True}, {}),
        ("timeout", {"statusReason": "Job attempt duration exceeded timeout"}, {"exitCode": 137}),
        ("timeout", {"statusReason": "Job attempt duration exceeded timeout", "isTerminated": True}, {}),
        ("cancelled", {"statusReason": "flowkit: the run is being stopped", "isTerminated": True}, {"exitCode": 143}),
        ("deleted", {"statusReason": "I need the machines", "isTerminated": True}, {"exitCode": 143}),
        ("deleted", {"statusReason": "I need the machines", "isCancelled": True}, {}),
        ("deleted", {"statusReason": "I need the machines"}, {"exitCode": 137}),
        ("deleted", {"statusReason": "Terminated from console"}, {}),
        ("lost", {"statusReason": "Something that nobody has heard of"}, {}),
        ("lost", {}, {}),
    ],
)  # fmt: skip
def test_causes(cause, told, container) -> None:
    found = ending({"jobId": "x", "status": "FAILED", **told, "container": container})
    assert (found.cause, found.exit_status) == (cause, container.get("exitCode"))


def test_the_message_is_what_says_most() -> None:
    assert ending({"statusReason": ESSENTIAL, "container": {"exitCode": 137, "reason": OOM}}).message == OOM
    assert ending({"statusReason": "Somebody", "container": {"reason": "else"}}).message == "Somebody (else)"
    assert ending({"statusReason": "Host EC2 (i) terminated."}).message == "Host EC2 (i) terminated."
    assert ending({"statusReason": "a\nb\x1b" + "c" * 600}).message.startswith("a b")
    assert len(ending({"statusReason": "c" * 600}).message) == 500


def test_the_last_attempt_tells_where_the_job_does_not() -> None:
    job = {"statusReason": ESSENTIAL, "container": {}, "attempts": [{"container": {"exitCode": 9}}]}
    assert ending(job).exit_status == 9
