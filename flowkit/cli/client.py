"""``flowkit client``: be the client of a whole run in a container that a scheduler has started.

A scheduler that only knows containers starts them again: after a crash, on another machine. The first one begins the
run, any later one goes on with it (``resume --reattach``), so that nothing that is done is done twice. Told to end, it
asks the scheduler why: a run that is not wanted any more is cancelled, with its jobs; one whose machine is drained is
left, and its jobs go on until the next container takes over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.console import Console
from flowkit.exceptions import UsageError
from flowkit.model.deployed import FINAL, PARAMETER, RUN, TRIGGER
from flowkit.model.pathspec import check_part
from flowkit.settings import environment, variable

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage

_NEVER = frozenset({2, 3})
"""Exit codes of a command that would be refused every time (`flowkit.exceptions.EXIT_CODES`)."""


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(datastore_root: str, program: str, deployment: str, top: str, run: str) -> int:
        return _Client(console, datastore_root, program, deployment, _words("top", top), _words("run", run)).carry_on()

    params: list[click.Parameter] = [
        click.Option(["--datastore-root"], required=True),
        click.Option(["--program"], required=True, help="How the flow is started here: flow.py, or -m module."),
        click.Option(["--deployment"], required=True, help="What the run belongs to: TARGET/NAME."),
        click.Option(["--top"], default="[]", help="JSON: the words before the command."),
        click.Option(["--run"], default="[]", help="JSON: the words of run."),
    ]
    return click.Command("client", callback=callback, params=params, hidden=True, help="Be a run's client.")


def _words(option: str, text: str) -> list[str]:
    try:
        words = json.loads(text)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UsageError(f"--{option} is not a JSON list of texts")
    return words


class _Client:
    def __init__(
        self, console: Console, root: str, program: str, deployment: str, top: list[str], run: list[str]
    ) -> None:
        self.console = console
        self.root = root
        self.program = program.split()
        self.deployment = deployment
        self.top, self.words = top, run
        self.run = check_part(variable(RUN) or "")
        self.flow = _flow()
        self._process: subprocess.Popen[bytes] | None = None
        self._told: int | None = None

    def carry_on(self) -> int:
        """Begin the run or go on with it, and return the exit status for the scheduler."""
        from flowkit.datastore.root import open_storage

        signal.signal(signal.SIGTERM, self._end)
        storage = open_storage(self.root, create=False)
        with tempfile.TemporaryDirectory(prefix="flowkit-client-") as folder:
            status = self._carry_out(self._command(storage, folder), folder)
        return self._status(storage, status)

    def _command(self, storage: Storage, folder: str) -> list[str]:
        from flowkit.datastore.runs import read_run

        start = [sys.executable, *self.program, *self.top]
        if read_run(storage, self.flow, self.run) is not None:
            return [*start, "resume", "--reattach", self.run]
        words = ["--run-id", self.run, "--deployed-as", self.deployment, *self.words]
        given = {
            name.removeprefix(PARAMETER): _value(text)
            for name, text in environment().items()
            if name.startswith(PARAMETER)
        }
        if given:
            file = os.path.join(folder, "parameters.json")
            with open(file, "w", encoding="utf-8") as out:
                json.dump(given, out)
            words += ["--runner-arguments", file]
        events = variable(TRIGGER)
        return [*start, "run", *words, *(["--trigger-events", events] if events else [])]

    def _carry_out(self, command: list[str], folder: str) -> int:
        """Run a command to its end, and return its exit code; 128 and the signal for one that was killed."""
        own = {
            # The user's folder is nobody's here, and may be one that cannot be written.
            "FLOWKIT_HOME": environment().get("FLOWKIT_HOME") or os.path.join(folder, "home"),
            # Who follows the container's log wants to see how far it is.
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(command, env={**environment(), **own})
        if self._told is not None:  # while it was being started
            self._process.send_signal(self._told)
        while True:
            # As a container's first process it also inherits what others leave behind.
            pid, status = os.waitpid(-1, 0)
            if pid == self._process.pid:
                code = os.waitstatus_to_exitcode(status)
                self._process.returncode = code
                return code if code >= 0 else 128 - code

    def _status(self, storage: Storage, code: int) -> int:
        from flowkit.datastore.runs import read_end, read_run
        from flowkit.metadata.records import FINAL as ENDED

        state = (read_end(storage, self.flow, self.run) or {}).get("state")
        if state == "succeeded":
            return 0
        if state in ENDED or (code in _NEVER and self._told is None):
            return FINAL
        if code == 0 and read_run(storage, self.flow, self.run) is None:
            return FINAL  # it was something else than a run
        return code if self._told is None and code else 128 + signal.SIGTERM

    def _end(self, number: int, frame: Any) -> None:
        """Let the run be cancelled where it is not wanted any more; else let go of it, for the next container."""
        if self._told is not None:
            return
        self._told = signal.SIGTERM if self._unwanted() else signal.SIGHUP
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(self._told)

    def _unwanted(self) -> bool:
        from flowkit.metadata.records import FINAL as ENDED
        from flowkit.registry import load

        target, _, name = self.deployment.partition("/")
        try:
            from flowkit.deployer.target import DeploymentRecord

            record = DeploymentRecord(target, name, self.flow, root=self.root)
            found = load("deployers", target)({}).execution(record, self.run)
        except Exception as error:  # the border to a service that may be gone: the run is left, which can be mended
            self.console.warn(f"Told to end, and nobody says why ({error}): the run is left for whoever comes back.")
            return False
        return found is None or found.state in ENDED


def _flow() -> str:
    from flowkit.cli.container import _flow as flow_of_package

    return flow_of_package()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
