"""What a wide foreach on AWS Batch costs the laptop that launched it: flowkit beside Metaflow, on one service.

    python benchmarks/batch_clients.py --metaflow-python PATH [--tasks 200] [--max-workers 200] [--hold 60]

Each client runs the same flow by its own command, with its artifacts on S3. S3 and Batch are moto's server (in a
process of its own, over HTTP on 127.0.0.1), which keeps the jobs and executes none: whatever is submitted is said to
run. So both do what they do while they wait for jobs that take long. Once all jobs run (as many as the client runs at
once), things are left so for `--hold` seconds; then the client is killed.

Processes are those of the client, memory is the sum of their proportional set sizes (a page that several share counts
once), processor time is theirs, calls are the requests that reached the service. PATH is the interpreter of an
environment with Metaflow and boto3; flowkit is that of the interpreter which runs this (it needs boto3 and moto[server]
too). `--max-workers` is given to Metaflow, whose default is 16; flowkit gets the number of tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import adopt_orphans, below, field

TESTS = Path(__file__).resolve().parent.parent / "tests" / "plugins" / "batch"
BUCKET, QUEUE = "flowkit-batch", "flowkit-queue"
ROLE = "arn:aws:iam::123456789012:role/flowkit-job"
KEPT_FREE = 4 * 1024**3
"""Bytes of memory that are left to the machine: a client that needs more is killed at once."""
TICKS = os.sysconf("SC_CLK_TCK")
FLOW = """
from {package} import FlowSpec, batch, step


