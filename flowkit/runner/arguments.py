"""From keyword arguments to a command line: options of the command, and the flow's parameters as typed values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError

TOP = frozenset(
    {
        *(
            "quiet",
            "metadata",
            "datastore",
            "datastore_root",
            "decospecs",
            "package_suffixes",
            "config",
            "config_value",
        ),
        *("branch", "production", "trigger"),
    }
)
"""Options before the command; ``decospecs`` is ``--with``, which no argument of Python's can be called."""
_RUN = frozenset(
    {
        *("max_workers", "respect_resources", "max_num_splits", "max_log_size", "tags", "namespace", "run_id_file"),
        *("fail_fast", "keep_going", "task_start", "detach", "decospecs"),
    }
)
COMMANDS: Mapping[str, frozenset[str]] = {
    "run": _RUN,
    "resume": _RUN | {"origin_run_id"},
    "spin": frozenset({"artifacts_module", "persist", "skip_decorators", "set"}),
}
"""What each command takes besides parameters."""
_SPELLED = {"decospecs": "--with", "tags": "--tag"}


class Arguments(NamedTuple):
    """The words of a command, and the parameters that go into a file."""

    options: list[str]
    parameters: dict[str, Any]


def split(command: str, given: Mapping[str, Any]) -> Arguments:
    """Tell the options of a command from the flow's parameters, which the command itself checks.

    Raises
    ------
    UsageError
        If a value cannot be written down: all such values are told at once.
    """
    known = COMMANDS[command]
    options = words({name: value for name, value in given.items() if name in known})
    parameters, wrong = {}, []
    for name, value in given.items():
        if name in known:
            continue
        try:
            parameters[name] = json.loads(json.dumps(_plain(value)))
        except (TypeError, ValueError, RecursionError) as error:
            wrong.append(f"the parameter '{name}' cannot be {type(value).__name__}: {error}")
    if wrong:
        raise UsageError(
            "\n".join(wrong), "parameters are texts, numbers, truth values, lists and dictionaries of them"
        )
    return Arguments(options, parameters)


def words(given: Mapping[str, Any]) -> list[str]:
    """Return options as they are written on a command line; one that is None is left out.

    True is the option alone, False its ``--no-`` form where there is one, a list the option once for each item, a
    dictionary once for each pair.
    """
    found: list[str] = []
    for name, value in given.items():
        option = _SPELLED.get(name, f"--{name.replace('_', '-')}")
        if value is None:
            continue
        if isinstance(value, bool):
            if value:
                found.append(option)
            elif name in ("persist",):
                found.append(f"--no-{option[2:]}")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                found += [option, str(key), item if isinstance(item, str) else json.dumps(item)]
        elif isinstance(value, (list, tuple, set, frozenset)):
            for item in _sorted(value):
                found += [option, *(map(str, item) if isinstance(item, (list, tuple)) else [str(item)])]
        else:
            found += [option, str(value)]
    return found


def _sorted(values: Iterable[Any]) -> Iterable[Any]:
    return sorted(values) if isinstance(values, (set, frozenset)) else values


def _plain(value: Any) -> Any:
    """Return what JSON can hold; scalars and arrays of NumPy know their own plain form."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order: give a list")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    plain = getattr(value, "tolist", None)
    if callable(plain) and not isinstance(value, (str, bytes)):
        return plain()
    name = getattr(value, "name", None)
    return name if hasattr(type(value), "__members__") else value
