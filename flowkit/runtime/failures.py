"""How a failed attempt is told: the exception cut down to the user's own frames."""

from __future__ import annotations

import os
from typing import Any

from flowkit.exceptions import FlowkitError, InvalidNext, TimeoutException
from flowkit.model.manifest import Failure

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PLUGINS = os.path.join(os.path.dirname(_OURS), "plugins")
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
    text = error.headline if isinstance(error, FlowkitError) else _text(error)
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


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an exception without frames of this package.

    An error of ours that no frame of the user's led to is shown as its plain text.
    """
    import traceback

    told = traceback.TracebackException.from_exception(error, compact=True)
    if isinstance(error, FlowkitError) and not any(not _is_ours(frame.filename) for frame in told.stack):
        return f"{error}\n"
    seen: set[int] = set()
    todo: list[Any] = [told]
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if not _is_ours(frame.filename)]
        todo += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    return "".join(told.format())


def _is_ours(file: str) -> bool:
    return file.startswith((_OURS + os.sep, _PLUGINS + os.sep)) or file.startswith("<frozen ")


def _location(error: BaseException, flow_file: str) -> str | None:
    frame = error.__traceback__
    in_flow = elsewhere = None
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if os.path.abspath(file) == os.path.abspath(flow_file):
            in_flow = f"{file}:{frame.tb_lineno}"
        elif not _is_ours(file):
            elsewhere = f"{file}:{frame.tb_lineno}"
        frame = frame.tb_next
    if in_flow is None and isinstance(error, FlowkitError) and error.where is not None:
        return str(error.where)
    return in_flow or elsewhere


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # the user's __str__ may itself be wrong
        return f"(its text cannot be shown: {type(broken).__name__})"
