"""CronJobs of a loopback cluster, and Jobs whose pod is replaced when it is lost: what the API server refuses of them,
and what their controllers do.

Nothing waits for a clock: a CronJob fires when a test says so (`CronJobs.fire`), under the rules of its concurrency
policy. A Job with a ``podFailurePolicy`` replaces its pod as Kubernetes 1.31 does.
"""

from __future__ import annotations

import calendar
import re
import time
import zoneinfo
from typing import TYPE_CHECKING, Any

from kube_pods import new_pod
from kube_store import Refusal, stamp
from kube_strict import job_problems, metadata_problems, unknown_fields

if TYPE_CHECKING:
    from kube_controller import Controller

_LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_POLICIES = ("Allow", "Forbid", "Replace")


def cronjob_problems(cron: dict[str, Any]) -> list[str]:
    """Return what the API server says against a CronJob."""
    wrong = list(unknown_fields(cron, "V1CronJob"))
    if wrong:
        return wrong
    metadata, spec = cron["metadata"], cron.get("spec") or {}
    wrong = metadata_problems(metadata)
    if len(metadata["name"]) > 52:
        wrong.append("metadata.name: must be no more than 52 characters")
    wrong += _schedule_problems(spec.get("schedule") or "")
    zone = spec.get("timeZone")
    if zone is not None and (zone not in zoneinfo.available_timezones() or zone == "Local"):
        wrong.append(f"spec.timeZone: Invalid value: {zone!r}")
    if spec.get("concurrencyPolicy", "Allow") not in _POLICIES:
        wrong.append("spec.concurrencyPolicy: Unsupported value")
    for name in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        if spec.get(name) is not None and spec[name] < 0:
            wrong.append(f"spec.{name}: must be at least 0")
    template = spec.get("jobTemplate") or {}
    inner = {"apiVersion": "batch/v1", "kind": "Job", "spec": template.get("spec") or {}}
    wrong += job_problems({**inner, "metadata": {**(template.get("metadata") or {}), "name": metadata["name"][:50]}})
    return wrong


def _schedule_problems(schedule: str) -> list[str]:
    fields = schedule.split()
    if len(fields) != 5:
        return [f"spec.schedule: Invalid value: {schedule!r}: expected exactly 5 fields"]
    for field, (low, high) in zip(fields, _LIMITS, strict=True):
        for part in field.split(","):
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
            if found is None or found[3] == "0":
                return [f"spec.schedule: Invalid value: {schedule!r}: failed to parse {part!r}"]
            ends = [int(end) for end in found.groups()[:2] if end is not None]
            if any(not low <= end <= high for end in ends) or ends != sorted(ends):
                return [f"spec.schedule: Invalid value: {schedule!r}: {part!r} is out of range"]
    return []


def failure_policy_problems(spec: dict[str, Any]) -> list[str]:
    """Return what the API server says against a Job's ``podFailurePolicy``."""
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return []
    wrong = []
    pod = (spec.get("template") or {}).get("spec") or {}
    if pod.get("restartPolicy") != "Never":
        wrong.append('spec.template.spec.restartPolicy: Invalid value: only "Never" is supported with podFailurePolicy')
    containers = {item["name"] for item in pod.get("containers") or ()}
    for rule in policy.get("rules") or ():
        if rule.get("action") not in ("FailJob", "Ignore", "Count", "FailIndex"):
            wrong.append("spec.podFailurePolicy.rules.action: Unsupported value")
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            wrong.append("spec.podFailurePolicy.rules: specifying one of onExitCodes and onPodConditions is required")
        codes = rule.get("onExitCodes") or {"operator": "In", "values": [1]}
        if (
            codes["operator"] not in ("In", "NotIn")
            or not codes["values"]
            or codes["values"] != sorted(codes["values"])
        ):
            wrong.append("spec.podFailurePolicy.rules.onExitCodes: Invalid value")
        if codes["operator"] == "In" and 0 in codes["values"]:
            wrong.append("spec.podFailurePolicy.rules.onExitCodes.values: must not be 0 for In")
        if codes.get("containerName") not in (None, *containers):
            wrong.append("spec.podFailurePolicy.rules.onExitCodes.containerName: must be one of the containers")
        for condition in rule.get("onPodConditions") or ():
            if not condition.get("type") or condition.get("status") not in ("True", "False", "Unknown"):
                wrong.append("spec.podFailurePolicy.rules.onPodConditions: Invalid value")
    return wrong


