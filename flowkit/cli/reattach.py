"""``resume --reattach``: go on with a run whose client is gone, under its own id.

What is committed stays, what runs on a service is picked up there, what ran on the machine of that client starts
again. Everything that the run was started with (parameters, ``--with``, options) is the run's own; only what belongs
to this machine may be given anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from flowkit.cli.assembly import RUN_OPTIONS, assemble, owner_facts, prepare
from flowkit.cli.execution import execute_run, write_run_id
from flowkit.cli.session import Session
from flowkit.cli.watcher import Watcher, watch
from flowkit.exceptions import Conflict, NotFound, UsageError
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.datastore.lease import Lease
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.records import Record, RunRecord, TaskRecord
    from flowkit.metadata.store import MetadataStore
    from flowkit.model.manifest import Manifest
    from flowkit.runtime.local import LocalExecutor
    from flowkit.runtime.resume import Plan
    from flowkit.runtime.runtime import Runtime

_OURS = {*RUN_OPTIONS, "detach", "reattach", "origin_run_id", "step_to_rerun", "run_id_file", "runner_attribute_file"}
"""Options that may be given; a run keeps what else it was started with."""
_SHAPE = ("type", "next", "foreach_artifact", "num_parallel", "condition", "switch_cases", "matching_join")
_LATEST = 100


class _Ended(Exception):
    """The run came to its end before it could be taken over."""


class _Found(NamedTuple):
    """A run that can be taken over, as far as was looked."""

    storage: Storage
    run: str
    parameters: Manifest


def reattach(session: Session, run: str | None, options: dict[str, Any]) -> int:
    """Take a run over and carry it on; return the exit code of the command.

    Parameters
    ----------
    session : Session
        The command; not prepared yet.
    run : str or None
        Which run; by default the user's newest one that did not end.
    options : dict
        As for `flowkit.cli.execution.execute_run`.

    Raises
    ------
    Conflict
        If somebody else has the run, with who that is.
    UsageError
        If the run has failed or was cancelled, or the flow is another one by now.
    NotFound
        If there is no such run.
    """
    _check_options()
    storage = session.storage()
    flow = session.definition.name
    found = _find(session, storage, run)
    state = _end_of(storage, flow, found.run)
    if state is not None:
        return _over(session, found.run, state)
    extra = found.parameters.extra
    session.decospecs = ()
    session.options = {**session.options, **extra.get("options", {})}
    session.prepare(tuple(extra.get("with", ())))
    _restore(session, found.parameters)
    options = {**options, **_recorded(extra.get("run_options"))}
    try:
        return execute_run(session, options, take_over=lambda executor: _take_over(session, options, found, executor))
    except _Ended:
        return _over(session, found.run, str(_end_of(storage, flow, found.run)))


def _check_options() -> None:
    """Refuse what a run that has begun cannot have any more."""
    context = click.get_current_context()
    wrong = [
        option.opts[0]
        for option in context.command.params
        if option.name not in _OURS and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
    ]
    if wrong:
        raise UsageError(
            f"{', '.join(sorted(wrong))}: a run that is taken over keeps what it was started with",
            "leave it out; or begin a new run that takes over the results: resume --origin-run-id RUN",
        )


def _recorded(options: Any) -> dict[str, Any]:
    """Return the options that the run was started with and that were not given again."""
    context = click.get_current_context()
    if not isinstance(options, Mapping):
        return {}
    given = {
        name for name in RUN_OPTIONS if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }  # --fail-fast given now takes the place of --keep-going given then
    if given & {"fail_fast", "keep_going"}:
        given |= {"fail_fast", "keep_going"}
    return {
        name: options[name]
        for name, kind in RUN_OPTIONS.items()
        if name not in given and type(options.get(name)) is kind
    }


def _find(session: Session, storage: Storage, run: str | None) -> _Found:
    from flowkit.client.rebuild import add_missing
    from flowkit.datastore.manifests import read_manifest
    from flowkit.datastore.runs import read_run
    from flowkit.runtime.start import PARAMETERS

    flow = session.definition.name
    run = run.rpartition("/")[2] if run else None
    store = session.metadata_store(storage)
    try:
        add_missing(storage, store, flow, run)
        run = run or last_open_run(session, store)
    finally:
        store.close()
    if read_run(storage, flow, run) is None:
        raise NotFound(f"there is no run {flow}/{run}", f"the runs: {session.program} status")
    parameters = read_manifest(storage, flow, run, *PARAMETERS)
    if parameters is None:
        raise UsageError(f"run {run} was stopped before it had its parameters: there is nothing to go on with")
    return _Found(storage, run, parameters)


def last_open_run(session: Session, store: MetadataStore) -> str:
    """Return the user's newest run that did not end, one that nobody has before one that is alive."""
    from flowkit.metadata.records import FINAL
    from flowkit.metadata.store import RunFilter

    flow = session.definition.name
    latest = store.runs(flow, RunFilter(user=session.user, limit=_LATEST))
    open_ = [record for record in latest if record.state not in FINAL and not record.unattended]
    for record in open_:
        if record.state == "lost":
            return record.run
    if open_:
        return open_[0].run  # it is alive: who has it is told
    raise NotFound(
        f"you ({session.user}) have no run of {flow} that did not end",
        f"name the run: {session.program} resume --reattach RUN" if not latest else None,
    )


