"""Objects of S3 to and from local files: the jobs that `flowkit.S3` has threads carry out."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import IO, Any

from flowkit.exceptions import FlowkitError
from flowkit.plugins.aws.parts import MOST_PARTS, PART, WHOLE
from flowkit.plugins.aws.s3_access import Access, explained, missing
from flowkit.plugins.aws.s3_crowd import Hopeless, Job
from flowkit.plugins.aws.s3_exceptions import (
    FlowkitS3Exception,
    FlowkitS3InsufficientDiskSpace,
    FlowkitS3InvalidRange,
    S3Failure,
)
from flowkit.plugins.aws.s3_objects import ObjectInfo, Place, RangeInfo, TempFolder, unpack_metadata
from flowkit.plugins.aws.s3_quick import Answer
from flowkit.plugins.aws.transfer import WRITER, Absent, Head, _encryption

CHUNK = 1 << 20
"""Bytes that a thread reads before it writes them."""
_SPAN = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_MOST_ERROR = 1 << 16
"""Bytes of an error's text that are looked at."""


def quick_info(answer: Answer, size: int) -> ObjectInfo:
    """Return what an answer's headers tell of an object."""
    modified = answer.headers.get("last-modified")
    return ObjectInfo(
        size,
        answer.headers.get("content-type"),
        unpack_metadata(_without_writer(answer.metadata())),
        answer.headers.get("x-amz-server-side-encryption"),
        parsedate_to_datetime(modified).timestamp() if modified else None,
    )


def head_info(head: Head) -> ObjectInfo:
    """Return what a client's answer tells of an object."""
    metadata = unpack_metadata(_without_writer(head.metadata))
    return ObjectInfo(head.size, head.content_type, metadata, head.encryption, head.modified)


def _without_writer(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if name != WRITER}


