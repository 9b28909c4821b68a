"""Objects of one bucket: every call with its retries, large content in parts by several threads.

The threads belong to a call and are gone when it returns: a task may fork, and nothing of ours is in its way then.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import quote

from flowkit.exceptions import StoreError, UsageError
from flowkit.plugins.aws.calls import Absent, Calls, PastEnd, Refused
from flowkit.plugins.aws.errors import Interrupted, code_of, status_of, transient
from flowkit.plugins.aws.parts import MOST_PARTS, PART, WHOLE, Buffer, all_at_once, in_flight, split

T = TypeVar("T")

THREADS = 10
"""Requests of one large transfer under way at once."""
PAGE = 1000
"""Entries of a listing that come with one request: the service's own limit."""
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


class Bucket(Calls):
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
        super().__init__(name, role)
        self.threads = threads
        self._encryption = _encryption(encryption)

    def head(self, key: str) -> Head | None:
        """Return what the service says of an object; None where there is none."""

        def look(quick: bool) -> Head:
            reply = self.quick("HEAD", key, {}) if quick else None
            if reply is not None:
                return head_of(reply.headers)
            s3 = self.client()
            try:
                found = s3.head_object(Bucket=self.name, Key=key)
            except Exception as error:
                if status_of(error) in (400, 403) and code_of(error) in ("400", "403"):
                    # The answer to HEAD has no body that could say why; that to GET has.
                    s3.get_object(Bucket=self.name, Key=key, Range="bytes=0-0")["Body"].close()
                raise
            return Head(
                int(found["ContentLength"]),
                found["LastModified"].timestamp(),
                found["ETag"],
                found.get("Metadata", {}),
                found.get("ContentType"),
                found.get("ServerSideEncryption"),
            )

        try:
            return self.call("look at", key, look)
        except Absent:
            return None

    def get(self, key: str) -> tuple[bytes, str]:
        """Return a whole object and its version. Raises `Absent`."""

        def whole(quick: bool) -> tuple[bytes | None, str, int]:
            reply = self.quick("GET", key, {}, most=WHOLE) if quick else None
            if reply is not None:
                return (None if reply.length > WHOLE else reply.body), reply.headers["etag"], reply.length
            answer = self.client().get_object(Bucket=self.name, Key=key)
            size, body = int(answer["ContentLength"]), answer["Body"]
            try:
                return (None if size > WHOLE else _exactly(body, size)), answer["ETag"], size
            finally:
                body.close()

        content, etag, size = self.call("read", key, whole)
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
        memory = memoryview(bytearray(length))
        return bytes(memory[: self.get_into(key, offset, memory)])

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
            return self._part(key, offset + start, view[start : start + step], etag)

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

        def write(quick: bool) -> None:
            if not quick or self.quick("PUT", key, _headers(options, condition), body=first) is None:
                self.client().put_object(Bucket=self.name, Key=key, Body=_bytes(first), **options, **condition)

        return self._settle(key, mark, bool(condition), write)

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens where there is none."""

        def remove(quick: bool) -> None:
            if not quick or self.quick("DELETE", key, {}) is None:
                self.client().delete_object(Bucket=self.name, Key=key)

        try:
            self.call("delete", key, remove)
        except Absent:
            return

    def pages(self, prefix: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing, as ``list_objects_v2`` gives them (at most 1,000 entries each)."""
        options: dict[str, Any] = {"Bucket": self.name, "Prefix": prefix, "Delimiter": delimiter, "MaxKeys": PAGE}
        while True:
            page = self.call("list", prefix, lambda _: self.client().list_objects_v2(**options))
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
            self.call(
                "refresh",
                key,
                lambda _: self.client().copy_object(
                    Bucket=self.name, Key=key, MetadataDirective="REPLACE", **source, **options
                ),
            )
        except Absent:
            return False
        except Refused:  # replaced meanwhile: as fresh as can be
            return self.head(key) is not None
        return True

    def _part(self, key: str, offset: int, view: memoryview, etag: str | None) -> tuple[int, str | None]:
        """Read one range into memory; return how many bytes came, and of which version."""
        span = f"bytes={offset}-{offset + len(view) - 1}"

        def part(quick: bool) -> tuple[int, str | None]:
            if quick:
                headers = {"range": span, "if-match": etag} if etag else {"range": span}
                reply = self.quick("GET", key, headers, into=view)
                if reply is not None:
                    _check_range(reply.headers.get("content-range"), offset, len(view), reply.length)
                    return reply.length, reply.headers.get("etag")
            condition = {"IfMatch": etag} if etag else {}
            answer = self.client().get_object(Bucket=self.name, Key=key, Range=span, **condition)
            body = answer["Body"]
            try:
                size = int(answer["ContentLength"])
                _check_range(answer.get("ContentRange"), offset, len(view), size)
                view[:size] = _exactly(body, size)
                return size, answer["ETag"]
            finally:
                body.close()

        try:
            return self.call("read", key, part)
        except PastEnd:
            return 0, None
        except Refused:
            raise self._changed(key) from None

    def _put_parts(
        self, key: str, pieces: Iterator[Buffer], mark: str, options: dict[str, Any], condition: dict[str, Any]
    ) -> Written:
        upload = self.call(
            "write",
            key,
            lambda _: self.client().create_multipart_upload(Bucket=self.name, Key=key, **options)["UploadId"],
        )

        def send(number: int, piece: Buffer) -> dict[str, Any]:
            query = f"partNumber={number}&uploadId={quote(upload, safe='~')}"

            def part(quick: bool) -> str:
                reply = self.quick("PUT", key, {}, query=query, body=piece) if quick else None
                if reply is not None and "etag" in reply.headers:
                    return reply.headers["etag"]
                place = {"Bucket": self.name, "Key": key, "UploadId": upload, "PartNumber": number}
                return str(self.client().upload_part(Body=_bytes(piece), **place)["ETag"])

            return {"PartNumber": number, "ETag": self.call("write", key, part)}

        try:
            parts = in_flight(self.threads, send, pieces)
            return self._complete(key, upload, parts, mark, condition)
        except Absent:
            raise self._aborted(key) from None
        except BaseException:
            self._abort(key, upload)
            raise

    def _begin(self, action: str, key: str, options: Mapping[str, Any]) -> str:
        def begin(_: bool) -> str:
            return str(self.client().create_multipart_upload(Bucket=self.name, Key=key, **options)["UploadId"])

        return self.call(action, key, begin)

    def _complete(
        self, key: str, upload: str, parts: list[dict[str, Any]], mark: str, condition: dict[str, Any]
    ) -> Written:
        outcome = self._settle(
            key,
            mark,
            True,
            lambda _: self.client().complete_multipart_upload(
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
            self.call(
                "write",
                key,
                lambda _: self.client().abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload),
            )
        except (Absent, StoreError):  # what was wrong before is told; a lifecycle rule takes what is left
            return

    def _refresh_parts(self, key: str, head: Head, source: dict[str, Any], options: dict[str, Any]) -> bool:
        upload = self.call(
            "refresh",
            key,
            lambda _: self.client().create_multipart_upload(Bucket=self.name, Key=key, **options)["UploadId"],
        )
        step = max(PART, -(-head.size // MOST_PARTS), LARGEST_COPY // 10)
        starts = list(range(0, head.size, step))

        def copy(start: int) -> dict[str, Any]:
            number = starts.index(start) + 1
            span = f"bytes={start}-{min(start + step, head.size) - 1}"
            place = {"Bucket": self.name, "Key": key, "UploadId": upload, "PartNumber": number}
            answer = self.call(
                "refresh", key, lambda _: self.client().upload_part_copy(CopySourceRange=span, **place, **source)
            )
            return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

        try:
            parts = all_at_once(self.threads, copy, starts)
            mark = str(head.metadata.get(WRITER, ""))
            return self._complete(key, upload, parts, mark, {}) == "written"
        except BaseException:
            self._abort(key, upload)
            raise

    def _settle(self, key: str, mark: str, conditional: bool, write: Callable[[bool], Any]) -> Written:
        """Make a write that may be told of a conflict with itself, where an earlier try's answer was lost."""
        uncertain = False

        def tried(quick: bool) -> Any:
            nonlocal uncertain
            try:
                return write(quick)
            except Exception as error:
                uncertain = uncertain or transient(error)
                raise

        try:
            self.call("write", key, tried)
            return "written"
        except (Refused, Absent) as error:
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

    def _changed(self, key: str) -> StoreError:
        return StoreError(f"cannot read s3://{self.name}/{key}: it was replaced while it was read", "read it again")


def _exactly(body: Any, size: int) -> bytes:
    content: bytes = body.read()
    if len(content) != size:
        raise Interrupted(f"the answer broke off after {len(content)} of {size} bytes")
    return content


def _check_range(span: str | None, offset: int, length: int, count: int) -> None:
    """Refuse the answer to a ranged read that is another range, or less of it than there is."""
    place, _, total = str(span).removeprefix("bytes ").partition("/")
    if not total.isdigit() or place.partition("-")[0] != str(offset):
        raise Interrupted(f"another range came than was asked for: {span!r}")
    if count != min(length, int(total) - offset):
        raise Interrupted(f"{count} bytes came instead of {min(length, int(total) - offset)}")


def head_of(headers: Mapping[str, str]) -> Head:
    """Return what the headers of an answer (lower-case names) tell of an object."""
    from email.utils import parsedate_to_datetime

    start = "x-amz-meta-"
    return Head(
        int(headers["content-length"]),
        parsedate_to_datetime(headers["last-modified"]).timestamp(),
        headers["etag"],
        {name[len(start) :]: value for name, value in headers.items() if name.startswith(start)},
        headers.get("content-type"),
        headers.get("x-amz-server-side-encryption"),
    )


def _headers(options: Mapping[str, Any], condition: Mapping[str, str]) -> dict[str, str]:
    """Return the headers for options of a write as the client takes them."""
    names = {"IfNoneMatch": "if-none-match", "IfMatch": "if-match", "ContentType": "content-type"}
    names |= {"ServerSideEncryption": "x-amz-server-side-encryption"}
    names |= {"SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id"}
    told = {**options, **condition}
    metadata = told.pop("Metadata", {})
    return {
        **{names[name]: value for name, value in told.items()},
        **{f"x-amz-meta-{n}": metadata[n] for n in metadata},
    }


def _bytes(piece: Buffer) -> bytes | bytearray:
    return bytes(piece) if isinstance(piece, memoryview) else piece


def _encryption(spec: str | None) -> dict[str, str]:
    """Return the options of a write that ask for encryption."""
    if not spec:
        return {}
    if spec in ("AES256", "aws:kms", "aws:kms:dsse"):
        return {"ServerSideEncryption": spec}
    if spec.startswith("aws:kms:") and len(spec) > 8:
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": spec[8:]}
    raise UsageError(f"{spec!r} is no server-side encryption", "s3_encryption is AES256, aws:kms or aws:kms:<key id>")
