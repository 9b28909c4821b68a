"""Clients of AWS services: made when first used, once in a process, never shared with a forked one."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from flowkit.exceptions import StoreError
from flowkit.settings import settings, variable
from flowkit.version import __version__

if TYPE_CHECKING:
    from flowkit.plugins.aws.wire import Wire

CONNECTIONS = 32
"""Connections that a client keeps open: no fewer than the threads of a transfer, or they would open new ones."""
CONNECT_TIMEOUT = 10.0
"""Seconds until a server must have accepted a connection."""
READ_TIMEOUT = 60.0
"""Seconds without a byte until an answer counts as lost."""
DEFAULT_REGION = "us-east-1"
"""Where S3 is looked for when nobody says otherwise, as the service's own tools do."""

_DNS = re.compile(r"(?!.*--x-s3$)(?!xn--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_PLAIN_REGION = re.compile(r"[a-z]{2}-(gov-)?(?!iso)[a-z]+-\d+")


class _Key(NamedTuple):
    service: str
    region: str | None
    role: str | None
    endpoint: str | None


_lock = threading.RLock()
_clients: dict[_Key, Any] = {}
_wires: dict[tuple[str, str | None, str | None], Wire | None] = {}
_sessions: dict[str | None, Any] = {}
_warm = False
_renewals = 0


def client(service: str, *, region: str | None = None, role: str | None = None, endpoint: str | None = None) -> Any:
    """Return this process's client of a service, safe to be used by several threads.

    Retries are the caller's (botocore makes none): `flowkit.plugins.aws.errors.transient` tells what to try again.
    For S3 without an endpoint the setting ``s3_endpoint_url`` is used, then botocore's own ``AWS_ENDPOINT_URL``.

    Parameters
    ----------
    service : str
        E.g. ``s3``, ``batch``, ``secretsmanager``.
    region : str, optional
        Default: what the environment or the AWS configuration says; for S3 then `DEFAULT_REGION`.
    role : str, optional
        ARN of a role to assume; its credentials are renewed before they expire.
    endpoint : str, optional
        URL of a compatible service.

    Raises
    ------
    StoreError
        If the AWS configuration cannot be read, or names a profile that is not there.
    """
    if service == "s3":
        endpoint = endpoint or settings().s3_endpoint_url
    key = _Key(service, region, role, endpoint)
    found = _clients.get(key)
    if found is None:
        with _lock:
            found = _clients.get(key)
            if found is None:
                with _configuration_errors():
                    found = _clients[key] = _make(key)
    return found


def wire(bucket: str, *, role: str | None = None, region: str | None = None) -> Wire | None:
    """Return this process's own connections to a bucket; None where the client must be asked.

    Parameters
    ----------
    bucket : str
        Its name.
    role : str, optional
        ARN of a role to assume.
    region : str, optional
        Where the bucket turned out to be, if not where it was looked for.

    Raises
    ------
    StoreError
        If the AWS configuration cannot be read.
    """
    key = (bucket, role, s3_endpoint())
    if key in _wires and region is None:
        return _wires[key]
    with _lock:
        if key not in _wires or region is not None:
            with _configuration_errors():
                _wires[key] = _make_wire(*key, region)
        return _wires[key]


def s3_endpoint() -> str | None:
    """Return the endpoint of an S3-compatible service that is configured; None for AWS itself."""
    return settings().s3_endpoint_url or variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL")


def configured_region() -> str | None:
    """Return the region of the environment or the AWS configuration; None where there is none."""
    with _lock, _configuration_errors():
        return _region(_session(None))


def warm() -> None:
    """Import what S3 takes, and read the AWS configuration, without opening anything.

    What forks processes that each use S3 calls this once before: it spares each of them 0.2 s.
    """
    global _warm
    import botocore.auth
    import botocore.client
    import botocore.credentials
    import botocore.httpsession  # noqa: F401

    import flowkit.plugins.aws.wire  # noqa: F401

    with _lock, _configuration_errors():
        _session(None)
        _warm = True


def forget() -> None:
    """Drop all clients: the next one reads the credentials again, where they may have been renewed."""
    with _lock:
        _drop()
        _sessions.clear()


def renewals() -> int:
    """Return how often credentials have been replaced in this process, for `renewed`."""
    return _renewals


def renewed(role: str | None, before: int) -> bool:
    """Drop all clients after credentials have expired; return whether there are other ones by now.

    Parameters
    ----------
    role : str, optional
        Whose credentials.
    before : int
        What `renewals` said before the call that failed: another thread may have replaced them since.
    """
    global _renewals
    with _lock:
        if _renewals != before:
            return True
        old = _keys(role)
        forget()
        if _keys(role) == old:
            return False
        _renewals += 1
        return True


def _keys(role: str | None) -> tuple[str, str | None] | None:
    with _configuration_errors():
        found = _session(role).get_credentials()
        frozen = found.get_frozen_credentials() if found is not None else None
    return None if frozen is None else (str(frozen.access_key), frozen.token)


def _drop() -> None:
    _clients.clear()
    for made in _wires.values():
        if made is not None:
            made.close()
    _wires.clear()


def _after_fork() -> None:
    # The parent's connections stay the parent's: here they are closed without a word on them.
    global _lock
    _lock = threading.RLock()
    _drop()
    if not _warm:
        _sessions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _make_wire(bucket: str, role: str | None, endpoint: str | None, region: str | None) -> Wire | None:
    from botocore.httpsession import get_cert_path
    from botocore.utils import get_environ_proxies

    from flowkit.plugins.aws.wire import Wire, plain_credentials

    own = _session(role)
    region = region or _region(own) or DEFAULT_REGION
    scoped = own.get_scoped_config()
    special = any(own.get_config_variable(f"use_{kind}_endpoint") for kind in ("fips", "dualstack"))
    if special or any(name in scoped for name in ("s3", "services", "endpoint_url")):
        return None
    if endpoint is not None:
        base = f"{endpoint.rstrip('/')}/{bucket}"
    elif _DNS.fullmatch(bucket) and _PLAIN_REGION.fullmatch(region):
        base = f"https://{bucket}.s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    else:
        return None
    credentials = own.get_credentials()
    if credentials is None or get_environ_proxies(base):
        return None
    certificates = own.get_config_variable("ca_bundle") or get_cert_path(True)
    return Wire(
        base,
        region,
        plain_credentials(credentials),
        certificates=certificates,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
    )


def _make(key: _Key) -> Any:
    from botocore.config import Config

    options: dict[str, Any] = {}
    if key.service == "s3":
        # Content is checked by its BLAKE3 key; CRC32 and SHA-256 would hash all of it once more.
        options["request_checksum_calculation"] = options["response_checksum_validation"] = "when_required"
        options["s3"] = {"payload_signing_enabled": False}
        if key.endpoint or s3_endpoint():
            options["s3"]["addressing_style"] = "path"
    config = Config(
        max_pool_connections=CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},
        user_agent_extra=f"flowkit/{__version__}",
        **options,
    )
    # Botocore's own clients are all that is needed, and two of boto3's sessions cannot share one of botocore's.
    session = _session(key.role)
    region = key.region or _region(session) or (DEFAULT_REGION if key.service == "s3" else None)
    return session.create_client(key.service, region_name=region, endpoint_url=key.endpoint, config=config)


