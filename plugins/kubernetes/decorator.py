"""``@kubernetes``: carry a step out in a pod of a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowkit.decorators.attach import step_decorator
from flowkit.decorators.attributes import check_flag, check_number, items, number
from flowkit.decorators.contract import ExecutorRequest, StepDecorator
from flowkit.exceptions import Problem, did_you_mean
from flowkit.plugins.kubernetes.syntax import (
    annotation_problems,
    is_image,
    is_label_name,
    is_quantity,
    is_subdomain,
    key_problem,
    label_problems,
)

if TYPE_CHECKING:
    from flowkit.model.definition import FlowDefinition
    from flowkit.model.graph import Node

_NUMBERS = ("cpu", "memory", "disk", "gpu", "shared_memory", "tmpfs_size", "port", "hostname_resolution_timeout")
_PAIRS = ("node_selector", "labels", "annotations")
_LISTS = ("image_pull_secrets", "secrets")
_CHOICES: dict[str, tuple[str, ...]] = {
    "image_pull_policy": ("Always", "IfNotPresent", "Never"),
    "gpu_vendor": ("nvidia", "amd"),
    "qos": ("guaranteed", "burstable"),
}
_TOLERATION = ("key", "operator", "value", "effect", "tolerationSeconds")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_SECURITY: dict[str, type] = {
    "privileged": bool,
    "allowPrivilegeEscalation": bool,
    "runAsNonRoot": bool,
    "readOnlyRootFilesystem": bool,
    "runAsUser": int,
    "runAsGroup": int,
    "procMount": str,
    "capabilities": dict,
    "seccompProfile": dict,
    "seLinuxOptions": dict,
    "appArmorProfile": dict,
    "windowsOptions": dict,
}
_INSIDE = {
    "capabilities": ("add", "drop"),
    "seccompProfile": ("type", "localhostProfile"),
    "appArmorProfile": ("type", "localhostProfile"),
    "seLinuxOptions": ("level", "role", "type", "user"),
    "windowsOptions": ("gmsaCredentialSpec", "gmsaCredentialSpecName", "hostProcess", "runAsUserName"),
}


class Kubernetes(StepDecorator):
    """Carry the step out in a pod of a Kubernetes cluster.

    A foreach becomes Indexed Jobs, a gang (``num_parallel``) pods that know each other. The datastore must be one that
    pods reach (``s3://…``). What is given here and what ``@resources`` says are merged: the larger counts.

    Parameters
    ----------
    cpu : float, default 1
        Processors.
    memory, disk : int, default 4096 and 10240
        Megabytes of memory, and of the pod's own disk.
    image : str, optional
        Default: the settings ``kubernetes_image``, ``container_image``, else ``python:<this version>-slim``.
    image_pull_policy : str, optional
        ``Always``, ``IfNotPresent`` or ``Never``.
    image_pull_secrets, secrets : list of str, optional
        Names of secrets of the namespace: to pull the image with, and to become environment variables. Only the names
        are sent.
    service_account, namespace : str, optional
        Default: the settings ``kubernetes_service_account`` and ``kubernetes_namespace``.
    node_selector, labels, annotations : dict of str to str, optional
        Or a text: ``"key=value,key=value"``.
    gpu, gpu_vendor : int and str, optional
        How many graphics processors, of ``nvidia`` (default) or ``amd``.
    tolerations : list of dict, optional
        Each with ``key``, ``operator``, ``value``, ``effect``, ``toleration_seconds``.
    use_tmpfs, tmpfs_tempdir : bool, default False and True
        Mount a file system in memory; make temporary files in it.
    tmpfs_size : int, optional
        Its megabytes; default: half of the memory. Giving it means ``use_tmpfs``.
    tmpfs_path : str, default "/flowkit_temp"
        Where it is mounted.
    persistent_volume_claims : dict of str to str, optional
        Name of a claim to the folder where it is mounted.
    shared_memory : int, optional
        Megabytes of ``/dev/shm``.
    port : int, optional
        A port that the container listens on.
    compute_pool : str, optional
        Only nodes with the label ``outerbounds.co/compute-pool`` of this value.
    executable : str, optional
        The Python of the image; default ``python``.
    hostname_resolution_timeout : int, default 600
        Seconds in which the nodes of a gang must find each other.
    qos : str, default "burstable"
        ``guaranteed`` makes what is asked for a limit as well: a step that takes more memory is killed. ``burstable``
        lets it use what the machine has free.
    extended_resources : dict, optional
        Further resources by their whole name, e.g. ``{"example.com/fpga": 1}``.
    security_context : dict, optional
        Of the container, e.g. ``{"run_as_user": 1000}``.

    Examples
    --------
    >>> @kubernetes(cpu=8, memory=32_000, image="registry.example.com/train:3")
    ... @step
    ... def train(self): ...
    """

    name = "kubernetes"
    defaults = {
        "cpu": "1",
        "memory": "4096",
        "disk": "10240",
        "image": None,
        "image_pull_policy": None,
        "image_pull_secrets": None,
        "service_account": None,
        "secrets": None,
        "node_selector": None,
        "namespace": None,
        "gpu": None,
        "gpu_vendor": None,
        "tolerations": None,
        "labels": None,
        "annotations": None,
        "use_tmpfs": False,
        "tmpfs_tempdir": True,
        "tmpfs_size": None,
        "tmpfs_path": "/flowkit_temp",
        "persistent_volume_claims": None,
        "shared_memory": None,
        "port": None,
        "compute_pool": None,
        "executable": None,
        "hostname_resolution_timeout": 600,
        "qos": "burstable",
        "extended_resources": {},
        "security_context": None,
    }

    def configure(self, flow: FlowDefinition, node: Node) -> list[Problem]:
        """Check every attribute."""
        wrong = [
            *self._text_problems(),
            *self._pair_problems(),
            *self._mount_problems(),
            *(f"tolerations: {text}" for text in _toleration_problems(self.attributes["tolerations"])),
            *(f"security_context: {text}" for text in _security_problems(self.attributes["security_context"])),
        ]
        problems = [*self._number_problems(), *(self.problem(f"@kubernetes: {text}") for text in wrong)]
        for name in ("use_tmpfs", "tmpfs_tempdir"):
            problems += check_flag(self, name)
        return problems

    def executor(self) -> ExecutorRequest | None:
        """Return what was given, in the forms that `flowkit.plugins.kubernetes.manifests` reads."""
        wanted: dict[str, Any] = {}
        for name, value in self.attributes.items():
            if name in self.given and value is not None:
                wanted[name] = _plain(name, value)
        return ExecutorRequest("kubernetes", wanted)

    def _number_problems(self) -> list[Problem]:
        return [
            *check_number(self, "cpu", low=0, above=True, optional=True),
            *check_number(self, "memory", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "disk", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "gpu", low=0, whole=True, optional=True),
            *check_number(self, "shared_memory", low=0, optional=True, unit="megabytes"),
            *check_number(self, "tmpfs_size", low=0, above=True, optional=True, unit="megabytes"),
            *check_number(self, "port", low=1, high=65535, whole=True, optional=True),
            *check_number(self, "hostname_resolution_timeout", low=0, optional=True, unit="seconds"),
        ]

    def _text_problems(self) -> list[str]:
        given, wrong = self.attributes, []
        if given["image"] is not None and not is_image(given["image"]):
            wrong.append(f"image={given['image']!r} is not a reference of an image, like registry.example.com/team/x:3")
        if given["namespace"] is not None and not is_label_name(given["namespace"]):
            wrong.append(f"namespace={given['namespace']!r}: lower-case letters, digits and '-', at most 63")
        if given["service_account"] is not None and not is_subdomain(given["service_account"]):
            wrong.append(f"service_account={given['service_account']!r}: lower-case letters, digits, '-' and '.'")
        for name in _LISTS:
            for item in _names(given[name]):
                if not is_subdomain(item):
                    wrong.append(f"{name}: {item!r} is not a secret's name: lower-case letters, digits, '-' and '.'")
        for name, choices in _CHOICES.items():
            value = given[name]
            if value is not None and (not isinstance(value, str) or value not in choices):
                near = did_you_mean(str(value), choices)
                wrong.append(f"{name}={value!r} must be one of {', '.join(choices)}" + (f" ({near})" if near else ""))
        if given["compute_pool"] is not None:
            wrong += [f"compute_pool: {text}" for text in label_problems({"pool": given["compute_pool"]})]
        executable = given["executable"]
        if executable is not None and (not isinstance(executable, str) or not executable.strip()):
            wrong.append(f"executable={executable!r} must be the path of a Python")
        return wrong

    def _pair_problems(self) -> list[str]:
        wrong = []
        checks = {"node_selector": _selector_problems, "labels": label_problems, "annotations": annotation_problems}
        for name, check in checks.items():
            pairs = _pairs(self.attributes[name])
            if pairs is None:
                wrong.append(f'{name} must be a dict of texts, or a text "key=value,key=value"')
            else:
                wrong += [f"{name}: {text}" for text in check(pairs)]
        extended = self.attributes["extended_resources"]
        if extended is not None and not isinstance(extended, Mapping):
            return [*wrong, "extended_resources must be a dict, like {'example.com/fpga': 1}"]
        for key, value in (extended or {}).items():
            problem = key_problem(key)
            if problem is None and "/" not in key:
                problem = f"'{key}' needs the prefix of its vendor, like example.com/{key}"
            if problem is None and not (is_quantity(value) and str(value).isdigit()):
                problem = f"'{key}' must be a whole number, not {value!r}"
            wrong += [f"extended_resources: {problem}"] if problem else []
        return wrong

    def _mount_problems(self) -> list[str]:
        wrong, seen = [], {"/dev/shm": "shared_memory"} if number(self.attributes["shared_memory"]) else {}
        claims = self.attributes["persistent_volume_claims"]
        if claims is not None and not isinstance(claims, Mapping):
            return ["persistent_volume_claims must be a dict: the claim's name to the folder where it is mounted"]
        mounts = [(f"claim '{name}'", path) for name, path in (claims or {}).items()]
        if self.attributes["use_tmpfs"] is True or self.attributes["tmpfs_size"] is not None:
            mounts.append(("tmpfs_path", self.attributes["tmpfs_path"]))
        for name in claims or {}:
            if not is_subdomain(name):
                wrong.append(f"persistent_volume_claims: {name!r} is not a claim's name")
        for what, path in mounts:
            if not isinstance(path, str) or not path.startswith("/") or ":" in path or not path.strip("/"):
                wrong.append(f"{what}: {path!r} must be a folder's whole path, without ':'")
            elif path.rstrip("/") in seen:
                wrong.append(f"{what} and {seen[path.rstrip('/')]} are both mounted at {path}")
            else:
                seen[path.rstrip("/")] = what
        return wrong


def _plain(name: str, value: Any) -> Any:
    if name in _NUMBERS:
        read = number(value)
        return int(read) if read is not None and read.is_integer() else read
    if name in _PAIRS:
        return _pairs(value)
    if name in _LISTS:
        return _names(value)
    if name == "tolerations":
        return [{_camel(key): item for key, item in given.items()} for given in items(value)]
    if name == "security_context":
        return {_camel(key): _inner(item) for key, item in value.items()}
    if name == "extended_resources":
        return {key: str(item) for key, item in value.items()}
    return dict(value) if isinstance(value, Mapping) else value


def _inner(value: Any) -> Any:
    return {_camel(key): item for key, item in value.items()} if isinstance(value, Mapping) else value


def _camel(name: Any) -> str:
    """Return a name of an attribute as Kubernetes writes it: ``run_as_user`` is ``runAsUser``."""
    first, *rest = str(name).split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _names(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return items(value)


def _pairs(value: Any) -> dict[Any, Any] | None:
    """Return a dict, or what a text of pairs says; None for anything else."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        return None
    pairs = {}
    for part in value.split(","):
        key, equals, item = part.strip().partition("=")
        if not equals:
            return None
        pairs[key.strip()] = item.strip()
    return pairs


def _selector_problems(pairs: Mapping[Any, Any]) -> list[str]:
    return [text for text in label_problems(pairs) if "flowkit's own" not in text]


def _toleration_problems(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        return ["it must be a list of dicts"]
    wrong = []
    for position, given in enumerate(value):
        label = f"number {position + 1}"
        if not isinstance(given, Mapping):
            wrong.append(f"{label} must be a dict, not {type(given).__name__}")
            continue
        toleration = {_camel(key): item for key, item in given.items()}
        wrong += [f"{label} {text}" for text in _one_toleration(toleration)]
    return wrong


def _one_toleration(given: Mapping[str, Any]) -> list[str]:
    wrong = [f"has no '{key}' ({did_you_mean(key, _TOLERATION) or 'see ' + ', '.join(_TOLERATION)})"
             for key in given if key not in _TOLERATION]  # fmt: skip
    operator, key, value = given.get("operator", "Equal"), given.get("key"), given.get("value")
    effect, seconds = given.get("effect"), given.get("tolerationSeconds")
    if operator not in ("Equal", "Exists"):
        wrong.append(f"has the operator {operator!r}: Equal or Exists")
    if key in (None, "") and operator != "Exists":
        wrong.append("without a key needs the operator Exists")
    if key not in (None, "") and (problem := key_problem(key)):
        wrong.append(f"has a wrong key: {problem}")
    if value is not None and (not isinstance(value, str) or (value and operator == "Exists")):
        wrong.append("has a value, which must be a text" if operator != "Exists" else "with Exists has no value")
    if effect not in (None, "", *_EFFECTS):
        wrong.append(f"has the effect {effect!r}: one of {', '.join(_EFFECTS)}")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int) or effect != "NoExecute"):
        wrong.append("has toleration_seconds, a whole number for the effect NoExecute only")
    return wrong


def _security_problems(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        return ["it must be a dict, like {'run_as_user': 1000}"]
    wrong = []
    given: dict[str, Any] = dict(value)
    for name, item in given.items():
        key = _camel(name)
        wanted = _SECURITY.get(key)
        if wanted is None:
            wrong.append(f"it has no '{name}'" + (f" ({hint})" if (hint := did_you_mean(key, _SECURITY)) else ""))
        elif not _is_a(item, wanted):
            wrong.append(f"{name}={item!r} must be {'a dict' if wanted is dict else f'of type {wanted.__name__}'}")
        elif wanted is dict:
            wrong += [f"{name} has no '{inner}'" for inner in item if _camel(inner) not in _INSIDE[key]]
    return wrong


def _is_a(value: Any, wanted: type) -> bool:
    if wanted is dict:
        return isinstance(value, Mapping)
    return isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))


kubernetes = step_decorator(Kubernetes)
