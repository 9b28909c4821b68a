"""What is deployed, and its runs, for programs: no flow file is needed, all is known from the record."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from flowkit.deployer.records import delete_record, read_record, read_records
from flowkit.deployer.target import DeploymentRecord, Execution, Target
from flowkit.deployer.targets import (
    checked_parameters,
    deployed_target,
    deployed_to,
    make_target,
    no_deployment,
    target_class,
)
from flowkit.exceptions import DataError, NotFound, UsageError

if TYPE_CHECKING:
    from flowkit.client.run import Run
    from flowkit.datastore.storage import Storage

_OVER = frozenset({"succeeded", "failed", "cancelled", "lost"})


class TriggeredRun:
    """A run of something deployed.

    Parameters
    ----------
    deployed : DeployedFlow
        What it is a run of.
    name : str
        The run's id.

    Attributes
    ----------
    deployed_flow : DeployedFlow
        What it is a run of.
    name : str
        The run's id, with the scheduler's prefix.
    pathspec : str
        ``Flow/run``.
    metadata : str
        The metadata store that has it.
    """

    def __init__(self, deployed: DeployedFlow, name: str) -> None:
        self.deployed_flow = deployed
        self.name = name
        self.metadata = deployed.metadata
        self.pathspec = f"{deployed.flow_name}/{name}"

    @property
    def run(self) -> Run | None:
        """The run as the client sees it; None as long as its start has not begun."""
        from flowkit.client.objects import make

        record = self.deployed_flow.record
        found: Any = make("run", self.pathspec, record.root, self.metadata)
        try:
            found.status  # noqa: B018 (asks whether it is there)
        except NotFound:
            return None
        return found  # type: ignore[no-any-return]

    @property
    def status(self) -> str:
        """``pending``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``lost``, as the scheduler tells.

        Where that has forgotten the run, the client tells; ``pending`` where neither knows it yet.
        """
        execution = self._execution()
        if execution is not None:
            return execution.state
        run = self.run
        return "pending" if run is None else run.status

    @property
    def reason(self) -> str | None:
        """Why it stands as it does, where the scheduler says so."""
        execution = self._execution()
        return None if execution is None else execution.reason

    @property
    def is_running(self) -> bool:
        """Whether it waits or runs."""
        return self.status not in _OVER

    def wait_for_run(self, check_interval: float = 5, timeout: float | None = None) -> Run:
        """Wait until the run's start has begun, and return the run.

        Parameters
        ----------
        check_interval : float, default 5
            Seconds from look to look.
        timeout : float, optional
            Seconds after which no longer is waited; default: for ever.

        Raises
        ------
        TimeoutError
            If it has not begun by then.
        """
        for _ in _looks(check_interval, timeout, f"run {self.pathspec} has not begun"):
            run = self.run
            if run is not None:
                return run
        raise AssertionError("unreachable")

    def wait_for_completion(self, check_interval: float = 5, timeout: float | None = None) -> None:
        """Wait until the run is over, however it ended; errors as for `wait_for_run`."""
        for _ in _looks(check_interval, timeout, f"run {self.pathspec} is not over"):
            if not self.is_running:
                return

    def terminate(self) -> bool:
        """Stop the run: what runs is ended, nothing more starts."""
        return self._change("terminate")

    def suspend(self) -> bool:
        """Let the run start nothing more until `unsuspend`.

        Raises
        ------
        UsageError
            If the scheduler cannot do that.
        """
        return self._change("suspend")

    def unsuspend(self) -> bool:
        """Let the suspended run go on; errors as for `suspend`."""
        return self._change("unsuspend")

    def __repr__(self) -> str:
        return f"<TriggeredRun {self.pathspec}>"

    def _execution(self) -> Execution | None:
        return self.deployed_flow.target.execution(self.deployed_flow.record, self.name)

    def _change(self, verb: str) -> bool:
        target = self.deployed_flow.target
        if verb not in target.verbs:
            raise UsageError(f"{target.label} cannot {verb} a run", f"it can: {', '.join(sorted(target.verbs))}")
        getattr(target, verb)(self.deployed_flow.record, self.name)
        return True


class DeployedFlow:
    """A flow that is deployed.

    Made by ``create`` of a `Deployer`'s target, or found by the class methods.

    Parameters
    ----------
    record : DeploymentRecord
        What is known of it.
    metadata : str, optional
        The metadata store of its runs; default: the one that it was deployed with.

    Attributes
    ----------
    name : str
        What it is called at the scheduler.
    flow_name : str
        The flow.
    id : str
        ``target/name``, from which `from_deployment` finds it again.
    production_token : str
        Who has it may deploy again, stop and delete.
    metadata : str
        The metadata store of its runs.
    record : DeploymentRecord
        All that is known of it.

    Examples
    --------
    >>> deployed = Deployer("train.py").argo_workflows().create()
    >>> run = deployed.trigger(alpha=0.5)
    >>> run.wait_for_completion()
    """

    def __init__(self, record: DeploymentRecord, metadata: str | None = None) -> None:
        self.record = record
        self.name = record.name
        self.flow_name = record.flow
        self.id = f"{record.target}/{record.name}"
        self.production_token = record.token
        self.metadata = metadata or record.metadata
        self._target: Target | None = None

    @property
    def target(self) -> Target:
        """The scheduler."""
        if self._target is None:
            self._target = deployed_target(self.record)
        return self._target

    def trigger(self, **parameters: Any) -> TriggeredRun:
        """Start a run now.

        Parameters
        ----------
        **parameters
            The flow's parameters by name.

        Raises
        ------
        UsageError
            With everything that is wrong with the parameters.
        """
        checked = checked_parameters(self.record, parameters)
        return TriggeredRun(self, self.target.trigger(self.record, checked))

    def list_runs(self, states: Iterable[str] | None = None, limit: int = 100) -> list[TriggeredRun]:
        """Return the newest runs, the newest first.

        Parameters
        ----------
        states : iterable of str, optional
            Only those in one of these states.
        limit : int, default 100
            At most so many are looked at.
        """
        wanted = None if states is None else {state.lower() for state in states}
        found = self.target.executions(self.record, limit)
        return [TriggeredRun(self, each.run) for each in found if wanted is None or each.state in wanted]

    def delete(self) -> bool:
        """Remove it from the scheduler; runs are kept."""
        from flowkit.datastore.root import open_storage

        self.target.delete(self.record)
        delete_record(open_storage(self.record.root), self.record.target, self.record.name)
        return True

    def __repr__(self) -> str:
        return f"<DeployedFlow {self.id}: {self.flow_name}>"

    # -- finding -------------------------------------------------------------------------------------------------

    @classmethod
    def from_deployment(cls, identifier: str, metadata: str | None = None, impl: str | None = None) -> DeployedFlow:
        """Return what is deployed under a name.

        Parameters
        ----------
        identifier : str
            Its name, or its `id`.
        metadata : str, optional
            The metadata store of its runs.
        impl : str, optional
            The target. Default: the one of the `id`; else the one to which the datastore remembers that something is
            deployed under the name.

        Raises
        ------
        NotFound
            If nothing is.
        UsageError
            If several targets have the name, and none is given.
        """
        impl, name = _place(identifier, impl)
        storage = _storage()
        if impl is None:
            impl = _only_target(storage, name)
        kind = target_class(impl)
        known = read_record(storage, kind.name, name) if storage is not None else None
        target = make_target(kind, known.details if known is not None else {})
        record = target.find(name)
        if record is None:
            raise no_deployment(name, kind.label, [each.name for each in deployed_to(kind, storage)])
        return cls(record, metadata)

    @classmethod
    def from_local(cls, identifier: str, metadata: str | None = None) -> DeployedFlow:
        """As `from_deployment`, of the scheduler in the box."""
        return cls.from_deployment(identifier, metadata, "local")

    @classmethod
    def from_argo_workflows(cls, identifier: str, metadata: str | None = None) -> DeployedFlow:
        """As `from_deployment`, of Argo Workflows."""
        return cls.from_deployment(identifier, metadata, "argo-workflows")

    @classmethod
    def from_step_functions(cls, identifier: str, metadata: str | None = None) -> DeployedFlow:
        """As `from_deployment`, of AWS Step Functions."""
        return cls.from_deployment(identifier, metadata, "step-functions")

    @classmethod
    def from_airflow(cls, identifier: str, metadata: str | None = None) -> DeployedFlow:
        """As `from_deployment`, of Airflow."""
        return cls.from_deployment(identifier, metadata, "airflow")

    @classmethod
    def from_kubernetes(cls, identifier: str, metadata: str | None = None) -> DeployedFlow:
        """As `from_deployment`, of CronJobs on Kubernetes."""
        return cls.from_deployment(identifier, metadata, "kubernetes")

    @classmethod
    def list_deployed_flows(cls, flow_name: str | None = None, impl: str | None = None) -> Iterator[DeployedFlow]:
        """Yield what is deployed.

        Parameters
        ----------
        flow_name : str, optional
            Only of this flow.
        impl : str, optional
            What this target has. Default: what the datastore remembers, of all targets.
        """
        storage = _storage()
        if impl is not None:
            found: Iterable[DeploymentRecord] = deployed_to(target_class(impl), storage, flow=flow_name)
        else:
            found = read_records(storage) if storage is not None else ()
        for record in found:
            if flow_name in (None, record.flow):
                yield cls(record)

    @classmethod
    def get_triggered_run(
        cls, identifier: str, run_id: str, metadata: str | None = None, impl: str | None = None
    ) -> TriggeredRun:
        """Return a run of what is deployed under a name.

        Parameters
        ----------
        identifier : str
            As for `from_deployment`.
        run_id : str
            The run, with or without the flow before it.
        metadata, impl
            As for `from_deployment`.

        Raises
        ------
        NotFound
            If nothing is deployed under the name.
        """
        return TriggeredRun(cls.from_deployment(identifier, metadata, impl), run_id.rpartition("/")[2])


def _place(identifier: str, impl: str | None) -> tuple[str | None, str]:
    """Return the target and the name that an identifier means."""
    target, slash, name = identifier.partition("/")
    if not slash:
        return impl, identifier
    if impl is not None and impl.replace("_", "-") != target:
        raise UsageError(f"{identifier!r} is of the target {target}, not of {impl}", "leave impl= out")
    return target, name


def _storage() -> Storage | None:
    """Return the datastore of this process's settings; None where there is none."""
    from flowkit.datastore.root import open_storage

    try:
        return open_storage(None)
    except DataError:
        return None


def _only_target(storage: Storage | None, name: str) -> str:
    """Return the target to which something of a name is deployed, as the datastore remembers."""
    known = list(read_records(storage)) if storage is not None else []
    targets = sorted({record.target for record in known if record.name == name})
    if not targets:
        raise NotFound(
            f"this datastore remembers no deployment '{name}'",
            "say which target has it: impl='argo-workflows'; or look in its datastore: FLOWKIT_DATASTORE",
        )
    if len(targets) > 1:
        raise UsageError(f"'{name}' is deployed to {' and '.join(targets)}", f"say which: impl='{targets[0]}'")
    return targets[0]


def _looks(interval: float, timeout: float | None, otherwise: str) -> Iterator[None]:
    """Yield once for each look, with a pause between two of them."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        yield
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"{otherwise} after {timeout:g} s")
        time.sleep(interval if left is None else max(0.0, min(interval, left)))
