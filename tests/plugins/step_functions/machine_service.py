"""AWS Step Functions on this machine: moto's interpreter, whose Batch jobs run as processes (`batch_service`).

Everything is one server over HTTP: S3, Batch, Step Functions, EventBridge and its scheduler. A few things of moto's
interpreter are replaced while the service is open:

- It makes a client for each call that a state makes, which takes longer than the call: here it keeps them.
- It leaves parameters and answers as they are, but Step Functions writes the names of all fields with a capital: they
  are translated by the services' own models, and a field that a service does not have is an error.
- An error that is called ``States.…`` cannot leave a branch of a Parallel state, or an iteration of a Map: making one
  of such a name there is refused as if a user had made it up. Here it can.
- Beside each job it waits for a callback, in a thread that shares the values it works on: now and then they get mixed
  up, and the second attempt of a job ends at once, as if it had timed out. Here only the job is waited for.
- It looks at a job twice a second, and waits as long as a state says: here a second is a sixtieth of one.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import botocore.session
from batch_account import BUCKET, QUEUE
from batch_service import REGION, BatchService
from batch_service import opened as batch_opened
from moto.core.config import default_user_config

ROLE = "arn:aws:iam::123456789012:role/flowkit-machines"
_PARSER = "moto.stepfunctions.parser"
_STATE = f"{_PARSER}.asl.component.state.exec"
_CALLERS = (
    f"{_STATE}.state_task.service.state_task_service_batch",
    f"{_STATE}.state_task.service.state_task_service_aws_sdk",
    f"{_STATE}.state_map.item_reader.eval.resource_eval_s3",
)
_TASK = f"{_STATE}.state_task.service.state_task_service"
_LOOK = f"{_STATE}.state_task.service.state_task_service_callback"
_ERROR = f"{_PARSER}.asl.component.common.error_name.error_name"
_PASS_ON = (f"{_STATE}.state_parallel.branches_decl", f"{_STATE}.state_map.iteration.iteration_worker")
_RETRIER = f"{_PARSER}.asl.component.common.retry.retrier_decl"
_WAIT = f"{_PARSER}.asl.component.state.wait.wait_function.wait_function"
QUICK = 1 / 60
"""How long a second of a machine is."""


@contextlib.contextmanager
def opened() -> Iterator[BatchService]:
    """Serve while the context is open."""
    with batch_opened() as service, contextlib.ExitStack() as undo:
        clients = _Clients(service)
        undo.callback(clients.close)
        config = dict(default_user_config["stepfunctions"])
        default_user_config["stepfunctions"]["execute_state_machine"] = True
        undo.callback(default_user_config["stepfunctions"].update, config)
        for name in _CALLERS:
            module = importlib.import_module(name)
            undo.callback(setattr, module, "boto_client_for", module.boto_client_for)
            module.boto_client_for = clients.get  # type: ignore[attr-defined]
        task = importlib.import_module(_TASK).StateTaskService
        for name, made in (("_normalise_parameters", _to_service), ("_normalise_response", _from_service)):
            undo.callback(setattr, task, name, getattr(task, name))
            setattr(task, name, made)
        for module, name, made in (
            *(
                (importlib.import_module(each), "CustomErrorName", importlib.import_module(_ERROR).ErrorName)
                for each in _PASS_ON
            ),
            (importlib.import_module(_LOOK).StateTaskServiceCallback, "_eval_sync", _job_ended),
            (
                importlib.import_module(_RETRIER),
                "time",
                SimpleNamespace(sleep=lambda seconds: time.sleep(seconds * QUICK)),
            ),
            (importlib.import_module(_WAIT).WaitFunction, "_wait_interval", _wait),
        ):
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, made)
        yield service


def _job_ended(
    task: Any, env: Any, sync_resolver: Any, timeout_seconds: Any, callback_endpoint: Any, heartbeat_endpoint: Any
) -> Any:
    """Wait for the end of a job, or until the execution is stopped."""
    while env.is_running():
        found = sync_resolver()
        if found:
            return found
        time.sleep(0.05)
    return None


def _wait(state: Any, env: Any, wait_seconds: float) -> None:
    """Wait, or until the execution is stopped."""
    until = time.monotonic() + wait_seconds * QUICK
    while env.is_running() and (left := until - time.monotonic()) > 0:
        env.program_state_event.wait(min(left, 0.05))


class _Clients:
    """The clients with which the interpreter calls services."""

    def __init__(self, service: BatchService) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._made: dict[str, Any] = {}

    def get(self, region: str, service: str, state_credentials: Any = None) -> Any:
        """Stand for moto's own function."""
        with self._lock:
            if service not in self._made:
                self._made[service] = self._service.client(service)
            return self._made[service]

    def close(self) -> None:
        for client in self._made.values():
            client.close()


def _to_service(task: Any, parameters: dict[str, Any], service: str | None = None, action: str | None = None) -> None:
    """Give parameters the names that the service has for them; unknown ones stay, and its client refuses them."""
    task._to_boto_request(parameters, _operation(task, service, action).input_shape)


