"""The scheduler: it decides what runs next, and never acts.

A state machine without I/O and without a clock. Events go in (`Scheduler.finished`, `Scheduler.failed`, the time as
an argument), decisions come out (`Scheduler.take`, the `Decision` about a failure). Run, resume, reattach,
simulation and the property tests are this one object with different drivers.

How it works: a finished task goes on as its transition says. Each target becomes ready at once, except a join,
where the task arrives as one branch of the innermost open fan-out (`flowkit.runtime.frames.Group`); the join is ready
when all branches have arrived, whichever steps they ended in. A switch therefore needs no rule of its own, and
neither does a loop: another turn is the same step with its turn counted up.

Events may come twice, late, or contradict what is known. Nothing of that starts a task twice or before its inputs:
such events change nothing, or count as what they prove (a late commit is a commit), and are answered with a notice.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from flowkit.decorators.contract import Attempts
from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.graph import Graph, Node
from flowkit.model.launch import Launch
from flowkit.model.manifest import Failure
from flowkit.model.transition import Transition
from flowkit.runtime import retries
from flowkit.runtime.decisions import Awaited, Counts, Decision, Notice, check_width, contradiction, contradicts
from flowkit.runtime.frames import Cursor, Group, GroupKind, Place, Ready, Task

Policy = Literal["finish", "fail-fast", "keep-going"]
RunState = Literal["running", "succeeded", "failed", "cancelled"]

__all__ = ["Awaited", "Counts", "Decision", "Notice", "Policy", "RunState", "Scheduler", "check_width"]

LOCAL = "local"
"""The executor that is always there."""
_PENDING, _RUNNING, _SUCCEEDED, _FAILED, _CANCELLED, _CLONED = range(6)


class Scheduler:
    """Decides what runs next in one run of one flow.

    Parameters
    ----------
    graph : Graph
        The flow, free of lint.
    attempts : mapping of str to Attempts
        How often each step is tried; once for a step that is not named.
    on_failure : str
        What a task that failed for good means for the rest. ``finish``: what runs ends and is kept, nothing else
        starts. ``fail-fast``: the same, and `should_cancel` turns true. ``keep-going``: all that does not depend
        on the failed task still runs. The run has failed in each case.
    max_width : int
        The widest foreach (or gang) that is allowed; a wider one fails before any child starts.
    executor_of : callable, optional
        Step to the name of its executor; ``local`` for all by default. Executors whose names begin with the same word
        share a machine (``local gpu=1`` and ``local``): a gang that is larger than it waits until all are idle. The
        fallback attempts of a step are always carried out by ``local``, where the step's own executor is elsewhere.
    clones : mapping of str to mapping of str to Transition
        By step and task id: tasks that are taken from another run and finish at once, with the transition that
        they made there (`flowkit.runtime.resume.Plan.transitions`).
    going_on : bool, default False
        `clones` are what this very run has done already, before its runtime died: they count as succeeded.
    """

    def __init__(
        self,
        graph: Graph,
        attempts: Mapping[str, Attempts],
        *,
        on_failure: Policy = "finish",
        max_width: int = 10_000,
        executor_of: Callable[[str], str] | None = None,
        clones: Mapping[str, Mapping[str, Transition]] | None = None,
        going_on: bool = False,
    ) -> None:
        self.graph = graph
        self._nodes = graph.nodes
        self._attempts = attempts
        self._on_failure = on_failure
        self._max_width = max_width
        self._executor = {name: executor_of(name) if executor_of else "local" for name in graph.nodes}
        self._clones = clones or {}
        self._taken = _SUCCEEDED if going_on else _CLONED
        self._queues = {name: Ready() for name in self._executor.values()}
        self._fallback = {name: self._executor[name] for name in graph.nodes if _is_local(self._executor[name])}
        if any(item.fallback and name not in self._fallback for name, item in attempts.items()):
            self._queues.setdefault(LOCAL, Ready())
        self._machine = {name: name.partition(" ")[0] for name in self._queues}
        self._busy = dict.fromkeys(self._machine.values(), 0)
        self._live: dict[TaskRef, Task] = {}
        self._running = 0
        self._delayed: list[tuple[float, int, Task]] = []
        self._sequence = 0
        self._delays = 0
        self._counts: dict[str, list[int]] = {name: [0] * 6 for name in graph.nodes}
        self._open: dict[str, list[int]] = {}
        self._started = self._ended = self._cancelled = self._failed_first = False
        self.failures: dict[TaskRef, Failure] = {}
        """The tasks that failed for good, in the order in which they did."""

    # -- what the driver asks -----------------------------------------------------------------------------------

    @property
    def executors(self) -> tuple[str, ...]:
        """The names of the executors that this flow needs."""
        return tuple(self._queues)

    @property
    def should_cancel(self) -> bool:
        """Whether what runs is to be ended now (a failure under ``fail-fast``)."""
        return self._on_failure == "fail-fast" and bool(self.failures)

    @property
    def stopped(self) -> bool:
        """Whether nothing new starts any more."""
        return self._cancelled or (bool(self.failures) and self._on_failure != "keep-going")

    @property
    def state(self) -> RunState:
        """How the run stands; anything but ``running`` is final, and then no attempt is in flight."""
        if self._running or not self._started:
            return "running"
        if not self.stopped and (self._delays or any(queue.waiting for queue in self._queues.values())):
            return "running"
        if self.failures and (self._failed_first or not self._cancelled):
            return "failed"
        if self._ended:
            return "succeeded"
        return "cancelled" if self._cancelled else "failed"

    @property
    def in_flight(self) -> int:
        """How many launches were taken and have not ended; a gang is one."""
        return self._running

    def busy(self, executor: str) -> int:
        """How many tasks an executor has in flight, with those of others on its machine; each node of a gang counts."""
        return self._busy.get(self._machine.get(executor, ""), 0)

    def running(self) -> list[Launch]:
        """Return the launches in flight."""
        return [task.launch for task in self._live.values() if task.status == "running"]

    def waiting(self, executor: str) -> int:
        """How many tasks are ready for an executor and not taken; 0 once nothing new starts."""
        queue = self._queues.get(executor)
        return 0 if queue is None or self.stopped else queue.waiting

    def ready(self) -> Iterator[tuple[TaskRef, int]]:
        """Every task that is ready and not taken, with the number of nodes of a gang (0 for a plain task)."""
        for queue in self._queues.values():
            yield from queue.refs()

    def next_wakeup(self, now: float) -> float | None:
        """When the next retry is due (not before `now`); None where none is pending."""
        while self._delayed and self._delayed[0][2].status != "delayed":
            heapq.heappop(self._delayed)
        if not self._delayed or self.stopped:
            return None
        return max(now, self._delayed[0][0])

    def counts(self) -> dict[str, Counts]:
        """Return the tasks known so far, by step."""
        return {step: Counts(*row) for step, row in self._counts.items()}

    def awaiting(self) -> list[Awaited]:
        """Return the joins that wait for branches, all open fan-outs of a join together."""
        return [
            Awaited(join, arrived, expected, self._nodes[join].sources)
            for join, (_, arrived, expected) in self._open.items()
        ]

    # -- what the driver tells ----------------------------------------------------------------------------------

    def start(self) -> list[Notice]:
        """Make the start step ready; all that follows from clones is done at once."""
        notices: list[Notice] = []
        if self._started or self.graph.start is None:
            return notices
        self._started = True
        turn = 0 if self._nodes[self.graph.start].is_loop else None
        todo: _Todo = deque()
        self._make_ready(todo, self.graph.start, Coordinates((), turn), None)
        self._work_off(todo, notices)
        return notices

    def take(self, executor: str, slots: int | None, now: float) -> list[Launch]:
        """Return launches for the free slots of an executor; they count as running from now on.

        Parameters
        ----------
        executor : str
            Its name.
        slots : int or None
            How many tasks it can take; None for any number. A gang takes as many slots as it has nodes, all or
            none; where it is larger than the executor, it is launched alone.
        now : float
            The time: retries that are due become ready.
        """
        self._wake(now)
        queue = self._queues.get(executor)
        launches: list[Launch] = []
        if queue is None or self.stopped:
            return launches
        live, counts = self._live, self._counts
        busy = self._busy[self._machine[executor]]
        room = slots
        while room is None or room > 0:
            task = queue.next(room, idle=busy == 0)
            if task is None:
                break
            launch = task.launch
            weight = launch.gang or 1
            task.status = "running"
            live[TaskRef(launch.step, launch.coordinates)] = task
            row = counts[launch.step]
            row[_PENDING] -= weight
            row[_RUNNING] += weight
            busy += weight
            if room is not None:
                room -= weight
            launches.append(launch)
        self._busy[self._machine[executor]] = busy
        self._running += len(launches)
        return launches

    def finished(self, ref: TaskRef, attempt: int, transition: Transition, now: float) -> list[Notice]:
        """Take note that a task is committed; what follows becomes ready.

        Parameters
        ----------
        ref : TaskRef
            The task; the control task (node 0) for a gang.
        attempt : int
            The attempt whose launch has ended and left (or found) the commit, whichever attempt had written it. One
            that was given up earlier and committed after all counts too: the task is finished, and a newer attempt
            that still runs has nothing left to decide; its own end is to be reported all the same.
        transition : Transition
            Where it goes next.
        now : float
            The time.
        """
        task = self._live.get(ref)
        if task is None:
            return [self._stray(ref, attempt)]
        launch = task.launch
        current = attempt == launch.attempt
        if not 0 <= attempt <= launch.attempt or (current and task.status != "running"):
            return [Notice("contradiction", ref, f"attempt {attempt} of {ref} was never launched; its end is ignored")]
        if task.committed:
            if current:
                self._end_attempt(ref, task)
            return [Notice("duplicate", ref, f"{ref} was finished already; attempt {attempt} changes nothing")]
        notices = []
        if not current:
            notices.append(Notice("late", ref, f"attempt {attempt} of {ref} finished after all and counts"))
        self._count(launch, _RUNNING if task.status == "running" else _PENDING, _SUCCEEDED)
        if current:
            self._end_attempt(ref, task)
        elif task.status == "running":
            task.committed = True
        else:
            self._withdraw(ref, task)
        todo: _Todo = deque()
        self._settle(todo, _Done(ref, launch.gang, task.place, transition, _SUCCEEDED), notices)
        if todo:
            self._work_off(todo, notices)
        return notices

    def failed(self, ref: TaskRef, attempt: int, failure: Failure, now: float) -> Decision:
        """Take note that an attempt ended without a result, and decide what becomes of the task."""
        task = self._live.get(ref)
        if task is None:
            return Decision("ignored", ref, attempt, why=self._stray(ref, attempt).text)
        if attempt != task.launch.attempt or task.status != "running":
            return Decision("ignored", ref, attempt, why=f"attempt {attempt} of {ref} is not running")
        if task.committed:
            self._end_attempt(ref, task)
            return Decision("ignored", ref, attempt, why=f"an earlier attempt of {ref} has finished it already")
        verdict = retries.decide(self._attempts.get(ref.step, retries.ONCE), task.launch, failure)
        if verdict.kind is not None and not self.stopped:
            return self._try_again(ref, task, verdict.kind, now + verdict.delay)
        self._end_attempt(ref, task)
        if self._ended_by_us(failure):
            self._count(task.launch, _RUNNING, _CANCELLED)
            return Decision("cancelled", ref, attempt, why="the run was stopped")
        self._count(task.launch, _RUNNING, _FAILED)
        why = verdict.why if verdict.kind is None else "the run has stopped: no retry"
        self.failures[ref] = failure
        return Decision("failed", ref, attempt, why=why)

    def cancel(self) -> None:
        """Start nothing any more; the driver ends what runs and reports it as usual."""
        if not self._cancelled and self.state == "running":
            self._failed_first = bool(self.failures)
            self._cancelled = True

    # -- attempts -----------------------------------------------------------------------------------------------

    def _try_again(self, ref: TaskRef, task: Task, kind: Literal["user", "fallback"], at: float) -> Decision:
        self._leave_executor(task)
        attempt = task.launch.attempt
        self._count(task.launch, _RUNNING, _PENDING)
        task.launch = task.launch._replace(attempt=attempt + 1, kind=kind)
        task.status = "delayed"
        self._sequence += 1
        self._delays += 1
        heapq.heappush(self._delayed, (at, self._sequence, task))
        return Decision("retry" if kind == "user" else "fallback", ref, attempt, attempt + 1, at)

    def _wake(self, now: float) -> None:
        while self._delayed and self._delayed[0][0] <= now:
            task = heapq.heappop(self._delayed)[2]
            if task.status == "delayed":
                self._delays -= 1
                self._queues[self._executor_of(task.launch)].add(task)

    def _withdraw(self, ref: TaskRef, task: Task) -> None:
        """Drop a retry that is not needed any more."""
        if task.status == "delayed":
            self._delays -= 1
            task.status = "over"
        else:
            self._queues[self._executor_of(task.launch)].withdraw(task)
        del self._live[ref]

    def _end_attempt(self, ref: TaskRef, task: Task) -> None:
        self._leave_executor(task)
        task.status = "over"
        del self._live[ref]

    def _leave_executor(self, task: Task) -> None:
        self._running -= 1
        self._busy[self._machine[self._executor_of(task.launch)]] -= task.weight

    def _executor_of(self, launch: Launch) -> str:
        """Return who carries a launch out: a fallback needs no machine but this one."""
        if launch.kind == "fallback":
            return self._fallback.get(launch.step, LOCAL)
        return self._executor[launch.step]

    def _ended_by_us(self, failure: Failure) -> bool:
        """Whether a process was ended because the run was: what its own code raised is still a failure."""
        if self.stopped and failure.kind == "cancelled":
            return True
        return (self._cancelled or self.should_cancel) and failure.kind != "error"

    def _stray(self, ref: TaskRef, attempt: int) -> Notice:
        if ref in self.failures:
            text = f"attempt {attempt} of {ref} ended after the task had failed; a resume will look at what it left"
            return Notice("late", ref, text)
        text = f"attempt {attempt} of {ref} is not running: it is over, or was never launched; its end is ignored"
        return Notice("duplicate", ref, text)

    # -- what follows a task ------------------------------------------------------------------------------------

    def clone_of(self, ref: TaskRef, gang: int) -> Transition | None:
        """Return the transition of the task that stands in for `ref`, where it is a clone."""
        tasks = self._clones.get(ref.step)
        return tasks.get(str(ref.coordinates)) if tasks else None

    def _work_off(self, todo: _Todo, notices: list[Notice]) -> None:
        """Let finished tasks go on until no clone is left among what becomes ready; no recursion, any depth."""
        while todo:
            for done in todo.popleft():
                self._settle(todo, done, notices)

    def _settle(self, todo: _Todo, done: _Done, notices: list[Notice]) -> None:
        """Let one finished task go on; where it cannot, it has failed after all."""
        trouble = self._go_on(todo, done)
        if trouble is None:
            return
        row = self._counts[done.ref.step]
        row[done.counted] -= done.gang or 1
        row[_FAILED] += done.gang or 1
        if trouble.failure is not None:
            self.failures[done.ref] = trouble.failure
        notices.append(trouble)

    def _go_on(self, todo: _Todo, done: _Done) -> Notice | None:
        ref, gang, place, transition, _ = done
        node = self._nodes[ref.step]
        wrong = contradiction(node, transition)
        if wrong is not None:
            return contradicts(ref, wrong)
        if node.kind == "end":
            if place is not None:
                return contradicts(ref, f"the flow ends inside what {place.group.opener} opened")
            self._ended = True
            return None
        if gang and not self._nodes[node.targets[0]].is_join:
            return contradicts(ref, "the step after a gang must be its join")
        if node.kind == "split":
            return self._split(todo, ref, place, node)
        if node.kind in ("foreach", "parallel"):
            width = transition.width or 0
            failure = check_width(ref, width, self._max_width)
            if failure is not None:
                return Notice("too wide", ref, failure.message, failure)
            return self._fan_out(todo, ref, place, node, width)
        return self._enter(todo, transition.targets[0], ref, place)

    def _enter(self, todo: _Todo, step: str, ref: TaskRef, place: Place | None) -> Notice | None:
        """Go from a task to one step: arrive there if it is a join, else make it ready."""
        node = self._nodes[step]
        if node.is_join:
            return self._arrive(todo, step, ref, place)
        coordinates = Coordinates(ref.coordinates.indices, _turn(node, ref))
        self._make_ready(todo, step, coordinates, place, (Span(ref.step, ref.coordinates),))
        return None

    def _arrive(self, todo: _Todo, join: str, ref: TaskRef, place: Place | None) -> Notice | None:
        if place is None:
            return contradicts(ref, f"{join} joins what no split has opened")
        group = place.group
        if group.join is not None and group.join != join:
            return contradicts(ref, f"{group.opener} is closed by {group.join}, not by {join}")
        before = group.arrived
        if not group.arrive(place.branch, ref):
            return contradicts(ref, f"this branch of {group.opener} has arrived at {join} already")
        waits = self._open.get(group.join or "")
        if waits is not None:
            waits[1] += group.arrived - before
        if group.complete:
            if waits is not None:
                self._close(group, waits)
            self._make_join_ready(todo, join, group, group.inputs())
        return None

    def _split(self, todo: _Todo, ref: TaskRef, place: Place | None, node: Node) -> Notice | None:
        group = self._new_group(ref, "split", len(node.targets), place, node)
        for branch, target in enumerate(node.targets):
            trouble = self._enter(todo, target, ref, Place(group, branch))
            if trouble is not None:
                return trouble
        return None

    def _fan_out(self, todo: _Todo, ref: TaskRef, place: Place | None, node: Node, width: int) -> Notice | None:
        step = node.targets[0]
        target = self._nodes[step]
        if target.is_join:
            return contradicts(ref, f"a foreach must not lead straight to the join {step}")
        if width == 0 and node.matching_join is None:
            return contradicts(ref, "the foreach is empty and no join closes it")
        if node.kind == "parallel":
            group = self._new_group(ref, "gang", width, place, node)
            coordinates = Coordinates((*ref.coordinates.indices, 0))
            parents = (Span(ref.step, ref.coordinates),)
            self._make_ready(todo, step, coordinates, Place(group, 0), parents, gang=width)
            return None
        group = self._new_group(ref, "foreach", width, place, node)
        if width == 0 and node.matching_join is not None:
            self._make_join_ready(todo, node.matching_join, group, ())
        elif step in self._clones:
            todo.append(self._children(group, target))
        else:
            self._add_children(group, target, range(width))
        return None

    def _children(self, group: Group, node: Node) -> Iterator[_Done]:
        """Yield the children that are clones, and queue the others."""
        missing = array("q")
        turn = 0 if node.is_loop else None
        prefix = group.opener.coordinates.indices
        for index in range(group.width):
            ref = TaskRef(node.name, Coordinates((*prefix, index), turn))
            transition = self.clone_of(ref, 0)
            if transition is None:
                missing.append(index)
            else:
                self._counts[node.name][self._taken] += 1
                yield _Done(ref, 0, Place(group, index), transition, self._taken)
        if missing:
            self._add_children(group, node, missing)

    def _add_children(self, group: Group, node: Node, indices: range | array[int]) -> None:
        self._counts[node.name][_PENDING] += len(indices)
        self._queue_of(node.name).add_children(Cursor(node.name, 0 if node.is_loop else None, group, indices))

    def _make_join_ready(self, todo: _Todo, join: str, group: Group, inputs: tuple[Span, ...]) -> None:
        indices = group.opener.coordinates.indices
        self._make_ready(todo, join, Coordinates(indices), group.outer, inputs, split=group.opener)

    def _make_ready(
        self,
        todo: _Todo,
        step: str,
        coordinates: Coordinates,
        place: Place | None,
        parents: tuple[Span, ...] = (),
        split: TaskRef | None = None,
        gang: int = 0,
    ) -> None:
        ref = TaskRef(step, coordinates)
        transition = self.clone_of(ref, gang) if step in self._clones else None
        if transition is not None:
            self._counts[step][self._taken] += gang or 1
            todo.append(iter([_Done(ref, gang, place, transition, self._taken)]))
            return
        self._counts[step][_PENDING] += gang or 1
        self._queue_of(step).add(Task(Launch(step, coordinates, parents, split, gang=gang), place))

    def _new_group(self, ref: TaskRef, kind: GroupKind, width: int, place: Place | None, node: Node) -> Group:
        join = node.matching_join
        if join is not None and width:
            waits = self._open.setdefault(join, [0, 0, 0])
            waits[0] += 1
            waits[2] += width
        return Group(ref, kind, width, place, join)

    def _close(self, group: Group, waits: list[int]) -> None:
        waits[0] -= 1
        waits[1] -= group.width
        waits[2] -= group.width
        if not waits[0]:
            del self._open[group.join or ""]

    def _queue_of(self, step: str) -> Ready:
        return self._queues[self._executor[step]]

    def _count(self, launch: Launch, before: int, after: int) -> None:
        row = self._counts[launch.step]
        row[before] -= launch.gang or 1
        row[after] += launch.gang or 1


class _Done(NamedTuple):
    """A task that is committed or cloned and goes on; `counted` is the column that it was counted in."""

    ref: TaskRef
    gang: int
    place: Place | None
    transition: Transition
    counted: int


_Todo = deque[Iterable[_Done]]


def _turn(node: Node, ref: TaskRef) -> int | None:
    """The turn of the next task of a step: counted up where a loop goes on, 0 where it begins."""
    if not node.is_loop:
        return None
    return (ref.coordinates.turn or 0) + 1 if ref.step == node.name else 0


def _is_local(executor: str) -> bool:
    return executor.partition(" ")[0] == LOCAL
