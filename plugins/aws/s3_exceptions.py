"""What `flowkit.S3` raises.

::

    FlowkitS3Exception               a call that failed; lists every key that did
    ├── FlowkitS3NotFound            no such object, bucket or local file
    ├── FlowkitS3AccessDenied        the credentials do not allow it
    ├── FlowkitS3InvalidRange        a range that is not in the object
    ├── FlowkitS3URLException        a key or URL that cannot be one, or no place to put it below
    ├── FlowkitS3InsufficientDiskSpace   the folder for temporary files is full
    └── FlowkitS3InvalidObject       a value that cannot be stored

The names are those of Metaflow with ``Flowkit`` for ``Metaflow``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.exceptions import NotFound, StoreError, UsageError

SHOWN = 20
"""How many failures an error's text lists; all are in its attribute."""


class S3Failure(NamedTuple):
    """One key that failed.

    Parameters
    ----------
    url : str
        The object, or the local file.
    reason : str
        What is wrong, with the service's request id where it answered.
    """

    url: str
    reason: str

    def __str__(self) -> str:
        return f"{self.url}: {self.reason}" if self.url else self.reason


class FlowkitS3Exception(StoreError):
    """A call of `flowkit.S3` failed.

    Parameters
    ----------
    headline : str
        What is wrong.
    hint : str, optional
        What to do next.
    failures : sequence of S3Failure
        Every key that failed. Nothing that the call downloaded is kept; what it uploaded is.
    """

    def __init__(self, headline: str, hint: str | None = None, failures: Sequence[S3Failure] = ()) -> None:
        super().__init__(headline, hint)
        self.failures = tuple(failures)

    def __reduce__(self) -> tuple[type[FlowkitS3Exception], tuple[str, str | None, tuple[S3Failure, ...]]]:
        return type(self), (self.headline, self.hint, self.failures)


class FlowkitS3NotFound(FlowkitS3Exception, NotFound):
    """There is no such object, bucket or local file."""

    exit_code = 4


class FlowkitS3AccessDenied(FlowkitS3Exception):
    """The credentials do not allow the call."""


class FlowkitS3InvalidRange(FlowkitS3Exception, UsageError):
    """A range begins past the end of the object, or is none."""

    exit_code = 2


class FlowkitS3URLException(FlowkitS3Exception, UsageError):
    """A key or a URL cannot be one, or there is no prefix that a key could be below."""

    exit_code = 2


class FlowkitS3InsufficientDiskSpace(FlowkitS3Exception):
    """The folder for temporary files is full."""


class FlowkitS3InvalidObject(FlowkitS3Exception, UsageError):
    """A value cannot be stored: it is neither text, bytes nor a seekable binary file."""

    exit_code = 2


def together(errors: Sequence[FlowkitS3Exception], *, rest_untried: bool = False) -> FlowkitS3Exception:
    """Return one error that tells all failures of a call.

    Parameters
    ----------
    errors : sequence of FlowkitS3Exception
        At least one. Where all are of one class, so is the error that is returned.
    rest_untried : bool, default False
        Whether one of them was such that nothing further was tried.
    """
    if len(errors) == 1:
        return errors[0]
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else FlowkitS3Exception
    failures = [failure for error in errors for failure in error.failures or (S3Failure("", error.headline),)]
    lines = [f"  {failure}" for failure in failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"  and {len(failures) - SHOWN:,} more (all are in the error's attribute failures)")
    if rest_untried:
        lines.append("  nothing further was tried")
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return kind(f"{len(failures):,} S3 objects failed:\n" + "\n".join(lines), next(iter(hints), None), failures)
