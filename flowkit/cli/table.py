"""Rows of text in columns, and times and durations as people read them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from flowkit.cli.console import clean


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    paint: Callable[[int, str], str] | None = None,
) -> list[str]:
    """Return lines in which every column is as wide as its widest cell.

    Parameters
    ----------
    heads : sequence of str
        The names of the columns.
    rows : sequence of sequence of str
        The cells; control characters in them are made safe.
    right : sequence of int
        Columns to be set to the right.
    paint : callable, optional
        ``paint(column, cell)`` returns a cell with its colours; cells come to it with the spaces around them.
    """
    painted = paint or (lambda _, cell: cell)
    cells = [list(heads), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for number, row in enumerate(cells):
        set_out = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        while set_out and not set_out[-1].strip():
            set_out.pop()
        if set_out:
            set_out[-1] = set_out[-1].rstrip()
        lines.append("  ".join(painted(place, cell) if number else cell for place, cell in enumerate(set_out)))
    return lines


def one_line(text: str, limit: int | None = None) -> str:
    """Return a text safe to show, in one line, cut with an ellipsis at a limit of characters."""
    line = " ".join(clean(text).split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def moment(when: float | None) -> str:
    """Return a time in local time: ``2024-05-31 14:03:59``; a dash for None, and for what no calendar has."""
    try:
        return "-" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (ValueError, OverflowError, OSError):  # a number that somebody else wrote
        return "-"


def duration(seconds: float | None) -> str:
    """Return a duration: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``; a dash for None."""
    if seconds is None:
        return "-"
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short(seconds: float) -> str:
    """Return a duration, in milliseconds where it is shorter than a tenth of a second."""
    return f"{max(seconds, 0) * 1000:.0f} ms" if seconds < 0.0995 else duration(seconds)