def look(access: Access, place: Place) -> ObjectInfo | None:
    """Return what the service knows of an object; None where there is none."""
    answer = access.quick(place.bucket).head(place.key)
    if answer is not None:
        answer.body.close()
        if answer.status == 200:
            return quick_info(answer, int(answer.headers.get("content-length", 0)))
    try:
        head = access.bucket(place.bucket).head(place.key)
    except FlowkitError as error:
        raise explained(error, place) from error
    return None if head is None else head_info(head)


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
        self._access = access
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
        """Ask for the beginning and write it; return the jobs for what is left."""
        try:
            first, last = self._first_bytes()
            quick = self._access.quick(self.place.bucket)
            answer = quick.get(self.place.key, f"bytes={first}-{last}" if first is not None else f"bytes={last}")
            if answer is not None and answer.status == 404 and b"NoSuchKey" in _text(answer):
                self._none(answer.request)
                return None
            start, total = _start(answer, first)
            if answer is None or start is None:
                if answer is not None:
                    answer.body.close()
                return self._ask()
            self._etag = answer.headers.get("etag", "")
            self.info = quick_info(answer, total)
            return self._open(start, total, answer)
        except FlowkitS3Exception:
            raise
        except FlowkitError as error:
            raise explained(error, self.place) from error
        except OSError as error:
            raise self._disk(error) from error

    def _first_bytes(self) -> tuple[int | None, int]:
        """Return the first and the last byte to ask for first; without a first one, minus how many of the last ones."""
        offset, length = self._offset or 0, self._length
        if offset < 0 or length == 0:
            raise FlowkitS3InvalidRange(
                f"{self.place.url}: offset={self._offset}, length={length} is no part of an object",
                "an offset is 0 or more; a length is above 0, or below it to count from the end",
                (S3Failure(self.place.url, f"offset={self._offset}, length={length} is no part of an object"),),
            )
        if length is not None and length < 0:
            return None, length
        return offset, offset + min(WHOLE, length or WHOLE) - 1

    def _none(self, request: str = "") -> None:
        if not self._may_miss:
            raise missing(self.place, request)

    def _ask(self) -> Iterable[Job] | None:
        """Find out by the client what is there, and leave all of it to the jobs."""
        head = self._access.bucket(self.place.bucket).head(self.place.key)
        if head is None:
            self._none()
            return None
        self._etag = head.etag
        self.info = head_info(head)
        start = max(0, head.size + self._length) if self._length and self._length < 0 else self._offset or 0
        if start >= head.size and (self._offset is not None or self._length is not None) and (start or head.size):
            raise FlowkitS3InvalidRange(
                f"{self.place.url}: the object has {head.size} bytes, and the range begins at {start}",
                None,
                (S3Failure(self.place.url, f"it has {head.size} bytes, and the range begins at {start}"),),
            )
        return self._open(start, head.size, None)

    def _open(self, start: int, total: int, answer: Answer | None) -> Iterable[Job] | None:
        length = self._length if self._length is not None and self._length > 0 else total
        end = min(start + length, total)
        self.range_info = RangeInfo(total, start, end - start)
        self._made = self._folder.new_file(self.place.key)
        self._file = os.open(self._made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        done = start
        try:
            if answer is not None:
                done += self._receive(answer, 0, min(end - start, _length(answer)))
        except BaseException:
            os.close(self._file)
            self._file = -1
            raise
        step = max(PART, -(-(end - done) // MOST_PARTS))
        starts = range(done, end, step)
        self._left = len(starts)
        if not starts:
            self._finish()
            return None
        return [self._piece(at, min(step, end - at), start) for at in starts]

    def _piece(self, at: int, length: int, start: int) -> Job:
        def fetch() -> None:
            try:
                self._fetch(at, length, at - start)
            except FlowkitS3Exception:
                raise
            except FlowkitError as error:
                raise explained(error, self.place) from error
            except OSError as error:
                raise self._disk(error) from error
            finally:
                with self._lock:
                    self._left -= 1
                    last = not self._left
                if last:
                    self._finish()

        return fetch

    def _fetch(self, at: int, length: int, position: int) -> None:
        answer = self._access.quick(self.place.bucket).get(self.place.key, f"bytes={at}-{at + length - 1}", self._etag)
        done = 0
        if answer is not None:
            if _start(answer, at)[0] == at and answer.status == 206:
                done = self._receive(answer, position, length)
            else:
                answer.body.close()
        if done < length:
            rest = bytearray(length - done)
            try:
                bucket = self._access.bucket(self.place.bucket)
                count = bucket.get_into(self.place.key, at + done, memoryview(rest), self._etag)
            except Absent:
                count = 0
            if count < len(rest):
                raise FlowkitS3Exception(
                    f"{self.place.url}: it was replaced while it was read",
                    "read it again",
                    (S3Failure(self.place.url, "it was replaced while it was read"),),
                )
            _write(self._file, rest, position + done)

    def _receive(self, answer: Answer, position: int, length: int) -> int:
        """Write an answer's body to the file and return how much came; an answer that breaks off is no error here."""
        done = 0
        try:
            while done < length:
                chunk = _read(answer.body, min(CHUNK, length - done))
                if not chunk:
                    break
                _write(self._file, chunk, position + done)
                done += len(chunk)
            _read(answer.body, 1)  # the end, which frees the connection for the next request
        finally:
            answer.body.close()
        return done

    def _finish(self) -> None:
        os.close(self._file)
        self._file = -1
        self.path = self._made

    def discard(self) -> None:
        """Remove what has come; no job of it may be under way."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._made)

    def _disk(self, error: OSError) -> Exception:
        where = os.path.dirname(self._made)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Hopeless(
                FlowkitS3InsufficientDiskSpace(
                    f"there is no space left in {where} for {self.place.url}",
                    "make room, or name another folder: S3(tmproot=…)",
                    (S3Failure(self.place.url, f"no space left in {where}"),),
                )
            )
        return FlowkitS3Exception(
            f"{self.place.url}: cannot write its content to {where}: {error.strerror}",
            None,
            (S3Failure(self.place.url, f"cannot write its content to {where}: {error.strerror}"),),
        )


def _start(answer: Answer | None, first: int | None) -> tuple[int | None, int]:
    """Return where the part that came begins, and the object's size; None where it is not what was asked for."""
    if answer is None:
        return None, 0
    if answer.status == 200 and first == 0:  # a service that knows no ranges
        return 0, _length(answer)
    found = _SPAN.fullmatch(answer.headers.get("content-range", ""))
    if answer.status != 206 or found is None or (first is not None and int(found[1]) != first):
        return None, 0
    return int(found[1]), int(found[3])


def _length(answer: Answer) -> int:
    return int(answer.headers.get("content-length", 0))


def _text(answer: Answer) -> bytes:
    try:
        text: bytes = _read(answer.body, _MOST_ERROR)
        return text
    finally:
        answer.body.close()


def _read(body: Any, size: int) -> bytes:
    """Read from an answer; nothing where the connection breaks."""
    from urllib3.exceptions import HTTPError

    try:
        found: bytes = body.read(size)
        return found
    except (HTTPError, OSError):
        return b""


def _write(file: int, content: bytes | bytearray, position: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, position)
        view = view[count:]
        position += count


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
    large : lock
        Held by the one upload that goes in parts: its parts are sent by several threads already.
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
        large: threading.Lock,
    ) -> None:
        self.place = place
        self.stored = False
        """Whether this upload wrote the object; False where there was one that was not to be replaced."""
        self._access = access
        self._content = content
        self._metadata = metadata
        self._content_type = content_type
        self._encryption = encryption
        self._overwrite = overwrite
        self._large = large

    def carry_out(self) -> None:
        """Store the object."""
        opened = None
        try:
            content = self._content
            if callable(content):
                content = opened = content()
            if isinstance(content, (bytes, bytearray, memoryview)):
                content = io.BytesIO(content)
            size = content.seek(0, os.SEEK_END)
            content.seek(0)
            if size <= PART:
                self.stored = self._quickly(content, size)
            else:
                with self._large:
                    self.stored = self._whole(content)
        except FlowkitS3Exception:
            raise
        except FlowkitError as error:
            raise explained(error, self.place) from error
        except OSError as error:
            reason = f"cannot read what is to be stored: {error.strerror or error}"
            raise FlowkitS3Exception(
                f"{self.place.url}: {reason}", None, (S3Failure(self.place.url, reason),)
            ) from error
        finally:
            self._content = b""
            if opened is not None:
                opened.close()

    def _quickly(self, content: IO[bytes], size: int) -> bool:
        mark = uuid.uuid4().hex
        headers = {f"x-amz-meta-{name}": value for name, value in self._metadata.items()}
        headers.update(_encryption_headers(self._encryption or self._access.encryption))
        if self._content_type:
            headers["Content-Type"] = self._content_type
        if not self._overwrite:
            headers["If-None-Match"] = "*"
            headers[f"x-amz-meta-{WRITER}"] = mark
        body = content.read() if size <= CHUNK else content
        answer = self._access.quick(self.place.bucket).put(self.place.key, body, headers)
        if answer is not None:
            _text(answer)
            if answer.status == 200:
                return True
            if answer.status == 412 and not self._overwrite:
                return False
        content.seek(0)
        if self._whole(content):
            return True
        if not self._overwrite and (answer is None or answer.status >= 500):  # what is there may be this one
            head = self._access.bucket(self.place.bucket).head(self.place.key)
            return head is not None and head.metadata.get(WRITER) == mark
        return False

    def _whole(self, content: IO[bytes]) -> bool:
        outcome = self._access.bucket(self.place.bucket).put(
            self.place.key,
            _pieces(content),
            absent=not self._overwrite,
            metadata=self._metadata,
            content_type=self._content_type,
            encryption=self._encryption,
        )
        return outcome == "written"


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    while piece := content.read(PART):
        yield piece


def _encryption_headers(spec: str | None) -> dict[str, str]:
    names = {"ServerSideEncryption": "", "SSEKMSKeyId": "-aws-kms-key-id"}
    return {f"x-amz-server-side-encryption{names[name]}": value for name, value in _encryption(spec).items()}