def _end_of(storage: Storage, flow: str, run: str) -> str | None:
    from flowkit.datastore.runs import read_end
    from flowkit.metadata.records import FINAL

    state = (read_end(storage, flow, run) or {}).get("state")
    return state if state in FINAL else None


def _over(session: Session, run: str, state: str) -> int:
    if state == "succeeded":
        session.console.warn(f"Run {run} has succeeded: there is nothing left to do.")
        return 0
    raise UsageError(
        f"run {run} has ended: it {'was cancelled' if state == 'cancelled' else 'failed'}",
        f"begin a new run that takes over what succeeded: {session.program} resume --origin-run-id {run}",
    )


def _restore(session: Session, parameters: Manifest) -> None:
    """Have the flow as it was when the run began; refuse another one."""
    from flowkit.decorators.attach import restore_flow
    from flowkit.model.definition import code_fingerprint
    from flowkit.model.graph_output import describe

    extra, definition = parameters.extra, session.definition
    then, now = _shape(extra.get("graph")), _shape(describe(definition))
    if then != now:
        changed = sorted({name for name in {*then, *now} if then.get(name) != now.get(name)})
        raise UsageError(
            f"the flow has other steps than when run {parameters.run} began: {', '.join(changed)}",
            "put the flow's file back as it was; or begin a new run that takes over the results: "
            f"{session.program} resume --origin-run-id {parameters.run}",
        )
    restore_flow(definition, extra.get("decorators", {}))
    codes = extra.get("code", {})
    for name, step in definition.steps.items():
        if codes.get(name) not in (None, code_fingerprint(step.function)):
            session.console.warn(
                f"Note: the code of the step '{name}' has changed since the run began: tasks that start from now on "
                "run the new one."
            )


def _shape(graph: Any) -> dict[str, Any]:
    """Return what decides how a run goes on, by step; it may come from a file that is not to be trusted."""
    steps = graph.get("steps") if isinstance(graph, Mapping) else None
    if not isinstance(steps, Mapping):
        return {}
    return {
        str(name): {key: step.get(key) for key in _SHAPE} for name, step in steps.items() if isinstance(step, Mapping)
    }


def _take_over(
    session: Session, options: dict[str, Any], found: _Found, executor: LocalExecutor
) -> tuple[Runtime, Watcher]:
    """Become the owner of the run, find out how it stands, and put its runtime together."""
    from flowkit.datastore.runs import read_run
    from flowkit.runtime.origin import read_origin
    from flowkit.runtime.ownership import held
    from flowkit.runtime.reattach import read_past
    from flowkit.runtime.resume import plan

    definition, storage, run = session.definition, found.storage, found.run
    flow = definition.name
    store = session.metadata_store(storage)
    parts = prepare(session, options, storage, executor)
    lease = _own(session, storage, store, run)
    with _released_on_error(lease), held(lease):
        if read_run(storage, flow, run) is None:  # looked at now that it is ours: see flowkit.upkeep.deletion
            raise NotFound(f"run {flow}/{run} is being removed", f"the runs: {session.program} status")
        if _end_of(storage, flow, run) is not None:
            raise _Ended
        origin = read_origin(storage, flow, run)
        if origin.run != run:
            raise UsageError(
                f"run {run} was stopped before anything of it began",
                f"begin it anew: {session.program} resume --origin-run-id {run}",
            )
        made = plan(definition.graph, origin.tasks, run=f"{flow}/{run}")
        problems: list[str] = []
        known = {(task.step, task.task): task for task in store.tasks(flow, run)}
        started = {place: task.attempt for place, task in known.items() if task.state in ("running", "lost")}
        past = read_past(storage, flow, run, lambda *place: place in origin.tasks, problems.append, started)
        missing = _missing_records(storage, flow, run, made, known, outputs=store.outputs)
        begun = _begun(session, storage, found)
    write_run_id(options, flow, run, session.metadata, root=storage.root)
    watcher = watch(session, store, again=True)
    watcher.run_started(flow, run, None)
    for text in (*problems, f"Run {run} goes on: {made.cloned:,} of its tasks are done, {past} were under way."):
        watcher.notice(text)
    runtime = assemble(
        session,
        options,
        storage,
        store,
        executor,
        begun,
        watcher,
        parts,
        transitions=made.transitions,
        lease=lease,
        past=past,
    )
    runtime.add_records(missing)
    runtime.add_records(past.records(flow, run))
    return runtime, watcher


