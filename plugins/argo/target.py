"""Argo Workflows as a target: flows become WorkflowTemplates, runs are Workflows.

Runs are stopped with ``shutdown: Stop``, after which Argo runs what ends a workflow; with ``Terminate`` it would not,
and nobody would write down that the run is over.
"""

from __future__ import annotations

import calendar
import json
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from flowkit.deployer.target import CreateOption, Deployment, DeploymentRecord, Execution, Target
from flowkit.exceptions import Conflict, FlowkitError, NotFound, Problem
from flowkit.metadata.records import State
from flowkit.plugins.argo.client import PLURALS, ArgoClient
from flowkit.plugins.argo.dags import WHOLE_LOOPS
from flowkit.plugins.argo.documents import DEPLOYMENT, FLOW, RECORD, documents, labels_of, run_of
from flowkit.plugins.argo.events import Hearing, sensor_name
from flowkit.plugins.argo.limits import limit_problems
from flowkit.plugins.argo.names import deployment_name
from flowkit.plugins.argo.pods import CANCELLED
from flowkit.plugins.kubernetes.cluster import Cluster, one_line
from flowkit.plugins.kubernetes.manifests import Defaults
from flowkit.plugins.kubernetes.preflight import permission_problems, preflight_problems
from flowkit.plugins.kubernetes.syntax import label_value
from flowkit.settings import settings

_PHASES: Mapping[str, State] = {
    "": "pending",
    "Pending": "pending",
    "Running": "running",
    "Succeeded": "succeeded",
    "Failed": "failed",
    "Error": "failed",
}
_CHANGES = ("get", "create", "update", "delete")
_VERBS = {"Workflow": ("get", "list", "create", "update")}
_GUIDE = "docs/argo.md lists what is needed"


