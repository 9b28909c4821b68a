"""When a schedule is due: moments of a cron text in a time zone.

The arithmetic of five fields is `cronsim`'s, which does as Debian's cron does where clocks are changed. What it does
not know is said here in its words: years, the nearest working day (``15W``), some days before the last (``L-3``).

Where clocks are changed. A schedule at fixed times (``30 2 * * *``) fires once a day whatever the clocks do: a time
that does not exist is due when the gap ends, one that there is twice is due the first time. A schedule that begins with
a star in its minutes or hours (``*/15 * * * *``) goes by the time that passes: it skips what does not exist, and fires
again in an hour that there is twice.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flowkit.exceptions import MissingExtra, UsageError
from flowkit.model.cron import cron_problems, to_five_fields

_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_WINDOWS = (120.0, 3_600.0, 86_400.0, 32 * 86_400.0, 367 * 86_400.0, 9 * 366 * 86_400.0)
"""Seconds back in which the latest moment is looked for, one after another: a dense schedule is found in the first."""
_EARLIER = timedelta(hours=3)
"""How far before a moment the search begins: no clock is changed by more."""
_YEARS = 50
"""Years ahead that are looked at; what is not due by then never is."""


class _Parts(NamedTuple):
    """One cron text, with what `cronsim` does not know kept apart."""

    minute: str
    hour: str
    days: tuple[str, ...]
    month: str
    weekdays: tuple[str, ...]
    years: frozenset[int] | None


class CronTimes:
    """The moments of a schedule.

    Parameters
    ----------
    cron : str
        Five or six fields (`flowkit.deployer.target.SchedulePlan`).
    timezone : str, optional
        An IANA name; default UTC.

    Raises
    ------
    UsageError
        If it is no cron text, or this machine does not know the time zone.
    MissingExtra
        If `cronsim` is not installed.
    """

    def __init__(self, cron: str, timezone: str | None = None) -> None:
        self.cron, self.timezone = cron, timezone
        problems = cron_problems(cron)
        if problems:
            raise UsageError(
                f"the schedule '{cron}' cannot be used: {'; '.join(problems)}", "for example cron='0 6 * * MON-FRI'"
            )
        self._zone = _zone(timezone)
        self._parts = _split(cron)
        self._simulate: Any = _simulator()

    def after(self, moment: float) -> Iterator[float]:
        """Yield the moments after one (seconds since the epoch), the earliest first, none twice."""
        last = moment
        for found in self._local(moment):
            when = found.timestamp()
            if when > last:
                last = when
                yield when

    def between(self, since: float, until: float, most: int | None = None) -> list[float]:
        """Return the moments after `since`, up to and with `until`; the newest where there are more than `most`."""
        found: list[float] = []
        for when in self.after(since):
            if when > until:
                break
            found.append(when)
            if most is not None and len(found) > 2 * most:
                del found[:-most]
        return found if most is None else found[-most:]

    def latest(self, since: float, until: float) -> float | None:
        """Return the last moment after `since`, up to and with `until`; None where there is none."""
        for window in _WINDOWS:
            begin = max(since, until - window)
            found = self.between(begin, until, 1)
            if found:
                return found[-1]
            if begin <= since:
                return None
        return None

    def next(self, moment: float) -> float | None:
        """Return the first moment after one; None where there is none any more."""
        return next(self.after(moment), None)

    def _local(self, moment: float) -> Iterator[datetime]:
        start = datetime.fromtimestamp(moment, timezone.utc).astimezone(self._zone) - _EARLIER
        years = self._parts.years
        if years is None and not self._special():
            yield from self._simulate(self._expression(None, None), start)
            return
        for year in range(start.year, start.year + _YEARS):
            if years is not None and year not in years:
                continue
            for month in range(1, 13) if self._special() else (None,):
                yield from self._within(start, year, month)

    def _within(self, start: datetime, year: int, month: int | None) -> Iterator[datetime]:
        """Yield the moments of one year, or of one month of it, for which special days are written as numbers."""
        first = datetime(year, month or 1, 1, tzinfo=self._zone) - timedelta(seconds=1)
        end = date(year + 1, 1, 1) if month in (None, 12) else date(year, (month or 0) + 1, 1)
        if end <= start.date():
            return
        expression = self._expression(year, month)
        if expression is None:
            return
        for found in self._simulate(expression, max(first, start)):
            if found.date() >= end:
                return
            yield found

    def _special(self) -> bool:
        return any("W" in part or "L-" in part for part in self._parts.days)

    def _expression(self, year: int | None, month: int | None) -> str | None:
        parts = self._parts
        days: list[str] = []
        for part in parts.days:
            if year is not None and month is not None and ("W" in part or "L" in part):
                day = _day_of(part, year, month)
                days += [] if day is None else [str(day)]
            else:
                days.append(part)
        if not days:
            if parts.weekdays == ("*",):
                return None  # nothing in this month
            return f"{parts.minute} {parts.hour} * {parts.month} {','.join(parts.weekdays)}"
        return f"{parts.minute} {parts.hour} {','.join(days)} {parts.month} {','.join(parts.weekdays)}"


def _simulator() -> Any:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise MissingExtra(
            "schedules need the package cronsim, which is not installed", "pip install 'cronsim>=2.6'"
        ) from error

    def simulate(expression: str, start: datetime) -> Iterator[datetime]:
        try:
            yield from CronSim(expression, start)
        except CronSimError:  # a day that no month has: the 31st of June
            return

    return simulate


def _zone(name: str | None) -> Any:
    if name is None:
        return timezone.utc
    try:
        zone = ZoneInfo(name)
    except (ValueError, TypeError, OSError, ZoneInfoNotFoundError):
        raise UsageError(
            f"this machine does not know the time zone '{name}'", "install its time zones (tzdata), or name another one"
        ) from None
    return timezone.utc if name in ("UTC", "Etc/UTC") else zone


def _split(cron: str) -> _Parts:
    """Read a cron text: what five fields can say in numbers, special days as they are."""
    minute, hour, days, month, weekdays, *year = cron.upper().split()
    plain_days, odd_days = _apart(days, r"L|L-[0-9]+|L?W|[0-9]+W")
    plain_weekdays, odd_weekdays = _apart(weekdays, r"([0-7]|[A-Z]{3})?L|.*#[1-5]")
    # With nothing plain left the field is a star here, and only the odd ones are kept.
    simple = f"{minute} {hour} {plain_days or '*'} {month} {plain_weekdays or '*'}"
    minutes, hours, numbers, months, week = to_five_fields(simple).split()
    wanted_days = ([numbers] if plain_days else []) + odd_days
    wanted_week = ([week] if plain_weekdays else []) + [_weekday(part) for part in odd_weekdays]
    # A star beside others is all of them.
    found_days = ("*",) if "*" in wanted_days else tuple(wanted_days)
    found_week = ("*",) if "*" in wanted_week else tuple(wanted_week)
    years = _years(year[0]) if year and year[0] != "*" else None
    return _Parts(minutes, hours, found_days, months, found_week, years)


def _apart(field: str, special: str) -> tuple[str, list[str]]:
    parts = field.split(",")
    odd = [part for part in parts if re.fullmatch(special, part)]
    return ",".join(part for part in parts if part not in odd), odd


def _weekday(part: str) -> str:
    """Return a special weekday in numbers: ``MON#2`` as ``1#2``, ``FRIL`` as ``5L``; ``L`` alone is Saturday."""
    if part == "L":
        return "6"
    name, sign, which = (part[:-1], "L", "") if part.endswith("L") else part.partition("#")
    day = str(_DAYS.index(name)) if name in _DAYS else str(int(name) % 7)
    return f"{day}{sign}{which}"


def _years(field: str) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, every = part.partition("/")
        first, dash, last = span.partition("-")
        begin = 1970 if span == "*" else int(first)
        until = 2199 if span == "*" or (every and not dash) else int(last or first)
        found.update(range(begin, until + 1, int(every or 1)))
    return frozenset(found)


def _day_of(part: str, year: int, month: int) -> int | None:
    """Return the day of a month that ``L``, ``L-3``, ``LW`` or ``15W`` means; None where the month has none."""
    last = calendar.monthrange(year, month)[1]
    if part.startswith("L-"):
        day = last - int(part[2:])
        return day if day >= 1 else None
    if part == "L":
        return last
    if part in ("LW", "W"):
        return _nearest(year, month, last, last) if part == "LW" else None
    day = int(part[:-1])
    return _nearest(year, month, day, last) if 1 <= day <= last else None


def _nearest(year: int, month: int, day: int, last: int) -> int:
    """Return the working day nearest to a day, in the same month."""
    weekday = calendar.weekday(year, month, day)
    if weekday == calendar.SATURDAY:
        return day - 1 if day > 1 else day + 2
    if weekday == calendar.SUNDAY:
        return day + 1 if day < last else day - 2
    return day
