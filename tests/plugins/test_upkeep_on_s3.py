"""Sweeping a datastore on S3 (moto over HTTP): beside writers, with the service's times, and by the real commands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from flowkit.datastore import layout
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.manifests import read_manifest, write_manifest
from flowkit.datastore.runs import claim_run, list_runs, read_run, write_end
from flowkit.datastore.storage import Entry, Info
from flowkit.metadata.memory import MemoryMetadata
from flowkit.model.manifest import Manifest
from flowkit.model.transition import Transition
from flowkit.upkeep.gc import clean, preview
from flowkit.upkeep.retention import Rule, Rules

if TYPE_CHECKING:
    from conftest import Aws, Workspace

pytest.importorskip("boto3")
pytest.importorskip("moto.server")

from flowkit.plugins.aws.s3_storage import S3Storage

FLOW = "Train"
DAY = 86400.0


class Aged(S3Storage):
    """A root where everything that was written before a moment is two days old: S3 lets nobody set a time."""

    aged = 0.0

    def __init__(self, spec: str, point: int | None = None, action: Callable[[], object] | None = None) -> None:
        super().__init__(spec, fresh=0)
        self._point = point
        self._action = action
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def info(self, path: str) -> Info | None:
        found = super().info(path)
        return None if found is None else found._replace(modified=self._time(found.modified))

    def walk(self, path: str) -> Iterator[Entry]:
        for entry in super().walk(path):
            yield entry._replace(modified=self._time(entry.modified))

    def delete_older(self, path: str, before: float) -> bool:
        self._count()
        info = self.info(path)
        self._count()
        old = info is not None and info.modified < before
        gone = old and super().delete_older(path, Aged.aged)
        self._count()
        return gone

    def replace(self, path: str, content: Any) -> None:
        self._count()
        super().replace(path, content)
        self._count()

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)

    def _time(self, modified: float) -> float:
        return modified - 2 * DAY if modified < Aged.aged else modified

    def _count(self) -> None:
        if self._point is None or self._action is None:
            return
        with self._lock:
            self._point -= 1
            due = self._point == -1
            if due:
                self.thread = threading.Thread(target=self._action)
        if due and self.thread is not None:
            self.thread.start()
            self.thread.join(0.2)


def age() -> None:
    """Let all that is there be old; the service's times are whole seconds, so that it takes up to one."""
    Aged.aged = float(int(time.time()) + 1)
    while time.time() < Aged.aged:
        time.sleep(0.02)


def run_of(storage: S3Storage, text: str = "a", ago: float = 2 * DAY) -> str:
    run = claim_run(storage, FLOW, {"user": "ada", "created": time.time() - ago})
    artifact = ArtifactWriter(Blobs(storage)).save("x", text * 3000, step="start")
    write_manifest(storage, Manifest(FLOW, run, "start", "0", 0, {"x": artifact}, Transition("end")))
    write_end(storage, FLOW, run, {"state": "succeeded", "reason": None, "finished": time.time() - ago})
    return run


def whole(storage: S3Storage) -> list[str]:
    """The runs that are there, everything of which can be read."""
    runs = [run for run in list_runs(storage, FLOW) if read_run(storage, FLOW, run) is not None]
    for run in runs:
        manifest = read_manifest(storage, FLOW, run, "start", "0")
        assert manifest is not None
        Blobs(storage).get(manifest.artifacts["x"].key, manifest.artifacts["x"].size)
    return runs


def test_old_runs_and_blobs_go(aws: Aws) -> None:
    storage = Aged(f"s3://{aws.bucket()}/some/root")
    for text in "abac":
        run_of(storage, text)
    storage.create(f"{layout.data_folder(FLOW, '1')}/table.csv", [b"1,2"])
    age()
    store = MemoryMetadata()
    rules = Rules(Rule(keep=2))
    found = preview(storage, store, rules)
    done = clean(storage, store, rules)
    assert (done.removed, done.unused) == (found.removed, found.unused)
    assert sorted(each.facts.run for each in done.runs) == ["1", "2"]
    assert done.unused.blobs == 1  # 'a' is the third run's, too
    assert whole(storage) == ["3", "4"]
    left = {entry.path for entry in storage.walk("") if "/1/" in entry.path or "/2/" in entry.path}
    assert left == {layout.run_file(FLOW, "1"), layout.run_file(FLOW, "2")}
    assert clean(storage, store, Rules()).unused.blobs == 0