class ArgoWorkflows(Target):
    """Deploys flows to Argo Workflows 3.6 and later."""

    name = "argo-workflows"
    label = "Argo Workflows"
    prefix = "argo"
    executor = "kubernetes"
    verbs = frozenset({"trigger", "status", "list-runs", "terminate", "delete", "suspend", "unsuspend"})
    options: ClassVar[tuple[CreateOption, ...]] = (
        CreateOption("kubernetes_namespace", "Namespace of the cluster; default: that of the settings or the context."),
        CreateOption(
            WHOLE_LOOPS, "One container for all turns of a loop: beyond 90, one for each is too many.", bool, False
        ),
    )

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._cluster = Cluster()
        self._client = ArgoClient(self._cluster, options.get("kubernetes_namespace") or None)

    def close(self) -> None:
        """Release the connections."""
        self._cluster.close()

    @classmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        """See `Target.default_name`."""
        return deployment_name(flow, project, branch)

    # -- documents -----------------------------------------------------------------------------------------------------

    def compile(self, deployment: Deployment) -> dict[str, Any]:
        """Return a `List` of the WorkflowTemplate, the CronWorkflow and the Sensor, as ``kubectl apply`` takes it."""
        return documents(deployment, _defaults(self._namespace() or "default"), _hearing())

    def problems(self, deployment: Deployment) -> list[Problem]:
        """See `Target.problems`."""
        problems = limit_problems(deployment)
        for name, steps in sorted(self._namespaces(deployment).items()):
            if name != self._namespace():
                where = deployment.graph[steps[0]].location
                named = f"step{'s' if len(steps) > 1 else ''} {', '.join(steps)}"
                headline = f"{named}: @kubernetes(namespace='{name}'), and all pods of a workflow are in its namespace"
                problems.append(Problem(headline, where, f"give it once: --kubernetes-namespace {name}"))
        if not problems:
            problems += self._size_problems(deployment)
        return problems

    def _size_problems(self, deployment: Deployment) -> list[Problem]:
        from flowkit.plugins.argo.documents import SIZE_LIMIT

        problems = []
        for item in self.compile(deployment)["items"]:
            size = len(json.dumps(item, separators=(",", ":")).encode())
            if size > SIZE_LIMIT:
                headline = f"the {item['kind']} has {size:,} bytes, and {SIZE_LIMIT:,} is what Argo Workflows takes"
                hint = f"the flow has {len(deployment.steps)} steps: let a foreach do what is alike, or make two flows"
                problems.append(Problem(headline, None, hint))
        return problems

    def _namespaces(self, deployment: Deployment) -> dict[str, list[str]]:
        """Return the namespaces that steps ask for, and which do."""
        found: dict[str, list[str]] = {}
        for name, plan in deployment.steps.items():
            if plan.request.resources.get("namespace"):
                found.setdefault(str(plan.request.resources["namespace"]), []).append(name)
        return found

    def _namespace(self) -> str | None:
        return self.given.get("kubernetes_namespace") or settings().kubernetes_namespace

    # -- the deployment ------------------------------------------------------------------------------------------------

    def preflight(self, deployment: Deployment) -> list[Problem]:
        """See `Target.preflight`."""
        problems = []
        kinds = ["WorkflowTemplate", *(["CronWorkflow"] if deployment.schedule else [])]
        if deployment.events or deployment.finishes:
            kinds.append("Sensor")
        try:
            for kind in kinds:
                if not self._client.knows(kind):
                    what = "Argo Events" if kind == "Sensor" else "Argo Workflows"
                    problems.append(
                        Problem(
                            f"the cluster has no {what}: it does not know a {kind}", None, "install it, or ask who can"
                        )
                    )
            needed = [("argoproj.io", PLURALS[kind], None, _VERBS.get(kind, _CHANGES)) for kind in [*kinds, "Workflow"]]
            problems += permission_problems(self._cluster, self._client.namespace, needed, _GUIDE)
        except FlowkitError as error:
            return [Problem(error.headline, None, error.hint)]
        requests = {name: plan.request for name, plan in deployment.steps.items()}
        here = _defaults(self._client.namespace)
        return problems + preflight_problems(self._cluster, requests, lambda: here, deployment.root or None, needed=())

    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        """See `Target.apply`."""
        made = {item["kind"]: item for item in document["items"]}
        lines = []
        for kind in ("WorkflowTemplate", "CronWorkflow", "Sensor"):
            if kind in made:
                new = self._client.put(made[kind], ours=lambda found: _record_of(found) is not None)
                lines.append(f"{kind} {deployment.name} {'made' if new else 'replaced'}")
            else:
                name = _object_name(kind, deployment.name)
                found = self._client.get(kind, name)
                if found is not None and _record_of(found) is not None:
                    self._client.delete(kind, name)
                    lines.append(f"{kind} {deployment.name} removed: this version of the flow has none")
        lines.append(f"in the namespace {self._client.namespace}")
        if "CronWorkflow" in made:
            spec = made["CronWorkflow"]["spec"]
            lines.append(f"it runs at {spec['schedules'][0]} ({spec['timezone']})")
        if "Sensor" in made:
            names = [plan.name for plan in (*deployment.events, *deployment.finishes)]
            lines.append(f"it runs when {' and '.join(names)} {'has' if len(names) == 1 else 'have'} come")
        return lines

    def find(self, name: str) -> DeploymentRecord | None:
        """See `Target.find`."""
        found = self._client.get("WorkflowTemplate", name)
        if found is None:
            return None
        record = _record_of(found)
        if record is None:
            raise Conflict(
                f"the WorkflowTemplate '{name}' in the namespace {self._client.namespace} was not made by flowkit",
                "give the deployment another name: --name",
            )
        return record

    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        """See `Target.deployed`."""
        labels = f"{FLOW}={label_value(flow)}" if flow is not None else DEPLOYMENT
        records = [_record_of(item) for item in self._client.all("WorkflowTemplate", labels)]
        return [record for record in records if record is not None and flow in (None, record.flow)]

    def delete(self, record: DeploymentRecord) -> None:
        """See `Target.delete`."""
        # What starts runs goes first.
        for kind in ("CronWorkflow", "Sensor", "WorkflowTemplate"):
            self._client.delete(kind, _object_name(kind, record.name))

    # -- runs ----------------------------------------------------------------------------------------------------------

    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """See `Target.trigger`."""
        made = self._client.create(run_of(record.name, labels_of(record.name, record.flow), dict(parameters)))
        return f"{self.prefix}-{made['metadata']['name']}"

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """See `Target.execution`."""
        found = self._workflow(record, run)
        return None if found is None else _execution(found)

    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        """See `Target.executions`."""
        labels = f"{DEPLOYMENT}={label_value(record.name)}"
        found = sorted(self._client.all("Workflow", labels), key=_age, reverse=True)
        return [_execution(item) for item in found[:limit]]

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """See `Target.terminate`."""

        def stop(workflow: dict[str, Any]) -> None:
            workflow["metadata"].setdefault("annotations", {})[CANCELLED] = "yes"
            workflow["spec"]["shutdown"] = "Stop"
            workflow["spec"].pop("suspend", None)

        self._change(record, run, stop)

    def suspend(self, record: DeploymentRecord, run: str) -> None:
        """See `Target.suspend`."""
        self._change(record, run, lambda workflow: workflow["spec"].update(suspend=True))

    def unsuspend(self, record: DeploymentRecord, run: str) -> None:
        """See `Target.unsuspend`."""
        self._change(record, run, lambda workflow: workflow["spec"].pop("suspend", None))

    def _change(self, record: DeploymentRecord, run: str, change: Any) -> None:
        found = self._workflow(record, run)
        if found is None or not self._client.change("Workflow", found["metadata"]["name"], change):
            raise NotFound(
                f"Argo Workflows has no run {run} of {record.name} in the namespace {self._client.namespace}",
                "workflows that have ended may have been removed there; the run itself is in the datastore",
            )

    def _workflow(self, record: DeploymentRecord, run: str) -> dict[str, Any] | None:
        prefix = f"{self.prefix}-"
        found = self._client.get("Workflow", run[len(prefix) :]) if run.startswith(prefix) else None
        labels = ((found or {}).get("metadata") or {}).get("labels") or {}
        return found if labels.get(DEPLOYMENT) == label_value(record.name) else None


