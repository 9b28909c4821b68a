"""The backend for Kubernetes: Jobs, Indexed Jobs and gangs, followed by one watch for each namespace of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import Problem
from flowkit.plugins.kubernetes import manifests
from flowkit.plugins.kubernetes.cluster import Cluster, Refused, one_line
from flowkit.plugins.kubernetes.inventory import cancelled_reason, facts_of, found_job, label_selector
from flowkit.plugins.kubernetes.pods import is_refusal
from flowkit.plugins.kubernetes.preflight import preflight_problems
from flowkit.plugins.kubernetes.rows import JobFacts, JobId, RowBook
from flowkit.plugins.kubernetes.syntax import object_name
from flowkit.plugins.kubernetes.watch import Inbox, PodWatch
from flowkit.runtime.backend import Backend, BackendError, Cause, FoundJob, RemoteRun, RowState, Submission
from flowkit.settings import settings

_TOGETHER = 50
"""Jobs named in one selector: an address of the API has a bound of some kilobytes."""
_LINES = 50
_EVENT_CALLS = 3
"""Jobs whose events are asked for at one look at why rows wait."""
_GROUP = manifests.JOBSET_GROUP, manifests.JOBSET_VERSION


class KubernetesBackend(Backend):
    """Runs rows as pods of a Kubernetes cluster.

    Parameters
    ----------
    run : RemoteRun or None
        The run whose jobs these are.
    """

    name = "kubernetes"
    max_rows = 10_000
    poll_interval = 1.0
    jobs_interval = 30.0
    """Seconds between two looks at the jobs themselves; pods are followed all the time."""
    image_patience = 120.0
    """Seconds in which an image that cannot be pulled may still come, unless the registry refused it for good."""
    queue_patience = 60.0
    """Seconds after which it is told why a row still waits for a machine."""

    hints_interval = 15.0
    """Seconds between two looks at why rows still wait."""
    unseen_patience = 3.0
    """Seconds in which pods of a job that is over may still be heard of."""

    def __init__(self, run: RemoteRun | None) -> None:
        self._run = run
        self._cluster = Cluster()
        self._inbox = Inbox()
        self._watches: dict[str, PodWatch] = {}
        self._failing: dict[str, BackendError] = {}
        self._book = RowBook()
        self._alive: set[str] = set()
        self._asked: set[str] = set()
        self._namespaces: set[str] = set()
        self._jobs_due = 0.0
        self._unseen: dict[str, float] = {}
        self._synced: set[str] = set()
        self._hints_due = 0.0
        self._late_due = 0.0
        self._events_due: dict[str, float] = {}
        self._hinted: dict[str, str] = {}
        self._has_jobsets: bool | None = None

    @property
    def calls(self) -> int:
        """How many calls were made."""
        return self._cluster.calls + sum(watch.cluster.calls for watch in self._watches.values())

    # -- before a run -----------------------------------------------------------------------------------------------

    def preflight(self, requests: Mapping[str, ExecutorRequest]) -> list[Problem]:
        """Ask for the cluster, its version, namespaces, accounts, secrets, claims and permissions."""
        root = self._run.root if self._run is not None else None
        problems = preflight_problems(self._cluster, requests, self._defaults, root)
        if not problems:
            self._namespaces |= {manifests.namespace_of(item.resources, self._defaults()) for item in requests.values()}
        return problems

    def _defaults(self) -> manifests.Defaults:
        given = settings()
        image = given.kubernetes_image or given.container_image
        return manifests.Defaults(
            self._cluster.namespace,
            image or f"python:{sys.version_info.major}.{sys.version_info.minor}-slim",
            given.kubernetes_service_account,
        )

    # -- jobs -------------------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> str:
        """Create the Job, or find that it is there already."""
        run, defaults = self._owner(), self._defaults()
        namespace = manifests.namespace_of(submission.request.resources, defaults)
        self._namespaces.add(namespace)
        self._follow({namespace})  # from before there is a pod: one that is gone soon would never be heard of
        jobset = bool(submission.gang) and self._jobsets(namespace)
        job = JobId(namespace, object_name(submission.name), "jobset" if jobset else "job", submission.gang)
        try:
            if jobset:
                document = manifests.jobset_document(run, submission, defaults)
                made = self._custom("create_namespaced_custom_object", namespace, document)
            else:
                document = manifests.job_document(run, submission, defaults)
                made = self._batch("create_namespaced_job", namespace, document, field_validation="Strict")
        except Refused as error:
            if jobset and error.status == 403:  # we may look at JobSets, and not make them
                self._has_jobsets = False
                return self.submit(submission)
            if error.status != 409:
                raise
            made = self._present(job, submission)
        if submission.gang and not jobset:
            self._serve(job, submission, defaults, made)
        self._alive.add(job.key)
        return str(job)

    def find(self, name: str) -> str | None:
        """Look for the Job, and for a JobSet, in every namespace that is known."""
        name = object_name(name)
        for namespace in sorted({self._cluster.namespace, *self._namespaces}):
            made = self._get(JobId(namespace, name))
            kind = "job"
            if made is None and self._jobsets(namespace):
                made, kind = self._get(JobId(namespace, name, "jobset")), "jobset"
            if made is not None and not made["metadata"].get("deletionTimestamp"):
                gang = (made["metadata"].get("annotations") or {}).get(manifests.GANG, "0")
                job = JobId(namespace, name, kind, int(gang))
                self._alive.add(job.key)
                return str(job)
        return None

    def _present(self, job: JobId, submission: Submission) -> dict[str, Any]:
        """Return the object that has the name already, if it is this very submission."""
        made = self._get(job)
        if made is None or made["metadata"].get("deletionTimestamp"):
            raise BackendError(
                f"the job {job.name} is just being deleted in the namespace {job.namespace}", transient=True
            )
        known = (made["metadata"].get("annotations") or {}).get(manifests.SUBMISSION)
        if known != manifests.submission_key(self._owner(), submission):
            raise BackendError(
                f"the namespace {job.namespace} has another job of the name {job.name}",
                f"kubectl describe job {job.name} -n {job.namespace} tells whose it is",
            )
        return made

    def _serve(self, job: JobId, submission: Submission, defaults: manifests.Defaults, made: Mapping[str, Any]) -> None:
        """Create the service of a gang; where that is not allowed, its nodes would wait for each other in vain."""
        document = manifests.service_document(self._owner(), submission, defaults, str(made["metadata"]["uid"]))
        try:
            self._core("create_namespaced_service", job.namespace, document)
        except Refused as error:
            if error.status == 409:
                return
            if not error.transient:
                self._delete(job)
            raise

    def cancel(self, jobs: Iterable[str], reason: str, *, running: bool) -> None:
        """Delete the jobs, or only their pods that have no machine yet.

        A deleted pod's index has failed, so that its row never starts, and no other one is touched. (Suspending a job
        or lowering its parallelism would end running pods as well.) A gang that lacks a node ends as a whole.
        """
        chosen = [JobId.read(text) for text in jobs]
        for job in chosen:
            self._book.doomed[job.key] = ("cancelled", reason)
        if running:
            for job in chosen:
                self._delete(job)
            return
        for job in chosen:
            self._mark(job, reason)
        self._remove_waiting(chosen, machine=True)

    def last_lines(self, job: str, row: int) -> list[str]:
        """Return the end of the pod's log; what the cluster kept of it where the pod is gone."""
        known = JobId.read(job)
        state = self._book.pod(known.key, row)
        if known.nodes:
            nodes = self._book.pods(known.key).values()
            state = next((item for item in nodes if item.phase == "failed" and item.cause != "deleted"), state)
        try:
            pod = state.pod if state is not None and state.pod else self._pod_name(known, row)
            if pod is None:
                return []
            text = self._cluster.text(
                "CoreV1",
                "read_namespaced_pod_log",
                pod,
                known.namespace,
                container=manifests.CONTAINER,
                tail_lines=_LINES,
                limit_bytes=64 * 1024,
                _request_timeout=(5.0, 10.0),  # a node that is ill must not hold everything up
            )
        except BackendError:
            text = state.last if state is not None else ""
        return text.splitlines()[-_LINES:]

    def jobs(self, *, flow: str | None = None, run: str | None = None, user: str | None = None) -> list[FoundJob]:
        """List the jobs of flowkit in the namespace that have not ended."""
        namespace = self._cluster.namespace
        selector = label_selector(flow, run, user)
        listed = [("job", item) for item in self._list("BatchV1", "list_namespaced_job", namespace, selector)]
        if self._jobsets(namespace):
            pages = self._cluster.pages(
                "CustomObjects", "list_namespaced_custom_object", *_GROUP, namespace, manifests.JOBSETS,
                label_selector=selector,
            )  # fmt: skip
            listed += [("jobset", item) for page in pages for item in page.get("items") or ()]
        found = [found_job(kind, item) for kind, item in listed]
        wanted = {"flow": flow, "run": run, "user": user}
        return [
            job
            for job in found
            if job is not None and all(value in (None, getattr(job, name)) for name, value in wanted.items())
        ]

    # -- states -----------------------------------------------------------------------------------------------------

    def states(self, jobs: Mapping[str, int]) -> Iterable[RowState]:
        """Tell what watches have heard; look at the jobs themselves every half minute, and when a pod is gone."""
        asked = {text: JobId.read(text) for text in jobs}
        self._follow({job.namespace for job in asked.values()})
        self._listen()
        by_key = {job.key: (job, jobs[text]) for text, job in asked.items()}
        new = by_key.keys() - self._asked - self._alive
        self._asked |= by_key.keys()
        now = time.time()
        if by_key and (new or self._book.unresolved.keys() & by_key.keys() or now >= self._jobs_due):
            self._jobs_due = now + (self.unseen_patience if self._settle(by_key, now) else self.jobs_interval)
        self._refuse_images(by_key, now)
        if now >= self._late_due:
            self._remove_late(by_key)
        news = self._book.take(asked.items())
        if by_key and now >= self._hints_due:
            first, self._hints_due = self._hints_due == 0.0, now + self.hints_interval
            news += [] if first else self._hints(jobs, asked, now)
        self._book.forget(by_key)
        return news

    def wait_descriptor(self) -> int | None:
        """Return the descriptor that turns readable when a watch has heard something."""
        return self._inbox.reader

    def close(self) -> None:
        """End the watches; jobs go on."""
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        self._inbox.close()
        self._cluster.close()

    def _follow(self, namespaces: set[str]) -> None:
        for namespace in namespaces - self._watches.keys():
            selector = f"{manifests.RUN_KEY}={manifests.run_key(self._owner())}"
            self._watches[namespace] = PodWatch(namespace, selector, self._inbox)

    def _listen(self) -> None:
        """Take over what was heard; raise what stands in the way, once what is good has been taken."""
        for news in self._inbox.take():
            if news.error is not None:
                self._failing[news.namespace] = news.error
                continue
            self._failing.pop(news.namespace, None)
            if news.listed is not None:
                self._synced.add(news.namespace)
                # What came and went before this list is known to the jobs only.
                self._jobs_due = min(self._jobs_due, time.time() + self.unseen_patience)
                self._book.listed(news.namespace, news.listed)
            elif news.pod is not None and news.gone:
                self._book.vanished(news.namespace, news.pod)
            elif news.pod is not None:
                self._book.changed(news.namespace, news.pod)
        if self._failing:  # the watch goes on trying by itself
            raise next(iter(self._failing.values()))

    def _settle(self, by_key: Mapping[str, tuple[JobId, int]], now: float) -> bool:
        """Ask the jobs themselves; True where one has to be asked again soon."""
        soon = False
        selector = f"{manifests.RUN_KEY}={manifests.run_key(self._owner())}"
        facts: dict[str, JobFacts] = {}
        for namespace in sorted({job.namespace for job, _ in by_key.values()}):
            for item in self._list("BatchV1", "list_namespaced_job", namespace, selector):
                facts[f"{namespace}/{item['metadata']['name']}"] = facts_of(item)
        for key, (job, rows) in by_key.items():
            if job.kind == "jobset":
                found = self._get(job)
                known = facts_of(found) if found is not None else None
            else:
                known = facts.get(key)
            if known is not None and known.cancelled and key not in self._book.doomed:
                self._book.doomed[key] = ("cancelled", known.cancelled)
            # The list of jobs and the watch of pods are not of the same moment.
            over = (known is None or known.ended is not None) and bool(self._book.missing(job, rows))
            since = self._unseen.setdefault(key, now) if over and job.namespace in self._synced else now
            unseen = over and now - since >= self.unseen_patience
            soon = soon or (over and not unseen)
            self._book.settle(job, rows, known, known=key in self._alive, unseen=unseen)
            if known is not None:
                self._alive.add(key)
        return soon

    def _refuse_images(self, by_key: Mapping[str, tuple[JobId, int]], now: float) -> None:
        """Give up jobs whose image cannot be had: their other rows would wait for the same one."""
        for key in by_key.keys() & self._book.troubled.keys():
            if key in self._book.doomed or not self._book.troubled[key]:
                continue
            job = by_key[key][0]
            why = self._refusal(job, now)
            if why:
                self._doom(job, "image", why)

    def _refusal(self, job: JobId, now: float) -> str:
        """Return why the containers of a job will never start; empty as long as they may."""
        pod = ""
        for index, since in self._book.troubled[job.key].items():
            state = self._book.pod(job.key, index)
            if state is not None and (state.trouble == "never" or now - since > self.image_patience):
                return state.message
            pod = state.pod if state is not None else pod
        if pod and now >= self._events_due.get(job.key, 0.0):
            self._events_due[job.key] = now + self.hints_interval
            said = [text for text in self._events(job.namespace, pod, "Failed") if is_refusal(text)]
            return said[-1] if said else ""
        return ""

    def _doom(self, job: JobId, cause: Cause, message: str) -> None:
        self._book.doomed[job.key] = (cause, message)
        self._remove_waiting([job], machine=False)

    def _remove_late(self, by_key: Mapping[str, tuple[JobId, int]]) -> None:
        """Remove pods that were only created after their job was given up."""
        for machine in (True, False):
            late = [
                by_key[key][0]
                for key in by_key.keys() & self._book.doomed.keys()
                if (self._book.doomed[key][0] == "cancelled") == machine and self._book.waiting(key, machine=machine)
            ]
            self._remove_waiting(late, machine=machine)

    def _remove_waiting(self, jobs: list[JobId], *, machine: bool) -> None:
        """Delete the pods of jobs that wait for a machine, or else also those that wait for their container."""
        self._late_due = time.time() + 1.0  # what was removed has to be heard of first
        fields = "status.phase=Pending,spec.nodeName=" if machine else "status.phase=Pending"
        for namespace in sorted({job.namespace for job in jobs}):
            names = [job.name for job in jobs if job.namespace == namespace]
            for start in range(0, len(names), _TOGETHER):
                chosen = ",".join(names[start : start + _TOGETHER])
                self._core(
                    "delete_collection_namespaced_pod",
                    namespace,
                    label_selector=f"{manifests.JOB_LABEL} in ({chosen})",
                    field_selector=fields,
                )

    def _hints(self, jobs: Mapping[str, int], asked: Mapping[str, JobId], now: float) -> list[RowState]:
        """Say why rows still wait: one line for each job, told again where it has changed."""
        news, looked = [], 0
        for text, job in asked.items():
            message = self._book.overdue(job, now - self.queue_patience)
            if not message and looked < _EVENT_CALLS and self._book.missing(job, jobs[text]):
                looked += 1
                message = self._creation_failure(job)
            if message and self._hinted.get(job.key) != message:
                self._hinted[job.key] = message
                row = next((i for i, s in self._book.pods(job.key).items() if s.phase == "queued"), 0)
                news.append(RowState(text, 0 if job.nodes else row, "queued", now, message=message))
        return news

    def _creation_failure(self, job: JobId) -> str:
        """Return why a job has no pods: a quota, a missing account, an admission rule."""
        return next(reversed(self._events(job.namespace, job.name, "FailedCreate")), "")

    def _events(self, namespace: str, name: str, reason: str) -> list[str]:
        """Return what events say about an object; nothing where we may not read them."""
        try:
            page = self._core(
                "list_namespaced_event",
                namespace,
                field_selector=f"involvedObject.name={name},reason={reason}",
                limit=20,
            )
        except Refused as error:
            if error.status != 403:
                raise
            return []
        return [one_line(item.get("message")) for item in page.get("items") or ()]

    # -- calls ------------------------------------------------------------------------------------------------------

    def _owner(self) -> RemoteRun:
        if self._run is None:
            raise BackendError("jobs are submitted for a run")
        return self._run

    def _batch(self, method: str, *args: Any, **options: Any) -> Any:
        return self._cluster.call("BatchV1", method, *args, **options)

    def _core(self, method: str, *args: Any, **options: Any) -> Any:
        return self._cluster.call("CoreV1", method, *args, **options)

    def _custom(self, method: str, namespace: str, *args: Any, **options: Any) -> Any:
        return self._cluster.call("CustomObjects", method, *_GROUP, namespace, manifests.JOBSETS, *args, **options)

    def _list(self, api: str, method: str, namespace: str, selector: str) -> Iterable[dict[str, Any]]:
        for page in self._cluster.pages(api, method, namespace, label_selector=selector):
            yield from page.get("items") or ()

    def _get(self, job: JobId) -> dict[str, Any] | None:
        try:
            if job.kind == "jobset":
                found: dict[str, Any] = self._custom("get_namespaced_custom_object", job.namespace, job.name)
            else:
                found = self._batch("read_namespaced_job", job.name, job.namespace)
        except Refused as error:
            if error.status != 404:
                raise
            return None
        return found

    def _delete(self, job: JobId) -> None:
        try:
            if job.kind == "jobset":
                self._custom(
                    "delete_namespaced_custom_object", job.namespace, job.name, propagation_policy="Background"
                )
            else:
                self._batch("delete_namespaced_job", job.name, job.namespace, propagation_policy="Background")
        except Refused as error:
            if error.status != 404:
                raise

    def _mark(self, job: JobId, reason: str) -> None:
        """Leave word at a job that its waiting rows were cancelled, for whoever looks after the run next."""
        if job.kind != "job":
            return
        try:
            self._batch("patch_namespaced_job", job.name, job.namespace, cancelled_reason(reason))
        except Refused as error:
            if error.status not in (403, 404):
                raise

    def _pod_name(self, job: JobId, row: int) -> str | None:
        selector = f"{manifests.JOB_LABEL}={job.name}"
        for item in self._list("CoreV1", "list_namespaced_pod", job.namespace, selector):
            index = (item["metadata"].get("labels") or {}).get(manifests.INDEX_LABEL, "0")
            if index == str(row):
                return str(item["metadata"]["name"])
        return None

    def _jobsets(self, namespace: str) -> bool:
        """Whether the cluster knows JobSets and lets us have them; asked once."""
        if self._has_jobsets is None:
            try:
                self._custom("list_namespaced_custom_object", namespace, limit=1)
                self._has_jobsets = True
            except Refused as error:
                if error.status not in (403, 404):
                    raise
                self._has_jobsets = False
        return self._has_jobsets
