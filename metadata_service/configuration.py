"""How a service was asked to run."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Configuration:
    """The options of one service.

    Parameters
    ----------
    database : str
        ``sqlite:///<folder>`` or ``postgresql://…``. Default: SQLite in ``~/.flowkit/service``.
    host : str, default "127.0.0.1"
        The address to listen on.
    port : int, default 8080
        0 takes a free one.
    tls_certificate, tls_key : str, optional
        Files in PEM; both or none.
    log_level : str, default "info"
        ``debug``, ``info``, ``warning``, ``error``.
    access_log : bool, default True
        One JSON line a request on stderr.
    insecure : bool, default False
        Serve without authentication although others than this machine can reach it.
    authentication : bool, default False
        Ask for a token on loopback too. Elsewhere one is always asked for, unless `insecure`.
    oidc_issuer, oidc_audience, oidc_jwks_url : str, optional
        Accept bearer tokens of this issuer for this audience; the keys' address is discovered unless it is given.
    oidc_scope_claim, oidc_project_claim : str
        Which claims hold the scopes and the projects.
    allowed_hosts, allowed_origins : tuple of str
        Names by which the service may be called besides its own, and origins of pages that may call it.
    max_body : int, default 16 MiB
        Bytes of a request's body, after unpacking.
    requests_per_second : float, default 2000
        Of one caller (token or address), in the long run; twice as many in a burst.
    max_streams : int, default 5000
        Listeners to events at once.
    heartbeat_interval : float, default 10
        Seconds between two heartbeats, as clients are told; after three missed ones a run is lost.
    events_kept : float, default 86400
        Seconds for which events can be read again.
    pool : int, default 10
        Connections to the database.
    """

    database: str
    host: str = "127.0.0.1"
    port: int = 8080
    tls_certificate: str | None = None
    tls_key: str | None = None
    log_level: str = "info"
    access_log: bool = True
    insecure: bool = False
    authentication: bool = False
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    oidc_jwks_url: str | None = None
    oidc_scope_claim: str = "scope"
    oidc_project_claim: str = "projects"
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body: int = 16 * 1024 * 1024
    requests_per_second: float = 2000.0
    max_streams: int = 5000
    heartbeat_interval: float = 10.0
    events_kept: float = 86_400.0
    pool: int = 10

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def guarded(self) -> bool:
        """Whether callers must say who they are."""
        return self.authentication or self.oidc_issuer is not None or not (self.loopback or self.insecure)
