"""The client as its users know it: a flow is run by the real command, then looked at."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest

TRAIN = """
    import sys
    from flowkit import FlowSpec, Parameter, Run, catch, current, retry, step

    class TrainFlow(FlowSpec):
        alpha = Parameter("alpha", default=3)
        limit = 10

        @step
        def start(self):
            print("my run is", current.run.pathspec, "and I am", current.task.pathspec)
            self.items = [1, 2, 3]
            self._private = "hidden"
            self.next(self.train, foreach="items")

        @retry(times=2, minutes_between_retries=0)
        @step
        def train(self):
            print(f"item {self.input}")
            print("a warning", file=sys.stderr)
            if self.input == 2 and current.retry_count == 0:
                raise ValueError("not yet")
            self.score = self.input * self.alpha
            self.next(self.join)

        @step
        def join(self, inputs):
            self.best = max(i.score for i in inputs)
            self.next(self.risky)

        @catch(var="failure")
        @step
        def risky(self):
            raise KeyError("caught")
            self.next(self.end)

        @step
        def end(self):
            self.seen = Run(current.run.pathspec)["join"].task.data.best

    if __name__ == "__main__":
        TrainFlow()
"""


@pytest.fixture
def trained(workspace: Any) -> Any:
    """The client, after one run of TrainFlow."""
    workspace.write("flow.py", TRAIN)
    workspace.run("run", "--tag", "first", "--alpha", 5, check=0)
    return workspace.client()


def test_a_run_is_looked_at_from_the_root_to_its_values(trained: Any) -> None:
    (flow,) = trained.Flowkit()
    run = flow.latest_run
    assert flow.id == "TrainFlow"
    assert run == flow.latest_successful_run
    assert run.successful
    assert run.finished_at >= run.created_at
    assert [step.id for step in run] == ["end", "risky", "join", "train", "start"]
    assert run.data.best == 15
    assert run.data.alpha == 5
    assert run.data.limit == 10
    assert run.data.seen == 15, "a step can read its own run"
    assert run["_parameters"].task["alpha"].data == 5
    assert "_private" not in [artifact.id for artifact in run["start"].task]
    assert {"first", "user:tester"} <= run.tags
    assert run.user_tags == {"first"}
    assert run._graph_endpoints == ("start", "end")
    assert pickle.loads(pickle.dumps(run)).data.best == 15


def test_tasks_tell_where_they_came_from_and_what_they_wrote(trained: Any) -> None:
    run = trained.Flow("TrainFlow").latest_run
    train = {task.index: task for task in run["train"]}
    assert sorted(train) == [0, 1, 2]
    assert [task.current_attempt for _, task in sorted(train.items())] == [0, 1, 0]
    assert train[1].stdout == "item 2\n"
    assert train[1].stderr == "a warning\n"
    assert train[1].stdout_size == 7
    assert [text for _, text in train[2].loglines("stdout")] == ["item 3"]
    assert train[2].tail(1, "stderr") == ["a warning"]
    failed = trained.Task(train[1].pathspec, attempt=0)
    assert (failed.status, failed.exception.type, failed.exception.exception) == ("failed", "ValueError", "not yet")
    assert "ValueError: not yet" in failed.stderr
    assert list(failed) == []
    start = run["start"].task
    assert start.stdout == f"my run is {run.pathspec} and I am {start.pathspec}\n"
    assert [task.id for task in start.child_tasks] == ["0", "1", "2"]
    assert [task.pathspec for task in train[0].parent_tasks] == [start.pathspec]
    assert [task.id for task in run["join"].task.parent_tasks] == ["0", "1", "2"]
    assert list(train[2].child_task_pathspecs) == [run["join"].task.pathspec]
    assert [step.id for step in run["join"].parent_steps] == ["train"]


def test_what_was_caught_is_told(trained: Any) -> None:
    task = trained.Flow("TrainFlow").latest_run["risky"].task
    assert task.finished
    assert not task.successful
    assert task.exception.type.endswith("KeyError")
    assert task.data.failure.type.endswith("KeyError")
    assert "KeyError" in str(task.exception)


def test_tags_outlive_the_index(trained: Any, workspace: Any) -> None:
    run = trained.Flow("TrainFlow").latest_run
    run.replace_tag("first", "kept")
    run.add_tag("reviewed")
    fresh = workspace.python(
        "from flowkit import Flow; print(*sorted(Flow('TrainFlow').latest_run.user_tags))", check=0
    )
    assert fresh.stdout.split() == ["kept", "reviewed"]
    assert [r.id for r in trained.Flow("TrainFlow").runs("kept", "reviewed")] == [run.id]


def test_runs_of_others_are_not_shown_unless_asked_for(trained: Any, workspace: Any) -> None:
    workspace.run("run", env={"FLOWKIT_USER": "bob"}, check=0)
    flow = trained.Flow("TrainFlow")
    assert [run.id for run in flow] == ["1"]
    with pytest.raises(trained.exceptions.NamespaceMismatch):
        trained.Run("TrainFlow/2")
    trained.namespace(None)
    try:
        assert [run.id for run in trained.Flow("TrainFlow")] == ["2", "1"]
        assert [run.id for run in trained.Flow("TrainFlow").runs(user="bob", status="succeeded")] == ["2"]
    finally:
        trained.default_namespace()


def test_a_failed_run_shows_what_failed_and_what_it_had_to_work_with(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowSpec, step

        class Breaks(FlowSpec):
            @step
            def start(self):
                self.items = [4, 0, 2]
                self.next(self.divide, foreach="items")

            @step
            def divide(self):
                self.result = 8 / self.input
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Breaks()
        """,
    )
    workspace.run("run", check=1)
    run = workspace.client().Flow("Breaks").latest_run
    assert (run.status, run.successful, run.finished, run.data) == ("failed", False, False, None)
    assert run.parent.latest_successful_run is None
    assert "ZeroDivisionError" in run.status_reason
    (task,) = run.failed_tasks
    assert (task.pathspec, task.index) == ("Breaks/1/divide/1", 1)
    assert task.exception.type == "ZeroDivisionError"
    assert "self.result = 8 / self.input" in str(task.exception)
    assert task.exception.location.endswith("flow.py:11")
    (parent,) = task.parent_tasks
    assert parent.data.items == [4, 0, 2]
    assert run["divide"].status_counts == {"succeeded": 2, "failed": 1}
    assert "join" not in run


