"""A storage in memory: the simplest thing that keeps the port's promises, for tests and trials."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from flowkit.datastore.storage import Chunks, Entry, Info, Missing, Storage, Versioned, check_path


class MemoryStorage(Storage):
    """Objects in a dictionary, gone with the process.

    Parameters
    ----------
    root : str, default "memory:"
        What it is called.
    """

    name = "memory"

    def __init__(self, root: str = "memory:") -> None:
        self.root = root
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._versions: dict[str, int] = {}
        self._writes = 0
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes:
        """Return the whole object."""
        return self._found(path)[0]

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return a part of an object."""
        return self._found(path)[0][offset : offset + length]

    def info(self, path: str) -> Info | None:
        """Return size and time of an object."""
        try:
            content, modified = self._found(path)
        except Missing:
            return None
        return Info(len(content), modified)

    def create(self, path: str, content: Chunks) -> bool:
        """Write an object if there is none."""
        check_path(path)
        whole = b"".join(content)
        with self._lock:
            if path in self._objects:
                return False
            self._put(path, whole)
            return True

    def replace(self, path: str, content: Chunks) -> None:
        """Write an object in the place of any that was there."""
        check_path(path)
        whole = b"".join(content)
        with self._lock:
            self._put(path, whole)

    def read_version(self, path: str) -> Versioned:
        """Return the whole object and its version."""
        check_path(path)
        with self._lock:
            if path not in self._objects:
                raise Missing(path)
            return Versioned(self._objects[path][0], str(self._versions[path]))

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        """Write an object in the place of one that still has the given version."""
        check_path(path)
        with self._lock:
            if path not in self._objects or str(self._versions[path]) != version:
                return False
            self._put(path, bytes(content))
            return True

    def _put(self, path: str, content: bytes) -> None:
        self._writes += 1
        self._objects[path] = (content, time.time())
        self._versions[path] = self._writes

    def delete(self, path: str) -> None:
        """Remove an object."""
        check_path(path)
        with self._lock:
            self._objects.pop(path, None)

    def children(self, path: str) -> Iterator[str]:
        """Yield the names directly below a path."""
        prefix = f"{check_path(path)}/" if path else ""
        with self._lock:
            known = list(self._objects)
        yield from {name[len(prefix) :].partition("/")[0] for name in known if name.startswith(prefix)}

    def walk(self, path: str) -> Iterator[Entry]:
        """Yield every object below a path."""
        prefix = f"{check_path(path)}/" if path else ""
        with self._lock:
            known = sorted(self._objects.items())
        for name, (content, modified) in known:
            if name.startswith(prefix):
                yield Entry(name, len(content), modified)

    def touch(self, path: str) -> bool:
        """Refresh the time of an object."""
        check_path(path)
        with self._lock:
            if path not in self._objects:
                return False
            self._objects[path] = (self._objects[path][0], time.time())
            return True

    def _found(self, path: str) -> tuple[bytes, float]:
        check_path(path)
        with self._lock:
            if path not in self._objects:
                raise Missing(path)
            return self._objects[path]
