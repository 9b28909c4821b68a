"""The syntax of what Kubernetes calls names, labels, quantities and image references: checked before anything is sent.

Limits are those of the API server (https://kubernetes.io/docs/concepts/overview/working-with-objects/): names are
RFC 1123 labels (63) or subdomains (253), label values have at most 63 characters. Nothing here imports the client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_QUANTITY = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
_IMAGE_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::\d+)?/)?"
    rf"{_IMAGE_PART}(?:/{_IMAGE_PART})*(?::\w[\w.-]{{0,127}})?(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{{32,}})?"
)
LABEL_LIMIT = 63
NAME_LIMIT = 52
"""Characters of the names that flowkit gives to jobs: an index (``-9999``) and what JobSet adds (``-n-0-9999``) are
put behind them, and a host's name has at most 63."""
OWN_PREFIX = "flowkit/"
ANNOTATIONS_LIMIT = 256 * 1024
"""Bytes of all annotations of an object together."""


def is_label_name(text: Any) -> bool:
    """Whether a text is an RFC 1123 label: lower-case letters, digits and hyphens, at most 63."""
    return isinstance(text, str) and len(text) <= LABEL_LIMIT and _LABEL.fullmatch(text) is not None


def is_subdomain(text: Any) -> bool:
    """Whether a text is an RFC 1123 subdomain, as the names of secrets, claims and accounts are."""
    return isinstance(text, str) and len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_quantity(value: Any) -> bool:
    """Whether a value is a quantity (``2``, ``500m``, ``4Gi``) of at least 0."""
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float, str)) and _QUANTITY.fullmatch(str(value)) is not None


def is_image(text: Any) -> bool:
    """Whether a text is a reference of an image: ``registry/path:tag@digest``."""
    return isinstance(text, str) and len(text) <= 1024 and _IMAGE.fullmatch(text) is not None


def key_problem(key: Any) -> str | None:
    """Return what is wrong with the key of a label, an annotation or an extended resource; None for a good one."""
    if not isinstance(key, str):
        return f"{key!r} is not a text"
    prefix, slash, name = key.rpartition("/")
    if slash and not is_subdomain(prefix):
        return f"'{prefix}' (before the / of '{key}') must be a DNS name"
    if len(name) > LABEL_LIMIT or not _QUALIFIED.fullmatch(name):
        return f"'{key}' must have up to 63 letters, digits, '-', '_' and '.', a letter or digit first and last"
    return None


def value_problem(value: Any) -> str | None:
    """Return what is wrong with the value of a label; None for a good one (the empty text is one)."""
    if not isinstance(value, str):
        return f"{value!r} is not a text"
    if value and (len(value) > LABEL_LIMIT or not _QUALIFIED.fullmatch(value)):
        return f"'{value}' must have up to 63 letters, digits, '-', '_' and '.', a letter or digit first and last"
    return None


def label_problems(labels: Mapping[Any, Any]) -> list[str]:
    """Return what is wrong with labels."""
    wrong = []
    for key, value in labels.items():
        wrong += [text for text in (key_problem(key), value_problem(value)) if text]
        wrong += _reserved(key)
    return wrong


def annotation_problems(annotations: Mapping[Any, Any]) -> list[str]:
    """Return what is wrong with annotations."""
    wrong, size = [], 0
    for key, value in annotations.items():
        wrong += [text for text in (key_problem(key),) if text]
        wrong += _reserved(key)
        if not isinstance(value, str):
            wrong.append(f"the value of '{key}' must be a text, not {value!r}")
        size += len(str(key).encode()) + len(str(value).encode())
    if size > ANNOTATIONS_LIMIT:
        wrong.append("all together they have more than 256 KB")
    return wrong


def _reserved(key: Any) -> list[str]:
    return [f"'{key}': {OWN_PREFIX}… are flowkit's own"] if str(key).startswith(OWN_PREFIX) else []


def label_value(text: str) -> str:
    """Return a text as the value of a label: itself where it can be one, else what is left of it and a hash.

    The whole text stands in an annotation; the hash keeps different texts different.
    """
    if value_problem(text) is None:
        return text
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
    return f"{clean[: LABEL_LIMIT - 9]}-{digest(text, 8)}".lstrip("-_.")


def object_name(name: str) -> str:
    """Return the name of the object for a submission's name: itself, or shortened with a hash to `NAME_LIMIT`."""
    if not name[:1].isalpha():
        name = f"f-{name}"  # the name of a service starts with a letter
    if len(name) <= NAME_LIMIT:
        return name
    return f"{name[: NAME_LIMIT - 11].rstrip('-')}-{digest(name, 10)}"


def digest(text: str, length: int) -> str:
    """Return hexadecimal digits that stand for a text."""
    return hashlib.blake2s(text.encode(), digest_size=16).hexdigest()[:length]
