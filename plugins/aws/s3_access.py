"""How `flowkit.S3` reaches buckets: with which credentials, through which client, and what its failures mean."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any, NamedTuple

from flowkit.exceptions import FlowkitError, MissingExtra, StoreError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import Interrupted, code_of, status_of
from flowkit.plugins.aws.s3_crowd import Hopeless
from flowkit.plugins.aws.s3_exceptions import FlowkitS3AccessDenied, FlowkitS3Exception, FlowkitS3NotFound, S3Failure
from flowkit.plugins.aws.s3_objects import ObjectInfo, Place, unpack_metadata
from flowkit.plugins.aws.transfer import WRITER, Bucket, Head, head_of
from flowkit.plugins.aws.wire import Reply

_SPAN = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_DENIED = frozenset(("403", "AccessDenied", "AccessDeniedException", "AllAccessDisabled", "UnauthorizedAccess"))


class Access:
    """Buckets as one user sees them.

    Parameters
    ----------
    role : str, optional
        ARN of a role to assume.
    encryption : str, optional
        Server-side encryption of what is written.
    session_vars : mapping, optional
        Arguments of ``boto3.session.Session``: other credentials than the process's own.
    client_params : mapping, optional
        Arguments of the session's ``client("s3", …)``.
    """

    def __init__(
        self,
        role: str | None = None,
        encryption: str | None = None,
        session_vars: Mapping[str, Any] | None = None,
        client_params: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import boto3  # noqa: F401
        except ImportError as error:
            raise MissingExtra(
                f"flowkit.S3 needs a package that is not installed: {error.name}", "pip install 'flowkit[aws]'"
            ) from error
        self.role = role
        self.encryption = encryption
        self._session_vars = dict(session_vars or {})
        self._client_params = dict(client_params or {})
        self._lock = threading.Lock()
        self._own: tuple[int, Any] | None = None
        self._buckets: dict[str, UserBucket] = {}

    def client(self) -> Any:
        """Return the botocore client, made when first used; a forked process makes its own."""
        if not self.is_own:
            return session.client("s3", role=self.role)
        with self._lock:
            if self._own is None or self._own[0] != os.getpid():
                self._own = (os.getpid(), _own_client(self.role, self._session_vars, self._client_params))
            return self._own[1]

    @property
    def is_own(self) -> bool:
        """Whether the client is another one than the process's."""
        return bool(self._session_vars or self._client_params)

    def bucket(self, name: str) -> UserBucket:
        """Return a bucket, to be used by several threads."""
        found = self._buckets.get(name)
        if found is None:
            found = self._buckets[name] = UserBucket(name, self)
        return found


class Beginning(NamedTuple):
    """The first bytes that were asked for.

    Parameters
    ----------
    content : bytes
        What came.
    start : int
        Where in the object it begins.
    etag : str
        The object's version.
    info : ObjectInfo
        What the service tells of the object.
    """

    content: bytes
    start: int
    etag: str
    info: ObjectInfo


class UserBucket(Bucket):
    """A bucket with what the user's client needs besides."""

    def __init__(self, name: str, access: Access) -> None:
        super().__init__(name, role=access.role, encryption=access.encryption)
        self._access = access

    def begin(self, key: str, span: str) -> Beginning:
        """Read a range such as ``bytes=0-99``, with what the service tells of the whole object.

        Raises
        ------
        Absent
            If there is no object.
        PastEnd
            If it ends before the range begins.
        """

        def ask(quick: bool) -> Beginning:
            reply = self.quick("GET", key, {"range": span}) if quick else None
            if reply is not None:
                headers, content = reply.headers, reply.body
            else:
                answer = self.client().get_object(Bucket=self.name, Key=key, Range=span)
                headers = answer["ResponseMetadata"]["HTTPHeaders"]
                with closing(answer["Body"]) as body:
                    content = body.read()
            head = head_of(headers)
            told = headers.get("content-range") or f"bytes 0-{len(content) - 1}/{len(content)}"
            found = _SPAN.fullmatch(told)
            if found is None or int(found[2]) - int(found[1]) + 1 != len(content):
                raise Interrupted(f"{len(content)} bytes came for {told!r}")
            return Beginning(content, int(found[1]), head.etag, info_of(head)._replace(size=int(found[3])))

        return self.call("read", key, ask)

    def quick(self, *args: Any, **options: Any) -> Reply | None:
        """Make a request past botocore's client, unless the user has one of their own."""
        return None if self._access.is_own else super().quick(*args, **options)

    def client(self) -> Any:
        """Return the user's client."""
        return self._access.client()


