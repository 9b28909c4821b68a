"""``flowkit``: what can be done without a flow's file."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from flowkit.cli.console import Console, open_streams
from flowkit.cli.group import LazyGroup, Table, guarded

COMMANDS: Table = {
    "status": ("flowkit.cli.flows", "Show who you are, where things are, and every flow with its latest run."),
    "configure": ("flowkit.cli.configure", "Show and change your settings."),
    "tutorials": ("flowkit.cli.tutorials", "List the tutorials, and copy them here."),
    "metadata": ("flowkit.cli.metadata", "Send records that wait for a metadata service; make the index of runs anew."),
    "code": ("flowkit.cli.code", "Compare and unpack the code that a run took along."),
    "gc": ("flowkit.cli.gc", "Remove old runs, and what nothing names any more."),
    "du": ("flowkit.cli.du", "Show what takes the room in the datastore."),
    "fsck": ("flowkit.cli.fsck", "Check the datastore and its index, and repair what can be repaired."),
    "scheduler": ("flowkit.cli.scheduler", "Start deployed flows when they are due: the scheduler in the box."),
    "event": ("flowkit.cli.event", "Emit an event that starts deployed flows, and list them."),
    "service": ("flowkit.cli.service", "Record the runs of a team in one place: start the metadata service."),
    "help": ("flowkit.cli.console_script", "List all commands."),
    "version": ("flowkit.cli.console_script", "Print the version."),
    "container": ("flowkit.cli.container", "Run a row of a launch list (used by flowkit itself)."),
    "client": ("flowkit.cli.client", "Be the client of a run in a container (used by flowkit itself)."),
}
HIDDEN = frozenset({"client", "container"})


def main() -> NoReturn:
    """Read the command line, act on it and leave the process with a meaningful exit code."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Carry out one command and return its exit code."""
    open_streams()
    console = Console()

    def action() -> int:
        result = _group(console).main(args=arguments, prog_name="flowkit", standalone_mode=False, obj=console)
        return result if isinstance(result, int) else 0

    code = guarded(console, action)
    console.flush()
    return code


def _group(console: Console) -> LazyGroup:
    def callback(quiet: bool) -> None:
        console.quiet = quiet
        ctx = click.get_current_context()
        if ctx.invoked_subcommand is None:
            console.data(ctx.get_help())

    params: list[click.Parameter] = [click.Option(["--quiet/--not-quiet", "-q/ "], default=False, help="Say less.")]
    return LazyGroup(
        COMMANDS,
        HIDDEN,
        "console_commands",
        name="flowkit",
        callback=callback,
        params=params,
        invoke_without_command=True,
        help="flowkit runs flows: python flow.py run. This command does what needs no flow.",
        context_settings={"help_option_names": ["--help", "-h"]},
    )


def help_command(console: Console) -> click.Command:
    """Make ``help``, which lists the commands."""

    def callback() -> int:
        parent: Any = click.get_current_context().parent
        parent.command.lists_plugins = True
        console.data(parent.get_help())
        return 0

    return click.Command("help", callback=callback, help="List all commands.")


def version_command(console: Console) -> click.Command:
    """Make ``version``, which prints the version and nothing else."""

    def callback() -> int:
        from flowkit.version import __version__

        console.data(__version__)
        return 0

    return click.Command("version", callback=callback, help="Print the version.")
