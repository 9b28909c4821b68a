"""Filters in the query of a list: ``field:op=value``, ``_tags:all=a,b``, ``_limit``, ``_cursor``.

Several values with commas between them are alternatives; several filters must all hold. What an index of runs carries
is asked of the store (`Query.which`); the rest is looked at record by record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError, did_you_mean
from flowkit.metadata.records import STATES
from flowkit.metadata.store import RunFilter

OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "co", "sw", "ew", "li", "is")
TAG_OPERATORS = ("all", "any", "likeall", "likeany")
RUN_FIELDS = {
    "flow_id": str,
    "run_number": int,
    "run_id": str,
    "user_name": str,
    "user": str,
    "status": str,
    "ts_epoch": int,
    "finished_at": int,
    "last_heartbeat_ts": int,
}
"""Fields of runs by which a list can be filtered, and what they hold; `user` is the owner by the system tags."""
TASK_FIELDS = {
    "flow_id": str,
    "run_number": int,
    "run_id": str,
    "step_name": str,
    "task_id": str,
    "task_name": str,
    "user_name": str,
    "status": str,
    "ts_epoch": int,
    "last_heartbeat_ts": int,
}
MAX_FILTERS = 20
MAX_VALUES = 100
MAX_TEXT = 2_000
MAX_LIMIT = 10_000

_STATES = {"completed": ("succeeded",), "failed": ("failed", "lost", "cancelled")}
"""Metaflow's words for states, and ours for the same."""

Json = Mapping[str, Any]
Condition = Callable[[Json], bool]


class Query(NamedTuple):
    """What a request asks for.

    Parameters
    ----------
    which : RunFilter
        What the store can look for; never more than the conditions ask for.
    conditions : tuple of callables
        All of which a record (as JSON) must fulfil.
    limit : int or None
        Records on a page; None for all.
    cursor : str or None
        Of the page.
    """

    which: RunFilter
    conditions: tuple[Condition, ...]
    limit: int | None
    cursor: str | None

    def keeps(self, record: Json) -> bool:
        """Whether a record is asked for."""
        return all(holds(record) for holds in self.conditions)


def parse(items: Iterable[tuple[str, str]], fields: Mapping[str, type]) -> Query:
    """Read the parameters of a request.

    Parameters
    ----------
    items : iterable of (name, value)
        As they stand in the URL.
    fields : mapping of str to type
        By which the list can be filtered.

    Raises
    ------
    UsageError
        If a name, an operator or a value makes no sense.
    """
    given = list(items)
    if len(given) > MAX_FILTERS:
        raise UsageError(f"{len(given)} filters are too many", f"at most {MAX_FILTERS} in one request")
    which = RunFilter()
    conditions: list[Condition] = []
    limit: int | None = None
    cursor: str | None = None
    for name, value in given:
        _check_text(name, value)
        field, _, operator = name.partition(":")
        if name == "_limit":
            limit = _limit(value)
        elif name == "_cursor":
            cursor = value
        elif field == "_tags":
            wanted = _values(value)
            conditions.append(_tag_condition(operator or "all", wanted))
            if operator in ("", "all"):
                which = which._replace(tags=(*which.tags, *wanted))
        else:
            _check_field(field, fields)
            condition, which = _condition(field, operator or "eq", value, fields[field], which)
            conditions.append(condition)
    return Query(which, tuple(conditions), limit, cursor)


def _check_text(name: str, value: str) -> None:
    for text in (name, value):
        if len(text) > MAX_TEXT or "\0" in text or not _encodable(text):
            raise UsageError("a filter is too long, or holds characters that no record has")


def _check_field(field: str, fields: Mapping[str, type]) -> None:
    if field not in fields:
        hint = did_you_mean(field, fields) or f"one of {', '.join(fields)}, _tags, _limit, _cursor"
        raise UsageError(f"{field[:80]!r} is not a field to filter by", hint)


def _limit(value: str) -> int:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0
    if not 1 <= number <= MAX_LIMIT:
        raise UsageError("_limit is not a number of records", f"between 1 and {MAX_LIMIT:,}")
    return number


def _values(value: str) -> list[str]:
    values = [each for each in value.split(",") if each]
    if not values or len(values) > MAX_VALUES:
        raise UsageError("a filter has no value, or too many", f"up to {MAX_VALUES}, with commas between them")
    return values


def _tag_condition(operator: str, wanted: Sequence[str]) -> Condition:
    if operator not in TAG_OPERATORS:
        raise UsageError(f"{operator[:80]!r} is not an operator for tags", f"one of {', '.join(TAG_OPERATORS)}")
    combine = all if operator.endswith("all") else any

    def exact(record: Json) -> bool:
        tags = {*record["tags"], *record["system_tags"]}
        return combine(tag in tags for tag in wanted)

    def alike(record: Json) -> bool:
        tags = [*record["tags"], *record["system_tags"]]
        return combine(any(part in tag for tag in tags) for part in wanted)

    return alike if operator.startswith("like") else exact


