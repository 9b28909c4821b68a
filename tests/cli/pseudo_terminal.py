"""A command in a real pseudo-terminal, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping

import pyte

START = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Makes stdin the controlling terminal and becomes the command: its window's changes are told by signals then."""


class PseudoTerminal:
    """A command that runs on a screen.

    Parameters
    ----------
    command : list
        What to run.
    folder, env
        Where and with which variables.
    columns, rows : int
        The size of the screen.
    nohup : bool
        Whether the command outlives its terminal.
    """

    def __init__(
        self,
        command: list[object],
        folder: object,
        env: Mapping[str, str],
        columns: int,
        rows: int,
        nohup: bool = False,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, slave = os.openpty()
        self._size(columns, rows)
        start = [sys.executable, "-c", START, "nohup" if nohup else "", *map(str, command)]
        self.process = subprocess.Popen(
            start,
            cwd=str(folder),
            env=dict(env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def resize(self, columns: int, rows: int) -> None:
        """Change the window; the kernel tells the command."""
        self.screen.resize(rows, columns)
        self._size(columns, rows)

    def _size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def lines(self) -> list[str]:
        """Return what is on the screen now."""
        return [line.rstrip() for line in self.screen.display]

    def all_lines(self) -> list[str]:
        """Return what was scrolled away, and what is on the screen."""
        columns = range(self.screen.columns)
        above = ["".join(row[x].data for x in columns).rstrip() for row in self.screen.history.top]
        return [*above, *self.lines()]

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.all_lines()).rstrip()

    def until(self, condition: Callable[[list[str]], object], seconds: float = 60) -> list[str]:
        """Let the command write until the screen meets a condition, and return its lines."""
        deadline = time.monotonic() + seconds
        while not condition(self.lines()):
            assert time.monotonic() < deadline, f"it did not come to that:\n{self.text}"
            if not self._read(0.1):
                assert condition(self.lines()), f"it ended before that:\n{self.text}"
        return self.lines()

    def wait(self, seconds: float = 60) -> int:
        """Read on until the command has ended, and return its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
        return self.process.wait(timeout=seconds)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux: nobody has the other end any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        """End what is left."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self._master >= 0:
            self.hang_up()

    @property
    def colours(self) -> list[bytes]:
        """The sequences that set colours and the like."""
        return re.findall(rb"\x1b\[[0-9;]*m", self.raw)
