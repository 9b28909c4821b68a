"""Objects and artifacts to and from S3: flowkit beside Metaflow and beside plain boto3, in turns, on one server.

    python benchmarks/s3_client.py --metaflow PYTHON [--size MB] [--objects N] [--repeat R] [--markdown FILE]

PYTHON is an interpreter with metaflow and boto3. The server is benchmarks/s3_server.py; it and all files are in
/dev/shm, so that what is measured is the processor's work for each byte and each request. Each measurement is a process
of its own; the table holds the medians, and every content that is read is compared.

client      one large file and many small values are stored, and fetched again to files: flowkit.S3, metaflow.S3, and
            boto3 as its documentation shows it (upload_file, download_file; put_object and get_object in threads)
artifacts   whole runs of a flow of two steps that sets and reads one large artifact, or many small ones, with the
            datastore on S3
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUCKET = "measured"
THREADS = 32
"""Of boto3: as many as flowkit has; Metaflow starts up to 64 processes."""
SMALL = 10_000
"""Bytes of a small object."""
CLIENT = {
    "put large": "put {size} MB, s",
    "get large": "get {size} MB, s",
    "put small": "put {objects}, s",
    "get small": "get {objects}, s",
}
"""What is measured of clients, in seconds of the clock, and in the table of processors in those of all processes."""
ARTIFACTS = {"large": "one of {size} MB, s", "small": "{objects} of 10 kB, s"}

FLOW = """
import os
from {package} import FlowSpec, step

BLOCK = os.urandom(1 << 20)

class Artifacts(FlowSpec):
    @step
    def start(self):
        if {large}:
            self.large = BLOCK * ({size} >> 20)
        else:
            for number in range({objects}):
                setattr(self, "small%d" % number, os.urandom({small}))
        self.next(self.end)

    @step
    def end(self):
        if {large}:
            assert len(self.large) == {size}
        else:
            assert sum(len(getattr(self, "small%d" % number)) for number in range({objects})) == {objects} * {small}

if __name__ == "__main__":
    Artifacts()
