"""Runs of a scheduler that have ended: whether anything of them may still go on, and what became of the rest."""

from __future__ import annotations

import time

from flowkit.datastore.runs import read_end
from flowkit.datastore.storage import Storage
from flowkit.metadata.records import FINAL, RunRecord, State, TaskRecord

SETTLED_SECONDS = 86400.0
"""After its end, so long a scheduler's run that failed may go on, where no end command has said anything else."""


def is_settled(storage: Storage, record: RunRecord, now: float | None = None) -> bool:
    """Whether nothing of a scheduler's run that has ended goes on any more; False for any other run.

    One of its tasks fails, and the run has failed: others may be at work for a while, and more so the scheduler may try
    that task again. It is settled when the end command says so, or nothing was heard of it for a day.
    """
    if not record.unattended or record.state not in FINAL:
        return False
    now = time.time() if now is None else now
    if record.state == "succeeded" or now - (record.finished or record.created) > SETTLED_SECONDS:
        return True
    return bool((read_end(storage, record.flow, record.run) or {}).get("settled"))


def left_open(task: TaskRecord, over: State) -> TaskRecord:
    """Return a task of a run that is over: one that never told how it ended was stopped with it, or is lost."""
    if task.state != "running":
        return task
    if over == "cancelled":
        return task._replace(state="cancelled", reason="its run was stopped", pid=None)
    return task._replace(state="lost", reason="its run ended before it told how it went", pid=None)
