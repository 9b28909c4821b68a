"""How a failed attempt is told: the exception cut down to the user's own frames, or how its process ended."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from flowkit.exceptions import FlowkitError, InvalidNext, TimeoutException, is_ours, message_of, user_traceback
from flowkit.model.manifest import Failure
from flowkit.model.usage import to_json

if TYPE_CHECKING:
    from flowkit.runtime.executor import Ended

_LIMIT = 20_000
"""Characters of a traceback or a message that are kept."""
_BY_SERVICE = {
    "image": ("its container image cannot be had", "check the image's name, and that the service may pull it"),
    "capacity": ("the service has no machine for it", "ask for less, or for another queue or kind of machine"),
    "evicted": (
        "its machine was reclaimed",
        "it was started again as often as allowed (FLOWKIT_INFRASTRUCTURE_RETRIES): use machines that are not "
        "reclaimed, or shorter steps",
    ),
    "deleted": ("somebody deleted its job", "resume the run to run it again"),
    "unreachable": ("the service has not answered for long", "resume the run when it is there again"),
    "setup": ("its container could not be set up", "see what the container says: its log is at the service"),
    "rejected": ("the service refused its job", "mend what it says, and resume the run"),
}
"""What a service told of its end: in words, and what to do next."""


def describe(error: BaseException, flow_file: str, *, attempt: int, started: float, ended: float) -> Failure:
    """Return what is recorded of an exception that ended an attempt.

    Parameters
    ----------
    error : BaseException
        What the step raised.
    flow_file : str
        The file of the flow, whose innermost frame is the location.
    attempt, started, ended
        As in `Failure`.
    """
    kind = type(error)
    text = error.headline if isinstance(error, FlowkitError) else message_of(error)
    return Failure(
        kind="timeout" if isinstance(error, TimeoutException) else "error",
        message=f"{kind.__name__}: {text}"[:_LIMIT] if text else kind.__name__,
        exception=_full_name(kind),
        bases=tuple(_full_name(base) for base in kind.__mro__[1:] if base not in (object, BaseException)),
        traceback=user_traceback(error)[:_LIMIT],
        location=_location(error, flow_file),
        exit_status=1,
        retry=not isinstance(error, InvalidNext),
        attempt=attempt,
        started=started,
        ended=ended,
    )


def _full_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _absolute(file: str) -> str:
    try:
        return os.path.abspath(file)
    except FileNotFoundError:  # the step has deleted the working directory
        return file


def _location(error: BaseException, flow_file: str) -> str | None:
    frame = error.__traceback__
    in_flow = elsewhere = None
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if file == flow_file or _absolute(file) == _absolute(flow_file):
            in_flow = f"{file}:{frame.tb_lineno}"
        elif not is_ours(file):
            elsewhere = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    if in_flow is None and isinstance(error, FlowkitError) and error.where is not None:
        return str(error.where)
    return in_flow or elsewhere


def silent_failure(event: Ended, *, stopping: str | None) -> Failure:
    """Return the failure of an attempt whose process said nothing about its end.

    Parameters
    ----------
    event : Ended
        What the executor saw.
    stopping : str or None
        Why the run is being stopped, if it is.
    """
    status = event.exit_status
    kind, message = _by_service(event) or _explain(event.reason, status)
    if stopping is not None and kind in ("killed", "vanished", "deleted"):
        kind, message = "cancelled", stopping
    usage = to_json(*event.usage) if event.usage is not None else None
    retry = kind not in ("image", "rejected", "setup")
    return Failure(
        kind, message, exit_status=status, retry=retry, attempt=event.launch.attempt, ended=event.when, usage=usage
    )


def _by_service(event: Ended) -> tuple[str, str] | None:
    """Say it with the words of the service that carried the launch out, if one did."""
    reason, told = event.reason, event.message[:_LIMIT]
    if reason in _BY_SERVICE:
        what, todo = _BY_SERVICE[reason]
        return reason, f"{what}: {told} ({todo})" if told else f"{what} ({todo})"
    if not told:
        return None
    if reason == "oom":
        return "oom", f"it needed more memory than it had asked for ({told}): see @resources(memory=…)"
    if reason == "lost":
        return "lost", f"the service does not know its job any more ({told})"
    kind, message = _explain(reason, event.exit_status)
    return kind, f"{message} ({told})"


def _explain(reason: str | None, status: int | None) -> tuple[str, str]:
    if reason == "timeout":
        return "timeout", "it ran longer than @timeout allows and had to be killed"
    if reason == "oom":
        return "oom", "the system ran out of memory and killed it"
    if reason == "cancelled":
        return "cancelled", "it was cancelled"
    if reason == "refused":
        return "lost", "no process could be started for it: too many are running, or open (see ulimit -u and ulimit -n)"
    if reason == "lost" or status is None:
        return "lost", "its process is gone and nobody knows how it ended"
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        if -status in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT):
            return "crash", f"its process crashed ({name})"
        return "killed", f"its process was killed by {name}"
    return "vanished", f"its process ended with status {status} and without a result"
