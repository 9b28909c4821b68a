"""The metadata service as a process of its own, started by the real command on a free port of this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEADLINE = 60.0
"""Seconds after which whatever is waited for will not come any more."""
_READY = re.compile(r"^Serving on (https?://\S+) from ", re.MULTILINE)


class ServiceProcess:
    """A service; a context that kills what is left of it.

    Parameters
    ----------
    folder : Path
        Its home and working directory, and where its output goes.
    *options : object
        Of ``flowkit service start``, besides ``--port 0`` and, unless one is named, a database in the folder.
    env : mapping, optional
        Further variables; those of flowkit in the test's own environment are left out.

    Attributes
    ----------
    url : str
        Where it is; empty until `wait_ready`.
    process : subprocess.Popen
    """

    def __init__(self, folder: Path, *options: object, env: Mapping[str, str] | None = None) -> None:
        self.url = ""
        self._stderr = folder / f"service-{os.urandom(4).hex()}.log"
        arguments = [str(option) for option in options]
        if "--port" not in arguments:
            arguments += ["--port", "0"]
        if "--database" not in arguments and "FLOWKIT_SERVICE_DATABASE" not in (env or {}):
            arguments += ["--database", str(folder / "database")]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWKIT_", "COVERAGE_"))}
        with open(self._stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flowkit", "service", *arguments],
                cwd=folder,
                env={**kept, "HOME": str(folder), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )

    def wait_ready(self) -> ServiceProcess:
        """Wait until it answers requests."""
        deadline = time.monotonic() + DEADLINE
        while not (found := _READY.search(self.stderr)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise AssertionError(f"the service did not start:\n{self.stderr}")
            time.sleep(0.01)
        self.url = found[1]
        return self

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._stderr.read_text(errors="backslashreplace")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of JSON among it that are complete."""
        whole = self.stderr.rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"the service did not end:\n{self.stderr}") from None

    def close(self) -> None:
        """Kill it, if it runs still."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> ServiceProcess:
        return self.wait_ready()

    def __exit__(self, *error: object) -> None:
        self.close()
