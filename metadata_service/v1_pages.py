"""Pages of the lists under ``/v1/``: opaque cursors that name the last item, and filters that no index carries.

A cursor holds a key, never an offset, so a page costs the same wherever it is. Where a filter has to look at each
item (what a caller may see, runs that have a step), one request looks at a bounded number of them: such a page may be
shorter than asked for, even empty, and still name a next one. The list is over where `next` is null.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

from flowkit.exceptions import UsageError

LIMIT = 100
MAX_LIMIT = 1000
SCAN = 2000
"""Items that one request looks at to fill a page, where looking costs nothing."""
SCAN_QUERIES = 100
"""The same, where each look is a query."""

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items on a page, at most.")]
Cursor = Annotated[
    str | None, Query(min_length=1, max_length=4000, description="`next` of the page before; none for the first page.")
]
_Item = TypeVar("_Item")


def cursor_text(place: Sequence[str | int | float]) -> str:
    """Return a place in a list as a cursor."""
    packed = json.dumps(list(place), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def cursor_place(text: str | None, *kinds: type) -> Any:
    """Return the place that a cursor names; None for none.

    Raises
    ------
    UsageError
        If it is no cursor of such a list.
    """
    if text is None:
        return None
    wrong = UsageError("that is no cursor of this list", "leave `cursor` out for the first page")
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = json.loads(packed)
    except (binascii.Error, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(place, list) or len(place) != len(kinds):
        raise wrong
    return tuple(_checked(value, kind, wrong) for value, kind in zip(place, kinds, strict=True))


def filled_page(
    fetch: Callable[[Any, int], Sequence[_Item]],
    place: Callable[[_Item], Sequence[str | int | float]],
    after: Any,
    limit: int,
    keep: Callable[[_Item], bool] | None = None,
    scan: int = SCAN,
) -> tuple[list[_Item], str | None]:
    """Return a page and the cursor of the next one.

    Parameters
    ----------
    fetch : callable
        Gives at most so many items after a place (None for the first ones).
    place : callable
        The place of an item.
    after : tuple or None
        Where the page begins.
    limit : int
        Items on the page, at most.
    keep : callable, optional
        Whether an item belongs to the list; default: all do.
    scan : int
        Items that are looked at, at most, where `keep` is given.
    """
    items: list[_Item] = []
    shown = after  # a full page ends at what is shown: what lies behind it may not be for this caller to know of
    looked = 0
    while True:
        wanted = limit - len(items) + 1
        size = wanted if keep is None else max(1, min(max(wanted, LIMIT), scan - looked))
        found = fetch(after, size)
        for item in found:
            if len(items) == limit:
                return items, cursor_text(shown)
            after = tuple(place(item))
            if keep is None or keep(item):
                items.append(item)
                shown = after
        looked += len(found)
        if len(found) < size:
            return items, None
        if keep is not None and looked >= scan:
            return items, cursor_text(shown if len(items) == limit else after)


def _checked(value: Any, kind: type, wrong: UsageError) -> Any:
    if kind is float and type(value) in (int, float) and abs(value) < 2**62:  # not of what is no number, nor finite
        return float(value)
    if kind is int and type(value) is int and abs(value) < 2**62:
        return value
    if kind is str and isinstance(value, str) and len(value) <= 1000 and "\0" not in value:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise wrong from None
        return value
    raise wrong
