"""``python flow.py status``: the runs of the flow, or how one run stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.lookup import Place, find_run, tasks_of
from flowkit.cli.session import Session
from flowkit.cli.table import duration, moment, one_line, table
from flowkit.exceptions import NotFound, UsageError
from flowkit.metadata.records import FINAL, RunRecord, StepRecord, TaskRecord
from flowkit.metadata.store import MetadataStore, RunFilter

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage

_FAILED_SHOWN = 10
_COLUMNS = ("pending", "running", "succeeded", "failed", "cloned")


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(run: str | None, limit: int, usage: bool, json: bool) -> int:
        if usage and run is None:
            raise UsageError("--usage is of one run", f"{session.program} status RUN --usage")
        try:
            storage = session.storage()
        except NotFound:
            if run is not None or session.root is not None:
                raise
            _show_runs(session, [], json)  # nothing has run yet, which is no mistake
            return 0
        store = session.metadata_store(storage)
        try:
            if run is None:
                _show_runs(session, store.runs(session.definition.name, RunFilter(limit=limit)), json)
            else:
                _one(session, storage, store, find_run(session, store, run), json, usage)
        finally:
            store.close()
        return 0

    params: list[click.Parameter] = [
        click.Argument(["run"], required=False),
        click.Option(["--limit"], type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."),
        click.Option(["--usage"], is_flag=True, help="With RUN: the time and the memory that its tasks used."),
        click.Option(["--json"], is_flag=True, help="As JSON."),
    ]
    return click.Command(
        "status",
        callback=callback,
        params=params,
        help="Show the newest runs, or with RUN how it stands: its steps, their tasks, what failed and why.",
    )


def _show_runs(session: Session, runs: list[RunRecord], json: bool) -> None:
    if json:
        session.console.json([plain_run(run) for run in runs])
        return
    if not runs:
        session.console.say(f"{session.definition.name} has no runs here. Start one: {session.program} run")
        return
    rows = [
        [run.run, run.state, run.user, moment(run.created), took(run), ", ".join(run.tags), _why(run)] for run in runs
    ]
    console = session.console
    heads = ["run", "state", "user", "started", "took", "tags", ""]
    if any(run.deployment for run in runs):
        heads.insert(5, "deployment")
        for row, run in zip(rows, runs, strict=True):
            row.insert(5, one_line(run.deployment or ""))
    for line in table(heads, rows, paint=lambda column, cell: console.paint_state(cell) if column == 1 else cell):
        console.data(line)


def _why(run: RunRecord) -> str:
    return one_line(run.reason or "", 80) if run.state != "succeeded" else ""


def _one(session: Session, storage: Storage, store: MetadataStore, run: RunRecord, json: bool, usage: bool) -> None:
    begun = {step.step: step for step in store.steps(run.flow, run.run) if not step.step.startswith("_")}
    steps = _steps(session, storage, run, begun)
    failed = list(tasks_of(store, Place(run), "failed"))
    used = _usage(session, storage, store, run) if usage else []
    if json:
        more = {"usage": used} if usage else {}
        session.console.json(
            {**plain_run(run), "steps": steps, "failed": [_plain_task(task) for task in failed], **more}
        )
        return
    say = session.console.data
    drawn = session.console.terminal.live
    if drawn:
        from flowkit.cli.run_status import show_run

        show_run(session, storage, run, steps, begun)
        if run.reason:
            say(one_line(run.reason))
    else:
        say(f"{run.flow}/{run.run}: {run.state}" + (f" ({one_line(run.reason)})" if run.reason else ""))
    say(one_line(f"started {moment(run.created)} by {run.user}, took {took(run)}"))
    if run.deployment:
        say(one_line(f"deployed as {run.deployment}"))
    if run.unattended and run.state not in FINAL:
        target = run.deployment.partition("/")[0]  # type: ignore[union-attr]
        session.console.say(f"What its scheduler says: {session.program} {one_line(target)} status {run.run}")
    if run.origin:
        say(one_line(f"resumed from {run.origin}"))
    if run.tags:
        say(one_line(f"tags: {', '.join(run.tags)}"))
    if not drawn:
        say("")
        columns = [name for name in (*_COLUMNS, "cancelled", "lost") if name in _COLUMNS or any(s[name] for s in steps)]
        rows = [[step["step"], *(f"{step[name]:,}" if step[name] else "-" for name in columns)] for step in steps]
        for line in table(["step", *columns], rows, right=range(1, len(columns) + 1)):
            say(line)
    if usage:
        from flowkit.cli.run_usage import usage_lines

        say("")
        for line in usage_lines(used):
            say(line)
    if not failed:
        return
    say("")
    for task in failed[:_FAILED_SHOWN]:
        text = one_line(f"{task.step}/{task.task} failed: {task.reason or 'for an unknown reason'}", 500)
        say(session.console.paint(text, "red"))
    if len(failed) > _FAILED_SHOWN:
        say(f"… and {len(failed) - _FAILED_SHOWN:,} more: --json lists all")
    first = failed[0]
    session.console.say(f"What a task wrote: {session.program} logs {run.run}/{first.step}/{first.task}")


def _steps(session: Session, storage: Storage, run: RunRecord, begun: Mapping[str, StepRecord]) -> list[dict[str, Any]]:
    """Return the steps with their tasks counted, in the order of the graph; what the index alone knows comes last."""
    from flowkit.datastore.manifests import read_clones

    names = list(dict.fromkeys((*session.definition.graph.order(), *begun)))
    found = []
    for name in names:
        of_step = begun[name].counts if name in begun else {}
        cloned = read_clones(storage, run.flow, run.run, name) if run.origin and of_step else None
        taken = len(cloned[1]) if cloned else 0
        states = {state: of_step.get(state, 0) for state in ("pending", "running", "succeeded", "failed")}
        states["succeeded"] = max(states["succeeded"] - taken, 0)
        found.append(
            {
                "step": name,
                **states,
                "cloned": taken,
                "cancelled": of_step.get("cancelled", 0),
                "lost": of_step.get("lost", 0),
            }
        )
    return found


def _usage(session: Session, storage: Storage, store: MetadataStore, run: RunRecord) -> list[dict[str, Any]]:
    from flowkit.cli.run_usage import usage_by_step

    return usage_by_step(storage, store, run, session.definition.graph.order())


def took(run: RunRecord) -> str:
    """Return how long a run took, or has taken so far."""
    if run.finished is not None:
        return duration(run.finished - run.created)
    if run.state in FINAL or run.state == "lost":
        return "-"
    return duration(time.time() - run.created)


def plain_run(run: RunRecord) -> dict[str, Any]:
    """Return what ``--json`` tells of a run; times are seconds since the epoch."""
    return {
        "flow": run.flow,
        "run": run.run,
        "state": run.state,
        "reason": run.reason,
        "user": run.user,
        "created": run.created,
        "finished": run.finished,
        "tags": list(run.tags),
        "system_tags": list(run.system_tags),
        "origin": run.origin,
        "deployment": run.deployment,
    }


def _plain_task(task: TaskRecord) -> dict[str, Any]:
    return {
        "task": f"{task.step}/{task.task}",
        "attempt": task.attempt,
        "reason": task.reason,
        "started": task.started,
        "finished": task.finished,
    }
