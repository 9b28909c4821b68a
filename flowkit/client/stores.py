"""Opening the metadata store of a datastore, wherever the datastore is."""

from __future__ import annotations

from collections.abc import Callable

from flowkit.datastore.root import machine_folder
from flowkit.datastore.storage import Storage
from flowkit.metadata.opening import open_store
from flowkit.metadata.store import MetadataStore


def open_index(
    name: str, storage: Storage, *, notice: Callable[[str], None] | None = None, plain: bool = False
) -> MetadataStore:
    """Open the metadata store of a datastore.

    Parameters
    ----------
    name : str
        Its name in the registry.
    storage : Storage
        The datastore.
    notice : callable, optional
        Is given a line for the user where something about the store is unusual.
    plain : bool, default False
        To be made anew: only what the index itself holds; of a remote root's, nothing is looked for in the datastore.

    Raises
    ------
    NotFound
        If there is no store of that name.
    StoreError
        If it does not work.
    """
    if storage.remote and not plain and name == "local":
        from flowkit.client.remote_index import RemoteIndex

        return RemoteIndex(storage, notice=notice)
    return open_store(name, machine_folder(storage), notice=notice, writable=plain)