class Wide(FlowSpec):
    @step
    def start(self):
        self.items = list(range({tasks}))
        self.next(self.train, foreach="items")

    @batch(cpu=1, memory=4096, image="python:3.11")
    @step
    def train(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    Wide()
"""


# -- the service ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Be the service until the input ends; answer each line of it with the calls so far and the jobs that run."""
    sys.path.insert(0, str(TESTS))
    import logging

    from batch_service import opened
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    calls: Counter[str] = Counter()
    answer = DomainDispatcherApplication.__call__

    def counted(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        signed_for = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split("/")
        calls[signed_for[3] if len(signed_for) > 3 else "unsigned"] += 1
        return answer(self, environ, start_response)

    DomainDispatcherApplication.__call__ = counted
    with opened() as service:
        service.hold = True
        stop = threading.Event()
        thread = threading.Thread(target=_say_they_run, args=(service, stop))
        thread.start()
        calls.clear()
        service.calls.clear()
        print(service.url, flush=True)
        for _ in sys.stdin:
            with service._lock:
                every = list(service.backend._jobs.values())
                running = sum(job.status == "RUNNING" and not job._child_jobs for job in every)
            told = {"batch": calls["batch"], "s3": calls["s3"], **service.calls}
            print(json.dumps({"running": running, "calls": told}), flush=True)
        stop.set()
        thread.join()


def _say_they_run(service: Any, stop: threading.Event) -> None:
    from datetime import datetime

    while not stop.wait(0.2):
        with service._lock:
            for name, job in list(service.backend._jobs.items()):
                if job._child_jobs:
                    service._update_parent(name)
                elif job.status == "RUNNABLE":
                    job.status, job.job_started_at = "RUNNING", datetime.now()


class Service:
    """The service, from outside.

    Attributes
    ----------
    url : str
        Its endpoint.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = self._read()

    def ask(self) -> dict[str, Any]:
        """Return how many jobs run (``running``) and how often which calls came (``calls``)."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._read())
        return told

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit("the service did not start, or ended")
        return line


@contextmanager
def served() -> Iterator[Service]:
    """Have a new service in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Service(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


# -- the clients ------------------------------------------------------------------------------------------------------


@dataclass
class Client:
    """A flow runner, and how many tasks it has under way at once."""

    package: str
    python: str
    workers: int
    environment: dict[str, str]


def flowkit(tasks: int) -> Client:
    """Return flowkit as a client."""
    environment = {
        "FLOWKIT_DATASTORE": f"s3://{BUCKET}/flowkit",
        "FLOWKIT_BATCH_QUEUE": QUEUE,
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    return Client("flowkit", sys.executable, tasks, environment)


def metaflow(python: str, workers: int) -> Client:
    """Return Metaflow as a client."""
    environment = {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/metaflow",
        "METAFLOW_DEFAULT_METADATA": "local",
        "METAFLOW_BATCH_JOB_QUEUE": QUEUE,
        "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": ROLE,
        "METAFLOW_BATCH_CONTAINER_IMAGE": "python:3.11",
        "METAFLOW_USER": "bench",
    }
    return Client("metaflow", python, workers, environment)


@dataclass
class Looks:
    """The peaks of what was seen of a client's processes."""

    processes: int = 0
    memory: int = 0
    largest: int = 0

    def look(self, leader: int) -> int:
        """Look once more, and return the number of processes there are."""
        every = [leader, *below(leader)]
        sizes = [field(f"/proc/{pid}/smaps_rollup", b"Pss:") for pid in every]
        sizes = [size for size in sizes if size]
        self.processes = max(self.processes, len(sizes))
        self.memory = max(self.memory, sum(sizes))
        self.largest = max([self.largest, *sizes])
        return len(sizes)


def processor_seconds(leader: int) -> float:
    """Return what the processes of a client, and those that they have waited for, have used so far."""
    ticks = 0
    for pid in [leader, *below(leader)]:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended; its parent tells
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def measure(client: Client, tasks: int, hold: float, limit: float, say: Any) -> dict[str, Any]:
    """Run a client until its jobs have all run for so many seconds, kill it, and return what it cost."""
    expected = min(tasks, client.workers)
    with tempfile.TemporaryDirectory() as folder, served() as service:
        Path(folder, "flow.py").write_text(FLOW.format(package=client.package, tasks=tasks))
        options = ["--max-workers", str(client.workers), "--max-num-splits", str(tasks)]
        with open(Path(folder, "output"), "wb") as output:
            process = subprocess.Popen(
                [client.python, "flow.py", "run", *options],
                cwd=folder,
                env={**_account(service.url, folder), **client.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        before = set(below(os.getpid())) - {process.pid, *below(process.pid)}
        try:
            found = _watch(process, service, expected, hold, limit, say)
        finally:
            _kill(process, before)
        if found["running"] == 0:
            raise SystemExit(f"{client.package} ran no job:\n{Path(folder, 'output').read_text()[-3000:]}")
    return {"client": client.package, "workers": client.workers, "expected": expected, **found}


def _watch(
    process: subprocess.Popen[bytes], service: Service, expected: int, hold: float, limit: float, say: Any
) -> dict[str, Any]:
    began = time.monotonic()
    looks, told, short = Looks(), service.ask(), False
    while told["running"] < expected and time.monotonic() < began + limit and not short:
        if process.poll() is not None:
            break
        time.sleep(0.5)
        number = looks.look(process.pid)
        told = service.ask()
        short = _short_of_memory()
        say(f"{time.monotonic() - began:5.0f} s: {told['running']} of {expected} jobs run, {number} processes")
    launched = time.monotonic() - began
    cpu, calls = processor_seconds(process.pid), Counter(told["calls"])
    ends, standing = time.monotonic() + hold, Looks()
    while time.monotonic() < ends and process.poll() is None and not short:
        time.sleep(min(2.0, hold))
        standing.look(process.pid)
        short = _short_of_memory()
    held = time.monotonic() - began - launched
    told = service.ask()
    return {
        "running": told["running"],
        "short_of_memory": short,
        "seconds": launched,
        "cpu": cpu,
        "calls": dict(calls),
        "held": held,
        "cpu_standing": processor_seconds(process.pid) - cpu,
        "calls_standing": dict(Counter(told["calls"]) - calls),
        "processes": max(looks.processes, standing.processes),
        "memory": max(looks.memory, standing.memory),
        "standing_processes": standing.processes,
        "standing_memory": standing.memory,
        "largest": max(looks.largest, standing.largest),
    }


def _short_of_memory() -> bool:
    return field("/proc/meminfo", b"MemAvailable:") < KEPT_FREE


def _account(url: str, folder: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": folder,
        "TMPDIR": folder,
        "USER": "bench",
        "LANG": "C.UTF-8",
        "AWS_ENDPOINT_URL": url,
        "METAFLOW_S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _kill(process: subprocess.Popen[bytes], others: set[int]) -> None:
    """End a client and all that it started; what it leaves behind has become a child of this process."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        left = [pid for pid in below(os.getpid()) if pid not in others]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):  # it has ended, or is the child of one that ends
                pass
        time.sleep(0.05)


# -- the table --------------------------------------------------------------------------------------------------------


def table(every: list[dict[str, Any]]) -> str:
    """Return what was measured as a table of Markdown, a column for each client."""

    def calls(found: dict[str, int], minutes: float = 1.0) -> str:
        return f"{found.get('batch', 0) / minutes:,.0f} Batch, {found.get('s3', 0) / minutes:,.0f} S3"

    def row(name: str, of: Any) -> str:
        return f"| {name} | {' | '.join(of(one) for one in every)} |"

    return "\n".join(
        [
            row("", lambda one: f"{one['client']}, --max-workers {one['workers']}"),
            "|---|" + "---:|" * len(every),
            row("jobs that ran at once", lambda one: f"{one['running']}"),
            row("SubmitJob calls", lambda one: f"{one['calls'].get('SubmitJob', 0)}"),
            row("local processes, peak", lambda one: f"{one['processes']}"),
            row("local processes while the jobs run", lambda one: f"{one['standing_processes']}"),
            row("memory of them all, peak", lambda one: f"{one['memory'] / 1e6:,.0f} MB"),
            row("memory of them all while the jobs run", lambda one: f"{one['standing_memory'] / 1e6:,.0f} MB"),
            row("seconds until all ran", lambda one: f"{one['seconds']:.1f} s"),
            row("processor time until all ran", lambda one: f"{one['cpu']:.1f} s"),
            row("calls until all ran", lambda one: calls(one["calls"])),
            row(
                "processor time a minute while they run",
                lambda one: f"{60 * one['cpu_standing'] / max(one['held'], 1):.1f} s",
            ),
            row("calls a minute while they run", lambda one: calls(one["calls_standing"], max(one["held"], 1) / 60)),
        ]
    )


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metaflow-python", metavar="PATH", help="measure Metaflow too, with this interpreter")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--max-workers", type=int, default=200, help="Metaflow's processes at once")
    parser.add_argument("--hold", type=float, default=60.0, help="seconds for which the jobs run")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds in which they have to run, for each client")
    parser.add_argument("--json", action="store_true", help="print every number instead of the table")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # and what was started is ended with it
    clients = [flowkit(given.tasks)]
    if given.metaflow_python:
        clients.append(metaflow(given.metaflow_python, given.max_workers))
    every = []
    for client in clients:

        def say(text: str, client: Client = client) -> None:
            print(f"{client.package}: {text}", file=sys.stderr, flush=True)

        found = measure(client, given.tasks, given.hold, given.limit, say)
        if found["running"] < found["expected"]:
            say(
                f"only {found['running']} of {found['expected']} jobs ran"
                + ", for want of memory" * found["short_of_memory"]
            )
        every.append(found)
    print(json.dumps(every) if given.json else table(every))


if __name__ == "__main__":
    main()
