"""How `flowkit.S3` reaches buckets: with which credentials, through which client, and what its failures mean."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from flowkit.exceptions import FlowkitError, MissingExtra, StoreError
from flowkit.plugins.aws import session
from flowkit.plugins.aws.errors import code_of, status_of
from flowkit.plugins.aws.s3_crowd import Hopeless
from flowkit.plugins.aws.s3_exceptions import FlowkitS3AccessDenied, FlowkitS3Exception, FlowkitS3NotFound, S3Failure
from flowkit.plugins.aws.s3_objects import Place
from flowkit.plugins.aws.s3_quick import Quick
from flowkit.plugins.aws.transfer import Bucket

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
        self._buckets: dict[str, Bucket] = {}
        self._quick: dict[str, tuple[Any, Quick]] = {}

    def client(self) -> Any:
        """Return the botocore client, made when first used; a forked process makes its own."""
        if not self._session_vars and not self._client_params:
            return session.client("s3", role=self.role)
        with self._lock:
            if self._own is None or self._own[0] != os.getpid():
                self._own = (os.getpid(), _own_client(self.role, self._session_vars, self._client_params))
            return self._own[1]

    def bucket(self, name: str) -> Bucket:
        """Return a bucket, to be used by several threads."""
        found = self._buckets.get(name)
        if found is None:
            found = self._buckets[name] = _Bucket(name, self)
        return found

    def quick(self, name: str) -> Quick:
        """Return the short way to the objects of a bucket."""
        client = self.client()
        found = self._quick.get(name)
        if found is None or found[0] is not client:
            found = self._quick[name] = (client, Quick(client, name))
        return found[1]


class _Bucket(Bucket):
    def __init__(self, name: str, access: Access) -> None:
        super().__init__(name, role=access.role, encryption=access.encryption)
        self._access = access

    def _client(self) -> Any:
        return self._access.client()


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


def missing(place: Place, request: str = "") -> FlowkitS3NotFound:
    """Return the error for an object that is not there."""
    reason = "there is no such object" + (f" (request {request})" if request else "")
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