def _from_service(task: Any, response: Any, boto_service_name: Any = None, service_action_name: Any = None) -> None:
    """Give an answer the names that Step Functions has."""
    shape = _operation(task, boto_service_name, service_action_name).output_shape
    if shape is not None:
        task._from_boto_response(response, shape)


def _operation(task: Any, service: str | None, action: str | None) -> Any:
    name = task._get_boto_service_name(service)
    if name not in _models:
        _models[name] = botocore.session.get_session().get_service_model(name)
    wanted = task._get_boto_service_action(action).replace("_", "")
    (found,) = (each for each in _models[name].operation_names if each.lower() == wanted)
    return _models[name].operation_model(found)


_models: dict[str, Any] = {}


def user_environment(service: BatchService) -> dict[str, str]:
    """Return the environment of a user who deploys to an account without deployments, with a datastore of their own."""
    forget(service)
    return {
        **service.environment,
        "FLOWKIT_BATCH_QUEUE": QUEUE,
        "FLOWKIT_DATASTORE": f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "FLOWKIT_SKIP_INSTALL": "true",
        "FLOWKIT_STEP_FUNCTIONS_ROLE": ROLE,
        "FLOWKIT_EVENTBRIDGE_ROLE": ROLE,
    }


def forget(service: BatchService) -> None:
    """Remove every state machine, schedule and rule."""
    machines, scheduler, events = (service.client(name) for name in ("stepfunctions", "scheduler", "events"))
    try:
        for machine in machines.list_state_machines()["stateMachines"]:
            machines.delete_state_machine(stateMachineArn=machine["stateMachineArn"])
        for schedule in scheduler.list_schedules()["Schedules"]:
            scheduler.delete_schedule(Name=schedule["Name"])
        for rule in events.list_rules()["Rules"]:
            targets = [target["Id"] for target in events.list_targets_by_rule(Rule=rule["Name"])["Targets"]]
            if targets:
                events.remove_targets(Rule=rule["Name"], Ids=targets)
            events.delete_rule(Name=rule["Name"])
    finally:
        for client in (machines, scheduler, events):
            client.close()


def run_through_step_functions(
    service: BatchService,
    workspace: Any,
    flow: str = "flow.py",
    *options: object,
    parameters: Mapping[str, object] | None = None,
    timeout: float = 180,
) -> tuple[str, str]:
    """Deploy a flow with the real command, trigger it, and wait for its end.

    Parameters
    ----------
    service : BatchService
        From `opened`.
    workspace : Workspace
        Whose ``env`` has `user_environment`, and in whose folder the flow is.
    flow : str
        Its file.
    *options : object
        Of ``create``.
    parameters : mapping, optional
        Of the run, by the name on the command line.
    timeout : float
        Seconds that the run may take.

    Returns
    -------
    tuple of str
        The run's pathspec, and ``succeeded``, ``failed`` or ``cancelled``.
    """
    workspace.run("step-functions", "create", *options, flow=flow, check=0)
    run = trigger(workspace, flow, parameters)
    return run, wait_for(service, run, timeout)


def trigger(workspace: Any, flow: str = "flow.py", parameters: Mapping[str, object] | None = None) -> str:
    """Trigger a run with the real command, and return its pathspec."""
    words = [word for name, value in (parameters or {}).items() for word in (f"--{name}", value)]
    told = workspace.run("step-functions", "trigger", *words, flow=flow, check=0)
    found = re.search(r"\b(\w+)/(sfn-[\w-]+)", told.output)
    assert found, told
    return found[0]


def wait_for(service: BatchService, run: str, timeout: float = 180) -> str:
    """Wait until the execution of a run has ended, and return the run's state as its target tells it."""
    deadline = time.monotonic() + timeout
    while True:
        state = execution_of(service, run)
        if state["status"] != "RUNNING":
            return {"SUCCEEDED": "succeeded", "ABORTED": "cancelled"}.get(state["status"], "failed")
        assert time.monotonic() < deadline, f"{run} does not end:\n{story(service, state['executionArn'])}"
        time.sleep(0.05)


def execution_of(service: BatchService, run: str) -> dict[str, Any]:
    """Describe the execution of a run, of whichever machine."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.stepfunctions.parser.models import stepfunctions_parser_backends

    name = run.partition("/")[2].removeprefix("sfn-")
    for machine in stepfunctions_parser_backends[DEFAULT_ACCOUNT_ID][REGION].state_machines:
        for execution in machine.executions:
            if execution.name == name:
                return dict(execution.to_describe_output())
    raise AssertionError(f"there is no execution {name}")


def story(service: BatchService, arn: str) -> str:
    """Return the history of an execution, a line for each event, for a test that has failed."""
    client = service.client("stepfunctions")
    try:
        events = client.get_execution_history(executionArn=arn, maxResults=1000)["events"]
    finally:
        client.close()
    lines = []
    for event in events:
        details = next((value for key, value in event.items() if key.endswith("Details")), {})
        told = {key: str(value)[:600] for key, value in details.items() if key in ("name", "error", "cause", "index")}
        lines.append(f"{event['type']} {told}")
    return "\n".join(lines)
