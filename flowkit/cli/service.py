"""``flowkit service``: the metadata service, started, brought up to date, and who may call it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from flowkit.cli.amounts import counted
from flowkit.cli.console import Console
from flowkit.cli.group import LazyGroup, Table
from flowkit.datastore.root import FOLDER, SERVICE_FOLDER
from flowkit.exceptions import StoreError, UsageError
from flowkit.registry import load

COMMANDS: Table = {
    "start": ("flowkit.cli.service", "Start the service: what flowkit service does without a command."),
    "migrate": ("flowkit.cli.service", "Bring the database up to date, or tell what that would change."),
    "token": ("flowkit.cli.service_token", "Make, list and revoke the tokens that the service asks for."),
}
DEFAULT_FOLDER = f"~/{FOLDER}/{SERVICE_FOLDER}"
"""Where the database is that nobody named: SQLite."""
_STOP_WITHIN = 25.0
"""Seconds from a signal on within which the process is gone, whatever a database call still waits for."""


class _ServiceGroup(LazyGroup):
    """A group that starts the service where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read ``service --port 9000`` as ``service start --port 9000``."""
        first = args[0] if args else None
        if first is None or (first.startswith("-") and first not in ctx.help_option_names):
            args = ["start", *args]
        return super().parse_args(ctx, args)


def command(console: Console) -> click.Command:
    """Make the group."""
    return _ServiceGroup(
        COMMANDS,
        name="service",
        help="Record the runs of a team in one place.\n\nWithout a command it starts: its options are those of"
        " flowkit service start.",
    )


def start_command(console: Console) -> click.Command:
    """Make ``start``, which serves until it is stopped."""

    def callback(**given: Any) -> int:
        database = database_of(given.pop("database"), given.pop("database_file"))
        warn_of_password(console)
        options = {_NAMES.get(name, name): value for name, value in given.items() if value not in (None, ())}
        options["access_log"] = not options.pop("no_access_log", False)
        scheduler, root = options.pop("scheduler", False), options.pop("datastore_root", None)
        if root is not None and not scheduler:
            raise UsageError("--datastore-root is that of the scheduler", "give --scheduler, too")
        server = load("services", "metadata").configured(database=database, **options)
        with _scheduler(console, root) if scheduler else nullcontext(_nothing) as end_scheduler:

            def stopping() -> None:
                _end_within(_STOP_WITHIN, console)
                end_scheduler()

            server.serve(_teller(console, server), stopping)
        console.say("Stopped.")
        return 0

    return click.Command("start", callback=callback, params=[*database_options(), *_options()], help=_START)


def migrate_command(console: Console) -> click.Command:
    """Make ``migrate``."""

    def callback(database: str | None, database_file: str | None, check: bool, sql: bool) -> int:
        warn_of_password(console)
        server = load("services", "metadata").configured(database=database_of(database, database_file))
        plan = server.migrate(check=check or sql)
        if sql:
            for statement in plan.statements:
                console.data(f"{statement.strip()};")
            if not plan.statements:
                console.data(f"-- {plan.database} is up to date.")
            return 0
        if not plan.pending:
            console.say(f"{plan.database} is up to date.")
        elif check:
            count = len(plan.statements)
            raise StoreError(
                f"{plan.database} is not up to date: {counted(count, 'statement')} to be carried out",
                "flowkit service migrate carries them out, and so does every start; --sql prints them",
            )
        else:
            console.say(f"{plan.database} is up to date now.")
        return 0

    params: list[click.Parameter] = [
        *database_options(),
        click.Option(["--check"], is_flag=True, help="Change nothing; end with 5 if it is not up to date."),
        click.Option(["--sql"], is_flag=True, help="Change nothing; print the statements, for who carries them out."),
    ]
    return click.Command("migrate", callback=callback, params=params, help=COMMANDS["migrate"][1])


def database_options() -> list[click.Parameter]:
    """Return the options that name the database, for every command that opens it."""
    return [
        _option(
            "--database",
            metavar="URL",
            help="postgresql://user@host/name, or a folder for SQLite. Default: SQLite in ~/.flowkit/service. A"
            " password is better kept from the process's arguments: in FLOWKIT_SERVICE_DATABASE, --database-file or"
            " ~/.pgpass.",
        ),
        _option("--database-file", metavar="FILE", help="A file with the database's URL in it."),
    ]


def database_of(database: str | None, file: str | None) -> str:
    """Return the database that was asked for.

    Raises
    ------
    UsageError
        If it was given twice, or the file cannot be read.
    """
    if database and file:
        raise UsageError("--database and --database-file name two databases", "give one of them")
    if file:
        try:
            with open(file, encoding="utf-8") as opened:
                database = opened.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UsageError(f"the file {file} with the database's URL cannot be read: {reason}") from None
        if "://" not in database or "\n" in database:
            raise UsageError(f"the file {file} does not hold one line with the database's URL", "postgresql://…")
    if not database:
        return f"sqlite:///{os.path.expanduser(DEFAULT_FOLDER)}"
    return database if "://" in database else f"sqlite:///{os.path.abspath(os.path.expanduser(database))}"


def _option(name: str, **options: Any) -> click.Option:
    return click.Option([name], envvar=f"FLOWKIT_SERVICE_{name.strip('-').replace('-', '_').upper()}", **options)


def _options() -> list[click.Parameter]:
    return [
        _option("--host", metavar="ADDRESS", help="Where to listen. Default: 127.0.0.1, for this machine only."),
        _option("--port", type=click.IntRange(0, 65535), metavar="N", help="Default: 8080; 0 for a free one."),
        _option("--tls-certificate", metavar="FILE", help="Serve https with this certificate (chain), in PEM."),
        _option("--tls-key", metavar="FILE", help="Its key, in PEM."),
        _option(
            "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log. Default: info."
        ),
        _option("--no-access-log", is_flag=True, help="Do not write a line for each request."),
        _option("--insecure", is_flag=True, help="Serve everybody who can reach the service, without asking."),
        _option("--authentication", is_flag=True, help="Ask for a token: flowkit service token create."),
        _option("--oidc-issuer", metavar="URL", help="Accept bearer tokens of this identity provider."),
        _option("--oidc-audience", metavar="TEXT", help="For whom such a token must be."),
        _option("--oidc-jwks-url", metavar="URL", help="Where its keys are. Default: as the issuer says."),
        _option("--oidc-scope-claim", metavar="NAME", help="The claim with read, write or admin. Default: scope."),
        _option("--oidc-project-claim", metavar="NAME", help="The claim with the projects. Default: projects."),
        _option("--allow-host", multiple=True, metavar="NAME", help="A name to be called by; may be repeated."),
        _option("--allow-origin", multiple=True, metavar="URL", help="Whose pages may call; may be repeated."),
        _option("--max-body", type=click.IntRange(1024), metavar="BYTES", help="Of a request. Default: 16 MiB."),
        _option("--max-streams", type=click.IntRange(0), metavar="N", help="Listeners at once. Default: 5000."),
        _option(
            "--requests-per-second",
            type=click.FloatRange(0, min_open=True),
            metavar="N",
            help="Of one caller, in the long run. Default: 2000.",
        ),
        _option(
            "--heartbeat-interval",
            type=click.FloatRange(1, 3600),
            metavar="SECONDS",
            help="Between two signs of life of a run, which is lost after three missed ones. Default: 10.",
        ),
        _option(
            "--events-kept",
            type=click.FloatRange(60),
            metavar="SECONDS",
            help="How long listeners may be away and miss nothing. Default: a day.",
        ),
        _option("--scheduler", is_flag=True, help="Be the scheduler in the box, too: flowkit scheduler."),
        _option("--datastore-root", metavar="ROOT", help="Of the scheduler. Default: the nearest .flowkit."),
        _option("--pool", type=click.IntRange(1, 1000), metavar="N", help="Database connections. Default: 10."),
    ]


_NAMES = {"allow_host": "allowed_hosts", "allow_origin": "allowed_origins"}
_START = """Start the metadata service, and serve until it is stopped (Ctrl-C, SIGTERM).

