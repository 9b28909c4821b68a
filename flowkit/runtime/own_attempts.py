"""Which kind of attempt comes next, where no runtime remembers: told from how the attempts before it ended."""

from __future__ import annotations

from flowkit.datastore.manifests import read_failure
from flowkit.datastore.storage import Storage
from flowkit.decorators.contract import Attempts
from flowkit.model.launch import AttemptKind, Launch
from flowkit.model.manifest import Failure
from flowkit.runtime.gang import OTHER_FAILED, nodes_of
from flowkit.runtime.retries import INTERRUPTED, decide


def kind_of(
    storage: Storage, flow: str, run: str, launch: Launch, attempt: int, policy: Attempts
) -> AttemptKind | None:
    """Return the kind of an attempt: ``user``, or ``fallback`` where decorators stand in; None where none is to follow.

    Parameters
    ----------
    storage : Storage
        The datastore.
    flow, run : str
        The run.
    launch : Launch
        The task, whatever its attempt; of a gang its control node.
    attempt : int
        Which attempt is meant: those before it are over.
    policy : Attempts
        How often the step is tried.
    """
    kind: AttemptKind | None = "user"
    for number in range(attempt):
        if kind is None:
            return None
        before = launch._replace(attempt=number, kind=kind)
        kind = decide(policy, before, _failure(storage, flow, run, before)).kind
    return kind


def _failure(storage: Storage, flow: str, run: str, launch: Launch) -> Failure:
    """Return how an attempt ended; of a gang how the node ended that failed first of all."""
    found = None
    for ref in nodes_of(launch):
        failure = read_failure(storage, flow, run, ref.step, str(ref.coordinates), launch.attempt)
        if failure is None or failure.kind == INTERRUPTED:
            continue
        if not failure.message.endswith(OTHER_FAILED):
            return failure
        found = found or failure
    return found or Failure(INTERRUPTED, "its container ended without a word", attempt=launch.attempt)
