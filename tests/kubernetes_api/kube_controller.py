"""What makes a loopback cluster live: the job controller, the scheduler, one node, and whoever collects the garbage.

One thread does all of it. It follows the changes of the store, and looks at running containers every 20 ms. The rules
are those of Kubernetes 1.29 and later as far as flowkit depends on them: a deleted pod counts as failed, an index that
failed with ``backoffLimitPerIndex: 0`` is not tried again, a job that failed ends its other pods.
"""

from __future__ import annotations

import heapq
import itertools
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kube_cron import CronJobs, expanded
from kube_pods import INDEX, JOB_NAME, container_state, index_of, new_pod, ranges
from kube_process import Container, environment_of, memory_limit
from kube_store import Change, Refusal, Store, stamp


@dataclass
class Knobs:
    """What tests may change while it runs.

    Parameters
    ----------
    execute : bool
        Run containers as processes; else every pod succeeds after `simulated` seconds.
    simulated : float
        Seconds that a pod runs which is not executed.
    start_delay : float
        Seconds between a node for a pod and its container.
    slots : int or None
        Pods that fit at once.
    missing_images : str
        Images (a regular expression) that the registry does not have.
    slow_images : str
        Images that the registry fails to give for now.
    node_environment : dict
        Variables of every container, as an image or a node would have them.
    grace : float
        Seconds between SIGTERM and SIGKILL, however long a pod asks for.
    creating : bool
        Whether the job controller creates pods; the reason of a FailedCreate event where it does not.
    """

    execute: bool = True
    simulated: float = 0.5
    start_delay: float = 0.0
    slots: int | None = None
    missing_images: str = "$^"
    slow_images: str = "$^"
    node_environment: dict[str, str] = field(default_factory=dict)
    grace: float = 5.0
    creating: str = ""


