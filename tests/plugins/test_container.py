"""What runs in a container, as real processes: the bootstrap, the wrapper, the task.

The datastore is a folder, as where it is mounted, or S3 (moto over HTTP). Some containers are virtual environments
in which nothing is installed.
"""

from __future__ import annotations

import ast
import base64
import configparser
import hashlib
import http.server
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.datastore.logs import PieceWriter, read_log, text_of
from flowkit.datastore.manifests import read_failure, read_manifest
from flowkit.datastore.memory import MemoryStorage
from flowkit.datastore.root import open_storage
from flowkit.exceptions import StoreError
from flowkit.model.coordinates import Coordinates, Span
from flowkit.model.definition import define
from flowkit.model.launch import Launch
from flowkit.package.files import collect
from flowkit.runtime import bootstrap, launch_list, streams
from flowkit.runtime.bootstrap import container_command, container_environment, store_package
from flowkit.runtime.container import Row, step_command
from flowkit.runtime.container_log import LogSender
from flowkit.runtime.marked import MarkedLines, Piece
from flowkit.runtime.start import RunRequest, begin

ROOT = Path(__file__).resolve().parents[2]

FLOW = """
    import os
    import sys
    import time

    from flowkit import FlowSpec, current, parallel, secrets, step
    {imports}


    class Contained(FlowSpec):
        @step
        def start(self):
            self.x = 1
            {start}
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Contained()
"""

GANG = """
    from flowkit import FlowSpec, current, parallel, step


    class Gang(FlowSpec):
        @step
        def start(self):
            self.next(self.train, num_parallel=2)

        @parallel
        @step
        def train(self):
            self.told = (current.parallel.main_ip, current.parallel.num_nodes, current.parallel.node_index)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass


    if __name__ == "__main__":
        Gang()
"""


