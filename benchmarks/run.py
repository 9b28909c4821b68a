"""Measure flowkit beside Metaflow and Luigi: whole cold processes, interleaved, in one run.

    python benchmarks/run.py                        everything, and benchmarks/RESULTS.md is written anew
    python benchmarks/run.py --quick                the same in small, once each: does every workload work?
    python benchmarks/run.py --only 'foreach*'      some of it (see --list)

Needed: Python 3.10 or later and, the first time, pip's index. Times of different machines cannot be compared; ratios
can.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from fnmatch import fnmatch
from typing import Any

import growth
import machine
import measure
import report
from environments import LABELS, PACKAGES, ROOT, Environment, environments
from workloads import Program, Workload, workloads

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "RESULTS.md")
_OTHERS = "\n## Measured by commands of their own\n"
"""What is below this heading of RESULTS.md is written by hand, and stays."""
_SHORT, _LONG = 0.02, 0.1
"""Seconds between two samples of memory, in a run of its own and in one whose time counts."""


def main() -> None:
    """Measure what was asked for, and write it down."""
    options = _options()
    chosen = [item for item in workloads(quick=options.quick) if _matches(item.name, options.only)]
    grows = _matches("growth", options.only)
    if options.list:
        for item in chosen:
            print(f"{item.name:16} {item.title} [{', '.join(item.programs)}]")
        print(f"{'growth':16} {growth.__doc__.splitlines()[0] if growth.__doc__ else ''}" if grows else "", end="\n")
        return
    if options.render:
        with open(options.render, encoding="utf-8") as file:
            _write(json.load(file))
        return
    if not chosen and not grows:
        raise SystemExit(f"nothing matches {', '.join(options.only)}: see --list")
    peers = ["flowkit"] if options.skip_peers else list(PACKAGES)
    needed = [name for name in peers if name == "flowkit" or any(name in item.programs for item in chosen)]
    made = environments(needed, options.source)
    results: dict[str, Any] = {
        "quick": options.quick,
        "machine": machine.describe(),
        "versions": {name: environment.versions for name, environment in made.items()},
        "workloads": [],
        "growth": None,
        "load": os.getloadavg()[0],
    }
    began = time.monotonic()
    for item in chosen:
        results["workloads"].append(_measured(item, made, options))
    if grows:
        started = time.monotonic()
        results["growth"] = growth.measured(made["flowkit"], quick=options.quick)
        results["growth_took"] = time.monotonic() - started
    results["took"] = time.monotonic() - began
    print(f"measured in {results['took'] / 60:.1f} minutes")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    if not options.quick and not options.only and not options.skip_peers:
        _write(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN", help="workloads by name, e.g. 'client*'"
    )
    parser.add_argument("--repeat", type=int, help="timed runs of every workload, instead of its own number")
    parser.add_argument("--skip-peers", action="store_true", help="flowkit alone")
    parser.add_argument("--quick", action="store_true", help="everything in small, once each; nothing is written")
    parser.add_argument("--json", metavar="FILE", help="write every number there")
    parser.add_argument("--render", metavar="FILE", help="measure nothing: write RESULTS.md from what --json wrote")
    parser.add_argument("--source", default=ROOT, metavar="FOLDER", help="the checkout to measure (default: this one)")
    parser.add_argument("--list", action="store_true", help="say what there is to measure")
    return parser.parse_args()


def _matches(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def _write(results: dict[str, Any]) -> None:
    others = ""
    if os.path.exists(RESULTS):
        with open(RESULTS, encoding="utf-8") as file:
            _, mark, others = file.read().partition(_OTHERS)
            others = mark + others
    with open(RESULTS, "w", encoding="utf-8") as file:
        file.write(report.results(results) + others)
    with open(os.path.join(HERE, "tasks.svg"), "w", encoding="utf-8") as file:
        file.write(report.plot(results))
    print(f"written: {os.path.relpath(RESULTS)}")


def _measured(item: Workload, made: dict[str, Environment], options: argparse.Namespace) -> dict[str, Any]:
    """Measure one workload, its runners in turn."""
    began = time.monotonic()
    peers = [name for name in item.programs if name in made]
    runs = {name: 1 if options.quick else options.repeat or item.runs(name) for name in peers}
    bodies = {name: _Body(item, item.programs[name], made[name]) for name in peers}
    at_once = _SHORT if options.quick else _LONG
    try:
        for name in peers:  # a run of its own for memory, which warms the caches as well
            if runs[name] > 1:
                bodies[name].once(_SHORT, counts=False)
        for number in range(max(runs.values())):
            for name in peers:
                if number < runs[name]:
                    bodies[name].once(at_once if runs[name] == 1 else None, counts=True)
    finally:
        for body in bodies.values():
            body.close()
    found = {
        "name": item.name,
        "title": item.title,
        "budget": None if options.quick else item.budget,
        "aim": None if options.quick else item.aim,
        "megabytes": None if options.quick else item.megabytes,
        "files": None if options.quick else item.files,
        "parts": {} if options.quick else item.parts,
        "tasks": item.tasks,
        "runners": {name: bodies[name].found for name in peers},
        "took": time.monotonic() - began,
    }
    for line in report.lines(found, LABELS):
        print(line, flush=True)
    return found


class _Body:
    """One runner's runs of one workload."""

    def __init__(self, item: Workload, program: Program, environment: Environment) -> None:
        self.found: dict[str, Any] = {"wall": {}, "cpu": [], "memory": None, "files": 0, "stored": 0, "written": 0}
        self._item = item
        self._program = program
        self._environment = environment
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def once(self, every: float | None, *, counts: bool) -> None:
        """Prepare and run once; keep the time only if it counts, and memory where it was sampled."""
        folder, variables = self._prepared()
        sample = measure.run([self._environment.python, *self._program.command], folder, variables, every=every)
        if sample.memory:
            self.found["memory"] = sample.memory
        if sample.left_behind:
            self.found["left_behind"] = sample.left_behind
        if not counts:
            return
        walls = {"": sample.wall}
        if self._item.reports:
            walls = json.loads(sample.output.splitlines()[-1])
        if self._program.baseline is not None:
            walls[""] -= measure.run([self._environment.python, *self._program.baseline], folder, variables).wall
        for part, seconds in walls.items():
            self.found["wall"].setdefault(part, []).append(seconds)
        self.found["cpu"].append(sample.cpu)
        self.found["files"], self.found["stored"] = measure.stored(folder, {"flow.py", "home"})
        self.found["written"] = sample.written

    def close(self) -> None:
        """Remove what the runs left."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _prepared(self) -> tuple[str, dict[str, str]]:
        """Return a folder in which to run, and the environment variables there."""
        if self._folder is not None and self._item.once:
            return self._folder.name, self._variables(self._folder.name)
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        folder = self._folder.name
        os.mkdir(os.path.join(folder, "home"))
        if self._program.source:
            with open(os.path.join(folder, "flow.py"), "w", encoding="utf-8") as file:
                file.write(self._program.source)
        fails = self._program.prepare_fails
        variables = self._variables(folder)
        before = {**variables, "BENCH_FAIL": "1"} if fails else variables
        for command in self._program.prepare:
            measure.run([self._environment.python, *command], folder, before, fails=fails)
        return folder, variables

    def _variables(self, folder: str) -> dict[str, str]:
        return {**machine.variables(self._environment, os.path.join(folder, "home")), **self._program.environment}


if __name__ == "__main__":
    try:
        main()
    except measure.Failed as failure:
        sys.exit(str(failure))
