"""Hiding secret values in everything that a task lets out."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from flowkit.runtime import streams

MASK = "***"
_SHORTEST = 3
"""Shorter values are not hidden: they would turn ordinary text into stars."""


class Redactor:
    """The secret values of one task, and the streams that must not show them."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._wrapped = False

    def hide(self, value: str) -> None:
        """Hide a value from now on, on stdout and stderr too."""
        if len(value) < _SHORTEST or value in self.values:
            return
        # The log process masks what other programs print, too; without one (a container), only Python's streams are.
        if not all([streams.hide(line) for line in value.splitlines() if line]) and not self._wrapped:
            self._wrapped = True
            sys.stdout = _RedactedStream(sys.stdout, self)
            sys.stderr = _RedactedStream(sys.stderr, self)
        self.values.append(value)
        # A secret that holds another one has to be hidden first.
        self.values.sort(key=len, reverse=True)

    def text(self, text: str) -> str:
        """Return the text with every secret value masked."""
        for value in self.values:
            text = text.replace(value, MASK)
        return text

    def json(self, value: Any) -> Any:
        """Return plain JSON values with every secret in their texts masked."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.json(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.json(item) for item in value]
        return value


class _RedactedStream:
    """A text stream that holds a line back until it is whole, so that no secret slips through between two writes."""

    def __init__(self, stream: TextIO, redactor: Redactor) -> None:
        self._stream = stream
        self._redactor = redactor
        self._held = ""

    def write(self, text: str) -> int:
        whole, newline, rest = (self._held + text).rpartition("\n")
        if newline:
            self._stream.write(self._redactor.text(whole + newline))
        self._held = rest
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def close_line(self) -> None:
        """Let out what is held back (at the end of the task)."""
        if self._held:
            self._stream.write(self._redactor.text(self._held))
            self._held = ""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def close_lines() -> None:
    """Let out what redacted streams hold back."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _RedactedStream):
            stream.close_line()
