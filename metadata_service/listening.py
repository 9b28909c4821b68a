"""Where the service listens: the socket and the TLS files, looked at before anything else begins."""

from __future__ import annotations

import errno
import os
import socket
import ssl

from flowkit.exceptions import Conflict, UsageError

BACKLOG = 2048
"""Connections that the kernel holds until they are accepted (or `net.core.somaxconn`, if that is less)."""
_KUBERNETES = (
    "in Kubernetes a Service called 'flowkit' sets FLOWKIT_SERVICE_HOST and FLOWKIT_SERVICE_PORT in every pod: give "
    "--host and --port, or set enableServiceLinks to false"
)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    UsageError
        If that is no address of this machine, or a port that only root may use.
    Conflict
        If the port is taken.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(
            f"'{host}' is no address to listen on: {error}", "--host 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host in ("::", ""):
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.set_inheritable(False)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from None
    return listener


def url_of(listener: socket.socket, host: str, tls: bool) -> str:
    """Return the address under which a socket can be called, by the name that was asked for."""
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def check_tls(certificate: str | None, key: str | None) -> None:
    """Refuse TLS files that cannot be used.

    Raises
    ------
    UsageError
        If one is missing, cannot be read, or the two do not belong together.
    """
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        given, missing = (
            ("--tls-key", "--tls-certificate") if certificate is None else ("--tls-certificate", "--tls-key")
        )
        raise UsageError(f"{given} was given without {missing}", "TLS needs the certificate and its key, both in PEM")
    for what, path in (("certificate", certificate), ("key", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(f"the TLS {what} {path} cannot be read: {error.strerror}") from None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, _no_password)
    except ssl.SSLError as error:
        raise UsageError(
            f"the TLS files {certificate} and {key} cannot be used: {error.reason or error}",
            "they are in PEM, belong together, and the key has no password",
        ) from None


def raise_file_limit() -> None:
    """Let the process have as many connections as the system allows: each one is an open file."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ImportError, OSError, ValueError):  # as it is, then
        return


def _no_password() -> str:
    return ""  # a key with a password must not stop the start to ask for it


def _explained(error: OSError, host: str, port: int) -> UsageError | Conflict:
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {port} is in use by another process", "stop that one, or give another --port (0 for a free one)"
        )
    if error.errno == errno.EACCES:
        return UsageError(f"port {port} is for root only", "give a --port of 1024 or more")
    if error.errno == errno.EADDRNOTAVAIL:
        hint = (
            _KUBERNETES if "KUBERNETES_SERVICE_HOST" in _names() else "--host 127.0.0.1, or 0.0.0.0 for all addresses"
        )
        return UsageError(f"'{host}' is no address of this machine", hint)
    return UsageError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}")


def _names() -> set[str]:
    from flowkit.settings import environment

    return set(environment())