class Controller:
    """Acts on what is in a store until it is closed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.knobs = Knobs()
        self.logs: dict[str, bytes] = {}
        self._containers: dict[tuple[str, str], Container] = {}
        self._assigned: set[str] = set()
        self._waiting: dict[tuple[str, str], None] = {}
        self._jobs: dict[tuple[str, str], None] = {}
        self._pods_of: dict[str, dict[str, dict[str, Any]]] = {}
        self._failures: dict[str, dict[int, bool]] = {}
        self._successes: dict[str, set[int]] = {}
        self._again: dict[tuple[str, str], float] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopped = False
        self.crons = CronJobs(self)
        store.listeners.append(self._heard)
        self._thread = threading.Thread(target=self._run, name="kube-controller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and kill every container."""
        with self.store.changed:
            self._stopped = True
            self.store.changed.notify_all()
        self._thread.join(10)
        for container in self._containers.values():
            container.close()

    def log(self, namespace: str, name: str, lines: int | None) -> bytes:
        """Return the end of a container's log."""
        container = self._containers.get((namespace, name))
        if container is not None:
            return container.lines(lines)
        data = self.logs.get(f"{namespace}/{name}")
        if data is None:
            raise Refusal(400, "BadRequest", f'container "main" in pod "{name}" is waiting to start')
        return data if lines is None else b"".join(data.splitlines(keepends=True)[-lines:])

    def resolve(self, host: str, namespace: str) -> dict[str, Any] | None:
        """Return the pod that the cluster's DNS gives for a host's name; None where there is none."""
        name, _, subdomain = host.partition(".")
        services = {item["metadata"]["name"]: item for item in self.store.items("services", namespace)}
        if subdomain not in services:
            return None
        wanted = (services[subdomain]["spec"].get("selector") or {}).items()
        selector = ",".join(f"{key}={value}" for key, value in wanted)
        for pod in self.store.items("pods", namespace, selector):
            if pod["spec"].get("hostname") == name and pod["spec"].get("subdomain") == subdomain:
                return pod
        return None

    # -- what tests do to pods --------------------------------------------------------------------------------------

    def evict(
        self, namespace: str, name: str, *, reason: str = "EvictionByEvictionAPI", message: str = "evicted"
    ) -> None:
        """Have a pod evicted: it is announced, ended, and deleted."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
        with self.store.changed:
            self._status(namespace, name, lambda status: status.setdefault("conditions", []).append(condition))
            self.delete_pod(namespace, name)

    def pressure(self, namespace: str, name: str, message: str) -> None:
        """Have the node evict a pod, as it does when it is low on a resource."""
        container = self._containers.get((namespace, name))
        if container is not None:
            container.killed = "Evicted"
            container.end("Evicted", self.knobs.grace)
        self._status(namespace, name, lambda status: status.update(reason="Evicted", message=message))

    def kill(self, namespace: str, name: str) -> None:
        """Kill the container of a pod with all its processes, as a machine does that has no memory left."""
        with self.store.changed:
            container = self._containers.get((namespace, name))
            if container is not None:
                container.kill()

    def shut_down(self, namespace: str, name: str) -> None:
        """Have the node of a pod shut down in an orderly way."""
        message = "Pod was terminated in response to imminent node shutdown."
        container = self._containers.get((namespace, name))
        if container is not None:
            container.end("Terminated", self.knobs.grace)
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message}

        def change(status: dict[str, Any]) -> None:
            status.update(reason="Terminated", message=message)
            status.setdefault("conditions", []).append(condition)

        self._status(namespace, name, change)

    def lose(self, namespace: str, name: str) -> None:
        """Lose the node of a pod: the pod is gone at once, and nobody says how it ended."""
        with self.store.changed:
            container = self._containers.pop((namespace, name), None)
            if container is not None:
                container.close()
            condition = {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": "node lost",
            }
            self._status(namespace, name, lambda status: status.setdefault("conditions", []).append(condition))
            self._count(self.store.get("pods", namespace, name), failed=True)
            self.store.remove("pods", namespace, name)

    def delete_pod(self, namespace: str, name: str) -> None:
        """Begin the deletion of a pod, as DELETE does."""
        with self.store.changed:
            pod = self.store.get("pods", namespace, name)
            if pod["metadata"].get("deletionTimestamp"):
                return
            if pod["status"]["phase"] in ("Succeeded", "Failed") or not pod["spec"].get("nodeName"):
                self._count(pod, failed=pod["status"]["phase"] != "Succeeded")
                self.store.remove("pods", namespace, name)
                return
            self.store.update(
                "pods",
                namespace,
                name,
                lambda item: item["metadata"].update(deletionTimestamp=stamp(), deletionGracePeriodSeconds=30),
            )
            container = self._containers.get((namespace, name))
            if container is not None:
                container.end(None, self.knobs.grace)
            else:
                self._after(0.02, lambda: self._vanish(namespace, name))

    def delete_owned(self, uid: str) -> None:
        """Delete what an object owned."""
        for resource in ("jobs", "pods", "services"):
            for item in self.store.items(resource):
                if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences") or ()):
                    place = item["metadata"]["namespace"], item["metadata"]["name"]
                    if resource == "pods":
                        self.delete_pod(*place)
                    else:
                        self.store.remove(resource, *place)
                        self.delete_owned(item["metadata"]["uid"])

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _heard(self, change: Change) -> None:
        item, metadata = change.item, change.item["metadata"]
        place = (metadata.get("namespace", ""), metadata["name"])
        if change.resource == "jobs":
            self._jobs[place] = None
        elif change.resource == "jobsets":
            self._after(0, lambda: self._sync_jobset(*place))
        elif change.resource == "pods":
            job = metadata["labels"].get(JOB_NAME, "")
            table = self._pods_of.setdefault(f"{place[0]}/{job}", {})
            if change.kind == "DELETED":
                table.pop(metadata["name"], None)
                self._assigned.discard(metadata["uid"])
            else:
                table[metadata["name"]] = item
            if change.kind == "ADDED":
                self._waiting[place] = None
            if change.kind == "DELETED" or item["status"]["phase"] in ("Succeeded", "Failed"):
                self._assigned.discard(metadata["uid"])
                self._jobs[(place[0], job)] = None

    def _run(self) -> None:
        while True:
            with self.store.changed:
                if self._stopped:
                    return
                try:
                    self._turn()
                except Refusal:
                    pass  # something was deleted meanwhile: the next turn sees it
                pause = 0.02 if self._containers or self._jobs else 0.1
                if self._timers:
                    pause = max(0.0, min(pause, self._timers[0][0] - time.monotonic()))
                if self._again or not self._jobs:
                    self.store.changed.wait(pause)

    def _turn(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, act = heapq.heappop(self._timers)
            try:
                act()
            except Refusal:
                continue
        jobs, self._jobs = self._jobs, {}
        for place in jobs:
            if now < self._again.get(place, 0.0):
                self._jobs[place] = None  # a large job is looked at a few times a second, whatever becomes of its pods
                continue
            self._sync_job(*place)
            pods = len(self._pods_of.get("/".join(place), ()))
            if pods > 100:
                self._again[place] = time.monotonic() + pods / 20_000
        self._schedule()
        for place, container in list(self._containers.items()):
            status = container.look()
            if status is not None:
                self._ended(place, container, status)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), act))

    # -- jobs -------------------------------------------------------------------------------------------------------

    def _sync_job(self, namespace: str, name: str) -> None:
        try:
            job = self.store.get("jobs", namespace, name)
        except Refusal:
            return
        spec, uid = job["spec"], job["metadata"]["uid"]
        if any(c["type"] in ("Complete", "Failed") for c in (job.get("status") or {}).get("conditions") or ()):
            return
        pods = {
            pod_name: pod
            for pod_name, pod in self._pods_of.get(f"{namespace}/{name}", {}).items()
            if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())
        }
        if "podFailurePolicy" in spec:
            self.crons.sync(job, pods)
            return
        for pod in pods.values():
            if pod["status"]["phase"] in ("Succeeded", "Failed"):
                self._count(pod, failed=pod["status"]["phase"] == "Failed")
        succeeded, failed = self._successes.setdefault(uid, set()), self._failures.setdefault(uid, {})
        completions = spec.get("completions", 1)
        active = {
            pod_name: pod
            for pod_name, pod in pods.items()
            if pod["status"]["phase"] not in ("Succeeded", "Failed") and not pod["metadata"].get("deletionTimestamp")
        }
        per_index = "backoffLimitPerIndex" in spec
        conditions = []
        if failed and not per_index and len(failed) > spec.get("backoffLimit", 6):
            conditions = [("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")]
            for pod in list(active.values()):
                self.delete_pod(namespace, pod["metadata"]["name"])
            active = {}
        elif len(succeeded) >= completions:
            conditions = [("Complete", "CompletionsReached", "Reached expected number of succeeded pods")]
        elif len(succeeded | failed.keys()) >= completions:
            conditions = [("Failed", "FailedIndexes", "Job has failed indexes")]
        else:
            self._create_pods(job, succeeded | failed.keys() | {index_of(pod) for pod in active.values()}, len(active))
        self._job_status(namespace, name, succeeded, failed, active, conditions)

    def _create_pods(self, job: dict[str, Any], taken: set[int], active: int) -> None:
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        if self.knobs.creating:
            self._event(job, "FailedCreate", f'Error creating: pods "{name}-" is forbidden: {self.knobs.creating}')
            self._after(0.3, lambda: self._jobs.setdefault((namespace, name)))
            return
        for index in range(job["spec"].get("completions", 1)):
            if index not in taken and active < job["spec"].get("parallelism", 1):
                active += 1
                self.store.create("pods", new_pod(job, index))

    def _job_status(
        self, namespace: str, name: str, succeeded: set[int], failed: dict[int, bool],
        active: dict[str, Any], conditions: list[tuple[str, str, str]],
    ) -> None:  # fmt: skip
        def change(job: dict[str, Any]) -> None:
            status = job.setdefault("status", {})
            ready = sum(pod["status"]["phase"] == "Running" for pod in active.values())
            status.setdefault("startTime", stamp())
            status.update(active=len(active), ready=ready, succeeded=len(succeeded), failed=len(failed))
            if job["spec"].get("completionMode") == "Indexed":
                status["completedIndexes"] = ranges(succeeded)
                if "backoffLimitPerIndex" in job["spec"]:
                    status["failedIndexes"] = ranges(set(failed))
            for kind, reason, message in conditions:
                status.setdefault("conditions", []).append(
                    {
                        "type": kind,
                        "status": "True",
                        "reason": reason,
                        "message": message,
                        "lastTransitionTime": stamp(),
                    }
                )

        job = self.store.get("jobs", namespace, name)
        before = dict(job.get("status") or {})
        trial = {**job, "status": dict(before)}
        change(trial)
        if trial["status"] != before:
            self.store.update("jobs", namespace, name, change)
            self._jobs.pop((namespace, name), None)

    def _count(self, pod: dict[str, Any], *, failed: bool) -> None:
        owners = pod["metadata"].get("ownerReferences")
        if not owners:  # somebody made it that looks after it alone
            return
        owner = owners[0]["uid"]
        index = index_of(pod)
        try:
            job = self.store.get("jobs", pod["metadata"]["namespace"], pod["metadata"]["labels"].get(JOB_NAME, ""))
        except Refusal:
            job = {"spec": {}}
        if "podFailurePolicy" in job["spec"]:
            self.crons.ended(job, pod, failed=failed)
            self._jobs[(job["metadata"]["namespace"], job["metadata"]["name"])] = None
            return
        if failed:
            self._failures.setdefault(owner, {}).setdefault(index, True)
        else:
            self._successes.setdefault(owner, set()).add(index)

    def _sync_jobset(self, namespace: str, name: str) -> None:
        jobset = self.store.get("jobsets", namespace, name)
        owner = {"apiVersion": jobset["apiVersion"], "kind": "JobSet", "name": name, "uid": jobset["metadata"]["uid"]}
        for part in jobset["spec"]["replicatedJobs"]:
            child = f"{name}-{part['name']}-0"
            try:
                job = self.store.get("jobs", namespace, child)
            except Refusal:
                template = part["template"]
                template["spec"]["template"]["spec"]["subdomain"] = name
                metadata = {
                    **(template.get("metadata") or {}),
                    "name": child,
                    "namespace": namespace,
                    "ownerReferences": [owner],
                }
                self.store.create("jobs", {"metadata": metadata, "spec": template["spec"], "status": {}})
                service = {
                    "metadata": {"name": name, "namespace": namespace, "ownerReferences": [owner]},
                    "spec": {"clusterIP": "None"},
                }
                self.store.create("services", service)
                self._after(0.05, lambda: self._sync_jobset(namespace, name))
                return
            kinds = {"Complete": "Completed", "Failed": "Failed"}
            for condition in (job.get("status") or {}).get("conditions") or ():
                ended = {**condition, "type": kinds[condition["type"]]}
                if not (jobset.get("status") or {}).get("conditions"):
                    self.store.update(
                        "jobsets",
                        namespace,
                        name,
                        lambda item, ended=ended: item.update(status={"conditions": [ended]}),
                    )
                return
            self._after(0.05, lambda: self._sync_jobset(namespace, name))

    # -- pods -------------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        while self._waiting:
            place = next(iter(self._waiting))
            if self.knobs.slots is not None and len(self._assigned) >= self.knobs.slots:
                self._unschedulable(place)
                return
            del self._waiting[place]
            try:
                pod = self.store.get("pods", *place)
            except Refusal:
                continue
            if not pod["metadata"].get("deletionTimestamp"):
                self._assigned.add(pod["metadata"]["uid"])
                self._bind(*place)

    def _unschedulable(self, place: tuple[str, str]) -> None:
        message = "0/1 nodes are available: 1 Insufficient cpu."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        try:
            pod = self.store.get("pods", *place)
        except Refusal:
            del self._waiting[place]
            return
        if not pod["status"].get("conditions"):
            self._status(*place, lambda status: status.update(conditions=[condition]))

    def _bind(self, namespace: str, name: str) -> None:
        def change(pod: dict[str, Any]) -> None:
            pod["spec"]["nodeName"] = "node-1"
            pod["status"]["startTime"] = stamp()
            pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]

        self.store.update("pods", namespace, name, change)
        self._after(self.knobs.start_delay, lambda: self._start(namespace, name))

    def _start(self, namespace: str, name: str) -> None:
        pod = self.store.get("pods", namespace, name)
        if pod["metadata"].get("deletionTimestamp"):
            return
        container = pod["spec"]["containers"][0]
        image = container["image"]
        if not re.fullmatch(r"[a-zA-Z0-9][^\s]*", image):
            return self._wait(namespace, name, "InvalidImageName", f"couldn't parse image name {image!r}")
        if re.search(self.knobs.missing_images, image):
            message = f'Failed to pull image "{image}": not found'
            self._wait(namespace, name, "ErrImagePull", message)
            self._event(pod, "Failed", message)
            return self._after(
                0.2, lambda: self._wait(namespace, name, "ImagePullBackOff", f'Back-off pulling image "{image}"')
            )
        if re.search(self.knobs.slow_images, image):
            self._wait(namespace, name, "ErrImagePull", f'failed to pull image "{image}": i/o timeout')
            return self._after(0.3, lambda: self._start(namespace, name))
        secrets = {item["metadata"]["name"]: item for item in self.store.items("secrets", namespace)}
        try:
            variables = environment_of(container, secrets, pod)
        except KeyError as error:
            return self._wait(namespace, name, "CreateContainerConfigError", f'secret "{error.args[0]}" not found')
        if "FLOWKIT_MAIN_HOST" in variables:
            # A container would ask the cluster's DNS until there is an answer: this one begins when there is.
            if self.resolve(variables["FLOWKIT_MAIN_HOST"], namespace) is None:
                return self._after(0.05, lambda: self._start(namespace, name))
            variables["FLOWKIT_MAIN_HOST"] = "localhost"
        started = {"running": {"startedAt": stamp()}}
        self._status(
            namespace, name, lambda status: status.update(phase="Running", containerStatuses=[container_state(started)])
        )
        if not self.knobs.execute:
            return self._after(self.knobs.simulated, lambda: self._end_simulated(namespace, name))
        variables = {**self.knobs.node_environment, **variables, "HOSTNAME": pod["spec"].get("hostname", name)}
        index = pod["metadata"]["annotations"].get(INDEX)
        if index is not None:
            variables["JOB_COMPLETION_INDEX"] = index
        try:
            made = Container(
                [expanded(word, variables) for word in (*container.get("command", ()), *container.get("args", ()))],
                variables,
                memory_limit(container), pod["spec"].get("activeDeadlineSeconds"),
            )  # fmt: skip
        except OSError as error:
            ended = {"exitCode": 128, "reason": "StartError", "message": f"failed to start: {error}"}
            self._finish(namespace, name, "Failed", ended)
            return
        self._containers[(namespace, name)] = made

    def _end_simulated(self, namespace: str, name: str) -> None:
        pod = self.store.get("pods", namespace, name)
        if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp"):
            self._finish(namespace, name, "Succeeded", {"exitCode": 0, "reason": "Completed"})

    def _wait(self, namespace: str, name: str, reason: str, message: str) -> None:
        waiting = container_state({"waiting": {"reason": reason, "message": message}})
        self._status(namespace, name, lambda status: status.update(containerStatuses=[waiting]))

    def _ended(self, place: tuple[str, str], container: Container, code: int) -> None:
        del self._containers[place]
        self.logs["/".join(place)] = container.lines(None)
        ended: dict[str, Any] = {"exitCode": code, "reason": "Error" if code else "Completed"}
        if container.killed == "OOMKilled":
            ended.update(exitCode=137, reason="OOMKilled")
        if code:
            ended["message"] = container.lines(80).decode("utf-8", "replace")[-2048:]
        container.close()
        failed = bool(code) or container.killed in ("DeadlineExceeded", "Terminated", "Evicted", "OOMKilled")
        extra = {}
        if container.killed == "DeadlineExceeded":
            extra = {
                "reason": "DeadlineExceeded",
                "message": "Pod was active on the node longer than the specified deadline",
            }
        self._finish(*place, "Failed" if failed else "Succeeded", ended, extra)
        pod = self.store.get("pods", *place)
        if pod["metadata"].get("deletionTimestamp"):
            self._vanish(*place)

    def _finish(
        self, namespace: str, name: str, phase: str, ended: dict[str, Any], extra: dict[str, str] | None = None
    ) -> None:
        def change(status: dict[str, Any]) -> None:
            status.update(phase=phase, **(extra or {}))
            status["containerStatuses"] = [
                container_state({"terminated": {"finishedAt": stamp(), "startedAt": stamp(), **ended}})
            ]

        self._status(namespace, name, change)

    def _vanish(self, namespace: str, name: str) -> None:
        pod = self.store.get("pods", namespace, name)
        self._count(pod, failed=pod["status"]["phase"] != "Succeeded")
        self.store.remove("pods", namespace, name)

    def _status(self, namespace: str, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        self.store.update("pods", namespace, name, lambda pod: change(pod["status"]))

    def _event(self, about: dict[str, Any], reason: str, message: str) -> None:
        metadata = about["metadata"]
        involved = {
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        }
        self.store.create(
            "events",
            {
                "metadata": {"namespace": metadata["namespace"], "generateName": f"{metadata['name']}."},
                "involvedObject": involved,
                "reason": reason,
                "message": message,
                "type": "Warning",
                "lastTimestamp": stamp(),
            },
        )
