"""Single requests for objects, signed by botocore and sent on the connections of its client, past its serializers.

A call through a client costs more than a millisecond of the processor, three quarters of it for rules and models that
come to the same for each object of a bucket; with 2,000 small objects that is what a transfer takes. So the address and
the region are asked for once, and objects are read and written by plain requests. Only what worked is believed: whoever
gets None makes the call through the client, which tries again, follows redirects and tells errors apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

_PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PATIENCE = 5
"""After so many requests in a row that were answered by neither success nor a plain refusal no more are tried."""


class Answer(NamedTuple):
    """An answer whose body has not been read.

    Parameters
    ----------
    status : int
        Of HTTP.
    headers : mapping
        Without regard to case.
    body : file-like
        To be read to its end, or closed.
    """

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def request(self) -> str:
        """The service's id of the request; empty where it gives none."""
        return str(self.headers.get("x-amz-request-id") or self.headers.get("x-amzn-requestid") or "")

    def metadata(self) -> dict[str, str]:
        """Return the metadata that the object was stored with."""
        start = "x-amz-meta-"
        return {name.lower()[len(start) :]: value for name, value in self.headers.items()
                if name.lower().startswith(start)}  # fmt: skip


class Quick:
    """Requests for the objects of one bucket.

    Parameters
    ----------
    client : botocore client
        Whose credentials, connections and configuration are used.
    bucket : str
        A name; aliases and access points are left to the client.
    """

    def __init__(self, client: Any, bucket: str) -> None:
        self._base: str | None = None
        self._odd = 0
        try:
            self._credentials = client._request_signer._credentials
            self._send = client._endpoint.http_session.send
            self._region = client.meta.region_name
        except AttributeError:  # botocore keeps them elsewhere by now
            return
        if self._credentials is None or not _PLAIN_BUCKET.fullmatch(bucket) or bucket.endswith("--x-s3"):
            return
        url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=60)
        base = str(url).partition("?")[0]
        if base.endswith("/k"):
            self._base = base[:-1]

    def get(self, key: str, span: str | None = None, etag: str | None = None) -> Answer | None:
        """Ask for an object or, with ``bytes=0-99``, for a part of it; `etag` is the version that it must have."""
        headers = {}
        if span:
            headers["Range"] = span
        if etag:
            headers["If-Match"] = etag
        return self._request("GET", key, headers)

    def head(self, key: str) -> Answer | None:
        """Ask what the service knows of an object."""
        return self._request("HEAD", key, {})

    def put(self, key: str, content: Any, headers: Mapping[str, str]) -> Answer | None:
        """Store an object: bytes, or a binary file that is read from where it stands."""
        return self._request("PUT", key, headers, content)

    def _request(self, method: str, key: str, headers: Mapping[str, str], content: Any = None) -> Answer | None:
        if self._base is None:
            return None
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        request = AWSRequest(
            method=method, url=self._base + quote(key, safe="/~"), headers=headers, data=content, stream_output=True
        )
        try:
            S3SigV4Auth(self._credentials.get_frozen_credentials(), "s3", self._region).add_auth(request)
            answer = self._send(request.prepare())
        except BotoCoreError:
            self._note(False)
            return None
        status = int(answer.status_code)
        self._note(status in (200, 206, 404, 412, 416))
        return Answer(status, answer.headers, answer.raw)

    def _note(self, plain: bool) -> None:
        self._odd = 0 if plain else self._odd + 1
        if self._odd >= _PATIENCE:
            self._base = None
