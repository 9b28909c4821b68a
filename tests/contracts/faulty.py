"""A storage whose calls fail: before anything is done, after all of it is, half-way, or late."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

from flowkit.datastore.storage import Chunks, Info, Storage, Versioned
from flowkit.exceptions import StoreError


class FaultyStorage(Storage):
    """Another storage, with faults.

    Parameters
    ----------
    inner : Storage
        What does the work.
    rate : float
        The share of calls that fail.
    seed : int
        Of the faults.
    torn : float
        The share of the failing writes that fail after their effect: it is there, and the answer was lost.
    late : float
        Seconds that a call takes longer, at most.

    Attributes
    ----------
    seen : Counter
        How many calls were ``fine``, ``failed`` and ``torn``.
    """

    def __init__(self, inner: Storage, rate: float, *, seed: int = 1, torn: float = 0.5, late: float = 0.0) -> None:
        self.inner = inner
        self.name = inner.name
        self.root = inner.root
        self.rate = rate
        self.torn = torn
        self.late = late
        self.seen: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def _begin(self, path: str, *, effect: bool = False) -> bool:
        """Be late, fail, or say whether the call fails after its effect."""
        with self._lock:
            fails = self._random.random() < self.rate
            torn = fails and effect and self._random.random() < self.torn
            pause = self._random.random() * self.late
            self.seen["torn" if torn else "failed" if fails else "fine"] += 1
        if pause:
            time.sleep(pause)
        if fails and not torn:
            raise StoreError(f"cannot reach {self.root}/{path}: nothing was done")
        return torn

    def _end(self, path: str, torn: bool) -> None:
        if torn:
            raise StoreError(f"cannot reach {self.root}/{path}: the answer was lost")

    def read(self, path: str) -> bytes:
        self._begin(path)
        return self.inner.read(path)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        self._begin(path)
        return self.inner.read_range(path, offset, length)

    def read_into(self, path: str, offset: int, memory: memoryview) -> int:
        """Read; half of what is wanted is there already when it fails."""
        if self._begin(path, effect=True):
            self.inner.read_into(path, offset, memory[: len(memory) // 2])
            self._end(path, True)
        return self.inner.read_into(path, offset, memory)

    def read_version(self, path: str) -> Versioned:
        self._begin(path)
        return self.inner.read_version(path)

    def info(self, path: str) -> Info | None:
        self._begin(path)
        return self.inner.info(path)

    def create(self, path: str, content: Chunks) -> bool:
        torn = self._begin(path, effect=True)
        made = self.inner.create(path, content)
        self._end(path, torn)
        return made

    def replace(self, path: str, content: Chunks) -> None:
        torn = self._begin(path, effect=True)
        self.inner.replace(path, content)
        self._end(path, torn)

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        torn = self._begin(path, effect=True)
        made = self.inner.replace_version(path, content, version)
        self._end(path, torn)
        return made

    def delete(self, path: str) -> None:
        torn = self._begin(path, effect=True)
        self.inner.delete(path)
        self._end(path, torn)

    def children(self, path: str) -> Iterator[str]:
        torn = self._begin(path, effect=True)
        for number, name in enumerate(self.inner.children(path)):
            if torn and number:
                break
            yield name
        self._end(path, torn)

    def touch(self, path: str) -> bool:
        torn = self._begin(path, effect=True)
        made = self.inner.touch(path)
        self._end(path, torn)
        return made

    def local_path(self, path: str) -> str | None:
        return self.inner.local_path(path)
