"""Cron texts: when a deployed flow runs.

A schedule has five fields (minute, hour, day of the month, month, weekday) or six (and the year). As with EventBridge,
``?`` may stand for the days or weekdays, and ``L``, ``W`` and ``#`` for the last day, the nearest working day, the
second Monday. Weekdays are names or numbers as in every other cron: 0 and 7 are Sunday.

Most schedulers know five fields only, and not all of them all that may stand in one: `to_five_fields` writes what every
one of them understands alike.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

from flowkit.exceptions import UsageError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
    ("year", 1970, 2199, ()),
)
_DAY_OF_MONTH, _WEEKDAY = 2, 4
_SPECIAL = {
    "day of month": (r"\?|L(-[0-9]{1,2})?|L?W|[0-9]{1,2}W"),
    "day of week": (r"\?|([0-7]|[A-Z]{3})?L|([0-7]|[A-Z]{3})#[1-5]"),
}


def cron_problems(cron: Any) -> list[str]:
    """Return what is wrong with a cron text of five or six fields."""
    if not isinstance(cron, str):
        return ["cron must be a text"]
    fields = cron.split()
    if len(fields) not in (5, 6):
        return [f"{len(fields)} fields; cron has five (minute, hour, day, month, weekday), or six with the year"]
    wrong = []
    for text, (name, low, high, names) in zip(fields, _FIELDS, strict=False):
        special = _SPECIAL.get(name)
        for part in text.upper().split(","):
            if not ((special and re.fullmatch(special, part)) or _in_range(part, low, high, names)):
                wrong.append(f"'{part}' is not a {name} ({low} to {high})")
    return wrong


def five_field_problems(cron: str) -> list[str]:
    """Return what is wrong with a cron text, and what of it cron of five fields cannot say."""
    wrong = cron_problems(cron)
    if wrong:
        return wrong
    fields = cron.upper().split()
    for position in (_DAY_OF_MONTH, _WEEKDAY):
        for part in fields[position].split(","):
            if part != "?" and re.fullmatch(_SPECIAL[_FIELDS[position][0]], part):
                wrong.append(f"'{part}' as a {_FIELDS[position][0]}: cron of five fields has no L, W and #")
    if len(fields) == 6 and not _whole(fields[5], 5):
        wrong.append(f"the year {fields[5]}: cron of five fields has no years")
    return wrong


def to_five_fields(cron: str) -> str:
    """Return a schedule as cron of five fields that every scheduler reads alike.

    Names become numbers, Sunday is 0, a range that goes over the end of the week is written in two parts, ``3/5`` as
    ``3-59/5``. A schedule with days of the month and weekdays fires on days that fit one of both.

    Parameters
    ----------
    cron : str
        Five or six fields (`flowkit.deployer.target.SchedulePlan`).

    Raises
    ------
    UsageError
        If it is no cron text, or says what five fields cannot: ``L``, ``W``, ``#``, or some years only.

    Examples
    --------
    >>> to_five_fields("0 6 ? * FRI-SUN *")
    '0 6 * * 0,5-6'
    """
    problems = five_field_problems(cron)
    if problems:
        raise UsageError(
            f"the schedule '{cron}' cannot be used: {'; '.join(problems)}", "for example cron='0 6 * * MON-FRI'"
        )
    fields = cron.upper().split()[:5]
    whole = [_whole(text, position) for position, text in enumerate(fields)]
    both = not whole[_DAY_OF_MONTH] and not whole[_WEEKDAY]
    written = []
    for position, text in enumerate(fields):
        if whole[position]:
            written.append("*")
        elif re.fullmatch(r"\*/[0-9]+", text) and not (both and position in (_DAY_OF_MONTH, _WEEKDAY)):
            written.append(f"*/{int(text[2:])}")
        else:  # beside other days, */2 would count as a star for some schedulers and not for others
            written.append(_ranges(_values(text, position), _step(text, position)))
    return " ".join(written)


def _whole(text: str, position: int) -> bool:
    """Whether a field leaves everything open."""
    if text in ("*", "?", "*/1"):
        return True
    _, low, high, _ = _FIELDS[position]
    high = 6 if position == _WEEKDAY else high
    return len(_values(text, position)) == high - low + 1


def _values(text: str, position: int) -> set[int]:
    """Return every number that a field without special signs stands for; Sunday is 0."""
    _, low, high, names = _FIELDS[position]
    weekday = position == _WEEKDAY
    last = 6 if weekday else high
    found: set[int] = set()
    for part in text.split(","):
        span, _, every = part.partition("/")
        first, dash, end = span.partition("-")
        if span in ("*", "?"):
            begin, until = low, last
        else:
            begin = _place(first, low, names) or 0
            until = (_place(end, low, names) or 0) if dash else (last if every else begin)
        if until < begin:  # over the end: FRI-MON, 22-3
            until += 7 if weekday else high - low + 1
        size = 7 if weekday else high - low + 1
        found.update((number - low) % size + low for number in range(begin, until + 1, int(every or 1)))
    return found


def _step(text: str, position: int) -> int:
    """Return the step of a field that is one range with a step and does not go over the end; 1 for others."""
    found = re.fullmatch(r"[0-9*]+(?:-([0-9]+))?/([0-9]+)", text)
    return int(found[2]) if found and position != _WEEKDAY else 1


def _ranges(values: set[int], step: int) -> str:
    """Return numbers as cron has them: ``1,3-5``, or ``3-58/5`` where they are that far from each other."""
    numbers = sorted(values)
    if step > 1 and len(numbers) > 2 and all(b - a == step for a, b in pairwise(numbers)):
        return f"{numbers[0]}-{numbers[-1]}/{step}"
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _in_range(part: str, low: int, high: int, names: tuple[str, ...]) -> bool:
    span, slash, every = part.partition("/")
    if slash and not (every.isascii() and every.isdigit() and int(every) > 0):
        return False
    if span == "*":
        return True
    first, dash, last = span.partition("-")
    ends = [_place(first, low, names)] + ([_place(last, low, names)] if dash else [])
    return all(end is not None and low <= end <= high for end in ends)


def _place(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text in names:
        return names.index(text) + low
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else None
