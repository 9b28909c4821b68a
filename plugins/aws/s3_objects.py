"""What the calls of `flowkit.S3` take and return."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

from flowkit.plugins.aws.s3_exceptions import FlowkitS3Exception, FlowkitS3URLException

PutValue = str | bytes | bytearray | memoryview | IO[bytes]
"""What can be stored: text (as UTF-8), bytes, or a seekable binary file."""

ATTRIBUTES = "flowkit-user-attributes"
"""The name of the one S3 metadata entry in which a user's metadata is kept, as JSON: names and values of S3's own
are ASCII without regard to case, and lose everything else."""
_FOREIGN_ATTRIBUTES = "metaflow-user-attributes"
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_NAME_LENGTH = 100


class RangeInfo(NamedTuple):
    """Which part of an object was downloaded.

    Parameters
    ----------
    total_size : int
        Bytes of the whole object.
    request_offset : int
        Where the part begins.
    request_length : int
        Bytes of the part.
    """

    total_size: int
    request_offset: int = 0
    request_length: int | None = None


class S3GetObject(NamedTuple):
    """A part of an object to download.

    Parameters
    ----------
    key : str
        A key below the client's prefix, or a whole URL where it has none.
    offset : int, optional
        The first byte; default: the object's first.
    length : int, optional
        How many bytes; default: all to the end. A negative one counts from the end: the last bytes of the object,
        whatever `offset` is.
    """

    key: str
    offset: int | None = None
    length: int | None = None


class S3PutObject(NamedTuple):
    """An object to store by `S3.put_many` (its `value`) or `S3.put_files` (its `path`).

    Parameters
    ----------
    key : str
        A key below the client's prefix, or a whole URL where it has none.
    value : str, bytes or binary file, optional
        The content.
    path : str, optional
        The local file that holds the content.
    content_type : str, optional
        Its MIME type.
    encryption : str, optional
        Server-side encryption of this object; default: the client's.
    metadata : mapping, optional
        Anything that JSON can express; at most 2 KB.
    """

    key: str
    value: PutValue | None = None
    path: str | os.PathLike[str] | None = None
    content_type: str | None = None
    encryption: str | None = None
    metadata: Mapping[str, Any] | None = None


class Place(NamedTuple):
    """An object or a prefix: its bucket and key."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_url(url: str) -> Place:
    """Return the bucket and the key of a URL; everything after the bucket is the key, whatever it holds.

    Raises
    ------
    FlowkitS3URLException
        If it is no URL of S3.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket:
        raise FlowkitS3URLException(f"'{url}' is not a URL of S3", "write s3://bucket/key")
    return Place(bucket, key.lstrip("/"))


class ObjectInfo(NamedTuple):
    """What the service tells with an object."""

    size: int
    content_type: str | None
    metadata: dict[str, Any] | None
    encryption: str | None
    last_modified: float | None


def pack_metadata(metadata: Mapping[str, Any], url: str) -> dict[str, str]:
    """Return S3 metadata that keeps a user's, whatever characters and types it has.

    Raises
    ------
    FlowkitS3URLException
        If JSON cannot express it.
    """
    from flowkit.plugins.aws.s3_exceptions import FlowkitS3InvalidObject

    try:
        return {ATTRIBUTES: json.dumps(dict(metadata))}
    except (TypeError, ValueError) as error:
        raise FlowkitS3InvalidObject(
            f"the metadata for {url} cannot be written as JSON: {error}", "use text, numbers, lists and dicts"
        ) from None


def unpack_metadata(found: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a user's metadata as it was put, here or by Metaflow; else what other tools set; None where none was."""
    for name in (ATTRIBUTES, _FOREIGN_ATTRIBUTES):
        if name in found:
            try:
                value = json.loads(found[name])
            except ValueError:
                continue
            if isinstance(value, dict):
                return value
    return dict(found) or None


