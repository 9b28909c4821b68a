"""Putting the runtime of a run together: scheduler, executors and loop, for a run that begins and one that goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.cli import debugging
from flowkit.cli.session import Session
from flowkit.cli.watcher import Watcher
from flowkit.exceptions import UsageError
from flowkit.settings import settings, variable

if TYPE_CHECKING:
    from flowkit.cli.remote import Elsewhere
    from flowkit.datastore.lease import Lease
    from flowkit.datastore.storage import Storage
    from flowkit.decorators.contract import ExecutorRequest
    from flowkit.metadata.records import RunRecord
    from flowkit.metadata.store import MetadataStore
    from flowkit.model.transition import Transition
    from flowkit.runtime.bootstrap import StoredPackage
    from flowkit.runtime.lanes import Lanes
    from flowkit.runtime.local import LocalExecutor
    from flowkit.runtime.reattach import Past
    from flowkit.runtime.runtime import Runtime
    from flowkit.runtime.start import StartedRun

RUN_OPTIONS: Mapping[str, type] = {
    "max_workers": int,
    "max_num_splits": int,
    "max_log_size": int,
    "respect_resources": bool,
    "fail_fast": bool,
    "keep_going": bool,
    "task_start": str,
}
"""Options that hold for a whole run, whoever carries it on, and the types of their values."""


class Parts(NamedTuple):
    """What is made before there is a run, since it may turn out to be impossible."""

    lanes: Lanes | None
    elsewhere: Elsewhere | None
    package: StoredPackage | None


def prepare(session: Session, options: Mapping[str, Any], storage: Storage, executor: LocalExecutor) -> Parts:
    """Share out this machine, and find out whether the services take what they are to carry out."""
    lanes = _lanes(session, options, executor)
    elsewhere = _elsewhere(session, options, storage)
    if options["detach"] and elsewhere is None:
        raise UsageError(
            "--detach: no step of the flow runs elsewhere, and what runs here ends with the command",
            "give steps a service: @batch or @kubernetes, or --with batch",
        )
    return Parts(lanes, elsewhere, elsewhere.prepare() if elsewhere is not None else None)


def assemble(
    session: Session,
    options: Mapping[str, Any],
    storage: Storage,
    store: MetadataStore,
    executor: LocalExecutor,
    run: StartedRun,
    watcher: Watcher,
    parts: Parts,
    *,
    transitions: Mapping[str, Mapping[str, Transition]] | None = None,
    lease: Lease | None = None,
    past: Past | None = None,
) -> Runtime:
    """Put the runtime together.

    Parameters
    ----------
    session : Session
        The command.
    options : mapping
        Its options.
    storage : Storage
        The datastore.
    store : MetadataStore
        The index.
    executor : LocalExecutor
        Prepared, not configured.
    run : StartedRun
        The run.
    watcher : Watcher
        Who shows it.
    parts : Parts
        What `prepare` made.
    transitions : mapping, optional
        The tasks that are there already (`flowkit.runtime.scheduler.Scheduler`, ``clones``).
    lease : Lease, optional
        Of a run that goes on. One that begins gets its own, if something of it runs elsewhere.
    past : Past, optional
        Of a run that goes on: what was begun and not finished.
    """
    from flowkit.runtime.runtime import Runtime
    from flowkit.runtime.scheduler import Scheduler
    from flowkit.runtime.start import policies, task_config

    definition, record = session.definition, run.record
    attempts = debugging.without_retries(policies(definition), debugging.steps(session, options))
    scheduler = Scheduler(
        definition.graph,
        attempts,
        on_failure="fail-fast" if options["fail_fast"] else "keep-going" if options["keep_going"] else "finish",
        max_width=options["max_num_splits"],
        executor_of=_executor_of(session, options, parts.lanes, executor.name),
        clones=transitions,
        going_on=past is not None,
    )
    executors: dict[str, Any] = {executor.name: executor} if parts.lanes is None else parts.lanes.executors
    ownership = catch_up = None
    if parts.elsewhere is not None and parts.package is not None:
        lease = lease or _own(storage, record)
        timeouts = {name: item.timeout for name, item in attempts.items() if item.timeout is not None}
        executors = {**executors, **parts.elsewhere.executors(record, parts.package, timeouts, lease.check)}
    if lease is not None:
        from flowkit.runtime.ownership import Ownership

        ownership = Ownership(lease, watcher.notice)
    if past is not None:
        from flowkit.runtime.reattach import CatchUp

        catch_up = CatchUp(past, scheduler, attempts, stops=not options["keep_going"])
    runtime = Runtime(
        storage,
        store,
        record,
        scheduler,
        executors,
        watcher,
        ownership=ownership,
        catch_up=catch_up,
        detach=options["detach"],
        answers=_answers(session) if parts.elsewhere is not None else None,
    )
    config = _executor_config(session, options, storage, record.run, attempts)
    _configure(executor, storage, record, {**config, **task_config(storage, definition, run.parameters)})
    while executor.notices:
        watcher.notice(executor.notices.pop(0))
    return runtime


def _configure(executor: LocalExecutor, storage: Storage, record: RunRecord, config: dict[str, Any]) -> None:
    """Tell the local executor what holds for the run, and where its tasks' logs go."""
    spool = None
    if storage.remote:
        from flowkit.runtime.log_spool import LogSpool

        spool = LogSpool(storage, record.flow, record.run)
        config["run_folder"] = spool.folder
    executor.configure(config, spool)


