"""The storage port: bytes by path, whatever holds them.

A path is relative to the storage's root, with ``/`` between its parts. An implementation never interprets
the content. Every implementation passes the contract suite in tests/contracts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from flowkit.exceptions import StoreError

BLOCK = 16 << 20
"""Bytes that are read at once of something large."""
OLD = 3600.0
"""Seconds since it was written from which on a blob may be in a sweep's way (`flowkit.datastore.sweeping`)."""

Chunks = Iterable[bytes | bytearray | memoryview]
"""Content to write, in order; nothing is joined in memory."""


class Missing(Exception):
    """There is no object at the path."""


def check_path(path: str) -> str:
    """Return the path if it stays below a storage's root.

    Raises
    ------
    StoreError
        If it is empty or absolute, or a part of it is empty, ``.`` or ``..``, or it holds a backslash, a colon in its
        first part or a control character: nothing that any operating system could understand as leaving the root.
    """
    if not path or path[0] == "/" or not path.isprintable() or "\\" in path:
        raise StoreError(f"{path!r} is not a path in a datastore")
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or ":" in parts[0]:
        raise StoreError(f"{path!r} is not a path in a datastore")
    return path


class Versioned(NamedTuple):
    """An object's content with its version: a text that changes with its content, in some storages with every write."""

    content: bytes
    version: str


class Info(NamedTuple):
    """What a storage knows of one object: its size in bytes and the time it was last written (epoch seconds)."""

    size: int
    modified: float


class Entry(NamedTuple):
    """One object of a listing: its path, its size in bytes and the time it was last written (epoch seconds)."""

    path: str
    size: int
    modified: float


class Storage(ABC):
    """Bytes by path below one root."""

    name: str
    """The name in the registry: ``local``, ``memory``, ``s3``."""
    root: str
    """Where it is, as the user would write it: a folder or a URL."""
    cached: bool = False
    """Whether reading is so slow that blobs are worth a copy on this machine (`flowkit.datastore.cache`)."""

    @classmethod
    def warm(cls) -> None:
        """Import and cache what opening one takes, once before processes are forked that open one each.

        It starts no thread and opens no connection: neither survives a fork.
        """
        return None

    @property
    def remote(self) -> bool:
        """Whether each call goes over a network: then readers of many objects read several at once."""
        return self.local_path("x") is None

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the whole object. Raises `Missing`."""

    @abstractmethod
    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` (fewer only past the end). Raises `Missing`."""

    def read_into(self, path: str, offset: int, memory: memoryview) -> int:
        """Read part of an object into writable memory; return how many bytes came, fewer only past its end.

        Raises `Missing`. Here it is done block by block; a storage that can do better does.
        """
        done = 0
        while True:
            block = self.read_range(path, offset + done, min(BLOCK, len(memory) - done))
            memory[done : done + len(block)] = block
            done += len(block)
            if not block or done == len(memory):
                return done

    @abstractmethod
    def info(self, path: str) -> Info | None:
        """Return size and time of an object, or None where there is none."""

    @abstractmethod
    def create(self, path: str, content: Chunks) -> bool:
        """Write an object if there is none at the path.

        Returns
        -------
        bool
            True if this call made it; False if there was one already, which then is left as it was. A reader
            never sees part of an object, and of several writers exactly one is told True.
        """

    def create_told(self, path: str, content: Chunks, facts: Mapping[str, str]) -> bool:
        """Write an object as `create` does, with short texts that a storage keeps beside it where it can.

        They are for schedulers which look at an object without reading it; nothing of flowkit reads them.
        """
        return self.create(path, content)

    @abstractmethod
    def replace(self, path: str, content: Chunks) -> None:
        """Write an object whole, in the place of any that was there."""

    @abstractmethod
    def read_version(self, path: str) -> Versioned:
        """Return the whole object and its version. Raises `Missing`."""

    @abstractmethod
    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        """Write an object in the place of one that still has the given version.

        Returns
        -------
        bool
            True if this call replaced it; False if it has another version by now, or is gone. Of several writers
            that read the same version exactly one is told True.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; nothing happens where there is none."""

    @abstractmethod
    def children(self, path: str) -> Iterator[str]:
        """Yield the names directly below a path, folders and objects alike, in no order; the root is ``""``."""

    def walk(self, path: str) -> Iterator[Entry]:
        """Yield every object below a path with its size and time; everything below the root for ``""``.

        What is in one folder, with all that is below it, comes in one piece, in no other order. Every object that
        was there before the call and is not removed meanwhile is among them; of what is written or removed meanwhile,
        some may be. Links to folders are followed.

        Raises
        ------
        StoreError
            If anything below the path cannot be listed: nothing is ever left out silently.
        """
        folders = []
        for name in self.children(path):
            child = f"{path}/{name}" if path else name
            info = self.info(child)
            if info is None:
                folders.append(child)  # or an object that was removed this moment: then nothing is below it
            else:
                yield Entry(child, info.size, info.modified)
        for folder in folders:
            yield from self.walk(folder)

    @abstractmethod
    def touch(self, path: str) -> bool:
        """Refresh the time of an object, so that a sweep spares it; False where there is none."""

    def delete_older(self, path: str, before: float) -> bool:
        """Remove an object that was last written before a time (epoch seconds); return whether this call did.

        The time is looked at right before the removal, and again before each repetition of it.
        """
        info = self.info(path)
        if info is None or info.modified >= before:
            return False
        self.delete(path)
        return True

    def delete_all(self, paths: Iterable[str]) -> None:
        """Remove many objects, in as few calls as the storage allows; in no order."""
        for path in paths:
            self.delete(path)

    def prune(self, path: str) -> None:  # noqa: B027 (most storages have no folders)
        """Remove the folders at and below a path that hold nothing, where folders are things of their own."""

    def unfinished(self, before: float, *, remove: bool = False) -> list[Entry]:
        """Return what writers that are gone left half-written before a time (epoch seconds), and remove it if told.

        It is no object: nothing else lists it. Each has the name by which the storage knows it, for people.
        """
        return []

    def local_path(self, path: str) -> str | None:
        """Return the file that holds the object, where it is one on this machine (to map it into memory)."""
        return None
