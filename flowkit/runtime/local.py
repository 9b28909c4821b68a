"""The local executor: each task in a process of its own on this machine.

It talks to a fork server, which starts the processes and tells how they end, and to a log process, which reads what
they write (`flowkit.runtime.forkserver`, `flowkit.runtime.logprocess`). It holds no thread and never waits but in
`close`. Both helpers may die: the log process is replaced without a task noticing, the server by one that starts
fresh interpreters.
"""

from __future__ import annotations

import heapq
import json
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowkit.exceptions import FlowkitError, UsageError
from flowkit.model.launch import Launch
from flowkit.runtime import forkserver, messages
from flowkit.runtime.executor import Ended, Event, Executor, Output, Started
from flowkit.runtime.forkserver import Target
from flowkit.runtime.local_state import LaunchState, NodeState, fitting_arguments, remove_file
from flowkit.runtime.local_state import step_arguments as step_arguments
from flowkit.runtime.messages import Channel, Frame, launch_to_json
from flowkit.runtime.processes import OutOfMemory, Register, clear_leftovers, signal_group, why_not_fork

if TYPE_CHECKING:
    from flowkit.runtime.log_spool import LogSpool
    from flowkit.runtime.pool import Pool

CANCEL_GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL when launches are cancelled."""
GANG_GRACE = 2.0
"""Seconds that the other nodes of a gang have after one has failed."""
TIMEOUT_GRACE = 5.0
"""Seconds after a step's timeout until its process is killed: the clean end inside the task comes first."""
FRESH_GRACE = 120.0
"""Further seconds for a fresh interpreter that has not said yet that the user's code begins: it imports the flow."""
MOST_REPLACEMENTS = 10
DEVICES = "CUDA_VISIBLE_DEVICES"
"""The environment variable that tells a task which GPUs are its own."""
_CLOSE_SECONDS = 5.0
_PAUSES = (0.02, 0.1, 0.3, 1.0, 2.0, 4.0)

SpawnCommand = Callable[[Launch, "int | None"], "list[str]"]
"""``spawn_command(launch, node)`` returns the command line that carries out a launch in a fresh interpreter."""


