"""Objects of one bucket: every call with its retries, large content in parts by several threads.

The threads belong to a call and are gone when it returns: a task may fork, and nothing of ours is in its way then.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from flowkit.exceptions import StoreError, UsageError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import Interrupted, code_of, expired, explained, retried, status_of, transient
from flowkit.plugins.aws.parts import MOST_PARTS, PART, WHOLE, Buffer, all_at_once, in_flight, split

T = TypeVar("T")

THREADS = 10
"""Requests of one large transfer under way at once."""
LARGEST_COPY = 5 << 30
"""Bytes that the service copies in one request."""
WRITER = "flowkit-writer"
"""The metadata entry by which a write that was answered by nothing is told from somebody else's."""

Written = Literal["written", "exists", "gone"]
"""What a conditional write came to: another object is there, or none any more."""


class Head(NamedTuple):
    """What the service says of an object.

    Parameters
    ----------
    size : int
        Bytes.
    modified : float
        Epoch seconds, whole ones.
    etag : str
        Its version.
    metadata : mapping of str to str
        The user's entries.
    content_type, encryption : str, optional
        As the service has them.
    """

    size: int
    modified: float
    etag: str
    metadata: Mapping[str, str]
    content_type: str | None = None
    encryption: str | None = None


class Absent(Exception):
    """There is no object of that key."""


