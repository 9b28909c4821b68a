"""Kubernetes without a workflow controller: a CronJob whose pod is the client of a run (``kubernetes create``)."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from flowkit.decorators.contract import ExecutorRequest
from flowkit.deployer.target import CreateOption, Deployment, DeploymentRecord, Execution, Target
from flowkit.exceptions import Conflict, FlowkitError, NotFound, Problem
from flowkit.metadata.records import FINAL
from flowkit.plugins.kubernetes import cron_documents as documents
from flowkit.plugins.kubernetes.cluster import Cluster, Refused
from flowkit.plugins.kubernetes.manifests import CANCELLED, RUN_KEY, Defaults, run_key
from flowkit.plugins.kubernetes.preflight import allowed, preflight_problems
from flowkit.plugins.kubernetes.syntax import OWN_PREFIX, label_value
from flowkit.runtime.backend import BackendError, RemoteRun
from flowkit.settings import settings, user_name

_FORWARDED = ("kubernetes_namespace", "kubernetes_image", "kubernetes_service_account", "container_image")
"""Settings that the client's steps go by."""
_GUIDE = "docs/kubernetes.md lists what is needed"
_CRON_VERBS = ("create", "get", "list", "update", "delete")


class KubernetesCron(Target):
    """A CronJob, whose pod runs ``python flow.py run --with kubernetes``."""

    name = "kubernetes"
    label = "Kubernetes CronJob"
    prefix = documents.PREFIX
    executor = "kubernetes"
    client_run = True
    options = (
        CreateOption("kubernetes_namespace", "The cluster's namespace. Default: of the setting or the context."),
        CreateOption("image", "Of the client's pod. Default: as for steps."),
        CreateOption("service_account", "Of the client's pod: it must be allowed to create jobs."),
        CreateOption("cpu", "Processors of the client's pod.", float, 0.5),
        CreateOption("memory", "Megabytes of memory of the client's pod.", int, 1024),
        CreateOption("disk", "Megabytes of disk of the client's pod.", int, 4096),
        CreateOption("secrets", "A secret whose keys become variables of the client.", multiple=True, default=()),
        CreateOption("image_pull_secrets", "A secret to pull the client's image with.", multiple=True, default=()),
        CreateOption("starts", "How often a run's client is started at most.", int, 7),
        CreateOption("deadline", "Seconds by which a run may start late; later, it is left out.", int, 3600),
        CreateOption("history", "Runs that ended well, and others, whose Jobs are kept.", int, 20),
    )

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._cluster = Cluster()

    @classmethod
    def default_name(cls, flow: str, project: str | None, branch: str | None) -> str:
        """See `Target.default_name`."""
        return documents.cron_name(flow, project, branch)

    def problems(self, deployment: Deployment) -> list[Problem]:
        """See `Target.problems`."""
        return documents.cron_problems(deployment)

    def compile(self, deployment: Deployment) -> Any:
        """Return the CronJob."""
        given = settings()
        variables = {
            f"FLOWKIT_{name.upper()}": str(getattr(given, name)) for name in _FORWARDED if getattr(given, name)
        }
        return documents.cron_document(deployment, _defaults(""), variables)

    def preflight(self, deployment: Deployment) -> list[Problem]:
        """Ask for namespace, permissions, accounts and secrets, for the client's pod and for those of steps."""
        client = ExecutorRequest(self.name, documents.client_resources(deployment.options))
        requests = {name: plan.request for name, plan in deployment.steps.items() if plan.request.name == self.name}
        problems = preflight_problems(
            self._cluster, {**requests, "(the client)": client}, lambda: _defaults(self._namespace), None
        )
        if problems:
            return problems
        try:
            denied = [verb for verb in _CRON_VERBS if not allowed(self._cluster, self._namespace, "cronjobs", verb)]
        except FlowkitError as error:
            return [Problem(error.headline, hint=error.hint)]
        if denied:
            words = ", ".join(f"{verb} cronjobs" for verb in denied)
            return [Problem(f"not allowed in the namespace {self._namespace}: {words}", hint=_GUIDE)]
        return self._account_problems(documents.client_resources(deployment.options).get("service_account"))

    def _account_problems(self, account: str | None) -> list[Problem]:
        """Ask whether the client's pod may start jobs, as far as we may ask that."""
        namespace = self._namespace
        account = account or _defaults(namespace).service_account or "default"
        denied = []
        for verb in ("create", "get", "list", "delete"):
            review = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "LocalSubjectAccessReview",
                "metadata": {"namespace": namespace},
                "spec": {
                    "user": f"system:serviceaccount:{namespace}:{account}",
                    "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"],
                    "resourceAttributes": {"namespace": namespace, "group": "batch", "resource": "jobs", "verb": verb},
                },
            }
            try:
                answer = self._cluster.call(
                    "AuthorizationV1", "create_namespaced_local_subject_access_review", namespace, review
                )
            except FlowkitError:  # only administrators may ask that: the client will tell
                return []
            if not (answer.get("status") or {}).get("allowed", True):
                denied.append(f"{verb} jobs")
        if not denied:
            return []
        headline = f"the service account '{account}' of the client's pod may not {', '.join(denied)}"
        return [Problem(headline, hint=f"--service-account names another one; {_GUIDE}")]

    def apply(self, deployment: Deployment, document: Any) -> list[str]:
        """Create the CronJob, or replace it; jobs that run go on as they began."""
        name, namespace = deployment.name, self._namespace
        if self._cron(name) is None:
            self._batch("create_namespaced_cron_job", namespace, document, field_validation="Strict")
        else:
            self._batch("replace_namespaced_cron_job", name, namespace, document, field_validation="Strict")
        lines = [f"CronJob {name} in the namespace {namespace}: kubectl get cronjob {name} -n {namespace}"]
        if deployment.schedule is None:
            return [*lines, "It has no schedule (the CronJob is suspended): trigger starts its runs."]
        spec = document["spec"]
        return [*lines, f"Runs at {spec['schedule']} ({spec['timeZone']})."]

    def find(self, name: str) -> DeploymentRecord | None:
        """See `Target.find`."""
        found = self._cron(name)
        return None if found is None else self._record(found)

    def deployed(self, flow: str | None = None) -> list[DeploymentRecord]:
        """See `Target.deployed`."""
        selector = documents.DEPLOYMENT
        if flow is not None:
            selector += f",{OWN_PREFIX}flow={label_value(flow)}"
        pages = self._cluster.pages("BatchV1", "list_namespaced_cron_job", self._namespace, label_selector=selector)
        found = [documents.record_of(item) for page in pages for item in page.get("items") or ()]
        return [record for record in found if record is not None and flow in (None, record.flow)]

    def trigger(self, record: DeploymentRecord, parameters: Mapping[str, str]) -> str:
        """Create a Job from the CronJob, as ``kubectl create job --from`` would, with the parameters."""
        cron = self._cron(record.name)
        if cron is None:
            raise NotFound(f"there is no CronJob {record.name} in the namespace {self._namespace} any more")
        self._record(cron)
        name = f"{record.name}-{os.urandom(4).hex()}"
        document = documents.job_of(cron, name, parameters)
        try:
            self._create(document)
        except BackendError as error:
            if error.answered and not error.transient:
                raise
            self._create(document)  # under the same name: there is only ever one
        return documents.run_of(name)

    def execution(self, record: DeploymentRecord, run: str) -> Execution | None:
        """See `Target.execution`."""
        job = self._job(record, run)
        return None if job is None else documents.execution_of(job)

    def executions(self, record: DeploymentRecord, limit: int = 100) -> list[Execution]:
        """See `Target.executions`."""
        selector = f"{documents.DEPLOYMENT}={record.name}"
        pages = self._cluster.pages("BatchV1", "list_namespaced_job", self._namespace, label_selector=selector)
        jobs = [item for page in pages for item in page.get("items") or ()]
        jobs.sort(key=lambda item: str(item["metadata"].get("creationTimestamp")), reverse=True)
        return [documents.execution_of(item) for item in jobs[:limit]]

    def terminate(self, record: DeploymentRecord, run: str) -> None:
        """Tell the run's client to end it; where it has none just now, end the jobs of the run."""
        job = self._job(record, run)
        if job is None:
            raise NotFound(f"the CronJob {record.name} has no run {run}", "list-runs shows those that it has")
        if documents.execution_of(job).state in FINAL:
            return
        name = job["metadata"]["name"]
        # The client asks why it has to end, and finds the annotation.
        said = {"annotations": {CANCELLED: f"terminated by {user_name()}"}}
        patch = {"metadata": said, "spec": {"activeDeadlineSeconds": 1}}
        self._batch("patch_namespaced_job", name, self._namespace, patch)
        if not (job.get("status") or {}).get("active"):
            key = run_key(RemoteRun(record.flow, documents.run_of(name), "", record.root))
            self._batch(
                "delete_collection_namespaced_job",
                self._namespace,
                label_selector=f"{RUN_KEY}={key}",
                propagation_policy="Background",
            )

    def delete(self, record: DeploymentRecord) -> None:
        """Delete the CronJob, and leave its Jobs: those that have ended are removed a week after their end."""
        try:
            self._batch("delete_namespaced_cron_job", record.name, self._namespace, propagation_policy="Orphan")
        except Refused as error:
            if error.status != 404:
                raise

    @property
    def _namespace(self) -> str:
        return str(self.given.get("kubernetes_namespace") or self._cluster.namespace)

    def _cron(self, name: str) -> dict[str, Any] | None:
        return self._read("read_namespaced_cron_job", name)

    def _job(self, record: DeploymentRecord, run: str) -> dict[str, Any] | None:
        found = self._read("read_namespaced_job", documents.job_name(run))
        labels = ((found or {}).get("metadata") or {}).get("labels") or {}
        return found if labels.get(documents.DEPLOYMENT) == record.name else None

    def _create(self, document: dict[str, Any]) -> None:
        try:
            self._batch("create_namespaced_job", self._namespace, document, field_validation="Strict")
        except Refused as error:
            if error.status != 409:
                raise

    def _record(self, cron: Mapping[str, Any]) -> DeploymentRecord:
        record = documents.record_of(cron)
        if record is None:
            name = cron["metadata"]["name"]
            raise Conflict(
                f"the namespace {self._namespace} has a CronJob '{name}' that flowkit has not made",
                "choose another name: --name",
            )
        return record

    def _read(self, method: str, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._batch(method, name, self._namespace)
        except Refused as error:
            if error.status != 404:
                raise
            return None
        return found

    def _batch(self, method: str, *args: Any, **options: Any) -> Any:
        return self._cluster.call("BatchV1", method, *args, **options)


def _defaults(namespace: str) -> Defaults:
    given = settings()
    image = given.kubernetes_image or given.container_image
    return Defaults(
        namespace,
        image or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        given.kubernetes_service_account,
    )
