"""What trying out a step and running a flow from Python cost, beside the plain command.

    python benchmarks/authoring.py [--rounds 15]

Medians of whole cold processes, in seconds: a bare interpreter, `python flow.py run` of three empty steps,
the same by `Runner.run`, and `python flow.py spin` of its middle step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from flowkit import Runner

FLOW = """
from flowkit import FlowSpec, step


class Hello(FlowSpec):
    @step
    def start(self):
        self.x = 1
        self.next(self.middle)

    @step
    def middle(self):
        self.y = self.x + 1
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Hello()
"""


def medians(rounds: int, **actions: Callable[[], object]) -> dict[str, float]:
    """Return the median time of each action, the actions taking turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with open("flow.py", "w", encoding="utf-8") as file:
            file.write(FLOW)

        def command(*words: str) -> Callable[[], object]:
            return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)

        with Runner("flow.py", show_output=False) as runner:
            found = medians(
                rounds,
                bare=command("-c", "pass"),
                run=command("flow.py", "run"),
                runner=runner.run,
                spin=command("flow.py", "spin", "middle"),
            )
    lines = [
        ("bare interpreter", found["bare"]),
        ("python flow.py run", found["run"]),
        ("Runner.run", found["runner"]),
        ("  above the command (budget 0.2)", found["runner"] - found["run"]),
        ("python flow.py spin", found["spin"]),
        ("  above a bare interpreter (budget 0.2)", found["spin"] - found["bare"]),
    ]
    for name, seconds in lines:
        sys.stdout.write(f"{name:42} {seconds:8.3f} s\n")


if __name__ == "__main__":
    main()
