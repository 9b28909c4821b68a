"""Objects of Argo Workflows and Argo Events in a cluster: reading, making, replacing, removing them.

Every change of something that is there goes by its version: whoever changed it meanwhile is not overwritten, it is read
again. Whether an object is flowkit's is told by the annotation with the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowkit.exceptions import Conflict
from flowkit.plugins.kubernetes.cluster import Cluster, Refused

GROUP, VERSION = "argoproj.io", "v1alpha1"
PLURALS = {
    "WorkflowTemplate": "workflowtemplates",
    "CronWorkflow": "cronworkflows",
    "Sensor": "sensors",
    "Workflow": "workflows",
}
_TRIES = 5


class ArgoClient:
    """The objects of one namespace.

    Parameters
    ----------
    cluster : Cluster
        The connection.
    namespace : str, optional
        Default: that of the settings, the context or the account.
    """

    def __init__(self, cluster: Cluster, namespace: str | None = None) -> None:
        self._cluster = cluster
        self._namespace = namespace

    @property
    def namespace(self) -> str:
        """Where objects are."""
        return self._namespace or self._cluster.namespace

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object; None where there is none, or the cluster does not know the kind."""
        try:
            found: dict[str, Any] = self._call("get", kind, name)
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return found

    def create(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object and return it as it is then."""
        made: dict[str, Any] = self._call("create", document["kind"], dict(document))
        return made

    def put(self, document: Mapping[str, Any], *, ours: Callable[[Mapping[str, Any]], bool]) -> bool:
        """Make an object, or put it into the place of the one that is there; return whether it is new.

        Raises
        ------
        Conflict
            If what is there is not `ours`.
        """
        kind, name = document["kind"], document["metadata"]["name"]
        for attempt in range(_TRIES):
            found = self.get(kind, name)
            try:
                if found is None:
                    self.create(document)
                    return True
                if not ours(found):
                    raise Conflict(
                        f"the {kind} '{name}' in the namespace {self.namespace} was not made by flowkit",
                        "give the deployment another name: --name",
                    )
                version = found["metadata"]["resourceVersion"]
                metadata = {**document["metadata"], "resourceVersion": version}
                self._call("replace", kind, name, {**document, "metadata": metadata})
                return False
            except Refused as error:
                if error.status != 409 or attempt == _TRIES - 1:
                    raise
        raise AssertionError  # the last attempt has raised

    def change(self, kind: str, name: str, change: Callable[[dict[str, Any]], None]) -> bool:
        """Change an object that is there; return whether it is."""
        for attempt in range(_TRIES):
            found = self.get(kind, name)
            if found is None:
                return False
            change(found)
            try:
                self._call("replace", kind, name, found)
                return True
            except Refused as error:
                if error.status == 404:
                    return False
                if error.status != 409 or attempt == _TRIES - 1:
                    raise
        raise AssertionError  # the last attempt has raised

    def delete(self, kind: str, name: str) -> bool:
        """Remove an object; return whether it was there."""
        try:
            self._call("delete", kind, name)
        except Refused as error:
            if error.status == 404:
                return False
            raise
        return True

    def all(self, kind: str, labels: str) -> Iterator[dict[str, Any]]:
        """Yield the objects that labels choose; none where the cluster does not know the kind."""
        place = (GROUP, VERSION, self.namespace, PLURALS[kind])
        try:
            for page in self._cluster.pages(
                "CustomObjects", "list_namespaced_custom_object", *place, label_selector=labels
            ):
                yield from page.get("items") or ()
        except Refused as error:
            if error.status != 404:
                raise

    def knows(self, kind: str) -> bool:
        """Whether the cluster has objects of a kind at all.

        Raises
        ------
        BackendError
            If it does not answer, or does not let us look.
        """
        place = (GROUP, VERSION, self.namespace, PLURALS[kind])
        try:
            self._cluster.call("CustomObjects", "list_namespaced_custom_object", *place, limit=1)
        except Refused as error:
            if error.status == 404:
                return False
            raise
        return True

    def _call(self, verb: str, kind: str, *args: Any) -> Any:
        place = (GROUP, VERSION, self.namespace, PLURALS[kind])
        return self._cluster.call("CustomObjects", f"{verb}_namespaced_custom_object", *place, *args)
