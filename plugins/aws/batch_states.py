"""How the jobs of a run stand on AWS Batch, asked in as few calls as the service allows.

Jobs are described by 100. The parent of an array tells how many of its children are in each state, so children are
asked about only when these numbers say that some have moved, and in the cheaper of two ways: those that have not ended
by 100 (DescribeJobs), or those in a state by 1,000 (ListJobs). Of 10,000 rows a look costs 11 calls at the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flowkit.plugins.aws.batch_reasons import OURS, Ending, ending, waiting
from flowkit.runtime.backend import RowPhase, RowState

DESCRIBED = 100
"""Jobs in one call of DescribeJobs."""
LISTED = 1000
"""Jobs in one answer of ListJobs for a state."""
CHILD_CALLS = 1.0
"""Calls a second about the children of one array, at the least; of large arrays, 1 % of the rows a minute."""
MISSING_FOR = 60.0
"""Seconds without a word of a job until it counts as lost: the service may tell of a new job a little late."""
PRESS_EVERY = 15.0
"""Seconds between two tries to end what does not end; those that were starting are spared by the first one."""
PRESSED = 200
"""Children that are ended one by one in a look."""
GANG_LOOK = 10.0
"""Seconds between two looks at the nodes of a gang."""
GANG_GRACE = 30.0
"""Seconds that the other nodes of a gang have to end by themselves when one has failed."""

_PHASES: dict[str, RowPhase] = {
    "SUBMITTED": "queued",
    "PENDING": "queued",
    "RUNNABLE": "queued",
    "STARTING": "starting",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
}
_OVER = ("SUCCEEDED", "FAILED")
_WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
_QUEUED, _STARTING, _RUNNING, _ENDED = range(4)
_STEPS = {"queued": _QUEUED, "starting": _STARTING, "running": _RUNNING, "succeeded": _ENDED, "failed": _ENDED}

Call = Callable[..., dict[str, Any]]


class _Job:
    """What is known of a job."""

    __slots__ = (
        "ended", "failed_node", "look_at", "message", "missing", "over_since", "press_at", "rows", "running", "steps",
    )  # fmt: skip

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.steps = bytearray(rows)
        """How far each row is."""
        self.running = 0
        """Rows that are running as far as is known."""
        self.ended = dict.fromkeys(_OVER, 0)
        """Rows that have ended as far as is known."""
        self.message = ""
        self.look_at = 0.0
        """When children may be asked about again."""
        self.press_at: float | None = None
        self.missing: tuple[float, int] | None = None
        """Since when the service does not know the job, and how often it was asked."""
        self.over_since: float | None = None
        self.failed_node: tuple[float, Ending] | None = None

    def unknown(self) -> list[int]:
        """Return the rows that have not ended as far as is known."""
        return [row for row, step in enumerate(self.steps) if step < _ENDED]


class Watch:
    """Looks at jobs, and tells what has changed.

    Parameters
    ----------
    call : callable
        ``call(operation, **parameters)`` calls the service.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._jobs: dict[str, _Job] = {}
        self._ending: dict[str, tuple[bool, str]] = {}

    def press(self, job: str, reason: str, *, running: bool, now: float) -> None:
        """See to it that a job which is being ended does end."""
        self._ending[job] = (running, reason)
        known = self._jobs.get(job)
        if known is not None:
            known.press_at = now + PRESS_EVERY

    def look(self, jobs: Mapping[str, int], now: float) -> Iterator[RowState]:
        """Yield the rows that have changed since the last look.

        A row counts as told once the next one is asked for: what an error cuts off is told again.

        Parameters
        ----------
        jobs : mapping of str to int
            Jobs and their numbers of rows.
        now : float
            The time of a clock that nobody sets.
        """
        for name in [name for name in self._jobs if name not in jobs]:
            del self._jobs[name]
        for name in [name for name in self._ending if name not in jobs]:
            del self._ending[name]
        for chunk in chunks(list(jobs), DESCRIBED):
            told = {job["jobId"]: job for job in self._describe(chunk)}
            for name in chunk:
                known = self._jobs.setdefault(name, _Job(jobs[name]))
                if name in told:
                    known.missing = None
                    yield from self._told(name, known, told[name], now)
                else:
                    yield from self._missing(name, known, now)

    def _describe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return list(self._call("describe_jobs", jobs=list(names)).get("jobs", ()))

    def _told(self, name: str, known: _Job, job: Mapping[str, Any], now: float) -> Iterator[RowState]:
        over = job["status"] in _OVER
        if over and known.over_since is None:
            known.over_since = now
        if known.rows > 1:
            yield from self._array(name, known, job, now)
        elif job.get("nodeProperties") or job.get("nodeDetails"):
            yield from self._gang(name, known, job, now)
        else:
            yield from self._row(name, known, 0, job)
        if name in self._ending and not over:
            self._press(name, known, job, now)

    # -- one row ----------------------------------------------------------------------------------------------------

    def _row(
        self, name: str, known: _Job, row: int, job: Mapping[str, Any], end: Ending | None = None
    ) -> Iterator[RowState]:
        """Yield what is new of a row."""
        status = job["status"]
        phase = _PHASES[status]
        step, before = _STEPS[phase], known.steps[row]
        if step == _ENDED and before < _RUNNING and job.get("startedAt"):
            yield RowState(name, row, "running", _seconds(job["startedAt"]))
        message = waiting(job) if status == "RUNNABLE" else ""
        if step > before or (message and message != known.message):
            yield self._state(name, row, job, phase, message, end)
            known.message = message or known.message
            if step > before:
                known.steps[row] = step
                known.running += (step == _RUNNING) - (before == _RUNNING)
                if step == _ENDED:
                    known.ended[status] += 1

    @staticmethod
    def _state(
        name: str, row: int, job: Mapping[str, Any], phase: RowPhase, message: str, end: Ending | None
    ) -> RowState:
        if phase == "failed":
            end = end or ending(job)
            when = job.get("stoppedAt") or job.get("createdAt")
            return RowState(name, row, phase, _seconds(when), end.cause, end.message, end.exit_status)
        if phase == "succeeded":
            return RowState(name, row, phase, _seconds(job.get("stoppedAt")), exit_status=0)
        when = job.get("startedAt") if phase == "running" else job.get("createdAt")
        return RowState(name, row, phase, _seconds(when), message=message)

    def _missing(self, name: str, known: _Job, now: float) -> Iterator[RowState]:
        since, looks = known.missing or (now, 0)
        known.missing = (since, looks + 1)
        if looks >= 2 and now - since >= MISSING_FOR:
            lost = Ending("lost", "AWS Batch does not know the job any more", None)
            for row in known.unknown():
                yield from self._row(name, known, row, {"status": "FAILED"}, lost)

    # -- arrays -----------------------------------------------------------------------------------------------------

    def _array(self, name: str, known: _Job, job: Mapping[str, Any], now: float) -> Iterator[RowState]:
        summary: Mapping[str, int] = job.get("arrayProperties", {}).get("statusSummary", {})
        over = job["status"] in _OVER
        moved = [status for status in ("FAILED", "SUCCEEDED") if summary.get(status, 0) > known.ended[status]]
        reached = summary.get("RUNNING", 0) + sum(summary.get(status, 0) for status in _OVER)
        if summary.get("RUNNING") and reached > known.running + sum(known.ended.values()):
            moved.append("RUNNING")
        unknown = known.unknown()
        if not unknown or not (moved or over):
            message = waiting(job) if summary.get("RUNNABLE") else ""
            if unknown and message and message != known.message:
                yield self._state(name, unknown[0], job, "queued", message, None)
                known.message = message
            return
        if now < known.look_at:
            return
        described = -(-len(unknown) // DESCRIBED)
        listed = sum(-(-summary[status] // LISTED) for status in moved)
        if over or described <= listed:
            calls, children = described, self._children(name, unknown)
        else:
            calls, children = listed, self._children_in(name, moved)
        known.look_at = now + calls / max(CHILD_CALLS, known.rows / 6000)
        for child in children:
            row = _row_of(child)
            if row is not None and row < known.rows:
                yield from self._row(name, known, row, child)
        if over:
            yield from self._left_over(name, known, job, now)

    def _children(self, name: str, rows: Sequence[int]) -> Iterator[Mapping[str, Any]]:
        for chunk in chunks(rows, DESCRIBED):
            yield from self._describe([f"{name}:{row}" for row in chunk])

    def _children_in(self, name: str, statuses: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        for status in statuses:
            yield from listed_jobs(self._call, arrayJobId=name, jobStatus=status)

    def _left_over(self, name: str, known: _Job, job: Mapping[str, Any], now: float) -> Iterator[RowState]:
        """Yield the rows of an array that is over of which the service does not tell."""
        succeeded = job["status"] == "SUCCEEDED"
        if not succeeded and now - (known.over_since or now) < MISSING_FOR and any(known.ended.values()):
            return  # they may be told a little later
        for row in known.unknown():
            # An array succeeds when all of it has; one that failed before it had children tells why itself.
            yield from self._row(name, known, row, job)

    # -- gangs ------------------------------------------------------------------------------------------------------

    def _gang(self, name: str, known: _Job, job: Mapping[str, Any], now: float) -> Iterator[RowState]:
        status = job["status"]
        if status == "FAILED":
            end = known.failed_node[1] if known.failed_node else self._first_failed(name)
            yield from self._row(name, known, 0, job, end)
            return
        yield from self._row(name, known, 0, job)
        if status != "RUNNING" or now < known.look_at:
            return
        known.look_at = now + GANG_LOOK
        if known.failed_node is None:
            failed = self._first_failed(name)
            known.failed_node = None if failed is None else (now, failed)
        elif now - known.failed_node[0] >= GANG_GRACE and name not in self._ending:
            # The service lets the other nodes wait for one that is gone: the gang is one unit.
            reason = f"{OURS}a node of the gang has failed"
            self._call("terminate_job", jobId=name, reason=reason)
            self.press(name, reason, running=True, now=now)

    def _first_failed(self, name: str) -> Ending | None:
        """Return why the node of a gang that failed first did."""
        nodes = list(listed_jobs(self._call, multiNodeJobId=name, jobStatus="FAILED"))
        nodes.sort(key=lambda node: (node.get("stoppedAt") or 0, node["jobId"]))
        return ending(nodes[0]) if nodes else None

    # -- ending -----------------------------------------------------------------------------------------------------

    def _press(self, name: str, known: _Job, job: Mapping[str, Any], now: float) -> None:
        """End again what has not ended."""
        if known.press_at is None:
            known.press_at = now + PRESS_EVERY
        if now < known.press_at:
            return
        known.press_at = now + PRESS_EVERY
        running, reason = self._ending[name]
        if running:
            self._call("terminate_job", jobId=name, reason=reason)
            if known.rows > 1:
                left = listed_jobs(self._call, arrayJobId=name, statuses=("STARTING", "RUNNING"))
                for _, child in zip(range(PRESSED), left, strict=False):
                    self._call("terminate_job", jobId=child["jobId"], reason=reason)
            return
        summary: Mapping[str, int] = job.get("arrayProperties", {}).get("statusSummary", {})
        waits = any(summary.get(status) for status in _WAITING) if known.rows > 1 else job["status"] in _WAITING
        if waits:
            self._call("cancel_job", jobId=name, reason=reason)


def listed_jobs(call: Call, *, statuses: Iterable[str] = (), **parameters: Any) -> Iterator[dict[str, Any]]:
    """Yield jobs by ListJobs, page by page.

    Parameters
    ----------
    call : callable
        Calls the service.
    statuses : iterable of str
        One list for each of these; otherwise one as `parameters` say.
    **parameters
        Of ListJobs.
    """
    each: list[dict[str, Any]] = [{**parameters, "jobStatus": status} for status in statuses]
    for asked in each or [parameters]:
        token: str | None = None
        while True:
            answer = call("list_jobs", **asked, **({} if token is None else {"nextToken": token}))
            yield from answer.get("jobSummaryList", ())
            token = answer.get("nextToken")
            if not token:
                break


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield a sequence in parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _row_of(child: Mapping[str, Any]) -> int | None:
    """Return the index of a child of an array."""
    index = (child.get("arrayProperties") or {}).get("index")
    if isinstance(index, int):
        return index
    _, _, text = str(child["jobId"]).rpartition(":")
    return int(text) if text.isascii() and text.isdigit() else None


def _seconds(milliseconds: Any) -> float:
    import time

    return milliseconds / 1000 if isinstance(milliseconds, int | float) and milliseconds > 0 else time.time()
