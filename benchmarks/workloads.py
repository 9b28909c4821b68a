"""What is measured: each workload with its program for every runner that has one, and its budget."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import flows
import luigi_programs as luigi

HERE = os.path.dirname(os.path.abspath(__file__))
BOTH = ("flowkit", "metaflow")


@dataclass(frozen=True)
class Program:
    """How one runner does a workload.

    Parameters
    ----------
    command : list of str
        Arguments of the interpreter; ``flow.py`` is `source`.
    source : str
        The content of ``flow.py``, if there is one.
    prepare : list of list of str
        Commands that go before and are not measured.
    prepare_fails : bool
        The commands that go before are expected to fail (they run with BENCH_FAIL set).
    baseline : list of str, optional
        A command whose time is taken off.
    environment : dict of str to str
        Further variables.
    """

    command: list[str]
    source: str = ""
    prepare: list[list[str]] = field(default_factory=list)
    prepare_fails: bool = False
    baseline: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """One thing to do, for whoever can.

    Parameters
    ----------
    name, title : str
        For ``--only``, and for the tables.
    programs : dict of str to Program
        By runner.
    budget, aim : float, optional
        Seconds.
    parts : dict of str to float
        Budgets of the parts that a reporting program names.
    megabytes, files : int, optional
        Budgets.
    repeat : int
        Timed runs, of which the median counts.
    fewer : dict of str to int
        Timed runs of those that take long.
    reports : bool
        The program prints its own seconds as JSON: ``{part: seconds}``, with "" for the whole.
    once : bool
        Prepared once and then only read, run after run.
    tasks : int, optional
        Marks a point of the plot of time against the number of tasks.
    """

    name: str
    title: str
    programs: dict[str, Program]
    budget: float | None = None
    aim: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    megabytes: int | None = None
    files: int | None = None
    repeat: int = 5
    fewer: dict[str, int] = field(default_factory=dict)
    reports: bool = False
    once: bool = False
    tasks: int | None = None

    def runs(self, peer: str) -> int:
        """Return how many timed runs a runner gets."""
        return min(self.repeat, self.fewer.get(peer, self.repeat))


def workloads(*, quick: bool) -> list[Workload]:
    """Return everything that is measured; small and once each if it is to be quick."""
    found = [*_start_up(quick), *_rows(quick), *_foreach(quick), *_data(quick), *_reads(quick), *_structure(quick)]
    found += _durable(quick)
    return found


def _script(name: str, *arguments: str) -> list[str]:
    return [os.path.join(HERE, name), *arguments]


def _run(source: str, *options: str) -> Program:
    return Program(["flow.py", "run", *options], source)


def _start_up(quick: bool) -> list[Workload]:
    return [
        Workload(
            "import",
            "import, above a bare interpreter",
            {name: Program(["-c", f"import {name}"], baseline=["-c", ""]) for name in (*BOTH, "luigi")},
            budget=0.04,
            aim=0.03,
            repeat=15,
        ),
        Workload(
            "hello",
            "hello, 3 steps",
            {**{name: _run(flows.chain(name, 3)) for name in BOTH}, "luigi": Program(["flow.py"], luigi.chain(3))},
            budget=0.15,
            aim=0.10,
            repeat=9,
            fewer={"metaflow": 5},
        ),
        *(
            Workload(
                f"hello-{command}",
                f"`{command}` of hello",
                {name: Program(["flow.py", command], flows.chain(name, 3)) for name in BOTH},
                repeat=7,
                fewer={"metaflow": 3},
            )
            for command in ("show", "check")
        ),
        Workload(
            "heavy-imports",
            "hello, with pandas and scikit-learn imported at its top",
            {name: _run(flows.chain(name, 3, imports="import pandas\nimport sklearn.ensemble")) for name in BOTH},
            fewer={"metaflow": 3},
        ),
    ]


def _rows(quick: bool) -> list[Workload]:
    chains = [
        Workload(
            f"chain-{length}",
            f"chain of {length} steps",
            {
                **{name: _run(flows.chain(name, length)) for name in BOTH},
                "luigi": Program(["flow.py"], luigi.chain(length)),
            },
            budget=0.25 if length == 20 else None,
            aim=0.18 if length == 20 else None,
            repeat=5 if length == 20 else 3,
            fewer={"metaflow": 3 if length == 20 else 1},
        )
        for length in (20, 40 if quick else 200)
    ]
    resumed = {
        name: Program(
            ["flow.py", "resume"], flows.chain(name, 20, fails_at=15), [["flow.py", "run"]], prepare_fails=True
        )
        for name in BOTH
    }
    resumed["luigi"] = Program(["flow.py"], luigi.chain(20, fails_at=15), [["flow.py"]], prepare_fails=True)
    return [
        *chains,
        Workload("resume", "resume at step 15 of 20", resumed, budget=0.2, aim=0.15, fewer={"metaflow": 3}),
    ]


def _foreach(quick: bool) -> list[Workload]:
    found = []
    budgets = {100: (0.5, 0.35), 1000: (4.0, 2.0)}
    for width in (1, 10, 20, 50) if quick else (1, 10, 100, 1000):
        budget, aim = budgets.get(width, (None, None))
        options = ("--max-workers", "2", "--max-num-splits", "10000")
        found.append(
            Workload(
                f"foreach-{width}",
                f"foreach of {width:,} with a join, 2 workers",
                {
                    **{name: _run(flows.foreach(name, width), *options) for name in BOTH},
                    "luigi": Program(["flow.py"], luigi.foreach(width)),
                },
                budget=budget,
                aim=aim,
                files=2500 if width == 1000 else None,
                repeat=3 if width == 1000 else 5,
                fewer={"metaflow": 1 if width == 1000 else 2},
                tasks=width,
            )
        )
    width = 200 if quick else 10_000
    say = _run(flows.foreach("flowkit", width, say=True), "--max-workers", "2")
    title = f"foreach of {width:,} with a join, 2 workers, a line printed by each"
    found.append(Workload(f"foreach-{width}", title, {"flowkit": say}, repeat=1, tasks=width))
    side = 4 if quick else 30
    inner = {name: _run(flows.nested(name, side), "--max-workers", "2") for name in BOTH}
    title = f"foreach of {side} in a foreach of {side}, 2 workers"
    found.append(Workload("nested", title, inner, repeat=3, fewer={"metaflow": 1}))
    return found


def _data(quick: bool) -> list[Workload]:
    megabytes, rows, count = (32, 200_000, 100) if quick else (256, 5_000_000, 1_000)
    size = f"{rows / 1e6:g} M rows"
    return [
        Workload(
            "array",
            f"{megabytes} MB random array: made in one step, summed in the next",
            {
                **{name: _run(flows.random_array(name, megabytes)) for name in BOTH},
                "luigi": Program(["flow.py"], luigi.random_array(megabytes)),
            },
            budget=0.8,
            aim=0.6,
            megabytes=350,
            fewer={"metaflow": 2},
        ),
        Workload(
            "compressible",
            f"{megabytes} MB compressible array",
            {
                **{name: _run(flows.compressible_array(name, megabytes)) for name in BOTH},
                "luigi": Program(["flow.py"], luigi.compressible_array(megabytes)),
            },
            budget=0.8,
            aim=0.6,
            fewer={"metaflow": 3},
        ),
        Workload(
            "frame",
            f"DataFrame of {size} (3 float, 1 int, 1 str): made, written, read, summed",
            {
                **{name: _run(flows.frame(name, rows)) for name in BOTH},
                "luigi": Program(["flow.py"], luigi.frame(rows)),
            },
            budget=2.6,
            aim=2.2,
            fewer={"metaflow": 2},
        ),
        Workload(
            "artifacts",
            f"{count:,} artifacts in one step",
            {name: _run(flows.many_artifacts(name, count)) for name in BOTH},
            fewer={"metaflow": 3},
        ),
        Workload(
            "string-frame",
            f"table of strings, {rows // 5:,} rows, written and read in process",
            {"flowkit": Program(_script("string_frame.py", str(rows // 5)))},
            repeat=1,
            reports=True,
        ),
    ]


def _reads(quick: bool) -> list[Workload]:
    runs = 10 if quick else 200
    scales = (2_000, 20_000) if quick else (10_000, 100_000)
    listing = {
        "flowkit": Program(
            _script("client_reads.py", "list", "flowkit", str(runs)),
            flows.chain("flowkit", 3),
            [["flow.py", "run"]] * runs,
        ),
        "metaflow": Program(
            _script("client_reads.py", "list", "metaflow", str(runs)),
            flows.chain("metaflow", 3),
            [["flow.py", "run"], _script("client_reads.py", "copy", str(runs))],
        ),
    }
    return [
        Workload(
            "client",
            f"client: list {runs} runs and read one artifact of each, in process",
            listing,
            budget=0.1,
            aim=0.05,
            reports=True,
            once=True,
        ),
        *(
            Workload(
                f"client-{count}",
                f"client, {count:,} runs",
                {
                    "flowkit": Program(
                        _script("client_reads.py", "pages"), "", [_script("client_reads.py", "make", str(count))]
                    )
                },
                parts={"first page, imports and all": 0.05, "first page": 0.05} if count == 10_000 else {},
                reports=True,
                once=True,
            )
            for count in scales
        ),
    ]


def _structure(quick: bool) -> list[Workload]:
    found = []
    for count, peers in ((10, BOTH), (12 if quick else 16, BOTH), (64, ("flowkit",))):
        found.append(
            Workload(
                f"splits-{count}",
                f"`check` of {count} two-way splits in a row",
                {name: Program(["flow.py", "check"], flows.splits(name, count)) for name in peers},
                budget=0.3 if count == 64 else None,
                aim=0.2 if count == 64 else None,
                fewer={"metaflow": 1 if count == 16 else 3},
            )
        )
    width = 50_000 if quick else 1_000_000
    found.append(
        Workload(
            "scheduler",
            f"scheduler alone, foreach of {width:,}, simulated",
            {"flowkit": Program(_script("scheduler_scale.py", str(width), "--json"))},
            budget=20.0,
            aim=10.0,
            megabytes=2000,
            repeat=3,
            reports=True,
        )
    )
    return found


def _durable(quick: bool) -> list[Workload]:
    """Return the cost of FLOWKIT_DURABLE=1, to be read beside the same workloads without it."""
    width, megabytes = (20, 32) if quick else (100, 256)
    sources = {
        "hello": ("hello, 3 steps", flows.chain("flowkit", 3), []),
        "foreach": (f"foreach of {width}", flows.foreach("flowkit", width), ["--max-workers", "2"]),
        "array": (f"{megabytes} MB random array", flows.random_array("flowkit", megabytes), []),
    }
    durable = {"FLOWKIT_DURABLE": "1"}
    return [
        Workload(
            f"durable-{name}",
            f"{title}, with FLOWKIT_DURABLE=1",
            {"flowkit": Program(["flow.py", "run", *options], source, environment=durable)},
            repeat=3,
        )
        for name, (title, source, options) in sources.items()
    ]
