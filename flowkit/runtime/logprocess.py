"""The log process: it reads what tasks write, for ever, and keeps it in one file for each attempt.

It stands outside the runtime's loop, so that a task's write never waits for a slow terminal. Lines go to the log
file first and then to the runtime for the screen, as far as that keeps up: lines that it is too slow for are counted
and left out of the screen, never out of the file. A log that reaches its limit is cut with a mark, and a disk that
is full costs lines (which is said), but never a task. When the runtime is gone, the process drains what is there and
ends.
"""

from __future__ import annotations

import gc
import os
import resource
import selectors
import signal
import socket
import time
from typing import NoReturn

from flowkit.datastore.logs import format_line, truncation_line
from flowkit.runtime import messages, streams
from flowkit.runtime.marked import LONGEST_PIECE, Marks
from flowkit.runtime.messages import Channel, Frame, frame, pack_time
from flowkit.runtime.processes import signal_group

DEFAULT_LIMIT = 1 << 30
"""Bytes of one log, where the runtime does not say."""
PARTIAL_SECONDS = 1.0
"""Seconds after which the beginning of a line is written although its end has not come."""
SCREEN_BUFFER = 4 << 20
"""Bytes that may wait for the runtime before lines are left out of the screen."""
_READ = 1 << 17
_DRAIN = 2 << 20
_LINGER = 2.0
_STREAMS = ("out", "err")


def main(runtime: Channel, server: Channel) -> NoReturn:
    """Be the log process (called in a process that was forked for it)."""
    status = 70
    try:
        LogProcess(runtime, server).serve()
        status = 0
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(status)


class _Log(Marks):
    """One attempt's log while its task runs."""

    __slots__ = (
        "cut",
        "dropped",
        "ended",
        "file",
        "folder",
        "lost",
        "number",
        "partial",
        "pid",
        "pipes",
        "size",
        "started",
        "torn",
    )

    def __init__(self, number: int, pid: int, started: float, folder: str, token: bytes, pipes: list[int]) -> None:
        super().__init__(token)
        self.number = number
        self.pid = pid
        self.started: float | None = started
        self.folder = folder
        self.pipes: list[int | None] = [*pipes]
        self.partial = [bytearray(), bytearray()]
        self.file: int | None = None
        self.size = 0
        self.cut = False
        self.torn = False
        self.lost = 0
        self.dropped = 0
        self.ended = False