@contextmanager
def _released_on_error(lease: Lease) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lease.release()
        raise


def _own(session: Session, storage: Storage, store: MetadataStore, run: str) -> Lease:
    from flowkit.datastore.lease import Lease, read_owner
    from flowkit.metadata.liveness import owner_is_gone

    flow = session.definition.name
    if read_owner(storage, flow, run) is None:
        _check_dead(session, storage, store, run)
    return Lease.acquire(
        storage,
        flow,
        run,
        owner_facts(session.user),
        take_over=True,
        gone=owner_is_gone,
        expires_after=settings().lease_seconds,
        told=session.console.warn,
    )


def _check_dead(session: Session, storage: Storage, store: MetadataStore, run: str) -> None:
    """Make sure that a run which never had a lease, since nothing of it ran elsewhere, has nobody any more."""
    from flowkit.client.rebuild import still_held
    from flowkit.metadata.liveness import why_lost

    record = store.run(session.definition.name, run)
    if record is None:
        return
    if record.unattended:
        raise Conflict(
            f"run {run} belongs to a scheduler ({record.deployment}), which alone can go on with it",
            f"when it is over: {session.program} resume --origin-run-id {run}",
        )
    if record.state != "lost":
        record = still_held(storage, record)
    if why_lost(record, time.time()) is None:
        raise Conflict(
            f"run {run} is still alive: {record.user} runs it on {record.host} (process {record.pid})",
            f"wait for it, or stop it: {session.program} cancel {run}",
        )


def _begun(session: Session, storage: Storage, found: _Found) -> Any:
    from flowkit.client.rebuild import run_from_datastore
    from flowkit.datastore.layout import cancel_file
    from flowkit.metadata.liveness import this_process
    from flowkit.runtime.start import StartedRun

    flow = session.definition.name
    # Whoever asked the run to stop asked another runtime, which is gone.
    storage.delete(cancel_file(flow, found.run))
    record: RunRecord | None = run_from_datastore(storage, flow, found.run)
    assert record is not None
    now = this_process()._asdict()
    return StartedRun(
        record._replace(state="running", reason=None, finished=None, heartbeat=time.time(), **now), found.parameters
    )


def _missing_records(
    storage: Storage,
    flow: str,
    run: str,
    made: Plan,
    known: Mapping[tuple[str, str], TaskRecord],
    *,
    outputs: bool,
) -> list[Record]:
    """Return the records of tasks that committed while nobody watched, with what they made (`outputs`)."""
    from flowkit.datastore.manifests import read_manifest
    from flowkit.datastore.many import mapped_over
    from flowkit.metadata.outputs import output_of
    from flowkit.metadata.records import TaskRecord

    places = [(step, task) for step, tasks in made.clones.items() for task in tasks]
    missing = [place for place in places if place not in known or known[place].state != "succeeded"]

    def read(place: tuple[str, str]) -> list[Record]:
        step, task = place
        manifest = read_manifest(storage, flow, run, step, task)
        if manifest is None:
            return []
        origin = None if manifest.run == run else f"{flow}/{manifest.run}/{step}/{manifest.task}"
        record = TaskRecord(
            flow, run, step, task, "succeeded", manifest.attempt, manifest.started, manifest.ended, None, origin
        )
        made = [output_of(manifest, run=run, task=task, attempt=manifest.attempt)] if outputs else []
        return [record, *made]

    return [record for found in mapped_over(storage, read, missing) for record in found]
