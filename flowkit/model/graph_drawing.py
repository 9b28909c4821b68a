"""The graph drawn with characters, as ``show`` does on a terminal."""

from __future__ import annotations

from typing import NamedTuple

from flowkit.model.graph_layout import BOX_HEIGHT, Box, Frame, Layout

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = " │││─╯╮┤─╰╭├─┴┬┼"
"""By the directions in which lines leave a cell, added up."""


class Drawing(NamedTuple):
    """A drawing with characters.

    Parameters
    ----------
    lines : list of str
        From top to bottom, without spaces at their ends.
    names : dict of str to (int, int)
        For each text in a box: its row and its first column.
    """

    lines: list[str]
    names: dict[str, tuple[int, int]]


def draw(layout: Layout, *, ascii: bool = False) -> Drawing:
    """Draw a layout.

    Parameters
    ----------
    layout : Layout
        Where everything stands.
    ascii : bool, default False
        Use the characters ``+ - | :`` only.
    """
    masks = [[0] * layout.width for _ in range(layout.height)]
    texts: dict[tuple[int, int], str] = {}
    dashed: set[tuple[int, int]] = set()
    for frame in layout.frames:
        _rectangle(masks, frame, dashed)
    names = {}
    for box in layout.boxes:
        _rectangle(masks, box, None)
        names[box.name] = (box.y + 1, box.x + 2)
        _write(texts, box.y + 1, box.x + 2, box.name)
        if box.again:
            _write(texts, box.y, box.x + box.width - 2, "^" if ascii else "↺")
    for wire in layout.wires:
        if wire.x1 == wire.x2:
            for y in range(wire.y1, wire.y2 + 1):
                masks[y][wire.x1] |= (_UP if y > wire.y1 else 0) | (_DOWN if y < wire.y2 else 0)
        else:
            for x in range(wire.x1, wire.x2 + 1):
                masks[wire.y1][x] |= (_LEFT if x > wire.x1 else 0) | (_RIGHT if x < wire.x2 else 0)
    for frame in layout.frames:
        _write(texts, frame.y, frame.x + 2, frame.label)
    for label in layout.labels:
        _write(texts, label.y, label.x - len(label.text) // 2, label.text)
    lines = []
    for y, row in enumerate(masks):
        cells = [texts.get((y, x)) or _character(mask, (y, x) in dashed, ascii) for x, mask in enumerate(row)]
        lines.append("".join(cells).rstrip())
    return Drawing(lines, names)


def _rectangle(masks: list[list[int]], what: Box | Frame, dashed: set[tuple[int, int]] | None) -> None:
    height = BOX_HEIGHT if isinstance(what, Box) else what.height
    left, right, top, bottom = what.x, what.x + what.width - 1, what.y, what.y + height - 1
    for y in range(top, bottom + 1):
        for x in (left, right):
            masks[y][x] |= (_UP if y > top else 0) | (_DOWN if y < bottom else 0)
    for x in range(left, right + 1):
        for y in (top, bottom):
            masks[y][x] |= (_LEFT if x > left else 0) | (_RIGHT if x < right else 0)
    if dashed is not None:
        dashed.update((y, x) for y in range(top, bottom + 1) for x in (left, right))
        dashed.update((y, x) for x in range(left, right + 1) for y in (top, bottom))


def _write(texts: dict[tuple[int, int], str], y: int, x: int, text: str) -> None:
    for place, character in enumerate(text):
        texts[y, x + place] = character


def _character(mask: int, dashed: bool, ascii: bool) -> str:
    if mask == 0:
        return " "
    vertical, horizontal = mask & (_UP | _DOWN), mask & (_LEFT | _RIGHT)
    if ascii:
        return "+" if vertical and horizontal else (":" if dashed else "|") if vertical else ("." if dashed else "-")
    if dashed and not (vertical and horizontal):
        return "╎" if vertical else "╌"
    return _LINES[mask]
