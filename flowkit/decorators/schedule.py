"""``@schedule``: when a deployed flow runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import flow_decorator
from flowkit.decorators.attributes import check_flag
from flowkit.decorators.contract import FlowDecorator
from flowkit.exceptions import Problem, did_you_mean
from flowkit.model.cron import cron_problems

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition


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


schedule = flow_decorator(Schedule)
