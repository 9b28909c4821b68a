"""Flows run from Python: arguments, errors, streams, async twins, spins, notebooks."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import sys
from pathlib import Path

import pytest

from flowkit import NBRunner, Runner
from flowkit.exceptions import RunFailed, UsageError
from flowkit.runner.program import Program

FLOW = """
import sys, time
from flowkit import FlowSpec, JSONType, Parameter, step

class RunnerFlow(FlowSpec):
    alpha = Parameter("alpha", type=float, default=0.5)
    names = Parameter("names", type=JSONType, default="[]")
    learning_rate = Parameter("learning-rate", type=int, default=1)
    fail = Parameter("fail", default=False)
    pause = Parameter("pause", default=0.0)

    @step
    def start(self):
        print("alpha is", self.alpha)
        print("to err", file=sys.stderr)
        time.sleep(self.pause)
        if self.fail:
            raise ValueError("asked to fail")
        self.next(self.end)

    @step
    def end(self):
        self.told = [self.alpha, self.names, self.learning_rate]

if __name__ == "__main__":
    RunnerFlow()
"""


@pytest.fixture
def flow(workspace):
    return workspace.write("flow.py", FLOW)


def runner(flow: Path, **options) -> Runner:
    variables = {"FLOWKIT_USER": "tester", **options.pop("env", {})}
    return Runner(flow, show_output=False, cwd=str(flow.parent), env=variables, **options)


def test_a_run_takes_typed_arguments_and_gives_the_clients_run(flow, workspace):
    with runner(flow).run(alpha=2, names=["a", {"b": 1}], learning_rate=3, tags=["x", "y"], max_workers=1) as running:
        assert (running.status, running.returncode) == ("successful", 0)
        assert "alpha is 2.0" in running.stdout
        assert "executing RunnerFlow" in running.stderr
        run = running.run
        assert run.data.told == [2.0, ["a", {"b": 1}], 3]
        assert {"x", "y"} <= set(run.tags)
        left = Path(running.command_obj.path("stdout"))
        assert left.exists()
    assert not left.exists()
    with pytest.raises(UsageError, match="removed when its with block ended"):
        print(running.stdout)
    assert run.successful


def test_a_run_that_nobody_asks_about_any_more_leaves_no_files(flow, workspace):
    running = runner(flow).run()
    left = Path(running.command_obj.path("stdout"))
    assert left.exists()
    del running
    gc.collect()
    assert not left.exists()


def test_a_start_that_is_cancelled_is_ended(flow, workspace):
    pidfile = workspace.path / "pid"
    workspace.write("slow.py", f"import os, time\nopen({str(pidfile)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")

    async def story():
        async with runner(workspace.path / "slow.py") as made:
            starting = asyncio.ensure_future(made.async_run())
            while not (pidfile.exists() and pidfile.read_text()):
                await asyncio.sleep(0.01)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting

    asyncio.run(story())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pidfile.read_text()), 0)


def test_a_flow_with_a_mistake_is_told_once(workspace, capsys):
    workspace.write("broken.py", "class Broken(:\n    pass\n")
    with pytest.raises(RunFailed, match="SyntaxError"):
        Runner(workspace.path / "broken.py").run()
    assert capsys.readouterr().err == ""


def test_characters_that_are_half_written_are_shown_whole(flow, tmp_path, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stdout", shown)
    program = Program([sys.executable, "-c", "pass"], "run", {}, None, os.environ, show=True)
    program.process.wait()
    text = "ü€".encode()
    for half in (text[:1], text[1:4], text[4:]):
        with open(program.path("stdout"), "ab") as file:
            file.write(half)
        program.relay()
    program.remove()
    assert shown.getvalue() == "ü€"


def test_options_before_the_command_and_the_environment(flow, workspace, tmp_path):
    root = tmp_path / "elsewhere"
    root.mkdir()
    with runner(flow, datastore_root=str(root), decospecs=["retry:times=1"], env={"FLOWKIT_USER": "ada"}) as made:
        running = made.run()
        assert "user:ada" in running.run.system_tags
        assert (root / "flows" / "RunnerFlow").is_dir()


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ({"alhpa": 1}, UsageError, "no parameter 'alhpa'"),
        ({"alpha": [1]}, UsageError, "parameter 'alpha' takes a number; got [1]"),
        ({"alpha": object()}, UsageError, "the parameter 'alpha' cannot be object"),
        ({"names": {1, 2}}, UsageError, "a set has no order"),
        ({"learning_rate": 1.5}, UsageError, "takes a whole number; got 1.5"),
        ({"max_workers": 0}, UsageError, "max-workers"),
        ({"decospecs": ["nope"]}, UsageError, "no decorator called 'nope'"),
    ],
)
def test_wrong_arguments_are_told_at_once_and_nothing_runs(flow, workspace, arguments, kind, told):
    with pytest.raises(kind) as caught:
        runner(flow).run(**arguments)
    assert told in str(caught.value)
    assert not (workspace.path / ".flowkit" / "flows").exists()


def test_wrong_runners_are_told(flow):
    with pytest.raises(UsageError, match="no flow file"):
        Runner("nowhere.py")
    with pytest.raises(UsageError, match="did you mean 'datastore_root'"):
        Runner(flow, datastore_rot="x")
    with pytest.raises(UsageError, match="spin has no option 'alpha'"):
        runner(flow).spin("start", alpha=1)


def test_a_failed_run_is_resumed(flow, workspace):
    with runner(flow) as made:
        failed = made.run(fail=True)
        assert (failed.status, failed.returncode) == ("failed", 1)
        assert failed.run.status == "failed"
        resumed = made.resume(origin_run_id=failed.run.id, fail=False)
        assert resumed.status == "successful"
        assert resumed.run.data.told == [0.5, [], 1]
        again = made.resume("end", origin_run_id=resumed.run.id)
        assert again.run.successful


def test_output_is_shown_while_it_is_waited_for(flow, capsys):
    with Runner(flow, cwd=str(flow.parent)).run():
        shown = capsys.readouterr()
    assert "alpha is 0.5" in shown.out
    assert "executing RunnerFlow" in shown.err


def test_spin_gives_the_clients_task(flow, workspace):
    with runner(flow) as made:
        made.run()
        tried = made.spin("end", set=["alpha=9.0"])
        assert tried.status == "successful"
        assert tried.task.data.told[0] == 9.0
        assert workspace.client().Task("RunnerFlow/1/end/0").data.told[0] == 0.5


def test_the_async_twins(flow):
    async def story():
        async with runner(flow) as made:
            one, two = await asyncio.gather(made.async_run(alpha=1), made.async_run(alpha=2, pause=0.3))
            lines = [line async for _, line in two.stream_log("stdout")]
            assert [line for line in lines if "alpha is 2.0" in line]
            await one.wait()
            assert (one.status, two.status) == ("successful", "successful")
            assert {one.run.data.told[0], two.run.data.told[0]} == {1.0, 2.0}
            position = [at async for at, _ in one.stream_log("stdout")][-2]
            assert len([line async for _, line in one.stream_log("stdout", position)]) == 1
            tried = await made.async_spin(f"{one.run.id}/end")
            await tried.wait(stream="stdout")
            assert tried.task.successful
            with pytest.raises(UsageError, match="no stream"):
                [line async for line in one.stream_log("stdlog")]

    asyncio.run(story())


def test_a_run_that_takes_too_long_is_given_up_and_one_that_is_left_is_stopped(flow, workspace):
    async def story():
        async with await runner(flow).async_run(pause=600) as running:
            assert running.status == "running"
            await running.wait(timeout=0.05)
            assert running.status == "timeout"
            assert running.run.status == "cancelled"
        async with runner(flow) as made:
            left = await made.async_run(pause=600)
        assert left.run.status == "cancelled"

    asyncio.run(story())


CELL = """
import math
from flowkit import FlowSpec, NBRunner, Parameter, step

