"""Reading many small objects: one after the other where that is cheap, several at once where each call travels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from flowkit.datastore.storage import Storage

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

AT_ONCE = 16
"""Calls on their way at the same time."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def mapped_over(
    storage: Storage, function: Callable[[_Item], _Result], items: Iterable[_Item], at_once: int = AT_ONCE
) -> Iterator[_Result]:
    """Yield ``function(item)`` for each item, in their order; for a remote storage some calls ahead, in threads.

    Memory is bounded: at most twice `at_once` results wait to be taken. The first error is raised in its place, and
    what has not begun by then never does.

    Parameters
    ----------
    storage : Storage
        Where the function reads.
    function : callable
        Called in threads for a remote storage.
    items : iterable
        Taken as they are needed.
    at_once : int, default 16
        Calls at the same time.
    """
    if not storage.remote:
        yield from map(function, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    ahead: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="flowkit-read")
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) >= 2 * at_once:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def paired_with(
    storage: Storage, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with ``function(item)``; see `mapped_over`."""
    return mapped_over(storage, lambda item: (item, function(item)), items)


class ReadAhead(Generic[_Item, _Result]):
    """Reads items by their places, and of a remote storage those that come next, once it is asked for two in a row.

    Parameters
    ----------
    storage : Storage
        Where the function reads.
    function : callable
        Called in threads for a remote storage.
    items : sequence
        What there is.
    """

    def __init__(self, storage: Storage, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> None:
        self._function = function
        self._items = items
        self._remote = storage.remote
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[_Result]] = {}
        self._last = -2

    def __getitem__(self, place: int) -> _Result:
        in_a_row, self._last = place == self._last + 1, place
        if not self._remote or not in_a_row:
            return self._function(self._items[place])
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="flowkit-read")
        for near in range(place, min(place + 2 * AT_ONCE, len(self._items))):
            if near not in self._ahead:
                self._ahead[near] = self._pool.submit(self._function, self._items[near])
        return self._ahead.pop(place).result()
