"""Manifests, failures and clones: what became of each task, as small objects that are written once.

`write_manifest` is the commit of a task. `read_manifest` follows ``clones.json``: the manifest of a task that was
taken from the origin run is the origin's own.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from flowkit.datastore import layout
from flowkit.datastore.sealed import Damaged, create_sealed, read_sealed
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError
from flowkit.model.manifest import FORMAT, Failure, Manifest

_MAX_CHAIN = 10_000
_Clones = tuple[str, dict[str, str], dict[tuple[str, str], list[tuple[int, int]]]]
_clones: WeakKeyDictionary[Storage, dict[str, _Clones]] = WeakKeyDictionary()


class DamagedManifest(Damaged):
    """A manifest is torn, altered or another task's: the task counts as never having committed."""


def write_manifest(storage: Storage, manifest: Manifest) -> bool:
    """Commit a task.

    Returns
    -------
    bool
        False if another attempt was first, whose manifest is left as it is.

    Raises
    ------
    DamagedManifest
        If what is there already is damaged: nothing may replace it, since another process may be about to.
    StoreError
        If it cannot be written.
    """
    body = manifest.to_json()
    body["nonce"] = os.urandom(8).hex()  # no two writers write the same bytes: a lost reply can be told from a rival
    path = layout.manifest_file(manifest.flow, manifest.run, manifest.step, manifest.task)
    if create_sealed(storage, path, body, _facts(manifest)):
        return True
    try:
        _check(read_sealed(storage, path), manifest.flow, manifest.run, manifest.step, manifest.task, storage, path)
    except Damaged as error:
        raise DamagedManifest(error.headline, f"delete {storage.root}/{path} and resume the run") from error
    return False


def _facts(manifest: Manifest) -> dict[str, str]:
    """Where the flow goes on, for a scheduler that looks at the object and does not read it (on S3: HeadObject)."""
    targets, width = manifest.transition.targets, manifest.transition.width or 0
    return {"width": str(width), **({"next": targets[0]} if len(targets) == 1 else {})}


def read_manifest(
    storage: Storage,
    flow: str,
    run: str,
    step: str,
    task: str,
    *,
    on_damage: Callable[[DamagedManifest], None] | None = None,
) -> Manifest | None:
    """Return what a task committed, or None where it never did.

    For a task that was cloned it is the manifest of the task that it was cloned from, with the origin's run.

    Parameters
    ----------
    on_damage : callable, optional
        Called with the error where a manifest is damaged, and then None is returned: it never happened.

    Raises
    ------
    DamagedManifest
        If a manifest is damaged and there is no `on_damage`.
    DataError
        If a newer flowkit wrote it.
    """
    for _ in range(_MAX_CHAIN):
        path = layout.manifest_file(flow, run, step, task)
        try:
            body = read_sealed(storage, path)
            if body is not None:
                return _check(body, flow, run, step, task, storage, path)
        except Damaged as damage:
            error = DamagedManifest(
                damage.headline, f"it counts as never committed: resume the run from the step '{step}'"
            )
            if on_damage is None:
                raise error from damage
            on_damage(error)
            return None
        origin = clone_origin(storage, flow, run, step, task)
        if origin is None:
            return None
        flow, run, task = origin
    raise DataError(f"the clones of {flow}/{run}/{step} lead nowhere", "their clones.json files are damaged")


def _check(
    body: Mapping[str, Any] | None, flow: str, run: str, step: str, task: str, storage: Storage, path: str
) -> Manifest | None:
    if body is None:
        return None
    version = body.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise DataError(
            f"{storage.root}/{path} has format {version}, this flowkit reads up to {FORMAT}",
            "a newer flowkit wrote it: pip install -U flowkit",
        )
    named = [body.get(part) for part in ("flow", "run", "step", "task")]
    if named != [flow, run, step, task]:
        raise Damaged(f"{storage.root}/{path} is the manifest of another task: {'/'.join(map(str, named))}")
    try:
        return Manifest.from_json(body)
    except DataError as error:
        raise Damaged(f"{storage.root}/{path}: {error.headline}") from error


