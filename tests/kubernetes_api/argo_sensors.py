"""Sensors and CronWorkflows of a loopback cluster: what starts workflows, as Argo does it.

An event is what somebody posts to the webhook. A sensor's filters are regular expressions over a field; its arguments
come by paths or by Go's templates, of which only the functions are known that flowkit uses.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from argo_expressions import Refused
from kube_server import KubernetesApi
from kube_store import Refusal

_WORDS = re.compile(
    r"\s*(?:(?P<text>\"[^\"]*\")|(?P<number>\d+)|(?P<path>\.Input(?:\.\w+)+)|(?P<name>\w+)|(?P<sign>[()|]))"
)
_DEPENDENCY = {"name", "eventSourceName", "eventName", "filters"}
_ENDED = ("Succeeded", "Failed", "Error")


class Sensors:
    """Starts the workflows of a cluster.

    Parameters
    ----------
    api : KubernetesApi
        The cluster.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._come: dict[str, dict[str, Any]] = {}

    def emit(self, name: str, payload: Mapping[str, Any]) -> list[str]:
        """Post an event; return the names of the workflows that it starts."""
        return self.post({"name": name, "payload": dict(payload)})

    def post(self, body: Mapping[str, Any]) -> list[str]:
        """Post any body to the webhook; return the names of the workflows that it starts."""
        event = {"header": {}, "body": dict(body)}
        started = []
        for sensor in self._api.store.items("sensors"):
            come = self._come.setdefault(sensor["metadata"]["uid"], {})
            dependencies = sensor["spec"]["dependencies"]
            for dependency in dependencies:
                if set(dependency) != _DEPENDENCY:
                    raise Refused(f"a dependency with {sorted(dependency)}")
                if all(_fits(each, event) for each in dependency["filters"]["data"]):
                    come[dependency["name"]] = event
            if len(come) == len(dependencies):
                started += [self._start(sensor, trigger["template"], come) for trigger in sensor["spec"]["triggers"]]
                come.clear()
        return started

    def _start(self, sensor: Mapping[str, Any], template: Mapping[str, Any], come: Mapping[str, Any]) -> str:
        if set(template) - {"name", "argoWorkflow", "conditionsReset"}:
            raise Refused(f"a trigger with {sorted(template)}")
        made = copy.deepcopy(template["argoWorkflow"]["source"]["resource"])
        for parameter in template["argoWorkflow"]["parameters"]:
            source = parameter["src"]
            event = come[source["dependencyName"]]
            text = _go(source["dataTemplate"], event) if "dataTemplate" in source else _at(event, source)
            place: Any = made
            *path, last = parameter["dest"].split(".")
            for part in path:
                place = place[int(part)] if part.isdigit() else place[part]
            place[last] = place[last] + text if parameter.get("operation") == "append" else text
        return self._create(sensor["metadata"]["namespace"], made)

    def fire(self, name: str, namespace: str = "default") -> str | None:
        """Start what a CronWorkflow starts, as its policy allows; return the workflow's name, None where it may not."""
        cron = self._api.store.get("cronworkflows", namespace, name)
        spec = cron["spec"]
        labels = spec["workflowMetadata"]["labels"]
        chosen = ",".join(f"{key}={value}" for key, value in labels.items())
        running = [
            item for item in self._api.store.items("workflows", namespace, chosen)
            if (item.get("status") or {}).get("phase") not in _ENDED
        ]  # fmt: skip
        if running and spec["concurrencyPolicy"] == "Forbid":
            return None
        if running and spec["concurrencyPolicy"] == "Replace":
            for item in running:
                self._api.store.update(
                    "workflows", namespace, item["metadata"]["name"],
                    lambda workflow: workflow["spec"].update(shutdown="Stop"),
                )  # fmt: skip
        metadata = {"generateName": f"{name}-", "labels": labels}
        document = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata}
        return self._create(namespace, {**document, "spec": spec["workflowSpec"]})

    def _create(self, namespace: str, document: dict[str, Any]) -> str:
        try:
            made = self._api._create("workflows", namespace, document, {})
        except Refusal as refusal:
            raise Refused(refusal.message) from None
        return str(made["metadata"]["name"])


def _fits(given: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    if set(given) != {"path", "type", "value"} or given["type"] != "string":
        raise Refused(f"a filter with {sorted(given)}")
    found: Any = event
    for part in given["path"].split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return any(re.search(value, found) for value in given["value"]) if isinstance(found, str) else False


def _at(event: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """Return what a path leads to: a text as it is, anything else as JSON."""
    found: Any = event
    for part in re.split(r"(?<!\\)\.", source["dataKey"]):
        part = re.sub(r"\\(.)", r"\1", part)
        if not isinstance(found, Mapping) or part not in found:
            if "value" in source:
                return str(source["value"])
            raise Refused(f"the event has no {source['dataKey']}")
        found = found[part]
    return found if isinstance(found, str) else json.dumps(found)


# -- templates of Go ---------------------------------------------------------------------------------------------------


def _go(template: str, event: Mapping[str, Any]) -> str:
    return re.sub(r"\{\{(.*?)\}\}", lambda found: _text(_Pipeline(found[1], event).whole()), template)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Pipeline:
    def __init__(self, source: str, event: Mapping[str, Any]) -> None:
        self.words: list[tuple[str, str]] = []
        at = 0
        while source[at:].strip():
            found = _WORDS.match(source, at)
            if found is None:
                raise Refused(f"the template {source!r}")
            self.words.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        self.event = event

    def whole(self) -> Any:
        value = self.command([])
        while self.words and self.words[0][1] == "|":
            self.words.pop(0)
            value = self.command([value])
        return value

    def command(self, piped: list[Any]) -> Any:
        kind, word = self.words.pop(0)
        if kind != "name":
            return self.value(kind, word)
        given = []
        while self.words and self.words[0][1] not in ("|", ")"):
            given.append(self.value(*self.words.pop(0)))
        given += piped
        if word == "list":
            return given
        if word == "toJson":
            return json.dumps(given[0])
        if word == "toString":
            return _text(given[0])
        if word == "default":
            return given[1] or given[0]
        raise Refused(f"the function {word}")

    def value(self, kind: str, word: str) -> Any:
        if kind == "text":
            return word[1:-1]
        if kind == "number":
            return int(word)
        if kind == "path":
            found: Any = {"Input": self.event}
            for part in word[1:].split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            return found
        if word != "(":
            raise Refused(f"{word!r} in a template")
        value = self.whole()
        if self.words.pop(0)[1] != ")":
            raise Refused("a bracket is not closed")
        return value
