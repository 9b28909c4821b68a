"""Argo Workflows of a loopback cluster: a controller that carries workflows out, with pods that are processes.

`Argo` follows the workflows of a `KubernetesApi`. What a real one does beside that (the executor that reads the files
of outputs, the agent that waits for an object's condition) is done here too: a container's ``/tmp/flowkit`` is a folder
of its own.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

import yaml
from argo_expressions import Refused, replace
from argo_workflow import ERROR, FAILED, SUCCEEDED, Hands, Node, Operation
from kube_server import KubernetesApi
from kube_store import Change, Refusal, stamp

_WORKFLOW = "workflows.argoproj.io/workflow"
_NODE = "workflows.argoproj.io/node-name"
_PLURALS = {"Job": "jobs", "Service": "services"}


class Argo:
    """Carries out the workflows of a cluster until it is closed.

    Parameters
    ----------
    api : KubernetesApi
        The cluster.

    Attributes
    ----------
    operations : dict of (str, str) to Operation
        Every workflow that was seen, by namespace and name.
    mistakes : list of str
        What real Argo would have refused, or the interpreter does not know.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self.api = api
        self.operations: dict[tuple[str, str], Operation] = {}
        self.mistakes: list[str] = []
        self._folder = tempfile.mkdtemp(prefix="argo-outputs-")
        self._news = threading.Event()
        self._stopped = False
        api.store.listeners.append(self._heard)
        self._thread = threading.Thread(target=self._run, name="argo-controller", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; pods that run are the cluster's."""
        self._stopped = True
        self._news.set()
        self._thread.join(10)
        with self.api.store.changed:
            self.api.store.listeners.remove(self._heard)
        shutil.rmtree(self._folder, ignore_errors=True)

    def forget(self) -> None:
        """Forget every workflow."""
        with self.api.store.changed:
            self.operations.clear()
            self.mistakes.clear()

    def wait(self, name: str, namespace: str = "default", *, seconds: float = 120.0) -> str:
        """Wait until a workflow is over and return its phase."""
        deadline = time.monotonic() + seconds
        with self.api.store.changed:
            while True:
                workflow = self.api.store.get("workflows", namespace, name)
                phase = (workflow.get("status") or {}).get("phase")
                if phase in (SUCCEEDED, FAILED, ERROR):
                    return str(phase)
                if time.monotonic() > deadline:
                    raise AssertionError(f"{name} is {phase}: {self.tell(name, namespace)} {self.mistakes}")
                self.api.store.changed.wait(0.2)

    def tell(self, name: str, namespace: str = "default") -> dict[str, str]:
        """Return the phase and message of every node of a workflow."""
        operation = self.operations.get((namespace, name))
        nodes = operation.nodes.values() if operation else ()
        return {node.name: f"{node.phase} {node.message}".strip() for node in nodes}

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _heard(self, change: Change) -> None:
        if change.resource in ("workflows", "pods", "jobs"):
            self._news.set()

    def _run(self) -> None:
        while not self._stopped:
            self._news.wait(0.25)  # pauses and deadlines are due without any news
            self._news.clear()
            with self.api.store.changed:
                for workflow in self.api.store.items("workflows"):
                    if (workflow.get("status") or {}).get("phase") not in (SUCCEEDED, FAILED, ERROR):
                        self._operate(workflow)

    def _operate(self, workflow: dict[str, Any]) -> None:
        metadata = workflow["metadata"]
        place = metadata["namespace"], metadata["name"]
        try:
            operation = self.operations.get(place)
            if operation is None:
                operation = self.operations[place] = self._begin(workflow)
            operation.shutdown = workflow["spec"].get("shutdown")
            operation.see(metadata)
            operation.operate(suspended=bool(workflow["spec"].get("suspend")))
        except Refusal as refusal:
            self._mistake(place, refusal.message)
            return
        except Exception as error:  # also a mistake of the interpreter: whoever waits shall hear of it
            self._mistake(place, str(error) if isinstance(error, Refused) else traceback.format_exc())
            return
        before = (workflow.get("status") or {}).get("phase")
        if operation.phase != before:
            self._status(place, operation.phase, operation.message, ended=operation.over)

    def _mistake(self, place: tuple[str, str], words: str) -> None:
        self.mistakes.append(words)
        try:
            self._status(place, ERROR, words, ended=True)
        except Refusal:  # the workflow itself is gone
            self.operations.pop(place, None)

    def _begin(self, workflow: dict[str, Any]) -> Operation:
        metadata, own = workflow["metadata"], workflow["spec"]
        if set(own) - {"workflowTemplateRef", "arguments", "shutdown", "suspend"}:
            raise Refused(f"a workflow with {sorted(own)}: flowkit's are of a template")
        namespace, name = metadata["namespace"], metadata["name"]
        template = self.api.store.get("workflowtemplates", namespace, own["workflowTemplateRef"]["name"])
        spec = copy.deepcopy(template["spec"])
        given = {each["name"]: each["value"] for each in own.get("arguments", {}).get("parameters", [])}
        known = {each["name"]: each for each in spec.get("arguments", {}).get("parameters", [])}
        for each, value in given.items():
            known.setdefault(each, {"name": each})["value"] = value
        spec["arguments"] = {"parameters": list(known.values())}
        for kind, first in (("labels", {}), ("annotations", {"workflows.argoproj.io/pod-name-format": "v2"})):
            added = {**first, **(spec["workflowMetadata"].get(kind) or {})}
            self.api.store.update(
                "workflows", namespace, name,
                lambda item, kind=kind, added=added: item["metadata"].update(
                    {kind: {**added, **(item["metadata"].get(kind) or {})}}
                ),
            )  # fmt: skip
        seen = self.api.store.get("workflows", namespace, name)["metadata"]
        hands = _ClusterHands(self.api, self._folder, seen, spec)
        return Operation(name, metadata["uid"], namespace, spec, seen, hands)

    def _status(self, place: tuple[str, str], phase: str, message: str, *, ended: bool) -> None:
        def change(item: dict[str, Any]) -> None:
            status = item.setdefault("status", {})
            status.setdefault("startedAt", stamp())
            status.update(phase=phase, message=message)
            if ended:
                status["finishedAt"] = stamp()

        self.api.store.update("workflows", *place, change)


class _ClusterHands(Hands):
    """Pods and objects of one workflow."""

    def __init__(self, api: KubernetesApi, folder: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        self._api = api
        self._folder = tempfile.mkdtemp(dir=folder)
        self._metadata = metadata
        self._spec = spec
        self._pods: dict[str, str] = {}
        self._running: set[str] = set()
        self._objects: dict[str, tuple[str, str, Mapping[str, Any]]] = {}

    @property
    def _namespace(self) -> str:
        return str(self._metadata["namespace"])

    def active(self) -> int:
        return len(self._running)

    def start(self, node: Node, template: Mapping[str, Any], known: Mapping[str, str]) -> None:
        if node.kind == "Resource":
            self._create(node, replace(template, known, strict=True))
            return
        made = replace(template, known, strict=True)
        folder = tempfile.mkdtemp(dir=self._folder)
        container = copy.deepcopy(made["container"])
        for output in made.get("outputs", {}).get("parameters", []):
            self._own_folder(container, os.path.dirname(output["valueFrom"]["path"]), folder)
        labels = {**self._spec.get("podMetadata", {}).get("labels", {}), **made.get("metadata", {}).get("labels", {})}
        notes = {**self._spec.get("podMetadata", {}).get("annotations", {}), _NODE: node.name}
        name = f"{self._metadata['name']}-{template['name']}-{len(self._pods):04d}"[-63:].lstrip("-.")
        pod = {"restartPolicy": "Never", "containers": [{"name": "main", **container}]}
        for key in ("serviceAccountName", "nodeSelector", "tolerations", "volumes"):
            if key in made:
                pod[key] = made[key]
        if "activeDeadlineSeconds" in made:
            pod["activeDeadlineSeconds"] = int(made["activeDeadlineSeconds"])
        if self._spec.get("imagePullSecrets"):
            pod["imagePullSecrets"] = self._spec["imagePullSecrets"]
        item = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {**labels, _WORKFLOW: self._metadata["name"]},
                "annotations": {**notes, **made.get("metadata", {}).get("annotations", {})},
                "ownerReferences": [self._owner()],
            },
            "spec": pod,
        }
        self._check("pods", item)
        self._api.store.create("pods", {**item, "status": {"phase": "Pending"}})
        self._pods[node.name] = name
        self._running.add(node.name)
        node.inputs["folder"] = folder

    @staticmethod
    def _own_folder(container: dict[str, Any], wanted: str, folder: str) -> None:
        found = False
        for variable in container.get("env", []):
            if variable.get("value") == wanted:
                variable["value"] = folder
            found = found or variable.get("value") == folder
        if not found:
            raise Refused(f"no variable tells the container that its outputs go to {wanted}")

    def _check(self, resource: str, item: dict[str, Any]) -> None:
        from kube_strict import object_problems, pod_problems

        wrong = object_problems(resource, item) + (pod_problems(item["spec"]) if resource == "pods" else [])
        if wrong:
            raise Refused(f"the API server refuses {resource} {item['metadata'].get('name')}: {', '.join(wrong)}")

    def _owner(self) -> dict[str, Any]:
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": self._metadata["name"],
            "uid": self._metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def _create(self, node: Node, template: Mapping[str, Any]) -> None:
        resource = template["resource"]
        document = yaml.safe_load(resource["manifest"])
        if resource["action"] not in ("create", "apply"):
            raise Refused(f"the action {resource['action']}")
        plural = _PLURALS[document["kind"]]
        if resource.get("setOwnerReference"):
            document["metadata"]["ownerReferences"] = [self._owner()]
        document["metadata"]["namespace"] = self._namespace
        try:
            made = self._api._create(plural, self._namespace, document, {})
        except Refusal as refusal:
            node.phase, node.message, node.exit_code = FAILED, refusal.message, "64"
            return
        self._objects[node.name] = (plural, made["metadata"]["name"], resource)

    def look(self, node: Node, template: Mapping[str, Any]) -> None:
        if node.name in self._objects:
            self._look_at_object(node)
            return
        try:
            pod = self._api.store.get("pods", self._namespace, self._pods[node.name])
        except Refusal:
            node.phase, node.message = ERROR, "pod deleted"
            self._running.discard(node.name)
            return
        status = pod["status"]
        if status["phase"] not in (SUCCEEDED, FAILED):
            return
        self._running.discard(node.name)
        ended = (status.get("containerStatuses") or [{}])[0].get("state", {}).get("terminated", {})
        node.exit_code = str(ended["exitCode"]) if "exitCode" in ended else None
        node.phase = status["phase"]
        if node.phase == FAILED:
            node.message = status.get("message") or f"main: {ended.get('reason')} (exit code {node.exit_code})"
            return
        for output in template.get("outputs", {}).get("parameters", []):
            source = output["valueFrom"]
            path = os.path.join(node.inputs["folder"], os.path.basename(source["path"]))
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    node.outputs[output["name"]] = file.read().rstrip("\n")
            elif "default" in source:
                node.outputs[output["name"]] = source["default"]
            else:
                node.phase, node.message = ERROR, f"{source['path']} is not there"

    def _look_at_object(self, node: Node) -> None:
        plural, name, resource = self._objects[node.name]
        try:
            found = self._api.store.get(plural, self._namespace, name)
        except Refusal:
            node.phase, node.message, node.exit_code = FAILED, f"{plural} {name} is gone", "64"
            return
        if _holds(resource.get("failureCondition"), found):
            node.phase, node.message, node.exit_code = FAILED, f"{resource['failureCondition']} holds", "64"
        elif "successCondition" not in resource or _holds(resource["successCondition"], found):
            node.phase = SUCCEEDED

    def stop(self, node: Node) -> None:
        if node.name in self._objects:
            node.phase, node.message = FAILED, "workflow shutdown"
            plural, name, _ = self._objects[node.name]
            found = self._api.store.get(plural, self._namespace, name)
            self._api.store.remove(plural, self._namespace, name)
            self._api.controller.delete_owned(found["metadata"]["uid"])
            return
        self._api.controller.delete_pod(self._namespace, self._pods[node.name])


def _holds(condition: str | None, found: Mapping[str, Any]) -> bool:
    """Whether a condition on an object holds: ``status.succeeded == 3``."""
    if condition is None:
        return False
    path, sign, wanted = condition.split(" ")
    value: Any = found
    for part in path.split("."):
        value = (value or {}).get(part)
    if value is None:
        return False
    if sign not in ("==", ">") or not wanted.isdigit():
        raise Refused(f"the condition {condition!r}")
    return int(value) == int(wanted) if sign == "==" else int(value) > int(wanted)
