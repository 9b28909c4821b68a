"""What a terminal can show: its size, colours, characters; and text that is cut and coloured for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from flowkit.settings import variable

STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "bright blue": "94",
    "bright magenta": "95",
    "bright cyan": "96",
}
STEP_STYLES = ("cyan", "magenta", "blue", "yellow", "bright cyan", "bright magenta", "bright blue")
"""The colours of steps, one after the other; red and green mean something else."""
STATE_STYLES = {
    "succeeded": "green",
    "cloned": "green",
    "failed": "red",
    "lost": "red",
    "running": "cyan",
    "cancelled": "yellow",
    "pending": "dim",
}

Part = tuple[str, str]
"""A piece of a line and the name of its style; an empty name for none."""


class Glyphs(NamedTuple):
    """The characters of the display."""

    done: str
    running: str
    waiting: str
    failed: str
    again: str
    full: str
    empty: str
    rule: str
    dot: str
    dots: str


UNICODE = Glyphs("✓", "●", "○", "✗", "↻", "━", "─", "│", "·", "…")
ASCII = Glyphs("+", "*", "-", "x", "~", "#", "-", "|", "-", "...")


class Terminal(NamedTuple):
    """What can be done with a stream.

    Parameters
    ----------
    live : bool
        What is shown can be drawn again: a real terminal, and no log of a build server.
    colours : bool
        It takes colours, and nobody asked for none (``NO_COLOR``).
    glyphs : Glyphs
        Characters that its encoding has.
    descriptor : int
        Of the stream; -1 where it has none.
    """

    live: bool = False
    colours: bool = False
    glyphs: Glyphs = ASCII
    descriptor: int = -1

    @property
    def unicode(self) -> bool:
        """Whether it has more than ASCII."""
        return self.glyphs is UNICODE

    def size(self) -> tuple[int, int]:
        """Return columns and rows as they are now; 80 and 24 where nobody knows."""
        try:
            columns, rows = os.get_terminal_size(self.descriptor)
        except (OSError, ValueError):
            return 80, 24
        return columns or 80, rows or 24

    def in_foreground(self) -> bool:
        """Whether the terminal is ours now; not so for a job that the shell has put into the background."""
        try:
            return os.tcgetpgrp(self.descriptor) == os.getpgrp()
        except OSError:
            return True  # no controlling terminal of ours: nobody else draws there

    def paint(self, text: str, style: str) -> str:
        """Return the text in a style (or several, separated by commas), as it is where there are no colours."""
        if not self.colours or not style or not text:
            return text
        return f"\x1b[{';'.join(STYLES[name] for name in style.split(','))}m{text}\x1b[0m"

    def line(self, parts: Sequence[Part], width: int) -> str:
        """Return the parts as one line of at most `width` columns, coloured, cut with an ellipsis."""
        out: list[str] = []
        room = width
        for text, style in parts:
            size = cells(text)
            if size > room:
                out.append(self.paint(fit(text, room, self.glyphs.dots), style))
                break
            out.append(self.paint(text, style))
            room -= size
        return "".join(out)


def terminal_of(stream: TextIO) -> Terminal:
    """Find out what a stream can show."""
    glyphs = UNICODE if (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8" else ASCII
    try:
        if not stream.isatty():
            return Terminal(glyphs=glyphs)
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return Terminal(glyphs=glyphs)
    simple = variable("TERM") in (None, "", "dumb", "unknown")
    logged = (variable("CI") or "").lower() not in ("", "0", "false")
    capable = not simple and not logged
    return Terminal(capable, capable and not variable("NO_COLOR"), glyphs, descriptor)


def step_style(position: int) -> str:
    """Return the colour of the step at a position in the order of the flow."""
    return STEP_STYLES[position % len(STEP_STYLES)]


def cells(text: str) -> int:
    """Return how many columns a text without control characters takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def fit(text: str, width: int, dots: str = "…") -> str:
    """Return a text cut to so many columns, with an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    if width <= len(dots):
        return dots[: max(width, 0)]
    room = width - len(dots)
    if text.isascii():
        return text[:room] + dots
    kept = []
    for char in text:
        room -= cells(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + dots


def padded(text: str, width: int) -> str:
    """Return a text filled up with spaces to so many columns."""
    return text + " " * (width - cells(text))