class Bucket:
    """One bucket.

    Parameters
    ----------
    name : str
        The bucket.
    role : str, optional
        ARN of a role to assume.
    encryption : str, optional
        ``AES256``, ``aws:kms`` or ``aws:kms:<key id>``: the service encrypts what is written.
    threads : int
        Requests of one large transfer under way at once.
    """

    def __init__(
        self, name: str, *, role: str | None = None, encryption: str | None = None, threads: int = THREADS
    ) -> None:
        self.name = name
        self.role = role
        self.threads = threads
        self._encryption = _encryption(encryption)
        self._answered = False
        self._exists = False

    def head(self, key: str) -> Head | None:
        """Return what the service says of an object; None where there is none."""

        def look(s3: Any) -> Any:
            try:
                return s3.head_object(Bucket=self.name, Key=key)
            except Exception as error:
                if status_of(error) in (400, 403) and code_of(error) in ("400", "403"):
                    # The answer to HEAD has no body that could say why; that to GET has.
                    s3.get_object(Bucket=self.name, Key=key, Range="bytes=0-0")["Body"].close()
                raise

        try:
            found = self._call("look at", key, look)
        except Absent:
            return None
        return Head(
            int(found["ContentLength"]),
            found["LastModified"].timestamp(),
            found["ETag"],
            found.get("Metadata", {}),
            found.get("ContentType"),
            found.get("ServerSideEncryption"),
        )

    def get(self, key: str) -> tuple[bytes, str]:
        """Return a whole object and its version. Raises `Absent`."""

        def whole(s3: Any) -> tuple[bytes | None, str, int]:
            answer = s3.get_object(Bucket=self.name, Key=key)
            size, body = int(answer["ContentLength"]), answer["Body"]
            try:
                return (None if size > WHOLE else _exactly(body, size)), answer["ETag"], size
            finally:
                body.close()

        content, etag, size = self._call("read", key, whole)
        if content is None:
            memory = bytearray(size)
            if self.get_into(key, 0, memoryview(memory), etag) != size:
                raise self._changed(key)
            content = bytes(memory)
        return content, etag

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return part of an object, fewer bytes only past its end. Raises `Absent`."""
        if length <= 0:
            if self.head(key) is None:
                raise Absent(key)
            return b""
        if length <= WHOLE:
            return self._part(key, offset, length)[0]
        memory = bytearray(length)
        count = self.get_into(key, offset, memoryview(memory))
        return bytes(memoryview(memory)[:count])

    def get_into(self, key: str, offset: int, view: memoryview, etag: str | None = None) -> int:
        """Read part of an object into memory, large parts by several requests at once.

        Parameters
        ----------
        key : str
            Of the object.
        offset : int
            Where in the object.
        view : memoryview
            Writable bytes; as many are read.
        etag : str, optional
            The version that is wanted; default: any, the same for all of it.

        Returns
        -------
        int
            Bytes read: fewer than asked for only past the object's end.

        Raises
        ------
        Absent
            If there is none.
        StoreError
            If it cannot be read, or is replaced meanwhile.
        """
        size = len(view)
        if not size:
            return len(self.get_range(key, offset, 0))

        def fetch(start: int) -> tuple[int, str | None]:
            length = min(step, size - start)
            content, version = self._part(key, offset + start, length, etag)
            view[start : start + len(content)] = content
            return len(content), version

        step = size if size <= WHOLE else PART
        starts = range(0, size, step)
        done = [fetch(0)] if len(starts) == 1 else all_at_once(self.threads, fetch, starts)
        versions = {version for _, version in done if version is not None}
        total = sum(count for count, _ in done)
        whole = total if total == size else next(i * step + n for i, (n, _) in enumerate(done) if n < step)
        if len(versions) > 1 or whole != total:
            raise self._changed(key)
        return total

    def put(
        self,
        key: str,
        content: Iterable[Buffer],
        *,
        absent: bool = False,
        version: str | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str | None = None,
        encryption: str | None = None,
    ) -> Written:
        """Write an object whole.

        Parameters
        ----------
        key : str
            Of the object.
        content : iterable of buffers
            In order; of large content a bounded number of parts is in memory.
        absent : bool
            Only if there is no object.
        version : str, optional
            Only if the object has this version.
        metadata, content_type, encryption : optional
            To keep with it.

        Returns
        -------
        str
            ``written`` by this call, also where its answer was lost and it was made again; else why not.
        """
        mark = uuid.uuid4().hex
        options: dict[str, Any] = {"Metadata": {**(metadata or {}), WRITER: mark}}
        options |= _encryption(encryption) if encryption else self._encryption
        if content_type:
            options["ContentType"] = content_type
        condition = {"IfNoneMatch": "*"} if absent else {"IfMatch": version} if version is not None else {}
        pieces = split(content)
        first = next(pieces, b"")
        second = next(pieces, None)
        if second is not None:
            if absent and self.head(key) is not None:
                return "exists"
            return self._put_parts(key, itertools.chain((first, second), pieces), mark, options, condition)
        body = bytes(first) if isinstance(first, memoryview) else first
        return self._settle(
            key,
            mark,
            bool(condition),
            lambda s3: s3.put_object(Bucket=self.name, Key=key, Body=body, **options, **condition),
        )

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""
        try:
            self._call("delete", key, lambda s3: s3.delete_object(Bucket=self.name, Key=key))
        except Absent:
            return

    def pages(self, prefix: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing, as ``list_objects_v2`` gives them (at most 1,000 entries each)."""
        options: dict[str, Any] = {"Bucket": self.name, "Prefix": prefix, "Delimiter": delimiter}
        while True:
            page = self._call("list", prefix, lambda s3: s3.list_objects_v2(**options))
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def refresh(self, key: str, head: Head) -> bool:
        """Copy an object onto itself within the service, which sets its time anew; False where it is gone or new."""
        options: dict[str, Any] = {"Metadata": dict(head.metadata), **self._encryption}
        if head.content_type:
            options["ContentType"] = head.content_type
        source = {"CopySource": {"Bucket": self.name, "Key": key}, "CopySourceIfMatch": head.etag}
        try:
            if head.size > LARGEST_COPY:
                return self._refresh_parts(key, head, source, options)
            self._call(
                "refresh",
                key,
                lambda s3: s3.copy_object(Bucket=self.name, Key=key, MetadataDirective="REPLACE", **source, **options),
            )
        except Absent:
            return False
        except _Refused:  # replaced meanwhile: as fresh as can be
            return self.head(key) is not None
        return True

    def _part(self, key: str, offset: int, length: int, etag: str | None = None) -> tuple[bytes, str | None]:
        condition = {"IfMatch": etag} if etag else {}

        def part(s3: Any) -> tuple[bytes, str | None]:
            answer = s3.get_object(
                Bucket=self.name, Key=key, Range=f"bytes={offset}-{offset + length - 1}", **condition
            )
            body = answer["Body"]
            try:
                size = min(length, _total(answer, offset) - offset)
                if int(answer["ContentLength"]) != size:
                    raise Interrupted(f"{answer['ContentLength']} bytes came instead of {size}")
                return _exactly(body, size), answer["ETag"]
            finally:
                body.close()

        try:
            return self._call("read", key, part)
        except _PastEnd:
            return b"", None
        except _Refused:
            raise self._changed(key) from None

    def _put_parts(
        self, key: str, pieces: Iterator[Buffer], mark: str, options: dict[str, Any], condition: dict[str, Any]
    ) -> Written:
        upload = self._call(
            "write", key, lambda s3: s3.create_multipart_upload(Bucket=self.name, Key=key, **options)["UploadId"]
        )

        def send(number: int, piece: Buffer) -> dict[str, Any]:
            body = bytes(piece) if isinstance(piece, memoryview) else piece
            place = {"Bucket": self.name, "Key": key, "UploadId": upload, "PartNumber": number}
            answer = self._call("write", key, lambda s3: s3.upload_part(Body=body, **place))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            parts = in_flight(self.threads, send, pieces)
            return self._complete(key, upload, parts, mark, condition)
        except Absent:
            raise self._aborted(key) from None
        except BaseException:
            self._abort(key, upload)
            raise

    def _complete(
        self, key: str, upload: str, parts: list[dict[str, Any]], mark: str, condition: dict[str, Any]
    ) -> Written:
        outcome = self._settle(
            key,
            mark,
            True,
            lambda s3: s3.complete_multipart_upload(
                Bucket=self.name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            ),
        )
        if outcome != "written":
            self._abort(key, upload)
        if outcome == "gone" and "IfMatch" not in condition:
            raise self._aborted(key)
        return outcome

    def _aborted(self, key: str) -> StoreError:
        return StoreError(
            f"cannot write s3://{self.name}/{key}: its upload was aborted by somebody else",
            "does a lifecycle rule of the bucket remove unfinished uploads too early?",
        )

    def _abort(self, key: str, upload: str) -> None:
        try:
            self._call("write", key, lambda s3: s3.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload))
        except (Absent, StoreError):  # what was wrong before is told; a lifecycle rule takes what is left
            return

    def _refresh_parts(self, key: str, head: Head, source: dict[str, Any], options: dict[str, Any]) -> bool:
        upload = self._call(
            "refresh", key, lambda s3: s3.create_multipart_upload(Bucket=self.name, Key=key, **options)["UploadId"]
        )
        step = max(PART, -(-head.size // MOST_PARTS), LARGEST_COPY // 10)
        starts = list(range(0, head.size, step))

        def copy(start: int) -> dict[str, Any]:
            number = starts.index(start) + 1
            span = f"bytes={start}-{min(start + step, head.size) - 1}"
            place = {"Bucket": self.name, "Key": key, "UploadId": upload, "PartNumber": number}
            answer = self._call("refresh", key, lambda s3: s3.upload_part_copy(CopySourceRange=span, **place, **source))
            return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

        try:
            parts = all_at_once(self.threads, copy, starts)
            mark = str(head.metadata.get(WRITER, ""))
            return self._complete(key, upload, parts, mark, {}) == "written"
        except BaseException:
            self._abort(key, upload)
            raise

    def _settle(self, key: str, mark: str, conditional: bool, write: Callable[[Any], Any]) -> Written:
        """Make a write that may be told of a conflict with itself, where an earlier try's answer was lost."""
        uncertain = False

        def tried(s3: Any) -> Any:
            nonlocal uncertain
            try:
                return write(s3)
            except Exception as error:
                uncertain = uncertain or transient(error)
                raise

        try:
            self._call("write", key, tried)
            return "written"
        except (_Refused, Absent) as error:
            if not conditional:
                raise
            if uncertain:
                found = self.head(key)
                if found is not None and found.metadata.get(WRITER) == mark:
                    return "written"
            return "gone" if isinstance(error, Absent) else "exists"
        except StoreError:
            # The last answer was an error or none, after which the object may be there all the same.
            if uncertain and self._is_mine(key, mark):
                return "written"
            raise

    def _is_mine(self, key: str, mark: str) -> bool:
        try:
            found = self.head(key)
        except StoreError:
            return False
        return found is not None and found.metadata.get(WRITER) == mark

    def _call(self, action: str, key: str, call: Callable[[Any], T]) -> T:
        """Make a call with retries; what it fails with is `Absent`, `_Refused`, `_PastEnd` or a StoreError."""
        renewed = False
        while True:
            try:
                answer = retried(lambda: call(self._client()), answered=lambda: self._answered)
            except Exception as error:
                if not self._known(error):
                    raise
                if expired(error) and not renewed:
                    renewed = True
                    session.forget()
                    continue
                raise self._outcome(error, action, key) from error
            self._answered = self._exists = True
            return answer

    def _outcome(self, error: Exception, action: str, key: str) -> Exception:
        code, status = code_of(error), status_of(error)
        self._answered = self._answered or status > 0
        if code in ("NoSuchKey", "NoSuchUpload"):
            self._exists = True
            return Absent(key)
        if code in ("PreconditionFailed", "412"):
            self._exists = True
            return _Refused(key)
        if status == 416:
            self._exists = True
            return _PastEnd(key)
        if status == 404 and code != "NoSuchBucket":
            if self._exists or self._there():
                return Absent(key)
            error = _NoBucket()
        return explained(error, action, self.name, key, self._endpoint())

    def _there(self) -> bool:
        """Whether the bucket exists: the answer to HEAD does not tell which of the two is missing."""
        try:
            retried(lambda: self._client().head_bucket(Bucket=self.name), answered=lambda: self._answered)
        except Exception as error:
            if not self._known(error):
                raise
            if status_of(error) == 404:
                return False
        self._exists = True
        return True

    def _known(self, error: Exception) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        return isinstance(error, BotoCoreError | ClientError) or transient(error)

    def _client(self) -> Any:
        return session.client("s3", role=self.role)

    def _endpoint(self) -> str:
        return session.s3_endpoint() or ""

    def _changed(self, key: str) -> StoreError:
        return StoreError(f"cannot read s3://{self.name}/{key}: it was replaced while it was read", "read it again")


class _Refused(Exception):
    """The object is not in the state that the call asked for."""


class _PastEnd(Exception):
    """The object ends before the range begins."""


class _NoBucket(Exception):
    response = {"Error": {"Code": "NoSuchBucket"}}


def _exactly(body: Any, size: int) -> bytes:
    content: bytes = body.read()
    if len(content) != size:
        raise Interrupted(f"the answer broke off after {len(content)} of {size} bytes")
    return content


def _total(answer: Mapping[str, Any], offset: int) -> int:
    """Return the size of the whole object, from the answer to a ranged read."""
    span = str(answer.get("ContentRange", ""))
    place, _, total = span.removeprefix("bytes ").partition("/")
    if not total.isdigit() or place.partition("-")[0] != str(offset):
        raise Interrupted(f"another range came than was asked for: {span!r}")
    return int(total)


def _encryption(spec: str | None) -> dict[str, str]:
    """Return the options of a write that ask for encryption."""
    if not spec:
        return {}
    if spec in ("AES256", "aws:kms", "aws:kms:dsse"):
        return {"ServerSideEncryption": spec}
    if spec.startswith("aws:kms:") and len(spec) > 8:
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": spec[8:]}
    raise UsageError(f"{spec!r} is no server-side encryption", "s3_encryption is AES256, aws:kms or aws:kms:<key id>")
