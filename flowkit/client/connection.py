"""Where the client reads: a metadata store and the datastore that it is an index of.

A connection is opened when it is first used and shared by all objects of the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from flowkit import registry
from flowkit.client.stores import open_index
from flowkit.datastore.artifacts import ArtifactReader
from flowkit.datastore.blobs import Blobs
from flowkit.datastore.layered import LayeredStorage
from flowkit.datastore.manifests import read_manifest
from flowkit.datastore.root import FOLDER, default_root, open_storage
from flowkit.datastore.runs import list_flows, read_run
from flowkit.datastore.spins import open_spins
from flowkit.datastore.storage import Storage
from flowkit.exceptions import DataError, NotFound, StoreError, UsageError
from flowkit.metadata.opening import is_shared, open_shared
from flowkit.metadata.records import RunRecord
from flowkit.metadata.store import MetadataStore
from flowkit.model.manifest import Artifact, Manifest
from flowkit.settings import settings

ROOT_MARK = "#"
"""In the place of a service, before the root of the datastore, where that is not the one of the settings."""
SPINS = "spin"
"""The kind of place at which the spins on a datastore's runs are seen, instead of its runs."""
_connections: dict[str, Connection] = {}


class Connection:
    """The stores behind one place, each opened when it is first needed.

    Parameters
    ----------
    place : str
        ``local@<root>`` or ``service@<url>``, as `normal_place` and `default_place` give it.

    Attributes
    ----------
    kind, where : str
        What is before and after the ``@``.
    root : str or None
        The datastore's root; None for the one of the settings. It never comes from what a service says.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.kind, _, self.where = place.partition("@")
        self.root: str | None = self.where
        self._shared = self.kind != SPINS and is_shared(self.kind)
        if self._shared:
            self.where, _, root = self.where.partition(ROOT_MARK)
            self.root = root or None
        self._held: dict[tuple[str, str], bool] = {}
        self._storage: Storage | None = None
        self._metadata: MetadataStore | None = None
        self._reader: ArtifactReader | None = None

    @property
    def storage(self) -> Storage:
        """The datastore."""
        if self._storage is None:
            self._storage = open_storage(self.root or settings().datastore, create=False)
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
        if self._shared:
            return open_shared(self.kind, self.where)
        if isinstance(self.storage, LayeredStorage):
            return _indexed(self.storage.above)
        store = open_index(self.kind, self.storage)
        if store.fresh:
            known = {record.flow for record in store.flows()}
            if not known.issuperset(list_flows(self.storage)):
                raise StoreError(
                    f"the metadata store of {self.storage.root} is new and does not know the runs that are there",
                    "fill it from the datastore: flowkit metadata rebuild",
                )
        return store

    def holds(self, ask: Callable[[], RunRecord]) -> bool:
        """Whether what a run left is in the datastore: a service knows runs of other datastores, too.

        Parameters
        ----------
        ask : callable
            Gives the run's record, where it is needed.
        """
        if not self._shared:
            return True
        record = ask()
        path = (record.flow, record.run)
        if path not in self._held:
            try:
                claim = read_run(self.storage, *path)
            except NotFound:  # no datastore at all
                claim = None
            self._held[path] = claim is not None and is_claim_of(claim, record)
        return self._held[path]

    def storage_of(self, ask: Callable[[], RunRecord]) -> Storage:
        """Return the datastore with what a run left; `ask` as for `holds`.

        Raises
        ------
        DataError
            If it is not this one.
        """
        if not self.holds(ask):
            record = ask()
            raise DataError(
                f"what the run {record.flow}/{record.run} left is not in the datastore that is looked at from here",
                f"it was run on {record.host or 'another machine'}: set FLOWKIT_DATASTORE to the datastore that it had",
            )
        return self.storage

    def is_far(self, ask: Callable[[], RunRecord]) -> bool:
        """Whether what a run left is at a remote root, where it is read ahead."""
        return self.holds(ask) and self.storage.remote

    def may_hold(self, path: str) -> bool:
        """Whether a file is in the datastore, if there is a datastore."""
        try:
            return self.storage.info(path) is not None
        except NotFound:
            if not self._shared:
                raise
            return False

    @property
    def storage_name(self) -> tuple[str, str]:
        """The kind and the root of the datastore; empty where there is none."""
        try:
            return self.storage.name, self.storage.root
        except NotFound:
            if not self._shared:
                raise
            return "", ""

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


def is_claim_of(claim: Mapping[str, Any], record: RunRecord) -> bool:
    """Whether a run's record in the datastore is of the same run: services and datastores number on their own."""
    owner = ("host", "boot_id", "pid", "process_start")
    if record.pid is not None and all(claim.get(name) == getattr(record, name) for name in owner):
        return True
    created = claim.get("created")
    return isinstance(created, (int, float)) and abs(created - record.created) < 0.001


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
    """Return where a flow that was run here and now would keep its runs: ``local@<root>`` or ``service@<url>``."""
    if is_shared(settings().metadata):
        return f"{settings().metadata}@{_service_url()}"
    configured = settings().datastore
    if not configured:
        return f"{settings().metadata}@{default_root()}"
    return f"{settings().metadata}@{configured if '://' in configured else _absolute(configured)}"


def normal_place(text: str) -> str:
    """Return what a user wrote as a place: ``local@<folder>``, ``service@<url>``, a folder, a URL.

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
    if is_shared(kind):
        from flowkit.metadata.service_calls import checked_url

        url, mark, root = where.partition(ROOT_MARK)
        return f"{kind}@{checked_url(url) if url else _service_url()}{mark}{root}"
    if "://" in where:
        return f"{kind}@{where}"
    folder = _absolute(where)
    inside = os.path.join(folder, FOLDER)
    if os.path.basename(folder) != FOLDER and os.path.isdir(inside):
        folder = inside
    if not os.path.isdir(folder):
        raise NotFound(f"there is no datastore at {folder}", "run a flow there first, or give another folder")
    return f"{kind}@{folder}"


def place_at(kind: str, root: str | None) -> str:
    """Return the place of the runs that are recorded by a kind of store and keep what they make at a root."""
    if not is_shared(kind):
        return f"{kind}@{root}"
    return f"{kind}@{_service_url()}" + (f"{ROOT_MARK}{root}" if root is not None else "")


def root_at(place: str) -> str:
    """Return the root of the datastore of a place."""
    root = connect(place).root
    if root is not None:
        return root
    configured = settings().datastore
    if not configured:
        return default_root()
    return configured if "://" in configured else _absolute(configured)


def _service_url() -> str:
    from flowkit.metadata.service import default_url

    return default_url().rstrip("/")


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
