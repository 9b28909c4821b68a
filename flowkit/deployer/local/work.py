"""Starting runs: the code package unpacked on this machine, and a process of its own for each run.

A run's process is nobody's: it has a session of its own, reads nothing, writes what it has to say into a file, and goes
on when the scheduler ends, however that does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import Any

from flowkit.datastore.blobs import Blobs
from flowkit.datastore.root import machine_folder
from flowkit.datastore.storage import Missing, Storage
from flowkit.deployer.local.firings import Firing
from flowkit.deployer.target import DeploymentRecord
from flowkit.exceptions import DataError, FlowkitError, StoreError
from flowkit.package.archive import extract
from flowkit.package.files import CODE
from flowkit.settings import environment

FOLDER = ".scheduler"
"""The folder of this machine for what belongs to a root's scheduler: unpacked code, words of runs."""
LOGS_KEPT = 100
"""Of each deployment, the words of so many runs are kept: what tasks print is in the datastore, and not among them."""
LOG_BYTES = 200_000
"""Bytes of a run's words that are kept once it is over."""
CODE_KEPT = 7 * 86_400.0
"""Seconds for which unpacked code stays that nothing was started from."""
REFUSED = frozenset({2, 3})
"""Exit codes of a command that would be refused every time (`flowkit.exceptions.EXIT_CODES`)."""
TAKEN = 6
"""Exit code of a run whose id is taken."""


class Work:
    """The processes that one scheduler, or one command, starts for a datastore.

    Parameters
    ----------
    storage : Storage
        The datastore.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.folder = os.path.join(machine_folder(storage), FOLDER)
        self._processes: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}

    @property
    def alive(self) -> set[str]:
        """The runs whose processes were started here and have not ended."""
        return set(self._processes)

    def start(self, record: DeploymentRecord, firing: Firing) -> None:
        """Start the process of a run, and do not wait for it.

        Raises
        ------
        FlowkitError
            If the code cannot be unpacked, or the interpreter cannot be started.
        """
        code = self.unpacked(record)
        command, folder = command_of(record, firing, code)
        words = self.words_file(record.name, firing.run)
        os.makedirs(os.path.dirname(words), exist_ok=True)
        command += ["--runner-arguments", self._parameters(record, firing)]
        with open(words, "ab") as out:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env={**environment(), **({"FLOWKIT_USER": record.user} if record.user else {})},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            except OSError as error:
                raise StoreError(
                    f"{command[0]}: {error.strerror or error}",
                    "deploy the flow again, with --python where that is now",
                ) from error
        self._processes[firing.run] = (record.name, process)

    def ended(self) -> dict[str, tuple[str, int]]:
        """Return the runs whose processes have ended since the last call, with their deployments and exit codes."""
        codes = {run: (name, process.poll()) for run, (name, process) in self._processes.items()}
        found = {run: (name, code) for run, (name, code) in codes.items() if code is not None}
        for run in found:
            del self._processes[run]
        return found

    def let_go(self, *, ends: bool = True) -> None:
        """Leave the processes to themselves.

        Parameters
        ----------
        ends : bool, default True
            Whether this process ends soon; else a thread waits for each of them, so that none is left a zombie.
        """
        for _, process in self._processes.values():
            if ends:
                process.returncode = 0  # nobody waits for it any more: it goes on
            else:
                threading.Thread(target=process.wait, name="flowkit-run", daemon=True).start()
        self._processes.clear()

    def last_words(self, name: str, run: str) -> str:
        """Return the last line that a run's process wrote about itself; empty where it wrote none."""
        try:
            with open(self.words_file(name, run), "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 8192))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        spoken = [line.strip() for line in lines if line.strip()]
        text = next((line for line in spoken if line.startswith("Error")), spoken[-1] if spoken else "")
        return "".join(char if char.isprintable() else "?" for char in text)[:300]

    def words_file(self, name: str, run: str) -> str:
        """Return the file with what a run's process wrote about itself."""
        return os.path.join(self.folder, "logs", name, f"{run}.log")

    def tidy(self, name: str, ended: str | None = None) -> None:
        """Bound what is kept of a deployment's runs on this machine."""
        if ended is not None:
            _shorten(self.words_file(name, ended))
            _remove(self._parameters_file(name, ended))
        folder = os.path.join(self.folder, "logs", name)
        for old in _oldest(folder, ".log", LOGS_KEPT):
            _remove(old)
        for old in _oldest(folder, ".json", LOGS_KEPT):
            _remove(old)

    def tidy_code(self, used: set[str]) -> None:
        """Remove unpacked code that nothing deployed needs and nothing was started from for long."""
        folder = os.path.join(self.folder, "code")
        for name in _names(folder):
            path = os.path.join(folder, name)
            try:
                if name not in used and time.time() - os.stat(path).st_mtime > CODE_KEPT:
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue  # another scheduler removed it

    def unpacked(self, record: DeploymentRecord) -> str:
        """Return the folder with a deployment's code; it is unpacked once for each package.

        Raises
        ------
        DataError
            If the datastore has not got the package, or it is damaged or unsafe.
        StoreError
            If it cannot be written.
        """
        key = str(record.package.get("key") or "")
        target = os.path.join(self.folder, "code", code_name(record))
        if os.path.isdir(target):
            try:
                os.utime(target)
            except OSError:
                pass  # it belongs to somebody else, who keeps it
            return target
        size = record.package.get("size")
        try:
            archive = Blobs(self._storage).get(key, size if isinstance(size, int) else 0, "the code package")
        except (Missing, DataError) as error:
            raise DataError(
                f"the code of the deployment '{record.name}' is not in the datastore any more: {error}",
                "deploy the flow again",
            ) from error
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            draft = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(target))
            try:
                extract(archive, draft, wanted=lambda name: not name.startswith(f"{CODE}/"))
                os.chmod(draft, 0o755)
                os.rename(draft, target)
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                if not os.path.isdir(target):  # else another process was faster
                    raise
            except FlowkitError:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        except OSError as error:
            raise StoreError(f"the code cannot be unpacked to {target}: {error.strerror or error}") from error
        return target

    def _parameters(self, record: DeploymentRecord, firing: Firing) -> str:
        """Write the parameters of a firing; all others have the values of when the flow was deployed."""
        values = {name: json.loads(text) for name, text in firing.parameters.items()}
        path = self._parameters_file(record.name, firing.run)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(values, file)
        return path

    def _parameters_file(self, name: str, run: str) -> str:
        return os.path.join(self.folder, "logs", name, f"{run}.json")


