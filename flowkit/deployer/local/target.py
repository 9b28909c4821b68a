"""The scheduler in the box as a target: what is deployed is a record in the datastore, a run is a client's."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from flowkit.client.cancel import request_cancel
from flowkit.datastore.root import open_storage
from flowkit.datastore.storage import Storage
from flowkit.deployer.local.cron import CronTimes
from flowkit.deployer.local.firings import (
    CATCH_UP,
    PREFIX,
    Firing,
    Memory,
    begin,
    is_run_of,
    plan_of,
    triggered_run,
)
from flowkit.deployer.local.loop import active_scheduler
from flowkit.deployer.local.memories import edit_memory, forget_memory, read_memory
from flowkit.deployer.local.sources import Sources
from flowkit.deployer.local.work import Work
from flowkit.deployer.records import delete_record, read_record, read_records
from flowkit.deployer.target import CreateOption, Deployment, DeploymentRecord, Execution, Target
from flowkit.exceptions import Conflict, FlowkitError, MissingExtra, NotFound, Problem, StoreError
from flowkit.metadata.records import DEPLOYMENT_TAG

LONGEST_NAME = 180
"""Of a deployment: a run's id is longer by its stamp, and names files."""
_BEGINS_WITHIN = 30.0
"""Seconds for which ``trigger`` waits until the run has begun: what keeps it from beginning is told at once."""
_STARTS_WITHIN = 5.0
"""Seconds for which ``terminate`` waits for a run to begin that may have been started."""
_SCHEDULER_WAITS = 60.0
"""Seconds for which a scheduler leaves a run alone that a command starts."""
_PAUSE = 0.02