class Containers:
    """A run that has begun, and the containers that carry out its launches."""

    def __init__(self, workspace: Any, root: str | None = None) -> None:
        self.workspace = workspace
        self.root = root or str(workspace.path / ".flowkit")
        self.temporary = workspace.path.parent / "temporary"
        self.temporary.mkdir()
        self.storage = open_storage(self.root, create=True)

    def begin(self, start: str = "pass", imports: str = "", source: str = FLOW) -> None:
        """Begin a run of a flow whose first step has the given lines."""
        lines = start.strip().replace("\n", "\n" + " " * 12)
        path = self.workspace.write("flow.py", source.replace("{start}", lines).replace("{imports}", imports))
        spec = importlib.util.spec_from_file_location("contained_flow", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["contained_flow"] = module
        try:
            spec.loader.exec_module(module)
            self.definition = define(getattr(module, "Contained", None) or module.Gang)
        finally:
            del sys.modules["contained_flow"]
        self.package = store_package(self.storage, collect(self.definition))
        begun = begin(self.storage, self.definition, RunRequest("tester", package=self.package._asdict()))
        self.flow, self.run_id = begun.record.flow, begun.record.run

    def command(self, launches: Sequence[Launch], **options: Any) -> list[str]:
        """Return the command of a container that carries out a row of launches."""
        key = launch_list.save(self.storage, launches)
        options = {"install": False, "python": sys.executable, **options}
        key_of_package = options.pop("package", self.package.key)
        root = options.pop("root", self.root)
        return container_command(root, key_of_package, self.package.program, self.run_id, key, **options)

    @property
    def env(self) -> dict[str, str]:
        """The environment of a container."""
        return {**container_environment(self.root, user="tester"), "TMPDIR": str(self.temporary)}

    def run(self, *launches: Launch, env: dict[str, str] | None = None, **options: Any) -> Any:
        """Run a container to its end."""
        command = self.command(launches or (START,), **options)
        return self.workspace.command(*command, env={**self.env, **(env or {})}, timeout=60)

    def start(self, *launches: Launch, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a container; it is killed when the test ends."""
        command = self.command(launches or (START,), **options)
        return self.workspace._start(tuple(command), {**self.env, **(env or {})}, subprocess.DEVNULL)

    def log(self, step: str = "start", task: str = "0", stream: str | None = None) -> str:
        """Return a task's log."""
        return text_of(read_log(self.storage, self.flow, self.run_id, step, task, 0, stream))

    def wait_for_log(self, text: str) -> None:
        """Wait until the datastore has a line."""
        deadline = time.monotonic() + 30
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def manifest(self, step: str = "start", task: str = "0") -> Any:
        """Return what a task committed."""
        return read_manifest(self.storage, self.flow, self.run_id, step, task)

    def failure(self, step: str = "start", task: str = "0") -> Any:
        """Return how the first attempt failed."""
        return read_failure(self.storage, self.flow, self.run_id, step, task, 0)


START = Launch("start", Coordinates(()))


@pytest.fixture
def containers(workspace: Any) -> Containers:
    """Containers with the folder of a datastore mounted."""
    return Containers(workspace)


@pytest.fixture
def containers_on_s3(workspace: Any, aws: Any) -> Containers:
    """Containers with a datastore on S3."""
    workspace.env.update(aws.env)
    return Containers(workspace, f"s3://{aws.bucket()}/flows")


# -- a task ---------------------------------------------------------------------------------------------------------


def test_a_task_runs_and_its_log_is_kept(containers):
    containers.begin(
        'print("to out")\nprint("to err", file=sys.stderr)\nos.system("echo a child")\nos.write(2, b"raw")'
    )
    done = containers.run()
    assert done.returncode == 0, done
    assert containers.manifest() is not None
    assert containers.log(stream="out") == "to out\na child\n"
    assert set(containers.log(stream="err").split()) == {"to", "err", "raw"}
    assert "to out\n" in done.stdout
    assert "to err\n" in done.stderr


def test_a_task_that_has_a_result_is_not_run_again(containers):
    containers.begin('print("again")')
    assert containers.run().returncode == 0
    done = containers.run()
    assert done.returncode == 0
    assert done.output == ""
    assert containers.log() == "again\n"


def test_a_step_that_raises_records_it_itself(containers):
    containers.begin('raise ValueError("wrong")')
    done = containers.run()
    assert done.returncode == 1
    assert (containers.failure().kind, containers.failure().message) == ("error", "ValueError: wrong")
    assert "ValueError: wrong" in containers.log()
    assert containers.manifest() is None


@pytest.mark.parametrize(
    ("line", "status", "kind"),
    [
        ("os.kill(os.getpid(), 9)", 137, "killed"),
        ("__import__('ctypes').string_at(0)", 139, "crash"),
        ("os._exit(3)", 3, "vanished"),
    ],
)
def test_a_process_that_dies_silently_has_a_failure_and_its_last_words(containers, line, status, kind):
    containers.begin(f'print("last words", end="", flush=True)\n{line}')
    done = containers.run()
    assert done.returncode == status
    assert containers.failure().kind == kind
    assert containers.failure().usage["cpu"] > 0
    assert "last words" in containers.log()


def test_a_flow_that_cannot_be_imported_says_so_in_its_log_and_its_failure(containers):
    containers.begin(imports='if os.environ.get("FLOWKIT_DATASTORE"): import no_such_module')
    done = containers.run()
    assert done.returncode == 1
    failure = containers.failure()
    assert failure.message.startswith("the step could not begin in its container: ModuleNotFoundError: No module named")
    assert "it is not in the code package" in failure.message
    assert "import no_such_module" in failure.traceback
    assert "no_such_module" in containers.log()


def test_a_run_that_is_not_there_is_told_in_the_failure(containers):
    containers.begin()
    containers.run_id = "77"
    assert containers.run().returncode == 4
    assert "there is no run Contained/77 here" in containers.failure().traceback


def test_sigterm_reaches_the_task_and_the_log_gets_out(containers):
    containers.begin(
        """
import signal
def told(number, frame):
    print("noticed:", open(current.spot_termination_notice).read().strip(), flush=True)
    raise SystemExit(9)
signal.signal(signal.SIGTERM, told)
print("ready", os.path.exists(current.spot_termination_notice), flush=True)
time.sleep(60)
"""
    )
    process = containers.start()
    containers.wait_for_log("ready False")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 1
    assert "noticed: SIGTERM" in containers.log()
    assert "[the container was told to end (SIGTERM)]" in containers.log()
    assert containers.failure().kind == "error"  # the step said so itself, and could


def test_a_task_that_dies_of_sigterm_leaves_the_verdict_to_who_sent_it(containers):
    containers.begin('print("ready", flush=True)\nos.system("sleep 60")')
    process = containers.start()
    containers.wait_for_log("ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 143
    assert containers.failure() is None


def test_a_second_signal_kills_at_once(containers):
    containers.begin(
        'import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint("ready", flush=True)\ntime.sleep(60)'
    )
    process = containers.start()
    containers.wait_for_log("ready")
    process.send_signal(signal.SIGTERM)
    containers.wait_for_log("told to end")
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 137


def test_nothing_is_left_when_the_wrapper_is_killed(containers):
    containers.begin('print("ready", flush=True)\ntime.sleep(60)')
    process = containers.start()
    containers.wait_for_log("ready")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while containers.workspace.processes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_task_leaves_behind_is_ended(containers):
    containers.begin('os.system("sleep 60 &")\nprint("done")')
    assert containers.run().returncode == 0
    assert containers.workspace.processes() == []


def test_a_step_that_does_not_hear_its_timeout_is_killed(containers):
    containers.begin(
        'import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint("in", flush=True)\ntime.sleep(60)'
    )
    done = containers.run(timeout=0.1)
    assert done.returncode == 137
    assert containers.failure().kind == "timeout"
    assert containers.log() == "in\n"


def test_secrets_are_masked_in_the_log_and_on_the_screen(containers):
    containers.begin(
        'from flowkit.runtime import streams\nassert streams.hide("hush-hush")\n'
        'print("it is hush-hush")\nos.system("echo hush-hush too")\nos.write(2, b"hush-hush")'
    )
    done = containers.run()
    assert done.returncode == 0, done
    assert "hush" not in containers.log() + done.output
    assert "it is ***\n" in containers.log()
    assert containers.log().count("***") == 3


def test_a_log_is_cut_at_its_limit(containers):
    containers.begin('for n in range(1000): print("line", n)')
    assert containers.run(max_log_size=5000).returncode == 0
    log = containers.log()
    assert log.endswith("[the log was cut here, at 5000 bytes: see --max-log-size]\n")
    assert len(log) < 6000


def test_a_lot_of_output_comes_in_few_pieces_and_in_order(containers):
    containers.begin('for n in range(60_000): print("line", n)')
    assert containers.run().returncode == 0
    assert containers.log() == "".join(f"line {n}\n" for n in range(60_000))
    folder = containers.workspace.path / f".flowkit/flows/Contained/{containers.run_id}/start/0/0"
    assert len(list(folder.iterdir())) < 20


# -- which row ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "row"),
    [
        ({}, 0),
        ({"FLOWKIT_ROW": "1", "AWS_BATCH_JOB_ARRAY_INDEX": "0"}, 1),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "2"}, 2),
        ({"JOB_COMPLETION_INDEX": "1"}, 1),
    ],
)
def test_the_row_is_told_by_the_service(containers, env, row):
    containers.begin()
    launches = [START._replace(attempt=number) for number in range(3)]
    assert containers.run(*launches, env=env).returncode == 0
    assert containers.manifest().attempt == row


