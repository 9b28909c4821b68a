"""What the scheduler remembers, beside the deployments' records: read, and written by version."""

from __future__ import annotations

from collections.abc import Callable

from flowkit.datastore.layout import schedule_file
from flowkit.datastore.sealed import Damaged, create_sealed, seal, unseal
from flowkit.datastore.storage import Missing, Storage
from flowkit.deployer.local.firings import Memory, is_run_of
from flowkit.exceptions import Conflict, StoreError

_TRIES = 20


def read_memory(storage: Storage, name: str) -> tuple[Memory | None, str | None]:
    """Return what is remembered of a deployment, and its version; None where there is nothing.

    One that is damaged counts as nothing: what was started already is not started again, since its run has its id.
    """
    path = schedule_file(name)
    try:
        content, version = storage.read_version(path)
    except Missing:
        return None, None
    try:
        memory = Memory.from_json(unseal(content, f"{storage.root}/{path}"))
        # A run's id names files: one that this scheduler never gives is somebody else's.
        ours = all(is_run_of(name, run) for run in (*memory.active, *(each.run for each in memory.decided)))
        return (memory if ours else None), version
    except (Damaged, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None, version


def write_memory(storage: Storage, name: str, memory: Memory, version: str | None) -> bool:
    """Write what is remembered in the place of a version; False if somebody else has written meanwhile."""
    path = schedule_file(name)
    if version is None:
        return create_sealed(storage, path, memory.to_json())
    content = seal(memory.to_json())
    try:
        if storage.replace_version(path, content, version):
            return True
    except StoreError:
        if not _is_there(storage, path, content):
            raise
        return True
    return _is_there(storage, path, content)  # the storage may have tried again what had worked already


def edit_memory(storage: Storage, name: str, change: Callable[[Memory | None], Memory]) -> Memory:
    """Change what is remembered, whoever else does so at the same time, and return it.

    Raises
    ------
    Conflict
        If it changes with every look.
    """
    for _ in range(_TRIES):
        memory, version = read_memory(storage, name)
        changed = change(memory)
        if changed == memory or write_memory(storage, name, changed, version):
            return changed
    raise Conflict(f"what the scheduler remembers of '{name}' changes with every look", "try again")


def forget_memory(storage: Storage, name: str) -> None:
    """Remove what is remembered of a deployment."""
    storage.delete(schedule_file(name))


def _is_there(storage: Storage, path: str, content: bytes) -> bool:
    try:
        return storage.read(path) == content
    except Missing:
        return False
