"""The benchmarks' programs are whole, and their report says what was measured; nothing is timed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BENCHMARKS = os.path.join(os.path.dirname(__file__), "..", "..", "benchmarks")

COMPILE = """
from workloads import workloads
for item in workloads(quick={quick}):
    for name, program in item.programs.items():
        compile(program.source, f"{{item.name}}, {{name}}", "exec")
        assert name == "luigi" or not program.source or f"from {{name}} import" in program.source
"""

RENDER = """
import json, sys
import report
print(report.results(json.loads(sys.argv[1])))
print(report.plot(json.loads(sys.argv[1])))
"""


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=BENCHMARKS,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("quick", [True, False])
def test_every_program_compiles(quick: bool) -> None:
    run(COMPILE.format(quick=quick))


def test_the_report_holds_times_against_budgets() -> None:
    def runner(seconds: float) -> dict[str, object]:
        return {"wall": {"": [seconds]}, "cpu": [1.0], "memory": 10**8, "files": 3, "stored": 5, "written": 7}

    item = {"name": "hello", "title": "hello, 3 steps", "megabytes": None, "files": None, "parts": {}, "took": 1.0}
    item |= {"budget": 1.0, "aim": 0.5, "tasks": 3, "runners": {"flowkit": runner(2.0), "metaflow": runner(9.0)}}
    found = {
        "machine": {"CPU": "one"},
        "versions": {"flowkit": {"flowkit": "1", "python": "3"}, "metaflow": {"metaflow": "2", "python": "3"}},
        "workloads": [item],
        "growth": [{"claim": "all is well", "value": "2", "limit": "1", "holds": False}],
        "growth_took": 1.0,
        "took": 60.0,
        "load": 0.5,
    }
    text = run(RENDER, json.dumps(found))
    assert "| hello, 3 steps | 2.00 s | 9.00 s | 4.5 | ≤ 1.00 s | ≤ 0.500 s | **over** |" in text
    assert "Short of a budget: hello, 3 steps (2.00 s instead of 1.00 s); all is well (2; limit 1)." in text
    assert "</svg>" in text
