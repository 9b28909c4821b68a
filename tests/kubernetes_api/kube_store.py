"""The objects of a loopback cluster: versions, watches from a version on, pages, selectors."""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

KINDS = {
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "secrets": ("v1", "Secret"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "namespaces": ("v1", "Namespace"),
    "events": ("v1", "Event"),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim"),
    "jobs": ("batch/v1", "Job"),
    "cronjobs": ("batch/v1", "CronJob"),
    "workflows": ("argoproj.io/v1alpha1", "Workflow"),
    "workflowtemplates": ("argoproj.io/v1alpha1", "WorkflowTemplate"),
    "cronworkflows": ("argoproj.io/v1alpha1", "CronWorkflow"),
    "sensors": ("argoproj.io/v1alpha1", "Sensor"),
    "jobsets": ("jobset.x-k8s.io/v1alpha2", "JobSet"),
}


class Refusal(Exception):
    """An error that the API answers."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> dict[str, Any]:
        """The object that carries it."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


class Change:
    """One change of one object."""

    __slots__ = ("before", "item", "kind", "resource", "text", "version")

    def __init__(self, version: int, resource: str, kind: str, item: Any, before: Any, text: bytes) -> None:
        self.version, self.resource, self.kind = version, resource, kind
        self.item, self.before, self.text = item, before, text


class Store:
    """Every object by resource, namespace and name. All methods may be called by any thread.

    Objects that are given out are never changed again: `update` puts a changed copy into their place.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 1000
        self.oldest = 1000
        self.listeners: list[Callable[[Change], None]] = []
        self._items: dict[str, dict[tuple[str, str], dict[str, Any]]] = {kind: {} for kind in KINDS}
        self._texts: dict[str, bytes] = {}
        self._log: deque[Change] = deque(maxlen=200_000)
        self._pages: dict[str, tuple[float, list[bytes], int]] = {}

    def create(self, resource: str, item: dict[str, Any]) -> dict[str, Any]:
        """Add an object; its name may come from ``generateName``."""
        with self.changed:
            item = copy.deepcopy(item)
            metadata = item["metadata"]
            if "name" not in metadata:
                metadata["name"] = f"{metadata['generateName']}{uuid.uuid4().hex[:5]}"
            key = (metadata.get("namespace", ""), metadata["name"])
            if key in self._items[resource]:
                raise Refusal(409, "AlreadyExists", f'{resource} "{key[1]}" already exists')
            api, kind = KINDS[resource]
            metadata.update(uid=str(uuid.uuid4()), creationTimestamp=stamp())
            item.update(apiVersion=api, kind=kind)
            self._put(resource, key, item, "ADDED")
            return item

    def get(self, resource: str, namespace: str, name: str) -> dict[str, Any]:
        """Return an object."""
        with self.changed:
            found = self._items[resource].get((namespace, name))
            if found is None:
                raise Refusal(404, "NotFound", f'{resource} "{name}" not found')
            return found

    def update(
        self, resource: str, namespace: str, name: str, change: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Change an object by a function that gets a copy of it."""
        with self.changed:
            item = copy.deepcopy(self.get(resource, namespace, name))
            change(item)
            self._put(resource, (namespace, name), item, "MODIFIED")
            return item

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Remove an object."""
        with self.changed:
            item = copy.deepcopy(self.get(resource, namespace, name))
            self._put(resource, (namespace, name), item, "DELETED")

    def _put(self, resource: str, key: tuple[str, str], item: dict[str, Any], kind: str) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        before = self._items[resource].get(key)
        text = json.dumps(item, separators=(",", ":")).encode()
        if kind == "DELETED":
            del self._items[resource][key]
        else:
            self._items[resource][key] = item
        uid = item["metadata"]["uid"]
        self._texts.pop(uid, None)
        if kind != "DELETED":
            self._texts[uid] = text
        change = Change(self.version, resource, kind, item, before, text)
        self._log.append(change)
        for listener in self.listeners:
            listener(change)
        self.changed.notify_all()

    def items(
        self, resource: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> list[dict[str, Any]]:
        """Return the objects that selectors choose, in the order of their names."""
        with self.changed:
            chosen = [
                item
                for (place, _), item in self._items[resource].items()
                if namespace in (None, place) and matches(item, labels, fields)
            ]
        return sorted(chosen, key=lambda item: (item["metadata"].get("namespace", ""), item["metadata"]["name"]))

    def page(
        self, resource: str, namespace: str | None, labels: str, fields: str, limit: int, token: str
    ) -> tuple[list[bytes], int, str, int]:
        """Return a page of objects as JSON, the version of the list, the token of the next page, how many are left."""
        with self.changed:
            if token:
                made, texts, version = self._pages.pop(token, (0.0, [], 0))
                if not texts or version < self.oldest or time.time() - made > 300:
                    raise Refusal(410, "Expired", "The provided continue parameter is too old")
            else:
                chosen = self.items(resource, namespace, labels, fields)
                texts, version = [self._texts[item["metadata"]["uid"]] for item in chosen], self.version
            if not limit or len(texts) <= limit:
                return texts, version, "", 0
            following = uuid.uuid4().hex
            self._pages[following] = (time.time(), texts[limit:], version)
            return texts[:limit], version, following, len(texts) - limit

    def compact(self) -> None:
        """Forget the past: watches and pages from before are too old."""
        with self.changed:
            self.oldest = self.version + 2
            self.version += 2
            self.changed.notify_all()

    def check_version(self, version: int) -> None:
        """Refuse a version that is too old to watch from."""
        if version + 1 < self.oldest:
            raise Refusal(410, "Expired", f"too old resource version: {version} ({self.oldest})")

    def follow(
        self, resource: str, namespace: str | None, labels: str, fields: str, version: int, until: float,
        stopped: Callable[[], bool], bookmark_every: float,
    ) -> Iterator[bytes]:  # fmt: skip
        """Yield the lines of a watch from a version on, until a time."""
        bookmark = time.monotonic() + bookmark_every
        while True:
            with self.changed:
                if version + 1 < self.oldest:
                    yield _event(
                        "ERROR", json.dumps(Refusal(410, "Expired", "too old resource version").status()).encode()
                    )
                    return
                news = list(self._after(version))
                if not news:
                    left = min(until, bookmark) - time.monotonic()
                    if left > 0 and not stopped():
                        self.changed.wait(min(left, 0.2))
                    news = list(self._after(version))
            for change in news:
                version = change.version
                line = _line(change, resource, namespace, labels, fields)
                if line is not None:
                    yield line
            now = time.monotonic()
            if now >= bookmark:
                bookmark = now + bookmark_every
                api, kind = KINDS[resource]
                mark = {"kind": kind, "apiVersion": api, "metadata": {"resourceVersion": str(version)}}
                yield _event("BOOKMARK", json.dumps(mark).encode())
            if stopped() or now >= until:
                return

    def _after(self, version: int) -> list[Change]:
        found: list[Change] = []
        for change in reversed(self._log):
            if change.version <= version:
                break
            found.append(change)
        return found[::-1]


def _line(change: Change, resource: str, namespace: str | None, labels: str, fields: str) -> bytes | None:
    if change.resource != resource or namespace not in (None, change.item["metadata"].get("namespace", "")):
        return None
    now = matches(change.item, labels, fields)
    before = change.before is not None and matches(change.before, labels, fields)
    if change.kind == "DELETED":
        return _event("DELETED", change.text) if before else None
    if now:
        return _event("MODIFIED" if before else "ADDED", change.text)
    return _event("DELETED", change.text) if before else None


def _event(kind: str, text: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), text)


def matches(item: dict[str, Any], labels: str, fields: str) -> bool:
    """Whether selectors choose an object."""
    return _labels_match(item["metadata"].get("labels") or {}, labels) and all(
        _field_matches(item, part) for part in fields.split(",") if part
    )


def _field_matches(item: dict[str, Any], part: str) -> bool:
    negative = "!=" in part
    path, _, wanted = part.partition("!=" if negative else "=")
    known = {"metadata.name", "metadata.namespace", "status.phase", "spec.nodeName", "reason", "type",
             "involvedObject.name", "involvedObject.kind", "involvedObject.uid"}  # fmt: skip
    if path not in known:
        raise Refusal(400, "BadRequest", f"field label not supported: {path}")
    value: Any = item
    for name in path.split("."):
        value = (value or {}).get(name)
    return ((value or "") == wanted.lstrip("=")) != negative


def _labels_match(labels: dict[str, str], selector: str) -> bool:
    for part in _parts(selector):
        negative = False
        if " in (" in part or " notin (" in part:
            key, _, rest = part.partition(" ")
            word, _, values = rest.partition("(")
            inside = labels.get(key) in [value.strip() for value in values.rstrip(")").split(",")]
            if inside == (word.strip() == "notin"):
                return False
            continue
        if "!=" in part:
            key, _, value = part.partition("!=")
            negative = True
        elif "=" in part:
            key, _, value = part.replace("==", "=").partition("=")
        else:
            if (part.lstrip("!") in labels) == part.startswith("!"):
                return False
            continue
        if (labels.get(key) == value) == negative:
            return False
    return True


def _parts(selector: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, char in enumerate(selector):
        depth += (char == "(") - (char == ")")
        if char == "," and not depth:
            parts.append(selector[start:position])
            start = position + 1
    return [part.strip() for part in [*parts, selector[start:]] if part.strip()]


def stamp(when: float | None = None) -> str:
    """Return a time as the API writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
