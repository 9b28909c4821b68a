"""AWS credentials for containers on this machine: files that they may read, never values in what the daemon keeps."""

from __future__ import annotations

import os
import shutil

from flowkit.plugins.docker.documents import Secrets
from flowkit.settings import home, variable

_INSIDE = "/run/flowkit-aws"
_KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}


class Credentials:
    """The credentials of one run's containers.

    Parameters
    ----------
    key : str
        The run's own text; names the folder.
    """

    def __init__(self, key: str) -> None:
        self._folder = os.path.join(home(), "docker-credentials", key)

    def offer(self) -> Secrets:
        """Return what gives a container the credentials that this process has.

        Keys in the environment are written to a file that only the user can read; the user's own AWS files are mounted
        as they are.
        """
        keys = {name: variable(name) for name in _KEYS}
        if keys["AWS_ACCESS_KEY_ID"]:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            path = os.path.join(self._folder, "credentials")
            lines = ["[default]", *(f"{_KEYS[name]} = {value}" for name, value in keys.items() if value), ""]
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write("\n".join(lines))
            binds = [f"{self._folder}:{_INSIDE}:ro"]
            return Secrets(tuple(binds), (("AWS_SHARED_CREDENTIALS_FILE", f"{_INSIDE}/credentials"),))
        own = os.path.expanduser("~/.aws")
        files = {
            "AWS_SHARED_CREDENTIALS_FILE": variable("AWS_SHARED_CREDENTIALS_FILE") or os.path.join(own, "credentials"),
            "AWS_CONFIG_FILE": variable("AWS_CONFIG_FILE") or os.path.join(own, "config"),
        }
        found = {name: os.path.abspath(path) for name, path in files.items() if os.path.isfile(path)}
        named = {name: f"{_INSIDE}/{os.path.basename(path)}" for name, path in found.items()}
        profile = variable("AWS_PROFILE")
        if profile:
            named["AWS_PROFILE"] = profile
        return Secrets(
            tuple(f"{path}:{named[name]}:ro" for name, path in found.items()),
            tuple(named.items()),
        )

    def withdraw(self) -> None:
        """Remove the file, if one was written."""
        shutil.rmtree(self._folder, ignore_errors=True)
