"""Carrying out a run for ``run`` and ``resume``: options, processes, stores, the loop, the last words."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli import debugging
from flowkit.cli.assembly import RUN_OPTIONS, assemble, prepare
from flowkit.cli.invocation import given, program
from flowkit.cli.parameters import parameter_options, read_given, with_defaults
from flowkit.cli.session import Session
from flowkit.cli.watcher import Watcher, watch
from flowkit.exceptions import Conflict, FlowkitError, UsageError
from flowkit.model.parameters import YIELDING
from flowkit.registry import load
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.model.coordinates import TaskRef
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.launch import Launch
    from flowkit.model.manifest import Failure
    from flowkit.runtime.local import LocalExecutor
    from flowkit.runtime.resume import Plan
    from flowkit.runtime.runtime import Runtime

_MOST_WARNINGS = 20
"""How many warnings about the flow are told when a run starts; `check` tells all."""
_MOST_FAILURES = 5
"""How many different failures are shown at the end of a run."""


def run_options(session: Session) -> list[click.Parameter]:
    """Return the options that ``run`` and ``resume`` share: those of the run, then the flow's parameters."""
    at_least = click.IntRange(min=1)
    parameters = session.definition.parameters.values()
    taken = {f"--{parameter.name.lower()}" for parameter in parameters}
    options: list[click.Parameter] = [
        click.Option(["--max-workers"], type=at_least, help="Local tasks at once. Default: the CPUs, at least 4."),
        click.Option(
            ["--respect-resources"], is_flag=True, help="Run at once what has enough processors and memory, no more."
        ),
        click.Option(["--max-num-splits"], type=at_least, default=10_000, show_default=True, help="Widest foreach."),
        click.Option(
            ["--max-log-size"], type=at_least, default=10, show_default=True, help="MB kept of each attempt's log."
        ),
        click.Option(["--with", "decospecs"], multiple=True, help="Give every step a decorator: name:attribute=value."),
        click.Option(["--tag", "tags"], multiple=True, help="Tag the run; may be repeated."),
        click.Option(["--namespace"], help="The namespace that the steps see."),
        click.Option(["--run-id-file"], type=click.Path(dir_okay=False), help="Write the run id there."),
        click.Option(["--runner-attribute-file"], type=click.Path(dir_okay=False), hidden=True),
        click.Option(["--runner-arguments"], type=click.Path(dir_okay=False), hidden=True),
        click.Option(["--run-id"], hidden=True, help="The run's id, which a scheduler has chosen."),
        click.Option(["--deployed-as"], hidden=True, help="The deployment that it is a run of: target/name."),
        click.Option(["--trigger-events"], hidden=True, help="JSON: what started it."),
        click.Option(["--deployed-template"], hidden=True, help="The key of what runs of the deployment begin from."),
        click.Option(["--notify-about"], hidden=True, help="The ends that people are told of: error,success."),
        click.Option(["--fail-fast"], is_flag=True, help="When a task fails, kill the others."),
        click.Option(["--keep-going"], is_flag=True, help="When a task fails, run what does not depend on it."),
        click.Option(
            ["--debug"],
            is_flag=False,
            flag_value=debugging.ALL,
            metavar="[STEP]",
            help="Run tasks (of one step) one at a time, with the keyboard: breakpoint() works.",
        ),
        click.Option(["--pdb"], is_flag=True, help="As --debug, and open the debugger where a step fails."),
        click.Option(["--detach"], is_flag=True, help="Leave once all that can run now runs on services."),
        click.Option(
            ["--task-start"],
            type=click.Choice(["auto", "fork", "spawn"]),
            help="How tasks start: by fork, or as fresh interpreters. Default: fork where that is safe.",
        ),
    ]
    yielding = {f"--{name}" for name in YIELDING}
    return [each for each in options if taken.isdisjoint(yielding.intersection(each.opts))] + parameter_options(
        parameters
    )


