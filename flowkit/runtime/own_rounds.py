"""Another round of a scheduler's run: somebody has it try again what had failed for good.

Such a run is over, and its end command has said so, when a container of the failed task starts once more. Then the
user's code gets one more attempt, though the policy knows of none, and the run has not ended any more. What had failed
before that moment may be tried once more by its own containers, too.
"""

from __future__ import annotations

import time

from flowkit.datastore.layout import end_file, round_file
from flowkit.datastore.manifests import read_failure
from flowkit.datastore.runs import read_end
from flowkit.datastore.sealed import Damaged, read_sealed, seal
from flowkit.datastore.storage import Storage
from flowkit.model.launch import Launch
from flowkit.runtime.gang import nodes_of


def asked_again(storage: Storage, flow: str, run: str, launch: Launch) -> bool:
    """Whether an attempt that the policy does not know of is to be made.

    Parameters
    ----------
    storage : Storage
        The datastore.
    flow, run : str
        The run.
    launch : Launch
        The attempt.
    """
    end = read_end(storage, flow, run)
    if end is not None:
        return bool(end.get("settled")) and end.get("state") != "succeeded"
    try:
        began = (read_sealed(storage, round_file(flow, run)) or {}).get("began")
    except Damaged:
        began = None
    if not isinstance(began, (int, float)):
        return False
    for attempt in reversed(range(launch.attempt)):
        for ref in nodes_of(launch):
            failure = read_failure(storage, flow, run, ref.step, str(ref.coordinates), attempt)
            if failure is not None:
                return failure.ended < began
    return False


def begin_round(storage: Storage, flow: str, run: str) -> bool:
    """Take the end of a run back, unless it has succeeded; False where it has not ended."""
    end = read_end(storage, flow, run)
    if end is None or end.get("state") == "succeeded":
        return False
    storage.replace(round_file(flow, run), [seal({"began": time.time()})])
    storage.delete(end_file(flow, run))
    return True