def owner_facts(user: str) -> dict[str, Any]:
    """Return who we are, for whoever wants to know who has a run."""
    from flowkit.metadata.liveness import this_process

    return {"user": user, **this_process()._asdict()}


def _own(storage: Storage, record: RunRecord) -> Lease:
    from flowkit.datastore.lease import Lease

    owner = owner_facts(record.user)
    return Lease.acquire(storage, record.flow, record.run, owner, expires_after=settings().lease_seconds)


def _answers(session: Session) -> int | None:
    """Return the descriptor of the terminal where the user can answer a question."""
    terminal = session.console.terminal
    if session.console.quiet or not terminal.live or not terminal.in_foreground():
        return None
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (AttributeError, OSError, ValueError):  # closed
        return None


def _executor_config(
    session: Session, options: Mapping[str, Any], storage: Storage, run: str, attempts: Mapping[str, Any]
) -> dict[str, Any]:
    from flowkit.datastore.layout import run_folder
    from flowkit.datastore.root import machine_folder
    from flowkit.decorators.attach import executor_request

    requests = {name: executor_request(step) for name, step in session.definition.steps.items()}
    return {
        "run_folder": storage.local_path(run_folder(session.definition.name, run)),
        "machine_folder": machine_folder(storage),
        "max_workers": _workers(options),
        "max_log_size": options["max_log_size"] * 1024 * 1024,
        "fresh": {name: dict(request.environment) for name, request in requests.items() if request.fresh},
        "timeouts": {name: item.timeout for name, item in attempts.items() if item.timeout is not None},
    }


def _requests(session: Session, options: Mapping[str, Any]) -> dict[str, ExecutorRequest]:
    """Return what each step asks for, for those that a service carries out."""
    debugged = debugging.steps(session, options)
    from flowkit.decorators.attach import executor_request

    requests = {name: executor_request(step) for name, step in session.definition.steps.items()}
    return {
        name: asked for name, asked in requests.items() if asked.name not in (None, "local") and name not in debugged
    }


def _elsewhere(session: Session, options: Mapping[str, Any], storage: Storage) -> Elsewhere | None:
    requests = _requests(session, options)
    if not requests:
        return None
    from flowkit.cli.remote import Elsewhere

    size = options["max_log_size"] * 1024 * 1024
    return Elsewhere(session, storage, requests, workers=_workers(options), max_log_size=size)


def _executor_of(session: Session, options: Mapping[str, Any], lanes: Lanes | None, local: str) -> Callable[[str], str]:
    """Return who carries a step out: the terminal's foreground, a service, a lane of this machine, this machine."""
    elsewhere = {name: str(asked.name) for name, asked in _requests(session, options).items()}
    elsewhere |= dict.fromkeys(debugging.steps(session, options), "debug")
    here = lanes.executor_of if lanes is not None else {}
    return lambda name: elsewhere.get(name) or here.get(name, local)


def _lanes(session: Session, options: Mapping[str, Any], executor: LocalExecutor) -> Lanes | None:
    """Share the machine among the steps, where it makes a difference."""
    from flowkit.decorators.attach import executor_request

    requests = {name: executor_request(step) for name, step in session.definition.steps.items()}
    wanted = {name: asked.resources for name, asked in requests.items() if asked.name in (None, executor.name)}
    if not options["respect_resources"] and not any(asked.get("gpu") for asked in wanted.values()):
        return None
    from flowkit.runtime.lanes import share

    respect, gpus = options["respect_resources"], settings().local_gpus
    return share(executor, wanted, respect=respect, gpus=gpus, visible=variable("CUDA_VISIBLE_DEVICES"))


def _workers(options: Mapping[str, Any]) -> int:
    return options["max_workers"] or settings().max_workers or max(4, os.cpu_count() or 1)
