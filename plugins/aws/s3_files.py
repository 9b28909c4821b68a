"""Objects of S3 to and from local files: the jobs that `flowkit.S3` has threads carry out."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO

from flowkit.exceptions import FlowkitError
from flowkit.plugins.aws.calls import Absent, PastEnd
from flowkit.plugins.aws.parts import PART, WHOLE
from flowkit.plugins.aws.s3_access import Access, explained, info_of, missing
from flowkit.plugins.aws.s3_crowd import Hopeless, Job
from flowkit.plugins.aws.s3_exceptions import (
    FlowkitS3Exception,
    FlowkitS3InsufficientDiskSpace,
    FlowkitS3InvalidRange,
    S3Failure,
)
from flowkit.plugins.aws.s3_objects import ObjectInfo, Place, RangeInfo, TempFolder

PIECE = 4 << 20
"""Bytes of one request of a download; each thread holds one in memory."""
BUDGET = 128 << 20
"""Bytes of files that uploads hold in memory at once."""


def look(access: Access, place: Place) -> ObjectInfo | None:
    """Return what the service knows of an object; None where there is none."""
    try:
        head = access.bucket(place.bucket).head(place.key)
    except FlowkitError as error:
        raise explained(error, place) from error
    return None if head is None else info_of(head)


class Download:
    """One object, or a part of one, on its way to a file.

    `path`, `info` and `range_info` are set once all of its jobs have been carried out; `path` stays None where there
    is no object and that is allowed.

    Parameters
    ----------
    access : Access
        The way to its bucket.
    place : Place
        What is downloaded.
    offset, length : int, optional
        As those of `S3GetObject`.
    folder : TempFolder
        Where the file is made.
    may_miss : bool
        Whether the object need not exist.
    """

    def __init__(
        self, access: Access, place: Place, offset: int | None, length: int | None, folder: TempFolder, may_miss: bool
    ) -> None:
        self.place = place
        self.path: str | None = None
        self.info: ObjectInfo | None = None
        self.range_info: RangeInfo | None = None
        self._bucket = access.bucket(place.bucket)
        self._offset = offset
        self._length = length
        self._folder = folder
        self._may_miss = may_miss
        self._lock = threading.Lock()
        self._left = 0
        self._file = -1
        self._etag = ""
        self._made = ""

    def begin(self) -> Iterable[Job] | None:
        """Read the beginning; return the jobs for what is left."""
        with self._errors():
            span = self._first_span()
            try:
                beginning = self._bucket.begin(self.place.key, span)
            except PastEnd:
                return self._past_end()
            except Absent:
                if not self._may_miss:
                    raise missing(self.place) from None
                return None
            self._etag = beginning.etag
            self.info = beginning.info
            return self._open(beginning.start, beginning.info.size, beginning.content)

    def discard(self) -> None:
        """Remove what has come; no job of it may be under way."""
        self._close()
        if self._made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._made)

    def _first_span(self) -> str:
        offset, length = self._offset or 0, self._length
        if offset < 0 or length == 0:
            raise self._failure(
                FlowkitS3InvalidRange,
                f"offset={self._offset}, length={length} is no part of an object",
                "an offset is 0 or more; a length is above 0, or below it to count from the end",
            )
        if length is None or length > 0:
            return f"bytes={offset}-{offset + min(PIECE, length or PIECE) - 1}"
        if -length <= PIECE:
            return f"bytes={length}"
        head = self._bucket.head(self.place.key)  # the last bytes, more than one request's: where do they begin?
        start = max(0, head.size + length) if head is not None else 0
        return f"bytes={start}-{start + PIECE - 1}"

    def _past_end(self) -> Iterable[Job] | None:
        head = self._bucket.head(self.place.key)
        size = head.size if head is not None else 0
        if size or self._offset:
            raise self._failure(
                FlowkitS3InvalidRange, f"the object has {size} bytes, and the range begins at {self._offset or 0}"
            )
        self.info = info_of(head) if head is not None else None
        return self._open(0, 0, b"")

    def _open(self, start: int, total: int, content: bytes) -> Iterable[Job] | None:
        length = self._length if self._length is not None and self._length > 0 else total
        end = min(start + length, total)
        self.range_info = RangeInfo(total, start, end - start)
        self._made = self._folder.new_file(self.place.key)
        self._file = os.open(self._made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        _write(self._file, memoryview(content), 0)
        starts = range(start + len(content), end, PIECE)
        self._left = len(starts)
        if not starts:
            self._close()
            self.path = self._made
            return None
        return (self._piece(at, min(PIECE, end - at), at - start) for at in starts)

    def _piece(self, at: int, length: int, position: int) -> Job:
        def fetch() -> None:
            with self._errors():
                memory = _memory(length)
                try:
                    count = self._bucket.get_into(self.place.key, at, memory, self._etag)
                except Absent:
                    count = 0
                if count < length:
                    raise self._failure(FlowkitS3Exception, "it was replaced while it was read", "read it again")
                _write(self._file, memory, position)
                with self._lock:
                    self._left -= 1
                    complete = not self._left
                if complete:
                    self._close()
                    self.path = self._made

        return fetch

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except FlowkitS3Exception:
            raise
        except FlowkitError as error:
            raise explained(error, self.place) from error
        except OSError as error:
            where = os.path.dirname(self._made)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Hopeless(
                    self._failure(
                        FlowkitS3InsufficientDiskSpace,
                        f"there is no space left in {where}",
                        "make room, or name another folder: S3(tmproot=…)",
                    )
                ) from error
            reason = f"its content cannot be written to {where}: {error.strerror or error}"
            raise self._failure(FlowkitS3Exception, reason) from error

    def _failure(self, kind: type[FlowkitS3Exception], reason: str, hint: str | None = None) -> FlowkitS3Exception:
        return kind(f"{self.place.url}: {reason}", hint, (S3Failure(self.place.url, reason),))


_buffers = threading.local()


def _memory(length: int) -> memoryview:
    """Return memory of this thread, which is used again by its next piece."""
    found = getattr(_buffers, "piece", None)
    if found is None:
        found = _buffers.piece = bytearray(PIECE)
    return memoryview(found)[:length]


def _write(file: int, content: memoryview, position: int) -> None:
    while content:
        count = os.pwrite(file, content, position)
        content = content[count:]
        position += count


class Room:
    """Memory that uploads share.

    Parameters
    ----------
    size : int
        Bytes.
    """

    def __init__(self, size: int = BUDGET) -> None:
        self._free = size
        self._changed = threading.Condition()
        self.large = threading.Lock()
        """Held by the one upload that goes in parts: its parts are sent by several threads already."""

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Wait for memory, and give it back in the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


class Upload:
    """One object on its way to S3.

    Parameters
    ----------
    access : Access
        The way to its bucket.
    place : Place
        Where it is stored.
    content : bytes-like, binary file, or callable
        The content; a callable opens a file, which is closed again. It is let go of once it is stored.
    metadata : mapping of str to str
        To be kept with it.
    content_type, encryption : str, optional
        Of the object.
    overwrite : bool
        Whether an object that is there already is replaced.
    room : Room
        The memory for files.
    """

    def __init__(
        self,
        access: Access,
        place: Place,
        content: bytes | bytearray | memoryview | IO[bytes] | Callable[[], IO[bytes]],
        *,
        metadata: Mapping[str, str],
        content_type: str | None,
        encryption: str | None,
        overwrite: bool,
        room: Room,
    ) -> None:
        self.place = place
        self.stored = False
        """Whether this upload wrote the object; False where there was one that was not to be replaced."""
        self._bucket = access.bucket(place.bucket)
        self._content = content
        self._metadata = metadata
        self._content_type = content_type
        self._encryption = encryption
        self._overwrite = overwrite
        self._room = room

    def carry_out(self) -> None:
        """Store the object."""
        content, self._content = self._content, b""
        try:
            if isinstance(content, (bytes, bytearray, memoryview)):
                self._in_memory(content)
            elif callable(content):
                with content() as file:
                    self._from_file(file)
            else:
                self._from_file(content)
        except FlowkitS3Exception:
            raise
        except FlowkitError as error:
            raise explained(error, self.place) from error
        except OSError as error:
            reason = f"what is to be stored cannot be read: {error.strerror or error}"
            raise FlowkitS3Exception(
                f"{self.place.url}: {reason}", None, (S3Failure(self.place.url, reason),)
            ) from error

    def _in_memory(self, content: bytes | bytearray | memoryview) -> None:
        with self._room.large if len(content) > WHOLE else contextlib.nullcontext():
            self._put([content])

    def _from_file(self, file: IO[bytes]) -> None:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= WHOLE:
            with self._room.take(size):
                self._put([file.read(WHOLE)])
        else:
            with self._room.large:
                self._put(iter(lambda: file.read(PART), b""))

    def _put(self, content: Iterable[bytes | bytearray | memoryview]) -> None:
        outcome = self._bucket.put(
            self.place.key,
            content,
            absent=not self._overwrite,
            metadata=self._metadata,
            content_type=self._content_type,
            encryption=self._encryption,
        )
        self.stored = outcome == "written"