@pytest.mark.parametrize(("index", "status"), [("7", 5), ("many", 2)])
def test_a_row_that_is_not_there_is_an_error(containers, index, status):
    containers.begin()
    done = containers.run(env={"FLOWKIT_ROW": index})
    assert done.returncode == status
    assert "row 7" in done.stderr or "must be a number, not 'many'" in done.stderr


def test_a_join_of_very_many_takes_its_parents_from_a_file(tmp_path):
    parents = tuple(Span("each", Coordinates((7 * number,)), 1) for number in range(20_000))
    row = Row("F", "1", Launch("join", Coordinates(()), parents), None)
    command = step_command("-m some.flow", "/root", row, str(tmp_path))
    assert command[1:3] == ["-m", "some.flow"]
    at = command[command.index("--parents") + 1]
    assert Path(at[1:]).read_text().count("each/") == 20_000


def test_the_nodes_of_a_gang_know_each_other(containers):
    containers.begin(source=GANG)
    assert containers.run(START).returncode == 0
    gang = Launch("train", Coordinates((0,)), (Span("start", Coordinates(()), 1),), gang=2)
    other = {"JOB_COMPLETION_INDEX": "1", "FLOWKIT_MAIN_HOST": "127.0.0.9"}
    nodes = [
        containers.start(gang, env={"AWS_BATCH_JOB_NODE_INDEX": "0"}),
        containers.start(gang, env=other),
    ]
    for node in reversed(nodes):  # the control node waits for the other one
        assert node.wait(60) == 0, node.communicate()
    assert containers.manifest("train", "0").gang == 2
    client = containers.workspace.client()
    client.namespace(None)
    values = [containers.manifest("train", str(node)).artifacts["told"].preview["repr"] for node in (0, 1)]
    assert values == ["('127.0.0.1', 2, 0)", "('127.0.0.9', 2, 1)"]