def execute_run(
    session: Session,
    options: dict[str, Any],
    *,
    find_origin: Callable[[], Any] | None = None,
    take_over: Callable[[LocalExecutor], tuple[Runtime, Watcher]] | None = None,
) -> int:
    """Start a run, carry it out, and return the exit code of the command.

    Parameters
    ----------
    session : Session
        The command's flow and stores.
    options : dict
        What `run_options` gave: the options of the run and the texts of parameters.
    find_origin : callable, optional
        Returns what to resume (a `flowkit.cli.resume.Origin`); called when the processes that start tasks are there,
        since connections to a datastore do not survive a fork.
    take_over : callable, optional
        Puts the runtime of a run together that has begun already (`flowkit.cli.reattach`), instead of beginning one.
    """
    started = time.time()
    if options["fail_fast"] and options["keep_going"]:
        raise UsageError("--fail-fast and --keep-going exclude each other")
    session.prepare(tuple(options["decospecs"]))
    debugging.check(session, options, begins=take_over is None)
    _warn(session)
    tags = _checked_tags(options["tags"])
    check_files(options)
    given = read_given(session.definition, options)
    # Before any thread, store, connection or log file is there: what is forked now starts every task.
    spawn = _FreshInterpreter(session)
    executor = _local_executor(session, options, spawn)
    if session.metadata != "local":
        load("metadata", session.metadata).warm()
    runtime: Runtime | None = None
    try:
        if take_over is not None:
            runtime, watcher = take_over(executor)
        else:
            origin = find_origin() if find_origin is not None else None
            storage = session.storage(create=True)
            runtime, watcher = _begin(session, options, storage, executor, given, tags, origin, spawn)
        spawn.run, spawn.root = runtime.record.run, runtime.storage.root
        state = runtime.run()
    except Conflict:  # somebody else has the run, and its jobs
        raise
    except BaseException:
        _leave(session, runtime)
        raise
    finally:
        session.console.release()
        for each in (executor,) if runtime is None else runtime.executors.values():
            each.close()
    if state == "detached":
        return _left(session, runtime)
    watcher.run_ended(state, runtime.record.reason, time.time() - started, runtime.scheduler.counts())
    if options.get("deployed_as"):
        _notify(session, runtime, state, options["notify_about"])
    return _last_words(session, runtime, state)


def _leave(session: Session, runtime: Runtime | None) -> None:
    """Leave the jobs of a run alone whose runtime cannot go on: what they compute is not lost."""
    left = sum(each.detach() for each in runtime.executors.values()) if runtime is not None else 0
    if runtime is not None and left:
        session.console.warn(
            f"{left:,} tasks go on elsewhere. Take the run over with:\n"
            f"    {session.program} resume --reattach {runtime.record.run}"
        )


def _left(session: Session, runtime: Runtime) -> int:
    """Say how to come back to a run that goes on elsewhere."""
    from flowkit.runtime.runtime import DETACHED

    record = runtime.record
    session.console.warn(
        f"Run {record.run} was {record.reason}. What follows them starts when you come back:\n"
        f"    {session.program} resume --reattach {record.run}"
    )
    return 0 if runtime.left == DETACHED else 130


def _warn(session: Session) -> None:
    """Tell what looks like a mistake in the flow, a line each."""
    try:
        found = session.warnings()
    except Exception as error:  # the border to advice: a defect in it must not keep a flow from running
        session.console.warn(f"Note: the artifacts of the steps were not checked ({type(error).__name__}: {error}).")
        return
    for problem in found[:_MOST_WARNINGS]:
        session.console.warn(f"Warning: {problem._replace(hint=None)}" + (f" ({problem.hint})" if problem.hint else ""))
    if len(found) > _MOST_WARNINGS:
        session.console.warn(f"… and {len(found) - _MOST_WARNINGS:,} more warnings: {session.program} check")


