"""Runs whose steps a service carries out: packages, containers' commands, lists and logs are real, the service is ours.

The service (`process_plugin`) runs containers as local processes and goes wrong on demand. It is found like any other
plugin, by the entry points of a package on ``PYTHONPATH``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

PLUGIN = Path(__file__).with_name("process_plugin")


class Service:
    """The service of one test."""

    def __init__(self, workspace) -> None:
        self.folder = workspace.path.parent / "service"
        self.folder.mkdir()
        workspace.env.update(PYTHONPATH=str(PLUGIN), PROCESS_SERVICE=str(self.folder))

    def set(self, **knobs) -> None:
        """Have something go wrong."""
        (self.folder / "knobs.json").write_text(json.dumps(knobs))

    @property
    def calls(self) -> list[str]:
        """Every call, as ``submit train 20``."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def submitted(self) -> list[str]:
        """What was submitted, as ``train 20``."""
        return [call.removeprefix("submit ") for call in self.calls if call.startswith("submit ")]

    def started(self, step: str) -> Counter[int]:
        """How often each row of a step's jobs was started, all jobs together."""
        found: Counter[int] = Counter()
        for path in self.folder.glob("*/job.json"):
            if json.loads(path.read_text())["step"] == step:
                for line in (path.parent / "states").read_text().splitlines():
                    row, phase, *_ = json.loads(line)
                    found[row] += phase == "running"
        return found

    def wait_for(self, step: str, rows: int) -> None:
        """Wait until so many rows of a step have started."""
        deadline = time.monotonic() + 60
        while sum(self.started(step).values()) < rows:
            assert time.monotonic() < deadline, f"{step} does not start"
            time.sleep(0.02)


@pytest.fixture
def service(workspace) -> Service:
    """A service of processes, for this test only."""
    return Service(workspace)


def intents(workspace, flow: str, run: str = "1") -> list[str]:
    """The names of what was recorded before and after submissions."""
    return sorted(path.name for path in (workspace.path / f".flowkit/flows/{flow}/{run}/.launches").iterdir())


