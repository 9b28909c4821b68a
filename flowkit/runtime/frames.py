"""What is open while a flow runs: fan-outs that wait for their branches, and the tasks that are ready in order.

These are the parts that the scheduler is made of. A fan-out of a million children is one `Group`, one `Cursor`
and one byte a child; a task has an object of its own only from the moment when it is handed out.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.launch import Launch

GroupKind = Literal["split", "foreach", "gang"]
Status = Literal["ready", "running", "delayed", "over"]


class Place(NamedTuple):
    """Where a task stands in the innermost open fan-out: which one, and on which of its branches."""

    group: Group
    branch: int


class Group:
    """One open fan-out: a static split, a foreach or a gang, until its join is ready.

    Parameters
    ----------
    opener : TaskRef
        The task that opened it.
    kind : str
        ``split``, ``foreach`` or ``gang``.
    width : int
        How many branches it has.
    outer : Place or None
        Where its opener stands, and so its join.
    join : str or None
        The step that closes it; None where the graph does not know it.
    """

    __slots__ = ("_marks", "_variants", "arrived", "join", "kind", "opener", "outer", "width")

    def __init__(self, opener: TaskRef, kind: GroupKind, width: int, outer: Place | None, join: str | None) -> None:
        self.opener = opener
        self.kind = kind
        self.width = width
        self.outer = outer
        self.join = join
        self.arrived = 0
        # One mark a branch: 0 until it arrives, then the number of the (step, turn) that it arrived from.
        self._marks: bytearray | array[int] = bytearray(width if kind != "gang" else 0)
        self._variants: dict[tuple[str, int | None], int] = {}

    @property
    def complete(self) -> bool:
        """Whether every branch has arrived."""
        return self.arrived == self.width

    def arrive(self, branch: int, ref: TaskRef) -> bool:
        """Note that a branch ends in a task; False if it had arrived already."""
        if self.kind == "gang":
            if self.arrived:
                return False
            self._variants[ref.step, ref.coordinates.turn] = 1
            self.arrived = self.width
            return True
        if self._marks[branch]:
            return False
        variant = (ref.step, ref.coordinates.turn)
        mark = self._variants.get(variant)
        if mark is None:
            mark = self._variants[variant] = len(self._variants) + 1
            if mark == 256:  # a byte a branch is not enough any more
                self._marks = array("I", list(self._marks))
        self._marks[branch] = mark
        self.arrived += 1
        return True

    def inputs(self) -> tuple[Span, ...]:
        """Return the last tasks of all branches: in index order, for a split in the order of its targets."""
        prefix = self.opener.coordinates.indices
        variants = list(self._variants)
        if self.kind == "split":
            ends = [variants[mark - 1] for mark in self._marks]
            return tuple(Span(step, Coordinates(prefix, turn)) for step, turn in ends)
        if len(variants) == 1:
            step, turn = variants[0]
            return (Span(step, Coordinates((*prefix, 0), turn), self.width),)
        spans = []
        position = 0
        for mark, run in groupby(self._marks):
            step, turn = variants[mark - 1]
            length = sum(1 for _ in run)
            spans.append(Span(step, Coordinates((*prefix, position), turn), length))
            position += length
        return tuple(spans)


class Task:
    """One task from the moment when it is ready until its last attempt is over.

    Attributes
    ----------
    launch : Launch
        The attempt that runs, or the next one.
    place : Place or None
        Where it stands.
    status : str
        ``ready`` (queued), ``running``, ``delayed`` (a retry that waits for its time), ``over``.
    committed : bool
        An earlier attempt has committed the task while this one was running already.
    """

    __slots__ = ("committed", "launch", "place", "status")

    def __init__(self, launch: Launch, place: Place | None) -> None:
        self.launch = launch
        self.place = place
        self.status: Status = "ready"
        self.committed = False

    @property
    def weight(self) -> int:
        """How many tasks (and slots) it counts for: the nodes of a gang."""
        return self.launch.gang or 1


class Cursor:
    """The children of one foreach that have not been handed out yet."""

    __slots__ = ("_indices", "_position", "_prefix", "group", "parents", "step", "turn")

    def __init__(self, step: str, turn: int | None, group: Group, indices: Sequence[int]) -> None:
        self.step = step
        self.turn = turn
        self.group = group
        self.parents = (Span(group.opener.step, group.opener.coordinates),)
        self._prefix = group.opener.coordinates.indices
        self._indices = indices
        self._position = 0

    def __len__(self) -> int:
        return len(self._indices) - self._position

    def next(self) -> Task:
        """Hand out the next child."""
        index = self._indices[self._position]
        self._position += 1
        coordinates = Coordinates((*self._prefix, index), self.turn)
        return Task(Launch(self.step, coordinates, self.parents), Place(self.group, index))

    def refs(self) -> Iterator[TaskRef]:
        """Every child that is left, in index order."""
        for position in range(self._position, len(self._indices)):
            yield TaskRef(self.step, Coordinates((*self._prefix, self._indices[position]), self.turn))


class Ready:
    """The tasks that are ready for one executor, in the order in which they start.

    What goes on with a branch comes before what opens another one, and of the foreaches the most deeply nested
    one comes first: joins complete early, and few branches are half done at any time.
    """

    __slots__ = ("_cursors", "_sequence", "_singles", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        """How many tasks wait; the nodes of a gang count one by one."""
        self._singles: deque[Task] = deque()
        self._cursors: list[tuple[int, int, Cursor]] = []
        self._sequence = 0

    def add(self, task: Task) -> None:
        """Queue one task."""
        task.status = "ready"
        self._singles.append(task)
        self.waiting += task.weight

    def add_children(self, cursor: Cursor) -> None:
        """Queue the children of a foreach."""
        self._sequence += 1
        depth = len(cursor.group.opener.coordinates.indices)
        heapq.heappush(self._cursors, (-depth, self._sequence, cursor))
        self.waiting += len(cursor)

    def withdraw(self, task: Task) -> None:
        """Take a queued task back."""
        task.status = "over"
        self.waiting -= task.weight

    def next(self, room: int | None, idle: bool) -> Task | None:
        """Hand out the next task, or None where there is none or the next one is a gang that does not fit.

        Parameters
        ----------
        room : int or None
            Free slots; None for any number.
        idle : bool
            The executor has nothing else to do: a gang starts even if it has more nodes than there are slots,
            since it would wait for ever otherwise.
        """
        singles = self._singles
        while singles:
            task = singles[0]
            if task.status != "ready":
                singles.popleft()
                continue
            weight = task.weight
            if weight > 1 and room is not None and weight > room and not idle:
                return None  # nothing overtakes a gang, or it would never find enough slots at once
            singles.popleft()
            self.waiting -= weight
            return task
        if not self._cursors:
            return None
        cursor = self._cursors[0][2]
        task = cursor.next()
        if not cursor:
            heapq.heappop(self._cursors)
        self.waiting -= 1
        return task

    def refs(self) -> Iterator[tuple[TaskRef, int]]:
        """Every task that waits, with the number of nodes of a gang (0 for a plain task)."""
        for task in self._singles:
            if task.status == "ready":
                yield task.launch.ref, task.launch.gang
        for _, _, cursor in sorted(self._cursors):
            for ref in cursor.refs():
                yield ref, 0
