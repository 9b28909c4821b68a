"""``python flow.py batch list|kill``, and the same for each service: the jobs of this flow that have not ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flowkit.cli.group import Group
from flowkit.cli.session import Session
from flowkit.exceptions import NotFound, UsageError

if TYPE_CHECKING:
    from flowkit.runtime.backend import Backend, FoundJob


def batch_command(session: Session) -> click.Command:
    """Make ``batch``."""
    return jobs_command(session, "batch", "AWS Batch")


def kubernetes_command(session: Session) -> click.Command:
    """Make ``kubernetes``: its jobs, and what is deployed there."""
    from flowkit.cli.deploy import add_commands
    from flowkit.deployer.targets import target_class

    group = jobs_command(session, "kubernetes", "Kubernetes")
    group.help = "List and kill the jobs of this flow on Kubernetes; deploy it there, and look after its runs."
    add_commands(group, session, target_class("kubernetes"))
    return group


def docker_command(session: Session) -> click.Command:
    """Make ``docker``."""
    return jobs_command(session, "docker", "the Docker daemon")


def jobs_command(session: Session, service: str, label: str) -> Group:
    """Make the group of commands of a service.

    Parameters
    ----------
    session : Session
        The command's flow.
    service : str
        Its name among the backends of the registry.
    label : str
        What people call it.
    """
    group = Group(service, help=f"List and kill the jobs of this flow on {label}.", no_args_is_help=True)
    options: list[click.Parameter] = [
        click.Option(["--my-runs"], is_flag=True, help="Of all your runs."),
        click.Option(["--user"], help="Of all runs of a user."),
        click.Option(["--run-id"], help="Of one run. Default: the newest one."),
    ]

    def list_jobs(my_runs: bool, user: str | None, run_id: str | None) -> int:
        return _list(session, service, _wanted(session, my_runs, user, run_id))

    def kill(my_runs: bool, user: str | None, run_id: str | None) -> int:
        return _kill(session, service, _wanted(session, my_runs, user, run_id))

    group.add_command(
        click.Command("list", callback=list_jobs, params=options, help=f"List jobs on {label} that have not ended.")
    )
    group.add_command(
        click.Command(
            "kill",
            callback=kill,
            params=options,
            help=f"End jobs on {label}. Whoever still runs the run takes that for an accident and starts them again: "
            "to stop a run, use cancel.",
        )
    )
    return group


def _wanted(session: Session, my_runs: bool, user: str | None, run: str | None) -> dict[str, str | None]:
    """Return whose jobs are meant."""
    if sum((my_runs, user is not None, run is not None)) > 1:
        raise UsageError("--my-runs, --user and --run-id exclude each other")
    if my_runs or user is not None:
        return {"user": user or session.user, "run": None}
    if run is not None:
        flow, _, number = run.rpartition("/")
        if flow not in ("", session.definition.name):
            raise UsageError(f"{run!r} is of another flow than {session.definition.name}")
        return {"user": None, "run": number}
    return {"user": None, "run": _newest(session)}


def _newest(session: Session) -> str:
    from flowkit.cli.lookup import newest_run

    store = session.metadata_store(session.storage())
    try:
        return newest_run(session, store).run
    finally:
        store.close()


def _list(session: Session, service: str, wanted: dict[str, str | None]) -> int:
    from flowkit.cli.table import moment, table

    found = _found(_backend(service), session, wanted)
    if not found:
        session.console.say(f"There are no jobs of {_whose(session, wanted)} on {service}.")
        return 0
    rows = [
        [job.run, job.step, job.phase, f"{job.rows:,}", moment(job.created), job.user, job.job]
        for job in sorted(found, key=lambda job: job.created)
    ]
    for line in table(["run", "step", "phase", "tasks", "created", "user", "job"], rows, right=(3,)):
        session.console.data(line)
    return 0


def _kill(session: Session, service: str, wanted: dict[str, str | None]) -> int:
    backend = _backend(service)
    found = _found(backend, session, wanted)
    if not found:
        raise NotFound(f"there are no jobs of {_whose(session, wanted)} on {service}")
    backend.cancel([job.job for job in found], f"killed by {session.user}", running=True)
    for job in found:
        session.console.data(f"Killed {job.flow}/{job.run}/{job.step}: {job.rows:,} tasks, job {job.job}")
    return 0


def _backend(service: str) -> Backend:
    from flowkit.registry import load

    backend: Backend = load("backends", service)(None)
    return backend


def _found(backend: Backend, session: Session, wanted: dict[str, str | None]) -> list[FoundJob]:
    return backend.jobs(flow=session.definition.name, run=wanted["run"], user=wanted["user"])


def _whose(session: Session, wanted: dict[str, str | None]) -> str:
    if wanted["run"] is not None:
        return f"run {session.definition.name}/{wanted['run']}"
    return f"{session.definition.name} by {wanted['user']}"
