"""What a wide foreach on AWS Batch costs the laptop: calls, processor time, memory.

    python benchmarks/batch_calls.py [--rows 10000] [--slots 2000] [--seconds 20]

moto's Batch (in a process of its own, over HTTP) keeps an array of so many rows and says that they run, without running
them: `slots` at once, each for so many seconds. The real executor, the real backend and the real boto3 submit it and
follow it to its end; calls are counted by botocore's own events.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent / "tests" / "plugins" / "batch"
QUEUE = "flowkit-queue"


def simulate(service: Any, slots: int, seconds: float, stop: threading.Event) -> None:
    """Say of every array that its rows run and succeed."""
    from datetime import datetime

    while not stop.wait(0.2):
        for job in service.jobs():
            children = job._child_jobs or []
            now = datetime.now()
            running = 0
            with service._lock:
                for child in children:
                    if child.status == "RUNNING" and (now - child.job_started_at).total_seconds() >= seconds:
                        service._finish(child, {"exitCode": 0}, succeeded=True)
                    running += child.status == "RUNNING"
                for child in children:
                    if running < slots and child.status == "RUNNABLE":
                        child.status, child.job_started_at = "RUNNING", now
                        running += 1
                if children and not job.job_stopped:
                    service._update_parent(job.job_id)


def serve(slots: int, seconds: float) -> None:
    """Be the service until the input ends."""
    sys.path.insert(0, str(TESTS))
    import logging

    from batch_service import opened

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with opened() as service:
        service.hold = True
        stop = threading.Event()
        thread = threading.Thread(target=simulate, args=(service, slots, seconds, stop))
        thread.start()
        print(service.url, flush=True)
        sys.stdin.read()
        stop.set()
        thread.join()


@contextmanager
def served(slots: int, seconds: float) -> Iterator[str]:
    """Have a service in a process of its own, and give its address."""
    command = [sys.executable, __file__, "--serve", "--slots", str(slots), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def follow(rows: int) -> dict[str, Any]:
    """Submit so many launches, and follow them to their end."""
    from flowkit.datastore.memory import MemoryStorage
    from flowkit.decorators.contract import ExecutorRequest
    from flowkit.model.coordinates import Coordinates
    from flowkit.model.launch import Launch
    from flowkit.plugins.aws import session
    from flowkit.plugins.aws.batch import BatchBackend
    from flowkit.runtime.backend import RemoteRun
    from flowkit.runtime.executor import Ended
    from flowkit.runtime.remote import RemoteExecutor
    from flowkit.runtime.remote_work import Step, Work

    counted: Counter[str] = Counter()
    client = session.client("batch")
    client.meta.events.register("before-call.batch", lambda model, **_: counted.update([model.name]))
    run = RemoteRun("Wide", "1", "bench", "s3://bucket/root")
    step = Step(ExecutorRequest("batch", {"cpu": 1}))
    work = Work(run, {"each": step}, lambda step, key: ["python", "-c", "pass", key], {}, "benchmark")
    executor = RemoteExecutor(BatchBackend(run), MemoryStorage(), work)
    started, busy = time.monotonic(), time.process_time()
    executor.submit([Launch("each", Coordinates((row,))) for row in range(rows)])
    ended = 0
    while ended < rows:
        select.select(executor.file_descriptors(), [], [], 5)
        for event in executor.poll():
            if isinstance(event, Ended):
                assert event.exit_status == 0, event
                ended += 1
        if executor.notices:
            print(*executor.notices, sep="\n")
            executor.notices.clear()
    measured = {"seconds": time.monotonic() - started, "cpu": time.process_time() - busy, "calls": dict(counted)}
    executor.close()
    measured["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return measured


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.slots, given.seconds)
        return
    with served(given.slots, given.seconds) as url:
        os.environ.update(
            AWS_ENDPOINT_URL=url,
            AWS_ACCESS_KEY_ID="bench",
            AWS_SECRET_ACCESS_KEY="bench",
            AWS_REGION="us-east-1",
            FLOWKIT_BATCH_QUEUE=QUEUE,
        )
        measured = follow(given.rows)
    calls = measured["calls"]
    minutes = max(measured["seconds"] / 60, 1.0)
    polling = sum(count for name, count in calls.items() if name in ("DescribeJobs", "ListJobs"))
    share = 100 * polling / minutes / given.rows
    print(f"rows             {given.rows:,}, {given.slots:,} at once for {given.seconds:g} s each")
    print(f"time             {measured['seconds']:.1f} s")
    print(f"calls            {calls}")
    print(f"submissions      {calls.get('SubmitJob', 0)}")
    print(f"polling a minute {polling / minutes:.1f}, which is {share:.2f} % of the rows")
    print(f"processor time   {measured['cpu']:.1f} s")
    print(f"peak memory      {measured['memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
