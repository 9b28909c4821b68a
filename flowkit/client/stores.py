"""Opening metadata stores: the one place that knows which kind goes with which datastore."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flowkit import registry
from flowkit.datastore.root import machine_folder
from flowkit.datastore.storage import Storage
from flowkit.metadata.store import MetadataStore


def open_index(
    name: str,
    storage: Storage,
    *,
    notice: Callable[[str], None] | None = None,
    plain: bool = False,
) -> MetadataStore:
    """Open the metadata store of a datastore.

    Parameters
    ----------
    name : str
        Its name in the registry. One that is shared is where the settings say; others belong to the datastore.
    storage : Storage
        The datastore.
    notice : callable, optional
        Is given a line for the user where something about the store is unusual.
    plain : bool, default False
        Only what the index holds: of a remote root's, nothing is looked for in the datastore.

    Raises
    ------
    NotFound
        If there is no store of that name.
    StoreError
        If it does not work.
    """
    kind = registry.load("metadata", name)
    if getattr(kind, "shared", False):
        return open_shared(name)
    if storage.remote and not plain and name == "local":
        from flowkit.client.remote_index import RemoteIndex

        return RemoteIndex(storage, notice=notice)
    root = machine_folder(storage)
    options: dict[str, Any] = {} if notice is None else {"notice": notice}
    if not plain and os.path.isdir(root) and not os.access(root, os.W_OK):
        options["read_only"] = True  # a root that belongs to somebody else can be read, too
    store: MetadataStore = kind(root, **options)
    return store


def open_shared(name: str, where: str | None = None) -> MetadataStore:
    """Open a store that many datastores share, such as a service; by default the one of the settings."""
    store: MetadataStore = registry.load("metadata", name)(where)
    return store


def is_shared(name: str) -> bool:
    """Whether a store is found without a datastore."""
    return name != "local" and bool(getattr(registry.load("metadata", name), "shared", False))
