"""Flows deployed by the real command, carried out by the loopback cluster's Argo, and compared with ``run``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from argo_fixtures import ended, run_on_argo

RICH = """
    from flowkit import *


    def told(run):
        with open("@HOME@/told", "a") as file:
            file.write(f"{run.pathspec} {run.successful}\\n")


    @exit_hook(on_success=[told], on_error=[told])
    class Rich(FlowSpec):
        alpha = Parameter("alpha", default=2)
        word = Parameter("word", default="plain")

        @step
        def start(self):
            self.rows = [[3], []]
            self.next(self.fan, self.side)

        @step
        def fan(self):
            self.next(self.row, foreach="rows")

        @step
        def row(self):
            self.cells = self.input
            self.next(self.cell, foreach="cells")

        @retry(times=1, minutes_between_retries=0)
        @step
        def cell(self):
            if self.input == 3 and current.retry_count == 0:
                raise ValueError("made to fail")
            self.value = self.input * self.alpha
            self.kind = "odd" if self.input % 2 else "even"
            self.tries = current.retry_count + 1
            self.next({"odd": self.odd, "even": self.tidy}, condition="kind")

        @timeout(seconds=100)
        @step
        def odd(self):
            self.value += 1000
            self.next(self.tidy)

        @catch(var="oops")
        @step
        def tidy(self):
            raise KeyError("tidy")
            self.next(self.join_cells)

        @step
        def join_cells(self, inputs):
            self.values = [(each.value, each.tries, each.oops is not None) for each in inputs]
            self.next(self.join_rows)

        @step
        def join_rows(self, inputs):
            self.values = [each.values for each in inputs]
            self.next(self.both)

        @step
        def side(self):
            self.turn = getattr(self, "turn", 0) + 1
            self.where = "on" if self.turn < 2 else "gang"
            self.next({"on": self.side, "gang": self.muster, "never": self.lone}, condition="where")

        @step
        def lone(self):
            self.next(self.beyond)

        @step
        def muster(self):
            self.next(self.work, num_parallel=2)

        @parallel
        @step
        def work(self):
            self.seen = (current.parallel.node_index, current.parallel.num_nodes)
            self.next(self.dismiss)

        @step
        def dismiss(self, inputs):
            self.seen = sorted(each.seen for each in inputs)
            self.next(self.beyond)

        @step
        def beyond(self):
            self.next(self.both)

        @step
        def both(self, inputs):
            self.result = (inputs.join_rows.values, inputs.beyond.seen, self.alpha, self.word)
            self.next(self.end)

        @step
        def end(self):
            print("result", self.result)


    if __name__ == "__main__":
        Rich()
"""

LOOK = """
    import json, sys
    from flowkit import Run, namespace
    namespace(None)
    for pathspec in sys.argv[1:]:
        found = {}
        for step in Run(pathspec):
            for task in step:
                data = {each.id: repr(each.data) for each in task if not each.id.startswith("_")}
                found[f"{step.id}/{task.id}"] = data
        print(json.dumps(found))
