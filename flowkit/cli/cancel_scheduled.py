"""Stopping a run that a scheduler carries out: it is asked to, and what it does not know any more is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowkit.cli.session import Session
from flowkit.exceptions import Conflict, FlowkitError
from flowkit.metadata.records import FINAL, RunRecord, State
from flowkit.metadata.store import MetadataStore

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.deployer.target import DeploymentRecord, Execution, Target


def stop(
    session: Session, storage: Storage, store: MetadataStore, run: RunRecord, authorize: str | None, gone: bool
) -> bool:
    """Have a run stopped; return whether it is over already.

    Parameters
    ----------
    run : RunRecord
        One that no runtime watches (`RunRecord.unattended`), and that has not ended.
    authorize : str or None
        The deployment's production token, where this user's folder has it not.
    gone : bool
        The user says that the scheduler does not know the run any more: it is only written down.

    Raises
    ------
    Conflict
        If the scheduler does not know the run and the user does not say so, or the other way round; or somebody else's
        token is needed.
    """
    deployment = str(run.deployment)
    try:
        target, found = _deployed(session, storage, deployment)
        execution = None if found is None else target.execution(found, run.run)
    except FlowkitError as error:
        if not gone:
            raise
        session.console.warn(f"Note: {deployment} cannot be looked at: {error.headline}")
        return _settle(session, storage, store, run, "cancelled", "its scheduler does not know it any more")
    if execution is not None and execution.state in FINAL:  # its end command did not come to say so
        return _settle(session, storage, store, run, execution.state, execution.reason)
    if execution is None or found is None:
        if not gone:
            missing = "is not there any more" if found is None else f"does not know the run {run.run} (any more)"
            raise Conflict(
                f"{deployment} {missing}",
                f"if nothing of it runs, write that down: {session.program} cancel {run.run} --gone",
            )
        return _settle(session, storage, store, run, "cancelled", "its scheduler does not know it any more")
    if gone:
        raise Conflict(
            f"{target.label} says that the run is {execution.state}",
            f"stop it: {session.program} cancel {run.run}",
        )
    from flowkit.deployer.tokens import check_token

    check_token(target.name, target.label, found, authorize)
    target.terminate(found, run.run)
    return False


def write_down(session: Session, flow: str, execution: Execution) -> None:
    """Note that a run is over which is so for its scheduler, where no end command has come to say it.

    Some schedulers start nothing more for a run that took too long, or that was stopped at their own console.
    """
    if execution.state not in FINAL:
        return
    try:
        storage = session.storage()
        store = session.metadata_store(storage)
    except FlowkitError:  # what was asked for is what the scheduler says, and that is known
        return
    try:
        run = store.run(flow, execution.run)
        if run is not None and run.unattended and run.state not in FINAL:
            _settle(session, storage, store, run, execution.state, execution.reason)
            session.console.say(f"Nobody had written down that run {run.run} is over: now it is.")
    except FlowkitError as error:
        session.console.warn(f"Note: that the run is over could not be written down: {error.headline}")
    finally:
        store.close()


def _deployed(session: Session, storage: Storage, deployment: str) -> tuple[Target, DeploymentRecord | None]:
    from flowkit.deployer.records import read_record
    from flowkit.deployer.targets import make_target, target_class

    name, _, called = deployment.partition("/")
    known = read_record(storage, name, called)
    details: Any = known.details if known is not None else {}
    target = make_target(target_class(name), details, session.root)
    return target, target.find(called)


def _settle(
    session: Session, storage: Storage, store: MetadataStore, run: RunRecord, state: State, reason: str | None
) -> bool:
    from flowkit.runtime.own_records import DELIVERY_SECONDS, end_run

    end_run(storage, run.flow, run.run, state, reason, store)
    left = store.deliver(DELIVERY_SECONDS)
    if left is not None:
        session.console.warn(left)
    return True
