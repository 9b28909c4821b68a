"""Those who want to be told that there may be new events, and the one thread that tells them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

_log = logging.getLogger("flowkit.metadata_service")
Watch = Callable[[threading.Event, Callable[[], bool]], Iterator[None]]
_AGAIN = 1.0
"""Seconds until a watch that failed is begun again."""


class Wakers:
    """Callables that are called, from a thread that lives while there are any, whenever a watch yields.

    Parameters
    ----------
    watch : callable
        Gets an event that `wake` sets, and a callable that tells when to end; yields whenever there may be news. Where
        it raises it is begun again, which counts as news.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._news = threading.Event()
        self._wakers: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def add(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Begin to call a waker; returns what ends it."""
        with self._lock:
            self._wakers.append(wake)
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="flowkit-events", daemon=True)
                self._thread.start()

        def remove() -> None:
            with self._lock:
                if wake in self._wakers:
                    self._wakers.remove(wake)

        return remove

    def wake(self) -> None:
        """Tell that this process wrote events."""
        self._news.set()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._news.set()
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                for _ in self._watch(self._news, self._closed.is_set):
                    self._tell()
            except Exception as error:  # the border of a thread: a database that went away comes back
                if not self._closed.is_set():
                    _log.warning("the watch for events failed, it begins again: %s", error)
                self._closed.wait(_AGAIN)
                self._tell()

    def _tell(self) -> None:
        with self._lock:
            wakers = [*self._wakers]
        for wake in wakers:
            try:
                wake()
            except Exception:  # a listener that fails is no reason not to tell the others
                _log.exception("a listener to events failed")
