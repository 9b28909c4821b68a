"""Looking after what is deployed: its runs started, listed, told of, stopped; it itself removed."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.cli.deploy_create import command_of
from flowkit.cli.execution import check_files, write_run_id
from flowkit.cli.parameters import read_given
from flowkit.cli.session import Session
from flowkit.deployer.target import DeploymentRecord, Execution, Target
from flowkit.deployer.targets import checked_parameters, deployed_to, make_target, no_deployment
from flowkit.deployer.tokens import check_token
from flowkit.deployer.values import json_text
from flowkit.exceptions import FlowInvalid, FlowkitError, NotFound, UsageError

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage

_STALE_BYTES = 20_000_000
"""Up to what size of the code package it is looked at whether the flow has changed since it was deployed."""


class _Found(NamedTuple):
    """Something deployed, and the target that has it."""

    target: Target
    record: DeploymentRecord


def trigger(session: Session, cls: type[Target], name: str | None, given: Mapping[str, Any]) -> int:
    """Start a run."""
    found = _find(session, cls, name)
    parameters = {each.attribute: each for each in session.definition.parameters.values()}
    texts = {
        attribute: json_text(parameters[attribute], value)
        for attribute, value in read_given(session.definition, given).items()
    }
    import json

    checked = checked_parameters(found.record, {attribute: json.loads(text) for attribute, text in texts.items()})
    files = {"run_id_file": given.get("run_id_file"), "runner_attribute_file": given.get("runner_attribute_file")}
    check_files(files)  # before there is a run
    _note_changes(session, found, name)
    run = found.target.trigger(found.record, checked)
    write_run_id(files, found.record.flow, run, found.record.metadata, root=found.record.root)
    session.console.say(f"Started {found.record.flow}/{run} on {cls.label}. See how it stands:")
    session.console.say(f"    {command_of(session, found.target, name, 'status')} {run}")
    return 0


def status(session: Session, cls: type[Target], name: str | None, run: str, *, as_json: bool) -> int:
    """Tell how a run stands, as the scheduler says."""
    found = _find(session, cls, name)
    run = _run_id(found, run)
    execution = found.target.execution(found.record, run)
    if execution is None:
        raise NotFound(
            f"{cls.label} knows no run {run} of {found.record.name}",
            f"it forgets runs after a while; what it made is kept: {session.program} status {run}",
        )
    from flowkit.cli.cancel_scheduled import write_down

    write_down(session, found.record.flow, execution)
    if as_json:
        session.console.json(execution._asdict())
        return 0
    from flowkit.cli.table import duration, moment, one_line

    console = session.console
    console.data(one_line(f"{found.record.flow}/{execution.run}: {execution.state}"))
    if execution.reason:
        console.data(f"    {one_line(execution.reason)}")
    if execution.started is not None:
        took = execution.finished - execution.started if execution.finished is not None else None
        console.data(
            f"    started {moment(execution.started)}" + (f", took {duration(took)}" if took is not None else "")
        )
    return 0


def list_runs(
    session: Session, cls: type[Target], name: str | None, states: Set[str], limit: int, *, as_json: bool
) -> int:
    """List runs, the newest first."""
    found = _find(session, cls, name)
    # Of the states that are wanted there may be few among the newest.
    told = found.target.executions(found.record, limit if not states else max(limit, 1000))
    chosen = [each for each in told if not states or each.state in states][:limit]
    if as_json:
        session.console.json([each._asdict() for each in chosen])
        return 0
    if not chosen:
        session.console.say(
            f"There are no {' or '.join(sorted(states))} runs of {found.record.name}.".replace("  ", " ")
        )
        return 0
    from flowkit.cli.table import table

    for line in table(["run", "state", "started", "took", "reason"], [_row(each) for each in chosen]):
        session.console.data(line)
    return 0


def _row(execution: Execution) -> list[str]:
    from flowkit.cli.table import duration, moment

    started, finished = execution.started, execution.finished
    took = finished - started if started is not None and finished is not None else None
    return [execution.run, execution.state, moment(started), duration(took), execution.reason or ""]


def list_deployed(session: Session, cls: type[Target], *, everything: bool, as_json: bool) -> int:
    """List what is deployed to the target."""
    found = _deployed(session, cls, None if everything else session.definition.name)
    records = sorted(found, key=lambda record: (record.flow, record.name))
    if as_json:
        session.console.json([_shown(record) for record in records])
        return 0
    if not records:
        whose = "Nothing" if everything else f"{session.definition.name} is not"
        session.console.say(f"{whose} deployed to {cls.label}." if not everything else f"{whose} is deployed there.")
        return 0
    from flowkit.cli.table import moment, table

    rows = [
        [each.name, each.flow, each.user, moment(each.created), each.schedule or "-", each.timezone or "-"]
        for each in records
    ]
    for line in table(["name", "flow", "user", "deployed", "schedule", "time zone"], rows):
        session.console.data(line)
    return 0


def _shown(record: DeploymentRecord) -> dict[str, Any]:
    """Return what is told of a deployment: its token is not."""
    shown = record.to_json()
    del shown["token"]
    return shown


def change(session: Session, cls: type[Target], name: str | None, verb: str, run: str, authorize: str | None) -> int:
    """Suspend, unsuspend or terminate a run."""
    found = _find(session, cls, name)
    check_token(cls.name, cls.label, found.record, authorize)
    run = _run_id(found, run)
    getattr(found.target, verb)(found.record, run)
    done = {"suspend": "is suspended", "unsuspend": "goes on", "terminate": "is being stopped"}[verb]
    session.console.say(f"Run {found.record.flow}/{run} {done}.")
    return 0


def delete(session: Session, cls: type[Target], name: str | None, authorize: str | None) -> int:
    """Remove the deployment."""
    from flowkit.datastore.root import open_storage
    from flowkit.deployer.records import delete_record

    found = _find(session, cls, name)
    check_token(cls.name, cls.label, found.record, authorize)
    found.target.delete(found.record)
    try:
        delete_record(open_storage(found.record.root), cls.name, found.record.name)
    except FlowkitError as error:  # on another machine's folder, for example
        session.console.warn(f"Note: the datastore still remembers it: {error.headline}")
    session.console.say(f"{found.record.name} is not on {cls.label} any more. Its runs are kept.")
    return 0


def _find(session: Session, cls: type[Target], name: str | None) -> _Found:
    """Return what is deployed under a name (by default that of the flow), as the target says.

    Raises
    ------
    NotFound
        If nothing is.
    """
    called = name or cls.default_name(session.definition.name, *_branch(session))
    target = make_target(cls, _details(session, cls, called), session.root)
    record = target.find(called)
    if record is None:
        deployed = [each.name for each in _deployed(session, cls, session.definition.name)]
        raise no_deployment(called, cls.label, deployed)
    if record.flow != session.definition.name:
        raise UsageError(
            f"'{called}' at {cls.label} is the flow {record.flow}, not {session.definition.name}",
            "give the name of a deployment of this flow: --name",
        )
    return _Found(target, record)


def _deployed(session: Session, cls: type[Target], flow: str | None) -> list[DeploymentRecord]:
    """Return what is deployed to a target; where there is no datastore, what the target itself finds."""
    try:
        storage: Storage | None = session.storage()
    except FlowkitError:
        storage = None
    return deployed_to(cls, storage, flow=flow, root=session.root)


def _details(session: Session, cls: type[Target], name: str) -> Mapping[str, Any]:
    """Return the target's options with which something was deployed, as far as the datastore remembers."""
    from flowkit.deployer.records import read_record

    try:
        known = read_record(session.storage(), cls.name, name)
    except FlowkitError:  # there is none, or it is not ours to read: the target may know all the same
        return {}
    return known.details if known is not None else {}