class TempFolder:
    """A folder for what is downloaded, made when the first file is, and removed at the end."""

    def __init__(self, parent: str) -> None:
        self._parent = parent
        self._path: str | None = None
        self._count = 0
        self._lock = threading.Lock()
        self.closed = False
        self._removal: weakref.finalize[[str, int], TempFolder] | None = None

    def new_file(self, key: str) -> str:
        """Return the path of a file to be made, for the content of a key.

        Its name ends like the key does, so that a suffix tells what it holds; no part of the key reaches the
        folder's structure.
        """
        with self._lock:
            if self.closed:
                raise FlowkitS3Exception("this S3 client is closed", "use it inside its with block")
            if self._path is None:
                self._path = self._make()
            self._count += 1
            number = self._count
        last = key.rstrip("/").rpartition("/")[2][-_NAME_LENGTH:]
        safe = "".join(letter if letter in _NAME_CHARACTERS else "_" for letter in last)
        return os.path.join(self._path, f"{number:06d}-{safe}")

    def _make(self) -> str:
        try:
            path = tempfile.mkdtemp(prefix="flowkit.s3.", dir=self._parent)
        except OSError as error:
            raise FlowkitS3Exception(
                f"cannot make a folder for temporary files in {os.path.abspath(self._parent)}: {error.strerror}",
                "name another one: S3(tmproot=…)",
            ) from error
        path = os.path.abspath(path)
        # A forked child that ends must not take its parent's files along.
        self._removal = weakref.finalize(self, _remove, path, os.getpid())
        return path

    def close(self) -> None:
        """Remove the folder and what is in it."""
        with self._lock:
            self.closed = True
            if self._removal is not None:
                self._removal()


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)


class S3Object:
    """An object of S3, a prefix of some, or a key where there is none (see `exists`).

    Made by the calls of `flowkit.S3`. The file of a downloaded object lives as long as its client is open.
    """

    def __init__(
        self,
        prefix: str | None,
        url: str,
        path: str | None = None,
        size: int | None = None,
        info: ObjectInfo | None = None,
        range_info: RangeInfo | None = None,
        folder: TempFolder | None = None,
    ) -> None:
        self._url = url
        self._path = path
        self._size = size
        self._info = info
        self._range_info = range_info
        self._folder = folder
        if prefix is None or prefix == url:
            self._prefix, self._key = None, url
        else:
            self._prefix, self._key = prefix, url[len(prefix.rstrip("/")) + 1 :].rstrip("/")

    @property
    def exists(self) -> bool:
        """Whether there is such an object; False for a prefix of others."""
        return self._size is not None

    @property
    def downloaded(self) -> bool:
        """Whether `path`, `blob` and `text` have its content."""
        return self._path is not None

    @property
    def url(self) -> str:
        """The whole URL, ``s3://bucket/key``."""
        return self._url

    @property
    def prefix(self) -> str | None:
        """The prefix that `key` is below: the client's, or the one that was listed or downloaded recursively."""
        return self._prefix

    @property
    def key(self) -> str:
        """The key below `prefix`; the whole URL where there is none."""
        return self._key

    @property
    def path(self) -> str | None:
        """The local file with the content; None where it was not downloaded. It is removed with the client."""
        return self._path

    @property
    def blob(self) -> bytes | None:
        """The content; None where it was not downloaded."""
        if self._path is None:
            return None
        try:
            with open(self._path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            if self._folder is None or not self._folder.closed:
                raise
            raise FlowkitS3Exception(
                f"the content of {self._url} is gone: its S3 client is closed",
                "read it inside the with block, or copy the file",
            ) from None

    @property
    def text(self) -> str | None:
        """The content as text, read as UTF-8; None where it was not downloaded."""
        blob = self.blob
        return None if blob is None else blob.decode("utf-8", errors="replace")

    @property
    def size(self) -> int | None:
        """Bytes: of what was downloaded, else of the object in S3; None where there is no object."""
        return self._size

    @property
    def has_info(self) -> bool:
        """Whether `content_type`, `metadata`, `encryption` and `last_modified` are known."""
        return self._info is not None

    @property
    def metadata(self) -> dict[str, Any] | None:
        """What was stored with the object as `metadata`; None where nothing was, or it was not asked for."""
        return None if self._info is None else self._info.metadata

    @property
    def content_type(self) -> str | None:
        """The MIME type; None where it was not asked for."""
        return None if self._info is None else self._info.content_type

    @property
    def encryption(self) -> str | None:
        """How the service encrypts the object; None where it does not say, or was not asked."""
        return None if self._info is None else self._info.encryption

    @property
    def range_info(self) -> RangeInfo | None:
        """Which part of the object was downloaded; None where nothing was, or no information was asked for."""
        return self._range_info

    @property
    def last_modified(self) -> float | None:
        """When the object was last written, in seconds since the epoch; None where it was not asked for."""
        return None if self._info is None else self._info.last_modified

    def __repr__(self) -> str:
        if not self.exists:
            return f"<S3Object {self._url} (object does not exist)>"
        return f"<S3Object {self._url} ({self._size} bytes, {'local' if self.downloaded else 'in S3'})>"
