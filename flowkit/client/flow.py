"""The root of the client's tree, and flows with their runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from flowkit.client.connection import Connection, connect
from flowkit.client.namespace import get_metadata, get_namespace
from flowkit.client.object import ClientObject
from flowkit.client.run import Run
from flowkit.exceptions import NotFound, UsageError, did_you_mean
from flowkit.metadata.records import STATES, RunRecord
from flowkit.metadata.store import RunFilter
from flowkit.model.pathspec import Pathspec

if TYPE_CHECKING:
    from datetime import date, datetime

_PAGE = 1000
"""Runs asked for at once: a loop that stops early does not read the history of years."""


class Flowkit:
    """Everything there is: the flows in the current namespace.

    Examples
    --------
    >>> for flow in Flowkit():
    ...     print(flow.id, flow.latest_run)
    """

    def __init__(self) -> None:
        self._connection: Connection = connect(get_metadata())
        self._namespace = get_namespace()

    @property
    def flows(self) -> list[Flow]:
        """The flows that have runs in the namespace, newest first."""
        return list(self)

    def __iter__(self) -> Iterator[Flow]:
        for record in self._connection.metadata.flows(self._namespace):
            yield self._flow(record.flow, record.created)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(flow.id == name for flow in self)

    def __getitem__(self, name: str) -> Flow:
        for flow in self:
            if flow.id == name:
                return flow
        raise KeyError(name)

    def __repr__(self) -> str:
        return "Flowkit()"

    def _flow(self, name: str, created: float) -> Flow:
        flow = Flow._of(None, self._connection, Pathspec(name), self._namespace)
        flow._since = created
        return flow


class Flow(ClientObject):
    """A flow: its runs in the namespace, newest first.

    Parameters
    ----------
    pathspec : str
        The flow's name.

    Examples
    --------
    >>> Flow("TrainFlow").latest_successful_run.data.accuracy
    """

    _kind: ClassVar[str] = "flow"
    _depth: ClassVar[int] = 1
    _since: float | None = None

    @property
    def latest_run(self) -> Run | None:
        """The newest run; None where there is none."""
        return next(self.runs(limit=1), None)

    @property
    def latest_successful_run(self) -> Run | None:
        """The newest run that succeeded; None where there is none."""
        return next(self.runs(status="succeeded", limit=1), None)

    def runs(
        self,
        *tags: str,
        status: str | None = None,
        since: datetime | date | float | str | None = None,
        until: datetime | date | float | str | None = None,
        user: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Run]:
        """Yield runs, newest first; everything but the first page is asked for as the loop goes on.

        Parameters
        ----------
        *tags : str
            User or system tags, all of which a run must have.
        status : str, optional
            ``pending``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``lost``.
        since, until : datetime, date, float or str, optional
            Made at or after, and before, this time: a datetime (local time where it has no zone), seconds since the
            epoch, or text such as ``2024-05-31`` or ``2024-05-31T14:00``.
        user : str, optional
            Who started the run.
        limit : int, optional
            At most so many.

        Raises
        ------
        UsageError
            If there is no such status, or a time or the limit cannot be understood.
        """
        if status is not None and status not in STATES:
            hint = did_you_mean(str(status), STATES) or f"one of {', '.join(STATES)}"
            raise UsageError(f"{status!r} is not a status of a run", hint)
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise UsageError(f"limit={limit!r} is not a number of runs")
        names = tuple(tags) if self._namespace is None else (*tags, self._namespace)
        return self._pages(RunFilter(status, _seconds(since), _seconds(until), user, names), limit)

    def _pages(self, which: RunFilter, left: int | None) -> Iterator[Run]:
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            page = self._connection.metadata.runs(self.id, which._replace(limit=size))
            for record in page:
                yield self._run(record)
            if len(page) < size:
                return
            which = which._replace(before=page[-1].run)
            left = None if left is None else left - size

    def _run(self, record: RunRecord) -> Run:
        run = self._child(Run, record.run)
        run._seen = record
        return run

    def _children(self) -> Iterator[Run]:
        return self.runs()

    def _find(self, name: str) -> Run | None:
        run = self._child(Run, name)
        return run if run._exists() and run.is_in_namespace() else None

    # -- as every object ----------------------------------------------------------------------------------------------

    def is_in_namespace(self) -> bool:
        """Whether any of its runs is in the namespace that was current when this object was made."""
        return self._namespace is None or bool(self._list(1, self._namespace))

    def _exists(self) -> bool:
        return bool(self._list(1))

    def _near(self) -> str | None:
        names = [record.flow for record in self._connection.metadata.flows()]
        return did_you_mean(self.id, names) or _known("flows here", names)

    def _list(self, limit: int, *tags: str) -> list[RunRecord]:
        return self._connection.metadata.runs(self.id, RunFilter(tags=tags, limit=limit))

    def _tagged(self) -> RunRecord:
        newest = self._list(1)
        if not newest:
            raise NotFound(f"there is no flow '{self.id}' in {self._connection.where}", self._near())
        # Tags belong to runs; a flow has none of its own.
        return RunRecord(self.id, newest[0].run, newest[0].user, newest[0].state, newest[0].created)

    def _created(self) -> float | None:
        if self._since is None:
            records = self._connection.metadata.flows()
            self._since = next((record.created for record in records if record.flow == self.id), None)
        return self._since


def _known(label: str, names: list[str]) -> str:
    if not names:
        return f"there are no {label}: look for the datastore with get_metadata(), or run a flow first"
    return f"{label}: {', '.join(names[:10])}" + (", …" if len(names) > 10 else "")


def _seconds(when: datetime | date | float | str | None) -> float | None:
    """Return a time as seconds since the epoch."""
    if when is None or (isinstance(when, int | float) and not isinstance(when, bool)):
        return when
    from datetime import date, datetime

    try:
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, date):
            return datetime(when.year, when.month, when.day).timestamp()
    except (ValueError, OverflowError, OSError):
        pass
    raise UsageError(
        f"{when!r} is not a time", "give a datetime, seconds since the epoch, or text such as 2024-05-31T14:00"
    )
