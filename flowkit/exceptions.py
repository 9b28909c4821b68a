"""Every error that flowkit raises on purpose.

::

    FlowkitError                        something the user can understand and act upon
    ├── UsageError                      a wrong option, parameter, tag or value             exit 2
    │   ├── InvalidPathspec             a path like Flow/run/step/task that does not parse
    │   └── MissingExtra                an optional dependency is not installed
    ├── FlowInvalid                     the flow's code cannot run; lists every problem     exit 3
    ├── NotFound                        no such flow, run, step, task or artifact           exit 4
    │   └── NamespaceMismatch           it exists, but not in the current namespace
    ├── DataError                       stored data is damaged, missing or unreadable       exit 5
    │   ├── ArtifactError               one artifact cannot be stored or loaded
    │   └── StoreError                  the datastore or the metadata store does not work
    ├── Conflict                        somebody else owns what was asked for               exit 6
    ├── RunFailed                       a run that ended with a failed step                 exit 1
    ├── RunCancelled                    a run that was stopped by its user                  exit 130
    └── TaskError                       raised inside a task, by what the step did          exit 1
        ├── InvalidNext                 a self.next that does not fit the flow
        ├── MergeConflict               merge_artifacts found several values for a name
        ├── MergeMissing                merge_artifacts did not find a name
        ├── TimeoutException            @timeout stopped the step
        └── FailureHandledByCatch       what @catch keeps when the process died without a word

A class is what a caller may want to catch; the text is what the user should do. `FlowkitError` says it in
four parts: a plain headline, where (file and line of the user's code), a hint, and the exit code of the
command. The table of exit codes is `EXIT_CODES`; docs/exit_codes.md explains it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

EXIT_CODES: dict[int, str] = {
    0: "it worked",
    1: "the run failed: a step failed",
    2: "the command was not understood: an option, a parameter, a path or a tag is wrong",
    3: "the flow is not valid: see the problems listed",
    4: "not found: no such flow, run, step, task or artifact here",
    5: "stored data is damaged, missing or cannot be read or written, or a service refuses or does not answer",
    6: "conflict: somebody else owns the run, or the port",
    70: "a defect in flowkit itself",
    130: "stopped by Ctrl-C, SIGTERM, cancel, or a terminal that was closed",
}


class Location(NamedTuple):
    """A place in the user's code."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Problem(NamedTuple):
    """One thing that is wrong with a flow: what, where, and what to write instead."""

    headline: str
    where: Location | None = None
    hint: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.headline}" if self.where else self.headline]
        if self.hint:
            lines.extend(f"    {line}" for line in self.hint.splitlines())
        return "\n".join(lines)


class FlowkitError(Exception):
    """An error that the user can understand and act upon.

    Parameters
    ----------
    headline : str
        What is wrong, in one plain sentence without a full stop's worth of jargon.
    hint : str, optional
        What to do next.
    where : Location, optional
        The file and line of the user's code that it is about.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, headline: str, hint: str | None = None, where: Location | None = None) -> None:
        super().__init__(headline, hint, where)
        self.headline = headline
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return str(Problem(self.headline, self.where, self.hint))


class UsageError(FlowkitError):
    """A wrong option, parameter, tag or value."""

    exit_code = 2


class InvalidPathspec(UsageError):
    """A path like ``Flow/run/step/task/artifact`` that does not parse."""


class MissingExtra(UsageError):
    """An optional dependency is needed and not installed."""


class FlowInvalid(FlowkitError):
    """The flow's code cannot run.

    Parameters
    ----------
    problems : sequence of Problem
        Everything that is wrong, so that it can be mended in one go.
    """

    exit_code = 3

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        count = len(self.problems)
        if count == 1:
            super().__init__(first.headline, first.hint, first.where)
        else:
            super().__init__(f"{count} problems in the flow")

    def __reduce__(self) -> tuple[type[FlowInvalid], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class NotFound(FlowkitError):
    """No such flow, run, step, task or artifact."""

    exit_code = 4


class NamespaceMismatch(NotFound):
    """The object exists, but not in the current namespace."""


class DataError(FlowkitError):
    """Stored data is damaged, missing or cannot be read or written."""

    exit_code = 5


class ArtifactError(DataError):
    """One artifact cannot be stored or loaded."""


class StoreError(DataError):
    """The datastore or the metadata store does not work."""


class Conflict(FlowkitError):
    """Somebody else owns what was asked for."""

    exit_code = 6


class RunFailed(FlowkitError):
    """A run that ended with a failed step."""


class RunCancelled(FlowkitError):
    """A run that was stopped by its user."""

    exit_code = 130


class TaskError(FlowkitError):
    """Raised inside a task, by what the step did."""


class InvalidNext(TaskError):
    """A ``self.next`` that does not fit the flow."""


class MergeConflict(TaskError):
    """``merge_artifacts`` found several values for a name.

    Attributes
    ----------
    artifact_names : list of str
        The names whose values differ between the inputs.
    """

    def __init__(self, headline: str, artifact_names: Iterable[str], hint: str | None = None) -> None:
        super().__init__(headline, hint)
        self.artifact_names = list(artifact_names)

    def __reduce__(self) -> tuple[type[MergeConflict], tuple[str, list[str], str | None]]:
        return type(self), (self.headline, self.artifact_names, self.hint)


class MergeMissing(TaskError):
    """``merge_artifacts`` did not find a name that it was asked to include.

    Attributes
    ----------
    artifact_names : list of str
        The names that no input has.
    """

    def __init__(self, headline: str, artifact_names: Iterable[str], hint: str | None = None) -> None:
        super().__init__(headline, hint)
        self.artifact_names = list(artifact_names)

    def __reduce__(self) -> tuple[type[MergeMissing], tuple[str, list[str], str | None]]:
        return type(self), (self.headline, self.artifact_names, self.hint)


class TimeoutException(TaskError):
    """``@timeout`` stopped the step."""


class FailureHandledByCatch(TaskError):
    """What ``@catch`` keeps when the step's process died without raising anything."""


