"""Which library moves bytes to and from S3 fastest on this machine: boto3, awscrt, obstore, pyarrow, and flowkit's own.

    python benchmarks/s3_transfer.py [--size MB] [--objects N] [--repeat R] [--only NAME …]

All talk to one server on this machine (benchmarks/s3_server.py, objects in /dev/shm), each in processes of its own, one
after another, as often as asked for, in turns; the table holds the medians. Every content that is read is compared.
Needs: boto3, awscrt, obstore, pyarrow (those that are missing are left out).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import resource
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
THREADS = 10
SMALL = 10_000
"""Bytes of a small object."""
MEASURES = ("start", "put large", "get large", "put small", "get small", "one by one")

COLUMNS = ("put large, MB/s", "get large, MB/s", "put small, 1/s", "get small, 1/s", "one by one, ms")

Put, Get = Callable[[str, bytes], Any], Callable[[str, int], Any]


class Contender:
    """A library: how one object is written and read, and how many are."""

    def put(self, key: str, content: bytes) -> None:
        raise NotImplementedError

    def get(self, key: str, size: int) -> Any:
        raise NotImplementedError

    def put_large(self, key: str, content: bytes) -> None:
        self.put(key, content)

    def get_large(self, key: str, size: int) -> Any:
        return self.get(key, size)

    def put_many(self, contents: dict[str, bytes]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.put, contents, contents.values()))

    def get_many(self, sizes: dict[str, int]) -> list[Any]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self.get, sizes, sizes.values()))


class Boto3(Contender):
    def __init__(self, endpoint: str) -> None:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=32))
        self.config = TransferConfig(max_concurrency=THREADS, preferred_transfer_client="classic")

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def get(self, key: str, size: int) -> Any:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def put_large(self, key: str, content: bytes) -> None:
        self.client.upload_fileobj(io.BytesIO(content), BUCKET, key, Config=self.config)

    def get_large(self, key: str, size: int) -> Any:
        target = io.BytesIO()
        self.client.download_fileobj(BUCKET, key, target, Config=self.config)
        return target.getbuffer()


class Crt(Boto3):
    """What ``boto3[crt]`` does, put together by hand: boto3 itself passes on neither an endpoint nor plain HTTP."""

    def __init__(self, endpoint: str) -> None:
        import botocore.session
        from botocore.config import Config
        from s3transfer.crt import (
            BotocoreCRTCredentialsWrapper,
            BotocoreCRTRequestSerializer,
            CRTTransferManager,
            create_s3_crt_client,
        )

        super().__init__(endpoint)
        session = botocore.session.get_session()
        session.set_default_client_config(Config(s3={"addressing_style": "path"}))
        credentials = BotocoreCRTCredentialsWrapper(session.get_credentials()).to_crt_credentials_provider()
        client = create_s3_crt_client("us-east-1", crt_credentials_provider=credentials, use_ssl=False)
        options = {"region_name": "us-east-1", "endpoint_url": endpoint}
        self.manager = CRTTransferManager(client, BotocoreCRTRequestSerializer(session, options))

    def put(self, key: str, content: bytes) -> None:
        self.manager.upload(io.BytesIO(content), BUCKET, key).result()

    def get(self, key: str, size: int) -> Any:
        target = io.BytesIO()
        self.manager.download(BUCKET, key, target).result()
        return target.getbuffer()

    put_large = put
    get_large = get

    def put_many(self, contents: dict[str, bytes]) -> None:
        for future in [self.manager.upload(io.BytesIO(content), BUCKET, key) for key, content in contents.items()]:
            future.result()

    def get_many(self, sizes: dict[str, int]) -> list[Any]:
        targets = {key: io.BytesIO() for key in sizes}
        for future in [self.manager.download(BUCKET, key, target) for key, target in targets.items()]:
            future.result()
        return [target.getvalue() for target in targets.values()]


class Obstore(Contender):
    def __init__(self, endpoint: str) -> None:
        from obstore.store import S3Store

        self.store = S3Store(
            BUCKET, endpoint=endpoint, region="us-east-1", client_options={"allow_http": True},
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"], secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def put(self, key: str, content: bytes) -> None:
        self.store.put(key, content, use_multipart=False)

    def get(self, key: str, size: int) -> Any:
        return self.store.get(key).bytes()

    def put_large(self, key: str, content: bytes) -> None:
        self.store.put(key, content, use_multipart=True, chunk_size=8 << 20, max_concurrency=THREADS)

    def get_large(self, key: str, size: int) -> Any:
        starts = list(range(0, size, 8 << 20))
        whole = memoryview(bytearray(size))

        def fetch(start: int) -> None:
            end = min(start + (8 << 20), size)
            whole[start:end] = self.store.get_range(key, start=start, end=end)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fetch, starts))
        return whole

    def put_many(self, contents: dict[str, bytes]) -> None:
        async def all_of_them() -> None:
            gate = asyncio.Semaphore(THREADS)

            async def one(key: str) -> None:
                async with gate:
                    await self.store.put_async(key, contents[key], use_multipart=False)

            await asyncio.gather(*map(one, contents))

        asyncio.run(all_of_them())

    def get_many(self, sizes: dict[str, int]) -> list[Any]:
        async def all_of_them() -> list[Any]:
            gate = asyncio.Semaphore(THREADS)

            async def one(key: str) -> Any:
                async with gate:
                    return await (await self.store.get_async(key)).bytes_async()

            return await asyncio.gather(*map(one, sizes))

        return asyncio.run(all_of_them())


class Pyarrow(Contender):
    def __init__(self, endpoint: str) -> None:
        from pyarrow import fs, set_io_thread_count

        set_io_thread_count(THREADS)
        scheme, _, place = endpoint.partition("://")
        self.fs = fs.S3FileSystem(
            endpoint_override=place, scheme=scheme, region="us-east-1",
            access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def put(self, key: str, content: bytes) -> None:
        with self.fs.open_output_stream(f"{BUCKET}/{key}") as stream:
            stream.write(content)

    def get(self, key: str, size: int) -> Any:
        with self.fs.open_input_stream(f"{BUCKET}/{key}") as stream:
            return stream.read()

    def get_large(self, key: str, size: int) -> Any:
        whole = memoryview(bytearray(size))
        with self.fs.open_input_file(f"{BUCKET}/{key}") as file:

            def fetch(start: int) -> None:
                content = file.read_at(min(8 << 20, size - start), start)
                whole[start : start + len(content)] = content

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(fetch, range(0, size, 8 << 20)))
        return whole


class Flowkit(Contender):
    def __init__(self, endpoint: str) -> None:
        from flowkit.plugins.aws.s3_storage import S3Storage

        self.storage = S3Storage(f"s3://{BUCKET}")

    def put(self, key: str, content: bytes) -> None:
        assert self.storage.create(key, [content])

    def get(self, key: str, size: int) -> Any:
        return self.storage.read_range(key, 0, size)

    def get_large(self, key: str, size: int) -> Any:
        whole = memoryview(bytearray(size))
        assert self.storage.read_into(key, 0, whole) == size
        return whole


CONTENDERS = {"boto3": Boto3, "boto3 + awscrt": Crt, "obstore": Obstore, "pyarrow": Pyarrow, "flowkit": Flowkit}


def measure(name: str, endpoint: str, size: int, objects: int) -> dict[str, float]:
    """Measure one library in this process: seconds, and megabytes of memory at most."""
    times: dict[str, float] = {}

    def timed(label: str, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = call()
        times[label] = time.perf_counter() - begin
        return result

    def start() -> Contender:
        made = CONTENDERS[name](endpoint)
        made.put(f"{name}/first", b"x")
        return made

    block = os.urandom(1 << 20)
    large = block * (size >> 20)
    small = {f"{name}/small/{number}": os.urandom(16) * (SMALL // 16) for number in range(objects)}
    contender = timed("start", start)
    timed("put large", lambda: contender.put_large(f"{name}/large", large))
    timed("put small", lambda: contender.put_many(small))
    few = dict(list(small.items())[:200])
    timed("one by one", lambda: [contender.get(key, SMALL) for key in few])
    found = timed("get small", lambda: contender.get_many({key: len(value) for key, value in small.items()}))
    assert all(bytes(a) == b for a, b in zip(found, small.values(), strict=True))
    found = timed("get large", lambda: contender.get_large(f"{name}/large", size))
    assert found == large
    times["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return times


def in_process(name: str, endpoint: str, size: int, objects: int) -> dict[str, float] | str:
    environment = {
        **os.environ, "AWS_ACCESS_KEY_ID": "measured", "AWS_SECRET_ACCESS_KEY": "measured",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": endpoint,
    }  # fmt: skip
    command = [sys.executable, __file__, "--in-process", name, endpoint, str(size), str(objects)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["failed"])[-1]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[str, list[dict[str, float]]], size: int, objects: int) -> str:
    """Return the medians as Markdown."""
    megabytes = size / 1e6
    rows = [f"| | start, s | {' | '.join(COLUMNS)} | memory, MB |", f"|---|---|{'---|' * len(COLUMNS)}---|"]
    for name, runs in results.items():
        if not runs:
            continue
        m = {label: statistics.median(run[label] for run in runs) for label in (*MEASURES, "memory")}
        cells = [f"{m['start']:.2f}", f"{megabytes / m['put large']:.0f}", f"{megabytes / m['get large']:.0f}"]
        cells += [f"{objects / m['put small']:.0f}", f"{objects / m['get small']:.0f}"]
        cells += [f"{m['one by one'] * 1000 / 200:.2f}", f"{m['memory']:.0f}"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    if sys.argv[1:2] == ["--in-process"]:
        _, _, name, endpoint, size, objects = sys.argv
        print(json.dumps(measure(name, endpoint, int(size), int(objects))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="megabytes (of 2**20) of the large object")
    parser.add_argument("--objects", type=int, default=2000, help="how many small ones, of 10 kB")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    chosen = parser.parse_args()
    size = chosen.size << 20
    results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen.only}
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    for _ in range(chosen.repeat):
        for name in chosen.only:
            folder = tempfile.mkdtemp(prefix="flowkit-bench-", dir=memory)
            server = subprocess.Popen(
                [sys.executable, HERE / "s3_server.py", folder, "2"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                endpoint = server.stdout.readline().strip()
                os.makedirs(f"{folder}/{BUCKET}")
                found = in_process(name, endpoint, size, chosen.objects)
                if isinstance(found, str):
                    print(f"{name}: {found}", file=sys.stderr)
                else:
                    results[name].append(found)
            finally:
                server.stdin.close()
                server.wait()
                shutil.rmtree(folder, ignore_errors=True)
    print(table(results, size, chosen.objects))


if __name__ == "__main__":
    main()
