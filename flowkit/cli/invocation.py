"""The commands that messages tell the user to type: they can be copied into the same terminal, and work there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

import click
from click.core import ParameterSource

PLACE = ("datastore", "datastore_root", "metadata")
"""Options before the command that every command on the same runs needs again."""
_NOT_AGAIN = frozenset(
    {
        "quiet", "tags", "run_id_file", "runner_attribute_file", "runner_arguments", "plan", "json", "step_to_rerun",
        "detach", "reattach", "config", "config_value", "run_id", "deployed_as", "trigger_events", "notify_about",
        "stored_configs", "deployed_template",
    }
)  # fmt: skip
"""What belongs to one run or one command, and is not repeated when it is resumed."""


def program(file: str) -> str:
    """Return how the flow's program is started, e.g. ``python ../flow.py``.

    Parameters
    ----------
    file : str
        The flow's file, absolute.
    """
    import shlex

    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return f"python -m {shlex.quote(spec.name.removesuffix('.__main__'))}"
    try:
        near = os.path.relpath(file)
    except FileNotFoundError:  # the working directory has been deleted
        near = file
    if near.startswith("-"):
        near = os.path.join(".", near)  # else Python takes it for an option
    return f"python {shlex.quote(file if near.startswith(os.path.join('..', '..')) else near)}"


def given(context: click.Context | None, *, only: Iterable[str] = (), leave_out: Iterable[str] = ()) -> list[str]:
    """Return options as they stood on the command line, ready for a shell.

    Parameters
    ----------
    context : click.Context or None
        The command's own, or the one of the options before it.
    only : iterable of str, optional
        The names of those that are wanted; default: all that are not of one run only.
    leave_out : iterable of str, optional
        Names that are not wanted.
    """
    import shlex

    if context is None:
        return []
    wanted, words = frozenset(only), []
    unwanted = _NOT_AGAIN.union(leave_out)
    for option in context.command.params:
        name = option.name
        if not isinstance(option, click.Option) or name is None or (name not in wanted if wanted else name in unwanted):
            continue
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name not in context.params:
            continue
        value = context.params[name]
        if option.is_flag:
            words.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        if value == option.flag_value and value is not None:  # an option whose value may be left out
            words.append(option.opts[0])
            continue
        for text in value if option.multiple else (value,):
            words += [option.opts[0], shlex.quote(str(text))]
    return words
