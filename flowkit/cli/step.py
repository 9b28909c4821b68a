"""``python flow.py step``: run one attempt of one task, in this process.

The command that fresh interpreters, array jobs and pods run. Everything that holds for the whole run comes from the
run's ``_parameters`` manifest; what coordinates cannot tell comes with the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from flowkit.cli.session import Session
from flowkit.exceptions import DataError, NotFound, UsageError, did_you_mean
from flowkit.settings import environment

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.store import MetadataStore
    from flowkit.model.coordinates import TaskRef
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.launch import Launch
    from flowkit.model.manifest import Manifest
    from flowkit.model.transition import Transition
    from flowkit.runtime.template import Template


def command(session: Session) -> click.Command:
    """Make the command."""

    def callback(**options: Any) -> int:
        return _run_step(session, **options)

    params: list[click.Parameter] = [
        click.Argument(["name"]),
        click.Argument(["task"]),
        click.Option(["--run-id"], required=True),
        click.Option(["--attempt"], type=click.IntRange(min=0), default=0),
        click.Option(["--parents"], default="", help="step/task+length,…; @FILE reads it from a file."),
        click.Option(["--split"], default=None, help="For a join: the task that opened what it closes."),
        click.Option(["--kind"], type=click.Choice(["user", "fallback"]), default="user"),
        click.Option(["--gang"], type=click.IntRange(min=0), default=0, help="Nodes of the gang."),
        click.Option(["--node"], type=click.IntRange(min=0), default=None, help="Which node of the gang this is."),
        click.Option(["--record"], is_flag=True, help="Nobody watches the run: write its records from here."),
        click.Option(["--deployed"], is_flag=True, help="A foreign scheduler starts it: parents are derived."),
        click.Option(["--begin"], help="The key of the template of the run, which begins with this task."),
        click.Option(["--debug"], is_flag=True, help="Somebody looks on: without time limits."),
        click.Option(["--pdb"], is_flag=True, help="Open the debugger where the step fails."),
    ]
    return click.Command("step", callback=callback, params=params, hidden=True, help="Run one task.")


def _run_step(
    session: Session,
    name: str,
    task: str,
    run_id: str,
    attempt: int,
    parents: str,
    split: str | None,
    kind: Any,
    gang: int,
    node: int | None,
    record: bool,
    deployed: bool,
    begin: str | None,
    debug: bool,
    pdb: bool,
) -> int:
    import faulthandler

    from flowkit.datastore.manifests import read_manifest
    from flowkit.decorators.attach import restore_flow
    from flowkit.model.coordinates import Coordinates, TaskRef
    from flowkit.model.launch import Launch, parse_spans
    from flowkit.runtime import streams
    from flowkit.runtime.start import PARAMETERS, task_config
    from flowkit.runtime.task import run_attempt

    streams.adopt(environment())
    faulthandler.enable(2)  # a crash in native code tells where it was
    graph = session.definition.graph
    if name not in graph.nodes:
        raise UsageError(f"{graph.flow} has no step '{name}'", did_you_mean(name, graph.nodes))
    storage = session.storage()
    manifest = read_manifest(storage, graph.flow, run_id, *PARAMETERS)
    template = None
    if manifest is None and begin is not None:
        from flowkit.runtime.template import read_template

        template = read_template(storage, begin)
        manifest = template.parameters
    if manifest is None:
        raise NotFound(f"there is no run {graph.flow}/{run_id} here", f"the datastore is {storage.root}")
    # The run was started with these; whoever starts a single task of it need not repeat them.
    session.options = {**session.options, **manifest.extra.get("options", {})}
    if session.dynamic:
        session.settle(_configs(session, storage, manifest))
    session.prepare(tuple(manifest.extra.get("with", ())))
    restore_flow(session.definition, manifest.extra.get("decorators", {}))
    if template is not None:
        manifest = _begin(session, storage, template, run_id)
    depths = graph.depths()
    opener = next(iter(parse_spans(split, depths)), None) if split else None
    launch = Launch(
        step=name,
        coordinates=Coordinates.parse(task, depths[name]),
        parents=parse_spans(_text(parents), depths),
        split=TaskRef(opener.step, opener.first) if opener else None,
        attempt=attempt,
        kind=kind,
        gang=gang,
    )
    if deployed:
        return _deployed(session, storage, manifest, launch, node, record)
    config = task_config(storage, session.definition, manifest)
    if debug:
        return _debug(session, name, config, launch, pdb)
    if record and not node:  # the control task of a gang writes for all of its nodes
        return _recorded(session, storage, manifest, launch, config, record, node)
    return run_attempt(session.definition, config, launch, node, forked=False)


def _begin(session: Session, storage: Storage, template: Template, run: str) -> Manifest:
    """Begin the run: commit its parameters, with the values that the scheduler gives."""
    from flowkit.datastore.manifests import read_manifest, write_manifest
    from flowkit.model.deployed import TRIGGER
    from flowkit.runtime.start import PARAMETERS
    from flowkit.runtime.template import filled, given_parameters, given_trigger

    given = given_parameters(session.definition, environment())
    trigger = given_trigger(environment().get(TRIGGER))
    manifest = filled(storage, session.definition, template, run, given, trigger)
    if write_manifest(storage, manifest):
        return manifest
    there = read_manifest(storage, manifest.flow, run, *PARAMETERS)
    assert there is not None, "somebody else was faster"
    return there


def _deployed(
    session: Session, storage: Storage, manifest: Manifest, launch: Launch, node: int | None, record: bool
) -> int:
    """Run a task that a foreign scheduler started: its parents, and which kind of attempt this is, are found here."""
    from flowkit.model.deployed import FINAL
    from flowkit.runtime.own_attempts import kind_of
    from flowkit.runtime.own_rounds import asked_again
    from flowkit.runtime.start import policies, task_config
    from flowkit.runtime.task import run_attempt

    definition, run = session.definition, manifest.run
    policy = policies(definition)[launch.step]
    kind = kind_of(storage, definition.name, run, launch, launch.attempt, policy)
    if kind is None and asked_again(storage, definition.name, run, launch):
        kind = "user"
    if kind is None:
        session.console.warn("The attempts before this one have decided it: the task failed, and is not tried again.")
        _decided(session, storage, manifest, launch, node, record)
        return FINAL
    launch = _derived(definition, storage, run, launch)._replace(kind=kind)
    config = task_config(storage, definition, manifest)
    if node:  # the control task of a gang writes for all of its nodes
        status = run_attempt(definition, config, launch, node, forked=False)
    else:
        status = _recorded(session, storage, manifest, launch, config, record, node)
    if status and kind_of(storage, definition.name, run, launch, launch.attempt + 1, policy) is None:
        return FINAL
    return status


def _decided(
    session: Session, storage: Storage, manifest: Manifest, launch: Launch, node: int | None, record: bool
) -> None:
    """Record that the task has failed: the process of the attempt that decided it may have died without a word."""
    from flowkit.runtime.own_records import OwnRecords, repeat_failure
    from flowkit.runtime.start import policies

    repeat_failure(storage, manifest.flow, manifest.run, launch, node)
    if node:
        return
    store = _own_store(session, storage, record)
    try:
        policy = policies(session.definition)[launch.step]
        OwnRecords(storage, store, manifest, launch, policy, session.console.warn).tell()
    finally:
        if store is not None:
            store.close()


def _derived(definition: FlowDefinition, storage: Storage, run: str, launch: Launch) -> Launch:
    import functools

    from flowkit.datastore.manifests import read_manifest
    from flowkit.datastore.many import mapped_over
    from flowkit.runtime.derive import Derivation

    def transition_of(ref: TaskRef) -> Transition:
        manifest = read_manifest(storage, definition.name, run, ref.step, str(ref.coordinates))
        if manifest is None:
            raise DataError(
                f"the result of {definition.name}/{run}/{ref} is missing", "the scheduler starts tasks out of order"
            )
        return manifest.transition

    derivation = Derivation(definition.graph, transition_of, functools.partial(mapped_over, storage))
    return derivation.launch(launch.step, launch.coordinates, gang=launch.gang, attempt=launch.attempt)


def _recorded(
    session: Session,
    storage: Storage,
    manifest: Manifest,
    launch: Launch,
    config: Mapping[str, Any],
    record: bool,
    node: int | None,
) -> int:
    """Run the task, and write what a runtime would write: records, where there is a store, and the run's end."""
    from flowkit.runtime.own_records import OwnRecords
    from flowkit.runtime.start import policies
    from flowkit.runtime.task import run_attempt

    store = _own_store(session, storage, record)
    try:
        policy = policies(session.definition)[launch.step]
        records = OwnRecords(storage, store, manifest, launch, policy, session.console.warn)
        return records.carry_out(lambda: run_attempt(session.definition, config, launch, node, forked=False))
    finally:
        if store is not None:
            store.close()


def _own_store(session: Session, storage: Storage, record: bool) -> MetadataStore | None:
    """Return where a task that nobody watches writes its records; None where that is the datastore alone."""
    from flowkit.runtime.own_records import has_store

    return session.metadata_store(storage) if record and has_store(storage, session.metadata) else None


def _configs(session: Session, storage: Storage, manifest: Manifest) -> dict[str, Any]:
    """Return the configs that the run was started with."""
    if not session.definition.configs:
        return {}
    from flowkit.cli.configs import values_of_run

    return values_of_run(session, storage, manifest)


def _debug(session: Session, name: str, config: Mapping[str, Any], launch: Launch, pdb: bool) -> int:
    """Run the task while somebody looks on: time limits would end what waits for a key."""
    from flowkit.runtime.debug import post_mortem
    from flowkit.runtime.task import run_attempt

    step = session.definition.steps[name]
    step.decorators = [each for each in step.decorators if each.name != "timeout"]
    return run_attempt(session.definition, config, launch, None, forked=False, on_failure=post_mortem if pdb else None)


def _text(parents: str) -> str:
    if not parents.startswith("@"):
        return parents
    try:
        with open(parents[1:], encoding="ascii") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--parents: {parents[1:]} cannot be read: {error}") from None
