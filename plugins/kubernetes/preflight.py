"""Asking a cluster, before a run starts, whether its steps can run there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flowkit.decorators.contract import ExecutorRequest
from flowkit.exceptions import FlowkitError, Problem
from flowkit.plugins.kubernetes.cluster import Cluster, Refused
from flowkit.plugins.kubernetes.manifests import Defaults, namespace_of

OLDEST = (1, 29)
"""The first version of Kubernetes whose Indexed Jobs fail single rows (``backoffLimitPerIndex``)."""

_NEEDED = (
    ("batch", "jobs", None, ("create", "get", "list", "delete")),
    ("", "pods", None, ("list", "watch", "deletecollection")),
)
_GUIDE = "docs/kubernetes.md lists what is needed"


def preflight_problems(
    cluster: Cluster,
    requests: Mapping[str, ExecutorRequest],
    defaults: Callable[[], Defaults],
    root: str | None,
    *,
    needed: Iterable[tuple[str, str, str | None, tuple[str, ...]]] = _NEEDED,
) -> list[Problem]:
    """Return everything that is wrong.

    Parameters
    ----------
    cluster : Cluster
        Whom to ask.
    requests : mapping of str to ExecutorRequest
        By step.
    defaults : callable
        What the settings say; asks the configuration of the cluster.
    root : str or None
        The datastore's root.
    needed : iterable
        What we have to be allowed: groups, resources, subresources, verbs.
    """
    problems = []
    if root is not None and "://" not in root:
        problems.append(
            Problem(
                f"pods cannot reach the datastore {root} of this machine",
                hint="use one that they reach: --datastore s3 --datastore-root s3://bucket/prefix",
            )
        )
    try:
        problems += _version_problems(cluster)
        given = defaults()
        for namespace in sorted({namespace_of(request.resources, given) for request in requests.values()}):
            inside = {
                step: request for step, request in requests.items()
                if namespace_of(request.resources, given) == namespace
            }  # fmt: skip
            problems += _namespace_problems(cluster, namespace, inside, given, needed)
    except FlowkitError as error:
        problems.append(Problem(error.headline, hint=error.hint))
    return problems


def _version_problems(cluster: Cluster) -> list[Problem]:
    said = cluster.call("Version", "get_code")
    digits = ["".join(char for char in str(said.get(part) or "") if char.isdigit()) for part in ("major", "minor")]
    if not all(digits) or (int(digits[0]), int(digits[1])) >= OLDEST:
        return []
    headline = f"the cluster runs Kubernetes {'.'.join(digits)}, and {OLDEST[0]}.{OLDEST[1]} or later is needed"
    return [Problem(headline, hint="older ones end all rows of a job when one fails")]


def _namespace_problems(
    cluster: Cluster,
    namespace: str,
    requests: Mapping[str, ExecutorRequest],
    defaults: Defaults,
    needed: Iterable[tuple[str, str, str | None, tuple[str, ...]]],
) -> list[Problem]:
    if not _exists(cluster, "read_namespace", namespace):
        return [
            Problem(
                f"the cluster has no namespace '{namespace}'",
                hint="the attribute namespace or the setting kubernetes_namespace names one",
            )
        ]
    problems = permission_problems(cluster, namespace, needed, _GUIDE)
    for what, method, names in _mentioned(requests, defaults):
        for name, steps in sorted(names.items()):
            if not _exists(cluster, method, name, namespace):
                where = f"step{'s' if len(steps) > 1 else ''} {', '.join(sorted(steps))}"
                headline = f"the namespace {namespace} has no {what} '{name}' ({where})"
                problems.append(
                    Problem(headline, hint=f"kubectl get {what.replace(' ', '')}s -n {namespace} lists them")
                )
    return problems


def _mentioned(
    requests: Mapping[str, ExecutorRequest], defaults: Defaults
) -> list[tuple[str, str, dict[str, set[str]]]]:
    accounts: dict[str, set[str]] = {}
    secrets: dict[str, set[str]] = {}
    claims: dict[str, set[str]] = {}
    for step, request in requests.items():
        wanted = request.resources
        account = wanted.get("service_account") or defaults.service_account
        for table, names in (
            (accounts, [account] if account else []),
            (secrets, [*(wanted.get("secrets") or ()), *(wanted.get("image_pull_secrets") or ())]),
            (claims, wanted.get("persistent_volume_claims") or ()),
        ):
            for name in names:
                table.setdefault(name, set()).add(step)
    return [
        ("service account", "read_namespaced_service_account", accounts),
        ("secret", "read_namespaced_secret", secrets),
        ("persistent volume claim", "read_namespaced_persistent_volume_claim", claims),
    ]


def _exists(cluster: Cluster, method: str, *args: str) -> bool:
    """Whether something is there; who may not look is given the benefit of the doubt. The answer itself is dropped:
    a secret's values are nobody's business here."""
    try:
        cluster.open("CoreV1", method, *args).close()
    except Refused as error:
        if error.status == 404:
            return False
        if error.status != 403:
            raise
    return True


def permission_problems(
    cluster: Cluster, namespace: str, needed: Iterable[tuple[str, str, str | None, tuple[str, ...]]], guide: str
) -> list[Problem]:
    """Return what of it we are not allowed in a namespace, as one problem; `guide` is its hint."""
    denied = []
    for group, resource, sub, verbs in needed:
        for verb in verbs:
            if not allowed(cluster, namespace, resource, verb, group=group, sub=sub):
                denied.append(f"{verb} {resource}")
    if not denied:
        return []
    headline = f"not allowed in the namespace {namespace}: {', '.join(denied)}"
    return [Problem(headline, hint=guide)]


def allowed(
    cluster: Cluster, namespace: str, resource: str, verb: str, *, group: str = "batch", sub: str | None = None
) -> bool:
    """Whether an access is allowed, as far as the cluster tells."""
    attributes: dict[str, Any] = {"namespace": namespace, "group": group, "resource": resource, "verb": verb}
    if sub:
        attributes["subresource"] = sub
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    try:
        answer = cluster.call("AuthorizationV1", "create_self_subject_access_review", review)
    except Refused as error:
        if error.status == 401:
            raise
        return True
    return bool((answer.get("status") or {}).get("allowed", True))
