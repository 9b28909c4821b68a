"""Values as Python source. Whatever a flow's text says stays a value: nothing here puts a text into code as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WIDTH = 110


class Code(str):
    """A text that is source already: names of the file's own constants and functions, never a user's text."""

    __slots__ = ()


def literal(value: Any, indent: int = 0) -> str:
    """Return a plain value as source, broken over lines where it is long.

    Parameters
    ----------
    value : object
        None, a bool, number or text, `Code`, or lists, tuples and dicts of these; a dict with `Spread` keys puts other
        dicts in front, as do lists.
    indent : int
        How far the line that it begins on is indented.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    short = _short(value)
    if len(short) + indent <= WIDTH and not _is_text_of_lines(value):
        return short
    inner, outer = " " * (indent + 4), " " * indent
    if _is_text_of_lines(value):
        lines = "".join(f"{inner}{line!r}\n" for line in value.splitlines(keepends=True))
        return f"(\n{lines}{outer})"
    if isinstance(value, Mapping):
        parts = [f"{_key(key)}{literal(item, indent + 4)},\n" for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [f"{literal(item, indent + 4)},\n" for item in value]
    else:
        return short
    opening, closing = (
        ("{", "}") if isinstance(value, Mapping) else ("[", "]") if isinstance(value, list) else ("(", ")")
    )
    return opening + "\n" + "".join(inner + part for part in parts) + outer + closing


def call(function: str, arguments: Mapping[str, Any], indent: int = 0) -> str:
    """Return a call with keywords, one on each line. `function` and the keywords are the caller's own words."""
    inner = " " * (indent + 4)
    lines = "".join(f"{inner}{name}={literal(value, indent + 4)},\n" for name, value in arguments.items())
    return f"{function}(\n{lines}{' ' * indent})"


def _is_text_of_lines(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Code) and len(value) > WIDTH and "\n" in value


def _key(key: Any) -> str:
    # {**OTHER: None} stands for the items of another dict.
    return str(key) if isinstance(key, Code) and key.startswith("**") else f"{_short(key)}: "


def _short(value: Any) -> str:
    if isinstance(value, Code):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}{_short(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_short, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if type(value) is str:
        return repr(value)
    raise TypeError(f"{type(value).__name__} has no place in a DAG file")
