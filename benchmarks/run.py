"""Time flowkit on the first few workloads: whole cold processes, median of several.

    python benchmarks/run.py [--repeat 5] [--json]

Run it with the interpreter that flowkit is installed for. Times of different machines cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

LINEAR = """
from flowkit import FlowSpec, step


class Bench(FlowSpec):
{steps}

if __name__ == "__main__":
    Bench()
"""

STEP = """
    @step
    def {name}(self):
        self.x = {value}
        self.next(self.{following})
"""

END = """
    @step
    def end(self):
        pass
"""

FOREACH = """
from flowkit import FlowSpec, step


class Bench(FlowSpec):
    @step
    def start(self):
        self.items = list(range({width}))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(task.y for task in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Bench()
"""


def chain(length: int) -> str:
    """Return the source of a flow of so many steps in a row."""
    names = ["start", *(f"s{i}" for i in range(1, length - 1)), "end"]
    steps = [
        STEP.format(name=name, value=i, following=names[i + 1]) for i, name in enumerate(names) if i + 1 < len(names)
    ]
    return LINEAR.format(steps="".join([*steps, END]))


WORKLOADS: dict[str, tuple[str, list[str]]] = {
    "bare interpreter": ("", []),
    "import flowkit": ("import flowkit\n", []),
    "hello, 3 steps": (chain(3), ["run"]),
    "chain of 20 steps": (chain(20), ["run"]),
    "foreach of 100 with a join, 2 workers": (FOREACH.format(width=100), ["run", "--max-workers", "2"]),
}


def measure(source: str, arguments: list[str], repeat: int) -> float:
    """Return the median seconds of a fresh process in a fresh folder, after one run that warms the caches."""
    times = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWKIT_")}
    for _ in range(repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "flow.py")
            with open(path, "w", encoding="utf-8") as file:
                file.write(source)
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, path, *arguments],
                cwd=folder,
                env=environment,
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    """Measure every workload and print a line for each."""
    parser = argparse.ArgumentParser(description="Time flowkit.")
    parser.add_argument("--repeat", type=int, default=5, help="how many runs the median is taken of (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, in seconds")
    options = parser.parse_args()
    results = {}
    for name, (source, arguments) in WORKLOADS.items():
        results[name] = measure(source, arguments, options.repeat)
        if not options.json:
            print(f"{name:40} {results[name] * 1000:8.1f} ms", flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
