"""How a failed attempt is told: the exception cut down to the user's own frames."""

from __future__ import annotations

import os

from flowkit.exceptions import FlowkitError, InvalidNext, TimeoutException, is_ours, message_of, user_traceback
from flowkit.model.manifest import Failure

_LIMIT = 20_000
"""Characters of a traceback or a message that are kept."""


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
