"""Sending what is queued for metadata services: a batch at a time, and whole queues of processes that are gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from flowkit.exceptions import Conflict, FlowkitError, NotFound
from flowkit.metadata.records import RunRecord
from flowkit.metadata.service_calls import Calls, Place, Rejected, Stranger, path_of
from flowkit.metadata.service_queue import Line, Queue, body_of, of_run, queues


class Pushed(NamedTuple):
    """What became of one queue.

    Parameters
    ----------
    url, flow, run : str
        Whose records, for which service.
    sent : int
        Records that arrived.
    left : int
        Records that wait still.
    problem : str or None
        Why, in one line.
    """

    url: str
    flow: str
    run: str
    sent: int
    left: int
    problem: str | None = None


def push(place_of: Callable[[str], Place], told: Callable[[Pushed], None]) -> list[Pushed]:
    """Deliver all queues of this user that no living process delivers itself, the oldest first.

    Parameters
    ----------
    place_of : callable
        Gives the service of an address, with the token that it may be sent.
    told : callable
        Is given what became of each queue.
    """
    found = []
    connections: dict[str, Calls] = {}
    away: dict[str, str] = {}
    try:
        for folder in queues():
            pushed = _push(folder, place_of, connections, away)
            if pushed is not None:
                told(pushed)
                found.append(pushed)
    finally:
        for calls in connections.values():
            calls.close()
    return found


def _push(
    folder: str, place_of: Callable[[str], Place], connections: dict[str, Calls], away: dict[str, str]
) -> Pushed | None:
    try:
        queue = Queue.load(folder)
    except (OSError, ValueError) as error:
        return Pushed("", "", "", 0, 0, f"{folder} is damaged and was left alone ({error}); flowkit metadata rebuild")
    if queue is None:
        return None
    facts = (queue.url, queue.flow, queue.run)
    sent = 0
    if not queue.waits:
        queue.close()
        kept = f"records that it refused are kept in {folder} (remove it when you have looked)"
        return Pushed(*facts, 0, 0, kept) if queue.has_refused(folder) else None
    try:
        if queue.url not in away:
            calls = connections.setdefault(queue.url, Calls(place_of(queue.url)))
            for count in delivered(queue, calls):
                sent += count
        return Pushed(*facts, sent, queue.count, away.get(queue.url))
    except Conflict as error:
        return Pushed(*facts, sent, queue.count, error.headline)
    except FlowkitError as error:  # the others for this service need not be tried
        away[queue.url] = error.headline
        return Pushed(*facts, sent, queue.count, away[queue.url])
    finally:
        queue.close()


def forget(url: str) -> list[Pushed]:
    """Drop what waits for a service, but for what a living process delivers: for an address that was a mistake.

    Returns
    -------
    list of Pushed
        Each queue that was dropped; `left` is what it held.
    """
    found = []
    for folder in queues(url):
        try:
            queue = Queue.load(folder)
        except (OSError, ValueError):
            continue  # push tells of it
        if queue is not None:
            found.append(Pushed(queue.url, queue.flow, queue.run, 0, queue.count))
            queue.close(discard=True)
    return found


def withdraw(url: str, flow: str, run: str, ours: Callable[[RunRecord], bool]) -> None:
    """Drop what waits for a service of one run, where its record is ours."""
    for folder in of_run(url, flow, run):
        try:
            queue = Queue.load(folder)
        except (OSError, ValueError):
            continue  # push tells of it
        if queue is None:
            continue
        found = queue.head()
        records = [json.loads(line.text) for line in (found[1] if found else ()) if line.kind == "run"]
        # without one the service has it already, where it is forgotten, too
        queue.close(discard=all(ours(RunRecord.from_json(record)) for record in records))


def push_older(folders: list[str], calls: Calls) -> None:
    """Deliver what processes that are gone left of a run, before its new owner's records.

    Raises
    ------
    FlowkitError
        If the service does not take it.
    """
    for folder in folders:
        try:
            queue = Queue.load(folder)
        except (OSError, ValueError):
            continue  # flowkit metadata push tells of it
        if queue is None:
            continue
        try:
            for _ in delivered(queue, calls, tries=1):
                pass
        finally:
            queue.close()


def delivered(queue: Queue, calls: Calls, *, tries: int = 3) -> Any:
    """Deliver a queue; yields how many records each batch brought.

    Raises
    ------
    FlowkitError
        If the service does not take it now.
    Conflict
        If the service has another run of that number.
    """
    while (found := queue.head()) is not None:
        key, lines, batch = found
        refused = send(calls, queue, key, lines, tries=tries)
        if refused:
            queue.set_aside(batch, [line for line, _ in refused])
        else:
            queue.done(batch)
        yield len(lines) - len(refused)


def send(
    calls: Calls, queue: Queue, key: str, lines: list[Line], run: Line | None = None, *, tries: int = 1
) -> list[tuple[Line, str]]:
    """Send a batch of a queue; return the records that the service will never take, and why."""
    if not queue.claimed:
        first = next((line for line in lines if line.kind == "run"), run)
        if first is not None:
            _check_ours(calls, first, tries)
            queue.claimed = True
    return deliver(calls, key, lines, run, tries)


def deliver(calls: Calls, key: str, lines: list[Line], run: Line | None, tries: int) -> list[tuple[Line, str]]:
    """Send records in one request; in smaller ones where the service does not take them at once.

    Parameters
    ----------
    calls : Calls
        The service.
    key : str
        The idempotency key.
    lines : list of Line
        The records.
    run : Line or None
        The run of the tasks, for a service that does not know it (any more).
    tries : int
        How often each request is made at most.

    Returns
    -------
    list of (Line, str)
        The records that it will never take, and why.

    Raises
    ------
    FlowkitError
        If nobody knows whether all of it is there: send it again, under the same key.
    """
    try:
        answer = calls.call("POST", "/v1/records", body_of(lines), key=key, tries=tries)
        if not isinstance(answer, dict) or "written" not in answer:
            raise Stranger(
                f"what answers at {calls.place.url} is no metadata service of flowkit", "is FLOWKIT_SERVICE_URL right?"
            )
        return []
    except NotFound as error:
        if run is not None:
            return deliver(calls, f"{key}.r", [run, *lines], None, tries)
        if not any(line.kind == "run" for line in lines):
            return [(line, error.headline) for line in lines]
        reason = error.headline
    except Rejected as error:
        reason = error.headline
    if len(lines) == 1:
        return [(lines[0], reason)]
    middle = len(lines) // 2
    return [
        *deliver(calls, f"{key}.0", lines[:middle], run, tries),
        *deliver(calls, f"{key}.1", lines[middle:], run, tries),
    ]


def _check_ours(calls: Calls, line: Line, tries: int) -> None:
    """Make sure that a run whose number was not given out by the service is not taken for somebody else's.

    Raises
    ------
    Conflict
        If the service has another one.
    """
    try:
        there = calls.call("GET", path_of("flows", line.what[0], "runs", line.what[1]), tries=tries)
    except NotFound:
        return
    ours = json.loads(line.text)
    if isinstance(there, dict) and not same_run(there, ours):
        raise Conflict(
            f"the metadata service has another run {'/'.join(line.what)}, by {there.get('user')}: it was numbered by "
            "another datastore, and this one's records are not mixed into it"
        )


def same_run(one: Any, other: Any) -> bool:
    """Whether two records (as JSON) are of the same run: begun at the same time, or by the same process."""
    owner = ("host", "boot_id", "pid", "process_start")
    if one.get("pid") is not None and all(one.get(name) == other.get(name) for name in owner):
        return True
    times = one.get("created"), other.get("created")
    return all(isinstance(each, (int, float)) for each in times) and abs(times[0] - times[1]) < 0.001