def info_of(head: Head) -> ObjectInfo:
    """Return what the user is told of an object."""
    metadata = {name: value for name, value in head.metadata.items() if name != WRITER}
    return ObjectInfo(head.size, head.content_type, unpack_metadata(metadata), head.encryption, head.modified)


def _own_client(role: str | None, session_vars: Mapping[str, Any], client_params: Mapping[str, Any]) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    own = Config(
        max_pool_connections=session.CONNECTIONS,
        connect_timeout=session.CONNECT_TIMEOUT,
        read_timeout=session.READ_TIMEOUT,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    given = dict(client_params)
    config = given.pop("config", None)
    if isinstance(config, Mapping):
        config = Config(**config)
    given.setdefault("endpoint_url", session.s3_endpoint())
    try:
        made = boto3.session.Session(**session_vars)
        if role is not None:
            made = _assumed(made, role)
        given.setdefault("region_name", made.region_name or session.DEFAULT_REGION)
        return made.client("s3", config=own if config is None else own.merge(config), **given)
    except (BotoCoreError, TypeError, ValueError) as error:
        raise FlowkitS3Exception(
            f"no S3 client can be made of session_vars and client_params: {error}",
            "session_vars are the arguments of boto3.session.Session, client_params those of its client('s3', …)",
        ) from error


def _assumed(own: Any, role: str) -> Any:
    """Return a session with the credentials of a role, renewed from those of another session."""
    import boto3
    import botocore.session
    from botocore.credentials import (
        AssumeRoleCredentialFetcher,
        CredentialProvider,
        CredentialResolver,
        DeferredRefreshableCredentials,
    )

    class Provider(CredentialProvider):
        METHOD = CANONICAL_NAME = "flowkit-s3-role"

        def load(self) -> Any:
            fetcher = AssumeRoleCredentialFetcher(
                client_creator=own._session.create_client,
                source_credentials=own.get_credentials(),
                role_arn=role,
                extra_args={"RoleSessionName": f"flowkit-{os.getpid()}"},
            )
            return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)

    inner = botocore.session.Session()
    inner.register_component("credential_provider", CredentialResolver([Provider()]))
    return boto3.session.Session(botocore_session=inner, region_name=own.region_name)


def missing(place: Place) -> FlowkitS3NotFound:
    """Return the error for an object that is not there."""
    reason = "there is no such object"
    return FlowkitS3NotFound(f"{place.url}: {reason}", None, (S3Failure(place.url, reason),))


def explained(error: FlowkitError, place: Place) -> FlowkitS3Exception | Hopeless:
    """Return what to raise for a failure of the transfer layer; `Hopeless` where the next object would fail as well."""
    cause = error.__cause__ or error
    reason = error.headline.partition(f"{place.url}: ")[2] or error.headline
    failures = (S3Failure(place.url, reason),)
    made: FlowkitS3Exception
    if status_of(cause) == 404:  # that of an object is no StoreError
        hint = "make the bucket, or correct its name; is the endpoint (FLOWKIT_S3_ENDPOINT_URL) the right one?"
        made = FlowkitS3NotFound(f"{place.url}: {reason}", hint, failures)
    elif status_of(cause) == 403 and code_of(cause) in _DENIED:
        denied = FlowkitS3AccessDenied(error.headline, error.hint, failures)
        denied.__cause__ = error
        return denied
    else:
        made = FlowkitS3Exception(error.headline, error.hint, failures)
    made.__cause__ = error
    lasting = isinstance(error, StoreError) and error.__cause__ is not None
    return Hopeless(made) if lasting else made
