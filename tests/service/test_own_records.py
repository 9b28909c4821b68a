"""Tasks that record themselves, as under a scheduler: processes of the ``step`` command, and no runtime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from service_process import DEADLINE, ServiceProcess

from flowkit.metadata.records import RunRecord
from flowkit.metadata_service.databases import open_store
from flowkit.metadata_service.store import ServiceStore

FLOW = """
import pathlib, time
from flowkit import FlowSpec, retry, step


class LoneFlow(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2]
        self.next(self.work, foreach="items")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        if self.input == 2 and not pathlib.Path("mended").exists():
            raise ValueError("not yet")
        while self.input == 1 and not pathlib.Path("go").exists():
            time.sleep(0.01)
        self.result = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LoneFlow()
"""

BEGIN = """
import runpy, time
from flowkit.datastore.manifests import write_manifest
from flowkit.datastore.root import open_storage
from flowkit.datastore.runs import claim_named_run
from flowkit.model.definition import define
from flowkit.runtime.start import RunRequest, parameters_manifest, run_claim

definition = define(runpy.run_path("flow.py", run_name="flow")["LoneFlow"])
storage = open_storage(None, create=True)
request = RunRequest("tester", deployment="argo-workflows/lone.prod", trigger=(("landed", "e1", 1.5, "event"),))
assert claim_named_run(storage, "LoneFlow", "argo-lone-x7", run_claim(definition, request, time.time()))
write_manifest(storage, parameters_manifest(storage, definition, request, "argo-lone-x7", time.time()))
"""
RUN = "argo-lone-x7"


SEEN = """
from flowkit import Flow, namespace

namespace(None)
run = Flow("LoneFlow").latest_run
print(run.id, run.status, run.deployment, [event.name for event in run.trigger])
run.add_tag("late")
print(sorted(run.user_tags), run.code)
"""


ENDED = """
from flowkit.datastore.root import open_storage
from flowkit.metadata.records import TaskRecord
from flowkit.metadata.service import ServiceMetadata
from flowkit.runtime.own_records import end_run

store = ServiceMetadata()
store.write([TaskRecord("LoneFlow", "argo-lone-x8", "work", "0", "running", 0, 5.0)])  # its container was taken away
end_run(open_storage(None), "LoneFlow", "argo-lone-x8", "failed", "no room", store)
print(store.deliver(20.0))
store.close()
"""


def recorded(store: ServiceStore, run: str = RUN) -> tuple[RunRecord | None, dict[tuple[str, str], tuple[str, int]]]:
    tasks = store.tasks("LoneFlow", run)
    return store.run("LoneFlow", run), {(task.step, task.task): (task.state, task.attempt) for task in tasks}


def test_tasks_without_a_runtime_record_themselves(workspace: Any, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    workspace.write("flow.py", FLOW)
    workspace.python(BEGIN, check=0)

    def step(*arguments: object, check: int = 0) -> None:
        workspace.run("step", *arguments, "--run-id", RUN, "--record", check=check)

    with ServiceProcess(folder, "--heartbeat-interval", "1") as service:
        workspace.env.update(FLOWKIT_METADATA="service", FLOWKIT_SERVICE_URL=service.url)
        store = open_store(str(folder / "database"))
        try:
            step("start", "0")
            run, tasks = recorded(store)
            assert run is not None
            assert run.state == "running"
            assert (run.user, run.deployment) == ("tester", "argo-workflows/lone.prod")
            assert tasks == {("_parameters", "0"): ("succeeded", 0), ("start", "0"): ("succeeded", 0)}

            # The second one begins while the first one works, which shows signs of life.
            long = workspace.start("step", "work", "0", "--parents", "start/0", "--run-id", RUN, "--record")
            step("work", "1", "--parents", "start/0", check=1)
            assert recorded(store)[1]["work", "1"] == ("pending", 0)
            (workspace.path / "mended").touch()
            step("work", "1", "--parents", "start/0", "--attempt", "1")
            deadline = time.monotonic() + DEADLINE
            first = last = store.run("LoneFlow", RUN)
            while first == last:  # its heartbeat
                assert time.monotonic() < deadline
                time.sleep(0.05)
                last = store.run("LoneFlow", RUN)
            assert recorded(store)[1]["work", "0"] == ("running", 0)
            (workspace.path / "go").touch()
            assert long.wait(DEADLINE) == 0
            long.communicate()
            step("join", "0", "--parents", "work/0+2", "--split", "start/0")
            assert recorded(store)[0].state == "running"  # type: ignore[union-attr]
            step("end", "0", "--parents", "join/0")
            run, tasks = recorded(store)
            assert run is not None
            assert run.state == "succeeded"
            assert run.finished is not None
            assert tasks["work", "1"] == ("succeeded", 1)
            assert [each.artifact.name for each in store.artifacts("LoneFlow", RUN, "work", "0", name="result")]
            shown = workspace.run("status", RUN, check=0).output
            assert "deployed as argo-workflows/lone.prod" in shown
            seen = workspace.python(SEEN, check=0).stdout.splitlines()
            assert seen == ["argo-lone-x7 succeeded argo-workflows/lone.prod ['landed']", "['late'] None"]

            # Another one, of which nothing goes on any more: the end command tells the service.
            workspace.python(BEGIN.replace(RUN, "argo-lone-x8"), check=0)
            workspace.run("step", "start", "0", "--run-id", "argo-lone-x8", "--record", check=0)
            assert workspace.python(ENDED, check=0).stdout == "None\n"
            run, tasks = recorded(store, "argo-lone-x8")
            assert run is not None
            assert (run.state, run.reason) == ("failed", "no room")
            assert tasks["work", "0"] == ("lost", 0)
        finally:
            store.close()
    assert "succeeded" in next(workspace.path.rglob("LoneFlow/argo-lone-x7/end.json")).read_text()


def test_a_task_that_fails_for_good_ends_the_run_and_no_service_is_no_failure(workspace: Any) -> None:
    workspace.write("flow.py", FLOW)
    workspace.python(BEGIN, check=0)
    workspace.env.update(FLOWKIT_METADATA="service", FLOWKIT_SERVICE_URL="http://127.0.0.1:9")
    alone = workspace.run("step", "start", "0", "--run-id", RUN, "--record", check=0)
    assert "flowkit metadata push" in alone.stderr
    workspace.env.update(FLOWKIT_METADATA="local")
    last = ("--run-id", RUN, "--record", "--attempt", "1")
    workspace.run("step", "work", "1", "--parents", "start/0", *last, check=1)
    shown = workspace.run("status", RUN, check=0)
    assert "failed" in shown.output
    assert "not yet" in shown.output
