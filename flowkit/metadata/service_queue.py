"""Records on their way to a metadata service: on disk, in order, in batches that are sent once each.

One folder for each run of each process, below the user's state folder::

    service/<host and digest of the service's address>/<flow>-<run>-<digits>/
        queue.json       whose records, for which service; ``id`` begins every idempotency key (no token)
        lock             held by whoever sends them; a lock of a dead process is free
        00000003.jsonl   a record a line, in the order in which they were written

A file is added to until it is sent for the first time or full; from then on it never changes, and it is deleted when
the service has confirmed it. So its idempotency key, which is made of the queue's id and the file's number, is on
disk before anything is sent: what was sent without an answer, by whoever was killed then, is sent again under the same
key and counts once. A line that a kill left half written is passed over: the datastore has what it said.

The queue is bounded. Where it would grow beyond that, only the newest state of each task is kept, then fewer outputs;
what is left out is counted, and ``flowkit metadata rebuild`` brings it from the datastore.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from flowkit.metadata.records import OutputRecord, Record, RunRecord
from flowkit.metadata.sql import plain_text
from flowkit.settings import state_folder

MOST_BYTES = 64 * 1024 * 1024
"""What one queue may have on disk."""
BATCH_BYTES = 1024 * 1024
"""What one request has, about."""
BATCH_RECORDS = 2_000
MOST_ARTIFACTS = 10_000
"""Artifacts of one task, and reads, that a service takes."""
MOST_TEXT = 60_000
"""Characters of a reason that a service takes."""
_HEAD = "queue.json"
_LOCK = "lock"
_SUFFIX = ".jsonl"
_REFUSED = ".refused"


class Line(NamedTuple):
    """A record as it is sent.

    Parameters
    ----------
    kind : str
        ``run``, ``task`` or ``output``.
    what : tuple of str
        The run or the task.
    attempt : int
    text : str
        JSON, in one line.
    """

    kind: str
    what: tuple[str, ...]
    attempt: int
    text: str


class Batch:
    """What is sent in one request.

    Attributes
    ----------
    number : int
        Its place in the queue.
    lines : list of Line or None
        Its records; None where they are on disk only.
    """

    __slots__ = ("count", "lines", "number", "size")

    def __init__(self, number: int, lines: list[Line] | None, count: int, size: int) -> None:
        self.number = number
        self.lines = lines
        self.count = count
        self.size = size


def line_of(record: Record) -> Line:
    """Return a record as it is sent."""
    what: tuple[str, ...]
    if isinstance(record, RunRecord):
        kind, what, attempt = "run", (record.flow, record.run), 0
    else:
        kind = "output" if isinstance(record, OutputRecord) else "task"
        what, attempt = (record.flow, record.run, record.step, record.task), record.attempt
    fields = record.to_json()
    if len(fields.get("reason") or "") > MOST_TEXT:
        fields["reason"] = fields["reason"][:MOST_TEXT]
    if kind == "output":
        for name in ("artifacts", "reads"):
            fields[name] = fields[name][:MOST_ARTIFACTS]
    text = json.dumps({"kind": kind, **fields}, separators=(",", ":"))
    if "\\ud" in text or "\\u0000" in text:  # perhaps no UTF-8, or a NUL, which no service takes
        text = json.dumps({"kind": kind, **_plain(fields)}, separators=(",", ":"))
    return Line(kind, what, attempt, text)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return {name: _plain(each) for name, each in value.items()} if isinstance(value, dict) else value


def newest(lines: Iterable[Line], *, attempts: bool = True) -> list[Line]:
    """Return only the newest line of each run and attempt (or task), in the order in which each came first."""
    kept: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        kept[line.kind, line.what, line.attempt if attempts else 0] = line
    return list(kept.values())


def body_of(lines: Iterable[Line]) -> bytes:
    """Return the body of a request."""
    return f'{{"records":[{",".join(line.text for line in lines)}]}}'.encode()


class Queue:
    """The queue of one process for one run; all methods may be called from any thread.

    Made by `make` and `load`. Where the folder cannot be written, the records are kept in memory only (`on_disk`).

    Attributes
    ----------
    folder : str or None
        Where it is.
    url, flow, run : str
        For which service, whose records.
    claimed : bool
        The number of the run is certainly this run's at the service: it was given out there, or looked at.
    dropped : int
        Records that had no room.
    """

    def __init__(self, folder: str | None, lock: int | None, head: dict[str, Any]) -> None:
        self.folder = folder
        self.url = str(head["url"])
        self.flow = str(head["flow"])
        self.run = str(head["run"])
        self.created = float(head.get("created") or 0.0)
        self.claimed = head.get("claimed") is True
        self.dropped = 0
        self._id = str(head["id"])
        self._lock_descriptor = lock
        self._mutex = threading.RLock()
        self._next = 1
        self._tail: list[Line] = []
        self._tail_size = 0
        self._sealed: deque[Batch] = deque()
        self._tried = 0
        self._file: int | None = None
        self._bytes = 0

    # -- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def make(cls, url: str, flow: str, run: str, *, claimed: bool = False) -> Queue:
        """Return a new queue, in a folder of its own that nobody else can take."""
        head: dict[str, Any] = {
            "url": url,
            "flow": flow,
            "run": run,
            "id": os.urandom(12).hex(),
            "created": time.time(),
        }
        head["claimed"] = claimed
        folder = os.path.join(folder_of(url), f"{flow}-{run}-{os.urandom(4).hex()}")
        part = f"{folder}.part"
        lock = None
        try:
            os.makedirs(part, mode=0o700)
            with open(os.path.join(part, _HEAD), "w", encoding="utf-8") as file:
                json.dump(head, file)
            lock = _locked(part)
            os.rename(part, folder)  # who pushes sees it when it is locked
        except OSError:
            return cls(None, lock, head)
        return cls(folder, lock, head)

    @classmethod
    def load(cls, folder: str) -> Queue | None:
        """Take a queue over that nobody holds any more; None where somebody does, or there is none.

        Raises
        ------
        ValueError
            If it is damaged so that nobody knows what it is.
        OSError
            If it cannot be read.
        """
        try:
            lock = _locked(folder)
        except FileNotFoundError:
            return None
        if lock is None:
            return None
        try:
            with open(os.path.join(folder, _HEAD), encoding="utf-8") as file:
                head = json.load(file)
            if not all(isinstance(head.get(name), str) for name in ("url", "flow", "run", "id")):
                raise ValueError("it does not say whose records they are")
            queue = cls(folder, lock, head)
            queue._find_batches()
        except FileNotFoundError:  # somebody has just delivered it
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return queue

    def _find_batches(self) -> None:
        assert self.folder is not None
        numbers = [int(name.partition(".")[0]) for name in os.listdir(self.folder) if _is_batch(name)]
        for number in sorted(numbers):
            lines = list(self._read(number))
            size = sum(len(line.text) for line in lines)
            self._sealed.append(Batch(number, None, len(newest(lines)), size))
            self._bytes += size
        self._next = max(numbers, default=0) + 1

    # -- writing ----------------------------------------------------------------------------------------------------

    @property
    def on_disk(self) -> bool:
        """Whether what is queued survives this process."""
        return self.folder is not None

    @property
    def count(self) -> int:
        """How many records wait."""
        with self._mutex:
            return sum(batch.count for batch in self._sealed) + len(newest(self._tail))

    @property
    def waits(self) -> bool:
        """Whether any record waits."""
        return bool(self._sealed or self._tail)

    def append(self, lines: Sequence[Line]) -> None:
        """Add records at the end."""
        with self._mutex:
            for start in range(0, len(lines), BATCH_RECORDS):
                self._append(lines[start : start + BATCH_RECORDS])
            if self._bytes > MOST_BYTES:
                self._shrink()

    def _append(self, lines: Sequence[Line]) -> None:
        size = sum(len(line.text) for line in lines)
        if self._tail and (self._tail_size + size > BATCH_BYTES or len(self._tail) + len(lines) > BATCH_RECORDS):
            self._seal()
        self._tail += lines
        self._tail_size += size
        self._bytes += size
        self._store(lines)

    def _store(self, lines: Sequence[Line]) -> None:
        if self.folder is None:
            return
        content = "".join(f"{line.text}\n" for line in lines).encode()
        try:
            if self._file is None:
                path = self._path(self._next)
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            while content:
                content = content[os.write(self._file, content) :]
        except OSError:
            self._leave_disk()

    def _leave_disk(self) -> None:
        """Keep everything in memory: the disk is full, or the folder is gone."""
        for batch in self._sealed:
            if batch.lines is None:
                batch.lines = newest(self._read(batch.number))
        self._close_file()
        self.folder = None

    def _seal(self) -> None:
        """End the file that is added to: nothing of it changes any more."""
        lines = newest(self._tail)
        # What waits for long is not held in memory as well; the next one to be sent is.
        held = lines if self.folder is None or not self._sealed else None
        self._sealed.append(Batch(self._next, held, len(lines), self._tail_size))
        self._close_file()
        self._tail, self._tail_size = [], 0
        self._next += 1

    def _shrink(self) -> None:
        """Make room: of what was not sent yet, keep the newest state of each task, and less where that is too much."""
        keep = [self._sealed.popleft()] if self._sealed and self._sealed[0].number <= self._tried else []
        lines: list[Line] = []
        for batch in self._sealed:
            lines += self._lines(batch)
        lines = newest([*lines, *self._tail], attempts=False)
        size = sum(len(line.text) for line in lines)
        for kind in ("output", "task"):
            kept: list[Line] = []
            for line in lines:
                if line.kind == kind and size > MOST_BYTES // 2:
                    size -= len(line.text)
                    self.dropped += 1
                else:
                    kept.append(line)
            lines = kept
        old = [batch.number for batch in self._sealed] + ([self._next] if self._tail else [])
        self._close_file()
        self._next += 1
        self._sealed = deque(keep)
        self._tail, self._tail_size = [], 0
        self._bytes = sum(batch.size for batch in keep)
        for line in lines:
            self._append([line])
        for number in old:  # killed before: the old states are sent first, then the newest once more
            self._remove(number)

    # -- sending ----------------------------------------------------------------------------------------------------

    def head(self) -> tuple[str, list[Line], Batch] | None:
        """Return what is to be sent next: its idempotency key, its records, and what `done` is given; None if empty."""
        with self._mutex:
            if not self._sealed and self._tail:
                self._seal()
            if not self._sealed:
                return None
            batch = self._sealed[0]
            self._tried = batch.number
            if batch.lines is None:
                batch.lines = newest(self._lines(batch))
            return f"{self._id}-{batch.number}", batch.lines, batch

    def done(self, batch: Batch) -> None:
        """Forget a batch that the service has."""
        with self._mutex:
            if self._sealed and self._sealed[0] is batch:
                self._sealed.popleft()
                self._bytes -= batch.size
                self._remove(batch.number)

    def set_aside(self, batch: Batch, lines: Sequence[Line]) -> None:
        """Keep records that the service will never take, for people, and go on with the next batch."""
        with self._mutex:
            if self.folder is not None:
                try:
                    with open(f"{self._path(batch.number)}{_REFUSED}", "w", encoding="utf-8") as file:
                        file.writelines(f"{line.text}\n" for line in lines)
                except OSError:
                    pass  # the datastore has what they say
            self.done(batch)

    @staticmethod
    def has_refused(folder: str) -> bool:
        """Whether a queue's folder holds records that the service will never take."""
        try:
            return any(name.endswith(_REFUSED) for name in os.listdir(folder))
        except OSError:
            return False

    def close(self, *, discard: bool = False) -> None:
        """Let go of the queue; the folder is removed where nothing waits any more (or nothing is to be sent)."""
        with self._mutex:
            self._close_file()
            folder, self.folder = self.folder, None
            empty = not self._sealed and not self._tail
            if folder is not None and (empty or discard):
                _remove_folder(folder)
            if self._lock_descriptor is not None:
                os.close(self._lock_descriptor)
                self._lock_descriptor = None

    # -- files ------------------------------------------------------------------------------------------------------

    def _lines(self, batch: Batch) -> Iterable[Line]:
        return batch.lines if batch.lines is not None else self._read(batch.number)

    def _read(self, number: int) -> Iterator[Line]:
        if self.folder is None:
            return
        try:
            with open(self._path(number), encoding="utf-8", errors="replace") as file:
                for text in file:
                    line = _parsed(text.rstrip("\n")) if text.endswith("\n") else None
                    if line is not None:
                        yield line
        except OSError:
            return  # somebody deleted it: the datastore has what it said

    def _path(self, number: int) -> str:
        assert self.folder is not None
        return os.path.join(self.folder, f"{number:08d}{_SUFFIX}")

    def _remove(self, number: int) -> None:
        if self.folder is not None:
            try:
                os.unlink(self._path(number))
            except OSError:
                return  # sent again at the worst, under the same key

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def folder_of(url: str) -> str:
    """Return the folder of the queues for a service."""
    import hashlib

    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    host = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in url.partition("//")[2])[:40]
    return os.path.join(state_folder(), "service", f"{host.strip('-.')}-{digest}")


