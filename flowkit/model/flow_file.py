"""The flow's file: mistakes that no command can tell, since they show while it is imported or when it has ended."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

from flowkit.exceptions import FlowInvalid, FlowkitError, Location, Problem

_COMMANDS = frozenset({"run", "resume", "check", "show"})
_defined: list[type] = []
_started = False
_file = ""


def defined(cls: type) -> None:
    """Take note of a flow's class that the program itself defines, as against a module that it imports."""
    global _file
    if not _defined:
        _file = getattr(sys.modules["__main__"], "__file__", None) or ""  # it is gone when the file has ended
        atexit.register(_tell_of_flows_never_started)
    _defined.append(cls)


def started() -> None:
    """Take note that the file has made a flow object."""
    global _started
    _started = True


def check_defined_once(cls: type) -> None:
    """Refuse a flow of which the file holds two: the second silently takes the place of the first.

    Raises
    ------
    FlowInvalid
        With the places of both.
    """
    for other in _defined:
        # A class decorator may have made the class anew, of the same steps.
        if other.__qualname__ != cls.__qualname__ or issubclass(cls, other):
            continue
        before, now = _first_step(other), _first_step(cls)
        if before is not None and now is not None and before != now:
            raise FlowInvalid(
                [
                    Problem(
                        f"the flow {cls.__name__} is defined twice; before, with a step in line {before.line}",
                        now,
                        "give one of the two another name, or remove it",
                    )
                ]
            )


def _first_step(cls: type) -> Location | None:
    for value in vars(cls).values():
        code = getattr(value, "__code__", None)
        if code is not None and getattr(value, "is_step", False):
            return Location(code.co_filename, code.co_firstlineno)
    return None


def _tell_of_flows_never_started() -> None:
    """At the end of ``python flow.py run``: say that the file has defined a flow and done nothing with it."""
    if _started or sys.argv[1:2] == [] or sys.argv[1] not in _COMMANDS or hasattr(sys, "last_type"):
        return
    try:
        with open(_file, encoding="utf-8") as source:
            text = source.read()
    except (OSError, ValueError):
        return
    name = _defined[-1].__name__
    if any(f"{cls.__name__}()" in text for cls in _defined):
        return  # it would have started one, had it come that far
    problem = Problem(
        f"the flow {name} is defined and never started",
        Location(_file, len(text.splitlines())),
        f'end the file with: if __name__ == "__main__": {name}()',
    )
    sys.stdout.flush()
    sys.stderr.write(f"{FlowInvalid([problem])}\n")
    sys.stderr.flush()
    os._exit(FlowInvalid.exit_code)  # the only way to a meaningful exit code from here


def install_excepthook() -> None:
    """Show a mistake in a flow's class body (a wrong decorator, a wrong parameter) without a traceback of ours.

    Such errors are raised while the user's file is being imported, before any command could catch them. Raising
    SystemExit in the hook gives the process the error's exit code.
    """
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        if not isinstance(error, FlowkitError):
            previous(kind, error, traceback)
            return
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code)

    sys.excepthook = show