def test_a_node_that_dies_ends_its_gang(containers):
    containers.begin(
        source=GANG.replace(
            "self.told =", "__import__('os')._exit(3) if current.parallel.node_index == 1 else None; self.told ="
        )
    )
    assert containers.run(START).returncode == 0
    gang = Launch("train", Coordinates((0,)), (Span("start", Coordinates(()), 1),), gang=2)
    control = containers.start(gang, env={"FLOWKIT_NODE": "0"})
    assert containers.run(gang, env={"FLOWKIT_NODE": "1"}).returncode == 3
    assert control.wait(60) == 1
    assert containers.failure("train", "0").message == "TaskError: node 1 of the gang failed"
    assert containers.failure("train", "1").kind == "vanished"
    done = containers.run(gang, env={"FLOWKIT_NODE": "2"})
    assert done.returncode == 5
    assert "node 2 of a gang of 2" in done.stderr


# -- machines that are taken away -------------------------------------------------------------------------------------


class _Metadata(http.server.BaseHTTPRequestHandler):
    """The part of EC2's metadata service that tells of an end."""

    def do_PUT(self) -> None:
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        right = self.headers.get("X-aws-ec2-metadata-token") == "a-token" and self.path.endswith("/instance-action")
        self._answer(200 if right else 401, '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}')

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def machine() -> Iterator[str]:
    """The URL of a machine's metadata service."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_spot_notice_reaches_the_step(containers, machine):
    containers.begin(
        """
deadline = time.monotonic() + 30
while not os.path.exists(current.spot_termination_notice) and time.monotonic() < deadline:
    time.sleep(0.05)
