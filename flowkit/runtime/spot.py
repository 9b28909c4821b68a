"""Notices that a machine will be taken away: they reach the task as a file (``current.spot_termination_notice``).

On EC2 the machine's own metadata service tells it two minutes ahead; elsewhere the first that is heard of it is
SIGTERM, for which the wrapper writes the same file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from flowkit.settings import variable

INTERVAL = 5.0
"""Seconds between two questions."""
_ENDPOINT = "http://169.254.169.254"
_PATIENCE = 1.0
_TOKEN_SECONDS = 21600


def write_notice(path: str, text: str) -> None:
    """Write the notice, whole or not at all, unless there is one."""
    if os.path.exists(path):
        return
    try:
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(f"{path}.new", path)
    except OSError:
        pass  # a full disk: the task then learns of it by SIGTERM


class SpotWatch:
    """Asks the machine's metadata service, in a thread, until there is a notice or nobody answers.

    Parameters
    ----------
    path : str
        Where the notice is written.
    told : callable
        ``told(text)`` is called once, from the thread, when there is one.
    interval : float
        Seconds between two questions.
    """

    def __init__(self, path: str, told: Callable[[str], None], interval: float = INTERVAL) -> None:
        self._path = path
        self._told = told
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="flowkit-spot", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """End; a question that is on its way is not waited for."""
        self._stop.set()

    def _work(self) -> None:
        token, fetched = _ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)})
        if token != 200:
            return  # no such service here
        began = time.monotonic()
        while True:
            if time.monotonic() - began > _TOKEN_SECONDS - 60:
                began = time.monotonic()
                _, fetched = _ask(
                    "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
                )
            status, text = _ask("GET", "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": fetched})
            if status == 200:
                write_notice(self._path, text)
                self._told(text)
            if status == 200 or self._stop.wait(self._interval):
                return


def _ask(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Return status and text; status 0 where nobody answers."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(variable("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ENDPOINT)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(4096).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
