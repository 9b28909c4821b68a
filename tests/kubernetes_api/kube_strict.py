"""What a strict API server refuses: unknown fields, wrong types, bad names, labels and quantities, jobs that cannot be.

Fields and types come from the models of the kubernetes client itself; the rest are the rules of the API server's own
validation, as far as what flowkit sends touches them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from typing import Any

import kubernetes.client as models

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?\d+))?")
_SCALES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SCALES.update({f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGTPE")})
_SIMPLE: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "datetime": (str, datetime.datetime),
    "object": (object,),
}


def quantity(text: Any) -> float:
    """Return what a quantity amounts to."""
    found = QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(text)
    suffix = found.group(3) or ""
    number = str(text)[: len(str(text)) - len(suffix)]
    return float(f"{number}{suffix}") if suffix[:1] in ("e", "E") and suffix[1:] else float(number) * _SCALES[suffix]


def unknown_fields(value: Any, model: str, path: str = "") -> Iterator[str]:
    """Yield every unknown field and every wrong type of a document, by the client's models."""
    listed = re.fullmatch(r"[Ll]ist\[(.*)\]", model)
    mapped = re.fullmatch(r"[Dd]ict[\[(](\w+), (.*)[\])]", model)
    if listed:
        if not isinstance(value, list):
            yield f"{path}: must be a list"
            return
        for position, item in enumerate(value):
            yield from unknown_fields(item, listed.group(1), f"{path}[{position}]")
    elif mapped:
        if not isinstance(value, dict):
            yield f"{path}: must be a map"
            return
        for key, item in value.items():
            yield from unknown_fields(item, mapped.group(2), f"{path}[{key}]")
    elif model in _SIMPLE:
        wrong = not isinstance(value, _SIMPLE[model]) or (model in ("int", "float") and isinstance(value, bool))
        if wrong:
            yield f"{path}: must be of type {model}, not {value!r}"
    else:
        yield from _of_model(value, getattr(models, model), path)