def _begin(
    session: Session,
    options: dict[str, Any],
    storage: Storage,
    executor: LocalExecutor,
    given: Mapping[str, Any],
    tags: tuple[str, ...],
    origin: Any,
    spawn: _FreshInterpreter,
) -> tuple[Runtime, Watcher]:
    """Claim the run, write its parameters and clones, and put the runtime together."""
    from flowkit.metadata.records import TaskRecord
    from flowkit.runtime.start import PARAMETERS, RunRequest, begin

    definition = session.definition
    inherited = origin.parameters if origin is not None else _deployed_values(definition, storage, options)
    values = with_defaults(definition, given, inherited, session)
    namespace = options["namespace"] if options["namespace"] is not None else settings().namespace
    request = RunRequest(
        user=session.user,
        parameters=values,
        tags=tags,
        namespace=namespace or f"user:{session.user}",
        decospecs=session.decospecs,
        options=session.options,
        origin=origin.pathspec if origin is not None else None,
        rerun=origin.rerun if origin is not None else None,
        clones=tuple(origin.plan.clones) if origin is not None else (),
        run_options={name: options[name] for name in RUN_OPTIONS if options[name] is not None},
        name=_checked_id(options),
        deployment=options["deployed_as"],
        trigger=_trigger(session, options, origin),
    )
    store = session.metadata_store(storage)
    # Before there is a run: a setting may be wrong, a service may refuse.
    parts = prepare(session, options, storage, executor)
    if parts.package is not None:
        request = request._replace(package=parts.package._asdict())
    run = begin(storage, definition, request, functools.partial(store.reserve, definition.name))
    plan: Plan | None = origin.plan if origin is not None else None
    watcher = watch(session, store, again=request.origin is not None, plain=options.get("debug") is not None)
    watcher.run_started(definition.name, run.record.run, request.origin)
    transitions = plan.transitions if plan is not None else None
    runtime = assemble(session, options, storage, store, executor, run, watcher, parts, transitions=transitions)
    debugging.take_part(session, options, runtime, spawn)
    runtime.begun = functools.partial(
        write_run_id, options, definition.name, run.record.run, session.metadata, root=storage.root
    )
    began = run.parameters
    runtime.add_records(
        [TaskRecord(definition.name, run.record.run, *PARAMETERS, "succeeded", 0, began.started, began.ended)]
    )
    if store.outputs:
        from flowkit.metadata.outputs import output_of

        runtime.add_records([output_of(began)])
    if plan is not None:
        from flowkit.runtime.clones import clone_outputs, clone_records, write_clone_files

        write_clone_files(storage, definition.name, run.record.run, plan)
        runtime.add_records(clone_records(definition.name, run.record.run, plan))
        if store.outputs:
            runtime.add_records(clone_outputs(storage, definition.name, run.record.run, plan))
        for step, tasks in plan.clones.items():
            watcher.cloned(step, len(tasks))
    return runtime, watcher


def _checked_id(options: Mapping[str, Any]) -> str | None:
    """Return the id that a scheduler has chosen for the run; None for the flow's next number."""
    run: str | None = options["run_id"]
    if run is None:
        return None
    from flowkit.model.pathspec import check_part

    if run.isdigit():
        raise UsageError(f"--run-id {run}: numbers are given out by the flow itself", "choose a name")
    return check_part(run)


def _trigger(session: Session, options: Mapping[str, Any], origin: Any) -> tuple[tuple[str, str, float, str], ...]:
    """Return what started the run; of one that is resumed what started that one, since its steps may ask for it."""
    if options["trigger_events"] is None:
        known: tuple[tuple[str, str, float, str], ...] = origin.trigger if origin is not None else ()
        return () if session.options.get("trigger") else known
    from flowkit.runtime.template import given_trigger

    return tuple(given_trigger(options["trigger_events"]))


