"""What passes between a foreign scheduler and the containers that it starts: names of variables, and a status.

Both sides read them here: the compilers (as part of the port, `flowkit.deployer.target`) and the container's wrapper
(`flowkit.runtime.deployed`).
"""

from __future__ import annotations

RUN = "FLOWKIT_DEPLOYED_RUN"
"""The run's id, the same for all its tasks: ``<target's prefix>-<execution>``. Every container gets it."""
TASK = "FLOWKIT_DEPLOYED_TASK"
"""The task's coordinates: ``0``, ``3``, ``3.1``; of a loop step with its turn: ``0-2``. Of a gang, those of the task
that opened it go before the node's index: use `PREFIX`."""
PREFIX = "FLOWKIT_DEPLOYED_PREFIX"
"""Instead of `TASK`, for a job with an index of its own (a Batch array, an Indexed Job): the task is this text and the
index. Empty where the step is in one foreach, ``3.`` within index 3 of an outer one."""
GANG = "FLOWKIT_DEPLOYED_GANG"
"""For a step of a gang: how many nodes. Goes with `PREFIX`; the node's index is that of the job."""
TURNS = "FLOWKIT_DEPLOYED_TURNS"
"""``all``: this container carries out every turn of a loop step, from the first (`TASK` has no turn then)."""
ATTEMPT = "FLOWKIT_DEPLOYED_ATTEMPT"
"""How many attempts the scheduler has begun before this one: 0 for the first. May be left out."""
NEXT = "FLOWKIT_DEPLOYED_NEXT"
"""Where to write what follows: a folder, in which the files ``step`` (the target's name; of a split all, with commas)
and ``width`` (of a foreach or gang, else 0) are made; or a ``….json`` file with both, ``{"step": …, "width": …}``; or
``-`` for that JSON as the last line of stdout. On S3 the manifest itself has them as object metadata, ``next`` (of one
target) and ``width``."""
INDEX = "FLOWKIT_DEPLOYED_INDEX"
"""``1``: a foreach also writes a JSON list of its children's task ids (`flowkit.datastore.layout.index_file`)."""
TRIGGER = "FLOWKIT_DEPLOYED_TRIGGER"
"""For the start step: JSON, what started the run: a list of ``[name, id, seconds since the epoch, "event"|"run"]``."""
PARAMETER = "FLOWKIT_PARAMETER_"
"""For the start step, with a parameter's attribute name behind it: its value as JSON, or as on the command line."""
STATE = "FLOWKIT_DEPLOYED_STATE"
"""For the end command: ``succeeded``, ``failed`` or ``cancelled``, or whatever the scheduler calls these."""
REASON = "FLOWKIT_DEPLOYED_REASON"
"""For the end command: a line about why, where the scheduler knows one."""
NOTIFY = "FLOWKIT_NOTIFY"
"""For the end command: after which ends people are told: ``error``, ``success``, or both with a comma."""
NOTIFY_URL = "FLOWKIT_NOTIFY_URL"
"""Where they are told: a webhook, a secret of the cluster or account; in no document."""

FINAL = 79
"""Exit status of a container whose task failed so that no further attempt is of use: a scheduler that can tell need not
try again. One that cannot may: the next container ends at once with the same status."""