print(open(current.spot_termination_notice).read())
"""
    )
    env = {"AWS_BATCH_JOB_ID": "1", "AWS_EC2_METADATA_SERVICE_ENDPOINT": machine, "AWS_EC2_METADATA_DISABLED": ""}
    done = containers.run(env=env)
    assert done.returncode == 0, done
    assert '"action": "terminate"' in containers.log(stream="out")
    assert "[this machine will be taken away: " in containers.log()


# -- the bootstrap ----------------------------------------------------------------------------------------------------


def test_the_program_is_small_and_can_be_given_to_every_service():
    text = bootstrap.stub()
    assert len(text) < 4096
    assert text.isascii()
    assert "$(" not in text  # Kubernetes would replace it
    assert "Ref::" not in text  # and AWS Batch this
    ast.parse(text, feature_version=(3, 10))
    assert all(len(line) <= 120 for line in text.splitlines())
    command = container_command("s3://b/p", "k" * 64, "flow.py", "1", "l" * 64, install=True, timeout=90.0)
    assert sum(len(part.encode()) + 3 for part in command) + text.count("\n") + text.count('"') < 6000


def test_what_it_installs_is_what_flowkit_needs():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser["options"]["install_requires"].split("\n")
    needs = [line.split(";")[0] for line in lines if line and not line.startswith("#")]
    # No container is a scheduler that asks when something is due.
    assert list(bootstrap.REQUIREMENTS) == [need for need in needs if not need.startswith("cronsim")]
    aws = [line for line in parser["options.extras_require"]["aws"].split("\n") if line]
    assert list(bootstrap.S3_REQUIREMENTS) == aws


def test_no_secret_is_among_its_environment(aws, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-of-mine")
    told = container_environment("s3://b/p", user="me")
    assert told["FLOWKIT_DATASTORE"] == "s3://b/p"
    assert told["AWS_ENDPOINT_URL"] == aws.endpoint
    assert not [value for value in told.values() if value in ("AKIATESTER", "secret", "token-of-mine")]


def _installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def wheels(folder: Path) -> Path:
    """Make wheels of what is installed here: an index of packages that needs no network."""
    folder.mkdir()
    names = ["click", "cloudpickle", "blake3", *(["tomli"] if sys.version_info < (3, 11) else [])]
    for name in names:  # which grows meanwhile
        installed = metadata.distribution(name)
        needs = [re.match(r"[\w.-]+", need)[0] for need in installed.requires or () if "extra ==" not in need]
        names += [need for need in needs if need not in names and _installed(need)]
        name = name.replace("-", "_")
        tag = (installed.read_text("WHEEL") or "").split("Tag: ")[1].split("\n")[0].strip()
        info = f"{name}-{installed.version}.dist-info"
        rows = []
        with zipfile.ZipFile(folder / f"{name}-{installed.version}-{tag}.whl", "w") as wheel:
            for file in installed.files or ():
                path = Path(str(file.locate()))
                if ".." in file.parts or path.suffix == ".pyc" or path.name in ("RECORD", "INSTALLER", "REQUESTED"):
                    continue
                data = path.read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                rows.append(f"{file.as_posix()},sha256={digest},{len(data)}")
                wheel.writestr(file.as_posix(), data)
            wheel.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,", ""]))
    return folder


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter as in a plain image: Python and pip, and nothing else."""
    folder = tmp_path_factory.mktemp("image") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    pip = Path(str(metadata.distribution("pip").locate_file("pip")))
    (site / "pip").symlink_to(pip)  # its own way to get there takes ten seconds
    return str(folder / "bin" / "python")


def test_a_plain_image_gets_what_it_lacks_and_the_flowkit_of_the_package(containers, plain_python, tmp_path):
    containers.begin('import flowkit\nprint("flowkit from", flowkit.__file__)')
    done = containers.run(python=plain_python)
    assert done.returncode == 91
    assert "the image lacks click>=8.1, cloudpickle>=2.2, blake3>=0.4" in done.stderr
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = containers.run(python=plain_python, install=True, env=offline)
    assert done.returncode == 92
    assert done.stderr.splitlines()[-1].startswith("flowkit: pip could not install click>=8.1")
    found = {**offline, "PIP_FIND_LINKS": str(wheels(tmp_path / "wheels"))}
    done = containers.run(python=plain_python, install=True, env=found)
    assert done.returncode == 0, done
    assert "/.flowkit_code/flowkit/__init__.py" in containers.log()


