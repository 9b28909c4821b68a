"""By which names a service may be called, and by pages from where.

A page on the web can make the browser of whoever looks at it call a service on their machine, and give its own name
that machine's address ("DNS rebinding"), so that the browser lets it read the answers. Both are told by two headers
that no page can set: Host has the name that was called, Origin where the page is from. An address is as good as a
name of our own: nobody can give it another one.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from flowkit.exceptions import UsageError
from flowkit.metadata_service.configuration import Configuration
from flowkit.metadata_service.refused import Refused, forbidden

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_NAME = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.\-]{1,253}))(?::([0-9]{1,5}))?")

_ORIGIN = re.compile(rf"(?i:https?)://{_NAME.pattern}/?")


class Origins:
    """The names and origins that a service answers to.

    Parameters
    ----------
    configuration : Configuration
        `host`, `allowed_hosts` (``name``, ``name:port``, ``*.domain``, ``*`` for any) and `allowed_origins`
        (``https://name[:port]``).

    Raises
    ------
    UsageError
        If one of them is in another form, so that nothing would ever match it.
    """

    def __init__(self, configuration: Configuration) -> None:
        _check_allowed(configuration)
        allowed = {host.lower().rstrip(".") for host in configuration.allowed_hosts}
        self._any = "*" in allowed
        self._names = LOOPBACK | {configuration.host.lower()} | {host for host in allowed if "*" not in host}
        self._domains = tuple(host[1:] for host in allowed if host.startswith("*.") and len(host) > 2)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in configuration.allowed_origins)

    def check_host(self, hosts: list[bytes]) -> str:
        """Return the one Host of a request, if the service may be called so.

        Raises
        ------
        Refused
            400 without exactly one, 403 for a name that is not allowed.
        """
        text = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        found = _NAME.fullmatch(text)
        if found is None:
            raise Refused(400, "a request needs one Host header: the name of the service")
        name = (found[1] or found[2]).lower().rstrip(".")
        port = f":{found[3]}" if found[3] else ""
        if self._any or name in self._names or f"{name}{port}" in self._names or _is_address(name):
            return text.lower()
        if any(name.endswith(domain) for domain in self._domains):
            return text.lower()
        raise forbidden(
            f"this service does not answer to the name '{name}'",
            f"if it is one of its own: flowkit service --allow-host {name} (FLOWKIT_SERVICE_ALLOW_HOST)",
        )

    def check_origin(self, origins: list[bytes], host: str) -> str | None:
        """Return the origin of a page that may call from elsewhere; None where no page calls, or one of our own.

        Raises
        ------
        Refused
            403 for an origin that is not allowed.
        """
        if not origins:
            return None
        text = origins[0].decode("latin-1").lower().rstrip("/")
        if len(origins) == 1:
            if text in self._origins:
                return text
            # Whether TLS ends here or before us: the name, which was checked, is what tells pages apart.
            if _own(text, host):
                return None
        shown = text if len(origins) == 1 and text.isprintable() and len(text) < 300 else "(not readable)"
        raise forbidden(
            f"pages from '{shown}' may not call this service",
            f"if they may: flowkit service --allow-origin {shown} (FLOWKIT_SERVICE_ALLOW_ORIGIN)",
        )


def _check_allowed(configuration: Configuration) -> None:
    for host in configuration.allowed_hosts:
        if host != "*" and _NAME.fullmatch(host.removeprefix("*.")) is None:
            raise UsageError(f"--allow-host: '{host}' is no name of a host", "runs.example.com, *.example.com, or *")
    for origin in configuration.allowed_origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise UsageError(f"--allow-origin: '{origin}' is no origin of pages", "https://name, or https://name:port")


def _own(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc == host and not (parts.path or parts.query)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
