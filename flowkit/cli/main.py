"""``python flow.py``: the command line of a flow.

Commands are imported when they are called. Each is a module with a function ``command(session)`` that makes its click
command, since the options of ``run`` depend on the flow's parameters.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NoReturn

import click

from flowkit import context
from flowkit.cli.console import Console, open_streams
from flowkit.cli.group import LazyGroup, Table, guarded
from flowkit.cli.invocation import program
from flowkit.cli.session import Session, decorator_options, default_decospecs, root_of
from flowkit.exceptions import FlowInvalid, Problem
from flowkit.model.definition import FlowDefinition, define
from flowkit.model.flow_file import check_defined_once
from flowkit.model.flowspec import FlowSpec
from flowkit.model.step_source import forget_sources
from flowkit.settings import foreign_variables, mistyped_variables, settings
from flowkit.version import __version__

COMMANDS: Table = {
    "run": ("flowkit.cli.run", "Run the flow."),
    "resume": ("flowkit.cli.resume", "Run again what failed, and keep what succeeded."),
    "check": ("flowkit.cli.check", "Look for mistakes in the flow, without running it."),
    "show": ("flowkit.cli.show", "Show the steps of the flow."),
    "status": ("flowkit.cli.status", "Show runs, or how one run stands."),
    "logs": ("flowkit.cli.logs", "Show what tasks wrote."),
    "dump": ("flowkit.cli.dump", "Show the artifacts of tasks."),
    "tag": ("flowkit.cli.tag", "Add, remove and list tags of runs."),
    "cancel": ("flowkit.cli.cancel", "Stop a run."),
    "spin": ("flowkit.cli.spin", "Try out one step on the inputs of a past run."),
    "package": ("flowkit.cli.package", "Show the code that goes along to where steps run."),
    "deploy": ("flowkit.cli.deploy", "Deploy the flow to a scheduler."),
    "local": ("flowkit.cli.deploy", "Deploy the flow to the scheduler in the box."),
    "argo-workflows": ("flowkit.cli.deploy", "Deploy the flow to Argo Workflows."),
    "step-functions": ("flowkit.cli.deploy", "Deploy the flow to AWS Step Functions."),
    "airflow": ("flowkit.cli.deploy", "Deploy the flow to Airflow."),
    "batch": ("flowkit.cli.jobs", "List and kill jobs on AWS Batch."),
    "kubernetes": ("flowkit.cli.jobs", "Deploy the flow to Kubernetes; list and kill jobs there."),
    "docker": ("flowkit.cli.jobs", "List and kill containers on this machine."),
    "output-dot": ("flowkit.cli.output", "Write the graph for graphviz."),
    "output-raw": ("flowkit.cli.output", "Write the graph as JSON."),
    "help": ("flowkit.cli.help", "List all commands."),
    "version": ("flowkit.cli.help", "Print the version."),
    "step": ("flowkit.cli.step", "Run one task (used by flowkit itself)."),
    "ended": ("flowkit.cli.ended", "Call the exit hooks of a run (used by flowkit itself)."),
}
HIDDEN = frozenset({"step", "ended"})
_IGNORED = ("environment", "event-logger", "monitor", "local-config-file", "mode")
"""Options of the language that mean nothing here: taken, and left alone."""


def main(cls: type[Any]) -> NoReturn:
    """Read the command line, act on it and leave the process with a meaningful exit code."""
    sys.exit(execute(cls, sys.argv[1:]))


def execute(cls: type[Any], arguments: list[str]) -> int:
    """Carry out one command of a flow and return its exit code."""
    open_streams()
    console = Console()
    code = guarded(console, lambda: _run_group(_defined(cls), console, arguments))
    console.flush()
    return code


def _defined(cls: type[Any]) -> FlowDefinition:
    if cls is FlowSpec:
        raise FlowInvalid([Problem("FlowSpec itself is no flow", None, "derive a class from it, and make that one")])
    check_defined_once(cls)
    return define(cls)


def _run_group(definition: FlowDefinition, console: Console, arguments: list[str]) -> int:
    session = Session(definition, console)
    context.client_factory = functools.partial(_client, session)
    group = _group(session)
    if session.dynamic:
        from flowkit.cli.configs import settle

        if settle(session, group, arguments, COMMANDS):
            group = _group(session)  # with the options of decorators that mutators have added
    result = group.main(args=arguments, prog_name=program(definition.file), standalone_mode=False, obj=session)
    return result if isinstance(result, int) else 0


def _group(session: Session) -> LazyGroup:
    configured = settings()
    params: list[click.Parameter] = [
        click.Option(["--quiet/--not-quiet", "-q/ "], default=False, help="Say less."),
        click.Option(["--metadata"], default=configured.metadata, help="The metadata store: local or service."),
        # FLOWKIT_DATASTORE is the setting of that name: where, not of which kind.
        click.Option(["--datastore"], default=None, allow_from_autoenv=False, help="The kind of datastore: local, s3."),
        click.Option(
            ["--datastore-root"], default=None, help="A folder or s3://bucket/prefix. Default: the nearest .flowkit."
        ),
        click.Option(["--with", "decospecs"], multiple=True, help="Give every step a decorator: name:attribute=value."),
        click.Option(["--package-suffixes"], help="Further files for the code package: .csv,.sql"),
        click.Option(["--pylint/--no-pylint"], default=True, hidden=True, expose_value=False),
        click.Option(["--force-rebuild-environments"], is_flag=True, hidden=True, expose_value=False),
    ]
    params += [click.Option([f"--{name}"], hidden=True, expose_value=False) for name in _IGNORED]
    if session.definition.configs:
        from flowkit.cli.configs import config_options

        params += config_options(session.definition)
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
        session.root = root_of(datastore, datastore_root)
        session.metadata = _checked_metadata(metadata)
        session.decospecs = tuple(dict.fromkeys((*default_decospecs(), *values.pop("decospecs"))))
        session.package_suffixes = values.pop("package_suffixes")
        for option in ("config", "config_value", "stored_configs"):
            values.pop(option, None)  # they were read before the commands were made
        session.options = values
        ctx = click.get_current_context()
        if ctx.invoked_subcommand in HIDDEN:
            forget_sources()  # a task is going to run here, which has no use for the flow's source
        if ctx.invoked_subcommand not in (None, *HIDDEN, "version", "help"):
            _greet(session, runs=ctx.invoked_subcommand in ("run", "resume"))
        if ctx.invoked_subcommand is None:
            command = group.get_command(ctx, "check")
            assert command is not None
            ctx.invoke(command)

    group = _FlowGroup(
        COMMANDS,
        HIDDEN,
        "commands",
        name=session.definition.name,
        callback=callback,
        params=params,
        invoke_without_command=True,
        help=session.definition.cls.__doc__ or f"The flow {session.definition.name}.",
        context_settings={"help_option_names": ["--help", "-h"], "auto_envvar_prefix": "FLOWKIT"},
    )
    return group


class _FlowGroup(LazyGroup):
    """The commands of a flow; the schedulers that packages bring are commands, too."""

    def _from_plugin(self, ctx: click.Context, name: str) -> click.Command | None:
        found = super()._from_plugin(ctx, name)
        if found is None:
            from flowkit.registry import plugins

            if name in plugins("deployers"):
                from flowkit.cli.deploy import target_command

                found = self.commands[name] = target_command(ctx.obj, name)
        return found

    def brought(self) -> dict[str, str]:
        """Return the names of commands, and of schedulers, that installed packages bring, each with its package."""
        from flowkit.registry import plugins

        return {**super().brought(), **{name: by for name, by in plugins("deployers").items() if name not in COMMANDS}}


def _checked_metadata(name: str) -> str:
    if name != "local":
        from flowkit.exceptions import UsageError, did_you_mean
        from flowkit.registry import TABLES, names

        if name not in TABLES["metadata"] and name not in names("metadata"):
            hint = did_you_mean(name, names("metadata")) or f"known: {', '.join(names('metadata'))}"
            raise UsageError(f"--metadata: there is no metadata store called '{name}'", hint)
    return name


def _greet(session: Session, *, runs: bool) -> None:
    if runs:
        session.console.say(f"flowkit {__version__} executing {session.definition.name} for user:{session.user}")
    foreign = foreign_variables()
    if foreign:
        pairs = ", ".join(f"{theirs} (here: {ours})" for theirs, ours in foreign[:5])
        session.console.say(f"Note: flowkit does not read {pairs}.")
    for name, near in mistyped_variables():
        session.console.warn(f"Note: {name} is no setting; did you mean {near}?")


def _client(session: Session, kind: str, pathspec: str, root: str | None = None) -> Any:
    from flowkit.client.objects import make

    return make(kind, pathspec, root or session.root, session.metadata)
