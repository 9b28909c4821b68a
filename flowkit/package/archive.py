"""The code package as an archive: made so that the same files give the same bytes, and unpacked without trust.

It is a tar, compressed by gzip, whose members are regular files in the order of their names, without times, owners
or links. What comes back out of a datastore may be anybody's work, so everything is checked before the first
file is written: no path leads out, nothing is a link or a device, and what it would fill is bounded.
"""

from __future__ import annotations

import gzip
import io
import json
import mmap
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

from flowkit.exceptions import Conflict, DataError, UsageError
from flowkit.package.files import INFO, MOST_BYTES, MOST_FILES, Package, Source, files_that_are_folders

_LONGEST_READ = 4 << 20
"""Bytes that reading a tar asks for at once, at most: a header that claims to be larger is an attack on memory."""
_BLOCK = 1 << 20
_LONGEST_NAME = 4096


@contextmanager
def pack(package: Package) -> Iterator[memoryview]:
    """Make the archive of a package, and hold it as long as the context lasts.

    Raises
    ------
    UsageError
        If a file cannot be read, or changes meanwhile.
    """
    with tempfile.TemporaryFile() as file:
        with gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped:
            write_tar(package, cast(IO[bytes], zipped))
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            yield view


def write_tar(package: Package, out: IO[bytes]) -> None:
    """Write the package's tar."""
    info = json.dumps(package.info(), sort_keys=True, indent=1).encode()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_member(INFO, len(info), executable=False), io.BytesIO(info))
        for source in package.sources:
            _add(tar, source)


def _add(tar: tarfile.TarFile, source: Source) -> None:
    try:
        with open(source.path, "rb") as file:
            status = os.fstat(file.fileno())
            tar.addfile(_member(source.name, status.st_size, executable=bool(status.st_mode & 0o100)), file)
    except OSError as error:
        why = error.strerror or "it became shorter meanwhile"
        raise UsageError(f"{source.path} is needed for the code package and cannot be read: {why}") from error


def _member(name: str, size: int, *, executable: bool) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o755 if executable else 0o644
    return member  # no time, no owner: they would differ from machine to machine


def names(archive: BinaryIO | bytes | memoryview) -> list[str]:
    """Return the names of the files in an archive, in its order.

    Raises
    ------
    DataError
        If it is damaged or unsafe.
    """
    with _open(archive) as tar:
        return [member.name for member in _checked(tar)]


def read(archive: BinaryIO | bytes | memoryview, name: str) -> bytes | None:
    """Return one file of an archive; None where it has none of that name."""
    with _open(archive) as tar:
        for member in _checked(tar):
            if member.name == name:
                return _content(tar, member).read()
    return None


def read_info(archive: BinaryIO | bytes | memoryview) -> dict[str, Any]:
    """Return what a package says about itself.

    Raises
    ------
    DataError
        If it is no package.
    """
    content = read(archive, INFO)
    try:
        info = json.loads(content) if content is not None else None
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise DataError(f"the code package is damaged: it has no {INFO}")
    return info


def extract(
    archive: BinaryIO | bytes | memoryview,
    folder: str,
    *,
    overwrite: bool = False,
    wanted: Callable[[str], bool] | None = None,
) -> list[str]:
    """Unpack an archive into a folder, which is made where there is none, and return the names of its files.

    Parameters
    ----------
    archive : binary file or bytes
        What `pack` made, or anything else.
    folder : str
        Where to.
    overwrite : bool, default False
        Whether files that are there already are replaced.
    wanted : callable, optional
        ``wanted(name)`` tells whether a file is unpacked; default: all.

    Raises
    ------
    DataError
        If the archive is damaged, or holds something that is not a plain file inside the folder, or would fill
        the disk. Then nothing has been written.
    Conflict
        If a file is there already. Then nothing has been written.
    """
    with _open(archive) as tar:
        members = [member for member in _checked(tar) if wanted is None or wanted(member.name)]
        _check_targets(members, folder, overwrite)
        for member in members:
            _write(tar, member, folder)
    return [member.name for member in members]


def _check_targets(members: list[tarfile.TarInfo], folder: str, overwrite: bool) -> None:
    real = os.path.realpath(folder)
    taken = []
    seen: set[str] = set()
    for member in members:
        path = os.path.join(folder, member.name)
        parent = os.path.dirname(path)
        if parent not in seen:
            seen.add(parent)
            inside = os.path.realpath(parent)
            if inside != real and not inside.startswith(real.rstrip(os.sep) + os.sep):
                raise Conflict(f"{parent} is a link that leads out of {folder}", "unpack into an empty folder")
        if os.path.lexists(path) and (not overwrite or (os.path.isdir(path) and not os.path.islink(path))):
            taken.append(member.name)
    if taken:
        shown = ", ".join(taken[:5]) + (f" and {len(taken) - 5:,} more" if len(taken) > 5 else "")
        raise Conflict(f"{folder} has files of these names already: {shown}", "give another folder, or --force")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: str) -> None:
    path = os.path.join(folder, member.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        os.unlink(path)  # never through a link that may be there, and never into a file that others have open
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(path, flags, 0o755 if member.mode & 0o100 else 0o644), "wb") as file:
        content = _content(tar, member)
        while block := content.read(_BLOCK):
            file.write(block)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    return content


class _Bounded(io.RawIOBase):
    """A stream that gives no more than a package may hold, nor much at once."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence or offset > MOST_BYTES + (64 << 20):
            raise DataError("the code package is damaged: it is larger than any can be")
        return self._stream.seek(offset)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_READ or self._stream.tell() > MOST_BYTES + (64 << 20):
            raise DataError("the code package is damaged: it is larger than any can be")
        return self._stream.read(size)


@contextmanager
def _open(archive: BinaryIO | bytes | memoryview) -> Iterator[tarfile.TarFile]:
    """Open an archive; whatever goes wrong with it inside the context is an error of its data."""
    stream = io.BytesIO(archive) if isinstance(archive, bytes | memoryview) else archive
    try:
        with (
            gzip.GzipFile(fileobj=stream, mode="rb") as unzipped,
            tarfile.open(fileobj=cast(IO[bytes], _Bounded(cast(IO[bytes], unzipped))), mode="r:") as tar,
        ):
            yield tar
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"the code package is damaged: {error or type(error).__name__}") from error


def _checked(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the members, after a look at each: only plain files with plain names, not too many or too large."""
    members: list[tarfile.TarInfo] = []
    total, seen = 0, set[str]()
    for member in tar:
        problem = _unsafe(member)
        if problem is not None:
            raise DataError(
                f"the code package is not safe to unpack: {member.name[:200]!r} {problem}",
                "flowkit has not made it like this: somebody has written into the datastore",
            )
        if member.name in seen:
            raise DataError(f"the code package is damaged: it has {member.name!r} twice")
        seen.add(member.name)
        total += member.size
        if total > MOST_BYTES or len(members) >= MOST_FILES:
            raise DataError("the code package is damaged: it is larger than any can be")
        members.append(member)
    for name in files_that_are_folders(seen):
        raise DataError(f"the code package is damaged: {name!r} is a file and a folder")
    return members


def _unsafe(member: tarfile.TarInfo) -> str | None:
    name = member.name
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a folder" if member.isdir() else "a special file"
        return f"is {kind}, not a plain file"
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0]:
        return "leads out of the folder"
    if "" in parts or "." in parts or not name.isprintable() or len(name) > _LONGEST_NAME:
        return "is not a plain name"
    if hasattr(tarfile, "data_filter"):
        try:
            tarfile.data_filter(member, os.sep)
        except tarfile.FilterError as error:
            return f"is refused: {error}"
    return None