FAN = """
    from flowkit import FlowSpec, current, step


    class Fan(FlowSpec):
        @step
        def start(self):
            self.items = list(range(20))
            self.next(self.train, foreach="items")

        @step
        def train(self):
            print("training", self.input)
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


def test_a_foreach_is_one_job_and_everything_is_there_afterwards(workspace, service) -> None:
    workspace.write("flow.py", FAN)
    done = workspace.run("run", "--with", "process", "--max-workers", 100, check=True)
    assert service.submitted == ["start 1", "train 20", "join 1", "end 1"]
    assert service.started("train") == Counter(range(20))
    assert f"squares {[i**2 for i in range(20)]}" in done.stdout
    run = workspace.client().Flow("Fan")["1"]
    assert run.successful
    assert run["end"].task.data.squares == [i**2 for i in range(20)]
    assert run["train"]["7"].stdout == "training 7\n"
    assert all(task.current_attempt == 0 for step in run for task in step)
    names = intents(workspace, "Fan")
    assert len(names) == 8
    for name in names[::2]:
        assert re.fullmatch(r"fk-fan-1-(start|train|join|end)-[0-9a-f]{16}\.job\.json", name)
    again = workspace.run("logs", "1/train/3", check=True)
    assert "training 3" in again.stdout


MIXED = """
    import os
    import signal
    import sys

    from flowkit import FlowSpec, catch, current, retry, step, timeout
    from process_backend import process


    class Mixed(FlowSpec):
        @step
        def start(self):
            self.pid = os.getpid()
            self.next(self.again, self.killed, self.slow)

        @process
        @retry(times=2)
        @step
        def again(self):
            if current.retry_count == 0:
                raise ValueError("not yet")
            self.tries = current.retry_count
            self.next(self.join)

        @process
        @catch(var="why")
        @step
        def killed(self):
            if current.retry_count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.next(self.join)

        @process
        @catch(var="why")
        @timeout(seconds=1)
        @step
        def slow(self):
            import time

            time.sleep(60)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.tries = inputs.again.tries
            self.whys = [str(inputs.killed.why), str(inputs.slow.why)]
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Mixed()
"""


def test_retries_fallbacks_and_timeouts_mean_the_same_elsewhere(workspace, service) -> None:
    workspace.write("flow.py", MIXED)
    done = workspace.run("run", check=True)
    # A fallback is carried out here: it is no job.
    assert sorted(service.submitted) == ["again 1", "again 1", "killed 1", "slow 1"]
    assert "ValueError: not yet" in done.output
    run = workspace.client().Flow("Mixed").latest_run
    assert run["join"].task.data.tries == 1
    killed, slow = run["join"].task.data.whys
    assert "SIGKILL" in killed
    assert "TimeoutException" in slow
    assert run["killed"].task.current_attempt == 1


def test_a_reclaimed_machine_is_no_attempt(workspace, service) -> None:
    source = FAN.replace("range(20)", "range(3)").replace(
        'print("training"', "import time; time.sleep(1.5 if self.input == 1 else 0); print('training'"
    )
    workspace.write("flow.py", source.replace('("training"', "('training'"))
    service.set(evict={"train/1": 1.0, "train/0": 0.9}, evict_times=1)
    done = workspace.run("run", "--with", "process", "--max-workers", 100)
    assert done.returncode == 0, done
    told = re.findall(r"train.*: the machine was reclaimed \(Host terminated\); started again \(1 of 3\)", done.output)
    assert told, done
    run = workspace.client().Flow("Fan").latest_run
    assert [task.current_attempt for task in run["train"]] == [0, 0, 0]
    assert run["end"].task.data.squares == [0, 1, 4]
    assert "train 1" in service.submitted or "train 2" in service.submitted


def test_the_budget_for_reclaimed_machines_ends_and_names_the_cause(workspace, service) -> None:
    workspace.write("flow.py", FAN.replace("range(20)", "range(1)").replace("print(", "import time; time.sleep(9); ("))
    service.set(evict={"train/0": 0.05}, evict_times=9)
    done = workspace.run(
        *("run", "--with", "process", "--with", "retry:times=1,on=oom"), env={"FLOWKIT_INFRASTRUCTURE_RETRIES": "1"}
    )
    assert done.returncode == 1
    assert "started again (1 of 1)" in done.output
    assert "its machine was reclaimed: Host terminated" in done.output
    assert service.submitted == ["start 1", "train 1", "train 1"]


def test_an_image_that_does_not_exist_is_told_and_not_tried_again(workspace, service) -> None:
    workspace.write("flow.py", FAN)
    service.set(no_image=["nowhere/none:1"])
    done = workspace.run("run", "--with", "process:image=nowhere/none:1", "--with", "retry")
    assert done.returncode == 1
    assert "its container image cannot be had: pull access denied for nowhere/none:1" in done.output
    assert service.submitted == ["start 1"]


GANG = """
    from flowkit import FlowSpec, current, parallel, step


    class Gang(FlowSpec):
        @step
        def start(self):
            self.next(self.train, num_parallel=3)

        @parallel
        @step
        def train(self):
            self.node = (current.parallel.node_index, current.parallel.num_nodes)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.nodes = [task.node for task in inputs]
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Gang()
"""


def test_a_gang_is_one_job_and_one_result(workspace, service) -> None:
    workspace.write("flow.py", GANG)
    workspace.run("run", "--with", "process", check=True)
    assert service.submitted == ["start 1", "train 1", "join 1", "end 1"]
    run = workspace.client().Flow("Gang").latest_run
    assert run["end"].task.data.nodes == [(0, 3), (1, 3), (2, 3)]


FAILING = """
    import time

    from flowkit import FlowSpec, step
    from process_backend import process


    class Failing(FlowSpec):
        @step
        def start(self):
            self.items = list(range(6))
            self.next(self.train, foreach="items")

        @process
        @step
        def train(self):
            if self.input == 0:
                raise ValueError("no")
            time.sleep(3)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Failing()
