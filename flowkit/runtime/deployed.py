"""A task that a foreign scheduler starts: the wrapper in its container begins the run, numbers the attempt, carries the
task out as a process of its own, and tells what follows.

The scheduler's side of it is `flowkit.deployer.target`; what passes between both are environment variables
(`flowkit.model.deployed`). Nobody watches the run: its tasks write its records (`flowkit.runtime.own_records`), and
whoever the scheduler starts after a failure ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from flowkit.datastore.layout import index_file, task_folder
from flowkit.datastore.manifests import read_failure, read_manifest, write_failure
from flowkit.datastore.runs import claim_named_run, read_run
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, FlowkitError, UsageError
from flowkit.metadata.records import State
from flowkit.model import deployed
from flowkit.model.coordinates import Coordinates
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure, Manifest
from flowkit.model.pathspec import check_part
from flowkit.model.transition import Transition
from flowkit.runtime.container import Row, run_logged
from flowkit.runtime.retries import INTERRUPTED
from flowkit.runtime.template import claim_of, read_template
from flowkit.settings import variable

_INDEX = ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_NODE_INDEX", "JOB_COMPLETION_INDEX", "FLOWKIT_NODE")
_STATES: Mapping[str, State] = {
    "succeeded": "succeeded",
    "success": "succeeded",
    "completed": "succeeded",
    "cancelled": "cancelled",
    "canceled": "cancelled",
    "aborted": "cancelled",
    "terminated": "cancelled",
}
"""What schedulers call the ends of runs; everything else is a failure."""


class Work(NamedTuple):
    """What every container of a deployed run is told by its command.

    Parameters
    ----------
    storage : Storage
        The datastore.
    flow : str
        The flow's name.
    program : str
        How the flow is started in the working directory: ``flow.py``, or ``-m package.module``.
    template : str or None
        The key of what the run begins from, for the start step and for the end.
    record : bool
        Whether tasks write their records.
    timeout : float or None
        Seconds that a step's code may take.
    limit : int
        Bytes kept of a log.
    """

    storage: Storage
    flow: str
    program: str
    template: str | None
    record: bool
    timeout: float | None
    limit: int


def carry_out(work: Work, step: str) -> int:
    """Carry out the task that the environment names, and return the exit status of this process.

    That is `flowkit.model.deployed.FINAL` where no further attempt is of use.

    Raises
    ------
    UsageError
        If the environment does not name a task.
    DataError
        If what the run begins from is missing, or the id of the run belongs to something else.
    """
    run = _run_id()
    place, gang, node = _place(step)
    if work.template is not None:
        _begin(work, run)
    if variable(deployed.TURNS) != "all":
        return _told(work, run, step, place, gang, node)
    turn = 0
    while True:  # a loop's turns, one after the other
        status = _told(work, run, step, Coordinates(place.indices, turn), gang, node)
        if status:
            return status
        manifest = read_manifest(work.storage, work.flow, run, step, str(Coordinates(place.indices, turn)))
        if manifest is None or manifest.transition.targets != (step,):
            return 0
        turn += 1


def _told(work: Work, run: str, step: str, place: Coordinates, gang: int, node: int | None) -> int:
    """Carry out one task and tell what follows it."""
    task = str(place)
    manifest = read_manifest(work.storage, work.flow, run, step, task)
    if manifest is None:
        status = _attempt(work, run, step, place, gang, node)
        if status or node:
            return status
        manifest = read_manifest(work.storage, work.flow, run, step, task)
        if manifest is None:
            raise DataError(f"the process of {step}/{task} ended well and left no result")
    if not node:
        tell(work.storage, manifest)
    return 0


def _attempt(work: Work, run: str, step: str, place: Coordinates, gang: int, node: int | None) -> int:
    """Carry out one attempt of a task."""
    before = _number(deployed.ATTEMPT) or 0
    # The nodes of a gang have to agree on the number, and none of them sees what the others have begun.
    attempt = before if gang else max(before, *_begun(work, run, step, str(place)))
    row = Row(work.flow, run, Launch(step, place, attempt=attempt, gang=gang), node)
    if attempt:
        _note_silence(work.storage, row, attempt - 1)
    words = ["step", step, str(place), "--run-id", run, "--attempt", str(attempt), "--deployed"]
    if work.template is not None:
        words += ["--begin", work.template]
    if work.record:
        words.append("--record")
    if gang:
        words += ["--gang", str(gang), "--node", str(node or 0)]
    return run_logged(work.storage, row, work.program, words, timeout=work.timeout, limit=work.limit)


def _begun(work: Work, run: str, step: str, task: str) -> list[int]:
    """Return the numbers that the next attempt may have, as far as earlier ones have left something."""
    names = work.storage.children(task_folder(work.flow, run, step, task))
    return [0, *(int(name) + 1 for name in names if name.isascii() and name.isdigit() and len(name) < 7)]


def _note_silence(storage: Storage, row: Row, attempt: int) -> None:
    """Record an attempt whose container is gone without a word: another one follows, retries left or not."""
    step, task = row.launch.step, row.task
    if read_failure(storage, row.flow, row.run, step, task, attempt) is None:
        message = "its container ended without a word: the machine was taken away, or somebody removed it"
        now = time.time()
        write_failure(storage, row.flow, row.run, step, task, Failure(INTERRUPTED, message, attempt=attempt, ended=now))


def _begin(work: Work, run: str) -> None:
    """Claim the run, unless that has been done: this container may not be the first."""
    template = read_template(work.storage, str(work.template))
    if claim_named_run(work.storage, work.flow, run, claim_of(template)):
        return
    there = read_run(work.storage, work.flow, run)
    if there is None or there.get("deployment") != template.claim.get("deployment"):
        raise DataError(
            f"there is a run {work.flow}/{run} already, and it is of another deployment, or was deleted",
            "the scheduler must give each of its runs a name of its own",
        )


def end(work: Work) -> int:
    """End the run that the environment names as it says, and call exit hooks; return the exit status of this process.

    A run that has ended already keeps its end.
    """
    from flowkit.runtime.own_records import end_run

    run = _run_id()
    told = (variable(deployed.STATE) or "failed").strip().lower()
    state = _STATES.get(told, "failed")
    reason = variable(deployed.REASON) or None
    if work.template is not None and read_run(work.storage, work.flow, run) is None:
        _begin(work, run)  # not even its first container could do it: it shall be seen that there was a run
    end_run(work.storage, work.flow, run, state, reason)
    if work.record:
        _record_end(work, run, state, reason)
    words = ["ended", "--run-id", run]
    if work.template is not None:
        words += ["--template", work.template]
    row = Row(work.flow, run, Launch("_ended", Coordinates()), None)
    return run_logged(work.storage, row, work.program, words, timeout=work.timeout, limit=work.limit)


def _record_end(work: Work, run: str, state: State, reason: str | None) -> None:
    """Tell the metadata store, from here: the flow's own file may be what cannot be read."""
    from flowkit.metadata.opening import open_store
    from flowkit.runtime.own_records import DELIVERY_SECONDS, end_run, has_store
    from flowkit.settings import settings

    name = settings().metadata
    if not has_store(work.storage, name):
        return
    try:
        store = open_store(name, work.storage.root)
        try:
            end_run(work.storage, work.flow, run, state, reason, store)
            left = store.deliver(DELIVERY_SECONDS)
        finally:
            store.close()
    except FlowkitError as error:
        left = error.headline
    if left is not None:
        sys.stderr.write(f"flowkit: the metadata store does not know that the run is over: {left}\n")