class LocalExecutor(Executor):
    """Carries launches out on this machine; made by `prepare`, ready after `configure`.

    Attributes
    ----------
    notices : list of str
        What the user should be told, in one line each; whoever shows them empties the list.
    """

    name = "local"

    def __init__(self, spawn_command: SpawnCommand) -> None:
        self.notices: list[str] = []
        self.fresh_always = False
        self._spawn_command = spawn_command
        self._config: dict[str, Any] = {}
        self._folder = ""
        self._workers = 1
        self._fresh: Mapping[str, Mapping[str, str]] = {}
        self._timeouts: Mapping[str, float] = {}
        self._timeout_grace = TIMEOUT_GRACE
        self._server: Channel
        self._server_pid = 0
        self._log: Channel
        self._log_pid = 0
        self._logs = 0
        self._replacements = 0
        self._register: Register | None = None
        self._memory: OutOfMemory | None = None
        self._pool: Pool | None = None
        self._spool: LogSpool | None = None
        self._nodes: dict[int, NodeState] = {}
        self._next = 1
        self._waiting: deque[LaunchState] = deque()
        self._refused: dict[int, NodeState] = {}
        self._told_of_refusals = False
        self._running = 0
        self._alive = 0
        self._deadlines: list[tuple[float, int, NodeState, str]] = []
        self._pushed = 0
        self._events: list[Event] = []
        self._closed = False

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def prepare(
        cls,
        target: Target,
        spawn_command: SpawnCommand,
        *,
        task_start: str = "auto",
        random_before: tuple[Any, ...] | None = None,
        warm: Callable[[], None] | None = None,
    ) -> LocalExecutor:
        """Fork the helpers; to be called before any thread, store, database connection or log file is opened.

        Parameters
        ----------
        target : callable
            ``target(config, launch, node)`` carries out one attempt in a forked task and returns its exit status.
        spawn_command : callable
            ``spawn_command(launch, node)`` returns the command line of a fresh interpreter that does the same; see
            `step_arguments`. An argument that is too long is put into a file, and ``@`` and its path take its place.
        task_start : str, default "auto"
            ``fork``, ``spawn``, or ``auto``: fork unless something in this process does not survive it, which
            `notices` then says.
        random_before : tuple, optional
            ``random.getstate()`` from before the flow was imported, to see whether the import seeded it.
        warm : callable, optional
            Called once in the fork server, at the same time as what follows here: imports what every task needs.

        Raises
        ------
        UsageError
            Where processes cannot be started like this at all (Windows).
        """
        if not hasattr(os, "fork") or not hasattr(socket, "AF_UNIX"):
            raise UsageError(
                "flowkit runs local tasks on Linux and macOS only", "on Windows use the Windows Subsystem for Linux"
            )
        executor = cls(spawn_command)
        reason: str | None = "asked for" if task_start == "spawn" else None
        if reason is None:
            reason = executor._fork_server(target, random_before, warm, check=task_start == "auto")
        if reason is not None:
            executor._start_fresh_server()
            if task_start == "auto":
                executor.notices.append(f"tasks start in fresh interpreters: {reason}")
        executor._start_log()
        return executor

    def _fork_server(
        self, target: Target, random_before: tuple[Any, ...] | None, warm: Callable[[], None] | None, *, check: bool
    ) -> str | None:
        if check and os.uname().sysname != "Linux":
            return why_not_fork()
        try:
            pid, end = forkserver.start(target, random_before, warm)
        except OSError as error:
            raise FlowkitError(f"no process can be started: {error.strerror}", "see ulimit -u and ulimit -n") from error
        # Only now: libraries that are prepared for a fork have ended their threads for it.
        reason = why_not_fork((end.fileno(),)) if check else None
        if reason is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            end.close()
            return reason
        self._server, self._server_pid = Channel(end), pid
        return None

    def _start_fresh_server(self) -> None:
        from flowkit.settings import environment

        try:
            pid, end = forkserver.start_fresh(environment())
        except OSError as error:
            raise FlowkitError(f"no process can be started: {error.strerror}", "see ulimit -u and ulimit -n") from error
        self._server, self._server_pid, self.fresh_always = Channel(end), pid, True

    def _start_log(self) -> None:
        mine, theirs = messages.pair()
        self._log, self._log_pid = mine, 0
        self._send_limit()
        self._server.send_descriptors([theirs.fileno()], messages.frame(messages.NEW_LOG))
        theirs.close()

    def configure(self, config: dict[str, Any], spool: LogSpool | None = None) -> None:
        """Tell what holds for the whole run, once it has its id.

        Parameters
        ----------
        config : dict
            Plain JSON values, which are handed to `target` as they are. Of these, this executor uses: ``run_folder``
            (the local folder for logs: ``<root>/flows/<Flow>/<run>``), ``machine_folder`` (where processes are noted;
            default: the root of the former), ``max_workers`` (default: the number of CPUs, at least 4),
            ``max_log_size`` (bytes of one log; default 1 GiB), ``fresh`` (for steps that must start as fresh
            interpreters: their environment variables), ``timeouts`` (seconds, by step), ``timeout_grace`` (seconds,
            default 5).
        spool : LogSpool, optional
            Brings logs to a remote root; ``run_folder`` is its folder then.
        """
        self._spool = spool
        self._config = dict(config)
        self._folder = os.path.abspath(config["run_folder"])
        self._workers = int(config.get("max_workers") or max(4, os.cpu_count() or 1))
        self._fresh = config.get("fresh") or {}
        self._timeouts = config.get("timeouts") or {}
        self._timeout_grace = float(config.get("timeout_grace", TIMEOUT_GRACE))
        self._memory = OutOfMemory()
        root = config.get("machine_folder") or os.path.dirname(os.path.dirname(os.path.dirname(self._folder)))
        killed = clear_leftovers(root)
        if killed:
            self.notices.append(f"{killed} processes that a killed run had left behind were ended")
        self._register = Register.create(root)
        if self._register is not None:
            self._config["register"] = self._register.path
        self._send_limit()
        self._send_config()

    def share(self, pool: Pool) -> None:
        """Share what the machine has among the tasks that run; to be called before any launch."""
        self._pool = pool

    def _send_limit(self) -> None:
        limit = self._config.get("max_log_size")
        if limit:
            self._log.send(messages.LIMIT, 0, 0, str(int(limit)).encode())

    def _send_config(self) -> None:
        self._server.send(messages.CONFIG, 0, 0, json.dumps(self._config, separators=(",", ":")).encode())

    # -- the port -------------------------------------------------------------------------------------------------

    def capacity(self) -> int | None:
        """Return how many more processes fit; a gang larger than the limit runs when nothing else does."""
        return max(0, self._workers - self._running - sum(max(1, group.launch.gang) for group in self._waiting))

    def submit(self, launches: Sequence[Launch]) -> None:
        """Start launches; those above the number of workers wait for their turn."""
        self._waiting.extend(map(LaunchState, launches))
        self._start_waiting()

    def file_descriptors(self) -> Sequence[int]:
        """Return the channels to the helpers; they change when a helper is replaced."""
        return [each.fileno() for each in (self._server, self._log) if not each.closed]

    def poll(self) -> list[Event]:
        """Return what has happened."""
        self._server.flush()
        self._log.flush()
        self._hear()
        if self._spool is not None:
            self._tell_of_spool(self._spool)
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            when, _, node, action = heapq.heappop(self._deadlines)
            self._at_deadline(when, node, action)
        self._start_waiting()
        events, self._events = self._events, []
        return events

    def _hear(self) -> None:
        for told in self._server.receive():
            self._from_server(told)
        for told in self._log.receive():
            self._from_log(told)
        if self._server.closed:
            self._replace_server()
        if self._log.closed:
            self._replace_log()

    def next_deadline(self) -> float | None:
        """Return when `poll` must be called at the latest."""
        if self._events:
            return 0.0
        if self._server.pending or self._log.pending:
            return time.time() + 0.01
        # Kept by the clock that nobody sets back.
        return self._deadlines[0][0] - time.monotonic() + time.time() if self._deadlines else None

    def cancel(self, *, now: bool) -> None:
        """End every launch; those that have not started end at once."""
        when = time.time()
        while self._waiting:
            self._events.append(Ended(self._waiting.popleft().launch, None, when, "cancelled"))
        for node in list(self._nodes.values()):
            self._end_node(node, "cancelled", gently=not now)

    def settle(self) -> None:
        """Wait until the logs are in the datastore, where that is remote."""
        if self._spool is not None:
            self._spool.settle()
            self._tell_of_spool(self._spool)

    def _tell_of_spool(self, spool: LogSpool) -> None:
        while spool.troubles:
            self.notices.append(spool.troubles.pop(0))

    def close(self) -> None:
        """End what still runs, then the helpers; nothing is left behind."""
        if self._closed:
            return
        self._closed = True
        for node in self._nodes.values():
            self._signal(node, signal.SIGKILL)
        self._log.send(messages.QUIT)
        self._server.flush_all(_CLOSE_SECONDS)
        if not self._log.wait_closed(_CLOSE_SECONDS) and self._log_pid:
            signal_group(self._log_pid, signal.SIGKILL)
        self._server.send(messages.QUIT)
        if not self._server.wait_closed(_CLOSE_SECONDS):
            _kill(self._server_pid)
        self._reap_server(wait=True)
        self._log.close()
        self._server.close()
        for node in self._nodes.values():
            remove_file(node.parents_file)
        if self._register is not None:
            self._register.remove()
        if self._spool is not None:
            self.settle()
            self._spool.close()

    # -- starting -------------------------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        while self._waiting and not self._server.closed:
            size = max(1, self._waiting[0].launch.gang)
            fits = self._pool is None or self._pool.fits(self._waiting[0].launch)
            if self._running and (self._running + size > self._workers or not fits):
                return
            group = self._waiting.popleft()
            self._running += size
            if not fits:
                self.notices.append(f"{group.launch.ref}: its {size} nodes need more than there is, and share it")
            for index in range(size):
                node = NodeState(self._next, group, index)
                self._next += 1
                if self._pool is not None:
                    node.devices = self._pool.take(group.launch.step)
                self._nodes[node.number] = node
                group.nodes.append(node)
                self._ask_for(node)

    def _ask_for(self, node: NodeState) -> None:
        """Ask the server for a process."""
        node.asked, node.log = True, self._logs
        self._refused.pop(node.number, None)
        launch = node.group.launch
        task = launch.coordinates
        if launch.gang:
            from flowkit.runtime.gang import node_coordinates

            task = node_coordinates(task, node.index)
        folder = os.path.join(self._folder, launch.step, str(task), str(launch.attempt))
        if self._spool is not None:
            node.log_key = (launch.step, str(task), launch.attempt)
            self._spool.began(*node.log_key)
        own = self._fresh.get(launch.step)
        variables = {DEVICES: ",".join(node.devices)} if node.devices else {}
        index = node.index if launch.gang else None
        node.fresh = self.fresh_always or own is not None
        if node.fresh:
            command = self._spawn_command(launch, index)
            rest: list[Any] = [fitting_arguments(node, command, folder), {**variables, **(own or {})}]
        else:
            rest = [launch_to_json(launch), variables]
        payload = messages.pack_task(folder, json.dumps(rest, separators=(",", ":")).encode())
        kind = messages.EXEC if node.fresh else messages.FORK
        self._server.send(kind, node.number, -1 if index is None else index, payload)

    # -- what the helpers tell ------------------------------------------------------------------------------------

    def _from_server(self, told: Frame) -> None:
        node = self._nodes.get(told.task)
        if node is None:
            return
        if told.kind == messages.STARTED:
            self._on_started(node, told.number, messages.unpack_time(told.payload)[0])
        elif told.kind == messages.ENDED:
            self._on_end(node, told.number, messages.unpack_end(told.payload))
            if not node.drained and node.log != self._logs:
                # The order to drain may have gone to a log process that was dead already.
                self._log.send(messages.DRAIN, node.number)
            if node.drained and node.ended is not None:
                self._conclude(node, *node.ended, node.kill)
        elif told.kind == messages.REFUSED:
            self._on_refused(node, told.payload.decode("utf-8", "replace"))

    def _on_started(self, node: NodeState, pid: int, when: float) -> None:
        if node.pid is not None:
            return
        node.pid = pid
        self._alive += 1
        seconds = self._timeouts.get(node.group.launch.step)
        if seconds is not None and not node.marked:
            # Until the task says that its code begins, this is all that is known of when it did.
            self._set_timeout(node, seconds + (FRESH_GRACE if node.fresh else 0.0))
        if not node.group.started:
            node.group.started = True
            self._events.append(Started(node.group.launch, pid, when))
        if node.kill is not None:
            self._signal(node, signal.SIGKILL)  # it was cancelled before it had a process

    def _on_refused(self, node: NodeState, text: str) -> None:
        """The machine has no more processes or descriptors to give: wait a little, for others to end."""
        node.refusals += 1
        node.asked = False
        # As long as other tasks run, they will give back what this one needs.
        given_up = node.refusals > len(_PAUSES) and self._alive == 0
        if node.kill is not None or given_up:
            if node.kill is None:
                self.notices.append(f"{node.group.launch.ref}: no process could be started: {text}")
            self._conclude(node, None, time.time(), node.kill or "refused")
            return
        self._refused[node.number] = node
        if not self._told_of_refusals:
            self._told_of_refusals = True
            self.notices.append(f"no process can be started at the moment ({text}): trying again")
        self._push(_PAUSES[min(node.refusals, len(_PAUSES)) - 1], node, "again")

    def _ask_again(self) -> None:
        """A process has ended: what it had is there for one that was refused, and the others wait on."""
        for node in self._refused.values():
            node.refusals = 1
        first = next(iter(self._refused.values()))
        if not first.asked and first.kill is None:
            self._ask_for(first)

    def _from_log(self, told: Frame) -> None:
        if told.kind == messages.LINE:
            node = self._nodes.get(told.task)
            if node is not None:
                when, text = messages.unpack_time(told.payload)
                stream = "err" if told.number else "out"
                self._events.append(Output(node.group.launch, stream, text.decode("utf-8", "replace"), when))
        elif told.kind == messages.STARTED:
            self._from_server(told)
        elif told.kind == messages.DRAINED:
            self._on_drained(told)
        elif told.kind == messages.DROPPED:
            node = self._nodes.get(told.task)
            if node is not None:
                note = f"[{told.number} lines are not shown here; the log has them]"
                self._events.append(Output(node.group.launch, "err", note, time.time()))
        elif told.kind == messages.TROUBLE:
            self.notices.append(told.payload.decode("utf-8", "replace"))
        elif told.kind == messages.HELLO:
            self._log_pid = told.number
        elif told.kind in (messages.BEGAN, messages.FINISHED):
            self._on_mark(told)

    def _on_mark(self, told: Frame) -> None:
        node = self._nodes.get(told.task)
        seconds = None if node is None else self._timeouts.get(node.group.launch.step)
        if node is None or seconds is None:
            return
        node.marked = True
        if told.kind == messages.BEGAN:
            self._set_timeout(node, seconds)
        else:
            node.deadline = None

    def _on_drained(self, told: Frame) -> None:
        node = self._nodes.get(told.task)
        if node is None:
            return
        node.drained = True
        if told.payload and node.ended is None:
            end = messages.unpack_end(told.payload)
            if node.pid is None:
                self._on_started(node, end.pid, end.started)
            self._on_end(node, told.number, end)
        if node.ended is not None:
            self._conclude(node, *node.ended, node.kill)

    def _on_end(self, node: NodeState, status: int, end: messages.End) -> None:
        group = node.group
        if node.ended is None:
            cpu, memory = group.usage or (0.0, 0)
            group.usage = (cpu + end.cpu, max(memory, end.memory))
        node.ended = (status, end.ended)

    def _conclude(self, node: NodeState, status: int | None, when: float, reason: str | None) -> None:
        """A process of a launch is over and drained; the launch is, when all of them are."""
        if self._nodes.pop(node.number, None) is None:
            return
        self._refused.pop(node.number, None)
        if self._spool is not None and node.log_key is not None:
            self._spool.ended(*node.log_key)
        if node.pid is not None and self._refused:
            self._ask_again()
        remove_file(node.parents_file)
        self._running -= 1
        self._alive -= node.pid is not None
        group = node.group
        if self._pool is not None:
            self._pool.give_back(group.launch.step, node.devices)
        group.left -= 1
        group.ended = max(group.ended, when)
        if status == 0:
            reason = None
        elif status == -signal.SIGKILL and reason is None and self._memory is not None and self._memory.happened():
            reason = "oom"
        if status != 0 and group.failure == 0 and group.reason is None and reason != "gang":
            group.failure, group.reason = status, reason
            if group.left:
                self._push(GANG_GRACE, node, "gang")
        if group.left == 0:
            self._events.append(Ended(group.launch, group.failure, group.ended, group.reason, group.usage))

    # -- ending ---------------------------------------------------------------------------------------------------

    def _push(self, seconds: float, node: NodeState, action: str) -> float:
        """Let something happen to a process after some seconds; return when, by the monotonic clock."""
        self._pushed += 1
        when = time.monotonic() + seconds
        heapq.heappush(self._deadlines, (when, self._pushed, node, action))
        return when

    def _set_timeout(self, node: NodeState, seconds: float) -> None:
        node.deadline = self._push(seconds + self._timeout_grace, node, "timeout")

    def _at_deadline(self, when: float, node: NodeState, action: str) -> None:
        if action == "gang":
            for other in node.group.nodes:
                if other.number in self._nodes:
                    self._end_node(other, "gang", gently=False)
        elif node.number not in self._nodes:
            return
        elif action == "again":
            if node.kill is not None:
                self._conclude(node, None, time.time(), node.kill)
            elif not node.asked:
                self._ask_for(node)
        elif action == "kill":
            self._end_node(node, "cancelled", gently=False)
        elif action == "timeout" and node.deadline == when:
            self._end_node(node, "timeout", gently=False)

    def _end_node(self, node: NodeState, reason: str, *, gently: bool) -> None:
        if node.ended is not None:
            return
        node.kill = node.kill or reason
        if node.pid is None:
            return  # it is killed when it starts, or given up when its turn to be asked for comes again
        self._signal(node, signal.SIGTERM if gently else signal.SIGKILL)
        if gently:
            self._push(CANCEL_GRACE, node, "kill")

    def _signal(self, node: NodeState, signum: int) -> None:
        # The server knows whether the process has ended, so that no other one of that id is ever hit.
        if node.pid is not None and node.ended is None:
            self._server.send(messages.SIGNAL, node.number, signum)

    # -- helpers that die -----------------------------------------------------------------------------------------

    def _replace_server(self) -> None:
        """The server is gone, and its tasks with it: start another one, in a fresh interpreter."""
        how = self._reap_server(wait=True)
        self._server.close()
        self._replacements += 1
        if self._replacements > MOST_REPLACEMENTS:
            raise FlowkitError(
                f"the process that starts tasks has died {self._replacements} times",
                "is the machine out of memory, or of processes (ulimit -u)?",
            )
        nodes = list(self._nodes.values())
        for node in nodes:
            if node.pid is not None and node.ended is None:
                signal_group(node.pid, signal.SIGKILL)  # what the task itself had started
                node.ended = (None, time.time())
                node.kill = node.kill or "lost"
        self._start_fresh_server()
        if self._replacements == 1:
            self.notices.append(f"the fork server died ({how}): tasks start in fresh interpreters from here on")
        self._send_config()
        if not self._log.closed:
            ours, theirs = socket.socketpair()
            self._log.send_descriptors([ours.fileno()], messages.frame(messages.SERVER))
            self._server.send_descriptors([theirs.fileno()], messages.frame(messages.LOG_LINK))
            ours.close()
            theirs.close()
        for node in nodes:
            if node.pid is not None:
                self._log.send(messages.DRAIN, node.number)
            elif node.asked:
                # Asked for and never heard of. A number of its own keeps the two apart for the log process.
                del self._nodes[node.number]
                node.number = self._next
                self._next += 1
                self._nodes[node.number] = node
                self._ask_for(node)

    def _replace_log(self) -> None:
        """The log process is gone: the server kept the pipes open and hands them to another one."""
        self._log.close()
        self._logs += 1
        self.notices.append("the log process died: some lines may be missing from the logs of running tasks")
        self._start_log()
        for node in list(self._nodes.values()):
            if node.ended is not None:
                self._conclude(node, *node.ended, node.kill)

    def _reap_server(self, *, wait: bool) -> str:
        """Take the server's exit status; return it in words."""
        deadline = time.monotonic() + (_CLOSE_SECONDS if wait else 0.0)
        while True:
            try:
                pid, status = os.waitpid(self._server_pid, os.WNOHANG)
            except ChildProcessError:
                return "nobody knows how"
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return f"signal {-code}" if code < 0 else f"exit status {code}"
            if time.monotonic() > deadline:
                return "still running"
            time.sleep(0.001)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just ended