def test_a_writer_that_comes_at_any_point_of_a_sweep(aws: Aws) -> None:
    points = 0
    for point in range(1, 60, 3):
        root = f"s3://{aws.bucket()}/root"
        Aged.aged = 0.0
        storage = Aged(root)
        run_of(storage, "a")
        content = [b"b" * 4000]
        key = Blobs(storage).put(content, 4000)
        age()
        runs: list[str] = []

        def write(root: str = root, runs: list[str] = runs) -> None:
            runs.append(run_of(Aged(root), "a", ago=0))
            Blobs(Aged(root)).put([b"b" * 4000], 4000)

        sweeping = Aged(root, point, write)
        clean(sweeping, MemoryMetadata(), Rules(Rule(older_than=DAY)))
        if sweeping.thread is None:
            break
        sweeping.thread.join(60)
        assert not sweeping.thread.is_alive()
        points += 1
        assert runs == ["2"]
        assert whole(storage) == ["2"]
        assert storage.read(layout.blob_file(key)) == content[0]
    assert points > 4


class Killed(BaseException):
    """The process is gone: nothing of it runs any more, `finally` neither."""


def test_a_sweep_that_is_killed_is_finished_by_the_next(aws: Aws) -> None:
    root = f"s3://{aws.bucket()}/root"
    storage = Aged(root)
    for text in "abc":
        run_of(storage, text)
    age()
    store = MemoryMetadata()
    for point in (1, 4, 7, 11):
        gone = False

        class Mortal(Aged):
            def _count(self, point: int = point) -> None:
                nonlocal gone
                self._done = getattr(self, "_done", -1) + 1
                gone = gone or self._done >= point
                if gone:
                    raise Killed

        with pytest.raises(Killed):
            clean(Mortal(root), store, Rules(Rule(keep=1)))
        storage.delete(layout.upkeep_lease())  # a minute later
        whole(storage)
    clean(storage, store, Rules())  # what was begun is finished whatever the rules
    assert whole(storage) == ["3"]
    assert sum(1 for _ in storage.walk(layout.BLOBS)) == 1
    assert [entry.path for entry in storage.walk(layout.UPKEEP)] == [layout.upkeep_lease()]


def test_uploads_that_never_ended_go(aws: Aws) -> None:
    bucket = aws.bucket()
    s3 = aws.client("s3")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="root/blobs/ab/x")["UploadId"]
    s3.create_multipart_upload(Bucket=bucket, Key="elsewhere/x")
    storage = S3Storage(f"s3://{bucket}/root")
    assert storage.unfinished(0.0) == []  # (moto says that every upload was begun in 2010)
    assert [entry.path for entry in storage.unfinished(time.time() + DAY, remove=True)] == ["upload of blobs/ab/x"]
    left = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert [entry["Key"] for entry in left] == ["elsewhere/x"]
    assert upload not in {entry["UploadId"] for entry in left}


def test_more_than_a_thousand_are_removed(aws: Aws) -> None:
    storage = S3Storage(f"s3://{aws.bucket()}/root")
    for number in range(3):
        storage.create(f"a/{number}", [b""])
    storage.delete_all(f"a/{number}" for number in range(1003))
    assert list(storage.walk("a")) == []


def test_the_commands(workspace: Workspace, aws: Aws) -> None:
    root = f"s3://{aws.bucket()}/flows"
    workspace.env.update(aws.env)
    workspace.env["FLOWKIT_DATASTORE"] = root
    workspace.write(
        "flow.py",
        """
        from flowkit import FlowSpec, step

        class Small(FlowSpec):
            @step
            def start(self):
                self.table = bytes(10_000)
                self.next(self.end)

            @step
            def end(self):
                pass

        if __name__ == "__main__":
            Small()
        """,
    )
    for _ in range(2):
        workspace.run("run", check=True)
    usage = json.loads(workspace.flowkit("du", "--json", check=True).stdout)
    assert (usage["root"], usage["blobs"]) == (root, {"count": 1, "bytes": 10_000})
    assert [run["run"] for run in usage["runs"]] == ["1", "2"]
    done = json.loads(workspace.flowkit("gc", "--keep", 1, "--yes", "--json", check=True).stdout)
    assert [run["run"] for run in done["runs"]] == ["1"]
    assert json.loads(workspace.flowkit("fsck", "--deep", "--json", check=True).stdout)["findings"] == []
