"""A Kubernetes API on a free port of 127.0.0.1, strict about what it is sent, with a side door for tests.

Batch jobs, pods, logs, events, services, secrets, accounts, claims, JobSets; watches, pages, selectors, patches,
deletions. Jobs are carried out by `kube_controller`. What tests do to it goes through attributes and methods, or from
another process through ``POST /_test/<method>`` with the arguments as JSON.

Run by itself (``python kube_server.py``) it prints its address and goes on until its standard input is closed.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from kube_controller import Controller
from kube_store import KINDS, Refusal, Store
from kube_strict import object_problems

_CORE = re.compile(
    r"/api/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log|status))?"
)
_GROUP = re.compile(
    r"/apis/(?P<group>[^/]+)/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?"
)
ARGO = ("workflows", "cronworkflows", "sensors", "workflowtemplates")
_DOOR = {
    "fire",
    "kill",
    "evict",
    "lose",
    "shut_down",
    "pressure",
    "set",
    "fault",
    "compact",
    "pods",
    "count",
    "reset",
    "heal",
    "put",
}


class KubernetesApi:
    """A cluster of one process.

    Attributes
    ----------
    store, controller
        Its objects, and what acts on them.
    requests : Counter of str
        How often each kind of call came: ``POST jobs``, ``WATCH pods``.
    token : str or None
        The only bearer token that is accepted.
    denied : set of str
        What is forbidden: ``create jobs``.
    denied_to : dict
        The same, by service account (``system:serviceaccount:NAMESPACE:NAME``), for those that are asked about.
    jobsets : bool
        Whether it knows JobSets.
    unknown : set of str
        Other resources that it does not know: those of Argo, unless somebody installs it.
    version : tuple of str
        What it says it is.
    """

    def __init__(self, port: int = 0) -> None:
        self.store = Store()
        self.controller = Controller(self.store)
        self.requests: Counter[str] = Counter()
        self.token: str | None = None
        self.denied: set[str] = set()
        self.denied_to: dict[str, set[str]] = {}
        self.jobsets = False
        self.unknown: set[str] = set(ARGO)
        self.version = ("1", "31")
        self.bookmark_every = 60.0
        self.longest_watch = 3600.0
        self.stopped = False
        self._faults: list[dict[str, Any]] = []
        api = self

        class Handler(_Handler):
            cluster = api

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is no error."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        for name in ("default", "kube-system"):
            self.put("namespaces", {"metadata": {"name": name}})
        self.put("serviceaccounts", {"metadata": {"name": "default", "namespace": "default"}})

    def close(self) -> None:
        """Stop everything, and kill every container."""
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()
        self.controller.close()
        self._thread.join(5)

    def kubeconfig(self, path: Path, *, namespace: str | None = None, token: str | None = "a-token") -> Path:
        """Write a kubeconfig that leads here, and return its path."""
        context = {"cluster": "loopback", "user": "tester", **({"namespace": namespace} if namespace else {})}
        user = {"token": token} if token else {}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "loopback",
                    "clusters": [{"name": "loopback", "cluster": {"server": self.url}}],
                    "users": [{"name": "tester", "user": user}],
                    "contexts": [{"name": "loopback", "context": context}],
                }
            )
        )
        return path

    # -- the side door ----------------------------------------------------------------------------------------------

    def put(self, resource: str, item: dict[str, Any]) -> dict[str, Any]:
        """Add an object (a namespace, a secret, an account)."""
        return self.store.create(resource, item)

    def set(self, **knobs: Any) -> None:
        """Change knobs of the controller (`kube_controller.Knobs`), or attributes of this object."""
        for name, value in knobs.items():
            target = self.controller.knobs if hasattr(self.controller.knobs, name) else self
            setattr(target, name, value)
        with self.store.changed:
            self.store.changed.notify_all()

    def fault(self, match: str, *, status: int = 0, times: int = 1, after: bool = False, delay: float = 0.0) -> None:
        """Answer calls wrongly.

        Parameters
        ----------
        match : str
            Which: a regular expression over ``POST jobs`` and the path.
        status : int
            The answer; 0 hangs up without one.
        times : int
            How often.
        after : bool
            The call is carried out first.
        delay : float
            Seconds before anything happens; with status 1 that is all.
        """
        self._faults.append({"match": match, "status": status, "times": times, "after": after, "delay": delay})

    def heal(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def compact(self) -> None:
        """Forget the past, so that every watch is too old."""
        self.store.compact()

    def pods(self, namespace: str = "default", labels: str = "") -> list[dict[str, Any]]:
        """Return pods."""
        return self.store.items("pods", namespace, labels)

    def words(self, pod: dict[str, Any]) -> bytes:
        """Return what the container of a pod has written; nothing where it has not begun."""
        try:
            return self.controller.log(pod["metadata"]["namespace"], pod["metadata"]["name"], None)
        except Refusal:
            return b""

    def count(self) -> dict[str, int]:
        """Return how often each kind of call came."""
        return dict(self.requests)

    def reset(self) -> None:
        """Remove every job, pod, event and fault, and put the knobs back."""
        with self.store.changed:
            for resource in (*ARGO, "cronjobs", "jobsets", "jobs", "services", "pods", "events", "secrets"):
                for item in self.store.items(resource):
                    place = item["metadata"]["namespace"], item["metadata"]["name"]
                    if resource == "pods":
                        container = self.controller._containers.pop(place, None)
                        if container is not None:
                            container.close()
                    try:
                        self.store.remove(resource, *place)
                    except Refusal:
                        continue
            for name, value in vars(type(self.controller.knobs)()).items():
                setattr(self.controller.knobs, name, value)
            self._faults.clear()
            self.requests.clear()
            self.denied_to, self.unknown = {}, set(ARGO)
            self.denied, self.token, self.jobsets, self.version = set(), None, False, ("1", "31")
            self.bookmark_every, self.longest_watch = 60.0, 3600.0

    def evict(self, namespace: str, name: str, **options: str) -> None:
        """See `Controller.evict`."""
        self.controller.evict(namespace, name, **options)

    def fire(self, namespace: str, name: str, **options: Any) -> str | None:
        """See `kube_cron.CronJobs.fire`."""
        return self.controller.crons.fire(namespace, name, **options)

    def kill(self, namespace: str, name: str) -> None:
        """See `Controller.kill`."""
        self.controller.kill(namespace, name)

    def lose(self, namespace: str, name: str) -> None:
        """See `Controller.lose`."""
        self.controller.lose(namespace, name)

    def shut_down(self, namespace: str, name: str) -> None:
        """See `Controller.shut_down`."""
        self.controller.shut_down(namespace, name)

    def pressure(self, namespace: str, name: str, message: str) -> None:
        """See `Controller.pressure`."""
        self.controller.pressure(namespace, name, message)

    def resolve(self, host: str, namespace: str = "default") -> dict[str, Any] | None:
        """See `Controller.resolve`."""
        return self.controller.resolve(host, namespace)

    def knock(self, method: str, arguments: dict[str, Any]) -> Any:
        """Carry out what came through the side door."""
        if method not in _DOOR:
            raise Refusal(404, "NotFound", f"no such door: {method}")
        return getattr(self, method)(**arguments)

    def take_fault(self, call: str) -> dict[str, Any] | None:
        """Return the fault that is due for a call."""
        for fault in self._faults:
            if fault["times"] > 0 and re.search(fault["match"], call):
                fault["times"] -= 1
                return fault
        return None

    # -- calls ------------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """Carry out a call on objects, and return what is answered: an object, or bytes."""
        if path.rstrip("/") == "/version":
            return {"major": self.version[0], "minor": self.version[1], "gitVersion": "v{}.{}.0".format(*self.version)}
        found = _CORE.fullmatch(path) or _GROUP.fullmatch(path)
        if found is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        place = found.groupdict()
        namespace, resource, name = place.get("namespace"), place["resource"], place.get("name")
        if resource in ("selfsubjectaccessreviews", "localsubjectaccessreviews") and method == "POST":
            asked = body["spec"]["resourceAttributes"]
            words = f"{asked['verb']} {asked['resource']}"
            denied = self.denied_to.get(body["spec"].get("user", ""), set()) if "user" in body["spec"] else self.denied
            allowed = words not in denied
            return {**body, "status": {"allowed": allowed}}
        if resource not in KINDS or resource in self.unknown or (resource == "jobsets" and not self.jobsets):
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        if resource == "namespaces" and namespace is None:
            namespace = ""
        elif namespace is not None and resource != "namespaces":
            self._check_namespace(method, namespace)
        self._check_permission(method, resource, name, query)
        if method == "POST":
            return self._create(resource, namespace or "", body, query)
        if name is None:
            return self._collection(method, resource, namespace, query)
        if place.get("sub") == "log":
            self.store.get(resource, namespace or "", name)
            lines = query.get("tailLines")
            return self.controller.log(namespace or "", name, int(lines) if lines else None)
        if method == "GET":
            return self.store.get(resource, namespace or "", name)
        if method == "PUT":
            return self._replace(resource, namespace or "", name, body, query)
        if method == "PATCH":
            if resource == "pods":  # how they are doing is a resource of its own
                body = {key: value for key, value in body.items() if key != "status"}
            return self.store.update(resource, namespace or "", name, lambda item: _merge(item, body))
        return self._delete(resource, namespace or "", name, query)

    def _check_namespace(self, method: str, namespace: str) -> None:
        if method == "POST":
            try:
                self.store.get("namespaces", "", namespace)
            except Refusal:
                raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found') from None

    def _check_permission(self, method: str, resource: str, name: str | None, query: dict[str, str]) -> None:
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "PUT": "update"}.get(method)
        if method == "DELETE":
            verb = "delete" if name else "deletecollection"
        if query.get("watch") == "true":
            verb = "watch"
        if f"{verb} {resource}" in self.denied:
            message = f'{resource} is forbidden: User "tester" cannot {verb} resource "{resource}"'
            raise Refusal(403, "Forbidden", message)

    def _create(self, resource: str, namespace: str, body: Any, query: dict[str, str]) -> dict[str, Any]:
        api, kind = KINDS[resource]
        if not isinstance(body, dict) or (body.get("apiVersion"), body.get("kind")) != (api, kind):
            raise Refusal(400, "BadRequest", f"the object must be a {kind} of {api}")
        if body["metadata"].get("namespace", namespace) != namespace:
            raise Refusal(400, "BadRequest", "the namespace of the object does not match the namespace of the request")
        problems = object_problems(resource, body)
        if any("unknown field" in problem for problem in problems):
            raise Refusal(400, "BadRequest", f"strict decoding error: {', '.join(problems)}")
        if problems:
            raise Refusal(422, "Invalid", f'{kind} "{body["metadata"].get("name")}" is invalid: {", ".join(problems)}')
        metadata = {**body["metadata"], "namespace": namespace}
        status = {"phase": "Pending"} if resource == "pods" else {}
        made = (
            {**body, "metadata": metadata, "status": status}
            if resource != "secrets"
            else {**body, "metadata": metadata}
        )
        return self.store.create(resource, made)

    def _replace(self, resource: str, namespace: str, name: str, body: Any, query: dict[str, str]) -> dict[str, Any]:
        problems = object_problems(resource, body)
        if problems:
            raise Refusal(422, "Invalid", f'{resource} "{name}" is invalid: {", ".join(problems)}')

        def change(item: dict[str, Any]) -> None:
            kept = {key: item["metadata"][key] for key in ("uid", "creationTimestamp", "namespace", "name")}
            version = body["metadata"].get("resourceVersion")
            if version not in (None, item["metadata"]["resourceVersion"]):
                raise Refusal(409, "Conflict", "the object has been modified")
            item.update({**body, "metadata": {**body["metadata"], **kept}, "status": item.get("status") or {}})

        return self.store.update(resource, namespace, name, change)

    def _collection(self, method: str, resource: str, namespace: str | None, query: dict[str, str]) -> Any:
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        if method == "DELETE":
            removed = self.store.items(resource, namespace, labels, fields)
            for item in removed:
                self._delete(resource, item["metadata"]["namespace"], item["metadata"]["name"], query)
            return {"kind": f"{KINDS[resource][1]}List", "apiVersion": "v1", "metadata": {}, "items": []}
        limit, token = int(query.get("limit", "0")), query.get("continue", "")
        texts, version, following, left = self.store.page(resource, namespace, labels, fields, limit, token)
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if following:
            metadata.update({"continue": following, "remainingItemCount": left})
        api, kind = KINDS[resource]
        head = json.dumps({"kind": f"{kind}List", "apiVersion": api, "metadata": metadata}).encode()
        return head[:-1] + b',"items":[' + b",".join(texts) + b"]}"

    def _delete(self, resource: str, namespace: str, name: str, query: dict[str, str]) -> dict[str, Any]:
        item = self.store.get(resource, namespace, name)
        if resource == "pods":
            self.controller.delete_pod(namespace, name)
        else:
            with self.store.changed:
                self.store.remove(resource, namespace, name)
                if query.get("propagationPolicy", "Background" if resource == "jobsets" else "Orphan") != "Orphan":
                    self.controller.delete_owned(item["metadata"]["uid"])
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}


class _Handler(BaseHTTPRequestHandler):
    cluster: KubernetesApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _any(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null") if length else None
        if parts.path.startswith("/_test/"):
            answered = self._caught(lambda: self.cluster.knock(parts.path[7:], body or {}))
            self._send(*answered)
            return
        watch = query.get("watch") == "true"
        resource = next((part for part in reversed(parts.path.split("/")) if part in KINDS), parts.path)
        call = f"{'WATCH' if watch else self.command} {resource}"
        self.cluster.requests[call] += 1
        fault = self.cluster.take_fault(f"{call} {parts.path}")
        if fault is not None:
            time.sleep(fault["delay"])
            if fault["after"]:
                self._caught(lambda: self.cluster.answer(self.command, parts.path, query, body))
            if fault["status"] == 0:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if fault["status"] != 1:
                refusal = Refusal(fault["status"], _REASONS.get(fault["status"], "InternalError"), "as a test wants it")
                self._send(refusal.code, refusal.status())
                return
        token = self.cluster.token
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self._send(401, Refusal(401, "Unauthorized", "Unauthorized").status())
        elif watch:
            self._watch(parts.path, query)
        else:
            self._send(*self._caught(lambda: self.cluster.answer(self.command, parts.path, query, body)))

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _any

    def _caught(self, act: Callable[[], Any]) -> tuple[int, Any]:
        try:
            made = act()
        except Refusal as refusal:
            return refusal.code, refusal.status()
        except Exception as error:  # a mistake of the loopback API, told as a real one would
            return 500, Refusal(500, "InternalError", f"{type(error).__name__}: {error}").status()
        return 201 if self.command == "POST" and not self.path.startswith("/_test/") else 200, made

    def _send(self, code: int, made: Any) -> None:
        data = made if isinstance(made, bytes) else json.dumps(made).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if "/log" in self.path else "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def _watch(self, path: str, query: dict[str, str]) -> None:
        api = self.cluster
        found = _CORE.fullmatch(path) or _GROUP.fullmatch(path)
        assert found is not None
        place = found.groupdict()
        seconds = min(float(query.get("timeoutSeconds", "3600")), api.longest_watch)
        try:
            api._check_permission("GET", place["resource"], None, query)
            if "resourceVersion" not in query:
                raise Refusal(400, "BadRequest", "this API wants watches from a version on")
            version = int(query["resourceVersion"])
            api.store.check_version(version)
        except Refusal as refusal:
            self._send(refusal.code, refusal.status())
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        lines = api.store.follow(
            place["resource"], place.get("namespace"), query.get("labelSelector", ""),
            query.get("fieldSelector", ""), version,
            time.monotonic() + seconds, lambda: api.stopped, api.bookmark_every,
        )  # fmt: skip
        for line in lines:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")


_REASONS = {
    409: "AlreadyExists",
    410: "Expired",
    429: "TooManyRequests",
    403: "Forbidden",
    401: "Unauthorized",
    503: "ServiceUnavailable",
}


def _merge(item: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            item.pop(key, None)
        elif isinstance(value, dict) and isinstance(item.get(key), dict):
            _merge(item[key], value)
        else:
            item[key] = value


if __name__ == "__main__":
    made = KubernetesApi(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(made.url, flush=True)
    sys.stdin.read()
    made.close()
