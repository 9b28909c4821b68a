"""``@schedule``: when a deployed flow runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import flow_decorator
from flowkit.decorators.attributes import check_flag
from flowkit.decorators.contract import FlowDecorator
from flowkit.exceptions import Problem, did_you_mean

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition

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
_SPECIAL = {
    "day of month": (r"\?|L(-[0-9]{1,2})?|L?W|[0-9]{1,2}W"),
    "day of week": (r"\?|([0-7]|[A-Z]{3})?L|([0-7]|[A-Z]{3})#[1-5]"),
}


class Schedule(FlowDecorator):
    """Say when the flow runs once it is deployed; on this machine it changes nothing.

    Of several, `cron` wins over `weekly`, that over `hourly`, that over `daily`.

    Parameters
    ----------
    cron : str, optional
        Five fields (minute, hour, day of month, month, day of week), or six with the year.
    weekly : bool, default False
        At midnight on Sundays.
    daily : bool, default True
        At midnight.
    hourly : bool, default False
        At the full hour.
    timezone : str, optional
        An IANA name, for example ``Europe/Oslo``; default UTC.

    Examples
    --------
    >>> @schedule(cron="0 6 ? * MON-FRI *", timezone="Europe/Oslo")
    ... class ReportFlow(FlowSpec): ...
    """

    name = "schedule"
    defaults = {"cron": None, "weekly": False, "daily": True, "hourly": False, "timezone": None}

    def configure_flow(self, flow: FlowDefinition, options: Mapping[str, Any]) -> list[Problem]:
        """Check the cron text and that the time zone exists."""
        problems = [problem for flag in ("weekly", "daily", "hourly") for problem in check_flag(self, flag)]
        cron = self.attributes["cron"]
        if cron is not None:
            for text in cron_problems(cron):
                problems.append(self.problem(f"@schedule(cron={cron!r}): {text}", 'for example cron="0 6 * * MON-FRI"'))
        zone = self.attributes["timezone"]
        if zone is not None:
            problems += self._check_zone(zone)
        return problems

    def expression(self) -> str | None:
        """Return the schedule as a cron text of six fields; None for none."""
        cron: str | None = self.attributes["cron"]
        if cron:
            return cron
        if self.attributes["weekly"]:
            return "0 0 ? * SUN *"
        if self.attributes["hourly"]:
            return "0 * * * ? *"
        return "0 0 * * ? *" if self.attributes["daily"] else None

    def record(self) -> Any:
        """Return the schedule that follows from the attributes, and these."""
        return {**super().record(), "schedule": self.expression()}

    def _check_zone(self, zone: Any) -> list[Problem]:
        import zoneinfo

        try:
            zoneinfo.ZoneInfo(zone)
        except (ValueError, TypeError, OSError, zoneinfo.ZoneInfoNotFoundError):
            known = zoneinfo.available_timezones()
            if known or not isinstance(zone, str):  # a machine without the database of zones cannot tell
                hint = did_you_mean(str(zone), known) or "an IANA name, for example 'Europe/Oslo'"
                return [self.problem(f"@schedule(timezone={zone!r}): there is no such time zone", hint)]
        return []


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


schedule = flow_decorator(Schedule)
