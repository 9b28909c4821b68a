"""``python flow.py resume``: a new run that takes over what succeeded and runs the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.execution import execute_run, run_options
from flowkit.cli.parameters import read_given
from flowkit.cli.session import Session
from flowkit.exceptions import Conflict, NotFound, UsageError

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.store import MetadataStore
    from flowkit.model.manifest import Manifest
    from flowkit.runtime.resume import Plan


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that is resumed.

    Parameters
    ----------
    pathspec : str
        ``Flow/run``.
    rerun : str or None
        The step from which everything runs again.
    plan : Plan
        What is cloned and what runs.
    parameters : mapping
        The origin's parameters by attribute name.
    trigger : tuple of (str, str, float, str)
        The events that started it.
    """

    pathspec: str
    rerun: str | None
    plan: Plan
    parameters: Mapping[str, Any]
    trigger: tuple[tuple[str, str, float, str], ...] = ()


def command(session: Session) -> click.Command:
    """Make the command; its options hold the flow's parameters."""

    def callback(
        step_to_rerun: str | None, origin_run_id: str | None, plan: bool, json: bool, reattach: bool, **options: Any
    ) -> int:
        if reattach:
            from flowkit.cli import reattach as reattaching

            return reattaching.reattach(session, step_to_rerun or origin_run_id, options)
        return _resume(session, step_to_rerun, origin_run_id, plan, json, options)

    params: list[click.Parameter] = [
        click.Argument(["step_to_rerun"], required=False),
        click.Option(["--origin-run-id"], help="The run to resume. Default: your last one."),
        click.Option(
            ["--reattach"],
            is_flag=True,
            help="Go on with the run itself, whose client is gone: resume --reattach [RUN].",
        ),
        click.Option(["--plan"], is_flag=True, help="Say what would be cloned and run, and why; run nothing."),
        click.Option(["--json"], is_flag=True, help="With --plan: as JSON."),
        *run_options(session),
    ]
    return click.Command(
        "resume",
        callback=callback,
        params=params,
        help="Start a new run that takes over what succeeded in an earlier one, without running it again, and runs "
        "the rest. With STEP_TO_RERUN, that step and all that follows it run again too.",
    )


def _resume(
    session: Session, rerun: str | None, run: str | None, plan_only: bool, json: bool, options: dict[str, Any]
) -> int:
    if json and not plan_only:
        raise UsageError("--json goes with --plan")
    session.prepare(tuple(options["decospecs"]))
    if plan_only:
        _show_plan(session, _found(session, run, rerun, options), json)
        return 0
    return execute_run(session, options, find_origin=lambda: _found(session, run, rerun, options))


def _found(session: Session, run: str | None, rerun: str | None, options: dict[str, Any]) -> Origin:
    """Return what is resumed, and warn of what may surprise."""
    origin = _origin(session, session.storage(), run, rerun)
    for line in _warnings(session, origin, read_given(session.definition, options)):
        session.console.warn(line)
    return origin


def _origin(session: Session, storage: Storage, run: str | None, rerun: str | None) -> Origin:
    from flowkit.datastore.artifacts import ArtifactReader
    from flowkit.datastore.blobs import Blobs
    from flowkit.decorators.events import started_by
    from flowkit.metadata.records import TaskRecord
    from flowkit.model.definition import code_fingerprint
    from flowkit.runtime.origin import read_origin
    from flowkit.runtime.resume import plan

    definition = session.definition
    store = session.metadata_store(storage)
    try:
        run = run.rpartition("/")[2] if run else None
        _find_unindexed(storage, store, definition.name, run)
        run = run or _last_run(session, storage, store)
        record = store.run(definition.name, run)
        if record is None:
            raise NotFound(f"there is no run {definition.name}/{run}", f"the runs: {session.program} status")
        if record.state == "running" and record.unattended:
            raise Conflict(
                f"run {run} has not ended: it belongs to a scheduler ({record.deployment})",
                f"wait for it, or stop it: {session.program} cancel {run}",
            )
        if record.state == "running":
            raise Conflict(
                f"run {run} is still alive: {record.user} runs it on {record.host} (pid {record.pid})",
                f"wait for it, or stop it: {session.program} cancel {run}",
            )
        tasks: list[TaskRecord] = store.tasks(definition.name, run)
    finally:
        store.close()
    found = read_origin(storage, definition.name, run)
    states: dict[tuple[str, str], str] | None = {(task.step, task.task): task.state for task in tasks}
    if found.run != run:
        states = None
        session.console.say(f"Run {run} was stopped before it began: going on from run {found.run}, as it would have.")
        run, rerun = found.run, _both(session, found.rerun, rerun)
    reader = ArtifactReader(Blobs(storage))
    parameters = {
        name: reader.load(name, artifact)
        for name, artifact in found.parameters.artifacts.items()
        if name in definition.parameters
    }
    made = plan(
        definition.graph,
        found.tasks,
        rerun,
        run=f"{definition.name}/{run}",
        states=states,
        code={name: code_fingerprint(step.function) for name, step in definition.steps.items()},
    )
    trigger = started_by(found.parameters.extra)
    events = tuple(trigger.events or ()) if trigger is not None else ()
    return Origin(f"{definition.name}/{run}", rerun, made, parameters, events)


