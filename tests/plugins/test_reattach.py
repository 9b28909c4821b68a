"""Runs that go on elsewhere when their client is gone, and what becomes of them when it, or another one, comes back.

The service is the one of `test_remote_runs`: its jobs are processes that outlive whoever submitted them.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from test_remote_runs import Service, intents, task_states

WIDTH = 12

FAN = """
    import os
    import time

    from flowkit import FlowSpec, current, step
    from process_backend import process


    WIDTH = 12


    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = list(range(WIDTH))
            self.next(self.train, foreach="items")

        @process
        @step
        def train(self):
            with open(os.environ["EFFECTS"], "a") as file:
                file.write(f"{self.input} {current.retry_count}\\n")
            while not os.path.exists(os.environ["EFFECTS"] + f"-{self.input}-may-end"):
                time.sleep(0.05)
            self.square = self.input**2
            self.next(self.join)

        @step
        def join(self, inputs):
            self.squares = [task.square for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            print("squares", self.squares)


    if __name__ == "__main__":
        Fan()
"""
SMALL = FAN.replace("WIDTH = 12", "WIDTH = 3")
RUN = ("run", "--max-workers", 100)


class Effects:
    """What the tasks did, and which of them may end."""

    def __init__(self, workspace) -> None:
        self.file = workspace.path.parent / "effects"
        workspace.env["EFFECTS"] = str(self.file)

    def let_end(self, *indices: int) -> None:
        """Let tasks end."""
        for index in indices or range(WIDTH):
            self.file.with_name(f"effects-{index}-may-end").touch()

    @property
    def attempts(self) -> Counter[str]:
        """How often each attempt of each task ran, as ``index attempt``."""
        return Counter(self.file.read_text().splitlines() if self.file.exists() else [])


@pytest.fixture
def service(workspace) -> Service:
    """A service of processes that runs everything at once, for this test only."""
    made = Service(workspace)
    made.set(slots=WIDTH)
    return made


@pytest.fixture
def effects(workspace) -> Iterator[Effects]:
    """What tasks do."""
    made = Effects(workspace)
    yield made
    made.let_end()  # whatever went wrong: nothing is left behind


def wait_until(what, seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


def committed(workspace, flow: str = "Fan", step: str = "train") -> set[str]:
    """The tasks of a step that have a manifest."""
    folder = workspace.path / f".flowkit/flows/{flow}/1/{step}"
    return {path.parent.name for path in folder.glob("*/manifest.json")}


def check_everything_ran_once(workspace, service, effects, width: int = 3) -> None:
    assert effects.attempts == Counter(f"{index} 0" for index in range(width))
    run = workspace.client().Flow("Fan")["1"]
    assert run.successful
    assert run["end"].task.data.squares == [index**2 for index in range(width)]
    assert [task.current_attempt for task in run["train"]] == [0] * width
    assert sum(call == f"train {width}" for call in service.submitted) == 1
    assert {row["state"] for row in task_states(workspace, "train")} == {"succeeded"}


def test_a_client_that_is_killed_in_mid_fan_out_loses_nothing(workspace, service, effects) -> None:
    workspace.write("flow.py", FAN)
    client = workspace.start(*RUN)
    service.wait_for("train", WIDTH)
    effects.let_end(0, 1, 2)
    wait_until(lambda: committed(workspace) >= {"0", "1", "2"})
    client.kill()
    client.communicate()
    effects.let_end(3, 4)  # while nobody watches
    wait_until(lambda: committed(workspace) >= {"3", "4"})
    effects.let_end()
    done = workspace.run("resume", "--reattach", check=True)
    assert "Run 1 goes on: " in done.output
    check_everything_ran_once(workspace, service, effects, WIDTH)
    again = workspace.run("resume", "--reattach", "1", check=True)
    assert "Run 1 has succeeded: there is nothing left to do." in again.output


def test_a_run_on_s3_is_taken_over_from_another_machine(workspace, service, effects, aws) -> None:
    workspace.write("flow.py", SMALL)
    workspace.env.update(aws.env, FLOWKIT_DATASTORE=f"s3://{aws.bucket()}/runs", FLOWKIT_LEASE_SECONDS="2")
    client = workspace.start(*RUN)
    service.wait_for("train", 3)
    client.kill()
    client.communicate()
    effects.let_end()
    workspace.env["FLOWKIT_CACHE"] = str(workspace.path.parent / "another-cache")  # it knows nothing of the run
    done = workspace.run("resume", "--reattach", check=True)
    assert "squares [0, 1, 4]" in done.stdout
    assert effects.attempts == Counter(f"{index} 0" for index in range(3))
    assert service.submitted == ["train 3"]


def test_a_client_that_slept_finds_that_it_has_lost_the_run(workspace, service, effects) -> None:
    workspace.write("flow.py", SMALL)
    workspace.env["FLOWKIT_LEASE_SECONDS"] = "2"
    sleeper = workspace.start(*RUN)
    service.wait_for("train", 3)
    sleeper.send_signal(signal.SIGSTOP)
    time.sleep(2.5)  # or it is alive as far as anybody can tell
    second = workspace.start("resume", "--reattach")
    wait_until(lambda: '"epoch":2' in (workspace.path / ".flowkit/flows/Fan/1/lease.json").read_text())
    third = workspace.run("resume", "--reattach", "1")
    assert third.returncode == 6, third
    assert f"run 1 belongs to tester@{os.uname().nodename} (process {second.pid}), since " in third.output
    before = sorted((workspace.path / ".flowkit/flows/Fan/1").rglob("*"))
    sleeper.send_signal(signal.SIGCONT)
    output = "".join(sleeper.communicate(timeout=60))
    assert sleeper.returncode == 6, output
    assert f"run 1 is not ours any more: it was taken over by tester@{os.uname().nodename} (process {second.pid})" in (
        output
    )
    assert sorted((workspace.path / ".flowkit/flows/Fan/1").rglob("*")) == before
    assert not [call for call in service.calls if call.startswith("cancel")]
    effects.let_end()
    output = "".join(second.communicate(timeout=60))
    assert second.returncode == 0, output
    check_everything_ran_once(workspace, service, effects)


def test_a_run_is_left_and_taken_up_again(workspace, service, effects) -> None:
    workspace.write("flow.py", SMALL)
    left = workspace.run(*RUN, "--detach", check=True)
    assert "Run 1 was left with --detach, while 3 tasks go on elsewhere." in left.stderr
    assert "python flow.py resume --reattach 1" in left.stderr
    service.wait_for("train", 3)
    shown = workspace.run("status", "1", check=True)
    assert "lost" in shown.output
    assert "left with --detach" in shown.output
    effects.let_end()
    done = workspace.run("resume", "--reattach", check=True)
    assert "Done!" in done.output
    check_everything_ran_once(workspace, service, effects)


def test_a_run_is_left_where_it_goes_on_again_and_again(workspace, service, effects) -> None:
    workspace.write("flow.py", SMALL)
    for command in (RUN, ("resume", "--reattach"), ("resume", "--reattach", "1")):
        assert "Run 1 was left with --detach" in workspace.run(*command, "--detach", check=True).stderr
    effects.let_end()
    workspace.run("resume", "--reattach", "--detach", check=True)
    check_everything_ran_once(workspace, service, effects)


def test_a_closed_terminal_leaves_the_jobs(workspace, service, effects) -> None:
    workspace.write("flow.py", SMALL)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite may be run under nohup
    try:
        client = workspace.start(*RUN)
    finally:
        signal.signal(signal.SIGHUP, before)
    service.wait_for("train", 3)
    client.send_signal(signal.SIGHUP)
    output = "".join(client.communicate(timeout=60))
    assert client.returncode == 130, output
    assert "Run 1 was left as its terminal was closed, while 3 tasks go on elsewhere." in output
    effects.let_end()
    workspace.run("resume", "--reattach", check=True)
    check_everything_ran_once(workspace, service, effects)


def test_what_was_never_submitted_is_and_what_was_is_found(workspace, service, effects) -> None:
    workspace.write("flow.py", SMALL)
    service.set(slots=WIDTH, transient=100_000)
    client = workspace.start(*RUN)
    folder = workspace.path / ".flowkit/flows/Fan/1/.launches"
    wait_until(lambda: folder.is_dir() and len(intents(workspace, "Fan")) == 1)
    client.kill()  # between the intent and the submission
    client.communicate()
    service.set(slots=WIDTH)
    client = workspace.start("resume", "--reattach")
    service.wait_for("train", 3)
    wait_until(lambda: len(intents(workspace, "Fan")) == 2)
    client.kill()
    client.communicate()
    for path in folder.glob("*.job.json"):
        path.unlink()  # as if it had been killed between the submission and its record
    effects.let_end()
    workspace.run("resume", "--reattach", check=True)
    assert effects.attempts == Counter(f"{index} 0" for index in range(3))
    assert workspace.client().Flow("Fan")["1"]["end"].task.data.squares == [0, 1, 4]


ATTEMPTS = """
    import os

    from flowkit import FlowSpec, current, retry, step
    from process_backend import process


    class Attempts(FlowSpec):
        @step
        def start(self):
            self.next(self.fails, self.waits)

        @process
        @retry(times=TIMES)
        @step
        def fails(self):
            with open(os.environ["EFFECTS"], "a") as file:
                file.write(f"fails {current.retry_count}\\n")
            if current.retry_count < 2:
                raise ValueError("not yet")
            self.next(self.join)

        @step
        def waits(self):
            import time

            with open(os.environ["EFFECTS"], "a") as file:
                file.write(f"waits {current.retry_count}\\n")
            while not os.path.exists(os.environ["EFFECTS"] + "-0-may-end"):
                time.sleep(0.05)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Attempts()
"""


def test_attempts_go_on_where_they_were(workspace, service, effects) -> None:
    workspace.write("flow.py", ATTEMPTS.replace("TIMES", "2, minutes_between_retries=60"))
    client = workspace.start(*RUN)
    failed = workspace.path / ".flowkit/flows/Attempts/1/fails/0/0/failed.json"
    wait_until(lambda: failed.exists() and effects.attempts["waits 0"])
    client.kill()
    client.communicate()
    effects.let_end(0)
    assert effects.attempts == Counter(["fails 0", "waits 0"])
    second = workspace.start("resume", "--reattach")  # its pause of an hour goes on, too
    wait_until(lambda: committed(workspace, "Attempts", "waits"))
    second.kill()
    second.communicate()
    assert effects.attempts == Counter(["fails 0", "waits 0", "waits 1"])


def test_a_run_that_had_failed_fails_once_what_runs_has_ended(workspace, service, effects) -> None:
    workspace.write("flow.py", FAILING)
    client = workspace.start(*RUN)
    wait_until(lambda: effects.attempts["1"] and (_run(workspace) / "train/0/0/failed.json").exists())
    client.kill()
    client.communicate()
    effects.let_end(1)
    done = workspace.run("resume", "--reattach")
    assert done.returncode == 1, done
    assert "ValueError: no" in done.output
    assert {row["task"]: row["state"] for row in task_states(workspace, "train")} == {"0": "failed", "1": "succeeded"}
    assert task_states(workspace, "after") == []
    refused = workspace.run("resume", "--reattach", "1")
    assert refused.returncode == 2, refused
    assert "run 1 has ended: it failed" in refused.output
    assert "resume --origin-run-id 1" in refused.output
    assert workspace.run("resume", "--reattach").returncode == 4


FAILING = """
    import os
    import time

    from flowkit import FlowSpec, step
    from process_backend import process


    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = [0, 1]
            self.next(self.train, foreach="items")

        @process
        @step
        def train(self):
            with open(os.environ["EFFECTS"], "a") as file:
                file.write(f"{self.input}\\n")
            if self.input == 0:
                raise ValueError("no")
            while not os.path.exists(os.environ["EFFECTS"] + f"-{self.input}-may-end"):
                time.sleep(0.05)
            self.next(self.after)

        @step
        def after(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Fan()
"""


def _run(workspace):
    return workspace.path / ".flowkit/flows/Fan/1"


def test_what_cannot_be_taken_over_is_told(workspace, service, effects) -> None:
    workspace.write("flow.py", SMALL)
    assert workspace.run("resume", "--reattach").returncode == 4
    local = workspace.run("run", "--detach", flow=workspace.write("local.py", LOCAL))
    assert (local.returncode, "no step of the flow runs elsewhere" in local.output) == (2, True)
    workspace.run(*RUN, "--detach", check=True)
    given = workspace.run("resume", "--reattach", "--with", "retry", "--tag", "a")
    assert given.returncode == 2
    assert "--tag, --with: a run that is taken over keeps what it was started with" in given.output
    assert workspace.run("resume", "--reattach", "77").returncode == 4
    workspace.write(
        "flow.py",
        SMALL.replace("self.next(self.end)", "self.next(self.more)").replace(
            "        @step\n        def end",
            "        @step\n        def more(self):\n            self.next(self.end)\n\n        @step\n        def end",
        ),
    )
    changed = workspace.run("resume", "--reattach")
    assert changed.returncode == 2, changed
    assert "the flow has other steps than when run 1 began: join, more" in changed.output
    workspace.write("flow.py", SMALL.replace("self.square = self.input**2", "self.square = self.input * self.input"))
    effects.let_end()
    noted = workspace.run("resume", "--reattach", check=True)
    assert "Note: the code of the step 'train' has changed since the run began" in noted.output


LOCAL = """
    import os
    import time

    from flowkit import FlowSpec, Parameter, current, step


    class Local(FlowSpec):
        size = Parameter("size", default=3)

        @step
        def start(self):
            self.items = list(range(self.size))
            self.next(self.work, foreach="items")

        @step
        def work(self):
            with open(os.environ["EFFECTS"], "a") as file:
                file.write(f"{self.input} {current.retry_count}\\n")
            while self.input and not os.path.exists(os.environ["EFFECTS"] + f"-{self.input}-may-end"):
                time.sleep(0.05)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.total = len(inputs)
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Local()
"""


def test_a_run_on_one_machine_goes_on_too(workspace, effects) -> None:
    workspace.write("flow.py", LOCAL)
    client = workspace.start("run", "--size", 4)
    wait_until(lambda: effects.attempts.total() == 4 and committed(workspace, "Local", "work"))
    assert not (workspace.path / ".flowkit/flows/Local/1/lease.json").exists()
    alive = workspace.run("resume", "--reattach", "1")
    assert alive.returncode == 6, alive
    assert "run 1 is still alive: tester runs it on" in alive.output
    client.kill()
    client.communicate()
    effects.let_end()
    workspace.run("resume", "--reattach", check=True)
    run = workspace.client().Flow("Local")["1"]
    assert run["end"].task.data.total == 4
    assert effects.attempts == Counter(["0 0", "1 0", "2 0", "3 0", "1 1", "2 1", "3 1"])
    assert {task.id: task.current_attempt for task in run["work"]} == {"0": 0, "1": 1, "2": 1, "3": 1}
