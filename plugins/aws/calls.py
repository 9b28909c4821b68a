"""Calls for the objects of one bucket: made again while that helps, and what came of them as few exceptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flowkit.exceptions import StoreError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import Interrupted, code_of, expired, explained, retried, status_of, transient
from flowkit.plugins.aws.parts import Buffer
from flowkit.plugins.aws.wire import Reply

T = TypeVar("T")

_MOST_ODD = 5
"""Answers in a row that the quick way could not make sense of, after which it is not gone any more."""


class Absent(Exception):
    """There is no object of that key."""


class Refused(Exception):
    """The object is not in the state that the call asked for."""


class PastEnd(Exception):
    """The object ends before the range begins."""


class _NoBucket(Exception):
    response = {"Error": {"Code": "NoSuchBucket"}}


class Calls:
    """How one bucket is asked.

    Parameters
    ----------
    name : str
        The bucket.
    role : str, optional
        ARN of a role to assume.
    """

    def __init__(self, name: str, role: str | None = None) -> None:
        self.name = name
        self.role = role
        self._answered = False
        self._exists = False
        self._odd = 0

    def call(self, action: str, key: str, call: Callable[[bool], T]) -> T:
        """Make a call with retries; what it fails with is `Absent`, `Refused`, `PastEnd` or a StoreError.

        The call is told whether to try the quick way: only the first time, since the client knows more of errors.
        """
        first = fresh = True
        renewals = session.renewals()

        def once() -> T:
            nonlocal first
            quick, first = first, False
            return call(quick)

        while True:
            try:
                answer = retried(once, answered=lambda: self._answered)
            except KeyError as error:
                raise StoreError(
                    f"cannot {action} s3://{self.name}/{key}: what answers is not S3 (no {error} in an answer)",
                    "look at FLOWKIT_S3_ENDPOINT_URL and AWS_ENDPOINT_URL",
                ) from error
            except (Absent, Refused, PastEnd):
                self._answered = self._exists = True
                raise
            except Exception as error:
                if not self._known(error):
                    raise
                if expired(error) and fresh:
                    fresh = False
                    if session.renewed(self.role, renewals):
                        self._odd = 0
                        continue
                raise self._outcome(error, action, key) from error
            self._answered = self._exists = True
            return answer

    def quick(
        self,
        method: str,
        key: str,
        headers: Mapping[str, str],
        *,
        query: str = "",
        body: Buffer = b"",
        into: memoryview | None = None,
        most: int = 1 << 62,
    ) -> Reply | None:
        """Make a request past botocore's client; None where the client has to make it, and to explain the answer."""
        if self._odd >= _MOST_ODD:
            return None
        wire = session.wire(self.name, role=self.role)
        if wire is None:
            return None
        reply = wire.request(method, key, headers, query=query, body=body, into=into, most=most)
        if reply.status == 206 or (reply.status in (200, 204) and "range" not in headers and _complete(method, reply)):
            self._odd = 0
            return reply
        if reply.status in (429, 500, 502, 503, 504):
            raise Interrupted(f"the service answered {reply.status}")
        if reply.status == 404 and (b"<Code>NoSuchKey<" in reply.body or (method == "HEAD" and self._exists)):
            raise Absent(key)
        if reply.status == 412:
            raise Refused(key)
        if reply.status == 416:
            raise PastEnd(key)
        elsewhere = reply.headers.get("x-amz-bucket-region")
        if reply.status in (301, 307, 400) and elsewhere and session.s3_endpoint() is None:
            session.wire(self.name, role=self.role, region=elsewhere)
        if reply.status != 404:
            self._odd += 1
        return None

    def _outcome(self, error: Exception, action: str, key: str) -> Exception:
        code, status = code_of(error), status_of(error)
        self._answered = self._answered or status > 0
        if code in ("NoSuchKey", "NoSuchUpload"):
            self._exists = True
            return Absent(key)
        if code in ("PreconditionFailed", "412"):
            self._exists = True
            return Refused(key)
        if status == 416:
            self._exists = True
            return PastEnd(key)
        if status == 404 and code != "NoSuchBucket":
            if self._exists or self._there():
                return Absent(key)
            error = _NoBucket()
        return explained(error, action, self.name, key, self._endpoint())

    def _there(self) -> bool:
        """Whether the bucket exists: the answer to HEAD does not tell which of the two is missing."""
        try:
            retried(lambda: self.client().head_bucket(Bucket=self.name), answered=lambda: self._answered)
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

    def client(self) -> Any:
        return session.client("s3", role=self.role)

    def _endpoint(self) -> str:
        return session.s3_endpoint() or ""


def _complete(method: str, reply: Reply) -> bool:
    """Whether a successful answer has what one of S3 has."""
    needed = {"HEAD": ("etag", "last-modified", "content-length"), "GET": ("etag",), "PUT": ("etag",)}
    return all(name in reply.headers for name in needed.get(method, ()))
