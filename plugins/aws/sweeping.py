"""Removing from a bucket: what is old, what is many, what was never finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from flowkit.exceptions import StoreError
from flowkit.plugins.aws.calls import Absent
from flowkit.plugins.aws.transfer import Bucket

AT_ONCE = 1000
"""Objects that one request removes: the service's own limit."""


class Upload(NamedTuple):
    """An upload in parts that has not come to its end: the object it is for, its id, when it was begun."""

    key: str
    id: str
    begun: float


def delete_older(bucket: Bucket, key: str, before: float) -> bool:
    """Remove an object that was last written before a time (epoch seconds); return whether it was removed.

    Nothing is removed on the strength of an older look: where the answer to a removal is lost, the object is looked
    at again before the next try, since somebody may have written it anew.
    """

    def look_and_remove(_: bool) -> bool:
        found = bucket.head(key)
        if found is None or found.modified >= before:
            return False
        bucket.client().delete_object(Bucket=bucket.name, Key=key)
        return True

    try:
        return bucket.call("delete", key, look_and_remove)
    except Absent:
        return False


def delete_all(bucket: Bucket, keys: Iterable[str]) -> None:
    """Remove many objects, a thousand with each request.

    Raises
    ------
    StoreError
        If one of them cannot be removed.
    """
    rest = iter(keys)
    while batch := list(islice(rest, AT_ONCE)):
        wanted = {"Objects": [{"Key": key} for key in batch], "Quiet": True}

        def remove(_: bool, wanted: dict[str, Any] = wanted) -> list[dict[str, Any]]:
            answer = bucket.client().delete_objects(Bucket=bucket.name, Delete=wanted)
            refused: list[dict[str, Any]] = answer.get("Errors", [])
            return refused

        for error in bucket.call("delete", batch[0], remove):
            if error.get("Code") != "NoSuchKey":
                raise StoreError(
                    f"cannot delete s3://{bucket.name}/{error.get('Key')}: {error.get('Message') or error.get('Code')}"
                )


def uploads(bucket: Bucket, prefix: str) -> Iterator[Upload]:
    """Yield the uploads in parts below a prefix that have not come to their end."""
    options: dict[str, Any] = {"Bucket": bucket.name, "Prefix": prefix}
    while True:

        def look(_: bool, asked: dict[str, Any] = options) -> dict[str, Any]:
            found: dict[str, Any] = bucket.client().list_multipart_uploads(**asked)
            return found

        page = bucket.call("list", prefix, look)
        for entry in page.get("Uploads", ()):
            yield Upload(entry["Key"], entry["UploadId"], entry["Initiated"].timestamp())
        if not page.get("IsTruncated"):
            return
        options = {**options, "KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def abort(bucket: Bucket, upload: Upload) -> None:
    """Give up an upload and the parts that came; nothing happens where it has come to its end."""
    try:
        bucket.call(
            "delete",
            upload.key,
            lambda _: bucket.client().abort_multipart_upload(Bucket=bucket.name, Key=upload.key, UploadId=upload.id),
        )
    except Absent:
        return
