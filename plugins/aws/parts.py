"""Large content in parts: cut without copies, several under way at once, a bounded number in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from flowkit.exceptions import StoreError

T = TypeVar("T")

PART = 8 << 20
"""Bytes of one request of a large transfer."""
WHOLE = 16 << 20
"""Bytes up to which content goes in one request."""
MOST_PARTS = 10_000
"""The service's limit for the parts of one object."""

Buffer = bytes | bytearray | memoryview


def split(content: Iterable[Buffer]) -> Iterator[Buffer]:
    """Yield content in the parts of an upload: one where it is small, without a copy where a chunk is large.

    Of a sequence the whole size is known, and all parts but the last are of one size, as some services ask for. Of
    other content the parts double after every thousand, so that the limit of parts is no limit of size.
    """
    sizes = _sizes(content)
    size = next(sizes)
    gathered: list[Buffer] = []
    waiting = 0
    for chunk in content:
        whole = memoryview(chunk)
        if not whole.nbytes:
            continue
        view = whole.cast("B")
        start = 0
        while waiting + len(view) - start >= size:
            end = start + size - waiting
            gathered.append(view[start:end])
            yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
            gathered, waiting, start, size = [], 0, end, next(sizes)
        if start < len(view):
            gathered.append(view[start:])
            waiting += len(view) - start
    if gathered:
        yield gathered[0] if len(gathered) == 1 else b"".join(gathered)


def _sizes(content: Iterable[Buffer]) -> Iterator[int]:
    if isinstance(content, Sequence):
        total = sum(chunk.nbytes if isinstance(chunk, memoryview) else len(chunk) for chunk in content)
        size = WHOLE if total <= WHOLE else max(PART, -(-total // (MOST_PARTS - 1)))
        while True:
            yield size
    for number in itertools.count():
        yield PART << min(number // 1000, 9)


def all_at_once(threads: int, call: Callable[[int], T], starts: Sequence[int]) -> list[T]:
    """Call with each start, several at once, and return the results in order; the first error ends it."""
    with ThreadPoolExecutor(min(threads, len(starts)), "flowkit-s3") as pool:
        futures = [pool.submit(call, start) for start in starts]
        return _results(futures)


def in_flight(threads: int, send: Callable[[int, Buffer], T], pieces: Iterator[Buffer]) -> list[T]:
    """Send numbered pieces, several at once, and take no further one while all threads have one."""
    with ThreadPoolExecutor(threads, "flowkit-s3") as pool:
        futures: list[Future[T]] = []
        running: set[Future[T]] = set()
        try:
            for number, piece in enumerate(pieces, 1):
                if number > MOST_PARTS:
                    raise StoreError("an object has at most 10,000 parts, and this one needs more", "store less in one")
                if len(running) >= threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                futures.append(pool.submit(send, number, piece))
                running.add(futures[-1])
        except BaseException:
            _cancel(futures)
            raise
        return _results(futures)


def _results(futures: list[Future[T]]) -> list[T]:
    try:
        wait(futures, return_when=FIRST_EXCEPTION)
        return [future.result() for future in futures]
    except BaseException:
        _cancel(futures)
        raise


def _cancel(futures: list[Future[T]]) -> None:
    for future in futures:
        future.cancel()