def _branch(session: Session) -> tuple[str | None, str | None]:
    """Return the project and the branch that the flow and the options say."""
    for decorator in session.definition.decorators:
        if decorator.name == "project":
            problems = decorator.configure_flow(session.definition, session.options)
            if problems:
                raise FlowInvalid(problems)
            current = decorator.current()
            return current["project_name"], current["branch_name"]
    return None, None


def _run_id(found: _Found, run: str) -> str:
    """Return the id of a run that is given with or without the flow's name before it."""
    from flowkit.model.pathspec import check_part

    flow, _, number = run.rpartition("/")
    if flow not in ("", found.record.flow):
        raise UsageError(f"{run!r} is of another flow than {found.record.flow}")
    return check_part(number)


def _note_changes(session: Session, found: _Found, name: str | None) -> None:
    """Say that the flow was edited since it was deployed: the run has the code of then."""
    from flowkit.datastore.memory import MemoryStorage
    from flowkit.package.files import collect
    from flowkit.runtime.bootstrap import store_package

    try:
        session.prepare()  # mutators may name files
        package = collect(session.definition, session.package_suffixes)
        if package.size > _STALE_BYTES or store_package(MemoryStorage(), package).key == found.record.package.get(
            "key"
        ):
            return
    except FlowkitError:  # a flow, or a file, that could not be deployed now: the run does not need it
        return
    session.console.warn(
        "Note: the flow's files are not those that were deployed, which the run has. Deploy these with:\n"
        f"    {command_of(session, found.target, name, 'create')}"
    )
