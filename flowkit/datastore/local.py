"""A storage in a folder of this machine.

What is written goes to a temporary file in ``<root>/.tmp`` first. `create` then hard-links it to its name, which
fails where the name is taken (a rename would silently replace; opening with O_EXCL and writing afterwards can leave
an empty claim); `replace` renames it. A reader therefore sees a whole object or none, and a file that is mapped into
memory is never changed. On a file system without hard links Linux's RENAME_NOREPLACE does the same; where that does
not work either, `create` refuses with a StoreError rather than pretend.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator

from flowkit.datastore.storage import Chunks, Entry, Info, Missing, Storage, Versioned, check_path
from flowkit.exceptions import StoreError
from flowkit.settings import settings

TEMPORARY = ".tmp"
"""The folder below the root for files that are being written."""
STALE = 24 * 3600.0
"""Seconds after which a temporary file that nobody writes to any more is what a killed process left."""

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_GATHER = 1 << 20
_DEEPEST = 64
_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or set FLOWKIT_DATASTORE to a folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or set FLOWKIT_DATASTORE to another folder",
    errno.EACCES: "you may not write there: change the folder's permissions, or set FLOWKIT_DATASTORE to another one",
    errno.EPERM: "you may not write there: change the folder's permissions, or set FLOWKIT_DATASTORE to another one",
    errno.EROFS: "the file system is read-only: set FLOWKIT_DATASTORE to a folder that can be written",
    errno.EMFILE: "this process has too many files open: raise the limit (ulimit -n)",
    errno.ENFILE: "the machine has too many files open",
    errno.EIO: "the disk or the network behind the folder has a fault",
    errno.ESTALE: "the network file system has lost the folder: mount it again",
}


class LocalStorage(Storage):
    """Objects as files below a folder.

    Parameters
    ----------
    root : str
        The folder. It must exist before anything is written (`flowkit.datastore.root.make_root`).
    durable : bool, optional
        Whether what was written survives a power cut once the call has returned: content and folders are fsynced.
        Default: the setting ``durable``.
    """

    name = "local"

    def __init__(self, root: str, durable: bool | None = None) -> None:
        self.root = os.path.abspath(root)
        self.durable = settings().durable if durable is None else durable
        self._settled: set[str] = set()

    def read(self, path: str) -> bytes:
        """Return the whole object."""
        descriptor = self._open(path)
        try:
            size = os.fstat(descriptor).st_size
            content = _read_up_to(descriptor, size + 1)
            while len(content) > size:
                more = _read_up_to(descriptor, _GATHER)
                if not more:
                    break
                size, content = size + len(more), content + more
            return content
        except IsADirectoryError:
            raise Missing(path) from None
        except OSError as error:
            raise self._failure("read", path, error) from error
        finally:
            os.close(descriptor)

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return a part of an object."""
        descriptor = self._open(path)
        try:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return _read_up_to(descriptor, length)
        except IsADirectoryError:
            raise Missing(path) from None
        except OSError as error:
            raise self._failure("read", path, error) from error
        finally:
            os.close(descriptor)

    def info(self, path: str) -> Info | None:
        """Return size and time of an object."""
        try:
            status = os.stat(self._file(path))
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise self._failure("look at", path, error) from error
        return Info(status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None

    def create(self, path: str, content: Chunks) -> bool:
        """Write an object if there is none."""
        target = self._file(path)
        temporary = self._write(path, content)
        try:
            try:
                made = _link(temporary, target)
            except FileNotFoundError:
                self._make_folder(os.path.dirname(target))
                made = _link(temporary, target)
            if made and self.durable:
                self._settle(os.path.dirname(target))
            return made
        except OSError as error:
            raise self._failure("write", path, error) from error
        finally:
            _remove(temporary)

    def replace(self, path: str, content: Chunks) -> None:
        """Write an object in the place of any that was there."""
        target = self._file(path)
        temporary = self._write(path, content)
        try:
            try:
                os.replace(temporary, target)
            except FileNotFoundError:
                self._make_folder(os.path.dirname(target))
                os.replace(temporary, target)
            if self.durable:
                self._settle(os.path.dirname(target))
        except OSError as error:
            _remove(temporary)
            raise self._failure("write", path, error) from error

    def read_version(self, path: str) -> Versioned:
        """Return the whole object and its version."""
        descriptor = self._open(path)
        try:
            return Versioned(_read_up_to(descriptor, os.fstat(descriptor).st_size), _version(descriptor))
        except OSError as error:
            raise self._failure("read", path, error) from error
        finally:
            os.close(descriptor)

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        """Write an object in the place of one that still has the given version.

        Who replaces it holds a lock on the file that is there; who has waited for that lock finds another file then.
        """
        import fcntl

        try:
            descriptor = self._open(path)
        except Missing:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                there = os.stat(self._file(path))
            except FileNotFoundError:
                return False
            held = os.fstat(descriptor)
            if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino) or _version(descriptor) != version:
                return False
            self.replace(path, [content])
            return True
        except OSError as error:
            raise self._failure("write", path, error) from error
        finally:
            os.close(descriptor)

    def delete(self, path: str) -> None:
        """Remove an object."""
        try:
            os.unlink(self._file(path))
        except OSError as error:
            if error.errno not in _ABSENT:
                raise self._failure("remove", path, error) from error

    def children(self, path: str) -> Iterator[str]:
        """Yield the names directly below a path."""
        try:
            names = os.listdir(self._file(path) if path else self.root)
        except OSError as error:
            if error.errno in _ABSENT:
                return
            raise self._failure("list", path or ".", error) from error
        for name in names:
            if path or name != TEMPORARY:
                yield name

    def walk(self, path: str) -> Iterator[Entry]:
        """Yield every object below a path."""
        folders = [path and check_path(path)]
        while folders:
            folder = folders.pop()
            if folder.count("/") > _DEEPEST:
                raise StoreError(f"{self.root}/{folder} has no end", "a link in the datastore leads back to itself")
            try:
                with os.scandir(f"{self.root}/{folder}") as entries:
                    found = [entry for entry in entries if folder or entry.name != TEMPORARY]
            except OSError as error:
                if error.errno in _ABSENT:
                    continue
                raise self._failure("list", folder or ".", error) from error
            for entry in found:
                child = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    status = entry.stat()
                except FileNotFoundError:  # removed this moment, or a link to nothing
                    continue
                except OSError as error:
                    raise self._failure("look at", child, error) from error
                if stat.S_ISDIR(status.st_mode):
                    folders.append(child)
                elif stat.S_ISREG(status.st_mode):
                    yield Entry(child, status.st_size, status.st_mtime)

    def prune(self, path: str) -> None:
        """Remove the folders at and below a path that hold nothing."""
        for folder, _, _ in os.walk(self._file(path), topdown=False):
            try:
                os.rmdir(folder)
            except OSError:  # something is in it
                continue

    def unfinished(self, before: float, *, remove: bool = False) -> list[Entry]:
        """Return the temporary files that nobody has written to since a time."""
        folder = f"{self.root}/{TEMPORARY}"
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime < before:
                        found.append(Entry(f"{TEMPORARY}/{entry.name}", status.st_size, status.st_mtime))
        except FileNotFoundError:  # no folder yet, or a writer came to its end this moment
            pass
        except OSError as error:
            raise self._failure("list", TEMPORARY, error) from error
        if remove:
            for each in found:
                _remove(f"{self.root}/{each.path}")
        return found

    def touch(self, path: str) -> bool:
        """Refresh the time of an object."""
        file = self._file(path)
        try:
            os.utime(file)
            if self.durable:  # it may have been written by a run that was not durable
                _sync(file)
                self._settle(os.path.dirname(file))
            return True
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            if error.errno not in (errno.EPERM, errno.EACCES):
                raise self._failure("refresh", path, error) from error
        # Somebody else's file in a shared folder: only its owner may change its time, so it becomes ours.
        try:
            self.replace(path, self._blocks(path))
        except Missing:
            return False
        return True

    def local_path(self, path: str) -> str | None:
        """Return the file that holds the object."""
        return self._file(path)

    def sweep(self, now: float | None = None) -> int:
        """Remove what killed processes left half-written a day ago or more, and return how many files that were."""
        folder = os.path.join(self.root, TEMPORARY)
        limit = (time.time() if now is None else now) - STALE
        count = 0
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < limit:
                        _remove(entry.path)
                        count += 1
        except OSError:  # no folder yet, read-only, or another process swept first: nothing depends on it
            return count
        return count

    def _file(self, path: str) -> str:
        return f"{self.root}/{check_path(path)}"

    def _open(self, path: str) -> int:
        try:
            return os.open(self._file(path), _READ)
        except OSError as error:
            if error.errno in _ABSENT:
                raise Missing(path) from None
            raise self._failure("read", path, error) from error

    def _write(self, path: str, content: Chunks) -> str:
        """Write content to a new temporary file and return its name."""
        temporary = f"{self.root}/{TEMPORARY}/{os.getpid():x}-{os.urandom(8).hex()}"
        try:
            try:
                descriptor = os.open(temporary, _WRITE, 0o666)
            except FileNotFoundError:
                self._make_temporary_folder()
                descriptor = os.open(temporary, _WRITE, 0o666)
        except OSError as error:
            raise self._failure("write", path, error) from error
        try:
            try:
                _write_all(descriptor, content)
                if self.durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            _remove(temporary)
            raise self._failure("write", path, error) from error
        except BaseException:
            _remove(temporary)
            raise
        return temporary

    def _make_temporary_folder(self) -> None:
        try:
            os.mkdir(f"{self.root}/{TEMPORARY}")
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise StoreError(
                f"the datastore's folder {self.root} does not exist",
                "it was moved or deleted: put it back, or begin a new run, which makes a new one",
            ) from None

    def _make_folder(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)

    def _settle(self, folder: str) -> None:
        """Make the names in a folder survive a power cut, and those of the folders that lead to it.

        Another process may have made these: the log process, or a run that is not durable.
        """
        _sync(folder)
        if len(self._settled) > 10_000:
            self._settled.clear()
        while folder not in self._settled and folder.startswith(self.root):
            self._settled.add(folder)
            folder = os.path.dirname(folder)
            try:
                _sync(folder)
            except PermissionError:  # the folder that the root is in may be somebody else's
                if folder.startswith(self.root):
                    raise

    def _blocks(self, path: str) -> Iterator[bytes]:
        offset = 0
        while block := self.read_range(path, offset, 8 * _GATHER):
            offset += len(block)
            yield block

    def _failure(self, action: str, path: str, error: OSError) -> StoreError:
        hint = _HINTS.get(error.errno or 0)
        if action != "write" and error.errno in (errno.EACCES, errno.EPERM):
            hint = "you may not: change the permissions of the datastore's folder"
        reason = error.strerror or str(error)
        return StoreError(f"cannot {action} {self.root}/{path}: {reason}", hint)


