"""How costs grow: time with the number of tasks, memory with it and with the size of an array, reads of a join.

    python benchmarks/growth.py [--quick]

Nothing here compares with anybody else; each line holds what was measured against what the design promises.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from typing import Any

import flows
import machine
import measure
from environments import Environment, environments

_WITHIN = 1.15
"""Cost of a task in the widest foreach, against that in the narrowest."""
_RUNTIME_MEMORY = 150
"""MB of the runtime at the widest foreach."""
_ARRAY_MEMORY = 1.25
"""Peak memory of a task that writes an array, against the array's size."""
_READ_MEMORY = 0.01
"""Memory of its own that reading the array may cost, against the array's size."""

_WATCH = """
import atexit, json, os, sys

opened = []
runtime = os.getpid()


def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("manifest.json"):
        opened.append(os.path.relpath(arguments[0]))


def note(role):
    if role == "join" or os.getpid() == runtime:
        with open(f"opened-{role}", "w") as file:
            json.dump(opened, file)


sys.addaudithook(watch)
atexit.register(note, "runtime")
"""

_MEMORY = """
import atexit

import numpy as np
from flowkit import FlowSpec, step

COUNT = {megabytes} * 131072


def memory(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def note(name, value):
    with open(f"memory-{{name}}", "w") as file:
        file.write(str(value))


def note_peak(name):
    note(name, memory("VmHWM:"))


class Bench(FlowSpec):
    @step
    def start(self):
        np.ones(10).sum()
        self.small = 1
        atexit.register(note_peak, "without")
        self.next(self.make)

    @step
    def make(self):
        array = np.empty(COUNT)
        array.fill(1.5)
        self.x = array
        atexit.register(note_peak, "with")
        self.next(self.end)

    @step
    def end(self):
        np.ones(10).sum()
        before = memory("RssAnon:")
        assert self.x.sum() == COUNT * 1.5
        note("read", memory("RssAnon:") - before)
        self.x[0] = 1
        note("changed", memory("RssAnon:") - before)


if __name__ == "__main__":
    Bench()
"""


def measured(environment: Environment, *, quick: bool) -> list[dict[str, Any]]:
    """Return what was measured, as rows of ``claim``, ``value``, ``limit`` and ``holds``."""
    found = [*_time_and_memory(environment, quick), *_reads(environment, quick), *_array(environment, quick)]
    for row in found:
        print(line(row), flush=True)
    return found


def line(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    verdict = "" if row["holds"] is None else " ok" if row["holds"] else " NOT MET"
    return f"{row['claim']}: {row['value']} (limit: {row['limit']}){verdict}"


def _row(claim: str, value: str, limit: str, holds: bool | None) -> dict[str, Any]:
    return {"claim": claim, "value": value, "limit": limit, "holds": holds}


def _run(environment: Environment, source: str, folder: str, every: float | None = None) -> measure.Sample:
    home = os.path.join(folder, "home")
    os.makedirs(home, exist_ok=True)
    with open(os.path.join(folder, "flow.py"), "w", encoding="utf-8") as file:
        file.write(source)
    command = [environment.python, "flow.py", "run", "--max-workers", "2"]
    return measure.run(command, folder, machine.variables(environment, home), every=every)


def _time_and_memory(environment: Environment, quick: bool) -> list[dict[str, Any]]:
    """Measure a foreach of growing width; what one task costs is what it adds to a foreach of one."""
    widths = (20, 100, 400) if quick else (100, 1_000, 10_000)
    times: dict[int, measure.Sample] = {}
    for width in (1, *widths):
        samples = []
        for _ in range(1 if quick or width == widths[-1] else 5):
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                every = 0.1 if width == widths[-1] else None
                samples.append(_run(environment, flows.foreach("flowkit", width, say=True), folder, every))
        times[width] = sorted(samples, key=lambda sample: sample.wall)[len(samples) // 2]
    rows = []
    for what in ("wall", "cpu"):
        cost = {width: (getattr(times[width], what) - getattr(times[1], what)) / width * 1000 for width in widths}
        ratio = cost[widths[-1]] / cost[widths[0]]
        each = ", ".join(f"{cost[width]:.2f} ms at {width:,}" for width in widths)
        rows.append(
            _row(
                f"{'time' if what == 'wall' else 'CPU'} per task, foreach of {widths[0]:,} to {widths[-1]:,}",
                f"{each}: {ratio:.2f} times",
                f"≤ {_WITHIN:g} times",
                None if quick else ratio <= _WITHIN,
            )
        )
    widest = times[widths[-1]]
    first, tree = (widest.first_memory or 0) / 1e6, (widest.memory or 0) / 1e6
    rows.append(
        _row(
            f"peak memory of the runtime, foreach of {widths[-1]:,}",
            f"{first:.0f} MB (all processes: {tree:.0f} MB)",
            f"≤ {_RUNTIME_MEMORY} MB",
            first <= _RUNTIME_MEMORY,
        )
    )
    return rows


def _reads(environment: Environment, quick: bool) -> list[dict[str, Any]]:
    """Count the manifests that a join and the runtime open, by the interpreter's own audit events."""
    width = 400 if quick else 10_000
    join = "self.total = sum("
    source = _WATCH + flows.foreach("flowkit", width).replace(join, f'atexit.register(note, "join")\n        {join}')
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        _run(environment, source, folder)
        for role, limit in (("join", width), ("runtime", None)):
            with open(os.path.join(folder, f"opened-{role}"), encoding="utf-8") as file:
                opened = [path for path in json.load(file) if "/work/" in path]
            value = f"{len(opened):,} opened, {len(set(opened)):,} different ones"
            rows.append(
                _row(
                    f"manifests of {width:,} tasks read by {'their join' if limit else 'the runtime'}",
                    value,
                    "each once" if limit else "none twice",
                    len(opened) == limit if limit else len(opened) == len(set(opened)),
                )
            )
    return rows


def _array(environment: Environment, quick: bool) -> list[dict[str, Any]]:
    """Measure the memory of tasks that write and read a contiguous array."""
    megabytes = 64 if quick else 512
    size = megabytes * 2**20
    found: dict[str, list[float]] = {}
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            _run(environment, _MEMORY.format(megabytes=megabytes), folder)
            for name in ("without", "with", "read", "changed"):
                with open(os.path.join(folder, f"memory-{name}"), encoding="utf-8") as file:
                    found.setdefault(name, []).append(float(file.read()))
    without, peak, read, changed = (statistics.median(found[name]) for name in ("without", "with", "read", "changed"))
    factor = (peak - without) / size
    return [
        _row(
            f"peak memory that writing an array of {megabytes} MB adds to a task",
            f"{(peak - without) / 2**20:.0f} MB: {factor:.2f} times its size",
            f"< {_ARRAY_MEMORY:g} times",
            factor < _ARRAY_MEMORY,
        ),
        *(
            _row(
                f"memory of its own that a task needs for {what}",
                f"{value / 2**20:.1f} MB",
                f"≤ {_READ_MEMORY:.0%} of its size",
                value <= size * _READ_MEMORY,
            )
            for what, value in (("summing that array", read), ("changing one number in it", changed))
        ),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="in small, once each")
    options = parser.parse_args()
    measured(environments(["flowkit"])["flowkit"], quick=options.quick)


if __name__ == "__main__":
    main()