def parameters_to_resume(session: Session, storage: Storage, words: Sequence[str]) -> Manifest:
    """Return the ``_parameters`` manifest of the run that ``resume`` is to go on from.

    Parameters
    ----------
    session : Session
        The command, of which only the place of the runs is known yet.
    storage : Storage
        The datastore.
    words : sequence of str
        What stands after ``resume``.
    """
    from flowkit.runtime.origin import run_parameters

    run = None
    for position, word in enumerate(words):
        after = words[position + 1] if position + 1 < len(words) else "-"
        if word == "--origin-run-id":
            run = after
        elif word.startswith("--origin-run-id="):
            run = word.partition("=")[2]
        elif word == "--reattach" and run is None:
            run = next((each for each in (after, words[0]) if not each.startswith("-")), None)
    flow = session.definition.name
    run = run.rpartition("/")[2] if run else None
    store = session.metadata_store(storage)
    try:
        _find_unindexed(storage, store, flow, run)
        if run is None and "--reattach" in words:
            from flowkit.cli.reattach import last_open_run

            run = last_open_run(session, store)
        run = run or _last_run(session, storage, store)
    finally:
        store.close()
    return run_parameters(storage, flow, run)


def _find_unindexed(storage: Storage, store: MetadataStore, flow: str, run: str | None) -> None:
    """Have the index know of the run, where it was killed while the index could not be written."""
    from flowkit.client.rebuild import add_missing
    from flowkit.exceptions import DataError

    try:
        add_missing(storage, store, flow, run)
    except DataError:  # a root that can only be read: what the index knows has to do
        pass


def _both(session: Session, before: str | None, now: str | None) -> str | None:
    """Return the step whose downstream holds what both a resume that never began and this one run again."""
    if before is None or now is None or before == now:
        return now or before
    graph = session.definition.graph
    for one, other in ((before, now), (now, before)):
        if one in graph.nodes and other in graph.downstream(one):
            return one
    raise UsageError(
        f"the run to resume was to run again from '{before}', and you ask for '{now}': neither follows the other",
        "name the run that it was to resume: --origin-run-id",
    )


def _last_run(session: Session, storage: Storage, store: MetadataStore) -> str:
    """Return the user's newest run that began: one that was killed before it had its parameters is passed over.

    So are those of deployments, which nobody has begun by hand.
    """
    from flowkit.datastore.layout import manifest_file
    from flowkit.metadata.store import RunFilter
    from flowkit.runtime.start import PARAMETERS

    flow = session.definition.name
    found = store.runs(flow, RunFilter(user=session.user, limit=100))
    latest = [record for record in found if record.deployment is None]
    for record in latest:
        if storage.info(manifest_file(flow, record.run, *PARAMETERS)) is not None:
            return record.run
    if latest:
        return latest[0].run
    others = store.runs(flow, RunFilter(limit=1))
    hint = None
    if others:
        whose = others[0].deployment or others[0].user
        hint = f"run {others[0].run} is by {whose}: --origin-run-id {others[0].run}"
    raise NotFound(f"you ({session.user}) have no run of {flow} to resume", hint or "start one with: run")


def _warnings(session: Session, origin: Origin, given: Mapping[str, Any]) -> list[str]:
    lines = []
    cloned = ", ".join(origin.plan.clones)
    for name, value in given.items():
        before = origin.parameters.get(name)
        if type(before) is type(value) and before == value:
            continue
        if cloned:
            lines.append(f"Warning: --{name} is now {value!r}; the cloned steps ({cloned}) saw {before!r}.")
    for step in origin.plan.changed:
        lines.append(
            f"Note: the code of the step '{step}' has changed since its tasks ran; they are cloned all the same "
            f"(to run it again: resume {step})."
        )
    return lines


def _show_plan(session: Session, origin: Origin, json: bool) -> None:
    console, plan = session.console, origin.plan
    if json:
        console.json(plan.to_json())
        return
    width = max((len(line.step) for line in plan.lines), default=4)
    for line in plan.lines:
        total = "?" if line.total is None else f"{line.total:,}"
        console.data(f"{line.action:<5} {line.step:<{width}} {total:>7}  {line.reason}")
    if plan.nothing_to_run:
        console.say("Everything succeeded: there is nothing to run.")