def _deployed_values(definition: FlowDefinition, storage: Storage, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of when the flow was deployed, for a run of a deployment; none for others."""
    if options.get("deployed_template") is None:
        return {}
    from flowkit.datastore.artifacts import ArtifactReader
    from flowkit.datastore.blobs import Blobs
    from flowkit.runtime.template import read_template

    template, reader = read_template(storage, options["deployed_template"]), ArtifactReader(Blobs(storage))
    kept = template.parameters.artifacts
    known = [name for name in definition.parameters if name in kept and name not in template.required]
    return {name: reader.load(name, kept[name]) for name in known}


def _local_executor(session: Session, options: dict[str, Any], spawn: _FreshInterpreter) -> LocalExecutor:
    from flowkit.model import flowspec
    from flowkit.runtime.local import LocalExecutor
    from flowkit.runtime.task import run_attempt

    return LocalExecutor.prepare(
        functools.partial(run_attempt, session.definition),
        spawn,
        task_start=options["task_start"] or settings().task_start,
        random_before=flowspec.RANDOM_BEFORE,
        warm=functools.partial(_import_what_tasks_need, session.root),
    )


def _import_what_tasks_need(root: str | None) -> None:
    """Import, once in the fork server, what every task would import for itself after its fork."""
    import flowkit.datastore.local
    import flowkit.datastore.pickling  # noqa: F401
    from flowkit.datastore.root import scheme_of, storage_class

    scheme = scheme_of(root)
    if scheme is not None:
        try:
            storage_class(scheme).warm()
        except FlowkitError:
            return  # the command opens the same one, and says what is wrong with it


class _FreshInterpreter:
    """The command that carries out a launch in a fresh interpreter; run and root are known once the run has begun."""

    def __init__(self, session: Session) -> None:
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        self._program = ["-m", spec.name] if spec is not None else [os.path.abspath(session.definition.file)]
        self._metadata = ["--metadata", session.metadata] if session.metadata != settings().metadata else []
        self.run = self.root = ""

    def __call__(self, launch: Launch, node: int | None) -> list[str]:
        from flowkit.runtime.local import step_arguments

        options = ["--quiet", "--datastore-root", self.root, *self._metadata]
        return [sys.executable, *self._program, *options, *step_arguments(launch, node, self.run)]


def _checked_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    if not tags:
        return ()
    from flowkit.metadata.tags import check_tags

    return tuple(check_tags(tags))


def check_files(options: Mapping[str, Any]) -> None:
    """Find out that a file cannot be written before there is a run."""
    for option in ("run_id_file", "runner_attribute_file"):
        if options[option] is not None:
            _write_text(option, options[option], "", "a")


def _write_text(option: str, path: str, text: str, mode: str = "w") -> None:
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"--{option.replace('_', '-')}: {path} cannot be written: {error.strerror}") from None


def write_run_id(options: Mapping[str, Any], flow: str, run: str, metadata: str, **more: Any) -> None:
    """Tell whoever waits for it which run this is, before the first task starts."""
    import json

    for option, text in (
        ("run_id_file", run),
        ("runner_attribute_file", json.dumps({"run_id": run, "flow_name": flow, "metadata": metadata, **more})),
    ):
        if options[option] is not None:
            _write_text(option, options[option], text)


def _resume_command(session: Session, run: str, leave_out: Sequence[str] = ()) -> str:
    """Return the command that goes on from a run with the same options; parameters are the run's own."""
    context = click.get_current_context()
    parameters = [str(option.name) for option in parameter_options(session.definition.parameters.values())]
    before = given(context.find_root())
    after = given(context, leave_out=("origin_run_id", *leave_out, *parameters))
    return " ".join([program(session.definition.file), *before, "resume", "--origin-run-id", run, *after])


def _alike(failures: Sequence[tuple[TaskRef, Failure]]) -> list[tuple[list[TaskRef], Failure]]:
    """Put failures that read the same together, in the order in which they came."""
    found: dict[tuple[str, str], tuple[list[TaskRef], Failure]] = {}
    for task, failure in failures:
        found.setdefault((task.step, failure.traceback or failure.message), ([], failure))[0].append(task)
    return list(found.values())


def _notify(session: Session, runtime: Runtime, state: str, wanted: str | None) -> None:
    """Tell people that a deployed run is over, where they want to know."""
    from flowkit.runtime.notify import notify

    record = runtime.record
    wrong = notify(f"{record.flow}/{record.run}", state, record.reason, wanted)
    if wrong is not None:
        session.console.warn(wrong)


def _last_words(session: Session, runtime: Runtime, state: str) -> int:
    console, record = session.console, runtime.record
    # A limit that was too low is not to be repeated.
    narrow = any("--max-num-splits" in failure.message for _, failure in runtime.outcome.failures)
    command = _resume_command(session, record.run, ("max_num_splits",) if narrow else ())
    for decorator in session.definition.decorators:
        for problem in decorator.run_ended(session.definition, f"{record.flow}/{record.run}", state):
            console.warn(str(problem))
    if state == "succeeded":
        return 0
    if state == "cancelled":
        console.warn(f"Go on with:\n    {command}")
        return 130
    from flowkit.cli.not_packed import not_packed

    console.flush()
    alike = _alike(runtime.outcome.failures)
    for tasks, failure in alike[:_MOST_FAILURES]:
        where = f" ({failure.location})" if failure.location else ""
        others = f", and {len(tasks) - 1:,} more of {tasks[0].step} in the same way" if len(tasks) > 1 else ""
        console.warn(f"\nTask {record.flow}/{record.run}/{tasks[0]} failed{where}{others}:")
        body = failure.traceback or failure.message
        console.warn("\n".join(f"    {line}" for line in body.rstrip().splitlines()))
        if (hint := not_packed(session, tasks[0].step, failure)) is not None:
            console.warn(hint)
    more = sum(len(tasks) for tasks, _ in alike[_MOST_FAILURES:])
    if more:
        console.warn(f"\n… and {more:,} more: {session.program} status {record.run}")
    for line in runtime.outcome.awaited:
        console.warn(f"Because of that, {line}.")
    console.warn(f"\nMend it, then go on from there:\n    {command}")
    return 1
