"""Making a resume plan durable: which tasks a new run takes over, written before anything of it starts."""

from __future__ import annotations

import time

from flowkit.datastore.manifests import write_clones
from flowkit.datastore.storage import Storage
from flowkit.metadata.records import TaskRecord
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
