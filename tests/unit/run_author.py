"""Runs that are written by hand, through the real datastore and the real index, for the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flowkit.client import connection as connections
from flowkit.client import (
    default_namespace,
)
from flowkit.datastore.artifacts import ArtifactWriter
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layout import log_file
from flowkit.datastore.logs import format_line
from flowkit.datastore.manifests import write_failure, write_manifest
from flowkit.datastore.root import open_storage
from flowkit.datastore.runs import claim_run, write_end
from flowkit.datastore.storage import Storage
from flowkit.metadata.records import RunRecord, TaskRecord
from flowkit.metadata.sqlite import SqliteMetadata
from flowkit.model.manifest import Artifact, Failure, Manifest
from flowkit.model.transition import Frame, Transition
from flowkit.settings import settings

T0 = 1_700_000_000.0
GRAPH = {
    "start_step": "start",
    "end_step": "end",
    "steps": {
        "start": {"name": "start", "next": ["train"]},
        "train": {"name": "train", "next": ["join"]},
        "join": {"name": "join", "next": ["end"]},
        "end": {"name": "end", "next": []},
    },
}


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _explode, ("a value was loaded",)


def _explode(text: str) -> None:
    raise AssertionError(text)


class Author:
    """Writes runs as the runtime does."""

    def __init__(self, root: Path) -> None:
        self.storage: Storage = open_storage(str(root), create=True)
        self.index = SqliteMetadata(str(root))
        self.writer = ArtifactWriter(Blobs(self.storage))
        self.clock = T0

    def tick(self) -> float:
        self.clock += 1.0
        return self.clock

    def run(self, flow: str = "TrainFlow", user: str = "ada", state: str = "running", **fields: Any) -> str:
        claim: dict[str, Any] = {"user": user, "created": self.tick()}
        run = claim_run(self.storage, flow, claim)
        record = RunRecord(flow, run, user, "running", created=claim["created"], heartbeat=claim["created"], **fields)
        record = record._replace(system_tags=(f"user:{user}", "runtime:local", "python_version:3.11.9"))
        self.index.write([record])
        self.records = {**getattr(self, "records", {}), (flow, run): record}
        if state != "running":
            self.end(run, flow, state)
        return run

    def end(self, run: str, flow: str = "TrainFlow", state: str = "succeeded", reason: str | None = None) -> None:
        when = self.tick()
        write_end(self.storage, flow, run, {"state": state, "reason": reason, "finished": when})
        ended = self.records[flow, run]._replace(state=state, reason=reason, finished=when)  # type: ignore[arg-type]
        self.index.write([ended])

    def task(
        self,
        run: str,
        step: str,
        task: str = "0",
        values: Mapping[str, Any] | None = None,
        transition: Transition | None = None,
        flow: str = "TrainFlow",
        log: bytes = b"",
        **fields: Any,
    ) -> Manifest:
        artifacts: dict[str, Artifact] = {n: self.writer.save(n, v, step=step) for n, v in (values or {}).items()}
        manifest = Manifest(
            flow,
            run,
            step,
            task,
            fields.pop("attempt", 0),
            artifacts,
            transition or Transition("end"),
            started=self.tick(),
            ended=self.tick(),
            **fields,
        )
        write_manifest(self.storage, manifest)
        if log:
            self.storage.replace(log_file(flow, run, step, task, manifest.attempt), [log])
        record = TaskRecord(flow, run, step, task, "succeeded", manifest.attempt, manifest.started, manifest.ended)
        self.index.write([record])
        return manifest

    def failed(self, run: str, step: str, task: str = "0", attempt: int = 0, state: str = "failed") -> None:
        started, ended = self.tick(), self.tick()
        failure = Failure(
            "error",
            "ValueError: no luck",
            "ValueError",
            ("ValueError", "Exception"),
            "Traceback (most recent call last):\n  …\nValueError: no luck\n",
            "flow.py:12",
            1,
            attempt=attempt,
            started=started,
            ended=ended,
        )
        write_failure(self.storage, "TrainFlow", run, step, task, failure)
        self.index.write(
            [TaskRecord("TrainFlow", run, step, task, state, attempt, started, ended, failure.message)]  # type: ignore[arg-type]
        )

    def trained(self, width: int = 3) -> str:
        """A whole run: start, a foreach over train, join, end."""
        run = self.run()
        self.task(run, "_parameters", values={"alpha": 0.5}, extra={"graph": GRAPH})
        everywhere = {"alpha": 0.5}
        self.task(
            run,
            "start",
            values={**everywhere, "items": list(range(width)), "_hidden": 1},
            transition=Transition("foreach", ("train",), width, "items", None, "0" * 64),
            parents="_parameters/0",
            log=format_line(T0, "out", "hällo\nsecond".encode()) + format_line(T0 + 1, "err", b"\xff junk"),
        )
        for index in range(width):
            self.task(
                run,
                "train",
                str(index),
                {**everywhere, "score": index / 10},
                Transition("linear", ("join",)),
                parents="start/0",
                frames=(Frame("start", "items", index, width, "0" * 64),),
            )
        self.task(
            run, "join", "0", {**everywhere, "best": 2}, Transition("linear", ("end",)), parents=f"train/0+{width}"
        )
        self.task(run, "end", "0", {**everywhere, "best": 2, "bomb": Bomb()}, parents="join/0")
        self.end(run)
        return run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of an empty datastore; the client looks at it as the user ada."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWKIT_USER", "ada")
    for name in ("FLOWKIT_DATASTORE", "FLOWKIT_NAMESPACE", "FLOWKIT_METADATA"):
        monkeypatch.delenv(name, raising=False)
    settings(reload=True)
    default_namespace()
    yield tmp_path / ".flowkit"
    default_namespace()
    monkeypatch.undo()
    settings(reload=True)
    for connection in connections._connections.values():
        if connection._metadata is not None:
            connection._metadata.close()
    connections._connections.clear()


@pytest.fixture
def author(root: Path) -> Iterator[Author]:
    made = Author(root)
    yield made
    made.index.close()
