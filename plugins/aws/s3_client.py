"""`flowkit.S3`: a user's objects on S3, many at once."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from flowkit.context import current
from flowkit.exceptions import FlowkitError
from flowkit.model.flowspec import FlowSpec
from flowkit.plugins.aws.s3_access import Access, explained, missing
from flowkit.plugins.aws.s3_crowd import Job, carry_out
from flowkit.plugins.aws.s3_exceptions import (
    FlowkitS3Exception,
    FlowkitS3InvalidObject,
    FlowkitS3NotFound,
    FlowkitS3URLException,
    S3Failure,
)
from flowkit.plugins.aws.s3_files import Download, Room, Upload, look
from flowkit.plugins.aws.s3_objects import (
    ObjectInfo,
    Place,
    PutValue,
    S3GetObject,
    S3Object,
    S3PutObject,
    TempFolder,
    pack_metadata,
    parse_url,
)
from flowkit.plugins.aws.session import CONNECTIONS
from flowkit.settings import settings

T = TypeVar("T")

THREADS = CONNECTIONS
"""Requests under way at once."""


class S3:
    """Objects on S3, by key: many at once, all or an error.

    Use it in a ``with`` block: what was downloaded lies in a temporary folder, which is removed at its end. Where the
    keys are, is said in one of three ways: ``run=self`` (or a `Run` of the client) keeps them below the run,
    ``s3root=`` below a prefix; with neither each key is a whole URL, ``s3://bucket/key``.

    Parameters
    ----------
    tmproot : str, default "."
        Where the temporary folder is made.
    bucket, prefix : str, optional
        With `run`: in the place of those of the setting ``data_tools_root``.
    run : FlowSpec or Run, optional
        Keep the objects below ``<data_tools_root>/<flow>/<run id>``. A flow must be running.
    s3root : str, optional
        A URL below which all keys are.
    encryption : str, optional
        ``AES256``, ``aws:kms`` or ``aws:kms:<key id>``; default: the setting ``s3_encryption``.
    role : str, optional
        ARN of a role to assume; default: the setting ``s3_role``.
    session_vars : mapping, optional
        Arguments of ``boto3.session.Session``, such as other credentials.
    client_params : mapping, optional
        Arguments of its ``client("s3", …)``, such as ``endpoint_url``.

    Raises
    ------
    FlowkitS3URLException
        If the place cannot be one.
    MissingExtra
        If boto3 is not installed.

    Examples
    --------
    >>> with S3(s3root="s3://bucket/prices") as s3:
    ...     s3.put("today", "1.25")
    ...     s3.get("today").text
    's3://bucket/prices/today'
    '1.25'
    """

    TYPE = "s3"

    def __init__(
        self,
        tmproot: str = ".",
        bucket: str | None = None,
        prefix: str | None = None,
        run: Any = None,
        s3root: str | None = None,
        encryption: str | None = None,
        role: str | None = None,
        session_vars: Mapping[str, Any] | None = None,
        client_params: Mapping[str, Any] | None = None,
    ) -> None:
        self._root: str | None = None
        if run is not None:
            self._root = _run_root(run, bucket, prefix)
        elif s3root is not None:
            place = parse_url(str(s3root))
            self._root = place.url.rstrip("/")
        self._access = Access(
            role or settings().s3_role, encryption or settings().s3_encryption, session_vars, client_params
        )
        self._folder = TempFolder(tmproot)
        self._room = Room()

    def __enter__(self) -> S3:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything that was downloaded."""
        self._folder.close()

    # -- looking ------------------------------------------------------------------------------------------------------

    def list_paths(self, keys: Iterable[str] | None = None) -> list[S3Object]:
        """List what is directly below some prefixes: objects, and prefixes of others (of which ``exists`` is False).

        Parameters
        ----------
        keys : iterable of str, optional
            Prefixes, each as a folder: ``a`` lists ``a/…`` and not ``ab``. Default: the client's own.
        """
        return self._list(keys, "/")

    def list_recursive(self, keys: Iterable[str] | None = None) -> list[S3Object]:
        """List all objects below some prefixes.

        Parameters
        ----------
        keys : iterable of str, optional
            Prefixes, each as a folder. Default: the client's own.
        """
        return self._list(keys, "")

    def info(self, key: str | None = None, return_missing: bool = False) -> S3Object:
        """Return what S3 knows of an object, without its content.

        Parameters
        ----------
        key : str, optional
            Default: the client's prefix itself.
        return_missing : bool, default False
            Whether an object that is not there is returned with ``exists == False`` in the place of an error.

        Raises
        ------
        FlowkitS3NotFound
            If there is none.
        """
        return self._infos([key], return_missing)[0]

    def info_many(self, keys: Iterable[str], return_missing: bool = False) -> list[S3Object]:
        """Return what S3 knows of many objects, in their order; see `info`."""
        return self._infos(list(keys), return_missing)

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(
        self, key: str | S3GetObject | None = None, return_missing: bool = False, return_info: bool = True
    ) -> S3Object:
        """Download an object, or with `S3GetObject` a part of one.

        Parameters
        ----------
        key : str or S3GetObject, optional
            Default: the client's prefix itself.
        return_missing : bool, default False
            Whether an object that is not there is returned with ``exists == False`` in the place of an error.
        return_info : bool, default True
            Whether the result has `S3Object.content_type`, `metadata` and the like; they cost nothing.

        Raises
        ------
        FlowkitS3NotFound
            If there is none.
        FlowkitS3InvalidRange
            If the part begins past its end.
        """
        return self._get([(self._root, key)], return_missing, return_info)[0]

    def get_many(
        self, keys: Iterable[str | S3GetObject], return_missing: bool = False, return_info: bool = True
    ) -> list[S3Object]:
        """Download many objects, in their order; see `get`. If one fails, the error tells of all that did."""
        return self._get([(self._root, key) for key in keys], return_missing, return_info)

    def get_recursive(self, keys: Iterable[str | None], return_info: bool = False) -> list[S3Object]:
        """Download all objects below some prefixes.

        Parameters
        ----------
        keys : iterable of str
            Prefixes, each as a folder.
        return_info : bool, default False
            Whether the results have `S3Object.content_type`, `metadata` and the like.
        """
        found = self._list(keys, "")
        return self._get([(item.prefix, S3GetObject(item.url)) for item in found], False, return_info, urls=True)

    def get_all(self, return_info: bool = False) -> list[S3Object]:
        """Download all objects below the client's prefix; see `get_recursive`."""
        if self._root is None:
            raise FlowkitS3URLException("get_all() needs a prefix", "make the client with S3(run=self) or S3(s3root=…)")
        return self.get_recursive([None], return_info)

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(
        self,
        key: str | S3PutObject,
        obj: PutValue,
        overwrite: bool = True,
        content_type: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Store an object and return its URL.

        Parameters
        ----------
        key : str
            Where.
        obj : str, bytes or binary file
            What; text is stored as UTF-8. A file is read from its beginning.
        overwrite : bool, default True
            Whether an object that is there is replaced. If not, it is left as it is, and nothing else happens.
        content_type : str, optional
            The MIME type.
        metadata : mapping, optional
            Anything that JSON can express, at most 2 KB, to be kept with the object.

        Raises
        ------
        FlowkitS3InvalidObject
            If the value is neither text, nor bytes, nor a seekable binary file.
        """
        name = key.key if isinstance(key, S3PutObject) else key
        upload = self._value_upload(S3PutObject(name, obj, None, content_type, None, metadata), overwrite)[1]
        carry_out([upload.carry_out], 1)
        return self._url(name)

    def put_many(
        self, key_objs: Iterable[tuple[str, PutValue] | S3PutObject], overwrite: bool = True
    ) -> list[tuple[str, str]]:
        """Store many objects.

        Parameters
        ----------
        key_objs : iterable of (str, value) or S3PutObject
            A generator is taken from as objects are stored, so that not all of them need be in memory.
        overwrite : bool, default True
            Whether objects that are there are replaced.

        Returns
        -------
        list of (str, str)
            Key and URL of each object that was stored; without `overwrite`, those that were there are not among them.
        """
        return self._put_all(key_objs, lambda given: self._value_upload(_put_object(given), overwrite))

    def put_files(
        self, key_paths: Iterable[tuple[str, str | os.PathLike[str]] | S3PutObject], overwrite: bool = True
    ) -> list[tuple[str, str]]:
        """Store many local files; see `put_many`.

        Parameters
        ----------
        key_paths : iterable of (str, path) or S3PutObject
            Where, and the file.
        overwrite : bool, default True
            Whether objects that are there are replaced.

        Raises
        ------
        FlowkitS3NotFound
            If there is no such file; nothing has been stored then.
        """
        given = list(key_paths)
        files = [item if isinstance(item, S3PutObject) else S3PutObject(item[0], path=item[1]) for item in given]
        lost = [S3Failure(str(item.path), "there is no such file") for item in files if not _is_file(item.path)]
        if lost:
            text = "\n".join(f"  {failure}" for failure in lost[:20])
            raise FlowkitS3NotFound(f"{len(lost):,} local files are missing:\n{text}", None, lost)
        return self._put_all(files, lambda item: self._file_upload(item, overwrite))

    # -- how ----------------------------------------------------------------------------------------------------------

    def _url(self, key: Any) -> str:
        """Return the whole URL of a key."""
        if isinstance(key, bytes):
            key = key.decode()
        if key is not None and not isinstance(key, str):
            raise FlowkitS3URLException(f"{key!r} is not a key", "a key is text")
        if self._root is None:
            if key and key.startswith("s3://"):
                return key
            where = "S3(run=self)" if current.is_running_flow else "S3(s3root=…) or S3(run=…)"
            raise FlowkitS3URLException(
                f"'{key}' is not a URL of S3", f"make the client with {where}, or write s3://bucket/key"
            )
        if not key:
            return self._root
        if key.startswith("s3://"):
            raise FlowkitS3URLException(
                f"'{key}' is a whole URL, and this client's keys are below {self._root}",
                "leave the prefix out, or use S3() for whole URLs",
            )
        return f"{self._root}/{key.lstrip('/')}"

    def _object(self, url: str) -> Place:
        place = parse_url(url)
        if not place.key:
            raise FlowkitS3URLException(f"'{url}' names a bucket, and no object in it", "write s3://bucket/key")
        return place

    def _list(self, keys: Iterable[str | None] | None, delimiter: str) -> list[S3Object]:
        urls = [self._url(key) for key in (keys if keys is not None else [None])]
        shown = [url.rstrip("/") + "/" for url in urls] if delimiter else urls
        found: list[list[S3Object]] = [[] for _ in urls]

        def job(index: int) -> Job:
            def look_below() -> None:
                found[index] = list(self._below(shown[index], delimiter))

            return look_below

        carry_out((job(index) for index in range(len(urls))), THREADS)
        return [item for items in found for item in items]

    def _below(self, url: str, delimiter: str) -> Iterator[S3Object]:
        place = parse_url(url)
        prefix = place.key if place.key.endswith("/") or not place.key else place.key + "/"
        start = f"s3://{place.bucket}/"
        try:
            for page in self._access.bucket(place.bucket).pages(prefix, delimiter):
                for entry in page.get("Contents", ()):
                    if entry["Key"] != prefix:  # the mark of an empty folder, as consoles make them
                        yield S3Object(url, start + entry["Key"], size=int(entry["Size"]))
                for entry in page.get("CommonPrefixes", ()):
                    yield S3Object(url, start + entry["Prefix"])
        except FlowkitError as error:
            raise explained(error, place) from error

    def _infos(self, keys: Sequence[str | None], return_missing: bool) -> list[S3Object]:
        urls = [self._url(key) for key in keys]
        places = {url: self._object(url) for url in urls}
        found: dict[str, ObjectInfo | None] = {}

        def job(url: str) -> Job:
            def ask() -> None:
                found[url] = look(self._access, places[url])
                if found[url] is None and not return_missing:
                    raise missing(places[url])

            return ask

        carry_out(map(job, places), THREADS)
        infos = [(url, found[url]) for url in urls]
        return [S3Object(self._root, url, size=info and info.size, info=info) for url, info in infos]

    def _get(
        self,
        wanted: Sequence[tuple[str | None, Any]],
        return_missing: bool,
        return_info: bool,
        *,
        urls: bool = False,
    ) -> list[S3Object]:
        """Download parts of objects, each once, and return an object for each that is wanted, with its prefix."""
        parts: list[tuple[str | None, tuple[str, int | None, int | None]]] = []
        for prefix, key in wanted:
            name, offset, length = _part(key)
            parts.append((prefix, (name if urls else self._url(name), offset, length)))
        downloads = {
            part: Download(self._access, self._object(part[0]), part[1], part[2], self._folder, return_missing)
            for part in dict.fromkeys(part for _, part in parts)
        }
        try:
            carry_out((download.begin for download in downloads.values()), THREADS)
        except FlowkitS3Exception:
            for download in downloads.values():
                download.discard()
            raise
        return [self._got(prefix, part[0], downloads[part], return_info) for prefix, part in parts]

    def _got(self, prefix: str | None, url: str, download: Download, return_info: bool) -> S3Object:
        if download.path is None or download.range_info is None:
            return S3Object(prefix, url)
        size = download.range_info.request_length
        if not return_info:
            return S3Object(prefix, url, download.path, size, folder=self._folder)
        return S3Object(prefix, url, download.path, size, download.info, download.range_info, self._folder)

    def _put_all(self, given: Iterable[T], make: Callable[[T], tuple[str, Upload]]) -> list[tuple[str, str]]:
        """Carry out uploads; those of one key one after another, so that the last one stays."""
        made: list[tuple[str, str, Upload]] = []
        turns: dict[str, threading.Event] = {}

        def job(upload: Upload, before: threading.Event | None, done: threading.Event) -> Job:
            def store() -> None:
                try:
                    if before is not None:
                        before.wait()
                    upload.carry_out()
                finally:
                    done.set()

            return store

        # What is in memory already is looked at before anything is stored.
        uploads = [make(item) for item in given] if isinstance(given, (list, tuple)) else map(make, given)

        def jobs() -> Iterator[Job]:
            for key, upload in uploads:
                url = self._url(key)
                made.append((key, url, upload))
                before, turns[url] = turns.get(url), threading.Event()
                yield job(upload, before, turns[url])

        carry_out(jobs(), THREADS)
        return [(key, url) for key, url, upload in made if upload.stored]

    def _value_upload(self, item: S3PutObject, overwrite: bool) -> tuple[str, Upload]:
        return item.key, self._upload(item, _content(item.value, self._url(item.key)), overwrite)

    def _file_upload(self, item: S3PutObject, overwrite: bool) -> tuple[str, Upload]:
        path = os.fspath(item.path or "")
        return item.key, self._upload(item, lambda: open(path, "rb"), overwrite)

    def _upload(self, item: S3PutObject, content: Any, overwrite: bool) -> Upload:
        place = self._object(self._url(item.key))
        return Upload(
            self._access,
            place,
            content,
            metadata=pack_metadata(item.metadata, place.url) if item.metadata else {},
            content_type=item.content_type,
            encryption=item.encryption,
            overwrite=overwrite,
            room=self._room,
        )


def _run_root(run: Any, bucket: str | None, prefix: str | None) -> str:
    """Return the URL below which the objects of a run are."""
    if isinstance(run, FlowSpec):
        if not current.is_running_flow:
            raise FlowkitS3URLException(
                "S3(run=flow) needs a flow that is running", "use it in a step, or S3(run=Run('Flow/1')) of the client"
            )
        path = f"{current.flow_name}/{current.run_id}"
    else:
        path = str(getattr(run, "pathspec", ""))
        if path.count("/") != 1:
            raise FlowkitS3URLException(
                f"S3(run=…) takes self in a step, or a Run, and not {type(run).__name__}", "S3(run=self)"
            )
    found = _data_root()
    place = parse_url(found) if found else None
    if bucket is None and place is None:
        raise FlowkitS3URLException(
            "S3(run=…) has no place to keep objects in: the datastore is not on S3",
            "set FLOWKIT_DATA_TOOLS_ROOT=s3://bucket/prefix, or FLOWKIT_DATASTORE, or use S3(s3root=…)",
        )
    name = bucket or (place.bucket if place else "")
    below = prefix if prefix is not None else place.key if place else ""
    return "/".join(part for part in (f"s3://{name}", below.strip("/"), path) if part)


def _data_root() -> str | None:
    configured = settings().data_tools_root
    if configured:
        return configured
    datastore = current.get("datastore_root") or settings().datastore or ""
    return datastore.rstrip("/") + "/data" if datastore.startswith("s3://") else None


def _part(key: Any) -> tuple[Any, int | None, int | None]:
    """Return key, offset and length of what is asked for: a key, an `S3GetObject`, or an object like one."""
    name = getattr(key, "key", key)
    return name, getattr(key, "offset", None), getattr(key, "length", None)


def _put_object(given: Any) -> S3PutObject:
    if isinstance(given, S3PutObject):
        return given
    try:
        key, value = given
    except (TypeError, ValueError):
        raise FlowkitS3InvalidObject(
            f"an object to store is (key, value) or an S3PutObject, not {type(given).__name__}"
        ) from None
    return S3PutObject(key, value)


def _content(value: Any, url: str) -> Any:
    if isinstance(value, str):
        return lambda: io.BytesIO(value.encode())
    if isinstance(value, (bytes, bytearray)):
        return value
    if isinstance(value, memoryview):
        return value.cast("B")
    if not hasattr(value, "read"):
        raise FlowkitS3InvalidObject(
            f"the value for {url} is of type {type(value).__name__}", "store text, bytes or a binary file"
        )
    try:
        value.seek(0)
        if value.read(0) == b"":
            return value
    except (OSError, ValueError, AttributeError):  # closed, write-only, or a pipe
        pass
    raise FlowkitS3InvalidObject(
        f"the file for {url} cannot be read as bytes from its beginning", "open it with mode 'rb', or store its content"
    )


def _is_file(path: Any) -> bool:
    return path is not None and os.path.isfile(path)
