"""Whole runs on this machine whose datastore is on S3 (moto over HTTP, the real boto3): as on a local root."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid

import pytest
from s3_trouble import Trouble

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")

FLOW = """
    import os
    import sys
    import time

    from flowkit import FlowSpec, Parameter, current, retry, step


    class Wide(FlowSpec):
        width = Parameter("width", default=3)
        broken = Parameter("broken", default=-1)
        pause = Parameter("pause", default=0.0)

        @step
        def start(self):
            import numpy

            self.items = list(range(self.width))
            self.big = numpy.arange(1_250_000)  # 10 MB
            print("begun")
            self.next(self.each, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @step
        def each(self):
            print("item", self.input, "attempt", current.retry_count)
            print("to stderr", file=sys.stderr)
            if self.input == self.broken and os.environ.get("MENDED") is None:
                raise ValueError("made to fail")
            self.double = int(self.big[self.input]) * 2
            self.next(self.join)

        @step
        def join(self, inputs):
            self.total = sum(each.double for each in inputs)
            self.merge_artifacts(inputs, include=["big"])
            self.next(self.end)

        @step
        def end(self):
            deadline = time.time() + self.pause
            while time.time() < deadline:
                print("tick", flush=True)
                time.sleep(0.2)
            print("sum", int(self.big.sum()))


    if __name__ == "__main__":
        Wide()
"""


@pytest.fixture
def root(workspace, moto_endpoint):
    """A new bucket, which the workspace's settings name; and the flow."""
    account = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_DEFAULT_REGION": "us-east-1"}
    workspace.env.update(account, FLOWKIT_S3_ENDPOINT_URL=moto_endpoint)
    for name in ("XDG_CACHE_HOME", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        workspace.env.pop(name, None)
    bucket = f"runs-{uuid.uuid4().hex}"
    client = boto3.client(
        "s3", endpoint_url=moto_endpoint, aws_access_key_id="id", aws_secret_access_key="key", region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)
    client.close()
    workspace.env["FLOWKIT_DATASTORE"] = f"s3://{bucket}/some/prefix"
    workspace.write("flow.py", FLOW)
    return workspace.env["FLOWKIT_DATASTORE"]


@pytest.fixture
def colleague(workspace, root):
    """Somebody else's environment: another home, another name."""
    home = workspace.home.parent / "colleague"
    home.mkdir()
    return {"HOME": str(home), "FLOWKIT_HOME": str(home / "flowkit"), "USER": "ada", "LOGNAME": "ada"}


def spooled(workspace) -> list[str]:
    """Return the logs that still wait on this machine."""
    return [str(path) for path in (workspace.home / ".cache").glob("flowkit/roots/*/logs/**/log")]


def test_a_run_is_as_on_a_local_root(workspace, root, colleague) -> None:
    kind = {"FLOWKIT_DATASTORE": None}
    place = ("--datastore", "s3", "--datastore-root", root)
    done = workspace.run(*place, "run", "--width", 20, "--tag", "first", env=kind, check=True)
    assert "fresh interpreters" not in done.output
    assert os.listdir(workspace.path) == ["flow.py"] or sorted(os.listdir(workspace.path)) == ["__pycache__", "flow.py"]
    assert spooled(workspace) == []

    assert "total = 380\n" in workspace.run("dump", "1/join", check=True).stdout
    assert workspace.run("logs", "1/each/7", check=True).stdout == "item 7 attempt 0\nto stderr\n"
    lines = workspace.run("logs", "1", check=True).stdout.splitlines()
    assert len(lines) == 42
    assert workspace.run("logs", "1/end", "--tail", 1, check=True).stdout == "sum 781249375000\n"

    # Somebody else, who has never been here, sees the same.
    told = json.loads(workspace.run("status", "1", "--json", env=colleague, check=True).stdout)
    assert told["state"] == "succeeded"
    assert {step["step"]: step["succeeded"] for step in told["steps"]} == {"start": 1, "each": 20, "join": 1, "end": 1}
    seen = workspace.python(
        """
        from flowkit import Flow, namespace
        namespace(None)
        run = Flow("Wide").latest_run
        task = run["each"]["3"]
        print(run.successful, sorted(run.user_tags), run.data.total, int(run.data.big[-1]))
        print(repr(task.stdout), repr(task.stderr), [text for _, text in task.loglines("stdout")], task.stdout_size)
        print(len(list(run["each"])), task.tail(1))
        """,
        env=colleague,
        check=True,
    ).stdout.splitlines()
    assert seen == [
        "True ['first'] 380 1249999",
        r"'item 3 attempt 0\n' 'to stderr\n' ['item 3 attempt 0'] 17",
        "20 ['to stderr']",
    ]


def test_a_run_on_a_service_of_which_a_third_of_the_calls_fail(workspace, root, moto_endpoint) -> None:
    with Trouble(moto_endpoint, rate=0.3, seed=11) as trouble:
        workspace.env["FLOWKIT_S3_ENDPOINT_URL"] = trouble.url
        workspace.run("run", "--width", 5, check=True)
        assert sum(trouble.seen[fault] for fault in trouble.faults) > 10
    workspace.env["FLOWKIT_S3_ENDPOINT_URL"] = moto_endpoint
    look = """
        from flowkit import Run
        run = Run("Wide/1")
        print(run.successful, run["join"].task.data.total, *(task.stdout.strip() for task in run["each"]))
    """
    printed = workspace.python(look, check=True).stdout.strip()
    assert printed.startswith("True 20 ")
    assert all(f"item {index} attempt 0" in printed for index in range(5))


def test_a_failed_run_is_resumed(workspace, root, colleague) -> None:
    failed = workspace.run("run", "--broken", 1, check=1)
    assert "Task Wide/1/each/1 failed" in failed.output
    assert "ValueError: made to fail" in workspace.run("logs", "1/each/1", "--attempt", 0, check=True).stdout
    plan = json.loads(workspace.run("resume", "--plan", "--json", check=True).stdout)
    assert plan["cloned"] == 3

    # From another machine, which knows of the run from the datastore alone.
    done = workspace.run("resume", "--origin-run-id", 1, env={**colleague, "MENDED": "1"}, check=True)
    assert "fresh interpreters" not in done.output
    assert "each: 2 tasks cloned." in done.output
    assert "total = 6\n" in workspace.run("dump", "2/join", check=True).stdout
    found = json.loads(workspace.run("status", "--json", check=True).stdout)
    assert [(run["run"], run["state"], run["user"]) for run in found] == [
        ("2", "succeeded", "ada"),
        ("1", "failed", "tester"),
    ]


def test_a_step_is_spun_and_what_it_made_stays_on_this_machine(workspace, root) -> None:
    workspace.run("run", check=True)
    told = workspace.run("spin", "each/2", "--persist", check=True)
    assert "double = 4" in told.output
    assert "kept as Wide/spin-1/each/2" in told.output
    looked = workspace.python(
        f"""
        from flowkit import Task, Flow, inspect_spin
        assert [run.id for run in Flow("Wide")] == ["1"]
        inspect_spin({root!r})
        print(Task("Wide/spin-1/each/2").data.double, len(Task("Wide/spin-1/each/2").data.big))
        """
    )
    assert looked.stdout == "4 1250000\n", str(looked)


def test_two_runs_at_once_have_numbers_of_their_own(workspace, root) -> None:
    both = [workspace.start("run", "--run-id-file", f"id{number}") for number in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
    ids = {(workspace.path / f"id{number}").read_text() for number in range(2)}
    assert ids == {"1", "2"}


def test_tags_of_two_machines_add_up(workspace, root, colleague) -> None:
    workspace.run("run", "--width", 1, "--tag", "begun", check=True)
    workspace.run("tag", "list", "--run-id", 1, env=colleague, check=True)
    workspace.run("tag", "add", "--run-id", 1, "mine", check=True)
    workspace.run("tag", "add", "--run-id", 1, "theirs", env=colleague, check=True)
    workspace.run("tag", "remove", "--run-id", 1, "begun", check=True)
    for env in ({}, colleague):
        found = json.loads(workspace.run("tag", "list", "--run-id", 1, "--json", env=env, check=True).stdout)
        assert [entry["tags"] for entry in found] == [["mine", "theirs"]]


def test_a_run_is_followed_and_cancelled_from_elsewhere(workspace, root, colleague) -> None:
    running = workspace.start("run", "--width", 1, "--pause", 120, "--run-id-file", "id")
    deadline = time.monotonic() + 30
    named = workspace.path / "id"
    while not (named.exists() and named.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    following = workspace.start("logs", "1", "--follow", env=colleague)
    seen = []
    for line in following.stdout:
        seen.append(line)
        if "tick" in line:
            break
    assert any("[start/0] begun" in line for line in seen), seen
    told = json.loads(workspace.run("status", "1", "--json", env=colleague, check=True).stdout)
    assert told["state"] == "running"
    workspace.run("cancel", "1", env=colleague, check=True)
    assert running.wait(timeout=30) == 130
    out, err = following.communicate(timeout=30)
    assert following.returncode == 0
    assert "was cancelled" in out + err
    assert spooled(workspace) == []


def test_the_logs_of_a_killed_run_are_brought_by_the_next(workspace, root, colleague) -> None:
    running = workspace.start("run", "--width", 1, "--pause", 120)
    for line in running.stdout:
        if "tick" in line:
            break
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while workspace.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert spooled(workspace)
    workspace.run("resume", "--pause", 0, check=True)
    assert spooled(workspace) == []
    assert "tick\n" in workspace.run("logs", "1/end", env=colleague, check=True).stdout


def test_logs_are_scrubbed_and_the_index_can_be_lost(workspace, root) -> None:
    workspace.run("run", "--width", 2, check=True)
    workspace.run("logs", "scrub", "1/each/0", check=True)
    scrubbed = workspace.run("logs", "1/each/0", check=True).stdout
    assert "was scrubbed by" in scrubbed
    assert "item" not in scrubbed
    (index,) = (workspace.home / ".cache" / "flowkit" / "roots").glob("*/metadata.db")
    index.write_bytes(b"no database")
    assert "damaged" in workspace.run("status", check=5).stderr
    assert "1 run, 6 tasks" in workspace.flowkit("metadata", "rebuild", check=True).stderr
    assert "succeeded" in workspace.run("status", check=True).stdout
    assert "Wide" in workspace.flowkit("status", check=True).stdout


def test_a_root_that_does_not_work_is_told(workspace, root) -> None:
    missing = workspace.run("--datastore-root", "s3://there-is-none/x", "run", check=5)
    assert "there-is-none" in missing.stderr
    assert "Traceback" not in missing.output
    other = {"FLOWKIT_DATASTORE": None}
    assert "does not say where it is" in workspace.run("--datastore", "s3", "run", env=other, check=2).stderr
    assert "s3://bucket/prefix" in workspace.run("--datastore-root", "s3://", "run", env=other, check=2).stderr
    workspace.run("--datastore", "s3", "show", check=True)
