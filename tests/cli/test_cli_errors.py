"""Every kind of mistake ends in one message, without a traceback of ours, and a meaningful exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FLOW = """
from flowkit import FlowSpec, IncludeFile, Parameter, step


class ErrFlow(FlowSpec):
    alpha = Parameter("alpha", default=1)
    flag = Parameter("flag", default=False)
    text = IncludeFile("text", required=False)

    @step
    def start(self):
        self.next(self.train)

    @step
    def train(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ErrFlow()
"""


@pytest.fixture
def flow(workspace):
    workspace.write("flow.py", FLOW)
    return workspace


def _told(result, code, *parts):
    assert result.returncode == code, str(result)
    for part in parts:
        assert part in result.stderr, str(result)
    assert "Traceback" not in result.output, str(result)
    assert "defect" not in result.output, str(result)


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["rum"], 2, ["there is no command 'rum'", "did you mean 'run'?"]),
        (["frobnicate"], 2, ["commands: run, resume, check"]),
        (["run", "--max-wokers", "2"], 2, ["there is no option --max-wokers", "did you mean '--max-workers'?"]),
        (["--dataroot", "x", "run"], 2, ["there is no option --dataroot"]),
        (["run", "--datastore-root", "x"], 2, ["--datastore-root stands before the command"]),
        (["run", "--alhpa", "2"], 2, ["there is no option --alhpa", "did you mean '--alpha'?"]),
        (["run", "--alpha", "x"], 2, ["'alpha' takes a whole number; got 'x'"]),
        (["run", "--alpha", "x", "--flag", "perhaps"], 2, ["several parameters", "'x'", "'perhaps'"]),
        (["run", "--alpha"], 2, ["'--alpha'"]),
        (["run", "extra"], 2, ["extra"]),
        (["run", "--max-workers", "0"], 2, ["--max-workers"]),
        (["run", "--max-num-splits", "many"], 2, ["--max-num-splits"]),
        (["run", "--task-start", "forc"], 2, ["--task-start", "fork"]),
        (["run", "--with", "rety"], 2, ["there is no decorator called 'rety'", "did you mean 'retry'?"]),
        (["run", "--with", "retry:tims=3"], 3, ["tims", "did you mean 'times'?"]),
        (["run", "--tag", ""], 2, ["a tag is empty"]),
        (["run", "--run-id-file", "/no/such/folder/id"], 2, ["--run-id-file", "No such file or directory"]),
        (["run", "--text", "missing.txt"], 2, ["missing.txt"]),
        (["run", "--fail-fast", "--keep-going"], 2, ["exclude each other"]),
        (["--metadata", "locl", "run"], 2, ["there is no metadata store called 'locl'", "did you mean 'local'?"]),
        (["--datastore", "s3", "run"], 2, ["does not say where it is", "--datastore-root s3://bucket/prefix"]),
        (["--datastore", "s3", "--datastore-root", "here", "run"], 2, ["needs a root of that kind, not here"]),
        (["--datastore", "local", "--datastore-root", "s3://b/p", "run"], 2, ["needs a root of that kind"]),
        (["--datastore", "s4", "run"], 2, ["there is no kind of datastore called 's4'", "s3"]),
        (["--datastore-root", "s4://b/p", "run"], 2, ["there is no kind of datastore called 's4'"]),
        (["--datastore-root", "flow.py", "run"], 5, ["is a file"]),
        (["--datastore-root", "nowhere", "status"], 4, ["there is no datastore", "nowhere"]),
        (["resume"], 4, ["there is no datastore"]),
        (["logs", "1"], 4, ["there is no datastore"]),
        (["resume", "--json"], 2, ["--json goes with --plan"]),
        (["cancel"], 2, ["RUN", "flow.py cancel --help"]),
        (["step", "start", "0"], 2, ["--run-id"]),
    ],
)
def test_a_command_that_cannot_be_understood(flow, arguments, code, parts):
    result = flow.run(*arguments)
    _told(result, code, *parts)
    assert result.stdout == ""
    assert not (flow.path / ".flowkit" / "flows").exists(), "nothing began"


def test_what_is_not_there(flow):
    flow.run("run", check=True)
    _told(flow.run("status", "7"), 4, "there is no run ErrFlow/7", "its newest run is 1")
    _told(flow.run("logs", "1/trian"), 4, "run 1 has no step 'trian'", "did you mean 'train'?")
    _told(flow.run("logs", "1/train/3"), 4, "no task '3'", "its tasks: 0")
    _told(flow.run("logs", "1/train/0/x"), 2, "RUN[/STEP[/TASK]]")
    _told(flow.run("logs", "../../etc"), 2, "'..'")
    _told(flow.run("dump", "1/train", "--include", "x,y"), 4, "there is no artifact 'x'")
    _told(flow.run("resume", "trian"), 2, "trian", "did you mean 'train'?")
    _told(flow.run("resume", "--origin-run-id", "7"), 4, "there is no run ErrFlow/7")
    _told(flow.run("step", "trian", "0", "--run-id", "1"), 2, "did you mean 'train'?")
    _told(flow.run("step", "train", "0", "--run-id", "7"), 4, "there is no run ErrFlow/7")
    _told(flow.run("resume", env={"USER": "other", "LOGNAME": "other"}), 4, "no run of ErrFlow", "run 1 is by tester")
    flow.write("other.py", FLOW.replace("ErrFlow", "OtherFlow"))
    _told(flow.run("logs", "ErrFlow/1", flow="other.py"), 4, "of the flow ErrFlow", "other.py is OtherFlow")
    _told(flow.run("status", "1", flow="other.py"), 4, "OtherFlow has no runs here")


def test_a_corrupt_database_is_named_and_can_be_made_anew(flow):
    flow.run("run", "--tag", "kept", check=True)
    database = flow.path / ".flowkit" / "metadata.db"
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    database.write_bytes(b"not a database" * 1000)
    for command in (["status"], ["run"], ["logs", "1"], ["tag", "list"]):
        _told(flow.run(*command), 5, "metadata.db is damaged", "flowkit metadata rebuild")
    rebuilt = flow.flowkit("metadata", "rebuild", check=True)
    assert "1 flow, 1 run" in rebuilt.stderr
    assert "metadata.db.damaged-" in rebuilt.stderr
    assert flow.run("tag", "list", "1", "--hide-system-tags", check=True).stdout == "kept\n"
    flow.run("run", check=True)
    database.unlink()
    assert "is being filled" in flow.run("status", "2", check=True).stderr


def test_damage_in_the_datastore_is_told(flow):
    flow.run("run", check=True)
    (flow.path / ".flowkit/flows/ErrFlow/1/train/0/manifest.json").write_text("{}")
    _told(flow.run("dump", "1/train"), 5, "manifest.json")
    assert "train/0" in flow.flowkit("metadata", "rebuild", check=5).stderr


def test_a_read_only_folder(flow):
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    readonly = (
        f'mount --bind "{flow.path}" "{flow.path}" && mount -o remount,bind,ro "{flow.path}" && cd "{flow.path}" && '
    )
    able = (
        shutil.which("unshare") and subprocess.run([*unshare, readonly + "true"], capture_output=True).returncode == 0
    )
    if not able:
        pytest.skip("nothing here can mount a folder read-only")

    def run(*arguments):
        return flow.command(*unshare, f"{readonly} {sys.executable} flow.py {' '.join(arguments)}")

    _told(run("run"), 5, ".flowkit", "Read-only file system", "FLOWKIT_DATASTORE")
    flow.run("run", check=True)
    _told(run("run"), 5, "Read-only file system")
    _told(run("tag", "add", "x"), 5, "metadata.db")
    assert run("status").stdout.splitlines()[1].split()[:2] == ["1", "succeeded"]
    os.unlink(flow.path / ".flowkit" / "metadata.db")
    assert run("status").stdout.splitlines()[1].split()[:2] == ["1", "succeeded"]


STEPS = """
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("body", "code", "parts"),
    [
        ("    pass\n", 3, ["has no steps"]),
        (STEPS + STEPS.replace("end", "stop"), 3, ["flow.py:", "'start' is defined twice"]),
        (STEPS.replace("self.end", "self.edn"), 3, ["flow.py:", "'edn'", "did you mean 'end'?"]),
        ("    x = Parameter('not a name', default=1)\n" + STEPS, 2, ["flow.py:5", "'not a name'"]),
        ("    x = Parameter('x')\n    y = Parameter('X')\n" + STEPS, 3, ["flow.py:", "two parameters are called 'X'"]),
        (STEPS.replace("    @step", "    @retry(tims=1)\n    @step", 1), 3, ["flow.py:", "tims", "'times'"]),
        ("    x = Parameter('x', type=int, required=True)\n" + STEPS, 2, ["'x' is required", "--x <a whole number>"]),
    ],
)
def test_a_flow_that_is_wrong(workspace, body, code, parts):
    head = "from flowkit import FlowSpec, Parameter, retry, step\n\n\nclass BadFlow(FlowSpec):\n"
    workspace.write("flow.py", head + body + "\n\nif __name__ == '__main__':\n    BadFlow()\n")
    _told(workspace.run("run"), code, *parts)