class LogProcess:
    """The state of the log process.

    Parameters
    ----------
    runtime : Channel
        Takes limits, new servers and the order to end; is given lines.
    server : Channel
        Of the fork server, which hands over the pipes.
    """

    def __init__(self, runtime: Channel, server: Channel) -> None:
        self._runtime = runtime
        self._selector = selectors.DefaultSelector()
        self._logs: dict[int, _Log] = {}
        self._limit = DEFAULT_LIMIT
        self._partials: dict[tuple[int, int], float] = {}
        self._told: set[str] = set()
        self._servers: list[Channel] = []
        self._ending: float | None = None
        self._writing = False
        self._selector.register(runtime.fileno(), selectors.EVENT_READ, runtime)
        self._add_server(server)

    def serve(self) -> None:
        """Read and write until the runtime is gone or says so, and everything is drained."""
        gc.freeze()
        self._raise_descriptor_limit()
        self._runtime.send(messages.HELLO, 0, os.getpid())
        while True:
            for key, mask in self._selector.select(self._timeout()):
                if isinstance(key.data, Channel):
                    self._on_channel(key.data)
                elif mask & selectors.EVENT_READ and key.data[0].pipes[key.data[1]] == key.fd:
                    self._read(*key.data)
            now = time.monotonic()
            if self._partials:
                self._flush_partials(now)
            self._watch_writing()
            if self._ending is not None and self._may_end(now):
                return

    # -- channels -------------------------------------------------------------------------------------------------

    def _on_channel(self, channel: Channel) -> None:
        # The runtime's limit is always sent before the first task, so look there first.
        for asked in self._runtime.receive() if not self._runtime.closed else ():
            if asked.kind == messages.LIMIT:
                self._limit = int(asked.payload)
            elif asked.kind == messages.SERVER:
                self._add_server(Channel(socket.socket(fileno=self._runtime.descriptors.popleft())))
            elif asked.kind == messages.DRAIN:
                # The server is gone; what it said last comes first.
                for server in [*self._servers]:
                    self._hear_server(server)
                self._drain(asked)
            elif asked.kind == messages.QUIT:
                self._quit()
        if self._runtime.closed and self._ending is None:
            self._selector.unregister(self._runtime.fileno())
            self._writing = False
            self._ending = time.monotonic() + _LINGER
            self._kill_if_alone()
        self._runtime.flush()
        if channel is not self._runtime:
            self._hear_server(channel)

    def _hear_server(self, server: Channel) -> None:
        if server not in self._servers:
            return
        for asked in server.receive():
            self._from_server(server, asked)
        if server.closed:
            self._selector.unregister(server.fileno())
            self._servers.remove(server)
            server.close()
            self._kill_if_alone()

    def _from_server(self, channel: Channel, asked: Frame) -> None:
        if asked.kind == messages.TASK:
            started, rest = messages.unpack_time(asked.payload)
            folder, token = messages.unpack_task(rest)
            pipes = [channel.descriptors.popleft() for _ in range(min(2, len(channel.descriptors)))]
            if len(pipes) < 2:
                # The server keeps below the limit of descriptors, so this takes somebody who lowers it meanwhile.
                for pipe in pipes:
                    os.close(pipe)
                self._trouble(f"log lines are lost: {folder}: too many open files")
                return
            log = self._logs[asked.task] = _Log(asked.task, asked.number, started, folder, token, pipes)
            for stream, pipe in enumerate(pipes):
                os.set_blocking(pipe, False)
                self._selector.register(pipe, selectors.EVENT_READ, (log, stream))
        elif asked.kind == messages.DRAIN:
            self._drain(asked)

    def _add_server(self, server: Channel) -> None:
        self._servers.append(server)
        self._selector.register(server.fileno(), selectors.EVENT_READ, server)

    def _kill_if_alone(self) -> None:
        """With both the runtime and the server gone, nobody else is left to end what tasks left behind."""
        if self._runtime.closed and not self._servers:
            for log in self._logs.values():
                if not log.ended:
                    signal_group(log.pid, signal.SIGKILL)

    def _may_end(self, now: float) -> bool:
        open_pipes = any(log.pipes != [None, None] and not log.ended for log in self._logs.values())
        if now < (self._ending or 0.0) and (self._servers or open_pipes):
            return False
        for number in list(self._logs):
            self._drain(Frame(messages.DRAIN, number, 0, b""))
        return True

    def _quit(self) -> NoReturn:
        for number in list(self._logs):
            self._drain(Frame(messages.DRAIN, number, 0, b""))
        self._runtime.flush_all(_LINGER)
        os._exit(0)

    def _watch_writing(self) -> None:
        if self._runtime.closed or self._writing == bool(self._runtime.pending):
            return
        self._writing = not self._writing
        write = selectors.EVENT_WRITE if self._writing else 0
        self._selector.modify(self._runtime.fileno(), selectors.EVENT_READ | write, self._runtime)

    def _timeout(self) -> float | None:
        deadlines = []
        if self._ending is not None:
            deadlines.append(min(self._ending, time.monotonic() + 0.1))
        if self._partials:
            deadlines.append(next(iter(self._partials.values())))
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, log: _Log, stream: int) -> int:
        """Read once from a pipe; return how many bytes came, -1 where there are none now."""
        pipe = log.pipes[stream]
        if pipe is None:
            return -1
        try:
            data = os.read(pipe, _READ)
        except (BlockingIOError, InterruptedError):
            return -1
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(pipe)
            os.close(pipe)
            log.pipes[stream] = None
            if log.pipes == [None, None] and log.ended:
                self._forget(log)
            return -1
        lines: list[tuple[int, bytes, bool]] = []
        for which, segment in log.segments(data) if stream == 0 else ((1, data),):
            if which < 0:
                kind = messages.BEGAN if segment == streams.BEGAN else messages.FINISHED
                self._runtime.send(kind, log.number, 0, pack_time(time.time()))
            elif not log.cut:
                self._split(log, which, segment, lines)
        if lines:
            self._keep(log, lines)
        return len(data)

    def _split(self, log: _Log, stream: int, data: bytes, lines: list[tuple[int, bytes, bool]]) -> None:
        partial = log.partial[stream]
        *whole, rest = data.split(b"\n")
        if whole:
            if partial:
                whole[0] = bytes(partial) + whole[0]
                partial.clear()
                self._partials.pop((log.number, stream), None)
            for line in whole:
                text = log.masked(line)
                while len(text) > LONGEST_PIECE:
                    lines.append((stream, text[:LONGEST_PIECE], True))
                    text = text[LONGEST_PIECE:]
                lines.append((stream, text, False))
        if rest:
            if not partial:
                self._partials[log.number, stream] = time.monotonic() + PARTIAL_SECONDS
            partial += rest
            if log.secrets and len(partial) > LONGEST_PIECE:
                partial[:] = log.masked(bytes(partial))
            # What may be the beginning of a secret waits for its end.
            kept = len(log.secrets[0]) if log.secrets else 0
            while len(partial) > LONGEST_PIECE + kept:
                lines.append((stream, bytes(partial[:LONGEST_PIECE]), True))
                del partial[:LONGEST_PIECE]

    def _flush_partials(self, now: float) -> None:
        while self._partials:
            (number, stream), deadline = next(iter(self._partials.items()))
            if deadline > now:
                return
            self._flush_partial(self._logs[number], stream)

    def _flush_partial(self, log: _Log, stream: int) -> None:
        self._partials.pop((log.number, stream), None)
        partial = log.partial[stream]
        if partial:
            text = log.masked(bytes(partial))
            partial.clear()
            if not log.cut:
                self._keep(log, [(stream, text, True)])

    def _drain(self, asked: Frame) -> None:
        """Read what a task has written, although others may still hold its pipes, and say that this is done."""
        number = asked.task
        done = frame(messages.DRAINED, number, asked.number, asked.payload)
        log = self._logs.get(number)
        if log is None:
            self._runtime.write(done)
            return
        for stream in (0, 1):
            taken = 0
            while taken < _DRAIN:
                count = self._read(log, stream)
                if count < 0:
                    break
                taken += count
        if log.held:
            held, log.held = log.held, b""
            lines: list[tuple[int, bytes, bool]] = []
            if not log.cut:
                self._split(log, 0, held, lines)
            if lines:
                self._keep(log, lines)
        for stream in (0, 1):
            self._flush_partial(log, stream)
        if log.dropped:
            done = frame(messages.DROPPED, number, log.dropped) + done
            log.dropped = 0
        log.ended = True
        self._runtime.write(done)
        if log.pipes == [None, None]:
            self._forget(log)

    def _forget(self, log: _Log) -> None:
        for stream in (0, 1):
            self._flush_partial(log, stream)
        if log.file is not None:
            os.close(log.file)
            log.file = None
        self._logs.pop(log.number, None)

    # -- writing --------------------------------------------------------------------------------------------------

    def _keep(self, log: _Log, lines: list[tuple[int, bytes, bool]]) -> None:
        """Write lines to the log file and hand them on for the screen."""
        when = time.time()
        formed = [format_line(when, _STREAMS[stream], text, partial) for stream, text, partial in lines]
        self._open(log)
        total = sum(map(len, formed))
        if log.size + total > self._limit:
            fitting, size = 0, log.size
            while size + len(formed[fitting]) <= self._limit:
                size += len(formed[fitting])
                fitting += 1
            lines = lines[:fitting]
            formed = [*formed[:fitting], truncation_line(when, self._limit)]
            log.cut = True
        self._write(log, b"".join(formed), len(formed), when)
        if not log.ended and not self._runtime.closed:
            self._show(log, lines, when)
            if log.cut:
                self._trouble(f"the log in {log.folder} was cut at {self._limit} bytes", once=False)

    def _show(self, log: _Log, lines: list[tuple[int, bytes, bool]], when: float) -> None:
        if self._runtime.pending > SCREEN_BUFFER:
            log.dropped += len(lines)
            return
        frames = []
        if log.started is not None:
            frames.append(frame(messages.STARTED, log.number, log.pid, pack_time(log.started)))
            log.started = None
        if log.dropped:
            frames.append(frame(messages.DROPPED, log.number, log.dropped))
            log.dropped = 0
        for stream, text, _ in lines:
            frames.append(frame(messages.LINE, log.number, stream, pack_time(when, text)))
        self._runtime.write(b"".join(frames))

    def _open(self, log: _Log) -> None:
        if log.file is not None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        path = os.path.join(log.folder, "log")
        try:
            try:
                log.file = os.open(path, flags, 0o666)
            except FileNotFoundError:
                os.makedirs(log.folder, exist_ok=True)
                log.file = os.open(path, flags, 0o666)
            log.size = os.fstat(log.file).st_size
        except OSError as error:
            self._trouble(f"log lines are lost: {log.folder}: {error.strerror}")

    def _write(self, log: _Log, data: bytes, count: int, when: float) -> None:
        if log.file is None:
            log.lost += count
            return
        if log.lost:
            data = format_line(when, "note", b"[%d lines were lost here]" % log.lost) + data
        if log.torn:
            data = b"\n" + data
        view, written = memoryview(data), 0
        try:
            while written < len(view):
                written += os.write(log.file, view[written:])
        except OSError as error:
            log.lost += count
            log.torn = log.torn or (written > 0 and data[written - 1] != 10)
            self._trouble(f"log lines are lost: {log.folder}: {error.strerror}")
        else:
            log.lost, log.torn = 0, False
        log.size += written

    def _trouble(self, text: str, once: bool = True) -> None:
        reason = text.rpartition(": ")[2]
        if once and reason in self._told:
            return
        self._told.add(reason)
        self._runtime.send(messages.TROUBLE, 0, 0, text.encode("utf-8", "replace"))

    def _raise_descriptor_limit(self) -> None:
        """Three descriptors for each running task may be more than the usual limit allows."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            except (OSError, ValueError):
                pass  # then the old limit has to do
