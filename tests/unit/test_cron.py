"""Cron texts as every scheduler reads them alike."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowkit.exceptions import UsageError
from flowkit.model.cron import cron_problems, five_field_problems, to_five_fields

LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


@pytest.mark.parametrize(
    ("cron", "five"),
    [
        ("0 6 ? * MON-FRI *", "0 6 * * 1-5"),
        ("0 0 ? * SUN *", "0 0 * * 0"),
        ("0 * * * ? *", "0 * * * *"),
        ("0 0 * * ?", "0 0 * * *"),
        ("*/15 0 * * 1-7", "*/15 0 * * *"),
        ("5 4 * * 7", "5 4 * * 0"),
        ("0 0 ? * fri-mon *", "0 0 * * 0-1,5-6"),
        ("3/5 22-3 1,15 JAN-MAR/2 ? *", "3-58/5 0-3,22-23 1,15 1,3 *"),
        # Beside weekdays, */2 is a star for some schedulers and none for others.
        ("0 0 */2 * MON", "0 0 1-31/2 * 1"),
        ("0 0 */2 * *", "0 0 */2 * *"),
        ("0-59 0-23 1-31 JAN-DEC SUN-SAT *", "* * * * *"),
    ],
)
def test_what_schedulers_with_five_fields_are_told(cron: str, five: str) -> None:
    assert to_five_fields(cron) == five
    assert to_five_fields(five) == five


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 0 L * ?", ["'L' as a day of month"]),
        ("0 0 ? * MON#2 2026", ["'MON#2' as a day of week", "the year 2026"]),
        ("0 0 1W,15 * ? 2026-2030", ["'1W' as a day of month", "the year 2026-2030"]),
        ("0 0 * *", ["4 fields"]),
        ("0 25 * * MOO", ["'25' is not a hour", "'MOO' is not a day of week"]),
    ],
)
def test_what_five_fields_cannot_say_is_refused_all_at_once(cron: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        to_five_fields(cron)
    assert all(word in refused.value.headline for word in words)
    assert len(five_field_problems(cron)) == len(words)


def _part(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    span = st.one_of(st.just("*"), number.map(str), st.tuples(number, number).map(lambda two: f"{two[0]}-{two[1]}"))
    step = st.one_of(st.just(""), st.integers(1, high + 5).map(lambda size: f"/{size}"))
    return st.tuples(span, step).map("".join)


def _field(low: int, high: int) -> st.SearchStrategy[str]:
    return st.one_of(st.just("*"), st.lists(_part(low, high), min_size=1, max_size=3).map(",".join))


CRON = st.tuples(*(_field(low, 7 if high == 6 else high) for low, high in LIMITS)).map(" ".join)


def _meant(text: str, low: int, high: int) -> set[int]:
    """Read a field as given, number by number."""
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (int(first), int(last or first))
        if span != "*" and slash and not dash:
            end = high
        if (high, begin) == (6, 7):  # Sunday
            begin, end = 0, 0 if end == 7 else end
        number, count = begin, 0
        while True:
            if count % int(step or 1) == 0:
                found.add(0 if (low, high, number) == (0, 6, 7) else number)
            if number == end or (span == "*" and number == high) or (slash and not dash and number >= high):
                break
            count += 1
            number += 1
            if number > (7 if (high, end) == (6, 7) else high):
                number = low
    return found


@settings(deadline=None, database=None, max_examples=200, derandomize=True)
@given(CRON)
def test_five_fields_mean_what_was_given(cron: str) -> None:
    assert cron_problems(cron) == []
    made = to_five_fields(cron)
    assert to_five_fields(made) == made
    for given_field, field, (low, high) in zip(cron.split(), made.split(), LIMITS, strict=True):
        # Nothing but what the strictest of them takes: numbers within the limits, ranges that go up.
        for part in field.split(","):
            assert re.fullmatch(r"\*(/[0-9]+)?|[0-9]+(-[0-9]+(/[0-9]+)?)?", part)
            ends = [int(end) for end in re.findall(r"[0-9]+", part.partition("/")[0])]
            assert all(low <= end <= high for end in ends)
            assert ends == sorted(ends)
        assert _meant(field, low, high) == _meant(given_field, low, high)