"""


def flowkit_client(folder: str, large: str, small: dict[str, bytes]) -> list[Callable[[], Any]]:
    from flowkit import S3

    s3 = S3(s3root=f"s3://{BUCKET}/flowkit", tmproot=folder)
    return [
        lambda: s3.put_files([("large", large)]),
        lambda: s3.get("large").path,
        lambda: s3.put_many(list(small.items())),
        lambda: [item.path for item in s3.get_many(list(small))],
    ]


def metaflow_client(folder: str, large: str, small: dict[str, bytes]) -> list[Callable[[], Any]]:
    from metaflow import S3

    s3 = S3(s3root=f"s3://{BUCKET}/metaflow", tmproot=folder)
    return [
        lambda: s3.put_files([("large", large)]),
        lambda: s3.get("large").path,
        lambda: s3.put_many(list(small.items())),
        lambda: [item.path for item in s3.get_many(list(small))],
    ]


def boto3_client(folder: str, large: str, small: dict[str, bytes]) -> list[Callable[[], Any]]:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=THREADS))
    target = os.path.join(folder, "boto3-large")

    def put(key: str) -> None:
        client.put_object(Bucket=BUCKET, Key=f"boto3/{key}", Body=small[key])

    def get(key: str) -> str:
        path = os.path.join(folder, f"boto3-{key}")
        with open(path, "wb") as file:
            file.write(client.get_object(Bucket=BUCKET, Key=f"boto3/{key}")["Body"].read())
        return path

    def many(call: Callable[[str], Any]) -> list[Any]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(call, small))

    def get_large() -> str:
        client.download_file(BUCKET, "boto3/large", target)
        return target

    return [lambda: client.upload_file(large, BUCKET, "boto3/large"), get_large, lambda: many(put), lambda: many(get)]


CLIENTS = {"flowkit": flowkit_client, "Metaflow": metaflow_client, "boto3": boto3_client}


def measure_client(name: str, folder: str, size: int, objects: int) -> dict[str, float]:
    """Measure one client in this process."""
    large = os.path.join(folder, "large")
    block = os.urandom(1 << 20)
    with open(large, "wb") as file:
        for _ in range(size >> 20):
            file.write(block)
    small = {f"{number}": os.urandom(16) * (SMALL // 16) for number in range(objects)}
    put_large, get_large, put_small, get_small = CLIENTS[name](folder, large, small)
    times: dict[str, float] = {}

    def timed(label: str, call: Callable[[], Any]) -> Any:
        begin, before = time.perf_counter(), sum(os.times()[:4])
        result = call()
        times[label] = time.perf_counter() - begin
        times[f"{label} cpu"] = sum(os.times()[:4]) - before
        return result

    timed("put large", put_large)
    assert filecmp.cmp(timed("get large", get_large), large, shallow=False)
    timed("put small", put_small)
    paths = timed("get small", get_small)
    for path, content in zip(paths, small.values(), strict=True):
        with open(path, "rb") as file:
            assert file.read() == content
    return times


def measure_artifacts(
    name: str, python: str, folder: str, size: int, objects: int, env: dict[str, str]
) -> dict[str, float]:
    """Run the flow once with the large artifact and once with the small ones; seconds of the whole commands."""
    options = {"flowkit": ["--datastore-root", f"s3://{BUCKET}/root"], "Metaflow": ["--datastore=s3"]}[name]
    times = {}
    for label in ARTIFACTS:
        source = FLOW.format(package=name.lower(), large=label == "large", size=size, objects=objects, small=SMALL)
        path = os.path.join(folder, f"{label}.py")
        Path(path).write_text(source)
        begin = time.perf_counter()
        done = subprocess.run([python, path, *options, "run"], cwd=folder, env=env, capture_output=True, text=True)
        times[label] = time.perf_counter() - begin
        if done.returncode:
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return times


def environment(endpoint: str, folder: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FLOWKIT_", "METAFLOW_"))}
    return {
        **kept, "AWS_ACCESS_KEY_ID": "measured", "AWS_SECRET_ACCESS_KEY": "measured", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true", "HOME": folder, "USERNAME": "measured",
        "FLOWKIT_CACHE": "off", "METAFLOW_S3_ENDPOINT_URL": endpoint, "METAFLOW_DEFAULT_METADATA": "local",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/metaflow-root",
    }  # fmt: skip


def on_a_server(call: Callable[[str, dict[str, str]], dict[str, float]]) -> dict[str, float]:
    """Call with a folder and the variables that lead to a fresh server."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.mkdtemp(prefix="flowkit-bench-", dir=memory)
    objects, files = os.path.join(folder, "objects"), os.path.join(folder, "files")
    os.makedirs(os.path.join(objects, BUCKET))
    os.mkdir(files)
    command = [sys.executable, str(HERE / "s3_server.py"), objects, "2"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        return call(files, environment(server.stdout.readline().strip(), files))
    finally:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def client_in_process(name: str, python: str, size: int, objects: int) -> dict[str, float]:
    def run(folder: str, env: dict[str, str]) -> dict[str, float]:
        command = [python, str(Path(__file__).resolve()), "--in-process", name, folder, str(size), str(objects)]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    return on_a_server(run)


def table(
    title: str, columns: dict[str, str], results: dict[str, list[dict[str, float]]], words: dict[str, int]
) -> str:
    """Return the medians as Markdown, with flowkit's ratio to each of the others."""
    rows = [
        f"| {title} | {' | '.join(text.format(**words) for text in columns.values())} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    medians = {
        name: {label: statistics.median(run[label] for run in runs) for label in columns}
        for name, runs in results.items()
    }
    for name, found in medians.items():
        cells = [f"{found[label]:.2f}" for label in columns]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    for name, found in medians.items():
        if name != "flowkit":
            cells = [f"{found[label] / medians['flowkit'][label]:.1f}" for label in columns]
            rows.append(f"| *times as fast as {name}* | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    if sys.argv[1:2] == ["--in-process"]:
        _, _, name, folder, size, objects = sys.argv
        print(json.dumps(measure_client(name, folder, int(size), int(objects))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metaflow", required=True, metavar="PYTHON", help="an interpreter with metaflow and boto3")
    parser.add_argument("--size", type=int, default=1024, help="megabytes (of 2**20) of the large object")
    parser.add_argument("--objects", type=int, default=2000, help="how many small ones, of 10 kB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=("client", "artifacts"))
    parser.add_argument("--markdown", metavar="FILE", help="where the tables are written besides")
    chosen = parser.parse_args()
    size, objects = chosen.size << 20, chosen.objects
    pythons = {"flowkit": sys.executable, "Metaflow": chosen.metaflow, "boto3": sys.executable}
    words = {"size": chosen.size, "objects": objects}
    clients: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    artifacts: dict[str, list[dict[str, float]]] = {"flowkit": [], "Metaflow": []}
    for _ in range(chosen.repeat):
        for name, python in pythons.items():
            if chosen.only != "artifacts":
                clients[name].append(client_in_process(name, python, size, objects))
            if chosen.only != "client" and name in artifacts:
                found = on_a_server(
                    lambda folder, env, name=name, python=python: measure_artifacts(  # type: ignore[misc]
                        name, python, folder, size, objects, env
                    )
                )
                artifacts[name].append(found)
    tables = []
    if chosen.only != "artifacts":
        tables.append(table("files and values", CLIENT, clients, words))
        processors = {f"{label} cpu": text for label, text in CLIENT.items()}
        tables.append(table("the same, seconds of processors", processors, clients, words))
    if chosen.only != "client":
        tables.append(table("artifacts, whole runs", ARTIFACTS, artifacts, words))
    text = "\n\n".join(tables)
    print(text)
    if chosen.markdown:
        Path(chosen.markdown).write_text(text + "\n")


if __name__ == "__main__":
    main()