def test_a_resumed_run_shows_artifacts_and_logs_of_its_origin(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        """
        import os
        from flowkit import FlowSpec, step

        class Twice(FlowSpec):
            @step
            def start(self):
                print("made once")
                self.x = 1
                self.next(self.end)

            @step
            def end(self):
                if not os.path.exists("ready"):
                    raise SystemExit("not ready")

        if __name__ == "__main__":
            Twice()
        """,
    )
    workspace.run("run", check=1)
    workspace.write("ready", "")
    workspace.run("resume", check=0)
    client = workspace.client()
    run = client.Run("Twice/2")
    assert run.successful
    assert run.origin_pathspec == "Twice/1"
    task = run["start"].task
    assert (task.pathspec, task.origin_pathspec) == ("Twice/2/start/0", "Twice/1/start/0")
    assert task.stdout == "made once\n"
    assert task.data.x == run.data.x == 1
    assert (task.metadata_dict["origin-run-id"], task.metadata_dict["origin-task-id"]) == ("1", "0")
    assert run.end_task.origin_pathspec is None
    assert [child.pathspec for child in task.child_tasks] == ["Twice/2/end/0"]


def test_loops_switches_and_gangs(workspace: Any) -> None:
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowSpec, current, parallel, step

        class Shapes(FlowSpec):
            @step
            def start(self):
                self.turns = 0
                self.next(self.loop)

            @step
            def loop(self):
                self.turns += 1
                self.again = self.turns < 3
                self.next({True: self.loop, False: self.fan}, condition="again")

            @step
            def fan(self):
                self.next(self.node, num_parallel=2)

            @parallel
            @step
            def node(self):
                self.rank = current.parallel.node_index
                self.next(self.gather)

            @step
            def gather(self, inputs):
                self.ranks = sorted(i.rank for i in inputs)
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Shapes()
        """,
    )
    workspace.run("run", check=0)
    run = workspace.client().Flow("Shapes").latest_run
    assert run.data.ranks == [0, 1]
    assert [task.id for task in run["loop"]] == ["0-2", "0-1", "0-0"]
    assert list(run["start"].task.child_task_pathspecs) == ["Shapes/1/loop/0-0"]
    assert list(run["loop"]["0-1"].child_task_pathspecs) == ["Shapes/1/loop/0-2"]
    assert list(run["loop"]["0-2"].child_task_pathspecs) == ["Shapes/1/fan/0"]
    assert [task.id for task in run["fan"].task.child_tasks] == ["0", "1"]
    assert run["node"].control_task.id == "0"
    assert len(list(run["node"].control_tasks())) == 1
    assert run["fan"].control_task is None


SLOW = """
    import sys, time
    from flowkit import FlowSpec, step

    class Slow(FlowSpec):
        @step
        def start(self):
            print("waiting", flush=True)
            time.sleep(60)
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Slow()
"""


def wait_for(condition: Any, seconds: float = 30) -> Any:
    """Return what a function returns once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_a_running_run_is_watched_and_cancelled(workspace: Any) -> None:
    workspace.write("flow.py", SLOW)
    process = workspace.start("run")
    client = workspace.client()

    def waiting() -> Any:
        try:
            task = client.Task("Slow/1/start/0")
        except client.exceptions.FlowkitError:
            return None
        return task if "waiting" in task.stdout else None

    task = wait_for(waiting)
    run = client.Flow("Slow").latest_run
    assert (run.status, task.status, task.finished) == ("running", "running", False)
    assert list(client.Flow("Slow").runs(status="running")) == [run]
    run.cancel()
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert run.status == "cancelled"
    assert task.status == "cancelled"
    with pytest.raises(client.exceptions.Conflict, match="over already"):
        run.cancel()


def test_a_run_whose_runtime_was_killed_is_lost(workspace: Any) -> None:
    workspace.write("flow.py", SLOW)
    process = workspace.start("run")
    client = workspace.client()
    run = wait_for(lambda: next(iter(_runs(client, "Slow")), None))
    process.kill()
    process.wait()
    assert run.status == "lost"
    assert "is gone" in run.status_reason
    assert list(client.Flow("Slow").runs(status="lost")) == [run]


def _runs(client: Any, flow: str) -> list[Any]:
    try:
        return list(client.Flow(flow))
    except client.exceptions.FlowkitError:
        return []


def test_the_client_reads_while_the_flow_is_imported_and_in_its_steps(workspace: Any) -> None:
    workspace.write("flow.py", TRAIN)
    workspace.run("run", check=0)
    workspace.write(
        "after.py",
        """
        from flowkit import Flow, FlowSpec, step

        before = Flow("TrainFlow").latest_successful_run

        class After(FlowSpec):
            @step
            def start(self):
                self.best = before.data.best
                self.ids = [run.id for run in Flow("TrainFlow")]
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            After()
        """,
    )
    workspace.run("run", flow="after.py", check=0)
    run = workspace.client().Flow("After").latest_run
    assert (run.data.best, run.data.ids) == (9, ["1"])
