"""What was measured as text: a line while it runs, RESULTS.md, and a plot of time against the number of tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from environments import LABELS

_COLOURS = {"flowkit": "#0b6e4f", "metaflow": "#c8553d", "luigi": "#5b6c9e"}
_HEAD = """\
# Results

Written by `python benchmarks/run.py`; what is measured and how is told in [README.md](README.md). Each number is the
median of some whole cold processes, all runners in turn on one machine in one run. Times of different machines cannot
be compared; the ratios can.
"""


def lines(found: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield a workload's results as lines for the screen."""
    yield f"{found['name']}: {found['title']}  [{found['took']:.0f} s]"
    for name, runner in found["runners"].items():
        for part, walls in runner["wall"].items():
            label = labels[name] + (f", {part}" if part else "")
            text = f"    {label:44} {_seconds(statistics.median(walls)):>9}"
            if not part:
                text += f"  CPU {_seconds(statistics.median(runner['cpu'])):>9}  {_bytes(runner['memory']):>9}"
                text += f"  {runner['files']:>7,} files  {_bytes(runner['stored']):>9} stored"
            yield text
        if runner.get("left_behind"):
            yield f"    {labels[name]} left {runner['left_behind']} processes behind"


def results(found: Mapping[str, Any]) -> str:
    """Return RESULTS.md."""
    parts = [_HEAD, "## The machine\n", *_machine(found), "\n## Time\n", *_times(found)]
    missed = list(_missed(found))
    if missed:
        parts += ["\nShort of a budget: " + "; ".join(missed) + "."]
    if found.get("growth"):
        parts += ["\n## Growth\n", "| what | measured | limit | |", "|---|---|---|---|"]
        parts += [f"| {r['claim']} | {r['value']} | {r['limit']} | {_verdict(r['holds'])} |" for r in found["growth"]]
    parts += ["\n![time against the number of tasks](tasks.svg)\n", "## Everything else\n", *_details(found)]
    return "\n".join(parts) + "\n"


def _machine(found: Mapping[str, Any]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for name, value in found["machine"].items():
        yield f"| {name} | {value} |"
    for name, versions in found["versions"].items():
        own = {key: value for key, value in versions.items() if key not in (name, "python")}
        libraries = ", ".join(f"{key} {value}" for key, value in own.items())
        yield f"| {LABELS[name]} | {versions[name]}, with {libraries} |"
    yield f"| the whole run | {found['took'] / 60:.1f} minutes, begun at a load average of {found['load']:.1f} |"


def _times(found: Mapping[str, Any]) -> Iterator[str]:
    names = list(found["versions"])
    peers = [name for name in names if name != "flowkit"]
    yield (
        "| workload | "
        + " | ".join(LABELS[name] for name in names)
        + " | "
        + "".join(f"{LABELS[name]} ÷ flowkit | " for name in peers)
        + "budget | aim | |"
    )
    yield "|---|" + "---:|" * (len(names) + len(peers) + 2) + "---|"
    for title, times, budget, aim in _rows(found):
        own = times.get("flowkit")
        cells = [_seconds(times.get(name)) for name in names]
        for name in peers:
            theirs = times.get(name)
            cells.append(f"{theirs / own:,.1f}" if theirs is not None and own else "")
        cells += [f"≤ {_seconds(budget)}" if budget else "", f"≤ {_seconds(aim)}" if aim else ""]
        verdict = ""
        if budget and own is not None:
            verdict = "aim" if aim and own <= aim else "met" if own <= budget else "**over**"
        yield f"| {title} | " + " | ".join(cells) + f" | {verdict} |"


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float], float | None, float | None]]:
    """Yield title, median seconds by runner, budget and aim of each row of the table of times."""
    for item in found["workloads"]:
        labels: dict[str, dict[str, float]] = {}
        for name, runner in item["runners"].items():
            for part, walls in runner["wall"].items():
                labels.setdefault(part, {})[name] = statistics.median(walls)
        for part, times in labels.items():
            title = f"{item['title']}: {part}" if part else item["title"]
            yield title, times, item["parts"].get(part) if part else item["budget"], None if part else item["aim"]


def _missed(found: Mapping[str, Any]) -> Iterator[str]:
    for title, times, budget, _ in _rows(found):
        if budget and times.get("flowkit", 0.0) > budget:
            yield f"{title} ({_seconds(times['flowkit'])} instead of {_seconds(budget)})"
    for item in found["workloads"]:
        own = item["runners"].get("flowkit", {})
        if item["megabytes"] and (own.get("memory") or 0) > item["megabytes"] * 1e6:
            yield f"{item['title']} ({_bytes(own['memory'])} of memory instead of {item['megabytes']} MB)"
        if item["files"] and own.get("files", 0) > item["files"]:
            yield f"{item['title']} ({own['files']:,} files instead of {item['files']:,})"
    for row in found.get("growth") or ():
        if row["holds"] is False:
            yield f"{row['claim']} ({row['value']}; limit {row['limit']})"


