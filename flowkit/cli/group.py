"""Groups of commands: imported when they are called, with every user's mistake told in one way."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from flowkit.cli.console import Console
from flowkit.exceptions import FlowkitError, UsageError, did_you_mean

Table = Mapping[str, tuple[str, str]]
"""Command to (module, one line); where a module has several commands, the function is ``<name>_command``."""


class Group(click.Group):
    """A group whose unknown commands are answered with the nearest known one."""

    aliases: Mapping[str, str] = {}
    """Other names of commands, which are not listed."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name, or of an alias; None where there is none."""
        return super().get_command(ctx, self.aliases.get(cmd_name, cmd_name))

    def brought(self) -> dict[str, str]:
        """Return the names of commands that installed packages bring, each with its package."""
        return {}

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command that the arguments begin with.

        Raises
        ------
        UsageError
            If there is none of that name.
        """
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = [*self.list_commands(ctx), *self.brought()]
            hint = did_you_mean(args[0], known) or f"commands: {', '.join(known)}"
            raise UsageError(f"there is no command '{args[0]}'", hint)
        return super().resolve_command(ctx, args)


_NEEDED = frozenset(
    {
        *("array", "ast", "asyncio", "base64", "bisect", "collections", "concurrent", "contextlib", "copy", "ctypes"),
        *("dataclasses", "datetime", "email", "enum", "errno", "fcntl", "functools", "gc", "glob", "hashlib", "heapq"),
        *("http", "importlib", "inspect", "io", "json", "linecache", "locale", "logging", "mmap", "operator", "os"),
        *("pickle", "platform", "pwd", "queue", "re", "resource", "select", "selectors", "shlex", "shutil", "signal"),
        *("socket", "sqlite3", "ssl", "stat", "string", "struct", "subprocess", "tempfile", "textwrap", "threading"),
        *("time", "tokenize", "tomllib", "traceback", "types", "typing", "urllib", "uuid", "warnings", "weakref"),
    }
)
"""Modules of Python without which no run goes far."""


class LazyGroup(Group):
    """A group whose commands are imported when they are called.

    Each is made by ``command(obj)`` of its module, or by ``<name>_command(obj)``, where `obj` is click's: what every
    command starts from.

    Parameters
    ----------
    table : Table
        The commands, in the order in which they are listed.
    hidden : frozenset of str
        Those that are not listed.
    plugins : str, optional
        The kind under which installed packages bring more commands (`flowkit.registry`): each is a click command, or a
        function that makes one of what `obj` is. They are looked at only for names that are not in the table.
    **options
        As for click.Group.
    """

    lists_plugins = False
    """Whether help lists the commands of installed packages, too: finding them takes a moment."""

    def __init__(
        self, table: Table, hidden: frozenset[str] = frozenset(), plugins: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._plugins = plugins
        self._table = table
        self._hidden = hidden

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that are shown."""
        return [name for name in self._table if name not in self._hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and make a command; None where there is none of that name."""
        known = self.commands.get(cmd_name)
        if known is not None:
            return known
        if cmd_name not in self._table:
            return self._from_plugin(ctx, cmd_name)
        import importlib

        module = importlib.import_module(self._table[cmd_name][0])
        maker = getattr(module, cmd_name.replace("-", "_") + "_command", None) or module.command
        command: click.Command = maker(ctx.obj)
        command.name = cmd_name
        self.commands[cmd_name] = command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            rows = [(name, self._table[name][1]) for name in self.list_commands(ctx)]
            if self.lists_plugins:
                rows += [(name, f"(from {package})") for name, package in self.brought().items()]
            formatter.write_dl(rows)

    def brought(self) -> dict[str, str]:
        """Return the names of commands that installed packages bring, each with its package."""
        if self._plugins is None:
            return {}
        from flowkit.registry import plugins

        return {name: package for name, package in plugins(self._plugins).items() if name not in self._table}

    def _from_plugin(self, ctx: click.Context, name: str) -> click.Command | None:
        if self._plugins is None:
            return None
        from flowkit.registry import plugin

        found = plugin(self._plugins, name)
        if found is None:
            return None
        command = found if isinstance(found, click.Command) else found(ctx.obj)
        if not isinstance(command, click.Command):
            raise UsageError(f"the plugin '{name}' is no command but a {type(command).__name__}", "see docs/plugins.md")
        command.name = name
        self.commands[name] = command
        return command


def guarded(console: Console, action: Callable[[], int]) -> int:
    """Carry out a command and return its exit code: every error of the user's ends in one message.

    This is the border of the command line.
    """
    try:
        _refuse_double_life()
        return int(action())
    except FlowkitError as error:
        console.error(error)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        console.error(plain(error))
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        console.warn("Interrupted.")
        return 130
    except BrokenPipeError:
        return 0
    except Exception:
        hidden = next((name for name in sorted(sys.stdlib_module_names & sys.modules.keys()) if _beside(name)), None)
        if hidden is not None:
            console.error(_hides(hidden, sys.modules[hidden].__file__))
            return UsageError.exit_code
        import traceback

        console.warn(traceback.format_exc())
        console.warn("This is a defect in flowkit itself: please report it with the lines above.")
        return 70


def _refuse_double_life() -> None:
    """Refuse a flow file that Python takes for a module of its own as soon as anything imports that one."""
    program = _program()
    name = os.path.splitext(os.path.basename(program))[0]
    if name in _NEEDED and sys.path[:1] == [os.path.dirname(program)]:
        raise _hides(name, program)


def _beside(name: str) -> bool:
    """Whether a module comes from the folder of the program."""
    file = getattr(sys.modules[name], "__file__", None)
    return isinstance(file, str) and os.path.dirname(os.path.abspath(file)) == os.path.dirname(_program())


def _hides(name: str, file: object) -> UsageError:
    return UsageError(f"{file} hides Python's own module '{name}', which flowkit needs", "rename the file")


def _program() -> str:
    return os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "-")


def plain(error: click.ClickException) -> UsageError:
    """Turn click's error into ours: one headline, a hint."""
    message = error.format_message().strip()
    hint = None
    if isinstance(error, click.NoSuchOption):
        parameters = error.ctx.command.params if error.ctx else []
        options = [name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)]
        message, hint = f"there is no option {error.option_name}", did_you_mean(error.option_name, options)
        first = error.ctx.find_root() if error.ctx else None
        if first is not None and any(error.option_name in each.opts for each in first.command.params):
            message = f"{error.option_name} stands before the command"
            hint = f"{first.command_path} {error.option_name} … COMMAND"
    if hint is None and isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see {error.ctx.command_path} --help"
        parameter = getattr(error, "param", None)
        source = error.ctx.get_parameter_source(parameter.name) if parameter is not None else None
        if parameter is not None and source is click.core.ParameterSource.ENVIRONMENT:
            hint = f"the variable {parameter.envvar} says so; {hint}"
    return UsageError(message.rstrip(".") if message else "the command was not understood", hint)