def write_failure(storage: Storage, flow: str, run: str, step: str, task: str, failure: Failure) -> bool:
    """Record how an attempt (``failure.attempt``) failed; False if it was recorded before, which stays."""
    return create_sealed(storage, layout.failed_file(flow, run, step, task, failure.attempt), failure.to_json())


def read_failure(storage: Storage, flow: str, run: str, step: str, task: str, attempt: int) -> Failure | None:
    """Return how an attempt failed, or None where it did not, or its record is damaged."""
    try:
        body = read_sealed(storage, layout.failed_file(flow, run, step, task, attempt))
        return None if body is None else Failure.from_json(body)
    except (Damaged, TypeError):  # like a manifest: what cannot be read never happened
        return None


def attempts(storage: Storage, flow: str, run: str, step: str, task: str) -> list[int]:
    """Return the attempts of a task that left a log or a failure, in order."""
    names = storage.children(layout.task_folder(flow, run, step, task))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def write_clones(storage: Storage, flow: str, run: str, step: str, origin: str, tasks: Mapping[str, str]) -> bool:
    """Record the tasks of a step that are taken from the origin run; written once, before the run starts anything.

    Parameters
    ----------
    origin : str
        ``Flow/run``.
    tasks : mapping of str to str
        Task to the origin's task; mostly the same, which is kept as spans of indices.

    Returns
    -------
    bool
        False if the step's clones were recorded before, which stay.
    """
    spans: dict[tuple[str, str], list[int]] = {}
    others: dict[str, str] = {}
    for task, origin_task in tasks.items():
        if task == origin_task:
            prefix, index, suffix = _split(task)
            spans.setdefault((prefix, suffix), []).append(index)
        else:
            others[task] = origin_task
    same = [[prefix, suffix, _ranges(indices)] for (prefix, suffix), indices in spans.items()]
    return create_sealed(
        storage, layout.clones_file(flow, run, step), {"origin": origin, "same": same, "others": others}
    )


def read_clones(storage: Storage, flow: str, run: str, step: str) -> tuple[str, dict[str, str]] | None:
    """Return the origin (``Flow/run``) of a step's clones and each task with its origin's; None where there are none.

    Raises
    ------
    Damaged
        If the record is damaged.
    """
    clones = _cached_clones(storage, flow, run, step)
    if clones is None:
        return None
    origin, others, same = clones
    tasks = dict(others)
    for (prefix, suffix), ranges in same.items():
        for first, length in ranges:
            for index in range(first, first + length):
                task = f"{prefix}{index}{suffix}"
                tasks[task] = task
    return origin, tasks


def clone_origin(storage: Storage, flow: str, run: str, step: str, task: str) -> tuple[str, str, str] | None:
    """Return (flow, run, task) of the task that one was cloned from, or None where it was not cloned."""
    clones = _cached_clones(storage, flow, run, step)
    if clones is None:
        return None
    origin, others, same = clones
    origin_task = others.get(task)
    if origin_task is None:
        prefix, index, suffix = _split(task)
        ranges = same.get((prefix, suffix), [])
        place = bisect_right(ranges, (index, 1 << 62)) - 1
        if place < 0 or index >= ranges[place][0] + ranges[place][1]:
            return None
        origin_task = task
    origin_flow, _, origin_run = origin.partition("/")
    return origin_flow, origin_run, origin_task


def _cached_clones(storage: Storage, flow: str, run: str, step: str) -> _Clones | None:
    cache = _clones.setdefault(storage, {})
    path = layout.clones_file(flow, run, step)
    if path not in cache:
        body = read_sealed(storage, path)
        if body is None:
            return None  # not remembered: a resume that is being prepared writes it in a moment
        same = {(prefix, suffix): [(a, n) for a, n in ranges] for prefix, suffix, ranges in body["same"]}
        cache[path] = (body["origin"], body["others"], same)
    return cache[path]


def _split(task: str) -> tuple[str, int, str]:
    """Take a task id apart: what is before its last index, the index, its turn (``3.1-2``: ``3.``, 1, ``-2``)."""
    body, dash, turn = task.partition("-")
    prefix, dot, last = body.rpartition(".")
    return prefix + dot, int(last), dash + turn


def _ranges(indices: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][0] + found[-1][1] == index:
            found[-1][1] += 1
        else:
            found.append([index, 1])
    return found
