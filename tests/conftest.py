"""What every test may use: an empty folder with the real command, and the client to look at what came of it.

The suite tests the *installed* package: the repository's root is dropped from ``sys.path``, since its folders
``plugins`` and ``metadata_service`` are importable only under their names inside flowkit.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKER = "WORKSPACE_UNDER_TEST"
"""An environment variable by which the processes of one workspace are found, whoever their parent is by now."""

# The numbers of tests are small: threads of linear algebra would only spin, and take the processors from each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _is_root(entry: str) -> bool:
    return Path(entry or os.getcwd()).resolve() == ROOT


sys.path[:] = [entry for entry in sys.path if not _is_root(entry)]
sys.path.append(str(ROOT / "tests" / "deploying"))  # what the tests of several schedulers share

try:
    import flowkit
    import flowkit.plugins
except ImportError as error:
    # The second import fails where setuptools was told to use its "compat" mode: a bare path cannot rename folders.
    pytest.exit(
        f'flowkit is not installed here ({error}): run pip install -e "{ROOT}[dev]", or make test', returncode=4
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Return how many processes ``-n auto`` means: three for two processors, since a third of a test is waiting.

    Tests wait for servers, for leases and heartbeats that run out, and for processes that end in their own time.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it itself
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return -(-processors * 3 // 2)


@dataclass(frozen=True)
class Result:
    """What a command did.

    Parameters
    ----------
    command : list of str
        What was run.
    returncode : int
        The exit code; negative for a signal.
    stdout, stderr : str
        What it printed.
    """

    command: list[str]
    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both streams, stdout first."""
        return self.stdout + self.stderr

    def __str__(self) -> str:
        head = f"{' '.join(self.command)}\nexit code {self.returncode}"
        return f"{head}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Workspace:
    """An empty folder of a user without settings, in which flows are written and run by the real command.

    Attributes
    ----------
    path : Path
        The folder; the working directory of everything that is run.
    home : Path
        The user's home folder, empty.
    env : dict of str to str
        The environment of what is run: the test's own without ``FLOWKIT_*``, ``METAFLOW_*`` and ``PYTHONPATH``.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "work"
        self.home = folder / "home"
        self.path.mkdir()
        self.home.mkdir()
        self._monkeypatch = monkeypatch
        self._started: list[subprocess.Popen[str]] = []
        self._redirected = False
        self.env = {name: value for name, value in os.environ.items() if not _foreign(name)}
        self.env.update(self._own())

    def _own(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "FLOWKIT_HOME": str(self.home / "flowkit"),
            "USER": "tester",
            "LOGNAME": "tester",
            "PYTHONUTF8": "1",
            MARKER: str(self.path),
        }

    def write(self, name: str, source: str) -> Path:
        """Write a file (dedented) into the folder; a name may contain folders."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source).lstrip("\n"), encoding="utf-8")
        return path

    def run(
        self,
        *args: object,
        flow: str | Path = "flow.py",
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,
        timeout: float = 60,
        check: int | bool | None = None,
    ) -> Result:
        """Run ``python FLOW ARGS`` to its end.

        Parameters
        ----------
        *args : object
            The command's arguments, each made a str.
        flow : str or Path
            The flow's file, relative to the folder.
        env : mapping, optional
            Variables to add to the environment, or to remove where the value is None.
        input : str, optional
            What it reads from stdin; nothing by default.
        timeout : float
            Seconds after which everything is killed and the test fails.
        check : int or bool, optional
            The exit code that must come out (True: 0).
        """
        return self.command(sys.executable, flow, *args, env=env, input=input, timeout=timeout, check=check)

    def python(self, source: str, **options: Any) -> Result:
        """Run Python source (dedented) in a fresh interpreter in the folder; options as for `run`."""
        return self.command(sys.executable, "-c", textwrap.dedent(source), **options)

    def flowkit(self, *args: object, **options: Any) -> Result:
        """Run the ``flowkit`` console script; options as for `run`."""
        return self.command(Path(sys.executable).with_name("flowkit"), *args, **options)

    def command(
        self,
        *command: object,
        env: Mapping[str, str | None] | None = None,
        input: str | None = None,
        timeout: float = 60,
        check: int | bool | None = None,
    ) -> Result:
        """Run any command to its end; options as for `run`."""
        process = self._start(command, env, subprocess.PIPE if input is not None else subprocess.DEVNULL)
        try:
            stdout, stderr = process.communicate(input, timeout=timeout)
        except subprocess.TimeoutExpired:
            self._kill_all()
            stdout, stderr = process.communicate()
            result = Result([str(part) for part in command], process.returncode, stdout, stderr)
            pytest.fail(f"not finished after {timeout} s, killed: {result}")
        result = Result([str(part) for part in command], process.returncode, stdout, stderr)
        if check is not None and check is not False:
            wanted = 0 if check is True else check
            assert result.returncode == wanted, str(result)
        return result

    def start(
        self, *args: object, flow: str | Path = "flow.py", env: Mapping[str, str | None] | None = None
    ) -> subprocess.Popen[str]:
        """Start ``python FLOW ARGS`` in a session of its own and return the process, with pipes for all streams.

        It is killed when the test ends.
        """
        return self._start((sys.executable, flow, *args), env, subprocess.PIPE)

    def client(self) -> ModuleType:
        """Return flowkit in this process, looking at the folder as its user would: ``workspace.client().Flow("X")``.

        For the rest of the test the working directory and the environment are those of the workspace.
        """
        if not self._redirected:
            self._redirected = True
            for name in list(os.environ):
                if _foreign(name):
                    self._monkeypatch.delenv(name)
            for name, value in self._own().items():
                self._monkeypatch.setenv(name, value)
            self._monkeypatch.chdir(self.path)
            _forget_choices()
        return flowkit

    def processes(self) -> list[int]:
        """Return the pids of all living processes that were started here, orphans included (Linux only)."""
        mark = f"{MARKER}={self.path}".encode()
        found = []
        for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    # A zombie's environment reads as empty, so only living processes match.
                    with open(f"/proc/{entry}/environ", "rb") as file:
                        if mark in file.read().split(b"\0"):
                            found.append(int(entry))
                except OSError:
                    continue
        return found

    def close(self) -> list[int]:
        """Kill what is still running; return the pids of processes that nobody waited for."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._kill_all()
        if self._redirected:
            self._monkeypatch.undo()
            _forget_choices()
        return left

    def _start(
        self, command: tuple[object, ...], env: Mapping[str, str | None] | None, stdin: int
    ) -> subprocess.Popen[str]:
        environment: dict[str, str | None] = {**self.env, **(env or {})}
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=self.path,
            env={name: value for name, value in environment.items() if value is not None},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def _kill_all(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _foreign(name: str) -> bool:
    return name.startswith(("FLOWKIT_", "METAFLOW_", "COVERAGE_", "PYTEST_")) or name in (
        "PYTHONPATH",
        "SUDO_USER",
        "XDG_CONFIG_HOME",
    )


def _forget_choices() -> None:
    """Read the settings again, and let the client look where they say, in their namespace."""
    from flowkit.settings import settings

    settings(reload=True)
    if "flowkit.client.namespace" in sys.modules:
        flowkit.default_namespace()
        flowkit.default_metadata()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """An empty folder in which flows are written and run by the real command; see `Workspace`."""
    for parent in tmp_path.parents:
        if (parent / ".flowkit").exists():
            pytest.fail(f"the datastore {parent / '.flowkit'} would be found from every test's folder: remove it")
    made = Workspace(tmp_path, monkeypatch)
    yield made
    left = made.close()
    if left:
        pytest.fail(f"processes were left behind (killed now): {left}")


@pytest.fixture(scope="module")
def module_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A `workspace` that the tests of a module share."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = Workspace(tmp_path_factory.mktemp("module"), monkeypatch)
        yield made
        left = made.close()
    if left:
        pytest.fail(f"processes were left behind (killed now): {left}")


MOTO = """
import functools, logging, sys, threading
from moto.server import DomainDispatcherApplication, ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
DomainDispatcherApplication.get_backend_for_host = functools.cache(DomainDispatcherApplication.get_backend_for_host)
serve, one_by_one = DomainDispatcherApplication.__call__, threading.Lock()
def conditional(self, environ, start):
    if "HTTP_IF_MATCH" not in environ and "HTTP_IF_NONE_MATCH" not in environ:
        return serve(self, environ, start)
    with one_by_one:
        return serve(self, environ, start)