"""


def test_when_a_task_fails_what_waits_is_cancelled_and_what_runs_finishes(workspace, service) -> None:
    workspace.write("flow.py", FAILING)
    service.set(slots=2)
    done = workspace.run("run", "--max-workers", 100)
    assert done.returncode == 1, done
    assert "ValueError: no" in done.output
    assert any(call.startswith("cancel 1 False") for call in service.calls)
    assert set(service.started("train") + Counter()) <= {0, 1, 2}
    states = {row["task"]: row["state"] for row in task_states(workspace, "train")}
    assert states["0"] == "failed"
    assert states["1"] == "succeeded"
    assert {states["3"], states["4"], states["5"]} == {"cancelled"}


def task_states(workspace, step: str) -> list[dict]:
    """What the index says of the tasks of a step of the first run."""
    import sqlite3

    base = sqlite3.connect(workspace.path / ".flowkit/metadata.db")
    base.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in base.execute("select * from tasks where step = ?", (step,))]
    finally:
        base.close()


def test_ctrl_c_ends_the_jobs(workspace, service) -> None:
    workspace.write("flow.py", FAILING.replace("if self.input == 0", "if False").replace("sleep(3)", "sleep(300)"))
    service.set(slots=2)
    process = workspace.start("run", "--max-workers", 100)
    service.wait_for("train", 2)
    process.send_signal(signal.SIGINT)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 130, output
    assert any(call.startswith("cancel") and call.endswith("True") for call in service.calls)
    assert sum(service.started("train").values()) == 2
    states = {row["task"]: row["state"] for row in task_states(workspace, "train")}
    assert set(states.values()) == {"cancelled"}


@pytest.mark.parametrize("knob", ["lose_submit", "drop_submit", "transient", "fail_states"])
def test_a_service_that_answers_badly_doubles_nothing_and_loses_nothing(workspace, service, knob) -> None:
    workspace.write("flow.py", FAN.replace("range(20)", "range(3)"))
    service.set(**{knob: 2})
    workspace.run("run", "--with", "process", "--max-workers", 100, check=True)
    assert service.started("train") == Counter(range(3))
    assert service.started("start") == Counter([0])
    run = workspace.client().Flow("Fan").latest_run
    assert run["end"].task.data.squares == [0, 1, 4]


def test_a_job_that_the_service_refuses_fails_its_tasks(workspace, service) -> None:
    workspace.write("flow.py", FAN)
    service.set(reject=["train"])
    done = workspace.run("run", "--with", "process", "--with", "retry", "--max-workers", 100)
    assert done.returncode == 1
    assert "the service refused its job: the queue does not exist; make it" in done.output
    assert service.submitted == ["start 1", "train 20"]


def test_everything_that_a_service_refuses_is_told_before_there_is_a_run(workspace, service) -> None:
    workspace.write("flow.py", FAN)
    service.set(refuse={"train": "more memory than any machine has", "end": "no such queue"})
    done = workspace.run("run", "--with", "process")
    assert done.returncode == 3
    assert "step 'train': more memory than any machine has" in done.output
    assert "step 'end': no such queue" in done.output
    assert not (workspace.path / ".flowkit/flows/Fan").exists()


NOT_PACKED = """
    import os

    from flowkit import FlowSpec, Parameter, step


    class NotPacked(FlowSpec):
        path = Parameter("path", default="")

        @step
        def start(self):
            if self.path:
                here = "@" if self.path.startswith("@") else ""
                folder = os.path.dirname(os.path.abspath(__file__))
                with open(os.path.join(folder, self.path[1:]) if here else self.path) as file:
                    print(file.read())
            else:
                import module_of_no_image
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        NotPacked()
"""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("data.json", "@package(files=['data.json']) above the class, or --package-suffixes .json, brings it along"),
        ("@words", "@package(files=['words']) above the class brings it along"),
        ("nowhere.json", None),
        ("", "has no module 'module_of_no_image'"),
    ],
)
def test_what_was_not_sent_along_is_told_with_what_to_do(workspace, service, path, told) -> None:
    workspace.write("flow.py", NOT_PACKED)
    workspace.write("data.json", "{}")
    workspace.write("words", "some words")
    done = workspace.run("run", "--with", "process", "--path", path)
    assert done.returncode == 1
    assert "package list" in done.output if told else "package list" not in done.output
    assert told is None or told in done.output


def test_a_file_outside_the_folder_is_told_with_a_name_to_bring_it_by(workspace, tmp_path) -> None:
    from flowkit.cli.not_packed import _about_file

    outside = tmp_path.parent / f"{tmp_path.name}-outside.csv"
    outside.write_text("1")
    session = SimpleNamespace(definition=SimpleNamespace(file=str(tmp_path / "flow.py")), program="python flow.py")
    told = _about_file(session, str(outside))  # type: ignore[arg-type]
    assert f"@package(files=[({str(outside)!r}, {outside.name!r})])" in str(told)


def test_one_step_runs_on_one_service(workspace, service) -> None:
    source = FAN.replace("from flowkit import", "from process_backend import process\n    from flowkit import")
    two = source.replace(
        "        @step\n        def train", "        @other\n        @process\n        @step\n        def train"
    )
    other = """
    from flowkit.decorators.attach import step_decorator
    from process_backend import Process


    class Other(Process):
        name = "docker"


    other = step_decorator(Other)
    """
    workspace.write("other.py", other)
    workspace.write("flow.py", "from other import other\n" + __import__("textwrap").dedent(two))
    done = workspace.run("check")
    assert done.returncode == 3
    assert "step 'train' has @docker and @process: one service carries it out" in done.output


def test_with_leaves_a_step_on_the_service_that_it_names(workspace, service) -> None:
    source = FAILING.replace("if self.input == 0", "if False").replace("sleep(3)", "sleep(0)")
    workspace.write("flow.py", source)
    # @process stands above train; the other steps would go to a service that refuses to be reached.
    done = workspace.run("run", "--with", "batch")
    assert done.returncode == 3
    assert "steps 'start', 'join', 'end' run on batch, which cannot reach the datastore" in done.output
    assert "step 'train'" not in done.output


JOBS = """
    import sys

    import flow
    from flowkit.cli import jobs, main

    jobs.process_command = lambda session: jobs.jobs_command(session, "process", "processes")
    main.COMMANDS["process"] = ("flowkit.cli.jobs", "List and kill.")
    sys.exit(main.execute(flow.Failing, sys.argv[1:]))