def _condition(field: str, operator: str, value: str, kind: type, which: RunFilter) -> tuple[Condition, RunFilter]:
    """Return what to look at in a record, and what more the store can be asked for."""
    if operator not in OPERATORS:
        hint = did_you_mean(operator, OPERATORS) or f"one of {', '.join(OPERATORS)}"
        raise UsageError(f"{operator[:80]!r} is not an operator", hint)
    if operator == "is":
        if value.lower() != "null":
            raise UsageError("'is' asks for null only", f"for a value: {field}:eq={value[:80]}")
        return (lambda record: record.get(field) is None), which
    values = _values(value)
    if field == "status":
        return _status(operator, values, which)
    if field == "user":
        return _owner(operator, values, which)
    tests = [_test(field, operator, each, kind) for each in values]
    if operator == "ne":
        condition: Condition = lambda record: all(test(record.get(field)) for test in tests)  # noqa: E731
    else:
        condition = lambda record: any(test(record.get(field)) for test in tests)  # noqa: E731
    return condition, _narrowed(which, field, operator, values)


def _narrowed(which: RunFilter, field: str, operator: str, values: Sequence[str]) -> RunFilter:
    """Return what the store can look for by itself."""
    if len(values) != 1:
        return which
    if field == "user_name" and operator == "eq":
        return which._replace(user=values[0])
    if field == "ts_epoch" and operator in ("ge", "gt", "eq"):
        since = int(values[0]) / 1000
        return which._replace(since=since if which.since is None else max(which.since, since))
    if field == "ts_epoch" and operator in ("le", "lt"):
        until = (int(values[0]) + 1) / 1000
        return which._replace(until=until if which.until is None else min(which.until, until))
    return which


def _status(operator: str, values: Sequence[str], which: RunFilter) -> tuple[Condition, RunFilter]:
    wanted: set[str] = set()
    for each in values:
        word = each.lower()
        if word not in _STATES and word not in STATES:
            raise UsageError(
                f"{each[:80]!r} is not a status", f"one of {', '.join(dict.fromkeys((*STATES, *_STATES)))}"
            )
        wanted.update(_STATES.get(word, (word,)))
    if operator == "eq":
        if len(wanted) == 1 and which.status is None:
            which = which._replace(status=next(iter(wanted)))
        return (lambda record: record["status"] in wanted), which
    if operator == "ne":
        return (lambda record: record["status"] not in wanted), which
    raise UsageError(f"a status is not compared by {operator}", "status:eq=… or status:ne=…")


def _owner(operator: str, values: Sequence[str], which: RunFilter) -> tuple[Condition, RunFilter]:
    if operator != "eq":
        raise UsageError(f"the owner is not compared by {operator}", "user:eq=…; user_name takes every operator")
    tags = {f"user:{each}" for each in values}
    if len(tags) == 1:
        which = which._replace(tags=(*which.tags, *tags))
    return (lambda record: not tags.isdisjoint(record["system_tags"])), which


def _test(field: str, operator: str, wanted: str, kind: type) -> Callable[[Any], bool]:
    """Return what compares a record's value; nothing compares with null."""
    if operator in _TEXTS:
        compare, text = _TEXTS[operator], wanted
        return lambda value: value is not None and compare(str(value), text)
    if kind is int:
        return _number_test(field, operator, wanted)
    if wanted.lower() == "null" and operator in ("eq", "ne"):
        return lambda value: (value is None) == (operator == "eq")
    ordered = _ORDERS[operator]
    return lambda value: value is not None and ordered(str(value), wanted)


def _number_test(field: str, operator: str, wanted: str) -> Callable[[Any], bool]:
    ordered = _ORDERS[operator]
    sign, digits = (-1, wanted[1:]) if wanted.startswith("-") else (1, wanted)
    if digits.isascii() and digits.isdigit() and len(digits) <= 18:
        number = sign * int(digits)
        return lambda value: type(value) is int and ordered(value, number)
    if field == "run_number" and operator in ("eq", "ne"):  # of a named run it is the name
        return lambda value: value is not None and ordered(str(value), wanted)
    raise UsageError(f"{field} is compared with a number, which {wanted[:80]!r} is not")


def _like(value: str, pattern: str) -> bool:
    """Whether a text is like a pattern with ``%`` for any characters, whatever the case; without backtracking."""
    text = value.lower()
    first, *rest = pattern.lower().split("%")
    if not rest:
        return text == first
    if not text.startswith(first):
        return False
    place = len(first)
    *middle, last = rest
    for part in middle:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return len(text) - place >= len(last) and text.endswith(last)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "co": lambda value, wanted: wanted in value,
    "sw": lambda value, wanted: value.startswith(wanted),
    "ew": lambda value, wanted: value.endswith(wanted),
    "li": _like,
}
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, wanted: bool(value == wanted),
    "ne": lambda value, wanted: bool(value != wanted),
    "lt": lambda value, wanted: bool(value < wanted),
    "le": lambda value, wanted: bool(value <= wanted),
    "gt": lambda value, wanted: bool(value > wanted),
    "ge": lambda value, wanted: bool(value >= wanted),
}


def described(fields: Mapping[str, type]) -> dict[str, Any]:
    """Return what OpenAPI says of the parameters of a list."""
    operators = ", ".join(OPERATORS)
    told = [(f"{field}:eq", f"Filter by {field}; other operators: {operators}.") for field in fields]
    told.append(("_tags:all", f"Only with all of these tags; other operators: {', '.join(TAG_OPERATORS)}."))
    told.append(("_limit", f"Records on a page, 1 to {MAX_LIMIT:,}; all without it."))
    told.append(("_cursor", "The header X-Next-Cursor of the page before."))
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in told
        ]
    }
