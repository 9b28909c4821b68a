"""How long a part of a step takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager


@contextmanager
def profile(label: str, stats_dict: MutableMapping[str, float] | None = None) -> Iterator[None]:
    """Time what is inside of the ``with`` block.

    Parameters
    ----------
    label : str
        What is timed.
    stats_dict : dict, optional
        The milliseconds are added to its entry of that name, and nothing is printed.

    Notes
    -----
    Also when the block raises. Without `stats_dict` two lines go to standard output, and so into the task's log.
    """
    if stats_dict is None:
        sys.stdout.write(f"PROFILE: {label} starting\n")
    began = time.perf_counter()
    try:
        yield
    finally:
        took = (time.perf_counter() - began) * 1000
        if stats_dict is None:
            sys.stdout.write(f"PROFILE: {label} completed in {took:.0f}ms\n")
        else:
            stats_dict[label] = stats_dict.get(label, 0.0) + took