"""


def test_jobs_are_listed_and_killed(workspace, service) -> None:
    source = FAILING.replace("if self.input == 0", "if False").replace("sleep(3)", "sleep(300)")
    workspace.write("flow.py", source)
    workspace.write("jobs.py", JOBS)
    service.set(slots=2)
    process = workspace.start("run", "--max-workers", 100)
    service.wait_for("train", 2)
    listed = workspace.run("process", "list", flow="jobs.py", check=True)
    assert re.search(r"^1 +train +running +6 +.* tester +job-fk-failing-1-train-", listed.stdout, re.MULTILINE)
    assert "no jobs of Failing by ada" in workspace.run("process", "list", "--user", "ada", flow="jobs.py").output
    assert workspace.run("process", "kill", "--run-id", "9", flow="jobs.py").returncode == 4
    both = workspace.run("process", "kill", "--run-id", "1", "--my-runs", flow="jobs.py")
    assert (both.returncode, "exclude each other" in both.output) == (2, True)
    killed = workspace.run("process", "kill", flow="jobs.py", check=True)
    assert "Killed Failing/1/train: 6 tasks" in killed.stdout
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 1, output
    assert "There are no jobs" in workspace.run("process", "list", "--my-runs", flow="jobs.py").output


def test_a_wide_foreach_costs_one_submission_and_few_calls(tmp_path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "remote_scale.py"
    done = subprocess.run(
        [sys.executable, str(script), "--tasks", "1000", "--rate", "2000", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        env={name: value for name, value in os.environ.items() if not name.startswith(("FLOWKIT_", "PYTEST_"))},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["calls"]["submit"] == 1
    assert found["calls"]["states"] <= found["seconds"] / 2 + 2  # the least pause between two looks is 2 s
    assert found["memory"] < 300e6
