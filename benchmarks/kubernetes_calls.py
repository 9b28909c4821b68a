"""What a wide foreach on Kubernetes costs the laptop: calls, processor time, memory.

    python benchmarks/kubernetes_calls.py [--rows 10000] [--slots 2000] [--seconds 10]

A loopback API (``tests/kubernetes_api``, a process of its own) keeps an Indexed Job of so many rows and says that their
pods run, without running them: `slots` at once, each for so many seconds. The real backend and the real client submit
it and follow it to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SERVER = Path(__file__).resolve().parent.parent / "tests" / "kubernetes_api" / "kube_server.py"


def knock(url: str, method: str, **arguments: object) -> object:
    """Ask the side door of the API."""
    data = json.dumps(arguments).encode()
    with urllib.request.urlopen(f"{url}/_test/{method}", data=data, timeout=60) as answer:
        return json.load(answer)


def follow(rows: int) -> dict[str, float]:
    """Submit a job of so many rows and follow it to its end."""
    from flowkit.decorators.contract import ExecutorRequest
    from flowkit.plugins.kubernetes.backend import KubernetesBackend
    from flowkit.runtime.backend import RemoteRun, Submission

    backend = KubernetesBackend(RemoteRun("Wide", "1", "bench", "s3://bucket/root"))
    request = ExecutorRequest("kubernetes", {"image": "python"})
    started, busy = time.monotonic(), time.process_time()
    job = backend.submit(Submission("fk-wide-1-each", "each", rows, 0, request, ["true"], {}, None))
    ended: set[int] = set()
    while len(ended) < rows:
        for state in backend.states({job: rows}):
            if state.phase in ("succeeded", "failed"):
                ended.add(state.row)
        select.select([backend.wait_descriptor()], [], [], backend.poll_interval)
    seconds = time.monotonic() - started
    calls = backend.calls
    backend.close()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu": time.process_time() - busy, "memory_mb": memory, "client_calls": calls}


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    with subprocess.Popen([sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        try:
            knock(url, "set", execute=False, slots=given.slots, simulated=given.seconds)
            with tempfile.TemporaryDirectory() as folder:
                config = Path(folder) / "kubeconfig"
                config.write_text(
                    json.dumps(
                        {
                            "apiVersion": "v1",
                            "kind": "Config",
                            "current-context": "c",
                            "clusters": [{"name": "c", "cluster": {"server": url}}],
                            "users": [{"name": "u", "user": {}}],
                            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                        }
                    )
                )
                os.environ["KUBECONFIG"] = str(config)
                measured = follow(given.rows)
            counted = knock(url, "count")
        finally:
            server.stdin.close()
    minutes = max(measured["seconds"] / 60, 1.0)
    assert isinstance(counted, dict)
    polling = sum(count for call, count in counted.items() if not call.startswith("POST"))
    print(f"rows             {given.rows:,}")
    print(f"time             {measured['seconds']:.1f} s")
    print(f"calls            {counted}")
    print(f"submissions      {counted.get('POST jobs', 0)}")
    print(
        f"polling a minute {polling / minutes:.1f}, which is {100 * polling / minutes / given.rows:.2f} % of the rows"
    )
    print(f"processor time   {measured['cpu']:.1f} s")
    print(f"peak memory      {measured['memory_mb']:.0f} MB")


if __name__ == "__main__":
    main()