class LocalTarget(Target):
    """Runs on this machine: ``flowkit scheduler`` starts them when they are due."""

    name = "local"
    label = "the scheduler in the box"
    prefix = PREFIX
    client_run: ClassVar[bool] = True
    needs_remote_root: ClassVar[bool] = False
    options: ClassVar[tuple[CreateOption, ...]] = (
        CreateOption(
            "catch_up",
            "What becomes of firings that were missed while no scheduler ran.",
            str,
            "last",
            choices=CATCH_UP,
        ),
        CreateOption("python", "The Python that runs it. Default: the one that deploys it."),
    )

    # -- deploying -------------------------------------------------------------------------------------------------

    @classmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        """Return the flow's name, with its project and branch before it."""
        return f"{project}.{branch}.{flow}" if project and branch else flow

    def problems(self, deployment: Deployment) -> list[Problem]:
        """Return what is wrong with the name and the schedule."""
        from flowkit.model.pathspec import check_part

        found = []
        name, option = deployment.name, "--branch" if deployment.project else "--name"
        if len(name) > LONGEST_NAME:
            shown = f"{name[:20]}…{name[-20:]}"
            headline = f"the name '{shown}' has {len(name)} characters, of at most {LONGEST_NAME}"
            found.append(Problem(headline, hint=f"give it another one: {option}"))
        else:
            try:
                check_part(name)
            except FlowkitError:
                hint = f"letters, digits and _.-+@:, with no dot before them: {option}"
                found.append(Problem(f"{name!r} cannot be the name of a deployment", hint=hint))
        return found + _schedule_problems(deployment)

    def compile(self, deployment: Deployment) -> Any:
        """Return what is kept: the record."""
        return dict(deployment.record)

    def preflight(self, deployment: Deployment) -> list[Problem]:
        """Look whether the Python that is to run it can."""
        python = self.given.get("python")
        if python is None:
            return []
        hint = "give the path of a Python that has flowkit: --python venv/bin/python"
        found = shutil.which(python)
        if found is None:
            return [Problem(f"--python {python}: there is no such program", hint=hint)]
        try:
            done = subprocess.run(
                [found, "-c", "import flowkit"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return [Problem(f"--python {python} cannot be started: {error}", hint=hint)]
        return [Problem(f"--python {python} cannot import flowkit", hint=hint)] if done.returncode else []

    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        """Have the scheduler know of it from now on, and tell when it runs next and whether a scheduler is there."""
        record = _record(document)
        storage = open_storage(deployment.root, create=True)
        plan, now = plan_of(record), time.time()
        sources = Sources(storage)
        try:
            source = sources.of(record.metadata)
            edit_memory(storage, record.name, lambda found: begin(plan, found, source.name, source.newest, now))
        finally:
            sources.close()
        lines = []
        if plan.schedule is not None:
            due = CronTimes(plan.schedule, plan.timezone).next(now)
            if due is not None:
                lines.append(f"It is due next at {time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(due))}.")
        if (plan.schedule is not None or plan.events) and active_scheduler(storage) is None:
            lines.append(
                f"No scheduler is at work on this datastore. Start one, and leave it running:\n    {_command(storage)}"
            )
        return lines

    def find(self, name: str) -> DeploymentRecord | None:
        """Return the record of a deployment."""
        storage = self._storage()
        return None if storage is None else read_record(storage, self.name, name)

    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        """Return what is deployed."""
        storage = self._storage()
        records = [] if storage is None else read_records(storage, self.name)
        return [record for record in records if flow in (None, record.flow)]

    def delete(self, record: DeploymentRecord) -> None:
        """Forget a deployment; nothing of it is started any more."""
        storage = open_storage(record.root)
        delete_record(storage, self.name, record.name)
        forget_memory(storage, record.name)

    # -- runs ------------------------------------------------------------------------------------------------------

    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """Start a run in a process of its own, whether a scheduler is there or not; return its id once it has begun."""
        storage = open_storage(record.root)
        sources, work = Sources(storage), Work(storage)
        try:
            source = sources.of(record.metadata)
            now = time.time()
            run = triggered_run(record.name, now, os.urandom(2))
            firing = Firing(run, "trigger", now, (), dict(parameters), now, 1, now + _SCHEDULER_WAITS)
            plan = plan_of(record)

            def decided(found: Memory | None) -> Memory:
                memory = begin(plan, found, source.name, source.newest, now)
                return memory.with_decided(firing)

            edit_memory(storage, record.name, decided)
            try:
                work.start(record, firing)
                deadline = time.monotonic() + _BEGINS_WITHIN
                while not source.has_begun(record.flow, run) and time.monotonic() < deadline:
                    if work.ended() and not source.has_begun(record.flow, run):
                        words = work.last_words(record.name, run)
                        raise StoreError(
                            f"the run {run} did not begin" + (f": {words}" if words else ""),
                            f"see {work.words_file(record.name, run)}",
                        )
                    time.sleep(_PAUSE)
            except FlowkitError:
                edit_memory(storage, record.name, lambda found: (found or Memory()).without(run))
                raise
            return run
        finally:
            work.let_go(ends=False)
            sources.close()

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """Return how a run stands: as recorded, or as decided where it has not begun."""
        if not is_run_of(record.name, run):
            return None
        storage = open_storage(record.root)
        sources = Sources(storage)
        try:
            known = sources.of(record.metadata).execution(record.flow, run)
        finally:
            sources.close()
        if known is not None:
            return known
        return next((each for each in _not_begun(storage, record) if each.run == run), None)

    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        """Return the newest runs, the newest first, those that have not begun before them."""
        storage = open_storage(record.root)
        sources = Sources(storage)
        try:
            tag = f"{DEPLOYMENT_TAG}{self.name}/{record.name}"
            known = sources.of(record.metadata).executions(record.flow, tag, limit)
        finally:
            sources.close()
        names = {each.run for each in known}
        waiting = [each for each in _not_begun(storage, record) if each.run not in names]
        return sorted([*waiting, *known], key=lambda each: each.started or 0.0, reverse=True)[:limit]

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """Stop a run, or keep it from beginning.

        Raises
        ------
        NotFound
            If there is no such run.
        Conflict
            If it is over.
        """
        storage = open_storage(record.root)
        memory, _ = read_memory(storage, record.name)
        decided = next((each for each in memory.decided if each.run == run), None) if memory is not None else None
        if decided is not None:
            edit_memory(storage, record.name, lambda found: (found or Memory()).without(run))
        sources = Sources(storage)
        try:
            source = sources.of(record.metadata)
            known = source.record(record.flow, run)
            # Its process may have been started this moment: then it begins all the same.
            deadline = time.monotonic() + (_STARTS_WITHIN if decided is not None and decided.tries else 0.0)
            while known is None and time.monotonic() < deadline:
                time.sleep(_PAUSE)
                known = source.record(record.flow, run)
            if known is not None:
                request_cancel(storage, known)
            elif decided is None:
                raise NotFound(f"there is no run {run} of {record.name}")
        finally:
            sources.close()

    def _storage(self) -> Storage | None:
        try:
            return open_storage(self.root)
        except NotFound:
            return None


def _record(document: Any) -> DeploymentRecord:
    record = DeploymentRecord.from_json(document)
    if record is None:
        raise Conflict(
            "what is to be deployed is no record of a deployment", "this is a defect of flowkit: please report it"
        )
    return record


def _schedule_problems(deployment: Deployment) -> list[Problem]:
    if deployment.schedule is None:
        return []
    try:
        times = CronTimes(*deployment.schedule)
    except MissingExtra as error:
        return [Problem(error.headline, hint=error.hint)]
    except FlowkitError:
        return []  # no cron text, or an unknown time zone: that is told of every flow, with its line
    if times.next(0.0) is None:
        return [Problem(f"the schedule '{deployment.schedule.cron}' is never due", hint="mend @schedule(cron=…)")]
    return []


def _not_begun(storage: Storage, record: DeploymentRecord) -> list[Execution]:
    memory, _ = read_memory(storage, record.name)
    if memory is None:
        return []
    waiting = [Execution(each.run, "pending", "it has not begun", each.decided) for each in memory.decided]
    failed = [Execution(run, "failed", why, when, when) for run, why, when in memory.ended]
    return [*waiting, *failed]


def _command(storage: Storage) -> str:
    """Return the command that starts a scheduler of a datastore."""
    return f"flowkit scheduler --datastore-root {shlex.quote(storage.root)}"
