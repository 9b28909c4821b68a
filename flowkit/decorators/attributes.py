"""Reading the attributes of decorators: numbers that may be texts, lists that may be single values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flowkit.decorators.contract import Decorator
from flowkit.exceptions import Problem

OWN_PREFIXES = ("FLOWKIT_", "METAFLOW_")
"""Environment variables that decorators may not set: they steer flowkit itself."""


def number(value: Any) -> float | None:
    """Return a number or a text that is one; None for anything else (a bool, a NaN, an infinity too)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if math.isfinite(read) else None


def check_number(
    decorator: Decorator,
    name: str,
    *,
    low: float,
    high: float = math.inf,
    above: bool = False,
    whole: bool = False,
    optional: bool = False,
    unit: str = "",
) -> list[Problem]:
    """Return what is wrong with a number.

    Parameters
    ----------
    decorator : Decorator
        Whose attribute it is.
    name : str
        The attribute.
    low, high : float
        The range, both ends included; `low` excluded where `above`.
    whole : bool
        Only whole numbers.
    optional : bool
        None is allowed.
    unit : str
        What it is counted in, for the message.
    """
    value = decorator.attributes[name]
    if value is None and optional:
        return []
    read = number(value)
    if read is not None and low <= read <= high and not (above and read == low) and not (whole and read % 1):
        return []
    kind = "a whole number" if whole else "a number"
    if unit:
        kind = f"{kind} of {unit}"
    if math.isinf(high):
        span = f"above {low:g}" if above else f"of at least {low:g}"
    else:
        span = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
    return [decorator.problem(f"@{decorator.name}({name}={value!r}): {name} must be {kind} {span}")]


def check_flag(decorator: Decorator, name: str, *, optional: bool = False) -> list[Problem]:
    """Return what is wrong with a True or False."""
    value = decorator.attributes[name]
    if isinstance(value, bool) or (optional and value is None):
        return []
    return [decorator.problem(f"@{decorator.name}({name}={value!r}): {name} must be True or False")]


def check_options(decorator: Decorator, name: str = "options") -> list[Problem]:
    """Return what is wrong with a dict of options."""
    if isinstance(decorator.attributes[name], Mapping):
        return []
    return [decorator.problem(f"@{decorator.name}: {name} must be a dict", f"write {name}={{…}} or leave it out")]


def items(value: Any) -> list[Any]:
    """Return a list, a tuple or a set as a list, None as an empty one, and anything else as its one item."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]


def variable_problem(name: Any) -> str | None:
    """Return what is wrong with the name of an environment variable; None for a good one."""
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        return f"{name!r} is not a name of an environment variable: letters, digits and _, no digit first"
    if name.startswith(OWN_PREFIXES):
        return f"{name} belongs to flowkit itself and cannot be set by a decorator"
    return None