def _of_model(value: Any, model: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: must be an object"
        return
    names = {wire: own for own, wire in model.attribute_map.items()}
    for key, item in value.items():
        if key not in names:
            yield f'unknown field "{path}.{key}"'.replace('".', '"')
        elif item is not None:
            yield from unknown_fields(item, model.openapi_types[names[key]], f"{path}.{key}".lstrip("."))


def metadata_problems(
    metadata: dict[str, Any], *, name: re.Pattern[str] = SUBDOMAIN, where: str = "metadata"
) -> list[str]:
    """Return what is wrong with names, labels and annotations."""
    wrong = []
    if "name" in metadata and (not name.fullmatch(metadata["name"]) or len(metadata["name"]) > 253):
        wrong.append(f"{where}.name: Invalid value: {metadata['name']!r}")
    for kind in ("labels", "annotations"):
        for key, value in (metadata.get(kind) or {}).items():
            prefix, slash, last = key.rpartition("/")
            if (slash and not SUBDOMAIN.fullmatch(prefix)) or not QUALIFIED.fullmatch(last):
                wrong.append(f"{where}.{kind}: Invalid key: {key!r}")
            if kind == "labels" and value != "" and not QUALIFIED.fullmatch(value):
                wrong.append(f"{where}.labels: Invalid value: {value!r}")
    if sum(len(k) + len(v.encode()) for k, v in (metadata.get("annotations") or {}).items()) > 256 * 1024:
        wrong.append(f"{where}.annotations: Too long")
    return wrong


def job_problems(job: dict[str, Any]) -> list[str]:
    """Return what the API server says against a Job."""
    wrong = list(unknown_fields(job, "V1Job"))
    if wrong:
        return wrong
    wrong = metadata_problems(job["metadata"], name=SUBDOMAIN)
    spec = job.get("spec") or {}
    template = spec.get("template") or {}
    indexed = spec.get("completionMode") == "Indexed"
    completions = spec.get("completions", 1)
    if len(job["metadata"]["name"]) > 63:
        wrong.append("metadata.name: must be no more than 63 characters")
    if indexed:
        if spec.get("completions") is None:
            wrong.append("spec.completions: Required value: when completion mode is Indexed")
        host = f"{job['metadata']['name']}-{completions - 1}"
        if not DNS_LABEL.fullmatch(host):
            wrong.append(f"metadata.name: Invalid value: {host!r} is no name of a host")
        if completions > 100_000 and spec.get("parallelism", 1) > 10_000:
            wrong.append("spec.parallelism: must be at most 10000 with so many completions")
    elif "backoffLimitPerIndex" in spec or "maxFailedIndexes" in spec:
        wrong.append("spec.backoffLimitPerIndex: Invalid value: requires indexed completion mode")
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        wrong.append("spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified")
    counts = ("completions", "parallelism", "backoffLimit", "backoffLimitPerIndex", "ttlSecondsAfterFinished")
    for name in (*counts, "activeDeadlineSeconds"):
        if spec.get(name) is not None and spec[name] < 0:
            wrong.append(f"spec.{name}: must be at least 0")
    from kube_cron import failure_policy_problems

    wrong += failure_policy_problems(spec)
    wrong += metadata_problems(template.get("metadata") or {}, where="spec.template.metadata")
    if (template.get("spec") or {}).get("restartPolicy") not in ("Never", "OnFailure"):
        wrong.append("spec.template.spec.restartPolicy: Required value: valid values: OnFailure, Never")
    return wrong + pod_problems(template.get("spec") or {})


def pod_problems(spec: dict[str, Any]) -> list[str]:
    """Return what the API server says against the specification of a pod."""
    wrong = []
    if not spec.get("containers"):
        wrong.append("spec.containers: Required value")
    volumes = [volume["name"] for volume in spec.get("volumes") or ()]
    if len(set(volumes)) != len(volumes):
        wrong.append("spec.volumes: Duplicate value")
    for volume in spec.get("volumes") or ():
        if not DNS_LABEL.fullmatch(volume["name"]) or len(volume) != 2:
            wrong.append(f"spec.volumes: Invalid value: {volume!r}")
        size = (volume.get("emptyDir") or {}).get("sizeLimit")
        if size is not None and not QUANTITY.fullmatch(size):
            wrong.append(f"sizeLimit: Invalid value: {size!r}")
    if spec.get("activeDeadlineSeconds") is not None and spec["activeDeadlineSeconds"] < 1:
        wrong.append("spec.activeDeadlineSeconds: must be at least 1")
    if spec.get("subdomain") and not DNS_LABEL.fullmatch(spec["subdomain"]):
        wrong.append("spec.subdomain: Invalid value")
    for container in spec.get("containers") or ():
        wrong += _container_problems(container, volumes)
    for toleration in spec.get("tolerations") or ():
        wrong += _toleration_problems(toleration)
    wrong += metadata_problems({"labels": spec.get("nodeSelector") or {}}, where="spec.nodeSelector")
    return wrong


def _container_problems(container: dict[str, Any], volumes: list[str]) -> list[str]:
    wrong = []
    if not DNS_LABEL.fullmatch(container.get("name", "")):
        wrong.append("containers.name: Invalid value")
    image = container.get("image", "")
    if not image or image != image.strip():
        wrong.append("containers.image: Required value")
    names = [item["name"] for item in container.get("env") or ()]
    if len(set(names)) != len(names):
        wrong.append("containers.env: Duplicate value")
    for name in names:
        if not re.fullmatch(r"[-._a-zA-Z][-._a-zA-Z0-9]*", name):
            wrong.append(f"containers.env: Invalid value: {name!r}")
    paths = [mount["mountPath"] for mount in container.get("volumeMounts") or ()]
    if len(set(paths)) != len(paths) or any(":" in path for path in paths):
        wrong.append("containers.volumeMounts.mountPath: must be unique, without ':'")
    wrong += [
        f"containers.volumeMounts: Not found: {mount['name']!r}"
        for mount in container.get("volumeMounts") or ()
        if mount["name"] not in volumes
    ]
    for port in container.get("ports") or ():
        if not 0 < port["containerPort"] < 65536:
            wrong.append("containers.ports: must be between 1 and 65535")
    return wrong + _resource_problems(container.get("resources") or {})


def _resource_problems(resources: dict[str, Any]) -> list[str]:
    wrong = []
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    for name, amount in [*requests.items(), *limits.items()]:
        if not QUANTITY.fullmatch(amount) or amount.startswith("-"):
            wrong.append(f"resources: quantities must match the regular expression: {amount!r}")
            return wrong
        if "/" not in name and name not in ("cpu", "memory", "ephemeral-storage"):
            wrong.append(f"resources: must be a standard resource type or fully qualified: {name!r}")
    for name, amount in requests.items():
        if name in limits and quantity(amount) > quantity(limits[name]):
            wrong.append(f"resources.requests: must be less than or equal to {name} limit")
        if "/" in name and requests.get(name) != limits.get(name):
            wrong.append(f"resources.limits: must be set for non overcommitable resources: {name}")
    return wrong


def _toleration_problems(toleration: dict[str, Any]) -> list[str]:
    wrong = []
    if toleration.get("operator", "Equal") not in ("Equal", "Exists"):
        wrong.append("tolerations.operator: Unsupported value")
    if not toleration.get("key") and toleration.get("operator") != "Exists":
        wrong.append("tolerations.operator: must be Exists when key is empty")
    if toleration.get("operator") == "Exists" and toleration.get("value"):
        wrong.append("tolerations.value: must be empty when operator is Exists")
    if toleration.get("effect", "") not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
        wrong.append("tolerations.effect: Unsupported value")
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        wrong.append("tolerations.effect: must be NoExecute when tolerationSeconds is set")
    return wrong


def service_problems(service: dict[str, Any]) -> list[str]:
    """Return what the API server says against a Service."""
    wrong = list(unknown_fields(service, "V1Service"))
    return wrong or metadata_problems(service["metadata"], name=DNS_1035)


def jobset_problems(jobset: dict[str, Any]) -> list[str]:
    """Return what JobSet's own admission says against one; each of its jobs is a Job."""
    wrong = metadata_problems(jobset["metadata"], name=DNS_LABEL)
    spec = dict(jobset.get("spec") or {})
    known = {"replicatedJobs", "network", "failurePolicy", "successPolicy", "suspend", "ttlSecondsAfterFinished",
             "startupPolicy", "coordinator", "managedBy"}  # fmt: skip
    wrong += [f'unknown field "spec.{key}"' for key in spec if key not in known]
    for part in spec.get("replicatedJobs") or ():
        for index in range(part.get("replicas", 1)):
            name = f"{jobset['metadata']['name']}-{part['name']}-{index}"
            job = {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name},
                "spec": part["template"]["spec"],
            }
            wrong += job_problems(job)
    return wrong


def object_problems(resource: str, item: dict[str, Any]) -> list[str]:
    """Return what is wrong with any object of the resources that the loopback API knows."""
    if resource == "cronjobs":
        from kube_cron import cronjob_problems

        return cronjob_problems(item)
    if resource in ("workflows", "workflowtemplates", "cronworkflows", "sensors"):
        from argo_fields import object_problems as argo_problems

        return argo_problems(item)
    checks = {"jobs": job_problems, "services": service_problems, "jobsets": jobset_problems}
    kinds = {
        "secrets": "V1Secret",
        "serviceaccounts": "V1ServiceAccount",
        "namespaces": "V1Namespace",
        "persistentvolumeclaims": "V1PersistentVolumeClaim",
        "pods": "V1Pod",
        "events": "CoreV1Event",
    }
    if resource in checks:
        return checks[resource](item)
    return list(unknown_fields(item, kinds[resource])) or metadata_problems(item["metadata"])
