"""When not to fork, random state, what dead runs leave; each in an interpreter of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from flowkit.metadata.liveness import boot_id, process_start
from flowkit.runtime.processes import REGISTER_FOLDER, Register, children_of, clear_leftovers, signal_group

WHY = """
import os, sys
from flowkit.runtime.processes import why_not_fork

def verdict():
    # The way of the executor: fork, then look.
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return why_not_fork()
"""


def python(source):
    """Run a program in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "",
        "import json, threading, concurrent.futures, multiprocessing",
        "import numpy; numpy.ones((300, 300)) @ numpy.ones((300, 300))",
        "import pandas; pandas.DataFrame({'a': [1, 2]}).sum()",
        "file = open(os.devnull)",
        "thread = __import__('threading').Thread(target=print); thread.start(); thread.join()",
    ],
)
def test_ordinary_imports_are_forked(imports):
    assert python(f"{WHY}\n{imports}\nprint(verdict())").splitlines()[-1] == "None"


@pytest.mark.parametrize(
    ("imports", "reason"),
    [
        ("import socket; kept = socket.socket()", "a socket is open"),
        ("kept = os.pipe()", "a pipe is open"),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "a native thread",
        ),
        ("import types; sys.modules['tensorflow'] = types.ModuleType('tensorflow')", "TensorFlow"),
    ],
)
def test_what_does_not_survive_a_fork_is_seen(imports, reason):
    assert reason in python(f"{WHY}\n{imports}\nprint(verdict())")


def test_a_fit_at_import_starts_tasks_fresh_and_none_hangs(tmp_path):
    pytest.importorskip("sklearn")
    program = tmp_path / "fit.py"
    program.write_text(FIT)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == 0
    # With one processor libgomp starts no thread, and forking is safe.
    if len(os.sched_getaffinity(0)) > 1:
        assert "native thread" in told["notices"][0]


FIT = """
import json, os, select, sys
import numpy
from sklearn.ensemble import HistGradientBoostingClassifier
from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import Launch
from flowkit.runtime.executor import Ended
from flowkit.runtime.local import LocalExecutor

def fit():
    random = numpy.random.default_rng(0)
    table = random.normal(size=(2000, 5))
    HistGradientBoostingClassifier(max_iter=5).fit(table, table[:, 0] > 0)

fit()
if sys.argv[1] == "--task":
    sys.exit(0)

def target(config, launch, node):
    fit()
    return 0

executor = LocalExecutor.prepare(target, lambda launch, node: [sys.executable, __file__, "--task"])
executor.configure({"run_folder": sys.argv[1] + "/root/flows/Fit/1"})
executor.submit([Launch("fit", Coordinates())])
status = None
while status is None:
    select.select(executor.file_descriptors(), (), ())
    for event in executor.poll():
        if isinstance(event, Ended):
            status = event.exit_status
executor.close()
print(json.dumps({"status": status, "notices": executor.notices}))
"""

DRAW = """
import os, random, sys
{before}
state = random.getstate()
{imports}
from flowkit.runtime.seeds import Seeds

def draw():
    values = [random.random()]
    if "numpy" in sys.modules:
        values.append(float(sys.modules["numpy"].random.random()))
    return values

seeds = Seeds(state)
for _ in range(2):
    if os.fork() == 0:
        seeds.renew()
        print(*draw(), flush=True)
        os._exit(0)
    os.wait()
print(*draw())
"""


def drawn(imports, before=""):
    lines = python(DRAW.format(imports=imports, before=before)).splitlines()
    return [line.split() for line in lines]


def test_unseeded_generators_are_renewed():
    first, second, parent = drawn("import numpy; numpy.random.random(1000); [random.random() for _ in range(5000)]")
    for values in zip(first, second, parent, strict=True):
        assert len(set(values)) == 3


def test_seeded_generators_are_kept():
    first, second, parent = drawn("import numpy; numpy.random.seed(7); random.seed(7)")
    assert first == second == parent
    assert drawn("random.seed(7)")[0] == [first[0]]


def test_each_generator_is_judged_by_itself():
    first, second, parent = drawn("import numpy; numpy.random.seed(7)")
    assert first[1] == second[1] == parent[1]
    assert len({first[0], second[0], parent[0]}) == 3


def test_signals_reach_the_whole_group():
    leader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
        ],
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (children := children_of(leader.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert signal_group(leader.pid, signal.SIGKILL)
    leader.wait(timeout=30)
    while process_start(children[0]) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process_start(children[0]) is None


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def register(root, owner, start, boot, noted):
    """Write the register of a run whose owner is gone."""
    folder = root / REGISTER_FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / "1-1"
    path.write_text(f"{owner} {start} {boot}\n" + "".join(f"{pid} {when} {boot}\n" for pid, when in noted))
    return path


def test_only_the_processes_of_dead_runs_of_this_machine_are_cleared(tmp_path, sleeper):
    start = process_start(sleeper.pid)
    alive = register(tmp_path, os.getpid(), process_start(os.getpid()), boot_id(), [(sleeper.pid, start)])
    assert clear_leftovers(str(tmp_path)) == 0
    assert alive.exists()
    other_boot = register(tmp_path, 1, 1, "another-boot/pid:[1]", [(sleeper.pid, start)])
    assert clear_leftovers(str(tmp_path)) == 0
    assert not other_boot.exists()
    later = register(tmp_path, os.getpid(), 1, boot_id(), [(sleeper.pid, start - 100_000)])
    assert clear_leftovers(str(tmp_path)) == 0
    assert not later.exists()
    assert sleeper.poll() is None
    register(tmp_path, os.getpid(), 1, boot_id(), [(sleeper.pid, start)])
    assert clear_leftovers(str(tmp_path)) == 1
    assert sleeper.wait(timeout=30) == -signal.SIGKILL


def test_a_damaged_register_kills_nobody(tmp_path, sleeper):
    (tmp_path / REGISTER_FOLDER).mkdir()
    for index, text in enumerate((b"", b"\xff\xfe\n", b"1 2\n", f"x {sleeper.pid} 0\n-1 -1 -1\n".encode())):
        (tmp_path / REGISTER_FOLDER / str(index)).write_bytes(text)
    assert clear_leftovers(str(tmp_path)) == 0
    assert sleeper.poll() is None
    assert clear_leftovers(str(tmp_path / "missing")) == 0


def test_a_register_in_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / REGISTER_FOLDER).write_text("a file")
    assert Register.create(str(tmp_path)) is None
