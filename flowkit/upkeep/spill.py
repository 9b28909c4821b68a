"""Facts about blobs, more than memory may hold: put into files by the first digits of the blob's key.

There are 256 of them, as there are folders of blobs, so that what is known of the blobs of one folder (a 256th of all)
is in memory at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""The first two digits that a key can have."""
_HELD = 200_000


class Spill:
    """Facts of a fixed length, each once in a while more than once; files below the system's temporary folder.

    Parameters
    ----------
    extra : int, default 0
        Bytes of a fact beside the key.
    """

    def __init__(self, extra: int = 0) -> None:
        self._length = 32 + extra
        self._folder = tempfile.TemporaryDirectory(prefix="flowkit-upkeep-")
        self._held: set[bytes] = set()
        self.added = 0
        """How many facts were put in."""

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, key: bytes, extra: bytes = b"") -> None:
        """Put a fact in: a key as its 32 bytes, and what is known of it."""
        self.added += 1
        self._held.add(key + extra)
        if len(self._held) >= _HELD:
            self._flush()

    def facts(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the key (in hexadecimal) and the rest of each fact of a prefix; one may come several times."""
        self._flush()
        try:
            with open(os.path.join(self._folder.name, prefix), "rb") as file:
                while block := file.read(self._length * 4096):
                    for start in range(0, len(block), self._length):
                        fact = block[start : start + self._length]
                        yield fact[:32].hex(), fact[32:]
        except FileNotFoundError:
            return

    def keys(self, prefix: str) -> set[str]:
        """Return the keys of a prefix."""
        return {key for key, _ in self.facts(prefix)}

    def _flush(self) -> None:
        if not self._held:
            return
        parts: dict[int, list[bytes]] = {}
        for fact in self._held:
            parts.setdefault(fact[0], []).append(fact)
        for number, facts in parts.items():
            with open(os.path.join(self._folder.name, PREFIXES[number]), "ab") as file:
                file.write(b"".join(facts))
        self._held = set()