def command_of(record: DeploymentRecord, firing: Firing, code: str) -> tuple[list[str], str]:
    """Return the command of a run, and the folder that it is started in.

    A flow that is a file is started where its user deployed it from, so that it finds the files there that it found
    before; its own code is that of the package.

    Parameters
    ----------
    record : DeploymentRecord
    firing : Firing
    code : str
        Where the package was unpacked to.
    """
    client = record.details.get("client")
    client = client if isinstance(client, Mapping) else {}
    python = str(record.details.get("python") or client.get("python") or sys.executable)
    if os.sep in python:  # as given where the flow was deployed
        python = os.path.join(str(client.get("folder") or ""), python)
    program = str(record.package.get("program") or "")
    if program.startswith("-m "):
        start, folder = ["-m", program[3:].strip()], code
    else:
        start, folder = [os.path.join(code, program)], str(client.get("folder") or code)
        folder = folder if os.path.isdir(folder) else code
    words = ["--run-id", firing.run, "--deployed-as", f"{record.target}/{record.name}"]
    if firing.events:
        words += ["--trigger-events", json.dumps([list(event) for event in firing.events])]
    return [python, *start, "--quiet", *_words(client.get("top")), "run", *words, *_words(client.get("run"))], folder


def code_name(record: DeploymentRecord) -> str:
    """Return the name of the folder with a deployment's code."""
    key = str(record.package.get("key") or "")
    return key if key.isalnum() and len(key) == 64 else "unknown"


def _words(given: Any) -> list[str]:
    return [str(word) for word in given] if isinstance(given, list | tuple) else []


def _shorten(path: str) -> None:
    """Keep the end of a file that has become long."""
    try:
        if os.path.getsize(path) <= LOG_BYTES:
            return
        with open(path, "rb") as file:
            file.seek(-LOG_BYTES, os.SEEK_END)
            kept = file.read()
        with open(path, "wb") as file:
            file.write(b"[the beginning was left out]\n" + kept)
    except OSError:
        return  # it is for people who look into what went wrong; the run itself has its logs


def _oldest(folder: str, suffix: str, keep: int) -> list[str]:
    found = []
    for name in _names(folder):
        path = os.path.join(folder, name)
        try:
            found.append((os.stat(path).st_mtime, path))
        except OSError:
            continue
    return [path for _, path in sorted(each for each in found if each[1].endswith(suffix))[:-keep]]


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