DomainDispatcherApplication.__call__ = conditional
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), file=sys.__stdout__, flush=True)
sys.stdin.read()
"""
"""Ends with its input, so also when whoever started it is killed. Which service a name is of is found out once: moto
lists its own folder for every request, a quarter of what one costs. Conditional writes are looked at and carried out
without another one in between, as S3 does it, and moto does not by itself."""


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """The URL of a server that plays AWS on this machine: S3, Batch, Secrets Manager and others, for this worker."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "COVERAGE_"))}
    # So that a few kilobytes are enough to be uploaded in parts.
    environment |= {"S3_UPLOAD_PART_MIN_SIZE": "256", "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "5000000"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            host, port = process.stdout.readline().decode().split()
            yield f"http://{host}:{port}"
        finally:
            process.kill()


@pytest.fixture(scope="session")
def service_models() -> None:
    """Let this process read botocore's descriptions of a service once, and not for every client that a test makes."""
    import botocore.session

    botocore.session.create_loader = functools.cache(botocore.session.create_loader)


class Aws:
    """AWS as the tests see it: a moto server, and this process's environment pointing to it.

    Attributes
    ----------
    endpoint : str
        The server's URL.
    env : dict of str to str
        The variables that make boto3 use it, for processes that are started: ``workspace.env.update(aws.env)``.
    """

    def __init__(self, endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.endpoint = endpoint
        self._monkeypatch = monkeypatch
        self.env = {
            "AWS_ACCESS_KEY_ID": "AKIATESTER",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_CONFIG_FILE": str(folder / "no-aws-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-aws-credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "FLOWKIT_CACHE": str(folder / "cache"),
        }
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        self.set(**self.env)

    def set(self, **variables: str | None) -> None:
        """Change variables of this process (None removes one), and let the next client read them."""
        from flowkit.plugins.aws import session
        from flowkit.settings import settings

        for name, value in variables.items():
            if value is None:
                self._monkeypatch.delenv(name, raising=False)
            else:
                self._monkeypatch.setenv(name, value)
        settings(reload=True)
        session.forget()

    def client(self, service: str) -> Any:
        """Return a client of a service of the server, by flowkit's own session."""
        from flowkit.plugins.aws import session

        return session.client(service)

    def bucket(self) -> str:
        """Make an empty bucket of its own and return its name."""
        name = f"bucket-{os.urandom(6).hex()}"
        self.client("s3").create_bucket(Bucket=name)
        return name


@pytest.fixture
def aws(moto_endpoint: str, service_models: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """AWS on this machine, for this process and what it starts; see `Aws`."""
    made = Aws(moto_endpoint, tmp_path, monkeypatch)
    yield made
    monkeypatch.undo()
    made.set()
