"""Calls of the Docker daemon, and what their failures mean."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flowkit.exceptions import MissingExtra
from flowkit.runtime.backend import BackendError
from flowkit.settings import variable

_SOCKET = "/var/run/docker.sock"
TIMEOUT = 60.0
"""Seconds until a call counts as lost."""


class Refused(BackendError):
    """The daemon answered that it will not.

    Attributes
    ----------
    status : int
        Of HTTP.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"Docker: {text}", transient=status >= 500)
        self.status = status


class Daemon:
    """The daemon that ``DOCKER_HOST`` names, or the one of this machine; connected to when first called."""

    def __init__(self) -> None:
        self._api: Any = None

    @property
    def api(self) -> Any:
        """The low-level client.

        Raises
        ------
        MissingExtra
            If the package docker is not installed.
        BackendError
            If there is no daemon.
        """
        if self._api is None:
            try:
                import docker
            except ImportError as error:
                raise MissingExtra(
                    f"@docker needs a package that is not installed: {error.name}", "pip install 'flowkit[docker]'"
                ) from error
            with translated():
                _look_for_socket()
                self._api = docker.from_env(timeout=TIMEOUT).api
        return self._api

    @property
    def is_local(self) -> bool:
        """Whether the daemon is on this machine: only then it can mount folders of it."""
        return str(self.api.base_url).startswith(("http+docker://", "http+unix://", "npipe://"))

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Make a call of the low-level client.

        Raises
        ------
        Refused
            If the daemon answers with an error.
        BackendError
            If it does not answer.
        """
        found = getattr(self.api, method)
        with translated():
            return found(*args, **options)

    def pull(self, image: str) -> None:
        """Pull an image; returns when it is there."""
        from docker.utils import parse_repository_tag

        name, tag = parse_repository_tag(image)
        if "@" in image:
            name, tag = image, None
        with translated():
            for line in self.api.pull(name, tag=tag or (None if "@" in image else "latest"), stream=True, decode=True):
                if "error" in line:
                    raise Refused(404, str(line["error"]))

    def close(self) -> None:
        """Close the connections."""
        if self._api is not None:
            self._api.close()
            self._api = None


def _look_for_socket() -> None:
    """Raise an OSError where nobody listens; the client would leave its socket open."""
    host = variable("DOCKER_HOST") or f"unix://{_SOCKET}"
    if host.startswith("unix://") and hasattr(socket, "AF_UNIX"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(TIMEOUT)
            probe.connect(host.removeprefix("unix://"))


@contextmanager
def translated() -> Iterator[None]:
    """Turn the client's errors into ours."""
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise Refused(int(error.status_code or 500), _text(error)) from error
    except (DockerException, OSError) as error:  # the client's errors of connections are OSErrors
        raise BackendError(
            f"the Docker daemon does not answer: {_short(error)}",
            "start it (Docker Desktop, or systemctl start docker), or set DOCKER_HOST; are you in the group docker?",
            transient=True,
            answered=False,
        ) from error


def _text(error: Any) -> str:
    text = error.explanation or str(error)
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    try:
        text = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:500]


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    for known in ("No such file or directory", "Permission denied", "Connection refused", "timed out"):
        if known in text:
            return known
    return text[:300] or type(error).__name__
