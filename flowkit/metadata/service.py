"""The metadata port over HTTP: runs that a team's metadata service keeps.

What is asked for is asked at once, with a few tries. What is written goes at once, too (`rebuild`), unless the process
works on a run (`attend`): then records go by `flowkit.metadata.service_delivery`, and nobody waits for the service.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from flowkit.exceptions import InvalidPathspec, NotFound, StoreError, UsageError
from flowkit.metadata.records import FlowRecord, Record, RunRecord, StepRecord, TaskRecord
from flowkit.metadata.service_calls import (
    DEFAULT_URL,
    Calls,
    Place,
    Query,
    Rejected,
    Stranger,
    checked_url,
    needs_packages,
    path_of,
    told,
    warm,
)
from flowkit.metadata.store import MetadataStore, RunFilter
from flowkit.model.pathspec import check_part
from flowkit.settings import settings

if TYPE_CHECKING:
    from flowkit.metadata.service_delivery import Delivery
    from flowkit.model.event import EmittedEvent

PAGE = 1_000
"""Records of a page: what a service gives at most."""
_BATCH_BYTES = 2 * 1024 * 1024
_BATCH_RECORDS = 5_000
FIRST_BEAT = 2.0
"""Seconds until the first heartbeat: its answer tells when the next ones are wanted."""
RESERVE_SECONDS = 2.0
"""How long a run that begins waits for its number."""

_Some = TypeVar("_Some")


class ServiceMetadata(MetadataStore):
    """The records that a metadata service keeps.

    Parameters
    ----------
    url : str, optional
        Where it is; default: the setting ``service_url``, else ``http://127.0.0.1:8080``.
    token : str, optional
        Default: the setting ``service_token``, which is for the service of the setting ``service_url`` only.

    Raises
    ------
    UsageError
        If the address is none.
    MissingExtra
        If what is needed to call it is not installed.
    """

    name = "service"
    outputs = True
    shared = True
    keeps_events = True

    def __init__(self, url: str | None = None, *, token: str | None = None) -> None:
        needs_packages()
        self.place = service_place(url) if token is None else Place(checked_url(url or default_url()), token)
        self._calls = Calls(self.place)
        self._reserved: set[tuple[str, str]] = set()
        self._away: StoreError | None = None
        self._delivery: Delivery | None = None
        self._news: list[str] = []
        self._pid = os.getpid()

    warm = staticmethod(warm)

    # -- writing ------------------------------------------------------------------------------------------------------

    def attend(self, record: RunRecord) -> None:
        """Have what is written from now on delivered by threads, in order, later where the service is away."""
        from flowkit.metadata.service_delivery import Delivery

        if self._delivery is None:
            claimed = (record.flow, record.run) in self._reserved
            self._delivery = Delivery(self.place, record, claimed=claimed, interval=FIRST_BEAT, away=self._away)

    def deliver(self, seconds: float) -> str | None:
        """Wait until what was written is there, but not longer; return what the user should know where it is not."""
        if self._delivery is None:
            return None
        delivery, self._delivery = self._delivery, None
        left = delivery.finish(seconds)
        while delivery.news:
            self._news.append(delivery.news.pop(0))
        return left

    def abandon(self) -> None:
        """Write nothing any more: somebody else has the run."""
        if self._delivery is not None:
            self._delivery.abandon()

    def news(self) -> list[str]:
        """Return what has happened meanwhile, a line each, once."""
        found, self._news = self._news, []
        more = self._delivery.news if self._delivery is not None else []
        while more:
            found.append(more.pop(0))
        return found

    @property
    def heartbeat_interval(self) -> float:  # type: ignore[override]
        """Seconds between two heartbeats, as the service wants it."""
        return FIRST_BEAT if self._delivery is None else self._delivery.interval

    def write(self, records: Sequence[Record]) -> None:
        """Insert or update records in one transaction (large batches in several); see `MetadataStore.write`."""
        if not records:
            return
        if self._delivery is not None:
            self._delivery.add(records)
            return
        from flowkit.metadata.service_queue import body_of, line_of

        lines = [line_of(record) for record in records]
        while lines:
            count = size = 0
            while count < len(lines) and count < _BATCH_RECORDS and size < _BATCH_BYTES:
                size += len(lines[count].text)
                count += 1
            try:
                key = os.urandom(16).hex()
                self._call("POST", "/v1/records", body_of(lines[:count]), key=key, keys=("written",))
            except (NotFound, Rejected) as error:
                raise StoreError(error.headline, error.hint) from None
            lines = lines[count:]

    def heartbeat(self, flow: str, run: str, when: float) -> None:
        """Note that the owner of a run is alive, by the service's clock."""
        if self._delivery is not None:
            self._delivery.beat()
            return
        body = {"heartbeats": [{"flow": flow, "run": run}]}
        self._call("POST", "/v1/heartbeats", _json(body))

    def reserve(self, flow: str, at_least: int = 1) -> str | None:
        """Return the number of the next run, which nobody else gets; None where the service is away (see `news`)."""
        try:
            found = self._call(
                "POST",
                path_of("flows", flow, "reserve"),
                _json({"at_least": at_least}),
                keys=("run",),
                tries=1,
                patience=RESERVE_SECONDS,
            )
        except StoreError as error:
            self._away = error
            self._news.append(
                f"{told(error)}. The run starts with a number of the datastore's own, and its records are kept."
            )
            return None
        run = str(found["run"])
        if not run.isascii() or not run.isdigit():
            raise self._stranger()
        self._reserved.add((flow, run))
        return run

    def change_tags(self, flow: str, run: str, add: Iterable[str], remove: Iterable[str]) -> tuple[str, ...]:
        """Remove, then add user tags at once, and return the new ones, sorted.

        Raises
        ------
        NotFound
            If there is no such run.
        UsageError
            If the rules of tags forbid it; nothing is changed then.
        """
        from flowkit.metadata.tags import check_tags

        wanted = check_tags(add)
        if isinstance(remove, str):
            raise UsageError(f"tags are given as a list, not as the text {remove!r}")
        body = {"add": list(wanted), "remove": list(remove)}
        _named(flow, run)
        answer = self._call("PATCH", f"{path_of('flows', flow, 'runs', run)}/tags", _json(body), keys=("tags",))
        return tuple(str(tag) for tag in answer["tags"])

    def forget(self, flow: str, run: str | None = None) -> None:
        """Drop a run, or all runs of a flow, from the service: its number is never used again."""
        names = [run] if run is not None else [record.run for record in self.runs(flow, RunFilter())]
        for name in names:
            if _is_named(flow, name):
                self._or(None, partial(self._call, "DELETE", path_of("flows", flow, "runs", name)))

    def withdraw(self, flow: str, run: str, ours: Callable[[RunRecord], bool]) -> None:
        """Drop what a process that is gone could not deliver of a run: pushed later, it would bring the run back."""
        from flowkit.metadata.service_push import withdraw

        withdraw(self.place.url, flow, run, ours)

    # -- events that start flows ---------------------------------------------------------------------------------------

    @property
    def place_of_events(self) -> str:
        """What tells one place of events from another."""
        return self.place.url

    def emit(
        self, name: str, data: Mapping[str, Any] | None = None, *, id: str | None = None, user: str = ""
    ) -> EmittedEvent:
        """Add an event and return it; see `MetadataStore.emit`."""
        from flowkit.model.event import check_event

        fields = check_event(name, data, id)
        body = {"name": name, "data": fields, "id": id or os.urandom(12).hex(), "user": user[:200]}
        return self._event(self._call("POST", path_of("emitted"), _json(body), keys=("number",)))

    def emitted(self, after: int, limit: int = 1_000) -> list[EmittedEvent]:
        """Return events after a number, the oldest first."""
        query = [("after", str(max(after, 0))), ("limit", str(min(max(limit, 1), PAGE)))]
        found = self._call("GET", path_of("emitted"), query=query, keys=("items",))["items"]
        return [self._event(item) for item in found[: max(0, limit)]]

    def last_emitted(self) -> int:
        """Return the number of the newest event; 0 where there never was one."""
        query = [("after", str(2**53)), ("limit", "1")]
        return int(self._call("GET", path_of("emitted"), query=query, keys=("last",))["last"])

    def _event(self, item: Any) -> EmittedEvent:
        from flowkit.model.event import EmittedEvent

        event = EmittedEvent.from_json(item)
        if event is None:
            raise self._stranger()
        return event

    # -- reading ------------------------------------------------------------------------------------------------------

    def flows(self, namespace: str | None = None) -> list[FlowRecord]:
        """Return the flows that have runs (with that tag), newest first."""
        query = [] if namespace is None else [("namespace", namespace)]
        return [self._record(FlowRecord, item) for item in self._items(path_of("flows"), query)]

    def runs(self, flow: str, which: RunFilter) -> list[RunRecord]:
        """Return runs of a flow, newest first: numbered ones by their number, named ones by their time among them."""
        from flowkit.metadata.relational import check_status

        check_status(which.status)
        if not _is_named(flow):
            return []
        query = [("tag", tag) for tag in which.tags]
        for name in ("status", "user", "since", "until"):
            value = getattr(which, name)
            if value is not None:
                query.append((name, repr(value) if isinstance(value, float) else str(value)))
        cursor = None if which.before is None else _cursor(which.before)
        path = f"{path_of('flows', flow)}/runs"
        return [self._record(RunRecord, item) for item in self._items(path, query, which.limit, cursor)]

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run."""
        if not _is_named(flow, run):
            return None
        found = self._or(None, lambda: self._call("GET", path_of("flows", flow, "runs", run), keys=("flow", "run")))
        return None if found is None else self._record(RunRecord, found)

    def steps(self, flow: str, run: str) -> list[StepRecord]:
        """Return the steps of a run that have tasks, in the order in which they began."""
        if not _is_named(flow, run):
            return []
        path = f"{path_of('flows', flow, 'runs', run)}/steps"
        items: list[Any] = self._or([], lambda: [*self._items(path)])
        return [self._record(StepRecord, item) for item in items]

    def tasks(
        self,
        flow: str,
        run: str,
        step: str | None = None,
        *,
        status: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[TaskRecord]:
        """Return tasks, in the order in which they began, those that have not begun last."""
        from flowkit.metadata.relational import check_status, task_cursor

        check_status(status)
        place = task_cursor(step, after)
        if not _is_named(flow, run, *([step] if step is not None else [])):
            return []
        query = [(name, value) for name, value in (("step", step), ("status", status)) if value is not None]
        cursor = None if place is None else _cursor(*place)
        path = f"{path_of('flows', flow, 'runs', run)}/tasks"
        try:
            return [self._record(TaskRecord, item) for item in self._items(path, query, limit, cursor)]
        except NotFound:
            if place is not None and self.run(flow, run) is not None:
                raise
            return []

    def task(self, flow: str, run: str, step: str, task: str) -> TaskRecord | None:
        """Return one task."""
        if not _is_named(flow, run, step, task):
            return None
        path = path_of("flows", flow, "runs", run, "steps", step, "tasks", task)
        found = self._or(None, lambda: self._call("GET", path, keys=("flow", "run", "step", "task")))
        return None if found is None else self._record(TaskRecord, found)

    def about(self) -> Mapping[str, Any]:
        """Return where the service is, its version, and what it tells of its database."""
        answer = self._call("GET", path_of("about"), keys=("version",))
        counts = answer.get("database")
        return {
            **(counts if isinstance(counts, dict) else {}),
            "kind": "service",
            "where": self.place.url,
            "version": answer["version"],
        }

    def close(self) -> None:
        """Release the connection."""
        self._calls.close()

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Query = (),
        keys: tuple[str, ...] = (),
        key: str | None = None,
        **bounds: Any,
    ) -> Any:
        if os.getpid() != self._pid:  # a fork: the connection is the parent's
            self._calls, self._pid = Calls(self.place), os.getpid()
        # A loop that has other things to do waits for one short try only.
        if self.patience < 1.0:
            bounds = {"tries": 1, "patience": self.patience}
        answer = self._calls.call(method, path, body, query=query, key=key, **bounds)
        if keys and not (isinstance(answer, dict) and all(name in answer for name in keys)):
            raise self._stranger()
        return answer

    def _items(
        self, path: str, query: Query = (), limit: int | None = None, cursor: str | None = None
    ) -> Iterator[Any]:
        """Yield the items of a list, a page a call."""
        left = limit
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            more = [("limit", str(size)), *([("cursor", cursor)] if cursor is not None else [])]
            page = self._call("GET", path, query=[*query, *more], keys=("items", "next"))
            items, cursor = page["items"], page["next"]
            if not isinstance(items, list) or not isinstance(cursor, (str, type(None))):
                raise self._stranger()
            yield from items
            if left is not None:
                left -= len(items)
            if cursor is None:
                return

    def _or(self, otherwise: _Some, call: Callable[[], _Some]) -> _Some:
        """Return what a call finds, or something else where the service has nothing of that name."""
        try:
            return call()
        except NotFound:
            return otherwise

    def _record(self, kind: Any, item: Any) -> Any:
        try:
            return kind.from_json(item)
        except (TypeError, ValueError, AttributeError):
            raise self._stranger() from None

    def _stranger(self) -> Stranger:
        return Stranger(
            f"what answers at {self.place.url} does not talk as a metadata service of flowkit does",
            "is FLOWKIT_SERVICE_URL right, and the service not older than this flowkit?",
        )


def default_url() -> str:
    """Return where the metadata service is, by the settings."""
    return settings().service_url or DEFAULT_URL


def service_place(url: str | None = None) -> Place:
    """Return a service by its address, with the token of the settings if that is for this one.

    Raises
    ------
    UsageError
        If the address is none.
    """
    ours = checked_url(default_url())
    asked = ours if url is None else checked_url(url)
    return Place(asked, settings().service_token if asked == ours else None)


def _named(*names: str) -> None:
    if not _is_named(*names):
        raise NotFound(f"there is no run {'/'.join(names)}")


def _is_named(*names: str) -> bool:
    """Whether something can have such names; what cannot is not asked for."""
    try:
        for name in names:
            check_part(name)
    except InvalidPathspec:
        return False
    return True


def _cursor(*place: str) -> str:
    """Return the cursor of a page after something, as the service makes them of what its lists are sorted by."""
    packed = json.dumps(list(place), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
