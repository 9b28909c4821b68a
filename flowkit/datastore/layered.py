"""A storage on top of another one: what is written goes above, what is read comes from above or from below.

The one below is never changed: a step that is tried out (``spin``) reads a run's artifacts and leaves nothing in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from flowkit.datastore.storage import Chunks, Info, Missing, Storage, Versioned


class LayeredStorage(Storage):
    """Two storages as one.

    Parameters
    ----------
    above : Storage
        Is read first, and written to.
    below : Storage
        Is read only.
    """

    name = "layered"

    def __init__(self, above: Storage, below: Storage) -> None:
        self.above = above
        self.below = below
        self.root = below.root
        self.cached = below.cached

    def read(self, path: str) -> bytes:
        """Return the whole object. Raises `Missing`."""
        try:
            return self.above.read(path)
        except Missing:
            return self.below.read(path)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`. Raises `Missing`."""
        try:
            return self.above.read_range(path, offset, length)
        except Missing:
            return self.below.read_range(path, offset, length)

    def read_into(self, path: str, offset: int, memory: memoryview) -> int:
        """Read part of an object into writable memory. Raises `Missing`."""
        try:
            return self.above.read_into(path, offset, memory)
        except Missing:
            return self.below.read_into(path, offset, memory)

    def info(self, path: str) -> Info | None:
        """Return size and time of an object, or None where there is none."""
        return self.above.info(path) or self.below.info(path)

    def create(self, path: str, content: Chunks) -> bool:
        """Write an object above, if there is none above."""
        return self.above.create(path, content)

    def replace(self, path: str, content: Chunks) -> None:
        """Write an object whole, above."""
        self.above.replace(path, content)

    def read_version(self, path: str) -> Versioned:
        """Return the whole object and its version. Raises `Missing`."""
        try:
            return self.above.read_version(path)
        except Missing:
            return self.below.read_version(path)

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        """Write an object above in the place of one above that still has the given version."""
        return self.above.replace_version(path, content, version)

    def delete(self, path: str) -> None:
        """Remove an object above; one below stays."""
        self.above.delete(path)

    def children(self, path: str) -> Iterator[str]:
        """Yield the names directly below a path, of both."""
        yield from {*self.above.children(path), *self.below.children(path)}

    def touch(self, path: str) -> bool:
        """Refresh the time of an object above; one below is left as it is."""
        return self.above.touch(path) or self.below.info(path) is not None

    def local_path(self, path: str) -> str | None:
        """Return the file that holds the object, where it is one on this machine."""
        if self.above.info(path) is None and self.below.info(path) is not None:
            return self.below.local_path(path)
        return self.above.local_path(path)
