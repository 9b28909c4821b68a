"""Copies of remote blobs on this machine: files named by their key, so that what is in them can be checked.

Nothing depends on it. What cannot be kept is read from the datastore; what is damaged is removed and fetched again; and
processes that want the same large blob at once wait for the first one's copy.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator

from flowkit.datastore.root import cache_folder
from flowkit.exceptions import UsageError
from flowkit.settings import settings

FOLDER = "blobs"
"""The folder below the user's cache folder."""
PARTS = "parts"
"""The folder below that for what is being fetched."""
STALE = 24 * 3600.0
"""Seconds after which an unfinished copy is what a killed process left."""

_REFRESH = 3600.0
_SHARE = 64
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_BUFFER = 64 << 20

Read = Callable[[int, memoryview], None]
"""Fills memory with the content from an offset on, or raises."""


def open_cache() -> Cache | None:
    """Return the cache that the settings ask for; None where they ask for none.

    Raises
    ------
    UsageError
        If the setting ``cache_size`` is no size.
    """
    limit = parse_size(settings().cache_size)
    if settings().cache == "off" or limit <= 0:
        return None
    return Cache(os.path.join(cache_folder(), FOLDER), limit)


def parse_size(text: str) -> int:
    """Return the bytes that a text such as ``10GB``, ``500 MiB`` or ``0`` means.

    Raises
    ------
    UsageError
        If it is not one.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"the setting cache_size is '{text}', which is no size", "write it like 10GB or 500MB")
    number, unit, binary = match.groups()
    power = " kmgt".index(unit.lower() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


class Cache:
    """Blobs in a folder, the oldest removed when they come to too much.

    Parameters
    ----------
    folder : str
        Where; made when something is kept.
    limit : int
        Bytes. The folder is gone through about once for every 64th of it that is added, so it may come to a little
        more in between.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def find(self, key: str, size: int) -> str | None:
        """Return the file that holds a blob, and note that it is in use; None where there is none of that size."""
        file = self._file(key)
        try:
            status = os.stat(file)
            if status.st_size != size:
                os.unlink(file)
                return None
            if time.time() - status.st_mtime > _REFRESH:
                os.utime(file)
        except OSError:
            return None
        return file

    def read(self, key: str, size: int) -> bytearray | None:
        """Return a small blob's content, not checked; None where there is none of that size."""
        file = self.find(key, size)
        if file is None:
            return None
        content = bytearray(size)
        try:
            with open(file, "rb", buffering=0) as stream:
                return content if stream.readinto(content) == size else None
        except OSError:
            return None

    def keep(self, key: str, content: memoryview) -> None:
        """Keep a small blob whose content was checked."""
        temporary = f"{self.folder}/{PARTS}/{key}-{os.urandom(6).hex()}"
        try:
            try:
                descriptor = self._open(temporary, os.O_EXCL)
                try:
                    done = 0
                    while done < len(content):
                        done += os.write(descriptor, content[done:])
                finally:
                    os.close(descriptor)
                self._publish(temporary, key)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
        except OSError:  # a full disk, a folder that cannot be written: there is no copy then
            return
        self._added(len(content))

    def fetch(self, key: str, size: int, read: Read) -> str | None:
        """Fetch a large blob straight into its file, once for all processes of the machine.

        Parameters
        ----------
        key, size : str and int
            Of the blob.
        read : callable
            Fills memory with the blob's content from an offset on; what it raises is raised.

        Returns
        -------
        str or None
            The file, whose content is not checked yet; None where it cannot be kept here.
        """
        part = f"{self.folder}/{PARTS}/{key}"
        try:
            descriptor = self._locked(part, key, patience=max(60.0, size / 10e6))
        except OSError:
            return None
        if descriptor is None:
            return self.find(key, size)
        try:
            if self.find(key, size) is None:
                if not self._fill(descriptor, part, size, read):
                    return None
                self._publish(part, key)
                self._added(size)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return self._file(key)

    def drop(self, key: str) -> None:
        """Remove a copy that is damaged."""
        with contextlib.suppress(OSError):
            os.unlink(self._file(key))

    def sweep(self) -> int:
        """Remove the oldest copies until they come to less than the limit, and return how many these were."""
        found = sorted(self._entries())
        total = sum(size for _, size, _ in found)
        count = 0
        for _, size, file in found:
            if total <= self.limit - self.limit // 16:
                break
            with contextlib.suppress(OSError):
                os.unlink(file)
                count += 1
            total -= size
        self._sweep_parts()
        return count

    def _file(self, key: str) -> str:
        return f"{self.folder}/{key[:2]}/{key}"

    def _open(self, file: str, flags: int = 0) -> int:
        flags |= os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        try:
            return os.open(file, flags, 0o600)
        except FileNotFoundError:
            self._make_folder(os.path.dirname(file))
            return os.open(file, flags, 0o600)

    def _make_folder(self, folder: str) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)  # the mode is that of the last folder only
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def _publish(self, temporary: str, key: str) -> None:
        file = self._file(key)
        try:
            os.replace(temporary, file)
        except FileNotFoundError:
            self._make_folder(os.path.dirname(file))
            os.replace(temporary, file)

    def _locked(self, part: str, key: str, patience: float) -> int | None:
        """Return a locked descriptor of the part file; None where another process made the copy meanwhile, or hangs."""
        import fcntl

        deadline = time.monotonic() + patience
        while True:
            descriptor = self._open(part)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _same(part, descriptor):
                        return descriptor
                except BlockingIOError:
                    time.sleep(0.02)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            if os.path.exists(self._file(key)) or time.monotonic() > deadline:
                return None

    def _fill(self, descriptor: int, part: str, size: int, read: Read) -> bool:
        try:
            os.ftruncate(descriptor, 0)
            if hasattr(os, "posix_fallocate"):
                # All of it, before it is mapped: memory that the disk has no place for would be a bus error.
                os.posix_fallocate(descriptor, 0, size)
                mapped = mmap.mmap(descriptor, size)
                try:
                    read(0, memoryview(mapped))
                finally:
                    with contextlib.suppress(BufferError):  # an error's traceback may hold parts of it a little longer
                        mapped.close()
            else:
                buffer = memoryview(bytearray(min(size, _BUFFER)))
                for offset in range(0, size, len(buffer)):
                    block = buffer[: min(len(buffer), size - offset)]
                    read(offset, block)
                    done = 0
                    while done < len(block):
                        done += os.pwrite(descriptor, block[done:], offset + done)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(part)
            return False
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        return True

    def _added(self, size: int) -> None:
        # Not by the generator of the module random: its state is the user's.
        if int.from_bytes(os.urandom(4), "big") * self.limit < size * _SHARE << 32:
            self.sweep()

    def _entries(self) -> Iterator[tuple[float, int, str]]:
        for folder in _listed(self.folder):  # those named by the first two digits of keys
            if len(folder.name) == 2 and folder.is_dir(follow_symlinks=False):
                for entry in _listed(folder.path):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        yield status.st_mtime, status.st_size, entry.path

    def _sweep_parts(self) -> None:
        limit = time.time() - STALE
        for entry in _listed(f"{self.folder}/{PARTS}"):
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < limit:
                    os.unlink(entry.path)


def _same(file: str, descriptor: int) -> bool:
    """Whether the file is still the one that the descriptor is of: who had the lock may have moved it."""
    try:
        there, held = os.stat(file), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _listed(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
