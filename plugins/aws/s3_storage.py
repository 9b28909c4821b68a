"""The datastore on S3, or a service that speaks its language.

`create` is a PUT with ``If-None-Match: *``, `replace_version` one with ``If-Match``. Each write carries a random mark
in the object's metadata: where an answer was lost and the write is made again, a conflict with one's own first try is
told from somebody else's by that mark, also where both wrote the same bytes.

AWS keeps these conditions. Of another service it is found out once for each root, with a few tiny objects, and
remembered in the root; one that ignores them is refused, since two runs could own the same id there.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping

from flowkit.datastore.storage import Chunks, Entry, Info, Missing, Storage, Versioned, check_path
from flowkit.exceptions import StoreError, UsageError
from flowkit.plugins.aws import session, sweeping
from flowkit.plugins.aws.calls import Absent
from flowkit.plugins.aws.transfer import Bucket
from flowkit.settings import settings

OWN = ".flowkit"
"""The folder below a root for what is about the root itself; not listed."""
FRESH = 3600.0
"""Seconds for which a time counts as fresh: a sweep spares whatever is younger than a day."""

_BUCKET = re.compile(r"[a-z0-9A-Z][a-zA-Z0-9._-]{1,254}")
_TESTED = f"{OWN}/conditional-writes"


class S3Storage(Storage):
    """Objects below a prefix of a bucket.

    Parameters
    ----------
    spec : str
        ``s3://bucket`` or ``s3://bucket/prefix``.
    fresh : float
        Seconds for which `touch` leaves an object's time as it is. A refresh is a copy within the service: it takes
        no transfer, but for large objects some time, and S3's times are whole seconds.

    Raises
    ------
    UsageError
        If it names no bucket.
    """

    name = "s3"
    cached = True

    def __init__(self, spec: str, *, fresh: float = FRESH) -> None:
        scheme, _, rest = spec.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not _BUCKET.fullmatch(bucket):
            raise UsageError(f"'{spec}' is not a root on S3", "it has the form s3://bucket/prefix")
        prefix = prefix.rstrip("/")
        if prefix:
            check_path(prefix)
        self.root = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self.bucket = Bucket(bucket, role=settings().s3_role, encryption=settings().s3_encryption)
        self.fresh = fresh
        self._prefix = f"{prefix}/" if prefix else ""
        self._tested = False

    @classmethod
    def warm(cls) -> None:
        """Import what a client takes, before processes are forked that make one each."""
        session.warm()

    @property
    def remote(self) -> bool:
        """Whether each call goes over a network."""
        return True

    def read(self, path: str) -> bytes:
        """Return the whole object."""
        try:
            return self.bucket.get(self._key(path))[0]
        except Absent:
            raise Missing(path) from None

    def read_range(self, path: str, offset: int, length: int) -> bytes:
        """Return a part of an object."""
        try:
            return self.bucket.get_range(self._key(path), offset, length)
        except Absent:
            raise Missing(path) from None

    def read_into(self, path: str, offset: int, memory: memoryview) -> int:
        """Read a part of an object into memory, a large one by several requests at once."""
        try:
            return self.bucket.get_into(self._key(path), offset, memory)
        except Absent:
            raise Missing(path) from None

    def info(self, path: str) -> Info | None:
        """Return size and time of an object."""
        found = self.bucket.head(self._key(path))
        return None if found is None else Info(found.size, found.modified)

    def create(self, path: str, content: Chunks) -> bool:
        """Write an object if there is none.

        Large content (above `flowkit.plugins.aws.transfer.WHOLE`) goes in parts, and the condition is asked twice:
        before anything is sent, and by the service when the parts become the object.
        """
        return self._create(path, content, None)

    def create_told(self, path: str, content: Chunks, facts: Mapping[str, str]) -> bool:
        """Write an object if there is none, with short texts as its metadata (``x-amz-meta-…``)."""
        return self._create(path, content, facts)

    def _create(self, path: str, content: Chunks, metadata: Mapping[str, str] | None) -> bool:
        key = self._key(path)
        if not self._tested:
            self._test_conditions()
        return self.bucket.put(key, content, absent=True, metadata=metadata) == "written"

    def replace(self, path: str, content: Chunks) -> None:
        """Write an object in the place of any that was there."""
        self.bucket.put(self._key(path), content)

    def read_version(self, path: str) -> Versioned:
        """Return the whole object and its version, which is its ETag."""
        try:
            return Versioned(*self.bucket.get(self._key(path)))
        except Absent:
            raise Missing(path) from None

    def replace_version(self, path: str, content: bytes, version: str) -> bool:
        """Write an object in the place of one that still has the given version.

        Where the answer to a write that was made is lost and somebody replaces what it wrote before that is noticed,
        the answer is False. Without encryption by KMS the same content has the same version: who must be told apart
        writes something of its own.
        """
        key = self._key(path)
        if not self._tested:
            self._test_conditions()
        return self.bucket.put(key, [content], version=version) == "written"

    def delete(self, path: str) -> None:
        """Remove an object."""
        self.bucket.delete(self._key(path))

    def children(self, path: str) -> Iterator[str]:
        """Yield the names directly below a path: one request for every thousand."""
        prefix = f"{self._key(path)}/" if path else self._prefix
        seen: set[str] = set()
        for page in self.bucket.pages(prefix, "/"):
            found = [entry["Key"] for entry in page.get("Contents", ())]
            found += [entry["Prefix"].rstrip("/") for entry in page.get("CommonPrefixes", ())]
            for key in found:
                name = key[len(prefix) :]
                if name and name not in seen and (path or name != OWN):
                    seen.add(name)
                    yield name

    def walk(self, path: str) -> Iterator[Entry]:
        """Yield every object below a path: one request for every thousand."""
        prefix = f"{self._key(path)}/" if path else self._prefix
        for page in self.bucket.pages(prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"][len(self._prefix) :]
                # A "folder" that somebody made in the console is an empty object whose name ends with a slash.
                if name and not name.endswith("/") and (path or not name.startswith(f"{OWN}/")):
                    yield Entry(name, int(entry["Size"]), entry["LastModified"].timestamp())

    def delete_older(self, path: str, before: float) -> bool:
        """Remove an object that was last written before a time."""
        return sweeping.delete_older(self.bucket, self._key(path), before)

    def delete_all(self, paths: Iterable[str]) -> None:
        """Remove many objects: one request for every thousand."""
        sweeping.delete_all(self.bucket, (self._key(path) for path in paths))

    def unfinished(self, before: float, *, remove: bool = False) -> list[Entry]:
        """Return the multipart uploads that were begun before a time and never came to their end."""
        found = [upload for upload in sweeping.uploads(self.bucket, self._prefix) if upload.begun < before]
        if remove:
            for upload in found:
                sweeping.abort(self.bucket, upload)
        return [Entry(f"upload of {upload.key[len(self._prefix) :]}", 0, upload.begun) for upload in found]

    def touch(self, path: str) -> bool:
        """Refresh the time of an object, unless it is fresh enough."""
        key = self._key(path)
        found = self.bucket.head(key)
        if found is None:
            return False
        return time.time() - found.modified < self.fresh or self.bucket.refresh(key, found)

    def _key(self, path: str) -> str:
        return self._prefix + check_path(path)

    def _test_conditions(self) -> None:
        """Refuse a service that does not keep the conditions of a write."""
        marker = self._prefix + _TESTED
        if session.s3_endpoint() is not None and self.bucket.head(marker) is None:
            probe = f"{self._prefix}{OWN}/probe-{uuid.uuid4().hex}"
            try:
                self.bucket.put(probe, [b"1"])
                kept = self.bucket.put(probe, [b"2"], absent=True) == "exists"
                kept = kept and self.bucket.put(probe, [b"3"], version='"0123456789abcdef0123456789abcdef"') == "exists"
            finally:
                self.bucket.delete(probe)
            if not kept:
                raise StoreError(
                    f"the service behind {self.root} ignores the conditions If-None-Match and If-Match of a write",
                    "without them two runs could own the same id: use a service or a version of it that has them",
                )
            self.bucket.put(marker, [b"kept\n"])
        self._tested = True
