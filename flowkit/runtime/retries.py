"""Whether an attempt that failed is followed by another one, and when."""

from __future__ import annotations

from typing import NamedTuple

from flowkit.decorators.contract import Attempts
from flowkit.model.launch import AttemptKind, Launch
from flowkit.model.manifest import Failure

INTERRUPTED = "interrupted"
"""The kind of failure of an attempt that ended because its runtime did: another one follows, retries left or not."""
ONCE = Attempts()
"""A step without ``@retry`` and ``@catch``."""

SILENT = frozenset(
    {"killed", "oom", "crash", "vanished", "lost", "timeout"}
    | {"image", "capacity", "evicted", "deleted", "unreachable", "setup", "rejected"}
)
"""Failures of a process that could not speak for itself (a timeout that the step raised itself could)."""


class Verdict(NamedTuple):
    """What follows a failed attempt.

    Parameters
    ----------
    kind : str or None
        The kind of the next attempt, or None if there is none.
    delay : float
        Seconds until it.
    why : str
        Why there is none.
    """

    kind: AttemptKind | None
    delay: float = 0.0
    why: str = ""


def decide(attempts: Attempts, launch: Launch, failure: Failure) -> Verdict:
    """Decide what follows a failed attempt of a task in a run that goes on.

    The user's code is tried ``retries + 1`` times at most, then the decorators stand in for it once, where they
    offer it (`Attempts.fallback`) and have not had their chance: in the last attempt they saw what the user's
    code raised, but not the death of the process; nor do they see an error in an earlier attempt that
    ``@retry(on=…)`` turns into the last one.
    """
    if failure.kind == INTERRUPTED:
        return Verdict(launch.kind)
    if launch.kind == "fallback":
        return Verdict(None, why="the fallback failed too")
    if failure.kind == "cancelled":
        return Verdict(None, why="it was cancelled")
    why = _why_not(attempts, launch.attempt, failure)
    if why is None:
        return Verdict("user", pause(attempts, launch.attempt + 1))
    silent = failure.kind in SILENT and failure.exception is None
    early = launch.attempt < attempts.retries and failure.retry
    if attempts.fallback and (silent or early):
        return Verdict("fallback")
    return Verdict(None, why=why)


def pause(attempts: Attempts, retry: int) -> float:
    """Return the seconds to wait before a retry, counted from 1."""
    if attempts.delay <= 0:
        return 0.0
    try:
        delay = attempts.delay * attempts.backoff ** (retry - 1)
    except OverflowError:
        return attempts.max_delay
    return max(0.0, min(delay, attempts.max_delay))


def _why_not(attempts: Attempts, attempt: int, failure: Failure) -> str | None:
    """Why the user's code is not tried again, or None if it is."""
    if not failure.retry:
        return "another attempt would end the same way"
    if attempt >= attempts.retries:
        return "no retry is left" if attempts.retries else "the step has no @retry"
    classes = (failure.exception, *failure.bases) if failure.exception else failure.bases
    if not attempts.retries_on(failure.kind, classes):
        what = failure.exception or failure.kind
        return f"@retry(on=…) does not name {what}"
    return None