def queues(url: str | None = None) -> list[str]:
    """Return the folders of the queues of this user (for a service), the oldest first."""
    top = os.path.join(state_folder(), "service")
    found = []
    for service in [folder_of(url)] if url is not None else _folders(top):
        for folder in _folders(service):
            try:
                with open(os.path.join(folder, _HEAD), encoding="utf-8") as file:
                    found.append((float(json.load(file).get("created") or 0.0), folder))
            except FileNotFoundError:
                continue  # just delivered, or just being made
            except (OSError, ValueError, AttributeError, TypeError):
                found.append((0.0, folder))
    return [folder for _, folder in sorted(found)]


def of_run(url: str, flow: str, run: str) -> list[str]:
    """Return the folders of the queues of one run, the oldest first."""
    return [folder for folder in queues(url) if os.path.basename(folder).rpartition("-")[0] == f"{flow}-{run}"]


def _folders(parent: str) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.path for entry in entries if entry.is_dir() and not entry.name.endswith(".part")]
    except OSError:
        return []


def _locked(folder: str) -> int | None:
    """Lock a folder for this process, until the descriptor is closed; None where somebody else has it."""
    import fcntl

    path = os.path.join(folder, _LOCK)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return descriptor  # a file system without locks: an idempotency key counts once all the same
    try:
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)  # it was delivered and removed in between
    return None


def _remove_folder(folder: str) -> None:
    try:
        names = os.listdir(folder)
        if any(name.endswith(_REFUSED) for name in names):
            return  # kept for people
        # The lock goes last: who waits for it then finds that the folder is another one, or none.
        for name in sorted(names, key=lambda name: (name == _LOCK, name == _HEAD)):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
    except OSError:
        return  # an empty queue: the next push removes it


def _is_batch(name: str) -> bool:
    return name.endswith(_SUFFIX) and name.partition(".")[0].isdigit()


def _parsed(text: str) -> Line | None:
    try:
        found = json.loads(text)
        kind = found["kind"]
        names = ("flow", "run") if kind == "run" else ("flow", "run", "step", "task")
        return Line(kind, tuple(str(found[name]) for name in names), int(found.get("attempt") or 0), text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