def _details(found: Mapping[str, Any]) -> Iterator[str]:
    yield "Memory is the peak of the whole tree of processes; stored is what lies in the folder afterwards, written"
    yield "what was given to the system to write. Seconds are median (fastest to slowest).\n"
    yield "| workload | | runs | seconds | CPU | memory | files | stored | written |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for item in found["workloads"]:
        for name, runner in item["runners"].items():
            walls = runner["wall"].get("")
            spread = (
                f"{_seconds(statistics.median(walls))} ({_seconds(min(walls))} to {_seconds(max(walls))})"
                if walls
                else ""
            )
            memory = _bytes(runner["memory"])
            if name == "flowkit" and item["megabytes"]:
                memory += f" (≤ {item['megabytes']} MB)"
            files = f"{runner['files']:,}"
            if name == "flowkit" and item["files"]:
                files += f" (≤ {item['files']:,})"
            yield (
                f"| {item['title']} | {LABELS[name]} | {len(runner['cpu'])} | {spread} | "
                f"{_seconds(statistics.median(runner['cpu']))} | {memory} | {files} | {_bytes(runner['stored'])} | "
                f"{_bytes(runner['written'])} |"
            )
    yield (
        "\nHow long measuring took, in seconds: "
        + ", ".join(
            [f"{item['name']} {item['took']:.0f}" for item in found["workloads"]]
            + ([f"growth {found['growth_took']:.0f}"] if found.get("growth") else [])
        )
        + "."
    )


def _verdict(holds: bool | None) -> str:
    return "" if holds is None else "met" if holds else "**over**"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 9.95:
        return f"{value:.1f} s" if value < 99.5 else f"{value:.0f} s"
    return f"{value:.2f} s" if value >= 0.995 else f"{value:.3f} s" if value >= 0.00995 else f"{value * 1000:.2f} ms"


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    for size, unit in ((1e7, "MB"), (1e5, "MB"), (1e3, "kB")):
        if value >= size:
            scaled = value / (1e3 if unit == "kB" else 1e6)
            return f"{scaled:,.1f} {unit}" if size == 1e5 else f"{scaled:,.0f} {unit}"
    return f"{value:.0f} B"


def plot(found: Mapping[str, Any]) -> str:
    """Return an SVG of time against the number of tasks of a foreach, both axes logarithmic."""
    series: dict[str, list[tuple[float, float]]] = {}
    for item in found["workloads"]:
        for name, runner in item["runners"].items():
            if item["tasks"] and runner["wall"].get(""):
                series.setdefault(name, []).append((item["tasks"], statistics.median(runner["wall"][""])))
    points = [point for line in series.values() for point in line]
    if not points:
        points = [(1.0, 1.0)]
    right = max(1, math.ceil(math.log10(max(x for x, _ in points))))
    low = math.floor(math.log10(min(y for _, y in points)))
    high = max(low + 1, math.ceil(math.log10(max(y for _, y in points))))
    width, height, margin = 640, 400, 70

    def place(x: float, y: float) -> tuple[float, float]:
        across = margin + math.log10(x) / right * (width - margin - 110)
        up = (math.log10(y) - low) / (high - low) * (height - margin - 40)
        return round(across, 1), round(height - margin - up, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{margin}" y="22" font-size="15">Seconds for a foreach with a join, 2 workers</text>',
    ]
    (left_x, bottom), (right_x, top) = place(1, 10**low), place(10**right, 10**high)
    for exponent in range(right + 1):
        x, _ = place(10**exponent, 10**low)
        out.append(f'<line x1="{x}" y1="{bottom}" x2="{x}" y2="{top}" stroke="#ddd"/>')
        out.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{10**exponent:,}</text>')
    for exponent in range(low, high + 1):
        _, y = place(1, 10**exponent)
        out.append(f'<line x1="{left_x}" y1="{y}" x2="{right_x}" y2="{y}" stroke="#ddd"/>')
        out.append(f'<text x="{left_x - 8}" y="{y + 4}" text-anchor="end">{10**exponent:g} s</text>')
    middle = (left_x + right_x) / 2
    out.append(f'<text x="{middle}" y="{bottom + 45}" text-anchor="middle">tasks in the foreach</text>')
    for name, line in series.items():
        places = [place(x, y) for x, y in sorted(line)]
        path = " ".join(f"{x},{y}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"/>')
        out += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{_COLOURS[name]}"/>' for x, y in places]
        x, y = places[-1]
        out.append(f'<text x="{x + 9}" y="{y + 4}" fill="{_COLOURS[name]}">{LABELS[name]}</text>')
    return "\n".join([*out, "</svg>", ""])
