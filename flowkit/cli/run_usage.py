"""What the tasks of a run have used, step by step: ``python flow.py status RUN --usage``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flowkit.cli.lookup import Place, tasks_of
from flowkit.cli.run_summary import size
from flowkit.cli.table import short, table
from flowkit.datastore.manifests import read_failure, read_manifest
from flowkit.datastore.many import paired_with
from flowkit.model.usage import Usage

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.records import RunRecord, TaskRecord
    from flowkit.metadata.store import MetadataStore


def usage_by_step(storage: Storage, store: MetadataStore, run: RunRecord, order: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each step that has ended tasks, what these used: plain values.

    It opens the manifest of every task (of one that failed, the record of its last attempt), and keeps a few numbers a
    step.

    Parameters
    ----------
    storage, store
        Where the run is.
    run : RunRecord
        The run.
    order : sequence of str
        The steps, in the order in which they are to come.
    """
    found: dict[str, dict[str, Any]] = {step: _nothing(step) for step in order}
    for task, usage in _ended(storage, tasks_of(store, Place(run))):
        row = found.setdefault(task.step, _nothing(task.step))
        row["tasks"] += 1
        row["cpu_seconds"] += usage.cpu_seconds
        for name, value in (("slowest", usage.seconds), ("largest", usage.memory), ("gpu", usage.gpu_memory)):
            if value is not None and (row[name] is None or value > row[name][1]):
                row[name] = (task.task, value)
    return [row for row in found.values() if row["tasks"]]


def usage_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return what `usage_by_step` found as a table."""
    rows = list(rows)
    if not rows:
        return ["nothing is recorded of what its tasks used"]
    gpu = any(row["gpu"] for row in rows)
    heads = ["step", "tasks", "CPU", "slowest", "", "most memory", "", *(["most GPU memory", ""] if gpu else [])]
    cells = []
    for row in rows:
        peaks = [row["slowest"], row["largest"], *([row["gpu"]] if gpu else [])]
        shown = [f"{row['tasks']:,}", short(row["cpu_seconds"])]
        for place, peak in enumerate(peaks):
            shown += (
                ["-", ""] if peak is None else [size(peak[1]) if place else short(peak[1]), f"{row['step']}/{peak[0]}"]
            )
        cells.append([row["step"], *shown])
    return table(heads, cells, right=(1, 2, 3, 5, 7))


def _ended(storage: Storage, tasks: Iterable[TaskRecord]) -> Iterator[tuple[TaskRecord, Usage]]:
    for task, usage in paired_with(storage, lambda task: _usage_of(storage, task), tasks):
        if usage is not None:
            yield task, usage


def _usage_of(storage: Storage, task: TaskRecord) -> Usage | None:
    place = (task.flow, task.run, task.step, task.task)
    if task.state == "succeeded":
        manifest = read_manifest(storage, *place, on_damage=lambda _: None)
        found = manifest and Usage.read(manifest.extra.get("usage"), manifest.started, manifest.ended)
        return found or None
    failure = read_failure(storage, *place, task.attempt)
    return None if failure is None else Usage.read(failure.usage, failure.started or task.started, failure.ended)


def _nothing(step: str) -> dict[str, Any]:
    return {"step": step, "tasks": 0, "cpu_seconds": 0.0, "slowest": None, "largest": None, "gpu": None}
