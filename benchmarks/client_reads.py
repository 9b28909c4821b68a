"""Client reads, timed inside one process and printed as JSON: {what: seconds}.

python client_reads.py list FRAMEWORK RUNS     every run of the flow Bench here, and one artifact of each
python client_reads.py make RUNS               an index of so many made-up runs of the flow Bench in .flowkit
python client_reads.py pages                   the first page of those, by several filters
python client_reads.py copy RUNS               copies of the one Metaflow run here, until there are so many
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

PAGE = 50
"""Runs on a page."""
_NOW = 1_700_000_000.0
_APART = 60.0
"""Seconds between two made-up runs."""


def list_runs(framework: str, count: int) -> dict[str, float]:
    """Read one artifact of every run."""
    client = importlib.import_module(framework)
    client.namespace(None)
    began = time.perf_counter()
    values = [run["start"].task["x"].data for run in client.Flow("Bench").runs()]
    seconds = time.perf_counter() - began
    assert values == [1] * count, f"{len(values)} runs"
    return {"": seconds}


def make(count: int) -> None:
    """Write an index of made-up runs; nothing is listed but the index, so there is nothing else."""
    from flowkit.datastore.root import make_root
    from flowkit.metadata.records import RunRecord
    from flowkit.metadata.sqlite import SqliteMetadata

    store = SqliteMetadata(make_root(".flowkit"))
    states: tuple[Any, ...] = ("succeeded", "succeeded", "succeeded", "failed", "cancelled")
    for first in range(0, count, 5000):
        records = []
        for number in range(first, min(first + 5000, count)):
            tags = (f"team:{number % 7}", f"batch:{number // 1000}", *(["rare"] if number % 1000 == 500 else []))
            created = _NOW + number * _APART
            user = f"user{number % 20}"
            state = states[number % len(states)]
            records.append(
                RunRecord(
                    "Bench", str(number + 1), user, state, created, None, created + 5, None, tags, (f"user:{user}",)
                )
            )
        store.write(records)
    store.settle()
    store.close()


def pages() -> dict[str, float]:
    """Read the first page of runs by several filters, and all of them, through an index that is open."""
    from flowkit import Flow, namespace

    namespace(None)
    flow = Flow("Bench")
    count = int(flow.latest_run.id)
    found: dict[str, float] = {}

    def timed(label: str, read: Callable[[], Any], expected: int) -> None:
        began = time.perf_counter()
        size = len([(run.id, run.successful) for run in read()])
        found[label] = time.perf_counter() - began
        assert size == expected, f"{label}: {size} runs instead of {expected}"

    late = _NOW + (count - 500) * _APART
    in_middle = _NOW + count / 2 * _APART
    timed("first page", lambda: flow.runs(limit=PAGE), PAGE)
    timed("by a common tag", lambda: flow.runs("team:3", limit=PAGE), PAGE)
    timed("by a tag of one run in 1,000", lambda: flow.runs("rare", limit=PAGE), min(PAGE, count // 1000))
    timed("by a tag that none has", lambda: flow.runs("none", limit=PAGE), 0)
    timed("by status", lambda: flow.runs(status="failed", limit=PAGE), PAGE)
    timed("by user", lambda: flow.runs(user="user7", limit=PAGE), PAGE)
    timed("the last ones since a time", lambda: flow.runs(since=late, limit=PAGE), PAGE)
    timed("in the middle", lambda: flow.runs(until=in_middle, status="failed", limit=PAGE), PAGE)
    several = min(PAGE, count // 140)
    timed("by tag, user, status", lambda: flow.runs("team:3", user="user7", status="succeeded", limit=PAGE), several)
    timed("the latest successful one", lambda: [flow.latest_successful_run], 1)
    timed("500 runs in a loop that stops", lambda: islice(flow.runs(), 500), 500)
    timed("all of them", lambda: flow.runs(), count)
    return found


def first_page() -> dict[str, float]:
    """Read the first page with nothing imported or opened before."""
    began = time.perf_counter()
    from flowkit import Flow, namespace

    namespace(None)
    size = len([(run.id, run.successful) for run in Flow("Bench").runs(limit=PAGE)])
    seconds = time.perf_counter() - began
    assert size == PAGE
    return {"first page, imports and all": seconds}


def copy_metaflow(count: int) -> None:
    """Copy the one run of Metaflow's that is here under other numbers: 200 real ones would take three minutes."""
    root = os.path.join(".metaflow", "Bench")
    (origin,) = [name for name in os.listdir(root) if name.isdigit()]
    for extra in range(1, count):
        run = str(int(origin) + extra)
        shutil.copytree(os.path.join(root, origin), os.path.join(root, run))
        for folder, _, names in os.walk(os.path.join(root, run)):
            for name in names:
                if name.endswith(".json") and "_meta" in folder:
                    path = os.path.join(folder, name)
                    with open(path, encoding="utf-8") as file:
                        text = file.read()
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(text.replace(origin, run))


def main(what: str, *arguments: str) -> None:
    """Do one of the above."""
    if what == "list":
        print(json.dumps(list_runs(arguments[0], int(arguments[1]))))
    elif what == "make":
        make(int(arguments[0]))
    elif what == "copy":
        copy_metaflow(int(arguments[0]))
    elif what == "pages":
        print(json.dumps({**first_page(), **pages()}))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
