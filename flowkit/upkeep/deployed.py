"""What deployments keep: the code and the values from which their runs begin, as long as they are deployed.

A record below ``deployments/`` names the code package and a template. The template is a blob, and JSON that names
further ones: the values of parameters and constants. So it is the one blob that is looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flowkit.datastore.layout import blob_file, deployment_file, deployments_folder
from flowkit.datastore.many import mapped_over
from flowkit.datastore.sealed import Damaged, unseal
from flowkit.datastore.storage import Entry, Missing, Storage
from flowkit.exceptions import InvalidPathspec
from flowkit.upkeep.scan import is_key, named_keys

_LARGEST = 64 << 20
"""Bytes of a blob that may be a template: a larger one is something else."""


class Deployed(NamedTuple):
    """The record of a deployment, and what it names.

    Parameters
    ----------
    target, name : str
        Where, and as what.
    entry : Entry
        The record in the listing.
    flow : str or None
        Of which flow it says that it is.
    needs : tuple of (str, str)
        What it needs: what to call it, and its key.
    keys : frozenset of bytes
        Every key that it names itself or by its template, and whatever else looks like one.
    damaged : str or None
        What is wrong with the record, where it cannot be read.
    """

    target: str
    name: str
    entry: Entry
    flow: str | None
    needs: tuple[tuple[str, str], ...]
    keys: frozenset[bytes]
    damaged: str | None = None

    @property
    def path(self) -> str:
        """``target/name``."""
        return f"{self.target}/{self.name}"


def deployments(
    storage: Storage, since: float | None = None, strange: Callable[[Entry], None] | None = None
) -> Iterator[Deployed]:
    """Yield what is deployed.

    Parameters
    ----------
    storage : Storage
        The datastore.
    since : float, optional
        Only records that were written since then, by the storage's clock (seconds since the epoch).
    strange : callable, optional
        Is given what is in that folder and is no record.

    Raises
    ------
    StoreError
        If anything cannot be listed or read.
    """

    def places() -> Iterator[tuple[str, str, Entry]]:
        for entry in storage.walk(deployments_folder()):
            target, name = _names(entry.path)
            if not name:
                if strange is not None:
                    strange(entry)
            elif since is None or entry.modified >= since:
                yield target, name, entry

    def read(place: tuple[str, str, Entry]) -> Deployed | None:
        target, name, entry = place
        try:
            content = storage.read(entry.path)
        except Missing:  # removed at this moment
            return None
        return _deployed(storage, target, name, entry, content)

    for found in mapped_over(storage, read, places()):
        if found is not None:
            yield found


def _names(path: str) -> tuple[str, str]:
    """Return target and name of a record's path; empty for any other object."""
    folder, _, file = path.rpartition("/")
    target, name = folder.rpartition("/")[2], file.removesuffix(".json")
    try:
        known = deployment_file(target, name) == path
    except InvalidPathspec:
        known = False
    return (target, name) if known else ("", "")


def _deployed(storage: Storage, target: str, name: str, entry: Entry, content: bytes) -> Deployed:
    keys = named_keys(content)
    try:
        body = unseal(content, "it")
    except Damaged as error:
        # What it was about is not known: each of its keys may be that of the template.
        for key in [*keys]:
            keys |= named_keys(_template(storage, key.hex()))
        return Deployed(target, name, entry, None, (), frozenset(keys), error.headline)
    needs: list[tuple[str, str]] = []
    package, template, flow = body.get("package"), body.get("template"), body.get("flow")
    if isinstance(package, dict) and is_key(package.get("key")):
        needs.append(("the code package", package["key"]))
    if is_key(template):
        text = _template(storage, str(template))
        keys |= named_keys(text)
        needs += [("what its runs begin from", str(template)), *_values(text)]
    return Deployed(target, name, entry, flow if isinstance(flow, str) else None, tuple(needs), frozenset(keys))


def _template(storage: Storage, key: str) -> bytes:
    """Return the content of a blob, if it is there and may be a template; raises StoreError where nobody can tell."""
    try:
        info = storage.info(blob_file(key))
        return storage.read(blob_file(key)) if info is not None and info.size <= _LARGEST else b""
    except Missing:
        return b""


def _values(template: bytes) -> Iterator[tuple[str, str]]:
    """Yield the values that a template names and does not hold, with their keys."""
    import json

    try:
        body: Any = json.loads(template)
        artifacts = body["parameters"]["artifacts"]
        for name, entry in artifacts.items():
            if "inline" not in entry and is_key(entry.get("key")):
                yield f"the value '{name}' of its runs", entry["key"]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return