def test_an_image_that_has_this_flowkit_uses_it(containers):
    containers.begin('import flowkit\nprint("flowkit from", flowkit.__file__)')
    assert containers.run().returncode == 0
    assert ".flowkit_code" not in containers.log()


def test_code_beside_the_flow_is_there(containers):
    containers.workspace.write("beside/__init__.py", "WORD = 'beside'")
    containers.begin("import beside\nprint(beside.WORD, os.getcwd())")
    assert containers.run().returncode == 0
    assert containers.log().startswith("beside ")
    assert str(containers.workspace.path) not in containers.log()


def test_code_that_is_not_there_or_damaged_is_told_apart(containers):
    containers.begin()
    done = containers.run(package="0" * 64)
    assert done.returncode == 94
    assert len(done.stderr.splitlines()) == 1
    path = containers.workspace.path / f".flowkit/blobs/{containers.package.key[:2]}/{containers.package.key}"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    done = containers.run()
    assert done.returncode == 96
    assert "is damaged" in done.stderr


def test_a_task_runs_on_s3(containers_on_s3):
    containers_on_s3.begin('print("from s3")')
    done = containers_on_s3.run()
    assert done.returncode == 0, done
    assert containers_on_s3.manifest() is not None
    assert containers_on_s3.log() == "from s3\n"


@pytest.mark.parametrize(
    ("env", "options", "status"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, {}, 93),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, {}, 95),
        ({}, {"package": "0" * 64}, 94),
        ({}, {"root": "s3://no-such-bucket-here/x"}, 94),
    ],
)
def test_s3_that_does_not_answer_as_hoped_is_told_apart(containers_on_s3, env, options, status):
    containers_on_s3.begin()
    done = containers_on_s3.run(env=env, **options)
    assert done.returncode == status, done
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("flowkit: ")
    assert status in bootstrap.EXIT_CODES


# -- afterwards -----------------------------------------------------------------------------------------------------


def test_the_code_of_a_run_can_be_read_compared_and_unpacked(containers):
    workspace = containers.workspace
    workspace.write("beside.py", "ONE = 1\n")
    containers.begin()
    workspace.flowkit("metadata", "rebuild", check=0)
    run = workspace.client().Run("Contained/1", _namespace_check=False)
    code = run.code
    assert code.flowspec == (workspace.path / "flow.py").read_text()
    assert code.info["flow"] == "Contained"
    assert code.script_name == "flow.py"
    assert code.files == ["beside.py", "flow.py"]
    assert code.path.endswith(containers.package.key)
    assert "beside.py" in code.tarball.getnames()
    with code.extract() as folder:
        assert sorted(os.listdir(folder)) == ["beside.py", "flow.py"]
    same = workspace.flowkit("code", "diff", "Contained/1", check=0)
    assert (same.stdout, same.stderr) == ("", "the code here is that of Contained/1\n")
    workspace.write("beside.py", "ONE = 2\n")
    changed = workspace.flowkit("code", "diff", "Contained/1", check=0)
    assert "-ONE = 1\n+ONE = 2\n" in changed.stdout
    assert workspace.flowkit("code", "diff", "Contained/1", "--file-list", check=0).stdout == "beside.py\n"
    workspace.flowkit("code", "pull", "Contained/1", "--into", "old", check=0)
    assert (workspace.path / "old" / "beside.py").read_text() == "ONE = 1\n"
    again = workspace.flowkit("code", "pull", "Contained/1", "--into", "old", check=6)
    assert "--force" in again.stderr
    workspace.flowkit("code", "pull", "Contained/1", "--into", "old", "--force", check=0)


def test_a_run_on_this_machine_has_taken_no_code_along(containers):
    workspace = containers.workspace
    containers.begin()
    assert "(run-id 2)" in workspace.run("run", check=0).output
    told = workspace.flowkit("code", "pull", "Contained/2", check=4)
    assert "took no code along" in told.stderr
    assert workspace.client().Run("Contained/2").code is None


