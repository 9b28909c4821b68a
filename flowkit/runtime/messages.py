"""How the processes of a run talk to each other: frames over stream sockets, with descriptors where needed.

Three kinds of processes talk: the runtime, its fork server and its log process. All of them are this program, so
a frame is a fixed head (what, which task, a number, a length) and bytes. A channel never waits for its reader
unless descriptors travel with the frame.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from typing import Any, NamedTuple

from flowkit.model.coordinates import Coordinates, Span, TaskRef
from flowkit.model.launch import Launch

# To the fork server.
CONFIG = 1
"""What every task of the run is told, as JSON."""
FORK = 2
"""Fork a task; number: the node of a gang or -1; payload: `pack_task`."""
EXEC = 3
"""Start a fresh interpreter for a task; payload: `pack_task`."""
SIGNAL = 4
"""Send a signal to a task's processes; number: the signal."""
LOG_LINK = 5
"""With one descriptor: the channel to a log process that runs already."""
NEW_LOG = 6
"""With one descriptor: start a log process and let it have this channel to the runtime."""
QUIT = 7
# From the fork server to the runtime. The end of a task comes by the log process too, together
# with its last line; that is the usual way, and one wake-up instead of three for a short task.
STARTED = 10
"""Number: the process id; payload: the time. The log process tells it too, before a task's first line."""
ENDED = 11
"""Number: the exit status, negative for a signal; payload: `pack_end`."""
REFUSED = 12
"""The process could not be started; number: the error's number."""
# To the log process.
TASK = 20
"""With two descriptors, the read ends for stdout and stderr; number: the process id; payload: the time of the start,
then `pack_task`."""
DRAIN = 21
"""The task has ended: read what is there and say `DRAINED`, with the same number and payload."""
SERVER = 22
"""With one descriptor: the channel of a new fork server."""
LIMIT = 23
"""Payload: the limit of a log in bytes."""
# From the log process to the runtime.
LINE = 30
"""Number: 0 for out, 1 for err; payload: the time and the text."""
DRAINED = 31
"""Number: the exit status; payload: `pack_end`, or nothing where the runtime itself has asked for it."""
DROPPED = 32
"""So many lines were not sent, since the runtime did not keep up; number: how many."""
TROUBLE = 33
"""Payload: what went wrong with writing a log, in one line."""
BEGAN = 34
"""The task has begun to run the user's code."""
FINISHED = 35
"""The user's code is over; what follows is flowkit's own."""
HELLO = 36
"""Number: the process id of the log process."""

_HEAD = struct.Struct("<BIiI")
_TIME = struct.Struct("<d")
_INT = struct.Struct("i")
_END = struct.Struct("<idddq")
_READ = 1 << 18


class Frame(NamedTuple):
    """One message.

    Parameters
    ----------
    kind : int
        One of the constants of this module.
    task : int
        The number that the runtime gave to a process of a task; 0 where it is about none.
    number : int
        What the kind says.
    payload : bytes
        What the kind says.
    """

    kind: int
    task: int
    number: int
    payload: bytes