def action_of(job: dict[str, Any], pod: dict[str, Any]) -> str:
    """Return what a Job's policy says of a pod that failed: ``FailJob``, ``Ignore`` or ``Count``."""
    status = pod["status"]
    codes = [
        (item["name"], item["state"]["terminated"].get("exitCode"))
        for item in status.get("containerStatuses") or ()
        if "terminated" in item["state"]
    ]
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        wanted = rule.get("onExitCodes")
        if wanted is not None:
            for name, code in codes:
                listed = code in wanted["values"]
                if code and wanted.get("containerName", name) == name and listed == (wanted["operator"] == "In"):
                    return str(rule["action"])
        for condition in rule.get("onPodConditions") or ():
            for item in status.get("conditions") or ():
                if (item["type"], item["status"]) == (condition["type"], condition["status"]):
                    return str(rule["action"])
    return "Count"


class CronJobs:
    """The controllers of CronJobs, and of Jobs that replace their pod.

    Attributes
    ----------
    pause : float
        Seconds between a pod's failure and the next pod: Kubernetes waits 10, then ever longer.
    """

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.store = controller.store
        self.pause = 0.2
        self._ends: dict[str, dict[str, str]] = {}
        self._not_before: dict[str, float] = {}

    def fire(self, namespace: str, name: str, *, at: float | None = None) -> str | None:
        """Have a CronJob fire, as if it were due; return the name of the Job, None where it makes none."""
        with self.store.changed:
            cron = self.store.get("cronjobs", namespace, name)
            if cron["spec"].get("suspend"):
                return None
            active = [job for job in self._jobs_of(cron) if not _over(job)]
            policy = cron["spec"].get("concurrencyPolicy", "Allow")
            if policy == "Forbid" and active:
                return None
            if policy == "Replace":
                for job in active:
                    place = namespace, job["metadata"]["name"]
                    self.store.remove("jobs", *place)
                    self.controller.delete_owned(job["metadata"]["uid"])
            when = time.time() if at is None else at
            child = f"{name}-{int(when) // 60}"
            template = cron["spec"]["jobTemplate"]
            owner = {
                "apiVersion": "batch/v1",
                "kind": "CronJob",
                "name": name,
                "uid": cron["metadata"]["uid"],
                "controller": True,
                "blockOwnerDeletion": True,
            }
            inherited = template.get("metadata") or {}
            said = {"batch.kubernetes.io/cronjob-scheduled-timestamp": stamp(when)}
            metadata = {
                "name": child,
                "namespace": namespace,
                "labels": dict(inherited.get("labels") or {}),
                "annotations": {**(inherited.get("annotations") or {}), **said},
                "ownerReferences": [owner],
            }
            self.store.create("jobs", {"metadata": metadata, "spec": template["spec"], "status": {}})
            self.store.update("cronjobs", namespace, name, lambda item: item.update(
                status={"lastScheduleTime": stamp(when)}
            ))  # fmt: skip
            self._forget_old(cron)
            return child

    def _jobs_of(self, cron: dict[str, Any]) -> list[dict[str, Any]]:
        uid = cron["metadata"]["uid"]
        return [
            job
            for job in self.store.items("jobs", cron["metadata"]["namespace"])
            if any(owner["uid"] == uid for owner in job["metadata"].get("ownerReferences") or ())
        ]

    def _forget_old(self, cron: dict[str, Any]) -> None:
        """Remove Jobs beyond the limits of the history, the oldest first."""
        over = [job for job in self._jobs_of(cron) if _over(job)]
        for kind, limit, otherwise in (
            ("Complete", "successfulJobsHistoryLimit", 3),
            ("Failed", "failedJobsHistoryLimit", 1),
        ):
            ended = sorted(
                (job for job in over if _over(job) == kind), key=lambda job: job["metadata"]["creationTimestamp"]
            )
            keep = cron["spec"].get(limit, otherwise)
            for job in ended[: max(0, len(ended) - keep)]:
                self.store.remove("jobs", job["metadata"]["namespace"], job["metadata"]["name"])
                self.controller.delete_owned(job["metadata"]["uid"])

    def ended(self, job: dict[str, Any], pod: dict[str, Any], *, failed: bool) -> None:
        """Take note of how a pod of a Job has ended."""
        ends = self._ends.setdefault(job["metadata"]["uid"], {})
        uid = pod["metadata"]["uid"]
        if uid not in ends:
            ends[uid] = action_of(job, pod) if failed else "Succeeded"
            if failed:
                self._not_before[job["metadata"]["uid"]] = time.monotonic() + self.pause

    def sync(self, job: dict[str, Any], pods: dict[str, dict[str, Any]]) -> None:
        """Do for a Job what is due: its end, or another pod."""
        namespace, name, uid = job["metadata"]["namespace"], job["metadata"]["name"], job["metadata"]["uid"]
        for pod in pods.values():
            if pod["status"]["phase"] in ("Succeeded", "Failed"):
                self.ended(job, pod, failed=pod["status"]["phase"] == "Failed")
        ends = self._ends.get(uid, {})
        failures = [action for action in ends.values() if action in ("Count", "FailJob")]
        living = {key: pod for key, pod in pods.items() if pod["status"]["phase"] not in ("Succeeded", "Failed")}
        active = {key: pod for key, pod in living.items() if not pod["metadata"].get("deletionTimestamp")}
        given = (job.get("status") or {}).get("conditions") or []
        failing = next(((item["reason"], item["message"]) for item in given if item["type"] == "FailureTarget"), None)
        failing = failing or self._failure(job, failures)
        conditions = []
        if failing is not None:
            for key in active:
                self.controller.delete_pod(namespace, key)
            active = {}
            if not any(item["type"] == "FailureTarget" for item in given):
                conditions.append(("FailureTarget", *failing))
            if not living:
                conditions.append(("Failed", *failing))
        elif "Succeeded" in ends.values():
            conditions = [("Complete", "CompletionsReached", "Reached expected number of succeeded pods")]
        elif not living:  # a pod that is being deleted is waited for
            wait = self._not_before.get(uid, 0.0) - time.monotonic()
            if wait > 0:
                self.controller._after(wait, lambda: self.controller._jobs.setdefault((namespace, name)))
            else:
                self.store.create("pods", new_pod(job, 0))
        succeeded = {0} if "Succeeded" in ends.values() else set()
        self.controller._job_status(
            namespace, name, succeeded, dict.fromkeys(range(len(failures)), True), active, conditions
        )

    def _failure(self, job: dict[str, Any], failures: list[str]) -> tuple[str, str] | None:
        if "FailJob" in failures:
            return "PodFailurePolicy", "Container main failed with an exit code that matches FailJob rule at index 0"
        if len(failures) > job["spec"].get("backoffLimit", 6):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        limit, started = job["spec"].get("activeDeadlineSeconds"), (job.get("status") or {}).get("startTime")
        if limit is not None and started is not None:
            left = calendar.timegm(time.strptime(started, "%Y-%m-%dT%H:%M:%SZ")) + limit - time.time()
            if left <= 0:
                return "DeadlineExceeded", "Job was active longer than specified deadline"
            place = job["metadata"]["namespace"], job["metadata"]["name"]
            self.controller._after(left, lambda: self.controller._jobs.setdefault(place))
        return None


def _over(job: dict[str, Any]) -> str:
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed"):
            return str(condition["type"])
    return ""


def expanded(text: str, variables: dict[str, str]) -> str:
    """Return a text of a pod's specification as Kubernetes gives it to the container: ``$(NAME)`` replaced."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", value, text)


def field_of(pod: dict[str, Any], path: str) -> str:
    """Return a field of a pod, as a variable's ``fieldRef`` names it."""
    found = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if found is not None:
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    simple = {"metadata.name": pod["metadata"]["name"], "metadata.namespace": pod["metadata"]["namespace"]}
    if path not in simple:
        raise Refusal(422, "Invalid", f"fieldRef.fieldPath: Unsupported value: {path}")
    return simple[path]
