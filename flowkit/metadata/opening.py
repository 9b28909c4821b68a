"""Opening metadata stores by their names: what each kind is opened with.

(`flowkit.client.stores` adds the index of a remote root, which has to look into the datastore.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flowkit import registry
from flowkit.metadata.store import MetadataStore


def open_store(
    name: str, root: str, *, notice: Callable[[str], None] | None = None, writable: bool = False
) -> MetadataStore:
    """Open the metadata store of a root.

    Parameters
    ----------
    name : str
        Its name in the registry. One that is shared is where the settings say, whatever the root.
    root : str
        The folder of the datastore, or this machine's folder for it.
    notice : callable, optional
        Is given a line for the user where something about the store is unusual.
    writable : bool, default False
        It must be possible to write; else a root that belongs to somebody else is read as it lies.

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
    options: dict[str, Any] = {} if notice is None else {"notice": notice}
    if not writable and os.path.isdir(root) and not os.access(root, os.W_OK):
        options["read_only"] = True
    store: MetadataStore = kind(root, **options)
    return store


def open_shared(name: str, where: str | None = None) -> MetadataStore:
    """Open a store that many datastores share, such as a service; by default the one of the settings."""
    store: MetadataStore = registry.load("metadata", name)(where)
    return store


def is_shared(name: str) -> bool:
    """Whether a store is found without a datastore."""
    return name != "local" and bool(getattr(registry.load("metadata", name), "shared", False))