Every option can be given as a variable too: FLOWKIT_SERVICE_<OPTION>."""


def _nothing() -> None:
    """Do nothing."""


def _scheduler(console: Console, root: str | None) -> AbstractContextManager[Callable[[], None]]:
    """Return a context in which a scheduler is at work beside the service."""
    from flowkit.cli.scheduler import beside

    return beside(console, root)


def _teller(console: Console, server: Any) -> Callable[[str], None]:
    """Return what tells that the service is ready, and how to use it."""

    def told(url: str) -> None:
        variables = " ".join(f"{name}={value}" for name, value in server.variables(url).items())
        lines = [
            f"Serving on {url} from {server.shown_database}. Ctrl-C stops it.",
            f"Record runs here: {variables} python flow.py run",
            *server.remarks(),
        ]
        console.say("\n".join(lines))  # in one go: whoever waits for the first line has them all
        console.flush()

    return told


def warn_of_password(console: Console) -> None:
    """Say so where a password can be seen by everybody on this machine."""
    source = click.get_current_context().get_parameter_source("database")
    database = click.get_current_context().params.get("database") or ""
    credentials = database.partition("://")[2].partition("@")[0] if "@" in database else ""
    if source is click.core.ParameterSource.COMMANDLINE and ":" in credentials:
        console.warn(
            "The database's password can be seen in the list of processes: give the URL as FLOWKIT_SERVICE_DATABASE or"
            " by --database-file, or keep the password in ~/.pgpass (PGPASSFILE)."
        )


def _end_within(seconds: float, console: Console) -> None:
    """End the process even if a thread hangs in a call that does not come back."""

    def end() -> None:
        console.warn("Stopped, without waiting any longer for the database.")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