class FlowkitExceptionWrapper(Exception):
    """An exception as text, which can be stored whatever it was: the value of the artifact that ``@catch`` sets.

    Parameters
    ----------
    error : BaseException, optional
        The exception.

    Attributes
    ----------
    exception : str
        Its message.
    type : str
        Its class, as ``module.qualname``.
    stacktrace : str
        Its traceback, cut down to the user's own frames.
    """

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.exception: str | None = None
        self.type: str | None = None
        self.stacktrace: str | None = None
        if error is not None:
            self.exception = message_of(error)
            self.type = f"{type(error).__module__}.{type(error).__qualname__}"
            self.stacktrace = user_traceback(error)

    def __reduce__(self) -> tuple[type[FlowkitExceptionWrapper], tuple[()], dict[str, str | None]]:
        return type(self), (), dict(self.__dict__)

    def __repr__(self) -> str:
        return f"<{self.type}: {self.exception}>"

    def __str__(self) -> str:
        return self.stacktrace or f"{self.type}: {self.exception}"


def message_of(error: BaseException) -> str:
    """Return an exception's text, also where its ``__str__`` is broken."""
    try:
        return str(error)
    except Exception as broken:
        return f"(its text cannot be had: {type(broken).__name__})"


def is_ours(file: str) -> bool:
    """Whether a frame's file is flowkit's own, its pickler's or the import machinery, and not what a user wrote."""
    import os

    home = os.path.dirname(os.path.abspath(__file__))
    ours = (home + os.sep, os.path.join(os.path.dirname(home), "plugins") + os.sep, "<frozen ")
    return file.startswith(ours) or file.endswith(os.path.join("cloudpickle", "cloudpickle.py"))


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an exception without flowkit's own frames; where no frame is left, its text alone."""
    import traceback

    told = traceback.TracebackException.from_exception(error, compact=True)
    seen: set[int] = set()
    todo: list[traceback.TracebackException | None] = [told]
    while todo:
        part = todo.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if not is_ours(frame.filename)]
        todo += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
    cause = told.__cause__
    if isinstance(error, FlowkitError) and cause is not None and not cause.stack and cause.__cause__ is None:
        # An error of ours says what its cause was: one that was raised in no line of the user's adds nothing.
        told.__cause__ = told.__context__ = None
    alone = not told.stack and told.__cause__ is None and told.__context__ is None
    return "".join(told.format_exception_only() if alone else told.format())


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return ``did you mean 'x'?`` for the choice nearest to `word`, or None where none is near.

    Examples
    --------
    >>> did_you_mean("tarin", ["train", "start"])
    "did you mean 'train'?"
    """
    import difflib

    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else None