def test_no_flow_at_all(workspace):
    workspace.write("flow.py", "from flowkit import FlowSpec\nFlowSpec()\n")
    _told(workspace.run("run"), 3, "FlowSpec itself is no flow")


def test_settings_that_are_wrong(flow):
    _told(flow.run("run", env={"FLOWKIT_MAX_WORKERS": "x"}), 2, "FLOWKIT_MAX_WORKERS must be a whole number")
    _told(flow.run("run", env={"FLOWKIT_RUN_ALPHA": "x"}), 2, "'alpha'", "'x'")
    flow.write("flowkit.toml", "max_wokers = 3\n")
    _told(flow.run("run"), 2, "flowkit.toml", "no setting 'max_wokers'", "did you mean 'max_workers'?")
    flow.write("flowkit.toml", "max_workers =\n")
    _told(flow.run("run"), 2, "flowkit.toml cannot be read")


def _old_pythons():
    versions = Path(os.path.expanduser("~")) / ".pyenv" / "versions"
    found = [shutil.which(f"python3.{minor}") for minor in (7, 8, 9)]
    found += [str(path) for minor in (7, 8, 9) for path in versions.glob(f"3.{minor}.*/bin/python")]
    # A shim of pyenv is there for versions that are not chosen, too, and fails.
    return [path for path in found if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]


