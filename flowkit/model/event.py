"""Events that somebody emits to start deployed flows (``@trigger``): a name, and fields that may fill parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowkit.exceptions import UsageError

LONGEST_NAME = 250
LONGEST_ID = 200
MOST_BYTES = 65_536
"""Of an event's fields as JSON: they are parameters, and what is large belongs into a datastore."""
RESERVED = "flowkit."
"""Names that begin so are those of runs that have ended; nobody emits them, the scheduler sees the runs."""


class EmittedEvent(NamedTuple):
    """One event.

    Parameters
    ----------
    number : int
        Its place where it is kept, from 1: an event that comes later has a larger one, and none is ever added before.
    name : str
    id : str
        Which one: another event of this id starts nothing again.
    created : float
        Seconds since the epoch.
    data : mapping
        Its fields: plain JSON.
    user : str
        Who emitted it.
    """

    number: int
    name: str
    id: str
    created: float
    data: Mapping[str, Any]
    user: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the event as plain values."""
        return {**self._asdict(), "data": dict(self.data)}

    @classmethod
    def from_json(cls, data: Any) -> EmittedEvent | None:
        """Read what `to_json` wrote; None where it is anything else."""
        if not isinstance(data, Mapping):
            return None
        number, name, event_id = data.get("number"), data.get("name"), data.get("id")
        created, fields, user = data.get("created"), data.get("data"), data.get("user", "")
        if not isinstance(number, int) or isinstance(number, bool) or not isinstance(created, int | float):
            return None
        if not (isinstance(name, str) and isinstance(event_id, str) and isinstance(user, str)):
            return None
        return cls(number, name, event_id, float(created), fields, user) if isinstance(fields, Mapping) else None


def check_event(name: str, data: Any = None, event_id: str | None = None) -> dict[str, Any]:
    """Return the fields of an event, if it can be one.

    Raises
    ------
    UsageError
        With what is wrong.
    """
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name.strip() != name:
        raise UsageError(f"{name!r} cannot be the name of an event", f"a text of 1 to {LONGEST_NAME} characters")
    if name.startswith(RESERVED):
        raise UsageError(
            f"nobody emits '{name}': names that begin with '{RESERVED}' tell of runs that have ended",
            "choose another name; @trigger_on_finish needs no event",
        )
    if event_id is not None and not (
        isinstance(event_id, str) and 0 < len(event_id) <= LONGEST_ID and event_id.isprintable()
    ):
        raise UsageError(f"{event_id!r} cannot be the id of an event", f"a text of 1 to {LONGEST_ID} characters")
    fields = {} if data is None else data
    if not isinstance(fields, Mapping) or not all(isinstance(key, str) for key in fields):
        raise UsageError("the data of an event is no JSON object", """for example '{"table": "sales"}'""")
    try:
        text = json.dumps(fields, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the data of an event is no plain JSON: {error}") from None
    if len(text) > MOST_BYTES:
        raise UsageError(
            f"the data of an event takes {len(text):,} bytes, and at most {MOST_BYTES:,} are kept",
            "keep what is large in a datastore, and send its name",
        )
    return dict(fields)