def frame(kind: int, task: int = 0, number: int = 0, payload: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    return _HEAD.pack(kind, task, number, len(payload)) + payload


class Channel:
    """One end of a socket, which never waits: what cannot be sent yet is kept.

    Attributes
    ----------
    closed : bool
        The other end is gone.
    descriptors : deque of int
        Descriptors that came in, in the order of the frames that they belong to.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self.closed = False
        self.descriptors: deque[int] = deque()
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes wait to be sent."""
        return len(self._outgoing)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.end.fileno()

    def receive(self, at_most: int = 1 << 20) -> list[Frame]:
        """Return the frames that have arrived; the rest of what is there comes with the next call."""
        taken = 0
        while not self.closed and taken < at_most:
            try:
                data, rights, _, _ = self.end.recvmsg(_READ, socket.CMSG_SPACE(4 * _INT.size))
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self.closed = True
                break
            for level, kind, packed in rights:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    whole = len(packed) - len(packed) % _INT.size
                    for (descriptor,) in _INT.iter_unpack(packed[:whole]):
                        os.set_inheritable(descriptor, False)
                        self.descriptors.append(descriptor)
            if not data:
                self.closed = True
                break
            self._incoming += data
            taken += len(data)
            if len(data) < 4096 and not rights:
                break
        return self._parse()

    def send(self, kind: int, task: int = 0, number: int = 0, payload: bytes = b"") -> None:
        """Send a frame as far as that works at once, and keep the rest."""
        self.write(frame(kind, task, number, payload))

    def write(self, frames: bytes) -> None:
        """Send whole frames as far as that works at once, and keep the rest."""
        self.keep(frames)
        self.flush()

    def keep(self, frames: bytes) -> None:
        """Keep whole frames until the next `flush`."""
        if not self.closed:
            self._outgoing += frames

    def flush(self) -> None:
        """Send what was kept, as far as that works at once."""
        while self._outgoing and not self.closed:
            try:
                sent = self.end.send(self._outgoing)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            del self._outgoing[:sent]

    def send_descriptors(self, descriptors: list[int], data: bytes) -> None:
        """Send whole frames, the first of them with descriptors, waiting until the reader takes them."""
        self.flush_all(None)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_INT.pack, descriptors)))]
        while not self.closed:
            try:
                sent = self.end.sendmsg([data], rights)
            except BlockingIOError:
                self._wait_writable(None)
                continue
            except OSError:
                self._lost()
                return
            self._outgoing += data[sent:]
            self.flush_all(None)
            return

    def flush_all(self, seconds: float | None) -> bool:
        """Wait until all is sent, at most so long for each piece; return whether it is."""
        self.flush()
        while self._outgoing and not self.closed:
            if not self._wait_writable(seconds):
                return False
            self.flush()
        return not self._outgoing

    def wait_closed(self, seconds: float) -> bool:
        """Wait until the other end is gone, dropping what it still says; return whether it is."""
        deadline = time.monotonic() + seconds
        if self.closed:
            return True
        waiter = select.poll()
        waiter.register(self.end.fileno(), select.POLLIN)
        while not self.closed:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.flush()
            waiter.poll(min(left, 0.05 if self._outgoing else left) * 1000)
            self.receive()
        return True

    def close(self) -> None:
        """Close this end."""
        self.closed = True
        self._outgoing.clear()
        self.end.close()
        while self.descriptors:
            os.close(self.descriptors.popleft())

    def _lost(self) -> None:
        # The other end is gone. What it sent before that can still be read, so `closed` is left to `receive`.
        self._outgoing.clear()

    def _wait_writable(self, seconds: float | None) -> bool:
        waiter = select.poll()
        waiter.register(self.end.fileno(), select.POLLOUT)
        return bool(waiter.poll(None if seconds is None else int(seconds * 1000)))

    def _parse(self) -> list[Frame]:
        frames: list[Frame] = []
        buffer, start, size = self._incoming, 0, len(self._incoming)
        while size - start >= _HEAD.size:
            kind, task, number, length = _HEAD.unpack_from(buffer, start)
            stop = start + _HEAD.size + length
            if stop > size:
                break
            frames.append(Frame(kind, task, number, bytes(buffer[start + _HEAD.size : stop])))
            start = stop
        if start:
            del buffer[:start]
        return frames


def pair() -> tuple[Channel, socket.socket]:
    """Return one end as a channel, and the other end for another process."""
    mine, theirs = socket.socketpair()
    return Channel(mine), theirs


def pack_time(when: float, rest: bytes = b"") -> bytes:
    """Put a time before bytes."""
    return _TIME.pack(when) + rest


def unpack_time(payload: bytes) -> tuple[float, bytes]:
    """Take apart what `pack_time` made."""
    return _TIME.unpack_from(payload)[0], payload[_TIME.size :]


class End(NamedTuple):
    """What is known of a task that has ended, but for its status; sent as `pack_end` writes it.

    Parameters
    ----------
    pid : int
        Its process.
    started, ended : float
        Seconds since the epoch.
    cpu : float
        Processor seconds.
    memory : int
        Bytes at the peak.
    """

    pid: int
    started: float
    ended: float
    cpu: float
    memory: int


def pack_end(end: End) -> bytes:
    """Return the bytes of what is known of a task that has ended."""
    return _END.pack(*end)


def unpack_end(payload: bytes) -> End:
    """Take apart what `pack_end` made."""
    return End(*_END.unpack(payload))


def pack_task(folder: str, rest: bytes) -> bytes:
    """Put the folder of a task's attempt, which the log process needs, before what only the task needs."""
    name = os.fsencode(folder)
    return _INT.pack(len(name)) + name + rest


def unpack_task(payload: bytes) -> tuple[str, bytes]:
    """Take apart what `pack_task` made."""
    (length,) = _INT.unpack_from(payload)
    stop = _INT.size + length
    return os.fsdecode(payload[_INT.size : stop]), payload[stop:]


def launch_to_json(launch: Launch) -> list[Any]:
    """Return a launch as plain values, for a process that does not know the flow's graph."""
    parents = [[span.step, span.first.indices, span.first.turn, span.length] for span in launch.parents]
    split = launch.split
    opened = None if split is None else [split.step, split.coordinates.indices, split.coordinates.turn]
    place = launch.coordinates
    return [launch.step, place.indices, place.turn, parents, opened, launch.attempt, launch.kind, launch.gang]


def launch_from_json(data: list[Any]) -> Launch:
    """Return the launch that `launch_to_json` wrote."""
    step, indices, turn, parents, opened, attempt, kind, gang = data
    return Launch(
        step,
        Coordinates(tuple(indices), turn),
        tuple(Span(name, Coordinates(tuple(first), last), length) for name, first, last, length in parents),
        None if opened is None else TaskRef(opened[0], Coordinates(tuple(opened[1]), opened[2])),
        attempt,
        kind,
        gang,
    )
