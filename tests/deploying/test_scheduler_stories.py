"""The scheduler in the box as its users meet it: real commands, real processes, killed at the worst moments."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowkit.datastore.local import LocalStorage
from flowkit.deployer.local.memories import edit_memory, read_memory
from flowkit.deployer.local.target import LocalTarget

DEADLINE = 60.0

KILLED = """
import os, signal, sys
from flowkit.cli.console_script import execute
from flowkit.deployer.local.work import Work
started = Work.start
def start(self, record, firing):
    if {after}:
        started(self, record, firing)
    os.kill(os.getpid(), signal.SIGKILL)
Work.start = start
sys.exit(execute(["scheduler", "--once"]))
"""
"""A scheduler that is killed when its first decision is written down, or when the run's process has been started."""


class SchedulerProcess:
    """``flowkit scheduler``, with what it says in files."""

    def __init__(self, workspace: Any, *options: object) -> None:
        self.words = workspace.path / f"scheduler-{os.urandom(3).hex()}.log"
        with open(self.words, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flowkit", "scheduler", "--poll", "0.05", *map(str, options)],
                cwd=workspace.path,
                env=workspace.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.words.read_text(errors="backslashreplace")

    def wait_for(self, words: str) -> None:
        eventually(lambda: re.search(words, self.said), lambda: f"{words!r} in:\n{self.said}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(DEADLINE)


@pytest.fixture
def scheduler(workspace: Any) -> Iterator[Callable[..., SchedulerProcess]]:
    made: list[SchedulerProcess] = []

    def start(*options: object) -> SchedulerProcess:
        made.append(SchedulerProcess(workspace, *options))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()


def eventually(happened: Callable[[], Any], what: Callable[[], str]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {DEADLINE:.0f} s: {what()}"
        time.sleep(0.05)
    return found


def storage(workspace: Any) -> LocalStorage:
    return LocalStorage(str(workspace.path / ".flowkit"))


def runs(workspace: Any, name: str) -> dict[str, str]:
    """Return what ``list-runs`` tells: the states by run, the newest first."""
    target = LocalTarget({})
    target.root = str(workspace.path / ".flowkit")
    record = target.find(name)
    assert record is not None
    return {each.run: each.state for each in target.executions(record)}


NIGHTLY = """
    import time
    from flowkit import FlowSpec, Parameter, current, schedule, step


    def now(context):
        return str(time.time())


    @schedule(cron="0 3 1 1 ? *", timezone="Europe/Oslo")
    class Nightly(FlowSpec):
        when = Parameter("when", default=now)

        @step
        def start(self):
            self.words = open("words.txt").read()
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Nightly()
"""


def test_a_schedule_is_kept_through_kills_and_edits(workspace: Any) -> None:
    workspace.write("flow.py", NIGHTLY)
    workspace.write("words.txt", "hello")
    made = workspace.run("local", "create", "--name", "early", check=True)
    assert "It is due next at" in made.output
    assert f"flowkit scheduler --datastore-root {workspace.path}/.flowkit" in made.output
    workspace.run("local", "create", "--name", "late", "--catch-up", "none", check=True)
    # Nothing is due yet.
    assert "started" not in workspace.flowkit("scheduler", "--once", check=True).stdout

    # Three years pass in which no scheduler runs; the next one is killed before the run's process is started.
    root, past = storage(workspace), time.time() - 3 * 366 * 86_400
    edit_memory(root, "early", lambda found: replace(found, looked=past))
    edit_memory(root, "late", lambda found: replace(found, looked=past))
    assert workspace.python(KILLED.format(after=False)).returncode == -signal.SIGKILL
    (firing,) = read_memory(root, "early")[0].decided
    assert re.fullmatch(r"local-early-20[0-9]{2}0101T020000Z", firing.run)
    assert runs(workspace, "early") == {firing.run: "pending"}

    # The flow is edited meanwhile: what runs is what was deployed.
    workspace.write("flow.py", "raise SystemExit('edited')")
    told = workspace.flowkit("scheduler", "--until-idle", "--poll", "0.1", check=True).stdout
    assert f"Nightly/{firing.run} started (due {firing.run[12:16]}-01-01T02:00:00Z), for the 2. time" in told
    assert f"Nightly/{firing.run} succeeded" in told
    assert "left out local-late" in told
    workspace.write("flow.py", NIGHTLY)

    # A scheduler is killed right after it has started a run: the run goes on, and no other one is started for it.
    edit_memory(root, "late", lambda found: replace(found, looked=past))
    workspace.run("local", "create", "--name", "late", check=True)
    assert workspace.python(KILLED.format(after=True)).returncode == -signal.SIGKILL
    late = read_memory(root, "late")[0].decided[0].run
    eventually(lambda: runs(workspace, "late") == {late: "succeeded"}, lambda: str(runs(workspace, "late")))
    workspace.flowkit("scheduler", "--until-idle", "--poll", "0.1", check=True)
    assert runs(workspace, "late") == {late: "succeeded"}
    assert read_memory(root, "late")[0].busy is False

    # Runs are runs: their deployment, the parameters of deploy time, the files of the folder they were deployed from.
    run = workspace.client().namespace(None) or workspace.client().Run(f"Nightly/{firing.run}")
    assert (run.deployment, run.trigger, run.data.words) == ("local/early", None, "hello")
    assert float(run.data.when) < run.created_at.timestamp()
    assert {"deployment:local/early", "user:tester"} <= run.system_tags
    assert len(list(workspace.client().Flow("Nightly"))) == 2

    workspace.run("local", "delete", "--name", "late", check=True)
    assert read_memory(root, "late") == (None, None)
    assert [each["name"] for each in json.loads(workspace.run("local", "list", "--json").stdout)] == ["early"]


PREPARE = """
    from flowkit import FlowSpec, Parameter, current, step, trigger


    @trigger(event={"name": "data_arrived", "parameters": {"table": "table_name", "rows": "rows"}})
    class Prepare(FlowSpec):
        table = Parameter("table", default="none")
        rows = Parameter("rows", default=0)

        @step
        def start(self):
            self.event = current.trigger.event.id if hasattr(current, "trigger") else None
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Prepare()
"""

REPORT = """
    from flowkit import FlowSpec, current, step, trigger_on_finish


    @trigger_on_finish(flow="Prepare")
    class Report(FlowSpec):
        @step
        def start(self):
            self.of = current.trigger.run.pathspec
            self.table = current.trigger.run.data.table
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Report()
"""


def test_events_and_ends_start_flows_once_though_schedulers_are_killed(workspace: Any, scheduler: Any) -> None:
    workspace.write("flow.py", PREPARE)
    workspace.write("report.py", REPORT)
    workspace.run("run", check=True)  # before anything is deployed: it starts nothing
    workspace.run("local", "create", check=True)
    workspace.run("local", "create", flow="report.py", check=True)
    emit = ("event", "emit", "data_arrived")
    workspace.flowkit(*emit, "--data", '{"table_name": "sales", "rows": 7}', "--id", "day-1", check=True)

    first = scheduler()
    first.wait_for("is at work")
    second = scheduler()
    second.wait_for("this one waits")
    first.wait_for(r"Prepare/\S+ started \(event data_arrived\)")
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    second.wait_for("is at work")
    workspace.flowkit(*emit, "--id", "day-1", check=True)  # the same event again
    workspace.flowkit(*emit, "--id", "day-2", input="", check=True)
    workspace.run("run", check=True)  # by hand: its end is the end of a run of the flow, too

    def reports() -> list[str]:
        return [run for run, state in runs(workspace, "Report").items() if state == "succeeded"]

    eventually(lambda: len(reports()) >= 3, lambda: second.said)
    assert second.stop() == 0
    assert "Stopped. Runs that it has started go on." in second.said
    # Another look finds nothing to do.
    workspace.flowkit("scheduler", "--until-idle", "--poll", "0.1", check=True)

    client = workspace.client()
    client.namespace(None)
    prepared = {run.id: run.data for run in client.Flow("Prepare") if run.id != "1"}
    by_event = {data.event: (data.table, data.rows) for run, data in prepared.items() if run != "2"}
    assert by_event == {"day-1": ("sales", 7), "day-2": ("none", 0)}
    reported = [(run.data.of, run.trigger.run.pathspec) for run in client.Flow("Report")]
    assert sorted(reported) == sorted((f"Prepare/{run}", f"Prepare/{run}") for run in prepared)
    listed = json.loads(workspace.flowkit("event", "list", "--json").stdout)
    assert [(each["id"], each["data"], each["user"]) for each in listed] == [
        ("day-1", {"table_name": "sales", "rows": 7}, "tester"),
        ("day-2", {}, "tester"),
    ]
    # None of the two schedulers has said so twice.
    started = re.findall(r"(\S+/local-\S+) started", first.said + second.said)
    assert len(started) == len(set(started)) == 5


SLOW = """
    import time
    from flowkit import FlowSpec, Parameter, step, trigger


    @trigger(event={"name": "go", "parameters": {"seconds": "seconds"}})
    class Slow(FlowSpec):
        seconds = Parameter("seconds", default=3600.0)

        @step
        def start(self):
            time.sleep(self.seconds)
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Slow()
"""


def test_runs_are_started_by_hand_replaced_stopped_and_refused(workspace: Any, scheduler: Any) -> None:
    workspace.write("flow.py", SLOW)
    workspace.run("local", "create", "--concurrency", "replace", "--workflow-timeout", "30", check=True)
    # No scheduler is there: a run that is started by hand runs all the same, and is stopped.
    started = workspace.run("local", "trigger", "--seconds", "3000", check=True)
    run = re.search(r"Slow/(local-Slow-\S+)", started.output)[1]  # type: ignore[index]
    assert runs(workspace, "Slow") == {run: "running"}
    workspace.run("local", "terminate", run, check=True)
    eventually(lambda: runs(workspace, "Slow") == {run: "cancelled"}, lambda: str(runs(workspace, "Slow")))
    assert "cancelled" in workspace.run("local", "status", run, check=True).stdout

    work = scheduler()
    work.wait_for("is at work")
    workspace.flowkit("event", "emit", "go", "--id", "1", check=True)
    work.wait_for(r"started \(event go\)")
    eventually(lambda: "running" in runs(workspace, "Slow").values(), lambda: work.said)
    workspace.flowkit("event", "emit", "go", "--id", "2", "--data", '{"seconds": 0}', check=True)
    work.wait_for("is being stopped: another one replaces it")
    eventually(
        lambda: sorted(runs(workspace, "Slow").values()) == ["cancelled", "cancelled", "succeeded"], lambda: work.said
    )
    # A value that the parameter does not take: the run is refused, once, and that can be seen.
    workspace.flowkit("event", "emit", "go", "--id", "3", "--data", '{"seconds": "soon"}', check=True)
    work.wait_for("was not run: .*seconds")
    listed = json.loads(workspace.run("local", "list-runs", "--json", check=True).stdout)
    (refused,) = [each for each in listed if each["state"] == "failed"]
    assert "seconds" in refused["reason"]

    # Deployed anew: a run may take a moment only.
    workspace.run("local", "create", "--workflow-timeout", "0.5", check=True)
    workspace.flowkit("event", "emit", "go", "--id", "4", check=True)
    work.wait_for(r"is being stopped: it has taken more than 0.5 s")
    eventually(lambda: list(runs(workspace, "Slow").values()).count("cancelled") == 3, lambda: work.said)
    assert work.stop(signal.SIGINT) == 0
    assert workspace.run("local", "terminate", "local-Slow-20200101T000000Z").returncode == 4


def test_what_cannot_be_deployed_is_told_at_once(workspace: Any) -> None:
    workspace.write("flow.py", NIGHTLY.replace("0 3 1 1 ? *", "0 3 31 6 ? *"))
    told = workspace.run("local", "create", "--python", "no/such/python", "--name", "a b")
    assert told.returncode == 3
    for words in ("is never due", "no such program", "'a b'"):
        assert words in told.output
    assert not (workspace.path / ".flowkit" / "scheduler").exists()
    assert workspace.flowkit("event", "emit", "flowkit.Nightly.end").returncode == 2
    assert workspace.flowkit("event", "emit", "x", "--data", "[1").returncode == 2
    assert "There are no events" in workspace.flowkit("event", "list", "--datastore-root", Path(workspace.path)).output


@pytest.mark.deploying
def test_on_s3_events_are_kept_in_the_bucket_and_another_machine_starts_the_run(workspace: Any, aws: Any) -> None:
    workspace.env.update(aws.env)
    workspace.env["FLOWKIT_DATASTORE"] = f"s3://{aws.bucket()}/some/root"
    workspace.write("flow.py", PREPARE)
    created = workspace.run("local", "create", check=True)
    assert f"flowkit scheduler --datastore-root {workspace.env['FLOWKIT_DATASTORE']}" in created.output
    workspace.flowkit("event", "emit", "data_arrived", "--data", '{"table_name": "sales", "rows": 7}', check=True)
    # Another machine has neither the flow's folder nor this one's index.
    (workspace.path / "flow.py").unlink()
    elsewhere = {"FLOWKIT_CACHE": str(workspace.path / "elsewhere")}
    told = workspace.flowkit("scheduler", "--until-idle", "--poll", "0.2", env=elsewhere, check=True).stdout
    (run,) = re.findall(r"Prepare/(\S+) succeeded", told)
    workspace.write("flow.py", PREPARE)
    listed = json.loads(workspace.run("local", "list-runs", "--json", check=True).stdout)
    assert [(each["run"], each["state"]) for each in listed] == [(run, "succeeded")]
    assert "sales" in workspace.run("dump", f"{run}/start", "--include", "table", check=True).stdout