# -- what follows ------------------------------------------------------------------------------------------------------


def tell(storage: Storage, manifest: Manifest) -> None:
    """Tell the scheduler what follows a task, in the way that the environment asks for.

    Raises
    ------
    UsageError
        If it cannot be written there.
    """
    transition = manifest.transition
    if variable(deployed.INDEX) == "1" and transition.kind == "foreach":
        children = json.dumps(_children(manifest)).encode()
        storage.create(index_file(manifest.flow, manifest.run, manifest.step, manifest.task), [children])
    place = variable(deployed.NEXT)
    if not place:
        return
    found = _following(transition)
    text = json.dumps(found, separators=(",", ":"))
    try:
        if place == "-":
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        elif place.endswith(".json"):
            os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
            _write(place, text)
        else:
            os.makedirs(place, exist_ok=True)
            for name, value in found.items():
                _write(os.path.join(place, name), str(value))
    except OSError as error:
        raise UsageError(f"what follows the task cannot be written: {error}", f"see {deployed.NEXT}") from error


def _following(transition: Transition) -> dict[str, str | int]:
    return {"step": ",".join(transition.targets), "width": transition.width or 0}


def _children(manifest: Manifest) -> list[str]:
    """Return the task ids of a foreach's children, in order."""
    prefix = f"{manifest.task}." if manifest.frames else ""
    return [f"{prefix}{index}" for index in range(manifest.transition.width or 0)]


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# -- the environment ---------------------------------------------------------------------------------------------------


def _run_id() -> str:
    run = variable(deployed.RUN)
    if not run:
        raise UsageError(f"{deployed.RUN} does not say which run this is", "only schedulers start this command")
    return check_part(run)


def _place(step: str) -> tuple[Coordinates, int, int | None]:
    """Return the coordinates, and of a gang the number of nodes and which one this is."""
    gang = _number(deployed.GANG) or 0
    prefix = variable(deployed.PREFIX)
    index = next((found for found in map(_number, _INDEX) if found is not None), None)
    if prefix is not None:
        if index is None:
            raise UsageError(f"{deployed.PREFIX} goes with a job that has an index", f"none of {', '.join(_INDEX)}")
        if gang and index >= gang:
            raise DataError(f"this is node {index} of a gang of {gang}", "the service started too many")
        text = f"{prefix}{0 if gang else index}"
    else:
        text = variable(deployed.TASK) or ""
    # A step outside any foreach has the task 0, which is written as index 0 is: for names that is enough.
    depth = text.partition("-")[0].count(".") + 1
    return Coordinates.parse(text, depth), gang, (index or 0) if gang else None


def _number(name: str) -> int | None:
    text = variable(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"{name} must be a number, not {text!r}")
    return int(text)