def _version(descriptor: int) -> str:
    """Every write makes a new file: its number and time are the version."""
    found = os.fstat(descriptor)
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def _read_up_to(descriptor: int, length: int) -> bytes:
    # One read is capped (2 GB on Linux) and may be short on a network file system.
    content = os.read(descriptor, min(length, 1 << 30))
    if len(content) == length or not content:
        return content
    parts = [content]
    length -= len(content)
    while length > 0 and (content := os.read(descriptor, min(length, 1 << 30))):
        parts.append(content)
        length -= len(content)
    return b"".join(parts)


def _write_all(descriptor: int, content: Chunks) -> None:
    """Write chunks, small ones gathered and large ones without a copy."""
    gathered: list[bytes | bytearray | memoryview] = []
    waiting = 0
    for chunk in content:
        size = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
        if size < _GATHER:
            gathered.append(chunk)
            waiting += size
        if waiting >= _GATHER or (gathered and size >= _GATHER):
            _write_one(descriptor, b"".join(gathered))
            gathered, waiting = [], 0
        if size >= _GATHER:
            _write_one(descriptor, chunk)
    if gathered:
        _write_one(descriptor, gathered[0] if len(gathered) == 1 else b"".join(gathered))


def _write_one(descriptor: int, chunk: bytes | bytearray | memoryview) -> None:
    with memoryview(chunk) as whole, whole.cast("B") as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done : done + (1 << 30)])


def _link(temporary: str, target: str) -> bool:
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        # A network file system may have lost the reply to the call that made the link, and tried again.
        return os.stat(temporary).st_nlink > 1 and os.path.samefile(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS or os.path.lexists(target):
            if os.path.lexists(target):
                return False
            raise
    return _rename_if_absent(temporary, target)


def _rename_if_absent(temporary: str, target: str) -> bool:
    """Rename without replacing, on a file system that has no hard links."""
    if sys.platform == "linux":
        import ctypes

        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename is not None:
            here, no_replace = -100, 1
            if rename(here, os.fsencode(temporary), here, os.fsencode(target), no_replace) == 0:
                return True
            number = ctypes.get_errno()
            if number == errno.EEXIST:
                return False
            if number == errno.ENOENT:
                raise FileNotFoundError(number, os.strerror(number))
    raise StoreError(
        f"the file system of {os.path.dirname(target)} has neither hard links nor a rename that does not replace",
        "flowkit needs one of them to commit results safely: set FLOWKIT_DATASTORE to a folder on another disk",
    )


def _remove(file: str) -> None:
    try:
        os.unlink(file)
    except OSError:  # it was renamed to its place, or is swept later
        pass


def _sync(path: str) -> None:
    """Make a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