def test_the_package_can_be_shown_and_saved(containers):
    workspace = containers.workspace
    workspace.write("data.csv", "1,2\n")
    containers.begin()
    listed = workspace.run("--package-suffixes", ".csv", "package", "list", check=0).stdout.split()
    assert {"flow.py", "data.csv", ".flowkit_code/flowkit/runtime/container.py"} <= set(listed)
    workspace.run("package", "save", "code.tgz", check=0)
    assert "data.csv" not in workspace.run("package", "list", "--archive", "code.tgz", check=0).stdout
    assert json.loads(workspace.run("package", "info", "--json", check=0).stdout)["files"]["flow"]["files"] == 1
    assert "the flow itself" in workspace.run("package", "info", check=0).stdout
    shown = workspace.run("package", "bootstrap", check=0).stdout
    assert bootstrap.stub() in shown
    assert workspace.run("run", "--show-bootstrap", check=0).stdout == shown
    assert workspace.run("package", "list", "--archive", "flow.py", check=5).stderr.startswith("the code package is")


# -- the log --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(["out", "err", "raw"]), st.binary(max_size=30)), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=10),
)
def test_lines_come_apart_the_same_however_they_are_cut(parts, cuts):
    token = b"\x00\x1bABCDEFGHIJKLMN"
    expected = {"out": b"", "err": b""}
    written = b""
    for stream, text in parts:
        text = text.replace(b"\0", b"").replace(b"hush", b"") + (b"hush\n" if stream == "err" else b"")
        if stream == "err":
            written += token + streams._HEAD.pack(streams.ERR, len(text)) + text
        else:
            written += text
        expected["err" if stream == "err" else "out"] += text.replace(b"hush", b"***")
    lines = MarkedLines(token)
    lines.feed(token + streams._HEAD.pack(streams.SECRET, 4) + b"hush", err=False)
    edges = [0, *sorted(min(cut, len(written)) for cut in cuts), len(written)]
    found = {"out": b"", "err": b""}
    pieces: list[Piece] = []
    for start, stop in itertools.pairwise(edges):
        pieces += lines.feed(written[start:stop], err=False)
    for piece in [*pieces, *lines.rest(ended=True)]:
        found[piece.stream] += piece.text + (b"" if piece.partial else b"\n")
    assert found == expected
    assert lines.marks == []


def test_a_line_without_an_end_comes_in_pieces_with_its_secrets_masked():
    lines = MarkedLines(b"\x00\x1bABCDEFGHIJKLMN")
    lines.feed(b"\x00\x1bABCDEFGHIJKLMN" + streams._HEAD.pack(streams.SECRET, 4) + b"hush", err=False)
    out = b"".join(
        piece.text for _ in range(50) for piece in lines.feed(b"hush" * 4096 + b"hu", err=True) if piece.partial
    )
    out += b"".join(piece.text for piece in lines.rest(ended=True))
    assert b"hush" not in out


class _Broken(MemoryStorage):
    """A storage that takes nothing for a while."""

    refusals = 3

    def create(self, path: str, content: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            raise StoreError("there is no storage now")
        return super().create(path, content)


def test_a_storage_that_fails_for_a_while_costs_no_line(monkeypatch):
    monkeypatch.setattr("flowkit.runtime.container_log._LAST_PAUSES", (0.0,) * 5)
    storage = _Broken("memory")
    log = LogSender(PieceWriter(storage, "F", "1", "s", "0", 0))
    log.start()
    log.add([Piece("out", b"one", False), Piece("err", b"two", True)])
    log.note("three")
    log.close(patient=True)
    assert log.trouble == "there is no storage now"
    assert text_of(read_log(storage, "F", "1", "s", "0", 0)) == "one\n[three]\ntwo"
