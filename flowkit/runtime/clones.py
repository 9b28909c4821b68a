"""Making a resume plan durable: which tasks a new run takes over, written before anything of it starts."""

from __future__ import annotations

import time

from flowkit.datastore.manifests import read_manifest, write_clones
from flowkit.datastore.many import mapped_over
from flowkit.datastore.storage import Storage
from flowkit.exceptions import FlowkitError
from flowkit.metadata.outputs import output_of
from flowkit.metadata.records import OutputRecord, TaskRecord
from flowkit.runtime.resume import Plan


def write_clone_files(storage: Storage, flow: str, run: str, plan: Plan) -> None:
    """Write ``clones.json`` of every step of a new run.

    A step whose tasks were all made in one run points there; where they come from several, it points to the run
    that is resumed, whose own clones lead further.
    """
    for step, tasks in plan.clones.items():
        origins = set(tasks.values())
        origin = origins.pop() if len(origins) == 1 else plan.origin
        write_clones(storage, flow, run, step, origin, {task: task for task in tasks})


def clone_records(flow: str, run: str, plan: Plan) -> list[TaskRecord]:
    """Return the records of the cloned tasks of a new run, its steps some microseconds apart: steps are listed in
    the order in which they began."""
    now = time.time()
    return [
        TaskRecord(flow, run, step, task, "succeeded", 0, when, when, None, f"{origin}/{step}/{task}")
        for place, (step, tasks) in enumerate(plan.clones.items(), 1 - len(plan.clones))
        for when in (now + place * 2e-6,)
        for task, origin in tasks.items()
    ]


def clone_outputs(storage: Storage, flow: str, run: str, plan: Plan) -> list[OutputRecord]:
    """Return what the cloned tasks of a new run have: what their origins made. One that is unreadable is left out."""
    places = [
        (origin.rpartition("/")[2], step, task) for step, tasks in plan.clones.items() for task, origin in tasks.items()
    ]

    def read(place: tuple[str, str, str]) -> OutputRecord | None:
        origin, step, task = place
        try:
            manifest = read_manifest(storage, flow, origin, step, task)
        except FlowkitError:
            return None  # the task that needs it says so
        return None if manifest is None else output_of(manifest, run=run, task=task, attempt=0)

    return [found for found in mapped_over(storage, read, places) if found is not None]
