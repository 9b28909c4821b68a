"""Following the pods of a run: one list, then one connection on which the API server tells every change.

A thread of its own reads it, whatever the number of pods, so that news arrives at once and costs no calls: a list and
a reconnection every two minutes. It survives lost connections and versions that are too old (410), and never ends by
itself.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from flowkit.plugins.kubernetes.cluster import Cluster, Refused
from flowkit.plugins.kubernetes.pods import PodState, read_pod
from flowkit.runtime.backend import BackendError

_SPAN = 110
"""Seconds after which the server is asked to end a watch, so that a dead connection is noticed; a new one goes on where
it ended."""
_SILENCE = 150.0
_WAKE_SECONDS = 0.1
_LONGEST_PAUSE = 30.0


class News(NamedTuple):
    """Something that was heard.

    Parameters
    ----------
    namespace : str
    listed : list of PodState or None
        Everything there is, after a fresh list.
    pod : PodState or None
        A pod that has changed.
    gone : bool
        It was removed.
    error : BackendError or None
        The connection does not work.
    well : bool
        It works again.
    """

    namespace: str
    listed: list[PodState] | None = None
    pod: PodState | None = None
    gone: bool = False
    error: BackendError | None = None
    well: bool = False


class Inbox:
    """What watches have heard and nobody has taken yet, with a descriptor that turns readable when there is some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: list[News] = []
        self._closed = False
        self._woken = 0.0
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def put(self, news: News) -> None:
        """Add something; called by the threads of watches.

        Who waits is woken ten times a second at most: of thousands of pods there is news all the time.
        """
        pause = self._woken + _WAKE_SECONDS - time.monotonic()
        if pause > 0 and not self._news:
            time.sleep(min(pause, _WAKE_SECONDS))
        with self._lock:
            if self._closed:
                return
            if not self._news:
                os.write(self._writer, b"!")
                self._woken = time.monotonic()
            self._news.append(news)

    def take(self) -> list[News]:
        """Return everything, and leave nothing."""
        with self._lock:
            news, self._news = self._news, []
            if news:
                os.read(self.reader, 16)
            return news

    def close(self) -> None:
        """Close the descriptors."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.reader)
                os.close(self._writer)


class PodWatch:
    """Follows the pods of a namespace that have a label, and puts what it hears into an inbox.

    Parameters
    ----------
    namespace, selector : str
        Which pods.
    inbox : Inbox
        Where news goes.
    """

    def __init__(self, namespace: str, selector: str, inbox: Inbox) -> None:
        self.namespace = namespace
        self.cluster = Cluster()
        self._selector = selector
        self._inbox = inbox
        self._stopped = threading.Event()
        self._response: Any = None
        self._ill = False
        self._thread = threading.Thread(target=self._run, name="flowkit-kubernetes-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stopped.set()
        response = self._response
        if response is not None:
            _hang_up(response)
        self._thread.join(1.0)

    def _run(self) -> None:
        version: str | None = None
        failures = 0
        while not self._stopped.is_set():
            try:
                if version is None:
                    version = self._list()
                    failures = 0
                version = self._follow(version)
                failures = 0
            except BackendError as error:
                if isinstance(error, Refused) and error.status == 410:
                    version = None
                else:
                    self._tell(News(self.namespace, error=error))
                failures += 1
                self._stopped.wait(min(_LONGEST_PAUSE, 0.25 * 2 ** min(failures, 8)) * random.uniform(0.7, 1.0))
            except Exception as error:  # the border: the thread must not die in silence
                self._tell(News(self.namespace, error=_broken(error)))
                self._stopped.wait(_LONGEST_PAUSE)
                version = None

    def _tell(self, news: News) -> None:
        self._ill = self._ill or news.error is not None
        if not self._stopped.is_set():
            self._inbox.put(news)

    def _list(self) -> str:
        states: list[PodState] = []
        version = ""
        for page in self.cluster.pages("CoreV1", "list_namespaced_pod", self.namespace, label_selector=self._selector):
            states += [state for state in map(read_pod, page.get("items") or ()) if state is not None]
            version = str((page.get("metadata") or {}).get("resourceVersion") or "")
        self._tell(News(self.namespace, listed=states))
        return version

    def _follow(self, version: str) -> str | None:
        """Tell every change from a version on; return the last version heard of, or None where it is too old."""
        response = self.cluster.open(
            "CoreV1",
            "list_namespaced_pod",
            self.namespace,
            label_selector=self._selector,
            resource_version=version,
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=_SPAN,
            _request_timeout=(10.0, _SILENCE),
        )
        self._response = response
        if self._ill:
            self._ill = False
            self._tell(News(self.namespace, well=True))
        try:
            for event in _events(response):
                if self._stopped.is_set():
                    return version
                item = event.get("object") or {}
                if event.get("type") == "ERROR":
                    if item.get("code") == 410:
                        return None
                    message = str(item.get("message") or "the watch ended with an error")
                    raise BackendError(f"the Kubernetes cluster ended the watch of pods: {message}", transient=True)
                version = str((item.get("metadata") or {}).get("resourceVersion") or version)
                state = read_pod(item) if event.get("type") != "BOOKMARK" else None
                if state is not None:
                    self._tell(News(self.namespace, pod=state, gone=event["type"] == "DELETED"))
        finally:
            self._response = None
            response.close()
        return version


def _events(response: Any) -> Iterator[dict[str, Any]]:
    """Yield the events of a watch until it ends, also by a lost connection: the next one goes on from there."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in response.stream(amt=None, decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    yield json.loads(line)
    except (HTTPError, OSError, ValueError, AttributeError):
        # A line torn by the end of the connection, or a response that another thread has closed.
        return


def _hang_up(response: Any) -> None:
    """End a response that another thread reads."""
    import socket

    connection = getattr(response, "connection", None) or getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def _broken(error: Exception) -> BackendError:
    return BackendError(f"following the pods failed: {type(error).__name__}: {error}", transient=True)
