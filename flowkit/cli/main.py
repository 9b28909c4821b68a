"""``python flow.py``: the command line of a flow.

Commands are imported when they are called. Each is a module with a function ``command(session)`` that makes its click
command, since the options of ``run`` depend on the flow's parameters.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from flowkit import context
from flowkit.cli.console import Console
from flowkit.cli.session import Session, decorator_options, default_decospecs
from flowkit.exceptions import FlowkitError, UsageError, did_you_mean
from flowkit.model.definition import FlowDefinition, define
from flowkit.settings import foreign_variables, settings
from flowkit.version import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("flowkit.cli.run", "Run the flow."),
    "resume": ("flowkit.cli.resume", "Run again what failed, and keep what succeeded."),
    "check": ("flowkit.cli.check", "Look for mistakes in the flow, without running it."),
    "show": ("flowkit.cli.show", "Show the steps of the flow."),
    "status": ("flowkit.cli.status", "Show runs, or how one run stands."),
    "logs": ("flowkit.cli.logs", "Show what tasks wrote."),
    "dump": ("flowkit.cli.dump", "Show the artifacts of tasks."),
    "tag": ("flowkit.cli.tag", "Add, remove and list tags of runs."),
    "cancel": ("flowkit.cli.cancel", "Stop a run."),
    "output-dot": ("flowkit.cli.output", "Write the graph for graphviz."),
    "output-raw": ("flowkit.cli.output", "Write the graph as JSON."),
    "help": ("flowkit.cli.help", "List all commands."),
    "version": ("flowkit.cli.help", "Print the version."),
    "step": ("flowkit.cli.step", "Run one task (used by flowkit itself)."),
}
"""Command to (module, one line); where a module has several commands, the function is ``<name>_command``."""

HIDDEN = frozenset({"step"})
_IGNORED = (
    ("--environment", "TEXT"), ("--event-logger", "TEXT"), ("--monitor", "TEXT"), ("--package-suffixes", "TEXT"),
    ("--local-config-file", "TEXT"),
)  # fmt: skip


class FlowGroup(click.Group):
    """The commands of a flow, imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module = importlib.import_module(COMMANDS[cmd_name][0])
        maker = getattr(module, cmd_name.replace("-", "_") + "_command", None) or module.command
        command: click.Command = maker(ctx.find_object(Session))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            hint = did_you_mean(args[0], COMMANDS) or "python flow.py help lists the commands"
            raise UsageError(f"there is no command '{args[0]}'", hint)
        return super().resolve_command(ctx, args)


def main(cls: type[Any]) -> NoReturn:
    """Read the command line, act on it and leave the process with a meaningful exit code."""
    sys.exit(execute(cls, sys.argv[1:]))


def execute(cls: type[Any], arguments: list[str]) -> int:
    """Carry out one command of a flow and return its exit code."""
    console = Console()
    context.client_factory = _client
    code = _guarded(console, lambda: _run_group(define(cls), console, arguments))
    console.flush()
    return code


def _run_group(definition: FlowDefinition, console: Console, arguments: list[str]) -> int:
    session = Session(definition, console)
    group = _group(session)
    result = group.main(
        args=arguments, prog_name=f"python {_file_name(definition)}", standalone_mode=False, obj=session
    )
    return result if isinstance(result, int) else 0


def _group(session: Session) -> FlowGroup:
    configured = settings()
    params: list[click.Parameter] = [
        click.Option(["--quiet/--not-quiet", "-q/ "], default=False, help="Say less."),
        click.Option(["--metadata"], default=configured.metadata, help="The metadata store: local."),
        click.Option(["--datastore"], default=None, help="The kind of datastore: local."),
        click.Option(["--datastore-root"], default=None, help="Where the datastore is. Default: the nearest .flowkit."),
        click.Option(["--with", "decospecs"], multiple=True, help="Give every step a decorator: name:attribute=value."),
        click.Option(["--pylint/--no-pylint"], default=True, hidden=True),
    ]
    params += [click.Option([name], hidden=True, expose_value=False) for name, _ in _IGNORED]
    for name, option in decorator_options(session.definition).items():
        params.append(
            click.Option(
                [f"--{name.replace('_', '-')}"],
                is_flag=option.flag,
                multiple=option.multiple,
                default=False if option.flag else None,
                help=option.help,
            )
        )

    def callback(quiet: bool, metadata: str, datastore: str | None, datastore_root: str | None, **values: Any) -> None:
        session.console.quiet = quiet
        session.root = datastore_root or (datastore if datastore and datastore != "local" else configured.datastore)
        session.metadata = metadata
        session.decospecs = tuple(dict.fromkeys((*default_decospecs(), *values.pop("decospecs"))))
        values.pop("pylint")
        session.options = values
        ctx = click.get_current_context()
        if ctx.invoked_subcommand not in (None, *HIDDEN, "version", "help"):
            _greet(session)
        if ctx.invoked_subcommand is None:
            command = group.get_command(ctx, "check")
            assert command is not None
            ctx.invoke(command)

    group = FlowGroup(
        name=session.definition.name,
        callback=callback,
        params=params,
        invoke_without_command=True,
        help=session.definition.cls.__doc__ or f"The flow {session.definition.name}.",
        context_settings={"help_option_names": ["--help", "-h"], "auto_envvar_prefix": "FLOWKIT"},
    )
    return group


def _greet(session: Session) -> None:
    session.console.say(f"flowkit {__version__} executing {session.definition.name} for user:{session.user}")
    foreign = foreign_variables()
    if foreign:
        pairs = ", ".join(f"{theirs} (here: {ours})" for theirs, ours in foreign[:5])
        session.console.say(f"Note: flowkit does not read {pairs}.")


def _guarded(console: Console, action: Any) -> int:
    """The border of the command line: every error of the user's ends in one message and its exit code."""
    try:
        return int(action())
    except FlowkitError as error:
        console.error(error)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        console.error(_plain(error))
        return 2
    except (KeyboardInterrupt, click.Abort):
        console.warn("Interrupted.")
        return 130
    except BrokenPipeError:
        return 0
    except Exception:
        import traceback

        console.warn(traceback.format_exc())
        console.warn("This is a defect in flowkit itself: please report it with the lines above.")
        return 70


def _plain(error: click.ClickException) -> UsageError:
    """Turn click's error into ours: one headline, a hint."""
    message = error.format_message().strip()
    hint = None
    if isinstance(error, click.NoSuchOption):
        options = [name for param in (error.ctx.command.params if error.ctx else []) for name in param.opts]
        near = did_you_mean(error.option_name, options)
        message, hint = f"there is no option {error.option_name}", near
    if hint is None and isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"see {error.ctx.command_path} --help"
    return UsageError(message.rstrip(".") if message else "the command was not understood", hint)


def _file_name(definition: FlowDefinition) -> str:
    import os

    return os.path.basename(definition.file)


def _client(kind: str, pathspec: str) -> Any:
    from flowkit.client.objects import make

    return make(kind, pathspec)
