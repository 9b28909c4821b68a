"""A command of a flow as a process: its streams in files, its run found as soon as it has one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from flowkit.exceptions import (
    Conflict,
    DataError,
    FlowInvalid,
    FlowkitError,
    NotFound,
    Problem,
    RunFailed,
    UsageError,
)

STREAMS = ("stdout", "stderr")
_PAUSE = 0.01
_GRACE = 15.0
"""Seconds that a run has to end its tasks, before it is killed."""
_BY_CODE: Mapping[int, type[FlowkitError]] = {1: RunFailed, 2: UsageError, 4: NotFound, 5: DataError, 6: Conflict}


class Program:
    """A process that carries out one command.

    Parameters
    ----------
    command : sequence of str
        The command line, without the options for the runner.
    name : str
        Of the command, for messages.
    parameters : mapping
        The flow's parameters: plain JSON values.
    folder : str or None
        Where it runs.
    variables : mapping
        Its environment.
    show : bool
        Whether what it writes is shown on this process's streams while it is waited for.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        parameters: Mapping[str, Any],
        folder: str | None,
        variables: Mapping[str, str],
        *,
        show: bool,
    ) -> None:
        self.show = show
        self._folder = tempfile.mkdtemp(prefix="flowkit-runner-")
        self._attributes = os.path.join(self._folder, "attributes.json")
        self._finalizer = weakref.finalize(self, _remove, self._folder, os.getpid())
        self._shown = dict.fromkeys(STREAMS, 0)
        # A character may be half written
        self._decoders = {stream: getincrementaldecoder("utf-8")("replace") for stream in STREAMS}
        words = [*command, "--runner-attribute-file", self._attributes]
        if parameters:
            file = os.path.join(self._folder, "parameters.json")
            with open(file, "w", encoding="utf-8") as arguments:
                json.dump(parameters, arguments)
            words += ["--runner-arguments", file]
        self.command = words
        self.name = name
        self.timed_out = False
        try:
            with open(self.path("stdout"), "wb") as out, open(self.path("stderr"), "wb") as err:
                self.process = subprocess.Popen(
                    words, cwd=folder, env=dict(variables), stdin=subprocess.DEVNULL, stdout=out, stderr=err
                )
        except OSError as error:
            self.remove()
            raise UsageError(f"{words[0]} cannot be started: {error}", "cwd= and env= must be right") from error

    def path(self, stream: str) -> str:
        """Return the file that holds a stream."""
        return os.path.join(self._folder, stream)

    def attributes(self) -> dict[str, Any] | None:
        """Return what the command says of its run; None as long as it says nothing."""
        try:
            with open(self._attributes, encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
        except (OSError, ValueError):  # not written yet, or half of it
            return None
        return found

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self.process.poll()

    def read(self, stream: str) -> str:
        """Return what was written so far.

        Raises
        ------
        UsageError
            If it was removed meanwhile.
        """
        try:
            with open(self.path(stream), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            raise UsageError(
                f"the {stream} of the command '{self.name}' was removed when its with block ended",
                "read it inside of the block",
            ) from None

    def relay(self, *streams: str) -> None:
        """Show what was written since the last time; default: to both streams."""
        if not self.show:
            return
        for stream in streams or STREAMS:
            try:
                with open(self.path(stream), "rb") as file:
                    file.seek(self._shown[stream])
                    new = file.read()
            except FileNotFoundError:
                continue
            target: TextIO | None = getattr(sys, stream)
            if new and target is not None:
                self._shown[stream] += len(new)
                target.write(self._decoders[stream].decode(new))
                target.flush()

    def await_attributes(self, deadline: float, given_up: Callable[[], bool]) -> dict[str, Any]:
        """Wait until the command has a run, or nobody wants it any more.

        Raises
        ------
        FlowkitError
            Of the kind that its exit code means, if it ends without.
        """
        while True:
            ended = self.poll() is not None
            found = self.attributes()
            self.relay("stdout")  # an error is raised, and shown by that
            if found is not None:
                return found
            if ended:
                raise self.refusal()
            if time.monotonic() > deadline:
                self.stop()
                raise RunFailed("the command did not begin a run in time", "file_read_timeout= gives it longer")
            if given_up():
                raise RunFailed(f"the command '{self.name}' was given up before it had begun a run")
            time.sleep(_PAUSE)

    def refusal(self) -> FlowkitError:
        """Return what the command ended with, as the error that it is."""
        told = self.read("stderr").strip()
        code = self.process.returncode
        lines = [line for line in told.splitlines() if not line.startswith("flowkit ") or " executing " not in line]
        text = "\n".join(lines) or f"the command '{self.name}' ended with {code}"
        if code == FlowInvalid.exit_code:
            return FlowInvalid([Problem(text)])
        return _BY_CODE.get(code, RunFailed)(text)

    def stop(self) -> None:
        """End the process as Ctrl-C does, then by force."""
        if self.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def remove(self) -> None:
        """Remove the files, as happens at the latest when nobody can ask for them any more."""
        self._finalizer()


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not for a fork's copy
        shutil.rmtree(folder, ignore_errors=True)