"""


def everything(user: Any, *pathspecs: str) -> list[dict[str, dict[str, str]]]:
    """Every artifact of runs, by task."""
    user.write("look.py", LOOK)
    return [
        json.loads(line) for line in user.run(*pathspecs, flow="look.py", check=True, timeout=240).stdout.splitlines()
    ]


@pytest.mark.parametrize(
    ("user", "target"),
    [("folder_user", "argo-on-folder"), pytest.param("argo_user", "argo-workflows", marks=pytest.mark.deploying)],
)
def test_a_flow_with_everything_comes_to_the_same_artifacts_as_run(request, argo, user, target) -> None:
    here = request.getfixturevalue(user)
    here.write("flow.py", RICH.replace("@HOME@", str(here.home)))
    word = 'it\'s "$(HOME)" $(FLOWKIT_DATASTORE) $$ {curly} {{{workflow.name}}} {{=1+1}} \\{{x\n%s'
    done = run_on_argo(here, argo, parameters={"alpha": 5, "word": word}, target=target)
    assert done.state == "succeeded", argo.tell(done.workflow)
    here.run("run", "--alpha", 5, "--word", word, check=True, timeout=240)
    deployed, local = everything(here, done.pathspec, "Rich/1")
    assert deployed == local
    assert "1015, 2, True" in local["end/0"]["result"]
    assert (here.home / "told").read_text() == f"{done.pathspec} True\nRich/1 True\n"
    nodes = argo.tell(done.workflow)
    assert sum("(0:0)" in name and name.endswith(".row") for name in nodes) == 1


FAILING = """
    from flowkit import *


    def told(run):
        with open("@HOME@/told", "a") as file:
            file.write(f"{run.pathspec} {run.successful} {run['start'].task.data.known}\\n")


    @schedule(cron="0 6 ? * MON-FRI *", timezone="Europe/Berlin")
    @exit_hook(on_error=[told], on_success=[told])
    class Failing(FlowSpec):
        @step
        def start(self):
            self.known = 7
            self.next(self.bad)

        @step
        def bad(self):
            raise ValueError("broken for good")
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Failing()
"""


def test_a_run_that_fails_is_not_tried_in_vain_ended_and_told_of(folder_user, argo, kubernetes_api) -> None:
    folder_user.write("flow.py", FAILING.replace("@HOME@", str(folder_user.home)))
    done = run_on_argo(folder_user, argo, target="argo-on-folder")
    assert done.state == "failed"
    nodes = argo.tell(done.workflow)
    name = done.workflow
    # Argo would start it three times more, for what machines may cost: the container has said that it is of no use.
    assert nodes[f"{name}.bad(0)"].startswith("Failed main: Error (exit code 79)")
    assert nodes[f"{name}.bad"] == "Failed retryStrategy.expression evaluated to false"
    assert f"{name}.bad(1)" not in nodes
    assert nodes[f"{name}.end"].startswith("Omitted")
    assert nodes[f"{name}.onExit.end-of-run"] == "Succeeded"
    assert (folder_user.home / "told").read_text() == f"{done.pathspec} False 7\n"
    look = """
        import sys
        from flowkit import Run, namespace
        namespace(None)
        run = Run(sys.argv[1])
        print(run.status, run["bad"].task.exception)
    """
    folder_user.write("look.py", look)
    shown = folder_user.run(done.pathspec, flow="look.py", check=True, timeout=240).stdout
    assert shown.startswith("failed Traceback")
    assert "broken for good" in shown
    cron = kubernetes_api.store.get("cronworkflows", "default", "failing")
    assert cron["spec"]["schedules"] == ["0 6 * * 1-5"]
    assert cron["spec"]["timezone"] == "Europe/Berlin"


SLOW = """
    import time

    from flowkit import *


    class Slow(FlowSpec):
        @step
        def start(self):
            print("begun", flush=True)
            time.sleep(600)
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Slow()
"""


@pytest.mark.deploying
def test_a_run_is_suspended_and_stopped(folder_user, argo, kubernetes_api) -> None:
    folder_user.write("flow.py", SLOW)
    folder_user.run("argo-on-folder", "create", check=True, timeout=240)
    folder_user.run("argo-on-folder", "trigger", "--run-id-file", "id", check=True, timeout=240)
    run = (folder_user.path / "id").read_text().strip().rpartition("/")[2]
    until(lambda: [pod for pod in kubernetes_api.pods() if b"begun" in kubernetes_api.words(pod)])
    folder_user.run("argo-on-folder", "suspend", run, check=True, timeout=240)
    assert "suspended" in folder_user.run("argo-on-folder", "status", run, check=True, timeout=240).stdout
    folder_user.run("argo-on-folder", "unsuspend", run, check=True, timeout=240)
    folder_user.run("argo-on-folder", "terminate", run, check=True, timeout=240)
    done = ended(argo, run)
    assert done.state == "cancelled"
    assert argo.tell(done.workflow)[f"{done.workflow}.onExit.end-of-run"] == "Succeeded"
    look = """
        import sys
        from flowkit import Run, namespace
        namespace(None)
        print(Run(sys.argv[1]).status)
    """
    folder_user.write("look.py", look)
    assert folder_user.run(done.pathspec, flow="look.py", check=True, timeout=240).stdout == "cancelled\n"
    folder_user.run("argo-on-folder", "delete", check=True, timeout=240)
    assert kubernetes_api.store.items("workflowtemplates") == []


def until(done: Callable[[], Any]) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