SCALE = 10

def scaled(x):
    return math.floor(x * SCALE)

class CellFlow(FlowSpec):
    x = Parameter("x", default=1.0)

    @step
    def start(self):
        if self.x < 0:
            raise ValueError("negative")
        self.y = scaled(self.x)
        self.next(self.end)

    @step
    def end(self):
        pass

run = NBRunner(CellFlow, show_output=False).nbrun(x=2.5)
"""


def notebook(cells):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return made


def test_a_flow_in_a_cell_runs_in_a_real_kernel(workspace):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    cells = [
        CELL,
        "print(run.pathspec, run.data.y)",
        "run",
        "again = NBRunner(CellFlow, show_output=False)\n"
        "try:\n    again.nbrun(x=-1)\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
        "print(again.resume(x=3).run.data.y)\nagain.cleanup()",
        "import math as m\nBIG = 7\nfrom flowkit import *\ndef powered(x):\n    return m.pow(x, BIG)",
        "%%time\nclass Base(FlowSpec):\n    @step\n    def end(self):\n        self.z = powered(2)",
        "files = !ls\nclass Derived(Base):\n    @step\n    def start(self):\n        self.next(self.end)\n"
        "    @step\n    def end(self):\n        super().end()\n"
        "async with NBRunner(Derived, show_output=False) as made:\n    print(made.nbrun().data.z)",
        "class Other(Base):\n    @step\n    def start(self):\n        print(files)\n        self.next(self.end)\n"
        "try:\n    NBRunner(Other)\nexcept Exception as error:\n    print(error)",
        "from flowkit import NBDeployer\ncell = NBDeployer(CellFlow, show_output=False)\n"
        "deployed = cell.local().create(tags=['cell'])\ncell.cleanup()\n"
        "fired = deployed.trigger(x=4)\nfired.wait_for_completion(0.05, 60)\n"
        "print(fired.status, fired.wait_for_run(0.05, 60).data.y, deployed.name)\nprint(deployed.delete())",
        "import os\nprint([name for name in os.listdir() if name.startswith('.') and name.endswith('.py')])",
    ]
    made = notebook(cells)
    nbclient.NotebookClient(
        made, timeout=60, kernel_name="python3", resources={"metadata": {"path": workspace.path}}
    ).execute()
    outputs = ["".join(each.get("text", "") for each in cell.outputs) for cell in made.cells]
    assert outputs[1] == "CellFlow/1 25\n"
    page = made.cells[2].outputs[0]["data"]["text/html"]
    assert "CellFlow/1" in page
    assert "succeeded" in page
    assert "start" in page
    assert "RunFailed run CellFlow/2 failed" in outputs[3]
    assert "negative" in outputs[3]
    assert outputs[3].endswith("30\n")
    assert outputs[6] == "128.0\n"
    assert "Other needs 'files', which no cell defines by plain Python" in outputs[7]
    assert outputs[8] == "succeeded 40 CellFlow\nTrue\n"
    assert outputs[9] == "[]\n"


def test_what_is_no_flow_of_a_notebook_is_told():
    with pytest.raises(UsageError, match="takes the class of a flow"):
        NBRunner("flow.py")  # type: ignore[arg-type]
    from flowkit import FlowSpec

    with pytest.raises(UsageError, match="source of Made cannot be found"):
        NBRunner(type("Made", (FlowSpec,), {}))