def _defaults(namespace: str) -> Defaults:
    given = settings()
    image = given.kubernetes_image or given.container_image
    version = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    return Defaults(namespace, image or version, given.kubernetes_service_account)


def _hearing() -> Hearing:
    given = settings()
    return Hearing(
        given.argo_events_bus,
        given.argo_events_source,
        given.argo_events_event,
        given.argo_events_service_account,
        given.argo_events_webhook_url,
    )


def _object_name(kind: str, name: str) -> str:
    return sensor_name(name) if kind == "Sensor" else name


def _record_of(item: Mapping[str, Any]) -> DeploymentRecord | None:
    """Return the record of an object; None where flowkit has not made it."""
    text = ((item.get("metadata") or {}).get("annotations") or {}).get(RECORD)
    if not isinstance(text, str):
        return None
    try:
        return DeploymentRecord.from_json(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _execution(workflow: Mapping[str, Any]) -> Execution:
    metadata, status = workflow["metadata"], workflow.get("status") or {}
    state = _PHASES.get(str(status.get("phase") or ""), "running")
    if state == "failed" and (metadata.get("annotations") or {}).get(CANCELLED) == "yes":
        state = "cancelled"
    reason = one_line(status.get("message")) or None
    if state in ("pending", "running") and (workflow.get("spec") or {}).get("suspend"):
        reason = "suspended"
    started, finished = _seconds(status.get("startedAt")), _seconds(status.get("finishedAt"))
    return Execution(f"{ArgoWorkflows.prefix}-{metadata['name']}", state, reason, started, finished)


def _age(workflow: Mapping[str, Any]) -> tuple[str, str]:
    metadata = workflow["metadata"]
    return str(metadata.get("creationTimestamp") or ""), str(metadata["name"])


def _seconds(text: Any) -> float | None:
    """Return a time of the API as seconds since the epoch."""
    try:
        return float(calendar.timegm(time.strptime(str(text or ""), "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return None