def test_a_python_that_is_too_old(flow):
    old = _old_pythons()
    if not old:
        pytest.skip("there is no Python 3.7 to 3.9 here")
    import flowkit

    env = {"PYTHONPATH": str(Path(flowkit.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    for python in old:
        for command in (["flow.py", "run"], ["-c", "import flowkit"]):
            result = flow.command(python, *command, env=env)
            _told(result, 2, "flowkit needs Python 3.10 or newer, and this is Python 3.")
            assert result.stderr.count("\n") == 1


FLOW_HEAD = "from flowkit import FlowSpec, step\n\n\n"


def test_a_flow_that_is_never_started(workspace):
    workspace.write("flow.py", f"{FLOW_HEAD}class LazyFlow(FlowSpec):\n{STEPS}")
    _told(workspace.run("run"), 3, "flow.py:", "LazyFlow is defined and never started", "LazyFlow()")
    # A script that only defines one, and a file that ends before it could start it.
    assert workspace.run(check=True).output == ""
    workspace.write("flow.py", f"{FLOW_HEAD}class LazyFlow(FlowSpec):\n{STEPS}\nraise SystemExit(0)\nLazyFlow()\n")
    assert workspace.run("run", check=True).output == ""
    workspace.write("flow.py", f"{FLOW_HEAD}class LazyFlow(FlowSpec):\n{STEPS}\n1 / 0\n")
    failed = workspace.run("run", check=1)
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_flow_that_is_defined_twice(workspace):
    twice = f"{FLOW_HEAD}class SameFlow(FlowSpec):\n{STEPS}\n\n\nclass SameFlow(FlowSpec):\n{STEPS}\n\n\n"
    workspace.write("flow.py", f"{twice}if __name__ == '__main__':\n    SameFlow()\n")
    _told(workspace.run("run"), 3, "flow.py:18: the flow SameFlow is defined twice", "line 6")
    derived = twice.replace("class SameFlow(FlowSpec)", "class SameFlow(SameFlow)").replace(
        "(SameFlow)", "(FlowSpec)", 1
    )
    workspace.write("flow.py", f"{derived}if __name__ == '__main__':\n    SameFlow()\n")
    workspace.run("run", check=True)


def test_the_tasks_that_there_are_stand_in_their_order(workspace):
    fan = STEPS.replace("self.next(self.end)", "self.xs = range(12); self.next(self.work, foreach='xs')").replace(
        "    @step\n    def end",
        "    @step\n    def work(self):\n        self.next(self.join)\n\n"
        "    @step\n    def join(self, inputs):\n        self.next(self.end)\n\n    @step\n    def end",
    )
    workspace.write(
        "flow.py", f"{FLOW_HEAD}class FanFlow(FlowSpec):\n{fan}\n\nif __name__ == '__main__':\n    FanFlow()\n"
    )
    workspace.run("run", check=True)
    _told(workspace.run("dump", "1/work/x"), 4, "its tasks: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …")


def test_a_flow_file_that_hides_a_module_of_pythons_own_is_named(flow):
    (flow.path / "flow.py").rename(flow.path / "signal.py")
    done = flow.run("run", flow="signal.py")
    _told(done, 2, "signal.py hides Python's own module 'signal', which flowkit needs", "rename the file")


def test_a_profile_that_nobody_made_and_a_slip_in_a_variable_are_told(flow):
    told = flow.run("run", env={"FLOWKIT_PROFILE": "prod"})
    _told(told, 2, "there is no profile 'prod'", "flowkit configure set --profile prod makes it")
    done = flow.run(
        "run", env={"FLOWKIT_MAX_WORKER": "2", "FLOWKIT_RUN_ALPHA": "3", "FLOWKIT_ANYTHING": "x"}, check=True
    )
    assert "Note: FLOWKIT_MAX_WORKER is no setting; did you mean FLOWKIT_MAX_WORKERS?" in done.stderr
    assert done.stderr.count("is no setting") == 1


def test_a_metadata_store_that_does_not_exist_is_told(flow):
    _told(flow.run("--metadata", "servise", "run"), 2, "no metadata store called 'servise'", "did you mean 'service'?")


def test_the_command_that_goes_on_does_not_repeat_a_limit_that_was_too_low(workspace):
    source = FLOW.replace(
        "self.next(self.train)", "self.many = [1, 2, 3]\n        self.next(self.train, foreach='many')"
    )
    source = source.replace("self.next(self.end)", "self.next(self.join)").replace(
        "    @step\n    def end",
        "    @step\n    def join(self, inputs):\n        self.next(self.end)\n\n    @step\n    def end",
    )
    workspace.write("flow.py", source)
    told = workspace.run("run", "--max-num-splits", "2", "--max-workers", "2", check=1).stderr
    assert "raise it with --max-num-splits" in told
    last = told.strip().splitlines()[-1]
    assert "resume --origin-run-id 1" in last
    assert "--max-workers 2" in last
    assert "--max-num-splits" not in last
