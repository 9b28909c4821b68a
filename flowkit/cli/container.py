"""``flowkit container``: carry out one row of a launch list, in a container (see `flowkit.runtime.container`).

A command of ``flowkit`` and not of the flow: a flow whose file cannot be imported here still gets a log and a failure.
"""

from __future__ import annotations

import json
from typing import Any

import click

from flowkit.cli.console import Console
from flowkit.exceptions import DataError, UsageError
from flowkit.model.pathspec import check_part


def command(console: Console) -> click.Command:
    """Make the command."""

    def callback(**options: Any) -> int:
        return _carry_out(**options)

    params: list[click.Parameter] = [
        click.Option(["--datastore-root"], required=True),
        click.Option(["--program"], required=True, help="How the flow is started here: flow.py, or -m module."),
        click.Option(["--run-id"]),
        click.Option(["--list", "key"], help="The key of the launch list."),
        click.Option(["--step"], help="A foreign scheduler starts a task of this step: the environment says which."),
        click.Option(["--end"], is_flag=True, help="End the run that the environment names."),
        click.Option(["--template"], help="The key of what a deployed run begins from."),
        click.Option(["--record"], is_flag=True, help="Nobody watches the run: tasks write its records."),
        click.Option(["--timeout"], type=click.FloatRange(min=0), help="Seconds that the step's code may take."),
        click.Option(["--max-log-size"], type=click.IntRange(min=1), help="Bytes kept of the log."),
    ]
    return click.Command("container", callback=callback, params=params, hidden=True, help="Run a row of a list.")


def _carry_out(
    datastore_root: str,
    program: str,
    run_id: str | None,
    key: str | None,
    step: str | None,
    end: bool,
    template: str | None,
    record: bool,
    timeout: float | None,
    max_log_size: int | None,
) -> int:
    from flowkit.datastore.root import open_storage
    from flowkit.runtime.container import DEFAULT_LIMIT, carry_out, find_row

    storage = open_storage(datastore_root, create=False)
    limit = max_log_size or DEFAULT_LIMIT
    if step is not None or end:
        from flowkit.runtime import deployed

        work = deployed.Work(storage, _flow(), program, template, record, timeout, limit)
        return deployed.end(work) if step is None else deployed.carry_out(work, check_part(step))
    if run_id is None or key is None:
        raise UsageError("a container is told a run and a launch list, or a step", "only flowkit itself runs this")
    row = find_row(storage, _flow(), check_part(run_id), key)
    return carry_out(storage, row, program, timeout=timeout, limit=limit)


def _flow() -> str:
    """Return the name of the flow whose code package the working directory is."""
    from flowkit.package.files import INFO

    try:
        with open(INFO, encoding="utf-8") as file:
            return check_part(json.load(file)["flow"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"this folder is no code package: {INFO} cannot be read ({error})", "only flowkit itself runs this command"
        ) from error