def _region(session: Any) -> str | None:
    """Return the region that is configured; ``AWS_REGION`` is what other tools of AWS read, and botocore does not."""
    region = session.get_config_variable("region") or variable("AWS_REGION")
    return str(region) if region else None


def _session(role: str | None) -> Any:
    """Return botocore's session: configuration and credentials, no connections."""
    found = _sessions.get(role)
    if found is None:
        import botocore.session

        found = botocore.session.Session()
        if role is not None:
            _assume(found, role)
        _sessions[role] = found
    return found


def _assume(session: Any, role: str) -> None:
    """Give a session the credentials of a role, renewed from the user's own."""
    import botocore.session
    from botocore.credentials import (
        AssumeRoleCredentialFetcher,
        CredentialProvider,
        CredentialResolver,
        DeferredRefreshableCredentials,
    )

    class Provider(CredentialProvider):
        METHOD = CANONICAL_NAME = "flowkit-assume-role"

        def load(self) -> Any:
            own = botocore.session.Session()
            credentials = own.get_credentials()
            if credentials is None:
                return None
            fetcher = AssumeRoleCredentialFetcher(
                client_creator=own.create_client,
                source_credentials=credentials,
                role_arn=role,
                extra_args={"RoleSessionName": f"flowkit-{os.getpid()}"},
            )
            return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)

    session.register_component("credential_provider", CredentialResolver([Provider()]))


@contextmanager
def _configuration_errors() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (BotoCoreError, ValueError) as error:
        raise StoreError(
            f"no AWS client can be made: {error}",
            "look at the AWS_ variables, ~/.aws/config, ~/.aws/credentials and the setting s3_endpoint_url",
        ) from error
