"""Long output in the user's pager, as git does it: ``$PAGER``, else ``less``; only what does not fit on the screen."""

from __future__ import annotations

from typing import IO, TextIO

from flowkit.cli.terminal import cells
from flowkit.settings import environment, variable


class Pager:
    """A stream that holds back what is written until it is more than a screen, and then starts the pager.

    Parameters
    ----------
    out : text stream
        The terminal.
    size : tuple of int
        Its columns and rows.
    """

    def __init__(self, out: TextIO, size: tuple[int, int]) -> None:
        self._out = out
        self._columns, self._room = size[0], size[1] - 1
        self._held: list[str] = []
        self._pipe: IO[bytes] | None = None
        self._process: object = None
        self._direct = False
        self.encoding = out.encoding

    def isatty(self) -> bool:
        """Whether each line is to be pushed out at once: not before there is a pager."""
        return self._direct

    def fileno(self) -> int:
        """Raise: the descriptor of the terminal is not to be closed when the pager ends."""
        raise ValueError("a pager has no descriptor")

    def flush(self) -> None:
        """Push out what was written."""
        if self._direct:
            self._out.flush()

    def write(self, text: str) -> int:
        """Take lines.

        Raises
        ------
        BrokenPipeError
            If the user has left the pager.
        """
        if self._pipe is not None:
            self._pipe.write(text.encode(self.encoding, "backslashreplace"))
        elif self._direct:
            self._out.write(text)
        else:
            self._held.append(text)
            for line in text.removesuffix("\n").split("\n"):
                self._room -= max(1, -(-cells(line) // self._columns))
            if self._room < 0:
                self._start()
        return len(text)

    def finish(self) -> None:
        """Show what was held back, or wait until the user leaves the pager."""
        if self._process is None:
            self._out.write("".join(self._held))
            self._out.flush()
            return
        while True:
            try:
                if self._pipe is not None:
                    pipe, self._pipe = self._pipe, None
                    pipe.close()
                self._process.wait()  # type: ignore[attr-defined]
                return
            except BrokenPipeError:
                continue
            except KeyboardInterrupt:  # Ctrl-C is the pager's
                continue

    def _start(self) -> None:
        import shlex
        import subprocess

        command = variable("PAGER")
        held, self._held = "".join(self._held), []
        try:
            words = shlex.split("less" if command is None else command)
            if words and words != ["cat"]:
                # As git: quit where it fits, pass colours, leave the text on the screen.
                settings = {"LESS": "FRX", "LV": "-c", **environment()}
                process = subprocess.Popen(words, stdin=subprocess.PIPE, env=settings)
                self._process, self._pipe = process, process.stdin
        except (OSError, ValueError):  # there is no such program, or nobody can read its name
            pass
        self._direct = self._pipe is None
        self.write(held)
