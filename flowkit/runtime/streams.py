"""What a task prints: its standard streams, so that the lines of both come out in the order in which it wrote them.

Two pipes lead from a task to the log process, one for each stream, and two pipes have no common order. So
``sys.stderr`` writes into the pipe of stdout too, in marked pieces that the log process takes apart; whatever writes
to descriptor 2 itself (C code, other programs) goes through the pipe of stderr. The marks also tell when the user's
code begins and ends, for hard timeouts.
"""

from __future__ import annotations

import io
import os
import select
import struct
import sys
from collections.abc import MutableMapping

TOKEN_SIZE = 16
"""Bytes of the random token that begins a mark."""
VARIABLE = "FLOWKIT_TASK_STREAM"
"""Environment variable that gives a fresh interpreter its token."""
ERR, BEGAN, FINISHED, SECRET = b"e", b"b", b"f", b"s"
_HEAD = struct.Struct("<cH")
HEAD_SIZE = TOKEN_SIZE + _HEAD.size
# A write of at most PIPE_BUF bytes is never mixed with another process's.
_ROOM = min(getattr(select, "PIPE_BUF", 512), 4096) - HEAD_SIZE

_mark: tuple[int, bytes] | None = None


def new_token() -> bytes:
    """Return a token that no task will print by chance."""
    return b"\x00\x1b" + os.urandom(TOKEN_SIZE - 2)


def install(token: bytes) -> int:
    """Make the standard streams of this process those of a task: UTF-8, line by line, in order.

    Modules that keep a reference to ``sys.stderr`` from before (logging's handlers) write to the new stream too.

    Returns
    -------
    int
        A copy of descriptor 1, through which marked pieces go, so that a step that closes stdout still has a
        stderr. Whoever lets descriptor 1 lead elsewhere afterwards (the fork server, in each task) does the same
        with this one.
    """
    global _mark
    channel = os.dup(1)
    _mark = (channel, token)
    _renew("stdout", io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    _renew("stderr", io.BufferedWriter(_MarkedErr(channel, token), _ROOM))
    return channel


def adopt(environment: MutableMapping[str, str]) -> None:
    """Do what `install` does in a fresh interpreter that the fork server started; nothing in any other one."""
    text = environment.pop(VARIABLE, "")
    try:
        token = bytes.fromhex(text)
    except ValueError:
        return
    if len(token) == TOKEN_SIZE:
        install(token)


def code_began() -> None:
    """Tell the runtime that the user's code begins: its hard timeout counts from here."""
    _tell(BEGAN)


def code_finished() -> None:
    """Tell the runtime that the user's code is over: storing its results has no hard timeout."""
    _tell(FINISHED)


def hide(secret: str) -> bool:
    """Have the log process mask a value in all that this task and its children print from now on.

    Returns
    -------
    bool
        False where there is no log process: then nothing is masked.
    """
    if _mark is None:
        return False
    flush()
    channel, token = _mark
    value = secret.encode("utf-8", "backslashreplace")
    if len(value) > _ROOM:
        return False
    try:
        _write(channel, token + _HEAD.pack(SECRET, len(value)) + value)
    except OSError:
        return False
    return True


def flush() -> None:
    """Let out what the streams still hold; a step may have closed or broken them."""
    for stream in {id(each): each for each in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # closed, or its reader is gone: there is nobody left to tell


def parse_head(data: bytes, start: int) -> tuple[bytes, int]:
    """Return kind and length of the marked piece that begins at `start`."""
    kind, length = _HEAD.unpack_from(data, start + TOKEN_SIZE)
    return kind, length


def _tell(kind: bytes) -> None:
    if _mark is None:
        return
    flush()
    channel, token = _mark
    try:
        _write(channel, token + _HEAD.pack(kind, 0))
    except OSError:
        pass  # the log process is gone, and with it whoever would have listened


class _MarkedErr(io.RawIOBase):
    """Writes stderr's text as marked pieces into stdout's pipe."""

    name = "<stderr>"
    mode = "w"

    def __init__(self, channel: int, token: bytes) -> None:
        self._channel = channel
        self._token = token

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        for start in range(0, len(view), _ROOM):
            piece = view[start : start + _ROOM]
            _write(self._channel, self._token + _HEAD.pack(ERR, len(piece)) + piece)
        return len(view)


def _write(channel: int, data: bytes) -> None:
    """Write all at once; a child of the task may have made the pipe non-blocking for everybody."""
    while True:
        try:
            os.write(channel, data)
            return
        except BlockingIOError:
            select.select((), (channel,), ())


def _renew(name: str, buffer: io.BufferedWriter) -> None:
    """Put a new buffer below a standard stream, keeping the object wherever that is possible."""
    original = getattr(sys, f"__{name}__")
    stream = original
    if type(original) is io.TextIOWrapper:
        # Beginning an existing object anew keeps every reference to it good.
        io.TextIOWrapper.__init__(original, buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    else:
        stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    if getattr(sys, name) is original or getattr(sys, name) is None:
        setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)
