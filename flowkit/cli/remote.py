"""The steps of a run that services carry out: checked before there is a run, packed, and given to executors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flowkit.cli.session import Session
from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import FlowInvalid, Location, Problem
from flowkit.registry import load
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.datastore.storage import Storage
    from flowkit.metadata.records import RunRecord
    from flowkit.runtime.backend import Backend
    from flowkit.runtime.bootstrap import StoredPackage
    from flowkit.runtime.remote import RemoteExecutor


class Elsewhere:
    """What of a flow runs elsewhere, and how.

    Parameters
    ----------
    session : Session
        The command.
    storage : Storage
        The datastore.
    requests : mapping of str to ExecutorRequest
        By step, for those that a service carries out.
    workers : int
        Tasks at once of a service on this machine.
    max_log_size : int
        Bytes kept of each log.
    """

    def __init__(
        self,
        session: Session,
        storage: Storage,
        requests: Mapping[str, ExecutorRequest],
        *,
        workers: int,
        max_log_size: int,
    ) -> None:
        self._session = session
        self._storage = storage
        self._requests = requests
        self._workers = workers
        self._max_log_size = max_log_size
        self._backends: dict[str, type[Backend]] = {}
        for request in requests.values():
            name = str(request.name)
            if name not in self._backends:
                self._backends[name] = load("backends", name)

    def prepare(self) -> StoredPackage:
        """Find out that everything is right, and put the code into the datastore; before the run has its id.

        Raises
        ------
        FlowInvalid
            With everything that is wrong: a datastore that containers cannot reach, what the services say, files
            that cannot be packed.
        """
        from flowkit.cli.package import build
        from flowkit.runtime.bootstrap import store_package

        problems = self._unreachable()
        for name, backend in self._backends.items():
            asked = {step: request for step, request in self._requests.items() if request.name == name}
            service = backend(None)
            try:
                problems += service.preflight(asked)
            finally:
                service.close()
        if problems:
            raise FlowInvalid(list(dict.fromkeys(problems)))
        return store_package(self._storage, build(self._session))

    def executors(
        self,
        record: RunRecord,
        package: StoredPackage,
        timeouts: Mapping[str, float],
        check: Callable[[], None] | None = None,
    ) -> dict[str, RemoteExecutor]:
        """Make the executors of a run, by name.

        Parameters
        ----------
        record : RunRecord
            The run.
        package : StoredPackage
            What `prepare` returned.
        timeouts : mapping of str to float
            Seconds, by step.
        check : callable, optional
            Raises if the run has another owner; called before each submission.
        """
        from flowkit.runtime.backend import RemoteRun
        from flowkit.runtime.bootstrap import container_command, container_environment
        from flowkit.runtime.remote import RemoteExecutor
        from flowkit.runtime.remote_work import Step, Work

        root = self._storage.root
        install = not settings().skip_install

        def command(step: str, key: str) -> list[str]:
            return container_command(
                root,
                package.key,
                package.program,
                record.run,
                key,
                install=install,
                python=str(self._requests[step].resources.get("executable") or "python"),
                timeout=timeouts.get(step),
                max_log_size=self._max_log_size,
            )

        run = RemoteRun(record.flow, record.run, record.user, root)
        made = {}
        for name, backend in self._backends.items():
            asked = {step: request for step, request in self._requests.items() if request.name == name}
            work = Work(
                run=run,
                steps={step: Step(request, timeouts.get(step)) for step, request in asked.items()},
                command=command,
                environment=container_environment(root, user=record.user),
                salt=f"{root} {record.created!r}",
                retries=settings().infrastructure_retries,
                check=check or _always,
            )
            limit = self._workers if backend.on_this_machine else None
            follow = not self._session.console.quiet
            made[name] = RemoteExecutor(backend(run), self._storage, work, limit=limit, follow=follow)
        return made

    def _unreachable(self) -> list[Problem]:
        """Return a problem for the steps that run where this machine's folders are not, one for each way to say so."""
        if self._storage.remote:
            return []
        steps: dict[tuple[str, Location | None], list[str]] = {}
        for step, request in self._requests.items():
            name = str(request.name)
            if not self._backends[name].on_this_machine:
                steps.setdefault((name, self._location(step, name)), []).append(step)
        return [
            Problem(
                f"{_listed(names)} on {name}, which cannot reach the datastore {self._storage.root}",
                location,
                "keep the datastore where both can read it: FLOWKIT_DATASTORE=s3://bucket/prefix",
            )
            for (name, location), names in steps.items()
        ]

    def _location(self, step: str, name: str) -> Location | None:
        decorators: list[Any] = self._session.definition.steps[step].decorators
        return next((item.location for item in decorators if item.name == name), None)


def _listed(steps: list[str]) -> str:
    if len(steps) == 1:
        return f"step '{steps[0]}' runs"
    return f"steps {', '.join(repr(step) for step in steps)} run"


def _always() -> None:
    """Nobody else can own the run."""
