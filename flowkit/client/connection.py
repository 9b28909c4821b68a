"""Where the client reads: a metadata store and the datastore that it is an index of.

A connection is opened when it is first used and shared by all objects of the same place.
"""

from __future__ import annotations

import os
from typing import Any

from flowkit import registry
from flowkit.datastore.artifacts import ArtifactReader
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layered import LayeredStorage
from flowkit.datastore.manifests import read_manifest
from flowkit.datastore.root import FOLDER, default_root, open_storage
from flowkit.datastore.runs import list_flows
from flowkit.datastore.spins import open_spins
from flowkit.datastore.storage import Storage
from flowkit.exceptions import NotFound, StoreError, UsageError
from flowkit.metadata.store import MetadataStore
from flowkit.model.manifest import Artifact, Manifest
from flowkit.settings import settings

SPINS = "spin"
"""The kind of place at which the spins on a datastore's runs are seen, instead of its runs."""
_connections: dict[str, Connection] = {}


class Connection:
    """The stores behind one place, each opened when it is first needed.

    Parameters
    ----------
    place : str
        ``local@<root>``, as `normal_place` and `default_place` give it.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.kind, _, self.where = place.partition("@")
        self._storage: Storage | None = None
        self._metadata: MetadataStore | None = None
        self._reader: ArtifactReader | None = None

    @property
    def storage(self) -> Storage:
        """The datastore."""
        if self._storage is None:
            self._storage = open_storage(self.where, create=False)
            if self.kind == SPINS:
                self._storage = LayeredStorage(open_spins(self._storage), self._storage)
        return self._storage

    @property
    def metadata(self) -> MetadataStore:
        """The index of runs and tasks."""
        if self._metadata is None:
            self._metadata = self._open_metadata()
        return self._metadata

    def _open_metadata(self) -> MetadataStore:
        if isinstance(self.storage, LayeredStorage):
            return _indexed(self.storage.above)
        if self.kind == "local" and self.storage.remote:
            from flowkit.client.remote_index import RemoteIndex

            return RemoteIndex(self.storage)
        root = self.storage.root
        # A root that belongs to somebody else can be read, too.
        options = {"read_only": True} if os.path.isdir(root) and not os.access(root, os.W_OK) else {}
        store: MetadataStore = registry.load("metadata", self.kind)(root, **options)
        if getattr(store, "fresh", False):
            known = {record.flow for record in store.flows()}
            if not known.issuperset(list_flows(self.storage)):
                raise StoreError(
                    f"the metadata store of {root} is new and does not know the runs that are there",
                    "fill it from the datastore: flowkit metadata rebuild",
                )
        return store

    def manifest(self, flow: str, run: str, step: str, task: str) -> Manifest | None:
        """Return what a task committed, following clones; None where it has not."""
        return read_manifest(self.storage, flow, run, step, task)

    def value(self, name: str, artifact: Artifact) -> Any:
        """Load an artifact."""
        if self._reader is None:
            self._reader = ArtifactReader(Blobs(self.storage))
        return self._reader.load(name, artifact)


def _indexed(storage: Storage) -> MetadataStore:
    """Return an index of what lies in a small datastore that keeps none."""
    from flowkit.client.rebuild import rebuild
    from flowkit.metadata.memory import MemoryMetadata

    store = MemoryMetadata()
    rebuild(storage, store)
    return store


def connect(place: str) -> Connection:
    """Return the connection to a place; the same one each time."""
    found = _connections.get(place)
    if found is None:
        found = _connections[place] = Connection(place)
    return found


def forget(place: str) -> None:
    """Have a place opened anew when it is next looked at."""
    _connections.pop(place, None)


def default_place() -> str:
    """Return where a flow that was run here and now would keep its runs, as ``local@<root>``."""
    configured = settings().datastore
    if not configured:
        return f"{settings().metadata}@{default_root()}"
    return f"{settings().metadata}@{configured if '://' in configured else _absolute(configured)}"


def normal_place(text: str) -> str:
    """Return what a user wrote (``local@<folder>``, a folder, a URL) as ``local@<root>``.

    Raises
    ------
    UsageError
        If the text has no such form.
    NotFound
        If the folder holds no datastore.
    """
    if not isinstance(text, str) or not text:
        raise UsageError(f"{text!r} does not say where to read", "give local@<folder>, or a folder")
    kind, at, where = text.partition("@")
    if not at or not kind.isidentifier():
        kind, where = "service" if text.startswith(("http://", "https://")) else "local", text
    registry.load("metadata", kind)
    if "://" in where:
        return f"{kind}@{where}"
    folder = _absolute(where)
    inside = os.path.join(folder, FOLDER)
    if os.path.basename(folder) != FOLDER and os.path.isdir(inside):
        folder = inside
    if not os.path.isdir(folder):
        raise NotFound(f"there is no datastore at {folder}", "run a flow there first, or give another folder")
    return f"{kind}@{folder}"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
