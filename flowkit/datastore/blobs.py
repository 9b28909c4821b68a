"""Content by its hash: written once, shared by all flows, verified when it is read.

A key is the BLAKE3 of the content in hexadecimal. Hashing uses one thread: it reaches several GB/s, and a pool of
native threads inside a task would hang whatever the user's code forks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from blake3 import blake3

from flowkit.datastore.layout import blob_file
from flowkit.datastore.storage import OLD, Info, Missing, Storage
from flowkit.exceptions import ArtifactError, StoreError
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.datastore.cache import Cache

MAPPED = 1 << 20
"""Bytes from which on content is mapped into memory instead of read."""
_BLOCK = 16 << 20

Buffers = Sequence[bytes | bytearray | memoryview]
"""Content in pieces, which are gone through twice: once for the key, once to be written."""


def key_of(chunks: Buffers) -> str:
    """Return the key of content."""
    if len(chunks) == 1:
        return blake3(chunks[0]).hexdigest()
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


class Blobs:
    """The blobs of one datastore.

    Parameters
    ----------
    storage : Storage
        Where they are.
    verify : str, optional
        ``always``: whatever is loaded is checked against its key; ``stat``: large content once for each
        state of its file (inode, size and time of change); ``off``: never. Default: the setting ``verify``.
    """

    def __init__(self, storage: Storage, verify: str | None = None) -> None:
        self.storage = storage
        self.verify = verify or settings().verify
        self._cache: Cache | None = None
        self._cache_opened = not storage.cached

    def put(self, chunks: Buffers, size: int, key: str | None = None) -> str:
        """Store content unless it is there, and return its key.

        Content that is there and intact is not written again; its time is refreshed, so that a sweep of unused
        blobs spares it. What is there but damaged is replaced.

        Parameters
        ----------
        chunks : sequence of buffers
            The content; contiguous memory is written as it is, without a copy.
        size : int
            Bytes in all.
        key : str, optional
            The content's key, where the caller has computed it already.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        key = key or key_of(chunks)
        path = blob_file(key)
        info = self.storage.info(path)
        if info is None:
            if self.storage.create(path, chunks):
                return key
            info = self.storage.info(path)  # somebody else was first: with this content, one hopes
        if info is None:
            where = self.storage.local_path(path) or f"{self.storage.root}/{path}"
            raise StoreError(f"cannot write {where}: what is there is not a file", f"remove {where}")
        if not self._intact(path, key, size, info) or not self.storage.touch(path):
            self.storage.replace(path, chunks)
        if time.time() - info.modified > OLD:
            from flowkit.datastore.sweeping import outwait

            outwait(self.storage, key)
            if self.storage.info(path) is None:
                self.storage.replace(path, chunks)
        return key

    def get(self, key: str, size: int, what: str | None = None) -> memoryview:
        """Return content as writable memory of its own: changing it never changes what is stored.

        From 1 MB up it is the file mapped copy-on-write, which takes no memory until it is written to; of a remote
        storage the file of the read cache, into which it is fetched if it is not there.

        Parameters
        ----------
        key, size : str and int
            What a manifest says of it.
        what : str, optional
            What to call it in an error, e.g. ``the artifact 'model'``.

        Raises
        ------
        ArtifactError
            If it is missing or damaged.
        """
        path = blob_file(key)
        what = what or "a blob"
        file = self.storage.local_path(path)
        if file is not None and size >= MAPPED:
            return self._map(file, key, size, what, self.storage)
        cache = self._opened_cache()
        if cache is not None and size <= cache.limit:
            copy = self._cached_file(cache, key, size, what) if size >= MAPPED else self._cached(cache, key, size)
            if copy is not None:
                return copy
        view = self._read(path, key, 0, size + 1, what)
        if len(view) != size:
            info = self.storage.info(path)
            raise self._wrong_size(what, key, size, len(view) if info is None else info.size)
        if self.verify != "off":
            self._check(view, key, what)
        if cache is not None and size < MAPPED and (self.verify != "off" or key_of([view]) == key):
            cache.keep(key, view)
        return view

    def get_range(self, key: str, offset: int, length: int, what: str | None = None) -> memoryview:
        """Return part of a blob, writable and not verified: the caller knows a hash of the part.

        Raises
        ------
        ArtifactError
            If the blob is missing or too short.
        """
        what = what or "a blob"
        view = self._read(blob_file(key), key, offset, length, what)
        if len(view) != length:
            raise self._wrong_size(what, key, offset + length, offset + len(view))
        return view

    def key_of_stored(self, key: str) -> str | None:
        """Return the key that the stored content of a blob really has, read in blocks; None where there is no blob."""
        path = blob_file(key)
        return None if self.storage.info(path) is None else self._streamed_key(path)

    def _read(self, path: str, key: str, offset: int, length: int, what: str) -> memoryview:
        try:
            if length <= _BLOCK:
                return memoryview(bytearray(self.storage.read_range(path, offset, length)))
            whole = memoryview(bytearray(length))
            return whole[: self.storage.read_into(path, offset, whole)]
        except Missing:
            raise self._missing(what, key) from None

    def _opened_cache(self) -> Cache | None:
        if not self._cache_opened:
            from flowkit.datastore.cache import open_cache

            self._cache = open_cache()
            self._cache_opened = True
        return self._cache

    def _cached(self, cache: Cache, key: str, size: int) -> memoryview | None:
        """Return small content from the cache; None where there is none, or it is damaged."""
        content = cache.read(key, size)
        if content is not None and self.verify != "off" and key_of([content]) != key:
            cache.drop(key)
            return None
        return None if content is None else memoryview(content)

    def _cached_file(self, cache: Cache, key: str, size: int, what: str) -> memoryview | None:
        """Return large content as its file in the cache, fetched where there is none; None if it cannot be kept."""
        from flowkit.datastore.local import LocalStorage

        path = blob_file(key)

        def fill(offset: int, memory: memoryview) -> None:
            count = self.storage.read_into(path, offset, memory)
            if count != len(memory):
                raise self._wrong_size(what, key, size, offset + count)

        notes = LocalStorage(cache.folder, durable=False)
        for _ in range(2):
            try:
                file = cache.find(key, size) or cache.fetch(key, size, fill)
            except Missing:
                raise self._missing(what, key) from None
            if file is None:
                return None
            try:
                return self._map(file, key, size, what, notes)
            except ArtifactError:  # damaged, or evicted this moment
                cache.drop(key)
        return None

    def _map(self, file: str, key: str, size: int, what: str, notes: Storage) -> memoryview:
        import mmap

        _raise_descriptor_limit()
        try:
            descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise self._missing(what, key) from None
        except OSError as error:
            raise StoreError(f"cannot read {file}: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if status.st_size != size:  # the memory past the end of a truncated file is a bus error
                raise self._wrong_size(what, key, size, status.st_size)
            if sys.platform == "linux":
                # No reservation: content may be larger than the memory that could hold a copy of all of it.
                mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE | 0x4000)
            else:
                mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot map {file} into memory: {error}", "raise the limits of memory or maps") from error
        finally:
            os.close(descriptor)
        view = memoryview(mapped)
        if self.verify == "always" or (self.verify == "stat" and not _seen(notes, key, status)):
            self._check(view, key, what)
            if self.verify == "stat":
                _remember(notes, key, status)
        return view

    def _intact(self, path: str, key: str, size: int, info: Info) -> bool:
        if info.size != size:
            return False
        if self.verify == "off" or self.storage.local_path(path) is None:
            return True
        return key_of(list(self._blocks(path))) == key if size <= _BLOCK else self._streamed_key(path) == key

    def _streamed_key(self, path: str) -> str:
        hasher = blake3()
        for block in self._blocks(path):
            hasher.update(block)
        return hasher.hexdigest()

    def _blocks(self, path: str) -> Iterator[bytes]:
        offset = 0
        try:
            while block := self.storage.read_range(path, offset, _BLOCK):
                offset += len(block)
                yield block
        except Missing:
            return

    def _check(self, view: memoryview, key: str, what: str) -> None:
        found = blake3(view).hexdigest()
        if found != key:
            raise ArtifactError(f"{what} is damaged: its content has the hash {found}, not {key}", self._way_out(key))

    def _wrong_size(self, what: str, key: str, size: int, found: int) -> ArtifactError:
        return ArtifactError(
            f"{what} is damaged: its content ({key}) has {found} bytes, not {size}", self._way_out(key)
        )

    def _missing(self, what: str, key: str) -> ArtifactError:
        return ArtifactError(
            f"the content of {what} is missing: there is no blob {key} in {self.storage.root}",
            "it was deleted; resume the run from the step that made it",
        )

    def _way_out(self, key: str) -> str:
        where = self.storage.local_path(blob_file(key)) or f"{self.storage.root}/{blob_file(key)}"
        return f"delete {where} and resume the run from the step that made it"


def _seen(notes: Storage, key: str, status: os.stat_result) -> bool:
    try:
        return notes.read(_note_file(key)) == _note(status)
    except Missing:
        return False


def _remember(notes: Storage, key: str, status: os.stat_result) -> None:
    try:
        notes.replace(_note_file(key), [_note(status)])
    except StoreError:  # a read-only root: the content is verified again the next time
        pass


def _note_file(key: str) -> str:
    return f".verified/{key[:2]}/{key}"


def _note(status: os.stat_result) -> bytes:
    return b"%d %d %d" % (status.st_ino, status.st_size, status.st_ctime_ns)


_raised = False


def _raise_descriptor_limit() -> None:
    """Let this process hold as many mappings as the system allows: each one keeps a descriptor."""
    global _raised
    if _raised:
        return
    _raised = True
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # forbidden here: what is open stays within the old limit
            pass
