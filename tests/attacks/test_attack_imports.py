"""What a flow does at import: tasks start the right way, with the right random state, and none hangs."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING

import pytest
from attack_tools import SOAK, artifact, no_defect, root_of

if TYPE_CHECKING:
    from conftest import Workspace

FLOW = """
    import json
    import os
    import random

    {imported}

    from flowkit import FlowSpec, step

    class Importing(FlowSpec):
        @step
        def start(self):
            self.items = [1, 2]
            self.next(self.work, foreach="items")

        @step
        def work(self):
            self.forked = "step" not in open("/proc/self/cmdline").read().split("\\0")
            self.seen = {used}
            self.next(self.join)

        @step
        def join(self, inputs):
            self.all = [each.seen for each in inputs]
            self.forked = {{each.forked for each in inputs}}
            self.next(self.end)

        @step
        def end(self):
            pass

    if __name__ == "__main__":
        Importing()
"""

FRESH, FORKED = {False}, {True}
CASES = {
    # what is imported, what a task does with it, how tasks start, whether all tasks see the same
    "nothing": ("", "1", FORKED, True),
    "scikit-learn fit": (
        "import numpy as np\n    from sklearn.ensemble import HistGradientBoostingClassifier\n"
        "    X = np.arange(4000.0).reshape(-1, 2); y = np.arange(2000) % 2\n"
        "    HistGradientBoostingClassifier(max_iter=3).fit(X, y)",
        "float(HistGradientBoostingClassifier(max_iter=3, random_state=0).fit(X, y).score(X, y))",
        FRESH,
        True,
    ),
    "polars query": (
        "import polars as pl\n    table = pl.DataFrame({'a': list(range(1000))}); table.lazy().sum().collect()",
        "int(table.lazy().sum().collect()['a'][0])",
        FRESH,
        True,
    ),
    "torch": (
        "import torch\n    torch.ones(500, 500) @ torch.ones(500, 500)",
        "float(torch.ones(9).sum())",
        None,
        True,
    ),
    "unseeded random": ("import numpy as np", "(random.random(), float(np.random.rand()))", FORKED, False),
    "seeded random": (
        "import numpy as np\n    random.seed(7)\n    np.random.seed(7)",
        "(random.random(), float(np.random.rand()))",
        FORKED,
        True,
    ),
    "socket": ("import socket\n    line = socket.socketpair()", "line[0].fileno() > 0", FRESH, True),
    "pipe": ("ends = os.pipe()", "os.write(ends[1], b'x')", FRESH, True),
    "open file": ("file = open('data.txt', 'w+')", "file.writable()", FORKED, True),
    "waiting thread": (
        "import threading\n    event = threading.Event()\n    threading.Thread(target=event.wait, daemon=True).start()",
        "not event.is_set()",
        FRESH,
        True,
    ),
    "thread with a lock": (
        "import threading, time\n    lock = threading.Lock()\n"
        "    def hold():\n        while True:\n            with lock:\n                time.sleep(0.01)\n"
        "    threading.Thread(target=hold, daemon=True).start()",
        "lock.acquire(timeout=30)",
        FRESH,
        True,
    ),
    "thread pool": (
        "from concurrent.futures import ThreadPoolExecutor\n    pool = ThreadPoolExecutor(2)\n"
        "    list(pool.map(abs, [-1, -2]))",
        "list(pool.map(abs, [-3]))",
        FRESH,
        True,
    ),
    "process pool used in the step": (
        "import multiprocessing",
        "multiprocessing.get_context('fork').Pool(2).map(abs, [-1, -2])",
        FORKED,
        True,
    ),
    "sqlite connection": (
        "import sqlite3\n    db = sqlite3.connect(':memory:'); db.execute('create table t (a)')",
        "db.execute('select count(*) from t').fetchone()[0]",
        FORKED,
        True,
    ),
    "asyncio loop": (
        "import asyncio\n    loop = asyncio.new_event_loop()",
        "asyncio.run(asyncio.sleep(0, 'done'))",
        FRESH,
        True,
    ),
}
NEEDS = {"scikit-learn fit": "sklearn", "polars query": "polars", "torch": "torch"}


def write(workspace: Workspace, case: str) -> None:
    needed = NEEDS.get(case)
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    imported, used, _, _ = CASES[case]
    workspace.write("flow.py", FLOW.format(imported=imported, used=used))


# In the short form one fit at import is enough, that of tests/unit/test_processes.py: scikit-learn starts slowly.
@pytest.mark.parametrize("case", [case for case in CASES if SOAK or case != "scikit-learn fit"])
def test_an_import(workspace: Workspace, case: str) -> None:
    write(workspace, case)
    _, _, forked, alike = CASES[case]
    result = workspace.run("run", timeout=120)
    no_defect(result)
    assert result.returncode == 0, str(result)
    root = root_of(workspace)
    if forked is not None:
        assert artifact(root, "Importing", "1", "join", "forked") == forked, str(result)
    assert ("fresh interpreters" in result.output) == (artifact(root, "Importing", "1", "join", "forked") == FRESH)
    seen = [json.dumps(each) for each in artifact(root, "Importing", "1", "join", "all")]
    assert len(set(seen)) == (1 if alike else 2), seen


@pytest.mark.parametrize("case", ["seeded random", "unseeded random"])
def test_random_states_are_those_of_a_fresh_interpreter(workspace: Workspace, case: str) -> None:
    write(workspace, case)
    workspace.run("run", "--task-start", "fork", check=True)
    workspace.run("run", "--task-start", "spawn", check=True)
    forked, fresh = (artifact(root_of(workspace), "Importing", run, "join", "all") for run in ("1", "2"))
    assert (forked == fresh) == (case == "seeded random")
