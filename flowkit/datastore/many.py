"""Reading many small objects: one after the other where that is cheap, several at once where each call travels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flowkit.datastore.storage import Storage

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
    from concurrent.futures import Future, ThreadPoolExecutor

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
